// Every case with every transport of Microsoft's client; run.mjs starts this. One line per case, then the sum.

import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { createHmac, X509Certificate } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createPki, generateSymmetricKey, issueCertificate, startEmulator } from '../../dist/emulator.mjs'
import { HUB_CASES, HUB_TRANSPORTS, HubBench } from './hub-cases.mjs'

// Their client is told a host name and nothing else: the port follows from the transport.
const MQTT = {
  package: 'azure-iot-provisioning-device-mqtt',
  // CONNACK return code 5, not authorized (MQTT 3.1.1, section 3.2.2.3).
  refusal: { name: 'Error', code: 5 },
  checkLog: checkMqttLog,
}
const TRANSPORTS = [
  { label: 'MQTT', port: 8883, name: 'Mqtt', speaks: 'mqtt', ...MQTT },
  { label: 'MQTT over WebSocket', port: 443, name: 'MqttWs', speaks: 'mqtt-ws', ...MQTT },
  {
    label: 'HTTPS',
    port: 443,
    package: 'azure-iot-provisioning-device-http',
    name: 'Http',
    speaks: 'https',
    refusal: { name: 'UnauthorizedError', code: undefined },
    // Over HTTPS their client gives up at a status that over MQTT it takes for "later".
    givesUp: 'ServiceUnavailableError',
    checkLog: checkHttpsLog,
  },
]

const HOST = 'localhost'
const HUBS = ['hub-a.azure-devices.net', 'hub-b.azure-devices.net']
const ID_SCOPE = '0ne00C0FFEE'
const SUITES = [
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES256-SHA384',
  'ECDHE-RSA-AES128-SHA256',
]
const CASE_MS = 30_000
// The rest is for closing.
const DEVICE_MS = 25_000

const DEVICE = fileURLToPath(new URL('device.cjs', import.meta.url))
const manifest = readFileSync(new URL('package.json', import.meta.url), 'utf8')
const clientVersion = JSON.parse(manifest).dependencies['azure-iot-provisioning-device']

