// How a device of Microsoft's Node client behaves over MQTT (azure-iot-provisioning-device 1.9.1): a 429 is repeated for ever,
// on the same connection, after `retry-after` to the letter or else 2 s; no jitter, no cap, no limit. A refused identity and
// a lost connection end its call, and who called it decides: here a program that gives up on the first and calls again
// after the same 2 s on the second.

import { CALL, OPEN, POLL, REGISTER } from './engine.mjs'

export const INTERVAL_MS = 2000
/** Its own limit for a request, and that of MQTT.js for a connection. */
const LIMIT_MS = 30_000

/** @param {{ startDelayMs?: number }} [options] the client has none; a program may sleep before it calls */
export function microsoft({ startDelayMs = 0 } = {}) {
  /** @param {import('./engine.mjs').Core} core */
  return ({ fleet, tripMs, random, plan, finish, openTrips }) => {
    const { retryAfterMs = INTERVAL_MS, pollAfterMs = INTERVAL_MS } = fleet.service
    const request = (device, kind, ms) => plan(device, kind, ms + tripMs[device] / 2)
    const again = (device, ms) => request(device, OPEN, ms + INTERVAL_MS)
    return {
      begin: (device, ms) => plan(device, CALL, ms + Math.round(random(device) * startDelayMs)),
      call: (device, ms) => request(device, OPEN, ms),
      opened(device, sentMs, outage) {
        if (outage === 'silent') again(device, sentMs + LIMIT_MS)
        else if (outage === 'refused') again(device, sentMs + tripMs[device])
        else request(device, REGISTER, sentMs + openTrips * tripMs[device])
      },
      answered(device, sentMs, answer) {
        const ms = sentMs + tripMs[device]
        if (answer === 'silent') again(device, sentMs + LIMIT_MS)
        else if (answer === 'refused') again(device, ms)
        else if (answer === 'throttled') request(device, REGISTER, ms + retryAfterMs)
        else if (answer === 'taken') request(device, POLL, ms + pollAfterMs)
        else if (answer === 'assigned') finish(device, ms)
      },
    }
  }
}
