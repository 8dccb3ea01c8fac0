import { describe, expect, it } from 'vitest'
import { isoTime } from '../../src/iso-time.ts'

describe('a time in a message', () => {
  it.each([
    [0, '1970-01-01T00:00:00Z'],
    [1, '1970-01-01T00:00:00.001Z'],
    [8.64e15, '+275760-09-13T00:00:00Z'],
    [8.64e15 + 1, '(no date)'],
    [-Infinity, '(no date)'],
    [Number.NaN, '(no date)'],
  ])('of %d ms is %s', (ms, text) => {
    expect(isoTime(ms)).toBe(text)
  })
})
