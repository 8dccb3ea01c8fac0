import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest'
import { type Emulator, startEmulator } from '../../src/emulator/index.ts'
import { type DpsEvent, fileStore, type ProvisionOptions, provision, x509 } from '../../src/index.ts'
import { testClock } from '../support/clock.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'

// A device over several starts: the file, the credential and the service are real, and each start is a new call.

let emulator: Emulator
let folder: string
let events: DpsEvent[]

beforeAll(async () => {
  emulator = await startEmulator({ assigning: { polls: 1, retryAfterSeconds: 0 } })
})
afterAll(() => emulator.close())
beforeEach(async () => {
  emulator.log.clear()
  emulator.faults.clear()
  emulator.registrations.forget()
  const attestation = { x509: { ca: emulator.pki.deviceRoot.certPem } }
  emulator.enrollments.addGroup({ groupId: 'g', attestation, payload: { ring: 3 } })
  events = []
  folder = mkdtempSync(join(tmpdir(), 'provision-'))
  await newCertificate()
  return () => rmSync(folder, { recursive: true })
})

async function newCertificate(): Promise<void> {
  const { cert, key } = await emulator.issueDeviceCertificate({ registrationId: 'sensor-1' })
  writeFileSync(join(folder, 'cert.pem'), cert)
  writeFileSync(join(folder, 'key.pem'), key)
}

const start = (more: Partial<ProvisionOptions> = {}) =>
  provision({
    ...emulator.clientOptions(),
    credential: x509({ certFile: join(folder, 'cert.pem'), keyFile: join(folder, 'key.pem') }),
    store: fileStore(join(folder, 'assignment')),
    retry: { maxAttempts: 1, pollIntervalMs: 1 },
    onEvent: (event) => events.push(event),
    ...more,
  })

const connections = () => emulator.log.connections.map(({ transport }) => transport)

it('a device registers once, and then comes up without the service', async () => {
  const first = await start()
  expect(first).toMatchObject({
    deviceId: 'sensor-1',
    payload: { ring: 3 },
    source: 'register',
    stored: true,
  })
  expect(connections()).toEqual(['mqtt'])
  expect(readdirSync(folder).sort()).toEqual(['assignment', 'cert.pem', 'key.pem'])
  expect(statSync(join(folder, 'assignment')).mode & 0o777).toBe(0o600)
  const { connection: _, source: __, stored: ___, ...registration } = first
  // Nobody listens there.
  const second = await start({ port: 9 })
  expect(second).toEqual({
    ...registration,
    source: 'store',
    stored: true,
    connection: undefined,
    failure: undefined,
  })
  expect(connections()).toEqual(['mqtt'])
})

it('what is stored holds nothing of the credential', async () => {
  await start()
  const text = readFileSync(join(folder, 'assignment'), 'utf8')
  const key = readFileSync(join(folder, 'key.pem'), 'utf8').split('\n')[1]!
  const certificate = readFileSync(join(folder, 'cert.pem'), 'utf8').split('\n')[1]!
  expect(text).not.toContain(key)
  expect(text).not.toContain(certificate)
})

it('a swapped certificate is another device', async () => {
  await start()
  await newCertificate()
  expect(await start()).toMatchObject({ source: 'register' })
  expect(events).toContainEqual({
    type: 'no-stored-assignment',
    reason: 'foreign',
    message: 'the stored record is of another certificate or key',
  })
})

it('lookup registers a device that never has, and asks from then on', async () => {
  expect(await start({ mode: 'lookup' })).toMatchObject({ source: 'register', stored: true })
  expect(connections()).toEqual(['https', 'mqtt'])
  const again = await start({ mode: 'lookup' })
  expect(again).toMatchObject({
    source: 'lookup',
    assignedHub: 'emulated-hub.azure-devices.net',
    stored: true,
  })
  expect(again).not.toHaveProperty('serviceErrorCode')
  expect(connections()).toEqual(['https', 'mqtt', 'https'])
  expect(await start()).toMatchObject({ source: 'store', payload: { ring: 3 } })
})

it('lookup lives on what is stored while the service is out of reach', async () => {
  await start()
  expect(await start({ mode: 'lookup', port: 9 })).toMatchObject({
    source: 'store',
    failure: { code: 'CONNECTION_REFUSED', phase: 'tcp' },
  })
})

it('a registration that the operator deleted takes what is stored with it', async () => {
  await start()
  emulator.registrations.forget()
  emulator.faults.add({ at: 'register', do: { reply: { status: 503 } } })
  // Not found, and then no new one either: nothing is left to go on from.
  await expectDpsError(start({ mode: 'lookup' }), 'SERVICE_UNAVAILABLE', 'register')
  expect(events.map(({ type }) => type)).toContain('stored-assignment-erased')
  await expectDpsError(start({ port: 9 }), 'CONNECTION_REFUSED', 'tcp')
})

it('a device that was disabled on purpose does not go on from memory', async () => {
  await start()
  emulator.enrollments.disable({ groupId: 'g' })
  const error = await expectDpsError(start({ mode: 'always' }), 'UNAUTHORIZED', 'connect')
  expect(events).toContainEqual({ type: 'stored-assignment-erased', error })
  await expectDpsError(start(), 'UNAUTHORIZED', 'connect')
  emulator.enrollments.enable({ groupId: 'g' })
  expect(await start()).toMatchObject({ source: 'register', stored: true })
})

it('a lookup that says disabled is a verdict', async () => {
  await start()
  emulator.faults.add({
    at: 'lookup',
    do: { reply: { status: 200, body: '{"registrationId":"sensor-1","status":"disabled"}' } },
  })
  await expectDpsError(start({ mode: 'lookup' }), 'REGISTRATION_DISABLED', 'poll')
  await expectDpsError(start({ port: 9 }), 'CONNECTION_REFUSED', 'tcp')
})

it('the time limit is for lookup and registration together', async () => {
  emulator.faults.add({ at: 'register', do: 'silence' })
  const clock = testClock({ startMs: Date.now() })
  const onEvent = (event: DpsEvent) => {
    if (event.type !== 'phase-started') return
    // The lookup takes 1000 ms of the 1500, and what is left is not enough.
    if (event.phase === 'poll') clock.advance(1000)
    if (event.phase === 'register') setImmediate(() => clock.advance(500))
  }
  await expectDpsError(
    start({ mode: 'lookup', timeoutMs: 1500, clock, onEvent }),
    'DEADLINE_EXCEEDED',
    'register',
  )
})
