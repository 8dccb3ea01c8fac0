import { createHash, randomBytes, randomUUID, type X509Certificate } from 'node:crypto'
import type { Clock } from '../clock.ts'
import { isObject } from './check.ts'
import {
  type AllocationRequest,
  deviceKeys,
  type EnrollmentBook,
  type EnrollmentRecord,
  type EnrollmentRef,
  REGISTRATION_ID,
  signedBy,
} from './enrollments.ts'

import type { IssuingAuthority } from './issuance/authority.ts'
import type { Csr } from './issuance/csr.ts'

/** Why a device was not let in. The service itself says no more than "unauthorized"; the emulator tells its user. */
export type RefusalReason =
  | 'registration-id-malformed'
  | 'user-name-malformed'
  | 'api-version-unknown'
  | 'id-scope-wrong'
  | 'not-enrolled'
  | 'enrollment-disabled'
  | 'credential-missing'
  | 'sas-malformed'
  | 'sas-resource-wrong'
  | 'sas-key-name-wrong'
  | 'sas-expired'
  | 'sas-signature-wrong'
  | 'certificate-name-wrong'
  | 'certificate-expired'
  | 'certificate-not-yet-valid'
  | 'certificate-purpose-wrong'
  | 'certificate-chain-unknown'
  | 'certificate-revoked'
  | 'client-id-wrong'
  | 'hub-wrong'
  | 'device-unknown'
  | 'device-disabled'
  | 'certificate-unknown'

/** A device's certificate as TLS presented it; that the peer holds its key was proven by the handshake. */
export interface PresentedCertificate {
  readonly leaf: X509Certificate
  readonly intermediates: readonly X509Certificate[]
}

export interface AuthenticationRequest {
  readonly idScope: string
  readonly registrationId: string
  readonly apiVersion: string
  /** The shared access signature as it was sent. */
  readonly sas: string | undefined
  readonly certificate: PresentedCertificate | undefined
  readonly carrier: Carrier
}

/** The connection that carries sessions; its front tells when it has ended. */
export interface Carrier {
  open: boolean
  /** `id` of the connection in the emulator's log. */
  readonly connectionId: number
}

/** What an authenticated device asks under: as long as its connection over MQTT, a single request over HTTPS. */
export interface DeviceSession {
  readonly registrationId: string
  readonly apiVersion: string
  readonly attestation: 'symmetricKey' | 'x509'
  readonly enrollment: EnrollmentRecord
  /** SHA-256 of the certificate that was presented. */
  readonly fingerprint256: string | undefined
  /** Whether that was issued by the emulator's own authority. */
  readonly issued: boolean
  readonly carrier: Carrier
}

export type Authentication =
  | { readonly ok: true; readonly session: DeviceSession }
  | { readonly ok: false; readonly reason: RefusalReason }

/** A reply in no protocol's terms yet. */
export interface ServiceReply {
  readonly status: number
  /** Text of `retry-after`, if there is one. */
  readonly retryAfter: string | undefined
  readonly body: Readonly<Record<string, unknown>>
}

export type FinalOutcome = 'assigned' | 'failed' | 'disabled' | 'unassigned'

/** An outcome written by a script instead of by the enrollment. */
export interface ScriptedOutcome {
  readonly outcome: Exclude<FinalOutcome, 'assigned'>
  readonly errorCode?: number
  readonly message?: string
}

/** A device that was assigned. */
export interface Registration {
  readonly registrationId: string
  readonly deviceId: string
  readonly assignedHub: string
  readonly substatus:
    | 'initialAssignment'
    | 'deviceDataMigrated'
    | 'deviceDataReset'
    | 'reprovisionedToInitialAssignment'
  readonly enrollment: EnrollmentRef
  readonly createdAt: Date
  readonly lastUpdatedAt: Date
  readonly etag: string
  /** How many registrations have ended with this assignment, the first included. */
  readonly count: number
}

/** What the hub is told of a device that is assigned to it. */
export interface DeviceCredential {
  /** Symmetric keys, primary and secondary. */
  readonly keys: readonly Buffer[] | undefined
  /** SHA-256 fingerprints of its certificates. */
  readonly fingerprints: readonly string[]
  /** Whether the certificates that were issued for it are its credential. */
  readonly issued: boolean
  /** The hub it leaves, and what becomes of its data. */
  readonly movedFrom: { readonly hub: string; readonly data: 'migrate' | 'reset' } | undefined
}

