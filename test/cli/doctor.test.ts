import { spawnSync } from 'node:child_process'
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { dirname } from 'node:path'
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest'
import { createPki, generateSymmetricKey, issueCertificate, startEmulator } from '../../src/emulator/index.ts'
import { BUNDLED_ROOTS } from '../../src/index.ts'
import { INSPECTION_CA_NAME, startConnectProxy } from '../support/connect-proxy.ts'
import { Bench, COMMAND, pki, type Ran, type Run, run } from './bench.ts'

const GROUP_KEY = generateSymmetricKey()
const HOUR_MS = 3_600_000

const bench = await Bench.open()
const { emulator, trust, x509, sas } = bench
emulator.enrollments.addGroup({ groupId: 'keys', attestation: { symmetricKey: { primaryKey: GROUP_KEY } } })
const groupKeyFile = bench.write('group.key', GROUP_KEY)
afterAll(() => bench.close())
afterEach(() => {
  emulator.faults.clear()
  emulator.registrations.forget()
})

interface Finding {
  readonly id: string
  readonly status: 'ok' | 'warning' | 'error' | 'skipped'
  readonly durationMs: number
  readonly message: string
  readonly next?: string
  readonly code?: string
  readonly details?: Record<string, unknown>
}
interface Report {
  readonly ok: boolean
  readonly exitCode: number
  readonly failed?: string
  readonly counts: Record<Finding['status'], number>
  readonly checks: readonly Finding[]
}

const ALL = [
  'config.id-scope',
  'config.endpoint',
  'config.registration-id',
  'clock.build',
  'openssl.tls12',
  'openssl.suites',
  'openssl.curves',
  'openssl.sigalgs',
  'roots.g2',
  'roots.ms2017',
  'roots.trust',
  'credential.read',
  'credential.inspection',
  'credential.chain',
  'credential.dates',
  'dns.ipv4',
  'dns.ipv6',
  'tcp.mqtt',
  'tcp.web',
  'proxy',
  'tls.mqtt',
  'tls.web',
  'tls.chain',
  'tls.root',
  'tls.host-name',
  'tls.leaf',
  'tls.inspection',
  'suite.ECDHE-RSA-AES256-GCM-SHA384',
  'suite.ECDHE-RSA-AES128-GCM-SHA256',
  'suite.ECDHE-RSA-AES256-SHA384',
  'suite.ECDHE-RSA-AES128-SHA256',
  'mqtt.connect',
  'websocket.upgrade',
  'https.request',
  'clock.server',
  'registration',
]

const there = ['doctor', ...bench.there.slice(1)]
const well = [...there, ...trust, ...x509]

/** The report, which is the same for people and for machines in all that decides. */
async function examine(
  args: readonly string[],
  options?: Run,
): Promise<Report & { of(id: string): Finding }> {
  const ran = await run([...args, '--json'], options)
  expect(ran.stderr).toBe('')
  const report = JSON.parse(ran.stdout) as Report
  expect(report.exitCode).toBe(ran.code)
  expect(report.checks.map(({ id }) => id)).toEqual(ALL)
  const first = report.checks.find(({ status }) => status === 'error')
  expect(report.failed).toBe(first?.id)
  expect(report.ok).toBe(first === undefined)
  for (const { id, status, next, message, durationMs } of report.checks) {
    expect({ id, message }).not.toEqual({ id, message: '' })
    expect(durationMs).toBeGreaterThanOrEqual(0)
    // What to do is said where there is something to do.
    if (status === 'error' || status === 'warning') expect(next).toMatch(/\w{3}/)
  }
  const of = (id: string) => report.checks.find((check) => check.id === id)!
  return { ...report, of }
}

const statuses = (report: Report): Record<string, string> =>
  Object.fromEntries(report.checks.map(({ id, status }) => [id, status]))

