import { execFileSync } from 'node:child_process'
import {
  constants,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  sign,
  verify,
} from 'node:crypto'
import { inspect } from 'node:util'
import { describe, expect, it } from 'vitest'
import { type CreateCsrOptions, createCsr, type KeySigner } from '../../../src/factory/index.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const registrationId = 'sensor-1:a.b_c'

const ec = (namedCurve: string, more: object = {}) => generateKeyPairSync('ec', { namedCurve, ...more })
const rsa = (modulusLength: number) => generateKeyPairSync('rsa', { modulusLength })
const pkcs8 = (key: KeyObject) => key.export({ type: 'pkcs8', format: 'pem' }) as string
const spki = (key: KeyObject) => key.export({ type: 'spki', format: 'der' })

/** As OpenSSL reads it; it exits with an error where the signature is not good. */
function openssl(pem: string): string {
  return execFileSync('openssl', ['req', '-verify', '-noout', '-text'], {
    input: pem,
    encoding: 'utf8',
    stdio: ['pipe', 'pipe', 'ignore'],
  })
}

/** One element of DER (X.690): definite lengths in their shortest form, nothing else. */
function element(bytes: Buffer): { tag: number; content: Buffer; whole: Buffer; rest: Buffer } {
  let length = bytes[1]!
  let start = 2
  if (length > 0x80) {
    start += length - 0x80
    length = bytes.readUIntBE(2, start - 2)
    expect(length).toBeGreaterThan(start === 3 ? 0x7f : 0xff)
  }
  const end = start + length
  expect(bytes.length).toBeGreaterThanOrEqual(end)
  return {
    tag: bytes[0]!,
    content: bytes.subarray(start, end),
    whole: bytes.subarray(0, end),
    rest: bytes.subarray(end),
  }
}

function elements(bytes: Buffer): ReturnType<typeof element>[] {
  if (bytes.length === 0) return []
  const first = element(bytes)
  return [first, ...elements(first.rest)]
}

const KINDS: [string, Partial<CreateCsrOptions>, RegExp, string][] = [
  ['by default', {}, /\(384 bit\)[\s\S]*ecdsa-with-SHA384/, '300a06082a8648ce3d040303'],
  ['of P-256', { curve: 'P-256' }, /\(256 bit\)[\s\S]*ecdsa-with-SHA256/, '300a06082a8648ce3d040302'],
  ['of RSA 2048', { rsaBits: 2048 }, /\(2048 bit\)[\s\S]*sha256WithRSA/, '300d06092a864886f70d01010b0500'],
  ['of RSA 4096', { rsaBits: 4096 }, /\(4096 bit\)[\s\S]*sha256WithRSA/, '300d06092a864886f70d01010b0500'],
  ['of RSA 3072', { rsaBits: 3072 }, /\(3072 bit\)[\s\S]*sha256WithRSA/, '300d06092a864886f70d01010b0500'],
]

