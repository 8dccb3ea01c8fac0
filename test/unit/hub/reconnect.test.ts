import { afterEach, describe, expect, it } from 'vitest'
import { x509 } from '../../../src/credential/x509.ts'
import type { TelemetryRecord } from '../../../src/emulator/index.ts'
import { testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { StepClock } from '../../support/step-clock.ts'
import { ASSIGNMENT, HUB, HubStage, ID, KEY } from './stage.ts'

let stage: HubStage
afterEach(() => stage?.close())

const bodies = (messages: readonly TelemetryRecord[]): string[] => messages.map(({ body }) => body.toString())

describe('a connection that breaks', () => {
  it.each(['drop', 'no-close-notify', 'reset'] as const)('by %s loses no telemetry', async (how) => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    // Recorded and not acknowledged, then not even recorded.
    stage.emulator.faults.add({ at: 'telemetry-ack', do: 'no-puback', times: 3 })
    const first = [1, 2, 3].map((count) => hub.sendTelemetry(`a${count}`))
    await stage.emulator.hub.telemetry.wait(({ body }) => body.toString() === 'a3')
    const again = stage.next('connected', 1)
    stage.emulator.hub.disconnect(ID, how)
    const second = [1, 2, 3].map((count) => hub.sendTelemetry(`b${count}`))
    await Promise.all([...first, ...second])
    await again
    expect(bodies(stage.emulator.hub.telemetry.list())).toEqual([
      'a1',
      'a2',
      'a3',
      'a1',
      'a2',
      'a3',
      'b1',
      'b2',
      'b3',
    ])
    expect(stage.of('disconnected')).toMatchObject([{ error: { code: 'CONNECTION_LOST', phase: 'hub' } }])
    expect(hub.queued).toBe(0)
  })

  it('before a message is recorded sends it over the next', async () => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'telemetry', do: 'reset' })
    const hub = await stage.connect()
    await hub.sendTelemetry('x')
    expect(stage.emulator.hub.telemetry.received).toBe(1)
  })

  it('comes back with its subscriptions, and an unacknowledged command comes again', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const got: [string, boolean][] = []
    let stuck = true
    hub.onCommand(async ({ body, redelivered }) => {
      got.push([Buffer.from(body).toString(), redelivered])
      if (stuck) {
        stuck = false
        stage.emulator.hub.disconnect(ID)
        throw new Error('power failed')
      }
    })
    hub.onMethod('ping', () => ({ status: 200 }))
    const sent = stage.emulator.hub.sendCommand(ID, 'open')
    expect(await sent.settled).toBe('acknowledged')
    expect(got).toEqual([
      ['open', false],
      ['open', true],
    ])
    expect(await stage.emulator.hub.invokeMethod(ID, 'ping')).toMatchObject({ status: 200 })
    expect(stage.of('connected').map(({ sessionPresent }) => sessionPresent)).toEqual([false, true])
    expect(stage.of('handler-failed')).toMatchObject([{ handler: 'command' }])
  })

  it('asks again what the hub had not answered about the twin', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const fault = stage.emulator.faults.add({ at: 'twin', do: 'drop' })
    const [twin, version] = await Promise.all([hub.twin.get(), hub.twin.report({ a: 1 })])
    expect(fault.hits).toBe(1)
    expect(twin.desired.version).toBe(1)
    expect(version).toBe(2)
  })

  it('shows desired properties that were missed, and none twice', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const changes: unknown[] = []
    hub.twin.onDesired(({ properties, complete }) => changes.push([properties, complete]))
    await expect.poll(() => changes).toEqual([[{}, true]])
    const gate = stage.emulator.faults.add({ at: 'hub-connect', do: 'reset', times: 2 })
    stage.emulator.hub.disconnect(ID)
    await gate.hit
    stage.emulator.hub.updateDesired(ID, { mode: 'eco' })
    await expect
      .poll(() => changes)
      .toEqual([
        [{}, true],
        [{ mode: 'eco' }, true],
      ])
    stage.emulator.hub.disconnect(ID)
    await stage.next('connected', 2)
    await hub.twin.get()
    expect(changes).toHaveLength(2)
  })

  it('shows the desired properties of a twin that was made anew, though it counts from a lower version', async () => {
    stage = await HubStage.open()
    for (let count = 0; count < 5; count += 1) stage.emulator.hub.updateDesired(ID, { count })
    const hub = await stage.connect()
    const changes: unknown[] = []
    hub.twin.onDesired(({ properties, version, complete }) => changes.push([properties, version, complete]))
    await expect.poll(() => changes).toEqual([[{ count: 4 }, 6, true]])
    stage.emulator.hub.removeDevice(ID)
    stage.emulator.hub.addDevice({ deviceId: ID, authentication: { symmetricKey: { primaryKey: KEY } } })
    await expect.poll(() => changes.slice(1)).toEqual([[{}, 1, true]])
    stage.emulator.hub.updateDesired(ID, { fresh: true })
    await expect.poll(() => changes.slice(2)).toEqual([[{ fresh: true }, 2, false]])
  })

  it('shows the whole before any change, though the hub would not tell it at first', async () => {
    stage = await HubStage.open()
    stage.emulator.hub.updateDesired(ID, { a: 1, b: 1 })
    const unread = stage.emulator.faults.add({ at: 'twin-reply', do: { reply: { status: 429 } }, times: 3 })
    const hub = await stage.connect({
      onEvent: (event) => {
        if (event.type === 'warning') {
          stage.events.push(event)
          stage.emulator.hub.updateDesired(ID, { b: stage.events.length })
        }
      },
    })
    const changes: unknown[] = []
    hub.twin.onDesired(({ properties, version, complete }) => changes.push([properties, version, complete]))
    await expect.poll(() => changes).toEqual([[{ a: 1, b: 3 }, 5, true]])
    expect(unread.hits).toBe(3)
    expect(stage.of('warning')).toHaveLength(3)
    stage.emulator.hub.updateDesired(ID, { b: 4 })
    await expect.poll(() => changes.slice(1)).toEqual([[{ b: 4 }, 6, false]])
  })

  it('reads the whole again where more changes came meanwhile than are kept', async () => {
    stage = await HubStage.open()
    const clock = testClock()
    const hub = await stage.connect({ clock, keepAliveSeconds: 1177 })
    await hub.twin.get()
    const unread = stage.emulator.faults.add({ at: 'twin-reply', do: 'silence' })
    const changes: unknown[] = []
    hub.twin.onDesired(({ properties, version, complete }) => changes.push([properties, version, complete]))
    await unread.hit
    for (let count = 0; count < 100; count += 1) stage.emulator.hub.updateDesired(ID, { count })
    // This answer comes after all of them.
    await hub.twin.get()
    clock.advance(30_000)
    await expect.poll(() => changes).toEqual([[{ count: 99 }, 101, true]])
    stage.emulator.hub.updateDesired(ID, { count: null })
    await expect.poll(() => changes.slice(1)).toEqual([[{ count: null }, 102, false]])
  })

  it('because another one evicted it, waits longer each time', async () => {
    stage = await HubStage.open()
    const clock = testClock()
    await stage.connect({ clock, retry: {} })
    for (let turn = 0; turn < 6; turn += 1) {
      const failed = stage.next('reconnecting', turn)
      stage.emulator.hub.disconnect(ID)
      await failed
      await stage.next('connected', turn + 1)
    }
    // Half of 1, 2, 4 … s with the middle of the chance.
    expect(clock.sleeps).toEqual([500, 1000, 2000, 4000, 8000, 16_000])
  })

  it('after a minute that worked begins with the shortest wait again', async () => {
    stage = await HubStage.open()
    const clock = testClock()
    await stage.connect({ clock, retry: {}, keepAliveSeconds: 1177 })
    for (let turn = 0; turn < 3; turn += 1) {
      clock.advance(61_000)
      const back = stage.next('connected', turn + 1)
      stage.emulator.hub.disconnect(ID)
      await back
    }
    expect(clock.sleeps).toEqual([500, 500, 500])
  })
})

