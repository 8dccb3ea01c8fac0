// Renews its certificate over and over until it is killed, and says on a line of its own what is safe.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileStore, issuedCertificate } from 'dps-device-client'
import { issueCertificate } from 'dps-device-client/emulator'

const [file = '', authority = ''] = process.argv.slice(2)
const issuer = JSON.parse(readFileSync(authority, 'utf8'))
const registrationId = 'sensor-1'
const certificate = issuedCertificate({ store: fileStore(file) })
console.log('ready')
for (;;) {
  const { csr } = await certificate.createRequest({ registrationId, curve: 'P-256' })
  console.log('requested')
  const publicKey = execFileSync('openssl', ['req', '-inform', 'DER', '-pubkey', '-noout'], {
    input: Buffer.from(csr, 'base64'),
    encoding: 'utf8',
  })
  const { certPem } = await issueCertificate({ subject: registrationId, issuer, publicKey, digest: 'sha384' })
  const { serialNumber } = await certificate.install([certPem, issuer.certPem])
  console.log(`candidate ${serialNumber}`)
  await certificate.confirm()
  console.log(`current ${serialNumber}`)
}