describe('--quiet', () => {
  test('says what is wrong and what to do, and nothing of the rest', async () => {
    expect(await run([...well, '--quiet'])).toMatchObject({ code: 0, stdout: '', stderr: '' })
    // What makes the exit code is said.
    const strict = await run([...well, '--quiet', '--strict'])
    expect(strict.code).toBe(9)
    expect(strict.stdout).toMatch(/^warning +\d+ ms {2}tls\.inspection .*\n +-> .*\n\n\d+ ok, 1 warning, /)
    const failed = await run([...there, ...trust, '--factory', '--quiet'])
    expect(failed.code).toBe(2)
    expect(failed.stdout).toMatch(
      /^error +\d+ ms {2}credential\.read +there is no credential\n +-> Give --cert /,
    )
    expect(failed.stdout).not.toMatch(/^(?:ok|skipped|warning)/m)
  })
})

describe('a device that is well', () => {
  test('passes every check, and is registered by none', async () => {
    const report = await examine(well)
    const expected = Object.fromEntries(ALL.map((id) => [id, 'ok']))
    expect(statuses(report)).toEqual({
      ...expected,
      'config.registration-id': 'skipped',
      'dns.ipv4': 'skipped',
      'dns.ipv6': 'skipped',
      // An emulator has a root of its own.
      'tls.inspection': 'warning',
      registration: 'skipped',
    })
    expect(report).toMatchObject({ ok: true, exitCode: 0 })
    expect(report.of('tls.mqtt').details).toMatchObject({
      protocol: 'TLSv1.2',
      cipher: 'ECDHE-RSA-AES256-GCM-SHA384',
      curve: 'X25519',
      root: 'Emulator Root 1',
      resumed: false,
    })
    const { chain } = report.of('tls.chain').details as {
      chain: readonly { subject: string; until: string }[]
    }
    expect(chain.map(({ subject }) => subject)).toEqual([
      'global.azure-devices-provisioning.net',
      'Emulator Server CA',
    ])
    expect(report.of('tls.leaf').details?.days).toBeGreaterThan(300)
    expect(report.of('clock.server').details).toMatchObject({ serverAheadSeconds: expect.any(Number) })
    expect(emulator.registrations.size).toBe(0)
  })

  test('is told so in lines, without colour in a pipe', async () => {
    const ran = await run(well)
    expect(ran).toMatchObject({ code: 0, stderr: '' })
    const lines = ran.stdout.trimEnd().split('\n')
    expect(lines.filter((line) => /^(?:ok|warning|error|skipped) /.test(line))).toHaveLength(ALL.length)
    expect(lines).toContainEqual(
      expect.stringMatching(/^ok +\d+ ms {2}mqtt\.connect +the service let press-1 in/),
    )
    expect(lines.at(-1)).toMatch(/^\d+ ok, 1 warning, 0 errors, \d+ skipped$/)
    expect(ran.stdout).not.toContain('\x1b')
  })

  test('is registered where that is asked for, by argument, environment and file', async () => {
    const config = bench.write('doctor.json', JSON.stringify({ register: true }))
    for (const [more, env] of [
      [['--register'], {}],
      [[], { DPS_REGISTER: '1' }],
      [['--config', config], {}],
    ] as const) {
      emulator.registrations.forget()
      const report = await examine([...well, ...more], { env })
      expect(report.of('registration')).toMatchObject({
        status: 'ok',
        message: 'press-1 is assigned to emulated-hub.azure-devices.net',
      })
      expect(emulator.registrations.size).toBe(1)
    }
    // Known from then on.
    expect((await examine(well)).of('https.request').message).toContain('assigned: press-1 on emulated-hub')
  })

  test('with a symmetric key passes too', async () => {
    const report = await examine([...there, ...trust, ...sas])
    expect(report).toMatchObject({ exitCode: 0 })
    expect(report.of('mqtt.connect').status).toBe('ok')
    expect(report.of('https.request').status).toBe('ok')
  })

  test('fails with its warnings where it is held to them', async () => {
    const report = await examine([...well, '--strict'])
    expect(report).toMatchObject({ ok: true, exitCode: 9, counts: { warning: 1, error: 0 } })
  })
})

