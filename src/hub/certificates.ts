import type { Clock } from '../clock.ts'
import { DpsError } from '../errors.ts'
import {
  certificateBody,
  certificateTopic,
  parseCertificateReply,
  parseCertificateTopic,
} from '../protocol/renewal.ts'
import type { HubEvent } from './options.ts'
import type { HubSession } from './session.ts'

/** As Microsoft's newest client: to 202, and again from there to the answer. */
const LIMIT_MS = 120_000
/** An answer that is ready comes as soon as it is subscribed to; only then is the same asked once more. */
const GRACE_MS = 5000

export interface CertificateRequest {
  readonly deviceId: string
  /** Base64 of DER. */
  readonly csr: string
  readonly requestId: string
  readonly replace: string | undefined
  /** Whether the request may have been made already, by this process or by one before. */
  readonly resumed: boolean
}

interface Pending extends CertificateRequest {
  replace: string | undefined
  resumed: boolean
  accepted: boolean
  resolve(elements: unknown): void
  reject(error: DpsError): void
  disarm(): void
}

/**
 * Requests for a certificate. One that was accepted is waited for over reconnects; one of which that is not known is made anew
 * under the same id, which the hub recognises.
 */
export class CertificateRequests {
  readonly #clock: Clock
  readonly #emit: (event: HubEvent) => void
  readonly #pending = new Map<string, Pending>()
  #session: HubSession | undefined

  constructor(clock: Clock, emit: (event: HubEvent) => void) {
    this.#clock = clock
    this.#emit = emit
  }

  /** What came as certificates, not believed. */
  ask(request: CertificateRequest, signal: AbortSignal | undefined): Promise<unknown> {
    const { requestId } = request
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        pending.disarm()
        this.#pending.delete(requestId)
        signal?.removeEventListener('abort', onAbort)
      }
      const pending: Pending = {
        ...request,
        accepted: false,
        disarm: () => undefined,
        resolve: (elements) => {
          settle()
          resolve(elements)
        },
        reject: (error) => {
          settle()
          reject(error)
        },
      }
      const onAbort = (): void =>
        pending.reject(
          new DpsError('CANCELLED', 'hub', 'cancelled by the caller; the hub may issue a certificate', {
            cause: signal?.reason,
          }),
        )
      signal?.addEventListener('abort', onAbort)
      this.#pending.set(requestId, pending)
      if (signal?.aborted) onAbort()
      else this.#begin(pending)
    })
  }

  has(requestId: string): boolean {
    return this.#pending.has(requestId)
  }

  /** Once the answers are subscribed to. */
  attach(session: HubSession): void {
    this.#session = session
    for (const pending of [...this.#pending.values()]) this.#begin(pending)
  }

  detach(): void {
    this.#session = undefined
    for (const pending of this.#pending.values()) pending.disarm()
  }

  rejectAll(error: DpsError): void {
    for (const pending of [...this.#pending.values()]) pending.reject(error)
  }

  receive(topic: string, body: Uint8Array): void {
    const found = parseCertificateTopic(topic)
    if (found === undefined) {
      this.#emit({
        type: 'message-ignored',
        message: 'an answer about certificates whose topic cannot be read',
      })
      return
    }
    // One that answers nobody is late, or repeated.
    const pending = this.#pending.get(found.requestId)
    if (pending === undefined) return
    try {
      const reply = parseCertificateReply(found, body)
      if (reply.kind === 'accepted') {
        // Said again it is no news, and must not keep the request for ever.
        if (!pending.accepted) this.#arm(pending, 'issue the certificate')
        pending.accepted = true
      } else if (reply.kind === 'issued') pending.resolve(reply.elements)
      else if (reply.kind === 'nothing-to-replace' && pending.replace !== undefined) {
        pending.replace = undefined
        this.#send(pending)
      } else pending.reject(reply.error)
    } catch (error) {
      pending.reject(error as DpsError)
    }
  }

  #begin(pending: Pending): void {
    if (this.#session === undefined) return
    if (pending.accepted) this.#arm(pending, 'issue the certificate')
    else if (pending.resumed) {
      pending.disarm()
      pending.disarm = this.#clock.after(GRACE_MS, () => this.#send(pending))
    } else this.#send(pending)
  }

  #send(pending: Pending): void {
    const { deviceId, csr, requestId, replace } = pending
    pending.resumed = true
    this.#arm(pending, 'take the request for a certificate')
    this.#session?.send(certificateTopic(requestId), certificateBody(deviceId, csr, replace))
  }

  #arm(pending: Pending, what: string): void {
    pending.disarm()
    pending.disarm = this.#clock.after(LIMIT_MS, () =>
      pending.reject(new DpsError('TIMEOUT', 'hub', `the hub did not ${what} within ${LIMIT_MS} ms`)),
    )
  }
}
