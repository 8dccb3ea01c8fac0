/** The longest wait a server may ask for that is still taken at its word: one day. */
export const MAX_RETRY_AFTER_MS = 86_400_000

/**
 * `retry-after` as milliseconds, or undefined where there is none or it is no non-negative whole number of seconds: the
 * caller then uses its own back-off, so nonsense such as `soon` can never become a tight loop.
 *
 * HTTP's date form (RFC 9110 §10.2.3) is taken only with `nowMs`, the wall clock to compare it with.
 * Bounded by MAX_RETRY_AFTER_MS.
 */
export function parseRetryAfter(text: string | undefined, nowMs?: number): number | undefined {
  if (text === undefined) return undefined
  const trimmed = text.trim()
  if (/^\d{1,15}$/.test(trimmed)) return Math.min(Number(trimmed) * 1000, MAX_RETRY_AFTER_MS)
  if (nowMs === undefined || !/^[A-Za-z]{3,9}, /.test(trimmed)) return undefined
  const date = Date.parse(trimmed)
  return Number.isNaN(date) ? undefined : Math.min(Math.max(date - nowMs, 0), MAX_RETRY_AFTER_MS)
}
