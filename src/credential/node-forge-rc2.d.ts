// The published types cover the whole library only, and not this part of it.
declare module 'node-forge/lib/rc2.js' {
  /** Byte strings are Latin-1 text. */
  interface Decipher {
    readonly output: { getBytes(): string }
    start(iv: string): void
    update(input: { getBytes(): string }): void
    finish(): boolean
  }
  const rc2: { createDecryptionCipher(key: string, effectiveBits: number): Decipher }
  export default rc2
}
