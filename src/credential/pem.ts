import { X509Certificate } from 'node:crypto'
import { DpsError } from '../errors.ts'
import { decodeBase64 } from './base64.ts'

/** What a PEM block or a DER structure holds. `other` is anything whose label has no meaning here. */
export type PemKind =
  | 'certificate'
  | 'private key'
  | 'encrypted private key'
  | 'certificate request'
  | 'public key'
  | 'OpenSSH key'
  | 'parameters'
  | 'trusted certificate'
  | 'PKCS#7'
  | 'PKCS#12'
  | 'other'

export interface PemBlock {
  readonly kind: PemKind
  /** The words after BEGIN (RFC 7468). */
  readonly label: string
  /** One block of clean PEM: LF line ends, 64 columns, no text around it. */
  readonly pem: string
}

const KIND_BY_LABEL: Readonly<Record<string, PemKind>> = {
  CERTIFICATE: 'certificate',
  'X509 CERTIFICATE': 'certificate',
  'PRIVATE KEY': 'private key',
  'RSA PRIVATE KEY': 'private key',
  'EC PRIVATE KEY': 'private key',
  'ENCRYPTED PRIVATE KEY': 'encrypted private key',
  'CERTIFICATE REQUEST': 'certificate request',
  'NEW CERTIFICATE REQUEST': 'certificate request',
  'PUBLIC KEY': 'public key',
  'RSA PUBLIC KEY': 'public key',
  'OPENSSH PRIVATE KEY': 'OpenSSH key',
  'EC PARAMETERS': 'parameters',
  'DH PARAMETERS': 'parameters',
  'TRUSTED CERTIFICATE': 'trusted certificate',
  PKCS7: 'PKCS#7',
  CMS: 'PKCS#7',
}

const BEGIN = '-----BEGIN '
const END = '-----END '
const DASHES = '-----'

/**
 * Finds every PEM block in a text, or classifies the one DER structure that the bytes are. A byte order mark, CRLF,
 * indentation and text before, between or after the blocks (`openssl x509 -text`, bag attributes) are no obstacle.
 *
 * @param field what the caller knows the input by
 * @returns at least one block, in the order of the input
 * @throws DpsError CREDENTIAL_UNREADABLE, phase `config`; the message never quotes the input
 */
export function readPem(input: string | Uint8Array, field: string): PemBlock[] {
  if (input.length === 0) throw unreadable(field, 'is empty')
  if (typeof input === 'string') return blocksOf(input, field)
  const bytes = Buffer.from(input.buffer, input.byteOffset, input.byteLength)
  if (bytes[0] === SEQUENCE) return [derBlock(bytes, field)]
  if ((bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff)) {
    throw unreadable(field, 'is UTF-16 text: save it as UTF-8 or ASCII')
  }
  return blocksOf(bytes.toString('utf8'), field)
}

/**
 * The certificates of one or several inputs, in order. Keys and other blocks beside them are passed over, so that a
 * combined file can be used.
 *
 * @throws DpsError CREDENTIAL_UNREADABLE, phase `config`, that says what was given instead
 */
export function readCertificates(
  input: string | Uint8Array | readonly (string | Uint8Array)[],
  field: string,
): X509Certificate[] {
  const inputs = typeof input === 'string' || input instanceof Uint8Array ? [input] : input
  if (inputs.length === 0) throw unreadable(field, 'is an empty list')
  return inputs.flatMap((one, index) => {
    const name = inputs.length === 1 ? field : `${field}[${index}]`
    const blocks = readPem(one, name)
    const certificates = blocks.filter((block) => block.kind === 'certificate')
    if (certificates.length === 0) throw unreadable(name, `holds ${describe(blocks, INSTEAD_OF_CERTIFICATE)}`)
    return certificates.map(({ pem }) => {
      try {
        return new X509Certificate(pem)
      } catch (cause) {
        throw unreadable(name, 'holds a CERTIFICATE block whose content is not a certificate', cause)
      }
    })
  })
}

/**
 * The one private key of an input, encrypted or not. Certificates and parameters beside it are passed over.
 *
 * @throws DpsError CREDENTIAL_UNREADABLE, phase `config`, that says what was given instead
 */
