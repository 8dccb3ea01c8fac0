// A device whose private key is in a chip with a PKCS#11 module; SoftHSM2 stands for the chip. The key is made inside and
// never leaves: the client asks for a signature in the handshake, and TLS with all of its checks stays in the client.
//
// Needs on Debian: softhsm2, opensc, libengine-pkcs11-openssl.
//
//   node --openssl-config=openssl.cnf device.mjs
//   ✓ tcp          16.2 ms   connected
//   ✓ tls          12.1 ms   chain, name and suite verified
//   ✓ connect       7.5 ms   identity accepted
//   ✓ subscribe     1.3 ms   listening for replies
//   ✓ register      3.2 ms   registration accepted
//   … assigning  asking again in 2.2 s
//   ✓ poll          3.4 ms   operation finished
//   press-0043 is device press-0043 of contoso-hub-west.azure-devices.net
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Emulator Root 1"; 7 round trips, 2233 ms in all

import { execFileSync, spawn } from 'node:child_process'
import { createPublicKey, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { issueCertificate } from 'dps-device-client/emulator'
import { emulator } from '../support/emulator.mjs'
import { dim } from '../support/print.mjs'

/** @type {(name: string) => string | undefined} */
const library = (name) =>
  ['/usr/lib', ...readdirSync('/usr/lib').map((folder) => join('/usr/lib', folder))]
    .map((folder) => join(folder, name))
    .find((path) => existsSync(path))

const module = library('softhsm/libsofthsm2.so')
const engine = library('engines-3/pkcs11.so')
if (module === undefined || engine === undefined) {
  console.error('This example needs: apt-get install softhsm2 opensc libengine-pkcs11-openssl')
  process.exit(1)
}

const folder = mkdtempSync(join(tmpdir(), 'hardware-key-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))

// The chip. Its PIN is in a file that only the device's user can read.
const pin = randomBytes(8).toString('hex')
const pinFile = join(folder, 'pin')
writeFileSync(pinFile, pin, { mode: 0o600 })
mkdirSync(join(folder, 'tokens'))
writeFileSync(join(folder, 'softhsm2.conf'), `directories.tokendir = ${join(folder, 'tokens')}\n`)
const env = { ...process.env, SOFTHSM2_CONF: join(folder, 'softhsm2.conf'), TOKEN_PIN: pin }
const label = ['--label', 'device', '--pin', pin, '--so-pin', randomBytes(8).toString('hex')]
execFileSync('softhsm2-util', ['--init-token', '--free', ...label], { env, stdio: 'ignore' })

// In the factory: the chip makes a key pair, and the CA issues a certificate for its public key.
const login = ['--module', module, '--token-label', 'device', '--login', '--pin', 'env:TOKEN_PIN']
const key = ['--label', 'identity', '--id', '01']
execFileSync('pkcs11-tool', [...login, '--keypairgen', '--key-type', 'EC:prime256v1', ...key], {
  env,
  stdio: 'ignore',
})
const spki = execFileSync('pkcs11-tool', [...login, '--read-object', '--type', 'pubkey', '--id', '01'], {
  env,
  stdio: ['ignore', 'pipe', 'ignore'],
})
const { chainPem } = await issueCertificate({
  subject: 'press-0043',
  issuer: emulator.pki.deviceIntermediate,
  publicKey: createPublicKey({ key: spki, format: 'der', type: 'spki' })
    .export({ type: 'spki', format: 'pem' })
    .toString(),
  eku: ['clientAuth'],
})
emulator.enrollments.addGroup({
  groupId: 'presses with a chip',
  attestation: { x509: { ca: emulator.pki.deviceRoot.certPem } },
})

// On the device: Node is told of the engine and the chip's module by its OpenSSL configuration.
const configuration = join(folder, 'openssl.cnf')
writeFileSync(
  configuration,
  `nodejs_conf = device
[device]
engines = engines
[engines]
pkcs11 = pkcs11
[pkcs11]
engine_id = pkcs11
dynamic_path = ${engine}
MODULE_PATH = ${module}
init = 0
`,
)
writeFileSync(join(folder, 'device.crt'), chainPem)
writeFileSync(
  join(folder, 'device.json'),
  JSON.stringify({
    ...emulator.clientOptions(),
    certFile: join(folder, 'device.crt'),
    privateKeyIdentifier: `pkcs11:token=device;object=identity;type=private?pin-source=file:${pinFile}`,
  }),
)
console.log(`  ${dim(`node --openssl-config=openssl.cnf device.mjs`)}`)
const device = spawn(
  process.execPath,
  [
    `--openssl-config=${configuration}`,
    fileURLToPath(new URL('device.mjs', import.meta.url)),
    join(folder, 'device.json'),
  ],
  { env: { ...process.env, SOFTHSM2_CONF: env.SOFTHSM2_CONF }, stdio: ['ignore', 'inherit', 'inherit'] },
)
const [code] = await once(device, 'exit')
process.exit(code ?? 1)

// Prints, with other times:
//
//   node --openssl-config=openssl.cnf device.mjs
//   ✓ tcp              1.0 ms   connected
//   ✓ tls             12.0 ms   chain, name and suite verified
//   ✓ connect          2.0 ms   identity accepted
//   ✓ subscribe        1.0 ms   listening for replies
//   ✓ register         3.0 ms   registration accepted
//   … assigning  asking again in 0.0 s
//   ✓ poll             2.0 ms   operation finished
//   press-0043 is device press-0043 of contoso-hub-west.azure-devices.net
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Emulator Root 1"; 6 round trips, 30 ms in all