export interface ServiceSettings {
  readonly idScope: string
  readonly clock: Clock
  readonly enrollments: EnrollmentBook
  readonly hubs: readonly string[]
  readonly polls: number
  readonly retryAfter: string | undefined
  readonly pollLimit: boolean
  readonly disabledEnrollment: 'refuse' | 'report'
  readonly concurrentRegistrations: 'conflict' | 'allow'
  readonly authority: IssuingAuthority
  readonly onRegistration: (registration: Registration, credential: DeviceCredential) => void
}

interface Operation {
  readonly id: string
  readonly payload: Record<string, unknown> | undefined
  readonly csr: Csr | undefined
  readonly outcome: ScriptedOutcome | undefined
  session: DeviceSession
  pollsLeft: number
  final: ServiceReply | undefined
}

interface Device {
  operation: Operation | undefined
  registration: Registration | undefined
  /** DeviceRegistrationResult of the latest assignment. */
  state: Readonly<Record<string, unknown>> | undefined
  initialHub: string | undefined
  /** Monotonic times of the latest polls, oldest first. */
  polls: number[]
}

/** The device API versions that are known to exist; `csr` came with the first of the previews. */
const API_VERSIONS: Readonly<Record<string, { csr: boolean }>> = {
  '2018-11-01': { csr: false },
  '2019-03-31': { csr: false },
  '2021-06-01': { csr: false },
  '2021-10-01': { csr: false },
  '2025-07-01-preview': { csr: true },
  '2026-11-01': { csr: true },
  '2026-11-02-preview': { csr: true },
  '2026-11-15-preview': { csr: true },
}

const POLLS_PER_WINDOW = 5
const POLL_WINDOW_MS = 10_000
const CLIENT_AUTH = '1.3.6.1.5.5.7.3.2'
const LONGEST_CHAIN = 10

// No list of six-digit codes is published beyond these; a detail of 000 claims nothing.
const BAD_REQUEST = 400_000
const ALLOCATION_FAILED = 400_207
const ALLOCATION_WITHOUT_HUB = 400_208
const UNAUTHORIZED = 401_002
const NOT_FOUND = 404_202
const CONFLICT = 409_203
const THROTTLED = 429_001

/** ISO 8601 with the seven fractional digits of .NET. */
const timestamp = (ms: number): string => new Date(ms).toISOString().replace('Z', '0000Z')

/** The subject's only common name, or undefined where there is none or more than one. */
export function commonName(certificate: X509Certificate): string | undefined {
  const names = certificate.subject
    .split('\n')
    .flatMap((line) => (line.startsWith('CN=') ? [line.slice(3)] : []))
  return names.length === 1 ? names[0] : undefined
}

/**
 * The provisioning service as a pure handler: no sockets, no wire format, and no clock but the one it was given.
 * Fronts translate between it and a protocol.
 */
export class ProvisioningService {
  readonly #settings: ServiceSettings
  readonly #devices = new Map<string, Device>()
  readonly #operationPrefix: string

  constructor(settings: ServiceSettings) {
    this.#settings = settings
    const instance = createHash('sha256').update(settings.idScope).digest('hex').slice(0, 16)
    this.#operationPrefix = `5.${instance}.`
  }

  registration(registrationId: string): Registration | undefined {
    return this.#devices.get(registrationId.toLowerCase())?.registration
  }

