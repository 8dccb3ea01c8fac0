const assert = require('node:assert/strict')
const { existsSync } = require('node:fs')
const { DpsError, ProvisioningClient, x509 } = require('dps-device-client')
const { startEmulator } = require('dps-device-client/emulator')
const { deriveDeviceKey } = require('dps-device-client/factory')

async function main() {
  const emulator = await startEmulator({ assigning: { polls: 0 } })
  const device = await emulator.issueDeviceCertificate({ registrationId: 'cjs-x509' })
  const attestation = { x509: { certificate: device.cert } }
  emulator.enrollments.addIndividual({ registrationId: 'cjs-x509', deviceId: 'seven', attestation })
  const client = new ProvisioningClient({ ...emulator.clientOptions(), credential: x509(device) })
  const full = await client.register()
  const again = await client.register()
  assert.equal(full.deviceId, 'seven')
  assert.deepEqual([full.connection.resumed, again.connection.resumed], [false, true])
  assert.equal(again.connection.root, full.connection.root)
  await assert.rejects(deriveDeviceKey({ groupKey: 'x', registrationId: 'y' }), (error) => DpsError.is(error))
  assert(existsSync(require.resolve('dps-device-client/roots/digicert-global-root-g2.pem')))
  assert.equal(require('dps-device-client/package.json').name, 'dps-device-client')
  await emulator.close()
  console.log(`full, then resumed; ${full.connection.root}`)
}
main()
