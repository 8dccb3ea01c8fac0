import type { DpsErrorCode } from '../errors.ts'
import type { ResolvedRetry } from '../options/resolve.ts'
import type { Effect, Failures, RegistrationEvent, Request, State, Step, StepName } from './state.ts'

const NO_FAILURES: Failures = { connect: 0, register: 0, poll: 0, lookup: 0 }
const SETTLED: State = { name: 'settled' }

/**
 * Failures after which the same step is tried again within one call. Everything else ends the call: a refusal of the
 * identity, an untrusted server or a malformed reply would only be met again.
 */
const REPEATED: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>([
  'DNS_FAILED',
  'CONNECTION_REFUSED',
  'NETWORK_UNREACHABLE',
  'CONNECTION_LOST',
  'PROXY_REFUSED',
  'TIMEOUT',
  'TLS_FAILED',
  'THROTTLED',
  'SERVICE_UNAVAILABLE',
  'CONFLICT',
  // Only for a `connect` function that met the network.
  'TRANSPORT_FAILED',
])

type RetryLimits = Pick<ResolvedRetry, 'maxAttempts' | 'maxThrottled'>
type Next = readonly [State, Effect]
type Row = { readonly [E in RegistrationEvent as E['name']]?: (event: E) => Next }

/**
 * A call as a table: `(state, event)` to the next state and the one thing to do. Pure. An event that the
 * table does not list for a state is a defect of the caller and throws; after the end every event is ignored.
 *
 *     idle ──start──▶ waiting ──waited──▶ opening ──opened──▶ requesting ──finished──▶ settled
 *                        ▲                   │                    │
 *                        └────── open-failed, assigning, refused, lost ◀──┘        any ──stopped──▶ settled
 */
export function transition(state: State, event: RegistrationEvent, limits: RetryLimits): Next {
  if (state.name === 'settled') return [SETTLED, { name: 'none' }]
  if (event.name === 'stopped') return [SETTLED, { name: 'reject', error: event.error }]
  const move = rows(state, limits)[event.name] as ((event: RegistrationEvent) => Next) | undefined
  if (move === undefined) throw new TypeError(`no transition from ${state.name} on ${event.name}`)
  return move(event)
}

function rows(state: Exclude<State, { name: 'settled' }>, limits: RetryLimits): Row {
  switch (state.name) {
    case 'idle':
      return {
        start: () => [
          { name: 'waiting', step: state.step, failures: NO_FAILURES, connected: false },
          { name: 'wait', wait: { reason: 'start' }, keep: true },
        ],
        'start-again': () => [
          { name: 'opening', step: state.step, failures: NO_FAILURES },
          { name: 'open', step: state.step },
        ],
      }
    case 'opening':
      return {
        opened: () => proceed(state.step, { ...state.failures, connect: 0 }),
        'open-failed': ({ error }) => retry('connect', state, error, false, limits),
      }
    case 'requesting':
      return {
        assigning: ({ operationId, retryAfterMs }) => [
          { name: 'waiting', step: { kind: 'poll', operationId }, failures: NO_FAILURES, connected: true },
          { name: 'wait', wait: { reason: 'assigning', operationId, retryAfterMs }, keep: true },
        ],
        finished: ({ outcome }) => [SETTLED, { name: 'resolve', outcome }],
        refused: ({ error }) => retry(state.step.kind, state, error, true, limits),
        lost: ({ error }) => retry(state.step.kind, state, error, false, limits),
      }
    case 'waiting':
      return {
        waited: () =>
          state.connected
            ? proceed(state.step, state.failures)
            : [
                { name: 'opening', step: state.step, failures: state.failures },
                { name: 'open', step: state.step },
              ],
      }
  }
}

function proceed(step: Step, failures: Failures): Next {
  if (step.kind === 'probe') return [SETTLED, { name: 'resolve', outcome: { kind: 'reached' } }]
  return request(step, failures)
}

function request(step: Request, failures: Failures): Next {
  return [
    { name: 'requesting', step, failures },
    { name: 'request', step },
  ]
}

function retry(
  name: StepName,
  state: { readonly step: Step; readonly failures: Failures },
  error: Extract<RegistrationEvent, { name: 'lost' }>['error'],
  connected: boolean,
  { maxAttempts, maxThrottled }: RetryLimits,
): Next {
  const count = state.failures[name] + 1
  const most = error.code === 'THROTTLED' && name === 'register' ? maxThrottled : maxAttempts
  if (!REPEATED.has(error.code) || !error.retryable || count >= Math.min(most, maxAttempts)) {
    return [SETTLED, { name: 'reject', error }]
  }
  return [
    { name: 'waiting', step: state.step, failures: { ...state.failures, [name]: count }, connected },
    { name: 'wait', wait: { reason: 'retry', step: name, failures: count, error }, keep: connected },
  ]
}
