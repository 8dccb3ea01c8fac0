import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DpsError } from '../../../src/errors.ts'
import { backoffCeilingMs, delayMs } from '../../../src/registration/schedule.ts'

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
