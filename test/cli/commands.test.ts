import { execFileSync, spawnSync } from 'node:child_process'
import * as crypto from 'node:crypto'
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync } from 'node:fs'
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest'
import { generateSymmetricKey } from '../../src/emulator/index.ts'
import { deriveDeviceKey } from '../../src/factory/index.ts'
import { BUNDLED_ROOTS, type RegistrationState } from '../../src/index.ts'
import { Bench, COMMAND, PASSPHRASE, run } from './bench.ts'

const GROUP_KEY = generateSymmetricKey()
const bench = await Bench.open()
const { emulator, trust, x509 } = bench
const groupKeyFile = bench.write('group.key', `${GROUP_KEY}\n`)
afterAll(() => bench.close())
afterEach(() => {
  emulator.faults.clear()
  emulator.registrations.forget()
})

const expected = await deriveDeviceKey({ groupKey: GROUP_KEY, registrationId: 'press-42' })
const there = bench.there.slice(1)
const device = [...there, ...trust, ...x509]
const json = (text: string) => JSON.parse(text) as Record<string, unknown>

describe('lookup', () => {
  test('tells where a device is, and changes nothing', async () => {
    expect((await run(['register', ...device])).code).toBe(0)
    const before = emulator.registrations.list()
    const ran = await run(['lookup', ...device])
    expect(ran).toMatchObject({ code: 0, stderr: '' })
    expect(ran.stdout).toMatch(
      /^status {2}assigned.*\ndevice {2}press-1\nhub {5}emulated-hub\.azure-devices\.net\nupdated .*\nroot .*\nsuite .*\ntime .* over https\n$/,
    )
    const state = json((await run(['lookup', ...device, '--json'])).stdout) as unknown as RegistrationState
    expect(state).toMatchObject({ status: 'assigned', assignedHub: 'emulated-hub.azure-devices.net' })
    expect(emulator.registrations.list()).toEqual(before)
  })

  test('of a device that never registered is refused', async () => {
    const ran = await run(['lookup', ...device, '--json'])
    expect(ran.code).toBe(7)
    expect(json(ran.stdout)).toMatchObject({ error: { code: 'NOT_FOUND' } })
  })
})

describe('probe', () => {
  for (const transport of ['mqtt', 'mqtt-ws', 'https']) {
    test(`reaches the service over ${transport}, and registers nothing`, async () => {
      const ran = await run(['probe', ...device, '--transport', transport, '--json'])
      expect(ran).toMatchObject({ code: 0, stderr: '' })
      expect(json(ran.stdout)).toMatchObject({ registrationId: 'press-1', connection: { transport } })
      expect(emulator.registrations.size).toBe(0)
    })
  }

  test('fails with the code of the stage', async () => {
    const ran = await run(['probe', ...there, ...x509])
    expect(ran).toMatchObject({
      code: 6,
      stdout: '',
      stderr: expect.stringMatching(/^SERVER_UNTRUSTED in phase tls/),
    })
  })

  test('is cancelled by Ctrl-C, and nothing is left', async () => {
    const { hit } = emulator.faults.add({ at: 'connect', do: 'silence' })
    const ran = await run(['probe', ...device], { meanwhile: (kill) => void hit.then(() => kill('SIGINT')) })
    expect(ran).toMatchObject({ code: 130, signal: null, stderr: expect.stringMatching(/^CANCELLED/) })
    await vi.waitFor(() => expect(emulator.openConnections).toBe(0), 5000)
  })
})

