import {
  type Assignment,
  type CertifiedAssignment,
  type Contact,
  createAssignment,
  createContact,
  createRegistrationState,
  type RegistrationState,
} from './assignment/assignment.ts'
import { checkClock } from './clock-check.ts'
import type { Identity } from './credential/credential.ts'
import { inspectCredential } from './credential/inspection.ts'
import { OrderedCredentials } from './credential/ordered.ts'
import { DpsError } from './errors.ts'
import type { Issuance } from './issuance.ts'
import { loadIssuance } from './load-issuance.ts'
import type {
  CallOptions,
  DpsEvent,
  ProvisioningClientOptions,
  RegisterOptions,
  TransportChoice,
} from './options/options.ts'
import { checkMs, object, type ResolvedOptions, refuseUnknown, resolveOptions } from './options/resolve.ts'
import { checkIssuanceVersion } from './protocol/issuance.ts'
import { registerBody } from './protocol/request.ts'
import { isClockWrong } from './protocol/response.ts'
import { registrationResource } from './protocol/sas-token.ts'
import type { Scope } from './registration/phases.ts'
import {
  type CallResult,
  type EarlyStep,
  type OpenedSession,
  type Pace,
  runCall,
  transportRequest,
} from './registration/run.ts'
import type { Outcome, Step } from './registration/state.ts'
import type { OwnContexts } from './tls/context.ts'
import { dial } from './tls/dial.ts'
import { checkIdentityAgainstPolicy, resolvePolicy, type TlsPolicy } from './tls/policy.ts'
import { type HttpProxy, resolveProxy } from './tls/proxy.ts'
import { selectTransport } from './transport/select.ts'

/** A token outlives any registration many times over, and is signed anew for every connection. */
const TOKEN_LIFETIME_S = 3600

/**
 * The largest reply that is taken: the service's message limit of 96 KB for a payload, doubled for JSON escapes and
 * certificates.
 */
const MAX_REPLY_BYTES = 192 * 1024

const CALL_OPTIONS = new Set(['signal', 'timeoutMs'])
const REGISTER_OPTIONS = new Set([...CALL_OPTIONS, 'payload', 'csr'])

/** Where a call is one of many: in place of the client's own. */
export interface Errand {
  readonly credentials: OrderedCredentials
  readonly pace: Pace
  readonly onEvent: (event: DpsEvent) => void
  readonly contexts: OwnContexts
}

/** Of the options of a call, and of this package alone. */
export const ERRAND: unique symbol = Symbol('errand')

function checkCall(options: CallOptions, known: ReadonlySet<string>): void {
  refuseUnknown('', object('options', options), known)
  const { signal, timeoutMs } = options
  if (signal !== undefined && typeof signal?.addEventListener !== 'function') {
    throw new DpsError('OPTION_INVALID', 'config', 'signal must be an AbortSignal')
  }
  if (timeoutMs !== undefined) checkMs('timeoutMs', timeoutMs, 1)
}

async function issuanceOf(csr: RegisterOptions['csr'], apiVersion: string): Promise<Issuance> {
  checkIssuanceVersion(apiVersion)
  return (await loadIssuance()).issuanceFor(csr)
}

/**
 * What is wrong with the options of a registration, whatever the device.
 *
 * @throws DpsError as `register`
 */
export async function checkRegistration(options: RegisterOptions, issuanceApiVersion: string): Promise<void> {
  checkCall(options, REGISTER_OPTIONS)
  const { payload, csr } = options
  registerBody('', payload)
  if (csr !== undefined) await issuanceOf(csr, issuanceApiVersion)
}

type Call = CallOptions & { readonly [ERRAND]?: Errand }

/** What a register request says beside the registration id. */
interface RegisterContent {
  readonly payload?: RegisterOptions['payload']
  readonly issuance?: Issuance | undefined
}

/**
 * A client of the Azure IoT Hub Device Provisioning Service.
 *
 * It holds options, no connection: every call opens its own, and after a failure of any kind the same client can be
 * used again. Every call settles exactly once, within `timeouts.totalMs` and a moment to close; then no socket, timer or
 * listener of it is left. A name look-up that the system's resolver does not answer cannot be ended, by anybody: it holds
 * the process until the resolver gives up.
 */
export class ProvisioningClient {
  readonly #options: ResolvedOptions
  readonly #credentials: OrderedCredentials
  readonly #policy: TlsPolicy
  readonly #proxy: HttpProxy | undefined
  /** The transport that got through last. */
  #reached: TransportChoice | undefined
  /** Those whose server, whose name, port and address are those of the options, takes one packet after the other. */
  readonly #unpipelined = new Set<TransportChoice>()

