// Never run: the compiler reads it, against the declarations that are built, in `npm run check`; test/package does so again
// against the tarball. A line under `@ts-expect-error` that compiles is an error.

import type { KeyObject } from 'node:crypto'
import type { Duplex } from 'node:stream'
import {
  type Assignment,
  type AssignmentStore,
  type BUNDLED_ROOTS,
  type BundledRoot,
  type Clock,
  type Contact,
  type Credential,
  type CredentialInspection,
  DpsError,
  type DpsErrorCode,
  type DpsErrorFamily,
  type DpsEvent,
  type DpsPhase,
  fileStore,
  type HubMqttOptions,
  hubSettings,
  inspectCredential,
  issuedCertificate,
  ProvisioningClient,
  type ProvisioningClientOptions,
  provision,
  type provisionForever,
  type RegistrationState,
  type SymmetricKeyOptions,
  sasSigner,
  type shouldReprovision,
  symmetricKey,
  type systemClock,
  type Transport,
  type TransportName,
  type X509Options,
  x509,
} from 'dps-device-client'

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
const same = <A, B>(yes: Same<A, B>): void => void yes

declare const pem: string
declare const bytes: Uint8Array
declare const path: URL
declare const keyObject: KeyObject
declare const credential: Credential
declare const store: AssignmentStore
declare const transport: Transport
declare const error: unknown
const idScope = '0ne00000000'

// Credentials: exactly one source for each part, and each in every form that is taken.
x509({ cert: pem, key: pem })
x509({ cert: [pem, bytes], key: bytes, passphrase: pem, registrationId: 'a' })
x509({ cert: async () => [pem], key: () => bytes })
x509({ certFile: 'a', keyFile: path, passphrase: pem })
x509({ cert: pem, privateKeyEngine: 'e', privateKeyIdentifier: 'i' })
x509({ pkcs12: bytes, passphrase: pem })
x509({ pkcs12File: path })
// @ts-expect-error: a certificate without a key
x509({ cert: pem })
// @ts-expect-error: a key without a certificate
x509({ key: pem })
// @ts-expect-error: two certificates
x509({ cert: pem, certFile: 'a', key: pem })
// @ts-expect-error: two keys
x509({ cert: pem, key: pem, keyFile: 'a' })
// @ts-expect-error: a key and an engine
x509({ cert: pem, key: pem, privateKeyEngine: 'e', privateKeyIdentifier: 'i' })
// @ts-expect-error: an engine that is not told which key
x509({ cert: pem, privateKeyEngine: 'e' })
// @ts-expect-error: a passphrase belongs to a key that is given
x509({ cert: pem, privateKeyEngine: 'e', privateKeyIdentifier: 'i', passphrase: pem })
// @ts-expect-error: a bundle holds the certificate
x509({ pkcs12: bytes, cert: pem })
// @ts-expect-error: a bundle holds the key
x509({ pkcs12: bytes, keyFile: 'a' })
// @ts-expect-error: one bundle
x509({ pkcs12: bytes, pkcs12File: 'a' })
// @ts-expect-error: a bundle is no text
x509({ pkcs12: pem })
// @ts-expect-error: a key that cannot leave its object is used by an engine
x509({ cert: pem, key: keyObject })
symmetricKey({ registrationId: 'a', key: 'k' })
symmetricKey({ registrationId: 'a', key: async () => 'k' })
symmetricKey({ registrationId: 'a', keyFile: path })
// @ts-expect-error: nobody's key
symmetricKey({ key: 'k' })
// @ts-expect-error: two keys
symmetricKey({ registrationId: 'a', key: 'k', keyFile: 'f' })
// @ts-expect-error: a key is base64
symmetricKey({ registrationId: 'a', key: bytes })
sasSigner({ registrationId: 'a', sign: async (text) => text, keyId: 'k' })
// @ts-expect-error: a signature is text or bytes
sasSigner({ registrationId: 'a', sign: () => 1 })
same<Parameters<typeof x509>[0], X509Options>(true)
same<Parameters<typeof symmetricKey>[0], SymmetricKeyOptions>(true)
same<ReturnType<typeof x509>, Credential>(true)
// A credential of the caller's own, and a list of any.
const own: Credential = {
  load: async () => ({ registrationId: 'a', fingerprint: 'f', checkDates() {}, token: async () => 'sas' }),
}
// @ts-expect-error: it says who it is
export const nobody: Credential = { load: async () => ({ checkDates() {}, token: async () => 'sas' }) }
new ProvisioningClient({ idScope, credential: [issuedCertificate({ store }), own] as const })
same<ReturnType<typeof inspectCredential>, Promise<readonly CredentialInspection[]>>(true)
same<(typeof one)['index'], number>(true)
const one = await inspectCredential(credential)
const [first] = await inspectCredential([credential])
same<typeof first, CredentialInspection | undefined>(true)

