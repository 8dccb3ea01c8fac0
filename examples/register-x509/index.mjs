// A device with an X.509 certificate of its own registers and learns its hub.

import { ProvisioningClient, x509 } from 'dps-device-client'
import { emulator } from '../support/emulator.mjs'
import { progress, summary } from '../support/print.mjs'

// On the service: an enrollment group for every device whose certificate this CA issued.
emulator.enrollments.addGroup({
  groupId: 'presses',
  attestation: { x509: { ca: emulator.pki.deviceRoot.certPem } },
})

// In the factory: a key and a certificate chain for one device. Its CN is the registration id.
const { cert, key } = await emulator.issueDeviceCertificate({ registrationId: 'press-0042' })

// On the device. Against Azure `idScope: '0ne…'` stands in place of the emulator's options.
const client = new ProvisioningClient({
  ...emulator.clientOptions(),
  credential: x509({ cert, key }),
  onEvent: progress,
})
const assignment = await client.register()

summary(assignment)
