import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest'
import { EXIT_CODES } from '../../src/cli/exit-codes.ts'
import type { FaultSpec } from '../../src/emulator/index.ts'
import { Bench, COMMAND, DEVICE_KEY, PASSPHRASE, pki, type Ran, type Run, run } from './bench.ts'

const bench = await Bench.open()
const { emulator, there, trust, x509, sas, payloads } = bench
afterAll(() => bench.close())
afterEach(() => emulator.faults.clear())

const assigned = {
  status: 'assigned',
  assignedHub: 'emulated-hub.azure-devices.net',
  connection: { transport: 'mqtt', protocol: 'TLSv1.2', root: 'Emulator Root 1', resumed: false },
}

function expectAssigned(ran: Ran, deviceId: string): void {
  expect({ code: ran.code, stderr: ran.stderr }).toEqual({ code: 0, stderr: '' })
  expect(JSON.parse(ran.stdout)).toMatchObject({ ...assigned, deviceId, registrationId: deviceId })
}

describe('a registration', () => {
  test('is told to people in a few lines, without colour in a pipe', async () => {
    const ran = await run([...there, ...trust, ...x509])
    expect(ran).toMatchObject({ code: 0, signal: null, stderr: '' })
    expect(ran.stdout).toMatch(
      /^device {2}press-1\nhub {5}emulated-hub\.azure-devices\.net\nstatus {2}initialAssignment\nroot {4}Emulator Root 1\nsuite {3}ECDHE-RSA-AES256-GCM-SHA384, X25519, TLSv1\.2\ntime {4}\d+\.\d\d s, 6 round trips over mqtt\n$/,
    )
  })

  test('is one JSON object for machines', async () => {
    const ran = await run([...there, ...trust, ...x509, '--json'])
    expectAssigned(ran, 'press-1')
    expect(ran.stdout.trimEnd()).not.toContain('\n')
  })

  test('is quiet where it is told to be', async () => {
    expect(await run([...there, ...trust, ...x509, '--quiet'])).toEqual({
      code: 0,
      signal: null,
      stdout: '',
      stderr: '',
    })
  })

  test('is tried again where the service says so', async () => {
    const fault = emulator.faults.add({
      at: 'register-reply',
      do: { reply: { status: 429, retryAfter: '0' } },
    })
    expectAssigned(await run([...there, ...trust, ...x509, '--json']), 'press-1')
    expect(fault.hits).toBe(1)
  })

  for (const transport of ['mqtt-ws', 'https'] as const) {
    test(`goes over ${transport} with the rest of the library`, async () => {
      const ran = await run([...there, ...trust, ...x509, '--json', '--transport', transport])
      expect(JSON.parse(ran.stdout)).toMatchObject({ status: 'assigned', connection: { transport } })
      expect(ran).toMatchObject({ code: 0, stderr: '' })
    })
  }

  test('falls back in the order of the list', async () => {
    emulator.faults.add({ at: 'accept', do: 'reset' })
    const ran = await run([...there, ...trust, ...x509, '--json', '--transport', 'mqtt,https'])
    expect(JSON.parse(ran.stdout)).toMatchObject({ status: 'assigned', connection: { transport: 'https' } })
  })

  test('hands the payload over, from an argument or from a file', async () => {
    const payload = { model: 'x200', floor: 3 }
    const file = bench.write('payload.json', JSON.stringify(payload))
    for (const value of [JSON.stringify(payload), `@${file}`]) {
      payloads.length = 0
      const ran = await run([...there, ...trust, ...sas, '--json', '--payload', value])
      expectAssigned(ran, 'sensor-1')
      expect(payloads).toEqual([payload])
    }
  })
})

