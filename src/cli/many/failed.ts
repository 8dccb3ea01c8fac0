import {
  closeSync,
  fsyncSync,
  lstatSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import type { DpsError } from '../../errors.ts'
import { placeOf } from '../files.ts'
import { kit } from '../kit.ts'
import { type Format, REASON, type Row, writeRow } from './list.ts'

/**
 * The devices that failed and why, in the format of their list. It is there when all is over, and only where some failed: one
 * of before goes, where it may be replaced. It may be the list itself, which stays as it is while not all of it was read. A row
 * that could not be read is in it as it was, in a cell of its own.
 */
export class Failed {
  readonly #path: string | undefined
  readonly #partial: string
  readonly #isList: boolean
  #file: number | undefined
  #format: Format = 'jsonl'
  #count = 0
  #isCut = false

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
    removeStrays(path)
    this.#try(() => {
      // It may hold keys, where the list does.
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

  add({ cells, unread }: Row, { code, message }: DpsError): void {
    this.#count++
    const errorMessage = kit.printable(kit.spokenOfRow(message), 1000)
    this.#write(writeRow(this.#format, { ...cells, errorCode: code, errorMessage, errorRow: unread }))
  }

  /** Its name, where there is one now. @param whole whether the list has come to its end */
  end(whole: boolean): string | undefined {
    const [file, path] = [this.#file, this.#path]
    if (file === undefined || path === undefined) return undefined
    this.#file = undefined
    const counts = this.#count > 0 && !this.#isCut && (whole || !this.#isList)
    try {
      this.#try(() => {
        try {
          fsyncSync(file)
        } finally {
          closeSync(file)
        }
        if (counts) renameSync(this.#partial, path)
        if (whole && !counts) rmSync(path, { force: true })
      })
    } finally {
      rmSync(this.#partial, { force: true })
    }
    return counts ? path : undefined
  }

  #write(row: string): void {
    const file = this.#file
    if (file === undefined) return
    this.#isCut = true
    this.#try(() => {
      for (let bytes = Buffer.from(row); bytes.length > 0; ) bytes = bytes.subarray(writeSync(file, bytes))
    })
    this.#isCut = false
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

/** What runs have left that were killed: it may hold keys too. */
function removeStrays(path: string): void {
  const folder = dirname(path)
  const before = `${basename(path)}.`
  // A folder that cannot be listed can be written to all the same, and what is another user's stays.
  for (const entry of attempt(() => readdirSync(folder)) ?? []) {
    const pid = Number(entry.startsWith(before) && /^(\d{1,10})\.tmp$/.exec(entry.slice(before.length))?.[1])
    // In a container every process has had the same id: one of ours that is there is nobody's.
    if (pid > 0 && (pid === process.pid || !isAlive(pid))) attempt(() => rmSync(join(folder, entry)))
  }
}

function attempt<R>(work: () => R): R | undefined {
  try {
    return work()
  } catch {
    return undefined
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH'
  }
}
