import type { DeviceRegistration, RegistrationRecord } from '../protocol/response.ts'
import type { PhaseTimings } from '../registration/phases.ts'
import type { CallResult } from '../registration/run.ts'
import type { ConnectionFacts } from '../transport/transport.ts'

/** Where a device belongs, and how it was learnt. Frozen; only what a `Date` allows can be changed. */
export interface Assignment extends DeviceRegistration {
  /**
   * The certificates that were issued for a `csr`, checked: PEM each, the device's first and each issuer after it, as
   * `x509({ cert })` takes them. Absent where no `csr` was sent.
   *
   * @beta
   */
  readonly issuedCertificateChain?: readonly string[]
  readonly connection: AssignmentConnection
}

/**
 * An assignment that came with a certificate (preview).
 *
 * @beta
 */
export interface CertifiedAssignment extends Assignment {
  readonly issuedCertificateChain: readonly string[]
}

export interface AssignmentConnection extends ConnectionFacts {
  /** Milliseconds per phase, summed over retries, and `total`. */
  readonly timingsMs: PhaseTimings
}

export function createAssignment(
  registration: DeviceRegistration,
  { connection, timingsMs }: CallResult,
): Assignment {
  return deepFreeze({ ...registration, connection: { ...connection, timingsMs } })
}

/** What the service knows of a registration, and how it was learnt. Frozen; only what a `Date` allows can be changed. */
export interface RegistrationState extends RegistrationRecord {
  readonly connection: AssignmentConnection
}

export function createRegistrationState(
  record: RegistrationRecord,
  { connection, timingsMs }: CallResult,
): RegistrationState {
  return deepFreeze({ ...record, connection: { ...connection, timingsMs } })
}

/** The service was reached and let this device in. Frozen. */
export interface Contact {
  readonly registrationId: string
  readonly connection: AssignmentConnection
}

export function createContact({ registrationId, connection, timingsMs }: CallResult): Contact {
  return deepFreeze({ registrationId, connection: { ...connection, timingsMs } })
}

/** Without recursion: a payload may be nested as deep as a hostile reply is long. */
export function deepFreeze<T extends object>(root: T): T {
  const open: object[] = [root]
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    Object.freeze(value)
    for (const child of Object.values(value)) {
      if (typeof child === 'object' && child !== null && !Object.isFrozen(child)) open.push(child)
    }
  }
  return root
}
