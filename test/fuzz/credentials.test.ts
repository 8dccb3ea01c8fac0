import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { createPki, generateSymmetricKey, issueCertificate } from '../../src/emulator/index.ts'
import { DpsError, ProvisioningClient, symmetricKey, x509 } from '../../src/index.ts'
import { secureContextFor } from '../../src/tls/context.ts'
import { resolvePolicy } from '../../src/tls/policy.ts'
import { OpenSsl } from '../unit/credential/certificates.ts'
import { changed, check, ending, limitMs, mutation, RUNS } from './fuzz.ts'

// Certificates, keys and roots as they come from a file that was cut, pasted, converted or overwritten. Whatever OpenSSL
// would make of them, a DpsError of phase `config` says so, and no byte of a key is in it.

const pki = await createPki()
const ec = await issueCertificate({ subject: 'fuzz', issuer: pki.deviceIntermediate, eku: ['clientAuth'] })
const rsa = await issueCertificate({
  subject: 'fuzz',
  issuer: pki.deviceIntermediate,
  keyType: 'rsa-2048',
  eku: ['clientAuth'],
})
const policy = resolvePolicy({}, { roots: 'bundled' })

/** Each device in every format that a key may be in. */
const DEVICES = [ec, rsa].flatMap(({ chainPem, certPem, keyPem }) => {
  const key = createPrivateKey(keyPem)
  const traditional = key.asymmetricKeyType === 'ec' ? 'sec1' : 'pkcs1'
  return [
    { cert: Buffer.from(chainPem), key: Buffer.from(keyPem) },
    {
      cert: new X509Certificate(certPem).raw,
      key: key.export({ type: 'pkcs8', format: 'der' }),
    },
    {
      cert: Buffer.from(`${certPem}${chainPem}`),
      key: Buffer.from(key.export({ type: traditional, format: 'pem' })),
    },
    { cert: Buffer.from(keyPem + chainPem), key: key.export({ type: traditional, format: 'der' }) },
  ]
})

const WORDS = [
  ...[
    '-----BEGIN CERTIFICATE-----\n',
    '-----END CERTIFICATE-----\n',
    '-----BEGIN ',
    '-----',
    '-----BEGIN PRIVATE KEY-----\n',
  ],
  ...[
    '-----END PRIVATE KEY-----\n',
    '-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n',
    '\n',
    '\r\n',
    '=',
  ],
  ...[
    '\0',
    '\\n',
    ' ',
    '\xef\xbb\xbf',
    '\xff\xfe',
    'Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n',
    'A',
    '/',
    '_',
  ],
  ...[
    '\x30\x80',
    '\x30\x82\xff\xff',
    '\x30\x84\xff\xff\xff\xff',
    '\x02\x01\x00',
    '\x04\x00',
    '\x05\x00',
    '\x06\x00',
    '\xa0\x00',
    '\x00\x00',
  ],
]

/** Every piece of a key that is long enough to be of use to someone. */
const SECRETS = [ec, rsa].flatMap(({ keyPem }) => {
  const base64 = keyPem.split('\n').slice(1, -2).join('')
  // Behind the algorithm, which is the same for all keys.
  return [...base64.slice(40).matchAll(/.{16}/g)].map(([piece]) => piece)
})

function tellsNothing(error: unknown, depth = 0): void {
  if (!(error instanceof Error) || depth > 4) return
  const text = `${error.message}\n${error.stack}\n${JSON.stringify(error)}`
  for (const secret of SECRETS) expect(text).not.toContain(secret)
  tellsNothing(error.cause, depth + 1)
}

const mutations = fc.array(mutation(WORDS), { maxLength: 3 })
const runs = RUNS * 4

