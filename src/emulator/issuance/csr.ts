import { createPublicKey, type KeyObject, verify } from 'node:crypto'
import type { asn1 as Asn1 } from 'node-forge'
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
const LONGEST_NAME = 64
const LEAST_RSA_BITS = 2048
const DEFAULT_CURVES: readonly IssuanceCurve[] = ['P-384', 'P-256']
const CURVE_NAMES: Readonly<Record<string, string>> = { prime256v1: 'P-256', secp384r1: 'P-384' }

/** RFC 5758, section 3.2, and RFC 4055, section 5. */
const SIGNATURES: Readonly<Record<string, readonly [keyType: string, digest: string]>> = {
  '1.2.840.10045.4.3.2': ['ec', 'sha256'],
  '1.2.840.10045.4.3.3': ['ec', 'sha384'],
  '1.2.840.10045.4.3.4': ['ec', 'sha512'],
  '1.2.840.113549.1.1.11': ['rsa', 'sha256'],
  '1.2.840.113549.1.1.12': ['rsa', 'sha384'],
  '1.2.840.113549.1.1.13': ['rsa', 'sha512'],
}

/**
 * Reads a PKCS#10 request (RFC 2986), base64 of its DER; or the rule it breaks.
 *
 * @param names what its common name may be
 */
export function readCsr(
  der: Der,
  text: unknown,
  names: readonly string[],
  policy: IssuancePolicy | undefined,
): Csr | string {
  if (typeof text !== 'string') return "The field 'csr' must be a string."
  if (text.length > LARGEST_CSR) return `A certificate signing request is at most ${LARGEST_CSR} characters.`
  const bytes = Buffer.from(text, 'base64')
  if (bytes.length === 0 || bytes.toString('base64') !== text) {
    return "The field 'csr' must be base64 of DER, without PEM lines and line breaks."
  }
  const malformed = 'A certificate signing request is PKCS#10 in DER [RFC 2986].'
  let publicKey: KeyObject
  let commonName: string | undefined
  let info: Asn1.Asn1 | undefined
  let outer: Asn1.Asn1[]
  try {
    const request = der.decode(bytes)
    outer = children(request)
    info = outer[0]
    if (info === undefined || outer.length !== 3 || !der.encode(request).equals(bytes)) return malformed
    const spki = children(info)[2]
    if (spki === undefined) return malformed
    publicKey = createPublicKey({ key: der.encode(spki), format: 'der', type: 'spki' })
  } catch {
    return malformed
  }
  try {
    const [keyType, digest] = SIGNATURES[der.dotted(children(outer[1])[0])] ?? []
    if (digest === undefined || keyType !== publicKey.asymmetricKeyType) {
      return 'A certificate signing request is signed by ECDSA or RSA PKCS#1, with SHA-256, SHA-384 or SHA-512.'
    }
    if (!verify(digest, der.encode(info), publicKey, bitsOf(outer[2]))) {
      return 'The signature of the certificate signing request is not that of its own key.'
    }
    const commonNames = children(children(info)[1])
      .flatMap((set) => children(set))
      .filter((attribute) => der.dotted(children(attribute)[0]) === OID.commonName)
      .map((attribute) => Buffer.from(String(children(attribute)[1]?.value), 'latin1').toString('utf8'))
    commonName = commonNames.find((name) => names.includes(name))
    if (commonNames.length !== 1 || commonName === undefined) {
      return `The subject's only common name must be ${names.map((name) => `'${name}'`).join(' or ')}.`
    }
    if (commonName.length > LONGEST_NAME) {
      return `A common name is at most ${LONGEST_NAME} characters [X.520].`
    }
  } catch {
    return malformed
  }
  const refusal = checkKey(publicKey, policy)
  return refusal ?? { commonName, publicKey, text }
}

function checkKey(
  { asymmetricKeyType, asymmetricKeyDetails }: KeyObject,
  policy: IssuancePolicy = {},
): string | undefined {
  const { curves = DEFAULT_CURVES, allowRsa = false } = policy
  if (asymmetricKeyType === 'rsa') {
    if (!allowRsa) return 'An RSA key gets no certificate here; the policy asks for an elliptic curve.'
    return (asymmetricKeyDetails?.modulusLength ?? 0) < LEAST_RSA_BITS
      ? `An RSA key has at least ${LEAST_RSA_BITS} bits.`
      : undefined
  }
  const curve = CURVE_NAMES[asymmetricKeyDetails?.namedCurve ?? '']
  return curve === undefined || !(curves as readonly string[]).includes(curve)
    ? `The key must be on the curve ${curves.join(' or ')}.`
    : undefined
}
