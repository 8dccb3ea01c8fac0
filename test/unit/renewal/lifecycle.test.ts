import { inspect } from 'node:util'
import { afterEach, describe, expect, it } from 'vitest'
import { ProvisioningClient } from '../../../src/client.ts'
import { symmetricKey } from '../../../src/credential/sas.ts'
import { x509 } from '../../../src/credential/x509.ts'
import type { EmulatorOptions, IssuedCertificateInfo } from '../../../src/emulator/index.ts'
import {
  type HubConnection,
  type ProvisionAndConnectOptions,
  provisionAndConnect,
} from '../../../src/hub/index.ts'
import { issuedCertificate } from '../../../src/issued-certificate.ts'
import { provision } from '../../../src/provision.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { StepClock } from '../../support/step-clock.ts'
import { type MemoryStore, memoryStore } from '../assignment/records.ts'
import { HubStage, KEY } from '../hub/stage.ts'

// A device that starts with a bootstrap key and keeps its certificate up by itself. It and the emulator share one clock.

const ID = 'pump-1'
const LIFE = 60_000
/** 80 % of a life that began a tenth before it was given. */
const DUE = 46_800
const MINUTE = 60_000

let stage: HubStage
let clock: StepClock
const hubs: HubConnection[] = []
const unhandled: unknown[] = []
process.on('unhandledRejection', (reason) => unhandled.push(reason))
afterEach(async () => {
  await Promise.all(hubs.splice(0).map((hub) => hub.close({ drainMs: 0 })))
  await stage.close()
  expect(clock.pending, 'timers left').toBe(0)
  expect(unhandled.splice(0)).toEqual([])
})

async function start(options: EmulatorOptions = {}, enrollment: object = {}): Promise<void> {
  clock = new StepClock()
  stage = await HubStage.open({
    clock,
    hubRenewal: { delayMs: 0 },
    assigning: { polls: 0 },
    enrollments: [
      {
        registrationId: ID,
        attestation: { symmetricKey: { primaryKey: KEY } },
        issuance: { lifetimeMs: LIFE },
        ...enrollment,
      },
    ],
    ...options,
  })
}

interface Disk {
  readonly assignment: MemoryStore
  readonly certificate: MemoryStore
}

const disk = (certificate?: Uint8Array, assignment?: Uint8Array): Disk => ({
  assignment: memoryStore(assignment),
  certificate: memoryStore(certificate),
})

function options(
  { assignment, certificate }: Disk,
  more: Partial<ProvisionAndConnectOptions> = {},
): ProvisionAndConnectOptions {
  return {
    ...stage.emulator.clientOptions(),
    credential: [
      issuedCertificate({ store: certificate, clock }),
      symmetricKey({ registrationId: ID, key: KEY }),
    ],
    store: assignment,
    issuance: { curve: 'P-256' },
    retry: { baseDelayMs: 5, maxDelayMs: 50 },
    clock,
    onEvent: stage.options().onEvent as never,
    hub: stage.emulator.hubOptions(),
    ...more,
  }
}

async function boot(
  on: Disk = disk(),
  more: Partial<ProvisionAndConnectOptions> = {},
): Promise<HubConnection> {
  const hub = await provisionAndConnect(options(on, more))
  hubs.push(hub)
  return hub
}

const issued = () => stage.emulator.issuance.list()
const via = () => issued().map((certificate) => certificate.via)
const registrations = () => stage.seen.filter(({ type }) => type === 'registration').length
const received = () => stage.emulator.hub.telemetry.list().map(({ body }) => body.toString())
/** What the device presented at each TLS handshake that went to a hub or to the service, by its place among those issued. */
const presented = () =>
  stage.emulator.log.connections.map(({ handshake }) => {
    const found = handshake?.clientCertificate?.fingerprint256
    return found === undefined
      ? undefined
      : issued().findIndex(({ fingerprint256 }) => fingerprint256 === found)
  })
const failures = () => stage.of('certificate-renewal-failed')

/** Lets the day of renewal come, and waits until the hub has let the device in with what it was given. */
async function renewed(ms = DUE): Promise<void> {
  const inUse = stage.next('certificate-in-use')
  clock.advance(ms)
  await inUse
}

/** Lets the wait after a failure pass. */
async function failed(ms = DUE): Promise<number> {
  const told = stage.next('certificate-renewal-failed')
  clock.advance(ms)
  return (await told).delayMs
}

