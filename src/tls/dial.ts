import net from 'node:net'
import type { Duplex } from 'node:stream'
import tls from 'node:tls'
import type { Clock } from '../clock.ts'
import type { Identity } from '../credential/credential.ts'
import { DpsError, type DpsErrorCode, type DpsPhase } from '../errors.ts'
import { LruMap } from '../lru.ts'
import type { ConnectFunction } from '../options/options.ts'
import { authority, ConnectReplyReader, connectRequest } from '../protocol/http-connect.ts'
import type { DialedSocket, TlsFacts } from '../transport/transport.ts'
import { destroyWay, openWay } from './connect-function.ts'
import { identityKey, keptContextFor, type OwnContexts, secureContextFor } from './context.ts'
import { explainFailure, explainProxyRefusal, isSystemCode } from './explain.ts'
import { type ServerIdentity, serverIdentity } from './identity.ts'
import { offerSession } from './offer-session.ts'
import { narrowedTo, type TlsPolicy } from './policy.ts'
import type { HttpProxy } from './proxy.ts'
import { type SessionKey, type StoredSession, sessionCache } from './sessions.ts'

export interface DialTarget {
  /** Sent as SNI and verified in the certificate. An IP address is verified as one, and not sent (RFC 6066 §3). */
  readonly host: string
  readonly port: number
  /** Dialled in place of `host`. */
  readonly address?: string | undefined
  /** Asked for a tunnel to what is dialled, unless that is one of its exceptions. */
  readonly proxy?: HttpProxy | undefined
  /** Opens the way in place of a TCP connection. */
  readonly connect?: ConnectFunction | undefined
}

export interface DialScope {
  /** Ends the attempt; its reason is what the promise rejects with. */
  readonly signal: AbortSignal
  /** Called as `dns`, `tcp` and `tls` begin, or `proxy` and `tls`; `where` names who is waited for. */
  enter(phase: DpsPhase, where?: string): void
  readonly clock: Clock
  /** Keeps what has to be built for the device. Default: the process does. */
  readonly contexts?: OwnContexts | undefined
}

/**
 * Node gives up an address after this time and goes on to the next, for good. Its own 250 ms is less than one round trip
 * of a cellular or satellite link; this is the first SYN, its retransmission after 1 s (RFC 6298 §2) and an answer.
 */
const ADDRESS_ATTEMPT_MS = 2500

const CURVE_NAMES: ReadonlyMap<string, string> = new Map([
  ['prime256v1', 'P-256'],
  ['secp384r1', 'P-384'],
  ['secp521r1', 'P-521'],
])

/** What a chain may fail with that leads elsewhere: with one root to go for, OpenSSL may take a path that is out of date. */
const OF_THE_CHAIN: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>([
  'SERVER_UNTRUSTED',
  'SERVER_CERTIFICATE_EXPIRED',
  'SERVER_CERTIFICATE_NOT_YET_VALID',
  'SERVER_CERTIFICATE_INVALID',
])

/** Which root a server's chain ended in last: SHA-256, by who is dialled under which policy. */
const lastRoots = new LruMap<string>(64)

/**
 * Opens a TLS connection that is verified: chain, dates, host name and policy. The only way the client opens a socket.
 *
 * A server whose chain ended in one root most likely ends in it again, so from then on that root alone is trusted: then
 * which root it was is certain by construction, and cheap. Only where the chain ends elsewhere is it asked once more
 * under the whole policy. Nothing is trusted that the policy does not trust.
 *
 * On abort, and on any failure, both sockets are destroyed before the promise rejects.
 *
 * @throws DpsError of phase `dns`, `proxy`, `tcp` or `tls` (or `config`, when OpenSSL cannot use the credential), or the
 *   reason of `scope.signal`
 */
export function dial(
  target: DialTarget,
  policy: TlsPolicy,
  identity: Identity,
  scope: DialScope,
): Promise<DialedSocket> {
  const attempt = (trusted: TlsPolicy): Promise<DialedSocket> =>
    scope.signal.aborted
      ? Promise.reject(scope.signal.reason)
      : new Promise((resolve, reject) => {
          new Attempt(target, policy, trusted, identity, scope, resolve, reject).start()
        })
  // Node adds the CA certificates of a PKCS#12 file to what is trusted: there one root is never alone.
  if (policy.anchors.length === 1 || identity.tls?.pfx !== undefined) return attempt(policy)
  return expectLastRoot(target, policy, attempt)
}

