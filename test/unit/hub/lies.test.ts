import { once } from 'node:events'
import { createConnection } from 'node:net'
import { Duplex } from 'node:stream'
import fc from 'fast-check'
import { generate } from 'mqtt-packet'
import { afterEach, describe, expect, it } from 'vitest'
import type { FaultSpec } from '../../../src/emulator/index.ts'
import type { ConnectTarget } from '../../../src/options/options.ts'
import { testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { HubStage, ID } from './stage.ts'

// Everything a hub sends is hostile until it is checked.

let stage: HubStage
const unhandled: unknown[] = []
process.on('unhandledRejection', (reason) => unhandled.push(reason))
afterEach(async () => {
  await stage?.close()
  expect(unhandled.splice(0)).toEqual([])
})

const publish = (topic: string, payload: string | Buffer = '', extra: object = {}) =>
  generate({ cmd: 'publish', topic, payload, qos: 0, dup: false, retain: false, ...extra } as never)
const ignored = (): string[] => stage.of('message-ignored').map(({ message }) => message)

describe('in place of PUBACK', () => {
  it.each([
    ['a packet of nothing', Buffer.from([0, 0])],
    ['CONNACK once more', Buffer.from([0x20, 2, 0, 0])],
    ['SUBACK to nothing asked', Buffer.from([0x90, 3, 0, 1, 0])],
    ['SUBACK to the message', Buffer.from([0x90, 3, 0, 1, 1])],
    ['UNSUBACK to the message', Buffer.from([0xb0, 2, 0, 1])],
    ['PUBACK without an identifier', Buffer.from([0x40, 0])],
    ['a message at QoS 2', publish('x', '', { qos: 2, messageId: 1 })],
    ['a message with a topic that is no UTF-8', Buffer.from([0x30, 4, 0, 2, 0xff, 0xfe])],
    ['a message with an identifier of zero', Buffer.from([0x32, 5, 0, 1, 0x78, 0, 0])],
    ['a message that claims 256 MB', Buffer.from([0x30, 0xff, 0xff, 0xff, 0x7f])],
    ['text', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
  ])('%s ends the connection or is passed over, and the message is sent anew', async (_, raw) => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'telemetry-ack', do: ['no-puback', { raw }] })
    const hub = await stage.connect()
    const sent = hub.sendTelemetry('x')
    await stage.emulator.hub.telemetry.wait()
    // Where the connection lives on, that message is one that the hub owes an acknowledgement for.
    const alive = hub.twin.get()
    await alive
    stage.emulator.hub.disconnect(ID)
    await sent
    for (const { error } of stage.of('disconnected')) {
      expect(error.code).toMatch(/^(PROTOCOL_VIOLATION|REPLY_TOO_LARGE|CONNECTION_LOST)$/)
    }
  })
})

describe('in place of CONNACK', () => {
  it.each([
    ['a message', publish('devices/x/messages/devicebound/', 'x')],
    ['SUBACK', Buffer.from([0x90, 3, 0, 1, 0])],
    ['CONNACK with a return code that is reserved', Buffer.from([0x20, 2, 0, 99])],
    ['CONNACK of three bytes', Buffer.from([0x20, 3, 0, 0, 0])],
    ['a reason string of MQTT 5', Buffer.from([0x20, 8, 0, 0x85, 5, 31, 0, 2, 0x68, 0x69])],
    ['garbage', Buffer.from('SSH-2.0-OpenSSH\r\n')],
  ])('%s is a protocol violation', async (_, raw) => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'hub-connect', do: { raw }, times: Number.POSITIVE_INFINITY })
    await expectDpsError(stage.connect({ retry: { maxAttempts: 1 } }), 'PROTOCOL_VIOLATION', 'connect')
    await expect.poll(() => stage.emulator.openConnections).toBe(0)
  })

  it('silence is a TIMEOUT', async () => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'hub-connect', do: 'silence' })
    const options = { retry: { maxAttempts: 1 }, timeouts: { connectMs: 50 } }
    await expectDpsError(stage.connect(options), 'TIMEOUT', 'connect')
  })

  it('a session that was not asked for is a protocol violation', async () => {
    stage = await HubStage.open()
    const raw = Buffer.from([0x20, 2, 1, 0])
    stage.emulator.faults.add({ at: 'hub-connect', do: { raw } })
    const options = { cleanSession: true, retry: { maxAttempts: 1 } }
    await expectDpsError(stage.connect(options), 'PROTOCOL_VIOLATION', 'connect')
  })
})

