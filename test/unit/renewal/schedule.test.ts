import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { MAX_TIMER_MS } from '../../../src/clock.ts'
import { nextLookMs, renewalDueMs, renewalRetryMs } from '../../../src/renewal/schedule.ts'

const MINUTE = 60_000
const DAY = 86_400_000
const START = Date.UTC(2026, 10, 1)
const life = (days: number) => ({ fromMs: START, untilMs: START + days * DAY })

describe('the day of renewal', () => {
  it('is at 80 % of the life, 5 % earlier or later by chance', () => {
    const days = (random: number) => (renewalDueMs(life(30), 0.8, random) - START) / DAY
    expect(days(0.5)).toBeCloseTo(24, 6)
    expect(days(0)).toBeCloseTo(22.5, 6)
    expect(days(1 - 1e-9)).toBeCloseTo(25.5, 5)
  })

  it('lies within the life, for any part that may be asked for', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 3650 * 86_400 }),
        fc.double({ min: 0.1, max: 0.9, noNaN: true }),
        fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
        (seconds, at, random) => {
          const untilMs = START + seconds * 1000
          const dueMs = renewalDueMs({ fromMs: START, untilMs }, at, random)
          expect(dueMs).toBeGreaterThanOrEqual(START)
          expect(dueMs).toBeLessThan(untilMs)
        },
      ),
    )
  })
})

describe('the wait after a failure', () => {
  const wait = (leftMs: number, more: object = {}) =>
    renewalRetryMs({ life: life(30), nowMs: START + 30 * DAY - leftMs, failures: 1, random: 0.5, ...more })

  it('is a sixth of what is left, at most a day and at least a minute', () => {
    expect(wait(6 * DAY)).toBe(DAY)
    expect(wait(3 * DAY)).toBe(DAY / 2)
    expect(wait(60 * MINUTE)).toBe(10 * MINUTE)
    expect(wait(2 * MINUTE)).toBe(MINUTE)
    expect(wait(29 * DAY)).toBe(DAY)
  })

  it('is a quarter more or less by chance, so that a fleet does not come back in step', () => {
    expect([wait(6 * DAY, { random: 0 }), wait(6 * DAY, { random: 1 })]).toEqual([0.75 * DAY, 1.25 * DAY])
  })

  it('is never shorter than the service asked for', () => {
    for (const random of [0, 0.5, 1]) {
      for (const leftMs of [6 * DAY, MINUTE, 0, -DAY]) {
        expect(wait(leftMs, { random, retryAfterMs: 300_000 })).toBeGreaterThanOrEqual(300_000)
      }
    }
  })

  it('of a short life is in proportion', () => {
    const short = { fromMs: START, untilMs: START + 120_000 }
    const at = (nowMs: number) =>
      renewalRetryMs({ life: short, nowMs: START + nowMs, failures: 1, random: 0.5 })
    expect([at(96_000), at(110_000), at(119_000)]).toEqual([4000, 3000, 3000])
  })

  it('after the end is five minutes that double up to an hour, since each attempt is billed', () => {
    expect([1, 2, 3, 4, 5, 6, 100, 5000].map((failures) => wait(-1, { failures }) / MINUTE)).toEqual([
      5, 10, 20, 40, 60, 60, 60, 60,
    ])
  })

  it.each([0, 0.5, 1 - 1e-9])('makes no storm of the last fifth of a life: chance %f', (random) => {
    for (const days of [1, 7, 30, 90]) {
      const { fromMs, untilMs } = life(days)
      let nowMs = fromMs + 0.8 * (untilMs - fromMs)
      let failures = 0
      const waits: number[] = []
      while (nowMs < untilMs) {
        failures += 1
        const ms = renewalRetryMs({ life: life(days), nowMs, failures, random })
        waits.push(ms)
        nowMs += ms
      }
      expect(failures).toBeLessThan(90)
      expect(failures).toBeGreaterThan(15)
      // Urgency grows: no wait is longer than the one before.
      expect(waits).toEqual([...waits].sort((a, b) => b - a))
    }
  })
})

describe('a long wait', () => {
  it('is slept in hours, so that no timer overflows and a clock that is set is noticed', () => {
    expect(nextLookMs(START + 300 * DAY, START)).toBe(60 * MINUTE)
    expect(nextLookMs(START + 300 * DAY, START)).toBeLessThan(MAX_TIMER_MS)
    expect(nextLookMs(START + 90_000, START)).toBe(90_000)
    expect(nextLookMs(START, START + DAY)).toBe(0)
  })
})
