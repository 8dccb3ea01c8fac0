import { DpsError } from '../errors.ts'
import { isSuspiciousSkew } from '../protocol/response.ts'

/** What the service answers whatever is wrong with a credential or its enrollment. */
const UNAUTHORIZED = 401002

/** Whether the service refused the credential and neither it nor the clock says why. */
export function isUnexplained(error: DpsError, nowMs: number): boolean {
  const { code, phase, serviceErrorCode, serverTime } = error
  if (code !== 'UNAUTHORIZED' || (serverTime !== undefined && isSuspiciousSkew(serverTime, nowMs)))
    return false
  return serviceErrorCode === UNAUTHORIZED || (serviceErrorCode === undefined && phase === 'connect')
}

/**
 * The error with a hint that names what cannot be seen from the device.
 *
 * @param unseen causes, each the end of a sentence
 * @param signs whether the credential signs tokens, which a wrong clock spoils
 */
export function withUnseen(error: DpsError, unseen: readonly string[], signs: boolean): DpsError {
  const { code, phase, message, retryable, retryAfterMs, serviceErrorCode, trackingId, serverTime } = error
  const causes = unseen.map((cause, index) => `(${index + 1}) ${cause}`)
  const clock =
    signs && serverTime === undefined ? '; compare the clock too, as the service did not tell its time' : ''
  const hint = `The credential itself shows no fault, so look at the service for what cannot be seen from the device: ${causes.join('; ')}${clock}.`
  const cause = 'cause' in error ? { cause: error.cause } : {}
  const facts = { retryable, retryAfterMs, serviceErrorCode, trackingId, serverTime, hint, ...cause }
  return new DpsError(code, phase, message, facts)
}
