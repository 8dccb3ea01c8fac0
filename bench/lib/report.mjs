// Markdown tables and SVG bar charts.

/**
 * @typedef {string | number | undefined} Cell a number is shown with three significant digits
 * @typedef {{ title: string, columns: readonly string[], rows: readonly (readonly Cell[])[], note?: string }} Table
 * @typedef {{ label: string, value: number, low?: number, high?: number, strong?: boolean }} Bar `low` and `high` are
 *   drawn as a whisker; `strong` marks what is ours
 * @typedef {{ title: string, unit: string, bars: readonly Bar[] }} Chart
 */

/** A number as people read it: three significant digits below 1000, whole and grouped above. */
export function formatNumber(value) {
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en-US')
  if (Number.isInteger(value)) return String(value)
  return String(Number(value.toPrecision(3)))
}

const cellText = (cell) => {
  if (cell === undefined) return '–'
  return (typeof cell === 'number' ? formatNumber(cell) : cell).replaceAll('|', '\\|').replaceAll('\n', ' ')
}

/** @param {Table} table */
export function markdownTable({ columns, rows }) {
  // A column of numbers reads from the right.
  const numeric = columns.map((_, at) =>
    rows.every((row) => row[at] === undefined || typeof row[at] === 'number'),
  )
  const line = (cells) => `| ${cells.join(' | ')} |`
  return [
    line(columns.map(cellText)),
    `|${numeric.map((right) => (right && rows.length > 0 ? '---:' : '---')).join('|')}|`,
    ...rows.map((row) => line(columns.map((_, at) => cellText(row[at])))),
  ].join('\n')
}

/**
 * A bench's page.
 *
 * @param {{ title: string, about: string, machine: string, tables: readonly Table[], chart?: string }} page
 */
export function markdownPage({ title, about, machine, tables, chart }) {
  const parts = [`# ${title}`, about, machine]
  if (chart !== undefined)
    parts.push(`![${title}, as bars; the tables below have the same figures](${chart})`)
  for (const table of tables) {
    parts.push(`## ${table.title}`, markdownTable(table))
    if (table.note !== undefined) parts.push(table.note)
  }
  return `${parts.join('\n\n')}\n`
}

const escapeXml = (text) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')

const WIDTH = 760
const LABEL = 300
const VALUE = 80
const BAR = 16
const LINE = 24
const HEAD = 40

// Both schemes, so that it can be read wherever it is shown; the bars have contrast on either background.
const STYLE = `
    text { font: 12px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600; font-size: 14px }
    .bar { fill: #8c959f }
    .ours { fill: #0969da }
    .whisker { stroke: #1f2328; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .bar { fill: #6e7681 }
      .ours { fill: #4493f8 }
      .whisker { stroke: #e6edf3 }
    }`

/**
 * Horizontal bars from zero, one chart below the other, in one SVG with a text alternative.
 *
 * @param {string} title
 * @param {readonly Chart[]} charts
 */
export function svgCharts(title, charts) {
  const lines = []
  let y = 8
  for (const chart of charts) {
    const largest = Math.max(...chart.bars.map(({ value, high = value }) => Math.max(value, high)), 1e-12)
    const scale = (value) => (Math.max(value, 0) / largest) * (WIDTH - LABEL - VALUE)
    lines.push(
      `<text class="title" x="8" y="${y + 16}">${escapeXml(`${chart.title} (${chart.unit})`)}</text>`,
    )
    y += HEAD - 8
    for (const { label, value, low, high, strong } of chart.bars) {
      const middle = y + BAR / 2
      const end = LABEL + scale(Math.max(value, high ?? value))
      lines.push(
        `<text x="${LABEL - 8}" y="${middle + 4}" text-anchor="end">${escapeXml(label)}</text>`,
        `<rect class="${strong ? 'ours' : 'bar'}" x="${LABEL}" y="${y}" width="${scale(value).toFixed(1)}" height="${BAR}"/>`,
      )
      if (low !== undefined && high !== undefined) {
        const [from, to] = [low, high].map((at) => (LABEL + scale(at)).toFixed(1))
        lines.push(`<line class="whisker" x1="${from}" x2="${to}" y1="${middle}" y2="${middle}"/>`)
      }
      lines.push(`<text x="${(end + 6).toFixed(1)}" y="${middle + 4}">${formatNumber(value)}</text>`)
      y += LINE
    }
    y += 16
  }
  const words = charts.map(
    (chart) =>
      `${chart.title}, ${chart.unit}: ${chart.bars.map(({ label, value }) => `${label} ${formatNumber(value)}`).join('; ')}.`,
  )
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y}" width="${WIDTH}" height="${y}" role="img" aria-labelledby="title words">
  <title id="title">${escapeXml(title)}</title>
  <desc id="words">${escapeXml(words.join(' '))}</desc>
  <style>${STYLE}
  </style>
  ${lines.join('\n  ')}
</svg>
`
}

/**
 * What a run of some benches leaves of the summary that is there: the rest of it, where it is of the same machine.
 *
 * @param {Record<string, any> | undefined} earlier as it was written
 * @param {{ machine: import('./machine.mjs').Machine, quick: boolean, ran: readonly string[], targets: readonly any[] }} run
 * @returns {{ machine: import('./machine.mjs').Machine, quick: boolean, runs: Record<string, string>, targets: any[] }}
 *   runs: when a bench ran that did not run with the others
 */
export function mergeSummary(earlier, { machine, quick, ran, targets }) {
  const kept = earlier?.targets.filter(({ bench }) => !ran.includes(bench)) ?? []
  const same = ['node', 'cpu', 'architecture', 'kernel'].every(
    (name) => earlier?.machine[name] === machine[name],
  )
  if (kept.length === 0 || !same || earlier.quick !== quick)
    return { machine, quick, runs: {}, targets: [...targets] }
  const when = `${machine.date.slice(0, 16).replace('T', ' ')} UTC`
  return {
    machine: earlier.machine,
    quick,
    runs: { ...earlier.runs, ...Object.fromEntries(ran.map((name) => [name, when])) },
    targets: [...kept, ...targets].sort((a, b) => a.row - b.row),
  }
}

/**
 * The summary: every target against what was measured.
 *
 * @param {readonly import('./targets.mjs').Judged[]} judged
 * @returns {Table}
 */
export function summaryTable(judged) {
  const withUnit = (value, unit) =>
    value === undefined ? undefined : `${formatNumber(value)}${unit === undefined ? '' : ` ${unit}`}`
  const SIGN = { 'at most': '≤', 'at least': '≥', exactly: '=' }
  return {
    title: 'Targets',
    columns: ['#', 'Measure', 'Target', 'Measured', ''],
    rows: judged.map(
      ({ row, measure, unit, direction = 'at most', target, node, value, note, verdict, passed }) => {
        const aim = target === undefined ? undefined : `${SIGN[direction]} ${withUnit(target, unit)}`
        const words = [passed ? verdict : `${verdict}; beyond the gate`]
        if (verdict === 'for another Node') words[0] = `the target is for Node ${node}`
        if (note !== undefined) words.push(note)
        return [row, measure, aim, withUnit(value, unit), words.join('; ')]
      },
    ),
  }
}
