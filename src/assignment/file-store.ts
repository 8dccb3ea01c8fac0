import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, readdir, rename, unlink } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { DpsError } from '../errors.ts'
import type { AssignmentStore } from './store.ts'

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

/**
 * A store in one file, which is replaced at one stroke: written beside it, flushed, renamed over it, and the folder flushed
 * (rename(2), fsync(2)). A process that dies at any point, or a power cut, leaves the old record or the new one; what is
 * left of a temporary file is removed by the next write. Where several processes write, the last one wins.
 *
 * The folder must exist. It should belong to the user the process runs as, and nobody else should be able to write to it.
 * A symbolic link in place of the file is replaced, not followed. The file has mode 0600; on Windows, which knows neither
 * that nor the flushing of folders, a notice says so.
 *
 * @throws DpsError OPTION_INVALID, phase `config`; the methods reject with STORE_FAILED, phase `store`
 */
export function fileStore(path: string | URL): AssignmentStore {
  const file = checkPath(path)
  const folder = dirname(file)
  const notices: string[] = []
  const notice = (text: string) => {
    if (!notices.includes(text)) notices.push(text)
  }
  if (process.platform === 'win32') {
    notice(`${file} is readable by whoever may read its folder: Windows has no file mode 0600`)
  }
  const syncFolder = async () => {
    if (!(await sync(folder))) {
      notice(`${folder} cannot be flushed on this platform: the last write may not outlast a power cut`)
    }
  }
  return Object.freeze({
    notices,
    read: () => guard(`${file} could not be read`, () => readBounded(file)),
    write: (record: Uint8Array) =>
      guard(`${file} could not be written`, async () => {
        await removeStrays(folder, basename(file))
        await replace(file, record)
        await syncFolder()
      }),
    remove: () =>
      guard(`${file} could not be removed`, async () => {
        await unlink(file).catch(unlessMissing)
        await removeStrays(folder, basename(file))
        await syncFolder()
      }),
  })
}

async function readBounded(file: string): Promise<Uint8Array | undefined> {
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
    if (stats.size > MAX_RECORD_BYTES) throw failed(`${file} is larger than 1 MiB, so it is no record`)
    return await handle.readFile()
  } finally {
    await handle.close()
  }
}

async function replace(file: string, record: Uint8Array): Promise<void> {
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

/** Removes what writers have left that are no more. */
async function removeStrays(folder: string, name: string): Promise<void> {
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

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return codeOf(error) !== 'ESRCH'
  }
}

/** False where folders cannot be flushed. */
async function sync(folder: string): Promise<boolean> {
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

async function guard<T>(what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    throw DpsError.is(cause) ? cause : failed(`${what} (${codeOf(cause) ?? 'unknown error'})`, cause)
  }
}

function failed(message: string, cause?: unknown): DpsError {
  return new DpsError('STORE_FAILED', 'store', message, cause === undefined ? {} : { cause })
}

function unlessMissing(error: unknown): undefined {
  if (codeOf(error) === 'ENOENT') return undefined
  throw error
}

function codeOf(error: unknown): unknown {
  return (error as NodeJS.ErrnoException | undefined)?.code
}

function checkPath(path: unknown): string {
  const isUrl = path instanceof URL
  if (isUrl ? path.protocol !== 'file:' : typeof path !== 'string' || path === '' || path.includes('\0')) {
    throw new DpsError('OPTION_INVALID', 'config', 'path must be a path or a file URL')
  }
  try {
    // Now, since the working directory may change.
    return resolve(isUrl ? fileURLToPath(path) : (path as string))
  } catch (cause) {
    throw new DpsError('OPTION_INVALID', 'config', 'path must be a path or a file URL', { cause })
  }
}
