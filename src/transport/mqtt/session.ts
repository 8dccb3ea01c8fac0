import { randomFillSync } from 'node:crypto'
import { DpsError, type DpsPhase } from '../../errors.ts'
import { printable } from '../../printable.ts'
import {
  mqttClientId,
  mqttUserName,
  parseResponseTopic,
  queryTopic,
  RESPONSE_FILTER,
  RESPONSE_PREFIX,
  registerTopic,
} from '../../protocol/wire.ts'
import type {
  ConnectionFacts,
  RawReply,
  TransportContext,
  TransportRequest,
  TransportSession,
} from '../transport.ts'
import { encodeConnect, encodeDisconnect, encodePubacks, encodePublish, encodeSubscribe } from './codec.ts'
import { PacketReader, type ServerPacket } from './reader.ts'

/**
 * The bytes below MQTT: a TLS socket or anything that behaves like one. `close` comes exactly once, last, also after an
 * `error` and after `destroy`.
 */
export interface ByteStream {
  readonly destroyed: boolean
  /** Bytes written and not yet passed on. */
  readonly writableLength: number
  on(event: 'data', listener: (chunk: Buffer) => void): unknown
  on(event: 'error', listener: (error: Error) => void): unknown
  on(event: 'end' | 'close', listener: () => void): unknown
  write(bytes: Uint8Array): unknown
  /** Sends what is left, these bytes and the end; calls back when all of it has been passed on, or has failed. */
  end(bytes: Uint8Array, callback: () => void): unknown
  destroy(): unknown
  /** What an error of this stream means in `phase`; undefined, or no such method, where it is a lost connection. */
  explain?(error: Error, phase: DpsPhase): DpsError | undefined
}

/** What a session needs to know of its connection. */
export type SessionContext = Pick<
  TransportContext,
  | 'idScope'
  | 'registrationId'
  | 'apiVersion'
  | 'userAgent'
  | 'maxReplyBytes'
  | 'firstRequest'
  | 'signal'
  | 'enter'
  | 'token'
>

/** What is sent at once with CONNECT. */
export type EarlyRequest = Exclude<TransportRequest, { readonly kind: 'lookup' }>

/** The request that a session on this context sends with CONNECT, if it sends one. */
export function earlyRequest({
  firstRequest,
}: Pick<TransportContext, 'firstRequest'>): EarlyRequest | undefined {
  return firstRequest?.kind === 'lookup' ? undefined : firstRequest
}

/**
 * The context with its token under way, so that a session which sends everything at once has it when the handshake is
 * done. Where nothing is sent early the token waits for the connection: a signature in vain may cost a chip's time.
 */
export function withTokenAhead(context: TransportContext): TransportContext {
  if (earlyRequest(context) === undefined) return context
  const token = (async () => context.token())()
  // Looked at once there is a connection to use it on.
  token.catch(() => {})
  return { ...context, token: () => token }
}

/**
 * Azure's load balancers drop a flow that was idle for about 4 minutes, so it need not be promised for longer. No PINGREQ
 * is ever sent: a longer wait between two requests loses the connection, and the next one is opened with a fresh token.
 */
const KEEP_ALIVE_SECONDS = 230

const SUBSCRIBE_PACKET_ID = 1

/**
 * The largest request and as much again. A server that sends QoS 1 messages and reads none of the acknowledgements could
 * otherwise make the device hold any number of them.
 */
const MAX_UNSENT_BYTES = 256 * 1024

/** `token`: CONNECT has not been sent. `connect` and `subscribe`: CONNACK and SUBACK are awaited. */
type State = 'token' | 'connect' | 'subscribe' | 'idle' | 'request' | 'closed'

/** The one promise that is pending. */
interface Waiter {
  readonly resolve: (value: never) => void
  readonly reject: (reason: unknown) => void
  readonly signal: AbortSignal
}

/**
 * One MQTT connection to the provisioning service, on a stream that is connected and verified already. Everything is
 * decided as the packets come in, in one state; promises are only told the outcome.
 *
 * Where the context names a first request, CONNECT, SUBSCRIBE and that request go out in one write (MQTT 3.1.1 section
 * 3.1.4). What comes back is held to the same order as without, and a reply that is there before anybody has asked for it
 * is kept.
 */
