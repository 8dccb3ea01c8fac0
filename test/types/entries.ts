// The other entries; see main.ts.

import type { KeyObject } from 'node:crypto'
import * as main from 'dps-device-client'
import {
  type Assignment,
  type Credential,
  type DpsErrorCode,
  fileStore,
  type Transport,
} from 'dps-device-client'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type EnrollmentKeys,
  type FaultSpec,
  issueCertificate,
  startEmulator,
} from 'dps-device-client/emulator'
import { createCsr, deriveDeviceKey } from 'dps-device-client/factory'
import {
  connectHub,
  type DpsError,
  type HubConnection,
  type HubEvent,
  provisionAndConnect,
  type Twin,
} from 'dps-device-client/hub'
import { type ContractCase, transportContract } from 'dps-device-client/testing'

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
const same = <A, B>(yes: Same<A, B>): void => void yes

declare const credential: Credential
declare const assignment: Assignment
declare const keyObject: KeyObject
declare const transport: Transport
const idScope = '0ne00000000'

// One error, whichever entry it comes from.
same<typeof DpsError, typeof main.DpsError>(true)
same<DpsError['code'], DpsErrorCode>(true)

// dps-device-client/factory
same<ReturnType<typeof deriveDeviceKey>, Promise<string>>(true)
createCsr({ registrationId: 'a' })
createCsr({ registrationId: 'a', curve: 'P-256' })
createCsr({ registrationId: 'a', rsaBits: 3072 })
createCsr({ registrationId: 'a', key: keyObject })
createCsr({
  registrationId: 'a',
  key: { publicKey: keyObject, sign: async (data, digest) => (digest === 'sha384' ? data : data) },
})
// @ts-expect-error: too short to be issued for
createCsr({ registrationId: 'a', rsaBits: 1024 })
// @ts-expect-error: one kind of key
createCsr({ registrationId: 'a', rsaBits: 2048, curve: 'P-256' })
// @ts-expect-error: a key is made or given
createCsr({ registrationId: 'a', rsaBits: 2048, key: keyObject })
// @ts-expect-error: nobody's key
deriveDeviceKey({ groupKey: 'k' })

// dps-device-client/hub
const hub = await connectHub(assignment, { credential: [credential], transport: ['mqtt', 'mqtt-ws'] })
same<typeof hub, HubConnection>(true)
same<ReturnType<typeof hub.twin.get>, Promise<Twin>>(true)
same<ReturnType<typeof hub.twin.report>, Promise<number | undefined>>(true)
await connectHub({ assignedHub: 'h', deviceId: 'd' }, { credential, queue: { maxMessages: 1 } })
hub.onMethod('m', ({ name, payload }) => ({ status: name.length, payload }))
hub.onCommand(async ({ body, properties, redelivered }) => [body.byteLength, properties.a, redelivered])
// @ts-expect-error: an answer has a status
hub.onMethod('m', () => undefined)
// @ts-expect-error: a body is text, bytes or an object
hub.sendTelemetry(1)
// @ts-expect-error: properties are texts
hub.sendTelemetry('a', { properties: { a: 1 } })
// @ts-expect-error: it is the connection that changes it
hub.state = 'closed'
// @ts-expect-error: a hub is reached by MQTT
connectHub(assignment, { credential, transport: 'https' })
// @ts-expect-error: nothing turns verification off
connectHub(assignment, { credential, tls: { rejectUnauthorized: false } })
// @ts-expect-error: the request is made by issuance
provisionAndConnect({ idScope, credential, store: fileStore('a'), csr: 'c' })
provisionAndConnect({
  idScope,
  credential,
  store: fileStore('a'),
  hub: { queue: { maxBytes: 1 } },
  issuance: { curve: 'P-256' },
  onEvent: (event) => event.type === 'disconnected' || event.type === 'attempt-failed',
})
export function tell(event: HubEvent): string | number | boolean | Date {
  switch (event.type) {
    case 'connected':
      return event.connection.root
    case 'reconnecting':
      return event.failures + event.delayMs
    case 'handler-failed':
      same<typeof event.error, unknown>(true)
      return event.handler
    case 'certificate-expires':
      return event.validUntil
    case 'certificate-issued':
    case 'certificate-in-use':
      return event.certificate.commonName
    case 'certificate-requested':
      same<typeof event.via, 'hub' | 'dps'>(true)
      return event.via
    case 'message-ignored':
    case 'warning':
      return event.message
    case 'renewing':
      // @ts-expect-error: nothing failed
      event.error
      return true
    // @ts-expect-error: a hub does not assign
    case 'assigning':
      return false
    default:
      return event.type
  }
}

// dps-device-client/emulator
const emulator = await startEmulator({ port: [8883, 443], assigning: { retryAfterSeconds: null } })
same<typeof emulator, Emulator>(true)
same<ReturnType<typeof emulator.enrollments.addGroup>, EnrollmentKeys | undefined>(true)
emulator.enrollments.addIndividual({ registrationId: 'a', attestation: { x509: { certificate: 'pem' } } })
emulator.enrollments.addGroup({ groupId: 'a', attestation: { x509: { ca: 'pem' } } })
// @ts-expect-error: a group has an authority
emulator.enrollments.addGroup({ groupId: 'a', attestation: { x509: { certificate: 'pem' } } })
emulator.faults.add({ at: 'connect', do: { refuse: 5 }, times: 2 })
// @ts-expect-error: nothing is assigned in a connection
emulator.faults.add({ at: 'connect', do: { outcome: 'failed' } })
// @ts-expect-error: no such step
export const nowhere: FaultSpec = { at: 'later', do: 'drop' }
export const seen = (event: EmulatorEvent) => event.type === 'handshake-done' && event.cipher
const pki = await createPki()
same<Awaited<ReturnType<typeof issue>>, string>(true)
const issue = async () => (await issueCertificate({ subject: 'a', issuer: pki.deviceRoot })).keyPem
const signed = await issueCertificate({ subject: 'a', publicKey: 'pem' })
// @ts-expect-error: the key stays where it is
signed.keyPem
// What the emulator says of itself is what a client takes.
new main.ProvisioningClient({ ...emulator.clientOptions(), credential })
connectHub(assignment, { ...emulator.hubOptions(), credential })

// dps-device-client/testing
same<ReturnType<typeof transportContract>, readonly ContractCase[]>(true)
transportContract({ makeTransport: () => transport, emulator: startEmulator(), limitMs: 1 })
// @ts-expect-error: it makes one for each case
transportContract({ makeTransport: transport, emulator })
