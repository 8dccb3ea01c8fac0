import { randomUUID } from 'node:crypto'
import type { Clock } from '../../clock.ts'
import { isObject } from '../check.ts'
import type { EnrollmentBook } from '../enrollments.ts'
import type { IssuancePolicy, IssuingAuthority } from '../issuance/authority.ts'
import type { Csr } from '../issuance/csr.ts'
import type { ServiceReply } from '../service.ts'
import type { HubDevice, HubLink } from './hub.ts'

// Renewal of an issued certificate through the hub (preview): a request is accepted with 202, and its answer follows.
// Where no documentation tells what the hub does, a comment says that it is a guess.

export interface RenewalSettings {
  readonly clock: Clock
  readonly authority: IssuingAuthority
  readonly enrollments: EnrollmentBook
  /** Between 202 and the answer, ms. */
  readonly renewalDelayMs: number
  /** Whether the hub's tier has the feature. */
  readonly renewalSupported: boolean
}

export interface RenewalRequest {
  readonly link: HubLink
  readonly rid: string
  readonly body: Buffer
  readonly apiVersion: string
  /** Whether a certificate let the device in. */
  readonly x509: boolean
}

/** An answer that is ready. */
export interface RenewalAnswer {
  readonly rid: string
  readonly reply: ServiceReply
  /** Whether it was sent on an earlier connection, or held back once. */
  readonly again: boolean
  readonly held: boolean
}

/** What became of it: the packet id at QoS 1, sent or withheld for good, kept for another connection, or held back. */
export type RenewalDelivery = number | 'done' | 'kept' | { readonly late: number }

interface Renewal {
  readonly rid: string
  readonly accepted: { readonly correlationId: string; readonly operationExpires: string }
  readonly csr: Csr
  readonly connectionId: number
  readonly expiresAt: number
  /** The answer, once it is ready; `sent` and not acknowledged yet, or to be held back until later. */
  reply: ServiceReply | undefined
  sent: { readonly link: HubLink; readonly packetId: number } | undefined
  held: 'never' | 'now' | 'before'
  cancel: () => void
}

const FIRST_API_VERSION = '2025-08-01-preview'
const OPERATION_MS = 3_600_000
/** Seconds, where an answer says when to try again. */
const RETRY_AFTER: Readonly<Record<number, number>> = { 429: 1, 500: 300, 503: 5 }
const RID = /^(?!-)[A-Za-z0-9-]{4,36}(?<!-)$/

export const CREDENTIALS_FILTER = '$iothub/credentials/res/#'
const RENEWAL_TOPIC = '$iothub/credentials/POST/issueCertificate'
export const renewalTopic = (status: number, rid: string): string =>
  `$iothub/credentials/res/${status}/?$rid=${rid}`

/** The request that a topic makes, with no `$rid` where it has none that can be answered. */
export function readRenewal(topic: string): { kind: 'renewal'; rid: string | undefined } | undefined {
  if (topic !== RENEWAL_TOPIC && !topic.startsWith(`${RENEWAL_TOPIC}/`)) return undefined
  const rid = topic.slice(RENEWAL_TOPIC.length).replace(/^\/\?\$rid=/, '')
  return { kind: 'renewal', rid: RID.test(rid) ? rid : undefined }
}

export class Renewals {
  readonly #settings: RenewalSettings
  readonly #pending = new Map<HubDevice, Renewal>()

  constructor(settings: RenewalSettings) {
    this.#settings = settings
  }

  error(status: number, errorCode: number, message: string, more: object = {}): ServiceReply {
    const timestampUtc = new Date(this.#settings.clock.now()).toISOString()
    const retryAfter = RETRY_AFTER[status]
    const body = { errorCode, message, trackingId: randomUUID(), timestampUtc, retryAfter, ...more }
    return { status, retryAfter: undefined, body }
  }

  #refuse(errorCode: keyof typeof RULES, info?: object): ServiceReply {
    return this.error(Math.floor(errorCode / 1000), errorCode, RULES[errorCode], { info })
  }

