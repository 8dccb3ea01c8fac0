// This package, as it is installed: one of the clients that the benches compare.
//
// Every client here is one file that exports `open(scene)`, which gives `register()`: a promise of the assigned state
// that settles when the connection is closed. Run as a program with a scene as JSON it registers once and ends; that is
// what a cold start is measured on, so nothing else is loaded.
//
// A scene: { host, port, address, idScope, roots, device, transport }. `roots` is the name of a PEM file; a device is
// { registrationId } with `key` (SAS) or with `certFile` and `keyFile` (X.509). Here also `resumption`, `pipelining`
// (both default false) and `timeouts`.

const { readFileSync } = require('node:fs')
const { ProvisioningClient, symmetricKey, x509 } = require('dps-device-client')

function credential({ registrationId, key, certFile, keyFile }) {
  if (key !== undefined) return symmetricKey({ registrationId, key })
  return x509({ cert: readFileSync(certFile), key: readFileSync(keyFile) })
}

exports.open = (scene) => {
  const { host, port, address, idScope, roots, transport = 'mqtt', resumption = false } = scene
  const options = {
    credential: credential(scene.device),
    idScope,
    host,
    port,
    connectTo: address,
    transport,
    trust: { roots: 'none', extraRoots: readFileSync(roots) },
    tls: { sessionResumption: resumption },
    // A failure is to be seen, not mended.
    retry: { maxAttempts: 1, pollIntervalMs: 0 },
    ...(scene.pipelining && { mqtt: { pipelining: true } }),
    ...(scene.timeouts && { timeouts: scene.timeouts }),
  }
  const client = new ProvisioningClient(options)
  return { register: (call) => client.register(call) }
}

if (require.main === module) {
  exports
    .open(JSON.parse(process.argv[2]))
    .register()
    .then(({ status }) => {
      if (status !== 'assigned') process.exitCode = 1
    })
}
