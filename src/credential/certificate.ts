import type { KeyObject, X509Certificate } from 'node:crypto'
import { printableName } from '../distinguished-name.ts'
import { DpsError } from '../errors.ts'
import type { CurveName } from './credential.ts'
import { childrenOf, type Tlv } from './pem.ts'

/** Smallest RSA device key that is accepted, in bits. */
export const MIN_RSA_BITS = 2048

/** What OpenSSL calls the curves that a device key may be on. */
export const KEY_CURVES: Readonly<Record<string, CurveName>> = {
  prime256v1: 'P-256',
  secp384r1: 'P-384',
  secp521r1: 'P-521',
}

/** Signature algorithms over a digest that can be forged: their object identifiers in DER, in hex, and the digest. */
export const WEAK_SIGNATURES: Readonly<Record<string, string>> = {
  '2a864886f70d010102': 'MD2',
  '2a864886f70d010104': 'MD5',
  '2a864886f70d010105': 'SHA-1',
  // 1.3.14.3.2.29, an older name of the one before.
  '2b0e03021d': 'SHA-1',
  '2a8648ce3d0401': 'SHA-1',
}

// The object identifier 1.2.840.10045.1.1 in DER.
const PRIME_FIELD = Buffer.from('06072a8648ce3d0101', 'hex')

export function isIssuedBy(subject: X509Certificate, issuer: X509Certificate): boolean {
  return subject.checkIssued(issuer) && isSignedBy(subject, issuer)
}

export function isSignedBy(subject: X509Certificate, issuer: X509Certificate): boolean {
  try {
    return subject.verify(issuer.publicKey)
  } catch {
    // The issuer's key is of another kind than the signature, or of one that OpenSSL does not know.
    return false
  }
}

export function nameOf({ subject }: { subject?: string }): string {
  return subject === undefined || subject === '' ? 'no subject' : printableName(subject)
}

const COMMON_NAME = Buffer.from('550403', 'hex')
const VERSION = 0xa0

/**
 * Every CN of the subject. Not from its text, in which a value may imitate the separator or the next attribute, and not from
 * `toLegacyObject`: with a key that OpenSSL cannot read, or one on a curve that NIST has no name for, Node 24 and 26 end
 * there without a word.
 */
export function commonNamesOf(certificate: X509Certificate): readonly string[] {
  const [, , , , subject] = fieldsOf(certificate)
  return childrenOf(subject)
    .flatMap(childrenOf)
    .map(childrenOf)
    .flatMap(([type, value]) => (value && type?.content.equals(COMMON_NAME) ? textOf(value) : []))
}

/** RFC 5280 4.1: from the serial number on. The version is left out of the first one. */
function fieldsOf({ raw }: X509Certificate): readonly Tlv[] {
  const fields = childrenOf(childrenOf(childrenOf({ content: raw })[0])[0])
  return fields[0]?.tag === VERSION ? fields.slice(1) : fields
}

/** What precedes the point in the public key of a certificate (RFC 5480): id-ecPublicKey, P-256, a string of bits. */
const P256_PUBLIC_KEY = Buffer.from('301306072a8648ce3d020106082a8648ce3d030107034200', 'hex')

/** Whether its key is that point of P-256, byte for byte; false too where the same point is written in another way. */
export function hasP256Point(certificate: X509Certificate, point: Buffer): boolean {
  const [, , , , , publicKey] = fieldsOf(certificate)
  return publicKey?.content.equals(Buffer.concat([P256_PUBLIC_KEY, point])) ?? false
}

/** X.680 8.4: UTF8String, BMPString, UniversalString; all others have a byte for each character. */
function textOf({ tag, content }: Tlv): string {
  if (tag === 0x0c) return content.toString('utf8')
  if (tag === 0x1e)
    return Buffer.from(content.subarray(0, content.length & ~1))
      .swap16()
      .toString('utf16le')
  if (tag !== 0x1c) return content.toString('latin1')
  const points = Array.from({ length: content.length >> 2 }, (_, i) => content.readUInt32BE(i * 4))
  return points.map((point) => (point > 0x10ffff ? '\ufffd' : String.fromCodePoint(point))).join('')
}

/** clientAuth and anyExtendedKeyUsage. */
const CLIENT_AUTHENTICATION = ['1.3.6.1.5.5.7.3.2', '2.5.29.37.0']

/** Whether extendedKeyUsage has it authenticate clients; true where it is absent. */
export function mayAuthenticate({ keyUsage }: X509Certificate): boolean {
  return keyUsage?.some((purpose) => CLIENT_AUTHENTICATION.includes(purpose)) ?? true
}

const MAX_NOTICE_MS = 30 * 86_400_000

/** From when a certificate is said to end soon: 30 days before, and of a short life its last third. */
export function renewAtMs(fromMs: number, untilMs: number): number {
  return untilMs - Math.min(MAX_NOTICE_MS, (untilMs - fromMs) / 3)
}

/**
 * The curve of the device key, where it is one of a curve.
 *
 * @throws DpsError CREDENTIAL_KEY_UNSUPPORTED, phase `config`
 */
export function checkKeyType(leaf: X509Certificate): CurveName | undefined {
  let key: KeyObject
  try {
    key = leaf.publicKey
  } catch (cause) {
    throw unsupportedKey('has a public key of a kind that OpenSSL does not know', cause)
  }
  const { namedCurve, modulusLength = 0 } = key.asymmetricKeyDetails ?? {}
  if (key.asymmetricKeyType === 'rsa') {
    if (modulusLength >= MIN_RSA_BITS) return undefined
    throw unsupportedKey(`has an RSA key of ${modulusLength} bits; at least ${MIN_RSA_BITS} are required`)
  }
  if (key.asymmetricKeyType !== 'ec') {
    throw unsupportedKey(`has a key of type ${key.asymmetricKeyType}; it must be EC or RSA`)
  }
  // RFC 5480 2.1.1 forbids explicit parameters; OpenSSL reads them, and even finds the name of the curve they describe.
  // A certificate without those bytes anywhere need not be taken apart.
  if (leaf.raw.includes(PRIME_FIELD) && key.export({ type: 'spki', format: 'der' }).includes(PRIME_FIELD)) {
    throw unsupportedKey('has an EC key with explicit parameters; it must name its curve')
  }
  if (namedCurve !== undefined && Object.hasOwn(KEY_CURVES, namedCurve)) return KEY_CURVES[namedCurve]
  throw unsupportedKey(`has an EC key on the curve ${namedCurve}; it must be P-256, P-384 or P-521`)
}

function unsupportedKey(fault: string, cause?: unknown): DpsError {
  const details = cause === undefined ? {} : { cause }
  return new DpsError('CREDENTIAL_KEY_UNSUPPORTED', 'config', `The device certificate ${fault}.`, details)
}
