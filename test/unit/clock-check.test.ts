import { existsSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { type ClockCheck, checkClock, TIMESYNC_FLAG } from '../../src/clock-check.ts'
import { RELEASED_AT_MS } from '../../src/release.ts'
import { testClock } from '../support/clock.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'

const DAY_MS = 86_400_000

function check(startMs: number, over: Partial<ClockCheck> = {}) {
  const clock = testClock({ startMs })
  const waits: number[] = []
  const controller = new AbortController()
  const done = checkClock({
    clock,
    lastContactMs: 0,
    wait: undefined,
    signal: controller.signal,
    onWait: (delayMs) => waits.push(delayMs),
    ...over,
  })
  done.catch(() => {})
  return { clock, waits, done, controller }
}

describe('a clock', () => {
  it('at or after the release is taken without a wait', async () => {
    await check(RELEASED_AT_MS).done
    await check(RELEASED_AT_MS + 20 * 365 * DAY_MS).done
  })

  it('of 1970 fails at once, with both dates', async () => {
    const t = check(0)
    const error = await expectDpsError(t.done, 'CLOCK_BEHIND', 'clock')
    expect(error.message).toContain('1970-01-01T00:00:00Z')
    expect(error.message).toContain(new Date(RELEASED_AT_MS).toISOString().slice(0, 10))
    expect({ retryable: error.retryable, sleeps: t.clock.sleeps }).toEqual({ retryable: true, sleeps: [] })
  })

  it('a millisecond before the release fails', () =>
    expectDpsError(check(RELEASED_AT_MS - 1).done, 'CLOCK_BEHIND', 'clock').then(() => {}))

  it('more than a day behind the last verified contact fails, and says so', async () => {
    const lastContactMs = RELEASED_AT_MS + 10 * DAY_MS
    const error = await expectDpsError(
      check(lastContactMs - DAY_MS - 1, { lastContactMs }).done,
      'CLOCK_BEHIND',
      'clock',
    )
    expect(error.message).toContain('last in contact')
    expect(error.message).toContain(new Date(lastContactMs).toISOString().slice(0, 10))
  })

  it('that was corrected by less than a day since the last contact is taken', async () => {
    const lastContactMs = RELEASED_AT_MS + 10 * DAY_MS
    await check(lastContactMs - 3_600_000, { lastContactMs }).done
  })
})

describe('waiting for the clock', () => {
  it('goes on as soon as it is plausible', async () => {
    const t = check(RELEASED_AT_MS - 2500, { wait: { until: 'plausible', limitMs: 90_000 } })
    await t.done
    expect(t.waits).toEqual([1000, 1000, 1000])
  })

  it('ends after its limit, because time servers may be blocked', async () => {
    const t = check(0, { wait: { until: 'plausible', limitMs: 2500 } })
    await expectDpsError(t.done, 'CLOCK_BEHIND', 'clock')
    expect(t.waits).toEqual([1000, 1000, 500])
  })

  it('asks a function, and believes only true', async () => {
    const answers: unknown[] = [false, undefined, 'yes', Promise.resolve(true)]
    const until = () => answers.shift() as boolean
    const t = check(RELEASED_AT_MS, { wait: { until, limitMs: 90_000 } })
    await t.done
    expect(t.waits).toHaveLength(3)
  })

  it('does not take a function’s word for a clock that is certainly wrong', () =>
    expectDpsError(
      check(0, { wait: { until: () => true, limitMs: 3000 } }).done,
      'CLOCK_BEHIND',
      'clock',
    ).then(() => {}))

  it('says when only synchronisation was missing', async () => {
    const t = check(RELEASED_AT_MS, { wait: { until: () => false, limitMs: 2000 } })
    const error = await expectDpsError(t.done, 'CLOCK_BEHIND', 'clock')
    expect(error.message).toContain('not synchronised within 2000 ms')
  })

  it('for systemd waits for its flag', async () => {
    const t = check(RELEASED_AT_MS, { wait: { until: 'systemd-timesyncd', limitMs: 1000 } })
    if (existsSync(TIMESYNC_FLAG)) await t.done
    else await expectDpsError(t.done, 'CLOCK_BEHIND', 'clock')
  })

  it('ends when the call is cancelled', async () => {
    const t = check(0, {
      wait: { until: 'plausible', limitMs: 90_000 },
      clock: {
        ...testClock({ startMs: 0 }),
        sleep: (_, signal) =>
          new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
      },
    })
    t.controller.abort('enough')
    await expect(t.done).rejects.toBe('enough')
  })

  it('does not wait for a function longer than its limit', async () => {
    const t = check(RELEASED_AT_MS, { wait: { until: () => new Promise<never>(() => {}), limitMs: 5000 } })
    await Promise.resolve()
    t.clock.advance(5000)
    await expectDpsError(t.done, 'CLOCK_BEHIND', 'clock')
    expect(t.clock.pending).toBe(0)
  })

  it('explains a function that fails', async () => {
    const cause = new Error('no such bus')
    const t = check(RELEASED_AT_MS, { wait: { until: () => Promise.reject(cause), limitMs: 5000 } })
    expect((await expectDpsError(t.done, 'CLOCK_BEHIND', 'clock')).cause).toBe(cause)
  })

  it('says nothing more once the call was cancelled while a function was asked', async () => {
    let answer = (_: boolean) => {}
    const until = () => new Promise<boolean>((resolve) => (answer = resolve))
    const t = check(RELEASED_AT_MS, { wait: { until, limitMs: 5000 } })
    await Promise.resolve()
    t.controller.abort('enough')
    answer(false)
    await expect(t.done).rejects.toBe('enough')
    expect(t.waits).toEqual([])
  })
})
