import assert from 'node:assert/strict'
import type { Emulator } from '../emulator/index.ts'
import { DpsError, type DpsPhase } from '../errors.ts'
import type { Transport, TransportSession } from '../transport/transport.ts'
import { bodyOf, Stage } from './stage.ts'

export interface TransportContractOptions {
  /** Makes the transport under test; called once for each case. */
  makeTransport: () => Transport
  /**
   * A running emulator (`dps-device-client/emulator`) of the default behaviour that nothing else uses meanwhile: the cases
   * script its faults, and count its connections. A promise is awaited by each case, for runners that want to know the
   * names first.
   */
  emulator: Emulator | Promise<Emulator>
  /** Longest time that anything may take, ms. Default 10 000. */
  limitMs?: number
}

/** One sentence of the contract, to be run by any test runner. */
export interface ContractCase {
  /** The sentence. */
  readonly name: string
  /** Rejects with an AssertionError of `node:assert`, or another error, where the transport does not keep it. */
  run(): Promise<void>
}

/**
 * The contract of {@link Transport} as tests, for those who bring a transport of their own. Each case opens its own
 * connections to the emulator over real TLS, lets something go wrong, and makes sure that nothing is left afterwards.
 * They share the emulator, so they are run one after the other:
 *
 * ```js
 * for (const { name, run } of transportContract({ makeTransport, emulator })) test(name, run)
 * ```
 */
export function transportContract(options: TransportContractOptions): readonly ContractCase[] {
  const { makeTransport, emulator, limitMs = 10_000 } = options
  return Object.freeze(
    CASES.map(([name, act]) =>
      Object.freeze({ name, run: async () => Stage.run(makeTransport(), await emulator, limitMs, act) }),
    ),
  )
}

const stop = (): DpsError => new DpsError('CANCELLED', 'connect', 'aborted by the contract suite')

/** No first byte of MQTT, of HTTP or of a WebSocket frame. */
const GARBAGE = new Uint8Array(64).fill(0xff)

/** Ways in which the other side goes away, as the emulator names them. */
const LOSSES = ['drop', 'no-close-notify', 'reset'] as const

type Act = (stage: Stage) => Promise<void>

