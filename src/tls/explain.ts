import type { X509Certificate } from 'node:crypto'
import { commonName, printableName } from '../distinguished-name.ts'
import { DpsError, type DpsErrorCode, type DpsPhase } from '../errors.ts'
import { isoTime } from '../iso-time.ts'
import { printable } from '../printable.ts'
import type { ConnectReply } from '../protocol/http-connect.ts'
import { describeTop, type PresentedChain } from './identity.ts'
import type { HttpProxy } from './proxy.ts'
import type { TrustAnchor } from './trust.ts'

/** What was being done when it failed. */
export interface FailureContext {
  readonly phase: DpsPhase
  readonly host: string
  /** Where the packets went, such as `127.0.0.1 port 8883`. */
  readonly where: string
  /** The name that is being resolved, while it is. */
  readonly resolving: string | undefined
  /** The proxy that the connection runs through. */
  readonly proxy: HttpProxy | undefined
  /** The device's wall clock, ms. */
  readonly nowMs: number
  readonly presented: PresentedChain
  readonly anchors: readonly TrustAnchor[]
  /** Whether the credential has a certificate to present. */
  readonly hasCertificate: boolean
}

type Explain = (code: string, context: FailureContext, cause: unknown) => DpsError

const of =
  (code: DpsErrorCode, say: (context: FailureContext, code: string) => string): Explain =>
  (reason, context, cause) =>
    new DpsError(code, context.phase, say(context, reason), { cause, hint: proxyHint(context) })

/** What concerns the proxy is not put right at the service. */
const proxyHint = ({ phase }: FailureContext): string | undefined =>
  phase === 'proxy'
    ? 'This is about the proxy and not the service: check its address in `proxy`, or in the environment, and that the device can reach it.'
    : undefined

const refused = of('CONNECTION_REFUSED', ({ where }) => `${where} refused the connection`)
const unreachable = of('NETWORK_UNREACHABLE', ({ where }, code) => `there is no way to ${where} (${code})`)
const unresolved = of('DNS_FAILED', ({ phase, resolving }, code) =>
  phase === 'proxy'
    ? `the name of the proxy, ${resolving}, could not be resolved (${code})`
    : `the name ${resolving} could not be resolved (${code})`,
)
const timedOut = of('TIMEOUT', ({ where }) => `${where} did not answer`)
const lost: Explain = (code, context, cause) => {
  const { phase, where, hasCertificate, presented } = context
  // Many servers refuse a client certificate by hanging up, some after the alert has been overtaken by the close.
  const afterCertificate = hasCertificate && presented.certificates.length > 0
  return new DpsError(
    'CONNECTION_LOST',
    phase,
    `${where} ended the connection ${phase === 'tls' ? 'during the TLS handshake' : 'before it was established'} (${code})`,
    {
      cause,
      hint: afterCertificate
        ? 'It happened after this device had presented its certificate: if it always does, the server refuses that certificate.'
        : proxyHint(context),
    },
  )
}

const SYSTEM_CODES = new Map<string, Explain>([
  ['ECONNREFUSED', refused],
  ['EHOSTUNREACH', unreachable],
  ['EHOSTDOWN', unreachable],
  ['ENETUNREACH', unreachable],
  ['ENETDOWN', unreachable],
  ['EADDRNOTAVAIL', unreachable],
  // A local firewall that rejects.
  ['EACCES', unreachable],
  ['EPERM', unreachable],
  ['ETIMEDOUT', timedOut],
  ['ERR_SOCKET_CONNECTION_TIMEOUT', timedOut],
  ['ECONNRESET', lost],
  ['ECONNABORTED', lost],
  ['EPIPE', lost],
])

const untrusted: Explain = (_, context, cause) => {
  const { phase, host, presented, anchors } = context
  const top = describeTop(presented)
  const trusted =
    anchors.length > 3 ? `${anchors.length} trusted roots` : anchors.map((anchor) => anchor.name).join(', ')
  const message =
    top === undefined
      ? `the chain that ${host} presented does not end in a trusted root (${trusted})`
      : `the chain that ${host} presented ends with ${top}, and not in a trusted root (${trusted})`
  return new DpsError('SERVER_UNTRUSTED', phase, message, {
    cause,
    hint: inspectionHint(context) ?? sovereignHint(context),
  })
}

