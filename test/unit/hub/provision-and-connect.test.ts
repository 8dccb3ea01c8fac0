import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { fileStore } from '../../../src/assignment/file-store.ts'
import { decodeRecord, encodeRecord, type StoredRecord } from '../../../src/assignment/record.ts'
import { symmetricKey } from '../../../src/credential/sas.ts'
import { x509 } from '../../../src/credential/x509.ts'
import type { EmulatorOptions } from '../../../src/emulator/index.ts'
import { type ProvisionAndConnectOptions, provisionAndConnect } from '../../../src/hub/index.ts'
import { testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { type MemoryStore, memoryStore } from '../assignment/records.ts'
import { HUB, HubStage, KEY } from './stage.ts'

const PRESS = 'press-1'
const HOUR = 3_600_000
const [A, B] = ['hub-a.azure-devices.net', 'hub-b.azure-devices.net']

let stage: HubStage
let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'hub-'))
})
afterEach(async () => {
  await stage?.close()
  rmSync(folder, { recursive: true, force: true })
})

const enrolled = (more: object = {}): EmulatorOptions => ({
  enrollments: [
    { registrationId: PRESS, attestation: { symmetricKey: { primaryKey: KEY } }, ...more } as never,
  ],
})

function options(more: Partial<ProvisionAndConnectOptions> = {}): ProvisionAndConnectOptions {
  const { onEvent, retry } = stage.options()
  return {
    ...stage.emulator.clientOptions(),
    credential: symmetricKey({ registrationId: PRESS, key: KEY }),
    store: fileStore(join(folder, 'assignment')),
    retry: retry!,
    onEvent: onEvent as never,
    ...more,
    hub: { ...stage.emulator.hubOptions(), ...more.hub },
  }
}

function recordIn({ bytes }: MemoryStore): StoredRecord {
  const read = decodeRecord(bytes!)
  if (!read.ok) throw new TypeError(read.why)
  return read.record
}

const connect = async (more?: Partial<ProvisionAndConnectOptions>) =>
  stage.adopt(await provisionAndConnect(options(more)))
const registrations = () => stage.seen.filter(({ type }) => type === 'registration').length