describe('a secret', () => {
  const named = ['--registration-id', 'sensor-1']

  test('comes from a file', async () => {
    expectAssigned(await run([...there, ...trust, ...sas, '--json']), 'sensor-1')
  })

  test('comes from standard input', async () => {
    const args = [...there, ...trust, ...named, '--symmetric-key-file', '-', '--json']
    expectAssigned(await run(args, { input: `${DEVICE_KEY}\n` }), 'sensor-1')
  })

  test('comes from the environment', async () => {
    const env = { DPS_SYMMETRIC_KEY: DEVICE_KEY }
    expectAssigned(await run([...there, ...trust, ...named, '--json'], { env }), 'sensor-1')
  })

  test('comes from a configuration file, as everything else may', async () => {
    const { idScope, address, port } = emulator
    const config = bench.write(
      'config.json',
      JSON.stringify({
        idScope,
        connectTo: address,
        port,
        roots: 'none',
        extraRoot: [bench.file('root.pem')],
        registrationId: 'sensor-1',
        symmetricKey: DEVICE_KEY,
        json: true,
      }),
    )
    expectAssigned(await run(['register', '--config', config]), 'sensor-1')
    expectAssigned(await run(['register'], { env: { DPS_CONFIG: config } }), 'sensor-1')
  })

  test('opens an encrypted key, from a file, standard input and the environment', async () => {
    const args = [
      ...there,
      ...trust,
      '--cert',
      bench.file('cert.pem'),
      '--key',
      bench.file('encrypted.pem'),
      '--json',
    ]
    expectAssigned(await run([...args, '--key-passphrase-file', bench.file('passphrase')]), 'press-1')
    expectAssigned(await run([...args, '--key-passphrase-file', '-'], { input: PASSPHRASE }), 'press-1')
    expectAssigned(await run(args, { env: { DPS_KEY_PASSPHRASE: PASSPHRASE } }), 'press-1')
  })

  test('is not taken as an argument, and not repeated', async () => {
    const secrets: readonly (readonly [string, string])[] = [
      ['--symmetric-key', DEVICE_KEY],
      ['--key-passphrase', PASSPHRASE],
      ['--proxy', `http://user:${PASSPHRASE.replaceAll(' ', '-')}@proxy.example:3128`],
    ]
    for (const [option, secret] of secrets) {
      for (const given of [[option, secret], [`${option}=${secret}`]]) {
        const ran = await run([...there, ...trust, ...x509, ...given])
        expect(ran).toMatchObject({ code: 2, stdout: '' })
        expect(ran.stderr).toContain('every user of this machine can read')
        expect(ran.stderr).not.toContain(secret.slice(0, 20))
        expect(emulator.openConnections).toBe(0)
      }
    }
  })
})

interface Failure {
  readonly exit: number
  readonly code: string
  readonly phase?: string
  readonly name: string
  readonly args: () => readonly string[]
  readonly options?: Run
  readonly fault?: FaultSpec
}

/** An installation that has lost a file. */
const broken = bench.file('broken')
mkdirSync(broken)
copyFileSync(COMMAND, `${broken}/dps-device.cjs`)

const failures: readonly Failure[] = [
  {
    name: 'a part of the package that is gone',
    exit: 1,
    code: 'UNEXPECTED',
    args: () => [...there, ...trust, ...x509, '--transport', 'https'],
    options: { command: [`${broken}/dps-device.cjs`] },
  },
  {
    name: 'no credential',
    exit: 2,
    code: 'OPTION_INVALID',
    phase: 'config',
    args: () => [...there, ...trust],
  },
  {
    name: 'an option that does not exist',
    exit: 2,
    code: 'OPTION_INVALID',
    args: () => [...there, '--certt', 'x'],
  },
  {
    name: 'an id scope that cannot be one',
    exit: 2,
    code: 'OPTION_INVALID',
    args: () => ['register', ...trust, ...x509, '--id-scope', 'not a scope'],
  },
  {
    name: 'the key of another device',
    exit: 3,
    code: 'CREDENTIAL_KEY_MISMATCH',
    phase: 'config',
    args: () => [
      ...there,
      ...trust,
      '--cert',
      bench.file('cert.pem'),
      '--key',
      bench.file('expired-key.pem'),
    ],
  },
  {
    name: 'a certificate file that is not there',
    exit: 3,
    code: 'CREDENTIAL_UNREADABLE',
    phase: 'config',
    args: () => [...there, ...trust, '--cert', bench.file('nowhere.pem'), '--key', bench.file('key.pem')],
  },
  {
    name: 'a root that is none',
    exit: 3,
    code: 'TRUST_ANCHOR_INVALID',
    phase: 'config',
    args: () => [...there, ...x509, '--roots', 'none', '--extra-root', bench.file('cert.pem')],
  },
  {
    name: 'a certificate that has expired',
    exit: 4,
    code: 'DEVICE_CERTIFICATE_EXPIRED',
    phase: 'clock',
    args: () => [
      ...there,
      ...trust,
      '--cert',
      bench.file('expired.pem'),
      '--key',
      bench.file('expired-key.pem'),
    ],
  },
  {
    name: 'a port that nobody listens on',
    exit: 5,
    code: 'CONNECTION_REFUSED',
    phase: 'tcp',
    args: () => [...there.slice(0, -1), '1', ...trust, ...x509, '--timeout', '3'],
  },
  {
    name: 'a server that no trusted root stands behind',
    exit: 6,
    code: 'SERVER_UNTRUSTED',
    phase: 'tls',
    args: () => [...there, ...x509, '--roots', 'none', '--extra-root', bench.file('other-root.pem')],
  },
  {
    name: 'a device that the service does not know',
    exit: 7,
    code: 'UNAUTHORIZED',
    args: () => [
      ...there,
      ...trust,
      '--cert',
      bench.file('stranger.pem'),
      '--key',
      bench.file('stranger-key.pem'),
    ],
  },
  {
    name: 'an allocation that fails',
    exit: 8,
    code: 'ALLOCATION_FAILED',
    args: () => [...there, ...trust, ...x509],
    fault: { at: 'register', do: { outcome: 'failed' } },
  },
  {
    name: 'a service that falls silent',
    exit: 8,
    code: 'DEADLINE_EXCEEDED',
    phase: 'register',
    args: () => [...there, ...trust, ...x509, '--timeout', '3'],
    fault: { at: 'register', do: 'silence' },
  },
]

