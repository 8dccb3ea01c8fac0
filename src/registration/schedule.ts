import type { DpsError } from '../errors.ts'
import type { ResolvedRetry } from '../options/resolve.ts'
import type { Wait } from './state.ts'

/**
 * How long to wait, in whole milliseconds. `random` is uniform in [0, 1).
 *
 * - A retry waits a uniform time between 0 and a ceiling that doubles with every failure in a row ("full jitter"), on
 *   top of whatever the service asked for: `retry-after` is a floor, and without jitter above it a throttled fleet
 *   would come back in step.
 * - Between status requests the gap is the service's or `pollIntervalMs`, whichever is longer, plus up to a fifth.
 * - The first packet waits a uniform part of `startDelayMs`.
 */
export function delayMs(wait: Wait, retry: ResolvedRetry, random: number): number {
  return Math.round(exactDelayMs(wait, retry, random))
}

function exactDelayMs(wait: Wait, retry: ResolvedRetry, random: number): number {
  switch (wait.reason) {
    case 'start':
      return random * retry.startDelayMs
    case 'assigning':
      return Math.max(retry.pollIntervalMs, wait.retryAfterMs ?? 0) * (1 + random / 5)
    case 'retry':
      return (wait.error.retryAfterMs ?? 0) + random * backoffCeilingMs(wait.failures, retry)
  }
}

/** `base · 2^(failures − 1)`, at most `maxDelayMs`. */
export function backoffCeilingMs(
  failures: number,
  retry: Pick<ResolvedRetry, 'baseDelayMs' | 'maxDelayMs'>,
): number {
  return Math.min(retry.maxDelayMs, retry.baseDelayMs * 2 ** Math.min(failures - 1, 40))
}

interface Pace {
  readonly baseDelayMs: number
  readonly maxDelayMs: number
  readonly floorMs: number
}

/** Networks come back within minutes; a ceiling above that only makes the device late. */
const UNREACHED: Pace = { baseDelayMs: 2000, maxDelayMs: 300_000, floorMs: 0 }

/**
 * The quota is one of a minute, so what asks again within it only takes the place of another. Nobody tells a device how
 * many wait with it: the ceiling doubles until that does not matter, and an hour is late enough for the last.
 */
const THROTTLED: Pace = { baseDelayMs: 60_000, maxDelayMs: 3_600_000, floorMs: 0 }

/**
 * What a person has to mend takes longer, and every attempt is one that the service counts: at least a minute, and up to
 * an hour.
 */
const REFUSED: Pace = { baseDelayMs: 300_000, maxDelayMs: 3_600_000, floorMs: 60_000 }

/** A fleet that takes longer has been told so with `startDelayMs`. */
const LONGEST_QUEUE_MS = 86_400_000

/** Calls that failed, in the life of a `provisionForever`, by what ended them. */
export interface FailedCalls {
  unreached: number
  throttled: number
  refused: number
}

/**
 * How long to wait between two calls, in whole milliseconds; counts the failure in `failed`. `random` is uniform in [0, 1).
 *
 * @param startDelayMs in which the whole fleet gets through
 * @param waitedMs since the device started
 */
export function pauseMs(
  error: Pick<DpsError, 'code' | 'retryable' | 'retryAfterMs'>,
  failed: FailedCalls,
  startDelayMs: number,
  waitedMs: number,
  random: number,
): number {
  if (!error.retryable) {
    const queueMs = Math.max(startDelayMs, failed.throttled > 0 ? Math.min(waitedMs, LONGEST_QUEUE_MS) : 0)
    const floorMs = Math.max(REFUSED.floorMs, error.retryAfterMs ?? 0, queueMs)
    return Math.round(floorMs + random * Math.max(queueMs, backoffCeilingMs(++failed.refused, REFUSED)))
  }
  const busy = error.code === 'THROTTLED'
  const pace = busy
    ? { ...THROTTLED, baseDelayMs: Math.max(THROTTLED.baseDelayMs, startDelayMs / 16) }
    : UNREACHED
  const count = ++failed[busy ? 'throttled' : 'unreached']
  return Math.round((error.retryAfterMs ?? 0) + random * backoffCeilingMs(count, pace))
}