/** Each has an emulator of its own. */
const CASES = {
  'X.509 individual enrollment, self-signed RSA certificate': async (bench) => {
    const registrationId = 'press-0042'
    const { certPem, keyPem } = await issueCertificate({
      subject: registrationId,
      keyType: 'rsa-2048',
      eku: ['clientAuth'],
    })
    bench.emulator.enrollments.addIndividual({
      registrationId,
      deviceId: 'press-at-the-hub',
      hub: HUBS[1],
      attestation: { x509: { certificate: certPem } },
    })
    const end = await bench.register({ registrationId, x509: { cert: certPem, key: keyPem } })
    bench.assertAssigned(end, {
      registrationId,
      deviceId: 'press-at-the-hub',
      assignedHub: HUBS[1],
      enrollment: { registrationId },
      certificate: { pem: certPem, intermediates: 0 },
    })
  },

  'X.509 enrollment group, EC certificate with its chain': async (bench) => {
    const registrationId = 'press-0043'
    const { emulator } = bench
    const ca = emulator.pki.deviceRoot.certPem
    emulator.enrollments.addGroup({ groupId: 'presses', hub: HUBS[0], attestation: { x509: { ca } } })
    const x509 = await emulator.issueDeviceCertificate({ registrationId })
    const end = await bench.register({ registrationId, x509 })
    bench.assertAssigned(end, {
      registrationId,
      assignedHub: HUBS[0],
      enrollment: { groupId: 'presses' },
      certificate: { pem: x509.cert, intermediates: 1 },
    })
  },

  'X.509 enrollment group, certificate of an impostor of its CA is refused': async (bench) => {
    const registrationId = 'press-0044'
    const ca = bench.emulator.pki.deviceRoot.certPem
    bench.emulator.enrollments.addGroup({ groupId: 'presses', attestation: { x509: { ca } } })
    // The names are right; only the key that signed is not.
    const subject = new X509Certificate(ca).subject.replace('CN=', '')
    const impostor = await issueCertificate({ subject, ca: true })
    const leaf = await issueCertificate({ subject: registrationId, issuer: impostor, eku: ['clientAuth'] })
    const end = await bench.register({ registrationId, x509: { cert: leaf.certPem, key: leaf.keyPem } })
    bench.assertRefused(end, { registrationId, reason: 'certificate-chain-unknown' })
  },

  'SAS individual enrollment': async (bench) => {
    const registrationId = 'sensor-7f3a'
    const key = generateSymmetricKey()
    // The secondary key is as good as the primary.
    const attestation = { symmetricKey: { secondaryKey: key } }
    bench.emulator.enrollments.addIndividual({ registrationId, hub: HUBS[0], attestation })
    const end = await bench.register({ registrationId, key })
    bench.assertAssigned(end, { registrationId, assignedHub: HUBS[0], enrollment: { registrationId } })
  },

  'SAS individual enrollment, wrong key is refused': async (bench) => {
    const registrationId = 'sensor-7f3b'
    bench.emulator.enrollments.addIndividual({ registrationId, attestation: { symmetricKey: {} } })
    const end = await bench.register({ registrationId, key: generateSymmetricKey() })
    bench.assertRefused(end, { registrationId, reason: 'sas-signature-wrong' })
  },

  'SAS enrollment group, derived key': async (bench) => {
    const registrationId = 'sensor-7f3c'
    const primaryKey = generateSymmetricKey()
    const attestation = { symmetricKey: { primaryKey } }
    bench.emulator.enrollments.addGroup({ groupId: 'sensors', hub: HUBS[1], attestation })
    const end = await bench.register({ registrationId, key: deviceKey(primaryKey, registrationId) })
    bench.assertAssigned(end, { registrationId, assignedHub: HUBS[1], enrollment: { groupId: 'sensors' } })
  },

  'SAS enrollment group, key of another device is refused': async (bench) => {
    const registrationId = 'sensor-7f3d'
    const primaryKey = generateSymmetricKey()
    bench.emulator.enrollments.addGroup({ groupId: 'sensors', attestation: { symmetricKey: { primaryKey } } })
    const end = await bench.register({ registrationId, key: deviceKey(primaryKey, 'sensor-7f3e') })
    bench.assertRefused(end, { registrationId, reason: 'sas-signature-wrong' })
  },

  'payload both ways': async (bench) => {
    const registrationId = 'sensor-7f3f'
    const key = generateSymmetricKey()
    // Their client reads what it receives as ASCII, so only what it sends may hold more.
    const sent = { site: 'Zürich ☂', lines: [1, 2, { spare: null }] }
    const returned = { firmware: '1.4.2', slots: [true, 0.5, { name: 'a "quoted" name' }] }
    const received = []
    bench.emulator.enrollments.addIndividual({
      registrationId,
      attestation: { symmetricKey: { primaryKey: key } },
      hub: ({ payload }) => {
        received.push(payload)
        return HUBS[1]
      },
      payload: () => returned,
    })
    const end = await bench.register({ registrationId, key, payload: sent })
    bench.assertAssigned(end, { registrationId, assignedHub: HUBS[1], enrollment: { registrationId } })
    assert.deepEqual(received, [sent])
    assert.deepEqual(end.result.payload, returned)
  },

  'a busy service is asked again, or reported': async (bench) => {
    const registrationId = 'sensor-7f40'
    const key = generateSymmetricKey()
    const attestation = { symmetricKey: { primaryKey: key } }
    bench.emulator.enrollments.addIndividual({ registrationId, hub: HUBS[0], attestation })
    const reply = { status: 503, retryAfter: '1' }
    bench.emulator.faults.add({ at: 'register', do: { reply } })
    if (bench.transport.givesUp !== undefined) {
      const { error } = await bench.register({ registrationId, key })
      assert.equal(error?.name, bench.transport.givesUp)
      assert.equal(bench.emulator.registrations.size, 0)
      return
    }
    bench.emulator.faults.add({ at: 'poll', do: { reply } })
    const end = await bench.register({ registrationId, key })
    bench.assertAssigned(end, {
      registrationId,
      assignedHub: HUBS[0],
      enrollment: { registrationId },
      registers: 2,
      polls: 3,
    })
    assert.deepEqual(bench.emulator.faults.list(), [])
  },

  'a failed allocation is an error that carries its code': async (bench) => {
    const registrationId = 'sensor-7f41'
    const key = generateSymmetricKey()
    const attestation = { symmetricKey: { primaryKey: key } }
    bench.emulator.enrollments.addIndividual({ registrationId, hub: () => undefined, attestation })
    const { error } = await bench.register({ registrationId, key })
    assert.equal(error?.name, 'ProvisioningRegistrationFailedError')
    assert.equal(error.state.status, 'failed')
    assert.equal(error.state.errorCode, 400208)
    assert.equal(bench.emulator.registrations.size, 0)
  },

  // Shows that their client does look at the server's certificate, without which the others would prove less.
  'a server under another root is not believed': async (bench) => {
    const registrationId = 'sensor-7f42'
    const key = generateSymmetricKey()
    const attestation = { symmetricKey: { primaryKey: key } }
    bench.emulator.enrollments.addIndividual({ registrationId, attestation })
    const { error } = await bench.register({ registrationId, key }, bench.otherRootFile)
    assert.equal(error?.code, 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY')
    assert.deepEqual(bench.emulator.log.packets, [])
  },
}

/** HMAC-SHA256 of the registration id under the group's key, both as the service's documentation has them. */
function deviceKey(groupKey, registrationId) {
  return createHmac('sha256', Buffer.from(groupKey, 'base64')).update(registrationId).digest('base64')
}

/** An emulator on the transport's port, and what is asked of it and of Microsoft's client. */
class Bench {
  #rootFile
  #events = []
  #onClosed = () => {}

  static async open(transport, { pki, rootFile, otherRootFile }) {
    const bench = new Bench()
    bench.transport = transport
    bench.#rootFile = rootFile
    bench.otherRootFile = otherRootFile
    bench.emulator = await startEmulator({
      pki,
      port: transport.port,
      idScope: ID_SCOPE,
      hubs: HUBS,
      // Assigned at the second poll.
      assigning: { polls: 2, retryAfterSeconds: 0 },
      onEvent: (event) => {
        bench.#events.push(event)
        if (event.type === 'connection-closed') bench.#onClosed()
      },
    })
    return bench
  }

  /** Runs one device to its end and waits until the emulator has seen it go. */
  async register(device, rootFile = this.#rootFile) {
    const child = fork(DEVICE, {
      env: { ...process.env, NODE_EXTRA_CA_CERTS: rootFile },
      execArgv: [],
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      timeout: DEVICE_MS,
      killSignal: 'SIGKILL',
    })
    let stderr = ''
    child.stderr.setEncoding('utf8').on('data', (text) => {
      stderr += text
    })
    const end = await new Promise((resolve, reject) => {
      let message
      child.on('message', (received) => {
        message = received
      })
      child.on('error', reject)
      child.on('close', (code, signal) => {
        if (message !== undefined && code === 0) resolve(message)
        else
          reject(new Error(`the device ended with ${signal ?? `exit code ${code}`} and no result\n${stderr}`))
      })
      child.send({
        ...device,
        host: HOST,
        idScope: ID_SCOPE,
        transport: { package: this.transport.package, name: this.transport.name },
      })
    })
    await new Promise((resolve) => {
      this.#onClosed = () => {
        if (this.emulator.openConnections === 0) resolve()
      }
      this.#onClosed()
    })
    return end
  }

  assertAssigned({ error, result }, expected) {
    assert.equal(error, undefined)
    const { registrationId, assignedHub, enrollment, certificate } = expected
    const { deviceId = registrationId, registers = 1, polls = 2 } = expected
    assert.equal(result.status, 'assigned')
    assert.equal(result.substatus, 'initialAssignment')
    assert.equal(result.registrationId, registrationId)
    assert.equal(result.deviceId, deviceId)
    assert.equal(result.assignedHub, assignedHub)

    const { registrations, log } = this.emulator
    assert.equal(registrations.size, 1)
    const recorded = registrations.get(registrationId)
    assert.equal(recorded?.deviceId, deviceId)
    assert.equal(recorded.assignedHub, assignedHub)
    assert.deepEqual(recorded.enrollment, enrollment)
    assert.equal(recorded.count, 1)
    assert.equal(result.etag, recorded.etag)

    assert.equal(this.#find('violation'), undefined)
    assert.equal(this.#find('refused'), undefined)
    for (const { transport, handshake } of log.connections) {
      assert.equal(transport, this.transport.speaks)
      this.#assertHandshake(handshake, certificate)
    }
    this.transport.checkLog(log, { registrationId, registers, polls, password: certificate === undefined })
  }

  assertRefused({ error, result }, { registrationId, reason }) {
    assert.equal(result, undefined)
    const { name, code } = error ?? {}
    assert.deepEqual({ name, code }, this.transport.refusal)
    const { type, connectionId, ...refusal } = this.#find('refused') ?? {}
    assert.deepEqual(refusal, { registrationId, reason })
    assert.equal(this.#find('violation'), undefined)
    assert.equal(this.emulator.registrations.size, 0)
  }

  #assertHandshake(handshake, certificate) {
    assert.equal(handshake?.protocol, 'TLSv1.2')
    assert(SUITES.includes(handshake.cipher), `${handshake.cipher} is no recommended suite`)
    assert.equal(handshake.serverName, HOST)
    const presented = certificate && new X509Certificate(certificate.pem)
    assert.deepEqual(
      handshake.clientCertificate,
      presented && {
        subject: presented.subject,
        fingerprint256: presented.fingerprint256,
        intermediates: certificate.intermediates,
      },
    )
  }

  #find(type) {
    return this.#events.find((event) => event.type === type)
  }
}

function checkMqttLog({ connections, packets }, { registrationId, registers, polls, password }) {
  assert.equal(connections.length, 1)
  const sent = packets.filter(({ direction }) => direction === 'in')
  if (connections[0].transport === 'mqtt-ws') {
    const upgrade = sent.shift()
    assert.equal(upgrade?.type, 'upgrade')
    assert.equal(upgrade.target, '/$iothub/websocket')
    assert.equal(upgrade.headers['sec-websocket-protocol'], 'mqtt')
  }
  const connect = sent[0]
  const version = encodeURIComponent(`azure-iot-provisioning-device/${clientVersion}`)
  assert.equal(connect?.type, 'connect')
  assert.equal(connect.clientId, registrationId)
  assert.equal(
    connect.userName,
    `${ID_SCOPE}/registrations/${registrationId}/api-version=2019-03-31&ClientVersion=${version}`,
  )
  assert.equal(connect.passwordPresent, password)
  const published = (topic) =>
    sent.filter(
      (packet) => packet.type === 'publish' && packet.topic.startsWith(`$dps/registrations/${topic}/?$rid=`),
    )
  assert.equal(published('PUT/iotdps-register').length, registers)
  assert.equal(published('GET/iotdps-get-operationstatus').length, polls)
  assert.equal(sent.at(-1).type, 'disconnect')
}

function checkHttpsLog({ packets }, { registrationId, registers, polls, password }) {
  const path = `/${ID_SCOPE}/registrations/${registrationId}`
  const sent = packets.filter(({ direction }) => direction === 'in')
  assert.deepEqual(
    sent.map(
      ({ method, target }) => `${method} ${target.replace(/[^/]+(?=\?)/, (part) => part.split('.')[0])}`,
    ),
    [
      ...Array(registers).fill(`PUT ${path}/register?api-version=2019-03-31`),
      // An operation id begins with "5.".
      ...Array(polls).fill(`GET ${path}/operations/5?api-version=2019-03-31`),
    ],
  )
  for (const { headers, authorizationPresent } of sent) {
    assert.equal(authorizationPresent, password)
    assert.equal(headers['user-agent'], `azure-iot-provisioning-device/${clientVersion}`)
    assert.equal(headers['content-type'], 'application/json; charset=utf-8')
  }
}

/** Why the emulator cannot listen where their client will look for it, or undefined. */
function portTaken(port) {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', ({ code }) => resolve(`port ${port} of this machine cannot be had (${code})`))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(undefined)))
  })
}

