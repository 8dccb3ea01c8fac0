// A device that runs Microsoft's client as it is published. It is given one registration and reports how it ended.

const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device')
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key')
const { X509Security } = require('azure-iot-security-x509')

async function register({ transport, host, idScope, registrationId, key, x509, payload }) {
  const Transport = require(transport.package)[transport.name]
  const security =
    x509 === undefined
      ? new SymmetricKeySecurityClient(registrationId, key)
      : new X509Security(registrationId, x509)
  const client = ProvisioningDeviceClient.create(host, idScope, new Transport(), security)
  if (payload !== undefined) client.setProvisioningPayload(payload)
  try {
    return { result: await client.register() }
  } catch ({ name, code, message, result }) {
    return { error: { name, code, message, state: result?.registrationState } }
  }
}

// Also when the parent is gone: no device outlives its test.
process.once('disconnect', () => process.exit())
process.once('message', async (registration) => {
  process.send(await register(registration), () => process.disconnect())
})
