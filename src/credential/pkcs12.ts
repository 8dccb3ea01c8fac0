import {
  createDecipheriv,
  createHash,
  createHmac,
  createPrivateKey,
  pbkdf2,
  timingSafeEqual,
  X509Certificate,
} from 'node:crypto'
import { DpsError } from '../errors.ts'
import { decryptRc2 } from './rc2.ts'

/** What a PKCS#12 file holds. */
export interface Pkcs12 {
  /** In the order of the file, which need not be that of the chain. At least one. */
  readonly certificates: readonly X509Certificate[]
  /** PKCS#8 in DER; encrypted where the file has a passphrase, or has it encrypted. */
  readonly key: Buffer
}

/** BER, as far as these files use it: one-byte tags, indefinite lengths among the definite ones. */
interface Element {
  readonly tag: number
  readonly content: Buffer
  readonly whole: Buffer
}

const SEQUENCE = 0x30
const INTEGER = 0x02
const OCTETS = 0x04
const OBJECT_IDENTIFIER = 0x06
const EXPLICIT = 0xa0
const CONSTRUCTED = 0x20
const INDEFINITE = 0x80

// Nobody nests deeper, and each level is read again for the one above it.
const MAX_DEPTH = 12

const MAX_BYTES = 1024 * 1024

/** How many iterations are done before others get a turn. */
const SLICE = 8192

/** Object identifiers, the bytes of their DER in hex (RFC 7292, RFC 8018, RFC 5652). */
const DATA = '2a864886f70d010701'
const SIGNED_DATA = '2a864886f70d010702'
const ENCRYPTED_DATA = '2a864886f70d010706'
const BAG = '2a864886f70d010c0a010'
const X509_CERTIFICATE = '2a864886f70d01091601'
const PBES2 = '2a864886f70d01050d'
const PBKDF2 = '2a864886f70d01050c'
const PBE = '2a864886f70d010c010'

const DIGESTS: Readonly<Record<string, string>> = {
  '2b0e03021a': 'sha1',
  '608648016503040204': 'sha224',
  '608648016503040201': 'sha256',
  '608648016503040202': 'sha384',
  '608648016503040203': 'sha512',
}

const PRFS: Readonly<Record<string, string>> = {
  '2a864886f70d0207': 'sha1',
  '2a864886f70d0208': 'sha224',
  '2a864886f70d0209': 'sha256',
  '2a864886f70d020a': 'sha384',
  '2a864886f70d020b': 'sha512',
}

interface Cipher {
  readonly name: string
  readonly keyBytes: number
}

const CIPHERS: Readonly<Record<string, Cipher>> = {
  '60864801650304012a': { name: 'aes-256-cbc', keyBytes: 32 },
  '608648016503040116': { name: 'aes-192-cbc', keyBytes: 24 },
  '608648016503040102': { name: 'aes-128-cbc', keyBytes: 16 },
  '2a864886f70d0307': { name: 'des-ede3-cbc', keyBytes: 24 },
}

/** RFC 7292, appendix C. RC4 is left out: no program has written it for decades. */
const PBE_CIPHERS: Readonly<Record<string, Cipher>> = {
  [`${PBE}3`]: { name: 'des-ede3-cbc', keyBytes: 24 },
  [`${PBE}4`]: { name: 'des-ede-cbc', keyBytes: 16 },
  [`${PBE}5`]: { name: 'rc2', keyBytes: 16 },
  [`${PBE}6`]: { name: 'rc2', keyBytes: 5 },
}

/**
 * Reads a PKCS#12 file (RFC 7292) as OpenSSL, Windows and Java write them: integrity by password, contents plain, under
 * PBES2 or under the SHA-1 schemes with 3DES and RC2. All of its iterations together are bounded.
 *
 * @param passphrase empty or undefined where there is none
 * @param maxIterations for all but the key, which is not decrypted here if OpenSSL can do that
 * @throws DpsError CREDENTIAL_UNREADABLE, phase `config`; nothing of the content is in it
 */
export async function readPkcs12(
  bytes: Uint8Array,
  passphrase: string | undefined,
  field: string,
  maxIterations: number,
): Promise<Pkcs12> {
  try {
    return await new Reader(passphrase, maxIterations).read(
      Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength),
    )
  } catch (fault) {
    // Whatever a damaged file brings Node or this reader to throw.
    const { message, cause } = fault instanceof Fault ? fault : new Fault(DAMAGED, fault)
    throw new DpsError('CREDENTIAL_UNREADABLE', 'config', `\`${field}\` ${message}.`, {
      hint: 'Give a PKCS#12 bundle with one private key and its certificate, and its `passphrase` if it has one.',
      ...(cause !== undefined && { cause }),
    })
  }
}

