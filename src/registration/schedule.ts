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
}

/** Networks come back within minutes; a ceiling above that only makes the device late. */
const UNREACHED: Pace = { baseDelayMs: 2000, maxDelayMs: 300_000 }

/**
 * What a person has to mend takes longer, and every attempt is one that the service counts: at least a minute, and up to
 * an hour.
 */
const REFUSED: Pace = { baseDelayMs: 300_000, maxDelayMs: 3_600_000 }
const REFUSED_FLOOR_MS = 60_000

/** The quota is one of a minute: what asks again within it only takes the place of another. */
const QUOTA_MS = 60_000
const LONGEST_THROTTLED_MS = 3_600_000
/** A fleet that takes longer has said so with `startDelayMs`. */
const LONGEST_QUEUE_MS = 86_400_000
/** A place in a queue is as likely near its end as near its start: for nine in ten it is over after ten times as long. */
const QUEUE_TIMES = 10

/** What has ended the calls of a `provisionForever` so far. */
export interface FailedCalls {
  unreached: number
  refused: number
  /** How long the device had waited when the service was last over its quota; 0 where it never was. */
  throttledMs: number
}

/**
 * How long to wait between two calls, in whole milliseconds; enters the failure in `failed`. `random` is uniform in [0, 1).
 *
 * - Unreached: below a ceiling that doubles from 2 s to 5 minutes.
 * - Throttled: nobody tells a device how many wait with it, but it knows for how long it has. Up to a quarter of that, so
 *   that it is never late by more; at least a minute, or a sixteenth of `startDelayMs`, and at most an hour.
 * - Refused: below a ceiling that doubles from 5 minutes to an hour, above a minute, and behind the queue: not before
 *   those have had their turn who have not been heard yet. Where none has been met lately there is none to go behind.
 *
 * @param startDelayMs in which the whole fleet gets through
 * @param waitedMs since the first call began
 */
export function pauseMs(
  error: Pick<DpsError, 'code' | 'retryable' | 'retryAfterMs'>,
  failed: FailedCalls,
  startDelayMs: number,
  waitedMs: number,
  random: number,
): number {
  const askedMs = error.retryAfterMs ?? 0
  if (!error.retryable) {
    const queueMs = Math.min(QUEUE_TIMES * failed.throttledMs - waitedMs, LONGEST_QUEUE_MS)
    const floorMs = Math.max(REFUSED_FLOOR_MS, askedMs, startDelayMs, queueMs)
    const spreadMs = queueMs > 0 ? Math.min(failed.throttledMs, LONGEST_QUEUE_MS) : 0
    const ceilingMs = Math.max(startDelayMs, spreadMs, backoffCeilingMs(++failed.refused, REFUSED))
    return Math.round(floorMs + random * ceilingMs)
  }
  if (error.code !== 'THROTTLED') {
    return Math.round(askedMs + random * backoffCeilingMs(++failed.unreached, UNREACHED))
  }
  failed.throttledMs = waitedMs
  const ceilingMs = Math.max(QUOTA_MS, startDelayMs / 16, waitedMs / 4)
  return Math.round(askedMs + random * Math.min(ceilingMs, LONGEST_THROTTLED_MS))
}
