import { execFileSync } from 'node:child_process'
import { createPublicKey, generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { checkIssuedChain, FRESH_TOLERANCE_MS } from '../../../src/credential/issued-chain.ts'
import {
  type CertificateIssuer,
  type IssueCertificateOptions,
  type IssuedCertificate,
  issueCertificate,
  type SignedCertificate,
} from '../../../src/emulator/index.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { opensslCsr } from '../emulator/raw-csr.ts'

const NOW = Date.UTC(2026, 10, 24)
const DAY = 86_400_000
const dates = { notBefore: new Date(NOW - 60_000), notAfter: new Date(NOW + 30 * DAY) }
const ca = { ca: true, keyType: 'ec-p384', digest: 'sha384', ...dates } as const

const spkiPem = (key: KeyObject) => key.export({ type: 'spki', format: 'pem' }) as string
const own = generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey
const stranger = generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey

const leafFor = (
  issuer: CertificateIssuer,
  more: Partial<IssueCertificateOptions> = {},
  publicKey: KeyObject = own,
): Promise<SignedCertificate> =>
  issueCertificate({
    subject: 'sensor-1',
    issuer,
    digest: 'sha384',
    ...dates,
    ...more,
    publicKey: spkiPem(publicKey),
  })

let root: IssuedCertificate
let issuing: IssuedCertificate
let leaf: SignedCertificate
/** By the names of the true ones, with another key. */
let forged: { root: IssuedCertificate; issuing: IssuedCertificate }

beforeAll(async () => {
  root = await issueCertificate({ ...ca, subject: 'Root' })
  issuing = await issueCertificate({ ...ca, subject: 'Issuing CA', issuer: root })
  leaf = await leafFor(issuing)
  const other = await issueCertificate({ ...ca, subject: 'Root' })
  forged = {
    root: other,
    issuing: await issueCertificate({ ...ca, subject: 'Issuing CA', issuer: other }),
  }
})

const der = ({ certPem }: SignedCertificate) => new X509Certificate(certPem).raw.toString('base64')
const pem64 = ({ certPem }: SignedCertificate) => Buffer.from(certPem).toString('base64')
const check = (elements: unknown, nowMs = NOW, names: readonly string[] = ['sensor-1']) =>
  checkIssuedChain({ elements, publicKey: own, names, nowMs })
const refuses = (elements: unknown, why: RegExp, nowMs?: number, names?: string[]) =>
  expectDpsError(() => check(elements, nowMs, names), 'ISSUED_CERTIFICATE_INVALID', 'parse').then((error) => {
    expect(error.message).toMatch(why)
    expect(error.message).not.toMatch(/\p{Cc}/u)
    return error
  })

describe('an issued chain', () => {
  it('is told leaf first, with the facts of the leaf', () => {
    const { chain, chainPem, leaf: told } = check([der(leaf), der(issuing), der(root)])
    expect(chain).toEqual([leaf.certPem, issuing.certPem, root.certPem])
    expect(chainPem).toBe(chain.join(''))
    const certificate = new X509Certificate(leaf.certPem)
    expect(told).toEqual({
      commonName: 'sensor-1',
      serialNumber: certificate.serialNumber,
      fingerprint256: leaf.fingerprint256,
      validFromMs: dates.notBefore.getTime(),
      validUntilMs: dates.notAfter.getTime(),
    })
    expect([chain, told].every((value) => Object.isFrozen(value))).toBe(true)
  })

  const ways: [string, () => unknown[]][] = [
    ['in the reverse order', () => [der(root), der(issuing), der(leaf)]],
    ['in no order', () => [der(issuing), der(root), der(leaf)]],
    ['as base64 of PEM', () => [pem64(leaf), pem64(issuing), pem64(root)]],
    ['as PEM', () => [leaf.certPem, issuing.certPem, root.certPem]],
    ['as one PEM text', () => [leaf.certPem + issuing.certPem + root.certPem]],
    ['as PEM with CRLF', () => [leaf.certPem.replaceAll('\n', '\r\n'), der(issuing), der(root)]],
    [
      'with line breaks in the base64',
      () => [der(leaf).replace(/(.{64})/g, '$1\r\n'), der(issuing), der(root)],
    ],
    ['each in another encoding', () => [pem64(leaf), der(issuing), root.certPem]],
    ['with duplicates', () => [der(leaf), pem64(leaf), der(issuing), der(root), der(issuing)]],
  ]
  it.each(ways)('is understood %s', (_, elements) => {
    expect(check(elements()).chain).toEqual([leaf.certPem, issuing.certPem, root.certPem])
  })

  it('may leave the root out', () => {
    expect(check([der(issuing), der(leaf)]).chain).toEqual([leaf.certPem, issuing.certPem])
  })

  it('loses what has to do with nothing', async () => {
    const unrelated = await issueCertificate({ ...ca, subject: 'Unrelated' })
    const neighbour = await leafFor(issuing, {}, stranger)
    expect(check([der(unrelated), der(leaf), der(issuing), der(neighbour)]).chain).toEqual([
      leaf.certPem,
      issuing.certPem,
    ])
  })

  it('finds the true issuer beside one of the same name', () => {
    const { chain } = check([der(leaf), der(forged.issuing), der(forged.root), der(issuing), der(root)])
    expect(chain).toEqual([leaf.certPem, issuing.certPem, root.certPem])
  })

  it('ends where two authorities have signed each other', async () => {
    const a = await issueCertificate({ ...ca, subject: 'A' })
    const b = await issueCertificate({ ...ca, subject: 'B', issuer: a })
    const again = await issueCertificate({ ...ca, subject: 'A', key: a.keyPem, issuer: b })
    const { chain } = check([der(b), der(again), der(await leafFor(again))])
    expect(chain).toHaveLength(3)
    expect(chain.slice(1)).toEqual([again.certPem, b.certPem])
  })

  it('bears the registration id or the device id as its CN, in any letter case', async () => {
    expect(check([der(leaf), der(issuing)], NOW, ['SENSOR-1']).leaf.commonName).toBe('sensor-1')
    const device = await leafFor(issuing, { subject: 'asset-9' })
    expect(check([der(device), der(issuing)], NOW, ['sensor-1', 'asset-9']).leaf.commonName).toBe('asset-9')
  })

  it('may be for an RSA key, and signed by one', async () => {
    const { publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
    const authority = await issueCertificate({ ...ca, subject: 'R', keyType: 'rsa-2048' })
    const elements = [der(await leafFor(authority, {}, publicKey)), der(authority)]
    const again = createPublicKey(spkiPem(publicKey))
    expect(
      checkIssuedChain({ elements, publicKey: again, names: ['sensor-1'], nowMs: NOW }).chain,
    ).toHaveLength(2)
  })

  it('may begin a little later than now, and not more', async () => {
    const elements = [der(leaf), der(issuing), der(root)]
    const from = dates.notBefore.getTime()
    expect(check(elements, from - FRESH_TOLERANCE_MS).chain).toHaveLength(3)
    const error = await refuses(elements, /by this device's clock it is/, from - FRESH_TOLERANCE_MS - 1)
    expect(error.hint).toContain('clock')
  })

  it('has ended at its last moment', async () => {
    const elements = [der(leaf), der(issuing), der(root)]
    const until = dates.notAfter.getTime()
    expect(check(elements, until - 1).chain).toHaveLength(3)
    await refuses(elements, /valid from 2026-11-23T23:59:00Z to 2026-12-24T00:00:00Z/, until)
  })
})

describe('no chain', () => {
  it.each([
    ['absent', undefined],
    ['null', null],
    ['empty', []],
  ])('%s is a certificate that was not issued', async (_, elements) => {
    await expectDpsError(() => check(elements), 'CERTIFICATE_NOT_ISSUED', 'parse')
  })
})

describe('a lie in an issued chain', () => {
  const lies: [string, () => unknown | Promise<unknown>, RegExp][] = [
    ['a text in place of the list', () => der(leaf), /no list of at most 10/],
    ['an object in place of the list', () => ({ 0: der(leaf), length: 1 }), /no list of at most 10/],
    ['more elements than any chain has', () => Array(11).fill(der(leaf)), /no list of at most 10/],
    [
      'more certificates than any chain has, in one element',
      async () => {
        const many = await Promise.all(Array.from({ length: 10 }, () => leafFor(issuing, {}, stranger)))
        return [der(leaf), many.map(({ certPem }) => certPem).join('')]
      },
      /more than 10 certificates/,
    ],
    ['an element that is no text', () => [7, der(issuing)], /element 1 of the chain is no text/],
    ['an element that is null', () => [der(leaf), null], /element 2 of the chain is no text/],
    [
      'an element that is large',
      () => [der(leaf), 'A'.repeat(16_388)],
      /element 2 of the chain has more than/,
    ],
    ['an element that is empty', () => [der(leaf), ''], /element 2 of the chain.* is empty/],
    ['an element that is no base64', () => [der(leaf), 'no~base64'], /element 2 .*base64/],
    [
      'random bytes',
      () => [Buffer.alloc(400, 0x5a).toString('base64'), der(issuing)],
      /element 1 of the chain/,
    ],
    [
      'a certificate that is cut short',
      () => [der(leaf).slice(0, 400), der(issuing)],
      /element 1 .*damaged DER/,
    ],
    [
      'bytes after a certificate',
      () => [Buffer.concat([Buffer.from(der(leaf), 'base64'), Buffer.of(0)]).toString('base64')],
      /element 1 .*damaged DER/,
    ],
    [
      'a key in place of a certificate',
      () => [Buffer.from(issuing.keyPem).toString('base64')],
      /a private key, not a certificate/,
    ],
    ['PEM that is cut short', () => [leaf.certPem.slice(0, 300)], /cut off/],
    [
      'a certificate for another key',
      async () => [der(await leafFor(issuing, {}, stranger)), der(issuing)],
      /none in the reply is for the public key/,
    ],
    ['only the authorities', () => [der(issuing), der(root)], /none in the reply is for the public key/],
    [
      'two certificates for the key',
      async () => [der(leaf), der(await leafFor(issuing)), der(issuing)],
      /2 in the reply are for the public key/,
    ],
    ['the leaf alone', () => [der(leaf)], /its issuer, CN=Issuing CA, is not in the reply/],
    [
      'the leaf and an authority that did not issue it',
      () => [der(leaf), der(root)],
      /its issuer, CN=Issuing CA, is not in the reply/,
    ],
    [
      'a leaf signed by another key',
      async () => [
        der(await leafFor({ ...issuing, keyPem: forged.issuing.keyPem })),
        der(issuing),
        der(root),
      ],
      /CN=sensor-1 was not signed by CN=Issuing CA/,
    ],
    [
      'an authority signed by another key',
      () => [der(leaf), der(issuing), der(forged.root)],
      /CN=Issuing CA was not signed by CN=Root/,
    ],
    [
      'an issuer that is no CA',
      async () => {
        const fake = await issueCertificate({
          subject: 'Fake',
          issuer: root,
          keyUsage: ['keyCertSign'],
          ...dates,
        })
        return [der(await leafFor(fake)), der(fake), der(root)]
      },
      /CN=sensor-1 was not signed by CN=Fake/,
    ],
    [
      'another CN',
      async () => [der(await leafFor(issuing, { subject: 'sensor-2' })), der(issuing)],
      /its CN is "sensor-2", not "sensor-1"/,
    ],
    [
      'a CN with control characters',
      async () => [der(await leafFor(issuing, { subject: 'sensor-1\u001b[2J\n' })), der(issuing)],
      /its CN is "sensor-1\?\[2J\?", not "sensor-1"/,
    ],
    [
      'a leaf that has expired',
      async () => [der(await leafFor(issuing, { notAfter: new Date(NOW - 1000) })), der(issuing)],
      /CN=sensor-1 is valid from/,
    ],
    [
      'a leaf that begins next week',
      async () => [der(await leafFor(issuing, { notBefore: new Date(NOW + 7 * DAY) })), der(issuing)],
      /CN=sensor-1 is valid from/,
    ],
    [
      'an authority that has expired',
      async () => {
        const old = await issueCertificate({
          ...ca,
          subject: 'Old CA',
          issuer: root,
          notAfter: new Date(NOW - 1000),
        })
        return [der(await leafFor(old)), der(old), der(root)]
      },
      /CN=Old CA is valid from/,
    ],
  ]
  it.each(lies)('%s is refused', async (_, elements, why) => {
    await refuses(await elements(), why)
  })

  it('a second CN is refused, whatever the first is', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'issued-'))
    try {
      const { csr, publicKey } = opensslCsr('/CN=sensor-1/CN=sensor-2')
      const file = (name: string) => join(folder, name)
      writeFileSync(file('csr'), Buffer.from(csr, 'base64'))
      writeFileSync(file('ca.pem'), issuing.certPem)
      writeFileSync(file('ca.key'), issuing.keyPem)
      const authority = ['-CA', file('ca.pem'), '-CAkey', file('ca.key'), '-set_serial', '1', '-days', '400']
      const args = ['x509', '-req', '-inform', 'DER', '-in', file('csr'), ...authority, '-outform', 'DER']
      const twice = execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'ignore'] })
      const elements = [twice.toString('base64'), der(issuing)]
      const given = { elements, publicKey: createPublicKey(publicKey), nowMs: NOW }
      for (const names of [['sensor-1'], ['sensor-2'], ['sensor-1', 'sensor-2']]) {
        const error = await expectDpsError(
          () => checkIssuedChain({ ...given, names }),
          'ISSUED_CERTIFICATE_INVALID',
          'parse',
        )
        expect(error.message).toContain('its CN is "sensor-1" and "sensor-2"')
      }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it('a certificate that signs itself is refused', async () => {
    const { keyPem, certPem } = await issueCertificate({ subject: 'sensor-1', ...dates })
    const publicKey = createPublicKey(keyPem)
    const elements = [Buffer.from(certPem).toString('base64'), der(issuing)]
    const error = await expectDpsError(
      () => checkIssuedChain({ elements, publicKey, names: ['sensor-1'], nowMs: NOW }),
      'ISSUED_CERTIFICATE_INVALID',
      'parse',
    )
    expect(error.message).toContain('its issuer, CN=sensor-1, is not in the reply')
  })
})
