import type { HubAssignment, HubTransportName } from '../assignment/hub.ts'
import { shouldReprovision } from '../assignment/should-reprovision.ts'
import { emitter } from '../client.ts'
import { systemClock } from '../clock.ts'
import type { Credential } from '../credential/credential.ts'
import { OrderedCredentials } from '../credential/ordered.ts'
import { DpsError } from '../errors.ts'
import type { IssuedCertificate } from '../issued-certificate.ts'
import { loadIssuance } from '../load-issuance.ts'
import type { DpsEvent, TransportChoice } from '../options/options.ts'
import { object, refuseUnknown } from '../options/resolve.ts'
import { RENEWAL_API_VERSION } from '../protocol/renewal.ts'
import { type ProvisionMode, type ProvisionOptions, provisionAs, VERDICTS } from '../provision.ts'
import { isCredentialFailure } from '../registration/fallback.ts'
import type { CertificateLifecycle } from '../renewal/lifecycle.ts'
import { type AssignmentSource, Hub, type HubConnection, type HubFailure } from './connection.ts'
import { type ConnectHubOptions, type HubEvent, invalid, pick, resolveConnectHub } from './options.ts'

/**
 * Connects a device to the hub it was assigned to, with the credential, the TLS policy, the proxy and the fallback of
 * `ProvisioningClient`, and keeps it there until `close()`.
 *
 * The first connection is tried as `retry` and `timeouts.totalMs` allow and rejects where it fails for good. From then on
 * nothing but `close()` ends it: a lost connection, an expired token and a hub that refuses for a while are waited out, as
 * told by events. To go to another hub where the device is sent there, use `provisionAndConnect`.
 *
 * @throws DpsError HUB_PROFILE_UNSUPPORTED for a hub that speaks MQTT 5, before any packet; UNAUTHORIZED where the hub does
 *   not know the device; else as `ProvisioningClient`
 */
export async function connectHub(
  assignment: HubAssignment,
  options: ConnectHubOptions,
): Promise<HubConnection> {
  const settings = resolveConnectHub(options)
  // What is wrong with the assignment or an option is told before anything else.
  for (const transport of settings.transports) settings.targetOf(assignment, transport)
  const source: AssignmentSource = {
    fresh: false,
    contactMs: 0,
    first: async () => assignment,
    after: async () => undefined,
    isVerdict: () => false,
  }
  return Hub.open(settings, source, hubEmitter(settings.onEvent), false)
}

/** Everything of a hub that is not said by the options of provisioning. */
export type HubOnlyOptions = Omit<ConnectHubOptions, 'credential' | 'signal' | 'onEvent'>

/** How the certificate of a device is kept up (preview). */
export interface IssuanceOptions {
  /** Of new keys. Default `'P-384'`, the one that the documentation of issuance names. */
  curve?: 'P-384' | 'P-256'
  /** The part of its life after which a certificate is renewed, 0.1 to 0.9; 5 % of it earlier or later by chance. Default 0.8. */
  renewAt?: number
}

export interface ProvisionAndConnectOptions extends Omit<ProvisionOptions, 'onEvent' | 'timeoutMs' | 'csr'> {
  /**
   * What holds for the hub: `port`, `connectTo`, `gatewayHostName`, `moduleId` and the like are said here alone. Trust, TLS,
   * proxy, `connect`, time-outs, retries and the clock are those of provisioning where nothing else is said, and so are its
   * MQTT transports.
   */
  hub?: HubOnlyOptions
  /**
   * Has the service issue a certificate for the device, and renews it (preview): `credential` is then
   * `[issuedCertificate({ store }), bootstrap]`, and the bootstrap credential, of any kind, is for the provisioning service
   * alone. Without it the first certificate cannot come, nor another once it has ended. `{}` takes the defaults. Default: none.
   *
   * @beta
   */
  issuance?: IssuanceOptions
  /** Receives the events of both. */
  onEvent?: (event: DpsEvent | HubEvent) => void
}

const INHERITED = [
  'proxy',
  'connect',
  'trust',
  'tls',
  'userAgent',
  'waitForClock',
  'lastContact',
  'clock',
  'timeouts',
  'retry',
] as const satisfies readonly (keyof ProvisionOptions & keyof ConnectHubOptions)[]

/** The service asks devices to stay with their hub for a quarter of an hour of failures, which anything may cause. */
const PATIENCE_MS = 900_000
/** Failures in a row after which a hub that cannot be reached is doubted. */
const DOUBT_AFTER = 10
/** As `shouldReprovision` says: what is billed, and was in vain, is not done more often than that. */
const ASK_EVERY_MS = 3_600_000

/** Each has one request and one candidate at a time, and a hub ends one connection of a device for the next. */
const keptUp = new WeakSet<IssuedCertificate>()