const SIGNALS = [
  { exit: 129, signal: 'SIGHUP' },
  { exit: 130, signal: 'SIGINT' },
  { exit: 143, signal: 'SIGTERM' },
] as const

describe('an exit code', () => {
  test('is proved below, each that the help names', () => {
    const proved = new Set([0, ...failures.map(({ exit }) => exit), ...SIGNALS.map(({ exit }) => exit)])
    // 9 belongs to the commands that warn, 10 to that of many devices.
    expect([...proved]).toEqual(EXIT_CODES.map(([code]) => code).filter((code) => code !== 9 && code !== 10))
  })

  for (const { name, exit, code, phase, args, options, fault } of failures) {
    test(`${exit}: ${name}`, async () => {
      if (fault !== undefined) emulator.faults.add({ ...fault, times: Number.POSITIVE_INFINITY } as FaultSpec)
      const text = await run(args(), options)
      expect({ code: text.code, stdout: text.stdout }).toEqual({ code: exit, stdout: '' })
      // Code, phase and message, and then what to do: sentences, and no trace of the program.
      expect(text.stderr).toMatch(
        new RegExp(`^${code}${phase === undefined ? '' : ` in phase ${phase}`}.*\\n.+`),
      )
      expect(text.stderr).not.toMatch(/\n\s+at /)
      const json = await run([...args(), '--json'], options)
      expect({ code: json.code, stderr: json.stderr }).toEqual({ code: exit, stderr: '' })
      expect(JSON.parse(json.stdout)).toMatchObject({ error: { code, ...(phase && { phase }) } })
    })
  }

  for (const { exit, signal } of SIGNALS) {
    test(`${exit}: ${signal} while the service is silent, and nothing is left`, async () => {
      for (const json of [false, true]) {
        const { hit } = emulator.faults.add({ at: 'register', do: 'silence' })
        const ran = await run([...there, ...trust, ...x509, ...(json ? ['--json'] : [])], {
          meanwhile: (kill) => void hit.then(() => kill(signal)),
        })
        // Where the terminal has gone it ends by the signal itself, which a shell counts as the same.
        const ended = signal === 'SIGHUP' ? { code: null, signal } : { code: exit, signal: null }
        expect({ code: ran.code, signal: ran.signal }).toEqual(ended)
        if (json)
          expect(JSON.parse(ran.stdout)).toMatchObject({ error: { code: 'CANCELLED', phase: 'register' } })
        else
          expect(ran).toMatchObject({
            stdout: '',
            stderr: expect.stringMatching(/^CANCELLED in phase register/),
          })
        await vi.waitFor(() => expect(emulator.openConnections).toBe(0), 5000)
      }
    })
  }
})

