import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPair,
  type KeyObject,
  randomBytes,
  sign,
  X509Certificate,
} from 'node:crypto'
import { isIP } from 'node:net'
import { promisify } from 'node:util'
import type { asn1 as Asn1 } from 'node-forge'
import { type Clock, systemClock } from '../clock.ts'
import { DpsError } from '../errors.ts'

/** Kind of a generated key pair. */
export type CertificateKeyType = 'ec-p256' | 'ec-p384' | 'rsa-2048'

/** Digest of a certificate's signature. `sha1` and `md5` exist so that a test can present what must be refused. */
export type SignatureDigest = 'sha256' | 'sha384' | 'sha1' | 'md5'

/** RFC 5280, section 4.2.1.3. */
export type KeyUsageName = 'digitalSignature' | 'keyEncipherment' | 'keyAgreement' | 'keyCertSign' | 'cRLSign'

/** RFC 5280, section 4.2.1.12. */
export type ExtendedKeyUsageName = 'serverAuth' | 'clientAuth' | 'codeSigning'

/** A certificate with the right to sign others, as PEM. An {@link IssuedCertificate} is one. */
export interface CertificateIssuer {
  readonly certPem: string
  /** PKCS#8 PEM. */
  readonly keyPem: string
  /** The issuer followed by its own issuers, without the root; what a subject has to present after itself. */
  readonly chainPem?: string
}

export interface SignedCertificate {
  readonly certPem: string
  /** The certificate, then every issuer of it that is known and is no root: what belongs in a TLS `cert` option. */
  readonly chainPem: string
  /** SHA-256 of the DER, upper-case hex with colons, as `node:crypto` prints it. */
  readonly fingerprint256: string
}

export interface IssuedCertificate extends SignedCertificate {
  /** PKCS#8 PEM. */
  readonly keyPem: string
}

export interface IssueCertificateOptions {
  /** The subject's common name, up to 64 characters (X.520). */
  subject: string
  /** Who signs. Default: the certificate signs itself. */
  issuer?: CertificateIssuer
  /** Kind of key to generate. Default `'ec-p256'`. */
  keyType?: CertificateKeyType
  /** An existing private key, PKCS#8 PEM, in place of a new one: for renewal and cross-signing. */
  key?: string
  /** BasicConstraints CA flag; also decides the default key usage. Default false. */
  ca?: boolean
  /** BasicConstraints path length. Default: none. */
  pathLength?: number
  /** Subject alternative names: DNS names (wildcards included) and IP addresses. Default: none. */
  sans?: readonly string[]
  /** Default: 24 hours before the clock's time, for devices whose clock is behind. */
  notBefore?: Date
  /** Default: 365 days after the clock's time. */
  notAfter?: Date
  /** Default: keyCertSign and cRLSign for a CA, digitalSignature (and keyEncipherment with RSA) for a leaf. */
  keyUsage?: readonly KeyUsageName[]
  /** Extended key usage. Default: the extension is absent. */
  eku?: readonly ExtendedKeyUsageName[]
  /** Default `'sha256'`. */
  digest?: SignatureDigest
  /** Where "now" comes from when a date is left out. Default: the system's clock. */
  clock?: Clock
}

/** A throw-away public key infrastructure. It may be created once and given to several emulators. */
export interface Pki {
  /** Two independent RSA-2048 roots. The server's chain ends in the first. */
  readonly roots: readonly [IssuedCertificate, IssuedCertificate]
  /** RSA-2048, issued by the first root. */
  readonly serverIntermediate: IssuedCertificate
  /** RSA-2048; its `chainPem` (leaf and intermediate, without the root) is what the emulator presents. */
  readonly server: IssuedCertificate
  /** EC P-256 root for devices: the one to name in an X.509 enrollment group. */
  readonly deviceRoot: IssuedCertificate
  /** EC P-256, issued by `deviceRoot`; signs device certificates. */
  readonly deviceIntermediate: IssuedCertificate
}

export interface CreatePkiOptions {
  /** Where the dates of the certificates come from. Default: the system's clock. */
  clock?: Clock
}

const DAY_MS = 86_400_000
const BACKDATE_MS = DAY_MS
const LEAF_LIFETIME_MS = 365 * DAY_MS
const ROOT_LIFETIME_MS = 10 * LEAF_LIFETIME_MS

/** What the certificate of the emulator's server holds. */
export const SERVER_NAMES: readonly string[] = [
  '*.azure-devices-provisioning.net',
  'global.azure-devices-provisioning.net',
  '*.azure-devices.net',
  'localhost',
  '127.0.0.1',
  '::1',
]

