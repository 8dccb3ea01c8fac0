/** When a certificate is valid, ms since the epoch. */
export interface Life {
  readonly fromMs: number
  readonly untilMs: number
}

/** By how much of a life the day of renewal is spread to either side: who was made together is not renewed together. */
const SPREAD = 0.05

/**
 * When to renew, ms since the epoch. By `at`, a part of the life, 5 % of it to either side by chance.
 *
 * @param random uniform in [0, 1)
 */
export function renewalDueMs({ fromMs, untilMs }: Life, at: number, random: number): number {
  return Math.round(fromMs + (untilMs - fromMs) * (at + (random * 2 - 1) * SPREAD))
}

const MINUTE_MS = 60_000
const DAY_MS = 86_400_000

/** How much of what is left of a life may pass between two attempts, half as much again included. */
const OF_THE_REST = 6
/** A life of minutes has no minute to wait. */
const OF_THE_LIFE = 40

/**
 * How long to wait after a failed renewal, ms. A sixth of the time that is left, at most a day, so that attempts come closer as
 * the end does: some forty in the last six days of a month. At least a minute, or a fortieth of a short life, and what the
 * service asked for. After the end, when every attempt is a registration that is billed, five minutes that double up to an
 * hour. A quarter more or less by chance.
 *
 * @param failures in a row, this one included
 * @param random uniform in [0, 1)
 */
export function renewalRetryMs({
  life: { fromMs, untilMs },
  nowMs,
  failures,
  retryAfterMs = 0,
  random,
}: {
  readonly life: Life
  readonly nowMs: number
  readonly failures: number
  readonly retryAfterMs?: number | undefined
  readonly random: number
}): number {
  const leastMs = Math.min(MINUTE_MS, (untilMs - fromMs) / OF_THE_LIFE)
  const leftMs = untilMs - nowMs
  const waitMs =
    leftMs > 0
      ? Math.min(DAY_MS, Math.max(leastMs, leftMs / OF_THE_REST))
      : Math.min(60, 5 * 2 ** Math.min(failures - 1, 4)) * MINUTE_MS
  return Math.round(retryAfterMs + waitMs * (0.75 + random / 2))
}

/** How long to sleep before the clock is looked at again: it may be set meanwhile, and no timer takes a month. */
export function nextLookMs(untilMs: number, nowMs: number): number {
  return Math.max(0, Math.min(untilMs - nowMs, 60 * MINUTE_MS))
}
