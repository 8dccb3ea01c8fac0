// Order statistics: a shared machine disturbs some samples a lot and most of them a little, so no means.

/**
 * @typedef {object} Summary
 * @property {number} count
 * @property {number} min
 * @property {number} lowerQuartile
 * @property {number} median
 * @property {number} upperQuartile
 * @property {number} max
 * @property {number} spread the distance between the quartiles as a share of the median
 */

/**
 * The value below which `share` of the samples lie, linear between neighbours.
 *
 * @param {readonly number[]} samples at least one
 * @param {number} share 0 to 1
 */
export function quantile(samples, share) {
  if (samples.length === 0) throw new RangeError('no samples')
  const sorted = [...samples].sort((a, b) => a - b)
  const at = share * (sorted.length - 1)
  const below = sorted[Math.floor(at)] ?? 0
  const above = sorted[Math.ceil(at)] ?? 0
  return below + (above - below) * (at - Math.floor(at))
}

/** @param {readonly number[]} samples */
export const median = (samples) => quantile(samples, 0.5)

/**
 * @param {readonly number[]} samples at least one, all finite
 * @returns {Summary}
 */
export function summarize(samples) {
  if (!samples.every(Number.isFinite)) throw new RangeError('a sample is no number')
  const [lowerQuartile, middle, upperQuartile] = [0.25, 0.5, 0.75].map((share) => quantile(samples, share))
  return {
    count: samples.length,
    min: Math.min(...samples),
    lowerQuartile,
    median: middle,
    upperQuartile,
    max: Math.max(...samples),
    spread: middle === 0 ? 0 : (upperQuartile - lowerQuartile) / middle,
  }
}
