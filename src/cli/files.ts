import {
  closeSync,
  fsyncSync,
  lstatSync,
  openSync,
  realpathSync,
  renameSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { resolve } from 'node:path'
import { kit } from './kit.ts'
import type { Options } from './options.ts'

/**
 * Where `--out`, or another option, leads to. With `--force` it replaces what is there, but never what the same command reads
 * or makes.
 *
 * @param others the options that name files of that kind
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function outOf(options: Options, others: readonly string[], own = 'out'): string | undefined {
  const out = kit.text(options, own)
  for (const name of out === undefined ? [] : others) {
    const other = kit.text(options, name)
    if (other !== undefined && placeOf(other) === placeOf(out!))
      throw kit.usage(`--${own} names the file of --${name}`, 'Give each a file of its own.')
  }
  return out
}

export function placeOf(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return resolve(path)
  }
}

/**
 * Writes a file that only this user may read, all of it or nothing. One that is there already is replaced where `force`
 * says so, and only by a whole one.
 *
 * @throws DpsError STORE_FAILED, phase `config`
 */
export function writePrivate(path: string, as: string, content: string, force: boolean): void {
  if (force && lstatSync(path, { throwIfNoEntry: false })?.isFile() === false) {
    throw new kit.DpsError('STORE_FAILED', 'config', `${as}: ${kit.printable(path, 200)} is no file`, {
      hint: 'Only a file is replaced, no link, device or folder. Leave --out out to have it on standard output.',
    })
  }
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
        ? {
            cause,
            hint:
              as === '--key-out'
                ? 'Name another: a key is never replaced.'
                : 'Remove it, name another, or give --force.',
          }
        : { cause },
    )
  }
}