describe('createCsr', () => {
  it.each(KINDS)(
    'makes a request %s that OpenSSL verifies, and every byte of it is as RFC 2986 has it',
    async (_, kind, text, algorithm) => {
      const made = await createCsr({ registrationId, ...kind } as CreateCsrOptions)
      const printed = openssl(made.pem)
      expect(printed).toMatch(text)
      expect(printed).toMatch(new RegExp(`Subject: CN ?= ?${registrationId}\\n`))

      expect(made.csr).toMatch(/^[A-Za-z0-9+/]+={0,2}$/)
      expect(made.pem.replace(/-----[A-Z ]+-----|\n/g, '')).toBe(made.csr)
      expect(made.pem.split('\n').every((line) => line.length <= 64)).toBe(true)
      const der = Buffer.from(made.csr, 'base64')
      const [request, ...after] = elements(der)
      expect([request!.tag, after]).toEqual([0x30, []])
      const [info, signedWith, signature, ...more] = elements(request!.content)
      expect(more).toEqual([])
      expect(signedWith!.whole.toString('hex')).toBe(algorithm)
      const [version, subject, key, attributes, ...rest] = elements(info!.content)
      expect(rest).toEqual([])
      expect(version!.whole.toString('hex')).toBe('020100')
      const cn = Buffer.from(registrationId)
      const value = Buffer.concat([Buffer.from([0x0c, cn.length]), cn])
      const attribute = Buffer.concat([Buffer.from('0603550403', 'hex'), value])
      const wrapped = (tag: number, content: Buffer) =>
        Buffer.concat([Buffer.from([tag, content.length]), content])
      expect(subject!.whole).toEqual(wrapped(0x30, wrapped(0x31, wrapped(0x30, attribute))))
      expect(attributes!.whole.toString('hex')).toBe('a000')

      const publicKey = createPublicKey(made.publicKey)
      expect(key!.whole).toEqual(spki(publicKey))
      expect(createPublicKey(createPrivateKey(made.key!)).equals(publicKey)).toBe(true)
      expect([signature!.tag, signature!.content[0]]).toEqual([0x03, 0])
      const digest = algorithm.endsWith('40303') ? 'sha384' : 'sha256'
      expect(verify(digest, info!.whole, publicKey, signature!.content.subarray(1))).toBe(true)
    },
  )

  it('makes another key pair for every request', async () => {
    const [a, b] = await Promise.all([createCsr({ registrationId }), createCsr({ registrationId })])
    expect(a.publicKey).not.toBe(b.publicKey)
  })

  it('keeps the spelling of the registration id', async () => {
    expect(openssl((await createCsr({ registrationId: 'MiXeD-Case' })).pem)).toMatch(/CN ?= ?MiXeD-Case\n/)
  })

  it('is frozen, and prints no key', async () => {
    const made = await createCsr({ registrationId })
    expect(Object.isFrozen(made)).toBe(true)
    const secret = made.key!.split('\n')[1]!
    for (const print of [JSON.stringify(made), inspect(made), inspect({ made }, { customInspect: false })]) {
      expect(print).not.toContain(secret)
    }
    expect(JSON.parse(JSON.stringify(made))).toEqual({ ...made, key: '[redacted]' })
  })

  it.each<[string, (key: KeyObject) => string | Uint8Array | KeyObject]>([
    ['PKCS#8 PEM', pkcs8],
    ['SEC1 PEM', (key) => key.export({ type: 'sec1', format: 'pem' }) as string],
    ['PEM bytes', (key) => Buffer.from(pkcs8(key))],
    ['PKCS#8 DER', (key) => new Uint8Array(key.export({ type: 'pkcs8', format: 'der' }))],
    ['a KeyObject', (key) => key],
  ])('takes an existing key as %s, and does not hand it out again', async (_, given) => {
    const { privateKey, publicKey } = ec('P-256')
    const made = await createCsr({ registrationId, key: given(privateKey) })
    expect(Object.keys(made)).toEqual(['csr', 'pem', 'publicKey'])
    expect(createPublicKey(made.publicKey).equals(publicKey)).toBe(true)
    expect(openssl(made.pem)).toContain('ecdsa-with-SHA256')
  })

  it.each<[string, { privateKey: KeyObject; publicKey: KeyObject }, 'sha256' | 'sha384']>([
    ['P-256', ec('P-256'), 'sha256'],
    ['P-384', ec('P-384'), 'sha384'],
    ['RSA', rsa(2048), 'sha256'],
  ])('asks a key in hardware for a signature with %s', async (_, { privateKey, publicKey }, digest) => {
    for (const given of [
      publicKey,
      spki(publicKey),
      publicKey.export({ type: 'spki', format: 'pem' }) as string,
    ]) {
      const asked: unknown[] = []
      const key: KeySigner = {
        publicKey: given,
        sign: async (data, name) => {
          asked.push(name)
          const signature = new Uint8Array(sign(name, data, privateKey))
          data.fill(0)
          return signature
        },
      }
      const made = await createCsr({ registrationId, key })
      expect(asked).toEqual([digest])
      expect(made).not.toHaveProperty('key')
      expect(openssl(made.pem)).toContain(registrationId)
    }
  })

  const chip = ec('P-384')
  const other = ec('P-384')
  it.each<[string, KeySigner['sign']]>([
    ['of another key', (data, digest) => sign(digest, data, other.privateKey)],
    ['of another digest', (data) => sign('sha256', data, chip.privateKey)],
    ['of other data', (data, digest) => sign(digest, data.subarray(1), chip.privateKey)],
    [
      'as bare r and s',
      (data, digest) => sign(digest, data, { key: chip.privateKey, dsaEncoding: 'ieee-p1363' }),
    ],
    ['as base64', (data, digest) => sign(digest, data, chip.privateKey).toString('base64') as never],
    ['that is empty', () => new Uint8Array()],
    ['that is nothing', () => undefined as never],
  ])('refuses a signature %s', async (_, lie) => {
    const error = await expectDpsError(
      createCsr({ registrationId, key: { publicKey: chip.publicKey, sign: lie } }),
      'SIGNER_FAILED',
      'config',
    )
    expect(error.hint).not.toContain('HMAC')
  })

  it('refuses a signature of RSA that is PSS', async () => {
    const { privateKey, publicKey } = rsa(2048)
    const pss: KeySigner['sign'] = (data, digest) =>
      sign(digest, data, { key: privateKey, padding: constants.RSA_PKCS1_PSS_PADDING })
    await expectDpsError(
      createCsr({ registrationId, key: { publicKey, sign: pss } }),
      'SIGNER_FAILED',
      'config',
    )
  })

  it.each<[string, KeySigner['sign']]>([
    [
      'throws',
      () => {
        throw new Error('slot 3 is locked')
      },
    ],
    ['rejects', () => Promise.reject(new Error('slot 3 is locked'))],
  ])('says why a signer failed that %s', async (_, broken) => {
    const made = createCsr({ registrationId, key: { publicKey: chip.publicKey, sign: broken } })
    expect((await expectDpsError(made, 'SIGNER_FAILED', 'config')).cause).toMatchObject({
      message: 'slot 3 is locked',
    })
  })

  const encrypted = chip.privateKey.export({
    type: 'pkcs8',
    format: 'pem',
    cipher: 'aes-256-cbc',
    passphrase: 'p',
  })
  it.each<[string, unknown, 'OPTION_INVALID' | 'CREDENTIAL_UNREADABLE' | 'CREDENTIAL_KEY_UNSUPPORTED']>([
    ['no id', { registrationId: undefined }, 'OPTION_INVALID'],
    ['an id that is none', { registrationId: 'a/b' }, 'OPTION_INVALID'],
    ['an id longer than a CN', { registrationId: 'x'.repeat(65) }, 'OPTION_INVALID'],
    ['an option that nothing reads', { subject: 'CN=x' }, 'OPTION_INVALID'],
    ['a curve and a key', { curve: 'P-256', key: chip.privateKey }, 'OPTION_INVALID'],
    ['a curve and RSA', { curve: 'P-256', rsaBits: 2048 }, 'OPTION_INVALID'],
    ['another curve', { curve: 'P-521' }, 'OPTION_INVALID'],
    ['another length', { rsaBits: 1024 }, 'OPTION_INVALID'],
    ['a public key', { key: chip.publicKey }, 'OPTION_INVALID'],
    ['a key that is none', { key: 7 }, 'OPTION_INVALID'],
    ['a signer without its function', { key: { publicKey: chip.publicKey } }, 'OPTION_INVALID'],
    ['an encrypted key', { key: encrypted }, 'CREDENTIAL_UNREADABLE'],
    ['no PEM', { key: 'secret' }, 'CREDENTIAL_UNREADABLE'],
    [
      'a private key where the public one belongs',
      { key: { publicKey: chip.privateKey, sign } },
      'CREDENTIAL_UNREADABLE',
    ],
    ['no public key', { key: { publicKey: 'x', sign } }, 'CREDENTIAL_UNREADABLE'],
    ['no public key at all', { key: { sign } }, 'CREDENTIAL_UNREADABLE'],
    ['a key on P-521', { key: ec('P-521').privateKey }, 'CREDENTIAL_KEY_UNSUPPORTED'],
    [
      'a key with explicit parameters',
      { key: ec('P-256', { paramEncoding: 'explicit' }).privateKey },
      'CREDENTIAL_KEY_UNSUPPORTED',
    ],
    ['a short RSA key', { key: rsa(1024).privateKey }, 'CREDENTIAL_KEY_UNSUPPORTED'],
    [
      'an RSA-PSS key',
      { key: generateKeyPairSync('rsa-pss', { modulusLength: 2048 }).privateKey },
      'CREDENTIAL_KEY_UNSUPPORTED',
    ],
    ['an Ed25519 key', { key: generateKeyPairSync('ed25519').privateKey }, 'CREDENTIAL_KEY_UNSUPPORTED'],
  ])('refuses %s', async (_, options, code) => {
    await expectDpsError(createCsr({ registrationId, ...(options as object) } as never), code, 'config')
  })

  it('refuses no options at all', async () => {
    await expectDpsError(createCsr(undefined as never), 'OPTION_INVALID', 'config')
  })
})