describe('roots', () => {
  test('are listed as they are shipped', async () => {
    for (const args of [['roots'], ['roots', 'list']]) {
      const ran = await run([...args, '--json'])
      expect(ran).toMatchObject({ code: 0, stderr: '' })
      const listed = JSON.parse(ran.stdout) as { sha256: string; yearsLeft: number; subject: string }[]
      expect(listed.map(({ sha256 }) => sha256)).toEqual(BUNDLED_ROOTS.map(({ sha256 }) => sha256))
      for (const { yearsLeft, subject } of listed) {
        expect(yearsLeft).toBeGreaterThan(1)
        expect(subject).toContain('CN=')
      }
      const { stdout } = await run(args)
      for (const { name, sha256 } of BUNDLED_ROOTS) {
        expect(stdout).toContain(name)
        expect(stdout).toContain(sha256)
      }
    }
  })

  test('check tells in which one a host ends', async () => {
    const ran = await run([
      'roots',
      'check',
      emulator.host,
      '--connect-to',
      emulator.address,
      '--port',
      `${emulator.port}`,
      ...trust,
      '--json',
    ])
    expect(ran).toMatchObject({ code: 0, stderr: '' })
    expect(json(ran.stdout)).toMatchObject({
      host: emulator.host,
      root: 'Emulator Root 1',
      bundled: false,
      chain: [{ subject: emulator.host }, { subject: 'Emulator Server CA' }],
    })
    const hub = await run([
      'roots',
      'check',
      'emulated-hub.azure-devices.net',
      '--connect-to',
      emulator.address,
      '--port',
      `${emulator.port}`,
      ...trust,
    ])
    expect(hub.stdout).toMatch(
      /^host {4}emulated-hub\.azure-devices\.net\nroot {4}Emulator Root 1\nsha256 {2}[0-9A-F]{64}\nuntil /,
    )
  })

  test('check names who issued a chain that ends in none', async () => {
    const ran = await run(['roots', 'check', '--connect-to', emulator.address, '--port', `${emulator.port}`])
    expect(ran).toMatchObject({ code: 6, stdout: '' })
    expect(ran.stderr).toMatch(/^SERVER_UNTRUSTED .*Emulator/)
  })

  const rehearse = (only: string, extra: readonly string[] = ['root.pem', 'other-root.pem']) =>
    run([
      'roots',
      'rehearse',
      '--only',
      only,
      '--connect-to',
      emulator.address,
      '--port',
      `${emulator.port}`,
      ...extra.flatMap((file) => ['--extra-root', bench.file(file)]),
      '--json',
    ])

  test('rehearse trusts one and no other', async () => {
    const right = await rehearse('Emulator Root 1')
    expect(right).toMatchObject({ code: 0 })
    expect(json(right.stdout)).toMatchObject({ only: 'Emulator Root 1', root: 'Emulator Root 1' })
    for (const only of ['Emulator Root 2', 'g2', 'ms2017']) {
      const wrong = await rehearse(only)
      expect(wrong.code).toBe(6)
      expect(json(wrong.stdout)).toMatchObject({ error: { code: 'SERVER_UNTRUSTED' } })
    }
  })

  test('rehearse takes a fingerprint, and asks back where it knows none', async () => {
    const { sha256 } = json((await rehearse('Emulator Root 1')).stdout) as { sha256: string }
    expect((await rehearse(sha256.slice(0, 12).toLowerCase())).code).toBe(0)
    for (const only of ['g3', sha256.slice(0, 7)]) {
      const ran = await rehearse(only)
      expect(ran.code).toBe(2)
      expect(json(ran.stdout)).toMatchObject({ error: { hint: expect.stringContaining('g2, ms2017') } })
    }
    expect((await run(['roots', 'rehearse'])).code).toBe(2)
  })
})

