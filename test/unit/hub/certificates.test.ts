import { X509Certificate } from 'node:crypto'
import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import { symmetricKey } from '../../../src/credential/sas.ts'
import { x509 } from '../../../src/credential/x509.ts'
import type { EmulatorOptions, FaultSpec } from '../../../src/emulator/index.ts'
import { type CertificateSigningRequest, createCsr } from '../../../src/factory/index.ts'
import type { ConnectHubOptions, HubConnection } from '../../../src/hub/index.ts'
import { ProvisioningClient } from '../../../src/index.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { StepClock } from '../../support/step-clock.ts'
import { HUB, HubStage, KEY } from './stage.ts'

// A device asks its hub for its next certificate.

const ID = 'meter-1'
const VERSION = '2025-08-01-preview'
const FILTER = '$iothub/credentials/res/#'

let first: CertificateSigningRequest
let next: CertificateSigningRequest
let stage: HubStage
let clock: StepClock
beforeAll(async () => {
  first = await createCsr({ registrationId: ID })
  next = await createCsr({ registrationId: ID })
})
afterEach(async () => {
  await stage.close()
  expect(clock.pending).toBe(0)
})

async function open(
  options: EmulatorOptions = {},
  more: Partial<ConnectHubOptions> = {},
  deviceId = ID,
): Promise<HubConnection> {
  clock = new StepClock()
  stage = await HubStage.open({
    clock,
    hubRenewal: { delayMs: 0 },
    enrollments: [
      { registrationId: ID, deviceId, attestation: { symmetricKey: { primaryKey: KEY } }, issuance: {} },
    ],
    ...options,
  })
  const client = new ProvisioningClient({
    ...stage.emulator.clientOptions(),
    credential: symmetricKey({ registrationId: ID, key: KEY }),
    clock,
  })
  const { issuedCertificateChain } = await client.register({ csr: first })
  const credential = x509({ cert: issuedCertificateChain!, key: first.key! })
  return stage.connect({ credential, clock, apiVersion: VERSION, ...more }, { assignedHub: HUB, deviceId })
}

const sent = (topic = '/POST/issueCertificate/') =>
  stage.emulator.log.packets.filter((packet) => packet.direction === 'in' && packet.topic?.includes(topic))
const issuedByHub = () => stage.emulator.issuance.list().filter(({ via }) => via === 'hub')

/** Resolves when a fault has struck at this step, or an answer has been read there. */
async function struck(fault: FaultSpec): Promise<void> {
  await stage.emulator.faults.add(fault).hit
}

function checkChain(chain: readonly string[], request = next): void {
  const leaf = new X509Certificate(chain[0]!)
  expect(leaf.publicKey.export({ type: 'spki', format: 'pem' })).toBe(request.publicKey)
  expect(leaf.fingerprint256).toBe(issuedByHub().at(-1)?.fingerprint256)
  expect(chain.slice(1)).toEqual([stage.emulator.issuance.caPem, stage.emulator.issuance.rootPem])
}

