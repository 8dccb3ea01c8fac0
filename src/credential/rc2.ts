/** RFC 2268, section 2: a permutation made of the digits of π. */
const PI = Buffer.from(
  'd978f9c419ddb5ed28e9fd794aa0d89dc67e37832b76538e624c6488448bfba2179a59f587b34f1361456d8d09817d32' +
    'bd8f40eb86b77b0bf09521225c6b4e8254d66593ce60b21c7356c014a78cf1dc1275ca1f3bbee4d1423dd430a33cb626' +
    '6fbf0eda4669075727f21d9bbc944303f811c7f690ef3ee706c3d52fc8661ed708e8eade8052eef784aa72ac354d6a2a' +
    '961ad2715a1549744b9fd05e0418a4ecc2e0416e0f51cbcc2491af50a1f47039997c3a8523b8b47afc02365b25559731' +
    '2d5dfa98e38a92ae05df2910676cbac9d300e6cfe19ea82c6316013f58e289a90d38341bab33ffb0bb480c5fb9b1cd2e' +
    'c5f3db47e5a59c770aa62068fe7fc1ad',
  'hex',
)

const ROTATIONS = [1, 2, 3, 5] as const

/**
 * Decrypts RC2 in CBC mode with PKCS#7 padding (RFC 2268), which Node's OpenSSL has put away, and in which the certificates
 * of old PKCS#12 files are. It protects nothing any more. All bits of the key are effective.
 *
 * @param iv 8 bytes
 * @returns undefined where the length or the padding is wrong
 */
export function decryptRc2(key: Buffer, iv: Buffer, data: Buffer): Buffer | undefined {
  if (data.length === 0 || data.length % 8 !== 0) return undefined
  const words = expand(key)
  const plain = Buffer.alloc(data.length)
  let previous = iv
  for (let at = 0; at < data.length; at += 8) {
    const block = data.subarray(at, at + 8)
    const state = [0, 2, 4, 6].map((i) => block.readUInt16LE(i))
    decryptBlock(state, words)
    for (const [i, word] of state.entries())
      plain.writeUInt16LE(word ^ previous.readUInt16LE(2 * i), at + 2 * i)
    previous = block
  }
  const padding = plain.at(-1)!
  const isPadded = padding >= 1 && padding <= 8 && plain.subarray(-padding).every((byte) => byte === padding)
  return isPadded ? plain.subarray(0, -padding) : undefined
}

function expand(key: Buffer): readonly number[] {
  const size = key.length
  const bytes = Buffer.alloc(128)
  key.copy(bytes)
  for (let i = size; i < 128; i++) bytes[i] = PI[(bytes[i - 1]! + bytes[i - size]!) & 0xff]!
  bytes[128 - size] = PI[bytes[128 - size]!]!
  for (let i = 127 - size; i >= 0; i--) bytes[i] = PI[bytes[i + 1]! ^ bytes[i + size]!]!
  return Array.from({ length: 64 }, (_, i) => bytes.readUInt16LE(2 * i))
}

function decryptBlock(state: number[], words: readonly number[]): void {
  const before = (i: number, by: number) => state[(i + 4 - by) % 4]!
  for (let j = 63; j >= 0; ) {
    for (let i = 3; i >= 0; i--, j--) {
      const rotated = (state[i]! >> ROTATIONS[i]!) | (state[i]! << (16 - ROTATIONS[i]!))
      const mixed = (before(i, 1) & before(i, 2)) + (~before(i, 1) & before(i, 3))
      state[i] = (rotated - words[j]! - mixed) & 0xffff
    }
    // After five rounds of mixing, and again after six.
    if (j !== 43 && j !== 19) continue
    for (let i = 3; i >= 0; i--) state[i] = (state[i]! - words[before(i, 1) & 63]!) & 0xffff
  }
}
