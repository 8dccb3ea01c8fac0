import { AssertionError } from 'node:assert'
import { afterAll, describe, expect, it } from 'vitest'
import { startEmulator } from '../../../src/emulator/index.ts'
import { DpsError } from '../../../src/errors.ts'
import { transportContract } from '../../../src/testing/index.ts'
import { httpsTransport } from '../../../src/transport/https/https.ts'
import { mqttTransport } from '../../../src/transport/mqtt/mqtt.ts'
import type {
  RawReply,
  Transport,
  TransportContext,
  TransportSession,
} from '../../../src/transport/transport.ts'

// A suite that cannot fail proves nothing: here are transports that break the contract, each in one way.

const emulator = await startEmulator()
afterAll(() => emulator.close())

const deaf = () => new AbortController().signal

/** A transport that goes wrong on the way to `base`. */
function opening(
  open: (context: TransportContext, base: Transport) => Promise<TransportSession>,
  base = httpsTransport(),
): () => Transport {
  return () => ({ name: base.name, open: (context) => open(context, base) })
}

/** A transport whose sessions go wrong. */
function session(
  change: (session: TransportSession, context: TransportContext) => Partial<TransportSession>,
) {
  return opening(async (context, base) => {
    const sound = await base.open(context)
    return {
      connection: sound.connection,
      request: (request, signal) => sound.request(request, signal),
      close: () => sound.close(),
      ...change(sound, context),
    }
  })
}

/** A transport that changes its replies. */
const replies = (change: (reply: RawReply) => RawReply) =>
  session((sound) => ({ request: async (request, signal) => change(await sound.request(request, signal)) }))