const CASES: readonly (readonly [name: string, act: Act])[] = [
  [
    'open resolves with a session that tells its connection',
    async (stage) => {
      const { name } = stage.transport
      assert(typeof name === 'string' && name !== '', 'name must be a short text')
      const { connection } = await stage.open()
      assert.equal(connection.transport, name, 'connection.transport must be the name of the transport')
      const [dialled] = stage.dialled
      if (dialled !== undefined) {
        for (const field of ['protocol', 'cipher', 'curve', 'root', 'resumed'] as const) {
          assert.equal(connection[field], dialled.tls[field], `connection.${field} must be what was dialled`)
        }
      }
      assert(
        Number.isInteger(connection.roundTrips) && connection.roundTrips >= (dialled?.roundTrips ?? 1),
        'connection.roundTrips must count those of the dialer and those after it',
      )
    },
  ],
  [
    'open dials once, to the port the caller names',
    async (stage) => {
      const { port } = stage.context()
      await stage.open()
      assert.deepEqual(stage.ports, [port])
    },
  ],
  [
    'open rejects with what the dialer rejects with',
    async (stage) => {
      const refusal = new DpsError('CONNECTION_REFUSED', 'tcp', 'refused by the contract suite')
      assert.equal(
        await stage.rejection(stage.open({ dial: () => Promise.reject(refusal) })),
        refusal,
        'the error of the dialer must come through as it is',
      )
    },
  ],
  [
    'open on a signal that is aborted rejects with its reason and dials nothing',
    async (stage) => {
      const reason = stop()
      stage.controller.abort(reason)
      assert.equal(await stage.rejection(stage.open()), reason)
      assert.deepEqual(stage.ports, [])
    },
  ],
  [
    'open that is aborted while it dials rejects with the reason',
    async (stage) => {
      const reason = stop()
      const silence = stage.fault({ at: 'client-hello', do: 'silence' })
      const opening = stage.open()
      opening.catch(() => {})
      await stage.within('the dial', silence.hit)
      stage.controller.abort(reason)
      assert.equal(await stage.rejection(opening), reason)
      await stage.gone()
    },
  ],
  [
    'open that is aborted as the dial succeeds destroys the socket',
    async (stage) => {
      const reason = stop()
      const opening = stage.open({
        dial: async (port) => {
          const dialled = await stage.dial(port)
          stage.controller.abort(reason)
          return dialled
        },
      })
      assert.equal(await stage.rejection(opening), reason)
      await stage.gone()
    },
  ],
  [
    'open that is aborted by the announcement of any of its phases rejects with the reason',
    async (stage) => {
      await (await stage.open()).close()
      const own = stage.phases.filter((phase) => !DIALLED.includes(phase))
      for (const at of new Set(own)) {
        const controller = new AbortController()
        const reason = stop()
        const enter = (phase: DpsPhase) => {
          if (phase === at) controller.abort(reason)
        }
        assert.equal(await stage.rejection(stage.open({ signal: controller.signal, enter })), reason)
        await stage.gone()
      }
    },
  ],
  [
    'open that is aborted in the silence after the handshake rejects with the reason, or has resolved',
    async (stage) => {
      const reason = stop()
      const silence = stage.fault({ at: 'handshake', do: 'silence' })
      let handOver = () => {}
      const handedOver = new Promise<void>((resolve) => {
        handOver = resolve
      })
      const opening = stage.open({
        dial: async (port) => {
          const dialled = await stage.dial(port)
          // A turn of the event loop, for the transport to do what it does next.
          setImmediate(handOver)
          return dialled
        },
      })
      const opened = opening.then(
        () => true,
        () => false,
      )
      await stage.within('the dial', Promise.race([Promise.all([silence.hit, handedOver]), opened]))
      stage.controller.abort(reason)
      if (!(await stage.within('open', opened))) assert.equal(await stage.rejection(opening), reason)
    },
  ],
  [
    'open announces no phase once it has resolved',
    async (stage) => {
      const { session, query } = await stage.started()
      const announced = stage.phases.length
      await stage.request(session, query)
      await session.close()
      assert.equal(stage.phases.length, announced, 'a phase was announced after open had resolved')
    },
  ],
  ...LOSSES.map(
    (loss) =>
      [
        `a connection that is lost right after the handshake (${loss}) is CONNECTION_LOST`,
        async (stage) => {
          stage.fault({ at: 'handshake', do: loss })
          await stage.refused(stage.exchange(), 'CONNECTION_LOST')
        },
      ] as const satisfies readonly [string, Act],
  ),
  [
    'a token that cannot be made is why open, or the first request, rejects',
    async (stage) => {
      const refusal = new DpsError('SIGNER_FAILED', 'config', 'refused by the contract suite')
      const exchange = stage.exchange({ token: () => Promise.reject(refusal) })
      assert.equal(await stage.rejection(exchange), refusal)
    },
  ],
  [
    'open, or the first request, that is aborted while the token is made rejects with the reason',
    async (stage) => {
      const reason = stop()
      let ask = () => {}
      const asked = new Promise<void>((resolve) => {
        ask = resolve
      })
      const token = () => {
        ask()
        return new Promise<never>(() => {})
      }
      const opening = stage.open({ token })
      opening.catch(() => {})
      const session = await Promise.race([opening, asked])
      if (session === undefined) {
        stage.controller.abort(reason)
        assert.equal(await stage.rejection(opening), reason)
      } else {
        const pending = stage.request(session)
        await stage.within('the request', Promise.race([asked, pending]))
        pending.controller.abort(reason)
        assert.equal(await stage.rejection(pending), reason)
      }
      await stage.gone()
    },
  ],
  [
    'the signal of open means nothing to a session that is open',
    async (stage) => {
      const session = await stage.open()
      stage.controller.abort(stop())
      assert.equal((await stage.request(session)).status, 202)
    },
  ],
  [
    'request resolves with the reply: status, retry-after as text, body as bytes',
    async (stage) => {
      const text = '{"grüß":"Gott","status":"assigning","operationId":"5.x"}'
      stage.fault({
        at: 'register-reply',
        do: { reply: { status: 202, retryAfter: '7', body: text } },
      })
      const reply = await stage.exchange()
      assert.equal(reply.status, 202)
      assert.equal(reply.retryAfter, '7')
      assert.equal(new TextDecoder().decode(reply.body), text)
    },
  ],
  [
    'request resolves with a reply that is a refusal, and believes nothing in it',
    async (stage) => {
      stage.fault({ at: 'register', do: { reply: { status: 429, retryAfter: 'soon', body: 'not JSON' } } })
      const session = await stage.open()
      const reply = await stage.request(session)
      assert.equal(reply.status, 429)
      assert.equal(reply.retryAfter, 'soon', 'retry-after must be the text that was sent')
      assert.equal(new TextDecoder().decode(reply.body), 'not JSON')
      assert.equal((await stage.request(session)).status, 202, 'the session must go on after a refusal')
    },
  ],
  [
    'request resolves without a retry-after where there is none',
    async (stage) => {
      stage.fault({ at: 'register-reply', do: { reply: { retryAfter: null } } })
      assert.equal((await stage.exchange()).retryAfter, undefined)
    },
  ],
  [
    'request resolves with the reply that answers it, over one connection',
    async (stage) => {
      const { session, query } = await stage.started()
      stage.fault({ at: 'poll', do: { reply: { status: 503 } } })
      assert.equal((await stage.request(session, query)).status, 503)
      const body = bodyOf(await stage.request(session, query))
      assert.equal(body.operationId, 'operationId' in query ? query.operationId : undefined)
      assert.equal(stage.ports.length, 1, 'all requests of a session go over its one connection')
    },
  ],
  [
    'request ignores a reply that comes again',
    async (stage) => {
      // Where a protocol has no such thing the fault waits for one that has, and the case is an ordinary exchange.
      stage.fault({ at: 'register-reply', do: 'duplicate' })
      const { session, query } = await stage.started()
      stage.fault({ at: 'poll', do: { reply: { status: 503 } } })
      assert.equal((await stage.request(session, query)).status, 503)
    },
  ],
  [
    'request resolves however the bytes of the reply are cut into pieces',
    async (stage) => {
      stage.fault({ at: 'register-reply', do: 'byte-by-byte' })
      const body = bodyOf(await stage.exchange())
      assert.equal(typeof body.operationId, 'string')
    },
  ],
  [
    'request resolves with a body of the largest size',
    async (stage) => {
      stage.fault({ at: 'register-reply', do: { oversize: 4096 } })
      assert.equal((await stage.exchange({ maxReplyBytes: 4096 })).body.length, 4096)
    },
  ],
  [
    'request rejects with REPLY_TOO_LARGE where the body is one byte larger',
    async (stage) => {
      stage.fault({ at: 'register-reply', do: { oversize: 4097 } })
      await stage.refused(stage.exchange({ maxReplyBytes: 4096 }), 'REPLY_TOO_LARGE')
    },
  ],
  [
    'request rejects with REPLY_TOO_LARGE where the body is much larger',
    async (stage) => {
      stage.fault({ at: 'register-reply', do: { oversize: 1_000_000 } })
      await stage.refused(stage.exchange({ maxReplyBytes: 4096 }), 'REPLY_TOO_LARGE')
    },
  ],
  [
    'request sends and receives bodies in UTF-8',
    async (stage) => {
      const payload = { city: 'Zürich', sign: '✓'.repeat(1000) }
      const body = JSON.stringify({ registrationId: stage.registrationId, payload })
      const session = await stage.open()
      const { operationId } = bodyOf(await stage.request(session, { kind: 'register', body }))
      const query = { kind: 'query', operationId: String(operationId) } as const
      const { registrationState } = bodyOf(await stage.request(session, query))
      assert.deepEqual((registrationState as { payload?: unknown } | undefined)?.payload, payload)
    },
  ],
  [
    'request of a lookup is answered, or refused with TRANSPORT_FAILED where the protocol has none',
    async (stage) => {
      const { session, query } = await stage.started()
      await stage.request(session, query)
      const body = JSON.stringify({ registrationId: stage.registrationId })
      const lookup = stage.request(session, { kind: 'lookup', body })
      const known = await stage.within(
        'lookup',
        lookup.then(
          (reply) => reply,
          () => undefined,
        ),
      )
      if (known === undefined) await stage.refused(lookup, 'TRANSPORT_FAILED')
      else assert.equal(bodyOf(known).registrationId, stage.registrationId)
      assert((await stage.request(session)).status < 300, 'the session must go on after a lookup')
    },
  ],
  [
    'request is refused with TRANSPORT_FAILED while another is under way, which goes on',
    async (stage) => {
      const { session, query } = await stage.started()
      const first = stage.request(session, query)
      await stage.refused(stage.request(session), 'TRANSPORT_FAILED', 'register')
      const body = bodyOf(await first)
      assert.equal(body.operationId, 'operationId' in query ? query.operationId : undefined)
    },
  ],
  [
    'request rejects with an error of its own where the server sends what is not the protocol',
    async (stage) => {
      stage.fault({ at: 'register', do: { raw: GARBAGE } })
      const session = await stage.open()
      const error = await stage.refused(stage.request(session))
      assert.equal(error.family, 'reply', `not the family of ${error.code}`)
      await stage.refused(stage.request(session), 'CONNECTION_LOST', 'register')
    },
  ],
  ...LOSSES.flatMap((loss) =>
    (['register', 'poll'] as const).map(
      (phase) =>
        [
          `request rejects with CONNECTION_LOST in phase ${phase} where the connection ends first (${loss})`,
          async (stage) => {
            stage.fault({ at: phase, do: loss })
            const { session, request } = await before(stage, phase)
            await stage.refused(stage.request(session, request), 'CONNECTION_LOST', phase)
            await stage.refused(stage.request(session), 'CONNECTION_LOST', 'register')
          },
        ] as const satisfies readonly [string, Act],
    ),
  ),
  [
    'request rejects with CONNECTION_LOST where the connection ends within the reply',
    async (stage) => {
      stage.fault({ at: 'register-reply', do: { cut: 20 } })
      await stage.refused(stage.exchange(), 'CONNECTION_LOST', 'register')
    },
  ],
  [
    'request rejects with CONNECTION_LOST where the connection has ended before it',
    async (stage) => {
      const { session, query } = await stage.started()
      for (const { socket } of stage.dialled) socket.destroy()
      if (stage.dialled.length > 0)
        await stage.refused(stage.request(session, query), 'CONNECTION_LOST', 'poll')
    },
  ],
  ...(['register', 'poll'] as const).map(
    (phase) =>
      [
        `request that is aborted in the silence of phase ${phase} rejects with the reason and ends the session`,
        async (stage) => {
          const reason = stop()
          const silence = stage.fault({ at: phase, do: 'silence' })
          const { session, request } = await before(stage, phase)
          const pending = stage.request(session, request)
          await stage.within('the request', silence.hit)
          pending.controller.abort(reason)
          assert.equal(await stage.rejection(pending), reason)
          await stage.gone()
          await stage.refused(stage.request(session), 'CONNECTION_LOST', 'register')
        },
      ] as const satisfies readonly [string, Act],
  ),
  [
    'request on a signal that is aborted rejects with its reason and sends nothing',
    async (stage) => {
      const reason = stop()
      const session = await stage.open()
      const controller = new AbortController()
      controller.abort(reason)
      const never = stage.fault({ at: 'register', do: 'silence' })
      assert.equal(await stage.rejection(session.request(stage.register(), controller.signal)), reason)
      await stage.gone()
      assert.equal(never.hits, 0, 'the request reached the server')
    },
  ],
  [
    'the signal of a request means nothing once it is answered',
    async (stage) => {
      const session = await stage.open()
      const first = stage.request(session)
      await first
      first.controller.abort(stop())
      assert((await stage.request(session)).status < 300)
    },
  ],
  [
    'a request that was announced to open is answered by the reply to it, and the session goes on',
    async (stage) => {
      const session = await stage.open({ firstRequest: stage.register() })
      const { operationId } = bodyOf(await stage.request(session))
      stage.fault({ at: 'poll', do: { reply: { status: 503 } } })
      const query = { kind: 'query', operationId: String(operationId) } as const
      assert.equal((await stage.request(session, query)).status, 503)
    },
  ],
  [
    'a request in place of the one that was announced is answered by its own reply',
    async (stage) => {
      const { query } = await stage.started()
      stage.fault({ at: 'register', do: { reply: { status: 429 } } })
      const session = await stage.open({ firstRequest: stage.register() })
      assert((await stage.request(session, query)).status < 300, 'the reply of another request came')
    },
  ],
  [
    'a request that was announced and is aborted in silence rejects with the reason and ends the session',
    async (stage) => {
      const reason = stop()
      const silence = stage.fault({ at: 'register', do: 'silence' })
      const session = await stage.open({ firstRequest: stage.register() })
      const pending = stage.request(session)
      await stage.within('the request', silence.hit)
      pending.controller.abort(reason)
      assert.equal(await stage.rejection(pending), reason)
      await stage.gone()
    },
  ],
  [
    'a request that was announced and never asked is nobody’s after close',
    async (stage) => {
      const session = await stage.open({ firstRequest: stage.register() })
      await stage.within('close', session.close())
      await stage.refused(stage.request(session), 'CONNECTION_LOST', 'register')
    },
  ],
  [
    'close leaves nothing, and may be called at once, again and afterwards',
    async (stage) => {
      const session = await stage.open()
      await stage.within('close', Promise.all([session.close(), session.close()]))
      await stage.gone()
      await stage.within('close', session.close())
    },
  ],
  [
    'close after a request leaves nothing',
    async (stage) => {
      const { session, query } = await stage.started()
      await stage.request(session, query)
      await stage.within('close', session.close())
      await stage.gone()
    },
  ],
  [
    'close makes a pending request reject with CONNECTION_LOST, and does not wait for the server',
    async (stage) => {
      const silence = stage.fault({ at: 'register', do: 'silence' })
      const session = await stage.open()
      const pending = stage.request(session)
      await stage.within('the request', silence.hit)
      await stage.within('close', session.close())
      await stage.refused(pending, 'CONNECTION_LOST', 'register')
      await stage.gone()
    },
  ],
  [
    'close makes every later request reject with CONNECTION_LOST',
    async (stage) => {
      const { session, query } = await stage.started()
      await session.close()
      await stage.refused(stage.request(session), 'CONNECTION_LOST', 'register')
      await stage.refused(stage.request(session, query), 'CONNECTION_LOST', 'poll')
    },
  ],
  [
    'close resolves after a loss, an abort and a reply that is not the protocol',
    async (stage) => {
      for (const action of ['reset', 'silence', { raw: GARBAGE }] as const) {
        const fault = stage.fault({ at: 'register', do: action })
        const session = await stage.open()
        const pending = stage.request(session)
        await stage.within('the request', fault.hit)
        if (action === 'silence') pending.controller.abort(stop())
        await stage.rejection(pending)
        await stage.within('close', session.close())
        await stage.gone()
      }
    },
  ],
  [
    'a transport may be opened again, and two of its sessions know nothing of each other',
    async (stage) => {
      const [first, second] = await Promise.all([stage.open(), stage.open()])
      const { operationId } = bodyOf(await stage.request(first))
      await first.close()
      const query = { kind: 'query', operationId: String(operationId) } as const
      assert((await stage.request(second, query)).status < 300, 'the other session must go on')
    },
  ],
]

/** Phases that the dialer announces. */
const DIALLED: readonly DpsPhase[] = ['dns', 'proxy', 'tcp', 'tls']

/** A session and the request that is in `phase`. */
async function before(
  stage: Stage,
  phase: 'register' | 'poll',
): Promise<{ session: TransportSession; request: Parameters<TransportSession['request']>[0] }> {
  if (phase === 'register') return { session: await stage.open(), request: stage.register() }
  const { session, query } = await stage.started()
  return { session, request: query }
}
