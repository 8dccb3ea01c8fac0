import { describe, expect, it } from 'vitest'
import { DpsError } from '../../src/errors.ts'
import type { DpsEvent } from '../../src/options/options.ts'
import { provisionForever } from '../../src/provision-forever.ts'
import { RELEASED_AT_MS } from '../../src/release.ts'
import type { Transport } from '../../src/transport/transport.ts'
import { testClock } from '../support/clock.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'

const assigned = Buffer.from(
  JSON.stringify({ status: 'assigned', registrationState: { assignedHub: 'h.example', deviceId: 'd' } }),
)
const connection = {
  transport: 'own',
  protocol: 'TLSv1.2',
  cipher: 'c',
  curve: 'X25519',
  root: 'r',
  resumed: false,
  roundTrips: 3,
}

/** A transport that fails as listed, then registers. */
function transport(failures: Error[]): Transport & { opens: number } {
  return {
    name: 'own',
    opens: 0,
    async open() {
      this.opens++
      const failure = failures.shift()
      if (failure !== undefined) throw failure
      return {
        connection,
        request: async () => ({ status: 200, retryAfter: undefined, body: assigned }),
        close: async () => {},
      }
    },
  }
}

const credential = {
  load: async () => ({
    registrationId: 'd',
    fingerprint: 'f',
    checkDates: () => {},
    token: async () => undefined,
  }),
}

function setup(failures: Error[], startMs?: number) {
  const clock = testClock(startMs === undefined ? {} : { startMs })
  const events: DpsEvent[] = []
  const own = transport(failures)
  const options = {
    idScope: '0ne00000000',
    credential,
    clock,
    transport: own,
    retry: { maxAttempts: 1 },
    onEvent: (event: DpsEvent) => {
      if (event.type === 'attempt-failed') events.push(event)
    },
  }
  return { clock, events, own, options }
}

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0)
const offline = () => new DpsError('DNS_FAILED', 'dns', 'no network yet')

