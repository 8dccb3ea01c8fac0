import { describe, expect, it } from 'vitest'
import { shouldReprovision } from '../../../src/assignment/should-reprovision.ts'
import { DpsError, type DpsErrorCode, ERROR_CODES } from '../../../src/errors.ts'

const named = (name: string, more: object = {}) => Object.assign(new Error('m'), { name, ...more })
const coded = (code: string | number) => Object.assign(new Error('m'), { code })

type Row = [string, unknown]

const IDENTITY: Row[] = [
  ...[401, 403, 404].flatMap((status): Row[] => [
    [`HTTP status ${status}`, status],
    [`statusCode ${status}`, { statusCode: status }],
    [`status ${status}`, new Response(null, { status })],
  ]),
  ...[2, 4, 5].flatMap((code): Row[] => [
    [`CONNACK ${code}`, code],
    [`CONNACK ${code} of MQTT.js`, coded(code)],
  ]),
  ...(['UNAUTHORIZED', 'FORBIDDEN', 'NOT_FOUND'] as const).map(
    (code): Row => [code, new DpsError(code, 'connect', 'm')],
  ),
  ...['UnauthorizedError', 'DeviceNotFoundError', 'IotHubNotFoundError'].map(
    (name): Row => [name, named(name)],
  ),
  ['NotConnectedError around CONNACK 5', named('NotConnectedError', { transportError: coded(5) })],
]

const OUTAGE: Row[] = [
  ...[500, 502, 503, 599].map((status): Row => [`HTTP status ${status}`, status]),
  ['CONNACK 3', 3],
  ['CONNACK 3 of MQTT.js', coded(3)],
  ...(
    [
      'DNS_FAILED',
      'CONNECTION_REFUSED',
      'NETWORK_UNREACHABLE',
      'CONNECTION_LOST',
      'PROXY_REFUSED',
      'TIMEOUT',
      'DEADLINE_EXCEEDED',
      'SERVICE_UNAVAILABLE',
    ] as const
  ).map((code): Row => [code, new DpsError(code, 'tcp', 'm')]),
  ['a silent handshake', new DpsError('TIMEOUT', 'tls', 'm')],
  ...[
    'ECONNREFUSED',
    'ECONNRESET',
    'ECONNABORTED',
    'EPIPE',
    'ETIMEDOUT',
    'EHOSTUNREACH',
    'ENETUNREACH',
    'ENETDOWN',
    'ENOTFOUND',
    'EAI_AGAIN',
  ].map((code): Row => [code, coded(code)]),
  ...[
    'NotConnectedError',
    'ServiceUnavailableError',
    'InternalServerError',
    'TimeoutError',
    'GatewayTimeoutError',
  ].map((name): Row => [name, named(name)]),
  ['NotConnectedError around a reset', named('NotConnectedError', { transportError: coded('ECONNRESET') })],
]

const NEVER: Row[] = [
  ['HTTP status 429', 429],
  ['ThrottlingError', named('ThrottlingError')],
  ['IotHubQuotaExceededError', named('IotHubQuotaExceededError')],
  ['HTTP status 200', 200],
  ['HTTP status 400', 400],
  ['HTTP status 600', 600],
  ['CONNACK 0', 0],
  ['CONNACK 1', 1],
  ['CONNACK 1 of MQTT.js', coded(1)],
  ['CONNACK 6', coded(6)],
  ['SUBACK 0x80', coded(0x80)],
  ...[
    'CERT_HAS_EXPIRED',
    'SELF_SIGNED_CERT_IN_CHAIN',
    'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
    'ERR_TLS_CERT_ALTNAME_INVALID',
    'ERR_SSL_TLSV1_ALERT_UNKNOWN_CA',
    'EPROTO',
  ].map((code): Row => [code, coded(code)]),
  [
    'NotConnectedError around an untrusted server',
    named('NotConnectedError', { transportError: coded('SELF_SIGNED_CERT_IN_CHAIN') }),
  ],
  ['NotImplementedError', named('NotImplementedError')],
  ['a DOMException whose number is that of a CONNACK', new DOMException('m', 'InvalidCharacterError')],
  ['a text that says unauthorized', 'UnauthorizedError: 401'],
  ['a message that says unauthorized', new Error('Connection refused: Not authorized')],
  ['null', null],
  ['undefined', undefined],
  ['NaN', Number.NaN],
  ['an empty object', {}],
]

describe('shouldReprovision', () => {
  it.each(IDENTITY)('%s: yes, at once', (_, error) => {
    expect(shouldReprovision(error)).toBe(true)
    expect(shouldReprovision(error, { failures: 1, after: 50 })).toBe(true)
  })

  it.each(OUTAGE)('%s: after ten in a row', (_, error) => {
    expect(shouldReprovision(error)).toBe(false)
    expect(shouldReprovision(error, { failures: 9 })).toBe(false)
    expect(shouldReprovision(error, { failures: 10 })).toBe(true)
    expect(shouldReprovision(error, { failures: 10, after: 50 })).toBe(false)
  })

  it.each(NEVER)('%s: never', (_, error) => {
    expect(shouldReprovision(error, { failures: 1000 })).toBe(false)
  })

  const listed = new Set([...IDENTITY, ...OUTAGE].map(([name]) => name))
  it.each((Object.keys(ERROR_CODES) as DpsErrorCode[]).filter((code) => !listed.has(code)))(
    '%s is about something else: never',
    (code) => {
      expect(shouldReprovision(new DpsError(code, 'tls', 'm'), { failures: 1000 })).toBe(false)
    },
  )

  it('knows the error of another copy of this package', () => {
    const other = { code: 'UNAUTHORIZED', [Symbol.for('dps-device-client.DpsError')]: true }
    expect(shouldReprovision(other)).toBe(true)
  })
})
