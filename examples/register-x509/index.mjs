// A device with an X.509 certificate of its own registers and learns its hub.
//
//   ✓ tcp          36.7 ms   connected
//   ✓ tls           5.9 ms   chain, name and suite verified
//   ✓ connect       2.9 ms   identity accepted
//   ✓ subscribe     0.7 ms   listening for replies
//   ✓ register      2.0 ms   registration accepted
//   … assigning  asking again in 2.3 s
//   ✓ poll          2.1 ms   operation finished
//   press-0042 is device press-0042 of contoso-hub-east.azure-devices.net
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Emulator Root 1"; 7 round trips, 2390 ms in all

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