describe('in a factory', () => {
  test('it ends with MQTT CONNECT', async () => {
    const before = emulator.log.packets.length
    const report = await examine([...well, '--factory'])
    expect(report.exitCode).toBe(0)
    expect(report.of('mqtt.connect').status).toBe('ok')
    for (const id of ALL.slice(ALL.indexOf('mqtt.connect') + 1)) {
      expect(report.of(id)).toMatchObject({
        status: 'skipped',
        message: expect.stringContaining('--factory'),
      })
    }
    expect(emulator.registrations.size).toBe(0)
    const packets = emulator.log.packets.slice(before).filter(({ direction }) => direction === 'in')
    // Let in, subscribed and gone; of HTTP no more than the server's time.
    const said = packets.map(({ type, method }) => method ?? type).filter((type) => type !== 'disconnect')
    expect(said.sort()).toEqual(['HEAD', 'connect', 'subscribe'])
  })

  test('it wants a credential', async () => {
    const report = await examine([...there, ...trust, '--factory'])
    expect(report).toMatchObject({ exitCode: 2, failed: 'credential.read' })
    expect(report.of('tls.mqtt').status).toBe('ok')
  })

  test('it registers nothing, whatever the environment says', async () => {
    const ran = await run([...well, '--factory'], { env: { DPS_REGISTER: 'true' } })
    expect(ran).toMatchObject({ code: 2, stdout: '', stderr: expect.stringContaining('exclude each other') })
    expect(emulator.openConnections).toBe(0)
  })
})

/** A port of this machine that nobody listens on. */
async function closedPort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as { port: number }
  await new Promise((done) => server.close(done))
  return port
}

