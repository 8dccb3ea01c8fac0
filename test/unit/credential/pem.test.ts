import { X509Certificate } from 'node:crypto'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { readCertificates, readPem, readPrivateKey } from '../../../src/credential/pem.ts'
import { DpsError } from '../../../src/errors.ts'
import { type Issued, OpenSsl } from './certificates.ts'

const openssl = new OpenSsl()
let device: Issued
let request: string
let publicKey: string
let pkcs12: Buffer
let crl: Buffer

beforeAll(() => {
  device = openssl.issue()
  request = openssl.request(device.key, '/CN=dev-1')
  publicKey = openssl.run(['pkey', '-pubout'], device.key).toString()
  openssl.write('device.key', device.key)
  pkcs12 = openssl.run(['pkcs12', '-export', '-inkey', 'device.key', '-passout', 'pass:'], device.cert)
  crl = openssl.run([
    'ca',
    '-config',
    'ca.cnf',
    '-gencrl',
    '-crldays',
    '9',
    '-keyfile',
    'device.key',
    '-cert',
    'issued.pem',
  ])
})
afterAll(() => openssl.remove())

const der = (text: string | Buffer) => Buffer.from(`${text}`.replace(/-----[^-]+-----|\s/g, ''), 'base64')
const relabel = (text: string, from: string, to: string) => text.replaceAll(from, to)

function expectRefusal(read: () => unknown, message: string) {
  expect(read).toThrow(expect.objectContaining({ code: 'CREDENTIAL_UNREADABLE', phase: 'config' }))
  expect(read).toThrow(message)
}

describe('blocks', () => {
  it('are found in order, with their labels and kinds', () => {
    const text = `${request}notes\n${device.key}${publicKey}\n\n${device.cert}`
    expect(readPem(text, 'x').map(({ kind, label }) => [kind, label])).toEqual([
      ['certificate request', 'CERTIFICATE REQUEST'],
      ['private key', 'PRIVATE KEY'],
      ['public key', 'PUBLIC KEY'],
      ['certificate', 'CERTIFICATE'],
    ])
  })

  it('come out clean', () => {
    const untidy = `\ufeffSubject: x\r\n  ${device.cert.replaceAll('\n', '\r\n   ')}\r\nend`
    expect(readPem(untidy, 'x')).toEqual([{ kind: 'certificate', label: 'CERTIFICATE', pem: device.cert }])
    expect(readPem(Buffer.from(untidy), 'x')[0]?.pem).toBe(device.cert)
    expect(readPem(device.cert.replaceAll('\n', ' '), 'x')[0]?.pem).toBe(device.cert)
  })

  it.each<[string, () => Buffer, string, string]>([
    ['a certificate', () => der(device.cert), 'certificate', 'CERTIFICATE'],
    ['a request', () => der(request), 'certificate request', 'CERTIFICATE REQUEST'],
    ['a public key', () => der(publicKey), 'public key', 'PUBLIC KEY'],
    ['a PKCS#8 key', () => der(device.key), 'private key', 'PRIVATE KEY'],
    ['a SEC1 key', () => openssl.run(['ec', '-outform', 'DER'], device.key), 'private key', 'EC PRIVATE KEY'],
    [
      'a PKCS#1 key',
      () => openssl.run(['rsa', '-traditional', '-outform', 'DER'], openssl.run(['genrsa', '2048'])),
      'private key',
      'RSA PRIVATE KEY',
    ],
    [
      'an encrypted key',
      () => openssl.run(['pkcs8', '-topk8', '-outform', 'DER', '-passout', 'pass:p'], device.key),
      'encrypted private key',
      'ENCRYPTED PRIVATE KEY',
    ],
    ['PKCS#12', () => pkcs12, 'PKCS#12', 'PKCS12'],
    [
      'PKCS#7',
      () => {
        openssl.write('device.pem', device.cert)
        return openssl.run(['crl2pkcs7', '-nocrl', '-certfile', 'device.pem', '-outform', 'DER'])
      },
      'PKCS#7',
      'PKCS7',
    ],
  ])('of DER: %s is recognised by its structure', (_, bytes, kind, label) => {
    expect(readPem(new Uint8Array(bytes()), 'x')).toMatchObject([{ kind, label }])
  })
})

