import { createPrivateKey, X509Certificate } from 'node:crypto'
import { inspect } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type X509Options, x509 } from '../../../src/credential/x509.ts'
import { DpsError } from '../../../src/errors.ts'
import { secureContextFor } from '../../../src/tls/context.ts'
import { resolvePolicy } from '../../../src/tls/policy.ts'
import { type Issued, OpenSsl } from './certificates.ts'

const RSA = ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048']

const openssl = new OpenSsl()

/** A package of its own in some distributions. */
const hasLegacy = (() => {
  try {
    openssl.run(['list', '-providers', '-provider', 'legacy'])
    return true
  } catch {
    return false
  }
})()
const written = <T extends readonly unknown[]>(cases: readonly T[]): T[] =>
  cases.filter((one) => hasLegacy || !JSON.stringify(one).includes('-legacy'))
const policy = resolvePolicy()
let intermediate: Issued
let ec: Issued
let rsa: Issued

beforeAll(() => {
  const root = openssl.issue({ subject: '/CN=Root', ca: true })
  intermediate = openssl.issue({ subject: '/CN=Intermediate', ca: true, issuer: root })
  ec = openssl.issue({ issuer: intermediate })
  rsa = openssl.issue({ issuer: intermediate, algorithm: RSA })
  openssl.write('ca.pem', intermediate.cert)
})
afterAll(() => openssl.remove())

/** What `openssl pkcs12 -export` makes of a device. */
function bundle(device: Issued, passphrase = 'secret', ...args: string[]): Buffer {
  openssl.write('p12.key', device.key)
  openssl.write('p12.pem', device.cert)
  return openssl.run([
    ...['pkcs12', '-export', '-inkey', 'p12.key', '-in', 'p12.pem', '-certfile', 'ca.pem'],
    ...['-passout', `pass:${passphrase}`, ...args],
  ])
}

async function loaded(options: X509Options) {
  const identity = await x509(options).load()
  // OpenSSL has the last word: the pair, and the passphrase of the key.
  secureContextFor(identity, policy)
  return identity
}

async function refusal(pkcs12: Uint8Array, passphrase?: string): Promise<DpsError> {
  const options = { pkcs12, ...(passphrase !== undefined && { passphrase }) }
  const error = await x509(options)
    .load()
    .then(
      () => undefined,
      (thrown) => thrown,
    )
  expect(DpsError.is(error)).toBe(true)
  expect(error).toMatchObject({ code: 'CREDENTIAL_UNREADABLE', phase: 'config' })
  expect(error.hint).toContain('PKCS#12')
  return error
}

