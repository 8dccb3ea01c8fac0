import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('../../', import.meta.url))

export interface Fence {
  /** The first word of what follows the three backticks. */
  readonly language: string
  /** The other words. */
  readonly flags: readonly string[]
  readonly text: string
  /** Of its first line of text, from 1. */
  readonly line: number
  /** The fence after it. */
  next?: Fence
}

export interface Page {
  /** Relative to the repository. */
  readonly name: string
  readonly text: string
  readonly fences: readonly Fence[]
  /** Without what is in fences, line by line. */
  readonly prose: readonly string[]
}

const SKIPPED = new Set(['node_modules', 'dist', '.git', 'api'])

function* markdownIn(folder: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (SKIPPED.has(entry.name)) continue
    const path = join(folder, entry.name)
    if (entry.isDirectory()) yield* markdownIn(path)
    else if (entry.name.endsWith('.md')) yield path
  }
}

function read(path: string): Page {
  const text = readFileSync(path, 'utf8')
  const fences: Fence[] = []
  const prose: string[] = []
  let open: { info: string; lines: string[]; line: number } | undefined
  let last: Fence | undefined
  for (const [index, line] of text.split('\n').entries()) {
    const info = /^```(.*)$/.exec(line)?.[1]
    if (open === undefined && info !== undefined) open = { info, lines: [], line: index + 2 }
    else if (open !== undefined && info === '') {
      const [language = '', ...flags] = open.info.split(' ')
      const fence: Fence = { language, flags, text: `${open.lines.join('\n')}\n`, line: open.line }
      if (last !== undefined) last.next = fence
      fences.push(fence)
      last = fence
      open = undefined
    } else if (open !== undefined) open.lines.push(line)
    prose.push(open === undefined && info === undefined ? line : '')
  }
  if (open !== undefined) throw new Error(`${path}: the block that begins at line ${open.line} has no end`)
  return { name: relative(ROOT, path), text, fences, prose }
}

/** Every page of the repository. */
export const pages: readonly Page[] = [...markdownIn(ROOT)].sort().map(read)

/** The rows of every table of a page whose first heading is `first`, cells without backticks. */
export function rowsUnder(page: Page, first: string): readonly (readonly string[])[] {
  const rows: (readonly string[])[] = []
  let inside = false
  for (const line of page.prose) {
    const cells = /^\|(.*)\|$/
      .exec(line)?.[1]
      ?.split('|')
      .map((cell) => cell.trim().replaceAll('`', ''))
    if (cells === undefined) inside = false
    else if (!inside && cells[0] === first) inside = true
    else if (inside && !/^-+$/.test(cells[0]!)) rows.push(cells)
  }
  return rows
}

export const pageOf = (name: string): Page => pages.find((page) => page.name === name)!