/** The end of a sentence that begins with the name of the option. */
class Fault extends Error {
  constructor(message: string, cause?: unknown) {
    super(message, cause === undefined ? {} : { cause })
  }
}

const DAMAGED = 'is a damaged PKCS#12 bundle: it is cut off, or was changed'
const UNKNOWN_METHOD = 'is encrypted by a method that is not known here'

const damaged = (): Fault => new Fault(DAMAGED)

class Reader {
  readonly #passphrase: string
  /** For the SHA-1 schemes: UTF-16, with its end. Some write no passphrase as an empty one, some as none at all. */
  #wide: Buffer
  #iterationsLeft: number
  readonly #certificates: X509Certificate[] = []
  readonly #keys: (() => Promise<Buffer>)[] = []

  constructor(passphrase = '', maxIterations: number) {
    this.#iterationsLeft = maxIterations
    this.#passphrase = passphrase
    this.#wide = Buffer.from(`${passphrase}\0`, 'utf16le').swap16()
  }

  async read(bytes: Buffer): Promise<Pkcs12> {
    if (bytes.length > MAX_BYTES) throw new Fault('is larger than 1 MiB')
    if (bytes[0] !== SEQUENCE) {
      const isPem = bytes.includes('-----BEGIN ')
      throw new Fault(isPem ? 'is PEM, not PKCS#12: give it as `cert` and `key`' : 'is not a PKCS#12 bundle')
    }
    const file = elementAt(bytes, 0)
    if (file.tag !== SEQUENCE || file.whole.length !== bytes.length) throw damaged()
    const [version, safe, mac] = childrenOf(file)
    if (version?.tag !== INTEGER || version.content.toString('hex') !== '03') {
      throw new Fault('is not a PKCS#12 bundle: give a certificate or a key in DER as `cert` or `key`')
    }
    const [type, content] = childrenOf(expect(safe, SEQUENCE))
    if (oidOf(type) === SIGNED_DATA) throw new Fault('is protected by a public key in place of a passphrase')
    if (oidOf(type) !== DATA) throw damaged()
    const authenticated = octetsOf(childrenOf(expect(content, EXPLICIT))[0])
    if (mac !== undefined) await this.#checkMac(childrenOf(expect(mac, SEQUENCE)), authenticated)
    for (const part of childrenOf(expect(elementAt(authenticated, 0), SEQUENCE))) await this.#readPart(part)
    if (this.#keys.length !== 1) {
      const count = this.#keys.length === 0 ? 'no private key' : `${this.#keys.length} private keys`
      throw new Fault(`holds ${count}; it must hold exactly one`)
    }
    if (this.#certificates.length === 0) throw new Fault('holds no certificate')
    return { certificates: this.#certificates, key: await this.#keys[0]!() }
  }

  async #checkMac([info, salt, count]: readonly Element[], data: Buffer): Promise<void> {
    const [algorithm, digest] = childrenOf(expect(info, SEQUENCE))
    const name = DIGESTS[oidOf(childrenOf(expect(algorithm, SEQUENCE))[0])]
    if (name === undefined) throw new Fault('has a MAC of a kind that is not known here')
    const expected = expect(digest, OCTETS).content
    const none = Buffer.alloc(0)
    for (const wide of this.#passphrase === '' ? [this.#wide, none] : [this.#wide]) {
      const size = createHash(name).digest().length
      const key = await this.#derive(name, 3, wide, octetsOf(salt), this.#count(count), size)
      const found = createHmac(name, key).update(data).digest()
      if (found.length === expected.length && timingSafeEqual(found, expected)) {
        this.#wide = wide
        return
      }
    }
    throw this.#undecryptable()
  }

  async #readPart(part: Element): Promise<void> {
    const [type, content] = childrenOf(expect(part, SEQUENCE))
    const inner = childrenOf(expect(content, EXPLICIT))[0]
    if (oidOf(type) === DATA) return this.#readBags(octetsOf(inner), 0)
    if (oidOf(type) !== ENCRYPTED_DATA) throw new Fault('is encrypted for a public key')
    const [, info] = childrenOf(expect(inner, SEQUENCE))
    const [, algorithm, encrypted] = childrenOf(expect(info, SEQUENCE))
    await this.#readBags(await this.#decrypt(algorithm, octetsOf(encrypted)), 0)
  }

