import { createReadStream } from 'node:fs'
import type { Readable } from 'node:stream'
import type { DpsError } from '../../errors.ts'
import { kit } from '../kit.ts'

/** Far above any row; a quote that is never closed is found before it fills the memory. */
const MAX_ROW = 1024 * 1024

const SEPARATORS = [',', ';', '\t']

/** What was wrong with the rows that came back, in a list that is fed in again: read and not looked at. */
export const REASON = ['errorCode', 'errorMessage'] as const

/** The cells of one device by column; those that are empty are not there. */
export type Cells = Readonly<Record<string, unknown>>

export interface Row {
  /** Where it begins, from 1. */
  readonly line: number
  /** Bytes of the list up to its end. */
  readonly endsAt: number
  readonly cells: Cells
  /** What is wrong with it; there are no cells then. */
  readonly error?: DpsError
}

/** Whether a list has its columns in its first row, or each row is a JSON object. */
export type Format = { readonly columns: readonly string[]; readonly separator: string } | 'jsonl'

/**
 * Reads rows as they are asked for. A list that begins with `{` is of JSON objects, one a line; any other is CSV (RFC 4180)
 * whose first row names the columns, separated by a comma, a semicolon or a tab.
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
    if (first.text === '') continue
    if (format === undefined) {
      format = first.text.trimStart().startsWith('{') ? 'jsonl' : headOf(first.text, as, known)
      onFormat(format)
      if (format !== 'jsonl') continue
    }
    if (format === 'jsonl') {
      yield { line, endsAt, ...attempt(() => objectOf(first.text, line, known)) }
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
    yield { line: begins, endsAt, ...attempt(() => cellsOf(text, begins, columns, separator)) }
  }
}

function attempt(work: () => Cells): Pick<Row, 'cells' | 'error'> {
  try {
    return { cells: work() }
  } catch (error) {
    if (!kit.DpsError.is(error)) throw error
    return { cells: {}, error }
  }
}

async function* readLines(path: string, as: string, signal: AbortSignal) {
  const stream: Readable = path === '-' ? process.stdin : createReadStream(path)
  // What is waited for may never come.
  const stop = () => stream.destroy()
  signal.addEventListener('abort', stop, { once: true })
  const decoder = new TextDecoder()
  let rest = ''
  const measured = (text: string, end: number) => ({
    text: text.replace(/\r$/, ''),
    bytes: Buffer.byteLength(text) + end,
  })
  try {
    for await (const chunk of stream) {
      rest += decoder.decode(chunk as Buffer, { stream: true })
      const lines = rest.split('\n')
      rest = lines.pop()!
      if (rest.length > MAX_ROW) throw kit.usage(`${as}: a line is longer than 1 MiB`)
      for (const text of lines) yield measured(text, 1)
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
  const separator = SEPARATORS.find((one) => text.includes(one)) ?? ','
  const columns = split(text, separator)?.map((name) => name.trim())
  if (columns === undefined)
    throw kit.usage(`${as}: line 1 does not name the columns: its quotes do not match`)
  for (const [i, name] of columns.entries()) {
    const before = columns.indexOf(name)
    if (before !== i) throw kit.usage(`${as}: line 1 has the same name in columns ${before + 1} and ${i + 1}`)
    if (!known.includes(name) && !REASON.includes(name as never))
      throw kit.unknown(name, known, ` as a column in ${as}`)
  }
  return { columns, separator }
}

function cellsOf(text: string, line: number, columns: readonly string[], separator: string): Cells {
  const cells = split(text, separator)
  if (cells === undefined) throw kit.usage(`line ${line}: its quotes do not match`)
  if (cells.length !== columns.length)
    throw kit.usage(`line ${line} has ${cells.length} cells, and there are ${columns.length} columns`)
  return withoutReason(columns.map((name, i) => [name, cells[i]!]))
}

function objectOf(text: string, line: number, known: readonly string[]): Cells {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    // The reason that JSON.parse gives quotes the text.
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw kit.usage(`line ${line} is no JSON object`)
  for (const [name, cell] of Object.entries(value)) {
    if (REASON.includes(name as never)) continue
    if (!known.includes(name)) throw kit.unknown(name, known, ` in line ${line}`)
    const fits = name === 'payload' ? typeof cell === 'object' && cell !== null : typeof cell === 'string'
    if (!fits) throw kit.usage(`line ${line}: ${name} must be ${name === 'payload' ? 'an object' : 'text'}`)
  }
  return withoutReason(Object.entries(value))
}

const withoutReason = (cells: readonly (readonly [string, unknown])[]): Cells =>
  Object.fromEntries(cells.filter(([name, cell]) => cell !== '' && !REASON.includes(name as never)))

const escaped = (separator: string): string => (separator === '\t' ? '\\t' : separator)

/** Whether it ends within quotes: then its row goes on in the next line. */
function isOpen(text: string, separator: string): boolean {
  const closed = text.replace(new RegExp(`(^|[${escaped(separator)}])"[^"]*(?:""[^"]*)*"`, 'g'), '$1')
  return new RegExp(`(?:^|[${escaped(separator)}])"`).test(closed)
}

/** The cells of a row (RFC 4180 section 2); undefined where its quotes do not match. */
function split(text: string, separator: string): string[] | undefined {
  const cells: string[] = []
  const end = escaped(separator)
  const cell = new RegExp(`(?:"([^"]*(?:""[^"]*)*)"|([^"${end}]*))(${end}|$)`, 'y')
  for (;;) {
    const found = cell.exec(text)
    if (found === null) return undefined
    cells.push(found[1]?.replaceAll('""', '"') ?? found[2]!)
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
  return text.includes(separator) || /["\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}