describe('a device with a bootstrap key', () => {
  it('is issued a certificate at its first boot, and renews it three times without losing a message', async () => {
    await start()
    const on = disk()
    const hub = await boot(on)
    const sent: string[] = []
    const send = async (): Promise<void> => {
      const body = String(sent.push(`message ${sent.length}`))
      await hub.sendTelemetry(body)
    }
    for (let renewal = 0; renewal < 3; renewal++) {
      await send()
      // Some on their way when the connection is replaced, and some that wait for the next.
      const under = Array.from({ length: 20 }, send)
      const inUse = renewed()
      under.push(...Array.from({ length: 20 }, send))
      await inUse
      await Promise.all(under)
    }
    expect(via()).toEqual(['dps', 'hub', 'hub', 'hub'])
    expect(new Set(issued().map(({ fingerprint256 }) => fingerprint256)).size).toBe(4)
    expect(registrations()).toBe(1)
    expect(new Set(received())).toEqual(new Set(sent.map((_, at) => String(at + 1))))
    expect(presented()).toEqual([undefined, 0, 1, 2, 3])
    expect(stage.of('certificate-in-use').map(({ certificate }) => certificate.serialNumber)).toEqual(
      issued().map(({ serialNumber }) => serialNumber),
    )
    expect(stage.of('disconnected')).toEqual([])
    expect(stage.of('certificate-expires')).toEqual([])
    // The key of one, and no other.
    expect(
      Buffer.from(on.certificate.bytes!)
        .toString()
        .match(/BEGIN PRIVATE KEY/g),
    ).toHaveLength(1)
  })

  it('goes straight to the hub at its next boot, though it renewed meanwhile', async () => {
    await start()
    const on = disk()
    const first = await boot(on)
    await renewed()
    await first.close()
    const before = stage.emulator.log.connections.length
    const second = await boot(on)
    await second.sendTelemetry('x')
    expect(stage.emulator.log.connections.length).toBe(before + 1)
    expect(presented().at(-1)).toBe(1)
    expect(registrations()).toBe(1)
  })

  it('registers again with it where its certificate ended while it was off', async () => {
    await start()
    const on = disk()
    await (await boot(on)).close()
    clock.advance(LIFE + 1000)
    const hub = await boot(on)
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'dps'])
    expect(registrations()).toBe(2)
    expect(presented()).toEqual([undefined, 0, undefined, 1])
  })

  it('may have a certificate for bootstrap, which the hub never sees', async () => {
    await start({ enrollments: [] })
    stage.emulator.enrollments.addGroup({
      groupId: 'g',
      attestation: { x509: { ca: stage.emulator.pki.deviceRoot.certPem } },
      issuance: { lifetimeMs: LIFE },
    })
    const { cert, key } = await stage.emulator.issueDeviceCertificate({ registrationId: ID })
    const on = disk()
    const credential = [issuedCertificate({ store: on.certificate, clock }), x509({ cert, key })]
    const hub = await boot(on, { credential })
    await hub.sendTelemetry('x')
    expect(presented()).toEqual([-1, 0])
    await renewed()
    expect(presented()).toEqual([-1, 0, 1])
  })
})

describe('where the hub issues nothing (403010)', () => {
  it('it renews by registering, with the certificate that it has, and learns that once', async () => {
    await start({ hubRenewal: { supported: false } })
    const on = disk()
    const hub = await boot(on)
    await renewed()
    await renewed()
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'dps', 'dps'])
    expect(presented()).toEqual([undefined, 0, 0, 1, 1, 2])
    expect(stage.of('certificate-requested').map((event) => event.via)).toEqual(['dps', 'hub', 'dps', 'dps'])
    expect(failures()).toEqual([])
    expect(stage.of('warning' as never)).toEqual([])
    // What it registered with has been replaced since, and the assignment counts all the same.
    await hub.close()
    await boot(on)
    expect(registrations()).toBe(3)
  })

  it('it goes where the registration sends it', async () => {
    let assigned = 'hub-a.azure-devices.net'
    await start(
      { hubs: ['hub-a.azure-devices.net', 'hub-b.azure-devices.net'], hubRenewal: { supported: false } },
      { hub: () => assigned },
    )
    const hub = await boot()
    expect(hub.hub).toBe('hub-a.azure-devices.net')
    assigned = 'hub-b.azure-devices.net'
    await renewed()
    await hub.sendTelemetry('x')
    expect(hub.hub).toBe('hub-b.azure-devices.net')
    expect(stage.emulator.hub.telemetry.list()).toMatchObject([{ hub: 'hub-b.azure-devices.net' }])
  })
})

