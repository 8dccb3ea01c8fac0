import type { Clock } from '../clock.ts'
import { DpsError } from '../errors.ts'
import type { DpsEvent } from '../options/options.ts'
import type { ResolvedRetry } from '../options/resolve.ts'
import { type DeviceRegistration, parseReply } from '../protocol/response.ts'
import type { ConnectionFacts, TransportSession } from '../transport/transport.ts'
import { type PhaseLimits, type PhaseTimings, PhaseTracker, type Scope } from './phases.ts'
import { delayMs } from './schedule.ts'
import type { Effect, RegistrationEvent, Step, Wait } from './state.ts'
import { IDLE, transition } from './transition.ts'

/** An open session and what it was opened with. */
export interface OpenedSession {
  readonly session: TransportSession
  readonly registrationId: string
  /** The body of the register request. */
  readonly body: string
}

export interface RegistrationPlan {
  /** Opens a session with the credential as it is now. */
  readonly open: (scope: Scope) => Promise<OpenedSession>
  readonly clock: Clock
  readonly retry: ResolvedRetry
  readonly limits: PhaseLimits
  /** Milliseconds for everything together. */
  readonly totalMs: number
  readonly signal: AbortSignal | undefined
  readonly emit: (event: DpsEvent) => void
}

export interface RegistrationResult {
  readonly registration: DeviceRegistration
  /** The connection on which the device was assigned; `roundTrips` counts every connection of the call. */
  readonly connection: ConnectionFacts
  readonly timingsMs: PhaseTimings
}

/** A close that a transport does not finish is not waited for any longer than this. */
const CLOSE_LIMIT_MS = 1000

/**
 * Performs one registration: asks `transition` what to do, does it, and reports back, until the end. Settles exactly
 * once; when it has, the session is closed, no timer runs and no listener is left on the caller's signal.
 *
 * @throws DpsError
 */
export function runRegistration(plan: RegistrationPlan): Promise<RegistrationResult> {
  return new RegistrationRun(plan).run()
}

class RegistrationRun {
  readonly #plan: RegistrationPlan
  readonly #phases: PhaseTracker
  readonly #deadlineAt: number
  #opened: OpenedSession | undefined
  #registrationId: string | undefined
  #roundTrips = 0
  #lastError: DpsError | undefined
  #stop: DpsError | undefined
  #settled = false

  constructor(plan: RegistrationPlan) {
    this.#plan = plan
    const { clock } = plan
    this.#deadlineAt = clock.monotonic() + plan.totalMs
    this.#phases = new PhaseTracker(clock, plan.limits, (event) => this.#emit(event))
  }

