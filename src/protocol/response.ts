import { DpsError, type DpsErrorCode, type DpsPhase } from '../errors.ts'
import { isoTime } from '../iso-time.ts'
import { printable } from '../printable.ts'
import { isHubHost, isHubIdentity } from './hub-names.ts'
import { issuedChainOf } from './issuance.ts'
import { sameRegistrationId } from './registration-id.ts'
import { parseRetryAfter } from './retry-after.ts'
import { classifyFailure, classifyRefusal, type Refusal } from './status.ts'
import { checkOperationId } from './wire.ts'

/** A reply as it came from a transport, not yet believed. */
export interface RawReply {
  /** HTTP-like status: 200, 202, 401 … */
  readonly status: number
  /** The text of `retry-after`, if there was one. */
  readonly retryAfter: string | undefined
  readonly body: Uint8Array
  /** The server's clock as HTTP's `Date` gives it, for a transport that has it. */
  readonly date?: string | undefined
}

/** `DeviceRegistrationResult` of an assigned device, checked field by field. */
export interface DeviceRegistration {
  /** In the spelling of the credential. */
  readonly registrationId: string
  /** May differ from the registration id (individual enrollments). */
  readonly deviceId: string
  /** Host name of the IoT hub, as the service spells it. */
  readonly assignedHub: string
  readonly status: 'assigned'
  /** `initialAssignment`, `deviceDataMigrated`, `deviceDataReset`, `reprovisionedToInitialAssignment`, or newer. */
  readonly substatus: string | undefined
  /** What a custom allocation function returned. */
  readonly payload: Readonly<Record<string, unknown>> | undefined
  readonly etag: string | undefined
  readonly createdAt: Date | undefined
  readonly lastUpdatedAt: Date | undefined
  /** Raw; absent means `classic`. */
  readonly connectionProfile: string | undefined
}

/** A registration as the lookup reports it, in whatever state it is. */
export interface RegistrationRecord {
  /** In the spelling of the credential. */
  readonly registrationId: string
  /** `unassigned`, `assigning`, `assigned`, `failed`, `disabled`, or newer. */
  readonly status: string
  readonly substatus: string | undefined
  /** Present when assigned. */
  readonly deviceId: string | undefined
  /** Present when assigned. */
  readonly assignedHub: string | undefined
  readonly payload: Readonly<Record<string, unknown>> | undefined
  readonly etag: string | undefined
  readonly createdAt: Date | undefined
  readonly lastUpdatedAt: Date | undefined
  readonly connectionProfile: string | undefined
  /** Why it failed, when it did. */
  readonly serviceErrorCode: number | undefined
  readonly serviceErrorMessage: string | undefined
}

/** A reply that has been read and believed. Refusals are data too: the engine decides whether to repeat the step. */
export type ServiceReply =
  | { readonly kind: 'assigning'; readonly operationId: string; readonly retryAfterMs: number | undefined }
  | {
      readonly kind: 'assigned'
      readonly registration: DeviceRegistration
      /** What came as certificates for a request, not believed. */
      readonly issuedChain?: unknown
    }
  | { readonly kind: 'refused'; readonly error: DpsError }

export interface ReplyContext {
  readonly phase: DpsPhase
  readonly registrationId: string
  /** The operation being asked about; undefined for the register request itself. */
  readonly operationId: string | undefined
  /** Wall clock, for a `retry-after` that is a date. */
  readonly nowMs: number
}

type Json = Record<string, unknown>

/**
 * Reads one reply to a register or status request.
 *
 * The status of the reply says how the *request* went, `status` in the body how the *operation* stands: a 200 can carry
 * a failure.
 *
 * @throws DpsError REPLY_MALFORMED or REPLY_INCOMPLETE, phase `parse`
 */