describe('a PKCS#12 bundle', () => {
  it('as OpenSSL 1 wrote it, is read on a machine that cannot write it', async () => {
    const pkcs12File = new URL('../../data/legacy.p12', import.meta.url)
    const identity = await loaded({ pkcs12File, passphrase: 'secret' })
    expect(identity).toMatchObject({ registrationId: 'dev-1', keyCurve: 'P-256' })
  })

  it.each(
    written([
      ['modern, EC', () => ec, []],
      ['modern, RSA', () => rsa, []],
      ['legacy, EC', () => ec, ['-legacy']],
      ['legacy, RSA', () => rsa, ['-legacy']],
      [
        'with a SHA-512 MAC and AES-128',
        () => ec,
        ['-macalg', 'sha512', '-keypbe', 'aes-128-cbc', '-certpbe', 'aes-192-cbc'],
      ],
      ['with 3DES under PBES2', () => ec, ['-keypbe', 'des-ede3-cbc', '-certpbe', 'des-ede3-cbc']],
      ['with 3DES of two keys', () => ec, ['-keypbe', 'PBE-SHA1-2DES', '-certpbe', 'PBE-SHA1-2DES']],
      [
        'whose key too is under RC2',
        () => rsa,
        ['-legacy', '-keypbe', 'PBE-SHA1-RC2-40', '-certpbe', 'PBE-SHA1-RC2-128'],
      ],
      ['with certificates in the clear', () => ec, ['-certpbe', 'NONE']],
      ['with nothing encrypted', () => ec, ['-certpbe', 'NONE', '-keypbe', 'NONE']],
      ['without a MAC', () => ec, ['-nomac']],
      ['of one iteration', () => ec, ['-noiter', '-nomaciter']],
    ] as [string, () => Issued, string[]][]),
  )('%s, is a certificate, its chain and its key', async (_, device, args) => {
    const identity = await loaded({ pkcs12: bundle(device(), 'secret', ...args), passphrase: 'secret' })
    const alone = await loaded({ cert: device().cert + intermediate.cert, key: device().key })
    expect(identity.registrationId).toBe('dev-1')
    expect(identity.fingerprint).toBe(alone.fingerprint)
    expect(identity.keyCurve).toBe(alone.keyCurve)
    expect(identity.tls?.cert).toBe(alone.tls?.cert)
    // Decrypted only while OpenSSL reads it.
    expect(identity.tls?.key).toContain('BEGIN ENCRYPTED PRIVATE KEY')
    expect(identity.tls).not.toHaveProperty('pfx')
    const text = inspect(identity, { depth: 9 }) + JSON.stringify(identity)
    expect(text).not.toContain('secret')
    expect(text).not.toContain('PRIVATE KEY')
  })

  it.each(written([[[]], [['-legacy']]]))('%j with an empty passphrase needs none', async (args) => {
    for (const passphrase of [undefined, '']) {
      const pkcs12 = bundle(ec, '', ...args)
      const identity = await loaded({ pkcs12, ...(passphrase !== undefined && { passphrase }) })
      expect(identity.registrationId).toBe('dev-1')
    }
  })

  it.each(written([[[]], [['-legacy']]]))('%j with a passphrase of any language', async (args) => {
    const passphrase = 'pässwörd €😀 ключ'
    const pkcs12 = bundle(ec, passphrase, ...args)
    expect((await loaded({ pkcs12, passphrase })).registrationId).toBe('dev-1')
  })

  it('in a file is read again for every connection', async () => {
    const pkcs12File = openssl.write('device.p12', bundle(ec))
    const credential = x509({ pkcs12File, passphrase: 'secret' })
    const before = await credential.load()
    expect(await credential.load()).toBe(before)
    openssl.write('device.p12', bundle(rsa))
    const after = await credential.load()
    expect(after.fingerprint).not.toBe(before.fingerprint)
    expect(after.keyCurve).toBeUndefined()
  })

  it('may come from a function, and is kept as it was where it is bytes', async () => {
    expect((await loaded({ pkcs12: async () => bundle(ec), passphrase: 'secret' })).registrationId).toBe(
      'dev-1',
    )
    const pkcs12 = bundle(ec, '', '-certpbe', 'NONE', '-keypbe', 'NONE')
    const credential = x509({ pkcs12 })
    pkcs12.fill(0)
    expect((await credential.load()).registrationId).toBe('dev-1')
  })

  it('in BER, of indefinite lengths and pieces, is read as well', async () => {
    // As Bouncy Castle writes it: the outermost structures without a length, the content in two pieces.
    const der = bundle(ec, 'secret')
    const { children } = parse(der)
    const [version, safe, mac] = children as [Tlv, Tlv, Tlv]
    const [type, content] = safe.children as [Tlv, Tlv]
    const octets = content.children[0]!.content
    const open = (tag: number, ...parts: Buffer[]) =>
      Buffer.concat([Buffer.of(tag, 0x80), ...parts, Buffer.alloc(2)])
    const piece = (bytes: Buffer) =>
      Buffer.concat([Buffer.of(0x04, 0x82, bytes.length >> 8, bytes.length & 0xff), bytes])
    const pieces = open(0x24, piece(octets.subarray(0, 300)), piece(octets.subarray(300)))
    const ber = open(0x30, version.whole, open(0x30, type.whole, open(0xa0, pieces)), mac.whole)
    expect((await loaded({ pkcs12: ber, passphrase: 'secret' })).registrationId).toBe('dev-1')
  })
})

/** The 2048 iterations that OpenSSL does, in DER. */
const COUNT = Buffer.from('02020800', 'hex')

interface Tlv {
  readonly whole: Buffer
  readonly content: Buffer
  readonly children: Tlv[]
}

function parse(bytes: Buffer, at = 0): Tlv {
  const long = bytes[at + 1]! >= 0x80
  const size = long ? bytes[at + 1]! & 0x7f : 0
  const length = long ? bytes.readUIntBE(at + 2, size) : bytes[at + 1]!
  const start = at + 2 + size
  const content = bytes.subarray(start, start + length)
  const children: Tlv[] = []
  if ((bytes[at]! & 0x20) !== 0) {
    for (let next = 0; next < content.length; next += children.at(-1)!.whole.length)
      children.push(parse(content, next))
  }
  return { whole: bytes.subarray(at, start + length), content, children }
}

