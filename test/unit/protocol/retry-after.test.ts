import { describe, expect, it } from 'vitest'
import { MAX_RETRY_AFTER_MS, parseRetryAfter } from '../../../src/protocol/retry-after.ts'

describe('parseRetryAfter', () => {
  it.each([
    ['0', 0],
    ['3', 3000],
    [' 15 ', 15_000],
    ['86400', MAX_RETRY_AFTER_MS],
    ['999999999999999', MAX_RETRY_AFTER_MS],
  ])('reads %j as %i ms', (text, ms) => expect(parseRetryAfter(text)).toBe(ms))

  it.each([
    undefined,
    '',
    'soon',
    '-1',
    '1.5',
    '1e3',
    '0x10',
    'NaN',
    'Infinity',
    '1 2',
    '９',
    '9'.repeat(400),
  ])('ignores %j, so the back-off applies', (text) => expect(parseRetryAfter(text)).toBeUndefined())

  it('reads the date form of HTTP against the given clock, and only with one', () => {
    const now = Date.UTC(2026, 5, 1, 12, 0, 0)
    expect(parseRetryAfter('Mon, 01 Jun 2026 12:00:07 GMT', now)).toBe(7000)
    expect(parseRetryAfter('Mon, 01 Jun 2026 11:00:00 GMT', now)).toBe(0)
    expect(parseRetryAfter('Mon, 01 Jun 2099 11:00:00 GMT', now)).toBe(MAX_RETRY_AFTER_MS)
    expect(parseRetryAfter('Mon, 01 Jun 2026 12:00:07 GMT')).toBeUndefined()
    expect(parseRetryAfter('Mon, tomorrow', now)).toBeUndefined()
  })
})