export function parseReply(raw: RawReply, context: ReplyContext): ServiceReply {
  if (raw.status >= 300) return refusedRequest(raw, context)
  if (raw.status !== 200 && raw.status !== 202) throw malformed(`has the unexpected status ${raw.status}`)

  const retryAfterMs = parseRetryAfter(raw.retryAfter, context.nowMs)
  const body = jsonObject(raw.body)
  const status = typeof body.status === 'string' ? body.status.toLowerCase() : undefined
  if (status === 'assigning' || (status === undefined && raw.status === 202)) {
    const operationId = body.operationId ?? context.operationId
    if (typeof operationId !== 'string') throw malformed('says assigning but carries no operationId')
    return { kind: 'assigning', operationId: checkOperationId(operationId), retryAfterMs }
  }
  if (status === 'assigned') {
    const registration = parseRegistration(body.registrationState, context)
    return { kind: 'assigned', registration, issuedChain: issuedChainOf(body.registrationState) }
  }
  if (status === undefined) throw malformed('carries no status')

  const state = isObject(body.registrationState) ? body.registrationState : body
  const found: Refusal =
    status === 'disabled' ? { code: 'REGISTRATION_DISABLED' } : classifyFailure(integer(state.errorCode))
  return { kind: 'refused', error: refusal(context, found, status, state, retryAfterMs) }
}

/**
 * Reads the reply to a lookup.
 *
 * @throws DpsError REPLY_MALFORMED or REPLY_INCOMPLETE, phase `parse`
 */
export function parseLookup(
  raw: RawReply,
  context: ReplyContext,
):
  | { readonly kind: 'found'; readonly record: RegistrationRecord }
  | Extract<ServiceReply, { kind: 'refused' }> {
  if (raw.status >= 300) return refusedRequest(raw, context)
  if (raw.status !== 200) throw malformed(`has the unexpected status ${raw.status}`)
  const body = jsonObject(raw.body)
  if (typeof body.status !== 'string' || body.status === '') throw malformed('carries no status')
  const status = printable(body.status.toLowerCase(), 40)
  const assigned = status === 'assigned' ? parseRegistration(body, context) : undefined
  checkSameDevice(body.registrationId, context)
  return {
    kind: 'found',
    record: {
      ...common(body),
      registrationId: context.registrationId,
      status,
      deviceId: assigned?.deviceId,
      assignedHub: assigned?.assignedHub,
      serviceErrorCode: integer(body.errorCode) || undefined,
      serviceErrorMessage: typeof body.errorMessage === 'string' ? printable(body.errorMessage) : undefined,
    },
  }
}

function checkSameDevice(value: unknown, context: Pick<ReplyContext, 'registrationId'>): void {
  if (typeof value !== 'string' || sameRegistrationId(value, context.registrationId)) return
  throw malformed(`is about another device: "${printable(value, 140)}", not "${context.registrationId}"`)
}

function common(value: Json) {
  return {
    substatus: text(value.substatus),
    payload: isObject(value.payload) ? value.payload : undefined,
    etag: text(value.etag),
    createdAt: date(value.createdDateTimeUtc),
    lastUpdatedAt: date(value.lastUpdatedDateTimeUtc),
    connectionProfile: text(value.connectionProfile),
  }
}

/**
 * Reads a `DeviceRegistrationResult` of an assigned device.
 *
 * @throws DpsError REPLY_MALFORMED or REPLY_INCOMPLETE, phase `parse`
 */
export function parseRegistration(
  value: unknown,
  context: Pick<ReplyContext, 'registrationId'>,
): DeviceRegistration {
  if (!isObject(value)) throw incomplete('registrationState')
  const { assignedHub, deviceId } = value
  if (typeof assignedHub !== 'string' || assignedHub === '') throw incomplete('assignedHub')
  if (typeof deviceId !== 'string' || deviceId === '') throw incomplete('deviceId')
  if (!isHubHost(assignedHub)) {
    throw malformed(`names a hub that is no host name: "${printable(assignedHub, 80)}"`)
  }
  if (!isHubIdentity(deviceId)) {
    throw malformed(`carries a deviceId that no hub takes: "${printable(deviceId, 140)}"`)
  }
  checkSameDevice(value.registrationId, context)
  return {
    registrationId: context.registrationId,
    deviceId,
    assignedHub,
    status: 'assigned',
    ...common(value),
  }
}

function refusedRequest(raw: RawReply, context: ReplyContext): Extract<ServiceReply, { kind: 'refused' }> {
  const retryAfterMs = parseRetryAfter(raw.retryAfter, context.nowMs)
  const body = tryJsonObject(raw.body)
  const found = classifyRefusal(raw.status, integer(body.errorCode))
  return { kind: 'refused', error: refusal(context, found, raw.status, body, retryAfterMs, raw.date) }
}