// Options.
new ProvisioningClient({
  idScope,
  credential,
  transport: ['mqtt', transport],
  port: { mqtt: 8883, https: 443 },
})
new ProvisioningClient({ idScope, credential, proxy: { url: 'http://p', noProxy: ['a'] }, connectTo: '::1' })
new ProvisioningClient({
  idScope,
  credential,
  connect: async ({ host, port, signal }) => dial(host, port, signal),
})
declare function dial(host: string, port: number, signal: AbortSignal): Promise<Duplex>
// @ts-expect-error: no scope
new ProvisioningClient({ credential })
// @ts-expect-error: AMQP is not spoken
new ProvisioningClient({ idScope, credential, transport: 'amqp' })
// @ts-expect-error: nothing turns verification off
new ProvisioningClient({ idScope, credential, tls: { rejectUnauthorized: false } })
// @ts-expect-error: nor takes another check of the name
new ProvisioningClient({ idScope, credential, tls: { checkServerIdentity: () => undefined } })
// @ts-expect-error: the minimum is not an option
new ProvisioningClient({ idScope, credential, tls: { minVersion: 'TLSv1' } })
// @ts-expect-error: nor is less than it
new ProvisioningClient({ idScope, credential, tls: { maxVersion: 'TLSv1.1' } })
// @ts-expect-error: three stores of roots
new ProvisioningClient({ idScope, credential, trust: { roots: 'node' } })
// @ts-expect-error: an option has a name that something reads
new ProvisioningClient({ idScope, credential, timeouts: { handshakeMs: 1 } })
// @ts-expect-error: with exact optional properties, absent is not undefined
new ProvisioningClient({ idScope, credential, host: undefined })
same<TransportName, 'mqtt' | 'mqtt-ws' | 'https'>(true)
same<ProvisioningClientOptions['credential'], Credential | readonly Credential[]>(true)

// Calls and their results.
const client = new ProvisioningClient({ idScope, credential })
same<ReturnType<typeof client.register>, Promise<Assignment>>(true)
same<ReturnType<typeof client.lookup>, Promise<RegistrationState>>(true)
same<ReturnType<typeof client.probe>, Promise<Contact>>(true)
client.register({ payload: { a: [1] }, csr: { csr: pem }, timeoutMs: 1, signal: AbortSignal.timeout(1) })
// @ts-expect-error: a payload is an object
client.register({ payload: 'a' })
// @ts-expect-error: a lookup carries none
client.lookup({ payload: {} })
declare const assignment: Assignment
same<Assignment['assignedHub'], string>(true)
same<Assignment['status'], 'assigned'>(true)
same<Assignment['createdAt'], Date | undefined>(true)
same<RegistrationState['assignedHub'], string | undefined>(true)
same<RegistrationState['status'], string>(true)
same<Assignment['connection']['timingsMs']['total'], number>(true)
same<Assignment['connection']['timingsMs']['tls'], number | undefined>(true)
// @ts-expect-error: it is frozen
assignment.deviceId = 'b'
// @ts-expect-error: so is what it says of the connection
assignment.connection.root = 'b'

