import { DpsError } from '../errors.ts'
import { printable } from '../printable.ts'

/**
 * The names of the wire: MQTT user name and topics, HTTPS paths, as functions of strings.
 *
 * https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-dps
 * https://learn.microsoft.com/rest/api/iot-dps/device/runtime-registration
 */

/** Longest operation id that is taken, in characters; the service's own have about 55. */
export const MAX_OPERATION_ID_LENGTH = 256

/** The registration a connection or a path is about. All are expected to be valid already. */
export interface RegistrationAddress {
  readonly idScope: string
  readonly registrationId: string
  readonly apiVersion: string
}

/**
 * The MQTT user name. A slash, not a question mark, stands before `api-version`.
 *
 * `0ne00000001/registrations/my-device/api-version=2019-03-31&ClientVersion=dps-device-client%2F1.0.0`
 */
export function mqttUserName({
  idScope,
  registrationId,
  apiVersion,
  userAgent,
}: RegistrationAddress & { readonly userAgent?: string | undefined }): string {
  const client = userAgent === undefined ? '' : `&ClientVersion=${encodeURIComponent(userAgent)}`
  return `${idScope}/registrations/${registrationId}/api-version=${apiVersion}${client}`
}

/** The MQTT client id is the registration id as it is: `my-device`. */
export function mqttClientId(registrationId: string): string {
  return registrationId
}

/** What every reply topic begins with. */
export const RESPONSE_PREFIX = '$dps/registrations/res/'

/** The one subscription: `$dps/registrations/res/#`. */
export const RESPONSE_FILTER = `${RESPONSE_PREFIX}#`

/** `$dps/registrations/PUT/iotdps-register/?$rid=1` */
export function registerTopic(requestId: string): string {
  return `$dps/registrations/PUT/iotdps-register/?$rid=${requestId}`
}

/** `$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=5.316aac5bdc130deb.b1e02da8` */
export function queryTopic(requestId: string, operationId: string): string {
  return `$dps/registrations/GET/iotdps-get-operationstatus/?$rid=${requestId}&operationId=${operationId}`
}

/** What a reply topic says. */
export interface ResponseTopic {
  /** Three digits, HTTP-like. */
  readonly status: number
  readonly requestId: string
  /** The text of `retry-after`, unread; absent where there is none. */
  readonly retryAfter?: string
}

/**
 * Reads a reply topic: `$dps/registrations/res/202/?$rid=1&retry-after=3` is status 202, request id `1`, retry-after `3`.
 *
 * Keys are compared without regard to case, in any order, and unknown ones are passed over; only `&` separates. Undefined
 * for a topic that does not begin with `RESPONSE_PREFIX` and for one that does but is not of this form, which includes one
 * that names a request id or a retry-after twice.
 */
export function parseResponseTopic(topic: string): ResponseTopic | undefined {
  if (!topic.startsWith(RESPONSE_PREFIX)) return undefined
  const query = RESPONSE_PREFIX.length + '202/?'.length
  const head = topic.slice(RESPONSE_PREFIX.length, query)
  if (!/^[1-9][0-9]{2}\/\?$/.test(head)) return undefined

  let requestId: string | undefined
  let retryAfter: string | undefined
  for (let start = query; start <= topic.length; ) {
    const separator = topic.indexOf('&', start)
    const end = separator === -1 ? topic.length : separator
    const pair = topic.slice(start, end)
    const equals = pair.indexOf('=')
    const key = equals === -1 ? '' : pair.slice(0, equals).toLowerCase()
    if (key === '$rid') {
      if (requestId !== undefined) return undefined
      requestId = pair.slice(equals + 1)
    } else if (key === 'retry-after') {
      if (retryAfter !== undefined) return undefined
      retryAfter = pair.slice(equals + 1)
    }
    start = end + 1
  }
  if (requestId === undefined || requestId === '') return undefined
  const status = Number(head.slice(0, 3))
  return retryAfter === undefined ? { status, requestId } : { status, requestId, retryAfter }
}

/** `/0ne00000001/registrations/my-device/register?api-version=2019-03-31` (PUT) */
export function registerPath(address: RegistrationAddress): string {
  return path(address, '/register')
}

/** `/0ne00000001/registrations/my-device/operations/5.316aac5bdc130deb.b1e02da8?api-version=2019-03-31` (GET) */
export function operationPath(address: RegistrationAddress, operationId: string): string {
  return path(address, `/operations/${encodeURIComponent(operationId)}`)
}

/** `/0ne00000001/registrations/my-device?api-version=2019-03-31` (POST) */
export function lookupPath(address: RegistrationAddress): string {
  return path(address, '')
}

function path({ idScope, registrationId, apiVersion }: RegistrationAddress, rest: string): string {
  const id = encodeURIComponent(registrationId)
  return `/${idScope}/registrations/${id}${rest}?api-version=${encodeURIComponent(apiVersion)}`
}

/**
 * Returns an id scope unchanged if it is 1 to 64 ASCII letters and digits, such as `0ne00000001`.
 *
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function checkIdScope(idScope: unknown): string {
  if (typeof idScope !== 'string' || !/^[A-Za-z0-9]{1,64}$/.test(idScope)) {
    // Quoted only where it can be an id scope: what is longer may be a key in the wrong place.
    const given =
      typeof idScope !== 'string'
        ? `of type ${typeof idScope}`
        : idScope.length > 20
          ? `${idScope.length} characters long`
          : `"${printable(idScope)}"`
    throw new DpsError(
      'OPTION_INVALID',
      'config',
      `idScope must be 1 to 64 letters and digits, such as 0ne00000001; it is ${given}`,
    )
  }
  return idScope
}

/**
 * Returns an operation id unchanged if it can go into a topic and a path without changing their meaning: 1 to 256
 * printable ASCII characters other than `&`, `#`, `+` and `/`, and not one of the path segments `.` and `..`.
 *
 * @throws DpsError REPLY_MALFORMED, phase `parse`
 */
export function checkOperationId(id: string): string {
  // Refused rather than encoded: the id is opaque, and an encoded one would name another operation.
  if (
    id.length > MAX_OPERATION_ID_LENGTH ||
    !/^[!-~]+$/.test(id) ||
    /[&#+/]/.test(id) ||
    /^\.{1,2}$/.test(id)
  ) {
    throw new DpsError(
      'REPLY_MALFORMED',
      'parse',
      `the reply carries an operationId that is not 1 to ${MAX_OPERATION_ID_LENGTH} printable characters without & # + /: "${printable(id, 80)}"`,
    )
  }
  return id
}
