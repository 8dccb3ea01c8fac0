import type { Clock } from '../../src/clock.ts'
import { RELEASED_AT_MS } from '../../src/release.ts'

export interface TestClock extends Clock {
  /** Lets virtual time pass, firing what falls due on the way. */
  advance(ms: number): void
  /** Every sleep that was asked for, in order, in ms. */
  readonly sleeps: readonly number[]
  /** Timers armed and neither fired nor cancelled. */
  readonly pending: number
}

export interface TestClockOptions {
  /** Wall clock at the start. Default: a week after this release was made. */
  startMs?: number
  /** Default: always 0.5. */
  random?: () => number
}

/**
 * A virtual clock: a sleep passes at once and takes its full length of virtual time; one-shot timers fire only when
 * virtual time reaches them. Real sockets do not notice.
 */
export function testClock({
  startMs = RELEASED_AT_MS + 7 * 86_400_000,
  random = () => 0.5,
}: TestClockOptions = {}): TestClock {
  let elapsed = 0
  const sleeps: number[] = []
  const timers = new Set<{ dueMs: number; callback: () => void }>()
  const advance = (ms: number) => {
    const until = elapsed + ms
    for (;;) {
      const due = [...timers].filter((t) => t.dueMs <= until).sort((a, b) => a.dueMs - b.dueMs)[0]
      if (due === undefined) break
      timers.delete(due)
      elapsed = Math.max(elapsed, due.dueMs)
      due.callback()
    }
    elapsed = until
  }
  return {
    sleeps,
    get pending() {
      return timers.size
    },
    advance,
    now: () => startMs + elapsed,
    monotonic: () => elapsed,
    random,
    sleep: async (ms, signal) => {
      sleeps.push(ms)
      advance(ms)
      if (signal.aborted) throw signal.reason
    },
    after: (ms, callback) => {
      const timer = { dueMs: elapsed + ms, callback }
      timers.add(timer)
      return () => timers.delete(timer)
    },
  }
}