describe('a hub that does not answer', () => {
  it('a subscription over a new connection is left, and that connection with it', async () => {
    stage = await HubStage.open()
    // For the renewal, for the first attempt, for the next.
    const chances = [0, 0, 1]
    const clock = Object.assign(new StepClock(), { random: () => chances.shift() ?? 0 })
    const hub = await stage.connect({
      clock,
      keepAliveSeconds: 1177,
      retry: { baseDelayMs: 600_000, maxDelayMs: 600_000 },
    })
    await hub.twin.get()
    const { hit } = stage.emulator.faults.add({ at: 'hub-subscribe', do: 'silence' })
    const failed = stage.next('reconnecting', 1)
    stage.emulator.hub.disconnect(ID)
    await hit
    clock.advance(15_000)
    expect(await failed).toMatchObject({ delayMs: 600_000, error: { code: 'TIMEOUT', phase: 'subscribe' } })
    await expect.poll(() => stage.emulator.openConnections).toBe(0)
    expect(hub.state).toBe('waiting')
  })

  it('a ping is left, and another connection is opened', async () => {
    stage = await HubStage.open()
    const clock = testClock()
    await stage.connect({ clock, keepAliveSeconds: 180, tokenLifetimeSeconds: 86_400 })
    const fault = stage.emulator.faults.add({ at: 'ping', do: 'silence' })
    clock.advance(90_000)
    clock.advance(90_000)
    await fault.hit
    const back = stage.next('connected', 1)
    clock.advance(90_000)
    await back
    expect(stage.of('disconnected')).toMatchObject([{ error: { code: 'TIMEOUT', phase: 'hub' } }])
  })

  it('is pinged once in every keep-alive, and stays', async () => {
    stage = await HubStage.open()
    const clock = testClock()
    const hub = await stage.connect({ clock, keepAliveSeconds: 180, tokenLifetimeSeconds: 86_400 })
    const pongs = () => stage.emulator.log.packets.filter(({ type }) => type === 'pingresp').length
    for (let turn = 1; turn <= 3; turn += 1) {
      clock.advance(90_000)
      clock.advance(90_000)
      await expect.poll(pongs).toBe(turn)
      // This answer comes after the pong.
      await hub.twin.get()
    }
    expect(stage.of('disconnected')).toEqual([])
  })

  it('for two minutes what it owes an acknowledgement for is sent anew over another connection', async () => {
    stage = await HubStage.open()
    const clock = testClock()
    const hub = await stage.connect({ clock, keepAliveSeconds: 1177 })
    stage.emulator.faults.add({ at: 'telemetry-ack', do: 'no-puback' })
    const sent = hub.sendTelemetry('x')
    await stage.emulator.hub.telemetry.wait()
    clock.advance(120_000)
    await sent
    expect(stage.of('disconnected')).toMatchObject([{ error: { code: 'TIMEOUT', phase: 'hub' } }])
    expect(stage.emulator.hub.telemetry.received).toBe(2)
  })

  it('about the twin in time is a TIMEOUT of that request, and the connection stays', async () => {
    stage = await HubStage.open()
    const { hit } = stage.emulator.faults.add({ at: 'twin-reply', do: 'silence' })
    const clock = testClock()
    const hub = await stage.connect({ clock, keepAliveSeconds: 1177 })
    const unanswered = hub.twin.get()
    await hit
    clock.advance(30_000)
    await expectDpsError(unanswered, 'TIMEOUT', 'hub')
    expect((await hub.twin.get()).desired.version).toBe(1)
    expect(stage.of('disconnected')).toEqual([])
  })
})

