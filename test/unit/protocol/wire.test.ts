import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  checkIdScope,
  checkOperationId,
  lookupPath,
  MAX_OPERATION_ID_LENGTH,
  mqttClientId,
  mqttUserName,
  operationPath,
  parseResponseTopic,
  queryTopic,
  RESPONSE_FILTER,
  RESPONSE_PREFIX,
  registerPath,
  registerTopic,
} from '../../../src/protocol/wire.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const address = { idScope: '0ne00000001', registrationId: 'my-device', apiVersion: '2019-03-31' }
const OPERATION = '5.316aac5bdc130deb.b1e02da8-c3a0-4ff2-a121-7ea7a6b7f550'

describe('MQTT names', () => {
  it('are those of the documentation', () => {
    expect(mqttClientId('my-device')).toBe('my-device')
    expect(mqttUserName(address)).toBe('0ne00000001/registrations/my-device/api-version=2019-03-31')
    expect(RESPONSE_FILTER).toBe('$dps/registrations/res/#')
    expect(registerTopic('1')).toBe('$dps/registrations/PUT/iotdps-register/?$rid=1')
    expect(queryTopic('2', OPERATION)).toBe(
      `$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=${OPERATION}`,
    )
  })

  it('percent-encode the user agent, so that it cannot end the field', () => {
    expect(mqttUserName({ ...address, userAgent: 'dps-device-client/1.0 (a&b; c)' })).toBe(
      '0ne00000001/registrations/my-device/api-version=2019-03-31&ClientVersion=dps-device-client%2F1.0%20(a%26b%3B%20c)',
    )
  })
})

describe('HTTPS paths', () => {
  it('are those of the documentation', () => {
    expect(registerPath(address)).toBe('/0ne00000001/registrations/my-device/register?api-version=2019-03-31')
    expect(operationPath(address, OPERATION)).toBe(
      `/0ne00000001/registrations/my-device/operations/${OPERATION}?api-version=2019-03-31`,
    )
    expect(lookupPath(address)).toBe('/0ne00000001/registrations/my-device?api-version=2019-03-31')
  })

  it('encode what a path cannot hold', () => {
    expect(lookupPath({ ...address, registrationId: 'a:b' })).toBe(
      '/0ne00000001/registrations/a%3Ab?api-version=2019-03-31',
    )
    expect(operationPath(address, 'a?b%c')).toContain('/operations/a%3Fb%25c?api-version=')
  })
})

