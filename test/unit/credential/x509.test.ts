import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import * as tls from 'node:tls'
import { pathToFileURL } from 'node:url'
import { inspect } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Identity } from '../../../src/credential/credential.ts'
import { type X509Options, x509 } from '../../../src/credential/x509.ts'
import { type Issued, OpenSsl } from './certificates.ts'

const openssl = new OpenSsl()
let root: Issued
let intermediate: Issued
let device: Issued
let other: Issued

beforeAll(() => {
  root = openssl.issue({ subject: '/CN=Root', ca: true })
  intermediate = openssl.issue({ subject: '/CN=Intermediate', ca: true, issuer: root })
  device = openssl.issue({ subject: '/O=Maker/CN=Dev-1', issuer: intermediate })
  other = openssl.issue({ subject: '/CN=dev-2', issuer: intermediate })
})
afterAll(() => openssl.remove())

const refused = (code: string, phase = 'config') => expect.objectContaining({ code, phase })
const pem = (...issued: Issued[]) => issued.map(({ cert }) => cert).join('')
const der = (text: string) => Buffer.from(text.replace(/-----[^-]+-----|\s/g, ''), 'base64')
const derOf = (cert: string) => new X509Certificate(cert).raw
const load = (options: X509Options) => x509(options).load()

async function expectRefusal(options: X509Options, code: string, ...messages: string[]) {
  const loading = load(options)
  await expect(loading).rejects.toThrow(refused(code))
  for (const message of messages) await expect(loading).rejects.toThrow(message)
}

const contextOf = ({ tls: options }: Identity, ca?: string) =>
  tls.createSecureContext({ ...(options as tls.SecureContextOptions), ca })

