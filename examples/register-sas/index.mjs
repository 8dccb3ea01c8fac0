// A device with a symmetric key registers and learns its hub.

import { ProvisioningClient, symmetricKey } from 'dps-device-client'
import { deriveDeviceKey } from 'dps-device-client/factory'
import { emulator } from '../support/emulator.mjs'
import { progress, summary } from '../support/print.mjs'

// On the service: an enrollment group with a key, which stays there and in the factory.
const group = emulator.enrollments.addGroup({ groupId: 'sensors', attestation: { symmetricKey: {} } })

// In the factory: the key of one device, derived from the group's.
const registrationId = 'sensor-7f3a'
const key = await deriveDeviceKey({ groupKey: group?.primaryKey ?? '', registrationId })

// On the device. Against Azure `idScope: '0ne…'` stands in place of the emulator's options.
const client = new ProvisioningClient({
  ...emulator.clientOptions(),
  credential: symmetricKey({ registrationId, key }),
  onEvent: progress,
})
const assignment = await client.register({ payload: { model: 'TH-12', site: 'Zürich' } })

summary(assignment)
