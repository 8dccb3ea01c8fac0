import type { HubAssignment } from '../assignment/hub.ts'
import type { Clock } from '../clock.ts'
import type { Credential } from '../credential/credential.ts'
import { DpsError, type DpsErrorCode } from '../errors.ts'
import type { Hub } from '../hub/connection.ts'
import type { HubEvent } from '../hub/options.ts'
import type {
  IssuedCertificate,
  IssuedCertificateFacts,
  IssuedCertificateRequest,
  IssuedCertificateStatus,
} from '../issued-certificate.ts'
import { issuedChainOf } from '../protocol/issuance.ts'
import { type Life, nextLookMs, renewalDueMs, renewalRetryMs } from './schedule.ts'

export interface LifecycleOptions {
  readonly certificate: IssuedCertificate
  readonly curve: 'P-384' | 'P-256'
  readonly renewAt: number
  readonly clock: Clock
  readonly emit: (event: HubEvent) => void
  readonly registrationId: () => Promise<string>
  /** Registers with the request; rejects where the service could not be asked. */
  readonly register: (csr: string, signal: AbortSignal) => Promise<HubAssignment>
}

/** What the hub means where it renews nothing for this device: the provisioning service may. */
const NOT_AT_THE_HUB: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>([
  'FORBIDDEN',
  'SUBSCRIPTION_REFUSED',
  'OPTION_INVALID',
])

/** The last part of a life, in which a hub that fails is not waited for. */
const LATE = 0.05

/** What is wrong with the request, or with what came for it: the next has a new key. */
const SPENT: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>(['BAD_REQUEST', 'ISSUED_CERTIFICATE_INVALID'])

/**
 * The certificate of a device from its first on: asked for, kept, tried, renewed in time. The planned reconnect is the
 * rehearsal: a second connection of the same device would end the first, and what the provisioning service takes a hub need
 * not. Messages wait meanwhile, and the pair before is kept until a hub has taken the new one.
 */
export class CertificateLifecycle {
  /** For the hub: it has no use for the bootstrap credential. */
  readonly credential: Credential
  readonly certificate: IssuedCertificate
  readonly #options: LifecycleOptions
  #issuing: Promise<HubAssignment> | undefined
  /** Where the device was sent when it registered last. */
  #assignment: HubAssignment | undefined
  #onlyDps = false
  #replace = false
  /** Whether the hub has answered the request there is: nothing is under way. */
  #answered = false
  /** The day of renewal is drawn once for each certificate. */
  #due = { fingerprint: '', atMs: 0 }
  #rejection: DpsError | undefined
  /** Why the last attempt failed: where the pair before is let in after it, that speaks against the candidate. */
  #failure: DpsError | undefined
  #onNews: () => void = () => undefined
  /** Ends what the hub was asked for. */
  #endRequest: () => void = () => undefined