/** Presents the identity in a real handshake and tells the subject CN that the server verified. */
async function presentedBy(identity: Identity): Promise<unknown> {
  const serverCert = openssl.issue({ subject: '/CN=server.example' })
  const server = tls.createServer({
    ...serverCert,
    ca: root.cert,
    requestCert: true,
    rejectUnauthorized: true,
    maxVersion: 'TLSv1.2',
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const accepted = once(server, 'secureConnection') as Promise<[tls.TLSSocket]>
  const client = tls.connect({
    host: '127.0.0.1',
    port: (server.address() as AddressInfo).port,
    servername: 'server.example',
    secureContext: contextOf(identity, serverCert.cert),
  })
  client.on('error', () => undefined)
  const [peer] = await accepted
  peer.on('error', () => undefined)
  const { CN } = peer.getPeerCertificate().subject
  client.destroy()
  peer.destroy()
  server.close()
  await once(server, 'close')
  return CN
}

describe('a good credential', () => {
  it('is the CN, the chain, the curve, and authenticates in a handshake', async () => {
    const identity = await load({ cert: pem(device, intermediate, root), key: device.key })
    expect(identity.registrationId).toBe('Dev-1')
    expect(identity.keyCurve).toBe('P-256')
    expect(identity.tls?.cert).toBe(pem(device, intermediate, root))
    expect(await identity.token('r', 1)).toBeUndefined()
    expect(Object.isFrozen(identity)).toBe(true)
    expect(await presentedBy(identity)).toBe('Dev-1')
  })

  it.each<[string, () => X509Options]>([
    ['a list', () => ({ cert: [device.cert, Buffer.from(intermediate.cert)], key: device.key })],
    ['DER', () => ({ cert: [derOf(device.cert), derOf(intermediate.cert)], key: der(device.key) })],
    [
      'functions',
      () => ({ cert: () => pem(device, intermediate), key: async () => Buffer.from(device.key) }),
    ],
    [
      'one combined text with notes, a byte order mark and CRLF',
      () => {
        const text = `\ufeffBag Attributes\n  friendlyName: x\n${device.key}${pem(device, intermediate)}tail\n`
        return { cert: text.replaceAll('\n', '\r\n'), key: Buffer.from(text.replaceAll('\n', '\r\n')) }
      },
    ],
    [
      'indented text',
      () => ({
        cert: pem(device, intermediate).replace(/^/gm, '    '),
        key: device.key.replace(/^/gm, '\t'),
      }),
    ],
    [
      'the output of openssl x509 -text',
      () => ({
        cert: [
          openssl.run(['x509', '-text'], device.cert),
          openssl.run(['x509', '-text'], intermediate.cert),
        ],
        key: device.key,
      }),
    ],
    [
      'a file and a file URL',
      () => ({
        certFile: openssl.write('chain.pem', pem(device, intermediate)),
        keyFile: pathToFileURL(openssl.write('key.der', der(device.key))),
      }),
    ],
  ])('given as %s is the same credential and usable', async (_, options) => {
    const plain = await load({ cert: pem(device, intermediate), key: device.key })
    const identity = await load(options())
    expect(identity.fingerprint).toBe(plain.fingerprint)
    expect(identity.tls?.cert).toBe(plain.tls?.cert)
    expect(await presentedBy(identity)).toBe('Dev-1')
  })

  it.each<[string, () => { cert: string; key: string | Uint8Array; passphrase?: string }]>([
    ['SEC1', () => ({ ...device, key: openssl.run(['ec'], device.key).toString() })],
    [
      'SEC1 after its parameters',
      () => {
        const key = openssl.run(['ecparam', '-name', 'prime256v1', '-genkey']).toString()
        expect(key).toContain('EC PARAMETERS')
        return openssl.issue({ key })
      },
    ],
    ['SEC1 DER', () => ({ ...device, key: openssl.run(['ec', '-outform', 'DER'], device.key) })],
    [
      'encrypted PKCS#8',
      () => ({
        ...device,
        key: openssl
          .run(['pkcs8', '-topk8', '-passout', 'pass:pass1', '-iter', '2048'], device.key)
          .toString(),
        passphrase: 'pass1',
      }),
    ],
    [
      'encrypted PKCS#8 DER',
      () => ({
        ...device,
        key: openssl.run(['pkcs8', '-topk8', '-passout', 'pass:pass1', '-outform', 'DER'], device.key),
        passphrase: 'pass1',
      }),
    ],
    [
      'encrypted SEC1, with CRLF',
      () => ({
        ...device,
        key: openssl
          .run(['ec', '-aes128', '-passout', 'pass:pass1'], device.key)
          .toString()
          .replaceAll('\n', '\r\n'),
        passphrase: 'pass1',
      }),
    ],
  ])('may have its key in %s', async (_, options) => {
    const { cert, ...key } = options()
    const identity = await load({ cert, ...key })
    expect(() => contextOf(identity)).not.toThrow()
  })

  it('may have an RSA key, in PKCS#8 and PKCS#1', async () => {
    const rsa = openssl.issue({
      subject: '/CN=dev-1',
      issuer: intermediate,
      algorithm: ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048'],
    })
    const identity = await load({ cert: pem(rsa, intermediate), key: rsa.key })
    expect(identity).not.toHaveProperty('keyCurve')
    expect(await presentedBy(identity)).toBe('dev-1')
    for (const args of [
      ['-outform', 'PEM'],
      ['-outform', 'DER'],
    ]) {
      const key = openssl.run(['rsa', '-traditional', ...args], rsa.key)
      const traditional = await load({ cert: pem(rsa, intermediate), key })
      expect(traditional.fingerprint).toBe(identity.fingerprint)
      expect(() => contextOf(traditional)).not.toThrow()
    }
  })

  it.each(['P-384', 'P-521'])('may have an EC %s key, and says so', async (curve) => {
    const issued = openssl.issue({
      algorithm: ['-algorithm', 'EC', '-pkeyopt', `ec_paramgen_curve:${curve}`],
    })
    expect((await load(issued)).keyCurve).toBe(curve)
  })

  it('may be self-signed, with or without the CA flag', async () => {
    for (const ca of [true, false]) expect((await load(openssl.issue({ ca }))).registrationId).toBe('dev-1')
  })

  it('may be opaque: the engine options pass through and the certificate is still checked', async () => {
    const options = {
      cert: pem(device, intermediate),
      privateKeyEngine: 'pkcs11',
      privateKeyIdentifier: 'pkcs11:token=t;pin-value=7391',
    }
    const identity = await load(options)
    expect({ ...identity.tls }).toEqual(options)
    expect(identity).toMatchObject({ registrationId: 'Dev-1', keyCurve: 'P-256' })
    expect(inspect(identity) + JSON.stringify(identity)).not.toContain('7391')
    const another = await load({ ...options, privateKeyIdentifier: 'pkcs11:token=u' })
    expect(another.fingerprint).not.toBe(identity.fingerprint)
    await expectRefusal({ ...options, cert: pem(device, root) }, 'CREDENTIAL_CHAIN_BROKEN')
    const reordered = await load({ ...options, cert: pem(root, intermediate, device) })
    expect(reordered.registrationId).toBe('Dev-1')
    await expectRefusal(
      { ...options, cert: pem(intermediate, device, other) },
      'CREDENTIAL_CHAIN_BROKEN',
      '2 certificates that issued no other',
    )
  })

  it('may not be a URI whose provider is not loaded', async () => {
    const uri = Buffer.from('pkcs11:object=identity?pin-value=7391').toString('base64')
    const key = `-----BEGIN PKCS#11 PROVIDER URI-----\n${uri}\n-----END PKCS#11 PROVIDER URI-----\n`
    const error = await load({ cert: device.cert, key }).catch((thrown: unknown) => thrown)
    expect(error).toMatchObject({
      code: 'CREDENTIAL_UNREADABLE',
      message: expect.stringContaining('no OpenSSL provider that is loaded'),
    })
    expect(inspect(error)).not.toMatch(/7391|pkcs11:/)
  })

  it('keeps its own copy of the bytes it was given', async () => {
    const key = Buffer.from(device.key)
    const credential = x509({ cert: device.cert, key })
    key.fill(0)
    expect((await credential.load()).registrationId).toBe('Dev-1')
  })
})

describe('loading again', () => {
  it('gives the same object for the same content, also when concurrent', async () => {
    let asked = 0
    const credential = x509({
      cert: () => {
        asked++
        return pem(device, intermediate)
      },
      key: async () => device.key,
    })
    const all = await Promise.all(Array.from({ length: 20 }, () => credential.load()))
    all.push(await credential.load())
    expect(new Set(all).size).toBe(1)
    expect(asked).toBe(21)
  })

  it('sees replaced files', async () => {
    const certFile = openssl.write('rotating.pem', pem(device, intermediate))
    const keyFile = openssl.write('rotating.key', device.key)
    const credential = x509({ certFile, keyFile })
    const before = await credential.load()
    expect(await credential.load()).toBe(before)
    openssl.write('rotating.pem', pem(other, intermediate))
    openssl.write('rotating.key', other.key)
    const after = await credential.load()
    expect(after.registrationId).toBe('dev-2')
    expect(after.fingerprint).not.toBe(before.fingerprint)
    openssl.write('rotating.key', device.key)
    await expect(credential.load()).rejects.toThrow(refused('CREDENTIAL_KEY_MISMATCH'))
    openssl.write('rotating.key', other.key)
    expect(await credential.load()).toBe(after)
  })

  it('reads once more what it read between the two replacements', async () => {
    const keys = [device.key, other.key]
    const credential = x509({ cert: () => pem(other, intermediate), key: () => keys.shift() ?? other.key })
    expect((await credential.load()).registrationId).toBe('dev-2')
  })

  it('ends even if wrong content keeps changing', async () => {
    let asked = 0
    const credential = x509({ cert: pem(device, intermediate), key: () => `${other.key}${asked++}` })
    await expect(credential.load()).rejects.toThrow(refused('CREDENTIAL_KEY_MISMATCH'))
    expect(asked).toBe(3)
  })

  it('parses anew when only the key changes, and keeps the fingerprint', async () => {
    const keys = [device.key, openssl.run(['ec'], device.key).toString()]
    const credential = x509({ cert: device.cert, key: () => keys.shift()! })
    const [first, second] = [await credential.load(), await credential.load()]
    expect(second.fingerprint).toBe(first.fingerprint)
    expect(second.tls?.key).toContain('BEGIN EC PRIVATE KEY')
  })
})

describe('a chain', () => {
  const sent = ({ tls: options }: Identity) => String(options?.cert)
  const clean = (...issued: Issued[]) =>
    issued.map(({ cert }) => new X509Certificate(cert).toString()).join('')
  const all = () => [device, intermediate, root]

  it.each([
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
  ])('in the order %i %i %i is sent leaf first, and the same credential', async (...order) => {
    const identity = await load({ cert: pem(...order.map((at) => all()[at]!)), key: device.key })
    expect(sent(identity)).toBe(clean(...all()))
    const inOrder = await load({ cert: pem(...all()), key: device.key })
    expect(identity.fingerprint).toBe(inOrder.fingerprint)
    const notices =
      order.join() === '0,1,2' ? undefined : [expect.stringContaining('`cert` was not in order')]
    expect(identity.notices).toEqual(notices)
    expect(inOrder.notices).toBeUndefined()
  })

  it('in which certificates are repeated is sent without', async () => {
    const cert = [pem(intermediate, device), derOf(device.cert), pem(intermediate)]
    const identity = await load({ cert, key: device.key })
    expect(sent(identity)).toBe(clean(device, intermediate))
    expect(identity.notices).toEqual([
      expect.stringContaining('more than once'),
      expect.stringContaining('not in order'),
    ])
    expect(Object.isFrozen(identity.notices)).toBe(true)
  })

  it('with others beside it is sent without them', async () => {
    const stranger = openssl.issue({ subject: '/CN=Stranger', ca: true })
    const identity = await load({ cert: pem(stranger, device, intermediate, other), key: device.key })
    expect(sent(identity)).toBe(clean(device, intermediate))
    expect(identity.notices).toEqual([expect.stringContaining('(CN=Stranger), (CN=dev-2)')])
  })

  it('is that of the certificate that was issued, where the device has signed one for the same key', async () => {
    const own = openssl.issue({ subject: '/CN=Dev-1', key: device.key })
    const identity = await load({ cert: pem(own, intermediate, device), key: device.key })
    expect(sent(identity)).toBe(clean(device, intermediate))
  })

  it('of a CA that was signed twice follows the first that is given', async () => {
    const cross = openssl.issue({ subject: '/CN=Intermediate', ca: true, key: intermediate.key })
    const identity = await load({ cert: pem(device, intermediate, cross), key: device.key })
    expect(sent(identity)).toBe(clean(device, intermediate))
  })

  it('of more certificates than any has is refused', () =>
    expectRefusal({ cert: pem(...Array(51).fill(root)), key: device.key }, 'CREDENTIAL_UNREADABLE', '51'))

  it('with a certificate left out is refused with the issuer that is missing', () =>
    expectRefusal(
      { cert: pem(device, root), key: device.key },
      'CREDENTIAL_CHAIN_BROKEN',
      '(O=Maker, CN=Dev-1)',
      '(CN=Root)',
      'its issuer is CN=Intermediate',
    ))

  it('whose issuer has the right name and another key is refused', () => {
    const impostor = openssl.issue({ subject: '/CN=Intermediate', ca: true, issuer: root })
    return expectRefusal(
      { cert: pem(device, impostor), key: device.key },
      'CREDENTIAL_CHAIN_BROKEN',
      'signature was made with another key',
    )
  })

  it('whose issuer has the right name and another kind of key is refused', () => {
    const algorithm = ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048']
    const impostor = openssl.issue({ subject: '/CN=Intermediate', ca: true, issuer: root, algorithm })
    return expectRefusal({ cert: pem(device, impostor), key: device.key }, 'CREDENTIAL_CHAIN_BROKEN')
  })

  it('whose issuer may not sign certificates is refused', () => {
    const issuer = openssl.issue({
      subject: '/CN=No signer',
      ca: true,
      extensions: ['keyUsage=digitalSignature'],
    })
    const leaf = openssl.issue({ issuer })
    return expectRefusal(
      { cert: pem(leaf, issuer), key: leaf.key },
      'CREDENTIAL_CHAIN_BROKEN',
      'may not sign certificates',
    )
  })

  it('that was altered after signing is refused', () => {
    const bytes = derOf(device.cert)
    bytes[bytes.length - 1]! ^= 1
    return expectRefusal({ cert: [bytes, intermediate.cert], key: device.key }, 'CREDENTIAL_CHAIN_BROKEN')
  })

  it('in a file is named by its option', () =>
    expectRefusal(
      { certFile: openssl.write('gap.pem', pem(root, device)), key: device.key },
      'CREDENTIAL_CHAIN_BROKEN',
      '`certFile`',
    ))
})

describe('a key', () => {
  it('of another certificate is refused', () =>
    expectRefusal(
      { cert: device.cert, key: other.key },
      'CREDENTIAL_KEY_MISMATCH',
      '`key` is not the private key of the device certificate (O=Maker, CN=Dev-1)',
    ))

  it('of another certificate is refused without what its subject would do to a terminal', () =>
    expectRefusal(
      { cert: openssl.issue({ subject: '/O=Ma\u202eker\u0085/CN=dev-1' }).cert, key: other.key },
      'CREDENTIAL_KEY_MISMATCH',
      '(O=Ma?ker?, CN=dev-1)',
    ))

  it('of another kind than the certificate is refused', () =>
    expectRefusal(
      { cert: device.cert, key: openssl.key(['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048']) },
      'CREDENTIAL_KEY_MISMATCH',
    ))

  it.each([
    ['an RSA key of 1024 bits', ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:1024'], '1024 bits'],
    ['an Ed25519 key', ['-algorithm', 'ED25519'], 'type ed25519'],
    ['a secp256k1 key', ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:secp256k1'], 'curve secp256k1'],
    [
      'explicit curve parameters',
      ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-pkeyopt', 'ec_param_enc:explicit'],
      'explicit parameters',
    ],
    ['an RSA-PSS key', ['-algorithm', 'RSA-PSS', '-pkeyopt', 'rsa_keygen_bits:2048'], 'type rsa-pss'],
  ])('is refused where the certificate has %s', (_, algorithm, message) =>
    expectRefusal(
      openssl.issue({ issuer: intermediate, algorithm }),
      'CREDENTIAL_KEY_UNSUPPORTED',
      'The device certificate has',
      message,
    ),
  )

  it.each(['PKCS#8', 'SEC1'])(
    'that is encrypted (%s) is refused without its passphrase or with another',
    async (form) => {
      const args =
        form === 'SEC1'
          ? ['ec', '-aes128', '-passout', 'pass:pass1']
          : ['pkcs8', '-topk8', '-passout', 'pass:pass1']
      const key = openssl.run(args, device.key).toString()
      await expectRefusal(
        { cert: device.cert, key },
        'CREDENTIAL_UNREADABLE',
        '`key` is encrypted: give its `passphrase`',
      )
      const wrong = load({ cert: device.cert, key, passphrase: 'wrong-pass' })
      await expect(wrong).rejects.toMatchObject({ code: 'CREDENTIAL_UNREADABLE', cause: expect.any(Error) })
      await expect(wrong).rejects.toThrow('could not be decrypted')
      await expect(wrong).rejects.not.toThrow('wrong-pass')
    },
  )
})

describe('the name', () => {
  it('is compared with `registrationId` without regard to case, and the CN spells it', async () => {
    const identity = await load({ ...device, registrationId: 'dEV-1' })
    expect(identity.registrationId).toBe('Dev-1')
  })

  it('that differs from `registrationId` is refused with both', () =>
    expectRefusal({ ...device, registrationId: 'dev-2' }, 'CREDENTIAL_NAME_MISMATCH', '"dev-2"', '"Dev-1"'))

  it.each([
    ['no CN', '/O=Maker', 'has no CN'],
    ['two CNs', '/CN=dev-1/CN=dev-2', 'has 2 CNs'],
    ['a CN with a space', '/CN=dev 1', 'U+0020 at position 4'],
    ['a CN that is not ASCII', '/CN=gerät', 'U+00E4'],
    ['a CN that ends in a dot', '/CN=dev-1.', 'ends with "."'],
    ['a CN that imitates a second attribute', '/CN=dev-1\nCN=dev-2', 'U+000A at position 6'],
    ['a CN that turns the text round', '/CN=dev\u202e1', '"dev?1" contains U+202E'],
    ['a CN that starts with CN=', '/CN=CN\\=dev-1', '"="'],
  ])('with %s is refused', (_, subject, message) =>
    expectRefusal(openssl.issue({ subject }), 'CREDENTIAL_NAME_MISMATCH', message),
  )

  it.each([
    ['another attribute that imitates a CN', '/O=x\nCN=evil/CN=dev-1'],
    ['another attribute that contains CN=', '/O=x\\/CN=evil/CN=dev-1'],
    ['another attribute in the same relative name', '/CN=dev-1+O=CN\\=evil'],
    ['UTF-8 elsewhere', '/O=Gerätebau 日本/CN=dev-1'],
  ])('is the CN beside %s', async (_, subject) => {
    expect((await load(openssl.issue({ subject }))).registrationId).toBe('dev-1')
  })
})

describe('dates', () => {
  const at = (iso: string) => Date.parse(iso)
  const inside = at('2026-06-01T00:00:00Z')

  it('are checked against the time given, each end included', async () => {
    const identity = await load(openssl.issue({ from: '20260101000000Z', until: '20270101000000Z' }))
    for (const now of [at('2026-01-01T00:00:00Z'), inside, at('2027-01-01T00:00:00Z')]) {
      expect(() => identity.checkDates(now)).not.toThrow()
    }
  })

  it('of an expired device certificate are named with the time of the device', async () => {
    const identity = await load(openssl.issue({ from: '20260101000000Z', until: '20270101000000Z' }))
    const check = () => identity.checkDates(at('2027-01-01T00:00:00.001Z'))
    expect(check).toThrow(refused('DEVICE_CERTIFICATE_EXPIRED', 'clock'))
    expect(check).toThrow(
      "By this device's clock it is 2027-01-01T00:00:00.001Z, and the device certificate (CN=dev-1) is valid from " +
        '2026-01-01T00:00:00Z to 2027-01-01T00:00:00Z.',
    )
  })

  it('in the future are refused for a device that woke up in 1970, which may try again', async () => {
    const identity = await load(device)
    expect(() => identity.checkDates(0)).toThrow(refused('DEVICE_CERTIFICATE_NOT_YET_VALID', 'clock'))
    expect(() => identity.checkDates(0)).toThrow(expect.objectContaining({ retryable: true }))
    expect(() => identity.checkDates(0)).toThrow('it is 1970-01-01T00:00:00Z')
  })

  it.each([Number.NaN, -Infinity])('are not passed by a clock that says %s', async (now) => {
    const identity = await load(device)
    expect(() => identity.checkDates(now)).toThrow(refused('DEVICE_CERTIFICATE_NOT_YET_VALID', 'clock'))
  })

  it('of an intermediate are checked too, and it is named', async () => {
    const old = openssl.issue({ subject: '/CN=Old', ca: true, issuer: root, until: '20260301000000Z' })
    const leaf = openssl.issue({ issuer: old })
    const identity = await load({ cert: pem(leaf, old, root), key: leaf.key })
    expect(() => identity.checkDates(inside)).toThrow(refused('DEVICE_CERTIFICATE_EXPIRED', 'clock'))
    expect(() => identity.checkDates(inside)).toThrow('the intermediate certificate (CN=Old)')
  })

  it('of a root that is sent along are the service’s business', async () => {
    const old = openssl.issue({ subject: '/CN=Old root', ca: true, until: '20260301000000Z' })
    const leaf = openssl.issue({ issuer: old })
    const identity = await load({ cert: pem(leaf, old), key: leaf.key })
    expect(() => identity.checkDates(inside)).not.toThrow()
  })

  it('of a factory certificate without a well-defined end (RFC 5280 4.1.2.5) do not expire', async () => {
    const identity = await load(openssl.issue({ until: '99991231235959Z' }))
    expect(() => identity.checkDates(at('2999-01-01T00:00:00Z'))).not.toThrow()
  })
})

describe('fingerprints', () => {
  it('are of the certificates alone, so they survive a copy and tell renewals apart', async () => {
    const renewed = openssl.issue({ subject: '/O=Maker/CN=Dev-1', issuer: intermediate, key: device.key })
    const all = await Promise.all([
      load(device),
      load(renewed),
      load({ cert: pem(device, intermediate), key: device.key }),
    ])
    expect(new Set(all.map(({ fingerprint }) => fingerprint)).size).toBe(3)
    expect((await load(device)).fingerprint).toBe(all[0]?.fingerprint)
    expect(all[0]?.fingerprint).toMatch(/^[0-9a-f]{64}$/)
  })
})

describe('printing', () => {
  it('never shows the key or the passphrase', async () => {
    const encrypted = openssl.run(['pkcs8', '-topk8', '-passout', 'pass:open-sesame'], device.key).toString()
    for (const key of [{ key: device.key }, { key: encrypted, passphrase: 'open-sesame' }]) {
      const credential = x509({ cert: device.cert, ...key })
      const identity = await credential.load()
      const lines = key.key.split('\n').filter((line) => line.length > 30)
      const marks = [...lines, ...lines.map((line) => line.slice(8, 24)), 'open-sesame']
      for (const it of [credential, identity, identity.tls, { deep: { er: [{ credential, identity }] } }]) {
        for (const text of [
          inspect(it, { depth: null, showHidden: true }),
          inspect(it, { depth: null, getters: true }),
          inspect(it, { depth: null, showHidden: true, customInspect: false }),
          JSON.stringify(it),
          `${it}`,
        ]) {
          for (const mark of marks) expect(text).not.toContain(mark)
        }
      }
      expect(inspect(identity, { depth: null })).toContain("key: '[redacted]'")
      expect(() => structuredClone(identity)).toThrow()
    }
  })
})

describe('options', () => {
  it.each<[string, object, string]>([
    ['no certificate', { key: 'k' }, 'exactly one of `cert` or `certFile`; none'],
    ['two certificates', { cert: 'c', certFile: 'c', key: 'k' }, '`cert` and `certFile` were given'],
    ['no key', { cert: 'c' }, '`key` or `keyFile` or `privateKeyEngine`; none'],
    ['two keys', { cert: 'c', key: 'k', keyFile: 'k' }, '`key` and `keyFile` were given'],
    ['an engine without the name of its key', { cert: 'c', privateKeyEngine: 'e' }, '`privateKeyIdentifier`'],
    [
      'a name without its engine',
      { cert: 'c', key: 'k', privateKeyIdentifier: 'i' },
      '`privateKeyIdentifier`',
    ],
    [
      'an engine with a passphrase',
      { cert: 'c', privateKeyEngine: 'e', privateKeyIdentifier: 'i', passphrase: 'p' },
      '`passphrase`',
    ],
    ['a passphrase that is no text', { cert: 'c', key: 'k', passphrase: 5 }, '`passphrase`'],
    ['an option that nothing reads', { cert: 'c', key: 'k', ca: 'r' }, 'no option `ca`'],
    ['an invalid id', { cert: 'c', key: 'k', registrationId: 'a b' }, '`registrationId`'],
    ['an empty path', { certFile: '', key: 'k' }, '`certFile` must be a path'],
    ['no object', null as unknown as object, 'needs an object'],
  ])('with %s are refused when the credential is made', (_, options, message) => {
    const make = () => x509(options as never)
    expect(make).toThrow(refused('OPTION_INVALID'))
    expect(make).toThrow(message)
  })

  it('with material of another type are refused when it is read', async () => {
    await expectRefusal(
      { cert: () => undefined as never, key: 'k' },
      'CREDENTIAL_UNREADABLE',
      '`cert` must be',
      'undefined',
    )
    await expectRefusal(
      { cert: device.cert, key: [device.key] as never },
      'CREDENTIAL_UNREADABLE',
      '`key` must be',
    )
    await expectRefusal({ cert: [], key: device.key }, 'CREDENTIAL_UNREADABLE', 'empty list')
  })

  it('name the file that cannot be read', async () => {
    const absent = join(openssl.folder, 'absent.pem')
    await expectRefusal(
      { certFile: absent, key: device.key },
      'CREDENTIAL_UNREADABLE',
      '`certFile`',
      'absent.pem does not exist',
    )
    await expectRefusal(
      { cert: device.cert, keyFile: openssl.folder },
      'CREDENTIAL_UNREADABLE',
      '`keyFile`',
      'is a directory',
    )
    const large = openssl.write('large', Buffer.alloc(1024 * 1024 + 1, 0x41))
    await expectRefusal({ certFile: large, key: device.key }, 'CREDENTIAL_UNREADABLE', 'larger than 1 MiB')
    rmSync(large)
  })

  it('keep the cause of a function that fails', async () => {
    const cause = new Error('locked')
    const key = () => Promise.reject(cause)
    await expect(load({ cert: device.cert, key })).rejects.toMatchObject({
      code: 'CREDENTIAL_UNREADABLE',
      cause,
    })
  })
})
