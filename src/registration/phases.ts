import type { Clock } from '../clock.ts'
import { DpsError, type DpsPhase } from '../errors.ts'
import type { DpsEvent } from '../options/options.ts'

/** Milliseconds each phase took, summed over repeats, and `total`. Phases that did not occur are absent. */
export type PhaseTimings = Readonly<Partial<Record<DpsPhase, number>> & { total: number }>

/** A limit per phase in milliseconds; a phase without one is bounded by the deadline alone. */
export type PhaseLimits = Readonly<Partial<Record<DpsPhase, number>>>

/** One effect under way: the signal that ends it, and the announcements it makes. */
export interface Scope {
  readonly signal: AbortSignal
  /** @param where who is waited for, for the message of a TIMEOUT */
  enter(phase: DpsPhase, where?: string): void
}

/**
 * Knows which phase a call is in: measures it, reports it and ends it when its limit has passed. One for each call; at
 * most one scope at a time.
 */
export class PhaseTracker {
  readonly #clock: Clock
  readonly #limits: PhaseLimits
  readonly #emit: (event: DpsEvent) => void
  readonly #startedAt: number
  readonly #spent: Partial<Record<DpsPhase, number>> = {}
  /** One for all scopes, until it has aborted one: each ends before the next begins. */
  #controller = new AbortController()
  /** Ends the scope that is running. */
  #abandon: ((reason: unknown) => void) | undefined
  #phase: DpsPhase | undefined
  #enteredAt = 0
  #disarm: (() => void) | undefined
  /** The phase entered last, for errors that are found between phases. */
  last: DpsPhase = 'config'

  constructor(clock: Clock, limits: PhaseLimits, emit: (event: DpsEvent) => void) {
    this.#clock = clock
    this.#limits = limits
    this.#emit = emit
    this.#startedAt = clock.monotonic()
  }

  /**
   * Runs `work` until it settles or the scope is aborted, whichever is first, and never longer: a transport that
   * ignores its signal cannot hold the call.
   */
  async run<T>(work: (scope: Scope) => Promise<T>): Promise<T> {
    if (this.#controller.signal.aborted) this.#controller = new AbortController()
    const { signal } = this.#controller
    let abandoned = false
    const enter = (phase: DpsPhase, where?: string) => {
      if (!abandoned) this.#enter(phase, where)
    }
    try {
      const value = await new Promise<T>((resolve, reject) => {
        this.#abandon = reject
        work({ signal, enter }).then(resolve, reject)
      })
      this.#leave(true)
      return value
    } catch (error) {
      abandoned = true
      this.#leave(false)
      throw error
    } finally {
      this.#abandon = undefined
    }
  }

  /** Ends the scope that is running, if one is. */
  abort(error: DpsError): void {
    if (this.#abandon === undefined) return
    this.#abandon(error)
    this.#controller.abort(error)
  }

  timings(): PhaseTimings {
    const total = this.#clock.monotonic() - this.#startedAt
    return Object.freeze({ ...this.#spent, total })
  }

  #enter(phase: DpsPhase, where?: string): void {
    if (phase === this.#phase) return
    this.#leave(true)
    this.#phase = this.last = phase
    this.#enteredAt = this.#clock.monotonic()
    const limitMs = this.#limits[phase]
    if (limitMs !== undefined) {
      this.#disarm = this.#clock.after(limitMs, () =>
        this.abort(
          new DpsError(
            'TIMEOUT',
            phase,
            `no answer ${where === undefined ? '' : `from ${where} `}within ${limitMs} ms in phase ${phase}`,
          ),
        ),
      )
    }
    this.#emit({ type: 'phase-started', phase })
  }

  #leave(ok: boolean): void {
    const phase = this.#phase
    if (phase === undefined) return
    this.#phase = undefined
    this.#disarm?.()
    this.#disarm = undefined
    const durationMs = this.#clock.monotonic() - this.#enteredAt
    this.#spent[phase] = (this.#spent[phase] ?? 0) + durationMs
    this.#emit({ type: 'phase-ended', phase, durationMs, ok })
  }
}