  registrations(): readonly Registration[] {
    return [...this.#devices.values()].flatMap(({ registration }) => registration ?? [])
  }

  /** Forgets a device, or all of them: the next registration is again an initial assignment. */
  forget(registrationId?: string): void {
    if (registrationId === undefined) this.#devices.clear()
    else this.#devices.delete(registrationId.toLowerCase())
  }

  authenticate(request: AuthenticationRequest): Authentication {
    const { registrationId, apiVersion, sas } = request
    const refuse = (reason: RefusalReason): Authentication => ({ ok: false, reason })
    if (!REGISTRATION_ID.test(registrationId)) return refuse('registration-id-malformed')
    if (!Object.hasOwn(API_VERSIONS, apiVersion)) return refuse('api-version-unknown')
    if (request.idScope !== this.#settings.idScope) return refuse('id-scope-wrong')

    const verdict =
      sas === undefined
        ? this.#checkCertificate(registrationId, request.certificate)
        : this.#checkSas(registrationId, sas)
    if (typeof verdict === 'string') return refuse(verdict)
    if (!verdict.enabled && this.#settings.disabledEnrollment === 'refuse') {
      return refuse('enrollment-disabled')
    }
    const attestation = sas === undefined ? 'x509' : 'symmetricKey'
    const fingerprint256 = sas === undefined ? request.certificate?.leaf.fingerprint256 : undefined
    return {
      ok: true,
      session: {
        registrationId,
        apiVersion,
        attestation,
        enrollment: verdict,
        fingerprint256,
        issued: fingerprint256 !== undefined && this.#settings.authority.find(fingerprint256) !== undefined,
        carrier: request.carrier,
      },
    }
  }

  register(session: DeviceSession, body: Uint8Array, outcome?: ScriptedOutcome): ServiceReply {
    const request = this.#parseRegister(session, body)
    if (typeof request === 'string') return this.error(400, BAD_REQUEST, request)
    const refusal = this.#stillEnrolled(session)
    if (refusal !== undefined) return refusal

    const device = this.#device(session.registrationId)
    const running = device.operation?.final === undefined ? device.operation : undefined
    if (
      running !== undefined &&
      running.session.carrier === session.carrier &&
      // For another key it starts over: a certificate for the earlier one would be of no use.
      running.csr?.text === request.csr?.text
    ) {
      return this.#assigning(running)
    }
    const elsewhere = running?.session.carrier !== session.carrier && running?.session.carrier.open === true
    if (elsewhere && this.#settings.concurrentRegistrations === 'conflict') {
      return this.error(409, CONFLICT, 'Precondition failed.')
    }
    const operation: Operation = {
      id: this.#operationPrefix + randomUUID(),
      ...request,
      outcome,
      session,
      pollsLeft: this.#settings.polls,
      final: undefined,
    }
    device.operation = operation
    device.polls = []
    return operation.pollsLeft > 0 ? this.#assigning(operation) : this.#finish(device, operation)
  }

  query(session: DeviceSession, operationId: string): ServiceReply {
    const refusal = this.#stillEnrolled(session)
    if (refusal !== undefined) return refusal
    const device = this.#device(session.registrationId)
    const { operation } = device
    if (operation?.id !== operationId) return this.error(404, NOT_FOUND, 'Operation not found.')
    if (this.#throttled(device)) return this.error(429, THROTTLED, 'Operations are being throttled.')
    if (operation.final !== undefined) return operation.final
    operation.session = session
    operation.pollsLeft -= 1
    return operation.pollsLeft > 0 ? this.#assigning(operation) : this.#finish(device, operation)
  }

  /** What is recorded of the device; starts nothing. */
  lookup(session: DeviceSession, body: Uint8Array): ServiceReply {
    const request = parseBody(session, body, [])
    if (typeof request === 'string') return this.error(400, BAD_REQUEST, request)
    const state = this.#devices.get(session.registrationId.toLowerCase())?.state
    if (state === undefined) return this.error(404, NOT_FOUND, 'Registration not found.')
    return { status: 200, retryAfter: undefined, body: state }
  }

  error(status: number, errorCode: number, message: string): ServiceReply {
    return {
      status,
      retryAfter: status === 429 || status >= 500 ? this.#settings.retryAfter : undefined,
      body: {
        errorCode,
        trackingId: randomUUID(),
        message,
        timestampUtc: timestamp(this.#settings.clock.now()),
      },
    }
  }

  /** The body of an operation that ended badly. */
  ended(registrationId: string, operationId: string, script: ScriptedOutcome): Record<string, unknown> {
    const now = timestamp(this.#settings.clock.now())
    const failed = script.outcome === 'failed'
    return {
      operationId,
      status: script.outcome,
      registrationState: {
        registrationId,
        createdDateTimeUtc: now,
        lastUpdatedDateTimeUtc: now,
        status: script.outcome,
        ...(failed || script.errorCode !== undefined
          ? {
              errorCode: script.errorCode ?? ALLOCATION_FAILED,
              errorMessage: script.message ?? 'Custom allocation failed.',
            }
          : {}),
      },
    }
  }

  #device(registrationId: string): Device {
    const key = registrationId.toLowerCase()
    let device = this.#devices.get(key)
    if (device === undefined) {
      device = {
        operation: undefined,
        registration: undefined,
        state: undefined,
        initialHub: undefined,
        polls: [],
      }
      this.#devices.set(key, device)
    }
    return device
  }

  #assigning(operation: Operation): ServiceReply {
    return {
      status: 202,
      retryAfter: this.#settings.retryAfter,
      body: { operationId: operation.id, status: 'assigning' },
    }
  }

  /** The enrollment may have changed since the device was let in. */
  #stillEnrolled(session: DeviceSession): ServiceReply | undefined {
    const { enrollment } = session
    const barred = !enrollment.enabled && this.#settings.disabledEnrollment === 'refuse'
    return enrollment.removed || barred ? this.error(401, UNAUTHORIZED, 'Unauthorized') : undefined
  }

  #throttled(device: Device): boolean {
    if (!this.#settings.pollLimit) return false
    const now = this.#settings.clock.monotonic()
    device.polls = device.polls.filter((time) => now - time < POLL_WINDOW_MS)
    if (device.polls.length >= POLLS_PER_WINDOW) return true
    device.polls.push(now)
    return false
  }

  #finish(device: Device, operation: Operation): ServiceReply {
    operation.final = { status: 200, retryAfter: undefined, body: this.#result(device, operation) }
    return operation.final
  }

  #result(device: Device, operation: Operation): Record<string, unknown> {
    const { session } = operation
    const { registrationId, enrollment } = session
    const end = (script: ScriptedOutcome): Record<string, unknown> =>
      this.ended(registrationId, operation.id, script)
    if (operation.outcome !== undefined) return end(operation.outcome)
    if (!enrollment.enabled) return end({ outcome: 'disabled' })

    const request: AllocationRequest = {
      registrationId,
      payload: operation.payload,
      hubs: this.#settings.hubs,
    }
    const { hub, payload, reprovisioning = 'migrate' } = enrollment.policy
    let allocated: string | undefined
    let returned: Readonly<Record<string, unknown>> | undefined
    try {
      allocated = typeof hub === 'function' ? hub(request) : (hub ?? this.#defaultHub(registrationId))
      returned = typeof payload === 'function' ? payload(request) : payload
    } catch {
      return end({ outcome: 'failed', errorCode: ALLOCATION_FAILED, message: 'Custom allocation failed.' })
    }
    if (allocated === undefined || allocated === '') {
      const message = 'Custom allocation named no hub.'
      return end({ outcome: 'failed', errorCode: ALLOCATION_WITHOUT_HUB, message })
    }

    const before = device.registration
    const moved = before !== undefined && before.assignedHub !== allocated && reprovisioning !== 'never'
    const assignedHub = before === undefined || moved ? allocated : before.assignedHub
    device.initialHub ??= assignedHub
    const now = this.#settings.clock.now()
    const registration: Registration = Object.freeze({
      registrationId,
      deviceId: enrollment.deviceId ?? registrationId,
      assignedHub,
      substatus: moved
        ? movedSubstatus(assignedHub === device.initialHub, reprovisioning)
        : (before?.substatus ?? 'initialAssignment'),
      enrollment: enrollment.ref,
      createdAt: before?.createdAt ?? new Date(now),
      lastUpdatedAt: new Date(now),
      etag: `"${randomBytes(4).toString('hex')}-0000-0100-0000-${randomBytes(6).toString('hex')}"`,
      count: (before?.count ?? 0) + 1,
    })
    device.registration = registration
    const chain = this.#issue(registration, operation)
    // From then on it is not the credential of the registration that counts at the hub.
    const issued = (chain ?? undefined) !== undefined || session.issued
    this.#settings.onRegistration(registration, {
      keys: issued ? undefined : deviceKeys(enrollment, registrationId),
      fingerprints: issued ? [] : fingerprintsOf(session),
      issued,
      movedFrom: moved ? { hub: before.assignedHub, data: reprovisioning } : undefined,
    })
    const group = 'groupId' in enrollment.ref ? { enrollmentGroupId: enrollment.ref.groupId } : {}
    device.state = {
      ...(session.attestation === 'x509' ? { x509: {} } : { symmetricKey: group }),
      registrationId,
      createdDateTimeUtc: timestamp(registration.createdAt.getTime()),
      assignedHub,
      deviceId: registration.deviceId,
      status: 'assigned',
      substatus: registration.substatus,
      lastUpdatedDateTimeUtc: timestamp(now),
      etag: registration.etag,
      ...(returned === undefined ? {} : { payload: returned }),
    }
    // The chain is said once: what a lookup tells has none.
    const registrationState =
      chain === undefined ? device.state : { ...device.state, issuedCertificateChain: chain }
    return { operationId: operation.id, status: 'assigned', registrationState }
  }

