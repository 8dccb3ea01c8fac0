import { closeSync, openSync, readSync } from 'node:fs'
import { DpsError, type DpsErrorCode } from '../errors.ts'
import { printable } from '../printable.ts'

/** Far above anything that is asked for; a path that leads to a disk image is found before that fills the memory. */
const MAX_BYTES = 1024 * 1024
const CHUNK_BYTES = 16 * 1024
const STANDARD_INPUT = 0

/**
 * The content of a file named in an option; `-` is standard input. At once and in order: there is nothing else that the
 * command could do meanwhile.
 *
 * @param as what the user calls the option
 * @throws DpsError of `code`, phase `config`, that says what is wrong with the file
 */
export function readInput(path: string, as: string, code: DpsErrorCode): Buffer {
  const fail = (fault: string, hint?: string) => {
    return new DpsError(code, 'config', `${as}: ${nameOfFile(path, 200)} ${fault}`, {
      hint: hint ?? 'Check the path, and that the user who runs this may read it.',
    })
  }
  const chunks: Buffer[] = []
  let left = MAX_BYTES + 1
  let file: number | undefined
  try {
    file = path === '-' ? STANDARD_INPUT : openSync(path, 'r')
    while (left > 0) {
      const chunk = Buffer.alloc(Math.min(left, CHUNK_BYTES))
      const length = readSome(file, chunk)
      if (length === 0) break
      chunks.push(chunk.subarray(0, length))
      left -= length
    }
  } catch (error) {
    const looksLikeKey = mayBeKey(path)
    throw fail(
      reasonOf(error),
      looksLikeKey
        ? `What ${as} was given looks like a key rather than a path: put it into a file.`
        : undefined,
    )
  } finally {
    if (file !== undefined && file !== STANDARD_INPUT) closeSync(file)
  }
  if (left === 0) throw fail('is larger than 1 MiB')
  const content = Buffer.concat(chunks)
  if (content.length === 0) throw fail('is empty')
  return content
}

/** A key in the place of its file is not repeated. */
export function nameOfFile(path: string, limit: number): string {
  if (path === '-') return 'standard input'
  return mayBeKey(path) ? 'the file' : printable(path, limit)
}

/** A file of one line, such as a key; editors and `echo` end it with a line break. */
export const lineOf = (content: Buffer): string => content.toString('utf8').replace(/\r?\n$/, '')

function readSome(file: number, chunk: Buffer): number {
  for (;;) {
    try {
      return readSync(file, chunk, 0, chunk.length, null)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      // The other end of a pipe on Windows.
      if (code === 'EOF') return 0
      // A pipe that somebody made non-blocking, and that has nothing yet.
      if (code !== 'EAGAIN') throw error
      pause(10)
    }
  }
}

/** Stops this thread; for the moment before anything else is under way. */
export function pause(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
}

/** What can be base64 of 16 bytes or more. An absolute path is taken for one only where it is as long as most keys. */
function mayBeKey(path: string): boolean {
  return /^(?:[A-Za-z0-9+][A-Za-z0-9+/]{21,}|[A-Za-z0-9+/]{40,}|[A-Za-z0-9+/]{22,}=)=?$/.test(path)
}

function reasonOf(error: unknown): string {
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  switch (code) {
    case 'ENOENT':
    case 'ENOTDIR':
      return 'does not exist'
    case 'EACCES':
    case 'EPERM':
      return 'may not be read by this user'
    case 'EISDIR':
      return 'is a directory'
    case 'ENAMETOOLONG':
      return 'is no path: it is too long'
    default:
      return `could not be read (${code ?? 'unknown error'})`
  }
}
