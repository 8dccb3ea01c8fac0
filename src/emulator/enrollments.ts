import { createHmac, randomBytes, timingSafeEqual, X509Certificate } from 'node:crypto'
import { DpsError } from '../errors.ts'
import { checkNames, invalid, isObject } from './check.ts'
import { checkPolicy, type IssuancePolicy } from './issuance/authority.ts'

/** Base64 keys of 16 to 64 bytes. Primary and secondary are equivalent; one that is left out is generated. */
export interface SymmetricKeyAttestation {
  symmetricKey: { primaryKey?: string; secondaryKey?: string }
}

/** What a custom allocation is told. */
export interface AllocationRequest {
  readonly registrationId: string
  /** `payload` of the register request, if it had one. */
  readonly payload: Readonly<Record<string, unknown>> | undefined
  /** Host names of the hubs linked to the emulator. */
  readonly hubs: readonly string[]
}

export interface EnrollmentPolicy {
  /**
   * The hub to assign, or a custom allocation that picks it. A function that returns nothing ends the registration as
   * failed with 400208, one that throws with 400207. Default: a stable hash of the registration id over all hubs.
   */
  hub?: string | ((request: AllocationRequest) => string | undefined)
  /** JSON object handed to the device with the assignment, or what makes one. Default none. */
  payload?:
    | Readonly<Record<string, unknown>>
    | ((request: AllocationRequest) => Readonly<Record<string, unknown>> | undefined)
  /**
   * What happens when a registered device is allocated to another hub: its data is migrated (substatus
   * `deviceDataMigrated`), reset (`deviceDataReset`), or it stays where it is. Default `'migrate'`.
   */
  reprovisioning?: 'migrate' | 'reset' | 'never'
  /**
   * What a device is issued that sends a certificate signing request (preview, `2025-07-01-preview` and later): `{}` for
   * 30 days. Default: it is assigned and gets no certificate.
   */
  issuance?: IssuancePolicy
  /** Default true. */
  enabled?: boolean
}

export interface IndividualEnrollment extends EnrollmentPolicy {
  registrationId: string
  /** Device id at the hub. Default: the registration id. */
  deviceId?: string
  /** `certificate` and `secondary` are the device's own certificates, PEM. */
  attestation: SymmetricKeyAttestation | { x509: { certificate: string; secondary?: string } }
}

export interface EnrollmentGroup extends EnrollmentPolicy {
  groupId: string
  /** `ca` is the CA certificate, PEM, that the chains of the group's devices lead to: a root or an intermediate. */
  attestation: SymmetricKeyAttestation | { x509: { ca: string } }
}

/** Names one enrollment. */
export type EnrollmentRef = { readonly registrationId: string } | { readonly groupId: string }

/** An enrollment as listed: no keys. */
export type EnrollmentInfo = EnrollmentRef & {
  readonly attestation: 'symmetricKey' | 'x509'
  readonly enabled: boolean
}

/** The keys of a new enrollment, as given or as generated. */
export interface EnrollmentKeys {
  readonly primaryKey: string
  readonly secondaryKey: string
}

/** The enrollment list of the emulated service. Ids are compared without regard to case, as the service does. */
export interface Enrollments {
  /**
   * Enrolls one device, replacing an enrollment of the same registration id.
   *
   * @returns the symmetric keys
   * @throws DpsError OPTION_INVALID, phase `config`
   */
  addIndividual(enrollment: IndividualEnrollment & { attestation: SymmetricKeyAttestation }): EnrollmentKeys
  /** With X.509 there are no keys to return. */
  addIndividual(enrollment: IndividualEnrollment): EnrollmentKeys | undefined
  /**
   * Enrolls a group, replacing one of the same id.
   *
   * @returns the symmetric keys, from which device keys are derived
   * @throws DpsError OPTION_INVALID, phase `config`
   */
  addGroup(group: EnrollmentGroup & { attestation: SymmetricKeyAttestation }): EnrollmentKeys
  /** With X.509 there are no keys to return. */
  addGroup(group: EnrollmentGroup): EnrollmentKeys | undefined
  /** False if there was none. */
  remove(ref: EnrollmentRef): boolean
  /** @throws DpsError OPTION_INVALID, phase `config`, if there is none */
  disable(ref: EnrollmentRef): void
  /** @throws DpsError OPTION_INVALID, phase `config`, if there is none */
  enable(ref: EnrollmentRef): void
  list(): readonly EnrollmentInfo[]
}

