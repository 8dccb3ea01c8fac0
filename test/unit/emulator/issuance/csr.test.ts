import { beforeAll, expect, test } from 'vitest'
import { readCsr } from '../../../../src/emulator/issuance/csr.ts'
import { type Der, der } from '../../../../src/emulator/pki.ts'
import { type DeviceCsr, opensslCsr } from '../raw-csr.ts'

let codec: Der
let ec: DeviceCsr
let rsa: DeviceCsr
beforeAll(async () => {
  codec = await der()
  ec = opensslCsr('d', 'P-256')
  rsa = opensslCsr('d', 'rsa')
})

const read = (bytes: Buffer) => readCsr(codec, bytes.toString('base64'), ['d'], { allowRsa: true })

test('a request of either kind is read as OpenSSL wrote it', () => {
  for (const { csr } of [ec, rsa]) {
    expect(read(Buffer.from(csr, 'base64'))).toMatchObject({ commonName: 'd', text: csr })
  }
})

test('a request with any one bit turned is refused, and nothing is thrown', () => {
  for (const { csr } of [ec, rsa]) {
    const bytes = Buffer.from(csr, 'base64')
    for (let bit = 0; bit < bytes.length * 8; bit += 1) {
      const turned = Buffer.from(bytes)
      turned[bit >> 3]! ^= 1 << (bit & 7)
      expect(read(turned), `bit ${bit}`).toBeTypeOf('string')
    }
  }
})

test('a request that is cut short anywhere is refused, and nothing is thrown', () => {
  const bytes = Buffer.from(ec.csr, 'base64')
  for (let length = 0; length < bytes.length; length += 1) {
    expect(read(bytes.subarray(0, length)), `${length} bytes`).toBeTypeOf('string')
  }
})

test('sequences nested without end are refused, and nothing is thrown', () => {
  let nested = Buffer.alloc(0)
  for (let depth = 0; depth < 1500; depth += 1) {
    const { length } = nested
    const head = length < 128 ? [0x30, length] : [0x30, 0x82, length >> 8, length & 0xff]
    nested = Buffer.concat([Buffer.from(head), nested])
  }
  expect(read(nested)).toBe('A signing request is PKCS#10 in DER [RFC 2986].')
})
