/**
 * How much `y` grows per step of `x`: least squares.
 *
 * @param {readonly (readonly [number, number])[]} points at least two with different `x`
 */
export function slope(points) {
  const mean = (at) => points.reduce((sum, point) => sum + point[at], 0) / points.length
  const [meanX, meanY] = [mean(0), mean(1)]
  const across = points.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0)
  const along = points.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0)
  if (along === 0) throw new RangeError('all points have the same x')
  return across / along
}

/**
 * The smallest whole number in a range for which `works`, if what works for one works for every larger one.
 *
 * @param {number} low
 * @param {number} high
 * @param {(n: number) => Promise<boolean>} works
 * @returns {Promise<number | undefined>} undefined where not even `high` does
 */
export async function smallest(low, high, works) {
  if (!(await works(high))) return undefined
  let [failing, working] = [low - 1, high]
  while (working - failing > 1) {
    const middle = Math.floor((failing + working) / 2)
    if (await works(middle)) working = middle
    else failing = middle
  }
  return working
}
