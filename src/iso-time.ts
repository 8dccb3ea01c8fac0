/** The furthest a `Date` reaches on either side of 1970, in ms (ECMA-262, Time Values and Time Range). */
const MAX_DATE_MS = 8.64e15

/** A time in ms since the epoch for a message: ISO 8601, UTC, and `(no date)` where it is none. */
export function isoTime(ms: number): string {
  return Math.abs(ms) <= MAX_DATE_MS ? new Date(ms).toISOString().replace('.000Z', 'Z') : '(no date)'
}