const CULPRITS: Record<string, { makeTransport: () => Transport; breaks: (string | RegExp)[] }> = {
  'tells another name': {
    makeTransport: session((sound) => ({ connection: { ...sound.connection, transport: 'other' } })),
    breaks: ['open resolves with a session that tells its connection'],
  },
  'dials twice': {
    makeTransport: opening(async (context, base) => {
      await context.dial(context.port ?? 443)
      return base.open(context)
    }),
    breaks: ['open dials once, to the port the caller names'],
  },
  'does not listen to the signal of open': {
    makeTransport: opening((context, base) => base.open({ ...context, signal: deaf() }), mqttTransport()),
    breaks: [
      'open on a signal that is aborted rejects with its reason and dials nothing',
      'open that is aborted as the dial succeeds destroys the socket',
      'open that is aborted by the announcement of any of its phases rejects with the reason',
      'open that is aborted in the silence after the handshake rejects with the reason, or has resolved',
    ],
  },
  'listens to the signal of open for ever': {
    makeTransport: session((sound, { signal }) => {
      signal.addEventListener('abort', () => void sound.close(), { once: true })
      return {}
    }),
    breaks: [
      'the signal of open means nothing to a session that is open',
      'close leaves nothing, and may be called at once, again and afterwards',
    ],
  },
  'throws errors of its own': {
    makeTransport: opening(async (context, base) => {
      const foreign = () => Promise.reject(new Error('broken'))
      const sound = await base.open(context).catch(foreign)
      return {
        connection: sound.connection,
        request: (request, signal) => sound.request(request, signal).catch(foreign),
        close: () => sound.close(),
      }
    }),
    breaks: [
      'open rejects with what the dialer rejects with',
      'open that is aborted while it dials rejects with the reason',
      /^a connection that is lost right after the handshake/,
      'a token that cannot be made is why open, or the first request, rejects',
      /^request rejects with REPLY_TOO_LARGE/,
      'request rejects with an error of its own where the server sends what is not the protocol',
      /^request rejects with CONNECTION_LOST/,
    ],
  },
  'announces phases in requests': {
    makeTransport: session((sound, { enter }) => ({
      request: (request, signal) => {
        enter('register')
        return sound.request(request, signal)
      },
    })),
    breaks: ['open announces no phase once it has resolved'],
  },
  'forgets retry-after': {
    makeTransport: replies((reply) => ({ ...reply, retryAfter: undefined })),
    breaks: ['request resolves with the reply: status, retry-after as text, body as bytes'],
  },
  'makes up a retry-after': {
    makeTransport: replies((reply) => ({ ...reply, retryAfter: reply.retryAfter ?? '3' })),
    breaks: ['request resolves without a retry-after where there is none'],
  },
  'throws what is refused': {
    makeTransport: replies((reply) => {
      if (reply.status >= 400) throw new DpsError('THROTTLED', 'register', 'refused')
      return reply
    }),
    breaks: ['request resolves with a reply that is a refusal, and believes nothing in it'],
  },
  'gives the first reply again': {
    makeTransport: session((sound) => {
      let first: Promise<RawReply> | undefined
      return {
        request: (request, signal) => {
          first ??= sound.request(request, signal)
          return first
        },
      }
    }),
    breaks: [
      'request resolves with the reply that answers it, over one connection',
      'request ignores a reply that comes again',
      'request is refused with TRANSPORT_FAILED while another is under way, which goes on',
      'a request that was announced to open is answered by the reply to it, and the session goes on',
    ],
  },
  'takes what was announced for whatever is asked first': {
    makeTransport: opening(async (context, base) => {
      const sound = await base.open(context)
      const { firstRequest } = context
      let early = firstRequest && sound.request(firstRequest, deaf())
      await early
      return {
        connection: sound.connection,
        request: (request, signal) => {
          const reply = early ?? sound.request(request, signal)
          early = undefined
          return reply
        },
        close: () => sound.close(),
      }
    }),
    breaks: [
      'a request in place of the one that was announced is answered by its own reply',
      'a request that was announced and never asked is nobody’s after close',
    ],
  },
  'gives the first bytes only': {
    makeTransport: replies((reply) => ({ ...reply, body: reply.body.subarray(0, 10) })),
    breaks: [
      'request resolves however the bytes of the reply are cut into pieces',
      'request resolves with a body of the largest size',
    ],
  },
  'knows no limit': {
    makeTransport: opening((context, base) => base.open({ ...context, maxReplyBytes: 1e9 })),
    breaks: [/^request rejects with REPLY_TOO_LARGE/],
  },
  'is off by one': {
    makeTransport: opening((context, base) =>
      base.open({ ...context, maxReplyBytes: context.maxReplyBytes - 1 }),
    ),
    breaks: ['request resolves with a body of the largest size'],
  },
  'sends Latin-1': {
    makeTransport: session((sound) => ({
      request: (request, signal) =>
        sound.request(
          'body' in request
            ? { ...request, body: Buffer.from(request.body, 'latin1').toString('latin1') }
            : request,
          signal,
        ),
    })),
    breaks: ['request sends and receives bodies in UTF-8'],
  },
  'knows no lookup and says so with another error': {
    makeTransport: session((sound) => ({
      request: (request, signal) =>
        request.kind === 'lookup' ? Promise.reject(new TypeError('lookup')) : sound.request(request, signal),
    })),
    breaks: ['request of a lookup is answered, or refused with TRANSPORT_FAILED where the protocol has none'],
  },
  'does not listen to the signal of a request': {
    makeTransport: session((sound) => ({ request: (request) => sound.request(request, deaf()) })),
    breaks: [
      'open, or the first request, that is aborted while the token is made rejects with the reason',
      /^request that is aborted in the silence/,
      'a request that was announced and is aborted in silence rejects with the reason and ends the session',
      'request on a signal that is aborted rejects with its reason and sends nothing',
      'close resolves after a loss, an abort and a reply that is not the protocol',
    ],
  },
  'listens to the signal of a request for ever': {
    makeTransport: session((sound) => ({
      request: (request, signal) => {
        signal.addEventListener('abort', () => void sound.close())
        return sound.request(request, signal)
      },
    })),
    breaks: [
      'the signal of a request means nothing once it is answered',
      'close after a request leaves nothing',
    ],
  },
  'does not close': {
    makeTransport: session(() => ({ close: async () => {} })),
    breaks: [
      /^close leaves nothing/,
      'close after a request leaves nothing',
      'close makes a pending request reject with CONNECTION_LOST, and does not wait for the server',
      'close makes every later request reject with CONNECTION_LOST',
    ],
  },
  'cannot be closed twice': {
    makeTransport: session((sound) => {
      let closed = false
      return {
        close: async () => {
          if (closed) throw new Error('closed')
          closed = true
          await sound.close()
        },
      }
    }),
    breaks: [/^close leaves nothing/],
  },
  'cannot be closed after a failure': {
    makeTransport: session((sound) => {
      let failed = false
      return {
        request: async (request, signal) => {
          try {
            return await sound.request(request, signal)
          } catch (error) {
            failed = true
            throw error
          }
        },
        close: () => (failed ? new Promise(() => {}) : sound.close()),
      }
    }),
    breaks: ['close resolves after a loss, an abort and a reply that is not the protocol'],
  },
  'has one session for all': {
    makeTransport: () => {
      let only: Promise<TransportSession> | undefined
      return {
        name: 'https',
        open: (context) => {
          only ??= httpsTransport().open(context)
          return only
        },
      }
    },
    breaks: ['a transport may be opened again, and two of its sessions know nothing of each other'],
  },
}

const names = transportContract({ makeTransport: httpsTransport, emulator }).map(({ name }) => name)
const named = (pattern: string | RegExp) =>
  names.filter((name) => (typeof pattern === 'string' ? name === pattern : pattern.test(name)))

describe('a transport that', () => {
  for (const [what, { makeTransport, breaks }] of Object.entries(CULPRITS)) {
    const cases = transportContract({ makeTransport, emulator, limitMs: 300 })
    for (const name of breaks.flatMap(named)) {
      it(`${what} is found: ${name}`, async () => {
        const { run } = cases.find((candidate) => candidate.name === name)!
        const error = await run().then(
          () => undefined,
          (thrown: unknown) => thrown,
        )
        expect(error, 'the case passed').toBeDefined()
        // Told by the suite, not stumbled upon.
        if (!(error instanceof AssertionError || DpsError.is(error)))
          expect(String(error)).toMatch(/closed|broken/)
        expect(emulator.openConnections).toBe(0)
        expect(emulator.faults.list()).toEqual([])
      })
    }
  }
})

it('every case of the suite can fail, and every name is one of a case', () => {
  const patterns = Object.values(CULPRITS).flatMap(({ breaks }) => breaks)
  expect(patterns.filter((pattern) => named(pattern).length === 0)).toEqual([])
  expect(names.filter((name) => !patterns.flatMap(named).includes(name))).toEqual([])
  expect(new Set(names).size).toBe(names.length)
})