describe('in place of SUBACK', () => {
  it('a refusal of the twin is told to who asks for it, and the connection stays', async () => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'hub-subscribe', do: 'refuse' })
    const hub = await stage.connect()
    await expectDpsError(hub.twin.get(), 'SUBSCRIPTION_REFUSED', 'subscribe')
    await expectDpsError(hub.twin.report({}), 'SUBSCRIPTION_REFUSED', 'subscribe')
    expect(stage.of('subscription-refused')).toMatchObject([{ filter: '$iothub/twin/res/#' }])
    await hub.sendTelemetry('x')
    const back = stage.next('connected', 1)
    stage.emulator.hub.disconnect(ID)
    await back
    expect((await hub.twin.get()).desired.version).toBe(1)
  })

  it.each([
    ['silence', 'silence'],
    ['an answer to something else', { raw: Buffer.from([0x90, 4, 0, 0, 0, 0]) }],
  ] as const)('%s ends the connection, and what was asked waits for the next', async (_, action) => {
    stage = await HubStage.open()
    const { hit } = stage.emulator.faults.add({ at: 'hub-subscribe', do: action })
    const clock = testClock()
    const hub = await stage.connect({ clock, keepAliveSeconds: 1177 })
    const asked = hub.twin.get()
    await hit
    // Acknowledged after what came in place of SUBACK.
    if (action !== 'silence') await hub.sendTelemetry('x')
    clock.advance(15_000)
    expect((await asked).desired.version).toBe(1)
    expect(stage.of('disconnected')).toMatchObject([{ error: { phase: 'subscribe', code: 'TIMEOUT' } }])
  })
})