export class MqttSession implements TransportSession {
  readonly connection: ConnectionFacts
  readonly #stream: ByteStream
  readonly #context: SessionContext
  readonly #reader: PacketReader
  readonly #requestIdPrefix: string
  readonly #onAbort = () => this.#fail(this.#waiter?.signal.reason)
  #state: State = 'token'
  #phase: DpsPhase = 'connect'
  #waiter: Waiter | undefined
  /** What ended the session, where that was not this side. */
  #ending: unknown
  #streamClosed = false
  /** Set once somebody waits for the end of the stream. */
  #gone: Promise<void> | undefined
  #resolveGone: (() => void) | undefined
  #requests = 0
  /** Id of the request that is unanswered; empty where there is none. */
  #requestId = ''
  /** The request that was sent with CONNECT, until it is asked for. */
  #early: EarlyRequest | undefined
  /** What came of it before that. */
  #earlyOutcome: RawReply | DpsError | undefined

  /**
   * Takes over `stream` and resolves when a request may be sent. If it fails, the stream is destroyed.
   *
   * @param requestIdPrefix what every request id begins with. Default: eight random hexadecimal digits
   * @throws DpsError of phase `connect` or `subscribe`, or the reason of `context.signal`
   */
  static open(
    stream: ByteStream,
    connection: ConnectionFacts,
    context: SessionContext,
    requestIdPrefix: string = nextRequestIdPrefix(),
  ): Promise<MqttSession> {
    return new MqttSession(stream, connection, context, requestIdPrefix).#open()
  }

