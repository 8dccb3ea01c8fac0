import { inspect } from 'node:util'
import { describe, expect, it } from 'vitest'
import { DpsError, type DpsErrorCode, ERROR_CODES } from '../../src/errors.ts'

describe('DpsError', () => {
  it('takes retryable and hint from its code, and lets a caller be more exact', () => {
    const plain = new DpsError('THROTTLED', 'register', 'busy')
    expect(plain).toMatchObject({ retryable: true, hint: ERROR_CODES.THROTTLED.hint, family: 'service' })
    const exact = new DpsError('THROTTLED', 'register', 'busy', {
      retryable: false,
      hint: 'Ask.',
      retryAfterMs: 7,
    })
    expect(exact).toMatchObject({ retryable: false, hint: 'Ask.', retryAfterMs: 7 })
  })

  it('is recognised across copies of the package, and nothing else is', () => {
    const error = new DpsError('CANCELLED', 'poll', 'm')
    expect(DpsError.is(error)).toBe(true)
    const other = Object.assign(new Error('m'), { [Symbol.for('dps-device-client.DpsError')]: true })
    expect(DpsError.is(other)).toBe(true)
    for (const value of [
      null,
      undefined,
      'DpsError',
      new Error('m'),
      { name: 'DpsError', code: 'CANCELLED' },
    ]) {
      expect(DpsError.is(value)).toBe(false)
    }
  })

  it('keeps its cause for a debugger and out of its JSON', () => {
    const error = new DpsError('TLS_FAILED', 'tls', 'm', { cause: new Error('inner detail') })
    expect(inspect(error)).toContain('inner detail')
    expect(JSON.stringify(error)).not.toContain('inner detail')
    expect(JSON.parse(JSON.stringify(error))).toMatchObject({
      name: 'DpsError',
      code: 'TLS_FAILED',
      phase: 'tls',
    })
    expect('cause' in new DpsError('TLS_FAILED', 'tls', 'm')).toBe(false)
  })
})

describe('an assignment that an error carries', () => {
  const assignment = {
    assignedHub: 'h.example',
    deviceId: 'd',
    payload: { key: 'of the application' },
  } as never

  it('is there to be read and in JSON, and what may be secret in it is printed nowhere', () => {
    const error = new DpsError('CERTIFICATE_NOT_ISSUED', 'parse', 'm', { assignment })
    expect(error.assignment).toBe(assignment)
    expect(JSON.parse(JSON.stringify(error)).assignment).toEqual({ assignedHub: 'h.example', deviceId: 'd' })
    for (const printed of [inspect(error, { depth: 9 }), JSON.stringify(error), `${error.stack}`]) {
      expect(printed).not.toContain('of the application')
    }
  })

  it('is absent from any other', () => {
    const error = new DpsError('THROTTLED', 'register', 'busy')
    expect(error.assignment).toBeUndefined()
    expect(error.toJSON()).not.toHaveProperty('assignment')
  })
})

describe('every code', () => {
  for (const code of Object.keys(ERROR_CODES) as DpsErrorCode[]) {
    it(`${code} has a hint of one sentence that says what to do`, () => {
      expect(ERROR_CODES[code].hint).toMatch(/^[A-Z].{10,}\.$/)
    })
  }
})
