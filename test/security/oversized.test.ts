import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { createConnection, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { startEmulator } from '../../src/emulator/index.ts'
import {
  type ConnectTarget,
  type DpsErrorCode,
  fileStore,
  issuedCertificate,
  ProvisioningClient,
  type ProvisioningClientOptions,
  provision,
  symmetricKey,
  x509,
} from '../../src/index.ts'
import { resolveTrust } from '../../src/tls/trust.ts'
import { Bench, run } from '../cli/bench.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { HubStage, ID } from '../unit/hub/stage.ts'

// Each reader has a limit. Where it reads from the network, more than that is really sent.

const MIB = 1024 * 1024
const PATIENT = { timeout: 15_000 }
const folder = mkdtempSync(join(tmpdir(), 'oversized-'))
const emulator = await startEmulator({ assigning: { polls: 0 } })
const { primaryKey: key } = emulator.enrollments.addIndividual({
  registrationId: ID,
  attestation: { symmetricKey: {} },
})!
const device = await emulator.issueDeviceCertificate({ registrationId: ID })
const bench = await Bench.open()
let stage: HubStage | undefined
afterEach(async () => {
  emulator.faults.clear()
  await stage?.close()
  stage = undefined
  await expect.poll(() => emulator.openConnections, PATIENT).toBe(0)
})
afterAll(async () => {
  await Promise.all([emulator.close(), bench.close()])
  rmSync(folder, { recursive: true })
})

/** A file of this size that takes no place. */
function large(name: string, bytes: number): string {
  const path = join(folder, name)
  writeFileSync(path, '')
  truncateSync(path, bytes)
  return path
}

const client = (more: Partial<ProvisioningClientOptions> = {}) =>
  new ProvisioningClient({
    ...emulator.clientOptions(),
    credential: symmetricKey({ registrationId: ID, key }),
    retry: { maxAttempts: 1 },
    ...more,
  })
const endless = 'x'.repeat(20_000)

describe('from the provisioning service', () => {
  for (const transport of ['mqtt', 'mqtt-ws', 'https'] as const) {
    it(`a reply of one byte more than 192 KiB over ${transport}`, async () => {
      emulator.faults.add({ at: 'register-reply', do: { oversize: 192 * 1024 + 1 } })
      const error = await expectDpsError(client({ transport }).register(), 'REPLY_TOO_LARGE', 'register')
      expect(error.retryable).toBe(false)
    })

    it(`a reply of 64 MiB over ${transport}, of which no more is read`, async () => {
      emulator.faults.add({ at: 'register-reply', do: { oversize: 64 * MIB } })
      // TLS adds a little; what is in the buffers of the system is nobody's.
      let socket: Socket | undefined
      const connect = ({ host, port }: ConnectTarget) => {
        socket = createConnection({ host, port })
        return socket
      }
      await expectDpsError(client({ transport, connect }).register(), 'REPLY_TOO_LARGE', 'register')
      expect(socket!.destroyed).toBe(true)
      expect(socket!.bytesRead).toBeLessThan(2 * MIB)
    })

    it(`a wish to wait for a thousand years over ${transport}`, async () => {
      const reply = { status: 503, retryAfter: `${365.25 * 86_400 * 1000}` }
      emulator.faults.add({ at: 'register', do: { reply } })
      const error = await expectDpsError(client({ transport }).register(), 'SERVICE_UNAVAILABLE', 'register')
      expect(error.retryAfterMs).toBe(86_400_000)
    })
  }

  const raws: readonly (readonly [string, 'mqtt' | 'https', Buffer, DpsErrorCode])[] = [
    [
      'a header of 20 KB',
      'https',
      Buffer.from(`HTTP/1.1 200 OK\r\nA: ${endless}\r\n\r\n{}`),
      'REPLY_TOO_LARGE',
    ],
    [
      'headers without end',
      'https',
      Buffer.from(`HTTP/1.1 200 OK\r\n${'A: b\r\n'.repeat(20_000)}`),
      'REPLY_TOO_LARGE',
    ],
    [
      'a length that is no number of this world',
      'https',
      Buffer.from(`HTTP/1.1 200 OK\r\nContent-Length: ${'9'.repeat(15)}\r\n\r\n{}`),
      'REPLY_TOO_LARGE',
    ],
    ['a status line without end', 'https', Buffer.from(`HTTP/1.1 200 ${endless}`), 'REPLY_TOO_LARGE'],
    [
      'a message of 256 MB, announced',
      'mqtt',
      Buffer.from([0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1]),
      'REPLY_TOO_LARGE',
    ],
  ]
  for (const [what, transport, raw, code] of raws) {
    it(`${what} over ${transport}`, async () => {
      emulator.faults.add({ at: 'register', do: { raw, unframed: true } })
      await expectDpsError(client({ transport }).register(), code, 'register')
    })
  }

  it('a chain of more than ten issued certificates', async () => {
    const store = fileStore(join(folder, 'issued'))
    const { csr } = await issuedCertificate({ store }).createRequest({ registrationId: ID })
    const [, base64 = ''] = /-----BEGIN CERTIFICATE-----([^-]+)/.exec(device.cert) ?? []
    const issuedCertificateChain = Array(11).fill(base64.replaceAll('\n', ''))
    const registrationState = {
      registrationId: ID,
      assignedHub: 'a.azure-devices.net',
      deviceId: ID,
      status: 'assigned',
      issuedCertificateChain,
    }
    const body = JSON.stringify({ operationId: '1', status: 'assigned', registrationState })
    emulator.faults.add({ at: 'register-reply', do: { reply: { body } } })
    const error = await expectDpsError(client().register({ csr }), 'ISSUED_CERTIFICATE_INVALID', 'parse')
    expect(error.message).toContain('10')
  })
})

it('from a proxy, a head without end', async () => {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => socket.write(`HTTP/1.1 200 OK\r\n${`A: ${'b'.repeat(1000)}\r\n`.repeat(17)}`))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const error = await expectDpsError(
    client({ proxy: `http://127.0.0.1:${port}` }).register(),
    'PROTOCOL_VIOLATION',
    'proxy',
  )
  expect(error.message).toContain('16384 bytes')
  await new Promise((resolve) => server.close(resolve))
})

