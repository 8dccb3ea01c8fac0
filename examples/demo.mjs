// `npm run demo`: two devices register over real TLS, and one refuses a server that it must not trust.
// Exit code 0 only if all three went as they must.

import assert from 'node:assert/strict'
import { DpsError, ProvisioningClient, symmetricKey } from 'dps-device-client'
import { generateSymmetricKey } from 'dps-device-client/emulator'
import { emulator } from './support/emulator.mjs'
import { bold, dim, green, progress, red } from './support/print.mjs'

console.log(
  `\n${bold('Device provisioning, end to end')} ${dim(`on port ${emulator.port} of this machine, Node ${process.versions.node}`)}`,
)

console.log(`\n${bold('1  A device with an X.509 certificate')}`)
await import('./register-x509/index.mjs')

console.log(`\n${bold('2  A device with a symmetric key')}`)
await import('./register-sas/index.mjs')

console.log(
  `\n${bold('3  A server that is not the service')}${dim(': its chain ends in a root that devices do not trust')}`,
)
const { trust, ...options } = emulator.clientOptions()
// Without `trust` the client trusts the two bundled roots, as in the field; the emulator's chain ends in neither.
const client = new ProvisioningClient({
  ...options,
  credential: symmetricKey({ registrationId: 'sensor-7f3a', key: generateSymmetricKey() }),
  onEvent: progress,
})
const error = await client.register().then(
  () => assert.fail('the untrusted server was believed'),
  (/** @type {unknown} */ thrown) => thrown,
)
assert(
  DpsError.is(error) && error.code === 'SERVER_UNTRUSTED' && error.phase === 'tls',
  'another error than expected',
)
console.log(`  ${red(error.code)} ${dim(`in phase ${error.phase}`)}`)
console.log(`  ${error.message}`)
console.log(`  ${dim(error.hint)}`)

assert.deepEqual(
  emulator.registrations.list().map(({ registrationId, count }) => [registrationId, count]),
  [
    ['press-0042', 1],
    ['sensor-7f3a', 1],
  ],
)
console.log(`\n${green('All three went as they must.')} The code is in examples/.\n`)