describe('a hub that refuses', () => {
  it('the new certificate has the device back with the old one at once, which loses nothing', async () => {
    await start()
    const hub = await boot()
    stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 5 } })
    const sending = Array.from({ length: 10 }, (_, n) => hub.sendTelemetry(`m${n}`))
    const back = stage.next('connected')
    const delayMs = await failed()
    await Promise.all([...sending, back])
    expect(presented()).toEqual([undefined, 0, 1, 0])
    expect(stage.of('certificate-rejected')).toMatchObject([
      { certificate: { serialNumber: issued()[1]!.serialNumber }, error: { code: 'UNAUTHORIZED' } },
    ])
    expect(new Set(received()).size).toBe(10)
    expect(stage.of('reconnecting')).toEqual([])
    expect(registrations()).toBe(1)
    await renewed(delayMs)
    expect(presented()).toEqual([undefined, 0, 1, 0, 2])
  })

  it('a certificate that was revoked has the device register with the bootstrap key, once', async () => {
    await start()
    const hub = await boot()
    stage.emulator.issuance.revoke({ registrationId: ID })
    const inUse = stage.next('certificate-in-use')
    stage.emulator.hub.disconnect(ID)
    await inUse
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'dps'])
    // At the hub, at the service by what was revoked, then by the key; and at the hub by the new one.
    expect(presented()).toEqual([undefined, 0, 0, 0, undefined, 1])
    expect(stage.of('credential-fallback')).toMatchObject([
      { from: 0, to: 1, error: { code: 'CREDENTIAL_NOT_ISSUED' } },
      { from: 0, to: 1, error: { code: 'UNAUTHORIZED' } },
    ])
  })

  it('whatever is presented is asked about once an hour, which is what is billed', async () => {
    await start()
    await boot()
    stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 5 }, times: Number.POSITIVE_INFINITY })
    stage.emulator.hub.disconnect(ID)
    await expect.poll(() => issued().length).toBe(2)
    const from = clock.now()
    while (clock.now() - from < 3 * 60 * MINUTE) {
      const again = stage.next('reconnecting')
      clock.advance(stage.of('reconnecting').at(-1)!.delayMs)
      await again
    }
    // At once; each hour, by what the hub says; and by what the schedule says of a life that has ended.
    expect(issued().length).toBeLessThanOrEqual(6)
  })
})

/** The hub ends each connection that is made with the certificate that was issued at this place. */
function resetsCertificate(at: number): void {
  stage.emulator.faults.add({
    at: 'hub-connect',
    do: 'reset',
    times: Number.POSITIVE_INFINITY,
    match: ({ connectionId }) => {
      const { handshake } = stage.emulator.log.connections.find(({ id }) => id === connectionId)!
      return handshake?.clientCertificate?.fingerprint256 === issued()[at]?.fingerprint256
    },
  })
}

describe('a hub that ends the connection without a word', () => {
  it('by the new certificate alone has the device back with the old one, which is renewed again', async () => {
    await start()
    const hub = await boot()
    resetsCertificate(1)
    const rejected = stage.next('certificate-rejected')
    const back = stage.next('connected')
    const delayMs = await failed()
    expect(await rejected).toMatchObject({
      certificate: { serialNumber: issued()[1]!.serialNumber },
      error: { code: 'CONNECTION_LOST' },
    })
    await back
    await hub.sendTelemetry('x')
    expect(presented()).toEqual([undefined, 0, 1, 1, 1, 0])
    expect(stage.of('certificate-in-use')).toHaveLength(1)
    expect(registrations()).toBe(1)
    await renewed(delayMs)
    expect(presented().at(-1)).toBe(2)
    expect(stage.of('certificate-in-use')).toHaveLength(2)
  })
})

/** When 5 % of the first life is left. */
function lateMs(): number {
  const [{ notBefore, notAfter }] = issued() as [IssuedCertificateInfo]
  return notAfter.getTime() - (notAfter.getTime() - notBefore.getTime()) * 0.05
}