describe('a name that is nearly right', () => {
  for (const [args, meant] of [
    [['registr'], 'register'],
    [['register', '--id-scop', 'x'], '--id-scope'],
    [['register', '--certificate', 'x'], '--cert'],
    [['register', '--symetric-key-file', 'x'], '--symmetric-key-file'],
    [['register', '--id-scope', 'x', '--transport', 'mqt'], 'mqtt'],
    // Two letters of five, or the dashes, do not make another word of it.
    [['csr', '--curve', 'P-256'], undefined],
  ] as const) {
    test(`${args.join(' ')} means ${meant}`, async () => {
      const ran = await run(args)
      expect(ran.code).toBe(2)
      if (meant === undefined) expect(ran.stderr).not.toContain('Did you mean')
      else expect(ran.stderr).toContain(`Did you mean ${meant}?`)
      // Where all of them are listed.
      expect(ran.stderr).toContain(` dps-device ${args.length === 1 ? '' : `${args[0]} `}--help.`)
    })
  }
})

describe('the start', () => {
  const shells: readonly (readonly [string, readonly string[]])[] = [
    ['dash', ['dash', COMMAND]],
    ['bash', ['bash', COMMAND]],
    ['BusyBox', ['busybox', 'sh', COMMAND]],
    ['Node itself', [process.execPath, COMMAND]],
  ]
  for (const [name, command] of shells) {
    const missing = spawnSync(command[0]!, ['-c', 'true']).error !== undefined
    test.skipIf(missing)(`is that of ${name}`, async () => {
      expectAssigned(await run([...there, ...trust, ...x509, '--json'], { command }), 'press-1')
    })
  }

  test('goes through links, as npm makes them', async () => {
    const folder = bench.file('bin')
    mkdirSync(folder)
    symlinkSync(COMMAND, `${folder}/real`)
    symlinkSync('real', `${folder}/dps-device`)
    const args = [...there, ...trust, ...x509, '--json']
    expectAssigned(await run(args, { command: [`${folder}/dps-device`] }), 'press-1')
    expectAssigned(await run(args, { command: ['./dps-device'], cwd: folder }), 'press-1')
    const env = { PATH: `${folder}:${process.env.PATH}` }
    expectAssigned(await run(args, { command: ['dps-device'], env }), 'press-1')
    // What is beside the command is found from where it really is.
    expect((await run([...args, '--transport', 'https'], { command: ['dps-device'], env })).code).toBe(0)
  })

  test('keeps arguments as they are', async () => {
    const folder = bench.file('a folder; with $(odd) "names"')
    mkdirSync(folder)
    copyFileSync(bench.file('sas.key'), `${folder}/sas key`)
    const args = [...there, ...trust, '--registration-id', 'sensor-1', '--json']
    expectAssigned(await run([...args, '--symmetric-key-file', `${folder}/sas key`]), 'sensor-1')
  })

  test('keeps NODE_OPTIONS, adds one of Node and none of V8', async () => {
    const seen = bench.file('seen.json')
    const hook = bench.write(
      'hook.cjs',
      `require('node:fs').writeFileSync(${JSON.stringify(seen)}, JSON.stringify([process.execArgv, process.env.NODE_OPTIONS]))`,
    )
    for (const more of ['', ' --use-bundled-ca']) {
      const env = { NODE_OPTIONS: `--require=${hook}${more}` }
      expectAssigned(await run([...there, ...trust, ...x509, '--json'], { env }), 'press-1')
      // Two stores at once are what Node refuses.
      expect(JSON.parse(readFileSync(seen, 'utf8'))).toEqual([
        more === '' ? ['--use-openssl-ca'] : [],
        env.NODE_OPTIONS,
      ])
    }
  })
})

