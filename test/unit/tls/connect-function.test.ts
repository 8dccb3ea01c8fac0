import { spawn } from 'node:child_process'
import { getEventListeners, once } from 'node:events'
import net from 'node:net'
import { Duplex, PassThrough, Readable } from 'node:stream'
import { afterAll, describe, expect, it, onTestFinished } from 'vitest'
import { createPki, generateSymmetricKey, startEmulator } from '../../../src/emulator/index.ts'
import {
  type ConnectFunction,
  DpsError,
  type DpsEvent,
  ProvisioningClient,
  type ProvisioningClientOptions,
  symmetricKey,
  x509,
} from '../../../src/index.ts'
import { testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { deferred } from './servers.ts'

const deviceKey = generateSymmetricKey()
const pki = await createPki()
const emulator = await startEmulator({
  pki,
  assigning: { polls: 1, retryAfterSeconds: 0 },
  enrollments: [{ registrationId: 'sensor-1', attestation: { symmetricKey: { primaryKey: deviceKey } } }],
})
afterAll(() => emulator.close())
emulator.enrollments.addGroup({
  groupId: 'presses',
  attestation: { x509: { ca: pki.deviceRoot.certPem } },
})
const device = await emulator.issueDeviceCertificate({ registrationId: 'press-1' })

/** A stream that is no socket, as an SSH library or a serial driver makes it, over a real connection. */
class Way extends Duplex {
  readonly inner: net.Socket

  constructor(host: string, port: number) {
    super()
    this.inner = net.connect({ host, port })
    this.inner.on('data', (chunk) => this.push(chunk))
    this.inner.on('end', () => this.push(null))
    this.inner.on('error', (error) => this.destroy(error))
    this.inner.on('close', () => this.destroy())
  }

  override _read(): void {}

  override _write(chunk: Buffer, _: BufferEncoding, done: (error?: Error | null) => void): void {
    this.inner.write(chunk, done)
  }

  override _final(done: () => void): void {
    this.inner.end(done)
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.inner.destroy()
    done(error)
  }
}

function clientWith(connect: unknown, options: Partial<ProvisioningClientOptions> = {}) {
  const clock = testClock({ startMs: Date.now() })
  const events: DpsEvent[] = []
  const controller = new AbortController()
  const client = new ProvisioningClient({
    ...emulator.clientOptions(),
    credential: symmetricKey({ registrationId: 'sensor-1', key: deviceKey }),
    clock,
    onEvent: (event) => events.push(event),
    retry: { maxAttempts: 1 },
    connect: connect as ConnectFunction,
    ...options,
  })
  return {
    clock,
    events,
    controller,
    register: () => client.register({ signal: controller.signal }),
    leavesNothing: async (...streams: readonly Duplex[]) => {
      for (const stream of streams) if (!stream.closed) await once(stream, 'close')
      expect(clock.pending).toBe(0)
      expect(getEventListeners(controller.signal, 'abort')).toEqual([])
    },
  }
}

/** A `connect` that makes ways and keeps them. */
function ways<T extends Duplex>(make: (host: string, port: number) => T) {
  const made: T[] = []
  const connect: ConnectFunction = ({ host, port }) => {
    const way = make(host, port)
    made.push(way)
    return way
  }
  return { made, connect }
}

const plain = () => ways((host, port) => new Way(host, port))

describe('a way opened by `connect`', () => {
  it('carries the whole exchange, and is closed afterwards', async () => {
    const { made, connect } = plain()
    const { events, register, leavesNothing } = clientWith(connect)
    const { connection, assignedHub } = await register()
    expect(assignedHub).toBe('emulated-hub.azure-devices.net')
    expect(connection).toMatchObject({ protocol: 'TLSv1.2', resumed: false })
    const phases = events.flatMap((event) => (event.type === 'phase-started' ? [event.phase] : []))
    expect(phases.slice(2, 5)).toEqual(['tcp', 'tls', 'connect'])
    expect(made).toHaveLength(1)
    await leavesNothing(...made)
    expect(made[0]?.inner.destroyed).toBe(true)
  })

  it.each(['mqtt-ws', 'https'] as const)('carries %s as well', async (transport) => {
    const { made, connect } = plain()
    const { register, leavesNothing } = clientWith(connect, { transport })
    expect((await register()).connection.transport).toBe(transport)
    await leavesNothing(...made)
  })

  it('is asked for `connectTo`, or else for `host`', async () => {
    const asked: string[] = []
    const connect: ConnectFunction = async ({ host, port, signal }) => {
      expect(signal.aborted).toBe(false)
      asked.push(`${host}:${port}`)
      return new Way('127.0.0.1', port)
    }
    await clientWith(connect).register()
    await clientWith(connect, { connectTo: 'localhost' }).register()
    const { connectTo: _, ...options } = emulator.clientOptions()
    const credential = symmetricKey({ registrationId: 'sensor-1', key: deviceKey })
    const clock = testClock({ startMs: Date.now() })
    await new ProvisioningClient({ ...options, credential, connect, clock }).register()
    const { port } = emulator
    expect(asked).toEqual([
      `127.0.0.1:${port}`,
      `localhost:${port}`,
      `global.azure-devices-provisioning.net:${port}`,
    ])
  })

  it('presents the device certificate, and resumes the session next time', async () => {
    const { made, connect } = plain()
    const { register, leavesNothing } = clientWith(connect, { credential: x509(device) })
    const first = await register()
    expect(first).toMatchObject({ registrationId: 'press-1', connection: { resumed: false } })
    const second = await register()
    expect(second).toMatchObject({ registrationId: 'press-1', connection: { resumed: true } })
    expect(second.connection.root).toBe(first.connection.root)
    await leavesNothing(...made)
  })

  it('shares no session with a connection of the client’s own', async () => {
    const credential = x509(device)
    const tls = { curves: ['P-256', 'X25519'] }
    await clientWith(undefined, { credential, tls }).register()
    expect((await clientWith(plain().connect, { credential, tls }).register()).connection.resumed).toBe(false)
  })

  it('may be a socket, connected or not', async () => {
    const connecting = ways((host, port) => net.connect({ host, port }))
    const one = clientWith(connecting.connect)
    await one.register()
    await one.leavesNothing(...connecting.made)
    const two = clientWith(async ({ host, port }: { host: string; port: number }) => {
      const socket = net.connect({ host, port })
      await once(socket, 'connect')
      return socket
    })
    await two.register()
    await two.leavesNothing()
  })

  it('may be the pipes of a process', async () => {
    const relay = `const s = require('node:net').connect(+process.argv[1], '127.0.0.1'); process.stdin.pipe(s).pipe(process.stdout)`
    const { made, connect } = ways((_, port) => {
      const child = spawn(process.execPath, ['-e', relay, String(port)], {
        stdio: ['pipe', 'pipe', 'inherit'],
      })
      exited = once(child, 'exit')
      return Duplex.from({ readable: child.stdout, writable: child.stdin })
    })
    let exited: Promise<unknown> | undefined
    const { register, leavesNothing } = clientWith(connect)
    await register()
    await leavesNothing(...made)
    await exited
  })

  it('is not blamed for what TLS refused, even where it fails when it is destroyed', async () => {
    const { made, connect } = ways((host, port) => {
      const way = new Way(host, port)
      way._destroy = (_, done) => {
        way.inner.destroy()
        done(new Error('premature close'))
      }
      return way
    })
    const { register, leavesNothing } = clientWith(connect, { trust: {} })
    await expectDpsError(register(), 'SERVER_UNTRUSTED', 'tls')
    await leavesNothing(...made)
  })

  it('is verified as any other', async () => {
    const { made, connect } = plain()
    const { register, leavesNothing } = clientWith(connect, { host: 'elsewhere.test' })
    await expectDpsError(register(), 'SERVER_NAME_MISMATCH', 'tls')
    await leavesNothing(...made)
  })
})

describe('a `connect` that', () => {
  it.each([
    ['throws', () => fail(new Error('no modem')), false],
    ['rejects', async () => fail(new Error('no modem')), false],
    ['rejects with nothing', () => Promise.reject(undefined), false],
    [
      'rejects with what the network did',
      async () => fail(Object.assign(new Error(), { code: 'ECONNREFUSED' })),
      true,
    ],
  ])('%s', async (_, connect, retryable) => {
    const { register, leavesNothing } = clientWith(connect)
    const error = await expectDpsError(register(), 'TRANSPORT_FAILED', 'tcp')
    expect(error.retryable).toBe(retryable)
    expect(error.message).toContain('`connect` failed')
    expect(error).toHaveProperty('cause')
    await leavesNothing()
  })

  it('met the network is called again', async () => {
    let calls = 0
    const connect: ConnectFunction = async ({ host, port }) =>
      ++calls === 1 ? fail(Object.assign(new Error(), { code: 'ETIMEDOUT' })) : new Way(host, port)
    await clientWith(connect, { retry: { maxAttempts: 2 } }).register()
    expect(calls).toBe(2)
  })

  it('throws a DpsError decides by itself', async () => {
    const own = new DpsError('NETWORK_UNREACHABLE', 'tcp', 'the modem has no signal')
    const { register, leavesNothing } = clientWith(() => fail(own))
    expect(await register().then(unexpected, (error) => error)).toBe(own)
    await leavesNothing()
  })

  it.each([
    ['nothing', () => undefined],
    ['null', () => null],
    ['a string', () => 'socket'],
    ['an emitter that is no stream', () => process],
    ['a stream in one direction', () => new Readable()],
    ['a stream of objects', () => new PassThrough({ readableObjectMode: true })],
    ['a stream of text', () => new PassThrough({ encoding: 'utf8' })],
  ])('returns %s', async (_, connect) => {
    const { register, leavesNothing } = clientWith(connect)
    await expectDpsError(register(), 'TRANSPORT_FAILED', 'tcp')
    await leavesNothing()
  })

  it.each([
    ['destroyed', (way: Way) => way.destroy()],
    ['ended', (way: Way) => way.end()],
  ])('returns a stream that is %s already', async (_, spoil) => {
    const { made, connect } = ways((host, port) => {
      const way = new Way(host, port)
      spoil(way)
      return way
    })
    const { register, leavesNothing } = clientWith(connect)
    await expectDpsError(register(), 'CONNECTION_LOST', 'tcp')
    await leavesNothing(...made)
  })

  it('returns a socket that is refused', async () => {
    const server = net.createServer()
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as net.AddressInfo
    server.close()
    const { made, connect } = ways(() => net.connect({ host: '127.0.0.1', port }))
    const { register, leavesNothing } = clientWith(connect)
    const error = await expectDpsError(register(), 'CONNECTION_REFUSED', 'tcp')
    expect(error.message).toContain('over `connect`')
    await leavesNothing(...made)
  })

  const during = (spoil: (way: Way) => void) =>
    ways((host, port) => {
      const way = new Way(host, port)
      // The first bytes of the server's answer.
      way.inner.once('data', () => spoil(way))
      return way
    })

  it.each([
    ['closes', (way: Way) => void way.destroy()],
    ['ends', (way: Way) => void way.push(null)],
    ['fails', (way: Way) => void way.destroy(new Error('the line is cut'))],
    [
      'fails with a code',
      (way: Way) => void way.destroy(Object.assign(new Error('the line is cut'), { code: 'ECONNRESET' })),
    ],
  ])('returns a stream that %s during the handshake', async (_, spoil) => {
    const { made, connect } = during(spoil)
    const { register, leavesNothing } = clientWith(connect, { tls: { sessionResumption: false } })
    const error = await expectDpsError(register(), 'CONNECTION_LOST', 'tls')
    expect(error.message).toContain('`connect`')
    await leavesNothing(...made)
  })

  it.each([
    ['closes', (way: Way) => void way.destroy()],
    ['fails', (way: Way) => void way.destroy(new Error('the line is cut'))],
  ])('returns a stream that %s during the registration', async (_, spoil) => {
    const { made, connect } = plain()
    const { register, leavesNothing } = clientWith(connect, {
      onEvent: (event) => {
        if (event.type === 'phase-started' && event.phase === 'register') spoil(made[0]!)
      },
    })
    await expectDpsError(register(), 'CONNECTION_LOST', 'register')
    await leavesNothing(...made)
  })

  it('is silent is given up in phase tcp', async () => {
    const { clock, register, leavesNothing } = clientWith(({ signal }: { signal: AbortSignal }) => {
      signals.push(signal)
      setImmediate(() => clock.advance(15_000))
      return new Promise(() => {})
    })
    const signals: AbortSignal[] = []
    const error = await expectDpsError(register(), 'TIMEOUT', 'tcp')
    expect(error.message).toContain('over `connect`')
    expect(signals[0]?.aborted).toBe(true)
    await leavesNothing()
  })

  it('returns a stream after the caller has cancelled: it is destroyed', async () => {
    const late = deferred<Way>()
    const { controller, register, leavesNothing } = clientWith(() => {
      setImmediate(() => controller.abort())
      return late.promise
    })
    const error: DpsError = await register().then(unexpected, (thrown) => thrown)
    expect(error.code).toBe('CANCELLED')
    const way = new Way('127.0.0.1', emulator.port)
    late.resolve(way)
    await leavesNothing(way)
  })

  it('rejects after the caller has cancelled: nobody hears of it', async () => {
    let failNow: ((error: Error) => void) | undefined
    const { controller, register, leavesNothing } = clientWith(() => {
      setImmediate(() => controller.abort())
      return new Promise((_, reject) => {
        failNow = reject
      })
    })
    const error: DpsError = await register().then(unexpected, (thrown) => thrown)
    expect(error.code).toBe('CANCELLED')
    const unhandled: unknown[] = []
    const listener = (reason: unknown) => unhandled.push(reason)
    process.on('unhandledRejection', listener)
    onTestFinished(() => void process.off('unhandledRejection', listener))
    failNow?.(new Error('late'))
    await new Promise(setImmediate)
    expect(unhandled).toEqual([])
    await leavesNothing()
  })
})

describe('the option `connect`', () => {
  it.each([
    ['is no function', { connect: 'ssh' }],
    ['comes with a proxy', { connect: () => new PassThrough(), proxy: 'http://proxy.test' }],
  ])('is refused when it %s', async (_, options) => {
    await expectDpsError(() => clientWith(undefined, options as never), 'OPTION_INVALID', 'config')
  })
})

function unexpected(): never {
  expect.fail('the call succeeded')
}

function fail(error: Error): never {
  throw error
}