describe('a renewal that fails', () => {
  it.each([
    'wrong-key',
    'wrong-name',
    'broken-chain',
    'expired',
    'not-yet-valid',
    'leaf-only',
    'garbage',
    'no-chain',
  ] as const)('by a lie (%s) is told, and tried again in time with the old one in use', async (lie) => {
    await start()
    const hub = await boot()
    stage.emulator.faults.add({ at: 'issue', do: lie })
    const delayMs = await failed()
    expect(failures()).toMatchObject([
      { error: { code: expect.stringMatching(/^(ISSUED_CERTIFICATE_INVALID|CERTIFICATE_NOT_ISSUED)$/) } },
    ])
    await hub.sendTelemetry('x')
    // A sixth of what is left, by a chance of one half.
    expect(delayMs).toBe((LIFE - DUE) / 6)
    await renewed(delayMs)
    expect(presented()).toEqual([undefined, 0, issued().length - 1])
    expect(registrations()).toBe(1)
  })

  it.each([
    [400_037, 'BAD_REQUEST'],
    [429_002, 'THROTTLED'],
    [500_001, 'SERVICE_UNAVAILABLE'],
    [503_001, 'SERVICE_UNAVAILABLE'],
  ] as const)('by %i waits as long as that asks for', async (errorCode, code) => {
    await start()
    await boot()
    const status = Math.floor(errorCode / 1000)
    stage.emulator.faults.add({ at: 'renew', do: { reply: { status, errorCode, message: 'no' } } })
    const delayMs = await failed()
    expect(failures()).toMatchObject([{ error: { code, serviceErrorCode: errorCode } }])
    const atLeast = { 400: 0, 429: 1000, 500: 300_000, 503: 5000 }[status]!
    expect(delayMs).toBe(atLeast + (LIFE - DUE) / 6)
  })

  it.each([404_001, 400_001, 403_000])(
    'by %i at the hub is done by registering, at once',
    async (errorCode) => {
      await start()
      const hub = await boot()
      const status = Math.floor(errorCode / 1000)
      stage.emulator.faults.add({ at: 'renew', do: { reply: { status, errorCode, message: 'no' } } })
      await renewed()
      await hub.sendTelemetry('x')
      expect(via()).toEqual(['dps', 'dps'])
      expect(failures()).toEqual([])
      // A device that the hub did not know is known to it again; the others mean all requests.
      await renewed()
      expect(via()).toEqual(['dps', 'dps', errorCode === 404_001 ? 'hub' : 'dps'])
    },
  )

  it('by a subscription that is refused is done by registering', async () => {
    await start()
    await boot()
    stage.emulator.faults.add({ at: 'hub-subscribe', do: 'refuse' })
    await renewed()
    expect(via()).toEqual(['dps', 'dps'])
  })

  it('in a registration too is told, and the next is tried by registering alone', async () => {
    await start({ hubRenewal: { supported: false } })
    const hub = await boot()
    stage.emulator.faults.add({ at: 'issue', do: 'wrong-key' })
    const delayMs = await failed()
    expect(failures()).toMatchObject([{ error: { code: 'ISSUED_CERTIFICATE_INVALID' } }])
    await hub.sendTelemetry('x')
    await renewed(delayMs)
    expect(stage.of('certificate-requested').map((event) => event.via)).toEqual(['dps', 'hub', 'dps', 'dps'])
    expect(registrations()).toBe(3)
  })

  it('by a request that is pending elsewhere takes its place the next time', async () => {
    await start()
    await boot()
    stage.emulator.faults.add({
      at: 'renew',
      do: { reply: { status: 409, errorCode: 409_004, message: 'no' } },
    })
    await renewed(await failed())
    const bodies = stage.emulator.log.packets.flatMap(({ topic, direction, body }) =>
      direction === 'in' && topic?.includes('issueCertificate') ? JSON.parse(body!).replace : [],
    )
    // There was none to replace: asked once more without.
    expect(bodies).toEqual([undefined, '*', undefined])
  })

  it('until it is late goes to the service with the certificate that is about to end', async () => {
    await start()
    const hub = await boot()
    const refusal = { reply: { status: 429, errorCode: 429_002, message: 'no' } }
    stage.emulator.faults.add({ at: 'renew', do: refusal, times: Number.POSITIVE_INFINITY })
    let delayMs = await failed()
    const inUse = stage.next('certificate-in-use')
    while (clock.now() + delayMs < lateMs()) delayMs = await failed(delayMs)
    clock.advance(delayMs)
    await inUse
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'dps'])
    expect(presented()).toEqual([undefined, 0, 0, 1])
    expect(failures().length).toBeLessThan(8)
    // The next is for the hub to issue again.
    stage.emulator.faults.clear()
    await renewed()
    expect(via()).toEqual(['dps', 'dps', 'hub'])
  })

  it('until it is late, and at the service too, is tried at both until one gives', async () => {
    await start()
    const hub = await boot()
    const refusal = { reply: { status: 429, errorCode: 429_002, message: 'no' } }
    stage.emulator.faults.add({ at: 'renew', do: refusal, times: Number.POSITIVE_INFINITY })
    stage.emulator.faults.add({ at: 'issue', do: 'no-chain', times: 2 })
    let delayMs = await failed()
    while (clock.now() + delayMs < lateMs()) delayMs = await failed(delayMs)
    delayMs = await failed(delayMs)
    expect(failures().at(-1)!.error.code).toBe('CERTIFICATE_NOT_ISSUED')
    delayMs = await failed(delayMs)
    await renewed(delayMs)
    await hub.sendTelemetry('x')
    expect(registrations()).toBe(4)
    expect(via()).toEqual(['dps', 'dps'])
  })

  it('because the hub is out of reach does not wait for it once it is late', async () => {
    await start()
    const hub = await boot(disk(), { retry: { baseDelayMs: 20 * MINUTE, maxDelayMs: 20 * MINUTE } })
    const waiting = stage.next('reconnecting')
    stage.emulator.hub.disconnect(ID)
    await waiting
    const asked = stage.next('certificate-requested')
    clock.advance(DUE)
    await asked
    await renewed(lateMs() - clock.now())
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'dps'])
    // With the certificate that the device still has.
    expect(presented()).toEqual([undefined, 0, 0, 1])
  })

  it('by silence after 202 waits for the answer, which may come until the end', async () => {
    await start()
    await boot()
    stage.emulator.faults.add({ at: 'renew-reply', do: { late: 5000 } })
    const told = stage.emulator.faults.add({ at: 'renew-accepted', do: 'duplicate' })
    clock.advance(DUE)
    await told.hit
    await renewed(5000)
    expect(via()).toEqual(['dps', 'hub'])
    expect(failures()).toEqual([])
  })

  it('by silence for ever goes to the service once the certificate has ended', async () => {
    await start()
    await boot()
    stage.emulator.faults.add({ at: 'renew-reply', do: { late: Number.POSITIVE_INFINITY } })
    const told = stage.emulator.faults.add({ at: 'renew-accepted', do: 'duplicate' })
    clock.advance(DUE)
    await told.hit
    await renewed(LIFE - DUE)
    expect(via()).toEqual(['dps', 'hub', 'dps'])
  })

  it('though the clock jumps over the end of it', async () => {
    await start()
    const hub = await boot()
    await renewed(30 * 24 * 60 * MINUTE)
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'dps'])
  })
})

