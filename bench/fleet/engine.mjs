// A fleet against the model of the service, event by event. Each device has one event ahead of it: a call that begins, a
// connection request or a registration request that arrives at the service. What follows from it until the next one
// depends on that device alone.

import { mix, streams } from './chance.mjs'
import { Queue } from './queue.mjs'
import { Service } from './service.mjs'

/**
 * @typedef {object} Fleet
 * @property {number} devices
 * @property {number} seed
 * @property {number} bootMs after the power is back, the last has booted
 * @property {number} badShare of the devices whose credential is refused: the first of every 1 / badShare
 * @property {import('./service.mjs').ServiceOptions} service
 * @property {number} horizonMs where the simulation ends if good devices are left
 *
 * @typedef {object} Outcome
 * @property {Float64Array} assignedMs since the power came back; NaN for who never was
 * @property {Float64Array} firstMs the first request of a device for a connection
 * @property {Uint32Array} throttled 429s, per device
 * @property {number} good devices with a credential that works
 * @property {number} assigned of them
 * @property {number} lastMs when the last of them was assigned
 * @property {number} connections tried
 * @property {number} requests that arrived, status requests too
 * @property {number} throttledTotal 429s, of good and bad devices
 * @property {number} refusals 401s
 * @property {number} peakPerSecond requests in the busiest second
 * @property {{ assigned: number[], throttled: number[] }} perMinute
 * @property {number} events
 */

export const CALL = 0
export const OPEN = 1
export const REGISTER = 2
export const POLL = 3

/** Round trips until a request can be sent: TCP, two of TLS 1.2, CONNECT, SUBSCRIBE. */
const OPEN_TRIPS = 5

/** From one room to a cellular network at the other end of the world, ms. Few values, so that many devices are alike. */
const ROUND_TRIPS_MS = [12, 21, 34, 47, 59, 73, 98, 113, 131, 149, 187, 223, 281, 347, 433, 587]

/**
 * What the model, not the library, draws for a device.
 *
 * @returns {{ bootMs: number, tripMs: number, enrolled: boolean }}
 */
export function deviceOf({ devices, seed, bootMs, badShare }, device) {
  const boot = mix(mix(seed, device), 1) / 2 ** 32
  const stride = badShare === 0 ? 0 : Math.round(1 / badShare)
  return {
    bootMs: boot * bootMs,
    tripMs: ROUND_TRIPS_MS[mix(mix(seed, device), 2) % ROUND_TRIPS_MS.length],
    enrolled: stride === 0 || device % stride !== 0 || devices === 1,
  }
}

/** Grows as it is written to. */
class Counter {
  values = new Uint32Array(4096)
  add(index) {
    if (index >= this.values.length) {
      const longer = new Uint32Array(2 ** Math.ceil(Math.log2(index + 1)))
      longer.set(this.values)
      this.values = longer
    }
    this.values[index]++
  }
}

/**
 * @typedef {object} Next what a device does next; `ms` is when it reaches the service, or when the call begins
 * @property {0 | 1 | 2 | 3} kind
 * @property {number} ms
 *
 * @typedef {object} Policy how a device behaves. Each is told what came of the device's last event and when it knows, and
 *   calls `plan` once, or `finish`, or neither where it has given up
 * @property {(device: number, ms: number) => void} begin
 * @property {(device: number, ms: number) => void} call
 * @property {(device: number, sentMs: number, outage: 'refused' | 'silent' | undefined) => void} opened
 * @property {(device: number, sentMs: number, answer: Answer) => void} answered
 *
 * @typedef {'taken' | 'assigned' | 'throttled' | 'unauthorized' | 'refused' | 'silent'} Answer
 *
 * @typedef {object} Core what a policy is given
 * @property {Fleet} fleet
 * @property {Float64Array} tripMs
 * @property {(device: number) => number} random
 * @property {(device: number, kind: 0 | 1 | 2 | 3, ms: number) => void} plan
 * @property {(device: number, ms: number) => void} finish
 * @property {number} openTrips
 */

