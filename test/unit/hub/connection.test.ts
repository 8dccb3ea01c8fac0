import { afterEach, describe, expect, it } from 'vitest'
import { x509 } from '../../../src/credential/x509.ts'
import type { HubConnection } from '../../../src/hub/index.ts'
import { testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { HUB, HubStage, ID } from './stage.ts'

let stage: HubStage
afterEach(() => stage?.close())

const text = (body: Uint8Array): string => Buffer.from(body).toString()

describe.each(['mqtt', 'mqtt-ws'] as const)('over %s', (transport) => {
  it('telemetry arrives with its properties and resolves on PUBACK', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect({ transport })
    await hub.sendTelemetry(
      { t: 21.5 },
      { properties: { room: '3 östlich & mehr' }, messageId: 'm-1', correlationId: 'c 1' },
    )
    await hub.sendTelemetry('plain', { contentType: 'text/plain' })
    await hub.sendTelemetry(Uint8Array.of(0, 255))
    const [json, plain, bytes] = stage.emulator.hub.telemetry.list()
    expect(json).toMatchObject({
      hub: HUB,
      deviceId: ID,
      body: Buffer.from('{"t":21.5}'),
      contentType: 'application/json',
      contentEncoding: 'utf-8',
      messageId: 'm-1',
      correlationId: 'c 1',
      properties: { room: '3 östlich & mehr' },
      qos: 1,
    })
    expect(plain).toMatchObject({ contentType: 'text/plain', contentEncoding: undefined, properties: {} })
    expect(bytes!.body).toEqual(Buffer.of(0, 255))
    expect(hub).toMatchObject({ hub: HUB, deviceId: ID, state: 'connected', queued: 0 })
    expect(hub.connection).toMatchObject({ transport, protocol: 'TLSv1.2', root: 'Emulator Root 1' })
    expect(stage.of('connected')).toMatchObject([{ hub: HUB, sessionPresent: false }])
    expect(stage.seen.filter(({ type }) => type === 'violation' || type === 'refused')).toEqual([])
  })

  it('commands arrive one by one, those that waited for the device first, and are acknowledged when dealt with', async () => {
    stage = await HubStage.open()
    const early = stage.emulator.hub.sendCommand(ID, 'early', { messageId: '0' })
    const hub = await stage.connect({ transport })
    const got: string[] = []
    let release: (() => void) | undefined
    hub.onCommand(async ({ body, messageId, properties, redelivered }) => {
      got.push(`${text(body)} ${messageId} ${JSON.stringify(properties)} ${redelivered}`)
      await new Promise<void>((resolve) => {
        release = resolve
      })
    })
    const late = stage.emulator.hub.sendCommand(ID, 'late', {
      messageId: '1',
      properties: { valve: '3 & 4' },
    })
    await expect.poll(() => release).toBeDefined()
    expect(stage.emulator.hub.listDevices()[0]?.queuedCommands).toBe(2)
    expect(got).toHaveLength(1)
    release!()
    expect(await early.settled).toBe('acknowledged')
    await expect.poll(() => got.length).toBe(2)
    release!()
    expect(await late.settled).toBe('acknowledged')
    expect(got).toEqual(['early 0 {} false', 'late 1 {"valve":"3 & 4"} false'])
  })

  it('methods are answered by their handlers', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect({ transport })
    const remove = hub.onMethod('reboot', async ({ name, payload }) => ({
      status: 202,
      payload: { name, payload },
    }))
    hub.onMethod('quiet', () => ({ status: 204 }))
    const call = (name: string, payload?: unknown) => stage.emulator.hub.invokeMethod(ID, name, payload)
    await expect.poll(() => call('quiet').catch(() => undefined)).toEqual({ status: 204, payload: null })
    expect(await call('reboot', { delay: 5 })).toEqual({
      status: 202,
      payload: { name: 'reboot', payload: { delay: 5 } },
    })
    remove()
    expect(await call('reboot')).toEqual({ status: 501, payload: null })
  })

  it('the twin is read, reported to and followed', async () => {
    stage = await HubStage.open()
    stage.emulator.hub.updateDesired(ID, { interval: 10 })
    const hub = await stage.connect({ transport })
    expect(await hub.twin.get()).toEqual({
      desired: { properties: { interval: 10 }, version: 2 },
      reported: { properties: {}, version: 1 },
    })
    expect(await hub.twin.report({ firmware: { version: '1.4.2' } })).toBe(2)
    const changes: unknown[] = []
    hub.twin.onDesired((change) => changes.push(change))
    await expect.poll(() => changes).toHaveLength(1)
    stage.emulator.hub.updateDesired(ID, { interval: null, mode: 'eco' })
    await expect.poll(() => changes).toHaveLength(2)
    expect(changes).toEqual([
      { properties: { interval: 10 }, version: 2, complete: true },
      { properties: { interval: null, mode: 'eco' }, version: 3, complete: false },
    ])
  })

  it('an X.509 device connects with its certificate and no password', async () => {
    stage = await HubStage.open()
    const device = await stage.emulator.issueDeviceCertificate({ registrationId: 'x' })
    stage.emulator.hub.addDevice({ deviceId: 'x', authentication: { x509: { certificate: device.cert } } })
    const hub = await stage.connect(
      { transport, credential: x509(device) },
      { assignedHub: HUB, deviceId: 'x' },
    )
    await hub.sendTelemetry('x')
    const connect = stage.emulator.log.packets.find(({ type }) => type === 'connect')
    expect(connect).toMatchObject({ clientId: 'x', passwordPresent: false })
  })
})

