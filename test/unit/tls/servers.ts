import { once } from 'node:events'
import net from 'node:net'
import tls from 'node:tls'
import { onTestFinished } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import type { Identity } from '../../../src/credential/credential.ts'
import type { DpsPhase } from '../../../src/errors.ts'
import type { TlsOptions } from '../../../src/options/options.ts'
import { type DialScope, type DialTarget, dial } from '../../../src/tls/dial.ts'
import { resolvePolicy, type TlsPolicy } from '../../../src/tls/policy.ts'
import type { DialedSocket } from '../../../src/transport/transport.ts'
import { type ClientHello, parseClientHello, recordLength } from '../../support/client-hello.ts'

/** Listens on a free loopback port until the test has finished. */
async function listen(server: net.Server, host = '127.0.0.1'): Promise<number> {
  const sockets = new Set<net.Socket>()
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => sockets.delete(socket))
  })
  server.listen(0, host)
  await once(server, 'listening')
  onTestFinished(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    if (server.listening) await once(server, 'close')
  })
  return (server.address() as net.AddressInfo).port
}

/** Port of a raw TCP server. */
export const rawServer = (handle: (socket: net.Socket) => void): Promise<number> =>
  listen(net.createServer(handle))

/** Port of a TLS server. */
export function tlsServer(
  options: tls.TlsOptions,
  handle: (socket: tls.TLSSocket) => void = () => {},
): Promise<number> {
  const server = tls.createServer(options, (socket) => {
    socket.on('error', () => {})
    socket.resume()
    handle(socket)
  })
  server.on('tlsClientError', () => {})
  return listen(server)
}

/** A TLS server whose certificate can be replaced while it runs. */
export async function switchableServer(
  options: tls.SecureContextOptions,
): Promise<{ port: number; connections(): number; present(next: tls.SecureContextOptions): void }> {
  const server = tls.createServer(options, (socket) => {
    socket.on('error', () => {})
    socket.resume()
  })
  server.on('tlsClientError', () => {})
  let connections = 0
  server.on('connection', () => connections++)
  return {
    port: await listen(server),
    connections: () => connections,
    present: (next) => server.setSecureContext(next),
  }
}

/** Passes connections on to `port`, keeping the ClientHello of each; on request it resets the next one after that. */
export async function recordingProxy(
  port: number,
): Promise<{ port: number; hellos: ClientHello[]; resetNext(): void }> {
  const hellos: ClientHello[] = []
  let reset = false
  const own = await rawServer((socket) => {
    const upstream = net.connect({ port, host: '127.0.0.1' })
    upstream.on('error', () => socket.destroy())
    socket.on('close', () => upstream.destroy())
    upstream.on('close', () => socket.destroy())
    void firstRecord(socket).then((bytes) => {
      hellos.push(parseClientHello(bytes))
      if (reset) {
        reset = false
        socket.resetAndDestroy()
        return
      }
      upstream.write(bytes)
      socket.pipe(upstream)
    })
    upstream.pipe(socket)
  })
  return {
    port: own,
    hellos,
    resetNext: () => {
      reset = true
    },
  }
}

/** A promise and what settles it. */
export function deferred<T>(): { readonly promise: Promise<T>; readonly resolve: (value: T) => void } {
  let resolve!: (value: T) => void
  const promise = new Promise<T>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}

/** The first TLS record, which the server of a client that waits receives alone. */
export async function firstRecord(socket: net.Socket): Promise<Buffer> {
  let bytes = Buffer.alloc(0)
  while (bytes.length < (recordLength(bytes) ?? Number.POSITIVE_INFINITY)) {
    const [chunk] = (await once(socket, 'data')) as [Buffer]
    bytes = Buffer.concat([bytes, chunk])
  }
  socket.pause()
  return bytes
}

/** The ClientHello that a dial to `target` sends; the handshake goes no further. */
export async function captureClientHello(
  policy: TlsPolicy,
  identity: Identity,
  host = 'dps.test',
): Promise<ClientHello> {
  const captured = deferred<ClientHello>()
  const port = await rawServer((socket) => {
    void firstRecord(socket).then((bytes) => {
      captured.resolve(parseClientHello(bytes))
      socket.destroy()
    })
  })
  const dialed = dial({ host, port, address: '127.0.0.1' }, policy, identity, scope())
  await dialed.catch(() => {})
  return captured.promise
}

/** A credential that signs tokens: no certificate. */
export const sasIdentity = (fingerprint = 'a'): Identity => ({
  registrationId: 'device',
  fingerprint,
  checkDates: () => {},
  token: async () => 'token',
})

/** A credential with a certificate. */
export const certificateIdentity = (
  tlsIdentity: NonNullable<Identity['tls']>,
  fingerprint = 'x',
): Identity => ({
  registrationId: 'device',
  fingerprint,
  tls: tlsIdentity,
  checkDates: () => {},
  token: async () => undefined,
})

export interface TestScope extends DialScope {
  readonly phases: DpsPhase[]
}

export function scope(signal: AbortSignal = new AbortController().signal): TestScope {
  const phases: DpsPhase[] = []
  return { signal, phases, clock: systemClock, enter: (phase) => phases.push(phase) }
}

/** A policy that trusts these roots and no other. */
export const trusting = (roots: readonly string[], options: TlsOptions = {}): TlsPolicy =>
  resolvePolicy(options, { roots: 'none', extraRoots: roots })

/** Dials, and closes the connection when the test has finished. */
export async function dialed(
  target: DialTarget,
  policy: TlsPolicy,
  identity: Identity = sasIdentity(),
  dialScope: DialScope = scope(),
): Promise<DialedSocket> {
  const result = await dial(target, policy, identity, dialScope)
  onTestFinished(() => {
    result.socket.destroy()
  })
  return result
}

/** Resolves when the server has taken the connection, its new session has arrived, and both have closed. */
export async function finish({ socket }: DialedSocket): Promise<void> {
  const closed = once(socket, 'close')
  socket.resume()
  socket.end()
  await closed
}
