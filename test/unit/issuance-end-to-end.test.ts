import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type Emulator, generateSymmetricKey, startEmulator } from '../../src/emulator/index.ts'
import { type CertificateSigningRequest, createCsr } from '../../src/factory/index.ts'
import { connectHub, provisionAndConnect } from '../../src/hub/index.ts'
import {
  type Credential,
  fileStore,
  ProvisioningClient,
  type ProvisioningClientOptions,
  type ProvisionOptions,
  provision,
  provisionForever,
  symmetricKey,
  x509,
} from '../../src/index.ts'
import { testClock } from '../support/clock.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { pki } from '../support/stage.ts'

// A device with its onboarding credential asks for the certificate that it uses at the hub.

const registrationId = 'sensor-1'
const key = generateSymmetricKey()
const attestation = { symmetricKey: { primaryKey: key } }
const PREVIEW = '2025-07-01-preview'

let emulator: Emulator
let request: CertificateSigningRequest
beforeAll(async () => {
  emulator = await startEmulator({
    pki,
    assigning: { polls: 1, retryAfterSeconds: 0 },
    enrollments: [
      { registrationId, attestation, issuance: {}, payload: { secret: 'of the application' } },
      { registrationId: 'no-policy', attestation, payload: { secret: 'of the application' } },
      { registrationId: 'other-name', deviceId: 'asset-9', attestation, issuance: {} },
    ],
  })
  emulator.enrollments.addGroup({
    groupId: 'factory',
    attestation: { x509: { ca: pki.deviceRoot.certPem } },
    issuance: {},
  })
  request = await createCsr({ registrationId })
})
afterAll(() => emulator.close())
beforeEach(() => {
  emulator.log.clear()
  emulator.faults.clear()
  emulator.registrations.forget()
})

const credentialOf = (id: string): Credential => symmetricKey({ registrationId: id, key })

const client = (options: Partial<ProvisioningClientOptions> = {}) =>
  new ProvisioningClient({
    ...emulator.clientOptions(),
    credential: credentialOf(registrationId),
    clock: testClock({ startMs: Date.now() }),
    ...options,
  })

/** What the emulator was sent, as far as it says a version, and the bodies. */
const sent = () => emulator.log.packets.filter(({ direction }) => direction === 'in')
const versions = () =>
  new Set(
    sent().flatMap(({ userName, target }) => /api-version=([^&]+)/.exec(userName ?? target ?? '')?.[1] ?? []),
  )
const registrations = () =>
  sent().flatMap(({ topic, target, body }) =>
    /iotdps-register|\/register\?/.test(topic ?? target ?? '')
      ? (JSON.parse(body!) as Record<string, unknown>)
      : [],
  )
const issued = () => emulator.issuance.list().length

