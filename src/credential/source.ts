import { createHash } from 'node:crypto'
import { close, open, read, type Stats, stat } from 'node:fs'
import { DpsError } from '../errors.ts'
import { printable } from '../printable.ts'

/** A value, or a function that is asked for it on every connection. */
export type Readable<T> = T | (() => T | Promise<T>)

// Far above any chain; a path that leads to a disk image is found before that fills the memory.
const MAX_MATERIAL_BYTES = 1024 * 1024
const CHUNK_BYTES = 16 * 1024

/** Asks a source anew. */
export type Read<T> = () => Promise<T>

/** A source that asks `value` if it is a function and returns it if it is not. */
export function fromValue<T extends string | Uint8Array | readonly unknown[]>(
  value: Readable<T>,
  field: string,
): Read<T> {
  if (typeof value !== 'function') {
    const fixed = copyOf(value)
    return async () => fixed
  }
  return async () => {
    try {
      return await value()
    } catch (cause) {
      throw new DpsError('CREDENTIAL_UNREADABLE', 'config', `The function given as \`${field}\` failed.`, {
        cause,
        hint: `See \`cause\`: the function given as \`${field}\` has to return its content.`,
      })
    }
  }
}

/** A source that reads a regular file of at most 1 MiB. */
export function fromFile(path: string | URL, field: string): Read<Buffer> {
  return async () => {
    try {
      return await readBounded(path, field)
    } catch (cause) {
      if (DpsError.is(cause)) throw cause
      if (mayBeKey(path)) {
        // Neither the path nor the cause, which repeats it.
        throw new DpsError('CREDENTIAL_UNREADABLE', 'config', `\`${field}\` ${reasonOf(cause)}.`, {
          hint: `\`${field}\` looks like a key rather than a path, and is therefore not repeated: give the key itself as \`key\`.`,
        })
      }
      throw new DpsError('CREDENTIAL_UNREADABLE', 'config', `\`${field}\` ${path} ${reasonOf(cause)}.`, {
        cause,
        hint: `Check the path in \`${field}\` and that the user this process runs as may read the file.`,
      })
    }
  }
}

async function readBounded(path: string | URL, field: string): Promise<Buffer> {
  const unreadable = (fault: string) =>
    new DpsError('CREDENTIAL_UNREADABLE', 'config', `\`${field}\` ${path} ${fault}.`)
  // Before it is opened: that alone waits for the writer of a FIFO, and sets some devices going.
  const stats = await settled<Stats>((done) => stat(path, done))
  if (stats.isDirectory()) throw unreadable('is a directory')
  if (!stats.isFile()) throw unreadable('is not a regular file')
  const file = await settled<number>((done) => open(path, 'r', done))
  try {
    const chunks: Buffer[] = []
    // One byte more than allowed tells. The size in `stats` does not: it is 0 for a file of the kernel.
    for (let left = MAX_MATERIAL_BYTES + 1; left > 0; ) {
      const chunk = Buffer.alloc(Math.min(left, CHUNK_BYTES))
      const length = await settled<number>((done) => read(file, chunk, 0, chunk.length, null, done))
      if (length === 0) return Buffer.concat(chunks)
      chunks.push(chunk.subarray(0, length))
      left -= length
    }
  } finally {
    close(file, () => {})
  }
  throw unreadable('is larger than 1 MiB')
}

/** `node:fs/promises` and streams would be most of what a cold start loads and never uses again. */
function settled<T>(
  begin: (done: (error: NodeJS.ErrnoException | null, value: T) => void) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    begin((error, value) => (error === null ? resolve(value) : reject(error)))
  })
}

/** SHA-256, hex, of a list of parts; the length of each goes in, so that no two lists collide. */
export function digestOf(parts: Iterable<string | Uint8Array>): string {
  const hash = createHash('sha256')
  for (const part of parts) {
    const bytes = typeof part === 'string' ? Buffer.from(part) : part
    hash.update(`${typeof part === 'string' ? 's' : 'b'}${bytes.length}:`)
    hash.update(bytes)
  }
  return hash.digest('hex')
}

/** @throws DpsError OPTION_INVALID, phase `config`, if an option has a name that nothing reads */
export function checkOptionNames(options: unknown, owner: string, known: readonly string[]): void {
  if (typeof options !== 'object' || options === null) {
    throw new DpsError('OPTION_INVALID', 'config', `\`${owner}\` needs an object of options.`)
  }
  const unknown = Object.keys(options).find((name) => !known.includes(name))
  if (unknown !== undefined) {
    const names = known.map((name) => `\`${name}\``).join(', ')
    throw new DpsError(
      'OPTION_INVALID',
      'config',
      `\`${owner}\` has no option \`${printable(unknown, 40)}\`; it has ${names}.`,
    )
  }
}

/**
 * The one option of several alternatives that is present.
 *
 * @throws DpsError OPTION_INVALID, phase `config`, unless exactly one is
 */
export function oneOf<N extends string>(
  options: Partial<Record<N, unknown>>,
  owner: string,
  names: readonly N[],
): N {
  const given = names.filter((name) => options[name] !== undefined)
  if (given.length === 1) return given[0]!
  const list = names.map((name) => `\`${name}\``).join(' or ')
  const found =
    given.length === 0 ? 'none was given' : `${given.map((name) => `\`${name}\``).join(' and ')} were given`
  throw new DpsError('OPTION_INVALID', 'config', `\`${owner}\` needs exactly one of ${list}; ${found}.`)
}

/** @throws DpsError OPTION_INVALID, phase `config`, unless it is a path */
export function checkPath(value: unknown, field: string): string | URL {
  if (typeof value === 'string' && /[\r\n]|-----BEGIN /.test(value)) {
    // It may be a private key: nothing of it goes into the message.
    throw new DpsError(
      'OPTION_INVALID',
      'config',
      `\`${field}\` must be a path or a file URL; it is the content of a file, which goes into \`${field.replace('File', '')}\`.`,
    )
  }
  if ((typeof value === 'string' && value !== '') || value instanceof URL) return value
  throw new DpsError('OPTION_INVALID', 'config', `\`${field}\` must be a path or a file URL.`)
}

/** What can be base64 of 16 bytes or more. An absolute path is taken for one only where it is as long as most keys. */
function mayBeKey(path: string | URL): boolean {
  const key = /^(?:[A-Za-z0-9+][A-Za-z0-9+/]{21,}|[A-Za-z0-9+/]{40,}|[A-Za-z0-9+/]{22,}=)=?$/
  return typeof path === 'string' && key.test(path)
}

// The caller may reuse or wipe its buffer.
export function copyOf<T>(value: T): T {
  if (value instanceof Uint8Array) return Buffer.from(value) as unknown as T
  if (Array.isArray(value)) return value.map(copyOf) as unknown as T
  return value
}

function reasonOf(cause: unknown): string {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code
  if (code === 'ENOENT') return 'does not exist'
  if (code === 'EACCES' || code === 'EPERM') return 'may not be read by this process'
  return `could not be read (${code ?? 'unknown error'})`
}
