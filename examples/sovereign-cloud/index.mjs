// A device in a sovereign cloud: another host name, an id scope of that cloud, and a chain that ends in another root, which
// this package does not ship.
//
//   without its root: SERVER_UNTRUSTED
//   This cloud may still chain to DigiCert Global Root CA: get that root from DigiCert, compare its SHA-256 with 4348A0E9444C78CB265E058D5E8944B4D84F9662BD26DB257F8934A443C70161, and give it in trust.extraRoots.
//   with its root:
//   ✓ tcp          11.0 ms   connected
//   ✓ tls          12.6 ms   chain, name and suite verified
//   ✓ connect      10.4 ms   identity accepted
//   ✓ subscribe     1.6 ms   listening for replies
//   ✓ register      3.2 ms   registration accepted
//   … assigning  asking again in 2.1 s
//   ✓ poll          2.4 ms   operation finished
//   press-0042 is device press-0042 of contoso-hub.azure-devices.cn
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Root of another cloud"; 7 round trips, 2199 ms in all

import { DpsError, ProvisioningClient, symmetricKey } from 'dps-device-client'
import { issueCertificate, startEmulator } from 'dps-device-client/emulator'
import { progress, summary } from '../support/print.mjs'

const host = 'global.azure-devices-provisioning.cn'
const idScope = '0cn00000000'

// In place of that cloud: a service of that name, with a root of its own.
const root = await issueCertificate({ subject: 'Root of another cloud', keyType: 'rsa-2048', ca: true })
const server = await issueCertificate({
  subject: host,
  keyType: 'rsa-2048',
  issuer: root,
  sans: [host],
  eku: ['serverAuth'],
})
const emulator = await startEmulator({
  idScope,
  hubs: ['contoso-hub.azure-devices.cn'],
  serverCertificate: { cert: server.chainPem, key: server.keyPem },
  assigning: { retryAfterSeconds: 0 },
})
const { primaryKey } = emulator.enrollments.addIndividual({
  registrationId: 'press-0042',
  attestation: { symmetricKey: {} },
})

// On the device. Against the cloud itself port and connectTo are left out.
const { port, connectTo } = emulator.clientOptions()
const options = {
  host,
  idScope,
  port,
  connectTo,
  credential: symmetricKey({ registrationId: 'press-0042', key: primaryKey }),
}

await new ProvisioningClient(options).register().catch((/** @type {unknown} */ error) => {
  if (!DpsError.is(error)) throw error
  console.log(`  without its root: ${error.code}`)
  console.log(`  ${error.hint}`)
})

console.log('  with its root:')
// As it came from the operator of the cloud: `readFileSync('/etc/device/root-of-that-cloud.pem')`.
const trust = { extraRoots: root.certPem }
summary(await new ProvisioningClient({ ...options, trust, onEvent: progress }).register())
await emulator.close()