describe('trust', () => {
  const ways: readonly (readonly [string, readonly string[] | undefined])[] = [
    ['the command', undefined],
    ['Node without the option', [process.execPath, COMMAND]],
    ['Node with the option', [process.execPath, '--use-openssl-ca', COMMAND]],
  ]
  // The name under which OpenSSL looks for a root in a folder.
  const hashing = spawnSync('openssl', ['x509', '-noout', '-subject_hash', '-in', bench.file('root.pem')])
  const subjectHash = hashing.status === 0 ? `${hashing.stdout}`.trim() : undefined
  for (const [name, command] of ways) {
    const started = command === undefined ? {} : { command }
    test(`is the roots of the policy: one only in SSL_CERT_FILE is refused (${name})`, async () => {
      const env = { SSL_CERT_FILE: bench.file('root.pem'), NODE_EXTRA_CA_CERTS: bench.file('root.pem') }
      for (const roots of [[], ['--roots', 'none', '--extra-root', bench.file('other-root.pem')]]) {
        const ran = await run([...there, ...x509, ...roots, '--json'], { ...started, env })
        expect(ran.code).toBe(6)
        expect(JSON.parse(ran.stdout)).toMatchObject({ error: { code: 'SERVER_UNTRUSTED' } })
      }
    })

    test.skipIf(!subjectHash)(`is not a root in SSL_CERT_DIR either (${name})`, async () => {
      const folder = bench.file(`certs-${name.replaceAll(' ', '-')}`)
      mkdirSync(folder)
      copyFileSync(bench.file('root.pem'), `${folder}/${subjectHash}.0`)
      const ran = await run([...there, ...x509, '--json'], { ...started, env: { SSL_CERT_DIR: folder } })
      expect(JSON.parse(ran.stdout)).toMatchObject({ error: { code: 'SERVER_UNTRUSTED' } })
    })

    test(`is the system's where that is asked for, from the user's SSL_CERT_FILE (${name})`, async () => {
      const args = [...there, ...x509, '--roots', 'system', '--json']
      const found = await run(args, { ...started, env: { SSL_CERT_FILE: bench.file('root.pem') } })
      expectAssigned(found, 'press-1')
      const other = await run(args, { ...started, env: { SSL_CERT_FILE: bench.file('other-root.pem') } })
      expect(JSON.parse(other.stdout)).toMatchObject({ error: { code: 'SERVER_UNTRUSTED' } })
      expect(other.code).toBe(6)
    })
  }

  test('of the emulator is never the default', async () => {
    expect(pki.roots[0].certPem).toContain('BEGIN CERTIFICATE')
    expect((await run([...there, ...x509])).code).toBe(6)
  })
})

describe('a terminal', () => {
  const hasScript = spawnSync('script', ['--version']).error === undefined
  const quoted = (args: readonly string[]) => args.map((arg) => `'${arg}'`).join(' ')
  const inTerminal = (args: readonly string[], env: Readonly<Record<string, string>> = {}) =>
    run([], {
      command: ['script', '-qec', quoted([COMMAND, ...args]), '/dev/null'],
      env: { TERM: 'xterm', SHELL: '/bin/sh', ...env },
    })

  test.skipIf(!hasScript)('has progress and emphasis', async () => {
    const { code, stdout } = await inTerminal([...there, ...trust, ...x509])
    expect(code).toBe(0)
    expect(stdout).toContain('\x1b[1mpress-1\x1b[0m')
    expect(stdout).toContain('TLS handshake …')
    // What is left on the screen is the result.
    expect(stdout.slice(stdout.lastIndexOf('\r\x1b[K'))).toBe(
      `\r\x1b[K${stdout.slice(stdout.indexOf('device'))}`,
    )
  })

  test.skipIf(!hasScript)('has the colours its user wants', async () => {
    const { stdout } = await inTerminal([...there, ...trust, ...x509, '--quiet'], { NO_COLOR: '1' })
    expect(stdout).toBe('')
    const plain = await inTerminal([...there, ...trust, ...x509], { NO_COLOR: '1' })
    expect(plain.stdout).not.toContain('\x1b[1m')
    const failed = await inTerminal([...there, ...x509])
    expect(failed).toMatchObject({
      code: 6,
      stdout: expect.stringContaining('\x1b[31mSERVER_UNTRUSTED\x1b[0m'),
    })
  })
})

describe('help', () => {
  test('names every option, its variable and every exit code', async () => {
    for (const args of [['--help'], ['help'], ['register', '--help'], ['help', 'register']]) {
      const { code, stdout, stderr } = await run(args)
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
      if (args.includes('register')) {
        expect(stdout).toContain('--id-scope ID')
        expect(stdout).toContain('DPS_SYMMETRIC_KEY')
      }
      for (const [number, meaning] of EXIT_CODES) {
        expect(stdout.split('\n').map((line) => line.trim().replace(/ +/, ' '))).toContain(
          `${number} ${meaning}`,
        )
      }
      for (const line of stdout.split('\n')) expect(line.length).toBeLessThanOrEqual(130)
    }
  })

  test('is what no arguments get, as a failure', async () => {
    const { code, stdout } = await run([])
    expect(code).toBe(2)
    expect(stdout).toContain('dps-device register')
  })

  test('has the version beside it', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
    expect(await run(['--version'])).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: '' })
  })
})
