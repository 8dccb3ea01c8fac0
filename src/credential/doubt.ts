import { DpsError } from '../errors.ts'
import type { Identity } from './credential.ts'
import type { inspectCredential } from './inspection.ts'

type Inspect = typeof inspectCredential

/** What an inspection warns of in an identity, by the id of each finding. */
export async function warningsAbout(
  identity: Identity,
  now: number,
  inspect: Inspect,
): Promise<readonly (readonly [string, string])[]> {
  const { findings } = await inspect({ load: async () => identity }, { now })
  return findings
    .filter(
      // A device certificate alone is as it should be wherever the service knows its issuer.
      ({ id, severity }) => severity === 'warning' && id !== 'issuer-missing',
    )
    .map(({ id, message, mend }) => [id, `${message} ${mend}`])
}

/** What the service answers whatever is wrong with a credential or its enrollment. */
const UNAUTHORIZED = 401002

/**
 * A refusal that neither the credential nor the clock explains, with a hint that names what cannot be seen from the device;
 * any other as it is.
 *
 * @param isClockWrong whether the service has told its time, and it is another one
 */
export async function explainRefusal(
  error: DpsError,
  identity: Identity,
  now: number,
  isClockWrong: boolean,
  inspect: Inspect,
): Promise<DpsError> {
  const { code, phase, message, retryable, retryAfterMs, serviceErrorCode, trackingId, serverTime } = error
  // CONNACK has no code of the service.
  const isAboutCredential =
    serviceErrorCode === UNAUTHORIZED || (serviceErrorCode === undefined && phase === 'connect')
  if (!isAboutCredential || isClockWrong) return error
  const { ok, kind, unseen } = await inspect({ load: async () => identity }, { now })
  if (!ok) return error
  const hint = hintOf(unseen, kind !== 'x509' && serverTime === undefined)
  const cause = 'cause' in error ? { cause: error.cause } : {}
  const facts = { retryable, retryAfterMs, serviceErrorCode, trackingId, serverTime, hint, ...cause }
  return new DpsError(code, phase, message, facts)
}

/** @param mayBeClock a wrong clock spoils the tokens that a key signs, and the service may not have told its time */
export function hintOf(unseen: readonly string[], mayBeClock: boolean): string {
  const causes = unseen.map((cause, index) => `(${index + 1}) ${cause}`).join('; ')
  const clock = mayBeClock ? '; compare the clock too, as the service did not tell its time' : ''
  return `The credential itself shows no fault; look at the service for what cannot be seen from the device: ${causes}${clock}.`
}
