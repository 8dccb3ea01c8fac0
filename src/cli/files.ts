import { closeSync, fsyncSync, openSync, renameSync, unlinkSync, writeSync } from 'node:fs'
import { kit } from './kit.ts'

/**
 * Writes a file that only this user may read, all of it or nothing. One that is there already is replaced where `force`
 * says so, and only by a whole one.
 *
 * @throws DpsError STORE_FAILED, phase `config`
 */
export function writePrivate(path: string, as: string, content: string, force: boolean): void {
  const target = force ? `${path}.${process.pid}.tmp` : path
  try {
    const file = openSync(target, 'wx', 0o600)
    try {
      for (let bytes = Buffer.from(content); bytes.length > 0; )
        bytes = bytes.subarray(writeSync(file, bytes))
      fsyncSync(file)
      if (force) renameSync(target, path)
    } catch (error) {
      unlinkSync(target)
      throw error
    } finally {
      closeSync(file)
    }
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code
    const exists = code === 'EEXIST'
    throw new kit.DpsError(
      'STORE_FAILED',
      'config',
      `${as}: ${kit.printable(path, 200)} ${exists ? 'is there already' : `could not be written (${code})`}`,
      exists
        ? { cause, hint: `Remove it, name another${as === '--out' ? ', or give --force' : ''}.` }
        : { cause },
    )
  }
}