describe('what makes no sense', () => {
  const cycle: Record<string, unknown> = {}
  cycle.itself = cycle
  const angry = {
    toJSON() {
      throw new RangeError('no')
    },
  }

  it.each<[string, (hub: HubConnection) => Promise<unknown>]>([
    ['a body with a cycle', (hub) => hub.sendTelemetry(cycle)],
    ['a body with a BigInt', (hub) => hub.sendTelemetry({ count: 1n })],
    ['a body that will not be JSON', (hub) => hub.sendTelemetry(angry)],
    ['a body that is none', (hub) => hub.sendTelemetry(null as never)],
    ['options of telemetry that are null', (hub) => hub.sendTelemetry('x', null as never)],
    ['a patch with a cycle', (hub) => hub.twin.report(cycle as never)],
    ['a patch with a BigInt', (hub) => hub.twin.report({ count: 1n } as never)],
    ['options of a report that are null', (hub) => hub.twin.report({}, null as never)],
    ['options of a twin request that are null', (hub) => hub.twin.get(null as never)],
  ])('is refused with an error of this package: %s', async (_, call) => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    await expectDpsError(call(hub), 'OPTION_INVALID', 'config')
    await hub.sendTelemetry('still there')
  })

  it.each([null, { drainMs: Number.NaN }, { drainMs: 'soon' }, { drainMs: -1 }, 7])(
    'close(%j) closes all the same, and sends what is queued',
    async (options) => {
      stage = await HubStage.open()
      const hub = await stage.connect()
      const sent = hub.sendTelemetry('last')
      await hub.close(options as never)
      await sent
      expect(hub.state).toBe('closed')
    },
  )
})

