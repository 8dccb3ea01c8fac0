import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DpsError } from '../../../src/errors.ts'
import { parseLookup, parseReply, type RawReply, type ReplyContext } from '../../../src/protocol/response.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const OPERATION = '5.316aac5bdc130deb.b1e02da8-1111-2222-3333-444455556666'

const registering: ReplyContext = {
  phase: 'register',
  registrationId: 'My-Device',
  operationId: undefined,
  nowMs: Date.UTC(2026, 5, 1),
}
const polling: ReplyContext = { ...registering, phase: 'poll', operationId: OPERATION }

function raw(status: number, body: unknown, retryAfter?: string): RawReply {
  const bytes =
    body instanceof Uint8Array ? body : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body))
  return { status, retryAfter, body: bytes }
}

const state = {
  registrationId: 'my-device',
  createdDateTimeUtc: '2026-05-31T23:59:58.1234567Z',
  assignedHub: 'Contoso-Hub.azure-devices.net',
  deviceId: 'press-7',
  status: 'assigned',
  substatus: 'initialAssignment',
  lastUpdatedDateTimeUtc: '2026-05-31T23:59:59.7654321Z',
  etag: '"1c00-0000"',
  x509: {},
}
const assigned = { operationId: OPERATION, status: 'assigned', registrationState: state }

function refused(reply: RawReply, context = polling): DpsError {
  const parsed = parseReply(reply, context)
  if (parsed.kind !== 'refused') expect.fail(`expected a refusal, got ${parsed.kind}`)
  return parsed.error
}

describe('a reply that says assigning', () => {
  it('carries the operation id and the service’s wait', () => {
    expect(parseReply(raw(202, { operationId: OPERATION, status: 'assigning' }, '3'), registering)).toEqual({
      kind: 'assigning',
      operationId: OPERATION,
      retryAfterMs: 3000,
    })
  })

  it('ignores retry-after=soon', () => {
    expect(
      parseReply(raw(202, { operationId: OPERATION, status: 'Assigning' }, 'soon'), registering),
    ).toMatchObject({
      kind: 'assigning',
      retryAfterMs: undefined,
    })
  })

  it('keeps the known operation id when a poll reply leaves it out', () => {
    expect(parseReply(raw(202, { status: 'assigning' }), polling)).toMatchObject({ operationId: OPERATION })
  })

  it.each([[undefined], [''], [17], ['a/b'], ['a&b'], ['a#'], ['a+'], ['a\u0000b'], ['x'.repeat(5000)]])(
    'refuses the operation id %j of a register reply',
    async (operationId) => {
      await expectDpsError(
        () => parseReply(raw(202, { operationId, status: 'assigning' }), registering),
        'REPLY_MALFORMED',
        'parse',
      )
    },
  )
})

