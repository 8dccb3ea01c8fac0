import type { Assignment } from './assignment/assignment.ts'
import { checkRegistration, emitter, ProvisioningClient } from './client.ts'
import { DpsError, type DpsPhase } from './errors.ts'
import type { ProvisioningClientOptions, RegisterOptions } from './options/options.ts'
import { object, resolveOptions } from './options/resolve.ts'
import { delayMs, pauseMs } from './registration/schedule.ts'

/**
 * Registers, however long it takes: for a device that boots before its network, its clock or its enrollment is there.
 *
 * Waits its part of `retry.startDelayMs` once, before the first attempt. Every attempt is a `register()` of a new client,
 * bounded by `timeouts.totalMs`, and keeps nothing of the one before. Between attempts it waits a random time, uniform up to
 * a ceiling:
 *
 * - Where the service cannot be reached or fails: 2 s, doubled with every failure up to 5 minutes.
 * - Where it is over its quota (429), which ends an attempt at once unless `retry.maxThrottled` says otherwise: a quarter of
 *   the time since the first attempt; at least a minute or a sixteenth of `startDelayMs`, at most an hour.
 * - Where it, or the server's certificate, has been refused, since an operator may yet mend that: between a minute and five,
 *   doubled up to an hour. Never before `startDelayMs` is over; and where it has been throttled before, not before it has
 *   waited ten times as long as it had when that last happened, a day at most, and then at any time within what it
 *   had waited at that time, a day at most.
 *
 * `retryAfterMs` is a floor. Each wait is told by an `attempt-failed` event.
 *
 * @throws DpsError CANCELLED when `signal` aborts, and every error of family `usage` that is not retryable: no wait mends a
 *   wrong option; with a `csr` also CERTIFICATE_NOT_ISSUED and ISSUED_CERTIFICATE_INVALID, since the device is assigned and
 *   every further registration is billed
 */
export async function provisionForever(
  options: ProvisioningClientOptions,
  call: RegisterOptions = {},
): Promise<Assignment> {
  object('options', options)
  const { retry, clock, onEvent, issuanceApiVersion } = resolveOptions(options)
  const emit = emitter(onEvent)
  const never = new AbortController().signal
  const patient = {
    ...options,
    retry: { ...retry, maxThrottled: options.retry?.maxThrottled ?? 1, startDelayMs: 0 },
  }
  // What no wait mends is told before the first one.
  new ProvisioningClient(patient)
  await checkRegistration(call, issuanceApiVersion)
  const { signal } = call
  const own = { ...call }
  const failed = { unreached: 0, refused: 0, throttledMs: 0 }
  const sleep = (ms: number, phase: DpsPhase, attempts: number) =>
    clock.sleep(ms, signal ?? never).catch((cause) => {
      throw new DpsError('CANCELLED', phase, `cancelled by the caller after ${attempts} attempts`, { cause })
    })
  const startMs = delayMs({ reason: 'start' }, retry, clock.random())
  if (startMs > 0) await sleep(startMs, 'config', 0)
  const startedAt = clock.monotonic()
  for (let attempt = 1; ; attempt++) {
    try {
      const client = new ProvisioningClient(patient)
      return await client.register(own)
    } catch (error) {
      if (!DpsError.is(error) || error.code === 'CANCELLED') throw error
      if ((error.family === 'usage' && !error.retryable) || error.assignment !== undefined) throw error
      const waitedMs = clock.monotonic() - startedAt
      const ms = pauseMs(error, failed, retry.startDelayMs, waitedMs, clock.random())
      emit({ type: 'attempt-failed', attempt, delayMs: ms, error })
      await sleep(ms, error.phase, attempt)
    }
  }
}