  /** 202, or the error that a request gets at once. */
  ask(device: HubDevice, request: RenewalRequest): ServiceReply {
    const { clock, authority, renewalSupported } = this.#settings
    if (request.apiVersion < FIRST_API_VERSION) return this.#refuse(400_001)
    if (!renewalSupported) return this.#refuse(403_010)
    if (!request.x509) return this.#refuse(403_000)
    const body = readBody(device, request.body)
    if (typeof body === 'number') return this.#refuse(body)
    const { registration } = device
    const issuance = this.#policyOf(device)
    if (registration === undefined || issuance === undefined) return this.#refuse(404_001)
    // A guess: what is told of a missing policy is its effect on a registration alone.
    if (issuance === null) return this.#refuse(403_010)

    const now = clock.now()
    const kept = this.#pending.get(device)
    const pending = kept?.sent === undefined && (kept?.expiresAt ?? 0) > now ? kept : undefined
    const { replace } = body
    if (replace === undefined && pending !== undefined) {
      return this.#refuse(pending.rid === request.rid ? 409_005 : 409_004, {
        ...pending.accepted,
        requestId: pending.rid,
      })
    }
    if (replace !== undefined && replace !== '*' && replace !== (pending?.rid ?? replace)) {
      return this.#refuse(412_005)
    }
    if (replace !== undefined && pending === undefined) return this.#refuse(412_001)
    const correlationId = randomUUID()
    const names = new Set([registration.registrationId, device.deviceId])
    const csr = authority.read(body.csr, [...names], issuance)
    if (typeof csr === 'string') {
      return this.#refuse(400_037, {
        correlationId,
        credentialError: 'InvalidCsr',
        credentialMessage: csr,
      })
    }
    this.drop(device)
    const renewal: Renewal = {
      rid: request.rid,
      accepted: { correlationId, operationExpires: new Date(now + OPERATION_MS).toISOString() },
      csr,
      connectionId: request.link.connectionId,
      expiresAt: now + OPERATION_MS,
      reply: undefined,
      sent: undefined,
      held: 'never',
      cancel: () => undefined,
    }
    this.#pending.set(device, renewal)
    return { status: 202, retryAfter: undefined, body: renewal.accepted }
  }

  /** Works on what was accepted, once that has been said. */
  proceed(device: HubDevice): void {
    const renewal = this.#pending.get(device)
    if (renewal !== undefined) {
      this.#after(renewal, this.#settings.renewalDelayMs, () => this.#issue(device, renewal))
    }
  }

  /** Sends the answer that waits for this device, if there is one and it can take it. */
  deliver(device: HubDevice): void {
    const { link } = device
    const renewal = this.#pending.get(device)
    if (link === undefined || !device.subscriptions.has('credentials')) return
    if (renewal?.reply === undefined || renewal.held === 'now' || renewal.sent?.link === link) return
    if (renewal.expiresAt <= this.#settings.clock.now()) {
      this.drop(device)
      return
    }
    const { rid, reply, held } = renewal
    const result = link.answerRenewal({
      rid,
      reply,
      held: held === 'before',
      again: renewal.sent !== undefined,
    })
    if (typeof result === 'number') renewal.sent = { link, packetId: result }
    else if (typeof result === 'object') {
      renewal.held = 'now'
      this.#after(renewal, result.late, () => {
        renewal.held = 'before'
        this.deliver(device)
      })
    } else if (result === 'done') this.drop(device)
  }

  acknowledge(device: HubDevice, link: HubLink, packetId: number): void {
    const sent = this.#pending.get(device)?.sent
    if (sent?.link === link && sent.packetId === packetId) this.drop(device)
  }

  /** Forgets what a device has asked for. */
  drop(device: HubDevice): void {
    this.#pending.get(device)?.cancel()
    this.#pending.delete(device)
  }

  close(): void {
    for (const { cancel } of this.#pending.values()) cancel()
    this.#pending.clear()
  }

  #after(renewal: Renewal, ms: number, then: () => void): void {
    if (ms === 0) then()
    else if (ms !== Number.POSITIVE_INFINITY) renewal.cancel = this.#settings.clock.after(ms, then)
  }

  /** Null where the enrollment has none, undefined where there is no enrollment. */
  #policyOf({ registration }: HubDevice): IssuancePolicy | null | undefined {
    const enrollment = registration && this.#settings.enrollments.record(registration.enrollment)
    return enrollment && (enrollment.policy.issuance ?? null)
  }

  #issue(device: HubDevice, renewal: Renewal): void {
    const { accepted, csr, connectionId } = renewal
    const { deviceId, registration } = device
    const { correlationId } = accepted
    const policy = this.#policyOf(device)
    if (policy && registration) {
      const { registrationId, enrollment } = registration
      const whom = { registrationId, deviceId, via: 'hub', enrollment } as const
      const certificates = this.#settings.authority.issue({ csr, policy, connectionId, ...whom })
      renewal.reply = { status: 200, retryAfter: undefined, body: { correlationId, certificates } }
    } else renewal.reply = this.#refuse(404_001, { correlationId })
    this.deliver(device)
  }
}

// Guesses: 403000, and which of 409004 and 409005, 412001 and 412005 means what.
const RULES = {
  400001: `The API version must be ${FIRST_API_VERSION} or later.`,
  400004: 'The body holds `id` of this device, `csr`, optionally `replace`: `*` or a request id; no more.',
  400006: 'The body must be a JSON object.',
  400037: 'The certificate signing request was refused.',
  403000: 'A certificate is renewed by a device that connects with one.',
  403010: 'No certificates are issued here.',
  404001: 'The device is not enrolled.',
  409004: 'Another request is pending.',
  409005: 'This request is pending.',
  412001: 'There is nothing to replace.',
  412005: 'Another request is pending than the one to replace.',
} as const

/** The body of a request, or the code of what is wrong with it. */
function readBody(
  { deviceId }: HubDevice,
  bytes: Buffer,
): { csr: string; replace: string | undefined } | 400_004 | 400_006 {
  let body: unknown
  try {
    body = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes))
  } catch {
    return 400_006
  }
  if (!isObject(body)) return 400_006
  const { id, csr, replace, ...rest } = body
  const wellFormed =
    Object.keys(rest).length === 0 &&
    id === deviceId &&
    typeof csr === 'string' &&
    (replace === undefined || (typeof replace === 'string' && (replace === '*' || RID.test(replace))))
  return wellFormed ? { csr, replace } : 400_004
}
