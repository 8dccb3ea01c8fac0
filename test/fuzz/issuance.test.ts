import { createPublicKey, X509Certificate } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { readCertificateRequest } from '../../src/credential/certificate-request.ts'
import { checkIssuedChain } from '../../src/credential/issued-chain.ts'
import { issueCertificate } from '../../src/emulator/index.ts'
import { createCsr } from '../../src/factory/index.ts'
import { DpsError } from '../../src/index.ts'
import { changed, check, ending, limitMs, mutation, RUNS } from './fuzz.ts'

// What an authority may answer a request with, and what a tool may make of the request itself.

const NOW = Date.UTC(2026, 10, 24)
const dates = { notBefore: new Date(NOW - 60_000), notAfter: new Date(NOW + 86_400_000) }
const request = await createCsr({ registrationId: 'fuzz' })
const rsa = await createCsr({ registrationId: 'fuzz', rsaBits: 2048 })
const publicKey = createPublicKey(request.publicKey)
const root = await issueCertificate({ subject: 'Root', ca: true, ...dates })
const issuing = await issueCertificate({ subject: 'Issuing', ca: true, issuer: root, ...dates })
const leaf = await issueCertificate({
  subject: 'fuzz',
  issuer: issuing,
  publicKey: request.publicKey,
  ...dates,
})
const PEMS = [leaf, issuing, root].map(({ certPem }) => certPem)
const DERS = PEMS.map((pem) => new X509Certificate(pem).raw)

const WORDS = [
  '-----BEGIN CERTIFICATE-----\n',
  '-----END CERTIFICATE-----\n',
  '\0',
  '\x30\x80',
  '\x30\x82\xff\xff',
  '=',
  '\n',
]

const runs = RUNS * 4

describe('an issued chain that was changed', () => {
  const element = fc
    .tuple(
      fc.constantFrom(...DERS, ...PEMS.map((pem) => Buffer.from(pem))),
      fc.oneof({ weight: 2, arbitrary: fc.constant([]) }, fc.array(mutation(WORDS), { maxLength: 3 })),
      fc.boolean(),
    )
    .map(([bytes, mutations, asText]) => {
      const now = changed(bytes, mutations)
      return asText ? now.toString('latin1') : now.toString('base64')
    })
  const elements = fc.oneof(
    { weight: 8, arbitrary: fc.array(element, { maxLength: 6 }) },
    // The true chain, with something beside it.
    fc.tuple(element, fc.nat({ max: 3 })).map(([one, at]) => {
      const whole = DERS.map((der) => der.toString('base64'))
      return [...whole.slice(0, at), one, ...whole.slice(at)]
    }),
    fc.anything(),
  )

  it(
    'is one that may be used, or a DpsError',
    async () => {
      let usable = 0
      const property = fc.asyncProperty(elements, async (given) => {
        const checked = await ending(
          (async () => checkIssuedChain({ elements: given, publicKey, names: ['fuzz'], nowMs: NOW }))(),
        )
        if (DpsError.is(checked)) {
          expect(checked.phase).toBe('parse')
          expect(['CERTIFICATE_NOT_ISSUED', 'ISSUED_CERTIFICATE_INVALID']).toContain(checked.code)
          return
        }
        usable++
        // What the authority made, in its order; the last one's own signature is nobody's to check, but its key is the true one.
        expect(checked.chain.length).toBeGreaterThanOrEqual(2)
        expect(checked.chain.slice(0, -1)).toEqual(PEMS.slice(0, checked.chain.length - 1))
        const last = [checked.chain, PEMS].map((pems) => new X509Certificate(pems[checked.chain.length - 1]!))
        expect(last[0]!.publicKey.equals(last[1]!.publicKey)).toBe(true)
      })
      await check(property, runs)
      expect(usable).toBeGreaterThan(0)
    },
    limitMs(runs),
  )
})

/** What is signed, and the name of the algorithm that signs it. */
const REQUESTS = [request, rsa].map(({ csr }, index) => {
  const der = Buffer.from(csr, 'base64')
  return {
    der,
    // SEQUENCE of a length in one byte (the EC request) or in two.
    info: der.subarray(4, der[5] === 0x81 ? 7 + der[6]! : 8 + der.readUInt16BE(6)),
    algorithm: Buffer.from(index === 0 ? '06082a8648ce3d040303' : '06092a864886f70d01010b', 'hex'),
  }
})

describe('a request that was changed', () => {
  const read = (input: unknown) => ending((async () => readCertificateRequest(input).wireFor('fuzz'))())

  it(
    'is refused, unless what was signed is as it was',
    async () => {
      const given = fc.tuple(fc.constantFrom(...REQUESTS), fc.array(mutation(WORDS), { maxLength: 3 }))
      let taken = 0
      const property = fc.asyncProperty(given, async ([{ der, info, algorithm }, mutations]) => {
        const bytes = changed(der, mutations)
        const wire = await read(bytes.toString('base64'))
        if (DpsError.is(wire)) {
          expect([wire.code, wire.phase]).toEqual(['OPTION_INVALID', 'config'])
          return
        }
        taken++
        expect(wire).toBe(bytes.toString('base64'))
        // Another algorithm than those that are known here is the service's to judge.
        expect(bytes.includes(info) || !bytes.includes(algorithm)).toBe(true)
      })
      await check(property, runs)
      expect(taken).toBeGreaterThan(0)
    },
    limitMs(runs),
  )

  it(
    'as text is read or refused',
    async () => {
      const text = fc
        .tuple(fc.constantFrom(request.pem, request.csr), fc.array(mutation(WORDS), { maxLength: 3 }))
        .map(([before, mutations]) => changed(Buffer.from(before), mutations).toString('latin1'))
      const property = fc.asyncProperty(fc.oneof(text, fc.anything()), async (value) => {
        const wire = await read(value)
        if (DpsError.is(wire)) expect([wire.code, wire.phase]).toEqual(['OPTION_INVALID', 'config'])
        else expect(wire).toMatch(/^[A-Za-z0-9+/]+={0,2}$/)
      })
      await check(property, runs)
    },
    limitMs(runs),
  )
})
