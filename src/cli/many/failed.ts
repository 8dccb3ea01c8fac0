import { closeSync, fsyncSync, lstatSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import type { DpsError } from '../../errors.ts'
import { placeOf } from '../files.ts'
import { kit } from '../kit.ts'
import { type Cells, type Format, REASON, writeRow } from './list.ts'

/**
 * The devices that failed and why, in the format of their list. It is there when all is over, and only where some failed: one
 * of before goes, where it may be replaced. It may be the list itself, which stays as it is while not all of it was read.
 */
export class Failed {
  readonly #path: string | undefined
  readonly #partial: string
  readonly #isList: boolean
  #file: number | undefined
  #format: Format = 'jsonl'
  #count = 0

  /** @throws DpsError STORE_FAILED, phase `config` */
  constructor(path: string | undefined, force: boolean, list: string) {
    this.#path = path
    this.#partial = `${path}.${process.pid}.tmp`
    this.#isList = path !== undefined && placeOf(path) === placeOf(list)
    if (path === undefined) return
    const there = this.#try(() => lstatSync(path, { throwIfNoEntry: false }))
    if (there !== undefined && !force)
      throw this.#failed('is there already', 'Remove it, name another, or give --force.')
    if (there?.isFile() === false)
      throw this.#failed('is no file', 'Only a file is replaced, no link, device or folder.')
    // It may hold keys, where the list does.
    this.#try(() => {
      this.#file = openSync(this.#partial, 'wx', 0o600)
    })
  }

  begin(format: Format): void {
    this.#format = format
    if (format === 'jsonl') return
    const { separator } = format
    const columns = [...format.columns.filter((name) => !REASON.includes(name as never)), ...REASON]
    this.#format = { columns, separator }
    this.#write(writeRow(this.#format, Object.fromEntries(columns.map((name) => [name, name]))))
  }

  add(cells: Cells, { code, message }: DpsError): void {
    this.#count++
    this.#write(
      writeRow(this.#format, {
        ...cells,
        errorCode: code,
        errorMessage: kit.printable(kit.spokenOfRow(message), 1000),
      }),
    )
  }

  /** Its name, where there is one now. @param whole whether the list has come to its end */
  end(whole: boolean): string | undefined {
    const [file, path] = [this.#file, this.#path]
    if (file === undefined || path === undefined) return undefined
    this.#file = undefined
    const counts = this.#count > 0 && (whole || !this.#isList)
    this.#try(() => {
      fsyncSync(file)
      closeSync(file)
      if (counts) renameSync(this.#partial, path)
      else rmSync(this.#partial)
      if (whole && !counts) rmSync(path, { force: true })
    })
    return counts ? path : undefined
  }

  #write(row: string): void {
    const file = this.#file
    if (file === undefined) return
    this.#try(() => {
      for (let bytes = Buffer.from(row); bytes.length > 0; ) bytes = bytes.subarray(writeSync(file, bytes))
    })
  }

  #try<R>(work: () => R): R {
    try {
      return work()
    } catch (cause) {
      throw this.#failed(`could not be written (${(cause as NodeJS.ErrnoException).code})`)
    }
  }

  #failed(what: string, hint?: string): DpsError {
    const message = `--failed: ${kit.printable(this.#path!, 200)} ${what}`
    return new kit.DpsError('STORE_FAILED', 'config', message, hint === undefined ? {} : { hint })
  }
}