  /** @throws DpsError with phase `config`: OPTION_INVALID, TLS_POLICY_INVALID or TRUST_ANCHOR_INVALID */
  constructor(options: ProvisioningClientOptions) {
    this.#options = resolveOptions(options)
    this.#credentials = OrderedCredentials.of(this.#options.credential)
    this.#policy = resolvePolicy(this.#options.tls, this.#options.trust)
    this.#proxy = resolveProxy(options.proxy)
  }

  /**
   * Registers the device and has a certificate issued for `csr` (preview).
   *
   * @beta
   * @throws DpsError CERTIFICATE_NOT_ISSUED and ISSUED_CERTIFICATE_INVALID, whose `assignment` says where the device belongs
   *   all the same; else as without
   */
  register(options: RegisterOptions & Required<Pick<RegisterOptions, 'csr'>>): Promise<CertifiedAssignment>
  /**
   * Registers the device and waits until it is assigned to a hub. Each call is a registration of its own, which the
   * service bills.
   *
   * @throws DpsError whose `phase` says how far it came and whose `hint` says what to do. With a `csr` (preview) also
   *   CERTIFICATE_NOT_ISSUED and ISSUED_CERTIFICATE_INVALID, whose `assignment` says where the device belongs all the same
   */
  register(options?: RegisterOptions): Promise<Assignment>
  async register(options: RegisterOptions = {}): Promise<Assignment> {
    checkCall(options, REGISTER_OPTIONS)
    const { payload, csr } = options
    const { transports, issuanceApiVersion, clock } = this.#options
    const issuance = csr === undefined ? undefined : await issuanceOf(csr, issuanceApiVersion)
    const result = await this.#call({ kind: 'register' }, options, transports, { payload, issuance })
    const { registration, issuedChain } = the(result, 'assigned')
    const assignment = createAssignment(registration, result)
    return issuance === undefined ? assignment : issuance.complete(assignment, issuedChain, clock.now())
  }

  /**
   * Reads what the service knows of this device's registration. Starts nothing and is not billed: the way to learn the
   * hub again for a device that cannot store it. Always over HTTPS, which alone offers it.
   *
   * @throws DpsError NOT_FOUND for a device that never registered; else as `register`
   */
  async lookup(options: CallOptions = {}): Promise<RegistrationState> {
    checkCall(options, CALL_OPTIONS)
    const result = await this.#call({ kind: 'lookup' }, options, ['https'])
    return createRegistrationState(the(result, 'found').record, result)
  }

