import { createReadStream } from 'node:fs'
import type { Readable } from 'node:stream'
import type { DpsError } from '../../errors.ts'
import { kit } from '../kit.ts'

/** Far above any row; a quote that is never closed is found before it fills the memory. */
const MAX_ROW = 1024 * 1024

const SEPARATORS = [',', ';', '\t']

/**
 * What was wrong with the rows that came back, in a list that is fed in again: not looked at. The last is the row itself where
 * nothing could be made of it; a row without any other cell is taken from there.
 */
export const REASON = ['errorCode', 'errorMessage', 'errorRow'] as const
const UNREAD = REASON[2]

/** The cells of one device by column; those that are empty are not there. */
export type Cells = Readonly<Record<string, unknown>>

export interface Row {
  /** Where it begins, from 1. */
  readonly line: number
  /** Bytes of the list up to its end. */
  readonly endsAt: number
  readonly cells: Cells
  /** What is wrong with it; there are no cells then, and its text is in `unread`. */
  readonly error?: DpsError
  readonly unread?: string
}

/** Whether a list has its columns in its first row, or each row is a JSON object. */
export type Format = { readonly columns: readonly string[]; readonly separator: string } | 'jsonl'

/**
 * Reads rows as they are asked for. A list that begins with `{` is of JSON objects, one a line; any other is CSV (RFC 4180)
 * whose first row names the columns, separated by a comma, a semicolon or a tab. Rows in which nothing is are no rows.
 *
 * @param known the columns there may be
 * @param onFormat told once, before the first row
 */
export async function* readRows(
  path: string,
  as: string,
  known: readonly string[],
  signal: AbortSignal,
  onFormat: (format: Format) => void,
): AsyncGenerator<Row> {
  const lines = readLines(path, as, signal)
  let format: Format | undefined
  let [line, endsAt] = [0, 0]
  for await (const first of lines) {
    line++
    endsAt += first.bytes
    if (first.text.trim() === '') continue
    if (format === undefined) {
      format = first.text.trimStart().startsWith('{') ? 'jsonl' : headOf(first.text, as, known)
      onFormat(format)
      if (format !== 'jsonl') continue
    }
    if (format === 'jsonl') {
      const row = attempt(first.text, line, (text) => objectOf(text, line, known))
      if (row !== undefined) yield { line, endsAt, ...row }
      continue
    }
    const begins = line
    let { text } = first
    for (let open = isOpen(text, format.separator); open; ) {
      const next = await lines.next()
      if (next.done === true) break
      line++
      endsAt += next.value.bytes
      text += `\n${next.value.text}`
      open = next.value.text.split('"').length % 2 === 1
      if (text.length > MAX_ROW)
        throw kit.usage(`${as}: the row in line ${begins} is longer than 1 MiB: a quote is never closed`)
    }
    const { columns, separator } = format
    const own = columns.filter((name) => !REASON.includes(name as never))
    // What was kept of it may come from a list that had those columns as well.
    const row = attempt(text, begins, (one, isAll) =>
      cellsOf(one, begins, isAll ? [columns] : [own, columns], separator),
    )
    if (row !== undefined) yield { line: begins, endsAt, ...row }
  }
}

/** @param read the cells that are not empty; undefined where there is nothing at all */
function attempt(
  text: string,
  line: number,
  read: (text: string, isAll: boolean) => Cells | undefined,
): Pick<Row, 'cells' | 'error' | 'unread'> | undefined {
  let unread = text
  try {
    if (/[\0\uFFFD]/.test(text)) throw kit.usage(`line ${line} is not text in UTF-8`, NO_UTF8)
    const all = read(text, true)
    if (all === undefined) return undefined
    const cells = withoutReason(all)
    const kept = all[UNREAD]
    if (kept === undefined || Object.keys(cells).length > 0) return { cells }
    unread = `${kept}`
    return { cells: withoutReason(read(unread, false) ?? {}) }
  } catch (error) {
    if (!kit.DpsError.is(error)) throw error
    return { cells: {}, error, unread }
  }
}

const withoutReason = (cells: Cells): Cells =>
  Object.fromEntries(Object.entries(cells).filter(([name]) => !REASON.includes(name as never)))

const NO_UTF8 = 'Save the list as CSV in UTF-8.'

