import { generate, type Packet } from 'mqtt-packet'
import { describe, expect } from 'vitest'
import type { RawContext, ReplyFault } from '../../src/emulator/index.ts'
import type { DpsErrorCode, DpsPhase } from '../../src/index.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { DEVICE_KEY, lie, REGISTRATION_ID, type Setup, type Stage } from '../support/stage.ts'

const HUB = 'emulated-hub.azure-devices.net'
const once: Setup = { client: { retry: { maxAttempts: 1 } } }
const answeredAtOnce: Setup = { ...once, emulator: { assigning: { polls: 0 } } }

/** A reply that says assigned, with the registration state changed as given. */
function assigned(changes: Record<string, unknown> = {}): string {
  return JSON.stringify({
    operationId: '5.0123456789abcdef.1',
    status: 'assigned',
    registrationState: {
      registrationId: REGISTRATION_ID,
      assignedHub: HUB,
      deviceId: REGISTRATION_ID,
      status: 'assigned',
      ...changes,
    },
  })
}

const publish = (topic: string, payload: string): Buffer =>
  generate({ cmd: 'publish', topic, payload, qos: 0, dup: false, retain: false })
const reply = (rid: string, payload: string, status = 200): Buffer =>
  publish(`$dps/registrations/res/${status}/?$rid=${rid}`, payload)

/** The register request is answered like this, once. */
const answer = (stage: Stage, scripted: ReplyFault['reply']) =>
  stage.faults.add({ at: 'register-reply', do: { reply: scripted } })

