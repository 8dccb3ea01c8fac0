import { DpsError, type DpsErrorCode } from '../errors.ts'
import { printable } from '../printable.ts'
import { csrMember } from './issuance.ts'
import { jsonValue, tryJsonObject } from './response.ts'
import { parseRetryAfter } from './retry-after.ts'
import { classifyRefusal } from './status.ts'

/**
 * How a device asks its hub for a certificate (preview), as functions of strings. It subscribes, publishes a request with an id
 * of its own, is told 202, and later 200 with the certificates, or an error.
 *
 * https://learn.microsoft.com/azure/iot-hub/iot-concepts-certificate-renewal
 */

/** The first device API version of a hub that knows of it. */
export const RENEWAL_API_VERSION = '2025-08-01-preview'

/** The subscription for answers, which comes before the request. */
export const CERTIFICATE_FILTER = '$iothub/credentials/res/#'

/** Whether a user name says an API version that knows of it. */
export const mayRenew = (userName: string): boolean =>
  (/[?&]api-version=([0-9-]{10})/.exec(userName)?.[1] ?? '') >= RENEWAL_API_VERSION.slice(0, 10)

/** Whether it may be a request id: 4 to 36 letters, digits and dashes, no dash at either end. Others are never answered. */
export const isRequestId = (requestId: string): boolean => /^(?!-)[A-Za-z0-9-]{4,36}(?<!-)$/.test(requestId)

/** `$iothub/credentials/POST/issueCertificate/?$rid=a1b2` */
export const certificateTopic = (requestId: string): string =>
  `$iothub/credentials/POST/issueCertificate/?$rid=${requestId}`

/**
 * `{"id":"my-device","csr":"MIIB…"}`, and `"replace"` where it takes the place of a request that is pending: `*` or its id.
 *
 * @param csr base64 of DER
 */
export const certificateBody = (deviceId: string, csr: string, replace: string | undefined): string =>
  `{"id":${JSON.stringify(deviceId)}${csrMember(csr)}${replace === undefined ? '' : `,"replace":${JSON.stringify(replace)}`}}`

/** Reads `$iothub/credentials/res/202/?$rid=a1b2`; undefined for any other topic. */
export function parseCertificateTopic(
  topic: string,
): { readonly status: number; readonly requestId: string } | undefined {
  const found = /^\$iothub\/credentials\/res\/([1-9][0-9]{2})\/\?\$rid=([A-Za-z0-9-]{1,36})(?:&|$)/i.exec(
    topic,
  )
  return found === null ? undefined : { status: Number(found[1]), requestId: found[2]! }
}

export type CertificateReply =
  | { readonly kind: 'accepted' }
  /** The certificates, not believed. */
  | { readonly kind: 'issued'; readonly elements: unknown }
  /** What was to be replaced is not there: to be asked again without `replace`. */
  | { readonly kind: 'nothing-to-replace'; readonly error: DpsError }
  | { readonly kind: 'refused'; readonly error: DpsError }

/**
 * Reads one answer. A request that is said to be pending under the same id is the one that was asked for: accepted.
 *
 * @throws DpsError REPLY_MALFORMED, phase `parse`
 */
export function parseCertificateReply(
  { status, requestId }: { readonly status: number; readonly requestId: string },
  body: Uint8Array,
): CertificateReply {
  if (status === 202) return { kind: 'accepted' }
  if (status === 200) {
    // Both have been seen: an object, and the list itself.
    const value = jsonValue(body) as { certificates?: unknown } | null
    return { kind: 'issued', elements: Array.isArray(value) ? value : value?.certificates }
  }
  if (status < 300) {
    throw new DpsError(
      'REPLY_MALFORMED',
      'parse',
      `the hub answered ${status} to the request for a certificate`,
    )
  }
  const { errorCode, message, trackingId, retryAfter, info } = tryJsonObject(body)
  const { requestId: pending, credentialMessage } = (info ?? {}) as Record<string, unknown>
  const code = Number.isSafeInteger(errorCode) ? (errorCode as number) : 0
  if ((code === 409004 || code === 409005) && pending === requestId) return { kind: 'accepted' }
  const [name, hint] = BY_CODE.get(code) ?? [classifyRefusal(status, undefined).code]
  const said = [message, credentialMessage].flatMap((text) =>
    typeof text === 'string' && text !== '' ? `: ${printable(text, 200)}` : '',
  )
  const asked = parseRetryAfter(
    retryAfter === undefined || retryAfter === null ? undefined : String(retryAfter),
  )
  const error = new DpsError(
    name,
    'hub',
    `the hub answered ${status}${code === 0 ? '' : `, code ${code}`} to the request for a certificate${said.join('')}`,
    {
      serviceErrorCode: code || undefined,
      trackingId: typeof trackingId === 'string' ? printable(trackingId, 80) : undefined,
      retryAfterMs: Math.max(asked ?? 0, LEAST_WAIT_MS[status] ?? 0) || undefined,
      ...(hint !== undefined && { hint }),
    },
  )
  return { kind: code === 412001 || code === 412005 ? 'nothing-to-replace' : 'refused', error }
}

/** What the documentation of each status asks for at the least. */
const LEAST_WAIT_MS: Readonly<Record<number, number>> = { 429: 1000, 500: 300_000, 503: 5000 }

const CSR_REFUSED =
  'Make a new request: EC P-384, one CN that is the device id, of a curve that the certificate policy allows.'

const MISUNDERSTOOD = 'The hub did not understand the request: report it with the `trackingId`.'

const WAIT = 'Another request of this device is pending: wait for its answer, or give `replace`.'

const BY_CODE: ReadonlyMap<number, readonly [DpsErrorCode, string?]> = new Map([
  [400001, ['BAD_REQUEST', `Connect with the API version ${RENEWAL_API_VERSION} or later.`]],
  [400004, ['BAD_REQUEST', MISUNDERSTOOD]],
  [400006, ['BAD_REQUEST', MISUNDERSTOOD]],
  [400037, ['BAD_REQUEST', CSR_REFUSED]],
  [400040, ['BAD_REQUEST', CSR_REFUSED]],
  [403010, ['FORBIDDEN', 'This hub issues no certificates: register with the request instead.']],
  [404001, ['NOT_FOUND', 'The hub does not know the device any more: register it again.']],
  [409004, ['CONFLICT', WAIT]],
  [409005, ['CONFLICT', WAIT]],
  [412001, ['CONFLICT', 'No request is pending: ask without `replace`.']],
  [412005, ['CONFLICT', 'Another request is pending than the one to replace: ask with `replace: "*"`.']],
])
