// The other end of every bench, in a process of its own: emulated services, and plain TLS servers for the handshake.
// Sends the scene, once, over IPC (or prints it); then answers `usage` with the CPU time spent so far.

import { generateKeyPairSync } from 'node:crypto'
import tls from 'node:tls'
import { createPki, issueCertificate, startEmulator } from '../dist/emulator.mjs'

/**
 * @typedef {object} Device
 * @property {string} registrationId
 * @property {string} [cert] the leaf alone, PEM: what an individual enrollment needs
 * @property {string} [chain] the leaf and its intermediate, PEM
 * @property {string} [key] PEM, or base64 for SAS
 */

/**
 * @typedef {object} TlsPort a server that completes handshakes and does no more
 * @property {number} port
 * @property {string} suite
 * @property {string} curve
 * @property {string} chain
 */

/**
 * @typedef {object} Scene
 * @property {string} host the name to verify
 * @property {string} address the address to dial
 * @property {string} idScope
 * @property {readonly [string, string]} roots PEM; servers chain to the first, clients trust both
 * @property {{ roots: 'none', extraRoots: readonly string[] }} trust for our client
 * @property {{ atOnce: number, onePoll: number }} ports of services that assign with the first reply, or after one poll
 *   without delay
 * @property {{ ec: Device, rsa: Device, sas: Device }} devices all enrolled
 * @property {Record<string, TlsPort>} tls by name: `default`, `azure`, then suites and curves by their own names
 * @property {number} pid of the server
 */

const DEFAULT_SUITE = 'ECDHE-RSA-AES256-GCM-SHA384'
/** The recommended suites, then one without forward secrecy for comparison. */
const SUITES = [
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES256-SHA384',
  'ECDHE-RSA-AES128-SHA256',
  'AES256-GCM-SHA384',
]
const CURVES = ['X25519', 'P-256', 'P-384']

const pki = await createPki()

const service = (polls) =>
  startEmulator({
    pki,
    assigning: { polls, retryAfterSeconds: 0 },
    concurrentRegistrations: 'allow',
    logSize: 10,
  })
const emulators = { atOnce: await service(0), onePoll: await service(1) }

const devices = {}
for (const [name, keyType] of [
  ['ec', 'ec-p256'],
  ['rsa', 'rsa-2048'],
]) {
  const registrationId = `bench-${name}`
  const { cert: chain, key } = await emulators.atOnce.issueDeviceCertificate({ registrationId, keyType })
  const [cert] = /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----\n/.exec(chain)
  devices[name] = { registrationId, cert, chain, key }
  for (const emulator of Object.values(emulators)) {
    emulator.enrollments.addIndividual({ registrationId, attestation: { x509: { certificate: cert } } })
  }
}
const registrationId = 'bench-sas'
const sasDevice = { registrationId, attestation: { symmetricKey: {} } }
const { primaryKey: key } = emulators.atOnce.enrollments.addIndividual(sasDevice)
const sas = { registrationId, key }
emulators.onePoll.enrollments.addIndividual({
  registrationId,
  attestation: { symmetricKey: { primaryKey: key } },
})

/** As the service's own: an intermediate of 4096 bits, signatures with SHA-384. */
async function azureShapedChain() {
  const { privateKey } = generateKeyPairSync('rsa', {
    modulusLength: 4096,
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
    publicKeyEncoding: { type: 'spki', format: 'pem' },
  })
  const intermediate = await issueCertificate({
    subject: 'Bench Intermediate 4096',
    issuer: pki.roots[0],
    key: privateKey,
    ca: true,
    pathLength: 0,
    digest: 'sha384',
  })
  const leaf = await issueCertificate({
    subject: emulators.atOnce.host,
    issuer: intermediate,
    keyType: 'rsa-2048',
    sans: ['*.azure-devices-provisioning.net'],
    eku: ['serverAuth', 'clientAuth'],
    digest: 'sha384',
  })
  return { cert: leaf.chainPem, key: leaf.keyPem }
}

const chains = {
  default: { cert: pki.server.chainPem, key: pki.server.keyPem },
  azure: await azureShapedChain(),
}

async function tlsPort({ suite = DEFAULT_SUITE, curve = 'X25519', chain = 'default' } = {}) {
  const server = tls.createServer({
    ...chains[chain],
    // Without this, Node would load a trust store for nothing.
    ca: [],
    requestCert: true,
    rejectUnauthorized: false,
    maxVersion: 'TLSv1.2',
    ciphers: suite,
    // The server's first choice decides; the others stay, because a device key on P-256 needs its curve in the list.
    ecdhCurve: [curve, ...CURVES.filter((other) => other !== curve)].join(':'),
    honorCipherOrder: true,
    // OpenSSL resumes a session with a client certificate only within a named context.
    sessionIdContext: 'bench',
    noDelay: true,
  })
  server.on('secureConnection', (socket) => {
    socket.on('error', () => undefined)
    socket.resume()
  })
  server.on('tlsClientError', () => undefined)
  await new Promise((resolve) => server.listen(0, '127.0.0.1', 1024, resolve))
  return { port: server.address().port, suite, curve, chain }
}

const { host, address, idScope, roots } = emulators.atOnce
const ports = { default: await tlsPort(), azure: await tlsPort({ chain: 'azure' }) }
for (const suite of SUITES) ports[suite] = await tlsPort({ suite })
for (const curve of CURVES) ports[curve] = await tlsPort({ curve })

/** @type {Scene} */
const scene = {
  host,
  address,
  idScope,
  roots,
  trust: { roots: 'none', extraRoots: roots },
  ports: { atOnce: emulators.atOnce.port, onePoll: emulators.onePoll.port },
  devices: { ...devices, sas },
  tls: ports,
  pid: process.pid,
}

if (process.send === undefined) console.log(JSON.stringify(scene))
else {
  process.on('message', () => {
    const { user, system } = process.cpuUsage()
    const { atOnce, onePoll } = emulators
    process.send({
      cpuMicros: user + system,
      openConnections: atOnce.openConnections + onePoll.openConnections,
    })
  })
  process.on('disconnect', () => process.exit())
  process.send(scene)
}
