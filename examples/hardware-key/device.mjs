// `node --openssl-config=openssl.cnf device.mjs device.json`: what runs on the device. See docs/hardware-keys.md.

import { readFileSync } from 'node:fs'
import { ProvisioningClient, x509 } from 'dps-device-client'
import { progress, summary } from '../support/print.mjs'

const { certFile, privateKeyIdentifier, ...options } = JSON.parse(readFileSync(process.argv[2] ?? '', 'utf8'))

const client = new ProvisioningClient({
  ...options,
  credential: x509({ certFile, privateKeyEngine: 'pkcs11', privateKeyIdentifier }),
  onEvent: progress,
})

summary(await client.register())