describe('a request', () => {
  it('brings a checked chain, by which the hub lets the device in, and the session goes on', async () => {
    const hub = await open()
    const chain = await hub.requestCertificate({ csr: next })
    checkChain(chain)
    expect(Object.isFrozen(chain)).toBe(true)
    await hub.sendTelemetry('on the same connection')
    expect(stage.of('connected')).toHaveLength(1)
    expect(sent()).toHaveLength(1)
    expect(JSON.parse(sent()[0]!.body!)).toEqual({ id: ID, csr: next.csr })
    const renewed = await stage.connect(
      { credential: x509({ cert: chain, key: next.key! }), clock },
      { assignedHub: HUB, deviceId: ID },
    )
    await renewed.sendTelemetry('by the new one')
  })

  it('subscribes before it is made, once, and only where one is made', async () => {
    const hub = await open()
    const packets = () =>
      stage.emulator.log.packets.flatMap(({ direction, type, topic }) =>
        direction === 'in' && (type === 'subscribe' || type === 'publish') ? `${type} ${topic ?? ''}` : [],
      )
    const before = packets().length
    await hub.requestCertificate({ csr: next, requestId: 'first-1' })
    await hub.requestCertificate({ csr: next, requestId: 'second-2' })
    expect(packets().slice(before)).toEqual([
      expect.stringMatching(/^subscribe/),
      'publish $iothub/credentials/POST/issueCertificate/?$rid=first-1',
      'publish $iothub/credentials/POST/issueCertificate/?$rid=second-2',
    ])
  })

  it('is one of five subscriptions at most', async () => {
    const hub = await open()
    hub.onCommand(() => undefined)
    hub.onMethod('m', () => ({ status: 200 }))
    hub.twin.onDesired(() => undefined)
    await hub.twin.get()
    await hub.requestCertificate({ csr: next })
    const again = stage.next('connected')
    stage.emulator.hub.disconnect(ID)
    await again
    const asked = stage.emulator.log.packets.filter(
      ({ direction, type }) => direction === 'in' && type === 'subscribe',
    )
    const last = asked.filter(({ connectionId }) => connectionId === asked.at(-1)!.connectionId)
    expect(JSON.stringify(last)).toContain(FILTER)
    const violations = stage.seen.filter(({ type }) => type === 'violation')
    expect(violations).toEqual([])
  })

  it('takes PEM, base64 or what createCsr returns', async () => {
    const hub = await open()
    checkChain(await hub.requestCertificate({ csr: next.pem }))
    checkChain(await hub.requestCertificate({ csr: next.csr }))
  })

  it('may be for a device whose id is not its registration id', async () => {
    const hub = await open({}, {}, 'asset-9')
    checkChain(await hub.requestCertificate({ csr: next }))
    expect(JSON.parse(sent()[0]!.body!)).toMatchObject({ id: 'asset-9' })
  })

  it('over WebSocket', async () => {
    const hub = await open({}, { transport: 'mqtt-ws' })
    checkChain(await hub.requestCertificate({ csr: next }))
  })

  it('replaces one that is pending, where that is asked for, and is made without where none is', async () => {
    const hub = await open({ hubRenewal: { delayMs: 60_000 } })
    const accepted = struck({ at: 'renew-accepted', do: 'duplicate' })
    const old = hub.requestCertificate({ csr: next, requestId: 'old-1' })
    const lost = expectDpsError(old, 'TIMEOUT', 'hub')
    await accepted
    await expectDpsError(hub.requestCertificate({ csr: next }), 'CONFLICT', 'hub')
    await expectDpsError(hub.requestCertificate({ csr: next, replace: 'other-2' }), 'CONFLICT', 'hub')
    const told = struck({ at: 'renew-accepted', do: 'duplicate' })
    const fresh = hub.requestCertificate({ csr: next, requestId: 'new-1', replace: 'old-1' })
    await told
    await hub.twin.get()
    clock.advance(60_000)
    checkChain(await fresh)
    clock.advance(60_000)
    await lost
    const last = hub.requestCertificate({ csr: next, replace: '*' })
    await struck({ at: 'renew-accepted', do: 'duplicate' })
    await hub.twin.get()
    clock.advance(60_000)
    checkChain(await last)
  })
})

describe('is refused before any packet', () => {
  it.each([
    ['no request', {}],
    ['a request of another name', { csr: 'other' }],
    ['an id of three characters', { requestId: 'abc' }],
    ['an id with a slash', { requestId: 'ab/cd' }],
    ['an id with a dash at its end', { requestId: 'abcd-' }],
    ['an id that is no text', { requestId: 7 }],
    ['a replacement of no id', { replace: '**' }],
    ['a signal that is none', { signal: 'x' }],
  ])('with %s', async (_, more: object) => {
    const hub = await open()
    const csr = 'csr' in more ? await createCsr({ registrationId: 'other' }) : next
    const options = Object.keys(more).length === 0 ? {} : { ...more, csr }
    await expectDpsError(hub.requestCertificate(options as never), 'OPTION_INVALID', 'config')
    expect(sent()).toEqual([])
  })

  it('on a connection of an older API version, and says which it takes', async () => {
    const hub = await open({}, { apiVersion: '2021-04-12' })
    const error = await expectDpsError(hub.requestCertificate({ csr: next }), 'OPTION_INVALID', 'config')
    expect(error.message).toContain(VERSION)
    expect(sent()).toEqual([])
  })

  it('under the id of one that waits', async () => {
    const hub = await open({ hubRenewal: { delayMs: 60_000 } })
    const waiting = expectDpsError(
      hub.requestCertificate({ csr: next, requestId: 'same-1' }),
      'HUB_CLOSED',
      'hub',
    )
    await struck({ at: 'renew-accepted', do: 'duplicate' })
    await expectDpsError(
      hub.requestCertificate({ csr: next, requestId: 'same-1' }),
      'OPTION_INVALID',
      'config',
    )
    await hub.close()
    await waiting
  })

  it('once it is cancelled or closed', async () => {
    const hub = await open()
    await expectDpsError(
      hub.requestCertificate({ csr: next, signal: AbortSignal.abort() }),
      'CANCELLED',
      'hub',
    )
    await hub.close()
    await expectDpsError(hub.requestCertificate({ csr: next }), 'HUB_CLOSED', 'hub')
  })
})