describe('a reply that says assigned', () => {
  it('becomes a registration, field by field', () => {
    expect(parseReply(raw(200, assigned), polling)).toEqual({
      kind: 'assigned',
      registration: {
        registrationId: 'My-Device',
        deviceId: 'press-7',
        assignedHub: 'Contoso-Hub.azure-devices.net',
        status: 'assigned',
        substatus: 'initialAssignment',
        payload: undefined,
        etag: '"1c00-0000"',
        createdAt: new Date('2026-05-31T23:59:58.123Z'),
        lastUpdatedAt: new Date('2026-05-31T23:59:59.765Z'),
        connectionProfile: undefined,
      },
    })
  })

  it('keeps non-ASCII text in the returned payload', () => {
    const reply = raw(200, {
      ...assigned,
      registrationState: { ...state, payload: { city: 'Zürich – 東京 🏭' } },
    })
    expect(parseReply(reply, polling)).toMatchObject({
      registration: { payload: { city: 'Zürich – 東京 🏭' } },
    })
  })

  it('treats null fields as absent and ignores unknown ones', () => {
    const reply = raw(200, {
      ...assigned,
      registrationState: { ...state, payload: null, etag: null, surprise: [1] },
    })
    expect(parseReply(reply, polling)).toMatchObject({
      registration: { payload: undefined, etag: undefined },
    })
  })

  it('does not let __proto__ of a payload through, however it is spelt', () => {
    for (const key of ['__proto__', '\\u005f_proto__']) {
      const body = JSON.stringify({ ...assigned, registrationState: { ...state, payload: {} } }).replace(
        '"payload":{}',
        `"payload":{"${key}":{"admin":true},"kept":1}`,
      )
      const parsed = parseReply(raw(200, body), polling)
      const payload = parsed.kind === 'assigned' ? parsed.registration.payload : undefined
      expect(Object.keys(payload ?? {})).toEqual(['kept'])
      expect(Object.assign({}, payload)).not.toHaveProperty('admin')
    }
  })

  it.each(['assignedHub', 'deviceId'])('without %s is incomplete', async (field) => {
    await expectDpsError(
      () =>
        parseReply(raw(200, { ...assigned, registrationState: { ...state, [field]: undefined } }), polling),
      'REPLY_INCOMPLETE',
      'parse',
    )
  })

  it('without registrationState is incomplete', async () => {
    await expectDpsError(
      () => parseReply(raw(200, { status: 'assigned' }), polling),
      'REPLY_INCOMPLETE',
      'parse',
    )
  })

  it.each(['evil.net/path', 'a b', 'hub:8883', 'user@hub', '-hub', 'x'.repeat(300), 'hub\r\nHost: x'])(
    'refuses %j as a hub',
    async (assignedHub) => {
      await expectDpsError(
        () => parseReply(raw(200, { ...assigned, registrationState: { ...state, assignedHub } }), polling),
        'REPLY_MALFORMED',
        'parse',
      )
    },
  )

  it.each(['a/b', 'a#', 'a+', 'a\nb', 'é', 'x'.repeat(129)])(
    'refuses %j as a device id',
    async (deviceId) => {
      await expectDpsError(
        () => parseReply(raw(200, { ...assigned, registrationState: { ...state, deviceId } }), polling),
        'REPLY_MALFORMED',
        'parse',
      )
    },
  )

  it('refuses the assignment of another device', async () => {
    await expectDpsError(
      () =>
        parseReply(
          raw(200, { ...assigned, registrationState: { ...state, registrationId: 'other' } }),
          polling,
        ),
      'REPLY_MALFORMED',
      'parse',
    )
  })

  it('refuses the assignment of a device whose id only Unicode takes for this one', async () => {
    // The Kelvin sign, which `toLowerCase` makes a `k`.
    const registrationState = { ...state, registrationId: 'sensor-\u212a' }
    const context = { ...polling, registrationId: 'sensor-k' }
    await expectDpsError(
      () => parseReply(raw(200, { ...assigned, registrationState }), context),
      'REPLY_MALFORMED',
      'parse',
    )
    await expectDpsError(() => parseLookup(raw(200, registrationState), context), 'REPLY_MALFORMED', 'parse')
  })
})

describe('a 200 that carries a failure', () => {
  it('disabled is REGISTRATION_DISABLED', () => {
    expect(
      refused(raw(200, { status: 'disabled', registrationState: { status: 'disabled' } })),
    ).toMatchObject({
      code: 'REGISTRATION_DISABLED',
      phase: 'poll',
      retryable: false,
    })
  })

  it('failed with 400207 is a failed allocation that may be tried again', () => {
    const error = refused(
      raw(200, {
        status: 'failed',
        registrationState: { errorCode: 400207, errorMessage: 'Custom allocation failed' },
      }),
    )
    expect(error).toMatchObject({ code: 'ALLOCATION_FAILED', serviceErrorCode: 400207, retryable: true })
    expect(error.message).toContain('Custom allocation failed')
  })

  it.each([
    [undefined, 'REGISTRATION_FAILED', false],
    [0, 'REGISTRATION_FAILED', false],
    [400208, 'ALLOCATION_FAILED', false],
    [401002, 'UNAUTHORIZED', false],
    [404201, 'NOT_FOUND', false],
    [500001, 'REGISTRATION_FAILED', true],
    [409203, 'REGISTRATION_FAILED', false],
  ])('failed with %s is %s', (errorCode, code, retryable) =>
    expect(refused(raw(200, { status: 'failed', registrationState: { errorCode } }))).toMatchObject({
      code,
      retryable,
    }),
  )

  it.each(['unassigned', 'paused'])('%s is REGISTRATION_FAILED', (status) =>
    expect(refused(raw(200, { status })).code).toBe('REGISTRATION_FAILED'),
  )
})

