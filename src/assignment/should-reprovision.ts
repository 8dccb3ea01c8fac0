import { DpsError, type DpsErrorCode } from '../errors.ts'

export interface ReprovisionOptions {
  /** Failures of the connection to the hub in a row, this one included. Default 1. */
  failures?: number
  /** How many of them are enough to ask again where the device belongs. Default 10. */
  after?: number
}

/** `identity`: the hub does not know this device, or not any more. `outage`: nobody can tell; the count decides. */
type Verdict = 'identity' | 'outage' | undefined

const CODES: ReadonlyMap<DpsErrorCode, Verdict> = new Map<DpsErrorCode, Verdict>([
  ['UNAUTHORIZED', 'identity'],
  ['FORBIDDEN', 'identity'],
  ['NOT_FOUND', 'identity'],
  ['DNS_FAILED', 'outage'],
  ['CONNECTION_REFUSED', 'outage'],
  ['NETWORK_UNREACHABLE', 'outage'],
  ['CONNECTION_LOST', 'outage'],
  ['PROXY_REFUSED', 'outage'],
  ['TIMEOUT', 'outage'],
  ['DEADLINE_EXCEEDED', 'outage'],
  ['SERVICE_UNAVAILABLE', 'outage'],
])

/** MQTT 3.1.1, table 3.1. */
const CONNACK: ReadonlyMap<number, Verdict> = new Map<number, Verdict>([
  [2, 'identity'], // identifier rejected
  [3, 'outage'], // server unavailable
  [4, 'identity'], // bad user name or password
  [5, 'identity'], // not authorized
])

const SYSTEM_CODES: ReadonlySet<string> = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ECONNABORTED',
  'EPIPE',
  'ETIMEDOUT',
  'ERR_SOCKET_CONNECTION_TIMEOUT',
  'EHOSTUNREACH',
  'EHOSTDOWN',
  'ENETUNREACH',
  'ENETDOWN',
  'EADDRNOTAVAIL',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EAI_FAIL',
  'EAI_NODATA',
])

/** Of `azure-iot-common`. */
const NAMES: ReadonlyMap<string, Verdict> = new Map<string, Verdict>([
  ['UnauthorizedError', 'identity'],
  ['DeviceNotFoundError', 'identity'],
  ['IotHubNotFoundError', 'identity'],
  ['NotConnectedError', 'outage'],
  ['ServiceUnavailableError', 'outage'],
  ['InternalServerError', 'outage'],
  ['TimeoutError', 'outage'],
  ['GatewayTimeoutError', 'outage'],
])

/**
 * Whether a failure at the hub is a reason to ask the provisioning service again: `provision` in mode `'always'`, which
 * is billed. Pure; it looks at codes, statuses and names of classes, never at the text of an error.
 *
 * | At the hub | Provision again? |
 * |---|---|
 * | HTTP status 401, 403, 404; CONNACK 2, 4, 5; UNAUTHORIZED, FORBIDDEN, NOT_FOUND; Microsoft's UnauthorizedError, DeviceNotFoundError, IotHubNotFoundError | yes |
 * | HTTP status 5xx; CONNACK 3; SERVICE_UNAVAILABLE; Microsoft's ServiceUnavailableError, InternalServerError | after 10 failures in a row |
 * | the network: name, route, refusal, silence, reset, a proxy that does not let through; Microsoft's NotConnectedError, TimeoutError, GatewayTimeoutError | after 10 failures in a row |
 * | 429; Microsoft's ThrottlingError, IotHubQuotaExceededError | never: the hub is there and knows the device |
 * | TLS: a server that is not trusted, or that breaks the handshake off with an alert | never: it says nothing about the device's place |
 * | CONNACK 1, SUBACK 0x80, a reply that is malformed, a cancel, anything else | never |
 *
 * A hub needs some patience all the same: stay with it for a quarter of an hour of retries before the count decides, and
 * with a device that was disabled on purpose do not ask more often than once an hour.
 *
 * https://learn.microsoft.com/azure/iot-dps/concepts-deploy-at-scale
 *
 * @param error a `DpsError`, an error of MQTT.js (`code` is the CONNACK return code) or of Node (`code` is a string), an HTTP
 *   status, something with `statusCode` or `status`, or an error of Microsoft's device client
 */
export function shouldReprovision(
  error: unknown,
  { failures = 1, after = 10 }: ReprovisionOptions = {},
): boolean {
  const verdict = verdictOf(error)
  return verdict === 'identity' || (verdict === 'outage' && failures >= after)
}

function verdictOf(error: unknown): Verdict {
  if (typeof error === 'number') return CONNACK.get(error) ?? ofStatus(error)
  if (typeof error !== 'object' || error === null) return undefined
  if (DpsError.is(error)) return CODES.get(error.code)
  const { name, code, statusCode, status, transportError } = error as Record<string, unknown>
  if (typeof name === 'string' && NAMES.has(name)) {
    // It may wrap what MQTT.js said, which is more exact.
    const inner = name === 'NotConnectedError' && typeof transportError === 'object' ? transportError : null
    return inner === null ? NAMES.get(name) : verdictOf(inner)
  }
  if (typeof code === 'string') return SYSTEM_CODES.has(code) ? 'outage' : undefined
  // Those of a DOMException are numbers too, and mean something else.
  if (typeof code === 'number' && !(error instanceof DOMException)) return CONNACK.get(code)
  if (typeof statusCode === 'number') return ofStatus(statusCode)
  return typeof status === 'number' ? ofStatus(status) : undefined
}

function ofStatus(status: number): Verdict {
  if (status === 401 || status === 403 || status === 404) return 'identity'
  return status >= 500 && status <= 599 ? 'outage' : undefined
}