describe('in the place of a certificate', () => {
  it.each<[string, () => string | Uint8Array, string]>([
    ['a request', () => request, 'a certificate signing request, not a certificate'],
    ['a request in DER', () => der(request), 'a certificate signing request, not a certificate'],
    ['a key', () => device.key, 'a private key, not a certificate'],
    ['a public key', () => publicKey, 'a public key, not a certificate'],
    ['PKCS#12', () => pkcs12, 'a PKCS#12 bundle'],
    ['a CRL', () => crl, '"X509 CRL", which is not understood here'],
    ['a CRL in DER', () => der(crl), 'neither a certificate nor a key'],
    ['a trusted certificate', () => openssl.run(['x509', '-trustout'], device.cert), 'TRUSTED CERTIFICATE'],
    [
      'a request labelled as a certificate',
      () => relabel(request, 'CERTIFICATE REQUEST', 'CERTIFICATE'),
      'not a certificate',
    ],
    ['nothing', () => '', 'is empty'],
    ['no bytes', () => new Uint8Array(), 'is empty'],
    ['blanks', () => ' \n', 'is blank'],
    ['a path', () => '/etc/device/cert.pem', 'looks like a path'],
    ['a Windows path', () => 'C:\\device\\cert.pem', 'looks like a path'],
    ['a file name', () => 'device.crt', 'looks like a path'],
    ['a connection string', () => 'HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0', 'a connection string'],
    ['prose', () => 'the certificate goes here', 'holds no PEM block'],
    ['binary junk', () => Buffer.from([1, 2, 3]), 'holds no PEM block'],
    ['bare base64', () => der(device.cert).toString('base64'), 'without its BEGIN and END lines'],
    [
      'backslashes and n in place of line breaks',
      () => device.cert.replaceAll('\n', '\\n'),
      'two characters \\n',
    ],
    ['UTF-16', () => Buffer.from(`\ufeff${device.cert}`, 'utf16le'), 'UTF-16'],
    ['a certificate without its end', () => device.cert.slice(0, 300), 'no END line'],
    ['a certificate cut by the next one', () => device.cert.slice(0, 300) + device.cert, 'no END line'],
    [
      'a certificate with the end of a key',
      () => device.cert.replace('END CERTIFICATE', 'END PRIVATE KEY'),
      'another END',
    ],
    [
      'a damaged BEGIN line',
      () => device.cert.replace('BEGIN CERTIFICATE-----', 'BEGIN CERTIFICATE'),
      'BEGIN line',
    ],
    ['a line lost', () => device.cert.replace(/\n.{64}\n/, '\n'), 'is incomplete'],
    ['a line twice', () => device.cert.replace(/^(.{64})\n/m, '$1\n$1\n'), 'is damaged'],
    [
      'a character lost',
      () => device.cert.replace(/^(.{20}).(.{43})\n/m, '$1$2\n'),
      'is damaged: the base64',
    ],
    ['a foreign character', () => device.cert.replace(/^(.{20}).(.{43})\n/m, '$1*$2\n'), 'is not base64'],
    ['DER that was cut', () => der(device.cert).subarray(0, 200), 'damaged DER'],
    ['DER with bytes after it', () => Buffer.concat([der(device.cert), Buffer.from('x')]), 'damaged DER'],
  ])('%s is refused with what it is', (_, input, message) => {
    expectRefusal(() => readCertificates(input(), 'cert'), message)
    expectRefusal(() => readCertificates(input(), 'cert'), '`cert`')
  })

  it('a bad element of a list is named by its index', () => {
    expectRefusal(() => readCertificates([device.cert, device.key], 'cert'), '`cert[1]` holds a private key')
  })
})

describe('in the place of a key', () => {
  it.each<[string, () => string | Uint8Array, string]>([
    ['a certificate', () => device.cert, 'a certificate, not a private key'],
    ['a certificate in DER', () => der(device.cert), 'a certificate, not a private key'],
    ['a request', () => request, 'a certificate signing request, not a private key'],
    ['a public key', () => publicKey, 'a public key, not a private key'],
    ['PKCS#12', () => pkcs12, 'a PKCS#12 bundle'],
    [
      'parameters alone',
      () => openssl.run(['ecparam', '-name', 'prime256v1']),
      'the PRIVATE KEY block is missing',
    ],
    [
      'an OpenSSH key',
      () => '-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n',
      'ssh-keygen -p -m PKCS8',
    ],
    ['an OpenSSH public key', () => 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5', 'an OpenSSH public key'],
    ['a PuTTY key', () => 'PuTTY-User-Key-File-3: ecdsa-sha2-nistp256', 'PuTTYgen'],
    ['two keys', () => device.key + openssl.key(), '2 private keys; give exactly one'],
    ['a path', () => './device.key', 'looks like a path'],
    ['a key cut off', () => device.key.slice(0, 100), 'no END line'],
  ])('%s is refused with what it is', (_, input, message) => {
    expectRefusal(() => readPrivateKey(input(), 'key'), message)
    expectRefusal(() => readPrivateKey(input(), 'key'), '`key`')
  })

  it.each(['TSS2 PRIVATE KEY', 'PKCS#11 PROVIDER URI'])('%s is left to OpenSSL and its provider', (label) => {
    const pem = `-----BEGIN ${label}-----\nMAMCAQA=\n-----END ${label}-----\n`
    expect(readPrivateKey(pem, 'key')).toEqual({ kind: 'other', label, pem })
  })
})

describe('any input at all', () => {
  it('gives certificates or our own error, which does not quote it', () => {
    const fragments = fc.constantFrom(
      '-----BEGIN ',
      '-----END ',
      'CERTIFICATE',
      '-----',
      '\n',
      '\\n',
      'MIIB',
      '=',
      ' ',
      'a:',
    )
    const text = fc
      .array(fc.oneof(fragments, fc.string({ unit: 'binary' })), { maxLength: 20 })
      .map((x) => x.join(''))
    const damaged = fc.nat().chain((seed) =>
      fc.nat({ max: 255 }).map((byte) => {
        const bytes = der(device.cert)
        bytes[seed % bytes.length] = byte
        return bytes
      }),
    )
    fc.assert(
      fc.property(fc.oneof(text, fc.uint8Array(), damaged), (input) => {
        try {
          for (const certificate of readCertificates(input, 'cert'))
            expect(certificate).toBeInstanceOf(X509Certificate)
          readPrivateKey(input, 'key')
        } catch (error) {
          expect(error).toBeInstanceOf(DpsError)
          expect((error as DpsError).code).toBe('CREDENTIAL_UNREADABLE')
          expect((error as DpsError).message.length).toBeLessThan(400)
        }
      }),
      { numRuns: 1000 },
    )
  })
})