  /**
   * Reaches the service and leaves again: name, route, proxy, TLS and, over MQTT, the credential. Nothing is registered.
   * Over HTTPS the service looks at the credential only with a request, so there it stands for the network and TLS. Tries
   * each transport once.
   *
   * @throws DpsError as `register`
   */
  async probe(options: CallOptions = {}): Promise<Contact> {
    checkCall(options, CALL_OPTIONS)
    return createContact(await this.#call({ kind: 'probe' }, options, this.#options.transports))
  }

  async #call(
    step: Step,
    { signal, timeoutMs, [ERRAND]: errand }: Call,
    transports: readonly TransportChoice[],
    content: RegisterContent = {},
  ): Promise<CallResult> {
    const { clock, retry, limits, totalMs } = this.#options
    const own = errand ?? { credentials: this.#credentials, onEvent: this.#options.onEvent }
    const { credentials, onEvent } = own
    const emit = emitter(onEvent)
    for (const message of [...this.#options.warnings, ...this.#policy.warnings]) {
      emit({ type: 'warning', message })
    }
    const choices = this.#inOrder(transports)
    const result = await runCall({
      step,
      routes: choices.map((choice) => ({
        name: typeof choice === 'string' ? choice : choice.name,
        open: (scope, early, index) => this.#open(choice, scope, content, own, emit, early, index),
        onPipeliningRefused: this.#mayPipeline(choice) ? () => this.#unpipelined.add(choice) : undefined,
      })),
      credentials: credentials.count,
      onReached: (index) => {
        // A lookup goes over HTTPS whatever the order is, and says nothing about it.
        if (transports === this.#options.transports) this.#reached = choices[index]
      },
      clock,
      // A probe is asked for to learn what is wrong now.
      retry: step.kind === 'probe' ? { ...retry, maxAttempts: 1 } : retry,
      limits,
      totalMs: timeoutMs ?? totalMs,
      signal,
      emit,
      pace: errand?.pace,
      explain: (error, index) => this.#explain(error, credentials.identities[index]),
    })
    if (!credentials.isList) return result
    return { ...result, connection: { ...result.connection, credential: result.credential } }
  }

  /** A refusal that nothing on the device explains names what can only be seen at the service. */
  async #explain(error: DpsError, identity: Identity | undefined): Promise<DpsError> {
    if (error.code !== 'UNAUTHORIZED' || identity === undefined) return error
    const now = this.#options.clock.now()
    const { explainRefusal } = await import('./credential/rare.ts')
    return explainRefusal(error, identity, now, isClockWrong(error.serverTime, now), inspectCredential)
  }

  #mayPipeline(choice: TransportChoice): boolean {
    if (!this.#options.pipelining || this.#unpipelined.has(choice)) return false
    return choice === 'mqtt' || choice === 'mqtt-ws'
  }

  /** What got through last first: a port that is blocked today is blocked tomorrow. */
  #inOrder(transports: readonly TransportChoice[]): readonly TransportChoice[] {
    const reached = transports.filter((choice) => choice === this.#reached)
    return [...reached, ...transports.filter((choice) => choice !== this.#reached)]
  }

  /** options → credential → TLS policy → transport, for one connection. */
  async #open(
    choice: TransportChoice,
    scope: Scope,
    { payload, issuance }: RegisterContent,
    { credentials, contexts }: Pick<Errand, 'credentials'> & Partial<Pick<Errand, 'contexts'>>,
    emit: (event: DpsEvent) => void,
    early: EarlyStep | undefined,
    index: number,
  ): Promise<OpenedSession> {
    const { clock, idScope, host, connectTo, connect, waitForClock, userAgent } = this.#options
    const apiVersion = this.#options[issuance === undefined ? 'apiVersion' : 'issuanceApiVersion']
    const { signal, enter } = scope
    enter('config')
    const identity = await credentials.load(index)
    for (const message of credentials.newNotices(identity)) emit({ type: 'warning', message })
    const { registrationId } = identity
    checkIdentityAgainstPolicy(this.#policy, identity)
    const body = registerBody(registrationId, payload, issuance?.wireFor(registrationId))
    // A credential that became another device's meanwhile asks for nothing before that has been noticed.
    const sameDevice = (early?.registrationId ?? registrationId) === registrationId
    const transport = await selectTransport(choice)
    enter('clock')
    await checkClock({
      clock,
      lastContactMs: this.#options.lastContactMs,
      wait: waitForClock,
      signal,
      onWait: (delayMs) => emit({ type: 'waiting-for-clock', delayMs }),
    })
    identity.checkDates(clock.now())
    if (this.#options.onEvent !== undefined) {
      for (const message of await credentials.newDoubts(identity, clock.now())) {
        emit({ type: 'warning', message })
      }
    }
    let destroy: (() => void) | undefined
    const session = await transport.open({
      host,
      port: this.#options.portFor(transport.name),
      idScope,
      registrationId,
      apiVersion,
      userAgent,
      maxReplyBytes: MAX_REPLY_BYTES,
      firstRequest: early !== undefined && sameDevice ? transportRequest(early.step, body) : undefined,
      signal,
      enter,
      dial: async (port) => {
        const target = { host, port, address: connectTo, proxy: this.#proxy, connect }
        const dialed = await dial(target, this.#policy, identity, { signal, enter, clock, contexts })
        destroy = () => dialed.socket.destroy()
        return dialed
      },
      token: () =>
        identity.token(
          registrationResource(idScope, registrationId),
          Math.floor(clock.now() / 1000) + TOKEN_LIFETIME_S,
          'registration',
        ),
    })
    return { session, registrationId, body, ...(destroy && { destroy }) }
  }
}

/** The outcome of a call is of the kind that was asked for; the table has no other way to resolve. */
function the<K extends Outcome['kind']>({ outcome }: CallResult, kind: K): Extract<Outcome, { kind: K }> {
  if (outcome.kind !== kind) throw new TypeError(`expected the outcome ${kind}, not ${outcome.kind}`)
  return outcome as Extract<Outcome, { kind: K }>
}

/** The handler is the caller's code: what it throws must not decide about a registration, nor be hidden. */
export function emitter(handler: ((event: DpsEvent) => void) | undefined): (event: DpsEvent) => void {
  let warned = false
  const warn = (error: unknown) => {
    if (!warned) process.emitWarning(error instanceof Error ? error : String(error), 'DpsEventHandlerWarning')
    warned = true
  }
  return (event) => {
    try {
      // An async function is a handler too, for the type; its rejection would end the process.
      const result: unknown = handler?.(Object.freeze(event))
      if (result instanceof Promise) result.catch(warn)
    } catch (error) {
      warn(error)
    }
  }
}
