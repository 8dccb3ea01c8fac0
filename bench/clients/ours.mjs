// ours.cjs as an ES module: a program only, for the cold start.

import { readFileSync } from 'node:fs'
import { ProvisioningClient, symmetricKey, x509 } from 'dps-device-client'

const { host, port, address, idScope, roots, transport, device, timeouts } = JSON.parse(process.argv[2])
const { registrationId, key, certFile, keyFile } = device
const client = new ProvisioningClient({
  idScope,
  host,
  port,
  connectTo: address,
  transport,
  trust: { roots: 'none', extraRoots: readFileSync(roots) },
  tls: { sessionResumption: false },
  retry: { maxAttempts: 1, pollIntervalMs: 0 },
  ...(timeouts && { timeouts }),
  credential:
    key !== undefined
      ? symmetricKey({ registrationId, key })
      : x509({ cert: readFileSync(certFile), key: readFileSync(keyFile) }),
})
const { status } = await client.register()
if (status !== 'assigned') process.exitCode = 1
