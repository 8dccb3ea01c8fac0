import { randomUUID } from 'node:crypto'
import { type HubAssignment, type HubTarget, type HubTransportName, hubToken } from '../assignment/hub.ts'
import { checkClock } from '../clock-check.ts'
import { DpsError, type DpsPhase } from '../errors.ts'
import { loadIssuance } from '../load-issuance.ts'
import { object } from '../options/resolve.ts'
import {
  commandFilter,
  METHOD_FILTER,
  type OutgoingProperties,
  TWIN_DESIRED_FILTER,
  TWIN_RESPONSE_FILTER,
  telemetryTopic,
} from '../protocol/hub-wire.ts'
import { CERTIFICATE_FILTER, isRequestId, mayRenew, RENEWAL_API_VERSION } from '../protocol/renewal.ts'
import { CredentialTurns, mayFallBack } from '../registration/fallback.ts'
import { PhaseTracker, type Scope } from '../registration/phases.ts'
import { backoffCeilingMs } from '../registration/schedule.ts'
import { dial } from '../tls/dial.ts'
import { checkIdentityAgainstPolicy } from '../tls/policy.ts'
import type { ConnectionFacts } from '../transport/transport.ts'
import { CertificateRequests } from './certificates.ts'
import { type CommandHandler, CommandInbox } from './commands.ts'
import { type MethodHandler, MethodTable } from './methods.ts'
import { type HubEvent, invalid, type ResolvedHub } from './options.ts'
import { subscriptionRefused } from './refusal.ts'
import { type HubMessage, HubSession } from './session.ts'
import { HubStream } from './stream.ts'
import { TelemetryQueue } from './telemetry.ts'
import {
  DesiredFeed,
  type DesiredHandler,
  type Twin,
  type TwinOptions,
  type TwinProperties,
  TwinRequests,
} from './twin.ts'

export interface TelemetryOptions extends OutgoingProperties {
  /** Cancels it: the promise rejects with CANCELLED. The hub may have got the message all the same. */
  signal?: AbortSignal
}

/** A request for a certificate (preview). */
export interface RequestCertificateOptions {
  /**
   * A certificate signing request of this device: base64 of DER, PEM, or what `createCsr` returns. Its CN must be the
   * registration id, letter for letter, which is the CN of the certificate that the device has.
   */
  csr: string | { readonly csr: string }
  /** Takes the place of a request that is pending: `'*'` of any, else of the one with this id. Default: of none. */
  replace?: string
  /**
   * 4 to 36 letters, digits and dashes, no dash at either end: under which the hub knows the request. Default: a new one.
   */
  requestId?: string
  /**
   * Whether a request of this id may have been made before, by a process that is no more: its answer is waited for, for five
   * seconds, before it is made anew. Default false.
   */
  resume?: boolean
  /** Cancels the wait; the hub may issue the certificate all the same. */
  signal?: AbortSignal
}

export interface CloseOptions {
  /** How long to wait for what is queued, ms, if there is a connection. Default 2 000. */
  drainMs?: number
}

/** Where things stand. `waiting`: the next attempt to connect is due later. */
export type HubState = 'connecting' | 'connected' | 'waiting' | 'closed'

/**
 * A device on its hub. It reconnects by itself until `close()`; what is asked of it in between waits for the next
 * connection.
 */
