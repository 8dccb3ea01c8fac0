import { createPrivateKey, type KeyObject, type X509Certificate } from 'node:crypto'
import { printableName } from '../distinguished-name.ts'
import { DpsError } from '../errors.ts'
import { isoTime } from '../iso-time.ts'
import { LruMap } from '../lru.ts'
import type { PemInput } from '../options/options.ts'
import { printable } from '../printable.ts'
import { checkRegistrationId, registrationIdFault, sameRegistrationId } from '../protocol/registration-id.ts'
import { type Credential, type CurveName, constant, type Identity, type TlsIdentity } from './credential.ts'
import { readCertificates, readPrivateKey, unreadable } from './pem.ts'
import { redacting, Secret } from './secret.ts'
import {
  checkOptionNames,
  checkPath,
  digestOf,
  fromFile,
  fromValue,
  oneOf,
  type Read,
  type Readable,
} from './source.ts'

/** Smallest RSA device key that is accepted, in bits. */
export const MIN_RSA_BITS = 2048

// Of one `load`, while the content keeps changing.
const MAX_READS = 3

// As many as there are secure contexts for them.
const MAX_IDENTITIES = 64

/** By all of their content: a credential that is made anew for every connection is not parsed anew. */
const identities = new LruMap<Identity>(MAX_IDENTITIES)

const CURVES: Readonly<Record<string, CurveName>> = {
  prime256v1: 'P-256',
  secp384r1: 'P-384',
  secp521r1: 'P-521',
}

// The object identifier 1.2.840.10045.1.1 in DER.
const PRIME_FIELD = Buffer.from('06072a8648ce3d0101', 'hex')

interface X509Base {
  /** The registration id the certificate is expected to carry, in any letter case. Default: not compared. */
  registrationId?: string
}

/** Exactly one of `cert` and `certFile`. */
type X509CertificateOptions =
  | {
      /**
       * The device certificate and after it, in order, the intermediates that issued it: PEM text or bytes, DER bytes, or
       * a list of those. Certificates up to the CA that the service knows are needed; a root does no harm. A function
       * is asked again for every connection.
       */
      cert: Readable<PemInput>
      certFile?: undefined
    }
  | {
      /** A file with the content of `cert`, PEM or DER; read again for every connection. */
      certFile: string | URL
      cert?: undefined
    }

/** `key`, `keyFile`, or `privateKeyEngine` with `privateKeyIdentifier`. */
type X509KeyOptions =
  | {
      /**
       * The private key of the device certificate: PEM (PKCS#8, PKCS#1, SEC1) or DER. EC P-256 is recommended; EC P-384,
       * EC P-521 and RSA of at least 2048 bits are accepted. A key that stays in a chip: the PEM of an OpenSSL provider that
       * is loaded (`PKCS#11 PROVIDER URI`, `TSS2 PRIVATE KEY`). A function is asked again for every connection.
       */
      key: Readable<string | Uint8Array>
      /** Decrypts the key. Default: the key is not encrypted. */
      passphrase?: string
      keyFile?: undefined
      privateKeyEngine?: undefined
      privateKeyIdentifier?: undefined
    }
  | {
      /** A file with the content of `key`; read again for every connection. */
      keyFile: string | URL
      /** Decrypts the key. Default: the key is not encrypted. */
      passphrase?: string
      key?: undefined
      privateKeyEngine?: undefined
      privateKeyIdentifier?: undefined
    }
  | {
      /**
       * The OpenSSL engine that has the key, as in `tls.createSecureContext`: the id that the OpenSSL configuration gives it.
       * The pair is then checked as the first connection is prepared; a key of another type, by the service alone.
       */
      privateKeyEngine: string
      /** The key's name within the engine. Never printed: a PKCS#11 URI may carry a PIN. */
      privateKeyIdentifier: string
      key?: undefined
      keyFile?: undefined
      passphrase?: undefined
    }

export type X509Options = X509Base & X509CertificateOptions & X509KeyOptions