/** A proxy that answers in the server's name: it has the plain text, and the private key of no device. */
function inspectionHint({ host, proxy, presented, hasCertificate }: FailureContext): string | undefined {
  const top = presented.certificates.at(-1)
  if (proxy === undefined || top === undefined) return undefined
  const by = `The traffic is decrypted on its way through the proxy ${proxy.name}, by "${commonName(top.issuer)}"`
  return hasCertificate
    ? `${by}: have ${host} exempted from inspection; trusting that CA by trust.extraRoots would not be enough, because the proxy cannot present the device certificate to the service.`
    : `${by}: have ${host} exempted from inspection, or, if it is wanted, give that CA in trust.extraRoots, which is the only way through.`
}

/** Not shipped: public trust stores are dropping it, and the public cloud never needs it. */
const DIGICERT_GLOBAL_ROOT_CA_SHA256 = '4348A0E9444C78CB265E058D5E8944B4D84F9662BD26DB257F8934A443C70161'

/** The clouds in China and of the US government were still on an older root when this was written. */
function sovereignHint({ host, anchors }: FailureContext): string | undefined {
  const known = anchors.some(({ sha256 }) => sha256 === DIGICERT_GLOBAL_ROOT_CA_SHA256)
  if (known || !/\.azure-devices(?:-provisioning)?\.(?:cn|us)$/.test(host)) return undefined
  return `This cloud may still chain to DigiCert Global Root CA: get that root from DigiCert, compare its SHA-256 with ${DIGICERT_GLOBAL_ROOT_CA_SHA256}, and give it in trust.extraRoots.`
}

const unusable = of(
  'SERVER_CERTIFICATE_INVALID',
  ({ host }, code) => `a certificate that ${host} presented may not be used as it is (${code})`,
)

const expired: Explain = (_, context, cause) => {
  const { presented, anchors } = context
  return outOfDate('SERVER_CERTIFICATE_EXPIRED', context, cause, firstToEnd(presented, anchors))
}

const notYetValid: Explain = (_, context, cause) => {
  const latest = [...context.presented.certificates].sort(
    (a, b) => Date.parse(b.validFrom) - Date.parse(a.validFrom),
  )[0]
  return outOfDate('SERVER_CERTIFICATE_NOT_YET_VALID', context, cause, latest)
}

/** The certificate, presented or trusted, that ends first: the one that has expired, if any has. */
function firstToEnd(presented: PresentedChain, anchors: readonly TrustAnchor[]): X509Certificate | undefined {
  const top = presented.certificates.at(-1)
  const roots = anchors
    .filter((anchor) => top?.checkIssued(anchor.certificate))
    .map((root) => root.certificate)
  return [...presented.certificates, ...roots].sort(
    (a, b) => Date.parse(a.validTo) - Date.parse(b.validTo),
  )[0]
}

function outOfDate(
  code: DpsErrorCode,
  { phase, nowMs, presented }: FailureContext,
  cause: unknown,
  certificate: X509Certificate | undefined,
): DpsError {
  const device = `this device believes it is ${isoTime(nowMs)}`
  if (certificate === undefined) return new DpsError(code, phase, device, { cause })
  const which =
    certificate === presented.certificates[0]
      ? 'the server certificate'
      : `the certificate "${printableName(certificate.subject)}" in the server’s chain`
  const from = isoTime(Date.parse(certificate.validFrom))
  const to = isoTime(Date.parse(certificate.validTo))
  return new DpsError(code, phase, `${device}; ${which} is valid ${from} to ${to}`, { cause })
}