describe('a credential that was changed', () => {
  it(
    'is one that OpenSSL takes, or a DpsError of phase config',
    async () => {
      const codes = new Set<string>()
      const inputs = fc.record({
        device: fc.constantFrom(...DEVICES),
        cert: mutations,
        key: mutations,
        asText: fc.boolean(),
      })
      await check(
        fc.asyncProperty(inputs, async ({ device, cert, key, asText }) => {
          const given = (bytes: Buffer, how: typeof cert) => {
            const result = changed(bytes, how)
            return asText ? result.toString('latin1') : result
          }
          const made = async () => {
            const identity = await x509({
              cert: given(device.cert, cert),
              key: given(device.key, key),
            }).load()
            secureContextFor(identity, policy)
            return identity
          }
          const end = await ending(made())
          if (!DpsError.is(end)) {
            expect(end.registrationId).toMatch(/^[A-Za-z0-9\-._:]{1,128}$/)
            codes.add('loaded')
            return
          }
          expect(end.phase).toBe('config')
          tellsNothing(end)
          codes.add(end.code)
        }),
        runs,
      )
      expect([...codes]).toEqual(expect.arrayContaining(['loaded', 'CREDENTIAL_UNREADABLE']))
    },
    limitMs(runs),
  )

  it(
    'is a PKCS#12 bundle that is read, or a DpsError of phase config',
    async () => {
      const openssl = new OpenSsl()
      const bundles = [ec, rsa].flatMap(({ chainPem, keyPem }) => {
        openssl.write('key.pem', keyPem)
        openssl.write('cert.pem', chainPem)
        const args = ['pkcs12', '-export', '-inkey', 'key.pem', '-in', 'cert.pem', '-passout', 'pass:fuzz']
        return [[], ['-noiter', '-nomac'], ['-nomac', '-certpbe', 'NONE', '-keypbe', 'NONE']].map((more) =>
          openssl.run([...args, ...more]),
        )
      })
      openssl.remove()
      bundles.push(readFileSync('test/data/legacy.p12'))
      const codes = new Set<string>()
      await check(
        fc.asyncProperty(fc.constantFrom(...bundles), mutations, async (bundle, how) => {
          const end = await ending(x509({ pkcs12: changed(bundle, how), passphrase: 'fuzz' }).load())
          if (!DpsError.is(end)) {
            expect(end.registrationId).toMatch(/^[A-Za-z0-9\-._:]{1,128}$/)
            codes.add('loaded')
            return
          }
          expect(end.phase).toBe('config')
          expect(end.code).toMatch(/^CREDENTIAL_/)
          tellsNothing(end)
          codes.add(end.code)
        }),
        runs,
      )
      expect([...codes]).toEqual(expect.arrayContaining(['loaded', 'CREDENTIAL_UNREADABLE']))
    },
    limitMs(runs),
  )

  const options = { idScope: '0ne00000000' } as const

  it(
    'is a root that may be trusted, or a DpsError of phase config',
    async () => {
      const credential = symmetricKey({ registrationId: 'fuzz', key: generateSymmetricKey() })
      const roots = fc.tuple(
        fc.constantFrom(
          ...pki.roots.map(({ certPem }) => Buffer.from(certPem)),
          Buffer.from(pki.deviceRoot.certPem),
        ),
        mutations,
        fc.boolean(),
      )
      await check(
        fc.asyncProperty(roots, async ([root, how, asText]) => {
          const bytes = changed(root, how)
          const extraRoots = asText ? bytes.toString('latin1') : bytes
          const make = async () =>
            new ProvisioningClient({ ...options, credential, trust: { roots: 'none', extraRoots } })
          const end = await ending(make())
          if (DpsError.is(end)) expect(end.phase).toBe('config')
        }),
        runs,
      )
    },
    limitMs(runs),
  )

  it(
    'is a key of 16 to 64 bytes, or SAS_KEY_INVALID',
    async () => {
      const key = generateSymmetricKey()
      await check(
        fc.asyncProperty(mutations, async (how) => {
          const text = changed(Buffer.from(key), how).toString('latin1')
          const load = async () => symmetricKey({ registrationId: 'fuzz', key: text }).load()
          const end = await ending(load())
          if (!DpsError.is(end)) return
          expect(end.code).toBe('SAS_KEY_INVALID')
          expect(`${end.message}${end.stack}`).not.toContain(key.slice(8, 24))
        }),
        runs,
      )
    },
    limitMs(runs),
  )
})