/** An enrollment as the service keeps it. */
export interface EnrollmentRecord {
  readonly ref: EnrollmentRef
  readonly policy: EnrollmentPolicy
  readonly deviceId: string | undefined
  readonly keys: readonly Buffer[] | undefined
  readonly fingerprints: readonly string[]
  readonly ca: X509Certificate | undefined
  enabled: boolean
  removed: boolean
}

/** A new 64-byte key, base64, as the service generates them. */
export function generateSymmetricKey(): string {
  return randomBytes(64).toString('base64')
}

/** Letters, digits and `-` `.` `_` `:`, up to 128, the last a letter, a digit or `-`. */
export const REGISTRATION_ID = /^[A-Za-z0-9\-._:]{0,127}[A-Za-z0-9-]$/

function decodeKey(text: string, field: string): Buffer {
  const bytes = Buffer.from(`${text}`, 'base64')
  if (bytes.toString('base64') !== text || bytes.length < 16 || bytes.length > 64) {
    throw invalid(`\`${field}\` must be strict base64 of 16 to 64 bytes`)
  }
  return bytes
}

function certificate(text: string, field: string): X509Certificate {
  try {
    return new X509Certificate(text)
  } catch (cause) {
    throw new DpsError('OPTION_INVALID', 'config', `\`${field}\` must be a certificate in PEM`, { cause })
  }
}

const POLICY = ['hub', 'payload', 'reprovisioning', 'issuance', 'enabled']
const INDIVIDUAL = ['registrationId', 'deviceId', 'attestation', ...POLICY]
const GROUP = ['groupId', 'attestation', ...POLICY]

/** The one that says how devices prove who they are. */
function x509Of<T>(
  attestation: SymmetricKeyAttestation | { x509: T },
  names: readonly string[],
): T | undefined {
  checkNames('`attestation`', attestation, ['symmetricKey', 'x509'])
  const { symmetricKey, x509 } = attestation as { symmetricKey?: object; x509?: T & object }
  if ((symmetricKey === undefined) === (x509 === undefined))
    throw invalid('`attestation` must have either `symmetricKey`, `{}` for keys that are made, or `x509`')
  if (x509 !== undefined) checkNames('`attestation.x509`', x509, names)
  else checkNames('`attestation.symmetricKey`', symmetricKey, ['primaryKey', 'secondaryKey'])
  return x509
}

const fold = (id: string): string => id.toLowerCase()

export class EnrollmentBook implements Enrollments {
  readonly #individuals = new Map<string, EnrollmentRecord>()
  readonly #groups = new Map<string, EnrollmentRecord>()
  readonly #byFingerprint = new Map<string, EnrollmentRecord>()
  /** Groups by the subject of their CA: the issuer of a presented certificate leads straight to them. */
  readonly #byCaSubject = new Map<string, EnrollmentRecord[]>()
  readonly #keyGroups = new Set<EnrollmentRecord>()