  private constructor(
    stream: ByteStream,
    connection: ConnectionFacts,
    context: SessionContext,
    requestIdPrefix: string,
  ) {
    this.connection = connection
    this.#stream = stream
    this.#context = context
    this.#reader = new PacketReader(context.maxReplyBytes)
    // A counter tells the requests of one connection apart. The prefix tells connections apart: all of a device have the
    // same client id, so the answer to a request of a lost connection may still arrive on the next.
    this.#requestIdPrefix = requestIdPrefix
    this.#early = earlyRequest(context)
    // Stays for as long as the stream does: an error that nobody listens to would end the process.
    stream.on('error', (cause) =>
      this.#fail(stream.explain?.(cause, this.#phase) ?? this.#lost('broke', cause)),
    )
    stream.on('end', () => this.#lose('was ended by the server'))
    stream.on('close', () => {
      this.#lose('was closed')
      this.#streamClosed = true
      this.#resolveGone?.()
    })
  }

  #open(): Promise<MqttSession> {
    const { signal } = this.#context
    if (signal.aborted) {
      this.#fail(signal.reason)
      return Promise.reject(signal.reason)
    }
    // The wait first: announcing the phase may end it.
    const opened = this.#wait<MqttSession>(signal)
    this.#enter('connect')
    if (this.#stream.destroyed) this.#lose('was closed')
    if (!this.#isClosed()) {
      this.#stream.on('data', (chunk) => this.#read(chunk))
      this.#connect()
    }
    return opened
  }

  request(request: TransportRequest, signal: AbortSignal): Promise<RawReply> {
    try {
      return this.#ask(request, signal)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  #ask(request: TransportRequest, signal: AbortSignal): Promise<RawReply> {
    if (request.kind === 'lookup') {
      throw new DpsError('TRANSPORT_FAILED', 'config', 'the service offers lookup over HTTPS only')
    }
    const phase = phaseOf(request)
    if (this.#waiter !== undefined) {
      throw new DpsError('TRANSPORT_FAILED', phase, 'a session takes one request at a time', {
        hint: 'Wait for the reply to the request before, or open a second session.',
      })
    }
    const early = this.#early
    this.#early = undefined
    if (signal.aborted) {
      this.#fail(signal.reason)
      throw signal.reason
    }
    if (early !== undefined && isSame(early, request)) return this.#await(signal)
    if (this.#isClosed()) {
      throw new DpsError('CONNECTION_LOST', phase, 'the connection had ended before the request', {
        cause: this.#whyEnded(),
      })
    }
    const packet = this.#encode(request)
    this.#phase = phase
    this.#state = 'request'
    const reply = this.#wait<RawReply>(signal)
    this.#stream.write(packet)
    return reply
  }

  /** The reply to the request that went out with CONNECT. */
  #await(signal: AbortSignal): Promise<RawReply> {
    const outcome = this.#earlyOutcome
    this.#earlyOutcome = undefined
    if (outcome instanceof DpsError) throw outcome
    if (outcome !== undefined) return Promise.resolve(outcome)
    if (this.#isClosed()) throw this.#whyEnded()
    this.#state = 'request'
    return this.#wait<RawReply>(signal)
  }

  close(): Promise<void> {
    if (!this.#isClosed()) {
      // No more than a small request and acknowledgements should be on its way. Where more is, the server does not read,
      // and ending politely would take for as long as the network likes.
      const polite = this.#stream.writableLength < 1024
      // No wait for the server to end its side: MQTT has no answer to DISCONNECT, and it would cost a round trip.
      if (polite) this.#stream.end(encodeDisconnect(), () => this.#stream.destroy())
      else this.#stream.destroy()
      this.#end()
    }
    this.#early = undefined
    this.#gone ??= new Promise((resolve) => {
      if (this.#streamClosed) resolve()
      else this.#resolveGone = resolve
    })
    return this.#gone
  }

  #connect(): void {
    try {
      this.#context.token().then(
        (password) => this.#begin(password),
        (error: unknown) => this.#fail(error),
      )
    } catch (error) {
      this.#fail(error)
    }
  }

  #begin(password: string | undefined): void {
    if (this.#isClosed()) return
    try {
      const connect = encodeConnect({
        clientId: mqttClientId(this.#context.registrationId),
        userName: mqttUserName(this.#context),
        password,
        keepAliveSeconds: KEEP_ALIVE_SECONDS,
      })
      const early = this.#early
      const flight =
        early === undefined ? connect : Buffer.concat([connect, subscribePacket(), this.#encode(early)])
      this.#state = 'connect'
      this.#stream.write(flight)
    } catch (error) {
      this.#fail(error)
    }
  }

  /** The packet of a request that from now on is the one to be answered. */
  #encode(request: EarlyRequest): Buffer {
    const count = ++this.#requests
    const requestId = this.#requestIdPrefix + count.toString(36)
    const register = request.kind === 'register'
    const packet = encodePublish({
      topic: register ? registerTopic(requestId) : queryTopic(requestId, request.operationId),
      payload: register ? request.body : '',
      qos: 1,
      // From 2 on, SUBSCRIBE having had 1; an acknowledgement may never come, so ids are used in turn.
      packetId: (count % 65_535) + SUBSCRIBE_PACKET_ID,
    })
    this.#requestId = requestId
    return packet
  }

  #enter(phase: 'connect' | 'subscribe'): void {
    this.#phase = phase
    this.#context.enter(phase)
  }

  #read(chunk: Buffer): void {
    if (this.#isClosed()) return
    let acknowledge: number[] | undefined
    try {
      this.#reader.push(chunk)
      for (;;) {
        const packet = this.#reader.next(this.#phase)
        if (packet === undefined) break
        this.#receive(packet)
        if (packet.type === 'publish' && packet.packetId !== undefined) {
          acknowledge ??= []
          acknowledge.push(packet.packetId)
        }
      }
      if (acknowledge === undefined) return
      if (this.#stream.writableLength > MAX_UNSENT_BYTES) {
        throw this.#violation('more messages than it takes acknowledgements for')
      }
      // In the order of the messages [MQTT-4.6.0-2].
      this.#stream.write(encodePubacks(acknowledge))
    } catch (error) {
      this.#fail(error)
    }
  }

  /** @throws DpsError where the packet ends the session */
  #receive(packet: ServerPacket): void {
    if ((this.#state === 'connect') !== (packet.type === 'connack') || this.#state === 'token') {
      throw this.#violation(`${packet.type.toUpperCase()} where it is not due [MQTT-3.2.0-1]`)
    }
    switch (packet.type) {
      case 'connack':
        this.#connected(packet.returnCode, packet.sessionPresent)
        break
      case 'suback':
        this.#subscribed(packet.packetId, packet.returnCode)
        break
      case 'publish':
        // May come before SUBACK (section 3.8.4): answering nobody, unless a request went out with CONNECT.
        if (this.#requestId !== '' && packet.topic.startsWith(RESPONSE_PREFIX)) {
          this.#reply(packet.topic, packet.payload)
        }
        break
      case 'puback':
      case 'pingresp':
        // Neither says anything that the reply does not say better.
        break
    }
  }

  #connected(returnCode: number, sessionPresent: boolean): void {
    if (sessionPresent)
      throw this.#violation('CONNACK with a session where a clean one was asked for [MQTT-3.2.2-1]')
    if (returnCode !== 0) throw this.#connectionRefused(returnCode)
    this.#state = 'subscribe'
    this.#enter('subscribe')
    if (this.#early === undefined && !this.#isClosed()) this.#stream.write(subscribePacket())
  }

  /** Table 3.1 of MQTT 3.1.1. */
  #connectionRefused(returnCode: number): DpsError {
    const refused = (code: 'PROTOCOL_REFUSED' | 'UNAUTHORIZED' | 'SERVICE_UNAVAILABLE', why: string) =>
      new DpsError(
        code,
        this.#phase,
        `the service refused the connection: ${why} (CONNACK return code ${returnCode})`,
      )
    switch (returnCode) {
      case 1:
        return refused('PROTOCOL_REFUSED', 'unacceptable protocol version')
      case 2:
        return refused('UNAUTHORIZED', 'client identifier rejected')
      case 3:
        return refused('SERVICE_UNAVAILABLE', 'server unavailable')
      case 4:
        return refused('UNAUTHORIZED', 'bad user name or password')
      case 5:
        return refused('UNAUTHORIZED', 'not authorized')
      default:
        return this.#violation(`CONNACK with the reserved return code ${returnCode} [3.2.2.3]`)
    }
  }

  #subscribed(packetId: number, returnCode: number): void {
    if (this.#state !== 'subscribe') throw this.#violation('SUBACK where it is not due')
    if (packetId !== SUBSCRIBE_PACKET_ID) throw this.#violation('SUBACK to another packet [MQTT-3.8.4-2]')
    if (returnCode === 0x80) {
      throw new DpsError('SUBSCRIPTION_REFUSED', this.#phase, `the service refused ${RESPONSE_FILTER}`)
    }
    if (returnCode > 1) throw this.#violation('SUBACK that grants more than was asked for [MQTT-3.8.4-6]')
    this.#state = 'idle'
    // From here on whatever happens, happens to the request that is under way.
    if (this.#early !== undefined) this.#phase = phaseOf(this.#early)
    this.#settle()?.resolve(this as never)
  }

  #reply(topic: string, payload: Buffer): void {
    const response = parseResponseTopic(topic)
    if (response === undefined) {
      this.#answer(
        new DpsError(
          'REPLY_MALFORMED',
          'parse',
          `the topic of the reply must be ${RESPONSE_PREFIX}<status>/?$rid=<request id>; it is "${printable(topic, 120)}"`,
        ),
      )
    } else if (response.requestId === this.#requestId) {
      this.#answer({
        status: response.status,
        retryAfter: response.retryAfter,
        body: new Uint8Array(payload),
      })
    }
  }

  #answer(outcome: RawReply | DpsError): void {
    this.#requestId = ''
    if (this.#state !== 'request') {
      this.#earlyOutcome = outcome
      return
    }
    this.#state = 'idle'
    const waiter = this.#settle()
    if (outcome instanceof DpsError) waiter?.reject(outcome)
    else waiter?.resolve(outcome as never)
  }

  #wait<T>(signal: AbortSignal): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      signal.addEventListener('abort', this.#onAbort, { once: true })
      this.#waiter = { resolve, reject, signal }
    })
  }

  #settle(): Waiter | undefined {
    const waiter = this.#waiter
    this.#waiter = undefined
    waiter?.signal.removeEventListener('abort', this.#onAbort)
    return waiter
  }

  #isClosed(): boolean {
    return this.#state === 'closed'
  }

  #lose(how: string, cause?: unknown): void {
    if (!this.#isClosed()) this.#fail(this.#lost(how, cause))
  }

  #fail(reason: unknown): void {
    if (this.#isClosed()) return
    this.#stream.destroy()
    this.#end(reason)
  }

  /** Nothing changes after this. Without a reason it was closed by this side. */
  #end(reason?: unknown): void {
    this.#state = 'closed'
    this.#ending = reason
    // An error has a stack, which is not collected for nobody.
    if (this.#waiter !== undefined) this.#settle()?.reject(this.#whyEnded())
  }

  #whyEnded(): unknown {
    return this.#ending ?? this.#lost('was closed by this side')
  }

  #lost(how: string, cause?: unknown): DpsError {
    return new DpsError(
      'CONNECTION_LOST',
      this.#phase,
      `the connection ${how} in phase ${this.#phase}`,
      cause === undefined ? {} : { cause },
    )
  }

  #violation(what: string): DpsError {
    return new DpsError('PROTOCOL_VIOLATION', this.#phase, `the server sent ${what}`)
  }
}

const PREFIX_BYTES = 4
const prefixes = Buffer.alloc(64 * PREFIX_BYTES)
let prefixesUsed = prefixes.length

/** No secret, so drawn many at a time: a draw costs more than all else that a request does. */
function nextRequestIdPrefix(): string {
  if (prefixesUsed === prefixes.length) {
    randomFillSync(prefixes)
    prefixesUsed = 0
  }
  const at = prefixesUsed
  prefixesUsed += PREFIX_BYTES
  return prefixes.toString('hex', at, prefixesUsed)
}

function subscribePacket(): Buffer {
  return encodeSubscribe(SUBSCRIBE_PACKET_ID, RESPONSE_FILTER, 1)
}

function phaseOf({ kind }: EarlyRequest): 'register' | 'poll' {
  return kind === 'register' ? 'register' : 'poll'
}

function isSame(a: EarlyRequest, b: EarlyRequest): boolean {
  return a.kind === 'register'
    ? b.kind === 'register' && a.body === b.body
    : b.kind === 'query' && a.operationId === b.operationId
}