describe('derive-key', () => {
  const args = ['derive-key', '--registration-id', 'press-42']
  test('prints the key of the device and nothing else', async () => {
    const found = { code: 0, signal: null, stdout: `${expected}\n`, stderr: '' }
    expect(await run([...args, '--group-key-file', groupKeyFile])).toEqual(found)
    expect(await run([...args, '--group-key-file', '-'], { input: GROUP_KEY })).toEqual(found)
    expect(await run(args, { env: { DPS_GROUP_KEY: GROUP_KEY } })).toEqual(found)
    expect(json((await run([...args, '--group-key-file', groupKeyFile, '--json'])).stdout)).toEqual({
      registrationId: 'press-42',
      key: expected,
    })
  })

  test('writes a file for this user alone, and over none that is there', async () => {
    const out = bench.file('press-42.key')
    const more = ['--group-key-file', groupKeyFile, '--out', out]
    expect(await run([...args, ...more])).toEqual({ code: 0, signal: null, stdout: '', stderr: '' })
    expect(readFileSync(out, 'utf8')).toBe(`${expected}\n`)
    expect(statSync(out).mode & 0o777).toBe(0o600)
    const other = ['derive-key', '--registration-id', 'press-43', ...more]
    const again = await run(other)
    expect(again).toMatchObject({ code: 3, stdout: '', stderr: expect.stringContaining('is there already') })
    expect(readFileSync(out, 'utf8')).toBe(`${expected}\n`)
    expect((await run([...other, '--force'])).code).toBe(0)
    expect(readFileSync(out, 'utf8')).not.toBe(`${expected}\n`)
    expect(statSync(out).mode & 0o777).toBe(0o600)
    expect(readdirSync(bench.folder).filter((name) => name.endsWith('.tmp'))).toEqual([])
  })

  test('replaces no file that it reads, no link and no folder, even where it is told to', async () => {
    const here = bench.write('here.key', `${GROUP_KEY}\n`)
    symlinkSync(here, bench.file('link.key'))
    mkdirSync(bench.file('folder'))
    const derive = [
      'derive-key',
      '--registration-id',
      'press-42',
      '--group-key-file',
      here,
      '--force',
      '--out',
    ]
    for (const [out, exit] of [
      [here, 2],
      [bench.file('folder/../here.key'), 2],
      [bench.file('link.key'), 2],
      [bench.file('folder'), 3],
    ] as const) {
      expect(await run([...derive, out])).toMatchObject({ code: exit, stdout: '' })
    }
    symlinkSync(bench.file('cert.pem'), bench.file('link.pem'))
    const csr = ['csr', '--registration-id', 'press-42', '--force', '--out']
    expect((await run([...csr, here, '--key', here])).code).toBe(2)
    expect((await run([...csr, bench.file('both'), '--key-out', bench.file('both')])).code).toBe(2)
    const ran = await run([...csr, bench.file('link.pem'), '--key', bench.file('key.pem')])
    expect(ran).toMatchObject({ code: 3, stderr: expect.stringContaining('is no file') })
    expect(readFileSync(here, 'utf8')).toBe(`${GROUP_KEY}\n`)
    expect(existsSync(bench.file('both'))).toBe(false)
    expect(lstatSync(bench.file('link.pem')).isSymbolicLink()).toBe(true)
  })

  test('says what is missing or wrong, and never the key', async () => {
    const wrong = bench.write('wrong.key', `${GROUP_KEY.slice(3)}`)
    for (const [given, exit] of [
      [['derive-key', '--group-key-file', groupKeyFile], 2],
      [args, 2],
      [[...args, '--group-key', GROUP_KEY], 2],
      [[...args, '--group-key-file', wrong], 3],
      [[...args, '--group-key-file', bench.file('nowhere')], 3],
      [[...args, '--group-key-file', groupKeyFile, '--out', bench.file('no/folder')], 3],
    ] as const) {
      const ran = await run(given)
      expect(ran).toMatchObject({ code: exit, stdout: '' })
      expect(ran.stderr).not.toContain(GROUP_KEY.slice(3, 15))
    }
    expect(existsSync(bench.file('no'))).toBe(false)
  })
})

