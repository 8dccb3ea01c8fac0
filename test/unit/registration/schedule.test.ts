import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DpsError } from '../../../src/errors.ts'
import { backoffCeilingMs, delayMs, pauseMs } from '../../../src/registration/schedule.ts'

const retry = {
  maxAttempts: 8,
  maxThrottled: 8,
  baseDelayMs: 1000,
  maxDelayMs: 60_000,
  startDelayMs: 30_000,
  pollIntervalMs: 2000,
}
const failure = (failures: number, retryAfterMs?: number) =>
  ({
    reason: 'retry',
    step: 'connect',
    failures,
    error: new DpsError('THROTTLED', 'register', '', { retryAfterMs }),
  }) as const

describe('delayMs', () => {
  it('doubles the ceiling up to the cap and draws the whole of it', () => {
    expect([1, 2, 3, 6, 7, 8, 1000].map((n) => backoffCeilingMs(n, retry))).toEqual([
      1000, 2000, 4000, 32_000, 60_000, 60_000, 60_000,
    ])
    expect(delayMs(failure(3), retry, 0)).toBe(0)
    expect(delayMs(failure(3), retry, 0.999)).toBeCloseTo(3996)
    expect(delayMs(failure(50), retry, 0.5)).toBe(30_000)
  })

  it('treats retry-after as a floor, with full jitter above it', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 60 }),
        fc.integer({ min: 0, max: 100_000 }),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (failures, retryAfterMs, random) => {
          const ms = delayMs(failure(failures, retryAfterMs), retry, random)
          expect(ms).toBeGreaterThanOrEqual(retryAfterMs)
          expect(ms).toBeLessThanOrEqual(retryAfterMs + backoffCeilingMs(failures, retry))
        },
      ),
    )
  })

  it('polls no sooner than the service asks, nor than every two seconds', () => {
    const poll = (retryAfterMs?: number) => ({ reason: 'assigning', operationId: 'o', retryAfterMs }) as const
    expect(delayMs(poll(), retry, 0)).toBe(2000)
    expect(delayMs(poll(0), retry, 0)).toBe(2000)
    expect(delayMs(poll(3000), retry, 0)).toBe(3000)
    expect(delayMs(poll(3000), retry, 1)).toBeCloseTo(3600)
  })

  it('spreads the first packet over the start delay', () => {
    expect(delayMs({ reason: 'start' }, retry, 0.5)).toBe(15_000)
    expect(delayMs({ reason: 'start' }, { ...retry, startDelayMs: 0 }, 0.9)).toBe(0)
  })
})

describe('pauseMs', () => {
  const fresh = () => ({ unreached: 0, refused: 0, throttledMs: 0 })
  const lost = new DpsError('CONNECTION_REFUSED', 'tcp', '')
  const busy = new DpsError('THROTTLED', 'register', '')
  const denied = new DpsError('UNAUTHORIZED', 'register', '')
  const HOUR = 3_600_000

  it('doubles while the service cannot be reached, and starts again from there after something else', () => {
    const failed = fresh()
    const pause = (error = lost) => pauseMs(error, failed, 0, 9e9, 1)
    expect([pause(), pause(), pause()]).toEqual([2000, 4000, 8000])
    pause(busy)
    expect(pause()).toBe(16_000)
    for (let more = 0; more < 20; more++) pause()
    expect(pause()).toBe(300_000)
  })

  it.each([
    ['a minute at least', 0, 1000, 60_000],
    ['a quarter of the time so far', 0, 800_000, 200_000],
    ['a sixteenth of the start delay, where that is more', 16 * 90_000, 1000, 90_000],
    ['an hour at most', 63_000_000, 1000, HOUR],
    ['an hour at most, however long it has waited', 0, 9e9, HOUR],
  ])('of a service over its quota it draws up to %s', (_, startDelayMs, waitedMs, ceiling) => {
    expect(pauseMs(busy, fresh(), startDelayMs, waitedMs, 1)).toBe(ceiling)
    expect(pauseMs(busy, fresh(), startDelayMs, waitedMs, 0)).toBe(0)
    const asked = new DpsError('THROTTLED', 'register', '', { retryAfterMs: 5000 })
    expect(pauseMs(asked, fresh(), startDelayMs, waitedMs, 0.5)).toBe(5000 + ceiling / 2)
  })

  it('goes behind the queue where it was refused', () => {
    expect(pauseMs(denied, fresh(), 0, 9e9, 0)).toBe(60_000)
    expect(pauseMs(denied, fresh(), 0, 9e9, 1)).toBe(60_000 + 300_000)
    expect(pauseMs(denied, fresh(), 10 * HOUR, 1, 0)).toBe(10 * HOUR)
    expect(pauseMs(denied, fresh(), 10 * HOUR, 1, 1)).toBe(20 * HOUR)
    const failed = fresh()
    pauseMs(busy, failed, 0, HOUR, 0)
    expect(pauseMs(denied, failed, 0, 2 * HOUR, 0)).toBe(8 * HOUR)
    expect(pauseMs(denied, failed, 0, 2 * HOUR, 1)).toBe(9 * HOUR)
    pauseMs(busy, failed, 0, 100 * HOUR, 0)
    expect(pauseMs(denied, failed, 0, 101 * HOUR, 1)).toBe(48 * HOUR)
  })

  it('knows of no queue any more where it was not throttled for ten times as long', () => {
    const failed = fresh()
    pauseMs(busy, failed, 0, 600_000, 0)
    expect(pauseMs(denied, failed, 0, 700_000, 0)).toBe(5_300_000)
    expect(pauseMs(denied, failed, 0, 6_000_000, 0)).toBe(60_000)
    expect(pauseMs(denied, failed, 0, 6_000_000, 1)).toBe(60_000 + 1_200_000)
  })
})