  /** The chain for the request of this registration; undefined where there was none, or no policy that grants it. */
  #issue(
    { registrationId, deviceId, enrollment: ref }: Registration,
    { csr, session: { enrollment, carrier } }: Operation,
  ): readonly string[] | null | undefined {
    const policy = enrollment.policy.issuance
    if (csr === undefined || policy === undefined) return undefined
    const whom = { registrationId, deviceId, via: 'dps', enrollment: ref } as const
    return this.#settings.authority.issue({ csr, policy, connectionId: carrier.connectionId, ...whom })
  }

  /** FNV-1a of the id: the same device goes to the same hub in every run. */
  #defaultHub(registrationId: string): string | undefined {
    let hash = 0x811c9dc5
    for (const byte of Buffer.from(registrationId.toLowerCase())) hash = Math.imul(hash ^ byte, 0x01000193)
    return this.#settings.hubs[(hash >>> 0) % this.#settings.hubs.length]
  }

  #parseRegister(
    session: DeviceSession,
    bytes: Uint8Array,
  ): { payload: Record<string, unknown> | undefined; csr: Csr | undefined } | string {
    const body = parseBody(session, bytes, ['payload', 'csr'])
    if (typeof body === 'string') return body
    const { payload, csr } = body
    if (payload !== undefined && payload !== null && !isObject(payload)) {
      return "The field 'payload' must be a JSON object."
    }
    const known = { payload: payload ?? undefined }
    if (csr === undefined || csr === null) return { ...known, csr: undefined }
    // A guess: nothing tells what the service does with it under an older version; here no unknown field is taken.
    if (API_VERSIONS[session.apiVersion]?.csr !== true) return "Unknown field 'csr'."
    const { registrationId, enrollment } = session
    const request = this.#settings.authority.read(csr, [registrationId], enrollment.policy.issuance)
    return typeof request === 'string' ? request : { ...known, csr: request }
  }

  #checkSas(registrationId: string, token: string): EnrollmentRecord | RefusalReason {
    const fields = parseSas(token)
    if (fields === undefined) return 'sas-malformed'
    const resource = `${this.#settings.idScope}/registrations/${registrationId}`
    if (fields.resource.toLowerCase() !== resource.toLowerCase()) return 'sas-resource-wrong'
    if (fields.keyName !== 'registration') return 'sas-key-name-wrong'
    if (fields.expiry * 1000 <= this.#settings.clock.now()) return 'sas-expired'

    // The service verifies the text it received, so any encoding of the resource will do.
    const signedText = `${fields.rawResource}\n${fields.rawExpiry}`
    const matches = (record: EnrollmentRecord): boolean =>
      signedBy(record, registrationId, signedText, fields.signature)
    const individual = this.#settings.enrollments.individual(registrationId)
    if (individual?.keys !== undefined) return matches(individual) ? individual : 'sas-signature-wrong'
    let groups = 0
    for (const group of this.#settings.enrollments.symmetricKeyGroups) {
      if (matches(group)) return group
      groups += 1
    }
    return groups === 0 ? 'not-enrolled' : 'sas-signature-wrong'
  }

  #checkCertificate(
    registrationId: string,
    presented: PresentedCertificate | undefined,
  ): EnrollmentRecord | RefusalReason {
    if (presented === undefined) return 'credential-missing'
    const { leaf } = presented
    if (commonName(leaf)?.toLowerCase() !== registrationId.toLowerCase()) return 'certificate-name-wrong'
    const dates = this.#checkDates(leaf)
    if (dates !== undefined) return dates
    const purposes = leaf.keyUsage as readonly string[] | undefined
    if (purposes !== undefined && !purposes.includes(CLIENT_AUTH)) return 'certificate-purpose-wrong'

    const individual = this.#settings.enrollments.byFingerprint(leaf.fingerprint256)
    if (individual !== undefined) {
      const enrolled = 'registrationId' in individual.ref ? individual.ref.registrationId : ''
      return enrolled.toLowerCase() === registrationId.toLowerCase() ? individual : 'certificate-name-wrong'
    }
    const issued = this.#settings.authority.find(leaf.fingerprint256)
    if (issued === undefined) return this.#climb(presented)
    if (issued.revokedAt !== undefined) return 'certificate-revoked'
    if (issued.registrationId.toLowerCase() !== registrationId.toLowerCase()) return 'certificate-name-wrong'
    return this.#settings.enrollments.record(issued.enrollment) ?? 'not-enrolled'
  }

  /** The group of the nearest signing certificate, going up; the first match wins, even if it is disabled. */
  #climb({ leaf, intermediates }: PresentedCertificate): EnrollmentRecord | RefusalReason {
    let current = leaf
    for (let length = 0; length < LONGEST_CHAIN; length += 1) {
      const issuedBy = (issuer: X509Certificate): boolean =>
        current.checkIssued(issuer) && current.verify(issuer.publicKey)
      for (const group of this.#settings.enrollments.groupsOfCa(current.issuer)) {
        if (group.ca !== undefined && issuedBy(group.ca)) return this.#checkDates(group.ca) ?? group
      }
      const next = intermediates.find((candidate) => candidate.ca && issuedBy(candidate))
      if (next === undefined || next.fingerprint256 === current.fingerprint256) break
      const dates = this.#checkDates(next)
      if (dates !== undefined) return dates
      current = next
    }
    return 'certificate-chain-unknown'
  }

  #checkDates(certificate: X509Certificate): RefusalReason | undefined {
    const now = this.#settings.clock.now()
    if (Date.parse(certificate.validTo) < now) return 'certificate-expired'
    return Date.parse(certificate.validFrom) > now ? 'certificate-not-yet-valid' : undefined
  }
}

