import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest'
import { ProvisioningClient } from '../../src/client.ts'
import { symmetricKey } from '../../src/credential/sas.ts'
import { createCsr } from '../../src/factory/index.ts'
import { connectHub } from '../../src/hub/index.ts'
import { COMMAND, pki, run } from './bench.ts'

const folder = mkdtempSync(join(tmpdir(), 'dps-emulate-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
// Each starts several processes, of which the first makes its certificates.
vi.setConfig({ testTimeout: 90_000 })
const running = new Set<ChildProcess>()
afterEach(() => {
  for (const child of running) child.kill('SIGKILL')
})

interface Ready {
  readonly page: string
  readonly port: number
  readonly root: string
  readonly devices: readonly { readonly registrationId: string; readonly command: string }[]
}

/** The command as it runs, its standard output so far, and a way to wait for more of it. */
class Running {
  readonly child: ChildProcess
  stdout = ''
  stderr = ''

  constructor(
    args: readonly string[],
    command: readonly string[] = [COMMAND],
    env: Record<string, string> = {},
  ) {
    const [file = '', ...before] = command
    this.child = spawn(file, [...before, ...args], {
      env: { PATH: process.env.PATH ?? '', TMPDIR: folder, ...env },
      stdio: 'pipe',
    })
    running.add(this.child)
    this.child.once('close', () => running.delete(this.child))
    this.child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text
    })
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text
    })
  }

  /** Resolves once the output matches. */
  async until(pattern: RegExp): Promise<string> {
    while (!pattern.test(this.stdout)) {
      const ended = once(this.child, 'close').then(() => 'closed')
      const more = await Promise.race([once(this.child.stdout!, 'data'), ended])
      if (more === 'closed' && !pattern.test(this.stdout))
        throw new Error(`it ended without ${pattern}: ${this.stdout}${this.stderr}`)
    }
    return this.stdout
  }

  async ready(): Promise<Ready> {
    const text = await this.until(/^.*"type":"ready".*\n/)
    return JSON.parse(text.slice(0, text.indexOf('\n')))
  }

  get events(): readonly Record<string, unknown>[] {
    return this.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
  }

  async end(signal: NodeJS.Signals = 'SIGINT'): Promise<{ code: number | null; stderr: string }> {
    const closed = once(this.child, 'close')
    this.child.kill(signal)
    const [code] = await closed
    return { code: code as number | null, stderr: this.stderr }
  }
}

/** Runs a printed command line in a shell that has the command under its name. */
const asPrinted = (command: string) =>
  run([], {
    command: ['sh', '-c', command.replace(/^dps-device /, `'${COMMAND}' `)],
    env: { DPS_JSON: '1' },
  })

const clean = { code: 0, stderr: '' }