export const OID = {
  commonName: '2.5.4.3',
  subjectKeyIdentifier: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  authorityKeyIdentifier: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
}

const EKU_OID: Readonly<Record<ExtendedKeyUsageName, string>> = {
  serverAuth: '1.3.6.1.5.5.7.3.1',
  clientAuth: '1.3.6.1.5.5.7.3.2',
  codeSigning: '1.3.6.1.5.5.7.3.3',
}

const KEY_USAGE_BIT: Readonly<Record<KeyUsageName, number>> = {
  digitalSignature: 0x80,
  keyEncipherment: 0x20,
  keyAgreement: 0x08,
  keyCertSign: 0x04,
  cRLSign: 0x02,
}

const SIGNATURE_OID: Readonly<Record<'rsa' | 'ec', Partial<Record<SignatureDigest, string>>>> = {
  rsa: {
    md5: '1.2.840.113549.1.1.4',
    sha1: '1.2.840.113549.1.1.5',
    sha256: '1.2.840.113549.1.1.11',
    sha384: '1.2.840.113549.1.1.12',
  },
  ec: { sha1: '1.2.840.10045.4.1', sha256: '1.2.840.10045.4.3.2', sha384: '1.2.840.10045.4.3.3' },
}

const generate = promisify(generateKeyPair)

async function newKey(type: CertificateKeyType): Promise<KeyObject> {
  switch (type) {
    case 'ec-p256':
      return (await generate('ec', { namedCurve: 'P-256' })).privateKey
    case 'ec-p384':
      return (await generate('ec', { namedCurve: 'P-384' })).privateKey
    case 'rsa-2048':
      return (await generate('rsa', { modulusLength: 2048 })).privateKey
    default:
      throw new DpsError(
        'OPTION_INVALID',
        'config',
        "`keyType` must be one of 'ec-p256', 'ec-p384' and 'rsa-2048'",
      )
  }
}

/** DER by name, on top of node-forge's ASN.1 codec, whose byte strings are Latin-1 text. */
export class Der {
  readonly #asn1: typeof Asn1

  constructor(asn1: typeof Asn1) {
    this.#asn1 = asn1
  }

  #primitive(type: Asn1.Type, bytes: string): Asn1.Asn1 {
    return this.#asn1.create(this.#asn1.Class.UNIVERSAL, type, false, bytes)
  }

  sequence(...items: Asn1.Asn1[]): Asn1.Asn1 {
    return this.#asn1.create(this.#asn1.Class.UNIVERSAL, this.#asn1.Type.SEQUENCE, true, items)
  }

  explicit(tag: number, item: Asn1.Asn1): Asn1.Asn1 {
    return this.#asn1.create(this.#asn1.Class.CONTEXT_SPECIFIC, tag, true, [item])
  }

  implicit(tag: number, bytes: string): Asn1.Asn1 {
    return this.#asn1.create(this.#asn1.Class.CONTEXT_SPECIFIC, tag, false, bytes)
  }

  integer(bytes: Buffer): Asn1.Asn1 {
    return this.#primitive(this.#asn1.Type.INTEGER, bytes.toString('latin1'))
  }

  boolean(value: boolean): Asn1.Asn1 {
    return this.#primitive(this.#asn1.Type.BOOLEAN, value ? '\xff' : '\0')
  }

  oid(dotted: string): Asn1.Asn1 {
    return this.#primitive(this.#asn1.Type.OID, this.#asn1.oidToDer(dotted).getBytes())
  }

  null(): Asn1.Asn1 {
    return this.#primitive(this.#asn1.Type.NULL, '')
  }

  octets(bytes: string): Asn1.Asn1 {
    return this.#primitive(this.#asn1.Type.OCTETSTRING, bytes)
  }

  /** `unused`: number of unused bits at the end. */
  bits(bytes: string, unused = 0): Asn1.Asn1 {
    return this.#primitive(this.#asn1.Type.BITSTRING, String.fromCharCode(unused) + bytes)
  }

  time(date: Date): Asn1.Asn1 {
    // RFC 5280, section 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050.
    return date.getUTCFullYear() < 2050
      ? this.#primitive(this.#asn1.Type.UTCTIME, this.#asn1.dateToUtcTime(date) as unknown as string)
      : this.#primitive(
          this.#asn1.Type.GENERALIZEDTIME,
          this.#asn1.dateToGeneralizedTime(date) as unknown as string,
        )
  }

  name(commonName: string): Asn1.Asn1 {
    const text = this.#primitive(this.#asn1.Type.UTF8, Buffer.from(commonName, 'utf8').toString('latin1'))
    const attribute = this.sequence(this.oid(OID.commonName), text)
    const set = this.#asn1.create(this.#asn1.Class.UNIVERSAL, this.#asn1.Type.SET, true, [attribute])
    return this.sequence(set)
  }

  extension(oid: string, critical: boolean, value: Asn1.Asn1): Asn1.Asn1 {
    const parts = [this.oid(oid), this.octets(this.encode(value).toString('latin1'))]
    if (critical) parts.splice(1, 0, this.boolean(true))
    return this.sequence(...parts)
  }

  encode(item: Asn1.Asn1): Buffer {
    return Buffer.from(this.#asn1.toDer(item).getBytes(), 'latin1')
  }

  /** Dotted numbers of an object identifier. */
  dotted(item: Asn1.Asn1 | undefined): string {
    return this.#asn1.derToOid(String(item?.value))
  }

  decode(bytes: Buffer): Asn1.Asn1 {
    return this.#asn1.fromDer(bytes.toString('latin1'))
  }
}

