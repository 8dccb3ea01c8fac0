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