describe('a refused request', () => {
  it.each([
    [301, undefined, 'REQUEST_REFUSED', false],
    [400, 400012, 'BAD_REQUEST', false],
    [401, 401002, 'UNAUTHORIZED', false],
    [403, 403001, 'FORBIDDEN', false],
    [404, 404201, 'NOT_FOUND', false],
    [405, undefined, 'REQUEST_REFUSED', false],
    [409, 409203, 'CONFLICT', true],
    [409, 409999, 'REQUEST_REFUSED', false],
    [412, undefined, 'CONFLICT', true],
    [415, undefined, 'REQUEST_REFUSED', false],
    [428, undefined, 'REQUEST_REFUSED', false],
    [429, 429001, 'THROTTLED', true],
    [500, 500001, 'SERVICE_UNAVAILABLE', true],
    [503, undefined, 'SERVICE_UNAVAILABLE', true],
    [599, undefined, 'SERVICE_UNAVAILABLE', true],
  ])('%i with code %s is %s', (status, errorCode, code, retryable) =>
    expect(refused(raw(status, { errorCode }))).toMatchObject({
      code,
      retryable,
      phase: 'poll',
      serviceErrorCode: errorCode,
    }),
  )

  it('keeps what support asks for', () => {
    const body = {
      errorCode: 401002,
      trackingId: 'd1a5-77',
      message: 'Unauthorized',
      timestampUtc: '2026-06-01T10:11:12.1234567Z',
    }
    const error = refused(raw(401, body, '7'), registering)
    expect(error).toMatchObject({ phase: 'register', trackingId: 'd1a5-77', retryAfterMs: 7000 })
    expect(error.serverTime?.toISOString()).toBe('2026-06-01T10:11:12.123Z')
    expect(error.message).toContain('401002')
    expect(error.hint).toContain('minutes behind')
  })

  it.each([
    ['2026-06-01T00:04:00Z', 'the three causes', /verified on the service/],
    ['2026-06-01T02:00:00Z', 'a clock that is behind', /120 minutes behind the service/],
    ['2026-05-31T23:00:00Z', 'a clock that is ahead', /60 minutes ahead of the service/],
  ])('a 401 answered at %s hints at %s', (timestampUtc, _, hint) => {
    expect(refused(raw(401, { errorCode: 401002, timestampUtc }), registering).hint).toMatch(hint)
    expect(refused(raw(403, { timestampUtc }), registering).hint).not.toMatch(/minutes/)
  })

  it('takes the date of HTTP where the body has none', () => {
    const reply = { ...raw(401, {}), date: 'Mon, 01 Jun 2026 03:00:00 GMT' }
    expect(refused(reply, registering).hint).toContain('180 minutes behind')
  })

  it.each([['<html>busy</html>'], [''], ['null'], ['[]'], [Buffer.from([0xff, 0xfe])]])(
    'is told by its status alone where the body is %j',
    (body) =>
      expect(refused(raw(503, body))).toMatchObject({
        code: 'SERVICE_UNAVAILABLE',
        serviceErrorCode: undefined,
      }),
  )

  it('does not pass control characters of the service on to a terminal', () => {
    const { message } = refused(raw(400, { message: 'a\u001b[2Jb\u202ec\nd' }))
    expect(message).toContain('a?[2Jb?c?d')
  })
})

