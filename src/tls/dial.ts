import net from 'node:net'
import tls from 'node:tls'
import type { Clock } from '../clock.ts'
import type { Identity } from '../credential/credential.ts'
import { DpsError, type DpsPhase } from '../errors.ts'
import type { DialedSocket, TlsFacts } from '../transport/transport.ts'
import { identityKey, secureContextFor } from './context.ts'
import { explainFailure } from './explain.ts'
import { type ServerIdentity, serverIdentity } from './identity.ts'
import type { TlsPolicy } from './policy.ts'
import { type SessionKey, type StoredSession, sessionCache } from './sessions.ts'

export interface DialTarget {
  /** Sent as SNI and verified in the certificate. An IP address is verified as one, and not sent (RFC 6066 §3). */
  readonly host: string
  readonly port: number
  /** Dialled in place of `host`. */
  readonly address?: string | undefined
}

export interface DialScope {
  /** Ends the attempt; its reason is what the promise rejects with. */
  readonly signal: AbortSignal
  /** Called as `dns`, `tcp` and `tls` begin. */
  enter(phase: DpsPhase): void
  readonly clock: Clock
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

/**
 * Opens a TLS connection that is verified: chain, dates, host name and policy. The only way the client opens a socket.
 *
 * On abort, and on any failure, both sockets are destroyed before the promise rejects.
 *
 * @throws DpsError of phase `dns`, `tcp` or `tls` (or `config`, when OpenSSL cannot use the credential), or the reason
 *   of `scope.signal`
 */
export function dial(
  target: DialTarget,
  policy: TlsPolicy,
  identity: Identity,
  scope: DialScope,
): Promise<DialedSocket> {
  if (scope.signal.aborted) return Promise.reject(scope.signal.reason)
  return new Promise((resolve, reject) => {
    new Attempt(target, policy, identity, scope, resolve, reject).start()
  })
}

class Attempt {
  readonly #target: DialTarget
  readonly #policy: TlsPolicy
  readonly #identity: Identity
  readonly #scope: DialScope
  readonly #resolve: (dialed: DialedSocket) => void
  readonly #reject: (reason: unknown) => void
  readonly #server: ServerIdentity
  readonly #onAbort = () => this.#settle(() => this.#reject(this.#scope.signal.reason))
  #phase: DpsPhase = 'dns'
  #settled = false
  #tcp: net.Socket | undefined
  #socket: tls.TLSSocket | undefined
  #offered: { readonly key: SessionKey; readonly stored: StoredSession } | undefined

  constructor(
    target: DialTarget,
    policy: TlsPolicy,
    identity: Identity,
    scope: DialScope,
    resolve: (dialed: DialedSocket) => void,
    reject: (reason: unknown) => void,
  ) {
    this.#target = target
    this.#policy = policy
    this.#identity = identity
    this.#scope = scope
    this.#resolve = resolve
    this.#reject = reject
    this.#server = serverIdentity({
      host: target.host,
      anchors: policy.anchors,
      foreignAnchors: identity.tls?.pfx !== undefined,
    })
  }

  start(): void {
    const { host, port, address = host } = this.#target
    this.#scope.signal.addEventListener('abort', this.#onAbort, { once: true })
    this.#enter(net.isIP(address) === 0 ? 'dns' : 'tcp')
    // What hears of the phase may abort.
    if (this.#settled) return
    const tcp = net.connect({
      host: address,
      port,
      noDelay: true,
      autoSelectFamilyAttemptTimeout: ADDRESS_ATTEMPT_MS,
    })
    this.#tcp = tcp
    tcp.on('error', (error) => this.#fail(error))
    tcp.on('close', () => this.#fail(closed()))
    tcp.on('lookup', (error) => {
      if (!error && this.#phase === 'dns') this.#enter('tcp')
    })
    try {
      // While the network is at work.
      const secureContext = secureContextFor(this.#identity, this.#policy)
      tcp.on('connect', () => this.#secure(tcp, secureContext))
    } catch (error) {
      this.#fail(error)
    }
  }

  #secure(tcp: net.Socket, secureContext: tls.SecureContext): void {
    if (this.#settled) return
    this.#enter('tls')
    if (this.#settled) return
    const { host, port, address } = this.#target
    const { id: policyId, sessionResumption } = this.#policy
    const key = { host, port, address, policyId, identityKey: identityKey(this.#identity) }
    const stored = sessionResumption ? sessionCache.get(key, this.#scope.clock.monotonic()) : undefined
    if (stored !== undefined) this.#offered = { key, stored }
    const socket = tls.connect({
      socket: tcp,
      secureContext,
      ...(net.isIP(host) === 0 && { servername: host }),
      ...(stored !== undefined && { session: stored.session }),
      checkServerIdentity: this.#server.checkServerIdentity,
      // Said, because NODE_TLS_REJECT_UNAUTHORIZED=0 is the default of what is not said.
      rejectUnauthorized: true,
    })
    this.#socket = socket
    this.#server.attach(socket)
    socket.on('error', (error) => this.#fail(error))
    socket.on('close', () => this.#fail(closed()))
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
      socket.on('session', (session) => {
        if (verified !== undefined) sessionCache.set(key, { session, ...verified })
      })
    } else {
      socket.once('secureConnect', () => this.#succeed(socket))
    }
  }

  #succeed(socket: tls.TLSSocket): TlsFacts | undefined {
    if (this.#settled) return undefined
    this.#server.release()
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
    this.#scope.signal.removeEventListener('abort', this.#onAbort)
    this.#resolve({ socket, tls: facts, roundTrips: 1 + handshake })
    return facts
  }

  #enter(phase: DpsPhase): void {
    this.#phase = phase
    this.#scope.enter(phase)
  }

  #fail(error: unknown): void {
    const { host, port, address } = this.#target
    this.#settle(() =>
      this.#reject(
        explainFailure(error, {
          phase: this.#phase,
          host,
          where: address === undefined ? `${host} port ${port}` : `${host} (${address}) port ${port}`,
          nowMs: this.#scope.clock.now(),
          presented: this.#server.presented,
          anchors: this.#policy.anchors,
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
    this.#tcp?.destroy()
    report()
  }
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
