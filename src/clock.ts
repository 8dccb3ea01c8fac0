import { delay } from '@azure/core-util'

/**
 * Time and chance, as an argument. The library reads neither anywhere else, so a test (or a simulator) that passes
 * its own clock controls every wait, deadline and jitter.
 */
export interface Clock {
  /** Wall clock: milliseconds since the Unix epoch. Compared with certificate dates and signed into SAS tokens. */
  now(): number
  /** Milliseconds from an arbitrary start that never step back. All durations and deadlines are measured with it. */
  monotonic(): number
  /** Uniform in [0, 1). All jitter is drawn from it. */
  random(): number
  /** Resolves after `ms`; rejects as soon as `signal` aborts, leaving no timer behind. */
  sleep(ms: number, signal: AbortSignal): Promise<void>
  /** Calls `callback` once after `ms`, unless the returned function is called before. */
  after(ms: number, callback: () => void): () => void
}

/** The longest delay a Node timer takes (2^31 - 1 ms, about 24.8 days); longer ones fire at once. */
export const MAX_TIMER_MS = 2_147_483_647

/** The real clock. */
export const systemClock: Clock = Object.freeze({
  now: () => Date.now(),
  // `performance` would load ten modules of Node for the same clock.
  monotonic: () => {
    const [s, ns] = process.hrtime()
    return s * 1000 + ns / 1e6
  },
  random: () => Math.random(),
  sleep: (ms: number, signal: AbortSignal) => delay(Math.min(ms, MAX_TIMER_MS), { abortSignal: signal }),
  after: (ms: number, callback: () => void) => {
    const timer = setTimeout(callback, Math.min(ms, MAX_TIMER_MS))
    return () => clearTimeout(timer)
  },
})

/** Calls `callback` after `ms` if the process has something else to do until then: it is not kept for this. */
export const ifStillBusy = (ms: number, callback: () => void): void => {
  setTimeout(callback, ms).unref()
}
