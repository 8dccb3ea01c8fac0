// The emulated service that the clients of bench/clients register with: a process of its own, on the other core.
//
//     node bench/service.mjs FOLDER
//
// It writes the roots and the identities of devices to FOLDER, says on the IPC channel where it listens, and from then
// on takes one message at a time:
//
//     { start: { polls, fixedPorts, count } }  starts the emulator anew, on the same port
//     'usage'                                  tells what it used and saw since then
//     { many: n }                              writes n devices of either group, one a line, and says where
//
// The device `idle` never gets an answer to its register request: connected, subscribed, it waits.
// Each device presents its leaf alone, which the enrollment group believes through the intermediate that issued it.

import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { createPki, generateSymmetricKey, issueCertificate, startEmulator } from '../dist/emulator.mjs'
import { deriveDeviceKey } from '../dist/factory.mjs'

/** Microsoft's client is told a host name and nothing else: the port follows from the transport. */
const FIXED_PORTS = [8883, 443]

const folder = process.argv[2]
const pki = await createPki()
const roots = join(folder, 'service-roots.pem')
writeFileSync(roots, pki.roots.map(({ certPem }) => certPem).join(''))

async function certified(registrationId, keyType) {
  const { certPem, keyPem } = await issueCertificate({
    subject: registrationId,
    keyType,
    issuer: pki.deviceIntermediate,
    eku: ['clientAuth'],
  })
  const [certFile, keyFile] = ['cert', 'key'].map((part) => join(folder, `${registrationId}.${part}.pem`))
  writeFileSync(certFile, certPem)
  writeFileSync(keyFile, keyPem, { mode: 0o600 })
  return { registrationId, certFile, keyFile }
}

const devices = {
  ec: await certified('bench-ec', 'ec-p256'),
  rsa: await certified('bench-rsa', 'rsa-2048'),
  idle: await certified('bench-idle', 'ec-p256'),
  sas: { registrationId: 'bench-sas', key: undefined },
}

/** Of the devices in a list that have keys. */
const groupKey = generateSymmetricKey()

let emulator
let port = 0
let packets
let registrations = 0
let held
let cpu

async function listen({ polls = 0, fixedPorts = true, count = false }) {
  await emulator?.close()
  packets = { in: 0, out: 0 }
  registrations = 0
  emulator = await startEmulator({
    pki,
    port: fixedPorts ? [port, ...FIXED_PORTS] : port,
    assigning: { polls, retryAfterSeconds: 0 },
    // One device registers many times at once.
    concurrentRegistrations: 'allow',
    logSize: 0,
    ...(count && {
      onEvent: (event) => {
        if (event.type === 'packet') packets[event.packet.direction]++
        if (event.type === 'registration') registrations++
      },
    }),
  })
  port = emulator.port
  emulator.enrollments.addGroup({
    groupId: 'certified',
    attestation: { x509: { ca: pki.deviceIntermediate.certPem } },
  })
  emulator.enrollments.addGroup({
    groupId: 'keyed',
    attestation: { symmetricKey: { primaryKey: groupKey } },
  })
  const { registrationId, key } = devices.sas
  const symmetricKey = key === undefined ? {} : { primaryKey: key }
  devices.sas.key = emulator.enrollments.addIndividual({
    registrationId,
    attestation: { symmetricKey },
  }).primaryKey
  held = emulator.faults.add({
    at: 'register-reply',
    do: 'silence',
    times: Number.POSITIVE_INFINITY,
    match: { registrationId: devices.idle.registrationId },
  })
  cpu = process.cpuUsage()
}

async function start(options = {}) {
  try {
    await listen(options)
    return { fixedPorts: options.fixedPorts !== false }
  } catch (error) {
    if (options.fixedPorts === false) throw error
    // Taken, or not for this user: the clients that can be told a port are measured all the same.
    await listen({ ...options, fixedPorts: false })
    return { fixedPorts: false, reason: error.code ?? error.message }
  }
}

async function many(count) {
  const lists = { sas: join(folder, 'many-sas.jsonl'), ec: join(folder, 'many-ec.jsonl') }
  const make = {
    sas: async (registrationId) => ({ key: await deriveDeviceKey({ groupKey, registrationId }) }),
    ec: async (subject) => {
      const { certPem, keyPem } = await issueCertificate({
        subject,
        keyType: 'ec-p256',
        issuer: pki.deviceIntermediate,
        eku: ['clientAuth'],
      })
      return { certPem, keyPem }
    },
  }
  for (const [kind, list] of Object.entries(lists)) {
    const file = openSync(list, 'w', 0o600)
    for (let i = 0; i < count; i++) {
      const registrationId = `many-${kind}-${i}`
      writeSync(file, `${JSON.stringify({ registrationId, ...(await make[kind](registrationId)) })}\n`)
    }
    closeSync(file)
  }
  return { lists }
}

function usage() {
  const { user, system } = process.cpuUsage(cpu)
  return {
    cpuMicros: user + system,
    packets,
    registrations,
    waiting: held.hits,
    openConnections: emulator.openConnections,
  }
}

process.on('message', async (message) => {
  try {
    if (message === 'usage') process.send(usage())
    else process.send(message.many ? await many(message.many) : await start(message.start))
  } catch (error) {
    process.send({ error: error.stack })
  }
})
process.once('disconnect', () => process.exit())

const { fixedPorts, reason } = await start()
const { host, address, idScope } = emulator
process.send({ scene: { host, port, address, idScope, roots }, devices, fixedPorts, reason })
