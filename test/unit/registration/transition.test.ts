import { describe, expect, it } from 'vitest'
import { DpsError } from '../../../src/errors.ts'
import type { DeviceRegistration } from '../../../src/protocol/response.ts'
import type { Failures, RegistrationEvent, State } from '../../../src/registration/state.ts'
import { transition as move } from '../../../src/registration/transition.ts'

const transition = (state: State, event: RegistrationEvent, maxAttempts: number) =>
  move(state, event, { maxAttempts, maxThrottled: maxAttempts })

const none: Failures = { connect: 0, register: 0, poll: 0, lookup: 0 }
const register = { kind: 'register' } as const
const poll = { kind: 'poll', operationId: 'op' } as const
const busy = new DpsError('THROTTLED', 'register', 'busy', { retryAfterMs: 5000 })
const gone = new DpsError('CONNECTION_LOST', 'poll', 'gone')
const denied = new DpsError('UNAUTHORIZED', 'register', 'no')
const outcome = { kind: 'assigned', registration: { deviceId: 'd' } as DeviceRegistration } as const

const states: Record<string, State> = {
  idle: { name: 'idle', step: register },
  opening: { name: 'opening', step: register, failures: none },
  requesting: { name: 'requesting', step: poll, failures: none },
  'waiting, connected': { name: 'waiting', step: poll, failures: none, connected: true },
  'waiting, not connected': { name: 'waiting', step: poll, failures: none, connected: false },
  settled: { name: 'settled' },
}

const events: Record<RegistrationEvent['name'], RegistrationEvent> = {
  start: { name: 'start' },
  'start-again': { name: 'start-again' },
  opened: { name: 'opened' },
  'open-failed': { name: 'open-failed', error: gone },
  assigning: { name: 'assigning', operationId: 'op', retryAfterMs: 3000 },
  finished: { name: 'finished', outcome },
  refused: { name: 'refused', error: busy },
  lost: { name: 'lost', error: gone },
  waited: { name: 'waited' },
  stopped: { name: 'stopped', error: denied },
}

/** Every legal move and the effect it asks for; what is not here must be refused. */
const legal: Record<string, Partial<Record<RegistrationEvent['name'], [State['name'], string]>>> = {
  idle: { start: ['waiting', 'wait'], 'start-again': ['opening', 'open'], stopped: ['settled', 'reject'] },
  opening: {
    opened: ['requesting', 'request'],
    'open-failed': ['waiting', 'wait'],
    stopped: ['settled', 'reject'],
  },
  requesting: {
    assigning: ['waiting', 'wait'],
    finished: ['settled', 'resolve'],
    refused: ['waiting', 'wait'],
    lost: ['waiting', 'wait'],
    stopped: ['settled', 'reject'],
  },
  'waiting, connected': { waited: ['requesting', 'request'], stopped: ['settled', 'reject'] },
  'waiting, not connected': { waited: ['opening', 'open'], stopped: ['settled', 'reject'] },
  settled: Object.fromEntries(Object.keys(events).map((name) => [name, ['settled', 'none']])),
}

describe('every state on every event', () => {
  for (const [stateName, state] of Object.entries(states)) {
    for (const event of Object.values(events)) {
      const expected = legal[stateName]?.[event.name]
      it(`${stateName} on ${event.name} ${expected ? `becomes ${expected[0]}, ${expected[1]}` : 'is refused'}`, () => {
        if (expected === undefined) {
          expect(() => transition(state, event, 8)).toThrow(TypeError)
          return
        }
        const [next, effect] = transition(state, event, 8)
        expect([next.name, effect.name]).toEqual(expected)
      })
    }
  }

  it('a second stop after the first changes nothing', () => {
    for (const state of Object.values(states)) {
      const [settled] = transition(state, events.stopped, 8)
      expect(transition(settled, events.stopped, 8)).toEqual([{ name: 'settled' }, { name: 'none' }])
    }
  })
})

describe('what is kept', () => {
  it('the operation id, over a lost connection and its reopening', () => {
    let [state, effect] = transition({ name: 'requesting', step: poll, failures: none }, events.lost, 8)
    expect(effect).toMatchObject({ name: 'wait', keep: false })
    ;[state, effect] = transition(state, events.waited, 8)
    expect(effect).toEqual({ name: 'open', step: poll })
    ;[state, effect] = transition(state, events.opened, 8)
    expect(effect).toEqual({ name: 'request', step: poll })
  })

  it('the step and the session, when the service is busy', () => {
    const [state, effect] = transition(
      { name: 'requesting', step: register, failures: none },
      events.refused,
      8,
    )
    expect(effect).toMatchObject({
      name: 'wait',
      keep: true,
      wait: { reason: 'retry', step: 'register', failures: 1 },
    })
    expect(transition(state, events.waited, 8)[1]).toEqual({ name: 'request', step: register })
  })
})

