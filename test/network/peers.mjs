// The two ends of the cable that test/network/run.mjs pulls, each in a network namespace of its own.

import { ProvisioningClient, symmetricKey } from 'dps-device-client'
import { startEmulator } from 'dps-device-client/emulator'

const [role, hello] = process.argv.slice(2)

if (role === 'service') {
  const emulator = await startEmulator({
    address: '192.0.2.1',
    assigning: { polls: 2, retryAfterSeconds: 1 },
    // The connection that was cut is still open for the service when the device comes back.
    concurrentRegistrations: 'allow',
  })
  const keys = emulator.enrollments.addIndividual({
    registrationId: 'far-1',
    attestation: { symmetricKey: {} },
  })
  console.log(JSON.stringify({ options: emulator.clientOptions(), key: keys?.primaryKey }))
} else {
  const { options, key } = JSON.parse(hello ?? '{}')
  const seen = (/** @type {string} */ text) => console.log(text)
  const client = new ProvisioningClient({
    ...options,
    credential: symmetricKey({ registrationId: 'far-1', key }),
    timeouts: { totalMs: 60_000, tcpMs: 4000, pollMs: 4000 },
    retry: { baseDelayMs: 500, maxDelayMs: 2000 },
    onEvent: (event) => {
      if (event.type === 'assigning') seen('assigning')
      if (event.type === 'retry') seen(`${event.error.code} in ${event.error.phase}`)
    },
  })
  const startedAt = performance.now()
  const { assignedHub } = await client.register()
  seen(`assigned to ${assignedHub} after ${((performance.now() - startedAt) / 1000).toFixed(1)} s`)
}