describe('a network that fails', () => {
  it('between the certificate and its first use is waited out as ever, and no storm is made', async () => {
    await start()
    const hub = await boot(disk(), { retry: { baseDelayMs: 60_000, maxDelayMs: 60_000 } })
    const waiting = stage.next('reconnecting')
    stage.emulator.faults.add({ at: 'accept', do: 'reset' })
    clock.advance(DUE)
    const { delayMs } = await waiting
    for (let turn = 0; turn < 200; turn++) await new Promise(setImmediate)
    expect(stage.of('reconnecting')).toHaveLength(1)
    expect(stage.of('certificate-issued')).toHaveLength(2)
    const sending = hub.sendTelemetry('x')
    await renewed(delayMs)
    await sending
    expect(presented().at(-1)).toBe(1)
  })

  it('while it is to be renewed, until the end, has the device register with the bootstrap key', async () => {
    await start()
    const hub = await boot(disk(), { retry: { baseDelayMs: 20 * MINUTE, maxDelayMs: 20 * MINUTE } })
    const waiting = stage.next('reconnecting')
    stage.emulator.hub.disconnect(ID)
    expect((await waiting).delayMs).toBe(10 * MINUTE)
    const asked = stage.next('certificate-requested')
    clock.advance(DUE)
    expect((await asked).via).toBe('hub')
    await renewed(LIFE - DUE)
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'dps'])
    expect(failures()).toEqual([])
  })

  it('at a hub that takes the certificate no longer, before it was renewed, makes one new certificate and no two', async () => {
    await start()
    const hub = await boot()
    stage.emulator.faults.add({ at: 'renew', do: 'ignore' })
    const asked = stage.next('certificate-requested')
    clock.advance(DUE)
    await asked
    await hub.twin.get()
    stage.emulator.issuance.revoke({ registrationId: ID })
    const inUse = stage.next('certificate-in-use')
    stage.emulator.hub.disconnect(ID)
    await inUse
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'dps'])
    expect(failures()).toEqual([])
    await renewed()
    expect(via()).toEqual(['dps', 'dps', 'hub'])
  })
})

