import assert from 'node:assert/strict'
import {
  DpsError,
  fileStore,
  hubSettings,
  issuedCertificate,
  ProvisioningClient,
  provision,
  provisionMany,
  symmetricKey,
  x509,
} from 'dps-device-client'
import { startEmulator } from 'dps-device-client/emulator'
import { createCsr, deriveDeviceKey } from 'dps-device-client/factory'
import { connectHub, provisionAndConnect } from 'dps-device-client/hub'
import { transportContract } from 'dps-device-client/testing'

const emulator = await startEmulator({ assigning: { polls: 0 } })
emulator.enrollments.addGroup({
  groupId: 'x',
  attestation: { x509: { ca: emulator.pki.deviceRoot.certPem } },
})
const { primaryKey: groupKey } = emulator.enrollments.addGroup({
  groupId: 's',
  attestation: { symmetricKey: {} },
  issuance: {},
})
const options = emulator.clientOptions()

const device = await emulator.issueDeviceCertificate({ registrationId: 'esm-x509' })
const first = await new ProvisioningClient({ ...options, credential: x509(device) }).register()
const key = await deriveDeviceKey({ groupKey, registrationId: 'esm-sas' })
const credential = symmetricKey({ registrationId: 'esm-sas', key })
const second = await new ProvisioningClient({ ...options, credential }).register()
assert.equal(second.assignedHub, 'emulated-hub.azure-devices.net')
assert.equal(first.connection.protocol, 'TLSv1.2')

const hubs = []
for await (const { assignment } of provisionMany([{ credential }, { credential: x509(device) }], options))
  hubs.push(assignment?.assignedHub)
assert.deepEqual(hubs, [second.assignedHub, second.assignedHub])

await assert.rejects(
  new ProvisioningClient({ ...options, trust: {}, credential }).register(),
  (error) => error instanceof DpsError && error.code === 'SERVER_UNTRUSTED',
)
for (const transport of ['mqtt-ws', 'https']) {
  const { connection } = await new ProvisioningClient({ ...options, credential, transport }).register()
  assert.equal(connection.transport, transport)
}
const csr = await createCsr({ registrationId: 'esm-sas' })
const issued = await new ProvisioningClient({ ...options, credential }).register({ csr })
const operational = x509({ cert: issued.issuedCertificateChain, key: csr.key })
const asIssued = await connectHub(issued, { ...emulator.hubOptions(), credential: operational })
await asIssued.close()
await new ProvisioningClient({ ...options, credential }).register()
const store = fileStore('assignment')
const [fresh, kept] = [
  await provision({ ...options, credential, store }),
  await provision({ ...options, credential, store, port: 9 }),
]
assert.deepEqual([fresh.source, kept.source, kept.assignedHub], ['register', 'store', fresh.assignedHub])
assert.match(
  (await (await hubSettings(kept, credential)).mqtt()).password,
  /^SharedAccessSignature sr=emulated-hub/,
)
for (const transport of ['mqtt', 'mqtt-ws']) {
  const hub = await connectHub(kept, { ...emulator.hubOptions(), credential, transport })
  hub.onMethod('ping', ({ payload }) => ({ status: 200, payload }))
  await hub.sendTelemetry({ transport }, { properties: { a: 'b c' } })
  assert.equal(await hub.twin.report({ transport }), transport === 'mqtt' ? 2 : 3)
  assert.deepEqual((await emulator.hub.invokeMethod('esm-sas', 'ping', 1)).payload, 1)
  await hub.close()
}
const lives = await provisionAndConnect({ ...options, credential, store, hub: emulator.hubOptions() })
await lives.sendTelemetry('x')
await lives.close()
assert.deepEqual(
  emulator.hub.telemetry.list().map(({ body }) => body.toString()),
  ['{"transport":"mqtt"}', '{"transport":"mqtt-ws"}', 'x'],
)
const held = issuedCertificate({ store: fileStore('certificate') })
const managed = await provisionAndConnect({
  ...options,
  credential: [held, credential],
  issuance: {},
  store: fileStore('managed'),
  hub: emulator.hubOptions(),
})
await managed.sendTelemetry('y')
await managed.close()
assert.equal((await held.status()).current.commonName, 'esm-sas')
const makeTransport = () => ({ name: 'own', open: (context) => context.dial(context.port) })
const [sentence] = transportContract({ makeTransport, emulator }).filter(({ name }) =>
  name.startsWith('open rejects with what the dialer'),
)
await sentence.run()
await emulator.close()
const { cipher, curve } = first.connection
console.log(`${cipher}, ${curve}`)