describe('about the twin', () => {
  const answered = async (reply: object) => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'twin-reply', do: { reply } } as FaultSpec)
    return stage.connect()
  }

  it.each([
    ['no JSON', { body: '{' }],
    ['no UTF-8', { body: Buffer.from([0x22, 0xff, 0x22]) }],
    ['a list', { body: '[]' }],
    ['null', { body: 'null' }],
    ['one side alone', { body: '{"desired":{"$version":1}}' }],
    ['sides that are text', { body: '{"desired":"x","reported":"y"}' }],
    ['a version that is text', { body: '{"desired":{"$version":"1"},"reported":{"$version":1}}' }],
    ['a version beyond all numbers', { body: '{"desired":{"$version":1e300},"reported":{"$version":1}}' }],
    ['nothing', { body: '' }],
  ])('%s is REPLY_MALFORMED', async (_, reply) => {
    const hub = await answered(reply)
    await expectDpsError(hub.twin.get(), 'REPLY_MALFORMED', 'hub')
    expect((await hub.twin.get()).desired.version).toBe(1)
  })

  it.each([
    [400, 'BAD_REQUEST'],
    [404, 'NOT_FOUND'],
    [412, 'CONFLICT'],
    [413, 'BAD_REQUEST'],
    [429, 'THROTTLED'],
    [500, 'SERVICE_UNAVAILABLE'],
    [302, 'REQUEST_REFUSED'],
    [999, 'SERVICE_UNAVAILABLE'],
  ] as const)('status %i is %s', async (status, code) => {
    const body = '{"errorCode":400013,"trackingId":"t-1","message":"no\\u001b[31m"}'
    const hub = await answered({ status, body })
    const error = await expectDpsError(hub.twin.report({ a: 1 }), code, 'hub')
    expect(error).toMatchObject({ serviceErrorCode: 400_013, trackingId: 't-1' })
    // biome-ignore lint/suspicious/noControlCharactersInRegex: that none is in it is the point
    expect(error.message).not.toMatch(/[\u0000-\u001f]/)
  })

  it.each([
    '$iothub/twin/res/',
    '$iothub/twin/res/200',
    '$iothub/twin/res/200/?$rid=',
    '$iothub/twin/res/20x/?$rid=1',
    '$iothub/twin/res/200/?$rid=1&$rid=2',
  ])('an answer on %s is passed over', async (topic) => {
    const hub = await answered({ topic })
    const waiting = hub.twin.get()
    await stage.next('message-ignored', 0)
    await Promise.all([stage.close(), expectDpsError(waiting, 'HUB_CLOSED', 'hub')])
  })

  it('an answer to nobody, or a second one, is passed over', async () => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'twin-reply', do: 'duplicate' })
    const { hit } = stage.emulator.faults.add({ at: 'twin-reply', do: 'wrong-rid' })
    const clock = testClock()
    const hub = await stage.connect({ clock, keepAliveSeconds: 1177 })
    await hub.twin.get()
    const unanswered = hub.twin.get()
    await hit
    // This answer comes after the one to nobody.
    expect((await hub.twin.get()).desired.version).toBe(1)
    clock.advance(30_000)
    await expectDpsError(unanswered, 'TIMEOUT', 'hub')
    expect(stage.of('disconnected')).toEqual([])
  })

  it('a document of 300 KB is more than a hub sends', async () => {
    const hub = await answered({ body: JSON.stringify({ x: 'y'.repeat(400_000) }) })
    expect((await hub.twin.get()).desired.version).toBe(1)
    expect(stage.of('disconnected')).toMatchObject([{ error: { code: 'REPLY_TOO_LARGE', phase: 'hub' } }])
  })

  it('a document that would poison a merge does not', async () => {
    const side = '{"$version":1,"__proto__":{"polluted":1},"a":{"\\u005f_proto__":{"polluted":1}}}'
    const hub = await answered({ body: `{"desired":${side},"reported":${side}}` })
    const { desired } = await hub.twin.get()
    expect(Object.getOwnPropertyNames(desired.properties)).toEqual(['a'])
    expect(Object.getOwnPropertyNames(desired.properties.a)).toEqual([])
    expect(Object.isFrozen(desired.properties.a)).toBe(true)
  })

  it.each([
    ['no JSON', '$iothub/twin/PATCH/properties/desired/?$version=9', '{'],
    ['no object', '$iothub/twin/PATCH/properties/desired/?$version=9', '[1]'],
    ['no version', '$iothub/twin/PATCH/properties/desired/?$version=9', '{"a":1}'],
    ['no query', '$iothub/twin/PATCH/properties/desired/', '{"a":1,"$version":9}'],
  ])('a change of %s is passed over', async (_, topic, body) => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const changes: number[] = []
    hub.twin.onDesired(({ version }) => changes.push(version))
    await expect.poll(() => changes).toEqual([1])
    stage.emulator.hub.publish(ID, topic, body)
    await stage.next('message-ignored', 0)
    stage.emulator.hub.updateDesired(ID, { a: 1 })
    await expect.poll(() => changes).toEqual([1, 2])
  })

  it('a flood of changes is not kept: the whole is read instead', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const seen: [number, boolean][] = []
    let release: (() => void) | undefined
    hub.twin.onDesired(async ({ version, complete }) => {
      seen.push([version, complete])
      if (seen.length === 1) {
        await new Promise<void>((resolve) => {
          release = resolve
        })
      }
    })
    await expect.poll(() => seen).toHaveLength(1)
    for (let count = 0; count < 300; count += 1) stage.emulator.hub.updateDesired(ID, { count })
    await hub.twin.get()
    release!()
    await expect.poll(() => seen.at(-1)).toEqual([301, true])
    expect(seen.length).toBeLessThan(100)
  })
})

