// How a device of this library behaves: the loop of `provisionForever` around the loop of a call, as `provision-forever.ts`
// and `run.ts` have them, with every decision made by the library's own functions.

import { CALL, OPEN, POLL, REGISTER } from './engine.mjs'

/** As the service writes them; read by the library's own parser. */
const REPLIES = {
  taken: { status: 202, body: { operationId: '4.d', status: 'assigning' } },
  assigned: {
    status: 200,
    body: {
      operationId: '4.d',
      status: 'assigned',
      registrationState: { registrationId: 'd', deviceId: 'd', assignedHub: 'hub.azure-devices.net' },
    },
  },
  throttled: {
    status: 429,
    body: { errorCode: 429001, trackingId: 't', message: 'Operations are being throttled.' },
  },
  unauthorized: { status: 401, body: { errorCode: 401002, trackingId: 't', message: 'Unauthorized' } },
}

/** @param {import('./service.mjs').ServiceOptions} service */
export function rawReply(answer, { retryAfterMs, pollAfterMs }) {
  const { status, body } = REPLIES[answer]
  const afterMs = answer === 'throttled' ? retryAfterMs : answer === 'taken' ? pollAfterMs : undefined
  return {
    status,
    retryAfter: afterMs === undefined ? undefined : String(afterMs / 1000),
    body: Buffer.from(JSON.stringify(body)),
  }
}

/**
 * @param {typeof import('./sdk.ts')} sdk
 * @param {import('../../src/options/options.ts').RetryOptions} [given] what a caller sets; all else are the defaults
 */
export function ours(sdk, given = {}) {
  const { retry, limits, totalMs } = sdk.resolveOptions({
    idScope: '0ne00000000',
    credential: { load() {} },
    retry: given,
  })
  const inCall = { ...retry, maxThrottled: given.maxThrottled ?? 1, startDelayMs: 0 }
  const { transition, delayMs, pauseMs, parseReply, DpsError } = sdk
  const IDLE = { name: 'idle', step: { kind: 'register' } }
  const START = { name: 'start' }
  const WAITED = { name: 'waited' }
  const OPENED = { name: 'opened' }
  const failedBy = (name, code, phase) => ({ name, error: new DpsError(code, phase, code) })
  const REFUSED = failedBy('open-failed', 'CONNECTION_REFUSED', 'tcp')
  const UNHEARD = failedBy('open-failed', 'TIMEOUT', 'tcp')
  const LOST = failedBy('lost', 'CONNECTION_LOST', 'register')
  const UNANSWERED = failedBy('lost', 'TIMEOUT', 'register')
  const DEADLINE = new DpsError('DEADLINE_EXCEEDED', 'register', 'deadline')

  /** @param {import('./engine.mjs').Core} core */
  return (core) => {
    const { fleet, tripMs, random, plan, finish, openTrips } = core
    const events = Object.fromEntries(
      Object.keys(REPLIES).map((answer) => {
        const context = { phase: 'register', registrationId: 'd', operationId: undefined, nowMs: 0 }
        const reply = parseReply(rawReply(answer, fleet.service), context)
        if (reply.kind === 'refused') return [answer, { name: 'refused', error: reply.error }]
        if (reply.kind === 'assigned') return [answer, { name: 'finished', outcome: reply }]
        return [
          answer,
          { name: 'assigning', operationId: reply.operationId, retryAfterMs: reply.retryAfterMs },
        ]
      }),
    )
    const states = new Array(fleet.devices)
    const startedAt = new Float64Array(fleet.devices)
    const deadlineAt = new Float64Array(fleet.devices)
    // As FailedCalls, without an object for each device.
    const unreached = new Uint16Array(fleet.devices)
    const throttledMs = new Float64Array(fleet.devices)
    const refused = new Uint16Array(fleet.devices)
    const failed = { unreached: 0, refused: 0, throttledMs: 0 }

    function pause(device, error, now) {
      failed.unreached = unreached[device]
      failed.throttledMs = throttledMs[device]
      failed.refused = refused[device]
      const ms = pauseMs(error, failed, retry.startDelayMs, now - startedAt[device], random(device))
      unreached[device] = failed.unreached
      throttledMs[device] = failed.throttledMs
      refused[device] = failed.refused
      states[device] = undefined
      plan(device, CALL, now + ms)
    }

    /** What the device does from `event` at `now` on, until it next reaches the service. */
    function drive(device, state, event, now) {
      const deadline = deadlineAt[device]
      let [next, effect] =
        now >= deadline && event !== START
          ? transition(state, { name: 'stopped', error: DEADLINE }, inCall)
          : transition(state, event, inCall)
      let at = Math.min(now, deadline)
      for (;;) {
        switch (effect.name) {
          case 'wait': {
            const { wait } = effect
            const ms = delayMs(wait, inCall, random(device))
            if (ms > 0 && ms >= deadline - at) {
              const error = wait.reason === 'retry' ? wait.error : DEADLINE
              ;[next, effect] = transition(next, { name: 'stopped', error }, inCall)
            } else {
              at += ms
              ;[next, effect] = transition(next, WAITED, inCall)
            }
            break
          }
          case 'open':
          case 'request': {
            const ms = at + tripMs[device] / 2
            if (ms >= deadline) {
              ;[next, effect] = transition(next, { name: 'stopped', error: DEADLINE }, inCall)
              at = deadline
              break
            }
            states[device] = next
            plan(device, effect.name === 'open' ? OPEN : effect.step.kind === 'poll' ? POLL : REGISTER, ms)
            return
          }
          case 'reject':
            pause(device, effect.error, at)
            return
          case 'resolve':
            states[device] = undefined
            finish(device, at)
            return
          default:
            throw new TypeError(`effect ${effect.name} is not performed`)
        }
      }
    }

    return {
      begin(device, ms) {
        startedAt[device] = ms + delayMs({ reason: 'start' }, retry, random(device))
        plan(device, CALL, startedAt[device])
      },
      call(device, ms) {
        deadlineAt[device] = ms + totalMs
        drive(device, IDLE, START, ms)
      },
      opened(device, sentMs, outage) {
        const state = states[device]
        if (outage === 'silent') drive(device, state, UNHEARD, sentMs + limits.tcp)
        else if (outage === 'refused') drive(device, state, REFUSED, sentMs + tripMs[device])
        else drive(device, state, OPENED, sentMs + openTrips * tripMs[device])
      },
      answered(device, sentMs, answer) {
        const state = states[device]
        if (answer === 'silent') drive(device, state, UNANSWERED, sentMs + limits.register)
        else if (answer === 'refused') drive(device, state, LOST, sentMs + tripMs[device])
        else drive(device, state, events[answer], sentMs + tripMs[device])
      },
    }
  }
}
