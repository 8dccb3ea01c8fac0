// A gateway and the leaf devices behind it: each has an identity of its own at the service and at the hub, and reaches its
// hub through the gateway, which is an IoT Edge device in the field and the emulator here.
//
//   edge-0001 is device edge-0001 of contoso-hub-west.azure-devices.net
//   leaf-1 is device leaf-1 of contoso-hub-west.azure-devices.net
//   leaf-2 is device leaf-2 of contoso-hub-west.azure-devices.net
//   leaf-3 is device leaf-3 of contoso-hub-west.azure-devices.net
//   the hub got {"t":21} of leaf-1, through edge-0001.plant.example
//   the hub got {"t":22} of leaf-2, through edge-0001.plant.example
//   the hub got {"t":23} of leaf-3, through edge-0001.plant.example

import { ProvisioningClient, symmetricKey, x509 } from 'dps-device-client'
import { startEmulator } from 'dps-device-client/emulator'
import { deriveDeviceKey } from 'dps-device-client/factory'
import { connectHub } from 'dps-device-client/hub'

const gatewayHostName = 'edge-0001.plant.example'
const emulator = await startEmulator({
  hubs: ['contoso-hub-west.azure-devices.net'],
  gateways: [gatewayHostName],
  assigning: { polls: 0 },
})

// On the service: a group of gateways by certificate, and a group of leaf devices by key.
const ca = emulator.pki.deviceRoot.certPem
emulator.enrollments.addGroup({ groupId: 'gateways', attestation: { x509: { ca } } })
const leaves = emulator.enrollments.addGroup({ groupId: 'leaves', attestation: { symmetricKey: {} } })

/** @param {import('dps-device-client').Credential} credential */
async function register(credential) {
  const assignment = await new ProvisioningClient({ ...emulator.clientOptions(), credential }).register()
  const { registrationId, deviceId, assignedHub } = assignment
  console.log(`  ${registrationId} is device ${deviceId} of ${assignedHub}`)
  return assignment
}

// The gateway registers itself. From then on it keeps its own connection to the hub.
await register(x509(await emulator.issueDeviceCertificate({ registrationId: 'edge-0001' })))

// Each leaf device has a key of its own, derived in the factory, and never shares a connection or a TLS session with another.
// They may run on boards of their own, or in one process as here.
for (const [index, registrationId] of ['leaf-1', 'leaf-2', 'leaf-3'].entries()) {
  const key = await deriveDeviceKey({ groupKey: leaves.primaryKey, registrationId })
  const credential = symmetricKey({ registrationId, key })
  const assignment = await register(credential)
  // The gateway is dialled and verified; user name and token still name the hub. Its root is the plant's own.
  const hub = await connectHub(assignment, { ...emulator.hubOptions(), credential, gatewayHostName })
  await hub.sendTelemetry({ t: 21 + index })
  await hub.close()
}

for (const { body, deviceId, connectionId } of emulator.hub.telemetry.list()) {
  const connection = emulator.log.connections.find(({ id }) => id === connectionId)
  console.log(`  the hub got ${body} of ${deviceId}, through ${connection?.handshake?.serverName}`)
}
await emulator.close()