describe('the answer to CONNECT', () => {
  const codes: readonly (readonly [number, DpsErrorCode, boolean])[] = [
    [1, 'PROTOCOL_REFUSED', false],
    [2, 'UNAUTHORIZED', false],
    [3, 'SERVICE_UNAVAILABLE', true],
    [4, 'UNAUTHORIZED', false],
    [5, 'UNAUTHORIZED', false],
    [6, 'PROTOCOL_VIOLATION', true],
    [255, 'PROTOCOL_VIOLATION', true],
  ]
  for (const [returnCode, code, retryable] of codes) {
    lie(`CONNACK with return code ${returnCode}`, once, async (stage) => {
      stage.faults.add({ at: 'connect', do: { refuse: returnCode } })
      const error = await expectDpsError(stage.register(), code, 'connect')
      expect(error.retryable).toBe(retryable)
      expect(error.message).toContain(`${returnCode}`)
      expect(stage.requests).toEqual([])
    })
  }

  lie('a service that is unavailable for a while is asked again', {}, async (stage) => {
    stage.faults.add({ at: 'connect', do: { refuse: 3 }, times: 3 })
    await stage.register()
    expect(stage.clock.sleeps.slice(0, 3)).toEqual([500, 1000, 2000])
  })

  lie('a service that says no is not asked again', {}, async (stage) => {
    stage.faults.add({ at: 'connect', do: { refuse: 5 }, times: Number.POSITIVE_INFINITY })
    await expectDpsError(stage.register(), 'UNAUTHORIZED', 'connect')
    expect(stage.emulator.log.connections).toHaveLength(1)
  })

  const notConnack: readonly (readonly [string, Buffer])[] = [
    ['a session where a clean one was asked for', Buffer.of(0x20, 2, 1, 0)],
    ['a CONNACK with flags', Buffer.of(0x21, 2, 0, 0)],
    ['a CONNACK that is longer than one', Buffer.of(0x20, 3, 0, 0, 0)],
    ['a reply before there is a connection', reply('1', assigned())],
    ['a second CONNACK', Buffer.of(0x20, 2, 0, 0, 0x20, 2, 0, 0)],
    ['a CONNECT of its own', Buffer.of(0x10, 0)],
    ['a SUBACK first', Buffer.of(0x90, 3, 0, 1, 1)],
    ['HTTP inside TLS', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
    ['a length that never ends', Buffer.of(0x20, 0xff, 0xff, 0xff, 0xff, 0xff)],
  ]
  for (const [what, raw] of notConnack) {
    lie(what, once, async (stage) => {
      stage.faults.add({ at: 'connect', do: { raw } })
      const phase = what === 'a second CONNACK' ? 'subscribe' : 'connect'
      await expectDpsError(stage.register(), 'PROTOCOL_VIOLATION', phase)
      expect(stage.requests).toEqual([])
    })
  }
})

describe('the answer to SUBSCRIBE', () => {
  lie('a refused subscription', {}, async (stage) => {
    stage.faults.add({ at: 'subscribe', do: 'refuse' })
    const error = await expectDpsError(stage.register(), 'SUBSCRIPTION_REFUSED', 'subscribe')
    expect(error.retryable).toBe(false)
    expect(stage.requests).toEqual([])
  })

  const notSuback: readonly (readonly [string, Buffer])[] = [
    ['a SUBACK to another packet', Buffer.of(0x90, 3, 0, 9, 1)],
    ['a SUBACK that grants more than was asked for', Buffer.of(0x90, 3, 0, 1, 2)],
    ['a SUBACK with a reserved return code', Buffer.of(0x90, 3, 0, 1, 3)],
    ['a SUBACK for two filters', Buffer.of(0x90, 4, 0, 1, 1, 1)],
  ]
  for (const [what, raw] of notSuback) {
    lie(what, once, async (stage) => {
      stage.faults.add({ at: 'subscribe', do: { raw } })
      await expectDpsError(stage.register(), 'PROTOCOL_VIOLATION', 'subscribe')
    })
  }
})

describe('whose reply it is', () => {
  lie('a reply to another request is no reply', once, async (stage) => {
    stage.faults.add({ at: 'register-reply', do: 'wrong-rid' })
    stage.eachStall('register-reply', 'register', () => stage.clock.advance(30_000))
    const error = await expectDpsError(stage.register(), 'TIMEOUT', 'register')
    expect(error.message).toContain('30000 ms')
  })

  lie('a reply to another request, then the right one', answeredAtOnce, async (stage) => {
    const raw = ({ rid }: RawContext) =>
      Buffer.concat([
        reply(`${rid}0`, assigned({ assignedHub: 'longer.example' })),
        reply(rid.slice(0, -1), assigned({ assignedHub: 'shorter.example' })),
        reply(rid, assigned()),
      ])
    stage.faults.add({ at: 'register-reply', do: { raw } })
    expect((await stage.register()).assignedHub).toBe(HUB)
  })

  lie('a reply to a request of the connection before', {}, async (stage) => {
    const rids: string[] = []
    stage.faults.add({ at: 'register', do: 'drop' })
    stage.faults.add({
      at: 'register',
      do: {
        raw: ({ rid }) => {
          rids.push(...stage.requests.map((topic) => topic.split('$rid=')[1] ?? ''))
          const [lost = ''] = rids
          return Buffer.concat([
            reply(lost, assigned({ assignedHub: 'stale.example' })),
            reply(rid, assigned()),
          ])
        },
      },
    })
    expect((await stage.register()).assignedHub).toBe(HUB)
    expect(new Set(rids).size).toBe(2)
  })

  lie('a reply for another registration id', answeredAtOnce, async (stage) => {
    answer(stage, { body: assigned({ registrationId: 'sensor-2' }) })
    const error = await expectDpsError(stage.register(), 'REPLY_MALFORMED', 'parse')
    expect(error.message).toContain('"sensor-2"')
    expect(error.message).toContain(`"${REGISTRATION_ID}"`)
  })

  lie('the truth: the registration id in another letter case', answeredAtOnce, async (stage) => {
    answer(stage, { body: assigned({ registrationId: REGISTRATION_ID.toUpperCase() }) })
    expect((await stage.register()).registrationId).toBe(REGISTRATION_ID)
  })

  for (const at of ['register-reply', 'poll-reply'] as const) {
    lie(`a ${at} that comes twice`, {}, async (stage) => {
      stage.faults.add({ at, do: 'duplicate' })
      await stage.register()
      expect(stage.requests).toHaveLength(2)
    })

    lie(`a ${at} that comes byte by byte`, {}, async (stage) => {
      stage.faults.add({ at, do: 'byte-by-byte' })
      await stage.register()
    })
  }

  for (const at of ['register', 'poll'] as const) {
    lie(`a reply to ${at} before its PUBACK`, {}, async (stage) => {
      stage.faults.add({ at, do: 'reply-before-puback' })
      await stage.register()
    })

    lie(`a request to ${at} that is never acknowledged`, {}, async (stage) => {
      stage.faults.add({ at, do: 'no-puback' })
      await stage.register()
      expect(stage.requests).toHaveLength(2)
    })
  }

  lie('messages on other topics', answeredAtOnce, async (stage) => {
    const raw = ({ rid }: RawContext) =>
      Buffer.concat([
        publish('devices/sensor-1/messages/devicebound', 'hello'),
        publish('$dps/registrations/RES/200/?$rid=1', assigned({ assignedHub: 'case.example' })),
        publish(
          `prefix/$dps/registrations/res/200/?$rid=${rid}`,
          assigned({ assignedHub: 'prefix.example' }),
        ),
        reply(rid, assigned()),
      ])
    stage.faults.add({ at: 'register-reply', do: { raw } })
    expect((await stage.register()).assignedHub).toBe(HUB)
  })

  for (const [what, topic] of [
    ['without a request id', '$dps/registrations/res/200/?'],
    ['with an empty request id', '$dps/registrations/res/200/?$rid='],
    ['with a status that is no number', '$dps/registrations/res/abc/?$rid=1'],
    ['with a status of four digits', '$dps/registrations/res/2000/?$rid=1'],
    ['with two request ids', '$dps/registrations/res/200/?$rid=1&$rid=2'],
  ] as const) {
    lie(`a reply ${what}`, answeredAtOnce, async (stage) => {
      answer(stage, { topic })
      const error = await expectDpsError(stage.register(), 'REPLY_MALFORMED', 'parse')
      expect(error.message).toContain(topic)
    })
  }

  for (const [what, packet] of [
    ['at QoS 2', { qos: 2, messageId: 7 }],
    ['with both QoS bits', undefined],
    ['marked as a duplicate at QoS 0', { dup: true }],
  ] as const) {
    lie(`a reply ${what}`, answeredAtOnce, async (stage) => {
      const raw = ({ rid }: RawContext) => {
        const bytes = generate({
          cmd: 'publish',
          topic: `$dps/registrations/res/200/?$rid=${rid}`,
          payload: assigned(),
          qos: 0,
          dup: false,
          retain: false,
          ...packet,
        } as Packet)
        if (packet === undefined) bytes[0] = bytes[0]! | 6
        return bytes
      }
      stage.faults.add({ at: 'register-reply', do: { raw } })
      await expectDpsError(stage.register(), 'PROTOCOL_VIOLATION', 'register')
    })
  }
})

describe('what a reply is made of', () => {
  const whole = assigned()
  /** A reply that is right but for these bytes, which stand for text of the payload. */
  const withBytes = (...bytes: number[]): Buffer => {
    const [head = '', tail = ''] = assigned({ payload: { city: 'HERE' } }).split('HERE')
    return Buffer.concat([Buffer.from(head), Buffer.of(...bytes), Buffer.from(tail)])
  }
  const NO_JSON = 'is not JSON in UTF-8'
  const NO_OBJECT = 'is JSON but no object'
  const NO_STATUS = 'carries no status'
  const bodies: readonly (readonly [string, string | Uint8Array, string])[] = [
    ['nothing', '', NO_JSON],
    ['blanks', '  \r\n', NO_JSON],
    ['text', 'Service Unavailable', NO_JSON],
    ['HTML', '<!DOCTYPE html><title>Sign in to the network</title>', NO_JSON],
    ['two objects', whole + whole, NO_JSON],
    ['a comment', `${whole} // yes`, NO_JSON],
    ['single quotes', whole.replaceAll('"', "'"), NO_JSON],
    ['an object that is cut off', whole.slice(0, -1), NO_JSON],
    ['half a character at its end', Buffer.from(`${whole.slice(0, -2)},"city":"東`).subarray(0, -1), NO_JSON],
    ['a NUL at its end', `${whole}\0`, NO_JSON],
    ['UTF-16', Buffer.from(whole, 'utf16le'), NO_JSON],
    ['Latin-1', withBytes(0xf3), NO_JSON],
    ['an overlong encoding', withBytes(0xc1, 0xa1), NO_JSON],
    ['a lone surrogate in UTF-8', withBytes(0xed, 0xa0, 0x80), NO_JSON],
    ['a character beyond Unicode', withBytes(0xf4, 0x90, 0x80, 0x80), NO_JSON],
    ['a character that is cut off', withBytes(0xe6, 0x9d), NO_JSON],
    ['null', 'null', NO_OBJECT],
    ['true', 'true', NO_OBJECT],
    ['a number', '42', NO_OBJECT],
    ['a string', '"assigned"', NO_OBJECT],
    ['a list', `[${whole}]`, NO_OBJECT],
    ['an object without a status', '{}', NO_STATUS],
    ['a status that is no text', '{"status":["assigned"]}', NO_STATUS],
  ]
  for (const [what, body, fault] of bodies) {
    lie(`a reply made of ${what}`, answeredAtOnce, async (stage) => {
      answer(stage, { body })
      const error = await expectDpsError(stage.register(), 'REPLY_MALFORMED', 'parse')
      expect(error.retryable).toBe(true)
      expect(error.message).toBe(`the reply ${fault}`)
      expect(stage.requests).toHaveLength(1)
    })
  }

  for (const bytes of [0, 1, 30]) {
    lie(`a reply to a poll of which only ${bytes} bytes are sent`, once, async (stage) => {
      stage.faults.add({ at: 'poll-reply', do: { truncate: bytes } })
      await expectDpsError(stage.register(), 'REPLY_MALFORMED', 'parse')
    })
  }

  lie('a packet that is cut off', once, async (stage) => {
    stage.faults.add({ at: 'register-reply', do: { cut: 20 } })
    await expectDpsError(stage.register(), 'CONNECTION_LOST', 'register')
  })

  for (const [at, phase] of [
    ['register-reply', 'register'],
    ['poll-reply', 'poll'],
  ] as const) {
    lie(`a ${at} of a megabyte`, {}, async (stage) => {
      stage.faults.add({ at, do: { oversize: 1_000_000 } })
      const error = await expectDpsError(stage.register(), 'REPLY_TOO_LARGE', phase)
      expect(error.retryable).toBe(false)
      expect(error.message).toContain('196608')
    })
  }

  lie('a length of 256 megabytes is refused before they come', once, async (stage) => {
    stage.faults.add({ at: 'register', do: { raw: Buffer.of(0x30, 0xff, 0xff, 0xff, 0x7f) } })
    await expectDpsError(stage.register(), 'REPLY_TOO_LARGE', 'register')
  })

  lie('the truth: a reply of 190 kB is taken', once, async (stage) => {
    stage.faults.add({ at: 'poll-reply', do: { oversize: 190_000 } })
    await stage.register()
  })

  const cities = { city: 'Kraków', capital: '東京', sign: '🛰' }
  const asked: unknown[] = []
  lie(
    'the truth: names in any script, there and back',
    {
      emulator: {
        enrollments: [
          {
            registrationId: REGISTRATION_ID,
            attestation: { symmetricKey: { primaryKey: DEVICE_KEY } },
            payload: ({ payload }) => {
              asked.push(payload)
              return cities
            },
          },
        ],
      },
    },
    async (stage) => {
      // Characters that are split between two TLS records are put together.
      stage.faults.add({ at: 'poll-reply', do: 'byte-by-byte' })
      expect((await stage.register({ payload: cities })).payload).toEqual(cities)
      expect(asked).toEqual([cities])
    },
  )

  lie('a payload that wants to be a prototype', answeredAtOnce, async (stage) => {
    const payload =
      '{"__proto__":{"admin":true},"constructor":{"prototype":{"admin":true}},"a":{"\\u005f_proto__":{"admin":true}}}'
    answer(stage, { body: assigned({ payload: 0 }).replace('"payload":0', `"payload":${payload}`) })
    const { payload: taken } = await stage.register()
    const merged = Object.assign({}, taken, taken?.a) as Record<string, unknown>
    expect(merged.admin).toBeUndefined()
    expect(({} as Record<string, unknown>).admin).toBeUndefined()
    expect(Object.hasOwn(taken!, '__proto__')).toBe(false)
    expect(Object.hasOwn(taken!.a as object, '__proto__')).toBe(false)
  })

  lie('a payload that is nested twenty thousand deep', answeredAtOnce, async (stage) => {
    const depth = 20_000
    const payload = `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`
    answer(stage, { body: assigned({ payload: 0 }).replace('"payload":0', `"payload":${payload}`) })
    let node: unknown = (await stage.register()).payload
    let frozen = 0
    for (; typeof node === 'object' && node !== null; node = (node as { a: unknown }).a) {
      if (Object.isFrozen(node)) frozen++
    }
    expect(frozen).toBe(depth)
  })
})

describe('what the service says of the operation', () => {
  for (const [what, action] of [
    ['without a hub', 'no-hub'],
    ['without a device id', 'no-device-id'],
  ] as const) {
    lie(`assigned ${what}`, {}, async (stage) => {
      stage.faults.add({ at: 'poll-reply', do: action })
      const error = await expectDpsError(stage.register(), 'REPLY_INCOMPLETE', 'parse')
      expect(error.retryable).toBe(false)
    })
  }

  const states: readonly (readonly [string, Record<string, unknown>, DpsErrorCode])[] = [
    ['with an empty hub', { assignedHub: '' }, 'REPLY_INCOMPLETE'],
    ['with an empty device id', { deviceId: '' }, 'REPLY_INCOMPLETE'],
    ['with a hub that is a number', { assignedHub: 42 }, 'REPLY_INCOMPLETE'],
    ['to a URL', { assignedHub: 'https://hub.example/' }, 'REPLY_MALFORMED'],
    ['to a host with a port', { assignedHub: 'hub.example:8883' }, 'REPLY_MALFORMED'],
    ['to a host with a line break', { assignedHub: 'hub.example\n' }, 'REPLY_MALFORMED'],
    ['to a host with a user', { assignedHub: 'azure@hub.example' }, 'REPLY_MALFORMED'],
    ['as a topic wildcard', { deviceId: '#' }, 'REPLY_MALFORMED'],
    ['as a path', { deviceId: '../admin' }, 'REPLY_MALFORMED'],
    ['as a query', { deviceId: 'a&api-version=1' }, 'REPLY_MALFORMED'],
  ]
  for (const [what, state, code] of states) {
    lie(`assigned ${what}`, answeredAtOnce, async (stage) => {
      answer(stage, { body: assigned(state) })
      await expectDpsError(stage.register(), code, 'parse')
    })
  }

  lie('assigned and nothing more', answeredAtOnce, async (stage) => {
    answer(stage, { body: '{"status":"assigned"}' })
    await expectDpsError(stage.register(), 'REPLY_INCOMPLETE', 'parse')
  })

  lie('assigning without an operation id', {}, async (stage) => {
    stage.faults.add({ at: 'register-reply', do: 'no-operation-id' })
    const error = await expectDpsError(stage.register(), 'REPLY_MALFORMED', 'parse')
    expect(error.message).toContain('operationId')
    expect(stage.requests).toHaveLength(1)
  })

  for (const [what, operationId] of [
    ['that adds a field to the topic', '5.1&$rid=1'],
    ['that is a wildcard', '#'],
    ['that climbs out of its path', '..'],
    ['that is empty', ''],
    ['that is a thousand characters long', '5'.repeat(1000)],
    ['that is a list', ['5.1']],
  ] as const) {
    lie(`an operation id ${what}`, once, async (stage) => {
      answer(stage, { body: JSON.stringify({ status: 'assigning', operationId }) })
      await expectDpsError(stage.register(), 'REPLY_MALFORMED', 'parse')
      expect(stage.requests).toHaveLength(1)
    })
  }

  const outcomes: readonly (readonly [string, Record<string, unknown>, DpsErrorCode, boolean, number?])[] = [
    ['failed, 400207', { outcome: 'failed', errorCode: 400_207 }, 'ALLOCATION_FAILED', true, 400_207],
    ['failed, 400208', { outcome: 'failed', errorCode: 400_208 }, 'ALLOCATION_FAILED', false, 400_208],
    ['failed, 401002', { outcome: 'failed', errorCode: 401_002 }, 'UNAUTHORIZED', false, 401_002],
    ['failed, 503000', { outcome: 'failed', errorCode: 503_000 }, 'REGISTRATION_FAILED', true, 503_000],
    ['failed, 429001', { outcome: 'failed', errorCode: 429_001 }, 'REGISTRATION_FAILED', true, 429_001],
    ['disabled', { outcome: 'disabled' }, 'REGISTRATION_DISABLED', false],
    ['unassigned', { outcome: 'unassigned' }, 'REGISTRATION_FAILED', false],
  ]
  for (const [what, outcome, code, retryable, serviceErrorCode] of outcomes) {
    lie(`an operation that ends as ${what}`, {}, async (stage) => {
      stage.faults.add({ at: 'register', do: outcome as never })
      const error = await expectDpsError(stage.register(), code, 'poll')
      expect(error).toMatchObject({ retryable, serviceErrorCode })
      expect(error.message).toContain(`"${outcome.outcome}"`)
      // The operation is over: asking again would start another one, which is billed.
      expect(stage.requests).toHaveLength(2)
    })
  }

  lie('a status that nobody knows', answeredAtOnce, async (stage) => {
    answer(stage, { body: '{"status":"hibernating","operationId":"5.1"}' })
    const error = await expectDpsError(stage.register(), 'REGISTRATION_FAILED', 'register')
    expect(error.message).toContain('"hibernating"')
  })

  lie('assigning for ever', { lies: { assigning: { polls: 1e9, retryAfterSeconds: 3 } } }, async (stage) => {
    const error = await expectDpsError(stage.register(), 'DEADLINE_EXCEEDED', 'poll')
    expect(error.retryAfterMs).toBe(3000)
    // 3 s and the tenth of jitter that this clock draws, for as long as it fits into 120 s.
    expect(stage.clock.sleeps).toEqual(new Array(36).fill(3300))
    expect(stage.requests).toHaveLength(37)
  })
})

describe('a refusal', () => {
  const refusals: readonly (readonly [number, DpsErrorCode, boolean])[] = [
    [400, 'BAD_REQUEST', false],
    [401, 'UNAUTHORIZED', false],
    [403, 'FORBIDDEN', false],
    [404, 'NOT_FOUND', false],
    [409, 'REQUEST_REFUSED', false],
    [412, 'CONFLICT', true],
    [429, 'THROTTLED', true],
    [500, 'SERVICE_UNAVAILABLE', true],
    [503, 'SERVICE_UNAVAILABLE', true],
    [302, 'REQUEST_REFUSED', false],
    [418, 'REQUEST_REFUSED', false],
  ]
  for (const [status, code, retryable] of refusals) {
    for (const [at, phase] of [
      ['register', 'register'],
      ['poll', 'poll'],
    ] as const) {
      lie(`${status} in answer to ${at}`, once, async (stage) => {
        stage.faults.add({ at, do: { reply: { status } } })
        const error = await expectDpsError(stage.register(), code, phase)
        expect(error).toMatchObject({ retryable, serviceErrorCode: status * 1000 })
        expect(error.trackingId).toMatch(/^[0-9a-f-]{36}$/)
        expect(error.serverTime).toBeInstanceOf(Date)
      })
    }

    lie(`${status} whose body cannot be read`, once, async (stage) => {
      answer(stage, { status, body: '<html>' })
      const error = await expectDpsError(stage.register(), code, 'register')
      expect(error).toMatchObject({ retryable, serviceErrorCode: undefined, trackingId: undefined })
    })
  }

  for (const status of [100, 201, 204]) {
    lie(`the status ${status}`, answeredAtOnce, async (stage) => {
      answer(stage, { status, body: assigned() })
      const error = await expectDpsError(stage.register(), 'REPLY_MALFORMED', 'parse')
      expect(error.message).toContain(`${status}`)
    })
  }

  lie('401 from a service whose clock shows that ours is wrong', once, async (stage) => {
    const timestampUtc = new Date(stage.clock.now() + 7_200_000).toISOString()
    answer(stage, { status: 401, body: JSON.stringify({ errorCode: 401_002, timestampUtc }) })
    const error = await expectDpsError(stage.register(), 'UNAUTHORIZED', 'register')
    expect(error.hint).toContain('120 minutes behind')
  })

  lie('another registration of the device in flight, three times', {}, async (stage) => {
    stage.faults.add({
      at: 'register',
      do: { reply: { status: 409, errorCode: 409_203 } },
      times: 3,
    })
    await stage.register()
    expect(stage.requests).toHaveLength(5)
    expect(stage.clock.sleeps).toEqual([500, 1000, 2000, 2200])
    // The session is good: nothing was reconnected.
    expect(stage.emulator.log.connections).toHaveLength(1)
  })

  for (const [status, code] of [
    [429, 'THROTTLED'],
    [503, 'SERVICE_UNAVAILABLE'],
  ] as const) {
    for (const [at, phase] of [
      ['register', 'register'],
      ['poll', 'poll'],
    ] as const) {
      lie(`${status} for ever in answer to ${at}`, {}, async (stage) => {
        stage.faults.add({ at, do: { reply: { status, retryAfter: null } }, times: Number.POSITIVE_INFINITY })
        await expectDpsError(stage.register(), code, phase)
        const backOff = [500, 1000, 2000, 4000, 8000, 16_000, 30_000]
        expect(stage.clock.sleeps).toEqual(at === 'register' ? backOff : [2200, ...backOff])
        expect(
          stage.requests.filter((topic) => topic.includes(at === 'register' ? 'PUT' : 'GET')),
        ).toHaveLength(8)
        expect(stage.emulator.log.connections).toHaveLength(1)
      })
    }

    lie(`${status} that asks for 7 s is taken at its word`, {}, async (stage) => {
      stage.faults.add({ at: 'register', do: { reply: { status, retryAfter: '7' } }, times: 2 })
      await stage.register()
      expect(stage.clock.sleeps).toEqual([7500, 8000, 2200])
    })

    lie(`${status} that asks for more time than there is`, {}, async (stage) => {
      stage.faults.add({ at: 'register', do: { reply: { status, retryAfter: '1000000000' } } })
      const error = await expectDpsError(stage.register(), code, 'register')
      expect(error.retryAfterMs).toBe(86_400_000)
      expect(stage.clock.sleeps).toEqual([])
      expect(stage.requests).toHaveLength(1)
    })
  }
})

describe('a retry-after that makes no sense', () => {
  for (const text of ['soon', '-1', '', '1.5', '0x10', '1e9', 'NaN', '3;url=http://x', '９']) {
    lie(`"${text}" with 429 makes no tight loop`, {}, async (stage) => {
      stage.faults.add({
        at: 'register',
        do: { reply: { status: 429, retryAfter: text } },
        times: Number.POSITIVE_INFINITY,
      })
      const error = await expectDpsError(stage.register(), 'THROTTLED', 'register')
      expect(error.retryAfterMs).toBeUndefined()
      expect(stage.requests).toHaveLength(8)
      expect(stage.clock.monotonic()).toBe(61_500)
    })

    lie(`"${text}" with assigning makes no tight loop`, {}, async (stage) => {
      stage.faults.add({ at: 'register-reply', do: { reply: { retryAfter: text } } })
      await stage.register()
      expect(stage.clock.sleeps).toEqual([2200])
    })
  }

  lie(
    '0 with assigning makes no tight loop',
    { emulator: { assigning: { polls: 10, retryAfterSeconds: 0 } } },
    async (stage) => {
      await stage.register()
      expect(stage.clock.sleeps).toEqual(new Array(10).fill(2200))
    },
  )

  lie('a thousand million seconds with assigning', {}, async (stage) => {
    stage.faults.add({ at: 'register-reply', do: { reply: { retryAfter: '1000000000' } } })
    const error = await expectDpsError(stage.register(), 'DEADLINE_EXCEEDED', 'register')
    expect(error.retryAfterMs).toBe(86_400_000)
    expect(stage.clock.sleeps).toEqual([])
  })
})

describe('text from the network', () => {
  const hostile = '\u001b]0;owned\u0007\u001b[2J\u202eevil\u2028\u0000\r\nFake: line\u0085\u009b31m'
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
  const unprintable = /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/

  const replies: readonly (readonly [string, ReplyFault['reply'], DpsErrorCode, DpsPhase])[] = [
    ['the message of a refusal', { status: 400, message: hostile }, 'BAD_REQUEST', 'register'],
    [
      'a tracking id',
      { status: 400, body: JSON.stringify({ errorCode: 400_000, trackingId: hostile, message: 'x' }) },
      'BAD_REQUEST',
      'register',
    ],
    [
      'the message of a failure',
      {
        status: 200,
        body: JSON.stringify({ status: 'failed', registrationState: { errorMessage: hostile } }),
      },
      'REGISTRATION_FAILED',
      'register',
    ],
    [
      'a status',
      { status: 200, body: JSON.stringify({ status: hostile }) },
      'REGISTRATION_FAILED',
      'register',
    ],
    ['a hub', { status: 200, body: assigned({ assignedHub: hostile }) }, 'REPLY_MALFORMED', 'parse'],
    ['a device id', { status: 200, body: assigned({ deviceId: hostile }) }, 'REPLY_MALFORMED', 'parse'],
    [
      'a registration id',
      { status: 200, body: assigned({ registrationId: hostile }) },
      'REPLY_MALFORMED',
      'parse',
    ],
    [
      'an operation id',
      { status: 202, body: JSON.stringify({ status: 'assigning', operationId: hostile }) },
      'REPLY_MALFORMED',
      'parse',
    ],
    [
      'a topic',
      { topic: `$dps/registrations/res/2OO/?${hostile.replace('\u0000', '')}` },
      'REPLY_MALFORMED',
      'parse',
    ],
  ]
  for (const [what, scripted, code, phase] of replies) {
    lie(`${what} with control characters reaches no terminal`, once, async (stage) => {
      answer(stage, scripted)
      const error = await expectDpsError(stage.register(), code, phase)
      for (const text of [
        error.message,
        error.hint,
        error.trackingId ?? '',
        String(error),
        error.stack ?? '',
      ]) {
        expect(text.replaceAll('\n    at ', '')).not.toMatch(unprintable)
      }
      expect(error.message.length).toBeLessThan(400)
    })
  }

  lie('a message of 100 kB is cut', once, async (stage) => {
    answer(stage, { status: 400, message: 'x'.repeat(100_000) })
    const error = await expectDpsError(stage.register(), 'BAD_REQUEST', 'register')
    expect(error.message.length).toBeLessThan(400)
  })
})
