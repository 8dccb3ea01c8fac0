// What a fleet does to the service's quota: the library's own schedule under a virtual clock, from 1,000 devices to a
// million. Nothing is timed; the seed decides.

import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { buildSync } from 'esbuild'
import { svgLines } from '../fleet/chart.mjs'
import { SERVICE } from '../fleet/service.mjs'
import { OUTAGE_MS, POLICIES, SCENARIOS, SPREAD_MS, study } from '../fleet/study.mjs'
import { formatNumber } from '../lib/report.mjs'

export const title = 'Fleet'
export const about =
  'A simulation, to the event: every decision of a device is made by the library’s own transition table, schedule and ' +
  'reply parser, under a virtual clock and chance by seed, against a model of the service ' +
  `(${formatNumber(SERVICE.perMinute)} registrations a minute as a token bucket of ${formatNumber(SERVICE.burst)}, 429 with ` +
  `\`retry-after: ${SERVICE.retryAfterMs / 1000}\`, round trips of 12 to 587 ms, refused registrations count). All devices ` +
  'have booted within 10 s. The bound is devices / quota, and the length of the outage on top; the bucket is full at the ' +
  'start, so a small fleet may beat it. Microsoft’s client: `retry-after` to the letter or else 2 s, for ever; its ' +
  'larger fleets without a start delay are models of 1:10 and 1:100, where one device and its share of the quota stand for more.'

const MILLION = 1_000_000
/** Where all that Microsoft's client asks would take hours to go through. */
const SCALES = new Map([
  [100_000, 10],
  [MILLION, 100],
])
const root = new URL('../..', import.meta.url)

/** The library's source, as one file. */
export async function loadSdk(folder) {
  const outfile = join(folder, 'fleet-sdk.mjs')
  buildSync({
    entryPoints: [new URL('bench/fleet/sdk.ts', root).pathname],
    outfile,
    bundle: true,
    format: 'esm',
    platform: 'node',
    logLevel: 'error',
  })
  return import(pathToFileURL(outfile).href)
}

/** @param {import('../run.mjs').BenchContext} context */
export async function run({ quick, million, seed, folder, say }) {
  const sdk = await loadSdk(folder)
  const sizes = quick ? [1000, 10_000] : [1000, 10_000, 100_000, MILLION]
  const results = []
  for (const devices of sizes) {
    for (const scenario of Object.keys(SCENARIOS)) {
      for (const policy of Object.keys(POLICIES)) {
        // Minutes of work, where the others are seconds.
        if (devices === MILLION && policy !== 'start-delay' && !million) continue
        const scale = policy === 'microsoft' ? (SCALES.get(devices) ?? 1) : 1
        const startedAt = performance.now()
        results.push(study(sdk, { devices, scenario, policy, seed, scale }))
        const seconds = ((performance.now() - startedAt) / 1000).toFixed(1)
        say(`${formatNumber(devices)}, ${scenario}, ${policy}: ${seconds} s`)
      }
    }
  }
  const spreads = startDelays(sdk, quick ? 10_000 : 100_000, seed)
  const doubts = otherModels(sdk, sizes.at(-1), seed)
  return report({ seed, quick, results, spreads, doubts })
}

/** What is said of what was simulated. */
export function report({ seed, quick, results, spreads, doubts }) {
  const sizes = [...new Set(results.map(({ devices }) => devices))]
  const drawn = sizes.findLast((size) => results.some((r) => r.devices === size && r.policy === 'defaults'))
  const of = (devices, policy) => results.filter((r) => r.devices === devices && r.policy === policy)
  const worst = (policy, key) => Math.max(...of(MILLION, policy).map((result) => result[key]))
  const measured = Object.fromEntries(
    ['start-delay', 'defaults'].flatMap((policy) =>
      [
        ['last', 'lastToBound'],
        ['throttled', 'throttledPerDevice'],
        ['starved', 'longestToMedian'],
      ].map(([id, key]) => [
        `fleet-${policy}-${id}`,
        of(MILLION, policy).length > 0
          ? worst(policy, key)
          : { note: quick ? 'no million in a quick run' : 'needs `--million`' },
      ]),
    ),
  )
  const unfinished = results.filter(({ assigned, good }) => assigned !== good)
  const tooEarly = results.filter(
    ({ assigned, scale, lastMinutes }) =>
      assigned * scale > SERVICE.burst + lastMinutes * SERVICE.perMinute + scale,
  )
  return {
    tables: [
      ...sizes.map((devices) => resultTable(devices, results)),
      startDelayTable(spreads),
      otherModelsTable(doubts),
    ],
    charts: bars(results, drawn),
    files: Object.fromEntries(
      Object.keys(SCENARIOS).map((scenario) => [
        `fleet-${scenario}-${drawn}.svg`,
        timeline(scenario, drawn, results),
      ]),
    ),
    measured,
    checks: [
      {
        name: 'every good device was assigned',
        ok: unfinished.length === 0,
        detail: unfinished
          .map(({ devices, scenario, policy }) => `${devices} ${scenario} ${policy}`)
          .join(', '),
      },
      {
        name: 'the quota held',
        ok: tooEarly.length === 0,
        detail: tooEarly
          .map(({ devices, scenario, policy }) => `${devices} ${scenario} ${policy}`)
          .join(', '),
      },
    ],
    data: {
      seed,
      spreadMs: SPREAD_MS,
      outageMs: OUTAGE_MS,
      service: SERVICE,
      results,
      spreads,
      doubts,
    },
  }
}