describe('what is asked', () => {
  it.each(['register', 'lookup'] as const)('a %s is requested once the session is open', (kind) => {
    expect(transition({ name: 'opening', step: { kind }, failures: none }, events.opened, 8)[1]).toEqual({
      name: 'request',
      step: { kind },
    })
  })

  it('a probe asks nothing: to be let in is the answer', () => {
    expect(
      transition({ name: 'opening', step: { kind: 'probe' }, failures: none }, events.opened, 8),
    ).toEqual([{ name: 'settled' }, { name: 'resolve', outcome: { kind: 'reached' } }])
  })
})

describe('budgets', () => {
  const effectOf = (
    failures: Failures,
    event: RegistrationEvent,
    state: 'opening' | 'requesting',
    step: typeof register | typeof poll,
  ) => transition({ name: state, step, failures }, event, 3)[1]

  it('are one per step', () => {
    expect(
      effectOf({ connect: 0, register: 2, poll: 0, lookup: 0 }, events.lost, 'requesting', poll).name,
    ).toBe('wait')
    expect(
      effectOf({ connect: 0, register: 2, poll: 0, lookup: 0 }, events.lost, 'requesting', register),
    ).toEqual({
      name: 'reject',
      error: gone,
    })
    expect(
      effectOf({ connect: 2, register: 0, poll: 0, lookup: 0 }, events['open-failed'], 'opening', poll),
    ).toEqual({
      name: 'reject',
      error: gone,
    })
  })

  it('start again with a success of the step', () => {
    const [opened] = transition(
      { name: 'opening', step: register, failures: { connect: 2, register: 1, poll: 0, lookup: 0 } },
      events.opened,
      3,
    )
    expect(opened).toMatchObject({ failures: { connect: 0, register: 1, poll: 0, lookup: 0 } })
    const [waiting] = transition(
      { name: 'requesting', step: poll, failures: { connect: 0, register: 0, poll: 2, lookup: 0 } },
      events.assigning,
      3,
    )
    expect(waiting).toMatchObject({ failures: none })
  })

  it('of one attempt mean no retry', () => {
    expect(
      transition({ name: 'opening', step: register, failures: none }, events['open-failed'], 1)[1].name,
    ).toBe('reject')
  })
})

describe('what is not repeated', () => {
  it.each([
    new DpsError('UNAUTHORIZED', 'register', ''),
    new DpsError('SERVER_UNTRUSTED', 'tls', ''),
    new DpsError('SERVER_NAME_MISMATCH', 'tls', ''),
    new DpsError('SERVER_CERTIFICATE_NOT_YET_VALID', 'tls', ''),
    new DpsError('REPLY_MALFORMED', 'parse', ''),
    new DpsError('ALLOCATION_FAILED', 'poll', '', { retryable: true }),
    new DpsError('REGISTRATION_DISABLED', 'poll', ''),
    new DpsError('SERVICE_UNAVAILABLE', 'poll', '', { retryable: false }),
  ])('$code (retryable $retryable)', (error) => {
    expect(
      transition({ name: 'requesting', step: register, failures: none }, { name: 'refused', error }, 8)[1],
    ).toEqual({
      name: 'reject',
      error,
    })
    expect(
      transition({ name: 'opening', step: register, failures: none }, { name: 'open-failed', error }, 8)[1]
        .name,
    ).toBe('reject')
  })
})

describe('a service over its quota', () => {
  const requesting = (step: 'register' | 'poll', count: number): State => ({
    name: 'requesting',
    step: step === 'poll' ? poll : register,
    failures: { ...none, [step]: count },
  })
  const effectAfter = (step: 'register' | 'poll', count: number, error = busy, maxThrottled = 2) =>
    move(requesting(step, count), { name: 'refused', error }, { maxAttempts: 4, maxThrottled })[1].name

  it('has a budget of its own, for registrations alone', () => {
    expect([0, 1].map((count) => effectAfter('register', count))).toEqual(['wait', 'reject'])
    expect([1, 2, 3].map((count) => effectAfter('poll', count))).toEqual(['wait', 'wait', 'reject'])
    const broken = new DpsError('SERVICE_UNAVAILABLE', 'register', '')
    expect(effectAfter('register', 1, broken)).toBe('wait')
    expect(effectAfter('register', 3, busy, 9), 'within that for all').toBe('reject')
  })
})
