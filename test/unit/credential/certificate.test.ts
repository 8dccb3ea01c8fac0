import { X509Certificate } from 'node:crypto'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { commonNamesOf } from '../../../src/credential/certificate.ts'
import { childrenOf } from '../../../src/credential/pem.ts'
import { inspectCredential, x509 } from '../../../src/index.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { OpenSsl } from './certificates.ts'

const openssl = new OpenSsl()
afterAll(() => openssl.remove())

const { cert, key } = openssl.issue()
const whole = childrenOf({ content: new X509Certificate(cert).raw })[0]!
const [signed, ...signature] = childrenOf(whole)
const fields = childrenOf(signed)

function tlv(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(parts)
  const head = Buffer.from([tag, 0x82, 0, 0])
  head.writeUInt16BE(content.length, 2)
  return Buffer.concat([head, content])
}

type Attribute = readonly [oid: string, tag: number, value: Uint8Array]

/** The certificate with this name in place of its own, which no signature is over. */
function named(...parts: readonly (readonly Attribute[])[]): X509Certificate {
  const attribute = ([oid, tag, value]: Attribute) =>
    tlv(0x30, tlv(6, Buffer.from(oid, 'hex')), tlv(tag, value))
  const name = tlv(0x30, ...parts.map((part) => tlv(0x31, ...part.map(attribute))))
  const content = fields.map((field, i) => (i === 5 ? name : tlv(field.tag, field.content)))
  return new X509Certificate(
    tlv(0x30, tlv(0x30, ...content), ...signature.map((one) => tlv(one.tag, one.content))),
  )
}

const CN = '550403'
const O = '55040a'
const ascii = (text: string): Buffer => Buffer.from(text, 'latin1')

/** What OpenSSL makes of it, by Node: only for a key that both know. */
const oracle = (certificate: X509Certificate): readonly string[] =>
  ([] as string[]).concat(certificate.toLegacyObject().subject?.CN ?? [])

describe('the common names of a certificate', () => {
  it.each<[string, readonly (readonly Attribute[])[], readonly string[]]>([
    ['none', [[[O, 0x0c, ascii('Contoso')]]], []],
    ['no attribute at all', [], []],
    ['PrintableString', [[[CN, 0x13, ascii('dev-1')]]], ['dev-1']],
    ['UTF8String', [[[CN, 0x0c, Buffer.from('Gerät')]]], ['Gerät']],
    ['T61String', [[[CN, 0x14, ascii('Ger\u00e4t')]]], ['Gerät']],
    ['IA5String', [[[CN, 0x16, ascii('dev-1')]]], ['dev-1']],
    ['BMPString', [[[CN, 0x1e, Buffer.from('Gerät', 'utf16le').swap16()]]], ['Gerät']],
    ['UniversalString', [[[CN, 0x1c, Buffer.from('000000640001f600', 'hex')]]], ['d😀']],
    ['several', [[[CN, 0x0c, ascii('a')]], [[O, 0x0c, ascii('o')]], [[CN, 0x0c, ascii('b')]]], ['a', 'b']],
    [
      'several in one part',
      [
        [
          [CN, 0x0c, ascii('a')],
          [CN, 0x0c, ascii('b')],
        ],
      ],
      ['a', 'b'],
    ],
    [
      'one that imitates another attribute',
      [
        [
          [O, 0x0c, ascii('x\nCN=dev-2')],
          [CN, 0x0c, ascii('dev-1')],
        ],
      ],
      ['dev-1'],
    ],
    ['one that imitates itself', [[[CN, 0x0c, ascii('a, CN=b')]]], ['a, CN=b']],
    ['one with NUL in it', [[[CN, 0x0c, ascii('dev-1\0.evil')]]], ['dev-1\0.evil']],
  ])('%s', (_, parts, expected) => {
    expect(commonNamesOf(named(...parts))).toEqual(expected)
  })

  it('are those that OpenSSL reads', () => {
    const text = fc.string({ minLength: 1, maxLength: 20, unit: 'binary' })
    const value = fc.oneof(
      text.map((one): readonly [number, Uint8Array] => [0x0c, Buffer.from(one)]),
      fc.stringMatching(/^[A-Za-z0-9 '()+,./:=?-]{1,20}$/).map((one) => [0x13, ascii(one)] as const),
      text.map(
        (one) => [0x1e, Buffer.from(one.replace(/[\ud800-\udfff]/g, ''), 'utf16le').swap16()] as const,
      ),
    )
    const attribute = fc
      .tuple(fc.constantFrom(CN, CN, O), value)
      .map(([oid, [tag, content]]): Attribute => [oid, tag, content])
    const parts = fc.array(fc.array(attribute, { minLength: 1, maxLength: 3 }), { maxLength: 4 })
    fc.assert(
      fc.property(parts, (given) => {
        let certificate: X509Certificate
        try {
          certificate = named(...given)
        } catch {
          // Such as a BMPString of no length.
          return fc.pre(false)
        }
        expect(commonNamesOf(certificate)).toEqual(oracle(certificate))
      }),
      { numRuns: 300 },
    )
  })
})

describe('a certificate whose key OpenSSL cannot read', () => {
  // In DER: id-ecPublicKey, and a last arc that nobody has given out.
  const [known, unknown] = ['06072a8648ce3d0201', '06072a8648ce3d027f'].map((hex) => Buffer.from(hex, 'hex'))
  const raw = Buffer.from(new X509Certificate(cert).raw)
  raw.set(unknown!, raw.indexOf(known!))
  const credential = x509({ cert: raw, key })

  it('is refused, on every version of Node', async () => {
    // No key can be shown to be that of it.
    await expectDpsError(credential.load(), 'CREDENTIAL_KEY_MISMATCH', 'config')
  })

  it('is inspected all the same', async () => {
    const { ok, findings } = await inspectCredential(credential)
    expect(ok).toBe(false)
    expect(findings.map(({ id }) => id)).toContain('key-unsupported')
  })
})