describe('a token', () => {
  it.each([
    ['no earlier than at 70 %', 0, 420_000],
    ['by chance', 0.25, 435_000],
    ['no later than at 80 %', 1 - Number.EPSILON, 480_000],
  ])('is renewed %s of its life', async (_, chance, dueMs) => {
    stage = await HubStage.open()
    const clock = testClock({ random: () => chance })
    await stage.connect({ clock, tokenLifetimeSeconds: 600, keepAliveSeconds: 1177 })
    clock.advance(dueMs - 1)
    expect(stage.of('renewing')).toEqual([])
    const back = stage.next('connected', 1)
    clock.advance(1)
    expect(stage.of('renewing')).toHaveLength(1)
    await back
  })

  it('is renewed by another connection, with no message lost', async () => {
    stage = await HubStage.open()
    const clock = testClock({ random: () => 1 - Number.EPSILON })
    const hub = await stage.connect({ clock, tokenLifetimeSeconds: 600, keepAliveSeconds: 1177 })
    clock.advance(479_000)
    expect(stage.of('renewing')).toEqual([])
    stage.emulator.faults.add({ at: 'telemetry-ack', do: 'no-puback' })
    const sent = hub.sendTelemetry('late')
    await stage.emulator.hub.telemetry.wait()
    clock.advance(1000)
    expect(stage.of('renewing')).toHaveLength(1)
    const back = stage.next('connected', 1)
    // The hub owes an acknowledgement, which is waited for a while.
    clock.advance(10_000)
    await back
    await sent
    expect(stage.of('disconnected')).toEqual([])
    expect(clock.sleeps).toEqual([])
    expect(stage.emulator.hub.telemetry.received).toBe(2)
    const passwords = stage.emulator.log.packets.filter(({ type }) => type === 'connect')
    expect(passwords).toHaveLength(2)
  })

  it('that the hub lets expire is replaced after the fact', async () => {
    stage = await HubStage.open()
    await stage.connect()
    const back = stage.next('connected', 1)
    stage.emulator.hub.disconnect(ID)
    await back
  })

  it('there is none with X.509, and nothing is renewed', async () => {
    stage = await HubStage.open()
    const device = await stage.emulator.issueDeviceCertificate({ registrationId: 'x' })
    stage.emulator.hub.addDevice({ deviceId: 'x', authentication: { x509: { certificate: device.cert } } })
    const clock = testClock()
    await stage.connect(
      { clock, credential: x509(device), keepAliveSeconds: 1177, tokenLifetimeSeconds: 60 },
      { assignedHub: HUB, deviceId: 'x' },
    )
    clock.advance(500_000)
    expect(stage.of('renewing')).toEqual([])
  })
})

