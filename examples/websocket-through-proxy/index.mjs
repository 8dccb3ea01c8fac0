// A device on a plant's network: nothing but port 443 gets out, and that only through the proxy.
//
//   proxy: opens a tunnel to 127.0.0.1:40495
//   ✓ proxy        43.9 ms   tunnel open
//   ✓ tls          13.5 ms   chain, name and suite verified
//   ✓ connect      21.9 ms   identity accepted
//   ✓ subscribe     1.2 ms   listening for replies
//   ✓ register      2.1 ms   registration accepted
//   … assigning  asking again in 2.0 s
//   ✓ poll          2.3 ms   operation finished
//   valve-0815 is device valve-0815 of contoso-hub-west.azure-devices.net
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Emulator Root 1"; 9 round trips, 2121 ms in all

import { ProvisioningClient, symmetricKey } from 'dps-device-client'
import { generateSymmetricKey } from 'dps-device-client/emulator'
import { emulator } from '../support/emulator.mjs'
import { progress, summary } from '../support/print.mjs'
import { startProxy } from '../support/proxy.mjs'

const registrationId = 'valve-0815'
const key = generateSymmetricKey()
emulator.enrollments.addIndividual({ registrationId, attestation: { symmetricKey: { primaryKey: key } } })

const credentials = { username: 'line-7', password: 'correct horse' }
const url = await startProxy(credentials)

const client = new ProvisioningClient({
  ...emulator.clientOptions(),
  credential: symmetricKey({ registrationId, key }),
  // MQTT in WebSocket, on port 443 where the service is Azure's.
  transport: 'mqtt-ws',
  // The proxy sees a host name and a port; TLS, with the device's identity, ends at the service.
  proxy: { url, ...credentials, noProxy: '.plant.example' },
  onEvent: progress,
})

summary(await client.register())