  constructor(options: LifecycleOptions) {
    this.#options = options
    const { certificate, emit } = options
    this.certificate = certificate
    this.credential = Object.freeze({
      load: () => certificate.load(),
      settled: async (identity, error) => {
        const before = (await this.#status())?.candidate
        try {
          return await certificate.settled(identity, error)
        } finally {
          const { current, candidate } = (await this.#status()) ?? {}
          if (before !== undefined && candidate === undefined) {
            const isInUse = current?.fingerprint256 === before.fingerprint256
            const reason = isInUse ? undefined : (error ?? this.#failure)
            if (reason === undefined) emit({ type: 'certificate-in-use', certificate: before })
            else emit({ type: 'certificate-rejected', certificate: before, error: reason })
            this.#rejection = reason
            // Who was let in has still to begin; a network that is in the way is no news.
            if (error !== undefined) this.#onNews()
          }
          this.#failure = error
        }
      },
    } satisfies Credential)
  }

  /** A connection has begun. */
  connected(): void {
    this.#onNews()
  }

  /** Whether a hub may be asked with what there is. */
  async isUsable(): Promise<boolean> {
    const { certificate, emit } = this.#options
    const status = await certificate
      .status()
      .catch(({ message }: DpsError) => emit({ type: 'warning', message }))
    const facts = factsOf(status ?? undefined)
    return facts !== undefined && facts.validUntil.getTime() > this.#options.clock.now()
  }

  /** A first certificate, or another, from the provisioning service. Who asks while that goes on gets the same. */
  issue(signal: AbortSignal): Promise<HubAssignment> {
    this.#issuing ??= this.#issue(signal).finally(() => {
      this.#issuing = undefined
    })
    return this.#issuing
  }

  /** Renews until `signal` aborts. Never rejects. */
  async run(hub: Hub, signal: AbortSignal): Promise<void> {
    const { clock, emit } = this.#options
    const onAbort = (): void => this.#onNews()
    signal.addEventListener('abort', onAbort)
    let failures = 0
    while (!signal.aborted) {
      let delayMs: number
      try {
        const step = await this.#step(hub, signal)
        if (step.done) failures = 0
        delayMs = step.waitMs
      } catch (thrown) {
        if (signal.aborted) break
        const error = DpsError.is(thrown)
          ? thrown
          : new DpsError('TRANSPORT_FAILED', 'config', 'the renewal failed', { cause: thrown })
        failures += 1
        const life = lifeOf(factsOf(await this.#status()), clock.now())
        const { retryAfterMs } = error
        delayMs = renewalRetryMs({ life, nowMs: clock.now(), failures, retryAfterMs, random: clock.random() })
        emit({ type: 'certificate-renewal-failed', error, delayMs, validUntil: new Date(life.untilMs) })
      }
      await clock.sleep(delayMs, signal).catch(() => undefined)
    }
    signal.removeEventListener('abort', onAbort)
  }

  /** One thing that is to be done, or how long there is nothing. */
  async #step(hub: Hub, signal: AbortSignal): Promise<{ waitMs: number; done: boolean }> {
    const { clock, renewAt } = this.#options
    // What comes of it is told to who asked; here it decides whether there is anything left to do.
    await this.#issuing?.catch(() => undefined)
    const status = await this.#status()
    const { current, candidate, requested = false } = status ?? {}
    const nowMs = clock.now()
    if (candidate !== undefined) {
      const waitMs = nextLookMs(candidate.validFrom.getTime(), nowMs)
      if (current !== undefined && waitMs > 0) return { waitMs, done: false }
      await this.#rehearse(hub, signal)
      return { waitMs: 0, done: true }
    }
    if (current === undefined) await this.issue(signal)
    else {
      if (this.#due.fingerprint !== current.fingerprint256) {
        const atMs = renewalDueMs(lifeOf(current, nowMs), renewAt, clock.random())
        this.#due = { fingerprint: current.fingerprint256, atMs }
      }
      const waitMs = nextLookMs(this.#due.atMs, nowMs)
      if (!requested && waitMs > 0) return { waitMs, done: false }
      await this.#renew(hub, current, signal)
    }
    return { waitMs: 0, done: false }
  }

  /** The planned reconnect, until the hub has said yes or no to the candidate. */
  async #rehearse(hub: Hub, signal: AbortSignal): Promise<void> {
    this.#rejection = undefined
    const news = new Promise<void>((resolve) => {
      this.#onNews = resolve
    })
    hub.reconnect(this.#assignment)
    this.#assignment = undefined
    if (!signal.aborted) await news
    if (this.#rejection !== undefined) throw this.#rejection
  }

  async #renew(hub: Hub, facts: IssuedCertificateFacts, signal: AbortSignal): Promise<void> {
    const { clock, emit } = this.#options
    const { fromMs, untilMs } = lifeOf(facts, clock.now())
    // From then on the service is asked too: what has ended is no credential any more.
    const lateMs = untilMs - (untilMs - fromMs) * LATE
    const isLate = (): boolean => clock.now() >= lateMs
    if (!this.#onlyDps && !(isLate() && (hub.state !== 'connected' || clock.now() >= untilMs))) {
      const request = await this.#request()
      if (this.#issuing !== undefined) return
      emit({ type: 'certificate-requested', via: 'hub' })
      // Once it is late there is another way.
      const end = new AbortController()
      const onAbort = (): void => end.abort(signal.reason)
      this.#endRequest = onAbort
      signal.addEventListener('abort', onAbort)
      const disarm = clock.after((isLate() ? untilMs : lateMs) - clock.now(), onAbort)
      try {
        const replace = this.#replace ? { replace: '*' } : {}
        const chain = await hub.requestCertificate({ ...request, ...replace, signal: end.signal })
        this.#replace = this.#answered = false
        await this.#install(chain)
        return
      } catch (error) {
        if (signal.aborted || !DpsError.is(error)) throw error
        // Another has been issued meanwhile, since the hub took this one no longer.
        if (end.signal.aborted && !isLate()) return
        await this.#giveUp(error)
        this.#answered = error.family === 'service' || error.family === 'reply'
        this.#replace = error.code === 'CONFLICT'
        if (NOT_AT_THE_HUB.has(error.code) || error.serviceErrorCode === 400001) this.#onlyDps = true
        else if (error.code !== 'NOT_FOUND' && !isLate()) throw error
      } finally {
        disarm()
        signal.removeEventListener('abort', onAbort)
      }
    }
    await this.issue(signal)
  }

  async #issue(signal: AbortSignal): Promise<HubAssignment> {
    const { register, emit } = this.#options
    this.#endRequest()
    try {
      const { csr } = await this.#request()
      emit({ type: 'certificate-requested', via: 'dps' })
      const assignment = await register(csr, signal)
      await this.#install(issuedChainOf(assignment) as readonly string[] | undefined)
      this.#assignment = assignment
      return assignment
    } catch (error) {
      if (DpsError.is(error)) await this.#giveUp(error)
      throw error
    }
  }

  async #giveUp(error: DpsError): Promise<void> {
    if (SPENT.has(error.code)) await this.#kept(() => this.#options.certificate.abandon())
  }

  async #request(): Promise<IssuedCertificateRequest> {
    const { certificate, curve } = this.#options
    const registrationId = await this.#options.registrationId()
    const make = (): Promise<IssuedCertificateRequest> => certificate.createRequest({ registrationId, curve })
    // From memory, where it could not be stored: then nobody has asked with it.
    const request = (await this.#kept(make)) ?? { ...(await make()), resume: false }
    return { ...request, resume: request.resume && !this.#answered }
  }

  async #install(chain: readonly string[] | undefined): Promise<void> {
    const { certificate, emit } = this.#options
    const facts = (await this.#kept(() => certificate.install(chain))) ?? (await this.#status())?.candidate
    if (facts !== undefined) emit({ type: 'certificate-issued', certificate: facts })
  }

  /** What the store does not take is told, and goes on in memory: a device with a full disk stays online. */
  async #kept<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work()
    } catch (error) {
      if (!DpsError.is(error) || error.code !== 'STORE_FAILED') throw error
      this.#options.emit({ type: 'store-failed', error })
      return undefined
    }
  }

  /** Undefined where nothing can be read: then there is no certificate. */
  #status(): Promise<IssuedCertificateStatus | undefined> {
    return this.#options.certificate.status().catch(() => undefined)
  }
}

function factsOf(status: IssuedCertificateStatus | undefined): IssuedCertificateFacts | undefined {
  return status?.candidate ?? status?.current
}

/** Of no certificate, one that has ended. */
function lifeOf(facts: IssuedCertificateFacts | undefined, nowMs: number): Life {
  if (facts === undefined) return { fromMs: nowMs - 86_400_000, untilMs: nowMs }
  return { fromMs: facts.validFrom.getTime(), untilMs: facts.validUntil.getTime() }
}
