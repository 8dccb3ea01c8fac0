import { createPublicKey } from 'node:crypto'
import { beforeAll, describe, expect, it } from 'vitest'
import { readCertificateRequest } from '../../../src/credential/certificate-request.ts'
import { type CertificateSigningRequest, createCsr } from '../../../src/factory/index.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { opensslCsr } from '../emulator/raw-csr.ts'

const id = 'sensor-1'
let made: CertificateSigningRequest
beforeAll(async () => {
  made = await createCsr({ registrationId: id })
})

const refuses = async (input: unknown, why: RegExp) => {
  const error = await expectDpsError(
    () => readCertificateRequest(input).wireFor(id),
    'OPTION_INVALID',
    'config',
  )
  expect(error.message).toMatch(why)
  return error
}

describe('a certificate signing request', () => {
  it.each<[string, () => unknown]>([
    ['what createCsr returns', () => made],
    ['base64 of DER', () => made.csr],
    ['base64 in lines', () => made.csr.replace(/(.{64})/g, '$1\n')],
    ['PEM', () => made.pem],
    ['PEM with CRLF and text around it', () => `Subject: CN=x\r\n${made.pem.replaceAll('\n', '\r\n')}`],
  ])('is taken as %s', (_, input) => {
    const { publicKey, wireFor } = readCertificateRequest(input())
    expect(wireFor(id)).toBe(made.csr)
    expect(publicKey.equals(createPublicKey(made.publicKey))).toBe(true)
  })

  it.each([
    ['P-256', 'P-256', []],
    ['P-384 and SHA-512', 'P-384', ['-sha512']],
    ['RSA', 'rsa', []],
    ['RSA and SHA-384', 'rsa', ['-sha384']],
    ['RSA-PSS, which is left to the service', 'rsa', ['-sigopt', 'rsa_padding_mode:pss']],
    ['a subject alternative name', 'P-256', ['-addext', 'subjectAltName=DNS:sensor-1']],
  ] as const)('is taken from OpenSSL with %s', (_, key, more) => {
    const { csr, publicKey } = opensslCsr(id, key, ...more)
    const read = readCertificateRequest(csr)
    expect(read.wireFor(id)).toBe(csr)
    expect(read.publicKey.equals(createPublicKey(publicKey))).toBe(true)
  })

  it('may have more in its subject than the CN', () => {
    const { csr } = opensslCsr(`/O=Contoso/CN=${id}/OU=Line 4`)
    expect(readCertificateRequest(csr).wireFor(id)).toBe(csr)
  })

  it('is for one registration id, letter for letter', async () => {
    await refuses((await createCsr({ registrationId: 'Sensor-1' })).csr, /its CN is "Sensor-1"/)
    await refuses(opensslCsr('/O=Contoso').csr, /it has 0 CNs/)
    await refuses(opensslCsr(`/CN=${id}/CN=other`).csr, /it has 2 CNs/)
    await refuses(opensslCsr('/CN=sensor-1\u0007').csr, /its CN is "sensor-1\?"/)
  })

  it('is refused when a byte of what was signed, or of the signature, is another', async () => {
    const der = Buffer.from(made.csr, 'base64')
    const at = der.indexOf(id)
    for (const index of [
      at,
      der.indexOf(Buffer.from(made.publicKey.split('\n')[2]!, 'base64')),
      der.length - 2,
    ]) {
      const changed = Buffer.from(der)
      changed[index]! ^= 1
      const error = await refuses(changed.toString('base64'), /signed by the key that it is for|public key/)
      expect(error.message).not.toContain('its CN')
    }
  })

  it('is refused whole wherever it is cut', async () => {
    const der = Buffer.from(made.csr, 'base64')
    for (let length = 0; length < der.length; length++) {
      await refuses(der.subarray(0, length).toString('base64'), /no certificate signing request/)
    }
  })

  it.each<[string, () => unknown, RegExp]>([
    ['nothing', () => null, /must be base64/],
    ['a number', () => 7, /must be base64/],
    ['an object without it', () => ({ pem: made.pem }), /must be base64/],
    ['an object with something else', () => ({ csr: 7 }), /must be base64/],
    ['empty text', () => '', /no certificate signing request/],
    ['no base64', () => 'sensor~1', /must be base64 of DER, or PEM/],
    ['more than 8 KB', () => 'A'.repeat(8196), /8196 characters of base64; the service takes at most 8192/],
    [
      'bytes after it',
      () => Buffer.concat([Buffer.from(made.csr, 'base64'), Buffer.of(0)]).toString('base64'),
      /nothing else/,
    ],
    ['damaged PEM', () => made.pem.slice(0, 200), /damaged PEM/],
    ['two requests', () => made.pem + made.pem, /more than one CERTIFICATE REQUEST/],
    [
      'a certificate',
      () => '-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n',
      /no CERTIFICATE REQUEST/,
    ],
  ])('is not %s', async (_, input, why) => {
    await refuses(input(), why)
  })

  it('with a damaged algorithm is not taken for one with an algorithm that is not known', async () => {
    const { csr } = opensslCsr(id, 'rsa')
    const der = Buffer.from(csr, 'base64')
    // sha256WithRSAEncryption, and NULL as its parameters.
    der[der.indexOf(Buffer.from('01010b0500', 'hex')) + 4] = 1
    await refuses(der.toString('base64'), /no certificate signing request/)
  })

  it('never prints a private key that was given in its place', async () => {
    const error = await refuses(made.key, /no CERTIFICATE REQUEST/)
    expect(JSON.stringify(error)).not.toContain(made.key!.split('\n')[1])
  })
})
