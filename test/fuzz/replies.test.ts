import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DpsError } from '../../src/index.ts'
import { parseLookup, parseReply } from '../../src/protocol/response.ts'
import { parseResponseTopic } from '../../src/protocol/wire.ts'
import { changed, check, limitMs, mutation, RUNS } from './fuzz.ts'
import { TRANSCRIPTS } from './player.ts'

// The pure parts, which take many more tries than a connection: topics and bodies as they were recorded, changed.

const BODIES = TRANSCRIPTS.filter(({ transport }) => transport === 'https').flatMap(({ answers }) =>
  answers.map((answer) => Buffer.from(answer.slice(answer.indexOf('\r\n\r\n') + 4), 'latin1')),
)
const TOPICS = TRANSCRIPTS.flatMap(({ answers }) =>
  answers.flatMap((answer) => /\$dps[^{]+/.exec(answer)?.[0] ?? []),
)

const WORDS = [
  ...[
    '{',
    '}',
    '[',
    ']',
    '"',
    ':',
    ',',
    '\\',
    '\\u0000',
    '\\ud800',
    '\\udc00\\ud800',
    '\xff',
    '\xed\xa0\x80',
    '\xef\xbb\xbf',
  ],
  ...[
    '1e999',
    '-0',
    '0',
    '99999999999999999999',
    'null',
    'true',
    '{}',
    '[]',
    '""',
    '"assigned"',
    '"failed"',
    '"disabled"',
  ],
  ...[
    '"__proto__":{"x":1},',
    '"constructor":1,',
    '"toString":null,',
    '"assignedHub":"h.example",',
    '"deviceId":"../d",',
  ],
  ...[
    '"operationId":"a&b",',
    '"registrationState":null,',
    '"errorCode":1e400,',
    '"retryAfter":"soon",',
    '\n',
    '\u0085',
    '\u009b',
  ],
]
const TOPIC_WORDS = [
  '/',
  '?',
  '&',
  '=',
  '$rid=',
  '&$rid=',
  'retry-after=',
  'Retry-After=-1',
  '%',
  '%00',
  '\0',
  '202',
  '-1',
  '1e3',
  'NaN',
]

const runs = RUNS * 20

describe('a reply that was changed', () => {
  const mutated = fc.record({
    body: fc.constantFrom(...BODIES),
    mutations: fc.array(mutation(WORDS), { maxLength: 4 }),
    status: fc.oneof(fc.constantFrom(200, 202, 401, 409, 429, 503), fc.integer({ min: 100, max: 999 })),
    retryAfter: fc.option(fc.oneof(fc.constantFrom('3', '-1', '1e9', 'soon'), fc.string()), {
      nil: undefined,
    }),
    phase: fc.constantFrom('register', 'poll'),
    operationId: fc.option(fc.constant('5.1'), { nil: undefined }),
  })

  for (const [name, parse] of [
    ['parseReply', parseReply],
    ['parseLookup', parseLookup],
  ] as const) {
    it(
      `is an outcome or a DpsError for ${name}`,
      async () => {
        const property = fc.asyncProperty(
          mutated,
          async ({ body, mutations, status, retryAfter, ...more }) => {
            const bytes = changed(body, mutations)
            const context = { registrationId: 'fuzz', nowMs: Date.UTC(2026, 10, 24), ...more } as const
            try {
              const reply = parse({ status, retryAfter, body: new Uint8Array(bytes) }, context)
              soundly(reply)
            } catch (error) {
              if (!DpsError.is(error))
                throw new Error(`from ${JSON.stringify(bytes.toString('latin1'))}`, { cause: error })
              expect(error.phase).toBe('parse')
              expect(error.message).not.toMatch(/\p{Cc}/u)
            }
          },
        )
        await check(property, runs)
      },
      limitMs(runs),
    )
  }
})

/** What an application is going to rely on. */
function soundly(reply: ReturnType<typeof parseReply> | ReturnType<typeof parseLookup>): void {
  switch (reply.kind) {
    case 'assigned': {
      const { assignedHub, deviceId, registrationId, status } = reply.registration
      expect({ registrationId, status }).toEqual({ registrationId: 'fuzz', status: 'assigned' })
      expect(assignedHub).toMatch(/^[a-z0-9][a-z0-9.-]*$/i)
      expect(deviceId).toMatch(/^[\x21-\x7e]{1,128}$/)
      break
    }
    case 'assigning':
      expect(reply.operationId).toMatch(/^[^&#+/\s\p{Cc}]+$/u)
      expect(reply.retryAfterMs ?? 0).toBeGreaterThanOrEqual(0)
      expect(Number.isFinite(reply.retryAfterMs ?? 0)).toBe(true)
      break
    case 'refused':
      expect(DpsError.is(reply.error)).toBe(true)
      expect(reply.error.message).not.toMatch(/\p{Cc}/u)
      expect(reply.error.trackingId ?? '').not.toMatch(/\p{Cc}/u)
      break
    default:
      expect(reply.kind).toBe('found')
  }
  expect(({} as Record<string, unknown>).x).toBeUndefined()
}

describe('a topic that was changed', () => {
  it(
    'is understood, or is not, and never fails',
    async () => {
      const topics = fc.tuple(fc.constantFrom(...TOPICS), fc.array(mutation(TOPIC_WORDS), { maxLength: 4 }))
      await check(
        fc.asyncProperty(topics, async ([topic, mutations]) => {
          const text = changed(Buffer.from(topic, 'latin1'), mutations).toString()
          const response = parseResponseTopic(text)
          if (response === undefined) return
          expect(response.status).toBeGreaterThanOrEqual(100)
          expect(response.status).toBeLessThanOrEqual(999)
          expect(response.requestId).toEqual(expect.any(String))
        }),
        runs,
      )
    },
    limitMs(runs),
  )
})