/** Of an individual enrollment all of its certificates; of a group, the one that was presented. */
function fingerprintsOf({ enrollment, fingerprint256 }: DeviceSession): readonly string[] {
  if (enrollment.fingerprints.length > 0) return enrollment.fingerprints
  return fingerprint256 === undefined ? [] : [fingerprint256]
}

function movedSubstatus(backToFirst: boolean, policy: 'migrate' | 'reset'): Registration['substatus'] {
  if (backToFirst) return 'reprovisionedToInitialAssignment'
  return policy === 'reset' ? 'deviceDataReset' : 'deviceDataMigrated'
}

/** The body of a request, which names its device and has no field but the known ones; or the rule it breaks. */
function parseBody(
  session: DeviceSession,
  bytes: Uint8Array,
  known: readonly string[],
): Record<string, unknown> | string {
  let body: unknown
  try {
    body = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes))
  } catch {
    return 'The body must be JSON in UTF-8.'
  }
  if (!isObject(body)) return 'The body must be a JSON object.'
  const { registrationId, ...fields } = body
  const unexpected = Object.keys(fields).find((name) => !known.includes(name))
  if (unexpected !== undefined) return `Unknown field '${unexpected}'.`
  return registrationId === session.registrationId
    ? fields
    : "The field 'registrationId' must equal the registration id that was authenticated."
}

