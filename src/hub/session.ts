import type { HubTarget } from '../assignment/hub.ts'
import { type Clock, MAX_TIMER_MS } from '../clock.ts'
import { DpsError, type DpsPhase } from '../errors.ts'
import { acknowledgeByHand, type IClientOptions, intervalOf, MqttClient } from './mqtt-client.ts'
import { connectionRefused } from './refusal.ts'
import type { HubStream } from './stream.ts'

/** A PUBLISH of the hub. */
export interface HubMessage {
  readonly topic: string
  readonly body: Uint8Array
  readonly qos: number
  readonly dup: boolean
  /** Acknowledges it (QoS 1), if the connection it came over is still there. */
  acknowledge(): void
}

export interface SessionContext {
  readonly target: HubTarget
  readonly password: string | undefined
  readonly clock: Clock
  /** Ends the attempt to connect; not the session once it is open. */
  readonly signal: AbortSignal
  readonly onMessage: (message: HubMessage) => void
}

/** A close that is not finished by then, because nothing below takes its last bytes, is not waited for. */
const CLOSE_LIMIT_MS = 250

/** Unsent answers, 64 of the largest that methods may give and some more. A hub that asks on and reads none is left. */
const MAX_ANSWER_BYTES = 9_437_184
/** What a packet takes in memory beside its content. */
const PACKET_OVERHEAD = 1024

/**
 * One MQTT connection to a hub, on a stream that is connected and verified already. MQTT.js speaks the protocol and knows
 * nothing of what comes before or after: it never reconnects, and what it still held is sent anew by the next session.
 */
export class HubSession {
  readonly sessionPresent: boolean
  /** Resolves when the connection has ended, with the reason; undefined if this side closed it. Never rejects. */
  readonly ended: Promise<DpsError | undefined>
  readonly #link: Link

  private constructor(link: Link, sessionPresent: boolean) {
    this.#link = link
    this.sessionPresent = sessionPresent
    this.ended = link.ended
  }

  /**
   * Takes over `stream` and resolves when CONNACK has let the device in. If it fails, the stream is destroyed.
   *
   * @throws DpsError of phase `connect`, or the reason of `context.signal`
   */
  static async open(stream: HubStream, context: SessionContext): Promise<HubSession> {
    const link = new Link(stream, context)
    return new HubSession(link, await link.opened)
  }

  /** Resolves with PUBACK; rejects when the connection ends before. */
  publish(topic: string, body: Uint8Array): Promise<void> {
    return this.#link.request('hub', (client, done) =>
      client.publish(topic, body as Buffer, { qos: 1 }, (error) => done(error ?? undefined)),
    )
  }

  /** At QoS 0: whether it arrives is told by the answer alone. */
  send(topic: string, body: Uint8Array | string): void {
    this.#link.send(topic, body)
  }

  /** As `send`, for what the hub asked for: where it does not take the answers, the connection ends as broken. */
  answer(topic: string, body: string): void {
    this.#link.answer(topic, body)
  }

  /** Resolves with the filters that the hub refused; rejects when the connection ends before. */
  async subscribe(filters: readonly string[]): Promise<readonly string[]> {
    let refused: readonly string[] = []
    await this.#link.request('subscribe', (client, done) =>
      client.subscribe([...filters], { qos: 1 }, (error, _, packet) => {
        const granted = (packet?.granted ?? []) as readonly unknown[]
        if (granted.length === filters.length) refused = filters.filter((_filter, at) => granted[at] === 0x80)
        done(refused.length > 0 ? undefined : (error ?? undefined))
      }),
    )
    return refused
  }

  /** Ends the connection in good order. Never throws, may be called in any state and more than once. */
  close(): Promise<void> {
    return this.#link.close()
  }

  /** Bytes that the network has not taken yet. */
  get unsentBytes(): number {
    return this.#link.unsentBytes
  }

  /** Ends the connection as broken. */
  fail(error: DpsError): void {
    this.#link.fail(error)
  }
}

interface Opening {
  resolve(sessionPresent: boolean): void
  reject(reason: unknown): void
}

/** The client of MQTT.js and what became of it, in one state. */
class Link {
  readonly opened: Promise<boolean>
  readonly ended: Promise<DpsError | undefined>
  readonly #stream: HubStream
  readonly #context: SessionContext
  readonly #client: MqttClient
  readonly #streamClosed: Promise<void>
  readonly #acknowledge: (packetId: number) => void
  #over = false
  #connected = false
  #settleEnded!: (error: DpsError | undefined) => void
  readonly #settleOpened: Opening
  /** Requests that wait for an acknowledgement. */
  readonly #waiting = new Set<(reason: DpsError) => void>()
  /** Answers that are not passed on yet, and where in all that was written they end. */
  readonly #answers: { readonly end: number; readonly bytes: number }[] = []
  #answerBytes = 0

