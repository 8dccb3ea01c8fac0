import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { redactor } from '../../../src/cli/redact.ts'

const KEY = Buffer.from('0123456789abcdef0123456789abcdef').toString('base64')

describe('a secret', () => {
  test('is taken out of a text however it is written', () => {
    const bytes = Buffer.from(KEY, 'base64')
    for (const written of [
      KEY,
      encodeURIComponent(KEY),
      bytes.toString('hex'),
      bytes.toString('base64url'),
    ]) {
      expect(redactor([`${KEY}\n`])(`sig=${written}&se=1`)).toBe('sig=[redacted]&se=1')
    }
  })

  test('is taken out of data, and the rest of it stays', () => {
    const data = { ok: true, n: 7, list: [`a ${KEY}`, { deep: KEY }], none: undefined, nothing: null }
    expect(redactor([Buffer.from(KEY)])(data)).toEqual({
      ok: true,
      n: 7,
      list: ['a [redacted]', { deep: '[redacted]' }],
      none: undefined,
      nothing: null,
    })
  })

  test('that is a key file is known by each of its lines', () => {
    const lines = ['MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj', 'AgEAAoIBAQC7VJTUt9Us8cKjMzEfYyjiWA4R4/M2']
    const pem = `-----BEGIN PRIVATE KEY-----\n${lines.join('\r\n')}\n-----END PRIVATE KEY-----\n`
    for (const line of lines) expect(redactor([pem])(`: ${line}`)).toBe(': [redacted]')
    expect(redactor([pem])('-----BEGIN PRIVATE KEY-----')).toBe('-----BEGIN PRIVATE KEY-----')
  })

  test('that is too short to be told from other text is left to whoever writes it', () => {
    expect(redactor(['ok'])('ok')).toBe('ok')
  })

  test('is found wherever it stands, and as often', () => {
    fc.assert(
      fc.property(
        fc.string({ minLength: 8, maxLength: 40 }),
        fc.array(fc.string(), { maxLength: 5 }),
        (secret, around) => {
          fc.pre(secret.trim().length >= 6 && !'[redacted]'.includes(secret.trim()))
          expect(redactor([secret])(around.join(secret))).not.toContain(
            around.length > 1 ? secret : '\0never',
          )
        },
      ),
    )
  })
})