describe('from a hub', () => {
  it('a twin larger than any message may be', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const body = JSON.stringify({
      desired: { $version: 1, x: 'x'.repeat(400_000) },
      reported: { $version: 1 },
    })
    stage.emulator.faults.add({ at: 'twin-reply', do: { reply: { body } } })
    const lost = stage.next('disconnected')
    const twin = hub.twin.get().catch((error: unknown) => error)
    expect((await lost).error.code).toBe('REPLY_TOO_LARGE')
    // It is asked for again over the next connection, and comes.
    expect(await twin).toMatchObject({ desired: { version: expect.any(Number) } })
  })

  it('a command, a change and a call that are larger than any', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    hub.onCommand(() => {})
    hub.onMethod('m', () => ({ status: 200 }))
    await hub.twin.get()
    const topics = [
      `devices/${ID}/messages/devicebound/`,
      '$iothub/twin/PATCH/properties/desired/?$version=9',
      '$iothub/methods/POST/m/?$rid=1',
    ]
    for (const topic of topics) {
      const lost = stage.next('disconnected')
      const back = stage.next('connected')
      stage.emulator.hub.publish(ID, topic, Buffer.alloc(400_000, 0x20))
      expect((await lost).error.code).toBe('REPLY_TOO_LARGE')
      await back
      await hub.twin.get()
    }
  })
})

