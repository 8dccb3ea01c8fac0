// Microsoft's client as it is published, installed for the interoperability test (test/interop). It is told a host name
// and nothing else: it dials port 8883 (MQTT) or 443 there, and believes the roots of Node, so the process needs
// NODE_EXTRA_CA_CERTS. One object per registration, as its documentation has it. See ours.cjs for what a client is.

const { readFileSync } = require('node:fs')
const { createRequire } = require('node:module')
const { join } = require('node:path')

const installed = createRequire(join(__dirname, '..', '..', 'test', 'interop', 'device.cjs'))
const { ProvisioningDeviceClient } = installed('azure-iot-provisioning-device')

const TRANSPORTS = {
  mqtt: ['azure-iot-provisioning-device-mqtt', 'Mqtt'],
  'mqtt-ws': ['azure-iot-provisioning-device-mqtt', 'MqttWs'],
  https: ['azure-iot-provisioning-device-http', 'Http'],
}

exports.open = ({ name = 'localhost', idScope, device, transport = 'mqtt' }) => {
  const [from, className] = TRANSPORTS[transport]
  const Transport = installed(from)[className]
  const security = securityOf(device)
  return {
    register: () => ProvisioningDeviceClient.create(name, idScope, new Transport(), security()).register(),
  }
}

function securityOf({ registrationId, key, certFile, keyFile, certPem, keyPem }) {
  if (key !== undefined) {
    const { SymmetricKeySecurityClient } = installed('azure-iot-security-symmetric-key')
    return () => new SymmetricKeySecurityClient(registrationId, key)
  }
  const { X509Security } = installed('azure-iot-security-x509')
  const x509 = {
    cert: certPem ?? readFileSync(certFile, 'utf8'),
    key: keyPem ?? readFileSync(keyFile, 'utf8'),
  }
  return () => new X509Security(registrationId, x509)
}

if (require.main === module) {
  exports
    .open(JSON.parse(process.argv[2]))
    .register()
    .then(({ status }) => {
      if (status !== 'assigned') process.exitCode = 1
    })
}