/** When the service is asked again: kept for the whole life of a connection, however often that breaks. */
class Questions {
  #askedAt = Number.NEGATIVE_INFINITY
  /** When it was asked and not only out of reach or busy. */
  #answeredAt = Number.NEGATIVE_INFINITY
  /** How long the next question waits after the last, where nobody can tell what is wrong. */
  #pauseMs = PATIENCE_MS

  /** @param isSure whether it is known that there has to be another certificate */
  isDue({ error, failures, failingForMs }: HubFailure, nowMs: number, isSure: boolean): boolean {
    // The hub does not know the device, or is none for it: no count is needed.
    if (isSure || shouldReprovision(error) || error.code === 'HUB_PROFILE_UNSUPPORTED') {
      return nowMs - this.#answeredAt >= ASK_EVERY_MS
    }
    if (!shouldReprovision(error, { failures, after: DOUBT_AFTER })) return false
    // A hub that has worked since, and no less than an hour later, is a new case.
    if (nowMs - failingForMs - this.#askedAt >= ASK_EVERY_MS) this.#pauseMs = PATIENCE_MS
    return failingForMs >= PATIENCE_MS && nowMs - this.#askedAt >= this.#pauseMs
  }

  asked(nowMs: number): void {
    this.#askedAt = nowMs
    this.#pauseMs = Math.min(ASK_EVERY_MS, this.#pauseMs * 2)
  }

  answered(nowMs: number): void {
    this.#answeredAt = nowMs
  }
}

/**
 * Provisions, connects to the hub, and stays connected for good: for a device that boots before its network, its enrollment
 * or its hub is there.
 *
 * - The assignment comes from `store` or the service, as `mode` says (`provision`).
 * - Where the hub does not know the device (`shouldReprovision`), speaks MQTT 5 alone, or could not be reached for a quarter of
 *   an hour and ten failures, the service is asked again, told by a `reprovisioning` event, and the device goes where it is
 *   sent. That is billed: where it was in vain it is done again an hour later; in an outage after 30 minutes, and then each hour.
 * - Where the service itself says no, what is stored is erased, and the device connects to no hub before it is assigned anew.
 * - Failures are waited out for as long as it takes: up to `retry.maxDelayMs` where the network or the service fails, and
 *   between one minute and an hour where either of the two refuses.
 * - With `issuance` it registers with a certificate signing request where there is no certificate that can be used, and stays
 *   with the hub by the certificate that came. From about 80 % of its life on it asks the hub for the next one, or, where the
 *   hub issues none or has not until the last 5 %, the provisioning service; attempts come closer as the end does. The new one is used by a planned reconnect,
 *   for which messages wait and none is lost; where the hub refuses it the device is back with the one before at once. One that
 *   has ended, or that the hub takes no longer, is replaced by a registration with the bootstrap credential, which is billed:
 *   at once, and where it was in vain an hour later. Each step is told by an event `certificate-…`.
 *
 * Of two calls with one `issuedCertificate()` the second is refused, until the connection of the first is closed.
 *
 * @throws DpsError CANCELLED when `signal` aborts before the first connection, and every error of family `usage` that is not
 *   retryable and comes before it: no wait mends a wrong option; HUB_PROFILE_UNSUPPORTED where the service has just assigned
 *   the device to a hub that speaks MQTT 5
 */
export async function provisionAndConnect(options: ProvisionAndConnectOptions): Promise<HubConnection> {
  const { hub = {}, onEvent, issuance, ...provisioning } = object('options', options)
  // The hub is reached with `credential`: a certificate that came for it would be lost.
  if (Object.hasOwn(provisioning, 'csr')) throw invalid('csr', 'is for register() and provision()')
  object('hub', hub)
  for (const name of ['credential', 'signal', 'onEvent']) {
    if (Object.hasOwn(hub, name)) throw invalid(`hub.${name}`, 'is said once, beside `hub`')
  }
  const { signal, transport = 'mqtt' } = provisioning
  const emit = hubEmitter(onEvent)
  let lifecycle: CertificateLifecycle | undefined
  if (issuance !== undefined) {
    const { curve, renewAt, certificate } = checkIssuance(issuance, options)
    lifecycle = new (await loadIssuance()).CertificateLifecycle({
      certificate,
      curve,
      renewAt,
      clock: provisioning.clock ?? systemClock,
      emit,
      registrationId: async () => {
        await credentials.loadAll()
        return credentials.identities.find((identity) => identity !== undefined)!.registrationId
      },
      register: async (csr, abort) => {
        const assignment = await ask('always', { signal: abort }, csr)
        if (assignment.source === 'store') throw assignment.failure!
        return assignment
      },
    })
  }
  const settings = resolveConnectHub({
    ...pick(provisioning, INHERITED),
    transport: mqttOf(transport),
    ...(lifecycle !== undefined && { apiVersion: RENEWAL_API_VERSION }),
    ...hub,
    credential: lifecycle?.credential ?? provisioning.credential,
    ...(signal !== undefined && { signal }),
  })
  const { clock } = settings.base
  // What the hub has read of one that is for both need not be read again.
  const credentials: OrderedCredentials =
    lifecycle === undefined ? settings.credentials : OrderedCredentials.of(provisioning.credential)
  credentials.isRenewed = lifecycle !== undefined
  const questions = new Questions()
  let fresh = false
  let contactMs = 0
  const ask = async (mode: ProvisionMode | undefined, scope: { signal: AbortSignal }, csr?: string) => {
    const assignment = await provisionAs(
      {
        ...provisioning,
        credential: credentials,
        ...(mode !== undefined && { mode }),
        ...(csr !== undefined && { csr }),
        signal: scope.signal,
        onEvent: emit as (event: DpsEvent) => void,
      },
      (ms) => {
        contactMs = ms
      },
    )
    // What could not be asked about is where it was.
    fresh = assignment.source !== 'store' || (fresh && assignment.failure !== undefined)
    return assignment
  }
  const isAnswer = (thrown: unknown): boolean =>
    DpsError.is(thrown) &&
    ((thrown.family === 'service' && !thrown.retryable) || thrown.assignment !== undefined)
  const source: AssignmentSource = {
    get fresh() {
      return fresh
    },
    get contactMs() {
      return contactMs
    },
    first: async (scope) =>
      lifecycle === undefined || (await lifecycle.isUsable())
        ? ask(provisioning.mode, scope)
        : lifecycle.issue(scope.signal),
    after: async (atHub) => {
      const { error, signal } = atHub
      const forAnother = lifecycle !== undefined && isCredentialFailure(error)
      if (!questions.isDue(atHub, clock.monotonic(), forAnother)) return undefined
      emit({ type: 'reprovisioning', error })
      questions.asked(clock.monotonic())
      let failure: unknown
      try {
        if (forAnother) return await lifecycle!.issue(signal)
        const assignment = await ask('always', { signal })
        if (assignment.source !== 'store') return assignment
        failure = assignment.failure
      } catch (thrown) {
        failure = thrown
        throw thrown
      } finally {
        // Out of reach or busy is no answer: the hub's own refusals set the pace of the next try.
        if (failure === undefined || isAnswer(failure)) questions.answered(clock.monotonic())
      }
      return undefined
    },
    isVerdict: (error) => VERDICTS.has(error.code),
  }
  if (lifecycle === undefined) return Hub.open(settings, source, emit, true)
  const { certificate } = lifecycle
  if (keptUp.has(certificate)) {
    throw invalid(
      'credential',
      'begins with an issuedCertificate() that another provisionAndConnect() keeps up: close that connection first, or give each device one of its own, with a store of its own',
    )
  }
  keptUp.add(certificate)
  const watched = (event: HubEvent): void => {
    emit(event)
    if (event.type === 'connected') lifecycle.connected()
  }
  try {
    return await Hub.open(settings, source, watched, true, (...all) =>
      lifecycle.run(...all).finally(() => keptUp.delete(certificate)),
    )
  } catch (error) {
    keptUp.delete(certificate)
    throw error
  }
}

function checkIssuance(
  issuance: IssuanceOptions,
  { credential, hub }: ProvisionAndConnectOptions,
): Required<IssuanceOptions> & { certificate: IssuedCertificate } {
  refuseUnknown('issuance.', object('issuance', issuance), new Set(['curve', 'renewAt']))
  const { curve = 'P-384', renewAt = 0.8 } = issuance
  if (curve !== 'P-384' && curve !== 'P-256') throw invalid('issuance.curve', "must be 'P-384' or 'P-256'")
  if (typeof renewAt !== 'number' || !(renewAt >= 0.1 && renewAt <= 0.9)) {
    throw invalid('issuance.renewAt', 'must be a number from 0.1 to 0.9')
  }
  if (hub?.moduleId !== undefined) throw invalid('issuance', 'is for devices: a module is issued nothing')
  const certificate = ([] as Credential[]).concat(credential as Credential[])[0] as
    | IssuedCertificate
    | undefined
  if (typeof certificate?.createRequest !== 'function') {
    throw invalid('credential', 'must begin with issuedCertificate(), and the bootstrap credential after it')
  }
  return { curve, renewAt, certificate }
}

/** Who gets out by port 443 alone, or tries both ports, does so at the hub too. */
function mqttOf(transport: TransportChoice | readonly TransportChoice[]): readonly HubTransportName[] {
  const choices = Array.isArray(transport) ? (transport as readonly TransportChoice[]) : [transport]
  const mqtt = choices.filter((choice) => choice === 'mqtt' || choice === 'mqtt-ws') as HubTransportName[]
  return mqtt.length > 0 ? mqtt : [choices.includes('https') ? 'mqtt-ws' : 'mqtt']
}

/** The handler is the caller's code: what it throws decides nothing here. */
function hubEmitter<E extends HubEvent | DpsEvent>(
  handler: ((event: E) => void) | undefined,
): (event: HubEvent) => void {
  return emitter(handler as ((event: DpsEvent) => void) | undefined) as (event: HubEvent) => void
}
