import type { Clock } from '../clock.ts'
import { DpsError } from '../errors.ts'
import type { DpsEvent } from '../options/options.ts'
import type { ResolvedRetry } from '../options/resolve.ts'
import { parseLookup, parseReply } from '../protocol/response.ts'
import type { ConnectionFacts, TransportRequest, TransportSession } from '../transport/transport.ts'
import { CredentialTurns, mayBeRefusedPipelining, mayFallBack } from './fallback.ts'
import { type PhaseLimits, type PhaseTimings, PhaseTracker, type Scope } from './phases.ts'
import { delayMs } from './schedule.ts'
import type { Effect, Outcome, RegistrationEvent, Request, Step, Wait } from './state.ts'
import { transition } from './transition.ts'

/** An open session and what it was opened with. */
export interface OpenedSession {
  readonly session: TransportSession
  readonly registrationId: string
  /** The body of a register or lookup request. */
  readonly body: string
  /** Takes the connection away from a session that does not close. */
  readonly destroy?: () => void
}

/** One way to reach the service. */
export interface Route {
  readonly name: string
  /**
   * Present where a session's first request may be sent before the service has let the device in. Called when such a
   * request found no answer and the same, sent in its turn, did.
   */
  readonly onPipeliningRefused?: (() => void) | undefined
  /** Opens a session with that credential as it is now; `early` is what may be sent at once. */
  open(scope: Scope, early: EarlyStep | undefined, credential: number): Promise<OpenedSession>
}

export interface EarlyStep {
  readonly step: Request
  /** The device that the call is about, once that is known: nothing is sent at once for another. */
  readonly registrationId: string | undefined
}

export interface CallPlan {
  /** What is asked first. */
  readonly step: Step
  /** In order of preference, at least one. */
  readonly routes: readonly Route[]
  /** How many there are, in order of preference. Default 1. */
  readonly credentials?: number
  /** Told the index of the route that let the call through. */
  readonly onReached?: (route: number) => void
  readonly clock: Clock
  readonly retry: ResolvedRetry
  readonly limits: PhaseLimits
  /** Milliseconds for everything together. */
  readonly totalMs: number
  readonly signal: AbortSignal | undefined
  readonly emit: (event: DpsEvent) => void
  /** Where this is one of many calls. */
  readonly pace?: Pace | undefined
  /** Says more of an error that ends the call, or the turn of a credential, where the caller can. */
  readonly explain?: (error: DpsError, credential: number) => Promise<DpsError>
}

/** What many calls share, so that together they ask for no more than the service allows. */
export interface Pace {
  /** Resolves when a step that failed may be tried again. */
  turn(signal: AbortSignal): Promise<void>
  /** The service has no time for this call for so long, or as long as the error says: nor for any other. */
  hold(error: DpsError, delayMs: number): void
}

export interface CallResult {
  readonly outcome: Outcome
  readonly registrationId: string
  /** The index of the one that was used. */
  readonly credential: number
  /** The connection that brought the outcome; `roundTrips` counts every session that was opened in the call. */
  readonly connection: ConnectionFacts
  readonly timingsMs: PhaseTimings
}

/** A close that is not finished by then, because nothing below takes its last bytes, is not waited for. */
const CLOSE_LIMIT_MS = 250

/** The phase a request is in. The service's lookup is a question about a state, as a poll is. */
const PHASE_OF = { register: 'register', poll: 'poll', lookup: 'poll' } as const

/**
 * Performs one call: asks `transition` what to do, does it, and reports back, until the end. Settles exactly once; when
 * it has, the session is closed, no timer runs and no listener is left on the caller's signal.
 *
 * @throws DpsError
 */
export function runCall(plan: CallPlan): Promise<CallResult> {
  return new Call(plan).run()
}

class Call {
  readonly #plan: CallPlan
  readonly #phases: PhaseTracker
  readonly #deadlineAt: number
  readonly #turns: CredentialTurns
  #opened: OpenedSession | undefined
  /** The route that got through last: what was blocked a moment ago is not tried first again. */
  #route: number | undefined
  #registrationId: string | undefined
  #roundTrips = 0
  /** No longer once a request that was sent early has found no answer. */
  #pipelining = true
  /** Whether the session's first request was sent early and is unanswered. */
  #early = false
  /** The route on which a request that was sent early found no answer. */
  #suspect: number | undefined
  #lastError: DpsError | undefined
  #stop: DpsError | undefined
  #settled = false

