import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { readCertificateRequest } from '../../src/credential/certificate-request.ts'
import { issueCertificate } from '../../src/emulator/index.ts'
import { DpsError, issuedCertificate } from '../../src/index.ts'
import { parseCertificateReply, parseCertificateTopic } from '../../src/protocol/renewal.ts'
import { memoryStore } from '../unit/assignment/records.ts'
import { changed, check, ending, limitMs, mutation, RUNS } from './fuzz.ts'

// What a hub may answer a request for a certificate with, and what a disk may make of the certificates that are kept.

const runs = RUNS * 4

describe('an answer of a hub that was changed', () => {
  const topic = fc
    .tuple(
      fc
        .constantFrom(202, 200, 400, 409, 412, 429, 500, 503)
        .map((status) => Buffer.from(`$iothub/credentials/res/${status}/?$rid=a1b2-c3d4`)),
      fc.array(mutation(['?$rid=', '/', '&', '\0', '200']), { maxLength: 2 }),
    )
    .map(([bytes, mutations]) => changed(bytes, mutations).toString('latin1'))
  const body = fc
    .tuple(
      fc
        .constantFrom<unknown>(
          { correlationId: 'c', operationExpires: '2026-01-30T10:00:00Z' },
          { correlationId: 'c', certificates: ['MIIB', 'MIIC'] },
          ['MIIB', 'MIIC'],
          {
            errorCode: 409004,
            message: 'm',
            trackingId: 't',
            retryAfter: 3,
            info: { requestId: 'a1b2-c3d4' },
          },
          { errorCode: 400037, message: 'm', info: { credentialError: 'e', credentialMessage: 'm' } },
        )
        .map((value) => Buffer.from(JSON.stringify(value))),
      fc.array(mutation(['"errorCode":', '"info":null', '__proto__', '{', '[', '"', '\\u0000', '1e999']), {
        maxLength: 3,
      }),
    )
    .map(([bytes, mutations]) => changed(bytes, mutations))

  it(
    'is read, refused by a DpsError, or none',
    () =>
      check(
        fc.asyncProperty(
          fc.oneof({ weight: 3, arbitrary: topic }, fc.string()),
          body,
          async (name, bytes) => {
            const found = parseCertificateTopic(name)
            if (found === undefined) return
            const reply = await ending((async () => parseCertificateReply(found, bytes))())
            if (DpsError.is(reply)) expect(reply.code).toBe('REPLY_MALFORMED')
            else if (reply.kind === 'refused' || reply.kind === 'nothing-to-replace') {
              await ending(Promise.reject(reply.error))
              expect(reply.error.retryAfterMs ?? 0).toBeLessThanOrEqual(86_400_000)
            }
            expect(({} as Record<string, unknown>).polluted).toBeUndefined()
          },
        ),
        runs,
      ),
    limitMs(runs),
  )
})

describe('stored certificates that were changed', async () => {
  const root = await issueCertificate({ subject: 'Root', ca: true })
  const store = memoryStore()
  const certificate = issuedCertificate({ store })
  const { csr } = await certificate.createRequest({ registrationId: 'fuzz', curve: 'P-256' })
  const publicKey = readCertificateRequest(csr).publicKey.export({ type: 'spki', format: 'pem' }) as string
  const { certPem } = await issueCertificate({ subject: 'fuzz', issuer: root, publicKey })
  await certificate.install([certPem, root.certPem])
  const { fingerprint } = await certificate.load()
  const original = Buffer.from(store.bytes!)

  it(
    'are what they were, or none that a list of credentials stops at',
    () =>
      check(
        fc.asyncProperty(
          fc.array(mutation(['\n', '"candidate":', '"current":null', 'sha256:', '}', '-----END ']), {
            maxLength: 3,
          }),
          async (mutations) => {
            const bytes = changed(original, mutations)
            const loaded = await ending(issuedCertificate({ store: memoryStore(bytes) }).load())
            if (DpsError.is(loaded))
              expect(loaded).toMatchObject({ code: 'CREDENTIAL_UNREADABLE', phase: 'config' })
            else
              expect({ fingerprint: loaded.fingerprint, same: bytes.equals(original) }).toEqual({
                fingerprint,
                same: true,
              })
          },
        ),
        runs,
      ),
    limitMs(runs),
  )
})
