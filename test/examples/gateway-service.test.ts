import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { type Emulator, type EmulatorEvent, startEmulator } from '../../src/emulator/index.ts'

// The example as it is, over the built package, in a process of its own that is killed and fed another certificate.

const GATEWAY = fileURLToPath(new URL('../../examples/gateway-service/index.mjs', import.meta.url))
const ID = 'gateway-1'

let folder: string
let emulator: Emulator
let events: EmulatorEvent[]
let gateway: ChildProcess | undefined
let output: string
let config: { hub: object; [name: string]: unknown }

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'gateway-'))
  events = []
  emulator = await startEmulator({
    assigning: { polls: 0 },
    logSize: 100_000,
    onEvent: (event) => events.push(event),
  })
  const ca = emulator.pki.deviceRoot.certPem
  emulator.enrollments.addGroup({ groupId: 'gateways', attestation: { x509: { ca } } })
  const { port, connectTo, trust, ...provisioning } = emulator.clientOptions()
  const retry = { baseDelayMs: 10, maxDelayMs: 100 }
  config = {
    certFile: join(folder, 'device.crt'),
    keyFile: join(folder, 'device.key'),
    intervalMs: 50,
    provisioning: { ...provisioning, port, connectTo, trust, retry },
    hub: { port, connectTo },
  }
})
afterEach(async () => {
  gateway?.kill('SIGKILL')
  await emulator.close()
  rmSync(folder, { recursive: true, force: true })
})

async function putCertificate(): Promise<void> {
  const { cert, key } = await emulator.issueDeviceCertificate({ registrationId: ID })
  writeFileSync(join(folder, 'device.crt'), cert)
  writeFileSync(join(folder, 'device.key'), key)
}

function boot(): ChildProcess {
  output = ''
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config))
  gateway = spawn(process.execPath, [GATEWAY], {
    env: { ...process.env, GATEWAY_CONFIG: join(folder, 'config.json'), STATE_DIRECTORY: folder },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  for (const stream of [gateway.stdout!, gateway.stderr!]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  }
  return gateway
}

const spool = (): string[] => readdirSync(join(folder, 'readings')).filter((name) => !name.endsWith('.tmp'))
const received = (): Set<string> =>
  new Set(emulator.hub.telemetry.list().map(({ messageId }) => messageId ?? ''))
const registrations = () => emulator.registrations.get(ID)?.count ?? 0
const fingerprints = () =>
  new Set(emulator.log.connections.map(({ handshake }) => handshake?.clientCertificate?.fingerprint256))
const until = (holds: () => boolean) =>
  expect.poll(() => holds() || output.slice(-2000), { timeout: 20_000 }).toBe(true)

it('boots offline, provisions, sends, outlives kill -9 and a swapped certificate, and ends when it is told to', async () => {
  await putCertificate()
  const offline = emulator.faults.add({ at: 'accept', do: 'reset', times: Number.POSITIVE_INFINITY })
  const first = boot()
  await until(() => offline.hits > 3 && spool().length > 2)
  const early = spool()
  offline.remove()
  await until(() => early.every((name) => received().has(name)))
  expect(registrations()).toBe(1)

  // What is on disk and not acknowledged when the power fails is sent after the next boot, to the hub it knows.
  const owed = emulator.faults.add({ at: 'telemetry', do: 'reset', times: Number.POSITIVE_INFINITY })
  await until(() => owed.hits > 2 && spool().length > 2)
  first.kill('SIGKILL')
  await once(first, 'exit')
  const unsent = spool()
  owed.remove()
  const second = boot()
  await until(() => unsent.every((name) => received().has(name)))
  expect(registrations()).toBe(1)
  expect(await emulator.hub.invokeMethod(ID, 'ping')).toMatchObject({ status: 200 })

  // Another certificate of the same device: it registers with that, and the hub is told of it.
  const before = fingerprints().size
  await putCertificate()
  second.kill('SIGHUP')
  await until(() => registrations() === 2 && emulator.hub.listDevices().some((device) => device.connectionId))
  const since = emulator.hub.telemetry.received
  await until(() => emulator.hub.telemetry.received > since)
  expect(fingerprints().size).toBe(before + 1)

  emulator.hub.updateDesired(ID, { intervalMs: 100 })
  second.kill('SIGTERM')
  expect(await once(second, 'exit')).toEqual([0, null])
  await expect.poll(() => emulator.openConnections).toBe(0)
  expect(output).not.toMatch(/PRIVATE KEY/)
  expect(events.filter(({ type }) => type === 'violation')).toEqual([])
}, 90_000)

it('sends after an outage what is on disk, with no restart, however little the queue holds, and bounds it', async () => {
  await putCertificate()
  const half = join(folder, 'readings', '1-0.tmp')
  mkdirSync(join(folder, 'readings'))
  writeFileSync(half, '{"at":')
  config = { ...config, maxReadings: 30, hub: { ...config.hub, queue: { maxMessages: 5 } } }
  boot()
  await until(() => received().size > 2)
  expect(existsSync(half)).toBe(false)

  const outage = emulator.faults.add({
    at: 'hub-connect',
    do: { refuse: 3 },
    times: Number.POSITIVE_INFINITY,
  })
  emulator.hub.disconnect(ID)
  await until(() => outage.hits > 2 && /readings dropped/.test(output))
  expect(spool().length).toBeLessThanOrEqual(31)
  // The youngest, yet more than the queue holds: older ones may be dropped before the hub is back, which may take a second.
  const kept = spool().sort().slice(-10)
  outage.remove()
  await until(() => kept.every((name) => received().has(name)) && spool().length < 5)
  expect(registrations()).toBe(1)
  expect(gateway?.exitCode).toBeNull()
}, 60_000)
