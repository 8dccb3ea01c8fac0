import fc from 'fast-check'
import { DpsError } from '../../src/index.ts'

/** How often each property is tried; `npm run fuzz` tries for longer. */
export const RUNS = Number(process.env.FUZZ_RUNS ?? 100)

/** Repeats a run; fast-check prints the seed of one that failed. Default: another each time. */
const SEED = process.env.FUZZ_SEED === undefined ? {} : { seed: Number(process.env.FUZZ_SEED) }

/** Longest time for a property of `runs` tries, ms: a guard against never, no measure of speed. */
export const limitMs = (runs: number) => 20_000 + runs * 100

/** Far more than any try takes; past it one counts as a hang, so that it is reported and made small like any failure. */
const HANG_MS = 10_000

export const check = <T>(property: fc.IAsyncPropertyWithHooks<T>, runs: number) =>
  fc.assert(property, { numRuns: runs, ...SEED })

/** What came out: a value, or a DpsError. Anything else is thrown on, and so is that nothing came out at all. */
export async function ending<T>(promise: Promise<T>): Promise<T | DpsError> {
  let timer: NodeJS.Timeout | undefined
  const hang = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('it neither succeeds nor fails')), HANG_MS)
  })
  try {
    return await Promise.race([promise, hang])
  } catch (error) {
    if (!DpsError.is(error)) throw error
    // What is logged and shown to people: one line of text, of a length that fits in a log.
    if (/\p{Cc}/u.test(error.message) || error.message.length > 1500) {
      throw new Error(`a message that cannot be printed: ${JSON.stringify(error.message)}`)
    }
    return error
  } finally {
    clearTimeout(timer)
  }
}

export type Mutation = (bytes: Buffer) => Buffer

/** `bytes` after all of them. */
export const changed = (bytes: Buffer, mutations: readonly Mutation[]): Buffer =>
  mutations.reduce<Buffer>((before, mutate) => mutate(before), bytes)

const place = fc.nat({ max: 0xffff })
const at = (bytes: Buffer, where: number) => Math.floor((where / 0x10000) * (bytes.length + 1))

/** One change of some bytes; `words` are what the format gives a meaning to. */
export function mutation(words: readonly (string | Buffer)[]): fc.Arbitrary<Mutation> {
  const splice = (bytes: Buffer, from: number, to: number, put: Uint8Array) =>
    Buffer.concat([bytes.subarray(0, from), put, bytes.subarray(Math.max(from, to))])
  const word = fc.constantFrom(...words).map((text) => Buffer.from(text as string, 'latin1'))
  const few = fc.integer({ min: 1, max: 8 })
  return fc.oneof(
    fc.tuple(place, fc.integer({ min: 1, max: 255 })).map<Mutation>(([where, mask]) => (bytes) => {
      const copy = Buffer.from(bytes)
      const index = Math.min(at(bytes, where), bytes.length - 1)
      if (index >= 0) copy[index]! ^= mask
      return copy
    }),
    fc.tuple(place, few).map<Mutation>(
      ([where, length]) =>
        (bytes) =>
          splice(bytes, at(bytes, where), at(bytes, where) + length, Buffer.alloc(0)),
    ),
    fc.tuple(place, fc.oneof(word, fc.uint8Array({ maxLength: 16 })), fc.nat({ max: 4 })).map<Mutation>(
      ([where, put, over]) =>
        (bytes) =>
          splice(bytes, at(bytes, where), at(bytes, where) + over, put),
    ),
    fc.tuple(place, place).map<Mutation>(([one, other]) => (bytes) => {
      const [from, to] = [at(bytes, Math.min(one, other)), at(bytes, Math.max(one, other))]
      return splice(bytes, to, to, bytes.subarray(from, to))
    }),
    place.map<Mutation>((where) => (bytes) => bytes.subarray(0, at(bytes, where))),
    fc.tuple(word, fc.integer({ min: 2, max: 3000 })).map<Mutation>(
      ([put, times]) =>
        (bytes) =>
          splice(bytes, bytes.length, bytes.length, Buffer.concat(Array(times).fill(put))),
    ),
  )
}
