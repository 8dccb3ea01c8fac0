import { createPublicKey, type KeyObject, verify } from 'node:crypto'
import { bitsOf, children, type Der, OID } from '../pki.ts'
import type { IssuanceCurve, IssuancePolicy } from './authority.ts'

/** A certificate signing request that is what it says. */
export interface Csr {
  readonly commonName: string
  readonly publicKey: KeyObject
  /** As it was sent. */
  readonly text: string
}

const LARGEST_CSR = 8192
const LEAST_RSA_BITS = 2048
const DEFAULT_CURVES: readonly IssuanceCurve[] = ['P-384', 'P-256']
const CURVES: Readonly<Record<string, IssuanceCurve>> = { prime256v1: 'P-256', secp384r1: 'P-384' }
/** ECDSA (RFC 5758, section 3.2) and RSA PKCS#1 (RFC 4055, section 5), which number their digests alike. */
const SIGNATURE = /^1\.2\.840\.(?:10045\.4\.3\.([234])|113549\.1\.1\.1([123]))$/
const DIGESTS = ['sha256', 'sha384', 'sha512']

/**
 * Reads a PKCS#10 request (RFC 2986), base64 of its DER; or the rule it breaks.
 *
 * @param names what its common name may be
 */
export function readCsr(
  der: Der,
  text: unknown,
  names: readonly string[],
  { curves = DEFAULT_CURVES, allowRsa = false }: IssuancePolicy = {},
): Csr | string {
  if (typeof text !== 'string' || text.length > LARGEST_CSR) {
    return `The field 'csr' must be a string of at most ${LARGEST_CSR} characters.`
  }
  const bytes = Buffer.from(text, 'base64')
  if (bytes.length === 0 || bytes.toString('base64') !== text) {
    return "The field 'csr' must be base64 of DER, without PEM and line breaks."
  }
  try {
    const [info, algorithm, signatureBits] = children(der.decode(bytes))
    const [, subject, spki, attributes] = children(info)
    const publicKey = createPublicKey({ key: der.encode(spki!), format: 'der', type: 'spki' })
    const { asymmetricKeyType, asymmetricKeyDetails } = publicKey
    const rsa = asymmetricKeyType === 'rsa'
    const oid = der.dotted(children(algorithm)[0])
    const signature = bitsOf(signatureBits)
    // Put together again of what was understood: there is one way to write it in DER.
    const again = der.sequence(
      info!,
      der.sequence(der.oid(oid), ...(rsa ? [der.null()] : [])),
      der.bits(signature.toString('latin1')),
    )
    if (attributes === undefined || !der.encode(again).equals(bytes)) throw new TypeError('not DER')
    const [, ecDigest, rsaDigest] = SIGNATURE.exec(oid) ?? []
    const digest = DIGESTS[rsa ? Number(rsaDigest) - 1 : Number(ecDigest) - 2]
    if (digest === undefined || !verify(digest, der.encode(info!), publicKey, signature)) {
      return 'A signing request is signed with its own key: ECDSA or RSA PKCS#1 with SHA-256, SHA-384 or SHA-512.'
    }
    const commonNames = children(subject)
      .flatMap(children)
      .map(children)
      .filter(([type]) => der.dotted(type) === OID.commonName)
      .map(([, value]) => Buffer.from(String(value?.value), 'latin1').toString('utf8'))
    const [commonName = ''] = commonNames
    if (commonNames.length !== 1 || !names.includes(commonName)) {
      return `The subject's only common name must be '${names.join("' or '")}'.`
    }
    const allowed = rsa
      ? allowRsa && (asymmetricKeyDetails?.modulusLength ?? 0) >= LEAST_RSA_BITS
      : curves.includes(CURVES[asymmetricKeyDetails?.namedCurve ?? '']!)
    if (allowed) return { commonName, publicKey, text }
    const orRsa = allowRsa ? ` or RSA of ${LEAST_RSA_BITS} bits` : ', no RSA'
    return `The key must be on the curve ${curves.join(' or ')}${orRsa}.`
  } catch {
    return 'A signing request is PKCS#10 in DER [RFC 2986].'
  }
}