describe('the queue', () => {
  it('refuses what is new when it is full, by number and by bytes, and keeps the rest', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect({
      queue: { maxMessages: 3, maxBytes: 1000 },
      retry: { baseDelayMs: 300, maxDelayMs: 300 },
    })
    const gone = stage.next('disconnected')
    stage.emulator.hub.disconnect(ID)
    await gone
    await expectDpsError(hub.sendTelemetry('x'.repeat(1000)), 'QUEUE_FULL', 'hub')
    const kept = [1, 2, 3].map((count) => hub.sendTelemetry(String(count)))
    await expectDpsError(hub.sendTelemetry('4'), 'QUEUE_FULL', 'hub')
    expect(hub.queued).toBe(3)
    await Promise.all(kept)
    expect(bodies(stage.emulator.hub.telemetry.list())).toEqual(['1', '2', '3'])
    await hub.sendTelemetry('4')
  })

  it('lets go of a message that is cancelled, in the queue or on its way', async () => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'telemetry-ack', do: 'no-puback' })
    const hub = await stage.connect()
    const abort = new AbortController()
    const onItsWay = hub.sendTelemetry('1', { signal: abort.signal })
    await stage.emulator.hub.telemetry.wait()
    abort.abort()
    await expectDpsError(onItsWay, 'CANCELLED', 'hub')
    await expectDpsError(hub.sendTelemetry('2', { signal: abort.signal }), 'CANCELLED', 'hub')
    expect(hub.queued).toBe(0)
    await hub.sendTelemetry('3')
    expect(bodies(stage.emulator.hub.telemetry.list())).toEqual(['1', '3'])
  })
})