describe('by hand', () => {
  it('the certificate is asked for in a registration, kept, tried, and used first of a list', async () => {
    await start()
    const on = disk()
    const certificate = issuedCertificate({ store: on.certificate, clock })
    const credential = [certificate, symmetricKey({ registrationId: ID, key: KEY })]
    const common = { ...stage.emulator.clientOptions(), store: on.assignment, clock, credential }
    const register = async () => {
      const { csr } = await certificate.createRequest({ registrationId: ID, curve: 'P-256' })
      const assignment = await provision({ ...common, mode: 'always', csr })
      await certificate.install(assignment.issuedCertificateChain)
      return assignment
    }
    const assignment = await register()
    const hub = await stage.connect({ credential, clock }, assignment)
    await hub.sendTelemetry('x')
    expect(await certificate.status()).toMatchObject({ current: {}, candidate: undefined, requested: false })
    expect(hub.connection.credential).toBe(0)
    // Nobody else renews it.
    expect(stage.of('certificate-expires')).toHaveLength(1)

    await register()
    stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 5 } })
    const back = stage.next('connected')
    stage.emulator.hub.disconnect(ID)
    await back
    // Back with the one before, at once, and not with the bootstrap key.
    expect(presented()).toEqual([undefined, 0, 0, 1, 0])
    expect(hub.connection.credential).toBe(0)
    expect(await certificate.status()).toMatchObject({ candidate: undefined })
    // The assignment counts, whichever of them it was made with.
    expect(await provision({ ...common, mode: 'if-needed' })).toMatchObject({ source: 'store' })
  })
})

describe('the first certificate', () => {
  it.each(['no-chain', 'wrong-key', 'expired', 'broken-chain'] as const)(
    'that does not come (%s) is asked for again within an hour, and not at once',
    async (lie) => {
      await start()
      stage.emulator.faults.add({ at: 'issue', do: lie })
      const waiting = stage.next('reconnecting')
      const booting = boot()
      const { delayMs } = await waiting
      expect(delayMs).toBeGreaterThanOrEqual(MINUTE)
      expect(registrations()).toBe(1)
      clock.advance(delayMs)
      await (await booting).sendTelemetry('x')
      expect(registrations()).toBe(2)
    },
  )

  it('a certificate that nobody renews is said to end, by a registration too, once', async () => {
    await start()
    const { certificate } = disk()
    const issuing = issuedCertificate({ store: certificate, clock })
    const warnings: string[] = []
    const client = new ProvisioningClient({
      ...stage.emulator.clientOptions(),
      credential: [issuing, symmetricKey({ registrationId: ID, key: KEY })],
      clock,
      onEvent: (event) => {
        if (event.type === 'warning') warnings.push(event.message)
      },
    })
    const { csr } = await issuing.createRequest({ registrationId: ID })
    await issuing.install((await client.register({ csr })).issuedCertificateChain)
    expect((await client.register()).connection.credential).toBe(0)
    expect(warnings).toEqual([])
    clock.advance(DUE)
    await client.register()
    await client.register()
    expect(warnings).toEqual([expect.stringContaining('Renew it now')])
  })

  it('is not asked for by a device that the service refuses', async () => {
    await start()
    const controller = new AbortController()
    stage.emulator.faults.add({ at: 'connect', do: { refuse: 5 }, times: Number.POSITIVE_INFINITY })
    const waiting = stage.next('reconnecting')
    const booting = expectDpsError(boot(disk(), { signal: controller.signal }), 'CANCELLED', 'connect')
    expect((await waiting).error.code).toBe('UNAUTHORIZED')
    controller.abort()
    await booting
    expect(issued()).toEqual([])
  })
})