/**
 * A device that authenticates with its X.509 certificate. The registration id is the CN of that certificate.
 *
 * `load` checks content once, when it is new, and throws a DpsError of phase `config`:
 *
 * - CREDENTIAL_UNREADABLE: a file, a PEM block or a key cannot be read; the message says what was given instead
 * - CREDENTIAL_CHAIN_BROKEN: a certificate was not issued by the one after it
 * - CREDENTIAL_KEY_MISMATCH: the key is not that of the first certificate
 * - CREDENTIAL_KEY_UNSUPPORTED: neither EC P-256, P-384, P-521 nor RSA of at least 2048 bits
 * - CREDENTIAL_NAME_MISMATCH: no CN, several, not a valid registration id, or not the `registrationId` given
 *
 * https://learn.microsoft.com/azure/iot-dps/concepts-x509-attestation
 *
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function x509(options: X509Options): Credential {
  checkOptionNames(options, 'x509', [
    'cert',
    'certFile',
    'key',
    'keyFile',
    'passphrase',
    'privateKeyEngine',
    'privateKeyIdentifier',
    'registrationId',
  ])
  const expectedId =
    options.registrationId === undefined ? undefined : checkRegistrationId(options.registrationId)
  const certField = oneOf(options, 'x509', ['cert', 'certFile'])
  const readCert: Read<PemInput> =
    certField === 'certFile'
      ? fromFile(checkPath(options.certFile, certField), certField)
      : fromValue(options.cert!, certField)
  const readKey = keySource(options)
  /** What is given as a value was copied, and stays as it is. */
  const fixed =
    ![options.cert, options.key].some((given) => typeof given === 'function') &&
    !options.certFile &&
    !options.keyFile
  let current: { readonly digest: string; readonly identity: Identity } | undefined

  return Object.freeze({
    load: async () => {
      if (fixed && current !== undefined) return current.identity
      let failed: { readonly digest: string; readonly error: unknown } | undefined
      for (let reads = 1; ; reads++) {
        const cert = checkMaterial(await readCert(), certField, true)
        const key = await readKey()
        const digest = digestOf([...partsOf(cert), ...key.parts.reveal()])
        if (current?.digest === digest) return current.identity
        if (failed?.digest === digest) throw failed.error
        try {
          const identity =
            identities.get(digest) ?? identify(readCertificates(cert, certField), certField, key)
          checkExpected(identity.registrationId, expectedId)
          // A key that was replaced is not kept for later.
          if (current !== undefined) identities.delete(current.digest)
          identities.set(digest, identity)
          current = { digest, identity }
          return identity
        } catch (error) {
          // Certificate and key are replaced one after the other: what was read in between is read again, and taken
          // for wrong once it stays the same.
          if (reads === MAX_READS) throw error
          failed = { digest, error }
        }
      }
    },
  })
}

/** A key as it was read, before anything is known about it. */
interface KeyMaterial {
  /** All of its content, for comparison. */
  readonly parts: Secret<readonly (string | Uint8Array)[]>
  /** What TLS needs of it, once it has been checked against the certificate it is used with. */
  pairWith(leaf: X509Certificate): TlsIdentity
}

function keySource(options: X509Options): Read<KeyMaterial> {
  const field = oneOf(options, 'x509', ['key', 'keyFile', 'privateKeyEngine'])
  const { passphrase, privateKeyEngine, privateKeyIdentifier } = options
  if (field === 'privateKeyEngine') {
    const engine = checkText(privateKeyEngine, 'privateKeyEngine')
    const identifier = checkText(privateKeyIdentifier, 'privateKeyIdentifier')
    if (passphrase !== undefined) {
      throw new DpsError(
        'OPTION_INVALID',
        'config',
        '`passphrase` belongs to `key` or `keyFile`, not to an engine.',
      )
    }
    const opaque: KeyMaterial = {
      parts: new Secret(['engine', engine, identifier]),
      pairWith: () => ({ privateKeyEngine: engine, privateKeyIdentifier: identifier }),
    }
    return async () => opaque
  }
  if (privateKeyIdentifier !== undefined) {
    throw new DpsError('OPTION_INVALID', 'config', '`privateKeyIdentifier` belongs to `privateKeyEngine`.')
  }
  if (passphrase !== undefined) checkText(passphrase, 'passphrase')
  const read: Read<string | Uint8Array> =
    field === 'keyFile' ? fromFile(checkPath(options.keyFile, field), field) : fromValue(options.key!, field)
  return async () => {
    const content = checkMaterial(await read(), field, false)
    return {
      parts: new Secret(passphrase === undefined ? [content] : [content, passphrase]),
      pairWith: (leaf) => pairOf(leaf, content, passphrase, field),
    }
  }
}

