// A device that has no way out of its own: a gateway opens one, here as the two pipes of a process. In the field that
// process is `ssh -W host:port gateway`; a SOCKS library, a serial line or a modem's own stack give a stream as well.
//
//   ✓ tcp          64.2 ms   connected
//   ✓ tls         135.4 ms   chain, name and suite verified
//   ✓ connect      14.8 ms   identity accepted
//   ✓ subscribe     3.6 ms   listening for replies
//   ✓ register      8.6 ms   registration accepted
//   … assigning  asking again in 2.2 s
//   ✓ poll          3.7 ms   operation finished
//   pump-0007 is device pump-0007 of contoso-hub-east.azure-devices.net
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Emulator Root 1"; 6 round trips, 2477 ms in all

import { spawn } from 'node:child_process'
import { Duplex } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { ProvisioningClient, symmetricKey } from 'dps-device-client'
import { generateSymmetricKey } from 'dps-device-client/emulator'
import { emulator } from '../support/emulator.mjs'
import { progress, summary } from '../support/print.mjs'

const registrationId = 'pump-0007'
const key = generateSymmetricKey()
emulator.enrollments.addIndividual({ registrationId, attestation: { symmetricKey: { primaryKey: key } } })

const relay = fileURLToPath(new URL('relay.mjs', import.meta.url))

const client = new ProvisioningClient({
  ...emulator.clientOptions(),
  credential: symmetricKey({ registrationId, key }),
  // TLS runs on top, end to end: chain, name and suite are verified as on a connection of the client's own.
  connect: ({ host, port }) => {
    const { stdin, stdout } = spawn(process.execPath, [relay, host, String(port)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    return Duplex.from({ readable: stdout, writable: stdin })
  },
  onEvent: progress,
})

summary(await client.register())