async function runCase(check, transport, setting) {
  const bench = await Bench.open(transport, setting)
  try {
    await check(bench)
  } finally {
    await bench.emulator.close()
  }
}

async function runHubCase(check, transport, setting) {
  const bench = await HubBench.open(transport, setting)
  try {
    await check(bench)
  } finally {
    await bench.close()
  }
}

function withinTime(work) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no end after ${CASE_MS / 1000} s`)), CASE_MS)
  })
  return Promise.race([work, late]).finally(() => clearTimeout(timer))
}

const folder = mkdtempSync(join(tmpdir(), 'dps-interop-'))
process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
// A device ends with the channel to it, and so with this process.
for (const end of ['disconnect', 'SIGINT', 'SIGTERM', 'SIGHUP']) process.once(end, () => process.exit(1))
process.channel?.unref()

const pki = await createPki()
const [rootFile, otherRootFile] = pki.roots.map(({ certPem }, index) => {
  const file = join(folder, `root-${index + 1}.pem`)
  writeFileSync(file, certPem)
  return file
})

let passed = 0
let failed = 0
let skipped = 0
async function runAll(transports, cases, run) {
  for (const transport of transports) {
    const obstacle = await portTaken(transport.port)
    for (const [title, check] of Object.entries(cases)) {
      const name = `${transport.label}, ${title}`
      if (obstacle !== undefined) {
        skipped += 1
        console.log(`skipped ${name}: ${obstacle}`)
        continue
      }
      try {
        await withinTime(run(check, transport, { pki, rootFile, otherRootFile }))
        passed += 1
        console.log(`ok ${name}`)
      } catch (error) {
        failed += 1
        console.log(`FAILED ${name}\n${error.stack}`)
      }
    }
  }
}
await runAll(TRANSPORTS, CASES, runCase)
await runAll(HUB_TRANSPORTS, HUB_CASES, runHubCase)
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = failed === 0 ? 0 : 1