// Stored or fresh: `source` tells what there is.
const provisioned = await provision({ idScope, credential, store, mode: 'if-needed', csr: pem })
if (provisioned.source === 'store') {
  same<typeof provisioned.connection, undefined>(true)
  same<typeof provisioned.failure, DpsError | undefined>(true)
  same<typeof provisioned.stored, true>(true)
} else {
  same<typeof provisioned.connection.root, string>(true)
  same<typeof provisioned.stored, boolean>(true)
  // @ts-expect-error: it did not fail
  provisioned.failure
}
// @ts-expect-error: it has to be kept somewhere
provision({ idScope, credential })
// @ts-expect-error: three modes
provision({ idScope, credential, store, mode: 'never' })
same<ReturnType<typeof provisionForever>, Promise<Assignment>>(true)

// Stores.
same<ReturnType<typeof fileStore>, AssignmentStore>(true)
export const kept: AssignmentStore = {
  read: async () => undefined,
  write: async (record) => void record.byteLength,
  remove: async () => {},
}
// @ts-expect-error: what is refused has to be forgotten
export const unforgetting: AssignmentStore = { read: async () => undefined, write: async () => {} }
// @ts-expect-error: a record is bytes
export const texts: AssignmentStore = { ...kept, read: async () => 'record' }
// @ts-expect-error: a number is no path
fileStore(3)

// Errors.
if (error instanceof DpsError || DpsError.is(error)) {
  same<typeof error.code, DpsErrorCode>(true)
  same<typeof error.phase, DpsPhase>(true)
  same<typeof error.family, DpsErrorFamily>(true)
  same<typeof error.retryable, boolean>(true)
  same<typeof error.retryAfterMs, number | undefined>(true)
  same<typeof error.serverTime, Date | undefined>(true)
  same<typeof error.assignment, Assignment | undefined>(true)
  switch (error.code) {
    case 'THROTTLED':
    case 'UNAUTHORIZED':
      same<typeof error.code, 'THROTTLED' | 'UNAUTHORIZED'>(true)
      break
    // @ts-expect-error: no code of this name
    case 'UNAUTHORISED':
      break
    default:
      same<Extract<typeof error.code, 'THROTTLED' | 'UNAUTHORIZED'>, never>(true)
  }
} else {
  // @ts-expect-error: it may be anything
  error.code
}
new DpsError('TRANSPORT_FAILED', 'tcp', 'text', { cause: error })
// @ts-expect-error: a phase is one of those of the flow
new DpsError('TRANSPORT_FAILED', 'later', 'text')
same<ReturnType<typeof shouldReprovision>, boolean>(true)

// Events, by their type.
export function tell(event: DpsEvent): string | number | boolean {
  switch (event.type) {
    case 'phase-started':
      return event.phase
    case 'phase-ended':
      return event.ok ? event.durationMs : 0
    case 'retry':
      same<typeof event.step, 'connect' | 'register' | 'poll' | 'lookup'>(true)
      return event.delayMs
    case 'assigning':
      // @ts-expect-error: nothing failed
      event.error
      return event.operationId
    case 'fallback':
      same<typeof event.from, string>(true)
      return event.error.code
    case 'credential-fallback':
      same<typeof event.from, number>(true)
      return event.to
    case 'no-stored-assignment':
      return event.reason === 'unreadable' && event.error !== undefined
    case 'pipelining-refused':
    case 'stored-assignment-kept':
    case 'stored-assignment-erased':
    case 'store-failed':
      return event.error.code
    case 'attempt-failed':
      return event.attempt
    case 'waiting-for-clock':
      return event.delayMs
    case 'warning':
      return event.message
    default:
      // All of them are above.
      same<typeof event, never>(true)
      return event
  }
}

// The rest.
const settings = await hubSettings(assignment, credential, { transport: 'mqtt-ws' })
same<typeof settings.moduleId, string | undefined>(true)
same<Awaited<ReturnType<typeof settings.mqtt>>, HubMqttOptions>(true)
same<HubMqttOptions['rejectUnauthorized'], true | undefined>(true)
// @ts-expect-error: hubs do not speak HTTPS to devices
hubSettings(assignment, credential, { transport: 'https' })
same<typeof BUNDLED_ROOTS, readonly BundledRoot[]>(true)
same<typeof systemClock, Clock>(true)
