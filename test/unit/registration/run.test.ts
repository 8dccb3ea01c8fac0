import { getEventListeners } from 'node:events'
import { describe, expect, it } from 'vitest'
import { DpsError, type DpsPhase } from '../../../src/errors.ts'
import type { DpsEvent } from '../../../src/options/options.ts'
import type { RawReply } from '../../../src/protocol/response.ts'
import { type CallPlan, type EarlyStep, type Route, runCall } from '../../../src/registration/run.ts'
import type { TransportRequest, TransportSession } from '../../../src/transport/transport.ts'
import { testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

// The loop alone, over a transport in memory: real sockets are in test/tls and test/contract.

const retry = {
  maxAttempts: 4,
  maxThrottled: 4,
  baseDelayMs: 1000,
  maxDelayMs: 60_000,
  startDelayMs: 0,
  pollIntervalMs: 2000,
}
const facts = {
  transport: 'memory',
  protocol: 'TLSv1.2',
  cipher: 'c',
  curve: 'X25519',
  root: 'r',
  resumed: false,
  roundTrips: 5,
}

const json = (status: number, body: unknown, retryAfter?: string): RawReply => ({
  status,
  retryAfter,
  body: Buffer.from(JSON.stringify(body)),
})
const assigning = (retryAfter?: string) => json(202, { operationId: 'op-1', status: 'assigning' }, retryAfter)
const assigned = json(200, {
  status: 'assigned',
  registrationState: { assignedHub: 'h.example', deviceId: 'd' },
})
const lost = () => new DpsError('CONNECTION_LOST', 'poll', 'gone')
const never = Symbol('never answers')

type Answer = RawReply | Error | typeof never

function setup(
  answers: Answer[],
  over: Partial<CallPlan> & { open?: Route['open']; opens?: (Error | typeof never | 'ok')[] } = {},
) {
  const clock = testClock()
  const requests: TransportRequest[] = []
  const events: DpsEvent[] = []
  const signals: AbortSignal[] = []
  let open = 0
  let opened = 0
  const { opens = [], open: openAs, ...plan } = over
  const openSession: Route['open'] = async (scope) => {
    scope.enter('tcp')
    signals.push(scope.signal)
    const outcome = opens.shift() ?? 'ok'
    if (outcome === never) return new Promise(() => {})
    if (outcome instanceof Error) throw outcome
    open++
    opened++
    return { session: session(), registrationId: 'd', body: '{"registrationId":"d"}' }
  }
  const session = (): TransportSession => ({
    connection: facts,
    request: async (request) => {
      requests.push(request)
      const answer = answers.shift() ?? never
      if (answer === never) return new Promise(() => {})
      if (answer instanceof Error) throw answer
      return answer
    },
    close: async () => {
      open--
    },
  })
  const running = runCall({
    step: { kind: 'register' },
    routes: [{ name: 'memory', open: openAs ?? openSession }],
    clock,
    retry,
    limits: { register: 30_000, poll: 30_000, tcp: 15_000 },
    totalMs: 120_000,
    signal: undefined,
    emit: (event) => events.push(event),
    ...plan,
  })
  running.catch(() => {})
  return {
    running,
    clock,
    requests,
    events,
    signals,
    get open() {
      return open
    },
    get opened() {
      return opened
    },
  }
}

/** Lets everything that waits for nothing but promises go on. */
const turns = async (n = 30) => {
  for (let i = 0; i < n; i++) await Promise.resolve()
}

describe('a registration', () => {
  it('registers, polls with the operation id, and ends with nothing left', async () => {
    const t = setup([assigning('3'), assigning(), assigned])
    const result = await t.running
    expect(result.outcome).toMatchObject({
      kind: 'assigned',
      registration: { deviceId: 'd', assignedHub: 'h.example' },
    })
    expect(result.connection.roundTrips).toBe(5 + 3)
    expect(t.requests).toEqual([
      { kind: 'register', body: '{"registrationId":"d"}' },
      { kind: 'query', operationId: 'op-1' },
      { kind: 'query', operationId: 'op-1' },
    ])
    expect(t.clock.sleeps).toEqual([3300, 2200])
    expect(result.timingsMs).toMatchObject({ register: 0, poll: 0, total: 5500 })
    expect({ open: t.open, pending: t.clock.pending }).toEqual({ open: 0, pending: 0 })
  })

  it('keeps the operation id over a dropped connection', async () => {
    const t = setup([assigning(), lost(), assigned])
    await t.running
    expect(t.requests.map((r) => r.kind)).toEqual(['register', 'query', 'query'])
    expect({ opened: t.opened, open: t.open }).toEqual({ opened: 2, open: 0 })
  })

  it('repeats the same step on the same connection when throttled, never sooner than asked', async () => {
    const t = setup([
      json(429, { errorCode: 429001 }, '7'),
      json(429, {}),
      assigning(),
      json(503, {}),
      assigned,
    ])
    await t.running
    expect(t.requests.map((r) => r.kind)).toEqual(['register', 'register', 'register', 'query', 'query'])
    expect(t.clock.sleeps).toEqual([7500, 1000, 2200, 500])
    expect(t.opened).toBe(1)
    expect(t.events.filter((e) => e.type === 'retry')).toMatchObject([
      { step: 'register', attempt: 1, delayMs: 7500, error: { code: 'THROTTLED' } },
      { step: 'register', attempt: 2, delayMs: 1000 },
      { step: 'poll', attempt: 1, delayMs: 500, error: { code: 'SERVICE_UNAVAILABLE' } },
    ])
  })

  it('retries a conflict of two registrations in flight', async () => {
    const t = setup([json(409, { errorCode: 409203 }), assigned])
    await t.running
    expect(t.requests).toHaveLength(2)
  })

  it('503 for ever ends after the attempts allowed, with the service’s own error', async () => {
    const t = setup(Array.from({ length: 20 }, () => json(503, { errorCode: 503001 })))
    await expectDpsError(t.running, 'SERVICE_UNAVAILABLE', 'register')
    expect(t.requests).toHaveLength(4)
  })

  it('assigning for ever ends at the deadline, in phase poll', async () => {
    const t = setup(Array.from({ length: 200 }, () => assigning('3')))
    await expectDpsError(t.running, 'DEADLINE_EXCEEDED', 'poll')
    expect(t.clock.monotonic()).toBeLessThanOrEqual(120_000)
    expect(t.requests.length).toBeLessThan(40)
  })

  it('does not sleep towards a deadline that is sure to come first', async () => {
    const polling = setup([assigning('86400')])
    const error = await expectDpsError(polling.running, 'DEADLINE_EXCEEDED', 'register')
    expect(error.retryAfterMs).toBe(86_400_000)
    expect(polling.clock.sleeps).toEqual([])
    const throttled = setup([json(429, {}, '3600')])
    expect((await expectDpsError(throttled.running, 'THROTTLED', 'register')).retryAfterMs).toBe(3_600_000)
    expect(throttled.clock.sleeps).toEqual([])
  })

  it('opens again after a failure to connect, and gives up after the attempts allowed', async () => {
    const refused = () => new DpsError('CONNECTION_REFUSED', 'tcp', 'refused')
    const t = setup([assigned], { opens: [refused(), refused()] })
    await t.running
    expect(t.clock.sleeps).toEqual([500, 1000])
    const u = setup([assigned], { opens: Array.from({ length: 9 }, refused) })
    await expectDpsError(u.running, 'CONNECTION_REFUSED', 'tcp')
    expect(u.clock.sleeps).toEqual([500, 1000, 2000])
  })

  it('does not repeat an untrusted server or a refused identity', async () => {
    const t = setup([], { opens: [new DpsError('SERVER_UNTRUSTED', 'tls', 'foreign root')] })
    await expectDpsError(t.running, 'SERVER_UNTRUSTED', 'tls')
    const u = setup([json(401, { errorCode: 401002 })])
    await expectDpsError(u.running, 'UNAUTHORIZED', 'register')
    expect([t.clock.sleeps, u.clock.sleeps]).toEqual([[], []])
  })

  it('refuses to go on with a credential that became that of another device', async () => {
    let n = 0
    const ids = ['a', 'b']
    const t = setup([], {
      open: async () => ({
        session: { connection: facts, request: async () => Promise.reject(lost()), close: async () => {} },
        registrationId: ids[n++] ?? 'b',
        body: '{}',
      }),
    })
    await expectDpsError(t.running, 'CREDENTIAL_NAME_MISMATCH', 'config')
  })
})

describe('a request that is sent early', () => {
  const setEarly = (
    answers: Answer[],
    opens: (DpsError | 'ok')[] = [],
    step: CallPlan['step'] = register,
  ) => {
    const asked: (EarlyStep | undefined)[] = []
    let refused = 0
    const requests: TransportRequest[] = []
    const t = setup([], {
      step,
      routes: [
        {
          name: 'memory',
          onPipeliningRefused: () => refused++,
          open: async (scope, early) => {
            scope.enter('connect')
            asked.push(early)
            const outcome = opens.shift() ?? 'ok'
            if (outcome !== 'ok') throw outcome
            return {
              session: {
                connection: facts,
                request: async (request) => {
                  requests.push(request)
                  const answer = answers.shift()
                  if (answer instanceof Error) throw answer
                  return answer as RawReply
                },
                close: async () => {},
              },
              registrationId: 'd',
              body: '{"registrationId":"d"}',
            }
          },
        },
      ],
    })
    return {
      ...t,
      asked,
      requests,
      get refused() {
        return refused
      },
      get told() {
        return t.events.filter((event) => event.type === 'pipelining-refused').length
      },
    }
  }
  const register = { kind: 'register' } as const
  const early = { step: register, registrationId: undefined }
  const gone = (phase: DpsPhase = 'connect') => new DpsError('CONNECTION_LOST', phase, 'gone')

  it('is the one that is asked next', async () => {
    const t = setEarly([assigning(), lost(), assigned])
    await t.running
    expect(t.asked).toEqual([early, { step: { kind: 'poll', operationId: 'op-1' }, registrationId: 'd' }])
    expect([t.refused, t.told]).toEqual([0, 0])
  })

  it('is none for a probe', async () => {
    const t = setEarly([], [], { kind: 'probe' })
    await t.running
    expect(t.asked).toEqual([undefined])
  })

  it.each<[DpsError['code'], DpsPhase]>([
    ['CONNECTION_LOST', 'connect'],
    ['CONNECTION_LOST', 'subscribe'],
    ['TIMEOUT', 'connect'],
    ['TIMEOUT', 'subscribe'],
    ['PROTOCOL_VIOLATION', 'connect'],
    ['PROTOCOL_VIOLATION', 'subscribe'],
  ])('and meets %s in phase %s is sent in its turn, at once', async (code, phase) => {
    const t = setEarly([assigned], [new DpsError(code, phase, 'no')])
    await t.running
    expect(t.asked).toEqual([early, undefined])
    expect(t.clock.sleeps).toEqual([])
    expect([t.refused, t.told]).toEqual([1, 1])
    expect(t.events).toContainEqual(
      expect.objectContaining({ type: 'pipelining-refused', transport: 'memory' }),
    )
  })

  it.each<[DpsError['code'], DpsPhase]>([
    ['UNAUTHORIZED', 'connect'],
    ['PROTOCOL_REFUSED', 'connect'],
    ['SUBSCRIPTION_REFUSED', 'subscribe'],
    ['SERVER_UNTRUSTED', 'tls'],
    ['SIGNER_FAILED', 'config'],
  ])('and meets %s in phase %s has its answer', async (code, phase) => {
    const t = setEarly([assigned], [new DpsError(code, phase, 'no')])
    await expectDpsError(t.running, code, phase)
    expect([t.asked.length, t.refused, t.told]).toEqual([1, 0, 0])
  })

  it.each<[DpsError['code'], DpsPhase]>([
    ['CONNECTION_LOST', 'tls'],
    ['TIMEOUT', 'tcp'],
    ['SERVICE_UNAVAILABLE', 'connect'],
  ])('and meets %s in phase %s is sent early again, after a pause', async (code, phase) => {
    const t = setEarly([assigned], [new DpsError(code, phase, 'no')])
    await t.running
    expect(t.asked).toEqual([early, early])
    expect(t.clock.sleeps).toEqual([500])
    expect([t.refused, t.told]).toEqual([0, 0])
  })

  it('costs one connection more in a call, at most, and is not blamed for what happens without it too', async () => {
    const t = setEarly([assigned], [gone(), gone(), gone('subscribe')])
    await t.running
    expect(t.asked).toEqual([early, undefined, undefined, undefined])
    expect(t.clock.sleeps).toEqual([500, 1000])
    expect([t.refused, t.told]).toEqual([0, 1])
  })

  it('and then is lost goes on in its turn', async () => {
    const t = setEarly([gone('register'), assigned])
    await t.running
    expect(t.asked).toEqual([early, undefined])
    expect(t.clock.sleeps).toEqual([500])
    expect([t.refused, t.told]).toEqual([1, 1])
  })

  it('is blamed only once there is an answer without', async () => {
    const t = setEarly([gone('register'), gone('register'), gone('register'), gone('register')])
    await expectDpsError(t.running, 'CONNECTION_LOST', 'register')
    expect([t.refused, t.told]).toEqual([0, 1])
  })
})

describe('silence', () => {
  it('of the register reply ends that phase, then the step is repeated, and the deadline ends it all', async () => {
    const t = setup([never, never, never, never, never])
    for (let i = 0; i < 5; i++) {
      await turns()
      t.clock.advance(30_000)
    }
    const error = await expectDpsError(t.running, 'DEADLINE_EXCEEDED', 'register')
    expect(error.cause).toMatchObject({ code: 'TIMEOUT', phase: 'register' })
    expect({ open: t.open, pending: t.clock.pending }).toEqual({ open: 0, pending: 0 })
  })

  it('without retry is a TIMEOUT of its phase', async () => {
    const t = setup([assigning(), never], { retry: { ...retry, maxAttempts: 1 } })
    await turns()
    t.clock.advance(30_000)
    await expectDpsError(t.running, 'TIMEOUT', 'poll')
  })

  it('of a transport that ignores its signal does not hold the call', async () => {
    const t = setup([], { opens: [never], retry: { ...retry, maxAttempts: 1 } })
    await turns()
    t.clock.advance(15_000)
    await expectDpsError(t.running, 'TIMEOUT', 'tcp')
    expect(t.clock.pending).toBe(0)
  })

  it('of close does not hold the call either, and the connection is taken away from it', async () => {
    let destroyed = 0
    const t = setup([], {
      open: async () => ({
        session: { connection: facts, request: async () => assigned, close: () => new Promise(() => {}) },
        registrationId: 'd',
        body: '{}',
        destroy: () => destroyed++,
      }),
    })
    await turns()
    expect(destroyed).toBe(0)
    t.clock.advance(250)
    expect(destroyed).toBe(1)
    await expect(t.running).resolves.toMatchObject({ outcome: { registration: { deviceId: 'd' } } })
  })
})

describe('cancelling', () => {
  it('before the start sends nothing', async () => {
    const t = setup([assigned], { signal: AbortSignal.abort('why not') })
    const error = await expectDpsError(t.running, 'CANCELLED', 'config')
    expect(error.cause).toBe('why not')
    expect(t.opened).toBe(0)
  })

  it.each([
    ['while opening', [], [never], 'tcp'],
    ['while registering', [never], [], 'register'],
    ['while polling', [assigning(), never], [], 'poll'],
  ] as const)('%s ends in that phase and leaves nothing', async (_, answers, opens, phase) => {
    const controller = new AbortController()
    const t = setup([...answers], { opens: [...opens], signal: controller.signal })
    await turns()
    controller.abort()
    controller.abort()
    await expectDpsError(t.running, 'CANCELLED', phase)
    expect({ open: t.open, pending: t.clock.pending }).toEqual({ open: 0, pending: 0 })
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
    expect(t.signals.every((signal) => getEventListeners(signal, 'abort').length === 0)).toBe(true)
  })

  it('between polls ends the wait', async () => {
    const controller = new AbortController()
    const clock = testClock()
    const t = setup([assigning()], {
      signal: controller.signal,
      clock: {
        ...clock,
        sleep: (_, signal) =>
          new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
      },
    })
    await turns()
    controller.abort()
    await expectDpsError(t.running, 'CANCELLED', 'register')
  })

  it.each([
    ['retry', [json(503, {}), assigned]],
    ['assigning', [assigning(), assigned]],
  ] as const)('from the handler of %s ends the wait before it begins', async (type, answers) => {
    const controller = new AbortController()
    const t = setup([...answers], {
      signal: controller.signal,
      emit: (event) => event.type === type && controller.abort(),
    })
    await expectDpsError(t.running, 'CANCELLED', 'register')
    expect({ sleeps: t.clock.sleeps, requests: t.requests.length }).toEqual({ sleeps: [], requests: 1 })
  })

  it('from the handler of fallback opens nothing more', async () => {
    const controller = new AbortController()
    let opened = 0
    const blocked = new DpsError('CONNECTION_REFUSED', 'tcp', 'blocked')
    const t = setup([], {
      signal: controller.signal,
      emit: (event) => event.type === 'fallback' && controller.abort(),
      routes: ['mqtt', 'https'].map((name) => ({
        name,
        open: async (scope) => {
          scope.enter('tcp')
          opened++
          throw blocked
        },
      })),
    })
    await expectDpsError(t.running, 'CANCELLED', 'tcp')
    expect(opened).toBe(1)
  })

  it('in the instant of the assignment wins', async () => {
    const controller = new AbortController()
    const t = setup([], {
      signal: controller.signal,
      open: async () => ({
        session: {
          connection: facts,
          request: async () => {
            queueMicrotask(() => queueMicrotask(() => controller.abort()))
            return assigned
          },
          close: async () => {},
        },
        registrationId: 'd',
        body: '{}',
      }),
    })
    await expectDpsError(t.running, 'CANCELLED', 'register')
  })

  it('closes a session that opens after it was given up', async () => {
    const controller = new AbortController()
    let closed = 0
    let finish = () => {}
    const t = setup([], {
      signal: controller.signal,
      open: () =>
        new Promise((resolve) => {
          finish = () =>
            resolve({
              session: { connection: facts, request: async () => assigned, close: async () => void closed++ },
              registrationId: 'd',
              body: '{}',
            })
        }),
    })
    await turns()
    controller.abort()
    await expectDpsError(t.running, 'CANCELLED', 'config')
    finish()
    await turns()
    expect(closed).toBe(1)
  })
})

describe('several routes', () => {
  const routes = (outcomes: Record<string, (Error | 'ok')[]>) => {
    const tried: string[] = []
    return {
      tried,
      routes: Object.entries(outcomes).map(([name, results]) => ({
        name,
        open: async () => {
          tried.push(name)
          const result = results.shift() ?? 'ok'
          if (result !== 'ok') throw result
          return {
            session: {
              connection: { ...facts, transport: name },
              request: async () => assigned,
              close: async () => {},
            },
            registrationId: 'd',
            body: '{}',
          }
        },
      })),
    }
  }
  const blocked = () => new DpsError('CONNECTION_REFUSED', 'tcp', 'blocked')

  it('go on to the next at once where the network is in the way, and say why', async () => {
    const { tried, routes: all } = routes({ mqtt: [blocked()], https: [] })
    const reached: number[] = []
    const t = setup([], { routes: all, onReached: (i) => reached.push(i) })
    expect((await t.running).connection.transport).toBe('https')
    expect(tried).toEqual(['mqtt', 'https'])
    expect(reached).toEqual([1])
    expect(t.clock.sleeps).toEqual([])
    expect(t.events.filter((e) => e.type === 'fallback')).toMatchObject([
      { from: 'mqtt', to: 'https', error: { code: 'CONNECTION_REFUSED' } },
    ])
  })

  it('are all tried again after a wait, from the first', async () => {
    const { tried, routes: all } = routes({ mqtt: [blocked()], https: [blocked()] })
    const t = setup([], { routes: all })
    expect((await t.running).connection.transport).toBe('mqtt')
    expect(tried).toEqual(['mqtt', 'https', 'mqtt'])
    expect(t.clock.sleeps).toEqual([500])
  })

  it.each([
    ['an untrusted server', new DpsError('SERVER_UNTRUSTED', 'tls', '')],
    ['a wrong name', new DpsError('SERVER_NAME_MISMATCH', 'tls', '')],
    ['a refused certificate', new DpsError('TLS_CLIENT_CERTIFICATE_REFUSED', 'tls', '')],
    ['a refused identity', new DpsError('UNAUTHORIZED', 'connect', '')],
    ['a broken credential', new DpsError('CREDENTIAL_UNREADABLE', 'config', '')],
    ['a wrong clock', new DpsError('CLOCK_BEHIND', 'clock', '')],
    ['a refused proxy password', new DpsError('PROXY_AUTHENTICATION_REQUIRED', 'proxy', '')],
    ['a broken connect function', new DpsError('TRANSPORT_FAILED', 'tcp', '')],
  ])('are not tried after %s', async (_, error) => {
    const { tried, routes: all } = routes({ mqtt: [error], https: [] })
    await expectDpsError(setup([], { routes: all }).running, error.code, error.phase)
    expect(tried).toEqual(['mqtt'])
  })

  it('begin, within a call too, with the one that got through', async () => {
    const { tried, routes: all } = routes({ mqtt: [blocked(), blocked()], https: [] })
    const answers: Answer[] = [assigning(), lost(), assigned]
    const { open } = all[1]!
    all[1]!.open = async () => {
      const opened = await open()
      const request = async () => {
        const answer = answers.shift()!
        if (answer instanceof Error || answer === never) throw answer
        return answer
      }
      return { ...opened, session: { ...opened.session, request } as never }
    }
    await setup([], { routes: all }).running
    expect(tried).toEqual(['mqtt', 'https', 'https'])
  })

  it('take up a poll where another route left it', async () => {
    const { routes: all } = routes({ mqtt: ['ok', blocked()], https: [] })
    const requests: TransportRequest[] = []
    const answers: Answer[] = [assigning(), lost(), assigned]
    for (const route of all) {
      const { open } = route
      route.open = async () => {
        const opened = await open()
        const request = async (r: TransportRequest) => {
          requests.push(r)
          const answer = answers.shift()!
          if (answer instanceof Error || answer === never) throw answer
          return answer
        }
        return { ...opened, session: { ...opened.session, request } as never }
      }
    }
    await setup([], { routes: all }).running
    expect(requests.map((r) => r.kind)).toEqual(['register', 'query', 'query'])
  })
})

describe('a lookup and a probe', () => {
  it('a lookup is one request, repeated when the service is busy', async () => {
    const t = setup([json(503, {}), json(200, { registrationId: 'd', status: 'disabled' })], {
      step: { kind: 'lookup' },
    })
    expect((await t.running).outcome).toMatchObject({ kind: 'found', record: { status: 'disabled' } })
    expect(t.requests.map((r) => r.kind)).toEqual(['lookup', 'lookup'])
  })

  it('a probe opens and closes, and asks nothing', async () => {
    const t = setup([], { step: { kind: 'probe' } })
    expect((await t.running).outcome).toEqual({ kind: 'reached' })
    expect({ requests: t.requests, opened: t.opened, open: t.open }).toEqual({
      requests: [],
      opened: 1,
      open: 0,
    })
  })
})

describe('a transport of the caller’s own', () => {
  it('that throws something else becomes TRANSPORT_FAILED with its cause', async () => {
    const cause = new Error('EVENDOR')
    const error = await expectDpsError(setup([], { opens: [cause] }).running, 'TRANSPORT_FAILED', 'tcp')
    expect(error.cause).toBe(cause)
  })
})

describe('progress', () => {
  it('starts and ends every phase, and says nothing after the end', async () => {
    const t = setup([assigning(), assigned])
    await t.running
    expect(
      t.events.map((e) => (e.type.startsWith('phase') && 'phase' in e ? `${e.type} ${e.phase}` : e.type)),
    ).toEqual([
      'phase-started tcp',
      'phase-ended tcp',
      'phase-started register',
      'phase-ended register',
      'assigning',
      'phase-started poll',
      'phase-ended poll',
    ])
    const { length } = t.events
    t.clock.advance(1_000_000)
    expect(t.events).toHaveLength(length)
  })

  it('tells of every repetition, of one without a pause too', async () => {
    const t = setup([json(503, {}), assigning(), assigned], {
      clock: testClock({ random: () => 0 }),
      retry: { ...retry, pollIntervalMs: 0 },
    })
    await t.running
    expect(t.events.filter(({ type }) => !type.startsWith('phase'))).toMatchObject([
      { type: 'retry', step: 'register', attempt: 1, delayMs: 0, error: { code: 'SERVICE_UNAVAILABLE' } },
      { type: 'assigning', operationId: 'op-1', delayMs: 0 },
    ])
  })
})

describe('the next credential', () => {
  const refused = () => json(401, { errorCode: 401002, message: 'no' })

  it('has the rest of the time, no second start delay, and the round trips of both are counted', async () => {
    const used: number[] = []
    const requests: TransportRequest[] = []
    const closed: number[] = []
    const t = setup([], {
      credentials: 2,
      retry: { ...retry, startDelayMs: 10_000 },
      open: async (_scope, _early, credential) => {
        used.push(credential)
        const session: TransportSession = {
          connection: facts,
          request: async (request) => {
            requests.push(request)
            return credential === 0 ? refused() : assigned
          },
          close: async () => {
            closed.push(credential)
          },
        }
        return { session, registrationId: 'd', body: '{}' }
      },
    })
    const result = await t.running
    expect(t.clock.sleeps).toEqual([5000])
    expect(used).toEqual([0, 1])
    // One session at a time.
    expect(closed).toEqual([0, 1])
    expect(result).toMatchObject({ credential: 1, connection: { roundTrips: 12 } })
    expect(t.clock.pending).toBe(0)
  })

  it('is not tried once the time is over', async () => {
    const used: number[] = []
    const t = setup([], {
      credentials: 2,
      totalMs: 1000,
      open: (_scope, _early, credential) => {
        used.push(credential)
        return credential === 0
          ? Promise.reject(new DpsError('UNAUTHORIZED', 'connect', 'no'))
          : new Promise(() => {})
      },
    })
    await turns()
    expect(used).toEqual([0, 1])
    t.clock.advance(1000)
    const error = await expectDpsError(t.running, 'DEADLINE_EXCEEDED', 'config')
    expect(error.cause).toMatchObject({ code: 'UNAUTHORIZED' })
    expect(used).toEqual([0, 1])
  })
})