const COLUMNS = [
  'last after, min',
  'last / bound',
  '429s per device',
  'most 429s',
  'peak requests/s',
  'connections per device',
  'median, min',
  '99 %, min',
  'longest / median',
  'Jain',
]
const cells = (r) => [
  r.lastMinutes,
  Number(r.lastToBound.toFixed(3)),
  r.throttledPerDevice,
  r.mostThrottled,
  r.peakPerSecond,
  r.connectionsPerDevice,
  r.medianMinutes,
  r.p99Minutes,
  r.longestToMedian,
  r.jain,
]

function resultTable(devices, results) {
  const rows = results.filter((result) => result.devices === devices)
  return {
    title: `${formatNumber(devices)} devices`,
    columns: ['Scenario', 'Policy', ...COLUMNS],
    rows: rows.map((result) => [
      `${SCENARIOS[result.scenario]} (bound ${formatNumber(result.boundMinutes)} min)`,
      POLICIES[result.policy] + (result.scale > 1 ? ` (1:${result.scale})` : ''),
      ...cells(result),
    ]),
    note:
      'Time is from the moment the power came back to the assignment, of the devices whose credential works. A fleet that is served in an ' +
      'even stream has a longest / median of 2 and an index of Jain of 0.75.',
  }
}

/** What a start delay that does not fit the fleet costs. */
function startDelays(sdk, devices, seed) {
  return [0, 15, 30, 45, 60, 63, 66, 75, 90, 120].map((spreadMs) => {
    const given = { devices, scenario: 'power-cut', policy: 'start-delay', seed, spreadMs }
    const { series, ...result } = study(sdk, given)
    return { spreadMs, ...result }
  })
}

const startDelayTable = (rows) => ({
  title: `Start delay, ${formatNumber(rows[0].devices)} devices after a power cut`,
  columns: ['Start delay, ms for each device of the fleet', ...COLUMNS],
  rows: rows.map((row) => [row.spreadMs, ...cells(row)]),
})

/** The same fleet where the service is not as the model has it. */
function otherModels(sdk, devices, seed) {
  const cases = [
    ['outage', 'a 429 names no `retry-after`', { retryAfterMs: undefined }],
    ['outage', '`retry-after: 60`', { retryAfterMs: 60_000 }],
    ['outage', 'a burst of 100', { burst: 100 }],
    ['power-cut', 'a burst of 100', { burst: 100 }],
    ['power-cut', 'a quota of 900, the start delay for 1,000', { perMinute: 900 }],
    ['bad-third', 'refused registrations take nothing from the quota', { refusalsCount: false }],
  ]
  return cases.map(([scenario, what, service]) => {
    const { series, ...result } = study(sdk, { devices, scenario, policy: 'start-delay', seed, service })
    return { what, ...result }
  })
}

const otherModelsTable = (rows) => ({
  title: `Another service, ${formatNumber(rows[0].devices)} devices with the start delay`,
  columns: ['Scenario', 'What is different', ...COLUMNS],
  rows: rows.map((row) => [SCENARIOS[row.scenario], row.what, ...cells(row)]),
})

function bars(results, devices) {
  const chart = (title, unit, key) => ({
    title: `${title}, ${formatNumber(devices)} devices`,
    unit,
    bars: results
      .filter((result) => result.devices === devices)
      .map((result) => ({
        label: `${result.scenario}: ${POLICIES[result.policy].replace('Microsoft’s client, program', 'Microsoft’s,')}`,
        value: result[key],
        strong: !result.policy.startsWith('microsoft'),
      })),
  })
  return [
    chart('Throttled requests', '429s per device', 'throttledPerDevice'),
    chart('The last good device', 'time / bound', 'lastToBound'),
  ]
}

function timeline(scenario, devices, results) {
  const runs = results.filter((result) => result.devices === devices && result.scenario === scenario)
  const { boundMinutes } = runs[0]
  const minutes = Math.ceil(
    Math.max(boundMinutes * 1.25, ...runs.map((run) => Math.min(run.lastMinutes, boundMinutes * 1.5))),
  )
  const line = (run, key) => ({
    name: POLICIES[run.policy],
    style: run.policy,
    points: run.series.minutes.map((minute, at) => [minute, run.series[key][at]]),
  })
  const away = scenario === 'outage' ? OUTAGE_MS / 60_000 : 0
  const half = (boundMinutes - away) / 2
  const bound = {
    name: 'what the quota allows',
    style: 'bound',
    points: [
      [0, 0],
      [half, 0.5],
      [half + away, 0.5],
      [boundMinutes, 1],
    ],
  }
  const most = Math.max(10, ...runs.flatMap(({ series }) => series.throttledPerMinute))
  return svgLines({
    title: `${formatNumber(devices)} devices: ${SCENARIOS[scenario]}`,
    words: runs
      .map(
        (run) =>
          `${POLICIES[run.policy]}: the last after ${formatNumber(run.lastMinutes)} minutes, ${formatNumber(run.throttledPerDevice)} throttled requests per device.`,
      )
      .join(' '),
    minutes,
    panels: [
      {
        title: 'good devices that are assigned',
        top: 1,
        lines: [...runs.map((run) => line(run, 'share')), bound],
      },
      {
        title: '429s a minute',
        log: true,
        top: most,
        lines: runs.map((run) => line(run, 'throttledPerMinute')),
      },
    ],
  })
}