  async #readBags(bytes: Buffer, depth: number): Promise<void> {
    if (depth > MAX_DEPTH) throw damaged()
    for (const bag of childrenOf(expect(elementAt(bytes, 0), SEQUENCE))) {
      const [type, wrapped] = childrenOf(expect(bag, SEQUENCE))
      const value = childrenOf(expect(wrapped, EXPLICIT))[0]
      const kind = oidOf(type)
      if (kind === `${BAG}1`) this.#keys.push(async () => this.#exported(expect(value, SEQUENCE).whole))
      else if (kind === `${BAG}2`) this.#keys.push(() => this.#shrouded(expect(value, SEQUENCE)))
      else if (kind === `${BAG}3`) this.#addCertificate(childrenOf(expect(value, SEQUENCE)))
      else if (kind === `${BAG}6`) await this.#readBags(expect(value, SEQUENCE).whole, depth + 1)
    }
  }

  #addCertificate([type, value]: readonly Element[]): void {
    if (oidOf(type) !== X509_CERTIFICATE) return
    const der = octetsOf(childrenOf(expect(value, EXPLICIT))[0])
    try {
      this.#certificates.push(new X509Certificate(der))
    } catch (cause) {
      throw new Fault('holds a certificate that cannot be read', cause)
    }
  }

  /** OpenSSL decrypts what it can by itself, and so the key stays encrypted as it is. */
  async #shrouded(info: Element): Promise<Buffer> {
    const [algorithm, encrypted] = childrenOf(info)
    const scheme = PBE_CIPHERS[oidOf(childrenOf(expect(algorithm, SEQUENCE))[0])]
    if (scheme?.name !== 'rc2' && this.#wide.length > 0) return info.whole
    const pkcs8 = await this.#decrypt(algorithm, octetsOf(encrypted))
    const key = this.#exported(pkcs8)
    pkcs8.fill(0)
    return key
  }

  #exported(pkcs8: Buffer): Buffer {
    const passphrase = this.#passphrase
    try {
      const key = createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' })
      const cipher = passphrase === '' ? {} : { cipher: 'aes-256-cbc', passphrase }
      return key.export({ type: 'pkcs8', format: 'der', ...cipher })
    } catch (cause) {
      throw new Fault('holds a private key that OpenSSL cannot read', cause)
    }
  }

  async #decrypt(algorithm: Element | undefined, data: Buffer): Promise<Buffer> {
    const plain = await this.#decryptBy(algorithm, data)
    // Without a MAC, one wrong passphrase in 256 decrypts to something.
    if (plain[0] !== SEQUENCE) throw this.#undecryptable()
    return plain
  }

  async #decryptBy(algorithm: Element | undefined, data: Buffer): Promise<Buffer> {
    const [type, parameters] = childrenOf(expect(algorithm, SEQUENCE))
    const scheme = oidOf(type)
    const [first, second] = childrenOf(expect(parameters, SEQUENCE))
    if (scheme === PBES2) return this.#decryptPbes2(first, second, data)
    const cipher = PBE_CIPHERS[scheme]
    if (cipher === undefined) throw new Fault(UNKNOWN_METHOD)
    const [salt, count] = [octetsOf(first), this.#count(second)]
    const key = await this.#derive('sha1', 1, this.#wide, salt, count, cipher.keyBytes)
    const iv = await this.#derive('sha1', 2, this.#wide, salt, this.#count(second), 8)
    if (cipher.name !== 'rc2') return this.#decipher(cipher.name, key, iv, data)
    const plain = decryptRc2(key, iv, data)
    if (plain === undefined) throw this.#undecryptable()
    return plain
  }

  async #decryptPbes2(kdf: Element | undefined, scheme: Element | undefined, data: Buffer): Promise<Buffer> {
    const [derivation, parameters] = childrenOf(expect(kdf, SEQUENCE))
    const [kind, iv] = childrenOf(expect(scheme, SEQUENCE))
    const cipher = CIPHERS[oidOf(kind)]
    if (oidOf(derivation) !== PBKDF2 || cipher === undefined) throw new Fault(UNKNOWN_METHOD)
    const [salt, count, ...rest] = childrenOf(expect(parameters, SEQUENCE))
    const prf = rest.find(({ tag }) => tag === SEQUENCE)
    const digest = prf === undefined ? 'sha1' : PRFS[oidOf(childrenOf(prf)[0])]
    if (digest === undefined) throw new Fault(UNKNOWN_METHOD)
    const iterations = this.#count(count)
    const key = await new Promise<Buffer>((resolve, reject) => {
      pbkdf2(this.#passphrase, octetsOf(salt), iterations, cipher.keyBytes, digest, (error, derived) =>
        error === null ? resolve(derived) : reject(error),
      )
    })
    return this.#decipher(cipher.name, key, octetsOf(iv), data)
  }

  #decipher(name: string, key: Buffer, iv: Buffer, data: Buffer): Buffer {
    try {
      const decipher = createDecipheriv(name, key, iv)
      return Buffer.concat([decipher.update(data), decipher.final()])
    } catch {
      throw this.#undecryptable()
    } finally {
      key.fill(0)
    }
  }

  /** RFC 7292, appendix B. */
  async #derive(
    digest: string,
    purpose: 1 | 2 | 3,
    wide: Buffer,
    salt: Buffer,
    iterations: number,
    size: number,
  ): Promise<Buffer> {
    const hash = (...parts: Buffer[]) => {
      const whole = createHash(digest)
      for (const part of parts) whole.update(part)
      return whole.digest()
    }
    const block = digest === 'sha384' || digest === 'sha512' ? 128 : 64
    const filled = (bytes: Buffer) => Buffer.alloc(Math.ceil(bytes.length / block) * block, bytes)
    const input = Buffer.concat([salt, wide].map((bytes) => (bytes.length === 0 ? bytes : filled(bytes))))
    const output: Buffer[] = []
    for (let length = 0; length < size; ) {
      let result = hash(Buffer.alloc(block, purpose), input)
      for (let done = 1; done < iterations; done++) {
        result = hash(result)
        if (done % SLICE === 0) await new Promise((resolve) => setImmediate(resolve))
      }
      output.push(result)
      length += result.length
      const addend = Buffer.alloc(block, result)
      for (let at = 0; at < input.length; at += block) {
        for (let i = block - 1, carry = 1; i >= 0; i--, carry >>= 8) {
          carry += input[at + i]! + addend[i]!
          input[at + i] = carry
        }
      }
    }
    return Buffer.concat(output).subarray(0, size)
  }

  /** A file that asks for more than any program does is one that wants to keep the device busy. */
  #count(element: Element | undefined): number {
    const { content } = element ?? { content: Buffer.from([1]) }
    if ((element && element.tag !== INTEGER) || content.length === 0) throw damaged()
    const count = content.length > 6 ? Number.POSITIVE_INFINITY : content.readUIntBE(0, content.length)
    this.#iterationsLeft -= count
    if (count < 1) throw damaged()
    if (this.#iterationsLeft < 0)
      throw new Fault('asks for more iterations of its key derivation than any program writes')
    return count
  }

  #undecryptable(): Fault {
    return new Fault(
      this.#passphrase === ''
        ? 'is encrypted, or damaged: give its `passphrase`'
        : 'could not be decrypted: the `passphrase` is wrong or the file is damaged',
    )
  }
}

