import { createPrivateKey, createPublicKey, randomBytes, sign, X509Certificate } from 'node:crypto'
import { inspect } from 'node:util'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { FINDINGS } from '../../../../src/credential/inspect/findings.ts'
import { doubtAbout } from '../../../../src/credential/material.ts'
import { childrenOf } from '../../../../src/credential/pem.ts'
import { DpsError } from '../../../../src/errors.ts'
import {
  type Credential,
  type CredentialFindingId,
  type CredentialInspection,
  type Identity,
  type InspectOptions,
  inspectCredential,
  sasSigner,
  symmetricKey,
  x509,
} from '../../../../src/index.ts'
import { expectDpsError } from '../../../support/expect-dps-error.ts'
import { type Issued, OpenSsl } from '../certificates.ts'

const NOW = Date.UTC(2027, 0, 1)
const DAY_MS = 86_400_000
const RSA = (bits: number) => ['-algorithm', 'RSA', '-pkeyopt', `rsa_keygen_bits:${bits}`]
const EC = (curve: string) => ['-algorithm', 'EC', '-pkeyopt', `ec_paramgen_curve:${curve}`]
const PASSPHRASE = 'correct horse battery'
const openssl = new OpenSsl()

/** All that is given to a credential and may not come out again. */
const secrets = new Set<string>([PASSPHRASE, 'staple'])
const produced = new Set<CredentialFindingId>()

let root: Issued
let intermediate: Issued
let device: Issued
let other: Issued

const issue = (options: Parameters<OpenSsl['issue']>[0]): Issued => {
  const issued = openssl.issue(options)
  keepSecret(issued.key)
  return issued
}

/** Key material in base64 is known by any of its lines. */
function keepSecret(text: string): string {
  for (const line of text.split(/\s+/)) if (line.length >= 16 && !line.includes('-----')) secrets.add(line)
  return text
}

beforeAll(() => {
  root = issue({ subject: '/CN=Root', ca: true })
  intermediate = issue({ subject: '/CN=Intermediate', ca: true, issuer: root })
  device = issue({ issuer: intermediate, extensions: ['extendedKeyUsage=clientAuth'] })
  other = issue({ issuer: intermediate, subject: '/CN=dev-2' })
})
afterAll(() => openssl.remove())

const chained = (leaf: Issued): { cert: string[]; key: string } => ({
  cert: [leaf.cert, intermediate.cert],
  key: leaf.key,
})

/** Only these depend on what a registration does not know, or does not do. */
const BEYOND_LOAD: readonly CredentialFindingId[] = [
  'registration-id-differs',
  'registration-id-invalid',
  'signer-failed',
  'signature-malformed',
  'credential-of-another-device',
]