function refusal(
  context: ReplyContext,
  found: Refusal,
  status: number | string,
  body: Json,
  retryAfterMs: number | undefined,
  httpDate?: string,
): DpsError {
  const serverTime = date(body.timestampUtc) ?? date(httpDate)
  const errorCode = integer(body.errorCode)
  const said = text(body.message) ?? text(body.errorMessage)
  const what =
    typeof status === 'number' ? `answered ${status}` : `ended the registration as "${printable(status, 40)}"`
  const detail = errorCode ? `, code ${errorCode}` : ''
  return new DpsError(
    found.code,
    context.phase,
    `the service ${what}${detail}${said ? `: ${printable(said)}` : ''}`,
    {
      retryable: found.retryable,
      retryAfterMs,
      serviceErrorCode: errorCode || undefined,
      trackingId: typeof body.trackingId === 'string' ? printable(body.trackingId, 80) : undefined,
      serverTime,
      hint: skewHint(found.code, serverTime, context.nowMs) ?? found.hint,
    },
  )
}

/** More than any clock that is kept in time is off by. */
const SUSPICIOUS_SKEW_MS = 300_000

export function isClockWrong(serverTime: Date | undefined, nowMs: number): serverTime is Date {
  return serverTime !== undefined && Math.abs(nowMs - serverTime.getTime()) >= SUSPICIOUS_SKEW_MS
}

/** A wrong clock makes every token expired or not yet due, and the service only says unauthorized. */
function skewHint(code: DpsErrorCode, serverTime: Date | undefined, nowMs: number): string | undefined {
  if (code !== 'UNAUTHORIZED' || !isClockWrong(serverTime, nowMs)) return undefined
  const skewMs = nowMs - serverTime.getTime()
  const by = `${Math.round(Math.abs(skewMs) / 60_000)} minutes ${skewMs < 0 ? 'behind' : 'ahead of'}`
  return `Set the clock first: this device is ${by} the service, which says it is ${isoTime(serverTime.getTime())}.`
}

const UTF8 = new TextDecoder('utf-8', { fatal: true })

/**
 * JSON from outside: UTF-8, an object, without `__proto__`.
 *
 * @throws DpsError REPLY_MALFORMED, phase `parse`
 */
export function jsonObject(bytes: Uint8Array): Json {
  const value = jsonValue(bytes)
  if (!isObject(value)) throw malformed('is JSON but no object')
  return value
}

/** The same for any value. */
export function jsonValue(bytes: Uint8Array): unknown {
  try {
    return harmlessJson(bytes)
  } catch (cause) {
    throw malformed('is not JSON in UTF-8', cause)
  }
}

/** The body of a refusal only adds detail: where it cannot be read, the status alone has to do. */
export function tryJsonObject(bytes: Uint8Array): Json {
  try {
    return jsonObject(bytes)
  } catch {
    return {}
  }
}

/**
 * JSON in UTF-8, without what would poison the first merge that it meets in the application: `__proto__`, which survives
 * JSON.parse as an own property, and an object as `constructor`, which leads on to the prototype of all.
 *
 * @throws TypeError or SyntaxError
 */
export function harmlessJson(bytes: Uint8Array): unknown {
  const json = UTF8.decode(bytes)
  return /__proto__|constructor|\\u/.test(json) ? JSON.parse(json, withoutPoison) : JSON.parse(json)
}

function withoutPoison(key: string, value: unknown): unknown {
  return key === '__proto__' || (key === 'constructor' && isObject(value)) ? undefined : value
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined
}

function integer(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) ? value : undefined
}

function date(value: unknown): Date | undefined {
  if (typeof value !== 'string' || value.length > 40) return undefined
  const parsed = new Date(value)
  return Number.isNaN(parsed.getTime()) ? undefined : parsed
}

function malformed(what: string, cause?: unknown): DpsError {
  return new DpsError('REPLY_MALFORMED', 'parse', `the reply ${what}`, cause === undefined ? {} : { cause })
}

function incomplete(field: string): DpsError {
  return new DpsError('REPLY_INCOMPLETE', 'parse', `the reply says assigned but carries no ${field}`)
}
