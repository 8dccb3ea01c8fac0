import { getEventListeners } from 'node:events'
import fc from 'fast-check'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { generateSymmetricKey } from '../../src/emulator/index.ts'
import { DpsError, ProvisioningClient, symmetricKey, type TransportName } from '../../src/index.ts'
import { testClock } from '../support/clock.ts'
import { changed, check, ending, limitMs, type Mutation, mutation, RUNS } from './fuzz.ts'
import { Player, TRANSCRIPTS } from './player.ts'

// Real sessions, every answer of which is once not what it was: the reply to the upgrade, CONNACK, SUBACK, the replies
// to register, status and lookup.

const player = new Player()
const port = await player.start()
const { roots } = await player.pki
afterAll(() => player.close())

const warnings: Error[] = []
const onWarning = (warning: Error) => warnings.push(warning)
beforeEach(() => {
  warnings.length = 0
  process.on('warning', onWarning)
})
afterEach(() => {
  process.off('warning', onWarning)
  expect(warnings).toEqual([])
})

const client = (transport: TransportName, clock: ReturnType<typeof testClock>) =>
  new ProvisioningClient({
    idScope: '0ne00000000',
    connectTo: '127.0.0.1',
    port,
    trust: { roots: 'none', extraRoots: roots[0].certPem },
    credential: symmetricKey({ registrationId: 'fuzz', key: KEY }),
    transport,
    clock,
    retry: { maxAttempts: 1 },
  })
const KEY = generateSymmetricKey()

const hex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex')

const MQTT_WORDS = [
  ...['20 02 00 00', '20 02 01 00', '20 02 00 05', '90 03 00 01 01', '90 03 00 01 80', '90 03 00 02 00'],
  ...[
    '40 02 00 02',
    '40 02 ff ff',
    'd0 00',
    'c0 00',
    'e0 00',
    '30 00',
    '30 03 00 01 61',
    '32 05 00 01 61 00 01',
  ],
  ...['34', '36', '50 02 00 01', '30 ff ff ff 7f', '30 80 80 80 80 01', 'b0 02 00 01'],
].map(hex)
const TOPIC_WORDS = [
  '$rid=',
  '&$rid=1',
  '&retry-after=',
  'res/200/',
  'res/429/',
  '/?',
  '&',
  '=',
  '%',
  '999999999999',
]
const JSON_WORDS = [
  ...[
    '{',
    '}',
    '[',
    ']',
    '"',
    ':',
    ',',
    '\\u0000',
    '\\ud800',
    '1e999',
    '-0',
    'null',
    'true',
    '"__proto__":{},',
  ],
  ...[
    '"status":"assigned",',
    '"status":"failed",',
    '"assignedHub":"h",',
    '"operationId":"../x",',
    '\xff',
    '\xe2\x82',
  ],
]
const FRAME_WORDS = [
  ...['81 01 61', '88 00', '88 02 03 e8', '88 02 00 00', '88 7d', '89 00', '89 7e ff ff', '8a 00', '8b 00'],
  ...['02 01 30', '00 01 30', '80 00', 'c2 01 00', '82 80 00 00 00 00', '82 7f 00 00 00 00 ff ff ff ff'],
  ...['82 7f ff ff ff ff ff ff ff ff', '82 7e 00 01 30', '82 00'],
].map(hex)
const HTTP_WORDS = [
  ...[
    'HTTP/1.1 ',
    'HTTP/1.0 ',
    'HTTP/2 ',
    '100 ',
    '101 ',
    '200 ',
    '204 ',
    '304 ',
    '307 ',
    '503 ',
    '\r\n',
    '\r',
    '\n',
  ],
  ...[
    '\r\n\r\n',
    ': ',
    '\0',
    'Content-Length: 0\r\n',
    'Content-Length: 99999999\r\n',
    'Content-Length: -1\r\n',
  ],
  ...[
    'Transfer-Encoding: chunked\r\n',
    'Transfer-Encoding: gzip\r\n',
    'Content-Encoding: gzip\r\n',
    '0\r\n\r\n',
  ],
  ...[
    'Connection: close\r\n',
    'Connection: Upgrade\r\n',
    'Upgrade: h2c\r\n',
    'Retry-After: 1e9\r\n',
    'ffffffffffffffff\r\n',
  ],
  ...[
    'Sec-WebSocket-Extensions: permessage-deflate\r\n',
    'Sec-WebSocket-Protocol: amqp\r\n',
    'Location: https://h/\r\n',
  ],
  ...['X: y\r\n', ' folded\r\n', 'HTTP/1.1 100 Continue\r\n\r\n'],
]

const WORDS = {
  mqtt: [...MQTT_WORDS, ...TOPIC_WORDS, ...JSON_WORDS],
  'mqtt-ws': [...FRAME_WORDS, ...MQTT_WORDS, ...HTTP_WORDS, ...TOPIC_WORDS, ...JSON_WORDS],
  https: [...HTTP_WORDS, ...JSON_WORDS],
} as const

/** The status or the error of the call that the transcript is of. */
const call = (name: string, device: ProvisioningClient, signal: AbortSignal) =>
  ending<{ readonly status: string }>(
    name.endsWith('-found') ? device.lookup({ signal }) : device.register({ signal }),
  )

describe('a server that says what the service would say', () => {
  for (const transcript of TRANSCRIPTS) {
    it(`as in ${transcript.name}`, async () => {
      player.perform({
        transcript,
        at: transcript.answers.length,
        mutate: (b) => b,
        rest: false,
        piece: 1000,
      })
      const { signal } = new AbortController()
      const end = await call(transcript.name, client(transcript.transport, testClock()), signal)
      expect('code' in end ? end.code : end.status).toBe(transcript.outcome)
      await player.gone()
    })
  }
})

describe('a server that says almost what the service would say', () => {
  for (const transport of Object.keys(WORDS) as TransportName[]) {
    const performance = fc.record({
      name: fc.constantFrom(
        ...TRANSCRIPTS.filter((one) => one.transport === transport).map(({ name }) => name),
      ),
      where: fc.nat({ max: 99 }),
      mutations: fc.array(mutation(WORDS[transport]), { maxLength: 4 }),
      rest: fc.boolean(),
      piece: fc.constantFrom(1, 7, 100_000),
    })

    it(
      `over ${transport}`,
      async () => {
        const endings = new Set<string>()
        const property = fc.asyncProperty(performance, async ({ name, where, mutations, rest, piece }) => {
          const transcript = TRANSCRIPTS.find((one) => one.name === name)!
          const at = where % transcript.answers.length
          let sent: Buffer | undefined
          const mutate: Mutation = (bytes) => {
            sent = changed(bytes, mutations)
            return sent
          }
          player.perform({ transcript, at, mutate, rest, piece })
          const clock = testClock()
          const { signal } = new AbortController()
          try {
            const end = await call(name, client(transport, clock), signal)
            await player.gone()
            expect(clock.pending).toBe(0)
            expect(getEventListeners(signal, 'abort')).toEqual([])
            endings.add(DpsError.is(end) ? `${end.code} ${end.phase}` : end.status)
          } catch (cause) {
            throw new Error(`answer ${at} was ${JSON.stringify(sent?.toString('latin1'))}`, { cause })
          }
        })
        await check(property, RUNS)
        // It goes everywhere: through, to the service's refusals, to what is malformed, to what is lost.
        expect(endings.size).toBeGreaterThan(4)
      },
      limitMs(RUNS),
    )
  }
})