// Loaded on first use: a program that only imports the emulator's types or options pays nothing.
let codec: Promise<Der> | undefined
export const der = (): Promise<Der> => {
  codec ??= import('node-forge/lib/asn1.js').then((module) => new Der(module.default))
  return codec
}

export const children = (item: Asn1.Asn1 | undefined): Asn1.Asn1[] =>
  Array.isArray(item?.value) ? (item.value as Asn1.Asn1[]) : []

/** What a bit string holds, also where the codec has taken it for DER of its own. */
export function bitsOf(bits: Asn1.Asn1 | undefined): Buffer {
  const bytes = (bits as { bitStringContents?: string } | undefined)?.bitStringContents ?? bits?.value
  // The first byte counts the unused bits.
  return Buffer.from(String(bytes), 'latin1').subarray(1)
}

/** RFC 5280, section 4.2.1.2, method 1: SHA-1 of the subject public key's bit string. */
const keyIdentifier = (spki: Asn1.Asn1): string =>
  createHash('sha1')
    .update(bitsOf(children(spki)[1]))
    .digest()
    .toString('latin1')

/** What a child certificate copies from its issuer: the subject name and the key identifier. */
function issuerParts(encoder: Der, certPem: string): { name: Asn1.Asn1; keyId: string } {
  const certificate = new X509Certificate(certPem)
  const fields = children(children(encoder.decode(certificate.raw))[0])
  const name = fields[5]
  const spki = encoder.decode(certificate.publicKey.export({ type: 'spki', format: 'der' }))
  if (name === undefined) {
    throw new DpsError('OPTION_INVALID', 'config', '`issuer.certPem` must be an X.509 version 3 certificate')
  }
  return { name, keyId: keyIdentifier(spki) }
}

function pem(label: string, bytes: Buffer): string {
  const lines = bytes.toString('base64').match(/.{1,64}/g) ?? []
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`
}

function ipBytes(address: string): string {
  if (isIP(address) === 4) return String.fromCharCode(...address.split('.').map(Number))
  const [head = '', tail] = address.split('::')
  const groups = (text: string): number[] =>
    text === '' ? [] : text.split(':').map((part) => Number.parseInt(part, 16))
  const before = groups(head)
  const after = tail === undefined ? [] : groups(tail)
  const zeros = new Array<number>(8 - before.length - after.length).fill(0)
  return [...before, ...zeros, ...after].map((g) => String.fromCharCode(g >> 8, g & 0xff)).join('')
}

function keyUsageOf(options: IssueCertificateOptions, rsa: boolean): readonly KeyUsageName[] {
  if (options.keyUsage !== undefined) return options.keyUsage
  if (options.ca === true) return ['keyCertSign', 'cRLSign']
  return rsa ? ['digitalSignature', 'keyEncipherment'] : ['digitalSignature']
}

function extensions(
  encoder: Der,
  options: IssueCertificateOptions,
  rsa: boolean,
  subjectKeyId: string,
  issuerKeyId: string,
): Asn1.Asn1 {
  const list: Asn1.Asn1[] = []
  const constraints = options.ca === true ? [encoder.boolean(true)] : []
  if (options.ca === true && options.pathLength !== undefined) {
    constraints.push(encoder.integer(Buffer.of(options.pathLength)))
  }
  list.push(encoder.extension(OID.basicConstraints, true, encoder.sequence(...constraints)))

  const usage = keyUsageOf(options, rsa).reduce((bits, name) => bits | KEY_USAGE_BIT[name], 0)
  if (usage !== 0) {
    // DER drops trailing zero bits of a named bit list (X.690, section 11.2.2).
    const unused = 31 - Math.clz32(usage & -usage)
    list.push(encoder.extension(OID.keyUsage, true, encoder.bits(String.fromCharCode(usage), unused)))
  }
  if (options.eku !== undefined && options.eku.length > 0) {
    const purposes = options.eku.map((name) => encoder.oid(EKU_OID[name]))
    list.push(encoder.extension(OID.extendedKeyUsage, false, encoder.sequence(...purposes)))
  }
  if (options.sans !== undefined && options.sans.length > 0) {
    const names = options.sans.map((name) =>
      isIP(name) === 0 ? encoder.implicit(2, name) : encoder.implicit(7, ipBytes(name)),
    )
    list.push(encoder.extension(OID.subjectAltName, false, encoder.sequence(...names)))
  }
  list.push(encoder.extension(OID.subjectKeyIdentifier, false, encoder.octets(subjectKeyId)))
  const authority = encoder.sequence(encoder.implicit(0, issuerKeyId))
  list.push(encoder.extension(OID.authorityKeyIdentifier, false, authority))
  return encoder.sequence(...list)
}

function checkIssueOptions(options: IssueCertificateOptions): void {
  const { subject, pathLength } = options
  if (typeof subject !== 'string' || subject.length === 0 || subject.length > 64) {
    throw new DpsError('OPTION_INVALID', 'config', '`subject` must be a common name of 1 to 64 characters')
  }
  if (pathLength !== undefined && (!Number.isInteger(pathLength) || pathLength < 0 || pathLength > 127)) {
    throw new DpsError('OPTION_INVALID', 'config', '`pathLength` must be an integer from 0 to 127')
  }
  for (const name of ['notBefore', 'notAfter'] as const) {
    const date = options[name]
    if (date !== undefined && Number.isNaN(date.getTime())) {
      throw new DpsError('OPTION_INVALID', 'config', `\`${name}\` must be a valid date`)
    }
  }
}