describe('dps-device emulator', () => {
  test('has a device of each kind ready, whose printed commands register it, and leaves nothing behind', async () => {
    const emulator = new Running(['emulator', '--json', '--retry-after', '0'])
    const { root, devices } = await emulator.ready()
    expect(devices.map(({ registrationId }) => registrationId)).toEqual(['press-42', 'press-43'])
    expect(statSync(dirname(root)).mode & 0o777).toBe(0o700)
    const key = readFileSync(join(dirname(root), 'press-42.key'), 'utf8').trim()
    const privateKey = readFileSync(join(dirname(root), 'press-43-key.pem'), 'utf8').split('\n')[1]!
    for (const name of readdirSync(dirname(root)))
      expect(statSync(join(dirname(root), name)).mode & 0o777).toBe(0o600)
    for (const { registrationId, command } of devices) {
      const ran = await asPrinted(command)
      expect({ code: ran.code, stderr: ran.stderr }).toEqual(clean)
      expect(JSON.parse(ran.stdout)).toMatchObject({ status: 'assigned', registrationId })
    }
    await emulator.until(/"connection-closed","connectionId":2/)
    expect(await emulator.end()).toEqual(clean)
    const events = emulator.events
    expect(events.find(({ type }) => type === 'client-hello')).toMatchObject({
      versions: ['TLSv1.2'],
      suites: [
        'ECDHE-RSA-AES256-GCM-SHA384',
        'ECDHE-RSA-AES128-GCM-SHA256',
        'ECDHE-RSA-AES256-SHA384',
        'ECDHE-RSA-AES128-SHA256',
      ],
      serverName: 'global.azure-devices-provisioning.net',
    })
    expect(events.filter(({ type }) => type === 'registration')).toHaveLength(2)
    for (const secret of [key, privateKey, 'SharedAccessSignature', '"sig'])
      expect(emulator.stdout).not.toContain(secret)
    expect(readdirSync(folder)).toEqual([])
  })

  test('tells people what happens in lines, without colour in a pipe', async () => {
    const emulator = new Running(['emulator', '--retry-after', '0', '--fault', 'register=429'])
    const text = await emulator.until(/Ctrl-C ends it/)
    const [command = ''] = /dps-device register .*/.exec(text) ?? []
    expect((await asPrinted(command)).code).toBe(0)
    const log = await emulator.until(/closed/)
    for (const line of [
      /#1 TCP, to port \d+/,
      /#1 ClientHello, TLSv1\.2 for global\.azure-devices-provisioning\.net: ECDHE-RSA-AES256-GCM-SHA384 .*; X25519 P-256 P-384/,
      /#1 TLS TLSv1\.2, ECDHE-RSA-AES256-GCM-SHA384, full, no certificate/,
      /#1 → connect press-42 token redacted/,
      /#1 fault, at register: reply/,
      /#1 ← publish \$dps\/registrations\/res\/429\//,
      /press-42 is assigned to emulated-hub\.azure-devices\.net as press-42, initialAssignment/,
    ])
      expect(log).toMatch(line)
    expect(log).not.toContain('\x1b')
    expect(await emulator.end('SIGTERM')).toEqual(clean)
    expect(readdirSync(folder)).toEqual([])
  })

  test('enrolls what a file says, with its faults, and keeps what it wrote in --dir', async () => {
    const dir = join(folder, 'kept')
    const config = join(folder, 'emulator.json')
    const groupKey = Buffer.alloc(32, 7).toString('base64')
    writeFileSync(join(folder, 'group.key'), `${groupKey}\n`)
    writeFileSync(join(folder, 'ca.pem'), pki.deviceRoot.certPem)
    const text = JSON.stringify({
      json: true,
      idScope: '0neAA',
      retryAfter: 0,
      polls: 0,
      fault: ['register=failed@press-1'],
      dir,
      enrollments: {
        devices: [{ registrationId: 'press-1', deviceId: 'one' }],
        groups: [
          {
            groupId: 'keys',
            symmetricKeyFile: join(folder, 'group.key'),
            devices: ['press-2'],
            hub: 'line-2.azure-devices.net',
            payload: { site: 'Aachen' },
          },
          { groupId: 'ca', attestation: 'x509', certificateFile: join(folder, 'ca.pem') },
          { groupId: 'off', attestation: 'x509', devices: ['press-3'], enabled: false },
        ],
      },
    })
    writeFileSync(config, text)
    try {
      const emulator = new Running(['emulator', '--config', config])
      const { devices, root } = await emulator.ready()
      expect(root).toBe(join(dir, 'root.pem'))
      const commands = new Map(devices.map(({ registrationId, command }) => [registrationId, command]))
      expect([...commands.keys()].sort()).toEqual(['press-1', 'press-2', 'press-3'])
      expect(JSON.parse((await asPrinted(commands.get('press-1')!)).stdout)).toMatchObject({
        error: { code: 'ALLOCATION_FAILED' },
      })
      expect(JSON.parse((await asPrinted(commands.get('press-1')!)).stdout)).toMatchObject({
        deviceId: 'one',
      })
      expect(JSON.parse((await asPrinted(commands.get('press-2')!)).stdout)).toMatchObject({
        assignedHub: 'line-2.azure-devices.net',
        payload: { site: 'Aachen' },
      })
      expect(await asPrinted(commands.get('press-3')!)).toMatchObject({ code: 7 })
      expect(await emulator.end()).toEqual(clean)
      expect(emulator.stdout).not.toContain(groupKey)
      expect(readdirSync(dir)).toContain('press-2.key')

      const again = await run(['emulator', '--config', config])
      expect(again).toMatchObject({ code: 3, stderr: '' })
      expect(JSON.parse(again.stdout)).toMatchObject({
        error: {
          code: 'STORE_FAILED',
          message: expect.stringContaining('--dir'),
          hint: expect.stringContaining('--force'),
        },
      })
      const forced = new Running(['emulator', '--config', config, '--force'])
      await forced.ready()
      expect(await forced.end()).toEqual(clean)
    } finally {
      for (const name of ['kept', 'emulator.json', 'group.key', 'ca.pem'])
        rmSync(join(folder, name), { recursive: true, force: true })
    }
  })

  test('issues certificates with --issue', async () => {
    const emulator = new Running(['emulator', '--json', '--retry-after', '0', '--issue'])
    const { port, root } = await emulator.ready()
    const client = new ProvisioningClient({
      idScope: '0ne00000000',
      connectTo: '127.0.0.1',
      port,
      trust: { roots: 'none', extraRoots: readFileSync(root) },
      credential: symmetricKey({
        registrationId: 'press-42',
        key: readFileSync(join(dirname(root), 'press-42.key'), 'utf8').trim(),
      }),
    })
    const { csr } = await createCsr({ registrationId: 'press-42' })
    const { issuedCertificateChain } = (await client.register({ csr })) as {
      issuedCertificateChain?: unknown
    }
    expect(issuedCertificateChain).toBeDefined()
    await emulator.until(/"certificate-issued"/)
    expect(await emulator.end()).toEqual(clean)
  })

  test('has the hub that it assigns, and tells of what is sent there', async () => {
    const emulator = new Running(['emulator', '--json', '--retry-after', '0', '--polls', '0'])
    const { port, root } = await emulator.ready()
    const common = {
      connectTo: '127.0.0.1',
      port,
      trust: { roots: 'none' as const, extraRoots: readFileSync(root) },
      credential: symmetricKey({
        registrationId: 'press-42',
        key: readFileSync(join(dirname(root), 'press-42.key'), 'utf8').trim(),
      }),
    }
    const assignment = await new ProvisioningClient({ ...common, idScope: '0ne00000000' }).register()
    const hub = await connectHub(assignment, common)
    await hub.sendTelemetry('17 °C')
    await hub.close()
    await emulator.until(/"type":"telemetry"/)
    await emulator.until(/"type":"connection-closed","connectionId":2/)
    expect(await emulator.end()).toEqual(clean)
    const events = emulator.events
    expect(events.find(({ type }) => type === 'hub-connected')).toMatchObject({ clientId: 'press-42' })
    expect(events.find(({ type }) => type === 'telemetry')).toMatchObject({
      message: { deviceId: 'press-42', bytes: 6 },
    })
  })

  test('serves its page where it is asked to, and ends at once though somebody looks at it', async () => {
    const emulator = new Running(['emulator', '--json', '--page', '0'])
    const { page, root } = await emulator.ready()
    const response = await fetch(new URL('events', page))
    const reader = response.body!.getReader()
    const first = new TextDecoder().decode((await reader.read()).value)
    expect(first).toMatch(/^event: all\n/)
    expect(first).toContain('press-42')
    expect(first).not.toContain(readFileSync(join(dirname(root), 'press-42.key'), 'utf8').trim())
    expect(await emulator.end()).toEqual(clean)
    await expect(reader.read()).rejects.toThrow()
  })

  test('says what is wrong with what it was given, and leaves nothing behind', async () => {
    const taken = createServer().listen(0, '127.0.0.1')
    await once(taken, 'listening')
    const { port } = taken.address() as { port: number }
    const enrolled = (value: unknown) => ['--enrollments', JSON.stringify(value)]
    const wrong: readonly (readonly [readonly string[], RegExp])[] = [
      [['--fault', 'registre=429'], /registre as a step in --fault is not known\n.*register/],
      [['--fault', 'register=explode'], /an action at register is one of/],
      [['--port', `${port}`], /--port cannot be listened on \(EADDRINUSE\)/],
      [['--page', `${port}`], /--page cannot be listened on \(EADDRINUSE\)/],
      [['--page', '70000'], /--page must be a port/],
      [['--port', '70000'], /--port must be an integer/],
      [['--enrollments', '{'], /--enrollments is not JSON/],
      [enrolled({ device: [] }), /device in --enrollments is not known\n.*devices/],
      [enrolled({ devices: {} }), /devices in --enrollments is not what it must be/],
      [
        enrolled({ devices: [{ registrationID: 'a' }] }),
        /registrationID in devices\[0\] in --enrollments is not known/,
      ],
      [enrolled({ devices: [{}] }), /devices\[0\] in --enrollments has no id/],
      [enrolled({ devices: [{ registrationId: '../../b', attestation: 'x509' }] }), /--registration-id/],
      [enrolled({ groups: [{ groupId: 'g', devices: ['../b'], attestation: 'x509' }] }), /--registration-id/],
      [
        enrolled({ devices: [{ registrationId: 'a', certificateFile: 'x' }] }),
        /a file of the other attestation/,
      ],
      [enrolled({ groups: [{ groupId: 'g', issuance: { days: 3 } }] }), /days in issuance in groups\[0\]/],
      [
        enrolled({ groups: [{ groupId: 'g', attestation: 'x509', certificateFile: 'x', devices: ['a'] }] }),
        /only whoever has the key of its CA/,
      ],
    ]
    try {
      for (const [args, message] of wrong) {
        const ran = await run(['emulator', ...args], { env: { TMPDIR: folder } })
        expect(ran, args.join(' ')).toMatchObject({ code: 2, stdout: '' })
        expect(ran.stderr).toMatch(message)
        expect(readdirSync(folder)).toEqual([])
      }
    } finally {
      taken.close()
    }
  })

  const hasScript = spawnSync('script', ['--version']).error === undefined
  test.skipIf(!hasScript)('has colour in a terminal, and ends by Ctrl-C there', async () => {
    const emulator = new Running(
      ['-qec', `exec '${COMMAND}' emulator --retry-after 0 --fault accept=drop`, '/dev/null'],
      ['script'],
      { TERM: 'xterm', SHELL: '/bin/sh' },
    )
    const text = await emulator.until(/Ctrl-C ends it/)
    expect(text).toContain('making certificates …')
    expect(text).toContain('\x1b[1mpress-42\x1b[0m')
    const [command = ''] = /dps-device register [^\r\n]*/.exec(text) ?? []
    expect((await asPrinted(command)).code).toBe(0)
    expect(await emulator.until(/press-42 is assigned/)).toContain('\x1b[31m')
    const closed = once(emulator.child, 'close')
    emulator.child.stdin!.write('\x03')
    expect((await closed)[0]).toBe(0)
    expect(readdirSync(folder)).toEqual([])
  })
})