function pairOf(
  leaf: X509Certificate,
  content: string | Uint8Array,
  passphrase: string | undefined,
  field: string,
): TlsIdentity {
  const { pem, kind, label } = readPrivateKey(content, field)
  const isEncrypted = kind === 'encrypted private key'
  if (isEncrypted && passphrase === undefined) {
    throw unreadable(field, 'is encrypted: give its `passphrase`')
  }
  let key: KeyObject
  try {
    key = createPrivateKey(isEncrypted ? { key: pem, passphrase: passphrase! } : pem)
  } catch (cause) {
    // OpenSSL reports a wrong passphrase as any of several errors: decryption with the wrong key may look well padded.
    const fault = isEncrypted
      ? 'could not be decrypted: the `passphrase` is wrong or the file is damaged'
      : kind === 'other'
        ? `holds a ${label} block, which no OpenSSL provider that is loaded could open: look at \`--openssl-config\`, the token and its PIN`
        : `holds a ${label} block whose content is not a private key that OpenSSL can read`
    throw unreadable(field, fault, cause)
  }
  if (!leaf.checkPrivateKey(key)) {
    throw new DpsError(
      'CREDENTIAL_KEY_MISMATCH',
      'config',
      `\`${field}\` is not the private key of the device certificate (${nameOf(leaf)}).`,
    )
  }
  return isEncrypted ? { key: pem, passphrase: passphrase! } : { key: pem }
}

function identify(chain: readonly X509Certificate[], field: string, key: KeyMaterial): Identity {
  const leaf = chain[0]!
  checkChain(chain, field)
  const keyCurve = checkKeyType(leaf)
  const keyOptions = key.pairWith(leaf)
  const registrationId = registrationIdOf(leaf)
  const periods = validityOf(chain, field)
  const opaque = keyOptions.privateKeyEngine === undefined ? [] : key.parts.reveal()
  const cert = chain.map((certificate) => certificate.toString()).join('')
  return constant({
    registrationId,
    // The key is that of the leaf, so the certificates stand for it, unless it is opaque.
    fingerprint: digestOf(['x509', ...chain.map((certificate) => certificate.raw), ...opaque]),
    tls: redacting<TlsIdentity>({ cert, ...keyOptions }, ['key', 'passphrase', 'privateKeyIdentifier']),
    ...(keyCurve === undefined ? {} : { keyCurve }),
    checkDates: (nowMs: number) => checkDates(periods, nowMs),
    // The handshake authenticates.
    token: async () => undefined,
  })
}

function checkChain(chain: readonly X509Certificate[], field: string): void {
  for (let i = 1; i < chain.length; i++) {
    const subject = chain[i - 1]!
    const issuer = chain[i]!
    if (isIssuedBy(subject, issuer)) continue
    const numbered = `Certificate ${i} of \`${field}\` (${nameOf(subject)}) was not issued by certificate ${i + 1} (${nameOf(issuer)})`
    throw new DpsError(
      'CREDENTIAL_CHAIN_BROKEN',
      'config',
      `${numbered}: ${whyNotIssuedBy(subject, issuer)}.`,
    )
  }
}

function whyNotIssuedBy(subject: X509Certificate, issuer: X509Certificate): string {
  if (isIssuedBy(issuer, subject)) return 'it is the other way round, so the chain is in the wrong order'
  if (subject.issuer !== issuer.subject) return `its issuer is ${nameOf({ subject: subject.issuer })}`
  if (isSignedBy(subject, issuer))
    return 'the signature fits, but the second may not sign certificates or has another key id'
  return 'the names agree, but the signature was made with another key'
}

function isIssuedBy(subject: X509Certificate, issuer: X509Certificate): boolean {
  return subject.checkIssued(issuer) && isSignedBy(subject, issuer)
}

function isSignedBy(subject: X509Certificate, issuer: X509Certificate): boolean {
  try {
    return subject.verify(issuer.publicKey)
  } catch {
    // The issuer's key is of another kind than the signature, or of one that OpenSSL does not know.
    return false
  }
}

function checkKeyType(leaf: X509Certificate): CurveName | undefined {
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
  if (namedCurve !== undefined && Object.hasOwn(CURVES, namedCurve)) return CURVES[namedCurve]
  throw unsupportedKey(`has an EC key on the curve ${namedCurve}; it must be P-256, P-384 or P-521`)
}

