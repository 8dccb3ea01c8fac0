import { closeSync, existsSync, fsyncSync, openSync, renameSync, unlinkSync, writeSync } from 'node:fs'
import type { DpsError } from '../../errors.ts'
import { kit } from '../kit.ts'
import { type Cells, type Format, REASON, writeRow } from './list.ts'

/** The devices that failed and why, in the format of their list. It is there when all is over, and only where some failed. */
export class Failed {
  readonly #path: string | undefined
  readonly #partial: string
  #file: number | undefined
  #format: Format = 'jsonl'
  #count = 0

  /** @throws DpsError STORE_FAILED, phase `config` */
  constructor(path: string | undefined, force: boolean) {
    this.#path = path
    this.#partial = `${path}.${process.pid}.tmp`
    if (path === undefined) return
    if (existsSync(path) && !force)
      throw this.#failed('is there already', 'Remove it, name another, or give --force.')
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
      writeRow(this.#format, { ...cells, errorCode: code, errorMessage: kit.printable(message, 1000) }),
    )
  }

  /** Its name, where there is one now. */
  end(): string | undefined {
    const [file, path] = [this.#file, this.#path]
    if (file === undefined || path === undefined) return undefined
    this.#file = undefined
    this.#try(() => {
      fsyncSync(file)
      closeSync(file)
      if (this.#count > 0) renameSync(this.#partial, path)
      else unlinkSync(this.#partial)
    })
    return this.#count > 0 ? path : undefined
  }

  #write(row: string): void {
    const file = this.#file
    if (file === undefined) return
    this.#try(() => {
      for (let bytes = Buffer.from(row); bytes.length > 0; ) bytes = bytes.subarray(writeSync(file, bytes))
    })
  }

  #try(work: () => void): void {
    try {
      work()
    } catch (cause) {
      throw this.#failed(`could not be written (${(cause as NodeJS.ErrnoException).code})`)
    }
  }

  #failed(what: string, hint?: string): DpsError {
    const message = `--failed: ${kit.printable(this.#path!, 200)} ${what}`
    return new kit.DpsError('STORE_FAILED', 'config', message, hint === undefined ? {} : { hint })
  }
}
