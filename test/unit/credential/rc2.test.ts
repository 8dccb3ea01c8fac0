import { createRequire } from 'node:module'
import { describe, expect, it } from 'vitest'
import { decryptRc2 } from '../../../src/credential/rc2.ts'

interface Cipher {
  readonly output: { getBytes(): string }
  start(iv: string): void
  update(input: { getBytes(): string }): void
  finish(): boolean
}

// An independent opinion on what RC2 is.
const forge: { createEncryptionCipher(key: string, bits: number): Cipher } = createRequire(import.meta.url)(
  'node-forge/lib/rc2.js',
)

function encrypted(key: Buffer, iv: Buffer, plain: Buffer): Buffer {
  const cipher = forge.createEncryptionCipher(key.toString('latin1'), key.length * 8)
  cipher.start(iv.toString('latin1'))
  cipher.update({ getBytes: () => plain.toString('latin1') })
  cipher.finish()
  return Buffer.from(cipher.output.getBytes(), 'latin1')
}

describe('RC2', () => {
  const bytes = (length: number, seed: number) =>
    Buffer.from(Array.from({ length }, (_, i) => (i * 73 + seed * 151) & 0xff))

  it.each([5, 16])('with a key of %i bytes gives back what was encrypted', (size) => {
    for (let length = 0; length < 40; length++) {
      const [key, iv, plain] = [bytes(size, length), bytes(8, length + 1), bytes(length, length + 2)]
      expect(decryptRc2(key, iv, encrypted(key, iv, plain))).toEqual(plain)
    }
  })

  it('is as in the examples of RFC 2268, section 5', () => {
    // Of one block each, decrypted with the initialization vector that makes the plain text a padded one.
    for (const [key, plain, cipher] of [
      ['ffffffffffffffff', 'ffffffffffffffff', '278b27e42e2f0d49'],
      ['3000000000000000', '1000000000000001', '30649edf9be7d2c2'],
      ['88bca90e90875a7f0f79c384627bafb2', '0000000000000000', '2269552ab0f85ca6'],
    ] as const) {
      const iv = Buffer.from(plain, 'hex').map((byte) => byte ^ 8)
      expect(decryptRc2(Buffer.from(key, 'hex'), Buffer.from(iv), Buffer.from(cipher, 'hex'))).toHaveLength(0)
    }
  })

  it('of a wrong length or padding is none', () => {
    const [key, iv] = [bytes(5, 1), bytes(8, 2)]
    const whole = encrypted(key, iv, bytes(20, 3))
    expect(decryptRc2(key, iv, whole.subarray(0, -1))).toBeUndefined()
    expect(decryptRc2(key, iv, whole.subarray(0, -8))).toBeUndefined()
    expect(decryptRc2(key, iv, Buffer.alloc(0))).toBeUndefined()
  })
})