describe('a bundle that cannot be used', () => {
  it.each(written([[[]], [['-legacy']], [['-nomac']]]))('%j, for a wrong passphrase', async (args) => {
    const error = await refusal(bundle(ec, 'secret', ...args), 'Secret')
    expect(error.message).toMatch(/passphrase/)
    expect(inspect(error, { depth: 9 })).not.toContain('Secret')
  })

  it('for no passphrase says that it needs one', async () => {
    expect((await refusal(bundle(ec))).message).toContain('give its `passphrase`')
  })

  it('without a key', async () => {
    openssl.write('p12.pem', ec.cert)
    const only = openssl.run(['pkcs12', '-export', '-nokeys', '-in', 'p12.pem', '-passout', 'pass:secret'])
    expect((await refusal(only, 'secret')).message).toContain('no private key')
  })

  it('without a certificate', async () => {
    openssl.write('p12.key', ec.key)
    const only = openssl.run([
      'pkcs12',
      '-export',
      '-nocerts',
      '-inkey',
      'p12.key',
      '-passout',
      'pass:secret',
    ])
    expect((await refusal(only, 'secret')).message).toContain('no certificate')
  })

  it('with two keys', async () => {
    // The second key of the same file: its safe once more, under a MAC of its own.
    const der = bundle(ec, 'secret', '-certpbe', 'NONE', '-keypbe', 'NONE', '-nomac')
    const [version, safe] = parse(der).children as [Tlv, Tlv]
    const authenticated = parse(safe.children[1]!.children[0]!.content)
    const parts = authenticated.children.map(({ whole }) => whole)
    const twice = sequence(...parts, parts.at(-1)!)
    const file = sequence(version.whole, sequence(safe.children[0]!.whole, wrap(0xa0, wrap(0x04, twice))))
    expect((await refusal(file)).message).toContain('2 private keys')
  })

  it('of another device’s key', async () => {
    const der = bundle(ec, '', '-certpbe', 'NONE', '-keypbe', 'NONE', '-nomac')
    const other = bundle(rsa, '', '-certpbe', 'NONE', '-keypbe', 'NONE', '-nomac')
    const partsOf = (file: Buffer) =>
      parse(parse(file).children[1]!.children[1]!.children[0]!.content).children
    const [version, safe] = parse(der).children as [Tlv, Tlv]
    const mixed = sequence(partsOf(der)[0]!.whole, partsOf(other)[1]!.whole)
    const file = sequence(version.whole, sequence(safe.children[0]!.whole, wrap(0xa0, wrap(0x04, mixed))))
    await expect(x509({ pkcs12: file }).load()).rejects.toMatchObject({
      code: 'CREDENTIAL_KEY_MISMATCH',
      message: expect.stringContaining('`pkcs12`'),
    })
  })

  it.each([
    ['of the MAC', [], (file: Buffer) => file.lastIndexOf(COUNT)],
    ['of the certificates', ['-nomac'], (file: Buffer) => file.indexOf(COUNT)],
  ] as const)('that asks for absurd iterations %s, at once', async (_, args, find) => {
    const file = bundle(ec, 'secret', ...args)
    expect((await refusal(replaceCount(file, find(file)), 'secret')).message).toContain(
      'asks for more iterations',
    )
  })

  it('whose key asks for absurd iterations, in the bundle or alone', async () => {
    const encrypted = openssl.run(['pkcs8', '-topk8', '-outform', 'DER', '-passout', 'pass:secret'], ec.key)
    const at = encrypted.indexOf(COUNT)
    const key = replaceCount(encrypted, at)
    await expect(x509({ cert: ec.cert, key, passphrase: 'secret' }).load()).rejects.toMatchObject({
      code: 'CREDENTIAL_UNREADABLE',
      message: expect.stringContaining('asks for more iterations'),
    })
    const file = bundle(ec, 'secret', '-certpbe', 'NONE', '-nomac')
    const inside = replaceCount(file, file.lastIndexOf(COUNT))
    await expect(x509({ pkcs12: inside, passphrase: 'secret' }).load()).rejects.toMatchObject({
      message: expect.stringContaining('asks for more iterations'),
    })
  })

  it('whose key hides the number in BER, where OpenSSL finds it and is busy', async () => {
    const [algorithm, data] = parse(
      openssl.run(['pkcs8', '-topk8', '-outform', 'DER', '-passout', 'pass:secret'], ec.key),
    ).children as [Tlv, Tlv]
    const [scheme, parameters] = algorithm.children as [Tlv, Tlv]
    const [kdf, cipher] = parameters.children as [Tlv, Tlv]
    const open = (content: Buffer) => Buffer.concat([Buffer.of(0x30, 0x80), content, Buffer.alloc(2)])
    const hidden = sequence(kdf.children[0]!.whole, open(kdf.children[1]!.content))
    const key = sequence(sequence(scheme.whole, sequence(hidden, cipher.whole)), data.whole)
    // OpenSSL itself reads it.
    expect(createPrivateKey({ key, format: 'der', type: 'pkcs8', passphrase: 'secret' }).type).toBe('private')
    await expect(x509({ cert: ec.cert, key, passphrase: 'secret' }).load()).rejects.toMatchObject({
      code: 'CREDENTIAL_UNREADABLE',
      message: expect.stringContaining('PKCS#8 in DER'),
    })
  })

  it.each([
    ['cut short', (file: Buffer) => file.subarray(0, -20)],
    ['with bytes after its end', (file: Buffer) => Buffer.concat([file, Buffer.of(0)])],
    ['empty', () => Buffer.alloc(0)],
    ['of zeros', (file: Buffer) => Buffer.alloc(file.length)],
    ['nested without end', () => Buffer.concat(Array(5000).fill(Buffer.of(0x30, 0x80)))],
    ['with a changed byte in what the MAC covers', (file: Buffer) => flipped(file, 200)],
    ['with a changed MAC', (file: Buffer) => flipped(file, file.length - 40)],
  ])('that is damaged: %s', async (_, damage) => {
    await refusal(damage(bundle(ec)), 'secret')
  })

  it('that is larger than 1 MiB', async () => {
    expect((await refusal(Buffer.alloc(1024 * 1024 + 1, 0x30))).message).toContain('larger than 1 MiB')
    const pkcs12File = openssl.write('huge.p12', Buffer.alloc(1024 * 1024 + 1, 0x30))
    await expect(x509({ pkcs12File }).load()).rejects.toMatchObject({ code: 'CREDENTIAL_UNREADABLE' })
  })

  it('that is something else', async () => {
    expect((await refusal(Buffer.from(ec.cert))).message).toContain('`pkcs12` is PEM')
    expect((await refusal(new X509Certificate(ec.cert).raw)).message).toContain('in DER as `cert`')
    await expect(x509({ pkcs12: (() => 'MII') as never }).load()).rejects.toMatchObject({
      code: 'CREDENTIAL_UNREADABLE',
      message: expect.stringContaining('must be bytes'),
    })
  })

  it('as `certFile` is told where it belongs', async () => {
    const certFile = openssl.write('cert.p12', bundle(ec))
    await expect(x509({ certFile, key: ec.key }).load()).rejects.toThrow('give it as `pkcs12File`')
  })

  it('never throws anything else, whichever byte is changed', async () => {
    for (const args of written([[], ['-legacy'], ['-nomac', '-certpbe', 'NONE', '-keypbe', 'NONE']])) {
      const file = bundle(ec, 'secret', '-noiter', '-nomaciter', ...args)
      for (let at = 0; at < file.length; at += 3) {
        const end = await x509({ pkcs12: flipped(file, at), passphrase: 'secret' })
          .load()
          .then(
            ({ registrationId }) => registrationId,
            (error) => error,
          )
        if (typeof end !== 'string')
          expect(end).toMatchObject({ phase: 'config', code: expect.stringMatching(/^CREDENTIAL_/) })
      }
    }
  })
})