  constructor(stream: HubStream, context: SessionContext) {
    this.#stream = stream
    this.#context = context
    this.ended = new Promise((resolve) => {
      this.#settleEnded = resolve
    })
    let settle!: Opening
    this.opened = new Promise((resolve, reject) => {
      settle = { resolve, reject }
    })
    this.#settleOpened = settle
    this.#streamClosed = new Promise((resolve) => stream.once('close', () => resolve()))
    stream.onBroken = (reason) => this.fail(DpsError.is(reason) ? reason : this.#lost(reason))

    const client = new MqttClient(() => stream as never, this.#options())
    this.#client = client
    client.on('packetreceive', (packet) => {
      if (packet.cmd === 'connack' && packet.returnCode !== 0) {
        this.fail(connectionRefused(context.target.hub, packet.returnCode ?? -1))
      } else if (packet.cmd !== 'connack' && !client.connected) {
        this.fail(this.#violation(`${packet.cmd.toUpperCase()} before CONNACK [MQTT-3.2.0-1]`))
      }
    })
    client.on('connect', (packet) => this.#open(packet.sessionPresent === true))
    client.on('message', (topic, body, packet) => {
      if (this.#over) return
      const { qos, dup, messageId } = packet
      const acknowledge = () => {
        if (qos !== 1 || messageId === undefined || this.#over) return
        this.#acknowledge(messageId)
        this.#countAnswer(0)
      }
      context.onMessage({ topic, body, qos, dup, acknowledge })
    })
    // Everything the stream has to say is told by the stream; what is left is the protocol.
    client.on('error', (cause) => this.fail(this.#violation('what is not MQTT 3.1.1', cause)))
    client.onKeepaliveTimeout = () => {
      this.fail(new DpsError('TIMEOUT', 'hub', 'the hub did not answer a ping within the keep-alive'))
    }
    this.#acknowledge = acknowledgeByHand(client)

    const { signal } = context
    const onAbort = () => this.fail(signal.reason)
    const disarm = () => signal.removeEventListener('abort', onAbort)
    signal.addEventListener('abort', onAbort, { once: true })
    this.opened.then(disarm, disarm)
    if (signal.aborted) onAbort()
  }

  /** A fresh object: MQTT.js writes to it. */
  #options(): IClientOptions {
    const { target, password, clock } = this.#context
    return {
      protocolId: 'MQTT',
      protocolVersion: 4,
      clientId: target.clientId,
      username: target.userName,
      ...(password !== undefined && { password }),
      clean: target.cleanSession,
      keepalive: target.keepAliveSeconds,
      reconnectPeriod: 0,
      resubscribe: false,
      queueQoSZero: false,
      writeCache: false,
      // The limits are kept outside, by the one clock.
      connectTimeout: MAX_TIMER_MS,
      timerVariant: intervalOf(clock),
      // Its own would print the password where DEBUG asks for it.
      log: () => undefined,
    }
  }

  #open(sessionPresent: boolean): void {
    if (this.#over || this.#connected) return
    if (sessionPresent && this.#context.target.cleanSession) {
      this.fail(this.#violation('CONNACK with a session where a clean one was asked for [MQTT-3.2.2-1]'))
      return
    }
    this.#connected = true
    this.#stream.phase = 'hub'
    this.#settleOpened.resolve(sessionPresent)
  }

  request(
    phase: DpsPhase,
    work: (client: MqttClient, done: (error: Error | undefined) => void) => void,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#over) {
        reject(this.#lost())
        return
      }
      this.#waiting.add(reject)
      work(this.#client, (error) => {
        this.#waiting.delete(reject)
        // What MQTT.js says about an end has been said better.
        if (this.#over) return
        if (error === undefined) resolve()
        else if (DpsError.is(error)) reject(error)
        else {
          const fault = this.#violation('an acknowledgement that does not fit', error, phase)
          this.fail(fault)
          reject(fault)
        }
      })
    })
  }

  get unsentBytes(): number {
    return this.#stream.unsentBytes
  }

  send(topic: string, body: Uint8Array | string): void {
    if (!this.#over) this.#client.publish(topic, body as string, { qos: 0 })
  }

  answer(topic: string, body: string): void {
    this.send(topic, body)
    this.#countAnswer(topic.length + Buffer.byteLength(body))
  }

  #countAnswer(bytes: number): void {
    if (this.#over) return
    const { passedBytes, writableLength } = this.#stream
    for (;;) {
      const first = this.#answers[0]
      if (first === undefined || first.end > passedBytes) break
      this.#answers.shift()
      this.#answerBytes -= first.bytes
    }
    const answer = { end: passedBytes + writableLength, bytes: bytes + PACKET_OVERHEAD }
    this.#answers.push(answer)
    this.#answerBytes += answer.bytes
    if (this.#answerBytes <= MAX_ANSWER_BYTES) return
    const message = `${this.#context.target.hub} asks for answers and does not read them`
    this.fail(new DpsError('CONNECTION_LOST', 'hub', message))
  }

  fail(reason: DpsError): void {
    if (this.#over) return
    this.#over = true
    this.#stream.destroy()
    this.#end(reason)
  }

  async close(): Promise<void> {
    if (!this.#over) {
      this.#over = true
      const stream = this.#stream
      const disarm = this.#context.clock.after(CLOSE_LIMIT_MS, () => stream.destroy())
      void this.#streamClosed.then(disarm)
      // No wait for the hub to end its side: MQTT has no answer to DISCONNECT.
      stream.end(() => stream.destroy())
      this.#end(undefined)
    }
    await this.#streamClosed
  }

  #end(error: DpsError | undefined): void {
    const reason = error ?? this.#lost()
    this.#settleOpened.reject(reason)
    for (const reject of this.#waiting) reject(reason)
    this.#waiting.clear()
    this.#settleEnded(error)
  }

  #lost(cause?: unknown): DpsError {
    return new DpsError(
      'CONNECTION_LOST',
      this.#stream.phase,
      `the connection to ${this.#context.target.hub} ended`,
      cause === undefined ? {} : { cause },
    )
  }

  #violation(what: string, cause?: unknown, phase: DpsPhase = this.#stream.phase): DpsError {
    return new DpsError(
      'PROTOCOL_VIOLATION',
      phase,
      `the hub sent ${what}`,
      cause === undefined ? {} : { cause },
    )
  }
}