describe('an answer', () => {
  it('that is a bare list is one too', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew-reply', do: 'bare-array' })
    checkChain(await hub.requestCertificate({ csr: next }))
  })

  it('that comes twice, 202 or 200, counts once', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew-accepted', do: 'duplicate' })
    stage.emulator.faults.add({ at: 'renew-reply', do: 'duplicate' })
    checkChain(await hub.requestCertificate({ csr: next }))
    await hub.twin.get()
    expect(stage.of('message-ignored')).toEqual([])
    expect(stage.of('disconnected')).toEqual([])
  })

  it('that comes before 202 counts', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew-accepted', do: 'silence' })
    checkChain(await hub.requestCertificate({ csr: next }))
  })

  it('to another request is none', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew-reply', do: 'wrong-rid' })
    const waiting = expectDpsError(hub.requestCertificate({ csr: next }), 'TIMEOUT', 'hub')
    await struck({ at: 'renew-accepted', do: 'duplicate' })
    await hub.twin.get()
    clock.advance(120_000)
    await waiting
  })

  it.each([
    ['an error to another device’s id', '$iothub/credentials/res/403/?$rid=zzzz'],
    ['a topic that cannot be read', '$iothub/credentials/res/20/?$rid'],
    ['a topic with a rid of a megabyte', `$iothub/credentials/res/200/?$rid=${'a'.repeat(60_000)}`],
  ])('that is %s changes nothing', async (_, topic) => {
    const hub = await open({ hubRenewal: { delayMs: 1000 } })
    const waiting = hub.requestCertificate({ csr: next })
    await struck({ at: 'renew-accepted', do: 'duplicate' })
    stage.emulator.hub.publish(ID, topic, '{}')
    await hub.twin.get()
    clock.advance(1000)
    checkChain(await waiting)
  })

  it('that comes after a reconnect counts, and the request is not made anew', async () => {
    const hub = await open({ hubRenewal: { delayMs: 1000 } })
    const waiting = hub.requestCertificate({ csr: next })
    await struck({ at: 'renew-accepted', do: 'duplicate' })
    await hub.twin.get()
    const back = stage.next('connected')
    stage.emulator.hub.disconnect(ID, 'reset')
    await back
    await hub.twin.get()
    clock.advance(1000)
    checkChain(await waiting)
    expect(sent()).toHaveLength(1)
  })

  it('that was ready while the device was away counts, with or without 202', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew-accepted', do: 'reset' })
    checkChain(await hub.requestCertificate({ csr: next }))
    expect(sent()).toHaveLength(1)
    expect(issuedByHub()).toHaveLength(1)
  })

  it('to a request that never came is asked for anew under the same id, five seconds after a reconnect', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew', do: 'reset' })
    const waiting = hub.requestCertificate({ csr: next, requestId: 'again-1' })
    await stage.next('connected')
    await hub.twin.get()
    expect(sent()).toHaveLength(1)
    clock.advance(5000)
    checkChain(await waiting)
    expect(sent().map(({ topic }) => topic)).toEqual(Array(2).fill(sent()[0]!.topic))
    expect(issuedByHub()).toHaveLength(1)
  })

  it('to a request of a process that is no more is waited for, and the request then taken for the same', async () => {
    const hub = await open({ hubRenewal: { delayMs: 60_000 } })
    const cut = expectDpsError(
      hub.requestCertificate({ csr: next, requestId: 'boot-1' }),
      'HUB_CLOSED',
      'hub',
    )
    await struck({ at: 'renew-accepted', do: 'duplicate' })
    await hub.close()
    await cut
    const credential = x509({ cert: await chainOfFirst(), key: first.key! })
    const restarted = await stage.connect(
      { credential, clock, apiVersion: VERSION },
      { assignedHub: HUB, deviceId: ID },
    )
    const resumed = restarted.requestCertificate({ csr: next, requestId: 'boot-1', resume: true })
    await restarted.twin.get()
    // Nothing was ready: it is asked once more, and the hub says that it knows (409).
    const known = struck({
      at: 'renew',
      do: { reply: { status: 409, errorCode: 409_005, body: pendingBody('boot-1') } },
    })
    clock.advance(5000)
    await known
    await restarted.twin.get()
    clock.advance(60_000)
    checkChain(await resumed)
    expect(issuedByHub()).toHaveLength(1)
  })
})

