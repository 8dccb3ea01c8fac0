import { generateKeyPairSync } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import type { TrustOptions } from '../../../src/options/options.ts'
import { BUNDLED_ROOTS } from '../../../src/tls/roots.ts'
import { resolveTrust, type SystemStore } from '../../../src/tls/trust.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { ecKey, issue, keyPem } from './pki.ts'

const root = issue({ name: 'Test Root', key: ecKey(), ca: true })
const other = issue({ name: 'Other Root', key: ecKey(), ca: true })
const intermediate = issue({ name: 'Test Intermediate', key: ecKey(), ca: true, issuer: root })
const leaf = issue({ name: 'dps.test', key: ecKey(), issuer: intermediate, dns: ['dps.test'] })
const CSR = '-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n'

const names = (trust: TrustOptions | undefined, store?: SystemStore) =>
  resolveTrust(trust, store).map((anchor) => anchor.name)
const bundled = BUNDLED_ROOTS.map((bundledRoot) => bundledRoot.name)

describe('resolveTrust', () => {
  it('trusts exactly the bundled roots by default', () => {
    expect(names(undefined)).toEqual(bundled)
    expect(names({})).toEqual(bundled)
    expect(names({ roots: 'bundled' })).toEqual(bundled)
  })

  it('gives each anchor with its facts', () => {
    for (const [i, anchor] of resolveTrust({}).entries()) {
      const { name, sha256, pem } = BUNDLED_ROOTS[i]!
      expect(anchor).toMatchObject({ name, sha256, pem })
      expect(anchor.certificate.fingerprint256.replaceAll(':', '')).toBe(sha256)
      expect(anchor.certificate).toBe(anchor.certificate)
    }
  })

  it("adds extra roots, or takes nothing else with 'none'", () => {
    expect(names({ extraRoots: root.pem })).toEqual([...bundled, 'Test Root'])
    expect(names({ roots: 'none', extraRoots: root.pem })).toEqual(['Test Root'])
  })

  it('takes bundles, bytes, comments, CRLF and a byte order mark', () => {
    const bundle = `\uFEFF# two roots\r\n${root.pem.replaceAll('\n', '\r\n')}Bag Attributes: none - really\r\n${other.pem}# end`
    const expected = ['Test Root', 'Other Root']
    expect(names({ roots: 'none', extraRoots: bundle })).toEqual(expected)
    expect(names({ roots: 'none', extraRoots: Buffer.from(bundle) })).toEqual(expected)
    expect(names({ roots: 'none', extraRoots: [root.pem, new TextEncoder().encode(other.pem)] })).toEqual(
      expected,
    )
  })

  it('lists a root once', () => {
    expect(names({ extraRoots: [root.pem, root.pem, BUNDLED_ROOTS[0]!.pem] })).toEqual([
      ...bundled,
      'Test Root',
    ])
  })

  it('names a root without CN by its whole subject', () => {
    const pem = issue({ name: '', key: ecKey(), ca: true }).pem
    expect(names({ roots: 'none', extraRoots: pem })).toEqual(['CN='])
  })

  it('is frozen', () => {
    expect(Object.isFrozen(resolveTrust({ extraRoots: root.pem }))).toBe(true)
  })
})

