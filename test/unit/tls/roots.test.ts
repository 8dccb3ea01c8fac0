import { execFileSync } from 'node:child_process'
import { createHash, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { BUNDLED_ROOTS } from '../../../src/tls/roots.ts'
import { resolveTrust } from '../../../src/tls/trust.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const path = (relative: string) => fileURLToPath(new URL(`../../../${relative}`, import.meta.url))
const read = (relative: string) => readFileSync(path(relative), 'utf8')
const pems = (text: string) => text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? []

/** The table of roots/README.md: one record per column. */
function provenance(): Record<string, string>[] {
  const rows = read('roots/README.md')
    .split('\n')
    .filter((line) => line.startsWith('| '))
    .map((line) => line.split('|').slice(1, -1))
  return [1, 2].map((column) =>
    Object.fromEntries(rows.map((cells) => [cells[0]!.trim(), cells[column]!.trim()])),
  )
}

const YEAR_MS = 365 * 86_400_000

describe('bundled roots', () => {
  it('are exactly the two that the service names', () => {
    expect(BUNDLED_ROOTS.map((root) => [root.name, root.sha256])).toEqual([
      ['DigiCert Global Root G2', 'CB3CCBB76031E5E0138F8DD39A23F9DE47FFC35E43C1144CEA27D46A5AB1CB5F'],
      [
        'Microsoft RSA Root Certificate Authority 2017',
        'C741F70F4B2A8D88BF2E71C14122EF53EF10EBA0CFA5E64CFA20F418853073E0',
      ],
    ])
  })

  it('are frozen', () => {
    expect(Object.isFrozen(BUNDLED_ROOTS) && BUNDLED_ROOTS.every(Object.isFrozen)).toBe(true)
  })

  it('are embedded as the PEM files hold them', () => {
    for (const root of BUNDLED_ROOTS) expect(root.pem).toBe(read(`roots/${root.file}`))
    execFileSync(process.execPath, [path('scripts/embed-roots.mjs'), '--check'])
  })

  for (const [index, root] of BUNDLED_ROOTS.entries()) {
    describe(root.name, () => {
      const certificate = new X509Certificate(read(`roots/${root.file}`))
      const spki = certificate.publicKey.export({ type: 'spki', format: 'der' })
      const column = provenance()[index]!
      const validFrom = new Date(certificate.validFrom).toISOString()
      const validTo = new Date(certificate.validTo).toISOString()

      it('is a CA certificate signed by its own key', () => {
        expect(certificate.ca).toBe(true)
        expect(certificate.subject).toBe(certificate.issuer)
        expect(certificate.verify(certificate.publicKey)).toBe(true)
      })

      it('has the facts that are exported', () => {
        expect(root).toEqual({
          name: /CN=(.*)/.exec(certificate.subject)?.[1],
          file: root.file,
          sha256: certificate.fingerprint256.replaceAll(':', ''),
          spkiSha256: createHash('sha256').update(spki).digest('base64'),
          validFrom,
          validTo,
          pem: certificate.toString(),
        })
      })

      it('has the facts of the provenance table', () => {
        expect(column).toMatchObject({
          '': `[\`${root.file}\`](${root.file})`,
          Subject: certificate.subject.replaceAll('\n', ', '),
          Serial: certificate.serialNumber,
          Key: `RSA ${certificate.publicKey.asymmetricKeyDetails?.modulusLength}`,
          'SHA-256': root.sha256,
          'SPKI pin': root.spkiSha256,
          'Valid from': validFrom.replace('.000Z', 'Z'),
          'Valid to': validTo.replace('.000Z', 'Z'),
        })
        expect(column.Source).not.toBe('')
      })

      it('is valid for another year: otherwise plan its replacement now', () => {
        expect(Date.parse(root.validTo) - Date.now()).toBeGreaterThan(YEAR_MS)
      })
    })
  }
})

describe('the public chain of the service', () => {
  const [upper, issuing] = pems(read('test/data/azure-public-intermediates.pem')).map(
    (pem) => new X509Certificate(pem),
  )
  const root = new X509Certificate(BUNDLED_ROOTS[0]!.pem)
  const at = Date.UTC(2026, 5, 1)

  it('verifies link by link up to DigiCert Global Root G2 on 2026-06-01', () => {
    const chain = [issuing!, upper!, root]
    for (const [i, certificate] of chain.entries()) {
      const issuer = chain[i + 1] ?? root
      expect(certificate.ca).toBe(true)
      expect(certificate.checkIssued(issuer)).toBe(true)
      expect(certificate.verify(issuer.publicKey)).toBe(true)
      expect(Date.parse(certificate.validFrom)).toBeLessThan(at)
      expect(Date.parse(certificate.validTo)).toBeGreaterThan(at)
    }
    expect(chain.map((certificate) => /CN=(.*)/.exec(certificate.subject)?.[1])).toEqual([
      'Microsoft TLS G2 RSA CA OCSP 02',
      'Microsoft TLS RSA Root G2',
      'DigiCert Global Root G2',
    ])
  })

  it('does not verify under the other root', () => {
    expect(upper!.checkIssued(new X509Certificate(BUNDLED_ROOTS[1]!.pem))).toBe(false)
  })

  it.each([
    ['the cross-certificate of a future root', upper!],
    ['the issuing intermediate', issuing!],
  ])('%s, offered as trust anchor, is refused by name', async (_, certificate) => {
    const error = await expectDpsError(
      () => resolveTrust({ extraRoots: certificate.toString() }),
      'TRUST_ANCHOR_INVALID',
      'config',
    )
    expect(error.message).toContain(/CN=(.*)/.exec(certificate.subject)![1])
    expect(error.message).toContain('an intermediate CA certificate')
  })
})
