import type { X509Certificate } from 'node:crypto'
import { DpsError } from '../errors.ts'

export interface OrderedChain {
  /** The device certificate, and after each certificate its issuer, as far as they were given. */
  readonly chain: readonly X509Certificate[]
  /** What was put right, one sentence each. */
  readonly notices: readonly string[]
}

/** What its caller knows of certificates: handed over, so that this file brings nothing along. */
export interface ChainTools {
  isIssuedBy(subject: X509Certificate, issuer: X509Certificate): boolean
  isSignedBy(subject: X509Certificate, issuer: X509Certificate): boolean
  nameOf(certificate: { subject?: string }): string
}

/** Each is compared with each. */
const MAX_CERTIFICATES = 50

/**
 * The chain of the device among certificates that come in any order, several times, and with others between them.
 *
 * The device certificate is the one whose key fits; where no key can be asked, the one that issued none of the others. What
 * has nothing to do with the chain is left out, unless something is certainly missing: none of the CA certificates that were
 * given is the issuer of the device certificate, or one has the issuer's name and is not the issuer.
 *
 * @param field what the certificates are known by, `keyField` the key
 * @throws DpsError CREDENTIAL_KEY_MISMATCH or CREDENTIAL_CHAIN_BROKEN, phase `config`
 */
export function orderChain(
  given: readonly X509Certificate[],
  fits: ((certificate: X509Certificate) => boolean) | undefined,
  field: string,
  keyField: string,
  tools: ChainTools,
): OrderedChain {
  const { nameOf } = tools
  if (given.length > MAX_CERTIFICATES) {
    throw new DpsError(
      'CREDENTIAL_UNREADABLE',
      'config',
      `\`${field}\` holds ${given.length} certificates; a chain has a few, and at most ${MAX_CERTIFICATES} are read.`,
    )
  }
  const different = given.filter((one, at) => !given.slice(0, at).some(({ raw }) => raw.equals(one.raw)))
  const leaves = fits === undefined ? [onlyNonIssuer(different, field, tools)] : different.filter(fits)
  if (leaves.length === 0) {
    const leaf = nonIssuers(different, tools)[0] ?? different[0]!
    throw new DpsError(
      'CREDENTIAL_KEY_MISMATCH',
      'config',
      `\`${keyField}\` is not the private key of the device certificate (${nameOf(leaf)}).`,
    )
  }
  // One that was issued is preferred to one that the device made itself, for the same key.
  const chain = leaves
    .map((leaf) => chainFrom(leaf, different, tools))
    .reduce((a, b) => (b.length > a.length ? b : a))
  const others = different.filter((one) => !chain.includes(one))
  if (others.length > 0) checkOthers(chain, others, different, field, tools)
  const notices: string[] = []
  if (different.length < given.length) notices.push(`\`${field}\` holds a certificate more than once.`)
  if (others.length > 0) {
    const names = others.map((one) => `(${nameOf(one)})`).join(', ')
    notices.push(`\`${field}\` holds what is not in the chain of the device, and is not sent: ${names}.`)
  }
  if (different.filter((one) => chain.includes(one)).some((one, at) => one !== chain[at])) {
    notices.push(`\`${field}\` was not in order: the device certificate is sent first, and then each issuer.`)
  }
  return { chain, notices }
}

function chainFrom(
  leaf: X509Certificate,
  certificates: readonly X509Certificate[],
  { isIssuedBy }: ChainTools,
): X509Certificate[] {
  const chain = [leaf]
  for (;;) {
    const top = chain.at(-1)!
    const issuer = certificates.find((one) => !chain.includes(one) && isIssuedBy(top, one))
    if (issuer === undefined) return chain
    chain.push(issuer)
    if (isIssuedBy(issuer, issuer)) return chain
  }
}

function checkOthers(
  chain: readonly X509Certificate[],
  others: readonly X509Certificate[],
  given: readonly X509Certificate[],
  field: string,
  tools: ChainTools,
): void {
  const { isIssuedBy, nameOf } = tools
  const top = chain.at(-1)!
  if (isIssuedBy(top, top)) return
  const namesake = others.find((one) => one.subject === top.issuer)
  const issuer = namesake ?? (chain.length === 1 ? others.find(({ ca }) => ca) : undefined)
  if (issuer === undefined) return
  const numbered = (one: X509Certificate) => `${given.indexOf(one) + 1} (${nameOf(one)})`
  throw new DpsError(
    'CREDENTIAL_CHAIN_BROKEN',
    'config',
    `Certificate ${numbered(top)} of \`${field}\` was not issued by certificate ${numbered(issuer)}, nor by another in it: ${whyNotIssuedBy(top, issuer, tools)}.`,
  )
}

function onlyNonIssuer(
  certificates: readonly X509Certificate[],
  field: string,
  tools: ChainTools,
): X509Certificate {
  const candidates = nonIssuers(certificates, tools)
  const first = certificates[0]!
  if (candidates.includes(first)) return first
  if (candidates.length === 1) return candidates[0]!
  throw new DpsError(
    'CREDENTIAL_CHAIN_BROKEN',
    'config',
    `\`${field}\` holds ${candidates.length} certificates that issued no other: give that of the device first.`,
  )
}

function nonIssuers(certificates: readonly X509Certificate[], { isIssuedBy }: ChainTools): X509Certificate[] {
  return certificates.filter((one) => !certificates.some((other) => other !== one && isIssuedBy(other, one)))
}

function whyNotIssuedBy(
  subject: X509Certificate,
  issuer: X509Certificate,
  { isSignedBy, nameOf }: ChainTools,
): string {
  if (subject.issuer !== issuer.subject) return `its issuer is ${nameOf({ subject: subject.issuer })}`
  if (isSignedBy(subject, issuer))
    return 'the signature fits, but the second may not sign certificates or has another key id'
  return 'the names agree, but the signature was made with another key'
}