/**
 * Issues an X.509 version 3 certificate (RFC 5280), truthful or not: tests use it to make every kind of server or
 * device that must be refused.
 *
 * With `publicKey` (SPKI PEM) the key pair belongs to someone else, as with a certificate signing request, and the
 * result has no `keyPem`.
 *
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function issueCertificate(
  options: IssueCertificateOptions & { publicKey: string },
): Promise<SignedCertificate>
export function issueCertificate(options: IssueCertificateOptions): Promise<IssuedCertificate>
export async function issueCertificate(
  options: IssueCertificateOptions & { publicKey?: string },
): Promise<SignedCertificate | IssuedCertificate> {
  checkIssueOptions(options)
  const encoder = await der()
  if (options.publicKey !== undefined) {
    return signCertificate(encoder, options, createPublicKey(options.publicKey))
  }
  const subjectPrivate =
    options.key === undefined ? await newKey(options.keyType ?? 'ec-p256') : createPrivateKey(options.key)
  const signed = signCertificate(encoder, options, createPublicKey(subjectPrivate), subjectPrivate)
  return Object.freeze({
    ...signed,
    keyPem: subjectPrivate.export({ type: 'pkcs8', format: 'pem' }) as string,
  })
}

/** The certificate itself, at once: the codec is loaded and the keys are there. */
export function signCertificate(
  encoder: Der,
  options: IssueCertificateOptions,
  subjectPublic: KeyObject,
  subjectPrivate?: KeyObject,
): SignedCertificate {
  const now = (options.clock ?? systemClock).now()
  const signer = options.issuer === undefined ? subjectPrivate : createPrivateKey(options.issuer.keyPem)
  if (signer === undefined) {
    throw new DpsError('OPTION_INVALID', 'config', '`issuer` is required where only a `publicKey` is given')
  }

  const spki = encoder.decode(subjectPublic.export({ type: 'spki', format: 'der' }))
  const subjectKeyId = keyIdentifier(spki)
  const subjectName = encoder.name(options.subject)
  const issuer =
    options.issuer === undefined
      ? { name: subjectName, keyId: subjectKeyId }
      : issuerParts(encoder, options.issuer.certPem)

  const digest = options.digest ?? 'sha256'
  const signerType = signer.asymmetricKeyType === 'rsa' ? 'rsa' : 'ec'
  const signatureOid = SIGNATURE_OID[signerType][digest]
  if (signatureOid === undefined) {
    throw new DpsError('OPTION_INVALID', 'config', `\`digest\` ${digest} cannot sign with an EC key`)
  }
  const algorithm =
    signerType === 'rsa'
      ? encoder.sequence(encoder.oid(signatureOid), encoder.null())
      : encoder.sequence(encoder.oid(signatureOid))

  // RFC 5280, section 4.1.2.2: a positive integer of at most 20 octets.
  const serial = randomBytes(16)
  serial[0] = (serial[0]! & 0x7f) | 0x40

  const rsa = subjectPublic.asymmetricKeyType === 'rsa'
  const body = encoder.sequence(
    encoder.explicit(0, encoder.integer(Buffer.of(2))),
    encoder.integer(serial),
    algorithm,
    issuer.name,
    encoder.sequence(
      encoder.time(options.notBefore ?? new Date(now - BACKDATE_MS)),
      encoder.time(options.notAfter ?? new Date(now + LEAF_LIFETIME_MS)),
    ),
    subjectName,
    spki,
    encoder.explicit(3, extensions(encoder, options, rsa, subjectKeyId, issuer.keyId)),
  )
  const signature = sign(digest, encoder.encode(body), signer)
  const raw = encoder.encode(encoder.sequence(body, algorithm, encoder.bits(signature.toString('latin1'))))

  const certPem = pem('CERTIFICATE', raw)
  return Object.freeze({
    certPem,
    chainPem: certPem + issuerChain(options.issuer),
    fingerprint256: new X509Certificate(raw).fingerprint256,
  })
}