const pendingBody = (requestId: string) =>
  JSON.stringify({ errorCode: 409_005, message: 'pending', info: { requestId } })

/** Another of the same key: what the stage was opened with is not kept. */
async function chainOfFirst(): Promise<readonly string[]> {
  const client = new ProvisioningClient({
    ...stage.emulator.clientOptions(),
    credential: symmetricKey({ registrationId: ID, key: KEY }),
    clock,
  })
  return (await client.register({ csr: first })).issuedCertificateChain!
}

describe('silence', () => {
  it('to the request ends it after two minutes', async () => {
    const hub = await open()
    const ignored = struck({ at: 'renew', do: 'ignore' })
    const waiting = expectDpsError(hub.requestCertificate({ csr: next }), 'TIMEOUT', 'hub')
    await ignored
    clock.advance(119_999)
    await hub.twin.get()
    clock.advance(1)
    expect((await waiting).message).toContain('take the request')
  })

  it('after 202 ends it two minutes later, however often 202 is said', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew-reply', do: { late: Number.POSITIVE_INFINITY } })
    const told = struck({ at: 'renew-accepted', do: 'duplicate' })
    const waiting = expectDpsError(
      hub.requestCertificate({ csr: next, requestId: 'slow-1' }),
      'TIMEOUT',
      'hub',
    )
    await told
    await hub.twin.get()
    clock.advance(119_000)
    stage.emulator.hub.publish(ID, '$iothub/credentials/res/202/?$rid=slow-1', '{}')
    await hub.twin.get()
    clock.advance(1000)
    expect((await waiting).message).toContain('issue the certificate')
    await hub.sendTelemetry('goes on')
  })

  it('is cancelled by the caller', async () => {
    const hub = await open()
    const controller = new AbortController()
    const ignored = struck({ at: 'renew', do: 'ignore' })
    const waiting = expectDpsError(
      hub.requestCertificate({ csr: next, signal: controller.signal }),
      'CANCELLED',
      'hub',
    )
    await ignored
    controller.abort()
    await waiting
  })
})

describe('a lie about the certificate', () => {
  it.each([
    ['wrong-key', 'ISSUED_CERTIFICATE_INVALID'],
    ['wrong-name', 'ISSUED_CERTIFICATE_INVALID'],
    ['broken-chain', 'ISSUED_CERTIFICATE_INVALID'],
    ['expired', 'ISSUED_CERTIFICATE_INVALID'],
    ['not-yet-valid', 'ISSUED_CERTIFICATE_INVALID'],
    ['leaf-only', 'ISSUED_CERTIFICATE_INVALID'],
    ['garbage', 'ISSUED_CERTIFICATE_INVALID'],
    ['no-chain', 'CERTIFICATE_NOT_ISSUED'],
  ] as const)('%s is told as %s, and the session goes on', async (lie, code) => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'issue', do: lie })
    await expectDpsError(hub.requestCertificate({ csr: next }), code, 'parse')
    await hub.sendTelemetry('x')
    checkChain(await hub.requestCertificate({ csr: next }))
  })

  it.each(['reversed', 'pem', 'duplicate', 'with-unrelated'] as const)('%s is put right', async (lie) => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'issue', do: lie })
    checkChain(await hub.requestCertificate({ csr: next }))
  })

  it.each([
    ['that is cut short', { truncate: 40 }],
    ['of no JSON', { reply: { body: 'certificates' } }],
    ['of no UTF-8', { reply: { body: Buffer.from([0xff, 0xfe]) } }],
    ['with status 206', { reply: { status: 206 } }],
  ] as const)('an answer %s is told as malformed', async (_, fault) => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew-reply', do: fault as never })
    await expectDpsError(hub.requestCertificate({ csr: next }), 'REPLY_MALFORMED', 'parse')
    await hub.sendTelemetry('x')
  })

  it('an answer of 250 KB is read', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'renew-reply', do: { oversize: 250_000 } })
    checkChain(await hub.requestCertificate({ csr: next }))
  })
})

