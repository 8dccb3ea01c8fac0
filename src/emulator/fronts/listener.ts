import { createHash, X509Certificate } from 'node:crypto'
import { createServer, type Server, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import {
  createServer as createTlsServer,
  type SecureVersion,
  type TLSSocket,
  type Server as TlsServer,
} from 'node:tls'
import type { Clock } from '../../clock.ts'
import { readClientHello } from '../client-hello.ts'
import type { FaultActions, FaultScript, FaultStep, RawContext } from '../faults.ts'
import type { Journal, LiveRecord } from '../journal.ts'
import type { PresentedCertificate } from '../service.ts'
import { performAll, strike } from './exchange.ts'

/** TLS as the emulated service speaks it. The defaults are the service's; the rest is for negative tests. */
export interface EmulatorTlsOptions {
  /** Default `'TLSv1.2'`. */
  minVersion?: SecureVersion
  /** Default `'TLSv1.2'`. */
  maxVersion?: SecureVersion
  /** OpenSSL names, separated by colons. Default: the four recommended ECDHE suites. */
  ciphers?: string
  /** Whether the emulator's order of suites decides. Default false, so that the client's preference shows. */
  honorCipherOrder?: boolean
  /** Groups, separated by colons. Default `'X25519:P-256:P-384'`. */
  ecdhCurve?: string
  /** Signature algorithms, OpenSSL notation. Default: OpenSSL's. */
  sigalgs?: string
  /** OR-ed `SSL_OP_*` constants of `node:crypto`. Default 0. */
  secureOptions?: number
  /** Lifetime of a session ticket in seconds. Default 300. */
  sessionTimeout?: number
  /** Whether a client certificate is asked for. Default true. */
  requestCert?: boolean
}

export interface ServerCertificate {
  /** PEM chain, leaf first. */
  cert: string
  /** PEM. */
  key: string
}

/** A connection as a front sees it: TLS is established, who the peer is has been read, nothing is decided yet. */
export interface FrontConnection {
  readonly record: LiveRecord
  /** What the protocol's bytes come and go by; whoever made it keeps its 'error' listener. */
  readonly stream: Duplex
  readonly certificate: PresentedCertificate | undefined
  /** Performs an action that needs nothing of the protocol; true if it was one. */
  perform(action: FaultActions[FaultStep], context: RawContext): boolean
  /** Ends the connection once what was written is on its way, whether or not the peer does its part. */
  hangUp(): void
  /** True once nothing may be answered any more. */
  readonly mute: boolean
}

/** Serves one connection; `first` is what the client has sent already, if anything. */
export type Front = (connection: FrontConnection, first: Buffer) => void

export interface ListenerSettings {
  readonly address: string
  readonly ports: readonly number[]
  readonly certificate: ServerCertificate
  readonly tls: EmulatorTlsOptions
  readonly clock: Clock
  readonly faults: FaultScript
  readonly journal: Journal
  /** Certificates for further server names, by name; what is presented to all others is `certificate`. */
  readonly certificates: ReadonlyMap<string, ServerCertificate>
  /** The front for a server name and a protocol's first byte, or undefined where it is no protocol that is spoken. */
  readonly frontFor: (serverName: string | undefined, firstByte: number) => Front | undefined
}

/** TLS 1.2 suites the service recommends (Azure IoT Hub DPS, "TLS support"). */
const SERVICE_SUITES = [
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES256-SHA384',
  'ECDHE-RSA-AES128-SHA256',
].join(':')

const HANDSHAKE_RECORD = 22
const CLIENT_HELLO = 1
const LARGEST_CLIENT_HELLO = 65_536
const REMEMBERED_CHAINS = 100_000
const LONGEST_CHAIN = 10

/**
 * Length of the TLS records that hold the whole ClientHello, `undefined` while bytes are missing, or 0 where these
 * bytes do not begin a handshake (RFC 5246, sections 6.2.1 and 7.4).
 */
export function clientHelloLength(bytes: Buffer): number | undefined {
  let offset = 0
  let wanted: number | undefined
  let collected = 0
  const head: number[] = []
  while (wanted === undefined || collected < wanted) {
    if (bytes.length > offset && bytes[offset] !== HANDSHAKE_RECORD) return 0
    if (bytes.length < offset + 5) return undefined
    const end = offset + 5 + bytes.readUInt16BE(offset + 3)
    if (end === offset + 5 || end > LARGEST_CLIENT_HELLO) return 0
    if (bytes.length < end) return undefined
    for (let at = offset + 5; at < end && head.length < 4; at += 1) head.push(bytes[at]!)
    collected += end - offset - 5
    offset = end
    if (wanted === undefined && head.length === 4) {
      if (head[0] !== CLIENT_HELLO) return 0
      wanted = 4 + head[1]! * 65_536 + head[2]! * 256 + head[3]!
      if (wanted > LARGEST_CLIENT_HELLO) return 0
    }
  }
  return offset
}

class Connection implements FrontConnection {
  readonly record: LiveRecord
  readonly raw: Socket
  #tls: TLSSocket | undefined
  mute = false
  certificate: PresentedCertificate | undefined

  constructor(raw: Socket, record: LiveRecord) {
    this.raw = raw
    this.record = record
  }

  get stream(): TLSSocket {
    if (this.#tls === undefined) throw new TypeError('TLS is not established')
    return this.#tls
  }

  set stream(socket: TLSSocket) {
    this.#tls = socket
  }

  hangUp(): void {
    this.stream.destroySoon()
  }

  perform(action: FaultActions[FaultStep], context: RawContext): boolean {
    const stream = this.#tls ?? this.raw
    if (action === 'silence') {
      this.mute = true
      stream.resume()
    } else if (action === 'drop') {
      this.mute = true
      stream.resume()
      stream.end()
    } else if (action === 'no-close-notify') {
      this.mute = true
      stream.resume()
      this.raw.end()
    } else if (action === 'reset') {
      this.mute = true
      // The TLS layer has no handle of its own to reset.
      this.raw.resetAndDestroy()
    } else if (typeof action === 'object' && 'raw' in action) {
      stream.write(typeof action.raw === 'function' ? action.raw(context) : action.raw)
    } else {
      return false
    }
    return true
  }
}

/** Every port of an emulator: accepts, keeps the ClientHello, completes TLS and hands the connection to a front. */
export class Listener {
  readonly #settings: ListenerSettings
  readonly #tls: TlsServer
  readonly #servers: Server[] = []
  readonly #open = new Set<Connection>()
  /** By address and ports: the TLS server hands back no reference to the socket it was given. */
  readonly #byPeer = new Map<string, Connection>()
  readonly #waiting: (() => void)[] = []
  /**
   * Intermediates by leaf, from full handshakes: a session ticket carries the client's leaf alone (RFC 5077 leaves the
   * content to the server; OpenSSL stores the peer certificate without its chain).
   */
  readonly #chains = new Map<string, readonly X509Certificate[]>()
  readonly #certificates = new Map<string, X509Certificate>()
  #connections = 0

  constructor(settings: ListenerSettings) {
    this.#settings = settings
    const { tls, certificate } = settings
    const policy = {
      // Who the device is, is decided by the enrollments; without this, Node would load a trust store for nothing.
      ca: [],
      minVersion: tls.minVersion ?? 'TLSv1.2',
      maxVersion: tls.maxVersion ?? 'TLSv1.2',
      ciphers: tls.ciphers ?? SERVICE_SUITES,
      honorCipherOrder: tls.honorCipherOrder ?? false,
      ecdhCurve: tls.ecdhCurve ?? 'X25519:P-256:P-384',
      // OpenSSL resumes a session with a client certificate only within a named context.
      sessionIdContext: createHash('sha256').update(certificate.cert).digest('hex').slice(0, 32),
      ...(tls.sigalgs === undefined ? {} : { sigalgs: tls.sigalgs }),
      ...(tls.secureOptions === undefined ? {} : { secureOptions: tls.secureOptions }),
      ...(tls.sessionTimeout === undefined ? {} : { sessionTimeout: tls.sessionTimeout }),
    }
    this.#tls = createTlsServer({
      ...policy,
      cert: certificate.cert,
      key: certificate.key,
      requestCert: tls.requestCert ?? true,
      rejectUnauthorized: false,
    })
    for (const [name, { cert, key }] of settings.certificates) {
      this.#tls.addContext(name, { ...policy, cert, key })
    }
    this.#tls.on('secureConnection', (socket) => this.#secured(socket))
    this.#tls.on('tlsClientError', (error: NodeJS.ErrnoException, socket) => {
      const connection = this.#byPeer.get(keyOf(socket))
      if (connection !== undefined) this.#handshakeFailed(connection, error.code ?? 'UNKNOWN')
    })
  }

  /** Connections that are open now. */
  get open(): number {
    return this.#open.size
  }

  async listen(): Promise<readonly number[]> {
    const ports: number[] = []
    try {
      for (const port of this.#settings.ports) {
        // One write per packet reaches the device as one segment, as from the service's front ends.
        const server = createServer({ noDelay: true }, (raw) => this.#accept(raw))
        await new Promise<void>((resolve, reject) => {
          server.once('error', reject)
          server.listen(port, this.#settings.address, () => {
            server.removeListener('error', reject)
            // A failing accept (no descriptors left, say) concerns that connection only.
            server.on('error', (error) => process.emitWarning(error))
            resolve()
          })
        })
        this.#servers.push(server)
        ports.push((server.address() as { port: number }).port)
      }
    } catch (error) {
      await this.close()
      throw error
    }
    return ports
  }

  unref(): void {
    for (const server of this.#servers) server.unref()
  }

  async close(): Promise<void> {
    const closed = this.#servers.map((server) => new Promise((resolve) => server.close(resolve)))
    for (const { raw } of this.#open) raw.destroy()
    const gone = new Promise<void>((resolve) => {
      if (this.#open.size === 0) resolve()
      else this.#waiting.push(resolve)
    })
    await Promise.all([...closed, gone])
  }

  #accept(raw: Socket): void {
    const { clock, journal } = this.#settings
    this.#connections += 1
    const connection = new Connection(raw, {
      id: this.#connections,
      port: raw.localPort ?? 0,
      remotePort: raw.remotePort ?? 0,
      openedAt: clock.now(),
      clientHello: Buffer.alloc(0),
      handshake: undefined,
      handshakeError: undefined,
      transport: undefined,
      registrationId: undefined,
      closedAt: undefined,
    })
    const key = keyOf(raw)
    this.#open.add(connection)
    this.#byPeer.set(key, connection)
    // A peer may vanish at any time; 'close' follows and does the rest.
    raw.on('error', () => undefined)
    raw.once('close', () => {
      this.#open.delete(connection)
      // The peer may have reused its port before this one was noticed to be gone.
      if (this.#byPeer.get(key) === connection) this.#byPeer.delete(key)
      connection.record.closedAt = clock.now()
      journal.emit({ type: 'connection-closed', connectionId: connection.record.id })
      if (this.#open.size === 0) for (const resolve of this.#waiting.splice(0)) resolve()
    })
    journal.opened(connection.record)
    if (!this.#strike('accept', connection)) this.#readClientHello(connection)
  }

  #readClientHello(connection: Connection): void {
    const { raw } = connection
    let bytes: Buffer = Buffer.alloc(0)
    const read = (chunk: Buffer): void => {
      bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk])
      const length = clientHelloLength(bytes)
      if (length === undefined) return
      raw.removeListener('data', read)
      raw.pause()
      if (length > 0) {
        connection.record.clientHello = Buffer.from(bytes.subarray(0, length))
        this.#settings.journal.emit({
          type: 'client-hello',
          connectionId: connection.record.id,
          bytes: connection.record.clientHello,
          offered: readClientHello(connection.record.clientHello),
        })
      }
      if (this.#strike('client-hello', connection)) return
      raw.unshift(bytes)
      this.#tls.emit('connection', raw)
    }
    raw.on('data', read)
  }

  #handshakeFailed(connection: Connection, code: string): void {
    connection.record.handshakeError = code
    this.#settings.journal.emit({ type: 'handshake-failed', connectionId: connection.record.id, code })
  }

  #secured(socket: TLSSocket): void {
    socket.on('error', () => undefined)
    const connection = this.#byPeer.get(keyOf(socket))
    if (connection === undefined) {
      socket.destroy()
      return
    }
    connection.stream = socket
    connection.certificate = this.#presented(socket)
    const handshake = {
      protocol: socket.getProtocol() ?? 'unknown',
      cipher: socket.getCipher().name,
      serverName: readClientHello(connection.record.clientHello).serverName,
      resumed: socket.isSessionReused(),
      clientCertificate: connection.certificate && {
        subject: connection.certificate.leaf.subject,
        fingerprint256: connection.certificate.leaf.fingerprint256,
        intermediates: connection.certificate.intermediates.length,
      },
    }
    connection.record.handshake = handshake
    this.#settings.journal.emit({
      type: 'handshake-done',
      connectionId: connection.record.id,
      ...handshake,
    })
    if (this.#strike('handshake', connection)) return
    socket.once('data', (first: Buffer) => {
      const front = this.#settings.frontFor(handshake.serverName, first[0] ?? 0)
      if (front === undefined) {
        this.#settings.journal.emit({
          type: 'violation',
          connectionId: connection.record.id,
          rule: 'The first byte must begin an MQTT CONNECT packet or an HTTP request.',
        })
        socket.destroy()
        return
      }
      front(connection, first)
    })
  }

  #presented(socket: TLSSocket): PresentedCertificate | undefined {
    // Read once: on Node 20 to 24 a second reading finds the chain gone.
    const leaf = socket.getPeerX509Certificate()
    if (leaf === undefined) return undefined
    const fingerprint = leaf.fingerprint256
    let intermediates: readonly X509Certificate[]
    if (socket.isSessionReused()) {
      intermediates = this.#chains.get(fingerprint) ?? []
    } else {
      const chain: X509Certificate[] = []
      for (
        let next = leaf.issuerCertificate;
        next !== undefined && chain.length < LONGEST_CHAIN;
        next = next.issuerCertificate
      ) {
        chain.push(this.#intern(next))
      }
      intermediates = chain
    }
    this.#chains.delete(fingerprint)
    this.#chains.set(fingerprint, intermediates)
    forgetOldest(this.#chains)
    return { leaf, intermediates }
  }

  /** One object per certificate: a fleet shares its intermediates. */
  #intern(certificate: X509Certificate): X509Certificate {
    const fingerprint = certificate.fingerprint256
    let kept = this.#certificates.get(fingerprint)
    if (kept === undefined) {
      // Parsed anew, so that it does not keep the chain of the connection it came from alive.
      kept = new X509Certificate(certificate.raw)
      this.#certificates.set(fingerprint, kept)
      forgetOldest(this.#certificates)
    }
    return kept
  }

  /** True if the connection goes no further. */
  #strike(at: 'accept' | 'client-hello' | 'handshake', connection: Connection): boolean {
    const context = { rid: '', registrationId: '' }
    const actions = strike(this.#settings, connection.record, at, undefined)
    if (actions.length === 0) return false
    performAll(connection, actions, context)
    if (!connection.mute) connection.perform('silence', context)
    return true
  }
}

const keyOf = (socket: Socket): string => `${socket.remoteAddress}/${socket.remotePort}/${socket.localPort}`

function forgetOldest(map: Map<string, unknown>): void {
  if (map.size <= REMEMBERED_CHAINS) return
  const oldest = map.keys().next()
  if (oldest.done !== true) map.delete(oldest.value)
}