async function check(credential: Credential, inspection: CredentialInspection, nowMs: number): Promise<void> {
  const { ok, findings } = inspection
  const text = `${JSON.stringify(inspection)}${inspect(inspection, { depth: 9, showHidden: true })}`
  for (const secret of secrets) expect(text).not.toContain(secret)
  expect(text).not.toMatch(/\.\.[^.]|\[object|\(undefined\)/)
  for (const value of [inspection, findings, inspection.chain, inspection.unseen]) {
    expect(Object.isFrozen(value)).toBe(true)
  }
  for (const one of [...findings, ...inspection.chain]) expect(Object.isFrozen(one)).toBe(true)
  const ranks = findings.map(({ severity }) => ['error', 'warning', 'notice'].indexOf(severity))
  expect(ranks).toEqual([...ranks].sort())
  const errors = findings.filter(({ severity }) => severity === 'error')
  expect(ok).toBe(errors.length === 0)
  for (const { id, message, mend } of findings) {
    produced.add(id)
    expect(message).toMatch(/^[A-Z`(].{10,}\.$/s)
    expect(mend).toMatch(/^[A-Z].{10,}\.$/s)
    expect(message).not.toContain('\n')
  }
  if (errors.some(({ id }) => BEYOND_LOAD.includes(id))) return
  // Never a false alarm, never a false all-clear: it says what a registration would say.
  const refused = await credential
    .load()
    .then((identity) => identity.checkDates(nowMs))
    .then(
      () => false,
      () => true,
    )
  expect({ refused, errors }).toEqual({ refused: !ok, errors })
}

async function look(credential: Credential, options: InspectOptions = {}): Promise<CredentialInspection> {
  const inspection = await inspectCredential(credential, { now: NOW, ...options })
  await check(credential, inspection, Number(options.now ?? NOW))
  return inspection
}

const idsOf = ({ findings }: CredentialInspection) => findings.map(({ id }) => id)

async function ids(credential: Credential, options?: InspectOptions): Promise<CredentialFindingId[]> {
  return idsOf(await look(credential, options))
}

const messageOf = ({ findings }: CredentialInspection, id: CredentialFindingId) =>
  findings.find((finding) => finding.id === id)?.message

describe('a credential that is as it should be', () => {
  it('has no finding, and its facts are told', async () => {
    const inspection = await look(x509(chained(device)), { registrationId: 'DEV-1' })
    expect(inspection).toMatchObject({
      ok: true,
      index: 0,
      kind: 'x509',
      registrationId: 'dev-1',
      keyType: 'EC P-256',
      findings: [],
      chain: [
        {
          subject: 'CN=dev-1',
          issuer: 'CN=Intermediate',
          validFrom: '2026-01-01T00:00:00Z',
          validUntil: '2030-01-01T00:00:00Z',
          isCa: false,
          isSelfSigned: false,
        },
        { subject: 'CN=Intermediate', issuer: 'CN=Root', keyType: 'EC P-256', isCa: true },
      ],
    })
  })

  it('is known by the thumbprints that OpenSSL computes', async () => {
    const [leaf] = (await look(x509(chained(device)))).chain
    const path = openssl.write('device.pem', device.cert)
    for (const [digest, found] of [
      ['sha1', leaf?.thumbprint],
      ['sha256', leaf?.thumbprint256],
    ] as const) {
      const line = openssl.run(['x509', '-in', path, '-noout', '-fingerprint', `-${digest}`]).toString()
      expect(line.trim().replace(/^.*=/, '').replaceAll(':', '')).toBe(found)
    }
  })

  it.each(['RSA 2048', 'EC P-384'])('has a key of type %s', async (keyType) => {
    const algorithm = keyType === 'RSA 2048' ? RSA(2048) : EC('P-384')
    const inspection = await look(x509(chained(issue({ issuer: intermediate, algorithm }))))
    expect(inspection).toMatchObject({ ok: true, keyType, findings: [] })
  })

  it('is a symmetric key, of which a group’s cannot be told from a device’s', async () => {
    const key = keepSecret(randomBytes(32).toString('base64'))
    const inspection = await look(symmetricKey({ registrationId: 'dev-1', key }), { registrationId: 'dev-1' })
    expect(inspection).toMatchObject({ ok: true, kind: 'symmetric-key', chain: [], findings: [] })
    expect(inspection).not.toHaveProperty('keyType')
  })

  it('is a signer, which is asked once, for a token that ended in 1970', async () => {
    const asked: string[] = []
    const sign = (text: string) => {
      asked.push(text)
      return new Uint8Array(32)
    }
    expect(await ids(sasSigner({ registrationId: 'dev-1', sign }))).toEqual([])
    expect(asked).toEqual(['inspection\n0'])
  })

  it('is judged now where no time is given, and by a Date as by its number', async () => {
    const credential = x509(chained(device))
    expect((await inspectCredential(credential)).ok).toBe(true)
    expect(await ids(credential, { now: new Date('2031-01-01') })).toContain('expired')
  })
})

describe('what was given in place of a certificate', () => {
  it.each<[string, CredentialFindingId, () => string | Uint8Array]>([
    ['a signing request', 'certificate-request-given', () => openssl.request(device.key, '/CN=dev-1')],
    ['its private key', 'private-key-given', () => device.key],
    ['a public key', 'public-key-given', () => publicKey(device)],
    ['an OpenSSH key', 'openssh-key-given', () => OPENSSH],
    ['a PKCS#12 bundle', 'pkcs12-given', () => bundle()],
    ['a PKCS#7 bundle', 'pkcs7-given', () => pkcs7(device)],
    ['a trusted certificate', 'other-pem-given', () => trusted(device)],
    ['nothing', 'input-empty', () => ''],
    ['an empty file', 'input-empty', () => new Uint8Array()],
    ['a blank line', 'input-empty', () => '\n  \n'],
    ['a path', 'not-pem', () => '/etc/device.pem'],
    ['base64 alone', 'not-pem', () => der(device.cert).toString('base64')],
    ['text that begins as DER does', 'not-pem', () => '0123'],
    ['half of it', 'input-damaged', () => device.cert.slice(0, 300)],
    ['what was damaged on the way', 'input-damaged', () => device.cert.replace(/\n.{10}/, '\n!!!!!!!!!!')],
    ['half of its DER', 'input-damaged', () => der(device.cert).subarray(0, 100)],
    ['one with the two characters \\n', 'escaped-line-breaks', () => device.cert.replaceAll('\n', '\\n')],
    ['UTF-16 with a mark', 'utf-16', () => Buffer.from(`\ufeff${device.cert}`, 'utf16le')],
    ['UTF-16 without one', 'utf-16', () => Buffer.from(device.cert, 'utf16le')],
    ['big-endian UTF-16', 'utf-16', () => Buffer.from(`\ufeff${device.cert}`, 'utf16le').swap16()],
  ])('is %s', async (_, id, given) => {
    const inspection = await look(x509({ cert: given(), key: device.key }))
    expect(idsOf(inspection)).toEqual([id])
    expect(inspection.chain).toEqual([])
    expect(inspection).not.toHaveProperty('registrationId')
  })

  it('is a CERTIFICATE block with a request in it', async () => {
    const request = openssl.request(device.key, '/CN=dev-1')
    expect(
      await ids(x509({ cert: request.replaceAll('CERTIFICATE REQUEST', 'CERTIFICATE'), key: device.key })),
    ).toEqual(['input-damaged'])
  })

  it('is named by its place in a list', async () => {
    const cert = [device.cert, openssl.request(device.key, '/CN=dev-1')]
    const inspection = await look(x509({ cert, key: device.key }))
    expect(messageOf(inspection, 'certificate-request-given')).toContain('`cert[1]`')
  })

  it('is a file that does not exist', async () => {
    const certFile = '/nowhere/device.pem'
    const inspection = await look(x509({ certFile, key: device.key }))
    expect(idsOf(inspection)).toEqual(['source-unreadable'])
    expect(messageOf(inspection, 'source-unreadable')).toContain(certFile)
  })

  it('is a function that fails, and what it says is not repeated', async () => {
    const cert = () => Promise.reject(new Error(PASSPHRASE))
    expect(await ids(x509({ cert, key: device.key }))).toEqual(['source-unreadable'])
  })

  it('is no bytes at all: the last word has what `load` says', async () => {
    const inspection = await look(x509({ cert: (() => 42) as never, key: device.key }))
    expect(idsOf(inspection)).toEqual(['credential-refused'])
    expect(messageOf(inspection, 'credential-refused')).toContain(
      'CREDENTIAL_UNREADABLE: `cert` must be text',
    )
  })
})

describe('what is read as it is, and said', () => {
  it.each<[string, CredentialFindingId, () => string | Uint8Array]>([
    ['a byte order mark', 'byte-order-mark', () => `\ufeff${device.cert}`],
    ['a byte order mark in bytes', 'byte-order-mark', () => Buffer.from(`\ufeff${device.cert}`)],
    ['Windows line ends', 'windows-line-ends', () => device.cert.replaceAll('\n', '\r\n')],
    ['DER', 'der-given', () => der(device.cert)],
  ])('%s', async (_, id, given) => {
    const inspection = await look(x509({ cert: [given(), intermediate.cert], key: device.key }))
    expect(inspection).toMatchObject({ ok: true, findings: [{ id, severity: 'notice' }] })
  })

  it('reads files as they are now, and not as they were when a value was given', async () => {
    const certFile = openssl.write('replaced.pem', `${device.cert}${intermediate.cert}`)
    const credential = x509({ certFile, key: device.key })
    expect(await ids(credential)).toEqual([])
    openssl.write('replaced.pem', `${other.cert}${intermediate.cert}`)
    expect(await ids(credential)).toEqual(['key-mismatch'])
  })

  it('reads bytes as they were given', async () => {
    const cert = Buffer.from(`${device.cert}${intermediate.cert}`)
    const credential = x509({ cert, key: device.key })
    cert.fill(0)
    expect(await ids(credential)).toEqual([])
  })
})

describe('a private key', () => {
  it.each<[string, CredentialFindingId, () => string | Uint8Array]>([
    ['is a certificate', 'certificate-given', () => device.cert],
    ['is a signing request', 'certificate-request-given', () => openssl.request(device.key, '/CN=dev-1')],
    ['is a public key', 'public-key-given', () => publicKey(device)],
    ['is an OpenSSH key', 'openssh-key-given', () => OPENSSH],
    ['is a PKCS#12 bundle', 'pkcs12-given', () => bundle()],
    ['is only its curve', 'other-pem-given', () => openssl.run(['ecparam', '-name', 'prime256v1'])],
    ['is that of another', 'key-mismatch', () => other.key],
    ['is one of two', 'several-keys', () => device.key + other.key],
    ['has real line breaks no longer', 'escaped-line-breaks', () => device.key.replaceAll('\n', '\\n')],
    ['was cut off', 'input-damaged', () => device.key.slice(0, 120)],
    ['is encrypted, and has no passphrase', 'passphrase-missing', () => encrypted(device)],
    ['is encrypted as in former times', 'passphrase-missing', () => encryptedTraditionally()],
    ['is none for OpenSSL', 'key-unreadable', () => pemOf('PRIVATE KEY', Buffer.from('3003020100', 'hex'))],
  ])('%s', async (_, id, given) => {
    const inspection = await look(x509({ cert: chained(device).cert, key: given() }))
    expect(idsOf(inspection)).toEqual([id])
    // What the certificates say is told all the same.
    expect(inspection).toMatchObject({ registrationId: 'dev-1', keyType: 'EC P-256' })
    expect(inspection.chain).toHaveLength(2)
  })

  it('is opened with its passphrase, and not with another', async () => {
    const { cert } = chained(device)
    const key = encrypted(device)
    expect(await ids(x509({ cert, key, passphrase: PASSPHRASE }))).toEqual([])
    expect(await ids(x509({ cert, key, passphrase: 'staple' }))).toEqual(['passphrase-wrong'])
  })

  it('has a passphrase that nothing is encrypted by', async () => {
    expect(await ids(x509({ ...chained(device), passphrase: PASSPHRASE }))).toEqual(['passphrase-unused'])
  })

  it('is in an engine, where it cannot be looked at', async () => {
    const engine = { privateKeyEngine: 'pkcs11', privateKeyIdentifier: PASSPHRASE }
    const inspection = await look(x509({ cert: chained(device).cert, ...engine }))
    expect(idsOf(inspection)).toEqual(['key-not-examined'])
    expect(inspection).toMatchObject({ ok: true, registrationId: 'dev-1' })
  })
})

describe('a PKCS#12 bundle', () => {
  it('is looked into with its passphrase', async () => {
    const inspection = await look(x509({ pkcs12: bundle(), passphrase: PASSPHRASE }))
    expect(inspection).toMatchObject({ ok: true, registrationId: 'dev-1', keyType: 'EC P-256', findings: [] })
    expect(inspection.chain).toHaveLength(2)
  })

  it.each<[string, () => Uint8Array, string | undefined]>([
    ['has another passphrase', bundle, 'staple'],
    ['was given no passphrase', bundle, undefined],
    ['was cut off', () => bundle().subarray(0, 400), PASSPHRASE],
    ['is PEM', () => Buffer.from(device.cert), undefined],
  ])('%s', async (_, pkcs12, passphrase) => {
    const credential = x509({ pkcs12: pkcs12(), ...(passphrase !== undefined && { passphrase }) })
    expect(await ids(credential)).toEqual(['bundle-unusable'])
  })
})

describe('a chain', () => {
  it('is the device certificate alone, whose issuer the service must know itself', async () => {
    const inspection = await look(x509({ cert: device.cert, key: device.key }))
    expect(inspection).toMatchObject({ ok: true, findings: [{ id: 'issuer-missing', severity: 'warning' }] })
    expect(messageOf(inspection, 'issuer-missing')).toContain('CN=Intermediate')
  })

  it('has its root, which the service does not need', async () => {
    const cert = [device.cert, intermediate.cert, root.cert]
    const inspection = await look(x509({ cert, key: device.key }))
    expect(inspection).toMatchObject({ ok: true, findings: [{ id: 'root-included', severity: 'notice' }] })
  })

  it('is the other way round', async () => {
    const cert = [intermediate.cert, device.cert]
    const inspection = await look(x509({ cert, key: device.key }))
    expect(inspection).toMatchObject({ ok: true, findings: [{ id: 'chain-reordered', severity: 'notice' }] })
    expect(inspection.chain.map(({ subject }) => subject)).toEqual(['CN=dev-1', 'CN=Intermediate'])
  })

  it('has a certificate twice, and one of another device', async () => {
    const cert = [device.cert, intermediate.cert, other.cert, intermediate.cert]
    expect(await ids(x509({ cert, key: device.key }))).toEqual(['certificate-repeated', 'certificate-unused'])
  })

  it('has an intermediate of the right name that signed nothing', async () => {
    const impostor = issue({ subject: '/CN=Intermediate', ca: true })
    const inspection = await look(x509({ cert: [device.cert, impostor.cert], key: device.key }))
    expect(idsOf(inspection)).toEqual(['chain-broken'])
    expect(messageOf(inspection, 'chain-broken')).toContain('signature was made with another key')
    expect(inspection.chain).toHaveLength(1)
  })

  it('has the CA of another product', async () => {
    const stranger = issue({ subject: '/CN=Stranger', ca: true })
    expect(await ids(x509({ cert: [device.cert, stranger.cert], key: device.key }))).toEqual(['chain-broken'])
  })

  it('has an issuer that may not issue', async () => {
    const notCa = issue({ subject: '/CN=Not a CA', issuer: root })
    const leaf = issue({ issuer: notCa })
    const inspection = await look(x509({ cert: [leaf.cert, notCa.cert], key: leaf.key }))
    expect(inspection).toMatchObject({ ok: true, findings: [{ id: 'issuer-not-ca', severity: 'warning' }] })
  })

  it.each(['sha1', 'md5', 'sha1 by EC'])('is signed over %s', async (how) => {
    const issuer = issue({
      subject: '/CN=Old',
      ca: true,
      issuer: root,
      algorithm: how.includes('EC') ? EC('P-256') : RSA(2048),
    })
    const [digest = ''] = how.split(' ')
    const cert = signedOver(digest, device, issuer)
    const inspection = await look(x509({ cert: [cert, issuer.cert], key: device.key }))
    expect(inspection).toMatchObject({ ok: true, findings: [{ id: 'weak-signature', severity: 'warning' }] })
    expect(messageOf(inspection, 'weak-signature')).toContain(digest === 'sha1' ? 'SHA-1' : 'MD5')
  })

  it('is signed over SHA-1 by the older of its two names, of which a warning tells too', async () => {
    const issuer = issue({ subject: '/CN=Old', ca: true, issuer: root, algorithm: RSA(2048) })
    const cert = byOlderName(new X509Certificate(signedOver('sha1', device, issuer)), issuer)
    expect(cert.verify(createPublicKey(issuer.cert))).toBe(true)
    const credential = x509({ cert: [cert.toString(), issuer.cert], key: device.key })
    expect(messageOf(await look(credential), 'weak-signature')).toContain('SHA-1')
    expect(doubtAbout(await credential.load(), NOW)).not.toBe('')
  })

  it('ends in a root whose own signature nobody verifies', async () => {
    const old = { ...root, cert: signedOver('sha1', root, root, true) }
    const cert = [device.cert, intermediate.cert, old.cert]
    expect(await ids(x509({ cert, key: device.key }))).toEqual(['root-included'])
  })
})

describe('a device certificate', () => {
  it('signed itself, which an enrollment by thumbprint accepts', async () => {
    const { cert, key } = issue({})
    const inspection = await look(x509({ cert, key }))
    expect(inspection).toMatchObject({ ok: true, findings: [{ id: 'self-signed', severity: 'notice' }] })
    const [facts] = inspection.chain
    expect(facts).toMatchObject({ isSelfSigned: true })
    expect(inspection.unseen[1]).toContain(facts?.thumbprint)
    expect(inspection.unseen[1]).toContain(facts?.thumbprint256)
  })

  it('signed itself, though its keyUsage does not let it issue', async () => {
    const { cert, key } = issue({ extensions: ['keyUsage=critical,digitalSignature'] })
    expect(await ids(x509({ cert, key }))).toEqual(['self-signed'])
  })

  it('is that of a CA', async () => {
    const ca = issue({ issuer: intermediate, ca: true })
    const inspection = await look(x509(chained(ca)))
    expect(inspection).toMatchObject({ ok: true, findings: [{ id: 'leaf-is-ca', severity: 'warning' }] })
  })

  it('is a CA because `openssl req -x509` makes one unasked: a notice beside that of its signature', async () => {
    const { cert, key } = issue({ ca: true })
    const inspection = await look(x509({ cert, key }))
    const notice = { severity: 'notice' }
    expect(inspection.findings).toMatchObject([
      { id: 'self-signed', ...notice },
      { id: 'leaf-is-ca', ...notice },
    ])
  })

  it.each<[string, string, CredentialFindingId]>([
    ['no CN', '/O=Factory', 'common-name-missing'],
    ['two CNs', '/CN=dev-1/CN=dev-2', 'common-name-repeated'],
    ['a CN with a space', '/CN=dev 1', 'registration-id-invalid'],
    ['a CN that ends with a dot', '/CN=dev-1.', 'registration-id-invalid'],
    ['a CN that imitates the next line', '/CN=dev-1\nCN=dev-2', 'registration-id-invalid'],
    ['a CN with a terminal’s command', '/CN=dev\u001b[2J', 'registration-id-invalid'],
  ])('has %s', async (_, subject, id) => {
    const leaf = issue({ issuer: intermediate, subject })
    const inspection = await look(x509(chained(leaf)))
    expect(idsOf(inspection)).toEqual([id])
    expect(inspection).not.toHaveProperty('registrationId')
    expect(JSON.stringify(inspection)).not.toContain('\\u001b')
  })

  it('is that of another device, by its credential and by what is asked', async () => {
    const credential = x509({ ...chained(device), registrationId: 'dev-2' })
    const inspection = await look(credential, { registrationId: 'dev-3' })
    expect(idsOf(inspection)).toEqual(['registration-id-differs', 'registration-id-differs'])
    expect(await ids(x509(chained(device)), { registrationId: 'Dev-1' })).toEqual([])
    expect(await ids(x509(chained(device)), { registrationId: 'dev 1' })).toEqual(['registration-id-invalid'])
  })

  it.each<[string, readonly string[], CredentialFindingId[]]>([
    ['keyAgreement alone', ['keyUsage=critical,keyAgreement'], ['digital-signature-missing']],
    ['keyUsage not critical', ['keyUsage=keyEncipherment'], ['digital-signature-missing']],
    ['digitalSignature among others', ['keyUsage=digitalSignature,keyAgreement'], []],
    ['decipherOnly, in a second byte', ['keyUsage=decipherOnly,keyAgreement'], ['digital-signature-missing']],
    ['serverAuth alone', ['extendedKeyUsage=serverAuth'], ['client-authentication-missing']],
    ['both', ['extendedKeyUsage=serverAuth,clientAuth'], []],
    ['any purpose', ['extendedKeyUsage=anyExtendedKeyUsage'], []],
  ])('may be used for: %s', async (_, extensions, expected) => {
    const leaf = issue({ issuer: intermediate, extensions })
    expect(await ids(x509(chained(leaf)))).toEqual(expected)
  })

  it.each<[string, readonly string[], CredentialFindingId]>([
    ['Ed25519', ['-algorithm', 'ED25519'], 'key-unsupported'],
    ['RSA 1024', RSA(1024), 'key-unsupported'],
    ['secp256k1', EC('secp256k1'), 'key-unsupported'],
    ['explicit parameters', [...EC('P-256'), '-pkeyopt', 'ec_param_enc:explicit'], 'key-unsupported'],
    ['P-521', EC('P-521'), 'curve-not-offered'],
  ])('has a key of %s', async (_, algorithm, id) => {
    expect(await ids(x509(chained(issue({ issuer: intermediate, algorithm }))))).toEqual([id])
  })

  it.each<[string, number, CredentialFindingId[]]>([
    ['is not valid yet', Date.UTC(2025, 11, 31), ['not-yet-valid', 'not-yet-valid']],
    ['has just begun', Date.UTC(2026, 0, 1), []],
    ['has 31 days', Date.UTC(2030, 0, 1) - 31 * DAY_MS, []],
    ['has 30 days', Date.UTC(2030, 0, 1) - 30 * DAY_MS, ['expires-soon', 'expires-soon']],
    ['has a moment', Date.UTC(2030, 0, 1), ['expires-soon', 'expires-soon']],
    ['has ended', Date.UTC(2030, 0, 1) + 1, ['expired', 'expired']],
  ])('%s', async (_, now, expected) => {
    expect(await ids(x509(chained(device)), { now })).toEqual(expected)
  })

  it('of a short life is renewed in its last third', async () => {
    const leaf = issue({ issuer: intermediate, from: '20270101000000Z', until: '20270101030000Z' })
    const at = (hours: number) => ids(x509(chained(leaf)), { now: NOW + hours * 3_600_000 })
    expect(await at(1.9)).toEqual([])
    expect(await at(2.1)).toEqual(['expires-soon'])
    const inspection = await look(x509(chained(leaf)), { now: NOW + 2.5 * 3_600_000 })
    expect(messageOf(inspection, 'expires-soon')).toBe('CN=dev-1 ends at 2027-01-01T03:00:00Z, within a day.')
  })

  it('outlives its intermediate, and not that of its root', async () => {
    const until = '20261201000000Z'
    const old = issue({ subject: '/CN=Old', ca: true, issuer: root, until })
    const leaf = issue({ issuer: old })
    const inspection = await look(x509({ cert: [leaf.cert, old.cert], key: leaf.key }))
    expect(idsOf(inspection)).toEqual(['expired'])
    expect(messageOf(inspection, 'expired')).toContain('CN=Old is valid from 2026-01-01')
    const oldRoot = issue({ subject: '/CN=Old root', ca: true, until })
    const young = issue({ issuer: oldRoot })
    expect(await ids(x509({ cert: [young.cert, oldRoot.cert], key: young.key }))).toEqual(['root-included'])
  })
})

describe('a symmetric key', () => {
  const KEY = randomBytes(32).toString('base64')
  keepSecret(KEY)
  it.each<[string, CredentialFindingId, string]>([
    [
      'is a connection string',
      'sas-key-connection-string',
      `HostName=h;SharedAccessKeyName=n;SharedAccessKey=${KEY}`,
    ],
    ['is a token', 'sas-key-token', `SharedAccessSignature sr=a&sig=${encodeURIComponent(KEY)}&se=1`],
    ['is PEM', 'sas-key-pem', `-----BEGIN PRIVATE KEY-----\n${KEY}\n-----END PRIVATE KEY-----\n`],
    ['is hexadecimal', 'sas-key-hexadecimal', Buffer.from(KEY, 'base64').toString('hex')],
    ['ends with a line break', 'sas-key-whitespace', `${KEY}\n`],
    ['has a space in it', 'sas-key-whitespace', `${KEY.slice(0, 20)} ${KEY.slice(20)}`],
    ['lacks its padding', 'sas-key-not-base64', KEY.replace(/=+$/, '')],
    ['is in quotes', 'sas-key-not-base64', `"${KEY}"`],
    ['is in the URL-safe alphabet', 'sas-key-not-base64', `${KEY.slice(0, 20)}-_${KEY.slice(22)}`],
    ['is too short', 'sas-key-length', KEY.slice(0, 20)],
    ['is too long', 'sas-key-length', Buffer.alloc(65, 7).toString('base64')],
    ['is empty', 'input-empty', ''],
  ])('%s', async (_, id, key) => {
    keepSecret(key)
    const inspection = await look(symmetricKey({ registrationId: 'dev-1', key }))
    expect(idsOf(inspection)).toEqual([id])
    expect(inspection.registrationId).toBe('dev-1')
  })

  it('is in a file, with one line break after it, or two', async () => {
    const keyFile = openssl.write('symmetric.key', `${KEY}\n`)
    const credential = symmetricKey({ registrationId: 'dev-1', keyFile })
    expect(await ids(credential)).toEqual([])
    openssl.write('symmetric.key', `${KEY}\n\n`)
    expect(await ids(credential)).toEqual(['sas-key-whitespace'])
  })

  it('is given as a path, or comes from a function that returns no text', async () => {
    const inspection = await look(symmetricKey({ registrationId: 'dev-1', keyFile: KEY }))
    expect(idsOf(inspection)).toEqual(['source-unreadable'])
    expect(await ids(symmetricKey({ registrationId: 'dev-1', key: (() => undefined) as never }))).toEqual([
      'source-unreadable',
    ])
  })

  it('is of an id with upper-case letters, in which alone it was derived', async () => {
    const inspection = await look(symmetricKey({ registrationId: 'Press-42', key: KEY }))
    expect(inspection).toMatchObject({
      ok: true,
      findings: [{ id: 'registration-id-case', severity: 'notice' }],
    })
    const leaf = issue({ issuer: intermediate, subject: '/CN=Press-42' })
    expect(await ids(x509(chained(leaf)))).toEqual([])
  })
})

describe('a signer', () => {
  const signing = (sign: () => unknown) => sasSigner({ registrationId: 'dev-1', sign: sign as () => string })

  it.each<[string, CredentialFindingId, () => unknown]>([
    [
      'throws',
      'signer-failed',
      () => {
        throw new Error(PASSPHRASE)
      },
    ],
    ['rejects', 'signer-failed', () => Promise.reject(undefined)],
    ['returns hexadecimal', 'signature-malformed', () => randomBytes(32).toString('hex')],
    ['returns 31 bytes', 'signature-malformed', () => new Uint8Array(31)],
    ['returns nothing', 'signature-malformed', () => undefined],
  ])('%s', async (_, id, sign) => {
    expect(await ids(signing(sign))).toEqual([id])
  })

  it('never answers', async () => {
    await import('../../../../src/credential/inspect/inspect.ts')
    vi.useFakeTimers()
    try {
      const inspection = inspectCredential(signing(() => new Promise(() => {})))
      await vi.waitFor(() => expect(vi.getTimerCount()).toBe(1))
      await vi.advanceTimersByTimeAsync(10_000)
      expect(idsOf(await inspection)).toEqual(['signer-failed'])
      expect(vi.getTimerCount()).toBe(0)
    } finally {
      vi.useRealTimers()
    }
  })
})

describe('a credential of the caller’s own', () => {
  const identity = (more: Partial<Identity>): Identity => ({
    registrationId: 'dev-1',
    fingerprint: 'f',
    checkDates: () => {},
    token: async () => undefined,
    ...more,
  })
  const own = (more: Partial<Identity>): Credential => ({ load: async () => identity(more) })

  it('is looked at as the handshake would be given it', async () => {
    const tls = { cert: device.cert + intermediate.cert, key: device.key }
    const inspection = await look(own({ tls }))
    expect(inspection).toMatchObject({ ok: true, kind: 'x509', registrationId: 'dev-1', findings: [] })
    expect(await inspectCredential(own({ tls: { ...tls, key: other.key } }), { now: NOW })).toMatchObject({
      ok: false,
      findings: [
        {
          id: 'key-mismatch',
          message: '`tls.key` is not the private key of the device certificate (CN=dev-1).',
        },
      ],
    })
    const bundled = own({ tls: { pfx: bundle(), passphrase: PASSPHRASE } })
    expect(await look(bundled)).toMatchObject({ ok: true, keyType: 'EC P-256' })
  })

  it('presents the certificate of another id than it names', async () => {
    const tls = { cert: device.cert + intermediate.cert, key: device.key }
    expect(await ids(own({ registrationId: 'dev-9', tls }))).toEqual(['registration-id-differs'])
  })

  it('has no certificate: little can be told, and nothing is asked of it', async () => {
    const token = vi.fn(async () => 'token')
    const inspection = await look(own({ token }))
    expect(inspection).toMatchObject({ ok: true, registrationId: 'dev-1', findings: [] })
    expect(inspection).not.toHaveProperty('kind')
    expect(token).not.toHaveBeenCalled()
  })

  const refusing = async (error: unknown) => look({ load: () => Promise.reject(error) })

  it.each<[string, unknown, string]>([
    ['an error of its own', new Error(PASSPHRASE), 'what is no DpsError'],
    ['nothing', undefined, 'what is no DpsError'],
    ['an error of ours', new DpsError('SIGNER_FAILED', 'config', PASSPHRASE), 'SIGNER_FAILED'],
    [
      'a code nobody knows',
      Object.assign(new DpsError('TIMEOUT', 'tls', ''), { code: PASSPHRASE }),
      'not known',
    ],
  ])('rejects with %s, whose text is not repeated', async (_, error, expected) => {
    const inspection = await refusing(error)
    expect(idsOf(inspection)).toEqual(['credential-refused'])
    expect(messageOf(inspection, 'credential-refused')).toContain(expected)
  })

  it.each<[string, unknown]>([
    ['nothing', undefined],
    [
      'a getter that throws',
      {
        get registrationId() {
          throw new Error(PASSPHRASE)
        },
      },
    ],
  ])('resolves with %s', async (_, value) => {
    const inspection = await inspectCredential({ load: async () => value as Identity }, { now: NOW })
    expect(inspection.ok).toBe(false)
    expect(idsOf(inspection)).toContain('credential-refused')
  })

  it('has an id that no service takes', async () => {
    expect(await ids(own({ registrationId: 'dev 1' }))).toEqual(['registration-id-invalid'])
  })

  it.each<[DpsError['code'], CredentialFindingId]>([
    ['DEVICE_CERTIFICATE_EXPIRED', 'expired'],
    ['DEVICE_CERTIFICATE_NOT_YET_VALID', 'not-yet-valid'],
    ['CLOCK_BEHIND', 'credential-refused'],
  ])('says of its dates %s', async (code, id) => {
    const checkDates = () => {
      throw new DpsError(code, 'clock', PASSPHRASE)
    }
    expect(await ids(own({ checkDates }))).toEqual([id])
  })
})

describe('a list of credentials', () => {
  it('has the findings of each by its index', async () => {
    const key = randomBytes(32).toString('base64')
    const credentials = [
      x509({ ...chained(device), key: other.key }),
      symmetricKey({ registrationId: 'dev-1', key }),
      symmetricKey({ registrationId: 'dev-1', key }),
      symmetricKey({ registrationId: 'dev-2', key }),
    ]
    const inspections = await inspectCredential(credentials, { now: NOW })
    expect(Object.isFrozen(inspections)).toBe(true)
    for (const [index, inspection] of inspections.entries()) await check(credentials[index]!, inspection, NOW)
    expect(inspections.map((one) => [one.index, one.ok, idsOf(one)])).toEqual([
      [0, false, ['key-mismatch']],
      [1, true, []],
      [2, true, ['credential-repeated']],
      [3, false, ['credential-of-another-device']],
    ])
    expect(messageOf(inspections[2]!, 'credential-repeated')).toContain('credential[1]')
  })

  it('of one is a list', async () => {
    expect(await inspectCredential([x509(chained(device))], { now: NOW })).toHaveLength(1)
  })
})

describe('a call that makes no sense', () => {
  it.each<[string, unknown, unknown]>([
    ['no credential', undefined, {}],
    ['a credential without `load`', {}, {}],
    ['an empty list', [], {}],
    ['a list with a hole', [undefined], {}],
    ['an option that nobody reads', x509({ cert: 'x', key: 'y' }), { when: 1 }],
    ['options that are none', x509({ cert: 'x', key: 'y' }), null],
    ['a time that is none', x509({ cert: 'x', key: 'y' }), { now: Number.NaN }],
    ['an id that is no text', x509({ cert: 'x', key: 'y' }), { registrationId: 7 }],
  ])('is refused: %s', async (_, credential, options) => {
    await expectDpsError(
      inspectCredential(credential as Credential, options as InspectOptions),
      'OPTION_INVALID',
      'config',
    )
  })
})

describe('whatever is given', () => {
  it('is answered, and as a registration would', async () => {
    const texts = () => [device.cert, device.key, intermediate.cert, encrypted(device)]
    const bytes = () => [der(device.cert), der(device.key), bundle()]
    const pieces = [...texts(), ...bytes().map((one) => one.toString('latin1'))]
    const input = fc
      .tuple(fc.constantFrom(...pieces), fc.nat(), fc.nat(255), fc.nat(3))
      .map(([piece, at, byte, how]) => {
        const index = at % piece.length
        const isBinary = !piece.startsWith('-')
        const damaged = Buffer.from(piece, 'latin1')
        if (how === 0) damaged[index] = byte
        const cut = how === 1 ? damaged.subarray(0, index) : damaged
        return isBinary ? Buffer.from(cut) : how === 2 ? `${cut}${piece}` : cut.toString('latin1')
      })
    await fc.assert(
      fc.asyncProperty(
        input,
        input,
        fc.constantFrom(undefined, PASSPHRASE),
        async (cert, key, passphrase) => {
          await look(x509({ cert, key, ...(passphrase !== undefined && { passphrase }) }))
        },
      ),
      { numRuns: Number(process.env.FUZZ_RUNS ?? 300) },
    )
  })
})

it('can find everything that it has a name for, and has shown it here', () => {
  expect([...produced].sort()).toEqual(Object.keys(FINDINGS).sort())
})

const OPENSSH = pemOf('OPENSSH PRIVATE KEY', Buffer.from('openssh-key-v1\0none'))

function pemOf(label: string, bytes: Uint8Array): string {
  const base64 = Buffer.from(bytes).toString('base64')
  return `-----BEGIN ${label}-----\n${base64.replace(/.{64}(?=.)/g, '$&\n')}\n-----END ${label}-----\n`
}

function der(pem: string): Buffer {
  return Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ''), 'base64')
}

function publicKey({ key }: Issued): string {
  return openssl.run(['pkey', '-pubout'], key).toString()
}

function encrypted({ key }: Issued): string {
  return openssl.run(['pkcs8', '-topk8', '-passout', `pass:${PASSPHRASE}`], key).toString()
}

function encryptedTraditionally(): string {
  const { key } = device
  return createPrivateKey(key)
    .export({ type: 'sec1', format: 'pem', cipher: 'aes-256-cbc', passphrase: PASSPHRASE })
    .toString()
}

function bundle(leaf: Issued = device, key = leaf.key): Buffer {
  openssl.write('p12.key', key)
  openssl.write('p12.pem', leaf.cert)
  openssl.write('p12-ca.pem', intermediate.cert)
  return openssl.run([
    ...['pkcs12', '-export', '-inkey', 'p12.key', '-certfile', 'p12-ca.pem'],
    ...['-in', 'p12.pem', '-passout', `pass:${PASSPHRASE}`],
  ])
}

function pkcs7({ cert }: Issued): string {
  openssl.write('one.pem', cert)
  return openssl.run(['crl2pkcs7', '-nocrl', '-certfile', 'one.pem']).toString()
}

function trusted({ cert }: Issued): string {
  return openssl.run(['x509', '-trustout'], cert).toString()
}

/** A certificate for the same key and name, with a signature of former times; RSA signs it, as then. */
function signedOver(digest: string, subject: Issued, issuer: Issued, ca = false): string {
  const name = ca ? '/CN=Root' : '/CN=dev-1'
  openssl.write('weak.csr', openssl.request(subject.key, name))
  openssl.write('weak-ca.pem', issuer.cert)
  openssl.write('weak-ca.key', issuer.key)
  openssl.write('weak.ext', `basicConstraints=CA:${ca ? 'true' : 'false'}\n`)
  const by = ca ? ['-signkey', 'weak-ca.key'] : ['-CA', 'weak-ca.pem', '-CAkey', 'weak-ca.key']
  const args = [
    'x509',
    '-req',
    `-${digest}`,
    '-in',
    'weak.csr',
    '-days',
    '3650',
    '-extfile',
    'weak.ext',
    ...by,
  ]
  return openssl.run([...args, '-set_serial', '77']).toString()
}

/** The certificate with 1.3.14.3.2.29 in place of 1.2.840.113549.1.1.5, signed anew. */
function byOlderName(certificate: X509Certificate, issuer: Issued): X509Certificate {
  const algorithm = (hex: string) => Buffer.from(hex, 'hex')
  const [from, to] = [algorithm('300d06092a864886f70d0101050500'), algorithm('300906052b0e03021d0500')]
  const [whole] = childrenOf({ content: certificate.raw })
  const signed = childrenOf(whole!)[0]!.content
  const at = signed.indexOf(from)
  const toBeSigned = sequence(signed.subarray(0, at), to, signed.subarray(at + from.length))
  const signature = sign('sha1', toBeSigned, issuer.key)
  const bits = Buffer.concat([Buffer.from([3, 0x82, 0, 0, 0]), signature])
  bits.writeUInt16BE(signature.length + 1, 2)
  return new X509Certificate(sequence(toBeSigned, to, bits))
}

function sequence(...parts: readonly Buffer[]): Buffer {
  const content = Buffer.concat(parts)
  const head = Buffer.from([0x30, 0x82, 0, 0])
  head.writeUInt16BE(content.length, 2)
  return Buffer.concat([head, content])
}
