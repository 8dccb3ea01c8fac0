import { constants } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, beforeEach, expect, it } from 'vitest'
import {
  createPki,
  type Emulator,
  generateSymmetricKey,
  type Pki,
  startEmulator,
} from '../../src/emulator/index.ts'
import { type Ran, run } from '../cli/bench.ts'

// The runner of the live tests, with the emulator where Azure would be: what it says must be true, above all that it failed.

const RUNNER = fileURLToPath(new URL('run.mjs', import.meta.url))
const DOCUMENT = readFileSync(new URL('../../docs/live-test.md', import.meta.url), 'utf8')
const KEY = generateSymmetricKey()
const GROUP_KEY = generateSymmetricKey()

let pki: Pki
let folder: string
let emulator: Emulator
let environment: Record<string, string>

beforeAll(async () => {
  pki = await createPki()
})
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'live-'))
  emulator = await start()
  const single = await emulator.issueDeviceCertificate({ registrationId: 'press-single' })
  const grouped = await emulator.issueDeviceCertificate({ registrationId: 'press-grouped' })
  const file = (name: string, content: string) => {
    writeFileSync(join(folder, name), `${content}\n`)
    return join(folder, name)
  }
  environment = {
    DPS_LIVE_ID_SCOPE: emulator.idScope,
    DPS_LIVE_REGISTRATION_ID: 'press-sas',
    DPS_LIVE_KEY_FILE: file('sas.key', KEY),
    DPS_LIVE_GROUP_REGISTRATION_ID: 'press-derived',
    DPS_LIVE_GROUP_KEY_FILE: file('group.key', GROUP_KEY),
    DPS_LIVE_CERT_FILE: file('single.pem', single.cert),
    DPS_LIVE_CERT_KEY_FILE: file('single.key', single.key),
    DPS_LIVE_GROUP_CERT_FILE: file('grouped.pem', grouped.cert),
    DPS_LIVE_GROUP_CERT_KEY_FILE: file('grouped.key', grouped.key),
    DPS_LIVE_CONNECT_TO: emulator.address,
    DPS_LIVE_PORT: `${emulator.port}`,
    DPS_LIVE_EXTRA_ROOT_FILE: file('root.pem', emulator.roots[0]!),
  }
  enroll(emulator, single.cert)
  return async () => {
    await emulator.close()
    rmSync(folder, { recursive: true })
  }
})

const start = (more = {}) => startEmulator({ pki, assigning: { polls: 0 }, ...more })
function enroll({ enrollments }: Emulator, certificate: string): void {
  enrollments.addIndividual({
    registrationId: 'press-sas',
    attestation: { symmetricKey: { primaryKey: KEY } },
  })
  enrollments.addIndividual({ registrationId: 'press-single', attestation: { x509: { certificate } } })
  enrollments.addGroup({ groupId: 's', attestation: { symmetricKey: { primaryKey: GROUP_KEY } } })
  enrollments.addGroup({ groupId: 'x', attestation: { x509: { ca: pki.deviceRoot.certPem } } })
}
const live = (env: Record<string, string>, ...args: string[]): Promise<Ran> =>
  run([RUNNER, ...args], { command: [process.execPath], env })
const only = (...names: string[]) =>
  Object.fromEntries(
    Object.entries(environment).filter(
      ([name]) => names.includes(name) || /ID_SCOPE|CONNECT_TO|PORT|EXTRA_ROOT/.test(name),
    ),
  )
const lines = (text: string, beginning: string) =>
  text.split('\n').filter((line) => line.startsWith(beginning))
const SAS = ['DPS_LIVE_REGISTRATION_ID', 'DPS_LIVE_KEY_FILE']

it('tries nothing without an instance, says what is missing, and calls that no pass', async () => {
  const ran = await live({})
  expect(ran).toMatchObject({ code: 0, stderr: '' })
  for (const name of Object.keys(environment).filter((one) => !/CONNECT_TO|PORT|EXTRA_ROOT/.test(one))) {
    expect(ran.stdout).toContain(name)
    expect(DOCUMENT).toContain(name)
  }
  expect(ran.stdout).toMatch(/^Nothing was tried: .*\n$/m)
  expect(ran.stdout).not.toMatch(/pass|ok/)
  const { DPS_LIVE_ID_SCOPE: _, ...devices } = environment
  expect((await live(devices)).stdout).toMatch(/DPS_LIVE_ID_SCOPE[\s\S]*^Nothing was tried/m)
  expect(emulator.log.connections).toEqual([])
})

it('refuses what is there by halves, and a name that it does not know', async () => {
  const { DPS_LIVE_CERT_KEY_FILE: _, ...halved } = environment
  expect(await live(halved)).toEqual({
    code: 2,
    signal: null,
    stdout: '',
    stderr: 'DPS_LIVE_CERT_KEY_FILE is missing, for a device with X.509\n',
  })
  const ran = await live({ ...environment, DPS_LIVE_IDSCOPE: 'x' })
  expect(ran).toMatchObject({ code: 2, stdout: '', stderr: 'DPS_LIVE_IDSCOPE is not known\n' })
})

