import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { DpsError } from '../errors.ts'
import { codeOf, failed, flush, readBounded, remove, removeStrays, replace } from './replace-file.ts'
import type { AssignmentStore } from './store.ts'

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
  const notices: string[] = []
  const notice = (text: string) => {
    if (!notices.includes(text)) notices.push(text)
  }
  if (process.platform === 'win32') {
    notice(`${file} is readable by whoever may read its folder: Windows has no file mode 0600`)
  }
  const run = async <T>(verb: string, work: () => Promise<T>): Promise<T> => {
    try {
      return await work()
    } catch (cause) {
      if (DpsError.is(cause)) throw cause
      throw failed(`${file} could not be ${verb} (${codeOf(cause) ?? 'unknown error'})`, cause)
    }
  }
  const flushFolder = async () => {
    const folder = dirname(file)
    if (!(await flush(folder))) {
      notice(`${folder} cannot be flushed on this platform: the last write may not outlast a power cut`)
    }
  }
  return Object.freeze({
    notices,
    read: () => run('read', () => readBounded(file)),
    write: (record: Uint8Array) =>
      run('written', async () => {
        await removeStrays(file)
        await replace(file, record)
        await flushFolder()
      }),
    remove: () =>
      run('removed', async () => {
        await remove(file)
        await removeStrays(file)
        await flushFolder()
      }),
  })
}

export function checkPath(path: unknown): string {
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
