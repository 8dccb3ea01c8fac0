import { createPrivateKey, type KeyObject, type X509Certificate } from 'node:crypto'
import { DpsError } from '../errors.ts'
import { isoTime } from '../iso-time.ts'
import { LruMap } from '../lru.ts'
import type { PemInput } from '../options/options.ts'
import { printable } from '../printable.ts'
import { checkRegistrationId, registrationIdFault, sameRegistrationId } from '../protocol/registration-id.ts'
import { checkKeyType, commonNamesOf, hasP256Point, isIssuedBy, nameOf } from './certificate.ts'
import type { OrderedChain } from './chain.ts'
import { type Credential, constant, type Identity, type TlsIdentity } from './credential.ts'
import { judge, madeOf } from './material.ts'
import { p256PointOf } from './p256.ts'
import { checkIterations, MAX_ITERATIONS, readCertificates, readPrivateKey, unreadable } from './pem.ts'
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

// Of one `load`, while the content keeps changing.
const MAX_READS = 3

// As many as there are secure contexts for them.
const MAX_IDENTITIES = 64

/** By all of their content: a credential that is made anew for every connection is not parsed anew. */
const identities = new LruMap<Identity>(MAX_IDENTITIES)

/** Exactly one of `cert` and `certFile`. */
export type X509CertificateOptions =
  | {
      /**
       * The device certificate and the intermediates that issued it: PEM text or bytes, DER bytes, or a list of those.
       * Certificates up to the CA that the service knows are needed; a root does no harm. They may come in any order and
       * more than once; what is put right is reported. A function is asked again for every connection.
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
export type X509KeyOptions =
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

/** Certificates and key in one: `pkcs12` or `pkcs12File`, in place of all others. */
export type X509Pkcs12Options = (
  | {
      /**
       * A PKCS#12 bundle (.pfx, .p12) with one private key, its certificate and the intermediates: bytes, or a function that
       * is asked again for every connection.
       */
      pkcs12: Readable<Uint8Array>
      pkcs12File?: undefined
    }
  | {
      /** A file with the content of `pkcs12`, at most 1 MiB; read again for every connection. */
      pkcs12File: string | URL
      pkcs12?: undefined
    }
) & {
  /** Of the bundle. Default: it has none. */
  passphrase?: string
} & { [Name in keyof (X509CertificateOptions & X509KeyOptions) as Exclude<Name, 'passphrase'>]?: undefined }

export type X509Options = {
  /** The registration id the certificate is expected to carry, in any letter case. Default: not compared. */
  registrationId?: string
} & (
  | (X509CertificateOptions & X509KeyOptions & { pkcs12?: undefined; pkcs12File?: undefined })
  | X509Pkcs12Options
)

/**
 * A device that authenticates with its X.509 certificate. The registration id is the CN of that certificate.
 *
 * `load` checks content once, when it is new, and throws a DpsError of phase `config`:
 *
 * - CREDENTIAL_UNREADABLE: a file, a PEM block or a key cannot be read; the message says what was given instead
 * - CREDENTIAL_CHAIN_BROKEN: CA certificates are given, and none of them, or not the one of the right name, is the issuer
 * - CREDENTIAL_KEY_MISMATCH: the key is that of no certificate
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
    'pkcs12',
    'pkcs12File',
    'registrationId',
  ])
  const expectedId =
    options.registrationId === undefined ? undefined : checkRegistrationId(options.registrationId)
  const isBundle = options.pkcs12 !== undefined || options.pkcs12File !== undefined
  const read = isBundle ? bundleSource(options) : pairSource(options)
  /** What is given as a value was copied, and stays as it is. */
  const fixed =
    ![options.cert, options.key, options.pkcs12].some((given) => typeof given === 'function') &&
    !options.certFile &&
    !options.keyFile &&
    !options.pkcs12File
  let current: { readonly digest: string; readonly identity: Identity } | undefined

  const credential = Object.freeze({
    load: async () => {
      if (fixed && current !== undefined) return current.identity
      let failed: { readonly digest: string; readonly error: unknown } | undefined
      for (let reads = 1; ; reads++) {
        const material = await read()
        const digest = digestOf(material.parts.reveal())
        if (current?.digest === digest) return current.identity
        if (failed?.digest === digest) throw failed.error
        try {
          const identity = identities.get(digest) ?? (await identify(await material.open()))
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
  return madeOf(credential, 'x509', options)
}

/** What was read, before anything is known about it. */
interface Material {
  /** All of its content, for comparison. */
  readonly parts: Secret<readonly (string | Uint8Array)[]>
  open(): Promise<Contents> | Contents
}

interface Contents {
  /** In the order in which they were given. */
  readonly certificates: readonly X509Certificate[]
  /** The option that they came from. */
  readonly field: string
  readonly key: DeviceKey
}

interface DeviceKey {
  readonly field: string
  /** Whether it is the key of a certificate; absent where only the chip could tell. */
  readonly fits?: (certificate: X509Certificate) => boolean
  readonly tls: TlsIdentity
}

/** A key as it was read. */
interface KeyMaterial {
  readonly parts: readonly (string | Uint8Array)[]
  open(): DeviceKey
}

function bundleSource(options: X509Options): Read<Material> {
  const field = oneOf(options, 'x509', ['pkcs12', 'pkcs12File'])
  const others = ['cert', 'certFile', 'key', 'keyFile', 'privateKeyEngine', 'privateKeyIdentifier'] as const
  const other = others.find((name) => options[name] !== undefined)
  if (other !== undefined)
    throw invalid(`\`${other}\` and \`${field}\` exclude each other: the bundle has both.`)
  const { passphrase, pkcs12, pkcs12File } = options
  if (passphrase !== undefined && typeof passphrase !== 'string')
    throw invalid('`passphrase` must be a string.')
  const read: Read<Uint8Array> =
    field === 'pkcs12File' ? fromFile(checkPath(pkcs12File, field), field) : fromValue(pkcs12!, field)
  return async () => {
    const bytes = await read()
    if (!(bytes instanceof Uint8Array)) throw unreadable(field, 'must be bytes: a PKCS#12 bundle is no text')
    return {
      parts: new Secret(['pkcs12', bytes, passphrase ?? '']),
      open: async () => {
        const { readPkcs12 } = await import('./rare.ts')
        const { certificates, key } = await readPkcs12(bytes, passphrase, field, MAX_ITERATIONS)
        return { certificates, field, key: deviceKeyOf(key.reveal(), passphrase ?? '', field) }
      },
    }
  }
}

function pairSource(options: X509Options): Read<Material> {
  const field = oneOf(options, 'x509', ['cert', 'certFile'])
  const readCert: Read<PemInput> =
    field === 'certFile'
      ? fromFile(checkPath(options.certFile, field), field)
      : fromValue(options.cert!, field)
  const readKey = keySource(options)
  return async () => {
    const cert = checkMaterial(await readCert(), field, true)
    const key = await readKey()
    return {
      parts: new Secret([...partsOf(cert), ...key.parts]),
      open: () => ({ certificates: readCertificates(cert, field), field, key: key.open() }),
    }
  }
}

function keySource(options: X509Options): Read<KeyMaterial> {
  const field = oneOf(options, 'x509', ['key', 'keyFile', 'privateKeyEngine'])
  const { passphrase, privateKeyEngine, privateKeyIdentifier } = options
  if (field === 'privateKeyEngine') {
    const engine = checkText(privateKeyEngine, 'privateKeyEngine')
    const identifier = checkText(privateKeyIdentifier, 'privateKeyIdentifier')
    if (passphrase !== undefined) {
      throw invalid('`passphrase` belongs to `key` or `keyFile`, not to an engine.')
    }
    const opaque: KeyMaterial = {
      parts: ['engine', engine, identifier],
      open: () => ({ field, tls: { privateKeyEngine: engine, privateKeyIdentifier: identifier } }),
    }
    return async () => opaque
  }
  if (privateKeyIdentifier !== undefined) {
    throw invalid('`privateKeyIdentifier` belongs to `privateKeyEngine`.')
  }
  if (passphrase !== undefined) checkText(passphrase, 'passphrase')
  const read: Read<string | Uint8Array> =
    field === 'keyFile' ? fromFile(checkPath(options.keyFile, field), field) : fromValue(options.key!, field)
  return async () => {
    const content = checkMaterial(await read(), field, false)
    return {
      parts: passphrase === undefined ? [content] : [content, passphrase],
      open: () => deviceKeyOf(content, passphrase, field),
    }
  }
}

function deviceKeyOf(content: string | Uint8Array, passphrase: string | undefined, field: string): DeviceKey {
  const { pem, kind, label } = readPrivateKey(content, field)
  const isEncrypted = kind === 'encrypted private key'
  if (isEncrypted && passphrase === undefined) {
    throw unreadable(field, 'is encrypted: give its `passphrase`')
  }
  if (label === 'ENCRYPTED PRIVATE KEY') checkIterations(pem, field)
  // OpenSSL 3.0 takes half as many instructions as a handshake to find out of what kind a key is, and again for the context.
  const point = isEncrypted ? undefined : p256PointOf(pem)
  let opened: KeyObject | undefined
  const key = (): KeyObject => {
    try {
      opened ??= createPrivateKey(isEncrypted ? { key: pem, passphrase: passphrase! } : pem)
      return opened
    } catch (cause) {
      // OpenSSL reports a wrong passphrase as any of several errors: decryption with the wrong key may look well padded.
      const fault = isEncrypted
        ? 'could not be decrypted: the `passphrase` is wrong or the file is damaged'
        : kind === 'other'
          ? `holds a ${label} block, which no OpenSSL provider that is loaded could open: look at \`--openssl-config\`, the token and its PIN`
          : `holds a ${label} block whose content is not a private key that OpenSSL can read`
      throw unreadable(field, fault, cause)
    }
  }
  if (point === undefined) key()
  return {
    field,
    fits: (certificate) =>
      (point !== undefined && hasP256Point(certificate, point)) || certificate.checkPrivateKey(key()),
    tls: isEncrypted ? { key: pem, passphrase: passphrase! } : { key: pem },
  }
}

async function chainOf({ certificates, field, key }: Contents): Promise<OrderedChain> {
  const inOrder = certificates.every((issuer, at) => {
    const subject = certificates[at - 1]
    if (subject === undefined) return key.fits?.(issuer) ?? true
    return isIssuedBy(subject, issuer) && !subject.raw.equals(issuer.raw)
  })
  if (inOrder) return { chain: certificates, notices: [] }
  const { orderChain } = await import('./rare.ts')
  return orderChain(certificates, key.fits, field, key.field)
}

async function identify(contents: Contents): Promise<Identity> {
  const { field, key } = contents
  const { chain, notices } = await chainOf(contents)
  const leaf = chain[0]!
  const keyCurve = checkKeyType(leaf)
  const registrationId = registrationIdOf(leaf)
  const periods = validityOf(chain, field)
  const { privateKeyEngine, privateKeyIdentifier } = key.tls
  const opaque = privateKeyEngine === undefined ? [] : ['engine', privateKeyEngine, privateKeyIdentifier!]
  const cert = chain.map((certificate) => certificate.toString()).join('')
  const identity: Identity = constant({
    registrationId,
    // The key is that of the leaf, so the certificates stand for it, unless it is opaque.
    fingerprint: digestOf(['x509', ...chain.map((certificate) => certificate.raw), ...opaque]),
    tls: redacting<TlsIdentity>({ cert, ...key.tls }, ['key', 'passphrase', 'privateKeyIdentifier']),
    ...(keyCurve === undefined ? {} : { keyCurve }),
    ...(notices.length === 0 ? {} : { notices: Object.freeze(notices) }),
    validUntilMs: Math.min(...periods.map(({ untilMs }) => untilMs)),
    checkDates: (nowMs: number) => checkDates(periods, nowMs),
    // The handshake authenticates.
    token: async () => undefined,
  })
  return judge(identity, chain, periods)
}

function registrationIdOf(leaf: X509Certificate): string {
  const names = commonNamesOf(leaf)
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

function partsOf(input: PemInput): readonly (string | Uint8Array)[] {
  return typeof input === 'string' || input instanceof Uint8Array ? [input] : [`${input.length}`, ...input]
}

function invalid(message: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message)
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
