import type { KeyObject, X509Certificate } from 'node:crypto'
import type { Assignment } from '../assignment/assignment.ts'
import { printableName } from '../distinguished-name.ts'
import { DpsError } from '../errors.ts'
import { isoTime } from '../iso-time.ts'
import { printable } from '../printable.ts'
import { sameRegistrationId } from '../protocol/registration-id.ts'
import { decodeBase64 } from './base64.ts'
import { commonNamesOf, isIssuedBy } from './certificate.ts'
import { readCertificates } from './pem.ts'

/** Chains of two and three have been seen; a cross-signed one has a few more. */
const MAX_CERTIFICATES = 10

/** Base64 of PEM is near twice the DER, and no certificate that a handshake can carry has 8 KB. */
const MAX_ELEMENT_CHARACTERS = 16_384

/**
 * By how much a certificate may begin in the future, ms: a fresh one begins when it was made, by the clock of the service,
 * and no clock that is kept in time is off by more. That it has not ended has no tolerance.
 */
export const FRESH_TOLERANCE_MS = 300_000

export interface IssuedChainOptions {
  /** As the service sent them: base64 of DER or of PEM, or PEM, in any order. Not believed. */
  readonly elements: unknown
  /** Of the request. */
  readonly publicKey: KeyObject
  /** What the CN may be, in any letter case: the registration id, and the device id where it is another. */
  readonly names: readonly string[]
  /** The device's clock, ms since the epoch. */
  readonly nowMs: number
  /** Goes with the error: what else the same reply brought. */
  readonly assignment?: Assignment
}

export interface IssuedChain {
  /** PEM of each certificate, the leaf first and each issuer after it. */
  readonly chain: readonly string[]
  /** The same as one text. */
  readonly chainPem: string
  readonly leaf: IssuedLeaf
}

export interface IssuedLeaf {
  readonly commonName: string
  /** Upper-case hex, as `node:crypto` prints it. */
  readonly serialNumber: string
  /** SHA-256 of the DER, upper-case hex with colons. */
  readonly fingerprint256: string
  /** Ms since the epoch. */
  readonly validFromMs: number
  /** Ms since the epoch. */
  readonly validUntilMs: number
}

/**
 * The certificate chain that was issued for a request, once it is sure to be that. Pure.
 *
 * - Exactly one certificate holds the public key of the request: the leaf. Copies count once.
 * - Each further one is a CA that issued the one before it, by name, key identifier and signature; there is at least one.
 *   Where the chain ends before a self-signed root, none that is left over bears the name of the missing issuer.
 * - Other certificates have to do with nothing and are left out: no harm, and while a CA is replaced they may well come.
 * - The leaf's one CN is among `names`; `nowMs` lies within the dates of every certificate but the root.
 *
 * @throws DpsError CERTIFICATE_NOT_ISSUED where there are no elements, else ISSUED_CERTIFICATE_INVALID; phase `parse`
 */