describe('calls and commands', () => {
  it.each([
    '$iothub/methods/POST/',
    '$iothub/methods/POST/reboot',
    '$iothub/methods/POST/reboot/?rid=1',
    '$iothub/methods/POST/reboot/?$rid=a/b',
    '$iothub/methods/POST/%ff/?$rid=1',
  ])('a call on %s is passed over', async (topic) => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    hub.onMethod('reboot', () => ({ status: 200 }))
    await hub.twin.get()
    stage.emulator.hub.publish(ID, topic, '{}')
    await stage.next('message-ignored', 0)
    expect(stage.of('disconnected')).toEqual([])
  })

  it('a payload that is no JSON is answered with 400, and the handler hears nothing of it', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    let called = 0
    hub.onMethod('reboot', () => {
      called += 1
      return { status: 200 }
    })
    await hub.twin.get()
    stage.emulator.hub.publish(ID, '$iothub/methods/POST/reboot/?$rid=7', '{')
    await expect
      .poll(() => stage.emulator.log.packets.map(({ topic }) => topic))
      .toContain('$iothub/methods/res/400/?$rid=7')
    expect(called).toBe(0)
  })

  it.each([
    [
      'throws',
      () => {
        throw new Error('no')
      },
    ],
    [
      'rejects',
      async () => {
        throw new Error('no')
      },
    ],
    ['returns nothing', () => undefined],
    ['returns a status that is none', () => ({ status: 'ok' })],
    ['returns what no JSON can hold', () => ({ status: 200, payload: 1n })],
    ['returns a function', () => ({ status: 200, payload: () => 1 })],
    ['returns more than 128 KB', () => ({ status: 200, payload: 'x'.repeat(140_000) })],
  ])('a handler of methods that %s is answered with 500 and reported', async (_, handler) => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    hub.onMethod('reboot', handler as never)
    await hub.twin.get()
    expect(await stage.emulator.hub.invokeMethod(ID, 'reboot')).toEqual({ status: 500, payload: null })
    expect(stage.of('handler-failed')).toMatchObject([{ handler: 'method', name: 'reboot' }])
  })

  it('more than 64 calls at a time are answered with 429', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    let release: (() => void) | undefined
    const gate = new Promise<void>((resolve) => {
      release = resolve
    })
    hub.onMethod('slow', async () => {
      await gate
      return { status: 200 }
    })
    await hub.twin.get()
    const calls = Array.from({ length: 70 }, () => stage.emulator.hub.invokeMethod(ID, 'slow'))
    const refused = await Promise.all(calls.slice(64))
    expect(refused.map(({ status }) => status)).toEqual(Array(6).fill(429))
    release!()
    expect((await Promise.all(calls.slice(0, 64))).every(({ status }) => status === 200)).toBe(true)
  })

  it('a flood of calls whose answers are not read ends the connection', async () => {
    stage = await HubStage.open()
    let stalled: Duplex | undefined
    let latest: Duplex | undefined
    const connect = async ({ host, port }: ConnectTarget): Promise<Duplex> => {
      const socket = createConnection({ host, port })
      await once(socket, 'connect')
      const through = new Duplex({
        read: () => undefined,
        write: (chunk, _encoding, done) => {
          if (through !== stalled) socket.write(chunk, done)
        },
        destroy: (error, done) => {
          socket.destroy()
          done(error)
        },
      })
      socket.on('data', (chunk) => through.push(chunk))
      socket.on('close', () => through.destroy())
      latest = through
      return through
    }
    const hub = await stage.connect({ connect })
    hub.onMethod('reboot', () => ({ status: 200 }))
    await hub.twin.get()
    const ended = stage.next('disconnected', 0)
    const back = stage.next('connected', 1)
    // Read on and on, written no more.
    stalled = latest
    let calls = 0
    for (; calls < 20_000 && stage.of('disconnected').length === 0; calls += 1) {
      stage.emulator.hub.publish(ID, `$iothub/methods/POST/none/?$rid=${calls}`, '')
      if (calls % 100 === 0) await new Promise(setImmediate)
    }
    expect((await ended).error).toMatchObject({
      code: 'CONNECTION_LOST',
      message: expect.stringMatching(/does not read them/),
    })
    await back
    await hub.sendTelemetry('x')
  })

  it('more answers than that, each of them read, do not', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const payload = 'x'.repeat(130_000)
    hub.onMethod('dump', () => ({ status: 200, payload }))
    await hub.twin.get()
    for (let turn = 0; turn < 3; turn += 1) {
      const calls = Array.from({ length: 64 }, () => stage.emulator.hub.invokeMethod(ID, 'dump'))
      for (const answer of await Promise.all(calls)) expect(answer).toEqual({ status: 200, payload })
    }
    expect(stage.of('disconnected')).toEqual([])
  })

  it('a command that nobody handles is held, not acknowledged, and not without limit', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const remove = hub.onCommand(() => undefined)
    await hub.twin.get()
    remove()
    const topic = `devices/${ID}/messages/devicebound/a=1`
    for (let count = 0; count < 70; count += 1)
      stage.emulator.hub.publish(ID, topic, String(count), { qos: 1 })
    await hub.twin.get()
    expect(ignored()).toHaveLength(6)
    expect(
      stage.emulator.log.packets.filter(({ type, direction }) => type === 'puback' && direction === 'in'),
    ).toEqual([])
    const got: number[] = []
    hub.onCommand(({ body }) => got.push(Number(Buffer.from(body).toString())))
    await expect.poll(() => got).toEqual(Array.from({ length: 64 }, (_, index) => index))
  })

  it('a command with a bag that cannot be read, or on a foreign topic, is passed over', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const got: string[] = []
    hub.onCommand(({ body }) => got.push(Buffer.from(body).toString()))
    await hub.twin.get()
    stage.emulator.hub.publish(ID, `devices/${ID}/messages/devicebound/a=%ff`, '1', { qos: 1 })
    stage.emulator.hub.publish(ID, 'devices/other/messages/devicebound/', '2', { qos: 1 })
    stage.emulator.hub.publish(ID, 'factory/line-1', '3', { qos: 1 })
    stage.emulator.hub.publish(ID, `devices/${ID}/messages/devicebound/`, '4', { qos: 1 })
    await expect.poll(() => got).toEqual(['4'])
    expect(ignored()).toHaveLength(3)
    expect(stage.of('disconnected')).toEqual([])
  })
})

