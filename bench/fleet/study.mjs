// Which fleets are simulated, and what is said of each. The same seed gives the same figures on any machine.

import { simulate } from './engine.mjs'
import { microsoft } from './microsoft.mjs'
import { ours } from './ours.mjs'
import { SERVICE } from './service.mjs'

/** `startDelayMs` for each device of the fleet: a minute of 1,000, and a twentieth more. */
export const SPREAD_MS = 63
export const OUTAGE_MS = 30 * 60_000
const BOOT_MS = 10_000

/**
 * @typedef {'power-cut' | 'outage' | 'bad-third'} ScenarioId
 * @typedef {'microsoft' | 'microsoft-spread' | 'defaults' | 'start-delay'} PolicyId
 */

/** @type {Record<ScenarioId, string>} */
export const SCENARIOS = {
  'power-cut': 'start after a power cut',
  outage: 'the service is away for 30 minutes in the middle',
  'bad-third': 'a third has bad credentials',
}

/** @type {Record<PolicyId, string>} */
export const POLICIES = {
  microsoft: 'Microsoft’s client',
  'microsoft-spread': 'Microsoft’s client, program sleeps first',
  defaults: 'ours, defaults',
  'start-delay': 'ours, start delay',
}

/**
 * @typedef {object} Case
 * @property {number} devices
 * @property {ScenarioId} scenario
 * @property {PolicyId} policy
 * @property {number} seed
 * @property {number} [scale] one simulated device and its share of the quota stand for so many. Default 1
 * @property {number} [spreadMs] start delay for each device of the fleet. Default SPREAD_MS
 * @property {Partial<import('./service.mjs').ServiceOptions>} [service] other than the model
 */

/**
 * @param {typeof import('./sdk.ts')} sdk
 * @param {Case} given
 */
export function study(
  sdk,
  { devices, scenario, policy, seed, scale = 1, spreadMs = SPREAD_MS, service = {} },
) {
  const { perMinute, burst, ...rest } = { ...SERVICE, ...service }
  const quotaMs = (devices / perMinute) * 60_000
  const half = quotaMs / 2
  const outages =
    scenario !== 'outage'
      ? []
      : [
          { fromMs: half, untilMs: half + OUTAGE_MS / 2, kind: 'refused' },
          { fromMs: half + OUTAGE_MS / 2, untilMs: half + OUTAGE_MS, kind: 'silent' },
        ]
  const boundMs = quotaMs + (scenario === 'outage' ? OUTAGE_MS : 0)
  const startDelayMs = Math.round(devices * spreadMs)
  const policies = {
    microsoft: () => microsoft(),
    'microsoft-spread': () => microsoft({ startDelayMs }),
    defaults: () => ours(sdk),
    'start-delay': () => ours(sdk, { startDelayMs }),
  }
  const outcome = simulate(
    {
      devices: Math.round(devices / scale),
      seed,
      bootMs: BOOT_MS,
      badShare: scenario === 'bad-third' ? 1 / 3 : 0,
      horizonMs: 4 * boundMs + 4 * 3_600_000,
      service: { ...rest, perMinute: perMinute / scale, burst: burst / scale, outages },
    },
    policies[policy](),
  )
  const waits = outcome.assignedMs.filter((ms) => !Number.isNaN(ms)).sort()
  const at = (share) => waits[Math.min(waits.length - 1, Math.floor(share * waits.length))]
  const sum = waits.reduce((total, ms) => total + ms, 0)
  const squares = waits.reduce((total, ms) => total + ms * ms, 0)
  const simulated = outcome.throttled.length
  return {
    devices,
    scenario,
    policy,
    scale,
    good: outcome.good,
    assigned: outcome.assigned,
    boundMinutes: boundMs / 60_000,
    lastMinutes: outcome.lastMs / 60_000,
    lastToBound: outcome.lastMs / boundMs,
    throttledPerDevice: outcome.throttledTotal / simulated,
    mostThrottled: outcome.throttled.reduce((most, value) => Math.max(most, value), 0),
    peakPerSecond: outcome.peakPerSecond * scale,
    connectionsPerDevice: outcome.connections / simulated,
    refusalsPerDevice: outcome.refusals / simulated,
    medianMinutes: at(0.5) / 60_000,
    p99Minutes: at(0.99) / 60_000,
    longestToMedian: at(1) / at(0.5),
    jain: (sum * sum) / (waits.length * squares),
    series: series(outcome, scale),
  }
}

const POINTS = 160

/** Few enough points to draw: the share that is assigned, and 429s a minute. */
function series({ perMinute: { assigned, throttled }, good }, scale) {
  const step = Math.max(1, Math.ceil(assigned.length / POINTS))
  const minutes = [0]
  const share = [0]
  const throttledPerMinute = [0]
  let done = 0
  for (let from = 0; from < assigned.length; from += step) {
    const until = Math.min(from + step, assigned.length)
    let busy = 0
    for (let minute = from; minute < until; minute++) {
      done += assigned[minute]
      busy += throttled[minute]
    }
    minutes.push(until)
    share.push(Number((done / good).toFixed(4)))
    throttledPerMinute.push(Math.round((busy * scale) / (until - from)))
  }
  return { minutes, share, throttledPerMinute }
}
