import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto'

/** Certificates made to order, byte by byte: every lie a server can tell is one field away. */

const tlv = (tag: number, ...parts: readonly Uint8Array[]): Buffer => {
  const body = Buffer.concat(parts)
  const { length } = body
  const head = length < 128 ? [length] : length < 256 ? [0x81, length] : [0x82, length >> 8, length & 255]
  return Buffer.concat([Buffer.from([tag, ...head]), body])
}
const sequence = (...parts: readonly Uint8Array[]) => tlv(0x30, ...parts)
const explicit = (n: number, ...parts: readonly Uint8Array[]) => tlv(0xa0 + n, ...parts)
const octets = (...parts: readonly Uint8Array[]) => tlv(0x04, ...parts)
const bits = (bytes: Uint8Array, unused = 0) => tlv(0x03, Buffer.from([unused]), bytes)
const TRUE = tlv(0x01, Buffer.from([0xff]))

function oid(dotted: string): Buffer {
  const [a = 0, b = 0, ...rest] = dotted.split('.').map(Number)
  const bytes = [a * 40 + b]
  for (const arc of rest) {
    const digits = [arc & 127]
    for (let n = arc >> 7; n > 0; n >>= 7) digits.unshift((n & 127) | 128)
    bytes.push(...digits)
  }
  return tlv(0x06, Buffer.from(bytes))
}

const commonName = (name: string) =>
  sequence(tlv(0x31, sequence(oid('2.5.4.3'), tlv(0x0c, Buffer.from(name, 'utf8')))))

const time = (date: Date) =>
  tlv(0x18, Buffer.from(`${date.toISOString().replace(/[-:T]/g, '').slice(0, 14)}Z`))

const extension = (id: string, critical: boolean, value: Buffer) =>
  sequence(oid(id), ...(critical ? [TRUE] : []), octets(value))

export interface Key {
  readonly privateKey: KeyObject
  readonly publicKey: KeyObject
}

export const ecKey = (namedCurve = 'P-256'): Key => generateKeyPairSync('ec', { namedCurve })
export const rsaKey = (modulusLength = 2048): Key => generateKeyPairSync('rsa', { modulusLength })

export interface Request {
  readonly name: string
  readonly key: Key
  /** Default: itself. */
  readonly issuer?: Issued
  /** Default: a leaf. */
  readonly ca?: boolean
  readonly pathLength?: number
  readonly dns?: readonly string[]
  readonly ip?: readonly (readonly number[])[]
  readonly notBefore?: Date
  readonly notAfter?: Date
  /** `serverAuth` or `clientAuth`. Default none, which means any. */
  readonly purpose?: 'serverAuth' | 'clientAuth'
  /** The issuer's name with a signature by this key in place of the issuer's. */
  readonly signedBy?: Key
}

export interface Issued {
  readonly name: string
  readonly key: Key
  readonly pem: string
}

const DAY = 86_400_000
export const daysFromNow = (days: number) => new Date(Math.floor(Date.now() / 1000) * 1000 + days * DAY)

export function issue(request: Request): Issued {
  const { name, key, issuer, ca = false, pathLength, dns = [], ip = [], purpose } = request
  const signer = request.signedBy ?? issuer?.key ?? key
  const algorithm = sequence(
    ...(signer.privateKey.asymmetricKeyType === 'rsa'
      ? [oid('1.2.840.113549.1.1.11'), tlv(0x05)]
      : [oid('1.2.840.10045.4.3.2')]),
  )
  const keyId = (k: Key) =>
    createHash('sha1')
      .update(k.publicKey.export({ type: 'spki', format: 'der' }))
      .digest()
  const extensions = [
    extension('2.5.29.14', false, octets(keyId(key))),
    extension('2.5.29.35', false, sequence(tlv(0x80, keyId(issuer?.key ?? key)))),
  ]
  if (ca) {
    const length = pathLength === undefined ? [] : [tlv(0x02, Buffer.from([pathLength]))]
    extensions.push(extension('2.5.29.19', true, sequence(TRUE, ...length)))
    extensions.push(extension('2.5.29.15', true, bits(Buffer.from([0x06]), 1)))
  }
  if (purpose !== undefined) {
    const arc = purpose === 'serverAuth' ? 1 : 2
    extensions.push(extension('2.5.29.37', false, sequence(oid(`1.3.6.1.5.5.7.3.${arc}`))))
  }
  if (dns.length + ip.length > 0) {
    const names = [
      ...dns.map((value) => tlv(0x82, Buffer.from(value, 'latin1'))),
      ...ip.map((value) => tlv(0x87, Buffer.from(value))),
    ]
    extensions.push(extension('2.5.29.17', false, sequence(...names)))
  }
  const certificate = sequence(
    explicit(0, tlv(0x02, Buffer.from([2]))),
    tlv(0x02, Buffer.from([1]), randomBytes(8)),
    algorithm,
    commonName(issuer?.name ?? name),
    sequence(time(request.notBefore ?? daysFromNow(-30)), time(request.notAfter ?? daysFromNow(365))),
    commonName(name),
    key.publicKey.export({ type: 'spki', format: 'der' }),
    explicit(3, sequence(...extensions)),
  )
  const der = sequence(certificate, algorithm, bits(sign('sha256', certificate, signer.privateKey)))
  const base64 = der.toString('base64').replace(/.{64}(?=.)/g, '$&\n')
  return { name, key, pem: `-----BEGIN CERTIFICATE-----\n${base64}\n-----END CERTIFICATE-----\n` }
}

export const keyPem = (key: Key): string => key.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()
