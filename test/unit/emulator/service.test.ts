import { X509Certificate } from 'node:crypto'
import { beforeAll, describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { EnrollmentBook } from '../../../src/emulator/enrollments.ts'
import { createPki, issueCertificate, type Pki, type RefusalReason } from '../../../src/emulator/index.ts'
import { IssuingAuthority } from '../../../src/emulator/issuance/authority.ts'
import { der } from '../../../src/emulator/pki.ts'
import { commonName, ProvisioningService } from '../../../src/emulator/service.ts'

let pki: Pki
let service: ProvisioningService
beforeAll(async () => {
  pki = await createPki()
  const enrollments = new EnrollmentBook()
  enrollments.addGroup({ groupId: 'g', attestation: { x509: { ca: pki.deviceRoot.certPem } } })
  service = new ProvisioningService({
    idScope: '0ne00000000',
    clock: systemClock,
    enrollments,
    hubs: ['hub.azure-devices.net'],
    polls: 1,
    retryAfter: undefined,
    pollLimit: false,
    disabledEnrollment: 'refuse',
    concurrentRegistrations: 'conflict',
    authority: new IssuingAuthority({
      der: await der(),
      clock: systemClock,
      onIssued: () => undefined,
      faults: () => [],
    }),
    onRegistration: () => undefined,
  })
})

/** Judges a chain without TLS, which on some Node versions ends the connection over a wrong signature itself. */
function judge(leaf: string, ...intermediates: string[]): RefusalReason | 'accepted' {
  const result = service.authenticate({
    idScope: '0ne00000000',
    registrationId: 'x-1',
    apiVersion: '2019-03-31',
    sas: undefined,
    certificate: {
      leaf: new X509Certificate(leaf),
      intermediates: intermediates.map((pem) => new X509Certificate(pem)),
    },
    carrier: { open: true, connectionId: 1 },
  })
  return result.ok ? 'accepted' : result.reason
}

describe('a chain that fits by name and key identifier', () => {
  test('is refused when another key signed the leaf', async () => {
    const { keyPem } = await issueCertificate({ subject: 'thief' })
    for (const { certPem } of [pki.deviceIntermediate, pki.deviceRoot]) {
      const forged = await issueCertificate({ subject: 'x-1', issuer: { certPem, keyPem } })
      expect(judge(forged.certPem, pki.deviceIntermediate.certPem)).toBe('certificate-chain-unknown')
    }
  })

  test('is refused when another key signed the intermediate', async () => {
    const { keyPem } = await issueCertificate({ subject: 'thief' })
    const issuer = { certPem: pki.deviceRoot.certPem, keyPem }
    const middle = await issueCertificate({ subject: 'middle', issuer, ca: true })
    const leaf = await issueCertificate({ subject: 'x-1', issuer: middle })
    expect(judge(leaf.certPem, middle.certPem)).toBe('certificate-chain-unknown')
  })

  test('is accepted in any order, with strangers in it', async () => {
    const middle = await issueCertificate({ subject: 'middle', issuer: pki.deviceIntermediate, ca: true })
    const leaf = await issueCertificate({ subject: 'x-1', issuer: middle })
    const chain = [pki.roots[0], pki.deviceIntermediate, middle].map(({ certPem }) => certPem)
    expect(judge(leaf.certPem, ...chain)).toBe('accepted')
  })

  test('that turns in a circle comes to an end', async () => {
    const one = await issueCertificate({ subject: 'one', ca: true })
    const two = await issueCertificate({ subject: 'two', ca: true, issuer: one })
    const again = await issueCertificate({ subject: 'one', ca: true, issuer: two, key: one.keyPem })
    const leaf = await issueCertificate({ subject: 'x-1', issuer: two })
    expect(judge(leaf.certPem, two.certPem, again.certPem)).toBe('certificate-chain-unknown')
  })
})

test('commonName takes the only one', async () => {
  const { certPem } = await issueCertificate({ subject: 'dev:1_a.b' })
  expect(commonName(new X509Certificate(certPem))).toBe('dev:1_a.b')
  expect(commonName({ subject: 'CN=a\nCN=b' } as X509Certificate)).toBeUndefined()
  expect(commonName({ subject: 'O=a' } as X509Certificate)).toBeUndefined()
})