describe('a lie about what is a root', () => {
  const refused = async (extraRoots: unknown) =>
    (
      await expectDpsError(
        () => resolveTrust({ extraRoots: extraRoots as string }),
        'TRUST_ANCHOR_INVALID',
        'config',
      )
    ).message

  const forged = issue({ name: 'Test Root', key: ecKey(), ca: true, signedBy: ecKey() })
  const selfLeaf = issue({ name: 'dps.test', key: ecKey(), dns: ['dps.test'] })
  const privateKey = keyPem(root.key)
  const encryptedKey = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({
    type: 'pkcs1',
    format: 'pem',
    cipher: 'aes-128-cbc',
    passphrase: 'x',
  })

  it.each<[string, unknown, string]>([
    ['a leaf', leaf.pem, '"CN=dps.test" is a leaf certificate, issued by "CN=Test Intermediate": not a root'],
    [
      'an intermediate',
      intermediate.pem,
      '"CN=Test Intermediate" is an intermediate CA certificate, issued by "CN=Test Root": not a root',
    ],
    ['a self-signed leaf', selfLeaf.pem, '"CN=dps.test" is a self-signed leaf certificate'],
    ['a self-issued CA that another key signed', forged.pem, 'was signed by another key'],
    ['an intermediate hidden behind a root', `${root.pem}${intermediate.pem}`, 'PEM block 2, "CN=Test Int'],
    ['a signing request', CSR, 'is a certificate signing request'],
    ['a private key', privateKey, 'is a private key'],
    ['an encrypted private key', encryptedKey, 'is a private key'],
    ['a public key', root.key.publicKey.export({ type: 'spki', format: 'pem' }), 'is a public key'],
    ['another kind of block', root.pem.replaceAll('CERTIFICATE', 'X509 CRL'), 'of type "X509 CRL"'],
    ['an empty text', '', 'holds no PEM certificate'],
    ['an empty list', [], 'must hold at least one'],
    ['an empty text in a list', [root.pem, ''], 'trust.extraRoots[1] holds no PEM certificate'],
    ['text that is no PEM', 'roots.pem', 'holds no PEM certificate'],
    ['DER', Buffer.from(root.pem.split('\n').slice(1, -2).join(''), 'base64'), 'holds no PEM certificate'],
    ['a certificate that is cut off', root.pem.slice(0, -40), 'cut off'],
    ['a cut-off certificate before a whole one', root.pem.slice(0, 200) + other.pem, 'cut off'],
    [
      'a certificate of nonsense',
      root.pem.replace(/\nMII.{20}/, '\nMIIAAAAAAAAAAAAAAAAAAAA'),
      'not a readable',
    ],
    ['a number', 5, 'must be PEM text'],
    ['an object in a list', [{}], 'trust.extraRoots[0] must be PEM text'],
  ])('%s is refused', async (_, input, reason) => {
    expect(await refused(input)).toContain(reason)
  })

  it('never repeats a key', async () => {
    expect(await refused(privateKey)).not.toContain(privateKey.split('\n')[1])
  })

  it("'none' without extra roots is refused", () =>
    expectDpsError(() => resolveTrust({ roots: 'none' }), 'TRUST_ANCHOR_INVALID', 'config').then(({ hint }) =>
      expect(hint).toMatch(/^Give the root .* as `trust\.extraRoots`, or leave `trust\.roots` out/),
    ))

  it('an unknown source is refused', () =>
    expectDpsError(() => resolveTrust({ roots: 'all' as 'none' }), 'TRUST_ANCHOR_INVALID', 'config').then(
      ({ hint }) => expect(hint).toMatch(/leave `trust\.roots` out.*'system'.*'none'/),
    ))

  it('a misspelt option is refused', () =>
    expectDpsError(() => resolveTrust({ extraRoot: root.pem } as TrustOptions), 'OPTION_INVALID', 'config'))
})

describe("trust.roots 'system'", () => {
  const folder = mkdtempSync(join(tmpdir(), 'system-store-'))
  afterAll(() => rmSync(folder, { recursive: true }))
  const file = (name: string, text: string) => {
    const path = join(folder, name)
    writeFileSync(path, text)
    return path
  }
  const broken = root.pem.replace(/\nMII.{20}/, '\nMIIAAAAAAAAAAAAAAAAAAAA')
  const bundle = file('bundle.pem', `# store\n${broken}${intermediate.pem}${root.pem}${leaf.pem}${other.pem}`)
  const one = file('one.pem', other.pem)
  const empty = file('empty.pem', '')
  const missing = join(folder, 'missing.pem')
  const system = { roots: 'system' } as const
  const store = (given: Partial<SystemStore>): SystemStore => ({
    getCACertificates: undefined,
    certFile: undefined,
    bundles: [],
    ...given,
  })

  it('reads the first bundle of the distribution that there is, and only its roots', () => {
    expect(names(system, store({ bundles: [missing, empty, bundle, one] }))).toEqual([
      'Test Root',
      'Other Root',
    ])
  })

  it('reads SSL_CERT_FILE in place of the bundles', () => {
    expect(names(system, store({ certFile: one, bundles: [bundle] }))).toEqual(['Other Root'])
  })

  it('asks Node for the store where Node has it', () => {
    const asked: string[] = []
    const getCACertificates = (type: string) => {
      asked.push(type)
      return [intermediate.pem, root.pem]
    }
    expect(names(system, store({ getCACertificates, bundles: [one] }))).toEqual(['Test Root'])
    expect(asked).toEqual(['system'])
  })

  it('reads the files where Node finds nothing', () => {
    expect(names(system, store({ getCACertificates: () => [], bundles: [one] }))).toEqual(['Other Root'])
  })

  it('keeps the caller’s extra roots', () => {
    expect(names({ ...system, extraRoots: root.pem }, store({ bundles: [one] }))).toEqual([
      'Other Root',
      'Test Root',
    ])
  })

  it.each([
    ['SSL_CERT_FILE that is missing', { certFile: missing, bundles: [bundle] }],
    ['SSL_CERT_FILE that is empty', { certFile: empty, bundles: [bundle] }],
    ['store without a root', { bundles: [missing, empty] }],
  ])('a %s is refused, and never replaced by another list', async (_, given) => {
    const error = await expectDpsError(
      () => resolveTrust(system, store(given)),
      'TRUST_ANCHOR_INVALID',
      'config',
    )
    expect(error.message).toContain(missing.slice(0, folder.length))
  })
})
