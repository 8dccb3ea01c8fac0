// A device registers over a transport of its own, which then is held against the contract.
//
//   ✓ tcp          39.5 ms   connected
//   ✓ tls           9.4 ms   chain, name and suite verified
//   ✓ register     15.8 ms   registration accepted
//   … assigning  asking again in 2.1 s
//   ✓ poll          3.0 ms   operation finished
//   valve-0011 is device valve-0011 of contoso-hub-west.azure-devices.net
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Emulator Root 1"; 5 round trips, 2147 ms in all
//   and its transport keeps the contract: 50 of 50 sentences

import { ProvisioningClient, symmetricKey } from 'dps-device-client'
import { generateSymmetricKey } from 'dps-device-client/emulator'
import { transportContract } from 'dps-device-client/testing'
import { emulator } from '../support/emulator.mjs'
import { progress, summary } from '../support/print.mjs'
import { ownTransport } from './transport.mjs'

const registrationId = 'valve-0011'
const key = generateSymmetricKey()
emulator.enrollments.addIndividual({ registrationId, attestation: { symmetricKey: { primaryKey: key } } })

const client = new ProvisioningClient({
  ...emulator.clientOptions(),
  credential: symmetricKey({ registrationId, key }),
  // Or in a list, `['mqtt', ownTransport()]`, for where the network lets MQTT not through.
  transport: ownTransport(),
  onEvent: progress,
})
summary(await client.register())

// In a project these are tests: `for (const { name, run } of cases) test(name, run)`.
const cases = transportContract({ makeTransport: ownTransport, emulator })
for (const { run } of cases) await run()
console.log(`  and its transport keeps the contract: ${cases.length} of ${cases.length} sentences`)