export function checkIssuedChain({
  elements,
  publicKey,
  names,
  nowMs,
  assignment,
}: IssuedChainOptions): IssuedChain {
  const invalid = (fault: string, hint?: string, cause?: unknown): DpsError =>
    new DpsError(
      'ISSUED_CERTIFICATE_INVALID',
      'parse',
      `the certificate that was issued must not be used: ${fault}`,
      {
        assignment,
        ...(hint !== undefined && { hint }),
        ...(cause !== undefined && { cause }),
      },
    )
  if (elements === undefined || elements === null || (Array.isArray(elements) && elements.length === 0)) {
    throw new DpsError(
      'CERTIFICATE_NOT_ISSUED',
      'parse',
      'a certificate signing request was sent, and the reply carries no certificate',
      { assignment },
    )
  }
  if (!Array.isArray(elements) || elements.length > MAX_CERTIFICATES) {
    throw invalid(`the chain is no list of at most ${MAX_CERTIFICATES}`)
  }
  const certificates = new Map<string, X509Certificate>()
  for (const [index, element] of elements.entries()) {
    const read = certificatesIn(element, `element ${index + 1} of the chain`)
    if (DpsError.is(read)) throw invalid(read.message, undefined, read)
    for (const certificate of read) certificates.set(certificate.fingerprint256, certificate)
  }
  if (certificates.size > MAX_CERTIFICATES)
    throw invalid(`the chain has more than ${MAX_CERTIFICATES} certificates`)

  const others = new Set(certificates.values())
  const leaves = [...others].filter((certificate) => holds(certificate, publicKey))
  const leaf = leaves[0]
  if (leaf === undefined) throw invalid('none in the reply is for the public key of the request')
  if (leaves.length > 1) throw invalid(`${leaves.length} in the reply are for the public key of the request`)
  others.delete(leaf)

  const chain = [leaf]
  let top = leaf
  let isRoot = false
  while (!isRoot) {
    const issuer = [...others].find((candidate) => candidate.ca && isIssuedBy(top, candidate))
    if (issuer === undefined) break
    others.delete(issuer)
    chain.push(issuer)
    top = issuer
    isRoot = isIssuedBy(top, top)
  }
  if (!isRoot && [...others].some(({ subject }) => subject === top.issuer)) {
    throw invalid(
      `${printableName(top.subject)} was not signed by ${printableName(top.issuer)}, whose name it bears as its issuer`,
    )
  }
  if (chain.length === 1) throw invalid(`its issuer, ${printableName(leaf.issuer)}, is not in the reply`)

  const commonNames = commonNamesOf(leaf)
  const commonName = commonNames[0] ?? ''
  if (commonNames.length !== 1 || !names.some((name) => sameRegistrationId(name, commonName))) {
    const found = commonNames.map((name) => `"${printable(name, 140)}"`).join(' and ') || 'missing'
    throw invalid(`its CN is ${found}, not "${names.join('" or "')}"`)
  }
  for (const certificate of isRoot ? chain.slice(0, -1) : chain) {
    const { fromMs, untilMs } = periodOf(certificate)
    if (nowMs + FRESH_TOLERANCE_MS >= fromMs && nowMs < untilMs) continue
    throw invalid(
      `by this device's clock it is ${isoTime(nowMs)}, and ${printableName(certificate.subject)} is valid from ${isoTime(fromMs)} to ${isoTime(untilMs)}`,
      'Compare the clock with the dates in the message; if it is right, look at the lifetime in the certificate policy.',
    )
  }
  const pems = chain.map((certificate) => certificate.toString())
  const { fromMs, untilMs } = periodOf(leaf)
  return Object.freeze({
    chain: Object.freeze(pems),
    chainPem: pems.join(''),
    leaf: Object.freeze({
      commonName,
      serialNumber: leaf.serialNumber,
      fingerprint256: leaf.fingerprint256,
      validFromMs: fromMs,
      validUntilMs: untilMs,
    }),
  })
}

function certificatesIn(element: unknown, name: string): readonly X509Certificate[] | DpsError {
  const fault = (what: string) => new DpsError('REPLY_MALFORMED', 'parse', `${name} ${what}`)
  if (typeof element !== 'string') return fault('is no text')
  if (element.length > MAX_ELEMENT_CHARACTERS)
    return fault(`has more than ${MAX_ELEMENT_CHARACTERS} characters`)
  const isPem = element.includes('-----BEGIN ')
  const content = isPem ? element : decodeBase64(element.replace(/\s+/g, ''))
  if (!isPem && typeof content === 'string') return fault(content)
  try {
    return readCertificates(content, name)
  } catch (error) {
    if (DpsError.is(error)) return error
    throw error
  }
}

function holds(certificate: X509Certificate, publicKey: KeyObject): boolean {
  try {
    return certificate.publicKey.equals(publicKey)
  } catch {
    // Of a kind that OpenSSL does not know, and so not that of the request.
    return false
  }
}

/** NaN where OpenSSL prints no date, which no time lies within. */
function periodOf({ validFrom, validTo }: X509Certificate): { fromMs: number; untilMs: number } {
  return { fromMs: Date.parse(validFrom), untilMs: Date.parse(validTo) }
}
