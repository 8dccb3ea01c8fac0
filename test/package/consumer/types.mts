import {
  type Assignment,
  type Credential,
  DpsError,
  type DpsErrorCode,
  type DpsEvent,
  fileJournal,
  fileStore,
  type HubMqttOptions,
  hubSettings,
  type IssuedCertificate,
  type IssuedCertificateFacts,
  issuedCertificate,
  type ManyDevice,
  ProvisioningClient,
  provision,
  provisionMany,
  symmetricKey,
  type Transport,
  x509,
} from 'dps-device-client'
import { type Emulator, startEmulator } from 'dps-device-client/emulator'
import {
  type CertificateSigningRequest,
  createCsr,
  deriveDeviceKey,
  type KeySigner,
} from 'dps-device-client/factory'
import { connectHub, type HubConnection, type HubEvent, provisionAndConnect } from 'dps-device-client/hub'
import { type ContractCase, transportContract } from 'dps-device-client/testing'

const credential: Credential = x509({ cert: 'pem', key: new Uint8Array() })
const key: Promise<string> = deriveDeviceKey({ groupKey: 'k', registrationId: 'r' })
const events: DpsEvent[] = []
declare const transport: Transport
const client = new ProvisioningClient({
  idScope: '0ne',
  credential,
  transport,
  onEvent: (event) => events.push(event),
})
const assignment: Promise<Assignment> = client.register({ payload: { a: 1 }, signal: AbortSignal.timeout(1) })
const emulator: Promise<Emulator> = startEmulator({ port: [8883, 443] })
const cases: readonly ContractCase[] = transportContract({ makeTransport: () => transport, emulator })
new ProvisioningClient({ idScope: '0ne', credential, transport: ['mqtt', 'https', transport] })

export async function boot(): Promise<HubMqttOptions> {
  const provisioned = await provision({ idScope: '0ne', credential, store: fileStore('a'), mode: 'lookup' })
  const learnt: string = provisioned.source === 'store' ? 'before' : provisioned.connection.root
  const settings = await hubSettings(provisioned, credential, { moduleId: learnt })
  return settings.mqtt()
}

export async function many(devices: AsyncIterable<ManyDevice<{ line: number }>>): Promise<string[]> {
  const hubs: string[] = []
  const options = { idScope: '0ne', store: fileJournal('j'), ratePerMinute: 600, concurrency: 8 }
  for await (const result of provisionMany(devices, options)) {
    const line: number | undefined = result.device.tag?.line
    if (result.error === undefined) hubs.push(`${line} ${result.assignment.assignedHub} ${result.source}`)
    else hubs.push(result.error.code)
    // @ts-expect-error: of one that failed nothing is known of a hub
    if (result.error !== undefined) hubs.push(result.assignment.assignedHub)
  }
  return hubs
}

export async function issue(signer: KeySigner): Promise<readonly string[] | undefined> {
  const made: CertificateSigningRequest = await createCsr({ registrationId: 'r', key: signer })
  try {
    const { issuedCertificateChain } = await client.register({ csr: made })
    x509({ cert: issuedCertificateChain ?? '', key: made.key ?? '' })
    await client.register({ csr: made.csr })
    // @ts-expect-error: a lookup carries none
    await client.lookup({ csr: made })
    return issuedCertificateChain
  } catch (error) {
    if (DpsError.is(error)) return error.assignment?.issuedCertificateChain
    throw error
  }
}

export async function renew(store = fileStore('c')): Promise<IssuedCertificateFacts | undefined> {
  const certificate: IssuedCertificate = issuedCertificate({ store })
  const hub = await provisionAndConnect({
    idScope: '0ne',
    store: fileStore('a'),
    credential: [certificate, credential],
    issuance: { curve: 'P-256', renewAt: 0.5 },
    onEvent: (event) => event.type === 'certificate-issued' && event.certificate.validUntil.getTime(),
  })
  const request = await certificate.createRequest({ registrationId: 'r' })
  await certificate.install(await hub.requestCertificate({ ...request, replace: '*' }))
  // @ts-expect-error: there are two curves
  await certificate.createRequest({ registrationId: 'r', curve: 'P-521' })
  return (await certificate.status()).current
}
// @ts-expect-error: one of a curve and a key
createCsr({ registrationId: 'r', curve: 'P-256', key: 'k' })

export async function live(given: Assignment): Promise<HubConnection> {
  const seen: HubEvent[] = []
  const hub = await connectHub(given, {
    credential,
    transport: ['mqtt', 'mqtt-ws'],
    onEvent: (event) => seen.push(event),
  })
  hub.onMethod('reboot', ({ payload }) => ({ status: 200, payload }))
  hub.onCommand(({ body, properties }) => `${body.length} ${properties.room}`)
  hub.twin.onDesired(({ properties, version, complete }) => [properties.mode, version, complete])
  await hub.sendTelemetry({ t: 1 }, { properties: { a: 'b' }, signal: AbortSignal.timeout(1) })
  const { desired } = await hub.twin.get()
  await hub.twin.report({ seen: desired.version })
  // @ts-expect-error: an answer has a status
  hub.onMethod('halt', () => ({ payload: 1 }))
  // @ts-expect-error: hubs do not speak HTTPS to devices
  await connectHub(given, { credential, transport: 'https' })
  return hub
}

// @ts-expect-error: a credential is asked for
new ProvisioningClient({ idScope: '0ne' })
// @ts-expect-error: there is no way to switch verification off
new ProvisioningClient({ idScope: '0ne', credential, rejectUnauthorized: false })
// @ts-expect-error: one of key and keyFile
symmetricKey({ registrationId: 'r' })

export function advise(error: unknown): string | undefined {
  if (!DpsError.is(error)) return undefined
  const code: DpsErrorCode = error.code
  switch (code) {
    case 'THROTTLED':
      return `again in ${error.retryAfterMs ?? 0} ms`
    // @ts-expect-error: the codes are a closed union
    case 'NO_SUCH_CODE':
      return undefined
    default:
      return error.hint
  }
}
export { assignment, cases, emulator, key }
