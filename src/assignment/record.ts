import { createHash } from 'node:crypto'
import type { Identity } from '../credential/credential.ts'
import { DpsError } from '../errors.ts'
import { sameRegistrationId } from '../protocol/registration-id.ts'
import { type DeviceRegistration, jsonObject, parseRegistration } from '../protocol/response.ts'

/**
 * What is stored, as bytes: one line that says what it is, in which version, and the SHA-256 of what follows; then one line
 * of JSON. Every byte of it matters, so a record that is cut short or damaged anywhere is none.
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
  | {
      readonly ok: false
      readonly reason: Extract<NoRecordReason, 'damaged' | 'newer'>
      /** The end of a sentence that begins with "the stored record". */
      readonly why: string
    }

export function bindingOf(idScope: string, host: string, identity: Identity): Binding {
  return {
    idScope,
    host,
    registrationId: identity.registrationId,
    credential: createHash('sha256').update(`credential ${identity.fingerprint}`).digest('hex'),
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
  return Buffer.from(`${headOf(VERSION, body)}\n${body}\n`)
}

/** Never throws, whatever the bytes are. */
export function decodeRecord(bytes: Uint8Array): ReadRecord {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const lineEnd = text.indexOf(0x0a)
  const head = text.subarray(0, Math.max(lineEnd, 0)).toString('latin1')
  const version = new RegExp(`^${FORMAT} ([1-9][0-9]{0,8}) sha256:[0-9a-f]{64}$`).exec(head)?.[1]
  if (version === undefined) return damaged(bytes.length === 0 ? 'is empty' : 'does not begin as one')
  if (text.at(-1) !== 0x0a) return damaged('is cut short')
  const body = text.subarray(lineEnd + 1, -1)
  if (head !== headOf(version, body)) return damaged('does not fit its checksum')
  if (Number(version) > VERSION) {
    const why = `has the format ${version}; this version of the package reads up to ${VERSION}`
    return { ok: false, reason: 'newer', why }
  }
  try {
    return { ok: true, record: parseBody(body) }
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

function headOf(version: number | string, body: string | Uint8Array): string {
  // The version is part of what is summed: one that was damaged into another is not taken for it.
  const sum = createHash('sha256').update(`${FORMAT} ${version}\n`).update(body).digest('hex')
  return `${FORMAT} ${version} sha256:${sum}`
}

function damaged(why: string): ReadRecord {
  return { ok: false, reason: 'damaged', why }
}

function malformed(): DpsError {
  return new DpsError('REPLY_MALFORMED', 'parse', 'the record has fields of another kind')
}