  async run(): Promise<RegistrationResult> {
    const { clock, signal, totalMs } = this.#plan
    const disarm = clock.after(totalMs, () => this.#halt(this.#deadlineExceeded()))
    const onAbort = () => this.#halt(this.#cancelled())
    signal?.addEventListener('abort', onAbort, { once: true })
    if (signal?.aborted) onAbort()
    try {
      return await this.#drive()
    } finally {
      disarm()
      signal?.removeEventListener('abort', onAbort)
      await this.#close()
      this.#settled = true
    }
  }

  async #drive(): Promise<RegistrationResult> {
    let [state, effect] = transition(IDLE, { name: 'start' }, this.#plan.retry.maxAttempts)
    for (;;) {
      if (effect.name === 'reject') throw effect.error
      if (effect.name === 'resolve') {
        // A caller who cancelled in the same instant must not be told that it went on.
        if (this.#stop !== undefined) throw this.#stop
        return this.#result(effect.registration)
      }
      const event = await this.#perform(effect)
      if ('error' in event) this.#lastError = event.error
      ;[state, effect] = transition(state, event, this.#plan.retry.maxAttempts)
    }
  }

  async #perform(effect: Effect): Promise<RegistrationEvent> {
    if (this.#stop !== undefined) return { name: 'stopped', error: this.#stop }
    switch (effect.name) {
      case 'open':
        return this.#attempt('open-failed', (scope) => this.#open(scope))
      case 'request':
        return this.#attempt('lost', (scope) => this.#request(effect.step, scope))
      case 'wait':
        return this.#wait(effect.wait, effect.keep)
      default:
        throw new TypeError(`effect ${effect.name} is not performed`)
    }
  }

  /** Runs one effect; whatever it throws becomes an event, so nothing leaves the loop but by the table. */
  async #attempt(
    failed: 'open-failed' | 'lost',
    work: (scope: Scope) => Promise<RegistrationEvent>,
  ): Promise<RegistrationEvent> {
    try {
      return await this.#phases.run(work)
    } catch (thrown) {
      if (this.#stop !== undefined) return { name: 'stopped', error: this.#stop }
      return { name: failed, error: asDpsError(thrown, this.#phases) }
    }
  }

  async #open(scope: Scope): Promise<RegistrationEvent> {
    const opening = this.#plan.open(scope)
    // A transport that opens after it was given up on would leave a connection that nobody closes.
    opening.then(
      (late) => scope.signal.aborted && void late.session.close().catch(() => {}),
      () => {},
    )
    const opened = await opening
    if (scope.signal.aborted) throw scope.signal.reason
    this.#opened = opened
    this.#roundTrips += opened.session.connection.roundTrips
    this.#registrationId ??= opened.registrationId
    if (this.#registrationId !== opened.registrationId) {
      throw new DpsError(
        'CREDENTIAL_NAME_MISMATCH',
        'config',
        `the credential became that of another device ("${opened.registrationId}") during the registration of "${this.#registrationId}"`,
      )
    }
    return { name: 'opened' }
  }

  async #request(step: Step, scope: Scope): Promise<RegistrationEvent> {
    const { session, registrationId, body } = this.#opened!
    scope.enter(step.kind)
    const raw = await session.request(
      step.kind === 'register'
        ? { kind: 'register', body }
        : { kind: 'query', operationId: step.operationId },
      scope.signal,
    )
    this.#roundTrips++
    const reply = parseReply(raw, {
      phase: step.kind,
      registrationId,
      operationId: step.kind === 'poll' ? step.operationId : undefined,
      nowMs: this.#plan.clock.now(),
    })
    const { kind, ...rest } = reply
    return { name: kind, ...rest } as RegistrationEvent
  }

  async #wait(wait: Wait, keep: boolean): Promise<RegistrationEvent> {
    if (!keep) await this.#close()
    const { clock, retry } = this.#plan
    const ms = delayMs(wait, retry, clock.random())
    if (ms === 0) return { name: 'waited' }
    // Sleeping until a deadline that is certain to pass first would only delay the news.
    if (ms >= this.#deadlineAt - clock.monotonic()) {
      const error =
        wait.reason === 'retry'
          ? wait.error
          : this.#deadlineExceeded(wait.reason === 'assigning' ? wait.retryAfterMs : undefined)
      return { name: 'stopped', error }
    }
    if (wait.reason === 'retry') {
      this.#emit({ type: 'retry', step: wait.step, attempt: wait.failures, delayMs: ms, error: wait.error })
    } else if (wait.reason === 'assigning') {
      this.#emit({ type: 'assigning', operationId: wait.operationId, delayMs: ms })
    }
    try {
      await this.#phases.run((scope) => clock.sleep(ms, scope.signal))
      return { name: 'waited' }
    } catch (thrown) {
      return { name: 'stopped', error: this.#stop ?? asDpsError(thrown, this.#phases) }
    }
  }

  #result(registration: DeviceRegistration): RegistrationResult {
    const { connection } = this.#opened!.session
    return {
      registration,
      connection: { ...connection, roundTrips: this.#roundTrips },
      timingsMs: this.#phases.timings(),
    }
  }

  async #close(): Promise<void> {
    const session = this.#opened?.session
    this.#opened = undefined
    if (session === undefined) return
    let disarm: (() => void) | undefined
    const limit = new Promise<void>((resolve) => {
      disarm = this.#plan.clock.after(CLOSE_LIMIT_MS, resolve)
    })
    await Promise.race([session.close().catch(() => {}), limit])
    disarm?.()
  }

  #halt(error: DpsError): void {
    if (this.#stop !== undefined) return
    this.#stop = error
    this.#phases.abort(error)
  }

  #cancelled(): DpsError {
    return new DpsError(
      'CANCELLED',
      this.#phases.last,
      `cancelled by the caller in phase ${this.#phases.last}`,
      {
        cause: this.#plan.signal?.reason,
      },
    )
  }

  #deadlineExceeded(retryAfterMs?: number): DpsError {
    const { totalMs } = this.#plan
    const { last } = this.#phases
    return new DpsError(
      'DEADLINE_EXCEEDED',
      last,
      `not assigned within ${totalMs} ms; the last phase was ${last}`,
      {
        retryAfterMs,
        cause: this.#lastError,
      },
    )
  }

  #emit(event: DpsEvent): void {
    if (!this.#settled) this.#plan.emit(event)
  }
}

/** Only a transport or credential of the caller's own can throw anything else than a DpsError. */
function asDpsError(thrown: unknown, phases: PhaseTracker): DpsError {
  return DpsError.is(thrown)
    ? thrown
    : new DpsError('TRANSPORT_FAILED', phases.last, 'the transport or the credential failed', {
        cause: thrown,
      })
}