describe('the first connection', () => {
  it.each([
    [1, 'PROTOCOL_REFUSED'],
    [2, 'UNAUTHORIZED'],
    [4, 'UNAUTHORIZED'],
    [5, 'UNAUTHORIZED'],
    [6, 'PROTOCOL_VIOLATION'],
    [255, 'PROTOCOL_VIOLATION'],
  ] as const)('refused with CONNACK %i is %s', async (refuse, code) => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'hub-connect', do: { refuse }, times: 20 })
    await expectDpsError(stage.connect({ retry: { maxAttempts: 2, baseDelayMs: 1 } }), code, 'connect')
    await expect.poll(() => stage.emulator.openConnections).toBe(0)
  })

  it('refused for a while with CONNACK 3 is tried again', async () => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 3 }, times: 2 })
    await stage.connect()
    expect(stage.of('reconnecting')).toMatchObject([
      { failures: 1, error: { code: 'SERVICE_UNAVAILABLE' } },
      { failures: 2, error: { code: 'SERVICE_UNAVAILABLE' } },
    ])
  })

  it('gives up after its attempts, its time or a cancel', async () => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'hub-connect', do: 'drop', times: Number.POSITIVE_INFINITY })
    const error = await expectDpsError(
      stage.connect({ retry: { maxAttempts: 3, baseDelayMs: 1 } }),
      'CONNECTION_LOST',
      'connect',
    )
    expect(error.retryable).toBe(true)
    expect(stage.of('reconnecting')).toHaveLength(2)
    const late = await expectDpsError(
      stage.connect({ clock: testClock(), timeouts: { totalMs: 20_000 }, retry: { baseDelayMs: 60_000 } }),
      'DEADLINE_EXCEEDED',
      'connect',
    )
    expect(late.cause).toMatchObject({ code: 'CONNECTION_LOST' })
    const abort = new AbortController()
    const cancelled = stage.connect({ signal: abort.signal, retry: { baseDelayMs: 60_000 } })
    abort.abort()
    await expectDpsError(cancelled, 'CANCELLED', 'config')
    await expect.poll(() => stage.emulator.openConnections).toBe(0)
  })

  it('falls back to port 443 where only the network is in the way, and stays with what got through', async () => {
    stage = await HubStage.open()
    const { port } = stage.emulator
    const hub = await stage.connect({ transport: ['mqtt', 'mqtt-ws'], port: { mqtt: 1, 'mqtt-ws': port } })
    expect(hub.connection.transport).toBe('mqtt-ws')
    const back = stage.next('connected', 1)
    stage.emulator.hub.disconnect(ID)
    await back
    expect(stage.of('fallback')).toMatchObject([
      { from: 'mqtt', to: 'mqtt-ws', error: { code: 'CONNECTION_REFUSED' } },
    ])
  })

  it('goes to a gateway that stands before the hub, and names the hub all the same', async () => {
    stage = await HubStage.open({ gateways: ['edge.factory.example'] })
    const hub = await stage.connect({ gatewayHostName: 'edge.factory.example' })
    await hub.sendTelemetry('x')
    const [connection] = stage.emulator.log.connections
    expect(connection?.handshake?.serverName).toBe('edge.factory.example')
    expect(stage.emulator.log.packets[0]?.userName).toMatch(new RegExp(`^${HUB}/${ID}/`))
  })

  it('of a module is that module’s', async () => {
    stage = await HubStage.open()
    stage.emulator.hub.addDevice({
      deviceId: ID,
      moduleId: 'camera',
      authentication: { symmetricKey: { primaryKey: KEY } },
    })
    const hub = await stage.connect({ moduleId: 'camera' })
    await hub.sendTelemetry('x', { properties: { a: '1' } })
    expect(stage.emulator.hub.telemetry.list()).toMatchObject([{ deviceId: ID, moduleId: 'camera' }])
    expect(() => hub.onCommand(() => undefined)).toThrow(expect.objectContaining({ code: 'OPTION_INVALID' }))
    hub.onMethod('zoom', () => ({ status: 200 }))
    await expect
      .poll(() => stage.emulator.hub.invokeMethod({ deviceId: ID, moduleId: 'camera' }, 'zoom').catch(String))
      .toMatchObject({ status: 200 })
  })

  it('to a hub that speaks MQTT 5 is refused before any packet', async () => {
    stage = await HubStage.open()
    const mqttV5 = { ...ASSIGNMENT, connectionProfile: 'mqttV5' }
    await expectDpsError(stage.connect({}, mqttV5), 'HUB_PROFILE_UNSUPPORTED', 'config')
    expect(stage.emulator.log.connections).toEqual([])
  })

  it('has the TLS session of the one before, and of no other device', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    expect(hub.connection.resumed).toBe(false)
    await hub.sendTelemetry('x')
    const back = stage.next('connected', 1)
    stage.emulator.hub.disconnect(ID)
    expect((await back).connection.resumed).toBe(true)
  })

  it.each([
    ['an option that is none', { reconnect: true }],
    ['HTTPS, which hubs do not offer devices', { transport: 'https' }],
    ['a queue without room', { queue: { maxMessages: 0 } }],
    ['a queue with an unknown limit', { queue: { size: 1 } }],
    ['a keep-alive that a hub does not take', { keepAliveSeconds: 1178 }],
    ['a signal that is none', { signal: {} }],
    ['a handler of events that is none', { onEvent: 'log' }],
    ['no credential', { credential: undefined }],
    ['an id scope', { idScope: '0ne' }],
    ['a proxy and a connect function', { proxy: 'http://p', connect: () => undefined }],
  ])('is not tried with %s', async (_, more) => {
    stage = await HubStage.open()
    await expectDpsError(stage.connect(more as never), 'OPTION_INVALID', 'config')
    expect(stage.emulator.log.connections).toEqual([])
  })
})