async function* readLines(path: string, as: string, signal: AbortSignal) {
  const stream: Readable = path === '-' ? process.stdin : createReadStream(path)
  // What is waited for may never come.
  const stop = () => stream.destroy()
  signal.addEventListener('abort', stop, { once: true })
  const decoder = new TextDecoder()
  let rest = ''
  let count = 0
  const measured = (text: string, end: number) => ({
    text: text.replace(/\r$/, ''),
    bytes: Buffer.byteLength(text) + end,
  })
  try {
    for await (const chunk of stream) {
      rest += decoder.decode(chunk as Buffer, { stream: true })
      const lines = rest.split('\n')
      rest = lines.pop()!
      for (const text of lines) {
        count++
        yield measured(text, 1)
      }
      if (rest.length > MAX_ROW) throw kit.usage(`${as}: line ${count + 1} is longer than 1 MiB`)
    }
    rest += decoder.decode()
    if (rest !== '') yield measured(rest, 0)
  } catch (error) {
    if (kit.DpsError.is(error)) throw error
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown error'
    throw new kit.DpsError(
      'OPTION_INVALID',
      'config',
      `${as}: ${kit.printable(path, 200)} could not be read (${code})`,
      { hint: 'Check the path, and that the user who runs this may read it.' },
    )
  } finally {
    signal.removeEventListener('abort', stop)
    stream.destroy()
  }
}

function headOf(text: string, as: string, known: readonly string[]): Format {
  const all = `The first row names the columns; there are ${known.join(', ')}.`
  const fault = (what: string, hint = all) => kit.usage(`${as}: line 1 ${what}`, hint)
  if (/[\0\uFFFD]/.test(text)) throw fault('is not text in UTF-8', NO_UTF8)
  if (text.includes('\r'))
    throw fault('has carriage returns without line feeds', 'Save the list with line breaks of LF or CR LF.')
  if (text.trimStart().startsWith('['))
    throw fault(
      'begins a JSON array',
      "JSON lines have one object a line: jq -c '.[]' makes them of an array.",
    )
  const separator = SEPARATORS.find((one) => text.includes(one)) ?? ','
  const columns = split(text, separator)?.map((name) => name.trim())
  if (columns === undefined) throw fault('does not name the columns: its quotes do not match')
  for (const [i, name] of columns.entries()) {
    const before = columns.indexOf(name)
    if (before !== i) throw fault(`has the same name in columns ${before + 1} and ${i + 1}`)
    if (known.includes(name) || REASON.includes(name as never)) continue
    throw kit.unknown(name, known, ` as a column in ${as}`, all)
  }
  return { columns, separator }
}

function cellsOf(
  text: string,
  line: number,
  layouts: readonly (readonly string[])[],
  separator: string,
): Cells | undefined {
  const cells = split(text, separator)
  if (cells === undefined) throw kit.usage(`line ${line}: its quotes do not match`)
  // As the table of many a program ends.
  if (cells.every((cell) => cell === '')) return undefined
  const columns = layouts.find(({ length }) => length === cells.length)
  if (columns === undefined)
    throw kit.usage(`line ${line} has ${cells.length} cells, and there are ${layouts[0]!.length} columns`)
  return withoutEmpty(columns.map((name, i) => [name, cells[i]!]))
}

function objectOf(text: string, line: number, known: readonly string[]): Cells {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    // The reason that JSON.parse gives quotes the text.
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw kit.usage(`line ${line} is no JSON object`, 'JSON lines have one whole object a line.')
  for (const [name, cell] of Object.entries(value)) {
    if (REASON.includes(name as never)) continue
    if (!known.includes(name)) throw kit.unknown(name, known, ` in line ${line}`)
    const fits = name === 'payload' ? typeof cell === 'object' && cell !== null : typeof cell === 'string'
    if (!fits) throw kit.usage(`line ${line}: ${name} must be ${name === 'payload' ? 'an object' : 'text'}`)
  }
  return withoutEmpty(Object.entries(value))
}

const withoutEmpty = (cells: readonly (readonly [string, unknown])[]): Cells =>
  Object.fromEntries(cells.filter(([, cell]) => cell !== ''))

const escaped = (separator: string): string => (separator === '\t' ? '\\t' : separator)

/** Whether it ends within quotes: then its row goes on in the next line. */
function isOpen(text: string, separator: string): boolean {
  const closed = text.replace(new RegExp(`(^|[${escaped(separator)}])"[^"]*(?:""[^"]*)*"`, 'g'), '$1')
  return new RegExp(`(?:^|[${escaped(separator)}])"`).test(closed)
}

/**
 * The cells of a row (RFC 4180 section 2), without the spaces around those that are not quoted; undefined where its quotes do
 * not match.
 */
function split(text: string, separator: string): string[] | undefined {
  const cells: string[] = []
  const end = escaped(separator)
  const cell = new RegExp(`(?:"([^"]*(?:""[^"]*)*)"|([^"${end}]*))(${end}|$)`, 'y')
  for (;;) {
    const found = cell.exec(text)
    if (found === null) return undefined
    cells.push(found[1]?.replaceAll('""', '"') ?? found[2]!.trim())
    if (found[3] === '') return cells
  }
}

/** One row of a list of the same format, with a line break. */
export function writeRow(format: Format, cells: Cells): string {
  if (format === 'jsonl') return `${JSON.stringify(cells)}\n`
  return `${format.columns.map((name) => quoted(cells[name] ?? '', format.separator)).join(format.separator)}\n`
}

function quoted(cell: unknown, separator: string): string {
  const text = `${cell}`
  return text.includes(separator) || /["\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}