  addIndividual(enrollment: IndividualEnrollment & { attestation: SymmetricKeyAttestation }): EnrollmentKeys
  addIndividual(enrollment: IndividualEnrollment): EnrollmentKeys | undefined
  addIndividual(enrollment: IndividualEnrollment): EnrollmentKeys | undefined {
    checkNames('an individual enrollment', enrollment, INDIVIDUAL)
    const { registrationId, attestation } = enrollment
    if (typeof registrationId !== 'string' || !REGISTRATION_ID.test(registrationId)) {
      throw invalid(
        '`registrationId` must be 1 to 128 letters, digits, `-` `.` `_` `:` that end in a letter, digit or `-`',
      )
    }
    let fingerprints: string[] = []
    let keys: EnrollmentKeys | undefined
    const x509 = x509Of(attestation, ['certificate', 'secondary'])
    if (x509 !== undefined) {
      const { certificate: primary, secondary } = x509
      fingerprints = [certificate(primary, 'attestation.x509.certificate').fingerprint256]
      if (secondary !== undefined) {
        fingerprints.push(certificate(secondary, 'attestation.x509.secondary').fingerprint256)
      }
    } else {
      keys = completeKeys(attestation as SymmetricKeyAttestation)
    }
    const record = makeRecord({ registrationId }, enrollment, {
      keys,
      fingerprints,
      deviceId: enrollment.deviceId,
    })
    this.remove({ registrationId })
    this.#individuals.set(fold(registrationId), record)
    for (const fingerprint of fingerprints) this.#byFingerprint.set(fingerprint, record)
    return keys
  }

  addGroup(group: EnrollmentGroup & { attestation: SymmetricKeyAttestation }): EnrollmentKeys
  addGroup(group: EnrollmentGroup): EnrollmentKeys | undefined
  addGroup(group: EnrollmentGroup): EnrollmentKeys | undefined {
    checkNames('an enrollment group', group, GROUP)
    const { groupId, attestation } = group
    if (typeof groupId !== 'string' || groupId.length === 0) {
      throw invalid('`groupId` must be a non-empty string')
    }
    let ca: X509Certificate | undefined
    let keys: EnrollmentKeys | undefined
    const x509 = x509Of(attestation, ['ca'])
    if (x509 !== undefined) {
      ca = certificate(x509.ca, 'attestation.x509.ca')
      if (!ca.ca) throw invalid('`attestation.x509.ca` must be a CA certificate')
    } else {
      keys = completeKeys(attestation as SymmetricKeyAttestation)
    }
    const record = makeRecord({ groupId }, group, { keys, ca })
    this.remove({ groupId })
    this.#groups.set(fold(groupId), record)
    if (ca === undefined) {
      this.#keyGroups.add(record)
    } else {
      const sameSubject = this.#byCaSubject.get(ca.subject) ?? []
      sameSubject.push(record)
      this.#byCaSubject.set(ca.subject, sameSubject)
    }
    return keys
  }

  remove(ref: EnrollmentRef): boolean {
    const record = this.record(ref)
    if (record === undefined) return false
    record.removed = true
    if ('groupId' in ref) {
      this.#groups.delete(fold(ref.groupId))
      this.#keyGroups.delete(record)
      if (record.ca !== undefined) {
        const others = (this.#byCaSubject.get(record.ca.subject) ?? []).filter((other) => other !== record)
        if (others.length > 0) this.#byCaSubject.set(record.ca.subject, others)
        else this.#byCaSubject.delete(record.ca.subject)
      }
    } else {
      this.#individuals.delete(fold(ref.registrationId))
      for (const fingerprint of record.fingerprints) {
        if (this.#byFingerprint.get(fingerprint) === record) this.#byFingerprint.delete(fingerprint)
      }
    }
    return true
  }

  disable(ref: EnrollmentRef): void {
    this.#existing(ref).enabled = false
  }

  enable(ref: EnrollmentRef): void {
    this.#existing(ref).enabled = true
  }

  list(): readonly EnrollmentInfo[] {
    return [...this.#individuals.values(), ...this.#groups.values()].map((record) => ({
      ...record.ref,
      attestation: record.keys === undefined ? 'x509' : 'symmetricKey',
      enabled: record.enabled,
    }))
  }

  individual(registrationId: string): EnrollmentRecord | undefined {
    return this.#individuals.get(fold(registrationId))
  }

  byFingerprint(fingerprint256: string): EnrollmentRecord | undefined {
    return this.#byFingerprint.get(fingerprint256)
  }

  groupsOfCa(subject: string): readonly EnrollmentRecord[] {
    return this.#byCaSubject.get(subject) ?? []
  }

  get symmetricKeyGroups(): Iterable<EnrollmentRecord> {
    return this.#keyGroups
  }