it('registers every credential over every transport, and tells nothing that names the device', async () => {
  const report = join(folder, 'report.json')
  const ran = await live(environment, '--json', report)
  // The way there; for each of four credentials 3 × (reached, again, registered), pipelined twice, looked up.
  expect(ran, ran.stdout).toMatchObject({ code: 0, stderr: '' })
  expect(ran.stdout).toMatch(/\n49 passed, 0 failed\n$/)
  expect(lines(ran.stdout, 'not tried')).toEqual([])
  expect(
    emulator.registrations
      .list()
      .map(({ registrationId, count }) => `${registrationId} ${count}`)
      .sort(),
  ).toEqual(['press-derived 5', 'press-grouped 5', 'press-sas 5', 'press-single 5'])
  expect(ran.stdout).toMatch(/Elsewhere than the public service \(DPS_LIVE_CONNECT_TO, DPS_LIVE_PORT, /)
  expect(ran.stdout).toMatch(
    /chain global\.azure-devices-provisioning\.net < Emulator Server CA, chain ends /,
  )
  expect(ran.stdout).toMatch(/suites (ECDHE-RSA-\S+ < ){3}ECDHE-RSA-\S+, server ahead by s -?[01]\n/)
  expect(lines(ran.stdout, 'ok').filter((line) => line.includes('resumed true'))).toHaveLength(12)
  expect(ran.stdout.match(/curve X25519/g)).toHaveLength(36)
  expect(ran.stdout.match(/pipelining accepted/g)).toHaveLength(8)
  const written = readFileSync(report, 'utf8')
  expect(JSON.parse(written)).toHaveLength(49)
  for (const text of [ran.stdout, written]) {
    for (const secret of [emulator.idScope, KEY, GROUP_KEY, 'press-', 'emulated-hub', 'PRIVATE', folder]) {
      expect(text).not.toContain(secret)
    }
  }
})

it('fails for a device that is refused, as soon as the transport tells, and goes on with the others', async () => {
  emulator.enrollments.addIndividual({ registrationId: 'press-sas', attestation: { symmetricKey: {} } })
  const ran = await live(only(...SAS, 'DPS_LIVE_CERT_FILE', 'DPS_LIVE_CERT_KEY_FILE'))
  expect(ran.code).toBe(1)
  expect(ran.stdout).toMatch(/\n15 passed, 3 failed\n$/)
  expect(lines(ran.stdout, 'FAILED  symmetric key over ')).toEqual([
    expect.stringContaining('mqtt: reached: UNAUTHORIZED, in phase connect'),
    expect.stringContaining('mqtt-ws: reached: UNAUTHORIZED, in phase connect'),
    expect.stringContaining('https: registered: UNAUTHORIZED, in phase register, service code 401002'),
  ])
  expect(ran.stdout).not.toContain('press-')
  expect(lines(ran.stdout, 'not tried')).toHaveLength(2)
})

it('fails for a service that it cannot trust', async () => {
  const { DPS_LIVE_EXTRA_ROOT_FILE: _, ...untrusted } = only(...SAS)
  const ran = await live(untrusted)
  expect(ran.code).toBe(1)
  expect(ran.stdout).toMatch(/\n0 passed, 4 failed\n$/)
  expect(ran.stdout.match(/SERVER_UNTRUSTED/g)).toHaveLength(3)
})

it('tells of a service that takes no pipelining and resumes no session, which is no failure', async () => {
  await emulator.close()
  emulator = await start({ pipelining: 'drop', tls: { secureOptions: constants.SSL_OP_NO_TICKET } })
  enroll(emulator, readFileSync(environment.DPS_LIVE_CERT_FILE!, 'utf8'))
  const ran = await live({ ...only(...SAS), DPS_LIVE_PORT: `${emulator.port}` })
  expect(ran, ran.stdout).toMatchObject({ code: 0 })
  expect(ran.stdout.match(/pipelining refused/g)).toHaveLength(2)
  expect(ran.stdout).not.toContain('resumed true')
  expect(ran.stdout).toMatch(/\n13 passed, 0 failed\n$/)
})

it('fails where a registration ends in another hub than the one before', async () => {
  const hubs = ['a.azure-devices.net', 'b.azure-devices.net']
  await emulator.close()
  let next = 0
  emulator = await start({ hubs })
  emulator.enrollments.addIndividual({
    registrationId: 'press-sas',
    attestation: { symmetricKey: { primaryKey: KEY } },
    hub: () => hubs[next++ % 2],
  })
  const ran = await live({ ...only(...SAS), DPS_LIVE_PORT: `${emulator.port}` })
  expect(ran.code).toBe(1)
  expect(ran.stdout).toContain(
    'FAILED  symmetric key over mqtt: registered, pipelined: another hub than a moment ago',
  )
})
