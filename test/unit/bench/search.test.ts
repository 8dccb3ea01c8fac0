import { expect, test } from 'vitest'
import { slope, smallest } from '../../../bench/lib/search.mjs'

test('a slope is the growth per step, whatever the start', () => {
  expect(
    slope([
      [0, 500],
      [10, 520],
      [20, 540],
    ]),
  ).toBe(2)
})

test('a slope between points that disagree is the one of least squares', () => {
  expect(
    slope([
      [0, 0],
      [1, 3],
      [2, 3],
    ]),
  ).toBeCloseTo(1.5)
})

test('points without an extent have no slope', () => {
  expect(() =>
    slope([
      [3, 1],
      [3, 2],
    ]),
  ).toThrow(RangeError)
})

test.each([1, 2, 5, 7, 8])('finds %i as the smallest that works', async (least) => {
  const asked: number[] = []
  const works = async (n: number) => {
    asked.push(n)
    return n >= least
  }
  expect(await smallest(1, 8, works)).toBe(least)
  expect(asked.length).toBeLessThanOrEqual(5)
})

test('finds nothing where not even the largest works', async () => {
  expect(await smallest(1, 8, async () => false)).toBeUndefined()
})
