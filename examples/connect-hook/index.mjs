// A device that has no way out of its own: a gateway opens one, here as the two pipes of a process. In the field that
// process is `ssh -W host:port gateway`; a SOCKS library, a serial line or a modem's own stack give a stream as well.

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