describe.each(['mqtt', 'mqtt-ws', 'https'] as const)('over %s', (transport) => {
  it('a registration with a request brings a chain with which the hub lets the device in', async () => {
    const made = await createCsr({ registrationId })
    const assignment = await client({ transport }).register({ csr: made, payload: { model: 7 } })
    expect(assignment.connection.transport).toBe(transport)
    const chain = assignment.issuedCertificateChain!
    expect(chain.slice(1)).toEqual([emulator.issuance.caPem, emulator.issuance.rootPem])
    expect(Object.isFrozen(chain)).toBe(true)
    expect(versions()).toEqual(new Set([PREVIEW]))
    expect(registrations()).toEqual([{ registrationId, payload: { model: 7 }, csr: made.csr }])

    const hub = await connectHub(assignment, {
      ...emulator.hubOptions(),
      credential: x509({ cert: chain, key: made.key! }),
    })
    await hub.sendTelemetry({ issued: true })
    await hub.close()
    expect(emulator.log.connections.at(-1)?.handshake?.clientCertificate).toMatchObject({
      subject: expect.stringContaining(registrationId),
      fingerprint256: emulator.issuance.list().at(-1)!.fingerprint256,
    })
  })

  it('a registration without one is as it always was', async () => {
    const assignment = await client({ transport }).register()
    expect(assignment).not.toHaveProperty('issuedCertificateChain')
    expect(versions()).toEqual(new Set(['2019-03-31']))
    expect(registrations()).toEqual([{ registrationId }])
  })

  it('a lookup after it carries none', async () => {
    const device = client({ transport })
    await device.register({ csr: request })
    emulator.log.clear()
    const state = await device.lookup()
    expect(state).toMatchObject({ status: 'assigned', deviceId: registrationId })
    expect(state).not.toHaveProperty('issuedCertificateChain')
    expect(versions()).toEqual(new Set(['2019-03-31']))
    expect(sent().map(({ body }) => JSON.parse(body!))).toEqual([{ registrationId }])
  })

  it.each(['reversed', 'pem', 'duplicate', 'with-unrelated'] as const)(
    'a chain that is %s is put right',
    async (way) => {
      emulator.faults.add({ at: 'issue', do: way })
      const { issuedCertificateChain } = await client({ transport }).register({ csr: request })
      expect(issuedCertificateChain).toHaveLength(3)
      expect(issuedCertificateChain!.slice(1)).toEqual([emulator.issuance.caPem, emulator.issuance.rootPem])
    },
  )

  it('a reply to a poll that was lost starts no other operation', async () => {
    const before = issued()
    emulator.faults.add({ at: 'poll', do: 'reset' })
    const { issuedCertificateChain } = await client({ transport }).register({ csr: request })
    expect(issuedCertificateChain).toHaveLength(3)
    expect(registrations()).toHaveLength(1)
    expect(issued() - before).toBe(1)
  })

  it('the enrollment has no policy: the device is assigned, and told so', async () => {
    const device = client({ transport, credential: credentialOf('no-policy') })
    const { csr } = await createCsr({ registrationId: 'no-policy' })
    const error = await expectDpsError(device.register({ csr }), 'CERTIFICATE_NOT_ISSUED', 'parse')
    expect(error).toMatchObject({ family: 'service', retryable: false })
    expect(error.assignment).toMatchObject({
      assignedHub: 'emulated-hub.azure-devices.net',
      deviceId: 'no-policy',
      payload: { secret: 'of the application' },
      connection: { transport },
    })
    expect(JSON.parse(JSON.stringify(error))).toMatchObject({
      code: 'CERTIFICATE_NOT_ISSUED',
      assignment: { assignedHub: 'emulated-hub.azure-devices.net', deviceId: 'no-policy' },
    })
    expect(JSON.stringify(error)).not.toContain('of the application')
  })
})

it('a request goes ahead of CONNACK as any first request does', async () => {
  const { issuedCertificateChain, connection } = await client({ mqtt: { pipelining: true } }).register({
    csr: request,
  })
  expect(issuedCertificateChain).toHaveLength(3)
  // TCP, TLS, the flight and one poll.
  expect(connection.roundTrips).toBeLessThanOrEqual(1 + 2 + 1 + 1)
  expect(registrations()).toHaveLength(1)
})

it('a device with an onboarding certificate gets another one', async () => {
  const { cert, key } = await emulator.issueDeviceCertificate({ registrationId: 'gateway-7' })
  const { csr } = await createCsr({ registrationId: 'gateway-7', curve: 'P-256' })
  const { issuedCertificateChain, deviceId } = await client({ credential: x509({ cert, key }) }).register({
    csr,
  })
  expect(deviceId).toBe('gateway-7')
  expect(issuedCertificateChain).toHaveLength(3)
})

it('a device whose device id is another name gets a certificate for its registration id', async () => {
  const { pem } = await createCsr({ registrationId: 'other-name' })
  const assignment = await client({ credential: credentialOf('other-name') }).register({ csr: pem })
  expect(assignment).toMatchObject({ deviceId: 'asset-9', registrationId: 'other-name' })
  expect(assignment.issuedCertificateChain).toHaveLength(3)
})

it('a later version that the caller named is used', async () => {
  await client({ apiVersion: '2026-11-02-preview' }).register({ csr: request })
  expect(versions()).toEqual(new Set(['2026-11-02-preview']))
})

