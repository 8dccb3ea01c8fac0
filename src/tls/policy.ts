import { createHash } from 'node:crypto'
import type { CurveName, Identity } from '../credential/credential.ts'
import { DpsError } from '../errors.ts'
import type { TlsOptions, TrustOptions } from '../options/options.ts'
import { refuseUnknown } from '../options/resolve.ts'
import { printable } from '../printable.ts'
import { resolveSuites, TLS13_SUITES } from './ciphers.ts'
import { resolveTrust, type TrustAnchor } from './trust.ts'

/** Everything one handshake is held to. Frozen; two policies with the same `id` are the same policy. */
export interface TlsPolicy {
  readonly minVersion: 'TLSv1.2'
  readonly maxVersion: 'TLSv1.2' | 'TLSv1.3'
  /** TLS 1.2 suites in the order offered, OpenSSL names. */
  readonly suites: readonly string[]
  /** OpenSSL cipher string; begins with the TLS 1.3 suites where `maxVersion` allows them. */
  readonly ciphers: string
  /** Key-exchange groups in the order offered. */
  readonly curves: readonly CurveName[]
  readonly ecdhCurve: string
  /** Signature algorithms in the order offered (RFC 8446 §4.2.3 names). */
  readonly sigalgs: string
  readonly anchors: readonly TrustAnchor[]
  readonly sessionResumption: boolean
  /** What the caller allowed against the recommendation, one sentence each. */
  readonly warnings: readonly string[]
  /** SHA-256, hex, of all that decides about a handshake. */
  readonly id: string
}

/** Cheapest first; P-384 costs several times as much and is there for the server that wants nothing else. */
const DEFAULT_CURVES: readonly CurveName[] = Object.freeze(['X25519', 'P-256', 'P-384'] as const)

const KNOWN_CURVES: ReadonlySet<unknown> = new Set<CurveName>(['X25519', 'P-256', 'P-384', 'P-521', 'X448'])

/** No SHA-1, no SHA-224, no DSA: OpenSSL's own TLS 1.2 default still offers them in some builds. */
const SIGNATURE_ALGORITHMS = [
  'ecdsa_secp256r1_sha256',
  'rsa_pss_rsae_sha256',
  'rsa_pkcs1_sha256',
  'ecdsa_secp384r1_sha384',
  'rsa_pss_rsae_sha384',
  'rsa_pkcs1_sha384',
  'ecdsa_secp521r1_sha512',
  'rsa_pss_rsae_sha512',
  'rsa_pkcs1_sha512',
].join(':')

const KNOWN = new Set([
  'cipherPreference',
  'legacyCiphers',
  'ciphers',
  'curves',
  'maxVersion',
  'sessionResumption',
])

/**
 * Turns the options into the policy, once.
 *
 * TLS 1.2 is what the service speaks (https://learn.microsoft.com/azure/iot-dps/tls-support); nothing lowers it.
 *
 * @throws DpsError TLS_POLICY_INVALID, TRUST_ANCHOR_INVALID or OPTION_INVALID, phase `config`
 */
export function resolvePolicy(
  tls: TlsOptions | undefined = {},
  trust: TrustOptions | undefined = {},
): TlsPolicy {
  refuseUnknown('tls.', tls, KNOWN)
  const { maxVersion = 'TLSv1.2', sessionResumption = true, cipherPreference, legacyCiphers } = tls
  if (maxVersion !== 'TLSv1.2' && maxVersion !== 'TLSv1.3') {
    throw invalid("tls.maxVersion must be 'TLSv1.2' or 'TLSv1.3'; the minimum is always TLS 1.2")
  }
  if (typeof sessionResumption !== 'boolean') throw invalid('tls.sessionResumption must be true or false')
  const suites = resolveSuites(tls)
  const tls13 = maxVersion === 'TLSv1.3' ? TLS13_SUITES[cipherPreference ?? 'security'] : []
  const ciphers = [...tls13, ...suites].join(':')
  const curves = resolveCurves(tls.curves)
  const ecdhCurve = curves.join(':')
  const anchors = resolveTrust(trust)
  const warnings =
    legacyCiphers === undefined
      ? []
      : [
          `tls.legacyCiphers '${legacyCiphers}' offers static RSA key exchange: no forward secrecy, and the service is retiring it`,
        ]
  return Object.freeze({
    minVersion: 'TLSv1.2',
    maxVersion,
    suites,
    ciphers,
    curves,
    ecdhCurve,
    sigalgs: SIGNATURE_ALGORITHMS,
    anchors,
    sessionResumption,
    warnings: Object.freeze(warnings),
    id: createHash('sha256')
      .update(
        JSON.stringify([
          maxVersion,
          ciphers,
          ecdhCurve,
          SIGNATURE_ALGORITHMS,
          anchors.map((anchor) => anchor.sha256),
        ]),
      )
      .digest('hex'),
  })
}

const narrowed = new WeakMap<TlsPolicy, Map<TrustAnchor, TlsPolicy>>()

/** The same policy where it trusts nothing but one of its anchors; made once. */
export function narrowedTo(anchor: TrustAnchor, policy: TlsPolicy): TlsPolicy {
  if (policy.anchors.length === 1) return policy
  const made = narrowed.get(policy) ?? new Map<TrustAnchor, TlsPolicy>()
  narrowed.set(policy, made)
  const kept = made.get(anchor)
  if (kept !== undefined) return kept
  const id = createHash('sha256').update(`${policy.id} ${anchor.sha256}`).digest('hex')
  const narrow = Object.freeze({ ...policy, anchors: Object.freeze([anchor]), id })
  made.set(anchor, narrow)
  return narrow
}

/**
 * An EC device key signs on its own curve: a server that was not offered that curve breaks off with a bare alert
 * (RFC 8422 §5.1), so the mistake is named here, before any packet.
 *
 * @throws DpsError CREDENTIAL_KEY_UNSUPPORTED, phase `config`
 */
export function checkIdentityAgainstPolicy(policy: TlsPolicy, identity: Identity): void {
  const { keyCurve } = identity
  if (keyCurve === undefined || policy.curves.includes(keyCurve)) return
  throw new DpsError(
    'CREDENTIAL_KEY_UNSUPPORTED',
    'config',
    `the device key is on ${printable(keyCurve, 40)}, which tls.curves (${policy.curves.join(', ')}) does not offer`,
  )
}

function resolveCurves(curves: unknown): readonly CurveName[] {
  if (curves === undefined) return DEFAULT_CURVES
  const known = [...KNOWN_CURVES].join(', ')
  if (!Array.isArray(curves) || curves.length === 0) {
    throw invalid(`tls.curves must be an array of at least one of ${known}`)
  }
  const seen = new Set<CurveName>()
  for (const [index, curve] of curves.entries()) {
    if (!KNOWN_CURVES.has(curve)) throw invalid(`tls.curves[${index}] must be one of ${known}`)
    if (seen.has(curve)) throw invalid(`tls.curves[${index}] repeats ${curve}`)
    seen.add(curve)
  }
  return Object.freeze([...seen])
}

function invalid(message: string): DpsError {
  return new DpsError('TLS_POLICY_INVALID', 'config', message)
}