describe('inspect', () => {
  const examine = async (args: readonly string[], more: readonly string[] = []) => {
    const ran = await run(['inspect', ...args, ...more, '--json'])
    expect(ran.stderr).toBe('')
    const report = JSON.parse(ran.stdout) as {
      exitCode: number
      failed?: string
      checks: {
        id: string
        status: string
        next?: string
        message: string
        details?: { days?: number; findings?: readonly { id: string }[] }
      }[]
    }
    expect(report.exitCode).toBe(ran.code)
    for (const { status, next } of report.checks) {
      if (status === 'error' || status === 'warning') expect(next).toMatch(/\w{3}/)
    }
    return { ...report, of: (id: string) => report.checks.find((check) => check.id === id) }
  }

  test('looks at a symmetric key by itself', async () => {
    const key = bench.file('sas.key')
    const alone = await examine(['--symmetric-key-file', key])
    expect(alone).toMatchObject({ exitCode: 0 })
    expect(alone.of('credential.read')!.message).toBe('a symmetric key; --registration-id would say whose')
    expect(alone.of('credential.inspection')).toMatchObject({ status: 'ok' })
    const cut = bench.write('cut.key', readFileSync(key, 'utf8').slice(0, 11))
    const wrong = await examine(['--symmetric-key-file', cut])
    expect(wrong).toMatchObject({ exitCode: 3, failed: 'credential.read' })
    expect(wrong.of('credential.inspection')!.message).toMatch(/^sas-key-not-base64: The symmetric key /)
    // Who is to be let in needs a name.
    expect((await run(['doctor', '--factory', '--symmetric-key-file', key, '--quiet'])).stdout).toMatch(
      /^error .*credential\.read +--registration-id is missing/m,
    )
  })

  const files = (cert: string, key: string) => ['--cert', bench.file(cert), '--key', bench.file(key)]
  const issued = async (name: string, days: number) => {
    const notAfter = new Date(Date.now() + days * 86_400_000)
    const { cert, key } = await emulator.issueDeviceCertificate({
      registrationId: name,
      validity: { notAfter },
    })
    return ['--cert', bench.write(`${name}.pem`, cert), '--key', bench.write(`${name}.key`, key)]
  }

  test('finds nothing wrong with what is well, and sends nothing', async () => {
    const before = emulator.log.connections.length
    for (const args of [x509, bench.sas]) {
      const report = await examine(args)
      expect(report).toMatchObject({ exitCode: 0 })
      expect(report.of('credential.read')?.status).toBe('ok')
    }
    expect(emulator.log.connections).toHaveLength(before)
    const { stdout } = await run(['inspect', ...x509])
    expect(stdout).toMatch(/credential\.chain +press-1 < Emulator Device CA < Emulator Device Root\n/)
  })

  test('tells what cannot be used, by the stage', async () => {
    for (const [args, exit, failed] of [
      [[], 2, 'credential.read'],
      [files('cert.pem', 'expired-key.pem'), 3, 'credential.read'],
      [files('key.pem', 'key.pem'), 3, 'credential.read'],
      [files('nowhere.pem', 'key.pem'), 3, 'credential.read'],
      [[...x509, '--registration-id', 'press-2'], 3, 'credential.read'],
      [[...x509, '--registration-id', 'press 2'], 2, 'config.registration-id'],
      [files('expired.pem', 'expired-key.pem'), 4, 'credential.dates'],
      [['--registration-id', 'a', '--symmetric-key-file', bench.file('passphrase')], 3, 'credential.read'],
    ] as const) {
      expect(await examine(args)).toMatchObject({ exitCode: exit, failed })
    }
  })

  test('warns of what will not last or is unusual, and fails by that where it is strict', async () => {
    const soon = await issued('press-7', 10.5)
    const report = await examine(soon)
    expect(report.exitCode).toBe(0)
    expect(report.of('credential.dates')).toMatchObject({ status: 'warning', details: { days: 10 } })
    expect((await examine(soon, ['--strict'])).exitCode).toBe(9)
    expect((await examine(await issued('press-8', 40), ['--strict'])).exitCode).toBe(0)
    const stranger = await examine(files('stranger.pem', 'stranger-key.pem'))
    expect(stranger.of('credential.inspection')?.details?.findings).toMatchObject([{ id: 'self-signed' }])
  })
})