describe('a refusal', () => {
  it.each([
    [400_001, 'BAD_REQUEST'],
    [400_037, 'BAD_REQUEST'],
    [400_040, 'BAD_REQUEST'],
    [403_010, 'FORBIDDEN'],
    [404_001, 'NOT_FOUND'],
    [409_004, 'CONFLICT'],
    [412_001, 'CONFLICT'],
    [429_002, 'THROTTLED'],
    [500_001, 'SERVICE_UNAVAILABLE'],
    [503_102, 'SERVICE_UNAVAILABLE'],
  ] as const)('of %i is told as %s', async (errorCode, code) => {
    const hub = await open()
    const status = Math.floor(errorCode / 1000)
    stage.emulator.faults.add({ at: 'renew', do: { reply: { status, errorCode, message: 'no' } } })
    const error = await expectDpsError(hub.requestCertificate({ csr: next }), code, 'hub')
    expect(error).toMatchObject({ serviceErrorCode: errorCode, trackingId: expect.any(String) })
    await hub.sendTelemetry('x')
  })

  it('of the tier, by the hub itself', async () => {
    const hub = await open({ hubRenewal: { supported: false } })
    const error = await expectDpsError(hub.requestCertificate({ csr: next }), 'FORBIDDEN', 'hub')
    expect(error.serviceErrorCode).toBe(403_010)
  })

  it('after 202', async () => {
    const hub = await open()
    stage.emulator.faults.add({
      at: 'renew-reply',
      do: { reply: { status: 500, body: '{"errorCode":500001,"retryAfter":30}' } },
    })
    const error = await expectDpsError(hub.requestCertificate({ csr: next }), 'SERVICE_UNAVAILABLE', 'hub')
    expect(error.retryAfterMs).toBe(300_000)
  })

  it('of the subscription', async () => {
    const hub = await open()
    stage.emulator.faults.add({ at: 'hub-subscribe', do: 'refuse' })
    await expectDpsError(hub.requestCertificate({ csr: next }), 'SUBSCRIPTION_REFUSED', 'subscribe')
    expect(sent()).toEqual([])
    await hub.sendTelemetry('x')
  })
})

describe('the end of a certificate that nobody renews', () => {
  const DAY = 86_400_000
  const ends = () => stage.of('certificate-expires').length

  it('is told from 30 days before, once a day, over reconnects', async () => {
    const policy = { issuance: { lifetimeMs: 32 * DAY } }
    const hub = await open(
      {
        enrollments: [{ registrationId: ID, attestation: { symmetricKey: { primaryKey: KEY } }, ...policy }],
      },
      { keepAliveSeconds: 1177 },
    )
    expect(ends()).toBe(0)
    const [info] = stage.emulator.issuance.list()
    const reconnected = async (): Promise<void> => {
      const back = stage.next('connected')
      stage.emulator.hub.disconnect(ID)
      await back
    }
    // Both ends of an idle connection look at their watches, which moved by a day.
    clock.advance(DAY)
    await reconnected()
    expect(ends()).toBe(0)
    clock.advance(DAY + 1000)
    await reconnected()
    expect(ends()).toBe(1)
    expect(stage.of('certificate-expires')[0]).toEqual({
      type: 'certificate-expires',
      validUntil: info!.notAfter,
    })
    await reconnected()
    expect(ends()).toBe(1)
    await hub.sendTelemetry('x')
    clock.advance(DAY)
    expect(ends()).toBe(2)
  })
})