export interface HubConnection {
  /** Host name of the hub the device is assigned to. */
  readonly hub: string
  readonly deviceId: string
  readonly moduleId: string | undefined
  readonly state: HubState
  /** Of the present connection, or of the last. */
  readonly connection: ConnectionFacts
  /** Messages that the hub has not acknowledged yet. */
  readonly queued: number
  /**
   * Sends a message and resolves when the hub has acknowledged it (QoS 1). It is kept over reconnects and arrives at
   * least once. A `body` that is no text and no bytes is sent as JSON and, where nothing else is said, declared as such.
   * What overflows `queue` is refused, and what is queued already stays.
   *
   * @throws DpsError OPTION_INVALID; QUEUE_FULL, CANCELLED, HUB_CLOSED, phase `hub`
   */
  sendTelemetry(body: string | Uint8Array | object, options?: TelemetryOptions): Promise<void>
  /**
   * Listens to commands of the cloud, those that waited for the device included.
   *
   * @returns what removes the handler
   * @throws DpsError OPTION_INVALID where there is a handler already, or the connection is a module's; HUB_CLOSED
   */
  onCommand(handler: CommandHandler): () => void
  /**
   * Answers calls of one method. A method without a handler is answered with 501.
   *
   * @returns what removes the handler
   * @throws DpsError OPTION_INVALID where the method has a handler already; HUB_CLOSED
   */
  onMethod(name: string, handler: MethodHandler): () => void
  readonly twin: {
    /** @throws DpsError of phase `hub`: what the hub refused with, TIMEOUT, QUEUE_FULL, CANCELLED, HUB_CLOSED */
    get(options?: TwinOptions): Promise<Twin>
    /**
     * Changes reported properties, null removing what it names.
     *
     * @returns the new version of the reported properties, where the hub tells it
     * @throws DpsError OPTION_INVALID, or as `get`
     */
    report(patch: TwinProperties, options?: TwinOptions): Promise<number | undefined>
    /**
     * Listens to desired properties: first all of them, then changes; all of them again where changes were missed, as
     * while the device was away.
     *
     * @returns what removes the handler
     * @throws DpsError OPTION_INVALID where there is a handler already; HUB_CLOSED
     */
    onDesired(handler: DesiredHandler): () => void
  }
  /**
   * Asks the hub for a certificate (preview) and resolves with it once it is checked, as `register({ csr })` does: PEM each,
   * the device's first and each issuer after it. Nothing else changes: it is up to the caller to keep it with its key, and to
   * have the credential give it; the hub sees it with the next connection. Waits for a connection, and for two minutes until
   * the hub has taken the request, and again until the certificate is there; an answer that comes after a reconnect counts.
   *
   * The connection must name the API version `2025-08-01-preview`, as `apiVersion`, and be made with a certificate.
   *
   * https://learn.microsoft.com/azure/iot-hub/iot-concepts-certificate-renewal
   *
   * @beta
   * @throws DpsError OPTION_INVALID; CERTIFICATE_NOT_ISSUED, ISSUED_CERTIFICATE_INVALID; FORBIDDEN (403010) where the hub issues
   *   none; CONFLICT (409004) where another request is pending; BAD_REQUEST, NOT_FOUND, THROTTLED, SERVICE_UNAVAILABLE, TIMEOUT,
   *   SUBSCRIPTION_REFUSED, CANCELLED, HUB_CLOSED
   */
  requestCertificate(options: RequestCertificateOptions): Promise<readonly string[]>
  /**
   * Waits for queued messages as long as `drainMs` and a connection allow, rejects what is left with HUB_CLOSED, and
   * ends the connection. When it resolves no socket, timer or listener is left. Never throws; may be called again.
   */
  close(options?: CloseOptions): Promise<void>
}

/** Which hub it is, and what happens when that may have changed. */
export interface AssignmentSource {
  /** Whether it was the service that named the hub just now, and not a memory of it. */
  readonly fresh: boolean
  /** When the service was last heard, ms since the epoch; 0 for never. */
  readonly contactMs: number
  /** @throws DpsError */
  first(scope: { signal: AbortSignal }): Promise<HubAssignment>
  /**
   * Asked after a failure, in case the device belongs elsewhere by now; undefined where nobody could be asked or had to be.
   *
   * @throws DpsError
   */
  after(failure: HubFailure): Promise<HubAssignment | undefined>
  /** Whether what `after` threw is a no of the service, which ends the assignment. */
  isVerdict(error: DpsError): boolean
}

/** What goes along with a connection from the first on, and is over when `signal` aborts. Never rejects. */
export type Companion = (hub: Hub, signal: AbortSignal) => Promise<void>

export interface HubFailure {
  readonly error: DpsError
  /** In a row, this one included. */
  readonly failures: number
  /** Ms since there was a connection that worked. */
  readonly failingForMs: number
  readonly signal: AbortSignal
}

const MAX_MESSAGE_BYTES = 262_144
/** A message, its topic, and something for the header. */
const MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + 65_535 + 16

/** When a token is replaced, as a part of its life. By chance: who connected together must not come back together. */
const RENEW_FROM = 0.7
const RENEW_BY = 0.8
/** How long the renewal of a token waits for acknowledgements; what is late is sent anew. */
const RENEWAL_LIMIT_MS = 10_000
/** A connection that lasted so long has worked: what ends it later is a failure of its own. */
const STABLE_MS = 60_000
const DRAIN_MS = 2000

const DAY_MS = 86_400_000
/** From when on it is said that a certificate ends, where nobody renews it. */
const EXPIRY_NOTICE_MS = 30 * DAY_MS

/** Between attempts where a person has to mend something: as `provisionForever`. */
const REFUSED = { baseDelayMs: 300_000, maxDelayMs: 3_600_000, floorMs: 60_000 }

/** What one connection has asked for, is subscribed to, and was refused. */
class Subscriptions {
  readonly asked = new Set<string>()
  readonly granted = new Set<string>()
  readonly refused = new Map<string, DpsError>()
}

