import type { Assignment } from './assignment/assignment.ts'
import { emitter, ProvisioningClient } from './client.ts'
import { systemClock } from './clock.ts'
import { DpsError } from './errors.ts'
import type { ProvisioningClientOptions, RegisterOptions } from './options/options.ts'
import { object } from './options/resolve.ts'
import { backoffCeilingMs } from './registration/schedule.ts'

/** Networks come back within minutes; a ceiling above that only makes the device late. */
const UNREACHED = { baseDelayMs: 2000, maxDelayMs: 300_000, floorMs: 0 }

/**
 * What a person has to mend takes longer, and every attempt is one that the service counts: at least a minute, and up to
 * an hour.
 */
const REFUSED = { baseDelayMs: 300_000, maxDelayMs: 3_600_000, floorMs: 60_000 }

/**
 * Registers, however long it takes: for a device that boots before its network, its clock or its enrollment is there.
 *
 * Every attempt is a `register()` of a new client, bounded by `timeouts.totalMs`, and keeps nothing of the one before.
 * Between attempts it waits a uniform random time below a ceiling that doubles: up to 5 minutes while the service cannot
 * be reached or is busy, and between one minute and an hour once it, or the server's certificate, has been refused, since
 * an operator may yet mend that. `retryAfterMs` is a floor. Each wait is told by an `attempt-failed` event.
 *
 * @throws DpsError CANCELLED when `signal` aborts, and every error of family `usage` that is not retryable: no wait mends a
 *   wrong option; with a `csr` also CERTIFICATE_NOT_ISSUED and ISSUED_CERTIFICATE_INVALID, since the device is assigned and
 *   every further registration is billed
 */
export async function provisionForever(
  options: ProvisioningClientOptions,
  { signal, ...call }: RegisterOptions = {},
): Promise<Assignment> {
  object('options', options)
  const { clock = systemClock, onEvent } = options
  const emit = emitter(onEvent)
  const never = new AbortController().signal
  const failures = { unreached: 0, refused: 0 }
  for (let attempt = 1; ; attempt++) {
    try {
      const client = new ProvisioningClient(options)
      return await client.register(signal === undefined ? call : { ...call, signal })
    } catch (error) {
      if (!DpsError.is(error) || error.code === 'CANCELLED') throw error
      if ((error.family === 'usage' && !error.retryable) || error.assignment !== undefined) throw error
      const pace = error.retryable ? UNREACHED : REFUSED
      const count = ++failures[error.retryable ? 'unreached' : 'refused']
      const floorMs = Math.max(pace.floorMs, error.retryAfterMs ?? 0)
      const delayMs = Math.round(floorMs + clock.random() * backoffCeilingMs(count, pace))
      emit({ type: 'attempt-failed', attempt, delayMs, error })
      await clock.sleep(delayMs, signal ?? never).catch((cause) => {
        throw new DpsError('CANCELLED', error.phase, `cancelled by the caller after ${attempt} attempts`, {
          cause,
        })
      })
    }
  }
}
