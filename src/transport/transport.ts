import type { X509Certificate } from 'node:crypto'
import type { TLSSocket } from 'node:tls'
import type { DpsPhase } from '../errors.ts'
import type { RawReply } from '../protocol/response.ts'

export type { RawReply } from '../protocol/response.ts'

/** What a handshake settled on. `root` is the subject CN of the root that validated the chain, or `'unknown'`. */
export interface TlsFacts {
  /** `'TLSv1.2'` */
  readonly protocol: string
  /** OpenSSL's name of the suite. */
  readonly cipher: string
  /** Key-exchange group, such as `'X25519'`; `'unknown'` where the suite has none or Node does not tell. */
  readonly curve: string
  readonly root: string
  readonly resumed: boolean
}

/** A socket whose chain, host name and policy have been verified, and what was agreed on it. */
export interface DialedSocket {
  readonly socket: TLSSocket
  readonly tls: TlsFacts
  /**
   * The certificates that the server presented, leaf first, where they were looked at: always by the first connection to
   * it, not by one that resumes a session or knows the leaf already. Keeping them keeps memory.
   */
  readonly certificates?: readonly X509Certificate[]
  /** Network round trips of this connection until here (TCP and TLS); an attempt that failed before it is not counted. */
  readonly roundTrips: number
}

export interface ConnectionFacts extends TlsFacts {
  /** Name of the transport. */
  readonly transport: string
  /** Network round trips until a request could be sent: where the first went ahead, those of the dialer and no more. */
  readonly roundTrips: number
  /** Of a list of credentials, the index of the one that was used; said by the client, and absent where there is no list. */
  readonly credential?: number
}

/** The transports that come with the package. */
export type TransportName = 'mqtt' | 'mqtt-ws' | 'https'

/**
 * A request in the service's terms. `register` starts an operation, `query` asks for its status, `lookup` reads the
 * registration and starts nothing: the service offers it over HTTPS only.
 */
export type TransportRequest =
  | { readonly kind: 'register'; readonly body: string }
  | { readonly kind: 'query'; readonly operationId: string }
  | { readonly kind: 'lookup'; readonly body: string }

/** All that a transport is given for one connection. */
export interface TransportContext {
  /** Name that is verified: for HTTP's `Host` and the like. */
  readonly host: string
  /** The caller's `port`, or undefined for the transport's own default. */
  readonly port: number | undefined
  readonly idScope: string
  readonly registrationId: string
  readonly apiVersion: string
  readonly userAgent: string
  /** A reply larger than this is refused with REPLY_TOO_LARGE. Bytes. */
  readonly maxReplyBytes: number
  /**
   * The request that is asked first. Present only where it may be sent before the service has let the device in: a
   * transport that can do so may send it early, or ignore this. The session's first request, if it is the same, is then
   * answered by the reply to what was sent, which may be there already.
   */
  readonly firstRequest?: TransportRequest | undefined
  /** Aborts with a DpsError as its reason when a phase limit, the deadline or the caller ends this step. */
  readonly signal: AbortSignal
  /** Announces the phase that begins now; ends the one before. Starts that phase's limit. */
  enter(phase: DpsPhase): void
  /** Opens a verified connection to the service: the only way to a socket. Enters `dns`, `tcp` and `tls` itself. */
  dial(port: number): Promise<DialedSocket>
  /** A fresh token for this registration, or undefined where the TLS handshake authenticates. */
  token(): Promise<string | undefined>
}

/**
 * How requests reach the service. Three verbs, one rule each:
 *
 * - `open` resolves when a request may be sent, and rejects with a DpsError of the phase that failed. When
 *   `context.signal` aborts it gives up at once, rejects with the signal's reason and leaves nothing open.
 * - `request` sends one request and resolves with the reply that answers *it*; replies to anything else are ignored.
 *   It rejects with CONNECTION_LOST if the connection ends first, and with the signal's reason on abort.
 *   One request at a time.
 * - `close` ends the session in good order. It never throws, may be called in any state and more than once, and a
 *   pending request then rejects. When its promise resolves nothing of the session is left.
 *
 * What does not belong here: polling, retrying, waiting, parsing of bodies, reading of options.
 */
export interface Transport {
  /** Short name for events and the assignment, such as `'mqtt'`. */
  readonly name: string
  open(context: TransportContext): Promise<TransportSession>
}

export interface TransportSession {
  readonly connection: ConnectionFacts
  request(request: TransportRequest, signal: AbortSignal): Promise<RawReply>
  close(): Promise<void>
}
