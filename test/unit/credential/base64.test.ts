import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { checkSasKey, decodeBase64 } from '../../../src/credential/base64.ts'

// 34 bytes, so that its base64 has both + and / and two =.
const key = Buffer.from(
  'fbefbefffefd3a5c7f109923aa44bb01deadbeef00c0ffee123456789abcdef0f1f2',
  'hex',
).toString('base64')

describe('a symmetric key', () => {
  it('of 16 to 64 bytes is returned unchanged', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 64 }), (bytes) => {
        const text = Buffer.from(bytes).toString('base64')
        expect(checkSasKey(text, 'symmetric')).toBe(text)
        expect(decodeBase64(text)).toEqual(Buffer.from(bytes))
      }),
    )
  })

  it.each<[string, unknown, string]>([
    ['is missing', undefined, 'not undefined'],
    ['is null', null, 'not null'],
    ['is bytes', Buffer.from(key, 'base64'), 'not object'],
    ['is empty', '', 'is empty'],
    ['ends with a line break', `${key}\n`, `line break at position ${key.length + 1}`],
    ['starts with a space', ` ${key}`, 'whitespace or a line break at position 1'],
    ['is wrapped', `${key.slice(0, 10)}\r\n${key.slice(10)}`, 'line break at position 11'],
    ['still has its quote marks', `"${key}"`, 'quote mark at position 1'],
    ['has typographic quote marks', `\u201c${key}\u201d`, 'quote mark at position 1'],
    ['is URL-safe base64', key.replaceAll('+', '-').replaceAll('/', '_'), 'URL-safe'],
    ['is percent-encoded', encodeURIComponent(key), 'percent-encoded'],
    ['lost its padding', key.replace(/=+$/, ''), 'padding'],
    ['lost half of its padding', key.slice(0, -1), 'padding'],
    ['has too much padding', `${key}=`, 'where it is not padding'],
    ['has padding inside', `${key.slice(0, 8)}=${key.slice(9)}`, 'where it is not padding'],
    ['lost its last characters', key.replace(/=+$/, '').slice(0, -1), 'cut off'],
    ['has unused bits set', key.replace(/.==$/, 'h=='), 'not canonical'],
    ['has an ellipsis', `${key.slice(0, 20)}…`, 'not base64'],
    ['has 15 bytes', Buffer.alloc(15, 7).toString('base64'), 'decodes to 15 bytes; it must be 16 to 64'],
    ['has 65 bytes', Buffer.alloc(65, 7).toString('base64'), 'decodes to 65 bytes'],
    ['is hexadecimal', Buffer.from(key, 'base64').subarray(0, 32).toString('hex'), 'hexadecimal'],
    ['is a connection string', `HostName=h.example;DeviceId=d;SharedAccessKey=${key}`, 'connection string'],
    ['is a token', `SharedAccessSignature sr=a&sig=${key}&se=1`, 'SAS token'],
    ['is PEM', `-----BEGIN PRIVATE KEY-----\n${key}\n-----END PRIVATE KEY-----\n`, 'PEM'],
  ])('that %s is refused without being quoted', (_, given, message) => {
    const check = () => checkSasKey(given, 'symmetric')
    expect(check).toThrow(expect.objectContaining({ code: 'SAS_KEY_INVALID', phase: 'config' }))
    expect(check).toThrow(message)
    try {
      check()
    } catch (error) {
      const shown = JSON.stringify(error)
      for (let i = 0; i + 6 <= key.length; i++) expect(shown).not.toContain(key.slice(i, i + 6))
    }
  })
})
