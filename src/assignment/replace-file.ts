import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, readdir, rename, unlink } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { DpsError } from '../errors.ts'

/** Far above any record; a path that leads to a disk image is found before that fills the memory. */
const MAX_RECORD_BYTES = 1024 * 1024

/** Only the user this process runs as, from the first byte on. */
const MODE = 0o600

/** Another writer that cannot see this one may take its temporary file for a stray one. */
const ATTEMPTS = 3

/** What a platform, or a file system, says that cannot flush a folder. */
const NO_FOLDER_SYNC: ReadonlySet<unknown> = new Set([
  'EPERM',
  'EACCES',
  'EISDIR',
  'EINVAL',
  'ENOTSUP',
  'EBADF',
])

/** Temporary files that are being written by this process. */
const active = new Set<string>()

/** The content of a regular file of at most 1 MiB; undefined where there is none. */
export async function readBounded(file: string): Promise<Uint8Array | undefined> {
  let handle: FileHandle
  try {
    // Without waiting for the writer of a FIFO.
    handle = await open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
  } catch (error) {
    return unlessMissing(error)
  }
  try {
    const stats = await handle.stat()
    if (!stats.isFile()) throw failed(`${file} is not a regular file`)
    // A file of the kernel says that it has no size, and another may grow.
    const record = Buffer.alloc(Math.min(stats.size || MAX_RECORD_BYTES, MAX_RECORD_BYTES) + 1)
    let length = 0
    for (let more = 1; more > 0 && length < record.length; length += more)
      more = (await handle.read(record, length, record.length - length)).bytesRead
    if (length > MAX_RECORD_BYTES) throw failed(`${file} is larger than 1 MiB, so it is no record`)
    return record.subarray(0, length)
  } finally {
    await handle.close()
  }
}

/** Writes a new file beside it, flushes it, and renames it over the old one. */
export async function replace(file: string, record: Uint8Array): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const temporary = `${file}.${process.pid}.${randomBytes(6).toString('hex')}.tmp`
    active.add(temporary)
    try {
      await writeNew(temporary, record)
      await rename(temporary, file)
      return
    } catch (error) {
      await unlink(temporary).catch(() => {})
      if (attempt === ATTEMPTS || codeOf(error) !== 'ENOENT') throw error
    } finally {
      active.delete(temporary)
    }
  }
}

/** Never a file that is there already, nor through a link: somebody else may have put it there. */
async function writeNew(file: string, content: Uint8Array): Promise<void> {
  const handle = await open(file, 'wx', MODE)
  try {
    await handle.writeFile(content)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Removes what writers of `file` have left that are no more. */
export async function removeStrays(file: string): Promise<void> {
  const [folder, name] = [dirname(file), basename(file)]
  // A folder that cannot be listed can be written to all the same.
  for (const entry of await readdir(folder).catch(() => [])) {
    if (!entry.startsWith(`${name}.`)) continue
    const found = /^\.([0-9]{1,10})\.[0-9a-f]{12}\.tmp$/.exec(entry.slice(name.length))
    if (found === null) continue
    const path = join(folder, entry)
    const pid = Number(found[1])
    // In a container every process has had the same id.
    if (pid === process.pid ? active.has(path) : isAlive(pid)) continue
    await unlink(path).catch(() => {})
  }
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return codeOf(error) !== 'ESRCH'
  }
}

/** False where folders cannot be flushed. */
export async function flush(folder: string): Promise<boolean> {
  let handle: FileHandle | undefined
  try {
    handle = await open(folder, constants.O_RDONLY)
    await handle.sync()
    return true
  } catch (error) {
    if (NO_FOLDER_SYNC.has(codeOf(error))) return false
    throw error
  } finally {
    await handle?.close()
  }
}

/** Removes the file, if it is there. */
export async function remove(file: string): Promise<void> {
  await unlink(file).catch(unlessMissing)
}

export function failed(message: string, cause?: unknown): DpsError {
  return new DpsError('STORE_FAILED', 'store', message, cause === undefined ? {} : { cause })
}

function unlessMissing(error: unknown): undefined {
  if (codeOf(error) === 'ENOENT') return undefined
  throw error
}

export function codeOf(error: unknown): unknown {
  return (error as NodeJS.ErrnoException | undefined)?.code
}
