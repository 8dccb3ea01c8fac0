// A device on a plant's network: nothing but port 443 gets out, and that only through the proxy.

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