describe('what is wrong is found in its stage', () => {
  /** What depends on a way to the service. */
  const dependent = ['mqtt.connect', 'websocket.upgrade', 'https.request']

  test('a blocked port, while the other gets through', async () => {
    const args = [
      'doctor',
      '--id-scope',
      emulator.idScope,
      '--connect-to',
      emulator.address,
      ...trust,
      ...x509,
    ]
    const ports = ['--port', `${await closedPort()}`, '--web-port', `${emulator.port}`]
    const report = await examine([...args, ...ports])
    expect(report).toMatchObject({ exitCode: 5, failed: 'tcp.mqtt' })
    expect(report.of('tcp.mqtt')).toMatchObject({
      code: 'CONNECTION_REFUSED',
      next: expect.stringContaining('--transport mqtt-ws'),
    })
    expect(statuses(report)).toMatchObject({
      'tcp.web': 'ok',
      'tls.mqtt': 'skipped',
      'tls.web': 'ok',
      'mqtt.connect': 'skipped',
      'websocket.upgrade': 'ok',
      'https.request': 'ok',
    })
    expect(report.of('mqtt.connect').message).toContain('tls.mqtt')
    // For a device that does not need the port it is no more than a warning.
    for (const transport of ['mqtt-ws', 'mqtt,https']) {
      const spared = await examine([...args, ...ports, '--transport', transport])
      expect(spared.exitCode).toBe(0)
      expect(spared.of('tcp.mqtt').status).toBe('warning')
    }
  })

  test('a port that swallows what comes', async () => {
    // Accepts by itself, and says nothing from then on.
    const mute = createServer(() => {})
    await new Promise<void>((done) => mute.listen(0, '127.0.0.1', done))
    const { port } = mute.address() as { port: number }
    const report = await examine([
      'doctor',
      '--connect-to',
      '127.0.0.1',
      '--port',
      `${port}`,
      '--timeout',
      '2',
    ])
    mute.close()
    expect(report).toMatchObject({ exitCode: 6, failed: 'tls.mqtt' })
    expect(report.of('tls.mqtt').code).toBe('DEADLINE_EXCEEDED')
    expect(statuses(report)).toMatchObject({
      'tcp.mqtt': 'ok',
      'tls.chain': 'skipped',
      'suite.ECDHE-RSA-AES128-SHA256': 'skipped',
    })
  })

  test('a name that cannot be resolved', async () => {
    const report = await examine([
      'doctor',
      '--host',
      'nowhere.invalid',
      ...x509,
      '--id-scope',
      '0ne00000000',
    ])
    expect(report).toMatchObject({ exitCode: 5, failed: 'dns.ipv4' })
    for (const id of ['tcp.mqtt', 'tls.mqtt', 'tls.inspection', ...dependent]) {
      expect(report.of(id)).toMatchObject({
        status: 'skipped',
        message: expect.stringMatching(/^not tried, for want of /),
      })
    }
    // What needs no network has been looked at.
    expect(statuses(report)).toMatchObject({
      'openssl.suites': 'ok',
      'roots.g2': 'ok',
      'credential.dates': 'ok',
    })
  })

  const isolated = spawnSync('unshare', ['-rn', 'true']).status === 0
  test.skipIf(!isolated)('no network at all', async () => {
    const command = ['unshare', '-rn', COMMAND]
    const named = await examine(['doctor', ...x509, '--id-scope', '0ne00000000'], { command })
    expect(named).toMatchObject({ exitCode: 5, failed: 'dns.ipv4' })
    const report = await examine(['doctor', '--connect-to', '192.0.2.1', ...x509], { command })
    expect(report).toMatchObject({ exitCode: 5, failed: 'tcp.mqtt' })
    expect(report.of('tcp.mqtt')).toMatchObject({ code: 'NETWORK_UNREACHABLE' })
    expect(statuses(report)).toMatchObject({ 'tcp.web': 'warning', 'tls.mqtt': 'skipped', proxy: 'ok' })
  })

  test('nothing given at all: what can be tried is', async () => {
    const report = await examine(['doctor', '--connect-to', '127.0.0.1', '--port', `${await closedPort()}`])
    expect(report).toMatchObject({ exitCode: 5, failed: 'tcp.mqtt' })
    expect(report.of('config.id-scope').status).toBe('skipped')
    expect(report.of('mqtt.connect').message).toContain('config.id-scope')
  })

  test('a middle box that answers in the name of the service', async () => {
    const box = await startEmulator({ pki: await createPki() })
    try {
      const args = ['doctor', '--id-scope', emulator.idScope, '--connect-to', '127.0.0.1', ...trust, ...x509]
      const whole = await examine([...args, '--port', `${box.port}`])
      expect(whole).toMatchObject({ exitCode: 6, failed: 'tls.mqtt' })
      expect(whole.of('tls.mqtt').code).toBe('SERVER_UNTRUSTED')
      expect(whole.of('tls.inspection')).toMatchObject({
        status: 'error',
        message: expect.stringContaining('issued by'),
      })
      expect(statuses(whole)).toMatchObject({
        'tcp.mqtt': 'ok',
        'mqtt.connect': 'skipped',
        'tls.chain': 'skipped',
      })
      // Many look into port 443 only.
      const web = await examine([...args, '--port', `${emulator.port}`, '--web-port', `${box.port}`])
      expect(web.exitCode).toBe(0)
      expect(statuses(web)).toMatchObject({
        'tls.mqtt': 'ok',
        'tls.web': 'warning',
        'tls.inspection': 'warning',
        'https.request': 'skipped',
      })
      expect(web.of('tls.inspection').message).toContain(`port ${box.port}`)
    } finally {
      await box.close()
    }
  })

  test('a proxy that inspects, one that refuses, one that is not there', async () => {
    const proxy = await startConnectProxy({ behaviour: 'inspect' })
    try {
      const inspected = await examine([...well, '--proxy', proxy.url])
      expect(inspected).toMatchObject({ exitCode: 6, failed: 'tls.mqtt' })
      expect(inspected.of('tls.inspection').message).toContain(INSPECTION_CA_NAME)
      expect(statuses(inspected)).toMatchObject({ proxy: 'ok', 'tcp.mqtt': 'ok' })
      proxy.behaviour = { status: 403 }
      const refused = await examine([...well, '--proxy', proxy.url])
      expect(refused).toMatchObject({ exitCode: 5, failed: 'tcp.mqtt' })
      expect(refused.of('proxy')).toMatchObject({ status: 'error', code: 'PROXY_REFUSED' })
      proxy.behaviour = 'tunnel'
      const through = await examine([...well, '--proxy', proxy.url])
      expect(through.exitCode).toBe(0)
      expect(statuses(through)).toMatchObject({ proxy: 'ok', 'mqtt.connect': 'ok', 'https.request': 'ok' })
    } finally {
      await proxy.close()
    }
    const gone = await examine([...well, '--proxy', `http://127.0.0.1:${await closedPort()}`])
    expect(gone.of('proxy')).toMatchObject({ status: 'error', code: 'CONNECTION_REFUSED' })
  })

  test('a clock that the server does not share', async () => {
    for (const [aheadMs, status, exit] of [
      [10 * 60_000, 'warning', 0],
      [-2 * HOUR_MS, 'error', 4],
    ] as const) {
      const { clock } = { clock: (await import('../../src/clock.ts')).systemClock }
      const skewed = await Bench.open({ clock: { ...clock, now: () => clock.now() + aheadMs } })
      try {
        const args = ['doctor', ...skewed.there.slice(1), ...skewed.trust, ...skewed.x509]
        const report = await examine(args)
        expect(report.exitCode).toBe(exit)
        expect(report.of('clock.server').status).toBe(status)
        const { serverAheadSeconds } = report.of('clock.server').details as { serverAheadSeconds: number }
        expect(Math.abs(serverAheadSeconds - aheadMs / 1000)).toBeLessThan(60)
      } finally {
        await skewed.close()
      }
    }
  })

  const mistakes: readonly (readonly [string, number, string, () => readonly string[]])[] = [
    [
      'an id scope that cannot be one',
      2,
      'config.id-scope',
      () => [...there.map((arg) => (arg === emulator.idScope ? 'not a scope' : arg)), ...trust],
    ],
    ['a host that cannot be one', 2, 'config.endpoint', () => ['doctor', '--host', 'https://x/']],
    [
      'a registration id that cannot be one',
      2,
      'config.registration-id',
      () => [...there, ...trust, '--registration-id', 'a b'],
    ],
    [
      'a root that is none',
      3,
      'roots.trust',
      () => [...there, '--roots', 'none', '--extra-root', bench.file('cert.pem')],
    ],
    [
      'the key of another device',
      3,
      'credential.read',
      () => [...there, ...trust, '--cert', bench.file('cert.pem'), '--key', bench.file('expired-key.pem')],
    ],
    [
      'a certificate that has expired',
      4,
      'credential.dates',
      () => [...there, ...trust, '--cert', bench.file('expired.pem'), '--key', bench.file('expired-key.pem')],
    ],
    [
      'a device that the service does not know',
      7,
      'mqtt.connect',
      () => [
        ...there,
        ...trust,
        '--cert',
        bench.file('stranger.pem'),
        '--key',
        bench.file('stranger-key.pem'),
      ],
    ],
  ]
  for (const [name, exit, failed, args] of mistakes) {
    test(name, async () => {
      const report = await examine(args())
      expect(report).toMatchObject({ exitCode: exit, failed })
      // The way there is tried all the same, unless that needs what is wrong.
      if (!/^(?:config\.endpoint|roots)/.test(failed))
        expect(report.of('tcp.mqtt').status).not.toBe('skipped')
      else expect(report.of('tcp.mqtt').status).toBe('skipped')
      // Who was refused once is not refused three times.
      for (const id of dependent) if (id !== failed) expect(report.of(id).status).toBe('skipped')
      const text = await run(args())
      expect({ code: text.code, stderr: text.stderr }).toEqual({ code: exit, stderr: '' })
      expect(text.stdout).toMatch(
        new RegExp(`the first that failed is ${failed} \\(exit code ${exit}\\)\\n$`),
      )
      expect(text.stdout).toMatch(/\n +-> .+/)
    })
  }

  test('the key of the group in the place of the key of the device', async () => {
    const args = [...there, ...trust, '--registration-id', 'meter-9', '--symmetric-key-file', groupKeyFile]
    const report = await examine(args)
    expect(report).toMatchObject({ exitCode: 7, failed: 'mqtt.connect' })
    expect(report.of('mqtt.connect')).toMatchObject({
      code: 'UNAUTHORIZED',
      message: expect.stringContaining('enrollment group'),
    })
    const credentials = { username: 'plant', password: 'behind the proxy' }
    const proxy = await startConnectProxy({ credentials })
    const url = proxy.url.replace('//', '//plant:behind%20the%20proxy@')
    const through = await run([...args, '--json'], { env: { DPS_PROXY: url } })
    await proxy.close()
    expect(through.code).toBe(7)
    expect(through.stdout).toContain('enrollment group')
    expect(through.stdout).not.toMatch(/behind.{1,3}the/)
    expect(emulator.registrations.size).toBe(0)
  })

  test('an id scope of another cloud, and the name of a hub', async () => {
    const china = await examine([
      ...there.map((arg) => (arg === emulator.idScope ? '0cn00000000' : arg)),
      ...trust,
    ])
    expect(china.of('config.endpoint')).toMatchObject({
      status: 'warning',
      message: expect.stringContaining('China'),
    })
    const hub = await examine([...there, ...trust, '--host', 'hub.azure-devices.net'])
    expect(hub.of('config.endpoint')).toMatchObject({
      status: 'warning',
      message: expect.stringContaining('hub'),
    })
  })

  test('a server that takes two of the four suites', async () => {
    const strict = await Bench.open({
      tls: { ciphers: 'ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256' },
    })
    try {
      const report = await examine(['doctor', ...strict.there.slice(1), ...strict.trust])
      expect(report.exitCode).toBe(0)
      const suites = report.checks.filter(({ id }) => id.startsWith('suite.'))
      expect(suites.map(({ status }) => status)).toEqual(['ok', 'ok', 'warning', 'warning'])
    } finally {
      await strict.close()
    }
  })

  test('an OpenSSL whose configuration forbids what the service needs', async () => {
    const configured = (lines: string) => {
      const path = bench.write(
        'openssl.cnf',
        `nodejs_conf = node\n[node]\nssl_conf = ssl\n[ssl]\nsystem_default = policy\n[policy]\n${lines}\n`,
      )
      return examine(well, { env: { NODE_OPTIONS: `--openssl-config=${path}` } })
    }
    const level4 = await configured('CipherString = DEFAULT:@SECLEVEL=4')
    expect(level4.of('openssl.suites')).toMatchObject({
      status: 'warning',
      details: { missing: ['ECDHE-RSA-AES128-GCM-SHA256', 'ECDHE-RSA-AES128-SHA256'] },
    })
    const level5 = await configured('CipherString = DEFAULT:@SECLEVEL=5')
    expect(level5).toMatchObject({ exitCode: 6, failed: 'openssl.curves' })
  })

  test('a clock that is years behind: the server tells how far', async () => {
    const hook = bench.write('past.cjs', `const { now } = Date; Date.now = () => now() - 5 * 365 * 86400000`)
    const report = await examine(well, { env: { NODE_OPTIONS: `--require=${hook}` } })
    expect(report).toMatchObject({ exitCode: 4, failed: 'clock.build' })
    expect(statuses(report)).toMatchObject({
      'credential.dates': 'skipped',
      'tls.mqtt': 'ok',
      'mqtt.connect': 'skipped',
      'clock.server': 'error',
      registration: 'skipped',
    })
    const { serverAheadSeconds } = report.of('clock.server').details as { serverAheadSeconds: number }
    expect(Math.round(serverAheadSeconds / 86_400)).toBe(5 * 365)
  })

  test('a root that is not what it was when it was shipped', async () => {
    const folder = bench.file('damaged')
    cpSync(dirname(COMMAND), folder, { recursive: true })
    const command = `${folder}/dps-device.cjs`
    const { sha256 } = BUNDLED_ROOTS[0]!
    writeFileSync(command, readFileSync(command, 'utf8').replaceAll(sha256, sha256.replace(/^./, '0')))
    const report = await examine(well, { command: [command] })
    expect(report).toMatchObject({ exitCode: 3, failed: 'roots.g2' })
    expect(report.of('roots.ms2017').status).toBe('ok')
  })

  test('the certificate of the server: another name, or nearly at its end', async () => {
    const issue = async (san: string, days: number) => {
      const { chainPem, keyPem } = await issueCertificate({
        subject: san,
        issuer: pki.serverIntermediate,
        sans: [san],
        eku: ['serverAuth'],
        keyType: 'rsa-2048',
        notBefore: new Date(Date.now() - HOUR_MS),
        notAfter: new Date(Date.now() + days * 24 * HOUR_MS),
      })
      return Bench.open({ serverCertificate: { cert: chainPem, key: keyPem } })
    }
    for (const [san, days, exit, found] of [
      ['other.example', 90, 6, { 'tls.mqtt': 'error', 'tls.web': 'warning', 'tls.host-name': 'skipped' }],
      [emulator.host, 1.5, 0, { 'tls.mqtt': 'ok', 'tls.host-name': 'ok', 'tls.leaf': 'warning' }],
    ] as const) {
      const other = await issue(san, days)
      try {
        const report = await examine(['doctor', ...other.there.slice(1), ...other.trust, ...other.x509])
        expect(report.exitCode).toBe(exit)
        expect(statuses(report)).toMatchObject(found)
        if (exit === 6) expect(report.of('tls.mqtt').code).toBe('SERVER_NAME_MISMATCH')
      } finally {
        await other.close()
      }
    }
  })

  test('a name of one family or of two', async () => {
    const report = await examine(well.map((arg) => (arg === emulator.address ? 'localhost' : arg)))
    expect(report.exitCode).toBe(0)
    expect(statuses(report)).toMatchObject({ 'dns.ipv4': 'ok', 'dns.ipv6': 'ok', 'tcp.mqtt': 'ok' })
    expect(report.of('dns.ipv4').message).toBe('127.0.0.1')
  })

  test('a service that falls silent', async () => {
    emulator.faults.add({ at: 'connect', do: 'silence' })
    const report = await examine([...well, '--timeout', '3'])
    expect(report).toMatchObject({ exitCode: 8, failed: 'mqtt.connect' })
    expect(statuses(report)).toMatchObject({ 'websocket.upgrade': 'ok', 'https.request': 'ok' })
  })

  test('a firewall that knows no WebSocket', async () => {
    emulator.faults.add({ at: 'upgrade', do: { refuse: 403 } })
    const report = await examine(well)
    expect(report.exitCode).toBe(0)
    expect(report.of('websocket.upgrade').status).toBe('warning')
    emulator.faults.add({ at: 'upgrade', do: { refuse: 403 } })
    expect((await examine([...well, '--transport', 'mqtt-ws'])).failed).toBe('websocket.upgrade')
  })
})

