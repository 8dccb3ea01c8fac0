import { execFileSync, spawn } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  createPki,
  type Emulator,
  issueCertificate,
  type Pki,
  startEmulator,
} from '../../../src/emulator/index.ts'

let pki: Pki
let folder: string

const openssl = ((): boolean => {
  try {
    execFileSync('openssl', ['version'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
})()

beforeAll(async () => {
  pki = await createPki()
  folder = mkdtempSync(join(tmpdir(), 'pki-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

const file = (name: string, text: string): string => {
  const path = join(folder, name)
  writeFileSync(path, text)
  return path
}

const blocks = (pem: string): string[] =>
  pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []

/** Standard error and output of `openssl verify`, which says `OK` or why not. */
function verify(root: string, intermediates: string, leaf: string, ...flags: string[]): string {
  const args = ['verify', '-x509_strict', ...flags, '-CAfile', file('root.pem', root)]
  if (intermediates !== '') args.push('-untrusted', file('mid.pem', intermediates))
  try {
    return execFileSync('openssl', [...args, file('leaf.pem', leaf)], { encoding: 'utf8', stdio: 'pipe' })
  } catch (error) {
    const { stdout, stderr } = error as { stdout: string; stderr: string }
    return stdout + stderr
  }
}

describe('createPki', () => {
  test('two independent RSA-2048 roots, back-dated', () => {
    const [first, second] = pki.roots.map(({ certPem }) => new X509Certificate(certPem))
    for (const root of [first!, second!]) {
      expect(root.ca).toBe(true)
      expect(root.verify(root.publicKey)).toBe(true)
      expect(root.publicKey.asymmetricKeyDetails?.modulusLength).toBe(2048)
      expect(Date.now() - Date.parse(root.validFrom)).toBeGreaterThan(23 * 3_600_000)
    }
    expect(first!.publicKey.equals(second!.publicKey)).toBe(false)
  })

  test('the server chain is leaf and intermediate, without the root', () => {
    const chain = blocks(pki.server.chainPem).map((pem) => new X509Certificate(pem))
    expect(chain).toHaveLength(2)
    expect(chain[0]!.checkIssued(chain[1]!)).toBe(true)
    expect(chain[0]!.checkHost('global.azure-devices-provisioning.net')).toBeDefined()
    expect(chain[0]!.checkHost('some-hub.azure-devices.net')).toBeDefined()
    expect(chain[0]!.checkHost('example.org')).toBeUndefined()
    expect(chain[0]!.checkIP('127.0.0.1')).toBeDefined()
    expect(chain[0]!.checkIP('::1')).toBeDefined()
  })

  test.runIf(openssl)('openssl verifies the server chain strictly', () => {
    const [leaf, intermediate] = blocks(pki.server.chainPem)
    expect(verify(pki.roots[0].certPem, intermediate!, leaf!, '-purpose', 'sslserver')).toContain('OK')
    expect(verify(pki.roots[1].certPem, intermediate!, leaf!)).toContain(
      'unable to get local issuer certificate',
    )
  })
})

describe('issueCertificate', () => {
  test.runIf(openssl).each(['ec-p256', 'ec-p384', 'rsa-2048'] as const)(
    'openssl verifies %s',
    async (keyType) => {
      const leaf = await issueCertificate({
        subject: 'd',
        keyType,
        issuer: pki.deviceIntermediate,
        eku: ['clientAuth'],
        sans: ['d.example', '10.0.0.1', 'fe80::1:2'],
      })
      const [, intermediate] = blocks(leaf.chainPem)
      expect(verify(pki.deviceRoot.certPem, intermediate!, leaf.certPem, '-purpose', 'sslclient')).toContain(
        'OK',
      )
      expect(new X509Certificate(leaf.certPem).checkIP('fe80::1:2')).toBeDefined()
    },
  )

  test.runIf(openssl)('expired, not yet valid, no CA, path too long: openssl finds each', async () => {
    const issuer = pki.roots[0]
    const day = 86_400_000
    const expired = await issueCertificate({ subject: 'x', issuer, notAfter: new Date(Date.now() - day / 2) })
    expect(verify(issuer.certPem, '', expired.certPem)).toContain('certificate has expired')
    const early = await issueCertificate({ subject: 'x', issuer, notBefore: new Date(Date.now() + day) })
    expect(verify(issuer.certPem, '', early.certPem)).toContain('certificate is not yet valid')
    const noCa = await issueCertificate({ subject: 'no ca', issuer })
    const below = await issueCertificate({ subject: 'x', issuer: noCa })
    expect(verify(issuer.certPem, noCa.certPem, below.certPem)).toContain('invalid CA certificate')
    const short = await issueCertificate({ subject: 'short', issuer, ca: true, pathLength: 0 })
    const middle = await issueCertificate({ subject: 'middle', issuer: short, ca: true })
    const end = await issueCertificate({ subject: 'x', issuer: middle })
    expect(verify(issuer.certPem, short.certPem + middle.certPem, end.certPem)).toContain(
      'path length constraint exceeded',
    )
  })

  test('one key and name signed by two roots: both verify the leaf', async () => {
    const one = await issueCertificate({ subject: 'Crossed', issuer: pki.roots[0], ca: true })
    const two = await issueCertificate({
      subject: 'Crossed',
      issuer: pki.roots[1],
      ca: true,
      key: one.keyPem,
    })
    const leaf = new X509Certificate((await issueCertificate({ subject: 'l', issuer: one })).certPem)
    for (const { certPem } of [one, two]) {
      const issuer = new X509Certificate(certPem)
      expect(leaf.checkIssued(issuer) && leaf.verify(issuer.publicKey)).toBe(true)
    }
  })

  test('weak digests, far dates, foreign public keys', async () => {
    const weak = await issueCertificate({ subject: 'w', issuer: pki.roots[0], digest: 'md5' })
    expect(
      Buffer.from(new X509Certificate(weak.certPem).raw).includes(Buffer.from('2a864886f70d010104', 'hex')),
    ).toBe(true)
    const far = await issueCertificate({ subject: 'f', notAfter: new Date('2060-01-02T03:04:05Z') })
    expect(Date.parse(new X509Certificate(far.certPem).validTo)).toBe(Date.parse('2060-01-02T03:04:05Z'))
    const { publicKey } = new X509Certificate(far.certPem)
    const text = publicKey.export({ type: 'spki', format: 'pem' }) as string
    const signed = await issueCertificate({ subject: 's', issuer: pki.deviceRoot, publicKey: text })
    expect('keyPem' in signed).toBe(false)
    expect(new X509Certificate(signed.certPem).publicKey.equals(publicKey)).toBe(true)
  })

  test.each([
    [{ subject: '' }],
    [{ subject: 'x'.repeat(65) }],
    [{ subject: 'x', pathLength: -1 }],
    [{ subject: 'x', notAfter: new Date(Number.NaN) }],
    [{ subject: 'x', digest: 'md5' as const }],
    [{ subject: 'x', keyType: 'rsa-1' as never }],
  ])('refuses %j', async (options) => {
    await expect(issueCertificate(options)).rejects.toMatchObject({ code: 'OPTION_INVALID', phase: 'config' })
  })
})

describe.runIf(openssl)('openssl s_client', () => {
  let emulator: Emulator
  beforeAll(async () => {
    emulator = await startEmulator({ pki })
  })
  afterAll(() => emulator.close())

  test('completes the handshake and verifies the chain by name', async () => {
    const root = file('root.pem', emulator.roots[0])
    const child = spawn('openssl', [
      ...['s_client', '-connect', `127.0.0.1:${emulator.port}`, '-servername', emulator.host],
      ...['-verify_hostname', emulator.host, '-verify_return_error', '-CAfile', root, '-tls1_2'],
    ])
    child.stdin.end()
    let output = ''
    child.stdout.on('data', (chunk) => {
      output += chunk
    })
    await new Promise((resolve) => child.once('close', resolve))
    expect(output).toContain('Verify return code: 0 (ok)')
    expect(output).toContain('ECDHE-RSA-AES256-GCM-SHA384')
    expect(output).toContain('No client certificate CA names sent')
  })
})
