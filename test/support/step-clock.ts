import type { Clock } from '../../src/clock.ts'

/**
 * A clock for two sides that share it: it begins with a whole second, as dates do, and stands still until it is moved. Waits of up to a second, which are those between two
 * attempts to connect, pass at once and take no time.
 */
export class StepClock implements Clock {
  #now = Math.floor(Date.now() / 1000) * 1000
  readonly #timers = new Set<{ readonly at: number; readonly run: () => void }>()

  /** Timers that have neither run nor been cancelled. */
  get pending(): number {
    return this.#timers.size
  }

  now(): number {
    return this.#now
  }

  monotonic(): number {
    return this.#now
  }

  random(): number {
    return 0.5
  }

  after(ms: number, run: () => void): () => void {
    const timer = { at: this.#now + ms, run }
    this.#timers.add(timer)
    return () => this.#timers.delete(timer)
  }

  sleep(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        disarm()
        reject(signal.reason)
      }
      const disarm = ms > 1000 ? this.after(ms, wake) : () => undefined
      function wake(): void {
        signal.removeEventListener('abort', onAbort)
        resolve()
      }
      signal.addEventListener('abort', onAbort)
      if (signal.aborted) onAbort()
      else if (ms <= 1000) setImmediate(wake)
    })
  }

  advance(ms: number): void {
    const until = this.#now + ms
    for (;;) {
      const due = [...this.#timers].filter(({ at }) => at <= until).sort((a, b) => a.at - b.at)[0]
      if (due === undefined) break
      this.#timers.delete(due)
      this.#now = Math.max(this.#now, due.at)
      due.run()
    }
    this.#now = until
  }
}