describe('what the application does wrongly', () => {
  it.each([
    ['a body of more than 256 KB', (hub) => hub.sendTelemetry(Buffer.alloc(262_145))],
    ['a body that is a number', (hub) => hub.sendTelemetry(5 as never)],
    ['a body that JSON cannot hold', (hub) => hub.sendTelemetry(Object.assign(() => 1) as never)],
    ['a property of the hub', (hub) => hub.sendTelemetry('', { properties: { '$.mid': '1' } })],
    ['a property that is a number', (hub) => hub.sendTelemetry('', { properties: { a: 1 as never } })],
    ['a signal that is none', (hub) => hub.sendTelemetry('', { signal: {} as never })],
    ['a patch that is a list', (hub) => hub.twin.report([] as never)],
    ['a method without a name', async (hub) => hub.onMethod('', () => ({ status: 200 }))],
    [
      'a second handler of a method',
      async (hub) => {
        hub.onMethod('a', () => ({ status: 200 }))
        hub.onMethod('a', () => ({ status: 200 }))
      },
    ],
    [
      'a second handler of commands',
      async (hub) => {
        hub.onCommand(() => undefined)
        hub.onCommand(() => undefined)
      },
    ],
    ['a handler that is none', async (hub) => hub.twin.onDesired('x' as never)],
  ] as [string, (hub: Awaited<ReturnType<HubStage['connect']>>) => Promise<unknown>][])(
    'is refused: %s',
    async (_, act) => {
      stage = await HubStage.open()
      await expectDpsError(act(await stage.connect()), 'OPTION_INVALID', 'config')
    },
  )

  it('a handler of events that throws decides nothing', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect({
      onEvent: () => {
        throw new Error('logger down')
      },
    })
    await hub.sendTelemetry('x')
  })
})

describe('any bytes at all', () => {
  it('end in one DpsError or in nothing, and the next connection works', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    hub.onCommand(() => undefined)
    hub.onMethod('a', () => ({ status: 200 }))
    hub.twin.onDesired(() => undefined)
    const topics = fc.constantFrom(
      `devices/${ID}/messages/devicebound/`,
      '$iothub/methods/POST/a/?$rid=1',
      '$iothub/twin/res/200/?$rid=1',
      '$iothub/twin/PATCH/properties/desired/?$version=2',
    )
    const raw = fc.oneof(
      fc.uint8Array({ minLength: 1, maxLength: 64 }),
      fc
        .tuple(topics, fc.string(), fc.uint8Array({ maxLength: 64 }))
        .map(([topic, tail, body]) => publish(topic + tail.replace(/[#+\0]/g, ''), Buffer.from(body))),
    )
    await fc.assert(
      fc.asyncProperty(raw, async (bytes) => {
        stage.emulator.faults.add({ at: 'telemetry-ack', do: { raw: bytes } })
        const done = hub.sendTelemetry('x').catch((error) => error)
        await stage.emulator.hub.telemetry.wait()
        stage.emulator.hub.telemetry.clear()
        stage.emulator.hub.disconnect(ID)
        expect(await done).toBeUndefined()
        stage.emulator.hub.telemetry.clear()
      }),
      { numRuns: Number(process.env.FUZZ_RUNS ?? 60) },
    )
  })
})
