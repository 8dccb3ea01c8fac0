import { createHash } from 'node:crypto'
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls'
import { type Identity, isConstant, type TlsIdentity } from '../credential/credential.ts'
import { DpsError } from '../errors.ts'
import { LruMap } from '../lru.ts'
import type { TlsPolicy } from './policy.ts'

/** A gateway that speaks for more devices than this in turn rebuilds some; a device has one. */
const MAX_CONTEXTS = 64

const contexts = new LruMap<SecureContext>(MAX_CONTEXTS)

/** One connection may trust all that the policy does, the next its root alone, and there are few credentials in a list. */
const MAX_OWN_CONTEXTS = 8

/**
 * The contexts of one device that nobody will ask for again. Each holds thirty kilobytes that the garbage collector knows
 * nothing of: left to it, thousands would wait.
 */
export class OwnContexts extends LruMap<SecureContext> {
  constructor() {
    super(MAX_OWN_CONTEXTS)
  }

  /** To be called when no connection can be begun with them any more; one that is still closing has what it needs. */
  free(): void {
    // As Node does with a context that `tls.connect` made itself.
    for (const { context } of this.values()) context.close?.()
    this.clear()
  }
}
let hits = 0
let misses = 0

/** The fields that reach OpenSSL. Listed, so that nothing else in a credential's object can change the policy. */
export const IDENTITY_FIELDS = [
  'cert',
  'key',
  'passphrase',
  'pfx',
  'privateKeyEngine',
  'privateKeyIdentifier',
  'clientCertEngine',
] as const satisfies readonly (keyof TlsIdentity)[]

/**
 * What contexts and sessions are kept under: the fingerprint the credential gives, and a hash of the content itself, so
 * that a credential of the caller's own which names two devices alike still shares nothing.
 */
export function identityKey(identity: Identity): string {
  const kept = keys.get(identity)
  if (kept !== undefined) return kept
  const key = hashOf(identity)
  if (isConstant(identity)) keys.set(identity, key)
  return key
}

const keys = new WeakMap<Identity, string>()

function hashOf(identity: Identity): string {
  const hash = createHash('sha256').update(JSON.stringify(identity.fingerprint) ?? '')
  for (const field of IDENTITY_FIELDS) {
    const value = identity.tls?.[field]
    if (value === undefined) continue
    const bytes = Buffer.from(value as string)
    hash.update(`\n${field} ${bytes.length}\n`).update(bytes)
  }
  return hash.digest('hex')
}

/**
 * The secure context for this credential content under this policy: built once, then kept. Building one costs as much
 * as a handshake.
 *
 * @param own keeps it in place of this process, where there is anything of the device in it
 * @throws DpsError CREDENTIAL_UNREADABLE or CREDENTIAL_KEY_MISMATCH when OpenSSL cannot use the certificate and key,
 *   TLS_POLICY_INVALID when this build of OpenSSL cannot do what the policy names; phase `config`
 */
export function secureContextFor(identity: Identity, policy: TlsPolicy, own?: OwnContexts): SecureContext {
  const kept = keptContextFor(identity, policy, own)
  if (kept !== undefined) return kept
  misses++
  const context = build(identity, policy)
  cacheOf(identity, own).set(contextKey(identity, policy), context)
  return context
}

/** The same, where it need not be built. */
export function keptContextFor(
  identity: Identity,
  policy: TlsPolicy,
  own?: OwnContexts,
): SecureContext | undefined {
  const kept = cacheOf(identity, own).get(contextKey(identity, policy))
  if (kept !== undefined) hits++
  return kept
}

/** Devices that present no certificate share one: there is nothing of them in it. Their sessions stay apart. */
function cacheOf({ tls }: Identity, own: OwnContexts | undefined): LruMap<SecureContext> {
  return tls === undefined ? contexts : (own ?? contexts)
}

function contextKey(identity: Identity, policy: TlsPolicy): string {
  return identity.tls === undefined ? policy.id : `${identityKey(identity)} ${policy.id}`
}

/** The policy as Node takes it. */
export function policyOptions(policy: TlsPolicy) {
  return {
    ca: policy.anchors.map((anchor) => anchor.pem),
    ciphers: policy.ciphers,
    ecdhCurve: policy.ecdhCurve,
    sigalgs: policy.sigalgs,
    minVersion: policy.minVersion,
    maxVersion: policy.maxVersion,
  } satisfies SecureContextOptions
}

function build(identity: Identity, policy: TlsPolicy): SecureContext {
  const options: SecureContextOptions = policyOptions(policy)
  const own: Record<string, unknown> = {}
  for (const field of IDENTITY_FIELDS) {
    const value = identity.tls?.[field]
    if (value !== undefined) own[field] = value
  }
  try {
    return createSecureContext({ ...options, ...own })
  } catch (error) {
    throw explainBuildFailure(error, options)
  }
}

function explainBuildFailure(error: unknown, withoutIdentity: SecureContextOptions): DpsError {
  // OpenSSL's codes do not say whose input was at fault; building again without the credential does.
  try {
    createSecureContext(withoutIdentity)
  } catch (cause) {
    return new DpsError(
      'TLS_POLICY_INVALID',
      'config',
      'the OpenSSL of this Node.js does not support a suite, curve or signature algorithm of the TLS policy',
      { cause },
    )
  }
  const code = (error as { code?: unknown }).code
  if (code === 'ERR_OSSL_X509_KEY_VALUES_MISMATCH' || code === 'ERR_OSSL_X509_KEY_TYPE_MISMATCH') {
    return new DpsError(
      'CREDENTIAL_KEY_MISMATCH',
      'config',
      'the private key does not belong to the device certificate',
      { cause: error },
    )
  }
  // An error about the type of an argument quotes the argument, which may be the key or its passphrase.
  const quotesArgument = typeof code === 'string' && code.startsWith('ERR_INVALID_ARG')
  return new DpsError(
    'CREDENTIAL_UNREADABLE',
    'config',
    'OpenSSL cannot use the device certificate and key as they are',
    quotesArgument ? {} : { cause: error },
  )
}

/** For tests. */
export function contextStatistics(): {
  readonly hits: number
  readonly misses: number
  readonly size: number
} {
  return { hits, misses, size: contexts.size }
}