function flipped(file: Buffer, at: number): Buffer {
  const copy = Buffer.from(file)
  copy[at]! ^= 0x41
  return copy
}

const wrap = (tag: number, content: Buffer) =>
  Buffer.concat([Buffer.of(tag, 0x82, content.length >> 8, content.length & 0xff), content])
const sequence = (...parts: Buffer[]) => wrap(0x30, Buffer.concat(parts))

/** The structure again with a count of 2 147 483 647 where one of 2048 was, all lengths around it put right. */
function replaceCount(file: Buffer, at: number): Buffer {
  const rebuilt = (bytes: Buffer, offset: number): Buffer => {
    const { content, children } = parse(bytes)
    const tag = bytes[0]!
    if (offset === 0 && bytes.equals(COUNT)) return Buffer.from('02047fffffff', 'hex')
    // An octet string may hold a structure of its own.
    const inner = tag === 0x04 && content[0] === 0x30 ? [parse(content)] : children
    let start = bytes.length - content.length
    const parts = inner.map(({ whole }) => {
      const part = offset >= start && offset < start + whole.length ? rebuilt(whole, offset - start) : whole
      start += whole.length
      return part
    })
    return inner.length === 0 ? bytes : wrap(tag, Buffer.concat(parts))
  }
  return rebuilt(file, at)
}

describe('options', () => {
  it.each([
    ['both ways', { pkcs12: Buffer.of(1), pkcs12File: 'a.p12' }],
    ['with a certificate', { pkcs12: Buffer.of(1), cert: 'x' }],
    ['with a key file', { pkcs12File: 'a.p12', keyFile: 'k' }],
    ['with an engine', { pkcs12File: 'a.p12', privateKeyEngine: 'e', privateKeyIdentifier: 'i' }],
    ['with a passphrase that is none', { pkcs12File: 'a.p12', passphrase: 5 }],
    ['with a path that is none', { pkcs12File: '' }],
  ])('%s are refused', (_, options) => {
    expect(() => x509(options as never)).toThrow(expect.objectContaining({ code: 'OPTION_INVALID' }))
  })
})