describe('Ctrl-C', () => {
  for (const json of [false, true]) {
    test(`ends it in the middle and leaves nothing${json ? ', as JSON too' : ''}`, async () => {
      const { hit } = emulator.faults.add({ at: 'connect', do: 'silence' })
      const ran = await run([...well, ...(json ? ['--json'] : [])], {
        meanwhile: (kill) => void hit.then(() => kill('SIGINT')),
      })
      expect({ code: ran.code, signal: ran.signal }).toEqual({ code: 130, signal: null })
      if (json) expect(JSON.parse(ran.stdout)).toMatchObject({ error: { code: 'CANCELLED' } })
      else expect(ran.stderr).toMatch(/^CANCELLED/)
      await vi.waitFor(() => expect(emulator.openConnections).toBe(0), 5000)
    })
  }
})

describe('a terminal', () => {
  const hasScript = spawnSync('script', ['--version']).error === undefined
  const inTerminal = (args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Ran> =>
    run([], {
      command: ['script', '-qec', [COMMAND, ...args].map((arg) => `'${arg}'`).join(' '), '/dev/null'],
      env: { TERM: 'xterm', SHELL: '/bin/sh', ...env },
    })

  test.skipIf(!hasScript)('has progress and colours, and none where they are not wanted', async () => {
    const { code, stdout } = await inTerminal(well)
    expect(code).toBe(0)
    expect(stdout).toContain('\x1b[32mok')
    expect(stdout).toContain('\x1b[33mwarning')
    expect(stdout).toContain('\r\x1b[K\x1b[?7lmqtt.connect: tls …')
    const plain = await inTerminal(well, { NO_COLOR: '1' })
    expect(plain.stdout).toContain('mqtt.connect')
    expect(plain.stdout).not.toContain('\x1b[3')
  })
})

describe('the start', () => {
  const missing = spawnSync('busybox', ['sh', '-c', 'true']).error !== undefined
  test.skipIf(missing)('is that of BusyBox', async () => {
    expect((await examine(well, { command: ['busybox', 'sh', COMMAND] })).exitCode).toBe(0)
  })
})
