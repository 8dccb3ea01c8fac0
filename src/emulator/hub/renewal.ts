import { randomUUID } from 'node:crypto'
import type { Clock } from '../../clock.ts'
import type { EnrollmentBook } from '../enrollments.ts'
import type { IssueFault } from '../faults.ts'
import type { IssuingAuthority } from '../issuance/authority.ts'
import type { Csr } from '../issuance/csr.ts'
import { isObject, type ServiceReply } from '../service.ts'
import type { HubDevice, HubLink } from './hub.ts'

// Renewal of an issued certificate through the hub (preview): a request is accepted with 202, and its answer follows.
// Where no documentation tells what the hub does, a comment says that it is a guess.

export interface RenewalSettings {
  readonly clock: Clock
  readonly authority: IssuingAuthority
  readonly enrollments: EnrollmentBook
  readonly issueFaults: (registrationId: string, connectionId: number) => readonly IssueFault[]
  /** Between 202 and the answer, ms. */
  readonly renewalDelayMs: number
  /** Whether the hub's tier has the feature. */
  readonly renewalSupported: boolean
}

export interface RenewalRequest {
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
  readonly correlationId: string
  readonly csr: Csr
  readonly names: { readonly registrationId: string; readonly deviceId: string }
  readonly connectionId: number
  readonly expiresAt: number
  /** `ready`: it has an answer that nobody got. `sent`: that was not acknowledged yet. */
  state: 'working' | 'ready' | 'sent'
  reply: ServiceReply | undefined
  sent: { readonly link: HubLink; readonly packetId: number } | undefined
  held: boolean
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
    const retryAfter = RETRY_AFTER[status] === undefined ? {} : { retryAfter: RETRY_AFTER[status] }
    const body = { errorCode, message, trackingId: randomUUID(), timestampUtc, ...retryAfter, ...more }
    return { status, retryAfter: undefined, body }
  }

  /** 202, or the error that a request gets at once. */
  ask(device: HubDevice, link: HubLink, request: RenewalRequest): ServiceReply {
    const { clock, authority, renewalSupported } = this.#settings
    const refuse = (errorCode: number, message: string, info?: object): ServiceReply =>
      this.error(Math.floor(errorCode / 1000), errorCode, message, info === undefined ? {} : { info })
    if (request.apiVersion < FIRST_API_VERSION) {
      return refuse(400_001, `The API version must be ${FIRST_API_VERSION} or later.`)
    }
    if (!renewalSupported) return refuse(403_010, 'The tier of this hub issues no certificates.')
    // A guess, as far as the code goes.
    if (!request.x509) return refuse(403_000, 'A certificate is renewed by a device that connects with one.')
    const body = readBody(device, request.body)
    if (typeof body === 'number') return refuse(body, BODY_RULES[body]!)
    const { registration } = device
    const enrollment =
      registration === undefined ? undefined : this.#settings.enrollments.record(registration.enrollment)
    if (registration === undefined || enrollment === undefined) {
      return refuse(404_001, 'The device is not registered with the provisioning service.')
    }
    const { issuance } = enrollment.policy
    // A guess: what is told of a missing policy is its effect on a registration alone.
    if (issuance === undefined) return refuse(403_010, 'The enrollment has no policy for certificates.')

    const now = clock.now()
    const kept = this.#pending.get(device)
    const pending = kept === undefined || kept.state === 'sent' || kept.expiresAt <= now ? undefined : kept
    const { replace } = body
    if (replace !== undefined && pending === undefined) return refuse(412_001, 'There is nothing to replace.')
    // Guesses: which of two codes means which of two cases.
    if (replace !== undefined && replace !== '*' && replace !== pending?.rid) {
      return refuse(412_005, 'The request to replace is not the one that is pending.')
    }
    if (replace === undefined && pending !== undefined) {
      return refuse(pending.rid === request.rid ? 409_005 : 409_004, 'A request is pending.', {
        correlationId: pending.correlationId,
        requestId: pending.rid,
        operationExpires: new Date(pending.expiresAt).toISOString(),
      })
    }
    const correlationId = randomUUID()
    const names = { registrationId: registration.registrationId, deviceId: device.deviceId }
    const csr = authority.read(body.csr, [...new Set(Object.values(names))], issuance)
    if (typeof csr === 'string') {
      const info = { correlationId, credentialError: 'InvalidCsr', credentialMessage: csr }
      return refuse(400_037, 'The certificate signing request was refused.', info)
    }
    this.drop(device)
    const renewal: Renewal = {
      rid: request.rid,
      correlationId,
      csr,
      names,
      connectionId: link.connectionId,
      expiresAt: now + OPERATION_MS,
      state: 'working',
      reply: undefined,
      sent: undefined,
      held: false,
      cancel: () => undefined,
    }
    this.#pending.set(device, renewal)
    const operationExpires = new Date(renewal.expiresAt).toISOString()
    return { status: 202, retryAfter: undefined, body: { correlationId, operationExpires } }
  }

  /** Works on what was accepted, once that has been said. */
  proceed(device: HubDevice): void {
    const renewal = this.#pending.get(device)
    if (renewal?.state === 'working' && renewal.reply === undefined) {
      this.#after(renewal, this.#settings.renewalDelayMs, () => this.#issue(device, renewal))
    }
  }

  /** Sends the answer that waits for this device, if there is one and it can take it. */
  deliver(device: HubDevice): void {
    const { link } = device
    const renewal = this.#pending.get(device)
    if (link === undefined || renewal?.reply === undefined || renewal.state === 'working') return
    if (!device.subscriptions.has('credentials') || renewal.sent?.link === link) return
    if (renewal.expiresAt <= this.#settings.clock.now()) {
      this.drop(device)
      return
    }
    const { rid, reply, held } = renewal
    const result = link.answerRenewal({ rid, reply, held, again: renewal.sent !== undefined })
    if (typeof result === 'number') {
      renewal.state = 'sent'
      renewal.sent = { link, packetId: result }
    } else if (typeof result === 'object') {
      renewal.state = 'working'
      renewal.held = true
      this.#after(renewal, result.late, () => {
        renewal.state = 'ready'
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

  #issue(device: HubDevice, renewal: Renewal): void {
    const { authority, enrollments, issueFaults } = this.#settings
    const { correlationId, csr, names, connectionId } = renewal
    const ref = device.registration?.enrollment
    const policy = ref === undefined ? undefined : enrollments.record(ref)?.policy.issuance
    if (ref === undefined || policy === undefined) {
      const info = { info: { correlationId } }
      renewal.reply = this.error(404, 404_001, 'The device is no longer enrolled.', info)
    } else {
      const faults = issueFaults(names.registrationId, connectionId)
      const certificates = authority.issue({ csr, policy, ...names, via: 'hub', enrollment: ref, faults })
      renewal.reply = { status: 200, retryAfter: undefined, body: { correlationId, certificates } }
    }
    renewal.state = 'ready'
    this.deliver(device)
  }
}

const BODY_RULES: Readonly<Record<number, string>> = {
  400004:
    'The body holds `id` (of this device), `csr` and optionally `replace` (`*` or a request id), and no more.',
  400006: 'The body must be a JSON object in UTF-8.',
}

/** The body of a request, or the code of what is wrong with it. */
function readBody(
  { deviceId }: HubDevice,
  bytes: Buffer,
): { csr: string; replace: string | undefined } | number {
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
