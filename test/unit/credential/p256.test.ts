import type crypto from 'node:crypto'
import { createPrivateKey, createPublicKey, X509Certificate } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { hasP256Point } from '../../../src/credential/certificate.ts'
import { p256PointOf } from '../../../src/credential/p256.ts'
import { armour } from '../../../src/credential/pem.ts'
import { x509 } from '../../../src/credential/x509.ts'
import { type Issued, OpenSsl } from './certificates.ts'

const opened = vi.hoisted(() => ({ keys: 0 }))
vi.mock('node:crypto', async (original) => {
  const real = await original<typeof crypto>()
  return {
    ...real,
    createPrivateKey: (...given: Parameters<typeof crypto.createPrivateKey>) => {
      opened.keys++
      return real.createPrivateKey(...given)
    },
  }
})

const openssl = new OpenSsl()
let device: Issued
let other: Issued

beforeAll(() => {
  device = openssl.issue({ subject: '/CN=dev-1' })
  other = openssl.issue({ subject: '/CN=dev-2' })
})
afterAll(() => openssl.remove())

const run = (...args: string[]) => openssl.run(args, device.key).toString()
const derOf = (pem: string) => createPrivateKey(pem).export({ type: 'pkcs8', format: 'der' })
/** PKCS#8 of P-256: 36 bytes, the scalar, 5 bytes, the point. */
const SCALAR = [36, 68] as const
const POINT = 73

/** What OpenSSL has as the public key of the private one. */
const publicPoint = (pem: string) =>
  createPublicKey(pem).export({ type: 'spki', format: 'der' }).subarray(-65)

function altered(change: (der: Buffer) => void): string {
  const der = Buffer.from(derOf(device.key))
  change(der)
  return armour('PRIVATE KEY', der)
}

describe('the point of a private key', () => {
  it.each([
    ['PKCS#8', () => device.key],
    ['SEC1', () => run('ec')],
  ])('in %s is that of its public key', (_, pem) => {
    expect(p256PointOf(pem())).toEqual(publicPoint(device.key))
  })

  it.each<[string, () => string]>([
    ['with the point of another key', () => altered((der) => derOf(other.key).copy(der, POINT, POINT))],
    [
      'with the scalar of another key',
      () => altered((der) => derOf(other.key).copy(der, SCALAR[0], ...SCALAR)),
    ],
    ['with the scalar 0', () => altered((der) => der.fill(0, ...SCALAR))],
    ['with a scalar above the order', () => altered((der) => der.fill(0xff, ...SCALAR))],
    ['of another version', () => altered((der) => der.writeUInt8(1, 5))],
    ['on another curve', () => altered((der) => der.writeUInt8(6, 26))],
    ['with a compressed point', () => run('ec', '-conv_form', 'compressed')],
    ['without a point', () => run('ec', '-no_public')],
    ['with explicit parameters', () => run('ec', '-param_enc', 'explicit')],
    ['on P-384', () => openssl.key(['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-384'])],
    ['of Ed25519', () => openssl.key(['-algorithm', 'ED25519'])],
    ['in PKCS#8 that says it is SEC1', () => armour('EC PRIVATE KEY', derOf(device.key))],
    ['in SEC1 that says it is PKCS#8', () => run('ec').replaceAll('EC PRIVATE', 'PRIVATE')],
    ['of another label', () => armour('TSS2 PRIVATE KEY', derOf(device.key))],
    ['cut short', () => altered((der) => der.fill(0, 100)).slice(0, 90)],
  ])('%s is left to OpenSSL', (_, pem) => {
    const text = pem()
    expect(text).toContain('BEGIN')
    expect(p256PointOf(text)).toBeUndefined()
  })

  it('is found in its certificate, and not in another that has it elsewhere', () => {
    const point = p256PointOf(device.key)!
    expect(hasP256Point(new X509Certificate(device.cert), point)).toBe(true)
    expect(hasP256Point(new X509Certificate(other.cert), point)).toBe(false)
    const spki = createPublicKey(device.key).export({ type: 'spki', format: 'der' })
    const decoy = openssl.issue({ subject: '/CN=dev-3', extensions: [`1.2.3.4=DER:${spki.toString('hex')}`] })
    const certificate = new X509Certificate(decoy.cert)
    expect(certificate.raw.includes(spki)).toBe(true)
    expect(hasP256Point(certificate, point)).toBe(false)
  })
})

describe('x509', () => {
  const keysOpenedBy = async (given: { cert: string; key: string }) => {
    opened.keys = 0
    const loaded = await x509(given)
      .load()
      .then(
        () => 'loaded',
        ({ code }) => code,
      )
    return [loaded, opened.keys]
  }

  it('does not have OpenSSL open a key that is seen to be that of the certificate', async () => {
    expect(await keysOpenedBy(device)).toEqual(['loaded', 0])
    const rsa = openssl.issue({ algorithm: ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048'] })
    expect(await keysOpenedBy(rsa)).toEqual(['loaded', 1])
  })

  it('asks OpenSSL before it refuses one', async () => {
    expect(await keysOpenedBy({ cert: device.cert, key: other.key })).toEqual(['CREDENTIAL_KEY_MISMATCH', 1])
    const compressed = run('ec', '-conv_form', 'compressed')
    expect(await keysOpenedBy({ cert: device.cert, key: compressed })).toEqual(['loaded', 1])
  })

  it('says of a block under the wrong label that it cannot be read, before it is used', async () => {
    const key = run('ec').replaceAll('EC PRIVATE', 'PRIVATE')
    expect(await keysOpenedBy({ cert: device.cert, key })).toEqual(['CREDENTIAL_UNREADABLE', 1])
  })
})