/**
 * @param {Fleet} fleet
 * @param {(core: Core) => Policy} makePolicy
 * @param {(device: number, ms: number, what: string) => void} [trace]
 * @returns {Outcome}
 */
export function simulate(fleet, makePolicy, trace) {
  const { devices, seed, horizonMs } = fleet
  const service = new Service(fleet.service)
  const queue = new Queue(devices)
  const kinds = new Uint8Array(devices)
  const enrolled = new Uint8Array(devices)
  const tripMs = new Float64Array(devices)
  const assignedMs = new Float64Array(devices).fill(Number.NaN)
  const firstMs = new Float64Array(devices).fill(Number.NaN)
  const throttled = new Uint32Array(devices)
  const perSecond = new Counter()
  const assignedPerMinute = new Counter()
  const throttledPerMinute = new Counter()
  const count = {
    good: 0,
    assigned: 0,
    lastMs: 0,
    connections: 0,
    requests: 0,
    throttled: 0,
    refusals: 0,
    events: 0,
  }

  let planned = false
  let running = false
  const core = {
    fleet,
    tripMs,
    random: streams(devices, mix(seed, 0x5d5)),
    openTrips: OPEN_TRIPS,
    plan(device, kind, ms) {
      kinds[device] = kind
      planned = true
      if (running) queue.replace(ms)
      else queue.push(device, ms)
    },
    finish(device, ms) {
      assignedMs[device] = ms
      count.assigned++
      count.lastMs = Math.max(count.lastMs, ms)
      assignedPerMinute.add(Math.floor(ms / 60_000))
      trace?.(device, ms, 'assigned')
    },
  }
  const policy = makePolicy(core)
  for (let device = 0; device < devices; device++) {
    const facts = deviceOf(fleet, device)
    tripMs[device] = facts.tripMs
    enrolled[device] = facts.enrolled ? 1 : 0
    count.good += enrolled[device]
    policy.begin(device, facts.bootMs)
  }
  running = true

  while (count.assigned < count.good && queue.time < horizonMs) {
    const { device, time } = queue
    const kind = kinds[device]
    const sentMs = time - tripMs[device] / 2
    count.events++
    planned = false
    if (kind === CALL) policy.call(device, time)
    else if (kind === OPEN) {
      count.connections++
      if (Number.isNaN(firstMs[device])) firstMs[device] = sentMs
      trace?.(device, time, 'open')
      policy.opened(device, sentMs, service.outage(time))
    } else {
      let answer = service.outage(time)
      if (answer === undefined) {
        count.requests++
        perSecond.add(Math.floor(time / 1000))
        answer = kind === POLL ? 'assigned' : service.register(time, enrolled[device] === 1)
        if (answer === 'throttled') {
          throttled[device]++
          count.throttled++
          throttledPerMinute.add(Math.floor(time / 60_000))
        } else if (answer === 'unauthorized') count.refusals++
      }
      trace?.(device, time, `${kind === POLL ? 'poll' : 'register'} ${answer}`)
      policy.answered(device, sentMs, answer)
    }
    if (!planned) queue.pop()
  }
  const minutes = Math.ceil((count.lastMs + 1) / 60_000)
  const cut = (counter) => Array.from({ length: minutes }, (_, minute) => counter.values[minute] ?? 0)
  return {
    assignedMs,
    firstMs,
    throttled,
    good: count.good,
    assigned: count.assigned,
    lastMs: count.lastMs,
    connections: count.connections,
    requests: count.requests,
    throttledTotal: count.throttled,
    refusals: count.refusals,
    peakPerSecond: perSecond.values.reduce((most, value) => Math.max(most, value), 0),
    perMinute: { assigned: cut(assignedPerMinute), throttled: cut(throttledPerMinute) },
    events: count.events,
  }
}