export function readPrivateKey(input: string | Uint8Array, field: string): PemBlock {
  const blocks = readPem(input, field)
  // `TSS2 PRIVATE KEY` and `PKCS#11 PROVIDER URI` belong to OpenSSL providers; whether one is loaded, only OpenSSL knows.
  const keys = blocks.filter(
    ({ kind, label }) =>
      kind === 'private key' ||
      kind === 'encrypted private key' ||
      (kind === 'other' && /PRIVATE KEY$|^PKCS#11 PROVIDER URI$/.test(label)),
  )
  if (keys.length === 0) throw unreadable(field, `holds ${describe(blocks, INSTEAD_OF_KEY)}`)
  if (keys.length > 1) throw unreadable(field, `holds ${keys.length} private keys; give exactly one`)
  return keys[0]!
}

/** A CREDENTIAL_UNREADABLE whose message is the field and a sentence about it. */
export function unreadable(field: string, fault: string, cause?: unknown): DpsError {
  const details = cause === undefined ? {} : { cause }
  return new DpsError('CREDENTIAL_UNREADABLE', 'config', `\`${field}\` ${fault}.`, details)
}

const PKCS12_ADVICE =
  'a PKCS#12 bundle (.pfx, .p12): give it as `pkcs12File` or `pkcs12`, with its `passphrase`, in place of certificate and key'

const INSTEAD_OF_CERTIFICATE: Readonly<Partial<Record<PemKind, string>>> = {
  'certificate request': 'a certificate signing request, not a certificate: give what the CA returned for it',
  'private key': 'a private key, not a certificate',
  'encrypted private key': 'a private key, not a certificate',
  'public key': 'a public key, not a certificate',
  'OpenSSH key': 'an OpenSSH key, not a certificate',
  'trusted certificate': 'a TRUSTED CERTIFICATE of OpenSSL: convert it with `openssl x509`',
  'PKCS#7': 'a PKCS#7 bundle: convert it with `openssl pkcs7 -print_certs`',
  'PKCS#12': PKCS12_ADVICE,
  parameters: 'parameters only, not a certificate',
}

const INSTEAD_OF_KEY: Readonly<Partial<Record<PemKind, string>>> = {
  certificate: 'a certificate, not a private key',
  'certificate request':
    'a certificate signing request, not a private key: give the key that it was made with',
  'public key': 'a public key, not a private key',
  'OpenSSH key': 'an OpenSSH key: convert a copy of it with `ssh-keygen -p -m PKCS8`',
  'trusted certificate': 'a certificate, not a private key',
  'PKCS#7': 'a PKCS#7 bundle, not a private key',
  'PKCS#12': PKCS12_ADVICE,
  parameters: 'EC parameters only: the PRIVATE KEY block is missing',
}

function describe(blocks: readonly PemBlock[], instead: Readonly<Partial<Record<PemKind, string>>>): string {
  const telling = blocks.find(({ kind }) => kind !== 'parameters' && kind !== 'other') ?? blocks[0]!
  return instead[telling.kind] ?? `"${telling.label}", which is not understood here`
}

function blocksOf(text: string, field: string): PemBlock[] {
  const blocks: PemBlock[] = []
  let at = text.indexOf(BEGIN)
  if (at === -1) throw unreadable(field, whatIsNotPem(text))
  while (at !== -1) {
    const labelEnd = text.indexOf(DASHES, at + BEGIN.length)
    const label = labelEnd === -1 ? '' : text.slice(at + BEGIN.length, labelEnd)
    if (!/^[A-Z0-9#+][A-Z0-9#+. ]{0,63}$/.test(label)) throw unreadable(field, 'has a damaged BEGIN line')
    const bodyStart = labelEnd + DASHES.length
    const next = text.indexOf(BEGIN, bodyStart)
    const end = text.indexOf(END, bodyStart)
    if (end === -1 || (next !== -1 && next < end)) {
      throw unreadable(field, `is cut off: BEGIN ${label} has no END line`)
    }
    if (!text.startsWith(`${label}${DASHES}`, end + END.length)) {
      throw unreadable(field, `is damaged: BEGIN ${label} is followed by another END line`)
    }
    blocks.push(pemBlock(label, text.slice(bodyStart, end), field))
    at = text.indexOf(BEGIN, end)
  }
  return blocks
}

function pemBlock(label: string, body: string, field: string): PemBlock {
  if (/\\[nr]/.test(body)) {
    throw unreadable(
      field,
      'has the two characters \\n where its line breaks should be: put real line breaks in their place',
    )
  }
  const kind = Object.hasOwn(KIND_BY_LABEL, label) ? KIND_BY_LABEL[label]! : 'other'
  // The headers of a traditional encrypted key (RFC 1421) say how to decrypt it.
  const headers = body
    .split(/\r?\n|\r/)
    .map((line) => line.trim())
    .filter((line) => /^[A-Za-z0-9-]+:/.test(line))
  const base64 = body
    .split(/\r?\n|\r/)
    .filter((line) => !/^\s*[A-Za-z0-9-]+:/.test(line))
    .join('')
    .replace(/\s+/g, '')
  const der = decodeBase64(base64)
  if (typeof der === 'string') throw unreadable(field, `is damaged: the base64 of its ${label} block ${der}`)
  if (kind === 'private key' && headers.some((line) => line.includes('ENCRYPTED'))) {
    const pem = `${BEGIN}${label}${DASHES}\n${headers.join('\n')}\n\n${wrap(base64)}\n${END}${label}${DASHES}\n`
    return { kind: 'encrypted private key', label, pem }
  }
  if (kind !== 'other' && kind !== 'OpenSSH key' && kind !== 'trusted certificate' && !isOneStructure(der)) {
    if (!(kind === 'parameters' && der[0] === OBJECT_IDENTIFIER)) {
      throw unreadable(field, `is damaged: its ${label} block is incomplete or has bytes after its end`)
    }
  }
  return { kind, label, pem: armour(label, der) }
}

/** One block of clean PEM. */
export function armour(label: string, der: Uint8Array): string {
  return `${BEGIN}${label}${DASHES}\n${wrap(Buffer.from(der).toString('base64'))}\n${END}${label}${DASHES}\n`
}

/** What stands between the first and the last line of a block of clean PEM, without its line breaks. */
export function base64Of(pem: string): string {
  return pem.replace(/-----[^-]+-----|\n/g, '')
}

function wrap(base64: string): string {
  return base64.match(/.{1,64}/g)?.join('\n') ?? ''
}

function whatIsNotPem(text: string): string {
  const trimmed = text.trim()
  if (trimmed === '') return 'is blank'
  if (/SharedAccessKey=|HostName=/i.test(trimmed)) return 'is a connection string, not PEM'
  if (trimmed.startsWith('PuTTY-User-Key-File')) return 'is a PuTTY key: export it as PEM with PuTTYgen'
  if (/^(?:ssh-|ecdsa-)/.test(trimmed)) return 'is an OpenSSH public key, not PEM'
  if (/^M[A-Za-z0-9+/\s]{40,}={0,2}$/.test(trimmed)) return 'is base64 without its BEGIN and END lines'
  if (trimmed.length < 1024 && !trimmed.includes('\n') && /[/\\]|\.(?:pem|crt|cer|key|der)$/i.test(trimmed)) {
    return 'looks like a path: give the content of the file, or its path as `certFile` or `keyFile`'
  }
  return 'holds no PEM block: there is no line that starts with -----BEGIN'
}

const INTEGER = 0x02
const OBJECT_IDENTIFIER = 0x06
const SEQUENCE = 0x30

export interface Tlv {
  readonly tag: number
  readonly content: Buffer
  /** Offset of its tag. */
  readonly at: number
  /** Offset of what follows. */
  readonly end: number
}

// DER, as far as telling structures apart needs it: single-byte tags, definite lengths of up to four bytes.
export function tlvAt(bytes: Buffer, at: number): Tlv | undefined {
  if (at + 2 > bytes.length) return undefined
  let length = bytes[at + 1]!
  let start = at + 2
  if (length >= 0x80) {
    const lengthBytes = length & 0x7f
    if (lengthBytes < 1 || lengthBytes > 4 || start + lengthBytes > bytes.length) return undefined
    length = bytes.readUIntBE(start, lengthBytes)
    start += lengthBytes
  }
  if (start + length > bytes.length) return undefined
  return { tag: bytes[at]!, content: bytes.subarray(start, start + length), at, end: start + length }
}

/** What a constructed element holds, up to the first that is damaged. */
export function childrenOf(parent: { readonly content: Buffer } | undefined): readonly Tlv[] {
  const children: Tlv[] = []
  const bytes = parent?.content ?? Buffer.alloc(0)
  for (let next = tlvAt(bytes, 0); next !== undefined; next = tlvAt(bytes, next.end)) children.push(next)
  return children
}

/** More than any program writes; a key that asks for more would keep the device busy. */
export const MAX_ITERATIONS = 2_000_000

/**
 * Bounds the work of decrypting an ENCRYPTED PRIVATE KEY block: the count that comes after the salt, in the parameters of
 * PBES1 (RFC 8018 A.3) and in those of the derivation function of PBES2 (A.4), scrypt's cost included.
 *
 * @throws DpsError CREDENTIAL_UNREADABLE, phase `config`
 */
export function checkIterations(pem: string, field: string): void {
  const [algorithm] = childrenOf(tlvAt(Buffer.from(base64Of(pem), 'base64'), 0))
  let parameters = childrenOf(childrenOf(algorithm)[1])
  if (parameters[0]?.tag === SEQUENCE) parameters = childrenOf(childrenOf(parameters[0])[1])
  const count = parameters[1]
  // OpenSSL reads BER too, and would do whatever number of iterations is hidden in that.
  if (count?.tag !== INTEGER || count.content.length === 0) {
    throw unreadable(
      field,
      'is encrypted in a way that is not read here: PKCS#8 in DER, by PBES1 or PBES2, is',
    )
  }
  const { content } = count
  if (content.length <= 6 && content.readUIntBE(0, content.length) <= MAX_ITERATIONS) return
  throw unreadable(field, 'asks for more iterations of its key derivation than any program writes')
}

function isOneStructure(bytes: Buffer): boolean {
  const outer = tlvAt(bytes, 0)
  return outer !== undefined && outer.tag === SEQUENCE && outer.end === bytes.length
}

/** The tags of the first elements of a sequence, and the first element itself. */
function shapeOf(sequence: Tlv): { tags: string; first: Tlv | undefined } {
  const children = childrenOf(sequence)
  const tags = children.slice(0, 4).map(({ tag }) => tag.toString(16))
  return { tags: tags.join(' '), first: children[0] }
}

function derBlock(bytes: Buffer, field: string): PemBlock {
  if (!isOneStructure(bytes))
    throw unreadable(field, 'is damaged DER: it is incomplete or has bytes after its end')
  const [kind, label] = derKind(bytes)
  if (kind === 'other') throw unreadable(field, 'is DER, but neither a certificate nor a key')
  return { kind, label, pem: armour(label, bytes) }
}

// RFC 5280 4.1 (certificate, SPKI), 5208 / 5958 (PKCS#8), 8017 A.1.2 (PKCS#1), 5915 (SEC1), 2986 (request), 7292 (PFX).
function derKind(bytes: Buffer): readonly [PemKind, string] {
  const { tags, first } = shapeOf(tlvAt(bytes, 0)!)
  if (tags === '30 30 3') return signedKind(bytes, first!)
  if (tags === '30 3') return ['public key', 'PUBLIC KEY']
  if (tags === '30 4') return ['encrypted private key', 'ENCRYPTED PRIVATE KEY']
  if (tags === '6 a0') return ['PKCS#7', 'PKCS7']
  if (first?.tag !== INTEGER) return ['other', 'DER']
  if (tags.startsWith('2 30 4')) return ['private key', 'PRIVATE KEY']
  if (tags.startsWith('2 4')) return ['private key', 'EC PRIVATE KEY']
  if (tags.startsWith('2 2 2 2')) return ['private key', 'RSA PRIVATE KEY']
  if (tags.startsWith('2 30') && first.content[0] === 3) return ['PKCS#12', 'PKCS12']
  return ['other', 'DER']
}

// Certificates and requests are both signed structures; only the inner one tells them apart.
function signedKind(bytes: Buffer, signed: Tlv): readonly [PemKind, string] {
  try {
    new X509Certificate(bytes)
    return ['certificate', 'CERTIFICATE']
  } catch {
    const version = tlvAt(signed.content, 0)
    const isRequest = version?.tag === INTEGER && version.content.equals(Buffer.from([0]))
    return isRequest ? ['certificate request', 'CERTIFICATE REQUEST'] : ['other', 'DER']
  }
}