describe('from a file', () => {
  it('a stored assignment: it is no record, and the device registers', async () => {
    const path = large('assignment', MIB + 1)
    const error = await expectDpsError(fileStore(path).read(), 'STORE_FAILED', 'store')
    expect(error.message).toBe(`${path} is larger than 1 MiB, so it is no record`)
    const credential = symmetricKey({ registrationId: ID, key })
    const options = { ...emulator.clientOptions(), credential, store: fileStore(path) }
    expect(await provision(options)).toMatchObject({ source: 'register', stored: true })
    expect(await provision(options)).toMatchObject({ source: 'store' })
  })

  it.runIf(process.platform === 'linux')('a stored assignment that says it has no size', async () => {
    // A table of the kernel: a regular file of several megabytes, with a size of nothing.
    const symbols = '/proc/kallsyms'
    expect(
      Number(execFileSync('sh', ['-c', `head -c ${MIB + 1} ${symbols} | wc -c`], { encoding: 'utf8' })),
    ).toBe(MIB + 1)
    const error = await expectDpsError(fileStore(symbols).read(), 'STORE_FAILED', 'store')
    expect(error.message).toContain('larger than 1 MiB')
    expect(Buffer.from((await fileStore('/proc/self/status').read())!).toString()).toContain('Name:')
  })

  it('a stored certificate', async () => {
    const held = issuedCertificate({ store: fileStore(large('certificate', MIB + 1)) })
    const error = await expectDpsError(held.load(), 'CREDENTIAL_UNREADABLE', 'config')
    expect(error.message).toContain('larger than 1 MiB')
  })

  const path = large('material', MIB + 1)
  const credentials: readonly (readonly [string, () => Promise<unknown>])[] = [
    ['a certificate', () => x509({ certFile: path, key: device.key }).load()],
    ['a private key', () => x509({ cert: device.cert, keyFile: path }).load()],
    ['a bundle', () => x509({ pkcs12File: path }).load()],
    ['a symmetric key', () => symmetricKey({ registrationId: ID, keyFile: path }).load()],
  ]
  for (const [what, load] of credentials) {
    it(what, async () => {
      const error = await expectDpsError(load(), 'CREDENTIAL_UNREADABLE', 'config')
      expect(error.message).toContain('larger than 1 MiB')
    })
  }

  it('a chain of more than 50 certificates', async () => {
    const [leaf = ''] = device.cert.split(/(?<=-----END CERTIFICATE-----\n)/)
    const cert = leaf.repeat(51)
    const error = await expectDpsError(
      x509({ cert, key: device.key }).load(),
      'CREDENTIAL_UNREADABLE',
      'config',
    )
    expect(error.message).toContain('50')
  })

  it('the bundle of roots of the platform: neither a disk image, nor a pipe that nobody writes, is waited for', async () => {
    const pipe = join(folder, 'pipe')
    execFileSync('mkfifo', [pipe])
    for (const certFile of [large('bundle', 16 * MIB + 1), pipe, folder, '/dev/zero']) {
      const store = { getCACertificates: undefined, certFile, bundles: [] }
      await expectDpsError(() => resolveTrust({ roots: 'system' }, store), 'TRUST_ANCHOR_INVALID', 'config')
    }
  })

  const files: readonly (readonly [string, number, readonly string[]])[] = [
    ['the configuration', 2, ['--config', path, ...bench.sas]],
    ['the payload', 2, [...bench.sas, '--payload', `@${path}`]],
    ['the symmetric key', 3, ['--registration-id', ID, '--symmetric-key-file', path]],
    ['the certificate', 3, ['--cert', path, '--key', bench.file('key.pem')]],
    ['the key', 3, ['--cert', bench.file('cert.pem'), '--key', path]],
    ['a root', 3, [...bench.sas, '--extra-root', path]],
  ]
  for (const [what, exit, args] of files) {
    it(`${what} of the command`, async () => {
      const { code, stderr } = await run([...bench.there, ...args])
      expect(stderr).toMatch(/in phase config: .*larger than 1 MiB/)
      expect(code).toBe(exit)
    })
  }
})