  record(ref: EnrollmentRef): EnrollmentRecord | undefined {
    const id = isObject(ref) && ('groupId' in ref ? ref.groupId : ref.registrationId)
    if (typeof id !== 'string')
      throw invalid('an enrollment is named by { registrationId }, or by { groupId } where it is a group')
    return 'groupId' in ref
      ? this.#groups.get(fold(ref.groupId))
      : this.#individuals.get(fold(ref.registrationId))
  }

  #existing(ref: EnrollmentRef): EnrollmentRecord {
    const record = this.record(ref)
    if (record !== undefined) return record
    throw invalid(
      'groupId' in ref
        ? `there is no enrollment group \`${ref.groupId}\``
        : `there is no individual enrollment \`${ref.registrationId}\``,
    )
  }
}

function completeKeys(attestation: SymmetricKeyAttestation): EnrollmentKeys {
  const { primaryKey, secondaryKey } = attestation.symmetricKey
  if (primaryKey !== undefined) decodeKey(primaryKey, 'attestation.symmetricKey.primaryKey')
  if (secondaryKey !== undefined) decodeKey(secondaryKey, 'attestation.symmetricKey.secondaryKey')
  return {
    primaryKey: primaryKey ?? generateSymmetricKey(),
    secondaryKey: secondaryKey ?? generateSymmetricKey(),
  }
}

function makeRecord(
  ref: EnrollmentRef,
  policy: EnrollmentPolicy,
  proof: {
    keys: EnrollmentKeys | undefined
    fingerprints?: readonly string[]
    ca?: X509Certificate | undefined
    deviceId?: string | undefined
  },
): EnrollmentRecord {
  const { hub, payload, reprovisioning, issuance } = policy
  if (hub !== undefined && typeof hub !== 'string' && typeof hub !== 'function')
    throw invalid('`hub` must be the host name of a hub, or a function that picks it')
  if (payload !== undefined && typeof payload !== 'function' && !isObject(payload))
    throw invalid('`payload` must be a JSON object, or a function that makes it')
  if (reprovisioning !== undefined && !['migrate', 'reset', 'never'].includes(reprovisioning))
    throw invalid("`reprovisioning` must be 'migrate', 'reset' or 'never'")
  if (policy.enabled !== undefined && typeof policy.enabled !== 'boolean')
    throw invalid('`enabled` must be true or false')
  if (issuance !== undefined) checkPolicy(issuance)
  return {
    ref: Object.freeze(ref),
    policy: {
      ...(hub === undefined ? {} : { hub }),
      ...(payload === undefined ? {} : { payload }),
      ...(reprovisioning === undefined ? {} : { reprovisioning }),
      ...(issuance === undefined ? {} : { issuance: structuredClone(issuance) }),
    },
    deviceId: proof.deviceId,
    keys:
      proof.keys === undefined
        ? undefined
        : [Buffer.from(proof.keys.primaryKey, 'base64'), Buffer.from(proof.keys.secondaryKey, 'base64')],
    fingerprints: proof.fingerprints ?? [],
    ca: proof.ca,
    enabled: policy.enabled ?? true,
    removed: false,
  }
}

/** The keys a device of this enrollment signs with: its own, or those derived from the group's. */
export function deviceKeys(
  { ref, keys }: EnrollmentRecord,
  registrationId: string,
): readonly Buffer[] | undefined {
  if (!('groupId' in ref)) return keys
  // The HMAC of the registration id as given: letter case matters.
  return keys?.map((key) => createHmac('sha256', key).update(registrationId, 'utf8').digest())
}

/** Whether `signature` is the HMAC-SHA256 of `text` under the enrollment's primary or secondary (derived) key. */
export function signedBy(
  record: EnrollmentRecord,
  registrationId: string,
  text: string,
  signature: Buffer,
): boolean {
  return (deviceKeys(record, registrationId) ?? []).some((deviceKey) => {
    const expected = createHmac('sha256', deviceKey).update(text, 'utf8').digest()
    return expected.length === signature.length && timingSafeEqual(expected, signature)
  })
}
