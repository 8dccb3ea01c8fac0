import { createHash } from 'node:crypto'

/**
 * A number for each registration id, in 16 bytes at least and 32 at most, whatever its length: ids are told apart by 64 bits of
 * their SHA-256. Of a million that two are taken for one has a chance of three in a hundred million.
 */
export class IdTable {
  #hashes = new Uint32Array(2048)
  #values = new Float64Array(1024).fill(Number.NaN)
  #size = 0

  get size(): number {
    return this.#size
  }

  get(id: string): number | undefined {
    const value = this.#values[this.#slot(hashOf(id))]!
    return Number.isNaN(value) ? undefined : value
  }

  /** @param value not NaN */
  set(id: string, value: number): void {
    if (this.#size * 2 > this.#values.length) this.#grow()
    this.#put(hashOf(id), value)
  }

  #put(hash: readonly [number, number], value: number): void {
    const slot = this.#slot(hash)
    if (Number.isNaN(this.#values[slot]!)) this.#size++
    this.#hashes.set(hash, 2 * slot)
    this.#values[slot] = value
  }

  /** Where it is, or would be. */
  #slot([a, b]: readonly [number, number]): number {
    const last = this.#values.length - 1
    for (let slot = a & last; ; slot = (slot + 1) & last) {
      if (Number.isNaN(this.#values[slot]!)) return slot
      if (this.#hashes[2 * slot] === a && this.#hashes[2 * slot + 1] === b) return slot
    }
  }

  #grow(): void {
    const [hashes, values] = [this.#hashes, this.#values]
    this.#hashes = new Uint32Array(hashes.length * 2)
    this.#values = new Float64Array(values.length * 2).fill(Number.NaN)
    this.#size = 0
    for (const [slot, value] of values.entries()) {
      if (!Number.isNaN(value)) this.#put([hashes[2 * slot]!, hashes[2 * slot + 1]!], value)
    }
  }
}

/** The service ignores the case of letters. */
function hashOf(id: string): readonly [number, number] {
  const hash = createHash('sha256').update(id.toLowerCase()).digest()
  return [hash.readUInt32LE(0), hash.readUInt32LE(4)]
}
