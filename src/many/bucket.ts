import type { Clock } from '../clock.ts'

/** So many milliseconds' worth of the rate may be asked for at once: a timer is no more exact than that under load. */
const BURST_MS = 1000

interface Waiting {
  readonly grant: () => void
  readonly urgent: boolean
}

/**
 * A token bucket for all that run together: so many turns a minute, evenly, and none while the service asks for patience.
 * Who was begun and has to try again goes before who has not begun.
 */
export class Bucket {
  readonly #gapMs: number
  readonly #clock: Clock
  readonly #waiting = new Set<Waiting>()
  readonly #closed = new AbortController()
  /** When the next turn would be due without any burst, on the monotonic clock. */
  #dueMs = 0
  #pumping = false

  constructor(ratePerMinute: number, clock: Clock) {
    this.#gapMs = 60_000 / ratePerMinute
    this.#clock = clock
  }

  /** Resolves when it is one's turn; rejects when `signal` aborts. */
  turn(signal: AbortSignal, urgent = false): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason)
      const waiting = {
        urgent,
        grant: () => {
          this.#waiting.delete(waiting)
          signal.removeEventListener('abort', onAbort)
          resolve()
        },
      }
      const onAbort = () => {
        this.#waiting.delete(waiting)
        reject(signal.reason)
      }
      signal.addEventListener('abort', onAbort, { once: true })
      this.#waiting.add(waiting)
      if (!this.#pumping) void this.#pump()
    })
  }

  /** No turn for so long, and a random part more, since others were told the same; nor a burst when it is over. */
  hold(ms: number): void {
    const until = this.#clock.monotonic() + ms * (1 + this.#clock.random() / 5) + BURST_MS
    this.#dueMs = Math.max(this.#dueMs, until)
  }

  /** Leaves no timer. */
  close(): void {
    this.#closed.abort()
  }

  async #pump(): Promise<void> {
    this.#pumping = true
    const { signal } = this.#closed
    while (this.#waiting.size > 0 && !signal.aborted) {
      const now = this.#clock.monotonic()
      const waitMs = Math.ceil(this.#dueMs - BURST_MS - now)
      if (waitMs > 0) {
        await this.#clock.sleep(waitMs, signal).catch(() => {})
        continue
      }
      this.#dueMs = Math.max(this.#dueMs, now) + this.#gapMs
      this.#first().grant()
    }
    this.#pumping = false
  }

  #first(): Waiting {
    let first: Waiting | undefined
    for (const waiting of this.#waiting) {
      if (waiting.urgent) return waiting
      first ??= waiting
    }
    return first!
  }
}