describe('a reply that is not what the protocol says', () => {
  it.each([
    ['truncated JSON', '{"status":"assi'],
    ['an empty body', ''],
    ['a JSON array', '[]'],
    ['JSON null', 'null'],
    ['a JSON string', '"assigned"'],
    ['no UTF-8', Buffer.from('{"status":"assigning","operationId":"\xe9"}', 'latin1')],
    ['no status', '{}'],
    ['a status that is no string', '{"status":200}'],
  ])('%s', async (_, body) => {
    await expectDpsError(() => parseReply(raw(200, body), polling), 'REPLY_MALFORMED', 'parse')
  })

  it.each([0, 100, 199, 201, 204, 299])('status %i', async (status) => {
    await expectDpsError(() => parseReply(raw(status, assigned), polling), 'REPLY_MALFORMED', 'parse')
  })

  it('nested beyond any stack is either read or refused, never a crash', () => {
    const deep = 200_000
    const body = `{"status":"failed","x":${'['.repeat(deep)}${']'.repeat(deep)},"y":"\\u0041"}`
    try {
      expect(parseReply(raw(200, body), polling).kind).toBe('refused')
    } catch (error) {
      expect(DpsError.is(error)).toBe(true)
    }
  })

  it('whatever it is, nothing but a DpsError comes out', () => {
    const value = fc.jsonValue({ maxDepth: 4 })
    const field = fc.constantFrom(
      'status',
      'operationId',
      'registrationState',
      'errorCode',
      'message',
      '__proto__',
    )
    const shaped = fc.dictionary(
      field,
      fc.oneof(value, fc.constantFrom('assigned', 'assigning', 'failed', 'disabled')),
    )
    const bytes = fc.oneof(
      fc.uint8Array({ maxLength: 200 }),
      fc.oneof(value, shaped).map((v) => new Uint8Array(Buffer.from(JSON.stringify(v)))),
    )
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 999 }),
        bytes,
        fc.option(fc.string(), { nil: undefined }),
        (status, body, retryAfter) => {
          try {
            parseReply({ status, body, retryAfter }, polling)
          } catch (error) {
            if (!DpsError.is(error)) throw error
          }
        },
      ),
      { numRuns: 3000 },
    )
  })
})

describe('the reply to a lookup', () => {
  const found = (body: unknown) => {
    const reply = parseLookup(raw(200, body), polling)
    return reply.kind === 'found' ? reply.record : expect.fail('refused')
  }

  it('of an assigned device has the hub and the device', () => {
    expect(found(state)).toMatchObject({
      registrationId: 'My-Device',
      status: 'assigned',
      deviceId: 'press-7',
      assignedHub: 'Contoso-Hub.azure-devices.net',
      substatus: 'initialAssignment',
    })
  })

  it.each(['unassigned', 'assigning', 'failed', 'Disabled', 'something-new'])(
    'of one that is %s has neither',
    (status) =>
      expect(
        found({ registrationId: 'my-device', status, assignedHub: 'x y', errorCode: 400207 }),
      ).toMatchObject({
        status: status.toLowerCase(),
        deviceId: undefined,
        assignedHub: undefined,
        serviceErrorCode: 400207,
      }),
  )

  it('of a device that never registered is NOT_FOUND', () => {
    expect(parseLookup(raw(404, { errorCode: 404202 }), polling)).toMatchObject({
      kind: 'refused',
      error: { code: 'NOT_FOUND', serviceErrorCode: 404202 },
    })
  })

  it.each([
    ['assigned without a hub', 200, { ...state, assignedHub: undefined }, 'REPLY_INCOMPLETE'],
    ['about another device', 200, { ...state, registrationId: 'other' }, 'REPLY_MALFORMED'],
    ['without a status', 200, { registrationId: 'my-device' }, 'REPLY_MALFORMED'],
    ['with status 202', 202, state, 'REPLY_MALFORMED'],
    ['that is an array', 200, [state], 'REPLY_MALFORMED'],
  ] as const)('%s is refused', async (_, status, body, code) => {
    await expectDpsError(() => parseLookup(raw(status, body), polling), code, 'parse')
  })
})