describe('parseResponseTopic', () => {
  it.each([
    ['202/?$rid=1', { status: 202, requestId: '1' }],
    ['202/?$rid=1&retry-after=3', { status: 202, requestId: '1', retryAfter: '3' }],
    ['202/?retry-after=3&$rid=1', { status: 202, requestId: '1', retryAfter: '3' }],
    ['429/?$RID=aB&Retry-After=10', { status: 429, requestId: 'aB', retryAfter: '10' }],
    ['200/?x=1&$rid=1&y&&z=', { status: 200, requestId: '1' }],
    ['202/?$rid=1&retry-after=soon', { status: 202, requestId: '1', retryAfter: 'soon' }],
    ['202/?$rid=1&retry-after=', { status: 202, requestId: '1', retryAfter: '' }],
    ['202/?$rid=1&retry-after=3;x=4', { status: 202, requestId: '1', retryAfter: '3;x=4' }],
    ['202/?$rid=a=b', { status: 202, requestId: 'a=b' }],
    ['401/?$rid=1&__proto__=x&constructor=y', { status: 401, requestId: '1' }],
  ])('reads %s', (rest, expected) => {
    expect(parseResponseTopic(RESPONSE_PREFIX + rest)).toEqual(expected)
  })

  it.each([
    ['another topic', '$dps/registrations/PUT/iotdps-register/?$rid=1'],
    ['a prefix in another case', '$DPS/registrations/res/200/?$rid=1'],
    ['a status below 100', '$dps/registrations/res/002/?$rid=1'],
    ['nothing after the prefix', RESPONSE_PREFIX],
    ['two digits', `${RESPONSE_PREFIX}20/?$rid=1`],
    ['four digits', `${RESPONSE_PREFIX}2000/?$rid=1`],
    ['digits of another script', `${RESPONSE_PREFIX}２００/?$rid=1`],
    ['a signed status', `${RESPONSE_PREFIX}+20/?$rid=1`],
    ['no slash', `${RESPONSE_PREFIX}200?$rid=1`],
    ['no question mark', `${RESPONSE_PREFIX}200/$rid=1`],
    ['a level in between', `${RESPONSE_PREFIX}200/x/?$rid=1`],
    ['a line feed after the status', `${RESPONSE_PREFIX}200\n/?$rid=1`],
    ['no request id', `${RESPONSE_PREFIX}200/?retry-after=3`],
    ['an empty request id', `${RESPONSE_PREFIX}200/?$rid=&retry-after=3`],
    ['a request id without =', `${RESPONSE_PREFIX}200/?$rid`],
    ['rid without its $', `${RESPONSE_PREFIX}200/?rid=1`],
    ['two request ids', `${RESPONSE_PREFIX}200/?$rid=1&$RID=2`],
    ['two retry-afters', `${RESPONSE_PREFIX}200/?$rid=1&retry-after=3&Retry-After=0`],
    ['; as separator before the request id', `${RESPONSE_PREFIX}200/?retry-after=3;$rid=1`],
  ])('refuses %s', (_, topic) => expect(parseResponseTopic(topic)).toBeUndefined())

  it('reads back whatever the pieces are, in any order, among unknown keys', () => {
    const text = fc.stringMatching(/^[!-%'-~]{1,30}$/)
    const unknown = fc
      .tuple(text, text)
      .map(([key, value]) => `x-${key}=${value}`)
      .filter((pair) => pair.indexOf('=') > 0)
    fc.assert(
      fc.property(
        fc.integer({ min: 100, max: 999 }),
        text,
        fc.option(text, { nil: undefined }),
        fc.array(unknown, { maxLength: 4 }),
        fc.infiniteStream(fc.nat()),
        (status, rid, retryAfter, others, order) => {
          const pairs = [`$rid=${rid}`, ...others]
          if (retryAfter !== undefined) pairs.push(`retry-after=${retryAfter}`)
          const shuffled = pairs
            .map((pair) => [order.next().value as number, pair] as const)
            .sort(([a], [b]) => a - b)
            .map(([, pair]) => pair)
          const topic = `${RESPONSE_PREFIX}${String(status).padStart(3, '0')}/?${shuffled.join('&')}`
          expect(parseResponseTopic(topic)).toEqual(
            retryAfter === undefined ? { status, requestId: rid } : { status, requestId: rid, retryAfter },
          )
        },
      ),
    )
  })

  it('never throws', () => {
    const part = fc.oneof(
      fc.constantFrom('200', '/?', '$rid', '=', '&', 'retry-after', ';', '/', '__proto__', '1'),
      fc.string({ unit: 'binary' }),
    )
    fc.assert(
      fc.property(fc.array(part), (parts) => {
        const found = parseResponseTopic(RESPONSE_PREFIX + parts.join(''))
        if (found !== undefined) expect(found.requestId).not.toBe('')
      }),
    )
  })
})

describe('checkIdScope', () => {
  it.each(['0ne00000001', '0ne0AB12CD3', 'A', 'a'.repeat(64)])('takes %s', (scope) =>
    expect(checkIdScope(scope)).toBe(scope),
  )

  it.each([
    '',
    ' 0ne00000001',
    '0ne00000001\n',
    '0ne/registrations',
    '0ne#',
    '0né',
    'a'.repeat(65),
    undefined,
    null,
    7,
    ['0ne00000001'],
  ])('refuses %j', async (scope) => {
    const error = await expectDpsError(() => checkIdScope(scope), 'OPTION_INVALID', 'config')
    expect(error.message).toContain('idScope')
    expect(error.message).toContain('letters and digits')
    expect(error.message).not.toContain('\n')
  })
})

describe('checkOperationId', () => {
  it.each([OPERATION, '1', 'a'.repeat(MAX_OPERATION_ID_LENGTH), '!~=?%;:@', '...'])('takes %s', (id) =>
    expect(checkOperationId(id)).toBe(id),
  )

  it.each([
    ['nothing', ''],
    ['an ampersand, which would add a key', 'a&$rid=2'],
    ['a wildcard #', 'a#'],
    ['a wildcard +', 'a+b'],
    ['a slash, which would add a level', 'a/b'],
    ['a control character', 'a\u0000b'],
    ['a line feed at the end', 'a\n'],
    ['a delete character', 'a\u007f'],
    ['a space', 'a b'],
    ['a letter that is not ASCII', 'é'],
    ['a dot segment', '..'],
    ['one character too many', 'a'.repeat(MAX_OPERATION_ID_LENGTH + 1)],
  ])('refuses %s', async (_, id) => {
    await expectDpsError(() => checkOperationId(id), 'REPLY_MALFORMED', 'parse')
  })
})