describe('a store', () => {
  it('that is full keeps no device offline: it renews in memory, is told of, and writes once there is room', async () => {
    await start()
    const on = disk()
    const { write } = on.certificate
    const hub = await boot(on)
    on.certificate.write = async () => {
      throw Object.assign(new Error('full'), { code: 'ENOSPC' })
    }
    await renewed()
    await hub.sendTelemetry('x')
    expect(presented().at(-1)).toBe(1)
    expect(stage.of('store-failed').map(({ error }) => error.code)).toEqual(Array(3).fill('STORE_FAILED'))
    on.certificate.write = write
    await renewed()
    await hub.close()
    await boot(on)
    expect(presented().at(-1)).toBe(2)
  })

  it.each(['write', 'read'] as const)(
    'that hangs at %s holds a renewal up once, for half a minute, is told of, and writes once it answers',
    async (method) => {
      await start({}, { issuance: { lifetimeMs: 60 * MINUTE } })
      const on = disk()
      const hub = await boot(on)
      const well = on.certificate[method]
      let answer = (): void => undefined
      let asked = 0
      const hang = () => {
        asked += 1
        return new Promise((resolve) => {
          answer = () => resolve(undefined)
        })
      }
      Object.assign(on.certificate, { [method]: hang })
      const startedAt = clock.monotonic()
      // Of a life that began five minutes before it was given.
      const due = 0.8 * 65 * MINUTE - 5 * MINUTE
      const inUse = stage.next('certificate-in-use')
      clock.advance(due)
      await expect.poll(() => asked).toBe(1)
      clock.advance(30_000)
      await inUse
      expect(clock.monotonic() - startedAt).toBe(due + 30_000)
      await hub.sendTelemetry('x')
      expect(asked).toBe(1)
      if (method === 'write') {
        const [first, ...rest] = stage.of('store-failed').map(({ error }) => error.message)
        expect(first).toBe('the store did not answer within 30000 ms, and is asked again in 600 s')
        expect(new Set(rest)).toEqual(
          new Set(['the store did not answer before, and is asked again in 600 s']),
        )
      }
      Object.assign(on.certificate, { [method]: well })
      answer()
      await renewed(due)
      await hub.close()
      await boot(on)
      expect(presented().at(-1)).toBe(2)
      expect(via()).toEqual(['dps', 'hub', 'hub'])
    },
  )

  it('that fails to read while the device is online costs no certificate and no registration', async () => {
    await start()
    const on = disk()
    const hub = await boot(on)
    on.certificate.read = async () => {
      throw new Error('EMFILE')
    }
    await renewed()
    await renewed()
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'hub', 'hub'])
    expect(failures()).toEqual([])
  })

  it('that cannot be read is one that holds nothing', async () => {
    await start()
    const on = disk(Buffer.from('nonsense'))
    await (await boot(on)).sendTelemetry('x')
    expect(via()).toEqual(['dps'])
    expect(stage.of('warning')).toMatchObject([{ message: expect.stringContaining('does not begin as one') }])
  })
})

describe('a device that is killed', () => {
  it('anywhere in its life leaves one that can connect, by what the store holds then', async () => {
    await start()
    const on = disk()
    // What is on the disk at each moment at which it changes, the first being nothing.
    const moments: { certificate: Uint8Array | undefined; assignment: Uint8Array | undefined }[] = []
    for (const store of [on.certificate, on.assignment]) {
      const { write } = store
      store.write = async (bytes) => {
        moments.push({ certificate: on.certificate.bytes, assignment: on.assignment.bytes })
        await write.call(store, bytes)
      }
    }
    const life = await boot(on)
    await renewed()
    stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 5 } })
    await renewed(await failed())
    await life.close()
    moments.push({ certificate: on.certificate.bytes, assignment: on.assignment.bytes })
    // Key, pair and use of the first; of the second; of the one that was refused, and its end; of the third. And the assignment.
    expect(moments).toHaveLength(3 + 3 + 3 + 3 + 1 + 1)
    for (const [at, { certificate, assignment }] of moments.entries()) {
      const hub = await boot(disk(certificate, assignment))
      await hub.sendTelemetry(`after ${at}`)
      await hub.close()
    }
    expect(received()).toEqual(moments.map((_, at) => `after ${at}`))
    const keys = moments.flatMap(({ certificate }) =>
      [...String(certificate).matchAll(/BEGIN PRIVATE KEY-----\\n[^\\]+\\n([^\\]{40})/g)].map(
        (found) => found[1]!,
      ),
    )
    expect(new Set(keys).size).toBe(4)
    const told = inspect(stage.events, { depth: 20, showHidden: true }) + JSON.stringify(stage.events)
    for (const key of keys) expect(told).not.toContain(key)
  })

  it.each(['certificate-requested', 'certificate-issued', 'renewing', 'certificate-in-use'] as const)(
    'or closed at %s leaves nothing behind and connects again',
    async (type) => {
      await start()
      const on = disk()
      let hub: HubConnection | undefined
      let closing: Promise<void> | undefined
      const { onEvent } = stage.options()
      hub = await boot(on, {
        onEvent: (event) => {
          onEvent!(event as never)
          if (event.type === type && hub !== undefined) closing ??= hub.close()
        },
      })
      const seen = stage.next(type)
      clock.advance(DUE)
      await seen
      await closing
      expect(hub.state).toBe('closed')
      await expect.poll(() => stage.emulator.openConnections).toBe(0)
      expect(clock.pending).toBe(0)
      await (await boot(on)).sendTelemetry('x')
    },
  )

  it('finds the answer to what it had asked for', async () => {
    await start()
    const on = disk()
    const hub = await boot(on)
    stage.emulator.faults.add({ at: 'renew-reply', do: { late: 10_000 } })
    const told = stage.emulator.faults.add({ at: 'renew-accepted', do: 'duplicate' })
    clock.advance(DUE)
    await told.hit
    await hub.close()
    clock.advance(10_000)
    const inUse = stage.next('certificate-in-use')
    await boot(on)
    await inUse
    expect(via()).toEqual(['dps', 'hub'])
    expect(
      stage.emulator.log.packets.filter(({ topic }) => topic?.includes('issueCertificate')),
    ).toHaveLength(1)
  })
})