  constructor(plan: CallPlan) {
    this.#plan = plan
    this.#turns = new CredentialTurns(plan.credentials ?? 1)
    const { clock } = plan
    this.#deadlineAt = clock.monotonic() + plan.totalMs
    this.#phases = new PhaseTracker(clock, plan.limits, (event) => this.#emit(event))
  }

  async run(): Promise<CallResult> {
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

  async #drive(): Promise<CallResult> {
    const { step, retry } = this.#plan
    let [state, effect] = transition({ name: 'idle', step }, { name: 'start' }, retry)
    for (;;) {
      if (effect.name === 'reject') {
        if (this.#stop !== undefined) throw effect.error
        this.#emit(this.#turns.next(await this.#explained(effect.error)))
        await this.#close()
        ;[state, effect] = transition({ name: 'idle', step }, { name: 'start-again' }, retry)
        continue
      }
      if (effect.name === 'resolve') {
        // A caller who cancelled in the same instant must not be told that it went on.
        if (this.#stop !== undefined) throw this.#stop
        return this.#result(effect.outcome)
      }
      const event = await this.#perform(effect)
      if ('error' in event) this.#lastError = event.error
      ;[state, effect] = transition(state, event, retry)
    }
  }

  async #explained(error: DpsError): Promise<DpsError> {
    return (await this.#plan.explain?.(error, this.#turns.index).catch(() => error)) ?? error
  }

  async #perform(effect: Effect): Promise<RegistrationEvent> {
    if (this.#stop !== undefined) return { name: 'stopped', error: this.#stop }
    switch (effect.name) {
      case 'open':
        return this.#openAny(effect.step)
      case 'request':
        return this.#ask(effect.step)
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

  /** One attempt to connect: over each route in turn, for as long as only the network is in the way. */
  async #openAny(step: Step): Promise<RegistrationEvent> {
    const { routes, onReached } = this.#plan
    const order = [...routes.keys()].sort((a, b) => Number(b === this.#route) - Number(a === this.#route))
    for (const [turn, index] of order.entries()) {
      const route = routes[index]!
      const early = this.#earlyStep(route, step)
      let event = await this.#attempt('open-failed', (scope) => this.#open(route, scope, early))
      if (early !== undefined && event.name === 'open-failed' && mayBeRefusedPipelining(event.error)) {
        this.#suspectPipelining(index, event.error)
        if (this.#stop !== undefined) break
        event = await this.#attempt('open-failed', (scope) => this.#open(route, scope))
        // The same without: that was not why.
        if (event.name === 'open-failed' && mayBeRefusedPipelining(event.error)) this.#suspect = undefined
      }
      if (event.name === 'opened') {
        this.#route = index
        onReached?.(index)
      }
      const next = order[turn + 1]
      if (event.name !== 'open-failed' || next === undefined || !mayFallBack(event.error)) {
        // A refusal too has come through.
        if (event.name === 'open-failed' && !mayFallBack(event.error)) this.#route = index
        return event
      }
      this.#emit({ type: 'fallback', from: route.name, to: routes[next]!.name, error: event.error })
      if (this.#stop !== undefined) break
    }
    return { name: 'stopped', error: this.#stop ?? this.#cancelled() }
  }

  #earlyStep({ onPipeliningRefused }: Route, step: Step): EarlyStep | undefined {
    if (onPipeliningRefused === undefined || !this.#pipelining || step.kind === 'probe') return undefined
    return { step, registrationId: this.#registrationId }
  }

  #suspectPipelining(route: number, error: DpsError): void {
    this.#pipelining = false
    this.#suspect = route
    this.#emit({ type: 'pipelining-refused', transport: this.#plan.routes[route]!.name, error })
  }

  async #open(route: Route, scope: Scope, early?: EarlyStep): Promise<RegistrationEvent> {
    const opening = route.open(scope, early, this.#turns.index)
    // A transport that opens after it was given up on would leave a connection that nobody closes.
    opening.then(
      (late) => scope.signal.aborted && void closeOrDestroy(late, this.#plan.clock),
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
    this.#early = early !== undefined
    return { name: 'opened' }
  }

  async #ask(step: Request): Promise<RegistrationEvent> {
    const event = await this.#attempt('lost', (scope) => this.#request(step, scope))
    if (this.#early && event.name === 'lost' && mayBeRefusedPipelining(event.error)) {
      this.#suspectPipelining(this.#route!, event.error)
    }
    return event
  }

  #answered(): void {
    this.#roundTrips++
    this.#early = false
    if (this.#suspect === undefined || this.#suspect !== this.#route) return
    this.#plan.routes[this.#suspect]?.onPipeliningRefused?.()
    this.#suspect = undefined
  }

  async #request(step: Request, scope: Scope): Promise<RegistrationEvent> {
    const { session, registrationId, body } = this.#opened!
    const phase = PHASE_OF[step.kind]
    scope.enter(phase)
    const raw = await session.request(transportRequest(step, body), scope.signal)
    this.#answered()
    const context = {
      phase,
      registrationId,
      operationId: step.kind === 'poll' ? step.operationId : undefined,
      nowMs: this.#plan.clock.now(),
    }
    const reply = step.kind === 'lookup' ? parseLookup(raw, context) : parseReply(raw, context)
    switch (reply.kind) {
      case 'refused':
        return { name: 'refused', error: reply.error }
      case 'assigning':
        return { name: 'assigning', operationId: reply.operationId, retryAfterMs: reply.retryAfterMs }
      default:
        return { name: 'finished', outcome: reply }
    }
  }

  async #wait(wait: Wait, keep: boolean): Promise<RegistrationEvent> {
    if (!keep) await this.#close()
    const { clock, retry } = this.#plan
    const ms = delayMs(wait, retry, clock.random())
    const pace = wait.reason === 'retry' ? this.#plan.pace : undefined
    if (wait.reason === 'retry') pace?.hold(wait.error, ms)
    // Sleeping until a deadline that is certain to pass first would only delay the news.
    if (ms > 0 && ms >= this.#deadlineAt - clock.monotonic()) {
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
    // A handler of these events, or the close above, may have let the caller cancel while nothing was under way.
    if (this.#stop !== undefined) return { name: 'stopped', error: this.#stop }
    if (ms === 0 && pace === undefined) return { name: 'waited' }
    try {
      await this.#phases.run(async ({ signal }) => {
        await clock.sleep(ms, signal)
        await pace?.turn(signal)
      })
      return { name: 'waited' }
    } catch (thrown) {
      return { name: 'stopped', error: this.#stop ?? asDpsError(thrown, this.#phases) }
    }
  }

  #result(outcome: Outcome): CallResult {
    const { session, registrationId } = this.#opened!
    const { connection } = session
    return {
      outcome,
      registrationId,
      credential: this.#turns.index,
      connection: { ...connection, roundTrips: this.#roundTrips },
      timingsMs: this.#phases.timings(),
    }
  }

  async #close(): Promise<void> {
    const opened = this.#opened
    this.#opened = undefined
    if (opened !== undefined) await closeOrDestroy(opened, this.#plan.clock)
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
      { cause: this.#plan.signal?.reason },
    )
  }

  #deadlineExceeded(retryAfterMs?: number): DpsError {
    const { totalMs } = this.#plan
    const { last } = this.#phases
    return new DpsError(
      'DEADLINE_EXCEEDED',
      last,
      retryAfterMs === undefined
        ? `not finished within ${totalMs} ms; the last phase was ${last}`
        : `the service asks to wait ${retryAfterMs} ms, which is past the limit of ${totalMs} ms for the whole call`,
      { retryAfterMs, cause: this.#lastError },
    )
  }

  #emit(event: DpsEvent): void {
    if (!this.#settled) this.#plan.emit(event)
  }
}

/** @param body of a register or lookup request */
export function transportRequest(step: Request, body: string): TransportRequest {
  return step.kind === 'poll' ? { kind: 'query', operationId: step.operationId } : { kind: step.kind, body }
}

async function closeOrDestroy({ session, destroy }: OpenedSession, clock: Clock): Promise<void> {
  let disarm: (() => void) | undefined
  const limit = new Promise<void>((resolve) => {
    disarm = clock.after(CLOSE_LIMIT_MS, () => {
      destroy?.()
      resolve()
    })
  })
  await Promise.race([session.close().catch(() => {}), limit])
  disarm?.()
}

/** Only a transport or credential of the caller's own can throw anything else than a DpsError. */
function asDpsError(thrown: unknown, phases: PhaseTracker): DpsError {
  return DpsError.is(thrown)
    ? thrown
    : new DpsError('TRANSPORT_FAILED', phases.last, 'the transport or the credential failed', {
        cause: thrown,
      })
}