function elementAt(bytes: Buffer, at: number, depth = 0): Element {
  const tag = bytes[at]
  const first = bytes[at + 1]
  if (tag === undefined || first === undefined || (tag & 0x1f) === 0x1f || depth > MAX_DEPTH) throw damaged()
  let start = at + 2
  let length = first
  if (first === INDEFINITE) {
    if ((tag & CONSTRUCTED) === 0) throw damaged()
    let end = start
    while (bytes[end] !== 0 || bytes[end + 1] !== 0) end += elementAt(bytes, end, depth + 1).whole.length
    return { tag, content: bytes.subarray(start, end), whole: bytes.subarray(at, end + 2) }
  }
  if (first > INDEFINITE) {
    const size = first & 0x7f
    if (size > 4 || start + size > bytes.length) throw damaged()
    length = bytes.readUIntBE(start, size)
    start += size
  }
  if (start + length > bytes.length) throw damaged()
  return { tag, content: bytes.subarray(start, start + length), whole: bytes.subarray(at, start + length) }
}

function childrenOf({ content }: Element): readonly Element[] {
  const children: Element[] = []
  for (let at = 0; at < content.length; at += children.at(-1)!.whole.length)
    children.push(elementAt(content, at))
  return children
}

function expect(element: Element | undefined, tag: number): Element {
  if (element?.tag !== tag) throw damaged()
  return element
}

/** Of an octet string in one piece or, in BER, in several, under its own tag or an implicit one. */
function octetsOf(element: Element | undefined): Buffer {
  if (element === undefined) throw damaged()
  if ((element.tag & CONSTRUCTED) === 0) return element.content
  return Buffer.concat(childrenOf(element).map((piece) => expect(piece, OCTETS).content))
}

function oidOf(element: Element | undefined): string {
  return expect(element, OBJECT_IDENTIFIER).content.toString('hex')
}