/** Node's names of OpenSSL's verification results. */
const VERIFY_CODES = new Map<string, Explain>([
  ['UNABLE_TO_GET_ISSUER_CERT', untrusted],
  ['UNABLE_TO_GET_ISSUER_CERT_LOCALLY', untrusted],
  ['SELF_SIGNED_CERT_IN_CHAIN', untrusted],
  ['DEPTH_ZERO_SELF_SIGNED_CERT', untrusted],
  ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', untrusted],
  ['CERT_SIGNATURE_FAILURE', untrusted],
  ['CERT_UNTRUSTED', untrusted],
  ['CERT_REJECTED', untrusted],
  ['UNABLE_TO_DECRYPT_CERT_SIGNATURE', untrusted],
  ['UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY', unusable],
  ['CERT_HAS_EXPIRED', expired],
  ['CERT_NOT_YET_VALID', notYetValid],
  ['ERROR_IN_CERT_NOT_BEFORE_FIELD', unusable],
  ['ERROR_IN_CERT_NOT_AFTER_FIELD', unusable],
  ['CERT_CHAIN_TOO_LONG', unusable],
  ['CERT_REVOKED', unusable],
  ['INVALID_CA', unusable],
  ['PATH_LENGTH_EXCEEDED', unusable],
  ['INVALID_PURPOSE', unusable],
  ['CA_KEY_TOO_SMALL', unusable],
  ['CA_MD_TOO_WEAK', unusable],
  ['EE_KEY_TOO_SMALL', unusable],
  // Node has no name for the other results: among them a key or a digest below the security level.
  ['UNSPECIFIED', unusable],
])

const noCommonSuite = of(
  'TLS_NO_COMMON_SUITE',
  ({ host }, code) =>
    `${host} takes none of the offered TLS 1.2 cipher suites, or none of the curves (${code})`,
)
const versionRefused = of(
  'TLS_VERSION_REFUSED',
  ({ host }, code) => `${host} does not speak the offered TLS version (${code})`,
)
const notTls = of('TLS_FAILED', ({ where }, code) => `${where} did not answer with TLS (${code})`)
const broken = of('TLS_FAILED', ({ host }, code) => `the TLS handshake with ${host} failed (${code})`)
const certificateRefused = of('TLS_CLIENT_CERTIFICATE_REFUSED', ({ host, hasCertificate }, code) =>
  hasCertificate
    ? `${host} refused the device certificate (${code})`
    : `${host} asks for a device certificate, and this credential has none (${code})`,
)

/** An alert that a server sends both before it has agreed to anything and after it has seen the client's certificate. */
const dependingOnProgress =
  (early: Explain): Explain =>
  (code, context, cause) =>
    (context.presented.certificates.length > 0 ? certificateRefused : early)(code, context, cause)

/** Alerts (RFC 5246 §7.2.2, RFC 8446 §6.2), without the prefix that OpenSSL 3.0 and 3.5 spell differently. */
const ALERTS = new Map<string, Explain>([
  ['HANDSHAKE_FAILURE', dependingOnProgress(noCommonSuite)],
  ['INSUFFICIENT_SECURITY', noCommonSuite],
  ['PROTOCOL_VERSION', versionRefused],
  ['INAPPROPRIATE_FALLBACK', versionRefused],
  ['NO_CERTIFICATE', certificateRefused],
  ['BAD_CERTIFICATE', certificateRefused],
  ['UNSUPPORTED_CERTIFICATE', certificateRefused],
  ['CERTIFICATE_REVOKED', certificateRefused],
  ['CERTIFICATE_EXPIRED', certificateRefused],
  ['CERTIFICATE_UNKNOWN', certificateRefused],
  ['CERTIFICATE_REQUIRED', certificateRefused],
  ['UNKNOWN_CA', certificateRefused],
  ['ACCESS_DENIED', certificateRefused],
  // The signature, or the curve, of the device key.
  ['DECRYPT_ERROR', dependingOnProgress(broken)],
  ['ILLEGAL_PARAMETER', dependingOnProgress(broken)],
  [
    'UNRECOGNIZED_NAME',
    of('SERVER_NAME_MISMATCH', ({ host, where }) => `${where} does not serve the name ${host}`),
  ],
])

