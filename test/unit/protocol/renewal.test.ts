import { describe, expect, it } from 'vitest'
import {
  type CertificateReply,
  certificateBody,
  certificateTopic,
  isRequestId,
  mayRenew,
  parseCertificateReply,
  parseCertificateTopic,
} from '../../../src/protocol/renewal.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const RID = 'a1b2-c3d4'
const reply = (status: number, body: unknown, requestId = RID): CertificateReply =>
  parseCertificateReply(
    { status, requestId },
    Buffer.from(typeof body === 'string' ? body : JSON.stringify(body)),
  )

describe('what is sent', () => {
  it('is the topic of the documentation', () => {
    expect(certificateTopic(RID)).toBe('$iothub/credentials/POST/issueCertificate/?$rid=a1b2-c3d4')
  })

  it('is a body of three members at most, in JSON', () => {
    expect(certificateBody('my-device', 'MIIB+/==', undefined)).toBe('{"id":"my-device","csr":"MIIB+/=="}')
    expect(certificateBody('my-device', 'MIIB', '*')).toBe('{"id":"my-device","csr":"MIIB","replace":"*"}')
    expect(JSON.parse(certificateBody("a'b$", 'MIIB', RID))).toEqual({
      id: "a'b$",
      csr: 'MIIB',
      replace: RID,
    })
  })
})

describe('a request id', () => {
  it.each(['abcd', 'A1-b', '0000', 'a'.repeat(36), '9f1c2d3e-0000-4000-8000-00000000000a'])(
    'may be %s',
    (id) => expect(isRequestId(id)).toBe(true),
  )
  it.each(['', 'abc', 'a'.repeat(37), '-abc', 'abc-', 'ab_c', 'ab c', 'ab/c', 'äbcd', 'abcd\n', '\nabcd'])(
    'must not be %j',
    (id) => expect(isRequestId(id)).toBe(false),
  )
})

describe('a user name', () => {
  const name = (version: string) => `hub.net/d/?api-version=${version}&DeviceClientType=x`
  it('lets a device renew from the preview on', () => {
    expect(['2025-08-01-preview', '2025-08-01', '2026-11-02-preview'].map((v) => mayRenew(name(v)))).toEqual([
      true,
      true,
      true,
    ])
    expect(['2021-04-12', '2025-07-31-preview'].map((v) => mayRenew(name(v)))).toEqual([false, false])
    expect(mayRenew('hub.net/d/?DeviceClientType=api-version=2026-01-01')).toBe(false)
  })
})

describe('the topic of an answer', () => {
  it('has a status and the id of the request', () => {
    expect(parseCertificateTopic('$iothub/credentials/res/202/?$rid=a1b2')).toEqual({
      status: 202,
      requestId: 'a1b2',
    })
    expect(parseCertificateTopic('$iothub/credentials/res/200/?$rid=A-1-b&$version=7')).toEqual({
      status: 200,
      requestId: 'A-1-b',
    })
  })

  it.each([
    '$iothub/credentials/res/20/?$rid=a1b2',
    '$iothub/credentials/res/099/?$rid=a1b2',
    '$iothub/credentials/res/2000/?$rid=a1b2',
    '$iothub/credentials/res/200/?$rid=',
    '$iothub/credentials/res/200/?$rid=a/b',
    `$iothub/credentials/res/200/?$rid=${'a'.repeat(37)}`,
    '$iothub/credentials/res/200',
    '$iothub/twin/res/200/?$rid=a1b2',
    'x$iothub/credentials/res/200/?$rid=a1b2',
  ])('is none: %s', (topic) => expect(parseCertificateTopic(topic)).toBeUndefined())
})