describe('close', () => {
  const left = () => stage.emulator.openConnections

  it('waits for what is queued, ends in good order and leaves nothing behind', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const sent = Array.from({ length: 100 }, (_, count) => hub.sendTelemetry(String(count)))
    await hub.close()
    await Promise.all(sent)
    expect(stage.emulator.hub.telemetry.received).toBe(100)
    await expect.poll(left).toBe(0)
    expect(stage.emulator.log.packets.at(-1)).toMatchObject({ type: 'disconnect' })
    expect(hub.state).toBe('closed')
    await hub.close()
  })

  it('rejects what the hub does not acknowledge in time, and everything that is asked afterwards', async () => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'telemetry-ack', do: 'no-puback', times: Number.POSITIVE_INFINITY })
    stage.emulator.faults.add({ at: 'twin', do: 'silence' })
    const hub = await stage.connect()
    const telemetry = hub.sendTelemetry('x')
    const twin = hub.twin.get()
    const closed = hub.close({ drainMs: 50 })
    await expectDpsError(twin, 'HUB_CLOSED', 'hub')
    await expectDpsError(telemetry, 'HUB_CLOSED', 'hub')
    await closed
    await expectDpsError(hub.sendTelemetry('x'), 'HUB_CLOSED', 'hub')
    await expectDpsError(hub.twin.get(), 'HUB_CLOSED', 'hub')
    expect(() => hub.onCommand(() => undefined)).toThrow(expect.objectContaining({ code: 'HUB_CLOSED' }))
    await expect.poll(left).toBe(0)
  })

  it('is the end of what desired properties the handler gets to see', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const seen: number[] = []
    let release: (() => void) | undefined
    hub.twin.onDesired(async ({ version }) => {
      seen.push(version)
      await new Promise<void>((resolve) => {
        release = resolve
      })
    })
    await expect.poll(() => seen).toEqual([1])
    for (let count = 0; count < 3; count += 1) stage.emulator.hub.updateDesired(ID, { count })
    await hub.twin.get()
    await hub.close()
    release!()
    await new Promise(setImmediate)
    expect(seen).toEqual([1])
  })

  it('sends what waits for a new token, and ends the wait', async () => {
    stage = await HubStage.open()
    const clock = testClock()
    const hub = await stage.connect({ clock, keepAliveSeconds: 1177, tokenLifetimeSeconds: 60 })
    stage.emulator.faults.add({ at: 'telemetry-ack', do: 'no-puback' })
    const owed = hub.sendTelemetry('owed')
    await stage.emulator.hub.telemetry.wait()
    clock.advance(48_001)
    expect(stage.of('renewing')).toHaveLength(1)
    const waiting = hub.sendTelemetry('waiting')
    const closed = hub.close()
    await waiting
    clock.advance(2000)
    await Promise.all([closed, expectDpsError(owed, 'HUB_CLOSED', 'hub')])
    expect(clock.pending).toBe(0)
    expect(stage.emulator.hub.telemetry.list().map(({ body }) => body.toString())).toEqual([
      'owed',
      'waiting',
    ])
  })

  it('ends a connection whose subscription the hub has not answered', async () => {
    stage = await HubStage.open()
    const clock = testClock()
    const hub = await stage.connect({ clock, keepAliveSeconds: 1177 })
    hub.onMethod('ping', () => ({ status: 200 }))
    await hub.twin.get()
    const silent = stage.emulator.faults.add({ at: 'hub-subscribe', do: 'silence' })
    stage.emulator.hub.disconnect(ID)
    await silent.hit
    await hub.close()
    expect(clock.pending).toBe(0)
    await expect.poll(left).toBe(0)
  })

  it('ends an attempt to reconnect, and a wait for one', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect({ retry: { baseDelayMs: 1_000_000, maxDelayMs: 1_000_000 } })
    const failed = stage.next('reconnecting')
    stage.emulator.hub.disconnect(ID, 'reset')
    await failed
    expect(hub.state).toBe('waiting')
    const lost = hub.sendTelemetry('x')
    await Promise.all([hub.close(), expectDpsError(lost, 'HUB_CLOSED', 'hub')])

    const other: HubConnection = await stage.connect()
    stage.emulator.faults.add({ at: 'hub-connect', do: 'silence', times: Number.POSITIVE_INFINITY })
    const trying = stage.next('phase-started', stage.of('phase-started').length + 3)
    stage.emulator.hub.disconnect(ID)
    await trying
    await other.close()
    expect(other.state).toBe('closed')
    await expect.poll(left).toBe(0)
  })
})

describe('a handler that was removed', () => {
  it('takes none that came later with it, where it is removed once more', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const commands: string[] = []
    const desired: number[] = []
    const onCommand = ({ body }: { body: Uint8Array }) => commands.push(text(body))
    const onDesired = ({ version }: { version: number }) => desired.push(version)
    const ping = () => ({ status: 200 })
    const listen = () => [hub.onCommand(onCommand), hub.twin.onDesired(onDesired), hub.onMethod('ping', ping)]
    const removers = listen()
    for (const remove of removers) remove()
    listen()
    for (const remove of removers) remove()
    await hub.twin.get()
    expect(await stage.emulator.hub.sendCommand(ID, 'open').settled).toBe('acknowledged')
    expect(commands).toEqual(['open'])
    await expect.poll(() => desired).toEqual([1])
    expect(await stage.emulator.hub.invokeMethod(ID, 'ping')).toEqual({ status: 200, payload: null })
  })
})
