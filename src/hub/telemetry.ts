import type { Clock } from '../clock.ts'
import { DpsError } from '../errors.ts'
import type { HubSession } from './session.ts'

interface Message {
  readonly topic: string
  readonly body: Uint8Array
  readonly bytes: number
  resolve(): void
  reject(error: DpsError): void
}

/** How many messages are on their way unacknowledged. More would only fill the buffers below. */
const WINDOW = 32

/** A hub that owes acknowledgements and gives none for so long, having been sent everything, has lost them. */
const OWED_LIMIT_MS = 120_000

/**
 * Messages on their way to the hub, in order. One leaves when the hub has acknowledged it, and is sent anew over the next
 * connection if that did not happen: each arrives at least once.
 */
export class TelemetryQueue {
  readonly #maxMessages: number
  readonly #maxBytes: number
  /** To be sent, oldest first. */
  #waiting: Message[] = []
  /** Sent over the present connection. */
  readonly #inFlight = new Set<Message>()
  #bytes = 0
  #session: HubSession | undefined
  #paused = false
  #onIdle: (() => void)[] = []
  readonly #clock: Clock
  #disarm: (() => void) | undefined

  constructor(clock: Clock, maxMessages: number, maxBytes: number) {
    this.#clock = clock
    this.#maxMessages = maxMessages
    this.#maxBytes = maxBytes
  }

  /** Messages that are not acknowledged yet. */
  get size(): number {
    return this.#waiting.length + this.#inFlight.size
  }

  /**
   * Resolves when the hub has acknowledged the message.
   *
   * @throws DpsError QUEUE_FULL, CANCELLED, or what `rejectAll` is given
   */
  add(topic: string, body: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    const bytes = topic.length + body.length
    if (this.size >= this.#maxMessages || this.#bytes + bytes > this.#maxBytes) {
      return Promise.reject(
        new DpsError(
          'QUEUE_FULL',
          'hub',
          `${this.size} messages of ${this.#bytes} bytes wait for the hub; at most ${this.#maxMessages} of ${this.#maxBytes} bytes may`,
        ),
      )
    }
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        this.#bytes -= bytes
        signal?.removeEventListener('abort', onAbort)
      }
      const message: Message = {
        topic,
        body,
        bytes,
        resolve: () => {
          settle()
          resolve()
        },
        reject: (error) => {
          settle()
          reject(error)
        },
      }
      const onAbort = (): void => this.#cancel(message, signal?.reason)
      signal?.addEventListener('abort', onAbort)
      this.#bytes += bytes
      this.#waiting.push(message)
      this.#pump()
    })
  }

  attach(session: HubSession): void {
    this.#session = session
    this.#paused = false
    this.#pump()
  }

  /** The connection is gone: what it did not bring to an end begins again. */
  detach(): void {
    this.#session = undefined
    this.#disarm?.()
    this.#disarm = undefined
    this.#waiting = [...this.#inFlight, ...this.#waiting]
    this.#inFlight.clear()
    this.#idle()
  }

  /** Sends nothing more for now; resolves when nothing is on its way. */
  pause(): Promise<void> {
    this.#paused = true
    return this.#whenIdle()
  }

  /** Goes on where it was paused; resolves when all is acknowledged, or the connection is gone. */
  drained(): Promise<void> {
    this.#paused = false
    this.#pump()
    return this.#whenIdle()
  }

  rejectAll(error: DpsError): void {
    for (const message of [...this.#inFlight, ...this.#waiting]) message.reject(error)
    this.#inFlight.clear()
    this.#waiting = []
    this.#disarm?.()
    this.#disarm = undefined
    this.#idle()
  }

  #pump(): void {
    const session = this.#session
    while (session !== undefined && !this.#paused && this.#inFlight.size < WINDOW) {
      const message = this.#waiting.shift()
      if (message === undefined) return
      this.#inFlight.add(message)
      if (this.#disarm === undefined) this.#watch(session)
      session.publish(message.topic, message.body).then(
        () => {
          if (this.#session !== session || !this.#inFlight.delete(message)) return
          message.resolve()
          this.#watch(session)
          this.#idle()
          this.#pump()
        },
        // The connection has ended, and `detach` will put the message back.
        () => undefined,
      )
    }
  }

  #watch(session: HubSession): void {
    this.#disarm?.()
    this.#disarm = undefined
    if (this.#inFlight.size === 0) return
    this.#disarm = this.#clock.after(OWED_LIMIT_MS, () => {
      if (session.unsentBytes > 0) this.#watch(session)
      else {
        const message = `the hub has acknowledged none of ${this.#inFlight.size} messages for ${OWED_LIMIT_MS} ms`
        session.fail(new DpsError('TIMEOUT', 'hub', message))
      }
    })
  }

  #whenIdle(): Promise<void> {
    return new Promise((resolve) => {
      this.#onIdle.push(resolve)
      this.#idle()
    })
  }

  #idle(): void {
    const none = this.#inFlight.size === 0 && (this.#paused || this.#waiting.length === 0)
    if (!none && this.#session !== undefined) return
    for (const resolve of this.#onIdle.splice(0)) resolve()
  }

  #cancel(message: Message, reason: unknown): void {
    this.#inFlight.delete(message)
    if (this.#inFlight.size === 0) {
      this.#disarm?.()
      this.#disarm = undefined
    }
    this.#waiting = this.#waiting.filter((other) => other !== message)
    message.reject(
      new DpsError('CANCELLED', 'hub', 'cancelled by the caller; the hub may have got the message', {
        cause: reason,
      }),
    )
    this.#idle()
    this.#pump()
  }
}
