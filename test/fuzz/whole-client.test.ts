import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { createPki, generateSymmetricKey, startEmulator } from '../../src/emulator/index.ts'
import { DpsError, ProvisioningClient, symmetricKey, type TransportName } from '../../src/index.ts'
import { testClock } from '../support/clock.ts'
import { BODIES, HTTP_HEADS, TOPICS } from './corpus.ts'

// The whole client, over real TLS, against a server that answers a register request with any bytes and then goes away.
// Whatever they are, one DpsError or an assignment comes out, and nothing is left.
//
//     FUZZ_RUNS=100000 npx vitest run test/fuzz        the long form
//     FUZZ_SEED=…  repeats a run; fast-check prints the seed of one that failed

const runs = Number(process.env.FUZZ_RUNS ?? 150)
const seed = process.env.FUZZ_SEED === undefined ? undefined : Number(process.env.FUZZ_SEED)
const LONGEST_MS = 20_000 + runs * 100

const pki = await createPki()
const emulator = await startEmulator({ pki, logSize: 10 })
afterAll(() => emulator.close())
const key = generateSymmetricKey()
emulator.enrollments.addIndividual({
  registrationId: 'fuzz',
  attestation: { symmetricKey: { primaryKey: key } },
})

/** MQTT 3.1.1 §3.3, QoS 0. */
function publish(topic: string, payload: Uint8Array): Buffer {
  const name = Buffer.from(topic)
  const body = Buffer.concat([Buffer.from([name.length >> 8, name.length & 255]), name, payload])
  const length: number[] = []
  let rest = body.length
  do {
    length.push((rest & 127) | (rest > 127 ? 128 : 0))
    rest >>= 7
  } while (rest > 0)
  return Buffer.concat([Buffer.from([0x30, ...length]), body])
}

/** RFC 6455 §5.2, one binary message from a server. */
function frame(payload: Buffer): Buffer {
  const length =
    payload.length < 126 ? [payload.length] : [126, (payload.length >> 8) & 255, payload.length & 255]
  return Buffer.concat([Buffer.from([0x82, ...length]), payload])
}

type Mutation = (bytes: Buffer) => Buffer

const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.constant<Mutation>((bytes) => bytes),
  fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 })).map<Mutation>(([at, mask]) => (bytes) => {
    const copy = Buffer.from(bytes)
    if (copy.length > 0) copy[at % copy.length]! ^= mask
    return copy
  }),
  fc.nat().map<Mutation>((n) => (bytes) => bytes.subarray(0, n % (bytes.length + 1))),
  fc.nat().map<Mutation>((n) => (bytes) => bytes.subarray(n % (bytes.length + 1))),
  fc.tuple(fc.nat(), fc.uint8Array({ maxLength: 40 })).map<Mutation>(([n, extra]) => (bytes) => {
    const at = n % (bytes.length + 1)
    return Buffer.concat([bytes.subarray(0, at), extra, bytes.subarray(at)])
  }),
  fc.integer({ min: 2, max: 4 }).map<Mutation>((n) => (bytes) => Buffer.concat(Array(n).fill(bytes))),
  fc.uint8Array({ maxLength: 300 }).map<Mutation>((other) => () => Buffer.from(other)),
)

const body = fc.constantFrom(...BODIES).map((text) => Buffer.from(text))

/** What each transport would take for a reply, by the id of its request. */
const answers: Record<TransportName, fc.Arbitrary<(rid: string) => Buffer>> = {
  mqtt: fc.tuple(fc.constantFrom(...TOPICS), body).map(
    ([topic, payload]) =>
      (rid) =>
        publish(topic(rid), payload),
  ),
  'mqtt-ws': fc.tuple(fc.constantFrom(...TOPICS), body).map(
    ([topic, payload]) =>
      (rid) =>
        frame(publish(topic(rid), payload)),
  ),
  https: fc.tuple(fc.constantFrom(...HTTP_HEADS), body).map(
    ([head, payload]) =>
      () =>
        Buffer.concat([Buffer.from(head(payload.length), 'latin1'), payload]),
  ),
}

describe('a server that answers with anything', () => {
  for (const transport of Object.keys(answers) as TransportName[]) {
    it(
      `over ${transport}`,
      async () => {
        const outcomes = new Map<string, number>()
        const property = fc.asyncProperty(
          answers[transport],
          fc.array(mutation, { minLength: 1, maxLength: 3 }),
          async (answer, mutations) => {
            const clock = testClock()
            const client = new ProvisioningClient({
              ...emulator.clientOptions(),
              credential: symmetricKey({ registrationId: 'fuzz', key }),
              transport,
              clock,
              retry: { maxAttempts: 1 },
            })
            emulator.faults.clear()
            const raw = ({ rid }: { rid: string }) =>
              mutations.reduce((bytes, mutate) => mutate(bytes), answer(rid))
            emulator.faults.add({ at: 'register-reply', do: [{ raw, unframed: true }, 'drop'] })
            // A reply of the fuzzer that says assigning is followed by a poll that nobody answers any more.
            emulator.faults.add({ at: 'poll', do: 'drop', times: Number.POSITIVE_INFINITY })
            let outcome: string
            try {
              outcome = (await client.register()).status
            } catch (error) {
              if (!DpsError.is(error)) throw error
              outcome = error.code
            }
            outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
            expect(clock.pending).toBe(0)
          },
        )
        await fc.assert(property, { numRuns: runs, ...(seed !== undefined && { seed }) })
        // It does reach what it is meant to reach: good replies, malformed ones and lost connections.
        expect(outcomes.size).toBeGreaterThan(3)
      },
      LONGEST_MS,
    )
  }
})