describe('inspect, of what cannot be read', () => {
  test('says what it is and how to mend it, all of it', async () => {
    const cert = readFileSync(bench.file('cert.pem'), 'utf8')
    const escaped = bench.write('escaped.pem', cert.replaceAll('\n', '\\n'))
    const half = bench.write('half.pem', cert.slice(0, -40))
    const marked = bench.write('marked.pem', `\uFEFF${cert}`)
    for (const [given, id] of [
      [['--cert', escaped, '--key', bench.file('key.pem')], 'escaped-line-breaks'],
      [['--cert', half, '--key', bench.file('key.pem')], 'input-damaged'],
      [['--cert', bench.file('key.pem'), '--key', bench.file('key.pem')], 'private-key-given'],
      [['--cert', bench.file('cert.pem'), '--key', bench.file('cert.pem')], 'certificate-given'],
      [['--cert', bench.file('cert.pem'), '--key', bench.file('expired-key.pem')], 'key-mismatch'],
    ] as const) {
      const ran = await run(['inspect', ...given])
      expect(ran).toMatchObject({ code: 3, stderr: '' })
      expect(ran.stdout).toMatch(
        new RegExp(`^error +\\d+ ms {2}credential\\.inspection +${id}: .+\\n +-> .+`, 'm'),
      )
    }
    const several = await run(['inspect', '--cert', marked, '--key', bench.file('expired-key.pem')])
    expect(several.stdout).toMatch(/\n {17}byte-order-mark: .+\n {17}-> Nothing has to be done here/)
  })
})

describe('a PKCS#12 file', () => {
  test('is certificate and key in one, and excludes the other ways to say it', async () => {
    const bundle = bench.file('device.p12')
    const files = ['-in', bench.file('cert.pem'), '-inkey', bench.file('key.pem'), '-out', bundle]
    execFileSync('openssl', ['pkcs12', '-export', ...files, '-passout', `pass:${PASSPHRASE}`])
    const given = ['--pkcs12', bundle, '--key-passphrase-file', bench.file('passphrase')]
    expect(await run(['inspect', ...given])).toMatchObject({ code: 0, stderr: '' })
    expect(await run(['register', ...bench.there.slice(1), ...trust, ...given])).toMatchObject({ code: 0 })
    const wrong = await run(['inspect', '--pkcs12', bundle, '--key-passphrase-file', bench.file('cert.pem')])
    expect(wrong.code).toBe(3)
    expect(wrong.stdout).toContain('passphrase')
    const both = await run(['inspect', ...given, '--cert', bench.file('cert.pem')])
    expect(both).toMatchObject({ code: 2, stdout: '' })
    expect(both.stderr).toContain('--cert and --pkcs12 exclude each other')
  })
})