async function expectLastRoot(
  { host, port, address, proxy, connect }: DialTarget,
  policy: TlsPolicy,
  attempt: (trusted: TlsPolicy) => Promise<DialedSocket>,
): Promise<DialedSocket> {
  const server = JSON.stringify([host, port, address, proxy?.name, connect !== undefined, policy.id])
  const last = lastRoots.get(server)
  const expected = policy.anchors.find(({ sha256 }) => sha256 === last)
  if (expected !== undefined) {
    try {
      return await attempt(narrowedTo(expected, policy))
    } catch (error) {
      if (!DpsError.is(error) || !OF_THE_CHAIN.has(error.code)) throw error
      lastRoots.delete(server)
    }
  }
  const dialed = await attempt(policy)
  const [root, ...namesakes] = policy.anchors.filter(({ name }) => name === dialed.tls.root)
  if (root !== undefined && namesakes.length === 0 && !dialed.tls.resumed) lastRoots.set(server, root.sha256)
  return dialed
}

class Attempt {
  readonly #target: DialTarget
  /** The whole policy, to which sessions belong. */
  readonly #policy: TlsPolicy
  /** What this attempt trusts of it. */
  readonly #trusted: TlsPolicy
  readonly #identity: Identity
  readonly #scope: DialScope
  readonly #resolve: (dialed: DialedSocket) => void
  readonly #reject: (reason: unknown) => void
  readonly #server: ServerIdentity
  /** What is dialled. */
  readonly #address: string
  /** Whether the host is one, and not an IP address. */
  readonly #isName: boolean
  readonly #proxy: HttpProxy | undefined
  readonly #onAbort = () => this.#settle(() => this.#reject(this.#scope.signal.reason))
  /** Of whatever is below; every connection ends with it, and an error has a stack that is not collected for nobody. */
  readonly #onClose = () => {
    if (!this.#settled) this.#fail(closed())
  }
  #phase: DpsPhase = 'dns'
  #settled = false
  /** The name that is being resolved. */
  #resolving: string | undefined
  /** What TLS runs on, where that is not its own TCP connection. */
  #way: Duplex | undefined
  /** Round trips spent on it, as far as they are known. */
  #wayRoundTrips = 0
  #socket: tls.TLSSocket | undefined
  #offered: { readonly key: SessionKey; readonly stored: StoredSession } | undefined