export interface SasFields {
  readonly rawResource: string
  readonly resource: string
  readonly rawExpiry: string
  readonly expiry: number
  readonly keyName: string | undefined
  readonly signature: Buffer
}

/** `SharedAccessSignature sr=…&sig=…&se=…&skn=…`, in any order, nothing twice and nothing else. */
export function parseSas(token: string): SasFields | undefined {
  const scheme = 'SharedAccessSignature '
  if (!token.startsWith(scheme)) return undefined
  const fields = new Map<string, string>()
  for (const part of token.slice(scheme.length).split('&')) {
    const [, name, value] = /^(sr|sig|se|skn)=([\x21-\x7e]+)$/.exec(part) ?? []
    if (name === undefined || value === undefined || fields.has(name)) return undefined
    fields.set(name, value)
  }
  const [rawResource, rawSignature, rawExpiry] = [fields.get('sr'), fields.get('sig'), fields.get('se')]
  if (rawResource === undefined || rawSignature === undefined || rawExpiry === undefined) return undefined
  if (!/^\d{1,12}$/.test(rawExpiry)) return undefined
  // `+`, `/` and `=` of the base64 have to be percent-encoded.
  if (!/^[A-Za-z0-9%]+$/.test(rawSignature)) return undefined
  try {
    const base64 = decodeURIComponent(rawSignature)
    const signature = Buffer.from(base64, 'base64')
    if (signature.length !== 32 || signature.toString('base64') !== base64) return undefined
    return {
      rawResource,
      resource: decodeURIComponent(rawResource),
      rawExpiry,
      expiry: Number(rawExpiry),
      keyName: fields.get('skn'),
      signature,
    }
  } catch {
    return undefined
  }
}
