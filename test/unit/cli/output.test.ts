import { describe, expect, test } from 'vitest'
import { describeError, errorJson, spoken, spokenOfRow } from '../../../src/cli/output.ts'
import { DpsError } from '../../../src/errors.ts'

const plain = { alarm: (text: string) => text }

describe('an error for people', () => {
  test('calls options what they are called on the command line', () => {
    const untrusted = describeError(new DpsError('SERVER_UNTRUSTED', 'tls', 'the chain'), plain)
    expect(untrusted).toMatch(/^SERVER_UNTRUSTED in phase tls: the chain\n.* belongs in --extra-root\.$/)
    const names =
      '`key` is not `cert`; idScope, `registrationId`, trust.roots and `connectTo` for `host`; `passphrase`'
    expect(describeError(new DpsError('OPTION_INVALID', 'config', names), plain)).toContain(
      '--key is not --cert; --id-scope, --registration-id, --roots and --connect-to for --host; --key-passphrase-file',
    )
  })

  test('names the option that a message of the library begins with', () => {
    for (const name of ['host', 'port', 'proxy', 'transport', 'payload'])
      expect(spoken(`${name} must be another`)).toBe(`--${name} must be another`)
    expect(spoken('transport names one twice')).toBe('--transport names one twice')
    expect(spoken('the host must be there')).toBe('the host must be there')
  })

  test('names what the command reads for the emulator', () => {
    expect(spoken('`port` must be one')).toBe('--port must be one')
    expect(spoken('`attestation.symmetricKey.primaryKey` must be base64')).toBe(
      'what is in symmetricKeyFile must be base64',
    )
    expect(spoken('`attestation.x509.ca` must be a CA')).toBe('what is in certificateFile must be a CA')
    expect(spoken('`times` must be a positive integer or Infinity')).toMatch(/^TIMES must be .* forever$/)
  })

  test('names what the command has one option for, and the roots by their number', () => {
    const names = '`key` or `keyFile`; `pkcs12File` or `pkcs12`; `pkcs12`; trust.extraRoots[1] is `x`'
    expect(spoken(names)).toBe('--key; --pkcs12; --pkcs12; --extra-root number 2 is `x`')
    expect(spokenOfRow(names)).toBe('key; pkcs12; pkcs12; --extra-root number 2 is x')
  })

  test('has what support asks for, and what was behind it', () => {
    const cause = new DpsError('CONNECTION_REFUSED', 'tcp', 'nobody there')
    const error = new DpsError('DEADLINE_EXCEEDED', 'register', 'too late', {
      cause,
      serviceErrorCode: 429001,
      trackingId: 'abc',
      retryAfterMs: 5000,
      hint: 'Wait.',
    })
    expect(describeError(error, plain).split('\n')).toEqual([
      'DEADLINE_EXCEEDED in phase register: too late',
      'because of CONNECTION_REFUSED: nobody there',
      'Wait.',
      'service error 429001, tracking id abc, to be tried again after 5.00 s',
    ])
    expect(JSON.parse(errorJson(error))).toMatchObject({
      error: { code: 'DEADLINE_EXCEEDED', trackingId: 'abc', cause: { code: 'CONNECTION_REFUSED' } },
    })
  })

  test('cannot play tricks on a terminal', () => {
    const text = describeError(new DpsError('REPLY_MALFORMED', 'parse', '\x1b[2J\u202eevil'), plain)
    expect(text).toContain('?[2J?evil')
  })
})