function unsupportedKey(fault: string, cause?: unknown): DpsError {
  const details = cause === undefined ? {} : { cause }
  return new DpsError('CREDENTIAL_KEY_UNSUPPORTED', 'config', `The device certificate ${fault}.`, details)
}

function registrationIdOf(leaf: X509Certificate): string {
  // Not from `leaf.subject`: that is text in which a value may imitate the separator or the next attribute.
  const legacy = leaf.toLegacyObject() as ReturnType<X509Certificate['toLegacyObject']> | null | undefined
  // An OpenSSL engine that takes RSA upon itself may make Node give nothing.
  if (!legacy) throw unsupportedKey('cannot be taken apart by OpenSSL with the engine that is loaded')
  const names = ([] as string[]).concat(legacy.subject?.CN ?? [])
  const name = names[0]
  if (name === undefined || names.length > 1) {
    const count = name === undefined ? 'no CN' : `${names.length} CNs`
    throw nameMismatch(`The device certificate (${nameOf(leaf)}) has ${count}; it must have exactly one.`)
  }
  const fault = registrationIdFault(name)
  if (fault !== undefined) {
    throw nameMismatch(
      `The CN of the device certificate is the registration id, and ${JSON.stringify(printable(name))} ${fault}.`,
    )
  }
  return name
}

function checkExpected(name: string, expected: string | undefined): void {
  if (expected === undefined || sameRegistrationId(expected, name)) return
  throw new DpsError(
    'CREDENTIAL_NAME_MISMATCH',
    'config',
    `\`registrationId\` is "${expected}" but the CN of the device certificate is "${name}".`,
  )
}

function nameMismatch(message: string): DpsError {
  return new DpsError('CREDENTIAL_NAME_MISMATCH', 'config', message, {
    hint: 'Issue a device certificate whose subject has one CN, and in it the registration id.',
  })
}

interface Period {
  /** Which certificate, for a person. */
  readonly owner: string
  readonly fromMs: number
  readonly untilMs: number
}

function validityOf(chain: readonly X509Certificate[], field: string): readonly Period[] {
  return chain.flatMap((certificate, i) => {
    // A root is compared, not verified: its dates are the service's business.
    if (i > 0 && isIssuedBy(certificate, certificate)) return []
    const owner = `${i === 0 ? 'the device certificate' : 'the intermediate certificate'} (${nameOf(certificate)})`
    const fromMs = Date.parse(certificate.validFrom)
    const untilMs = Date.parse(certificate.validTo)
    if (Number.isNaN(fromMs) || Number.isNaN(untilMs)) {
      throw unreadable(field, `has no readable dates in ${owner}`)
    }
    return [{ owner, fromMs, untilMs }]
  })
}

function checkDates(periods: readonly Period[], nowMs: number): void {
  for (const { owner, fromMs, untilMs } of periods) {
    if (nowMs >= fromMs && nowMs <= untilMs) continue
    const code = nowMs > untilMs ? 'DEVICE_CERTIFICATE_EXPIRED' : 'DEVICE_CERTIFICATE_NOT_YET_VALID'
    throw new DpsError(
      code,
      'clock',
      `By this device's clock it is ${isoTime(nowMs)}, and ${owner} is valid from ${isoTime(fromMs)} to ${isoTime(untilMs)}.`,
    )
  }
}

function nameOf({ subject }: { subject?: string }): string {
  return subject === undefined || subject === '' ? 'no subject' : printableName(subject)
}

function partsOf(input: PemInput): readonly (string | Uint8Array)[] {
  return typeof input === 'string' || input instanceof Uint8Array ? [input] : [`${input.length}`, ...input]
}

function checkText(value: unknown, field: string): string {
  if (typeof value === 'string' && value !== '') return value
  throw new DpsError('OPTION_INVALID', 'config', `\`${field}\` must be a string that is not empty.`)
}

function checkMaterial<T>(value: T, field: string, listAllowed: boolean): T {
  const isOne = (item: unknown) => typeof item === 'string' || item instanceof Uint8Array
  if (isOne(value) || (listAllowed && Array.isArray(value) && value.every(isOne))) return value
  const found = value === null ? 'null' : Array.isArray(value) ? 'a list' : typeof value
  throw unreadable(field, `must be text or bytes${listAllowed ? ', or a list of those' : ''}; it is ${found}`)
}