  constructor(
    target: DialTarget,
    policy: TlsPolicy,
    trusted: TlsPolicy,
    identity: Identity,
    scope: DialScope,
    resolve: (dialed: DialedSocket) => void,
    reject: (reason: unknown) => void,
  ) {
    this.#target = target
    this.#policy = policy
    this.#trusted = trusted
    this.#identity = identity
    this.#scope = scope
    this.#resolve = resolve
    this.#reject = reject
    const { host, port, address = host, proxy } = target
    this.#address = address
    this.#isName = net.isIP(host) === 0
    this.#proxy = proxy?.bypasses(address, port) ? undefined : proxy
    this.#server = serverIdentity({
      host,
      isName: this.#isName,
      anchors: trusted.anchors,
      foreignAnchors: identity.tls?.pfx !== undefined,
    })
  }

  start(): void {
    this.#scope.signal.addEventListener('abort', this.#onAbort, { once: true })
    const { port, connect } = this.#target
    if (connect !== undefined) {
      void this.#connectBy(connect)
    } else if (this.#proxy !== undefined) {
      const proxy = this.#proxy
      this.#resolving = net.isIP(proxy.host) === 0 ? proxy.host : undefined
      this.#enter('proxy')
      this.#connect(proxy.host, proxy.port, (tcp, context) => this.#tunnel(proxy, tcp, context))
    } else {
      const { address } = this.#target
      this.#resolving = (address === undefined ? this.#isName : net.isIP(address) === 0)
        ? this.#address
        : undefined
      this.#enter(this.#resolving === undefined ? 'tcp' : 'dns')
      this.#wayRoundTrips = 1
      const context = keptContextFor(this.#identity, this.#trusted, this.#scope.contexts)
      if (context === undefined) this.#connect(this.#address, port, (tcp, built) => this.#secure(tcp, built))
      else this.#connectSecurely(this.#address, port, context)
    }
  }

  #connect(host: string, port: number, then: (tcp: net.Socket, context: tls.SecureContext) => void): void {
    // What hears of the phase may abort.
    if (this.#settled) return
    const tcp = net.connect(tcpOptions(host, port))
    this.#way = tcp
    tcp.on('error', (error) => this.#fail(error))
    tcp.on('close', this.#onClose)
    letGoWhenClosed(tcp)
    this.#watchLookup(tcp)
    try {
      // While the network is at work.
      const context = secureContextFor(this.#identity, this.#trusted, this.#scope.contexts)
      tcp.on('connect', () => {
        if (!this.#settled) then(tcp, context)
      })
    } catch (error) {
      this.#fail(error)
    }
  }

  /** TCP and TLS in one socket, for a context that is there: there is nothing to do while the network is at work. */
  #connectSecurely(host: string, port: number, context: tls.SecureContext): void {
    if (this.#settled) return
    const socket = this.#handshake(context, tcpOptions(host, port))
    this.#watchLookup(socket)
    socket.on('connect', () => {
      // `tls.connect` does not pass the option on.
      socket.setNoDelay(true)
      if (!this.#settled) this.#enter('tls')
    })
  }

  #watchLookup(socket: net.Socket): void {
    if (this.#resolving === undefined) return
    socket.on('lookup', (error) => {
      if (error || this.#settled) return
      this.#resolving = undefined
      if (this.#phase === 'dns') this.#enter('tcp')
    })
  }

  #tunnel(proxy: HttpProxy, tcp: net.Socket, context: tls.SecureContext): void {
    const { port } = this.#target
    const reader = new ConnectReplyReader(proxy.name)
    const onData = (chunk: Buffer): void => {
      if (this.#settled) return
      try {
        const reply = reader.push(chunk)
        if (reply === undefined) return
        if (reply.status >= 300) {
          throw explainProxyRefusal(reply, proxy, authority(this.#address, port), port)
        }
      } catch (error) {
        this.#fail(error)
        return
      }
      tcp.off('data', onData)
      tcp.pause()
      this.#wayRoundTrips = 2
      this.#secure(tcp, context)
    }
    tcp.on('data', onData)
    tcp.write(connectRequest(this.#address, port, proxy.authorization?.reveal()), 'latin1')
  }

  async #connectBy(connect: ConnectFunction): Promise<void> {
    this.#enter('tcp')
    if (this.#settled) return
    try {
      // Before anything is opened that would then be of no use.
      const context = secureContextFor(this.#identity, this.#trusted, this.#scope.contexts)
      const { signal } = this.#scope
      const way = await openWay(connect, { host: this.#address, port: this.#target.port, signal })
      if (this.#settled) {
        destroyWay(way)
        return
      }
      this.#way = way
      // Where TLS has given up it destroys the stream first and says why afterwards.
      way.on('error', (error) => {
        if (!this.#socket?.destroyed) this.#fail(this.#broken(error))
      })
      way.on('close', () => {
        if (this.#socket === undefined) this.#onClose()
      })
      if (way.destroyed || !way.readable || !way.writable) {
        this.#fail(closed())
      } else if (way instanceof net.Socket && way.connecting) {
        way.once('connect', () => this.#secure(way, context))
      } else {
        this.#secure(way, context)
      }
    } catch (error) {
      this.#fail(error)
    }
  }

  /** An error of the caller's stream says by its code what the network did, or nothing that is known here. */
  #broken(error: unknown): unknown {
    if (DpsError.is(error) || isSystemCode(error)) return error
    return new DpsError('CONNECTION_LOST', this.#phase, 'the stream that `connect` returned failed', {
      cause: error,
    })
  }

  #secure(way: Duplex, secureContext: tls.SecureContext): void {
    if (this.#settled) return
    this.#enter('tls')
    if (!this.#settled) this.#handshake(secureContext, { socket: way })
  }

  /** @param below what TLS runs on, or how to reach it */
  #handshake(secureContext: tls.SecureContext, below: tls.ConnectionOptions): tls.TLSSocket {
    const { host, port, address, connect } = this.#target
    const { id: policyId, sessionResumption } = this.#policy
    const via = connect === undefined ? this.#proxy?.name : 'connect'
    const key = { host, port, address, via, policyId, identityKey: identityKey(this.#identity) }
    const stored = sessionResumption ? sessionCache.get(key, this.#scope.clock.monotonic()) : undefined
    if (stored !== undefined) this.#offered = { key, stored }
    const options: tls.ConnectionOptions = {
      ...below,
      secureContext,
      ...(this.#isName && { servername: host }),
      checkServerIdentity: this.#server.checkServerIdentity,
      // Said, because NODE_TLS_REJECT_UNAUTHORIZED=0 is the default of what is not said.
      rejectUnauthorized: true,
    }
    const socket =
      stored === undefined ? tls.connect(options) : offerSession(stored.session, options, tls.connect)
    this.#socket = socket
    this.#server.attach(socket)
    // Node also emits what the stream below says while it is destroyed, which is not why it was.
    socket.on('error', (error) => this.#fail(socket.errored ?? error))
    socket.on('close', this.#onClose)
    letGoWhenClosed(socket)
    // Node emits a session only after the handshake was verified, and after `secureConnect`.
    if (sessionResumption) {
      const startedAt = this.#scope.clock.monotonic()
      let verified: Omit<StoredSession, 'session'> | undefined
      socket.once('secureConnect', () => {
        const facts = this.#succeed(socket)
        if (facts !== undefined) {
          verified = {
            root: facts.root,
            verifiedAt: facts.resumed && stored !== undefined ? stored.verifiedAt : startedAt,
          }
        }
      })
      const keepSessions = () =>
        socket.on('session', (session) => {
          if (verified !== undefined) sessionCache.set(key, { session, ...verified })
        })
      // Where a name has several addresses, a socket that connects by itself is made anew inside for each, and forgets
      // that somebody listens.
      if (below.socket === undefined) socket.once('connect', keepSessions)
      else keepSessions()
    } else {
      socket.once('secureConnect', () => this.#succeed(socket))
    }
    return socket
  }

  #succeed(socket: tls.TLSSocket): TlsFacts | undefined {
    if (this.#settled) return undefined
    const resumed = socket.isSessionReused()
    const protocol = socket.getProtocol()
    const root = resumed ? this.#offered?.stored.root : this.#server.root
    // Nothing here can be otherwise while Node keeps its word; should it ever not, the connection is not used.
    if (!socket.authorized || root === undefined || (protocol !== 'TLSv1.2' && protocol !== 'TLSv1.3')) {
      this.#fail(
        new DpsError('SERVER_UNTRUSTED', 'tls', `the connection to ${this.#target.host} was not verified`),
      )
      return undefined
    }
    const facts: TlsFacts = Object.freeze({
      protocol,
      cipher: socket.getCipher().name,
      curve: curveOf(socket),
      root,
      resumed,
    })
    const handshake = resumed || protocol === 'TLSv1.3' ? 1 : 2
    this.#settled = true
    const { certificates } = this.#server.presented
    this.#server.pass()
    this.#scope.signal.removeEventListener('abort', this.#onAbort)
    this.#resolve({ socket, tls: facts, certificates, roundTrips: this.#wayRoundTrips + handshake })
    return facts
  }

  #enter(phase: DpsPhase): void {
    this.#phase = phase
    this.#scope.enter(phase, this.#where())
  }

  /** Who is talked to in this phase. */
  #where(): string {
    const { host, port, address, connect } = this.#target
    const proxy = this.#proxy?.name
    if (this.#phase === 'proxy') return `the proxy ${proxy}`
    const server = address === undefined ? `${host} port ${port}` : `${host} (${address}) port ${port}`
    if (connect !== undefined) return `${server}, over \`connect\`,`
    return proxy === undefined ? server : `${server}, through the proxy ${proxy},`
  }

  #fail(error: unknown): void {
    this.#settle(() =>
      this.#reject(
        explainFailure(error, {
          phase: this.#phase,
          host: this.#target.host,
          where: this.#where(),
          resolving: this.#resolving,
          proxy: this.#proxy,
          nowMs: this.#scope.clock.now(),
          presented: this.#server.presented,
          anchors: this.#trusted.anchors,
          hasCertificate: this.#identity.tls !== undefined,
        }),
      ),
    )
  }

  /** Ends the attempt without a connection. The 'error' listeners stay: a socket may fail while it closes. */
  #settle(report: () => void): void {
    if (this.#settled) return
    this.#settled = true
    this.#scope.signal.removeEventListener('abort', this.#onAbort)
    // A session that the server chokes on must not be offered for ever.
    if (this.#offered !== undefined) sessionCache.delete(this.#offered.key)
    this.#server.release()
    this.#socket?.destroy()
    this.#way?.destroy()
    report()
  }
}

/**
 * A closed socket is kept by its native half until a full garbage collection comes, and with it would be all that listens:
 * the attempt, the session, the call. Whoever listens to `close` still hears it.
 */
function letGoWhenClosed(socket: net.Socket): void {
  socket.once('close', () => {
    socket.removeAllListeners()
    socket.on('error', ignore)
  })
}

function ignore(): void {}

function tcpOptions(host: string, port: number): net.TcpNetConnectOpts {
  return { host, port, noDelay: true, autoSelectFamilyAttemptTimeout: ADDRESS_ATTEMPT_MS }
}

function closed(): Error {
  return Object.assign(new Error('the connection was closed'), { code: 'ECONNRESET' })
}

/** Node tells the group of an ephemeral exchange by its OpenSSL name, and nothing on some resumed connections. */
function curveOf(socket: tls.TLSSocket): string {
  const info = socket.getEphemeralKeyInfo()
  const name = info !== null && 'name' in info ? info.name : undefined
  return name === undefined ? 'unknown' : (CURVE_NAMES.get(name) ?? name)
}
