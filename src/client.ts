import { type Assignment, createAssignment } from './assignment/assignment.ts'
import { DpsError } from './errors.ts'
import type { DpsEvent, ProvisioningClientOptions, RegisterOptions } from './options/options.ts'
import { checkMs, type ResolvedOptions, refuseUnknown, resolveOptions } from './options/resolve.ts'
import { registerBody } from './protocol/request.ts'
import { registrationResource } from './protocol/sas-token.ts'
import type { Scope } from './registration/phases.ts'
import { type OpenedSession, runRegistration } from './registration/run.ts'
import { dial } from './tls/dial.ts'
import { checkIdentityAgainstPolicy, resolvePolicy, type TlsPolicy } from './tls/policy.ts'
import { selectTransport } from './transport/select.ts'

/** A token outlives any registration many times over, and is signed anew for every connection. */
const TOKEN_LIFETIME_S = 3600

/**
 * The largest reply that is taken: the service's message limit of 96 KB for a payload, doubled for JSON escapes and
 * certificates.
 */
const MAX_REPLY_BYTES = 192 * 1024

const REGISTER_OPTIONS = new Set(['payload', 'signal', 'timeoutMs'])

/**
 * A client of the Azure IoT Hub Device Provisioning Service.
 *
 * It holds options, no connection: every call opens its own, and after a failure of any kind the same client can be
 * used again.
 */
export class ProvisioningClient {
  readonly #options: ResolvedOptions
  readonly #policy: TlsPolicy

  /** @throws DpsError with phase `config`: OPTION_INVALID, TLS_POLICY_INVALID or TRUST_ANCHOR_INVALID */
  constructor(options: ProvisioningClientOptions) {
    this.#options = resolveOptions(options)
    this.#policy = resolvePolicy(this.#options.tls, this.#options.trust)
  }

  /**
   * Registers the device and waits until it is assigned to a hub.
   *
   * Settles exactly once, no later than `timeouts.totalMs`; then no socket, timer or listener of it is left. Each call
   * is a registration of its own, which the service bills.
   *
   * @throws DpsError whose `phase` says how far it came and whose `hint` says what to do
   */
  async register(options: RegisterOptions = {}): Promise<Assignment> {
    refuseUnknown('', options, REGISTER_OPTIONS)
    const { payload, signal } = options
    if (signal !== undefined && typeof signal.addEventListener !== 'function') {
      throw new DpsError('OPTION_INVALID', 'config', 'signal must be an AbortSignal')
    }
    const { clock, retry, limits, totalMs } = this.#options
    const emit = emitter(this.#options.onEvent)
    for (const message of this.#policy.warnings) emit({ type: 'warning', message })
    const result = await runRegistration({
      open: (scope) => this.#open(scope, payload),
      clock,
      retry,
      limits,
      totalMs: options.timeoutMs === undefined ? totalMs : checkMs('timeoutMs', options.timeoutMs, 1),
      signal,
      emit,
    })
    return createAssignment(result)
  }

  /** options → credential → TLS policy → transport, for one connection. */
  async #open(scope: Scope, payload: RegisterOptions['payload']): Promise<OpenedSession> {
    const { credential, clock, idScope, host, connectTo } = this.#options
    scope.enter('config')
    const identity = await credential.load()
    const { registrationId } = identity
    checkIdentityAgainstPolicy(this.#policy, identity)
    const body = registerBody(registrationId, payload)
    const transport = await selectTransport(this.#options.transport)
    scope.enter('clock')
    identity.checkDates(clock.now())
    const session = await transport.open({
      host,
      port: this.#options.port,
      idScope,
      registrationId,
      apiVersion: this.#options.apiVersion,
      userAgent: this.#options.userAgent,
      maxReplyBytes: MAX_REPLY_BYTES,
      signal: scope.signal,
      enter: scope.enter,
      dial: (port) =>
        dial({ host, port, address: connectTo }, this.#policy, identity, {
          signal: scope.signal,
          enter: scope.enter,
          clock,
        }),
      token: () =>
        identity.token(
          registrationResource(idScope, registrationId),
          Math.floor(clock.now() / 1000) + TOKEN_LIFETIME_S,
          'registration',
        ),
    })
    return { session, registrationId, body }
  }
}

/** The handler is the caller's code: what it throws must not decide about a registration, nor be hidden. */
function emitter(handler: ((event: DpsEvent) => void) | undefined): (event: DpsEvent) => void {
  let warned = false
  return (event) => {
    try {
      handler?.(Object.freeze(event))
    } catch (error) {
      if (!warned)
        process.emitWarning(error instanceof Error ? error : String(error), 'DpsEventHandlerWarning')
      warned = true
    }
  }
}
