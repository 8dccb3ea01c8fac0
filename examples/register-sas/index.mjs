// A device with a symmetric key registers and learns its hub.
//
//   ✓ tcp          33.3 ms   connected
//   ✓ tls          19.5 ms   chain, name and suite verified
//   ✓ connect       2.9 ms   identity accepted
//   ✓ subscribe     0.9 ms   listening for replies
//   ✓ register      4.0 ms   registration accepted
//   … assigning  asking again in 2.1 s
//   ✓ poll          2.1 ms   operation finished
//   sensor-7f3a is device sensor-7f3a of contoso-hub-east.azure-devices.net
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Emulator Root 1"; 7 round trips, 2170 ms in all

import { ProvisioningClient, symmetricKey } from 'dps-device-client'
import { deriveDeviceKey } from 'dps-device-client/factory'
import { emulator } from '../support/emulator.mjs'
import { progress, summary } from '../support/print.mjs'

// On the service: an enrollment group with a key, which stays there and in the factory.
const group = emulator.enrollments.addGroup({ groupId: 'sensors', attestation: { symmetricKey: {} } })

// In the factory: the key of one device, derived from the group's.
const registrationId = 'sensor-7f3a'
const key = await deriveDeviceKey({ groupKey: group.primaryKey, registrationId })

// On the device. Against Azure `idScope: '0ne…'` stands in place of the emulator's options.
const client = new ProvisioningClient({
  ...emulator.clientOptions(),
  credential: symmetricKey({ registrationId, key }),
  onEvent: progress,
})
const assignment = await client.register({ payload: { model: 'TH-12', site: 'Zürich' } })

summary(assignment)