describe('nothing is sent', () => {
  it.each<[string, Partial<ProvisioningClientOptions>, () => unknown, string]>([
    [
      'with a version that has no requests',
      { apiVersion: '2019-03-31' },
      () => request,
      'csr needs apiVersion',
    ],
    [
      'with the version of the dead preview',
      { apiVersion: '2021-11-01-preview' },
      () => request,
      'csr needs apiVersion',
    ],
    [
      'for a request of another device',
      { credential: credentialOf('sensor-2') },
      () => request,
      'its CN is "sensor-1"',
    ],
    [
      'for a request in another letter case',
      { credential: credentialOf('SENSOR-1') },
      () => request,
      'letter for letter',
    ],
    ['for a key in place of a request', {}, () => request.key, 'no CERTIFICATE REQUEST'],
    ['for nothing in place of a request', {}, () => null, 'csr must be base64'],
  ])('%s', async (_, options, csr, why) => {
    const error = await expectDpsError(
      client(options).register({ csr: csr() as never }),
      'OPTION_INVALID',
      'config',
    )
    expect(error.message).toContain(why)
    expect(emulator.log.connections).toEqual([])
  })
})

it('a request that the service does not grant is a refusal, and nothing is assigned', async () => {
  const { csr } = await createCsr({ registrationId, rsaBits: 2048 })
  const error = await expectDpsError(client().register({ csr }), 'BAD_REQUEST', 'register')
  expect(error.assignment).toBeUndefined()
  expect(JSON.parse(JSON.stringify(error))).not.toHaveProperty('assignment')
})

describe('provision', () => {
  let folder: string
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'issuance-'))
    return () => rmSync(folder, { recursive: true })
  })
  const start = (more: Partial<ProvisionOptions> = {}) =>
    provision({
      ...emulator.clientOptions(),
      credential: credentialOf(registrationId),
      clock: testClock({ startMs: Date.now() }),
      store: fileStore(join(folder, 'assignment')),
      csr: request,
      ...more,
    })

  it('hands out the chain once, and stores the assignment without it', async () => {
    const first = await start()
    expect(first).toMatchObject({ source: 'register', stored: true })
    expect(first.issuedCertificateChain).toHaveLength(3)
    const second = await start()
    expect(second).toMatchObject({ source: 'store', deviceId: registrationId })
    expect(second).not.toHaveProperty('issuedCertificateChain')
    const looked = await start({ mode: 'lookup' })
    expect(looked).toMatchObject({ source: 'lookup' })
    expect(looked).not.toHaveProperty('issuedCertificateChain')
    expect(registrations()).toHaveLength(1)
  })

  it.each([
    ['no-chain', 'CERTIFICATE_NOT_ISSUED'],
    ['wrong-key', 'ISSUED_CERTIFICATE_INVALID'],
  ] as const)('keeps the assignment that came with %s', async (lie, code) => {
    emulator.faults.add({ at: 'issue', do: lie })
    const { assignment } = await expectDpsError(start(), code, 'parse')
    expect(assignment).toMatchObject({ deviceId: registrationId })
    expect(await start()).toMatchObject({ source: 'store', assignedHub: assignment!.assignedHub })
    expect(registrations()).toHaveLength(1)
  })

  it('forever does not register again where the certificate alone is missing', async () => {
    emulator.faults.add({ at: 'issue', do: 'no-chain', times: Number.POSITIVE_INFINITY })
    const forever = provisionForever(
      {
        ...emulator.clientOptions(),
        credential: credentialOf(registrationId),
        clock: testClock({ startMs: Date.now() }),
      },
      { csr: request },
    )
    await expectDpsError(forever, 'CERTIFICATE_NOT_ISSUED', 'parse')
    expect(registrations()).toHaveLength(1)
  })

  it('and connect takes no request, whose certificate nobody would have', async () => {
    const options = {
      ...emulator.clientOptions(),
      credential: credentialOf(registrationId),
      store: fileStore(join(folder, 'assignment')),
      csr: request,
    }
    await expectDpsError(provisionAndConnect(options as never), 'OPTION_INVALID', 'config')
    expect(emulator.log.connections).toEqual([])
  })
})