function issuerChain(issuer: CertificateIssuer | undefined): string {
  if (issuer === undefined) return ''
  const certificate = new X509Certificate(issuer.certPem)
  if (certificate.checkIssued(certificate)) return ''
  return issuer.chainPem ?? issuer.certPem
}

/**
 * Creates the infrastructure of an emulator: about a quarter of a second, most of it four RSA keys made in parallel.
 * Everything is back-dated by 24 hours, signed with SHA-256, and forgotten with the object.
 */
export async function createPki(options: CreatePkiOptions = {}): Promise<Pki> {
  const clock = options.clock ?? systemClock
  const notAfter = new Date(clock.now() + ROOT_LIFETIME_MS)
  const authority = { ca: true, clock, notAfter } as const
  const rsaKey = async (): Promise<string> =>
    (await newKey('rsa-2048')).export({ type: 'pkcs8', format: 'pem' }) as string
  const keys = await Promise.all([rsaKey(), rsaKey(), rsaKey(), rsaKey()])

  const [first, second, deviceRoot] = await Promise.all([
    issueCertificate({ ...authority, subject: 'Emulator Root 1', key: keys[0] }),
    issueCertificate({ ...authority, subject: 'Emulator Root 2', key: keys[1] }),
    issueCertificate({ ...authority, subject: 'Emulator Device Root' }),
  ])
  const [serverIntermediate, deviceIntermediate] = await Promise.all([
    issueCertificate({
      ...authority,
      subject: 'Emulator Server CA',
      key: keys[2],
      issuer: first,
      pathLength: 0,
      eku: ['serverAuth'],
    }),
    issueCertificate({ ...authority, subject: 'Emulator Device CA', issuer: deviceRoot, pathLength: 0 }),
  ])
  const server = await issueCertificate({
    subject: 'global.azure-devices-provisioning.net',
    key: keys[3],
    issuer: serverIntermediate,
    sans: SERVER_NAMES,
    eku: ['serverAuth'],
    clock,
  })
  return Object.freeze({
    roots: Object.freeze([first, second] as const),
    serverIntermediate,
    server,
    deviceRoot,
    deviceIntermediate,
  })
}

export interface DeviceCertificateOptions {
  /** Becomes the common name. */
  registrationId: string
  /** Default `'ec-p256'`. */
  keyType?: CertificateKeyType
  /** Default: from 24 hours ago until a year from now. */
  validity?: { notBefore?: Date; notAfter?: Date }
}

/** What a device is given: to be passed to the client as it is. */
export interface DeviceCertificate {
  /** PEM chain: the leaf, then the device intermediate. */
  readonly cert: string
  /** PKCS#8 PEM. */
  readonly key: string
}

/** Issues a client certificate for a device, by the device intermediate. */
export async function issueDeviceCertificate(
  pki: Pki,
  options: DeviceCertificateOptions,
  clock: Clock = systemClock,
): Promise<DeviceCertificate> {
  const { notBefore, notAfter } = options.validity ?? {}
  const issued = await issueCertificate({
    subject: options.registrationId,
    issuer: pki.deviceIntermediate,
    keyType: options.keyType ?? 'ec-p256',
    eku: ['clientAuth'],
    clock,
    ...(notBefore === undefined ? {} : { notBefore }),
    ...(notAfter === undefined ? {} : { notAfter }),
  })
  return { cert: issued.chainPem, key: issued.keyPem }
}