describe('provisionAndConnect', () => {
  it('registers once, and goes straight to the hub from then on', async () => {
    stage = await HubStage.open(enrolled())
    const first = await connect()
    expect(first.hub).toBe(HUB)
    await first.sendTelemetry('1')
    await first.close()
    const second = await connect()
    await second.sendTelemetry('2')
    expect(registrations()).toBe(1)
    expect(stage.emulator.hub.telemetry.list().map(({ deviceId }) => deviceId)).toEqual([PRESS, PRESS])
  })

  it('boots with nothing stored and no service, and waits until there is one', async () => {
    stage = await HubStage.open(enrolled())
    stage.emulator.faults.add({ at: 'accept', do: 'reset', times: 5 })
    const hub = await connect({ retry: { maxAttempts: 1, baseDelayMs: 5, maxDelayMs: 20 } })
    await hub.sendTelemetry('x')
    expect(stage.of('reconnecting').length).toBeGreaterThanOrEqual(4)
  })

  it('boots with an assignment while the service is down', async () => {
    stage = await HubStage.open(enrolled())
    await (await connect()).close()
    stage.emulator.faults.add({ at: 'connect', do: 'drop', times: Number.POSITIVE_INFINITY })
    const hub = await connect()
    await hub.sendTelemetry('x')
    expect(registrations()).toBe(1)
  })

  it('asks the service again where the hub does not know the device any more, and moves with it', async () => {
    let hub = A
    stage = await HubStage.open({ hubs: [A, B], ...enrolled({ hub: () => hub }) })
    const connection = await connect()
    expect(connection.hub).toBe(A)
    const twins: unknown[] = []
    connection.twin.onDesired(({ version, complete }) => twins.push([version, complete]))
    await expect.poll(() => twins).toEqual([[1, true]])
    hub = B
    const back = stage.next('connected', 1)
    const queued = (async () => {
      await stage.next('disconnected', 0)
      await connection.sendTelemetry('moved')
    })()
    stage.emulator.hub.removeDevice(PRESS)
    expect((await back).hub).toBe(B)
    await queued
    expect(connection.hub).toBe(B)
    expect(stage.of('reprovisioning')).toMatchObject([{ error: { code: 'UNAUTHORIZED', phase: 'connect' } }])
    expect(registrations()).toBe(2)
    expect(stage.emulator.hub.telemetry.list()).toMatchObject([{ hub: B }])
    // Of the same version as that on the first hub, and another twin all the same.
    await expect.poll(() => twins.slice(1)).toEqual([[1, true]])
    expect(readFileSync(join(folder, 'assignment'), 'utf8')).toContain(B)
  })

  it('asks the service again at the start, where the stored assignment is out of date', async () => {
    stage = await HubStage.open(enrolled())
    await (await connect()).close()
    stage.emulator.hub.removeDevice(PRESS)
    const clock = testClock()
    const hub = await connect({ clock })
    await hub.sendTelemetry('x')
    expect(registrations()).toBe(2)
    expect(clock.sleeps).toEqual([])
  })

  it('survives a certificate that was replaced: the hub is told of the new one', async () => {
    stage = await HubStage.open({})
    stage.emulator.enrollments.addGroup({
      groupId: 'g',
      attestation: { x509: { ca: stage.emulator.pki.deviceRoot.certPem } },
    })
    const issue = () => stage.emulator.issueDeviceCertificate({ registrationId: PRESS })
    let current = await issue()
    const credential = x509({ cert: () => current.cert, key: () => current.key })
    const hub = await connect({ credential })
    current = await issue()
    const back = stage.next('connected', 1)
    stage.emulator.hub.disconnect(PRESS)
    await back
    await hub.sendTelemetry('x')
    expect(stage.of('reprovisioning')).toHaveLength(1)
    expect(registrations()).toBe(2)
  })

  it('does not ask for ever at once: a hub that still refuses is left in peace', async () => {
    stage = await HubStage.open(enrolled())
    const clock = testClock()
    const hub = await connect({ clock })
    stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 5 }, times: 4 })
    stage.emulator.hub.disconnect(PRESS)
    await hub.sendTelemetry('x')
    expect(clock.sleeps.slice(1)).toEqual([60_000 + 300_000, 60_000 + 600_000, 60_000 + 1_200_000])
    expect(registrations()).toBe(2)
  })

  /** Minutes before each question to the service, while `hours` of failures pass. */
  async function questions(hours: number, spoil: () => void): Promise<number[]> {
    const clock = testClock()
    const asked: number[] = []
    let over: (() => void) | undefined
    const done = new Promise<void>((resolve) => {
      over = resolve
    })
    const { onEvent } = options()
    const hub = await connect({
      clock,
      retry: { baseDelayMs: 1000, maxDelayMs: 120_000 },
      onEvent: (event) => {
        onEvent!(event)
        if (event.type === 'reprovisioning') asked.push(clock.monotonic())
        if (event.type === 'connected') stage.emulator.hub.disconnect(PRESS, 'reset')
        if (clock.monotonic() > hours * HOUR) over!()
      },
    })
    spoil()
    await done
    await hub.close({ drainMs: 0 })
    expect(registrations()).toBe(1 + asked.length)
    return asked.map((ms, index) => (ms - (asked[index - 1] ?? 0)) / 60_000)
  }

  it.each([
    ['a hub that is down', { refuse: 3 }],
    ['a hub that lets nobody stay', undefined],
  ])(
    'in an outage (%s) asks after 15 minutes, 30 more, and then once an hour at most',
    async (_, refusal) => {
      stage = await HubStage.open(enrolled())
      const gaps = await questions(6, () => {
        if (refusal !== undefined) {
          stage.emulator.faults.add({ at: 'hub-connect', do: refusal, times: Number.POSITIVE_INFINITY })
        }
      })
      expect(gaps.length).toBeGreaterThanOrEqual(5)
      expect(gaps.length).toBeLessThanOrEqual(7)
      for (const [index, floor] of [15, 30, ...gaps.slice(2).map(() => 60)].entries()) {
        expect(gaps[index]).toBeGreaterThanOrEqual(floor)
        expect(gaps[index]).toBeLessThan(floor + 4)
      }
    },
  )

  it('where the hub refuses for hours asks at once, and then once an hour at most', async () => {
    stage = await HubStage.open(enrolled())
    const [first, ...gaps] = await questions(24, () => {
      stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 5 }, times: Number.POSITIVE_INFINITY })
    })
    expect(first).toBeLessThan(1)
    expect(gaps.length).toBeGreaterThan(10)
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(60)
  })

  it('a question that the service could not be asked is none: it is put again, and not an hour later', async () => {
    let hub = A
    stage = await HubStage.open({ hubs: [A, B], ...enrolled({ hub: () => hub }) })
    const clock = testClock()
    await connect({ clock, retry: { maxAttempts: 1, baseDelayMs: 1000 } })
    hub = B
    stage.emulator.faults.add({ at: 'connect', do: 'drop', times: 2 })
    const back = stage.next('connected', 1)
    stage.emulator.hub.removeDevice(PRESS)
    expect((await back).hub).toBe(B)
    expect(stage.of('reprovisioning')).toHaveLength(3)
    expect(clock.monotonic()).toBeLessThan(HOUR)
  })

  it('does not go on from memory once the service has switched the device off, though the hub is back', async () => {
    stage = await HubStage.open(enrolled())
    const clock = testClock()
    const hub = await connect({ clock, retry: { baseDelayMs: 60_000, maxDelayMs: 300_000 } })
    const gate = stage.emulator.faults.add({
      at: 'hub-connect',
      do: { refuse: 3 },
      times: Number.POSITIVE_INFINITY,
    })
    const asked = stage.next('reprovisioning', 0)
    stage.emulator.enrollments.disable({ registrationId: PRESS })
    stage.emulator.hub.disconnect(PRESS)
    await asked
    gate.remove()
    const waits = stage.of('reconnecting').length
    await stage.next('reconnecting', waits + 3)
    expect(stage.of('connected')).toHaveLength(1)
    const refused = clock.sleeps.slice(waits, waits + 3)
    expect(refused).toEqual([60_000 + 150_000, 60_000 + 300_000, 60_000 + 600_000])
    stage.emulator.enrollments.enable({ registrationId: PRESS })
    await hub.sendTelemetry('allowed again')
    expect(stage.of('connected')).toHaveLength(2)
  })

  it('waits between a minute and an hour where hub and service both refuse, and comes back when they do not', async () => {
    stage = await HubStage.open(enrolled())
    const clock = testClock()
    const hub = await connect({ clock })
    const waits = stage.next('reconnecting', 4)
    stage.emulator.enrollments.disable({ registrationId: PRESS })
    stage.emulator.hub.disableDevice(PRESS)
    await waits
    stage.emulator.enrollments.enable({ registrationId: PRESS })
    stage.emulator.hub.enableDevice(PRESS)
    await hub.sendTelemetry('x')
    const [lost, ...refused] = clock.sleeps
    expect(lost).toBeLessThan(60_000)
    expect(refused.slice(0, 3)).toEqual([60_000 + 150_000, 60_000 + 300_000, 60_000 + 600_000])
    expect(Math.max(...refused)).toBeLessThanOrEqual(3_660_000)
  })

  it('stays with a hub that cannot be reached, and asks the service after a quarter of an hour', async () => {
    stage = await HubStage.open(enrolled())
    const clock = testClock()
    await connect({ clock, retry: { baseDelayMs: 60_000, maxDelayMs: 300_000 } })
    const asked = stage.next('reprovisioning', 0)
    const gate = stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 3 }, times: 15 })
    const back = stage.next('connected', 1)
    stage.emulator.hub.disconnect(PRESS)
    await asked
    expect(stage.of('reconnecting').length).toBe(9)
    expect(clock.sleeps.reduce((sum, ms) => sum + ms)).toBeGreaterThan(900_000)
    await back
    expect(gate.hits).toBe(15)
    expect(stage.of('reprovisioning')).toHaveLength(1)
    expect(registrations()).toBe(2)
  })

  /** What is stored after a registration, changed. */
  async function stored(change: (record: StoredRecord) => StoredRecord) {
    const store = memoryStore()
    await (await connect({ store })).close()
    store.bytes = encodeRecord(change(recordIn(store)))
    stage.events.length = 0
    return store
  }

  const newProfile = {
    status: 200,
    body: JSON.stringify({
      operationId: '1',
      status: 'assigned',
      registrationState: {
        registrationId: PRESS,
        deviceId: PRESS,
        assignedHub: HUB,
        status: 'assigned',
        connectionProfile: 'mqttV5',
      },
    }),
  }
  const ofNewProfile = (record: StoredRecord): StoredRecord => ({
    ...record,
    registration: { ...record.registration!, connectionProfile: 'mqttV5' },
  })

  it('asks the service again where the stored hub speaks MQTT 5, at once', async () => {
    stage = await HubStage.open(enrolled())
    const clock = testClock()
    const hub = await connect({ clock, store: await stored(ofNewProfile) })
    await hub.sendTelemetry('x')
    expect(stage.of('reprovisioning')).toMatchObject([{ error: { code: 'HUB_PROFILE_UNSUPPORTED' } }])
    expect(registrations()).toBe(2)
    expect(clock.sleeps).toEqual([])
  })

  it('asks until it is answered where the stored hub speaks MQTT 5 and the service is away', async () => {
    stage = await HubStage.open(enrolled())
    const store = await stored(ofNewProfile)
    stage.emulator.faults.add({ at: 'connect', do: 'drop', times: 2 })
    await connect({ clock: testClock(), store, retry: { maxAttempts: 1, baseDelayMs: 1000 } })
    expect(stage.of('reprovisioning')).toHaveLength(3)
  })

  it.each([
    ['there was nothing', false],
    ['such a hub was stored', true],
  ])('rejects where the service assigns a hub that speaks MQTT 5, and %s', async (_, before) => {
    stage = await HubStage.open(enrolled())
    const store = before ? await stored(ofNewProfile) : memoryStore()
    const earlier = stage.emulator.log.packets.length
    stage.emulator.faults.add({ at: 'register', do: { reply: newProfile }, times: Number.POSITIVE_INFINITY })
    await expectDpsError(connect({ store }), 'HUB_PROFILE_UNSUPPORTED', 'config')
    const since = stage.emulator.log.packets.slice(earlier)
    expect(since.filter(({ type }) => type === 'connect')).toHaveLength(1)
  })

  it('the clock is not behind the last contact with the service, at the hub either', async () => {
    stage = await HubStage.open(enrolled())
    const clock = testClock()
    const ahead = clock.now() + 30 * 24 * HOUR
    const store = await stored((record) => ({ ...record, contactMs: ahead }))
    const connections = stage.emulator.log.connections.length
    const abort = new AbortController()
    const lastContact = clock.now()
    const connecting = connect({ clock, store, signal: abort.signal, lastContact })
    const ended = expect(connecting).rejects.toMatchObject({ code: 'CANCELLED' })
    await Promise.race([connecting, stage.next('reconnecting', 0)])
    abort.abort()
    await ended
    expect(stage.of('reconnecting')[0]).toMatchObject({ error: { code: 'CLOCK_BEHIND', phase: 'clock' } })
    expect(stage.emulator.log.connections).toHaveLength(connections)
    // The later of both: what the application knows counts as well.
    store.bytes = encodeRecord({ ...recordIn(store), contactMs: clock.now() })
    stage.events.length = 0
    const later = new AbortController()
    const behind = connect({ clock, store, signal: later.signal, hub: { lastContact: ahead * 1.1 } })
    const over = expect(behind).rejects.toMatchObject({ code: 'CANCELLED' })
    await Promise.race([behind, stage.next('reconnecting', 0)])
    later.abort()
    await over
  })

  it('takes transports, trust and the rest from provisioning where `hub` says nothing', async () => {
    stage = await HubStage.open(enrolled())
    const hub = await connect({ transport: ['https'] })
    expect(hub.connection.transport).toBe('mqtt-ws')
    await hub.close()
    expect((await connect({ hub: { transport: 'mqtt' } })).connection.transport).toBe('mqtt')
  })

  it.each([
    ['no store', { store: undefined }, 'OPTION_INVALID'],
    ['an unknown option', { patience: true }, 'OPTION_INVALID'],
    ['an unknown option of the hub', { hub: { host: 'x' } }, 'OPTION_INVALID'],
    ['a credential of the hub’s own', { hub: { credential: {} } }, 'OPTION_INVALID'],
    [
      'a key that is none',
      { credential: symmetricKey({ registrationId: PRESS, key: 'x' }) },
      'SAS_KEY_INVALID',
    ],
  ])('rejects at once, before any packet, with %s', async (_, more, code) => {
    stage = await HubStage.open(enrolled())
    await expectDpsError(connect(more as never), code as never, 'config')
    expect(stage.emulator.log.connections).toEqual([])
  })

  it('is cancelled while it waits', async () => {
    stage = await HubStage.open(enrolled())
    stage.emulator.faults.add({ at: 'accept', do: 'reset', times: Number.POSITIVE_INFINITY })
    const abort = new AbortController()
    const retry = { maxAttempts: 1, baseDelayMs: 1_000_000, maxDelayMs: 1_000_000 }
    const cancelled = connect({ signal: abort.signal, retry })
    const refused = expect(cancelled).rejects.toMatchObject({ code: 'CANCELLED' })
    await stage.next('reconnecting', 0)
    abort.abort()
    await refused
  })
})