describe('csr', () => {
  const args = ['csr', '--registration-id', 'press-42']
  const { createPrivateKey, createPublicKey } = crypto
  const subjectOf = (pem: string) =>
    spawnSync('openssl', ['req', '-verify', '-noout', '-subject', '-pubkey'], {
      input: pem,
      encoding: 'utf8',
    })

  test('makes a key for this user alone, and a request that is signed with it', async () => {
    const [key, out] = [bench.file('new.key'), bench.file('new.csr')]
    expect(await run([...args, '--key-out', key, '--out', out])).toEqual({
      code: 0,
      signal: null,
      stdout: '',
      stderr: '',
    })
    expect(statSync(key).mode & 0o777).toBe(0o600)
    const pem = readFileSync(key)
    expect(createPrivateKey(pem).asymmetricKeyDetails).toEqual({ namedCurve: 'secp384r1' })
    const request = subjectOf(readFileSync(out, 'utf8'))
    expect(request).toMatchObject({ status: 0, stdout: expect.stringMatching(/CN ?= ?press-42/) })
    expect(request.stdout).toContain(createPublicKey(pem).export({ type: 'spki', format: 'pem' }) as string)
    // Neither is replaced, and a request that cannot be written leaves no key behind.
    const again = await run([...args, '--key-out', key])
    expect(again).toMatchObject({ code: 3, stdout: '', stderr: expect.stringContaining('is there already') })
    expect(again.stderr).toContain('a key is never replaced')
    expect(readFileSync(key)).toEqual(pem)
    const half = await run([...args, '--key-out', bench.file('half.key'), '--out', out])
    expect(half).toMatchObject({ code: 3, stdout: '' })
    expect(existsSync(bench.file('half.key'))).toBe(false)
    expect((await run([...args, '--key-out', key, '--force'])).code).toBe(3)
  })

  test('takes a key that exists, also an encrypted one, and other kinds of new ones', async () => {
    const encrypted = [
      '--key',
      bench.file('encrypted.pem'),
      '--key-passphrase-file',
      bench.file('passphrase'),
    ]
    for (const given of [['--key', bench.file('key.pem')], encrypted]) {
      const ran = await run([...args, ...given])
      expect(ran).toMatchObject({ code: 0, stderr: '' })
      const expectedKey = createPublicKey(readFileSync(bench.file('key.pem'))).export({
        type: 'spki',
        format: 'pem',
      })
      expect(subjectOf(ran.stdout).stdout).toContain(expectedKey as string)
    }
    const key = bench.file('rsa.key')
    const ran = await run([...args, '--key-out', key, '--key-type', 'rsa2048', '--json'])
    expect(json(ran.stdout)).toMatchObject({
      registrationId: 'press-42',
      csr: expect.stringMatching(/^MII/),
      keyFile: key,
    })
    expect(createPrivateKey(readFileSync(key)).asymmetricKeyType).toBe('rsa')
  })

  test('says what is missing or wrong', async () => {
    for (const [given, exit, said] of [
      [args, 2, '--key-out'],
      [['csr', '--key-out', bench.file('no.key')], 2, '--registration-id'],
      [[...args, '--key-out', bench.file('no.key'), '--key-type', 'p38'], 2, 'Did you mean p384?'],
      [[...args, '--key', bench.file('encrypted.pem')], 3, 'encrypted'],
      [[...args, '--key', bench.file('cert.pem')], 3, 'CREDENTIAL_UNREADABLE'],
      [
        [...args, '--key', bench.file('encrypted.pem'), '--key-passphrase-file', bench.file('sas.key')],
        3,
        'passphrase',
      ],
    ] as const) {
      const ran = await run(given)
      expect(ran).toMatchObject({ code: exit, stdout: '', stderr: expect.stringContaining(said) })
    }
    expect(existsSync(bench.file('no.key'))).toBe(false)
  })
})

describe('one configuration file', () => {
  test('serves every command', async () => {
    const { idScope, address, port } = emulator
    const config = bench.write(
      'all.json',
      JSON.stringify({
        idScope,
        connectTo: address,
        port,
        roots: 'none',
        extraRoot: bench.file('root.pem'),
        cert: bench.file('cert.pem'),
        key: bench.file('key.pem'),
        payload: { floor: 3 },
        transport: 'mqtt',
        json: true,
      }),
    )
    for (const command of ['register', 'lookup', 'probe', 'doctor']) {
      expect({ command, ...(await run([command, '--config', config])) }).toMatchObject({
        command,
        code: 0,
        stderr: '',
      })
    }
    expect((await run(['roots', 'check', '--config', config])).code).toBe(0)
    const marked = bench.write('marked.json', `\uFEFF${readFileSync(config, 'utf8')}`)
    expect((await run(['lookup', '--config', marked])).code).toBe(0)
    const typo = bench.write('typo.json', JSON.stringify({ idScop: 'x' }))
    const ran = await run(['lookup', '--config', typo])
    expect(ran).toMatchObject({ code: 2, stderr: expect.stringContaining('idScop in') })
    expect(ran.stderr).toContain('dps-device lookup --help')
  })

  test('that wants JSON has it of what is wrong with options too', async () => {
    const json = bench.write('json.json', JSON.stringify({ json: true, idScope: 'x' }))
    const typo = bench.write('json-typo.json', `\uFEFF${JSON.stringify({ json: true, idScop: 'x' })}`)
    const wanted = [
      { args: ['lookup', '--nonsense', '--config', json], says: '--nonsense is not known' },
      { args: ['register', '--nonsense', `--config=${json}`], says: '--nonsense is not known' },
      { args: ['register', '--nonsense'], env: { DPS_CONFIG: json }, says: '--nonsense is not known' },
      { args: ['lookup', '--config', typo], says: `idScop in ${typo} is not known` },
      {
        args: ['register', '--config', '-'],
        input: readFileSync(typo, 'utf8'),
        says: 'idScop in standard input',
      },
    ]
    for (const { args, env = {}, input = '', says } of wanted) {
      const { code, stdout, stderr } = await run(args, { env, input })
      expect({ code, stderr }).toEqual({ code: 2, stderr: '' })
      expect(JSON.parse(stdout).error).toMatchObject({
        code: 'OPTION_INVALID',
        message: expect.stringContaining(says),
      })
    }
    // A stronger source does not want it, the file is none, or a pipe has nothing to say for now.
    execFileSync('mkfifo', [bench.file('pipe')])
    for (const [config, ...more] of [[json, '--json=false'], ['nowhere'], [bench.file('pipe')], ['']]) {
      const ran = await run(['lookup', '--nonsense', '--config', config!, ...more])
      expect(ran).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(/^OPTION_INVALID/) })
    }
  })
})

