import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest'
import { generateSymmetricKey } from '../../src/emulator/index.ts'
import { ProvisioningClient, symmetricKey } from '../../src/index.ts'
import { Bench, COMMAND, run } from './bench.ts'

const bench = await Bench.open()
const { emulator, trust, x509 } = bench
const groupKeyFile = bench.write('group.key', `${generateSymmetricKey()}\n`)
afterAll(() => bench.close())
afterEach(() => emulator.registrations.forget())
vi.setConfig({ testTimeout: 90_000 })

/** In a shell, with standard output led elsewhere. */
const led = (args: readonly string[], where: string) =>
  run(args, { command: ['sh', '-c', `"$0" "$@" ${where}`, COMMAND] })

describe('standard output', () => {
  const commands = [
    ['derive-key', '--registration-id', 'press-42', '--group-key-file', groupKeyFile],
    ['csr', '--registration-id', 'press-42', '--key-out', bench.file('full.key')],
    [...bench.there, ...trust, ...x509, '--json'],
    ['roots', '--json'],
    ['--version'],
  ]
  for (const args of commands) {
    test.skipIf(!existsSync('/dev/full'))(`on a disk that is full is no success of ${args[0]}`, async () => {
      const ran = await led(args, '> /dev/full')
      expect(ran).toMatchObject({ code: 3, stderr: expect.stringMatching(/^standard output .*ENOSPC/) })
    })
  }

  test('that nobody reads is no failure', async () => {
    expect(await led(['roots', '--json'], '| true')).toMatchObject({ code: 0, stderr: '' })
    expect(await led(['roots', '--json'], '>&-')).toMatchObject({ code: 0, stderr: '' })
  })
})

test('an error is JSON however that is asked for', async () => {
  for (const json of ['--json', '--json=true', '--json=1']) {
    const ran = await run(['register', json, '--certt', 'x'])
    expect({ code: ran.code, stderr: ran.stderr }).toEqual({ code: 2, stderr: '' })
    expect(JSON.parse(ran.stdout)).toMatchObject({ error: { code: 'OPTION_INVALID' } })
  }
})

describe('a name that is being looked up', () => {
  // As the resolver of a network that swallows its questions: no answer, and the process is kept.
  const hook = bench.write(
    'resolver.cjs',
    `require('node:dns').lookup = () => { setTimeout(() => {}, 50_000); process.stderr.write('asked\\n') }`,
  )
  for (const [name, exit] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    test(`does not keep a registration that ${name} has ended`, async () => {
      const child = spawn(
        COMMAND,
        ['register', '--id-scope', '0ne00000000', '--host', 'dps.example', ...x509],
        { env: { PATH: process.env.PATH ?? '', NODE_OPTIONS: `--require=${hook}` }, stdio: 'pipe' },
      )
      let said = ''
      child.stderr.setEncoding('utf8').on('data', (text: string) => {
        if (said === '') child.kill(name)
        said += text
      })
      const started = Date.now()
      const [code, signal] = await once(child, 'close')
      expect(said).toMatch(/^asked\nCANCELLED in phase dns/)
      // A shell counts a signal as 128 and its number.
      expect(signal === name ? exit : code).toBe(exit)
      expect(Date.now() - started).toBeLessThan(45_000)
    })
  }
})

describe('a running emulator', () => {
  const hasFifo = spawnSync('mkfifo', ['--version']).error === undefined
  test.skipIf(!hasFifo)('serves and ends though the reader of its log stands still', async () => {
    const fifo = bench.file('log')
    expect(spawnSync('mkfifo', [fifo]).status).toBe(0)
    const reader = openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK)
    const writer = openSync(fifo, 'w')
    const dir = bench.file('standing')
    const child = spawn(COMMAND, ['emulator', '--json', '--dir', dir, '--polls', '0'], {
      env: { PATH: process.env.PATH ?? '' },
      stdio: ['ignore', writer, 'inherit'],
    })
    const closed = once(child, 'close')
    closeSync(writer)
    try {
      let text = ''
      await vi.waitFor(() => {
        const chunk = Buffer.alloc(65_536)
        text += chunk.toString('utf8', 0, readSync(reader, chunk))
        expect(text).toContain('\n')
      }, 30_000)
      const { idScope, address, port, root } = JSON.parse(text)
      const key = readFileSync(`${dir}/press-42.key`, 'utf8').trim()
      const client = new ProvisioningClient({
        idScope,
        connectTo: address,
        port,
        trust: { roots: 'none', extraRoots: readFileSync(root) },
        credential: symmetricKey({ registrationId: 'press-42', key }),
      })
      // A pipe holds 64 KiB, and each of them is told in three.
      for (let i = 0; i < 40; i++) await client.register({ timeoutMs: 20_000 })
      child.kill('SIGTERM')
      expect(await closed).toEqual([0, null])
    } finally {
      child.kill('SIGKILL')
      closeSync(reader)
    }
  })

  test('goes on though the reader of its log has gone', async () => {
    const dir = bench.file('unread')
    const child = spawn(COMMAND, ['emulator', '--json', '--dir', dir, '--polls', '0'], {
      env: { PATH: process.env.PATH ?? '' },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let stderr = ''
    child.stderr.on('data', (text) => {
      stderr += text
    })
    const [first] = await once(child.stdout, 'data')
    const closed = once(child.stdout, 'close')
    child.stdout.destroy()
    await closed
    const { command } = JSON.parse(`${first}`).devices[0]
    for (let i = 0; i < 2; i++) {
      const ran = await run([], { command: ['sh', '-c', command.replace(/^dps-device/, `'${COMMAND}'`)] })
      expect(ran.code).toBe(0)
    }
    child.kill('SIGTERM')
    expect(await once(child, 'close')).toEqual([0, null])
    expect(stderr).toBe('')
  })

  test('leaves no key behind when its terminal is closed', async () => {
    const folder = bench.file('temporary')
    mkdirSync(folder)
    const child = spawn(COMMAND, ['emulator', '--json'], {
      env: { PATH: process.env.PATH ?? '', TMPDIR: folder },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    await once(child.stdout, 'data')
    expect(readdirSync(folder)).toHaveLength(1)
    child.kill('SIGHUP')
    expect(await once(child, 'close')).toEqual([null, 'SIGHUP'])
    expect(readdirSync(folder)).toEqual([])
  })

  test('tells its errors as JSON in a pipe too', async () => {
    const taken = createServer().listen(0, '127.0.0.1')
    await once(taken, 'listening')
    const { port } = taken.address() as { port: number }
    for (const option of ['--port', '--page']) {
      const ran = await run(['emulator', '--json', option, `${port}`])
      expect(ran.code).toBe(2)
      expect(JSON.parse(ran.stdout)).toMatchObject({ error: { code: 'OPTION_INVALID' } })
    }
    taken.close()
  })

  test('prints commands that npx finds, where npx has started it', async () => {
    const child = spawn(COMMAND, ['emulator', '--json'], {
      env: { PATH: process.env.PATH ?? '', TMPDIR: bench.folder, npm_command: 'exec' },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const [first] = await once(child.stdout, 'data')
    child.kill('SIGTERM')
    await once(child, 'close')
    for (const { command } of JSON.parse(`${first}`).devices)
      expect(command).toMatch(/^npx dps-device-client register --id-scope /)
  })
})