/** What OpenSSL itself objects to in the server's answer. */
const SSL_REASONS = new Map<string, Explain>([
  ['UNSUPPORTED_PROTOCOL', versionRefused],
  ['WRONG_SSL_VERSION', versionRefused],
  ['VERSION_TOO_LOW', versionRefused],
  ['WRONG_VERSION_NUMBER', notTls],
  ['UNKNOWN_PROTOCOL', notTls],
  ['PACKET_LENGTH_TOO_LONG', notTls],
  ['HTTP_REQUEST', notTls],
  ['UNEXPECTED_MESSAGE', broken],
  ['NO_SHARED_CIPHER', noCommonSuite],
  ['NO_CIPHERS_AVAILABLE', noCommonSuite],
  ['EE_KEY_TOO_SMALL', unusable],
  ['CA_KEY_TOO_SMALL', unusable],
  ['CA_MD_TOO_WEAK', unusable],
  ['DH_KEY_TOO_SMALL', noCommonSuite],
])

const ALERT_PREFIX = /^(?:SSLV3_ALERT_|SSL\/TLS_ALERT_|TLSV1_ALERT_|TLSV13_ALERT_|TLSV1_)/

/**
 * A failure to connect as a DpsError with a next step. Only `code` properties are looked at: texts differ between
 * versions of Node and OpenSSL. A DpsError passes through.
 */
export function explainFailure(error: unknown, context: FailureContext): DpsError {
  if (DpsError.is(error)) return error
  const code = codeOf(error)
  const { phase, resolving } = context
  const system = SYSTEM_CODES.get(code)
  if (system !== undefined) return system(code, context, error)
  if (resolving !== undefined) return unresolved(code, context, error)
  if (phase === 'tls') return explainTls(code)(code, context, error)
  return lost(code, context, error)
}

function explainTls(code: string): Explain {
  const verify = VERIFY_CODES.get(code)
  if (verify !== undefined) return verify
  if (!code.startsWith('ERR_SSL_')) return broken
  const reason = code.slice('ERR_SSL_'.length)
  return SSL_REASONS.get(reason) ?? ALERTS.get(reason.replace(ALERT_PREFIX, '')) ?? broken
}

/** Whether the operating system, and so the network, gave this error its code. */
export function isSystemCode(error: unknown): boolean {
  return SYSTEM_CODES.has(codeOf(error))
}

/** What may pass by itself. */
const PASSING: ReadonlySet<number> = new Set([408, 429, 500, 502, 503, 504])

/** A proxy's answer to CONNECT that opens no tunnel. */
export function explainProxyRefusal(
  reply: ConnectReply,
  proxy: HttpProxy,
  target: string,
  port: number,
): DpsError {
  const { status, reason, schemes, retryAfterMs } = reply
  const answer = reason.trim() === '' ? `${status}` : `${status} ${printable(reason.trim(), 80)}`
  if (status === 407) {
    const other = schemes.length > 0 && !schemes.includes('basic')
    return new DpsError(
      'PROXY_AUTHENTICATION_REQUIRED',
      'proxy',
      proxy.authorization === undefined
        ? `the proxy ${proxy.name} asks for a user name and password before it opens ${target} (${answer})`
        : `the proxy ${proxy.name} does not accept the user name and password it was given (${answer})`,
      other
        ? {
            hint: `The proxy takes ${schemes
              .map((scheme) => printable(scheme, 40))
              .slice(0, 5)
              .join(
                ', ',
              )} authentication only, and this client speaks Basic: have Basic enabled, or an exemption made for this device.`,
          }
        : {},
    )
  }
  return new DpsError(
    'PROXY_REFUSED',
    'proxy',
    `the proxy ${proxy.name} does not open ${target} (${answer})`,
    {
      retryable: PASSING.has(status),
      retryAfterMs,
      hint:
        PASSING.has(status) || port === 443
          ? undefined
          : `The proxy does not open this connection: many allow port 443 only, which the transports 'mqtt-ws' and 'https' use; else ask its operator to allow ${target}.`,
    },
  )
}

/** The code, or that of the first attempt where several addresses were tried; one that was refused tells the most. */
function codeOf(error: unknown): string {
  if (error instanceof AggregateError) {
    const codes = error.errors.map(codeOf)
    return codes.find((code) => code === 'ECONNREFUSED') ?? codes[0] ?? 'UNKNOWN'
  }
  const code = (error as { code?: unknown } | undefined)?.code
  return typeof code === 'string' ? printable(code, 80) : 'UNKNOWN'
}
