import type { X509Certificate } from 'node:crypto'
import { mayAuthenticate, renewAtMs, WEAK_SIGNATURES } from './certificate.ts'
import { type Credential, constant, type Identity } from './credential.ts'
import type { SasSignerOptions, SymmetricKeyOptions } from './sas.ts'
import { Secret } from './secret.ts'
import { copyOf } from './source.ts'
import type { X509Options } from './x509.ts'

/** What a credential was made of: its options as they were then, so that its sources can be read as they are now. */
export type Material =
  | { readonly kind: 'x509'; readonly options: Secret<X509Options> }
  | { readonly kind: 'symmetric-key'; readonly options: Secret<SymmetricKeyOptions> }
  | { readonly kind: 'sas-signer'; readonly options: Secret<SasSignerOptions> }

// Beside the credentials rather than in them: there nothing prints it, copies it, or finds it.
const materials = new WeakMap<Credential, Material>()

/** Keeps what a credential was made of for whoever inspects it. */
export function madeOf(credential: Credential, kind: Material['kind'], options: object): Credential {
  const own = Object.fromEntries(Object.entries(options).map(([name, value]) => [name, copyOf(value)]))
  materials.set(credential, { kind, options: new Secret(own) } as unknown as Material)
  return credential
}

/** Undefined for a credential of the caller's own. */
export function materialOf(credential: Credential): Material | undefined {
  return materials.get(credential)
}

interface Standing {
  readonly isSuspicious: boolean
  /** When the first of its certificates has to be renewed, and when it ends. */
  readonly renewAtMs: number
}

const standings = new WeakMap<Identity, Standing>()

const KEY_USAGE = Buffer.from('0603551d0f', 'hex')
const WEAK = Object.keys(WEAK_SIGNATURES).map((oid) => Buffer.from(oid, 'hex'))

/**
 * Notes, while the certificates are at hand, whether an inspection can find something to warn of. It looks for bytes and
 * takes nothing apart, so it may be wrong where there is nothing, and only there.
 */
export function judge(
  identity: Identity,
  chain: readonly X509Certificate[],
  periods: readonly { readonly fromMs: number; readonly untilMs: number }[],
): Identity {
  const [leaf] = chain as [X509Certificate]
  const isSuspicious =
    leaf.ca ||
    chain.some((one, at) => at > 0 && !one.ca) ||
    !mayAuthenticate(leaf) ||
    !mayHaveDigitalSignature(leaf.raw) ||
    chain.some((one) => WEAK.some((oid) => one.raw.includes(oid)))
  const renewals = periods.map(({ fromMs, untilMs }) => renewAtMs(fromMs, untilMs))
  standings.set(identity, { isSuspicious, renewAtMs: Math.min(...renewals) })
  return identity
}

/** An identity that assignments stay bound to through others of the same lineage; what was noted of it is of this one too. */
export function ofLineage(identity: Identity, lineage: string): Identity {
  const own = constant({ ...identity, lineage })
  standings.set(own, standings.get(identity)!)
  return own
}

/** The extension is its OID, perhaps `critical`, and a bit string in an octet string (RFC 5280 4.2.1.3). */
function mayHaveDigitalSignature(der: Buffer): boolean {
  const found = der.indexOf(KEY_USAGE)
  if (found === -1) return true
  const at = found + KEY_USAGE.length
  return (der[at + (der[at] === 1 ? 3 : 0) + 5]! & 0x80) !== 0
}

/** What there is to warn of in an identity now, as text to remember it by; empty where there is nothing. */
export function doubtAbout(identity: Identity, nowMs: number): string {
  const standing = standings.get(identity)
  // One of the caller's own was looked at by nobody.
  if (standing === undefined) return identity.tls === undefined ? '' : 'unknown'
  return `${standing.isSuspicious ? 'suspicious' : ''}${nowMs >= standing.renewAtMs ? 'ending' : ''}`
}