describe('options', () => {
  it.each([
    ['no list', { credential: symmetricKey({ registrationId: ID, key: KEY }) }],
    ['the bootstrap credential first', { credential: [symmetricKey({ registrationId: ID, key: KEY })] }],
    ['another curve', { issuance: { curve: 'P-521' } }],
    ['a part of the life that is none', { issuance: { renewAt: 0.95 } }],
    ['a part of the life that is no number', { issuance: { renewAt: '0.8' } }],
    ['an unknown name', { issuance: { policy: 'x' } }],
    ['a module', { hub: { moduleId: 'm' } }],
    ['no object', { issuance: true }],
  ])('with %s are refused before any packet', async (_, more: object) => {
    await start()
    await expectDpsError(provisionAndConnect(options(disk(), more as never)), 'OPTION_INVALID', 'config')
    expect(stage.emulator.log.connections).toEqual([])
  })

  it('that share one certificate are refused while the first connection lasts, and the first goes on', async () => {
    await start()
    const on = disk()
    const { credential } = options(on)
    const first = boot(on, { credential })
    const second = await expectDpsError(
      provisionAndConnect(options(disk(), { credential })),
      'OPTION_INVALID',
      'config',
    )
    expect(second.message).toMatch(
      /^credential begins with an issuedCertificate\(\) that another .* keeps up/,
    )
    const hub = await first
    await expectDpsError(provisionAndConnect(options(disk(), { credential })), 'OPTION_INVALID', 'config')
    await renewed()
    await hub.sendTelemetry('x')
    expect(via()).toEqual(['dps', 'hub'])
    await hub.close()
    await (await boot(on, { credential })).sendTelemetry('y')
    expect(received()).toEqual(['x', 'y'])
  })

  it('of a call that failed leave the certificate to the next', async () => {
    await start()
    const { credential } = options(disk())
    const signal = AbortSignal.abort()
    await expectDpsError(boot(disk(), { credential, signal }), 'CANCELLED', 'config')
    await (await boot(disk(), { credential })).sendTelemetry('x')
  })

  it('of a connection that is cancelled as it begins, or closed twice, leave it too', async () => {
    await start()
    const on = disk()
    const { credential } = options(on)
    const cancel = new AbortController()
    const onEvent = ({ type }: { type: string }) => {
      if (type === 'connected') cancel.abort()
    }
    await boot(on, { credential, signal: cancel.signal, onEvent }).catch(() => undefined)
    await expect
      .poll(() => boot(on, { credential }).then((hub) => Promise.all([hub.close(), hub.close()])))
      .toHaveLength(2)
    await (await boot(on, { credential })).sendTelemetry('x')
  })

  it('say when to renew', async () => {
    await start()
    await boot(disk(), { issuance: { curve: 'P-256', renewAt: 0.5 } })
    await renewed(0.5 * 1.1 * LIFE - 0.1 * LIFE)
    expect(via()).toEqual(['dps', 'hub'])
  })

  it('of an older hub API version have it renew by registering', async () => {
    await start()
    await boot(disk(), { hub: { ...stage.emulator.hubOptions(), apiVersion: '2021-04-12' } })
    await renewed()
    expect(via()).toEqual(['dps', 'dps'])
  })
})