describe('help', () => {
  const commands = [
    'doctor',
    'register',
    'lookup',
    'probe',
    'inspect',
    'register-many',
    'roots',
    'roots check',
    'roots rehearse',
    'derive-key',
    'csr',
  ]

  test('lists every command', async () => {
    const { code, stdout } = await run(['--help'])
    expect(code).toBe(0)
    for (const command of commands) expect(stdout).toMatch(new RegExp(`^ {2}${command} {2,}\\w`, 'm'))
  })

  for (const command of commands) {
    test(`teaches ${command} by examples, options and exit codes`, async () => {
      const asked = await run([...command.split(' '), '--help'])
      expect(asked).toMatchObject({ code: 0, stderr: '' })
      expect(
        asked.stdout.match(new RegExp(`^ {2}(?:.*\\| )?dps-device ${command.split(' ')[0]}\\b`, 'gm')),
      ).not.toBeNull()
      expect(asked.stdout).toContain('--json')
      expect(asked.stdout).toContain('DPS_')
      expect(asked.stdout).toContain('Exit codes')
      for (const line of asked.stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(130)
      expect((await run(['help', ...command.split(' ')])).stdout).toBe(asked.stdout)
      expect((await run([...command.split(' '), '-h'])).stdout).toBe(asked.stdout)
    })
  }
})

describe('what is nearly right', () => {
  for (const [args, meant] of [
    [['docter'], 'doctor'],
    [['derive'], 'derive-key'],
    [['roots', 'chek'], 'check'],
    [['doctor', '--regster'], '--register'],
    [['roots', 'rehearse', '--onyl', 'g2'], '--only'],
  ] as const) {
    test(`${args.join(' ')} means ${meant}`, async () => {
      const ran = await run(args)
      expect(ran).toMatchObject({
        code: 2,
        stdout: '',
        stderr: expect.stringContaining(`Did you mean ${meant}?`),
      })
    })
  }

  test('a word that belongs to nothing is refused', async () => {
    expect((await run(['probe', 'host'])).code).toBe(2)
    expect((await run(['doctor', 'help'])).code).toBe(2)
  })

  test('a device may have the name of a command', async () => {
    const ran = await run([
      'inspect',
      '--registration-id',
      'help',
      '--symmetric-key-file',
      bench.file('sas.key'),
    ])
    expect(ran).toMatchObject({ code: 0, stdout: expect.stringContaining('help, with a symmetric key') })
  })
})

test('a registration does not read the file of the other commands', () => {
  const hook = bench.write(
    'watch.cjs',
    `process.on('exit', () => require('node:fs').writeSync(2, JSON.stringify(Object.keys(require.cache))))`,
  )
  const loaded = (args: readonly string[]) => {
    const { stderr } = spawnSync(COMMAND, args, {
      env: { PATH: process.env.PATH, NODE_OPTIONS: `--require=${hook}` },
      encoding: 'utf8',
    })
    return stderr.slice(stderr.indexOf('["'))
  }
  expect(loaded(['register', '--id-scope', 'x'])).not.toContain('commands.cjs')
  expect(loaded(['roots'])).toContain('commands.cjs')
})
