// npm run bench                          every bench
// npm run bench -- handshake footprint   some of them
//   --quick          a smoke: few samples, figures that prove nothing
//   --instructions   counts instructions too, with valgrind
//   --node PATH      another Node for the cold start, beside this one. Default: Node 22, installed; none with --quick
//   --devices N      how many the bench of many devices registers. Default 10 000; 300 with --quick
//   --million        of the fleet of a million every policy, not only the one that is advised: a quarter of an hour
//   --seed N         of the fleet's chance. Default 1
//   --out DIR        where results go. Default bench/results; a temporary folder with --quick
//
// Markdown goes to stdout, talk to stderr. The last line is `N passed, N failed`: benches that ran to their end, what
// they checked, and gates on instructions, bytes and counts. Time is shown and never judged.

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { whyNotCounted } from './lib/instructions.mjs'
import { describeMachine, machine } from './lib/machine.mjs'
import { preparePeers } from './lib/peers.mjs'
import { startServer } from './lib/process.mjs'
import { markdownPage, markdownTable, mergeSummary, summaryTable, svgCharts } from './lib/report.mjs'
import { judge } from './lib/targets.mjs'

/**
 * What a bench is given. A bench is a module in bench/benches that exports `title`, `about` and `run`.
 *
 * @typedef {object} BenchContext
 * @property {boolean} quick
 * @property {number} devices how many, where a bench registers many of them
 * @property {boolean} instructions whether instructions are wanted and can be counted
 * @property {boolean} million
 * @property {number} seed
 * @property {string} folder a temporary folder of this run
 * @property {() => Promise<import('./lib/process.mjs').Server>} server the one server of this run, started when first
 *   asked for
 * @property {import('./lib/peers.mjs').Peers} [peers] for the benches that compare with other clients
 * @property {(text: string) => void} say progress, for whoever waits
 */

/**
 * What a bench gives back.
 *
 * @typedef {object} BenchResult
 * @property {readonly import('./lib/report.mjs').Table[]} tables
 * @property {readonly import('./lib/report.mjs').Chart[]} charts may be empty
 * @property {Record<string, string>} [files] more to write beside the results: text by name
 * @property {Record<string, number | { value?: number, note: string }>} measured by the id of a target
 * @property {readonly { name: string, ok: boolean, detail?: string }[]} checks that what was measured is what was meant
 * @property {unknown} data everything, for the JSON file
 */

const ORDER = ['handshake', 'registration', 'cold-start', 'memory', 'many', 'footprint', 'fleet']
const WITH_PEERS = new Set(['registration', 'cold-start', 'memory', 'many'])
const here = fileURLToPath(new URL('.', import.meta.url))
const present = readdirSync(join(here, 'benches')).map((file) => file.replace(/\.mjs$/, ''))
const known = ORDER.filter((name) => present.includes(name))

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: 'boolean', default: false },
    instructions: { type: 'boolean', default: false },
    node: { type: 'string' },
    devices: { type: 'string' },
    million: { type: 'boolean', default: false },
    seed: { type: 'string', default: '1' },
    out: { type: 'string' },
  },
})
if (!/^\d{1,9}$/.test(given.seed)) {
  console.error('--seed must be a whole number')
  process.exit(2)
}
const unknown = positionals.filter((name) => !known.includes(name))
if (unknown.length > 0) {
  console.error(`no bench is called ${unknown.join(', ')}: there are ${known.join(', ')}`)
  process.exit(2)
}
const names = positionals.length > 0 ? known.filter((name) => positionals.includes(name)) : known

// Before anything else: it may go on as another process.
const peers = names.some((name) => WITH_PEERS.has(name))
  ? await preparePeers({
      otherNode: given.node,
      wantsOtherNode: names.includes('cold-start') && !given.quick,
    })
  : undefined

const say = (text) => console.error(`  ${text}`)
const folder = mkdtempSync(join(tmpdir(), 'dps-bench-'))
process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
const out = given.out
  ? resolve(given.out)
  : given.quick
    ? mkdtempSync(join(tmpdir(), 'dps-bench-results-'))
    : join(here, 'results')
mkdirSync(out, { recursive: true })

const missing = given.instructions ? whyNotCounted() : undefined
if (missing !== undefined) say(missing)
const on = machine()
say(describeMachine(on))

let running
const server = () => {
  running ??= startServer(folder)
  return running
}

let passed = 0
let failed = 0
const count = (ok, text) => {
  if (ok) passed++
  else {
    failed++
    console.error(`FAILED  ${text}`)
  }
}

const measured = {}
const ran = []
const write = (file, text) => writeFileSync(join(out, file), text)
for (const name of names) {
  const startedAt = performance.now()
  console.error(`\n${name}`)
  try {
    const { title, about, run } = await import(`./benches/${name}.mjs`)
    /** @type {BenchContext} */
    const context = {
      quick: given.quick,
      devices: Number(given.devices ?? (given.quick ? 300 : 10_000)),
      instructions: given.instructions && missing === undefined,
      million: given.million,
      seed: Number(given.seed),
      folder,
      server,
      peers,
      say,
    }
    /** @type {BenchResult} */
    const { tables, charts, files = {}, measured: values, checks, data } = await run(context)
    const mode = given.quick ? `${about}\n\nA quick run: too few samples to quote.` : about
    const svg = charts.length > 0 ? `${name}.svg` : undefined
    const page = markdownPage({ title, about: mode, machine: describeMachine(on), tables, chart: svg })
    if (svg !== undefined) write(svg, svgCharts(title, charts))
    write(`${name}.md`, page)
    for (const [file, text] of Object.entries(files)) write(file, text)
    write(
      `${name}.json`,
      `${JSON.stringify({ bench: name, quick: given.quick, machine: on, measured: values, checks, data }, null, 1)}\n`,
    )
    console.log(page)
    Object.assign(measured, values)
    ran.push(name)
    count(true)
    for (const { name: what, ok, detail } of checks)
      count(ok, `${name}: ${what}${detail ? `: ${detail}` : ''}`)
  } catch (error) {
    count(false, `${name}: ${error.stack}`)
  }
  say(`${((performance.now() - startedAt) / 1000).toFixed(1)} s`)
}
await (await running)?.stop()

const judged = judge(measured, { benches: ran, nodeMajor: Number(process.versions.node.split('.')[0]) })
for (const { id, value, gated, passed: ok, gate } of judged) {
  if (gated) count(ok, `gate of ${id}: ${value}, and ${gate} is the limit`)
}
const earlier = existsSync(join(out, 'summary.json'))
  ? JSON.parse(readFileSync(join(out, 'summary.json'), 'utf8'))
  : undefined
const whole = mergeSummary(earlier, { machine: on, quick: given.quick, ran, targets: judged })
const table = summaryTable(whole.targets)
const apart = Object.entries(whole.runs).map(([name, when]) => `${name}, ${when}`)
const summary = `# ${table.title}

${describeMachine(whole.machine)}${apart.length > 0 ? ` In runs of their own: ${apart.join('; ')}.` : ''}${given.quick ? ' A quick run: too few samples to quote.' : ''}

${markdownTable(table)}
`
write('summary.md', summary)
write('summary.json', `${JSON.stringify(whole, null, 1)}\n`)
console.log(summary)
say(`written to ${out}`)
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1
