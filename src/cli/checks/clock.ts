import type { Case } from '../case.ts'
import { kit } from '../kit.ts'
import { type Check, type Finding, failure, ok, skipped, warning } from './check.ts'

const SET_IT =
  'Set the clock, or have it set: is a time server reachable (NTP, UDP port 123), and does the board keep time while it is off?'

export const clockChecks: readonly Check[] = [
  {
    id: 'clock.build',
    run: () => {
      const { systemClock, RELEASED_AT_MS, isoTime, EXIT } = kit
      const nowMs = systemClock.now()
      const released = isoTime(RELEASED_AT_MS).slice(0, 10)
      return nowMs < RELEASED_AT_MS
        ? {
            ...failure(
              `this device believes it is ${isoTime(nowMs)}, but this release was made on ${released}`,
              SET_IT,
              EXIT.clock,
            ),
            code: 'CLOCK_BEHIND',
          }
        : ok(`${isoTime(nowMs)}, after this release (${released})`)
    },
  },
]

const WARN_MS = 120_000
/** A token is good for an hour. */
const FAIL_MS = 3_600_000

/** Against the server, which is known only once it has answered. */
export const skewChecks: readonly Check[] = [{ id: 'clock.server', run: skew }]

function skew({ aheadMs, factory }: Case): Finding {
  if (factory) return skipped('--factory ends before')
  if (aheadMs === undefined) return skipped('no answer of the server told its time')
  const seconds = Math.round(Math.abs(aheadMs) / 1000)
  const details = { serverAheadSeconds: Math.round(aheadMs / 1000) }
  const off = `this clock is ${aheadMs > 0 ? 'behind' : 'ahead of'} the server’s by ${seconds} s`
  if (seconds * 1000 < WARN_MS) return ok(`within ${Math.max(1, seconds)} s of the server’s`, details)
  const next = `${SET_IT} Tokens and certificates are judged by it.`
  return seconds * 1000 < FAIL_MS ? warning(off, next, details) : failure(off, next, kit.EXIT.clock, details)
}
