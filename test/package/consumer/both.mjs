// `import` and `require` must be one implementation: one DpsError, one session cache, and no lazy part loaded early.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import * as esm from 'dps-device-client'
import * as esmFactory from 'dps-device-client/factory'

const require = createRequire(import.meta.url)
const loaded = () => Object.keys(require.cache).filter((path) => path.includes('dps-device-client'))
const early = loaded()
const cjs = require('dps-device-client')
assert.deepEqual(loaded(), early)
assert.equal(esm.DpsError, cjs.DpsError)
assert.equal(esm.ProvisioningClient, cjs.ProvisioningClient)
assert.equal(esmFactory.deriveDeviceKey, require('dps-device-client/factory').deriveDeviceKey)
const esmTesting = await import('dps-device-client/testing')
assert.equal(esmTesting.transportContract, require('dps-device-client/testing').transportContract)
const esmHub = await import('dps-device-client/hub')
assert.equal(esmHub.connectHub, require('dps-device-client/hub').connectHub)
assert.equal(esmHub.DpsError, cjs.DpsError)
assert.deepEqual(Object.keys(esm).sort(), Object.keys(cjs).sort())
await assert.rejects(esmFactory.deriveDeviceKey({ groupKey: 'x', registrationId: 'y' }), cjs.DpsError)

const { startEmulator } = require('dps-device-client/emulator')
const emulator = await startEmulator({ assigning: { polls: 0 } })
const device = await emulator.issueDeviceCertificate({ registrationId: 'both' })
emulator.enrollments.addIndividual({
  registrationId: 'both',
  attestation: { x509: { certificate: device.cert } },
})
const before = loaded().length
const options = emulator.clientOptions()
const first = await new esm.ProvisioningClient({ ...options, credential: esm.x509(device) }).register()
assert(loaded().length > before, 'the transport was loaded before it was used')
const second = await new cjs.ProvisioningClient({ ...options, credential: cjs.x509(device) }).register()
assert.deepEqual([first.connection.resumed, second.connection.resumed], [false, true])
await emulator.close()
console.log(`${early.length} files loaded by the main entry`)
