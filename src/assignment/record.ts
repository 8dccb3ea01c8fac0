import { createHash } from 'node:crypto'
import type { Identity } from '../credential/credential.ts'
import { DpsError } from '../errors.ts'
import { sameRegistrationId } from '../protocol/registration-id.ts'
import { type DeviceRegistration, jsonObject, parseRegistration } from '../protocol/response.ts'
import { damaged, seal, type Unsealed, unseal } from '../sealed.ts'

/**
 * What is stored, sealed:
 *
 *     dps-device-client/assignment 1 sha256:6b23…
 *     {"binding":{"idScope":…},"contactMs":1796083200000,"registration":{"deviceId":…}}
 */
const FORMAT = 'dps-device-client/assignment'
const VERSION = 1

/** Whom a record is about. One that is about somebody else does not count. */
export interface Binding {
  readonly idScope: string
  /** Host name of the provisioning service. */
  readonly host: string
  readonly registrationId: string
  /** SHA-256, hex, of the credential's fingerprint: another certificate or key is another device. */
  readonly credential: string
}

export interface StoredRecord {
  readonly binding: Binding
  /** When the service was last heard, ms since the epoch; 0 for never. */
  readonly contactMs: number
  /** Undefined where the service has said no since. */
  readonly registration: DeviceRegistration | undefined
}

/** Why there is no record that counts. */
export type NoRecordReason = 'missing' | 'refused' | 'unreadable' | 'damaged' | 'newer' | 'foreign'

export type ReadRecord =
  | { readonly ok: true; readonly record: StoredRecord }
  | Extract<Unsealed, { ok: false }>

export function bindingOf(idScope: string, host: string, identity: Identity): Binding {
  return {
    idScope,
    host,
    registrationId: identity.registrationId,
    credential: createHash('sha256')
      .update(`credential ${identity.lineage ?? identity.fingerprint}`)
      .digest('hex'),
  }
}

/** What the two differ in, to be read after "of"; undefined where they are the same. */
export function foreignPart(stored: Binding, own: Binding): string | undefined {
  if (stored.idScope !== own.idScope) return 'another id scope'
  if (stored.host !== own.host) return 'another provisioning service'
  if (!sameRegistrationId(stored.registrationId, own.registrationId)) return 'another registration id'
  return stored.credential === own.credential ? undefined : 'another certificate or key'
}

export function encodeRecord({ binding, contactMs, registration }: StoredRecord): Uint8Array {
  const body = JSON.stringify({ binding, contactMs, registration: registration && wireOf(registration) })
  return seal(FORMAT, VERSION, body)
}

/** Never throws, whatever the bytes are. */
export function decodeRecord(bytes: Uint8Array): ReadRecord {
  const unsealed = unseal(FORMAT, VERSION, bytes)
  if (!unsealed.ok) return unsealed
  try {
    return { ok: true, record: parseBody(unsealed.body) }
  } catch (error) {
    if (DpsError.is(error)) return damaged('does not hold what it should')
    throw error
  }
}

function parseBody(body: Uint8Array): StoredRecord {
  const { binding, contactMs, registration } = jsonObject(body)
  const { idScope, host, registrationId, credential } = (binding ?? {}) as Record<string, unknown>
  for (const part of [idScope, host, registrationId, credential])
    if (typeof part !== 'string') throw malformed()
  if (typeof contactMs !== 'number' || !Number.isSafeInteger(contactMs) || contactMs < 0) throw malformed()
  const known = { idScope, host, registrationId, credential } as unknown as Binding
  return {
    binding: known,
    contactMs,
    registration: registration === undefined ? undefined : parseRegistration(registration, known),
  }
}

/** The fields of the service, so that what reads its replies reads this too. */
function wireOf({ createdAt, lastUpdatedAt, ...rest }: DeviceRegistration): Record<string, unknown> {
  return { ...rest, createdDateTimeUtc: createdAt, lastUpdatedDateTimeUtc: lastUpdatedAt }
}

function malformed(): DpsError {
  return new DpsError('REPLY_MALFORMED', 'parse', 'the record has fields of another kind')
}