describe('an answer', () => {
  it('of 202 is an acceptance, whatever it says', () => {
    expect(reply(202, { correlationId: 'c', operationExpires: 'soon' })).toEqual({ kind: 'accepted' })
    expect(reply(202, 'nonsense')).toEqual({ kind: 'accepted' })
  })

  it('of 200 brings certificates, in an object or bare', () => {
    expect(reply(200, { correlationId: 'c', certificates: ['a', 'b'] })).toEqual({
      kind: 'issued',
      elements: ['a', 'b'],
    })
    expect(reply(200, ['a', 'b'])).toEqual({ kind: 'issued', elements: ['a', 'b'] })
    expect(reply(200, { certificates: 7 })).toEqual({ kind: 'issued', elements: 7 })
    expect(reply(200, {})).toEqual({ kind: 'issued', elements: undefined })
    expect(reply(200, 'null')).toEqual({ kind: 'issued', elements: undefined })
  })

  it.each(['', '{', '["a"', Buffer.from([0xff, 0xfe]).toString('latin1')])(
    'of 200 that is no JSON: %j',
    async (body) => {
      await expectDpsError(() => reply(200, body), 'REPLY_MALFORMED', 'parse')
    },
  )

  it.each([100, 201, 204, 299])('of %i is none', async (status) => {
    await expectDpsError(() => reply(status, {}), 'REPLY_MALFORMED', 'parse')
  })

  // The table of the documentation, and what each means here.
  it.each([
    [400, 400001, 'BAD_REQUEST', false, undefined],
    [400, 400004, 'BAD_REQUEST', false, undefined],
    [400, 400006, 'BAD_REQUEST', false, undefined],
    [400, 400037, 'BAD_REQUEST', false, undefined],
    [400, 400040, 'BAD_REQUEST', false, undefined],
    [403, 403010, 'FORBIDDEN', false, undefined],
    [404, 404001, 'NOT_FOUND', false, undefined],
    [409, 409004, 'CONFLICT', true, undefined],
    [409, 409005, 'CONFLICT', true, undefined],
    [412, 412001, 'CONFLICT', true, undefined],
    [412, 412005, 'CONFLICT', true, undefined],
    [429, 429002, 'THROTTLED', true, 1000],
    [429, 429003, 'THROTTLED', true, 1000],
    [500, 500001, 'SERVICE_UNAVAILABLE', true, 300_000],
    [503, 503001, 'SERVICE_UNAVAILABLE', true, 5000],
    [503, 503102, 'SERVICE_UNAVAILABLE', true, 5000],
    // Unknown ones count by their class.
    [400, 400999, 'BAD_REQUEST', false, undefined],
    [401, 401002, 'UNAUTHORIZED', false, undefined],
    [418, 418001, 'REQUEST_REFUSED', false, undefined],
    [504, 504123, 'SERVICE_UNAVAILABLE', true, undefined],
  ] as const)('of %i, code %i, is %s', (status, errorCode, code, retryable, retryAfterMs) => {
    const body = { errorCode, message: 'no', trackingId: 't-1', timestampUtc: '2026-01-30T10:00:00Z' }
    const found = reply(status, body)
    if (found.kind === 'accepted' || found.kind === 'issued') throw new TypeError(found.kind)
    expect(found.kind).toBe(errorCode === 412001 || errorCode === 412005 ? 'nothing-to-replace' : 'refused')
    expect(found.error).toMatchObject({
      code,
      phase: 'hub',
      retryable,
      retryAfterMs,
      serviceErrorCode: errorCode,
      trackingId: 't-1',
      message: expect.stringContaining(`code ${errorCode}`),
    })
    expect(found.error.hint).not.toContain('group key')
  })

  it('that names the request itself as pending accepts it', () => {
    for (const errorCode of [409004, 409005]) {
      expect(reply(409, { errorCode, info: { requestId: RID } })).toEqual({ kind: 'accepted' })
      expect(reply(409, { errorCode, info: { requestId: 'another' } })).toMatchObject({ kind: 'refused' })
      expect(reply(409, { errorCode, info: null })).toMatchObject({ kind: 'refused' })
    }
  })

  it('says why the request was refused, in text that is safe to print', () => {
    const info = { credentialError: 'InvalidCsr', credentialMessage: 'curve\u001b[31m' }
    expect(reply(400, { errorCode: 400037, message: 'Bad', info })).toMatchObject({
      error: { message: expect.stringMatching(/: Bad: curve\?\[31m$/) },
    })
  })

  it.each([
    [7, 7000],
    ['7', 7000],
    [0, 1000],
    [-5, 1000],
    ['soon', 1000],
    [{}, 1000],
    [null, 1000],
    [1e12, 86_400_000],
  ])('that says to come back after %j waits %i ms', (retryAfter, retryAfterMs) => {
    expect(reply(429, { errorCode: 429002, retryAfter })).toMatchObject({ error: { retryAfterMs } })
  })

  it.each(['', 'nonsense', '[]', '{"errorCode":"x","message":7,"trackingId":{},"info":3}'])(
    'of 503 with the body %j is a refusal all the same',
    (body) =>
      expect(reply(503, body)).toMatchObject({
        kind: 'refused',
        error: { code: 'SERVICE_UNAVAILABLE', serviceErrorCode: undefined, trackingId: undefined },
      }),
  )
})
