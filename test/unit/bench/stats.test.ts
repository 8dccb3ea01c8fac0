import { describe, expect, it } from 'vitest'
import { median, quantile, summarize } from '../../../bench/lib/stats.mjs'

describe('order statistics', () => {
  it.each([
    [[7], 7],
    [[3, 1], 2],
    [[10, 9, 2], 9],
    [[4, 1, 3, 2], 2.5],
  ])('the median of %j is %d', (samples, expected) => {
    expect(median(samples)).toBe(expected)
  })

  it('quantiles lie between neighbours', () => {
    const samples = [50, 10, 40, 20, 30]
    expect([0, 0.25, 0.3, 1].map((share) => quantile(samples, share))).toEqual([10, 20, 22, 50])
    expect(samples).toEqual([50, 10, 40, 20, 30])
  })

  it('one disturbed sample moves neither the median nor the spread much', () => {
    const calm = summarize([100, 101, 102, 103, 104])
    const disturbed = summarize([100, 101, 102, 103, 9000])
    expect(disturbed.median).toBe(calm.median)
    expect(disturbed.spread).toBe(calm.spread)
    expect(disturbed).toMatchObject({ count: 5, min: 100, max: 9000, lowerQuartile: 101, upperQuartile: 103 })
  })

  it('no samples, or what is no number, is an error and not a figure', () => {
    expect(() => median([])).toThrow(RangeError)
    expect(() => summarize([1, Number.NaN])).toThrow(RangeError)
    expect(() => summarize([1, Number.POSITIVE_INFINITY])).toThrow(RangeError)
  })
})