interface OpenedHub {
  readonly session: HubSession
  readonly subscriptions: Subscriptions
  readonly target: HubTarget
  readonly facts: ConnectionFacts
  /** Whether a token has to be renewed. */
  readonly expires: boolean
  /** When the certificate ends, which nobody renews. */
  readonly validUntilMs: number | undefined
  readonly registrationId: string
}

/** Holds the one connection there is at a time, and everything that outlives it. */
export class Hub implements HubConnection {
  readonly twin: HubConnection['twin']
  readonly #settings: ResolvedHub
  readonly #source: AssignmentSource
  readonly #emit: (event: HubEvent) => void
  readonly #telemetry: TelemetryQueue
  readonly #commands: CommandInbox
  readonly #methods: MethodTable
  readonly #requests: TwinRequests
  readonly #desired: DesiredFeed
  readonly #certificates: CertificateRequests
  /** Ends whatever is waited for between two connections. */
  readonly #abort = new AbortController()
  #phases: PhaseTracker | undefined
  #state: HubState = 'connecting'
  #assignment: HubAssignment | undefined
  #target: HubTarget | undefined
  #facts: ConnectionFacts | undefined
  #session: HubSession | undefined
  /** Of the present connection. */
  #subscriptions = new Subscriptions()
  /** Connected, and not subscribed yet. */
  #opening: HubSession | undefined
  #methodsWanted = false
  #twinWanted = false
  #certificatesWanted = false
  /** Of the credential of the present connection, or of the last. */
  #registrationId = ''
  #saidExpiryAt = Number.NEGATIVE_INFINITY
  #forgetExpiry: () => void = () => undefined
  /** Cuts the wait before the next attempt short. */
  #wake: () => void = () => undefined
  readonly #companion: Companion | undefined
  #accompanied: Promise<void> | undefined
  #reached: HubTransportName | undefined
  #stop: DpsError | undefined
  #lastError: DpsError | undefined
  #running: Promise<void> | undefined
  #closing: Promise<void> | undefined

  private constructor(
    settings: ResolvedHub,
    source: AssignmentSource,
    emit: (event: HubEvent) => void,
    companion: Companion | undefined,
  ) {
    const { maxMessages, maxBytes, base } = settings
    this.#settings = settings
    this.#source = source
    this.#emit = emit
    this.#companion = companion
    this.#telemetry = new TelemetryQueue(base.clock, maxMessages, maxBytes)
    this.#commands = new CommandInbox(emit)
    this.#methods = new MethodTable(emit)
    this.#requests = new TwinRequests(base.clock, base.limits.poll!, maxMessages, emit)
    this.#desired = new DesiredFeed(this.#requests, base.clock, base.retry, emit)
    this.#certificates = new CertificateRequests(base.clock, emit)
    this.twin = Object.freeze({
      get: async (options: TwinOptions = {}) => {
        const { signal } = object('options', options)
        this.#askAboutTwin()
        return this.#requests.get(checkSignal(signal))
      },
      report: async (patch: TwinProperties, options: TwinOptions = {}) => {
        const { signal } = object('options', options)
        const body = patchOf(patch)
        this.#askAboutTwin()
        return this.#requests.report(body, checkSignal(signal))
      },
      onDesired: (handler: DesiredHandler) => this.#onDesired(handler),
    })
  }

  /**
   * Connects; rejects if that fails for good. With `patient` only what no wait can mend is for good.
   *
   * @throws DpsError
   */
  static async open(
    settings: ResolvedHub,
    source: AssignmentSource,
    emit: (event: HubEvent) => void,
    patient: boolean,
    companion?: Companion,
  ): Promise<Hub> {
    const hub = new Hub(settings, source, emit, companion)
    await hub.#start(patient)
    hub.#accompanied = companion?.(hub, hub.#abort.signal)
    return hub
  }

  get hub(): string {
    return this.#target!.hub
  }

  get deviceId(): string {
    return this.#target!.deviceId
  }

  get moduleId(): string | undefined {
    return this.#target!.moduleId
  }

  get state(): HubState {
    return this.#state
  }

  get connection(): ConnectionFacts {
    return this.#facts!
  }

  get queued(): number {
    return this.#telemetry.size
  }