describe('provisionForever', () => {
  it('outlasts a network that comes up late, and tells every wait', async () => {
    const t = setup(Array.from({ length: 12 }, offline))
    expect((await provisionForever(t.options)).assignedHub).toBe('h.example')
    expect(t.own.opens).toBe(13)
    expect(t.clock.sleeps.slice(0, 4)).toEqual([1000, 2000, 4000, 8000])
    expect(Math.max(...t.clock.sleeps)).toBe(150_000)
    expect(t.events).toHaveLength(12)
    expect(t.events[0]).toMatchObject({ attempt: 1, delayMs: 1000, error: { code: 'DNS_FAILED' } })
  })

  it('outlasts a clock that is set late', async () => {
    const t = setup([], RELEASED_AT_MS - 5000)
    await provisionForever(t.options)
    expect(t.own.opens).toBe(1)
    expect(t.events.every((e) => e.type === 'attempt-failed' && e.error.code === 'CLOCK_BEHIND')).toBe(true)
    expect(t.events.length).toBeGreaterThan(1)
  })

  it('is patient with a refusal, which an operator may mend', async () => {
    const denied = () => new DpsError('UNAUTHORIZED', 'connect', 'not enrolled yet')
    const t = setup(Array.from({ length: 8 }, denied))
    await provisionForever(t.options)
    expect(t.clock.sleeps.slice(0, 3)).toEqual([210_000, 360_000, 660_000])
    expect(Math.max(...t.clock.sleeps)).toBe(60_000 + 1_800_000)
  })

  it('counts its patience for a refusal apart from that for the network', async () => {
    const denied = new DpsError('UNAUTHORIZED', 'connect', 'not enrolled yet')
    const t = setup([...Array.from({ length: 10 }, offline), denied])
    await provisionForever(t.options)
    expect(t.clock.sleeps.at(-1)).toBe(210_000)
  })

  it('outlasts a way of the caller’s own that meets the network', async () => {
    const t = setup([new DpsError('TRANSPORT_FAILED', 'tcp', 'refused', { retryable: true })])
    await provisionForever(t.options)
    expect(t.own.opens).toBe(2)
  })

  it('never comes back sooner than the service asked', async () => {
    const t = setup([new DpsError('THROTTLED', 'register', 'busy', { retryAfterMs: 90_000 })])
    await provisionForever(t.options)
    expect(t.clock.sleeps[0]).toBe(90_000 + 30_000)
  })

  it('leaves a service alone that is over its quota: one request, and a wait that grows with the wait so far', async () => {
    const t = setup([])
    const busy = Array.from({ length: 30 }, () => ({
      status: 429,
      retryAfter: undefined,
      body: Buffer.from('{"errorCode":429001}'),
    }))
    let requests = 0
    const open = async () => ({
      connection,
      request: async () => {
        requests++
        return busy.shift() ?? { status: 200, retryAfter: undefined, body: assigned }
      },
      close: async () => {},
    })
    await provisionForever({ ...t.options, transport: { name: 'own', open }, retry: {} })
    expect(requests).toBe(31)
    expect(t.clock.sleeps.slice(0, 8)).toEqual(Array(8).fill(30_000))
    expect(t.clock.sleeps[12]).toBe(Math.round(sum(t.clock.sleeps.slice(0, 12)) / 8))
    expect(Math.max(...t.clock.sleeps)).toBeLessThanOrEqual(1_800_000)
    expect(t.clock.sleeps).toHaveLength(30)
  })

  it('asks a service over its quota again in the same attempt where the caller says so', async () => {
    const t = setup([])
    const replies = [429, 429, 200].map((status) => ({ status, retryAfter: undefined, body: assigned }))
    let opens = 0
    const open = async () => {
      opens++
      return { connection, request: async () => replies.shift()!, close: async () => {} }
    }
    await provisionForever({
      ...t.options,
      transport: { name: 'own', open },
      retry: { maxThrottled: 3 },
    })
    expect(opens).toBe(1)
    expect(t.clock.sleeps).toEqual([500, 1000])
  })

  it('waits its start delay once, whatever the limit for an attempt, and lets the fleet pass where it is refused', async () => {
    const denied = new DpsError('UNAUTHORIZED', 'connect', 'not enrolled yet')
    const t = setup([denied, offline()])
    await provisionForever({ ...t.options, retry: { maxAttempts: 1, startDelayMs: 7_200_000 } })
    expect(t.clock.sleeps).toEqual([3_600_000, 7_200_000 + 3_600_000, 1000])
  })

  it('says what no wait mends before the start delay, and can be cancelled in it', async () => {
    const t = setup([])
    const retry = { startDelayMs: 7_200_000 }
    const wrong = { ...t.options, retry, tls: { curves: 'none' } } as never
    await expectDpsError(provisionForever(wrong), 'TLS_POLICY_INVALID', 'config')
    expect(t.clock.sleeps).toEqual([])
    const options = { ...t.options, retry }
    await expectDpsError(provisionForever(options, { signal: AbortSignal.abort() }), 'CANCELLED', 'config')
    expect(t.own.opens).toBe(0)
  })

  it.each([
    ['a signal that is none', { signal: { aborted: false } }, /signal must be an AbortSignal/],
    [
      'a controller in place of its signal',
      { signal: new AbortController() },
      /signal must be an AbortSignal/,
    ],
    ['no signal but null', { signal: null }, /signal must be an AbortSignal/],
    ['a payload of text', { payload: 'floor 3' }, /payload must be a JSON object/],
    ['a limit below 0', { timeoutMs: -1 }, /timeoutMs/],
    ['a request that is none', { csr: 'not PEM' }, /csr/],
    ['an option that is not known', { retry: {} }, /retry/],
    ['options that are none', null, /options must be an object/],
  ])(
    'says before the start delay that the call has %s, and does not call that cancelled',
    async (_, call, message) => {
      const t = setup([])
      const options = { ...t.options, retry: { startDelayMs: 7_200_000 } }
      const error = await expectDpsError(provisionForever(options, call as never), 'OPTION_INVALID', 'config')
      expect(error.message).toMatch(message)
      expect(t.clock.sleeps).toEqual([])
      expect(t.own.opens).toBe(0)
    },
  )

  it('does not wait for what no wait mends', async () => {
    const t = setup([new DpsError('CREDENTIAL_KEY_MISMATCH', 'config', 'another key')])
    await expectDpsError(provisionForever(t.options), 'CREDENTIAL_KEY_MISMATCH', 'config')
    await expectDpsError(provisionForever({ ...t.options, idScope: '' }), 'OPTION_INVALID', 'config')
    await expectDpsError(provisionForever(undefined as never), 'OPTION_INVALID', 'config')
    expect(t.clock.sleeps).toEqual([])
  })

  it('ends when it is cancelled: before, during and between attempts', async () => {
    const t = setup([offline()])
    await expectDpsError(provisionForever(t.options, { signal: AbortSignal.abort() }), 'CANCELLED', 'config')
    expect(t.own.opens).toBe(0)
    const controller = new AbortController()
    const sleep = async (_: number, signal: AbortSignal) => {
      controller.abort('powered off')
      signal.throwIfAborted()
    }
    const options = { ...t.options, clock: { ...t.clock, sleep } }
    const error = await expectDpsError(
      provisionForever(options, { signal: controller.signal }),
      'CANCELLED',
      'dns',
    )
    expect(error.cause).toBe('powered off')
  })

  it('keeps nothing of an attempt: each is a new client with the whole order of transports', async () => {
    const first = transport([offline(), offline()])
    const second = transport([new DpsError('CONNECTION_LOST', 'register', 'x')])
    const t = setup([])
    await provisionForever({
      ...t.options,
      transport: [
        { ...first, name: 'first' },
        { ...second, name: 'second' },
      ],
    })
    expect(t.events).toHaveLength(1)
  })
})