  async sendTelemetry(body: string | Uint8Array | object, options: TelemetryOptions = {}): Promise<void> {
    this.#checkOpen()
    const { signal, ...properties } = object('options', options)
    const bytes = bytesOf(body)
    const json = typeof body !== 'string' && !(body instanceof Uint8Array)
    const topic = telemetryTopic(this.#target!, {
      ...(json && { contentType: 'application/json', contentEncoding: 'utf-8' }),
      ...properties,
    })
    if (bytes.length + topic.length > MAX_MESSAGE_BYTES) {
      throw invalid('body', `and properties are at most ${MAX_MESSAGE_BYTES} bytes`)
    }
    if (checkSignal(signal)?.aborted) throw cancelled(signal!.reason, 'hub')
    await this.#telemetry.add(topic, bytes, signal)
  }

  onCommand(handler: CommandHandler): () => void {
    this.#checkHandler('onCommand', handler, this.#commands.handled)
    if (this.#target!.moduleId !== undefined) throw invalid('onCommand', 'is for devices: a module gets none')
    this.#commands.handle(handler)
    this.#subscribeMore()
    return once(() => this.#commands.handle(undefined))
  }

  onMethod(name: string, handler: MethodHandler): () => void {
    if (typeof name !== 'string' || name === '') throw invalid('onMethod', 'needs the name of a method')
    this.#checkHandler(`onMethod('${name}')`, handler, this.#methods.has(name))
    const remove = this.#methods.handle(name, handler)
    this.#methodsWanted = true
    this.#subscribeMore()
    return once(remove)
  }

  #askAboutTwin(): void {
    this.#checkOpen()
    const refused = this.#subscriptions.refused.get(TWIN_RESPONSE_FILTER)
    if (refused !== undefined) throw refused
    this.#twinWanted = true
    this.#subscribeMore()
  }

  #onDesired(handler: DesiredHandler): () => void {
    this.#checkHandler('onDesired', handler, this.#desired.handled)
    this.#desired.handle(handler)
    this.#twinWanted = true
    if (this.#subscriptions.granted.has(TWIN_DESIRED_FILTER)) this.#desired.attach()
    else this.#subscribeMore()
    return once(() => this.#desired.handle(undefined))
  }

  async requestCertificate(options: RequestCertificateOptions): Promise<readonly string[]> {
    this.#checkOpen()
    const { csr, replace, requestId = randomUUID(), resume = false, signal } = object('options', options)
    const { deviceId, moduleId, userName } = this.#target!
    if (moduleId !== undefined) throw invalid('requestCertificate', 'is for devices: a module gets none')
    if (!mayRenew(userName)) {
      throw invalid('apiVersion', `must be ${RENEWAL_API_VERSION} or later for requestCertificate`)
    }
    const isId = (id: unknown): boolean => typeof id === 'string' && isRequestId(id)
    if (!isId(requestId) || this.#certificates.has(requestId)) {
      throw invalid('requestId', 'must be 4 to 36 letters, digits and dashes, no dash at either end, and new')
    }
    if (replace !== undefined && replace !== '*' && !isId(replace)) {
      throw invalid('replace', "must be '*' or the id of a request")
    }
    if (checkSignal(signal)?.aborted) throw cancelled(signal!.reason, 'hub')
    const { readCertificateRequest, checkIssuedChain } = await loadIssuance()
    const { publicKey, wireFor } = readCertificateRequest(csr)
    const names = [...new Set([this.#registrationId, deviceId])]
    const request = { deviceId, csr: wireFor(this.#registrationId), requestId, replace, resumed: resume }
    this.#checkOpen()
    const elements = this.#certificates.ask(request, signal)
    this.#certificatesWanted = true
    this.#subscribeMore()
    const nowMs = (): number => this.#settings.base.clock.now()
    return checkIssuedChain({ elements: await elements, publicKey, names, nowMs: nowMs() }).chain
  }

  /**
   * Replaces the connection by a new one, or has the next attempt made now; to this hub, where the device was sent elsewhere.
   * What is on its way is waited for, or sent anew.
   */
  reconnect(assignment?: HubAssignment): void {
    if (assignment !== undefined) this.#assignment = assignment
    this.#wake()
    if (this.#session !== undefined) void this.#renew(this.#session)
  }

  close(options?: CloseOptions): Promise<void> {
    // It is called where nobody looks at errors any more: what is no time to wait for counts as the default.
    const drainMs: unknown = options?.drainMs
    this.#closing ??= this.#close(typeof drainMs === 'number' && drainMs >= 0 ? drainMs : DRAIN_MS)
    return this.#closing
  }

  async #close(drainMs: number): Promise<void> {
    const closed = new DpsError('HUB_CLOSED', 'hub', 'the connection was closed by the application')
    // Nothing is added any more, and what is left may still go.
    this.#stop = closed
    this.#desired.handle(undefined)
    this.#requests.rejectAll(closed)
    this.#certificates.rejectAll(closed)
    if (this.#session !== undefined && drainMs > 0) await this.#within(drainMs, this.#telemetry.drained())
    this.#abort.abort(closed)
    this.#phases?.abort(closed)
    this.#telemetry.rejectAll(closed)
    await this.#session?.close()
    await this.#opening?.close()
    await this.#running
    await this.#accompanied
    this.#state = 'closed'
  }

  /** The filters that somebody listens to. */
  #wanted(target: HubTarget): string[] {
    return [
      ...(this.#commands.handled ? [commandFilter(target)] : []),
      ...(this.#methodsWanted ? [METHOD_FILTER] : []),
      ...(this.#twinWanted ? [TWIN_RESPONSE_FILTER] : []),
      ...(this.#desired.handled ? [TWIN_DESIRED_FILTER] : []),
      ...(this.#certificatesWanted ? [CERTIFICATE_FILTER] : []),
    ]
  }

  async #start(patient: boolean): Promise<void> {
    const { clock, totalMs } = this.#settings.base
    const { signal } = this.#settings
    const halt = (error: DpsError): void => {
      this.#stop ??= error
      this.#abort.abort(this.#stop)
      this.#phases?.abort(this.#stop)
    }
    const onAbort = (): void => halt(cancelled(signal?.reason, this.#where()))
    const disarm = patient
      ? () => undefined
      : clock.after(totalMs, () =>
          halt(
            new DpsError('DEADLINE_EXCEEDED', this.#where(), `not connected within ${totalMs} ms`, {
              cause: this.#lastError,
            }),
          ),
        )
    signal?.addEventListener('abort', onAbort, { once: true })
    if (signal?.aborted) onAbort()
    try {
      await new Promise<void>((resolve, reject) => {
        this.#running = this.#run(patient, resolve, reject)
      })
    } catch (error) {
      await this.#running
      this.#state = 'closed'
      throw error
    } finally {
      disarm()
      signal?.removeEventListener('abort', onAbort)
    }
  }

  #where(): DpsPhase {
    return this.#phases?.last ?? this.#lastError?.phase ?? 'config'
  }

  /** One connection after the other, until this side wants no more. Never rejects. */
  async #run(patient: boolean, onFirst: () => void, onHopeless: (error: DpsError) => void): Promise<void> {
    const { clock, retry } = this.#settings.base
    const { signal } = this.#abort
    let first = true
    let failures = 0
    let refusals = 0
    let workedAt = clock.monotonic()
    while (this.#stop === undefined) {
      let error: DpsError | undefined
      try {
        this.#state = 'connecting'
        this.#assignment ??= await this.#source.first({ signal })
        const opened = await this.#connect(this.#assignment)
        // It may have been closed while it was opening.
        if (this.#stop !== undefined) {
          await opened.session.close()
          break
        }
        const openedAt = clock.monotonic()
        this.#begin(opened)
        if (first) onFirst()
        first = false
        error = await this.#live(opened)
        if (error === undefined || clock.monotonic() - openedAt >= STABLE_MS) {
          failures = refusals = 0
          workedAt = clock.monotonic()
        }
        if (error === undefined) continue
        this.#emit({ type: 'disconnected', error })
      } catch (thrown) {
        error = asDpsError(thrown)
      }
      this.#lastError = error
      if (this.#stop !== undefined) break
      failures += 1
      const hopeless = patient
        ? !error.retryable && (error.family === 'usage' || this.#isWrongHub(error))
        : !error.retryable || failures >= retry.maxAttempts
      if (first && hopeless) {
        this.#stop = error
        break
      }
      let asked = false
      try {
        asked = await this.#reassign({
          error,
          failures,
          failingForMs: clock.monotonic() - workedAt,
          signal,
        })
      } catch (thrown) {
        error = asDpsError(thrown)
        // A device that was switched off on purpose must not go on from memory.
        if (this.#source.isVerdict(error)) this.#assignment = undefined
      }
      if (this.#stop !== undefined) break
      if (asked || !error.retryable) refusals += 1
      // The hub has just been told of this device; who is refused all the same waits.
      if (asked && refusals === 1) continue
      const pace = error.retryable ? { ...retry, floorMs: 0 } : REFUSED
      const floorMs = Math.max(pace.floorMs, error.retryAfterMs ?? 0)
      const count = error.retryable ? failures : refusals
      const delayMs = Math.round(floorMs + clock.random() * backoffCeilingMs(count, pace))
      this.#state = 'waiting'
      this.#emit({ type: 'reconnecting', failures, delayMs, error })
      const sleeping = new AbortController()
      this.#wake = () => sleeping.abort()
      signal.addEventListener('abort', this.#wake)
      if (signal.aborted) this.#wake()
      await clock.sleep(delayMs, sleeping.signal).catch(() => undefined)
      signal.removeEventListener('abort', this.#wake)
    }
    if (first) onHopeless(this.#stop!)
  }

  /** The service sends the device to a hub that this package cannot talk to, and means it. */
  #isWrongHub(error: DpsError): boolean {
    return error.code === 'HUB_PROFILE_UNSUPPORTED' && this.#source.fresh
  }

  /** Whether it has been asked where the device belongs. */
  async #reassign(failure: HubFailure): Promise<boolean> {
    if (this.#assignment === undefined) return false
    const next = await this.#source.after(failure)
    if (next === undefined) return false
    this.#assignment = next
    return true
  }

  /** One attempt: with each credential in turn, for as long as one after the other is of no use. */
  async #connect(assignment: HubAssignment): Promise<OpenedHub> {
    const turns = new CredentialTurns(this.#settings.credentials.count)
    for (;;) {
      try {
        const opened = await this.#connectAs(assignment, turns.index)
        await this.#settled(turns.index, undefined)
        return opened
      } catch (thrown) {
        if (this.#stop !== undefined) throw thrown
        const error = asDpsError(thrown)
        if (await this.#settled(turns.index, error)) continue
        this.#emit(turns.next(error))
        // The handler of the event may have closed it.
        if (this.#stop !== undefined) throw this.#stop
      }
    }
  }

  /** Whether the credential has another identity in place of the one that failed. */
  async #settled(credential: number, error: DpsError | undefined): Promise<boolean> {
    const { credentials } = this.#settings
    const identity = credentials.identities[credential]
    if (identity === undefined) return false
    try {
      return (await credentials.at(credential).settled?.(identity, error)) === true
    } catch (thrown) {
      this.#emit({ type: 'store-failed', error: asDpsError(thrown) })
      return false
    }
  }

  /** Over each transport in turn, for as long as only the network is in the way. */
  async #connectAs(assignment: HubAssignment, credential: number): Promise<OpenedHub> {
    const { transports, base } = this.#settings
    const order = [...transports].sort((a, b) => Number(b === this.#reached) - Number(a === this.#reached))
    for (const [turn, name] of order.entries()) {
      const phases = new PhaseTracker(base.clock, base.limits, (event) => this.#emit(event as HubEvent))
      this.#phases = phases
      try {
        const opened = await phases.run((scope) =>
          this.#closeIfLate(this.#open(assignment, name, scope, credential), scope),
        )
        this.#reached = name
        return opened
      } catch (thrown) {
        const next = order[turn + 1]
        const error = asDpsError(thrown, phases)
        if (this.#stop !== undefined || next === undefined || !mayFallBack(error)) throw error
        this.#emit({ type: 'fallback', from: name, to: next, error })
      } finally {
        this.#phases = undefined
      }
    }
    throw new TypeError('there is at least one transport')
  }

  /** A connection that is open after it was given up on would be one that nobody closes. */
  async #closeIfLate(opening: Promise<OpenedHub>, scope: Scope): Promise<OpenedHub> {
    const opened = await opening
    if (scope.signal.aborted) void opened.session.close()
    return opened
  }

  /** options → credential → TLS policy → transport → session. */
  async #open(
    assignment: HubAssignment,
    name: HubTransportName,
    scope: Scope,
    credential: number,
  ): Promise<OpenedHub> {
    const { base, credentials, policy, proxy, targetOf } = this.#settings
    const { clock, connect, lastContactMs, waitForClock } = base
    const { signal, enter } = scope
    enter('config')
    const target = targetOf(assignment, name)
    const identity = await credentials.load(credential)
    for (const message of credentials.newNotices(identity)) this.#emit({ type: 'warning', message })
    checkIdentityAgainstPolicy(policy, identity)
    enter('clock')
    await checkClock({
      clock,
      lastContactMs: Math.max(lastContactMs, this.#source.contactMs),
      wait: waitForClock,
      signal,
      onWait: (delayMs) => this.#emit({ type: 'waiting-for-clock', delayMs }),
    })
    identity.checkDates(clock.now())
    const password = await hubToken(identity, target, clock)
    const { host, port, address } = target
    const way = { host, port, address: address === host ? undefined : address, proxy, connect }
    // Before there is a socket: whose errors have to be listened to from the first moment.
    const webSocket = name === 'mqtt' ? undefined : await import('../transport/mqtt/websocket.ts')
    const dialed = await dial(way, policy, identity, { signal, enter, clock })
    enter('connect')
    const below =
      webSocket === undefined
        ? dialed.socket
        : new webSocket.WebSocketStream(dialed.socket, { ...target, maxReplyBytes: MAX_PACKET_BYTES })
    let session: HubSession | undefined
    session = await HubSession.open(new HubStream(below, dialed.socket, MAX_PACKET_BYTES), {
      target,
      password,
      clock,
      signal,
      onMessage: (message) => this.#receive(target, message, () => session),
    })
    const facts = Object.freeze({
      ...dialed.tls,
      transport: name,
      // CONNECT, and the upgrade before it.
      roundTrips: dialed.roundTrips + (name === 'mqtt' ? 1 : 2),
      ...(credentials.isList && { credential }),
    })
    const subscriptions = new Subscriptions()
    const filters = this.#wanted(target)
    if (filters.length > 0) {
      enter('subscribe')
      await this.#subscribeFirst(session, subscriptions, filters, signal)
    }
    // Who keeps a certificate up looks to its end too.
    const validUntilMs = this.#companion === undefined ? identity.validUntilMs : undefined
    const { registrationId } = identity
    const expires = password !== undefined
    return { session, subscriptions, target, facts, expires, validUntilMs, registrationId }
  }

  /** If it fails, or is given up on meanwhile, the session is closed. */
  async #subscribeFirst(
    session: HubSession,
    subscriptions: Subscriptions,
    filters: readonly string[],
    signal: AbortSignal,
  ): Promise<void> {
    const onAbort = (): void => session.fail(signal.reason)
    signal.addEventListener('abort', onAbort)
    if (signal.aborted) onAbort()
    this.#opening = session
    try {
      await this.#subscribe(session, subscriptions, filters)
    } catch (error) {
      await session.close()
      throw error
    } finally {
      signal.removeEventListener('abort', onAbort)
      if (this.#opening === session) this.#opening = undefined
    }
  }

  async #subscribe(
    session: HubSession,
    { asked, granted, refused }: Subscriptions,
    filters: readonly string[],
  ): Promise<void> {
    for (const filter of filters) asked.add(filter)
    const no = await session.subscribe(filters)
    for (const filter of filters) {
      if (!no.includes(filter)) {
        granted.add(filter)
        continue
      }
      const error = subscriptionRefused(filter)
      refused.set(filter, error)
      this.#emit({ type: 'subscription-refused', filter, error })
      if (filter === TWIN_RESPONSE_FILTER) this.#requests.rejectAll(error)
      if (filter === CERTIFICATE_FILTER) this.#certificates.rejectAll(error)
    }
  }

  #begin({ session, subscriptions, target, facts, registrationId }: OpenedHub): void {
    this.#registrationId = registrationId
    if (this.#target?.hub !== target.hub) this.#desired.forget()
    this.#session = session
    this.#subscriptions = subscriptions
    this.#target = target
    this.#facts = facts
    this.#state = 'connected'
    this.#emit({
      type: 'connected',
      hub: target.hub,
      connection: facts,
      sessionPresent: session.sessionPresent,
    })
    this.#telemetry.attach(session)
    this.#subscribedMore(session, subscriptions.granted)
    this.#subscribeMore()
  }

  /** Until the connection ends: the reason, or undefined where this side ended it. */
  async #live({ session, target, expires, validUntilMs }: OpenedHub): Promise<DpsError | undefined> {
    const { clock } = this.#settings.base
    const renewAt = RENEW_FROM + clock.random() * (RENEW_BY - RENEW_FROM)
    const disarm = expires
      ? clock.after(target.tokenLifetimeSeconds * 1000 * renewAt, () => void this.#renew(session))
      : () => undefined
    if (validUntilMs !== undefined) this.#watchExpiry(validUntilMs)
    const error = await session.ended
    disarm()
    this.#forgetExpiry()
    this.#session = undefined
    this.#subscriptions = new Subscriptions()
    this.#telemetry.detach()
    this.#commands.detach()
    this.#desired.detach()
    this.#requests.detach()
    this.#certificates.detach()
    await session.close()
    return error
  }

  /** Says once a day that the certificate ends, from a month before on. */
  #watchExpiry(validUntilMs: number): void {
    const { clock } = this.#settings.base
    const isNear = clock.now() >= validUntilMs - EXPIRY_NOTICE_MS
    if (isNear && clock.monotonic() - this.#saidExpiryAt >= DAY_MS) {
      this.#saidExpiryAt = clock.monotonic()
      this.#emit({ type: 'certificate-expires', validUntil: new Date(validUntilMs) })
    }
    this.#forgetExpiry = clock.after(DAY_MS, () => this.#watchExpiry(validUntilMs))
  }

  async #renew(session: HubSession): Promise<void> {
    if (this.#stop !== undefined || this.#session !== session) return
    this.#emit({ type: 'renewing' })
    await this.#within(RENEWAL_LIMIT_MS, this.#telemetry.pause())
    // What closes all of it may still have something to send.
    if (this.#stop === undefined) await session.close()
  }

  /** Waits for it, no longer than that, and not beyond the end of all. */
  async #within(limitMs: number, work: Promise<void>): Promise<void> {
    const { signal } = this.#abort
    let settle!: () => void
    const limit = new Promise<void>((resolve) => {
      settle = resolve
    })
    const disarm = this.#settings.base.clock.after(limitMs, settle)
    signal.addEventListener('abort', settle)
    await Promise.race([work, limit])
    signal.removeEventListener('abort', settle)
    disarm()
  }

  /** Subscribes the present connection to what has been wanted since it was opened. */
  #subscribeMore(): void {
    const session = this.#session
    if (session === undefined) return
    const subscriptions = this.#subscriptions
    const missing = this.#wanted(this.#target!).filter((filter) => !subscriptions.asked.has(filter))
    if (missing.length === 0) return
    const { clock, limits } = this.#settings.base
    const disarm = clock.after(limits.subscribe!, () =>
      session.fail(
        new DpsError(
          'TIMEOUT',
          'subscribe',
          `the hub did not answer a subscription within ${limits.subscribe} ms`,
        ),
      ),
    )
    const subscribing = this.#subscribe(session, subscriptions, missing)
    subscribing.then(disarm, disarm)
    subscribing.then(
      () => {
        if (this.#session === session) this.#subscribedMore(session, new Set(missing))
      },
      // The connection has ended; the next one subscribes to everything.
      () => undefined,
    )
  }

  #subscribedMore(session: HubSession, filters: ReadonlySet<string>): void {
    const { granted } = this.#subscriptions
    if (filters.has(TWIN_RESPONSE_FILTER) && granted.has(TWIN_RESPONSE_FILTER)) this.#requests.attach(session)
    if (filters.has(TWIN_DESIRED_FILTER) && granted.has(TWIN_DESIRED_FILTER)) this.#desired.attach()
    if (filters.has(CERTIFICATE_FILTER) && granted.has(CERTIFICATE_FILTER)) this.#certificates.attach(session)
  }

  #receive(target: HubTarget, message: HubMessage, session: () => HubSession | undefined): void {
    const { topic, body } = message
    if (topic.startsWith('devices/')) {
      // Not acknowledged here: that is up to who deals with it.
      this.#commands.receive(target, message)
      return
    }
    message.acknowledge()
    if (topic.startsWith('$iothub/twin/res/')) this.#requests.receive(topic, body)
    else if (topic.startsWith('$iothub/twin/PATCH/')) this.#desired.receive(topic, body)
    else if (topic.startsWith('$iothub/credentials/res/')) this.#certificates.receive(topic, body)
    else if (topic.startsWith('$iothub/methods/POST/')) {
      this.#methods.receive(topic, body, (answer, payload) => session()?.answer(answer, payload))
    } else {
      this.#emit({ type: 'message-ignored', message: 'a message on a topic that nobody subscribed to' })
    }
  }

  #checkOpen(): void {
    if (this.#stop !== undefined) throw this.#stop
  }

  #checkHandler(what: string, handler: unknown, taken: boolean): void {
    this.#checkOpen()
    if (typeof handler !== 'function') throw invalid(what, 'needs a function')
    if (taken) throw invalid(what, 'has a handler already: remove that first')
  }
}

/** Who removes a handler twice does not mean the one that came after it. */
function once(remove: () => void): () => void {
  let removed = false
  return () => {
    if (!removed) remove()
    removed = true
  }
}

function bytesOf(body: string | Uint8Array | object): Uint8Array {
  if (typeof body === 'string') return Buffer.from(body)
  // The caller may reuse its buffer.
  if (body instanceof Uint8Array) return Buffer.from(body)
  const json = typeof body === 'object' && body !== null ? jsonOf(body) : undefined
  if (json === undefined) throw invalid('body', 'must be text, bytes, or an object that JSON can hold')
  return Buffer.from(json)
}

function patchOf(patch: TwinProperties): string {
  const plain = typeof patch === 'object' && patch !== null && !Array.isArray(patch)
  const json = plain ? jsonOf(patch) : undefined
  if (json === undefined) throw invalid('patch', 'must be an object that JSON can hold')
  return json
}

/** Undefined for what JSON cannot hold: a cycle, a BigInt, a `toJSON` that fails. */
function jsonOf(value: object): string | undefined {
  try {
    return JSON.stringify(value)
  } catch {
    return undefined
  }
}

function checkSignal(signal: AbortSignal | undefined): AbortSignal | undefined {
  if (signal !== undefined && typeof signal?.addEventListener !== 'function') {
    throw invalid('signal', 'must be an AbortSignal')
  }
  return signal
}

function cancelled(cause: unknown, phase: DpsPhase): DpsError {
  return new DpsError('CANCELLED', phase, 'cancelled by the caller', { cause })
}

/** Only a credential of the caller's own can throw anything else than a DpsError. */
function asDpsError(thrown: unknown, phases?: PhaseTracker): DpsError {
  return DpsError.is(thrown)
    ? thrown
    : new DpsError('TRANSPORT_FAILED', phases?.last ?? 'config', 'the credential or the store failed', {
        cause: thrown,
      })
}
