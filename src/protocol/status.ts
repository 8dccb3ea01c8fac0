import type { DpsErrorCode } from '../errors.ts'

/** What one refusal means, and what a person can do about it when the code's own hint is too general. */
export interface Refusal {
  readonly code: DpsErrorCode
  readonly retryable?: boolean
  readonly hint?: string
}

/** Six-digit codes that mean more than their first three digits. */
const BY_ERROR_CODE: ReadonlyMap<number, Refusal> = new Map([
  [
    400004,
    {
      code: 'BAD_REQUEST',
      hint: 'Most often a wrong key: with an enrollment group the device needs the key derived from the group key for its own registration id.',
    },
  ],
  [
    400207,
    {
      code: 'ALLOCATION_FAILED',
      retryable: true,
      hint: 'The custom allocation function failed: look at its logs, then register again, not at once.',
    },
  ],
  [
    400208,
    {
      code: 'ALLOCATION_FAILED',
      hint: 'The allocation policy named no hub: link a hub to the instance or to the enrollment.',
    },
  ],
  [
    400209,
    {
      code: 'ALLOCATION_FAILED',
      hint: 'The service may not call the custom allocation function: check its authorization.',
    },
  ],
  [
    401002,
    {
      code: 'UNAUTHORIZED',
      hint: 'The device cannot see which it is: the CA of the group is not verified on the service, the enrollment points at another certificate or key, or the enrollment is disabled. On the device check the clock, the id scope and that the whole chain is sent.',
    },
  ],
  [409203, { code: 'CONFLICT' }],
])

/** Classes: the first three digits of a code, or the status of the reply itself. */
const BY_CLASS: ReadonlyMap<number, DpsErrorCode> = new Map([
  [400, 'BAD_REQUEST'],
  [401, 'UNAUTHORIZED'],
  [403, 'FORBIDDEN'],
  [404, 'NOT_FOUND'],
  [412, 'CONFLICT'],
  [429, 'THROTTLED'],
])

/**
 * What a refusal means, from the status of the reply and the service's own code. The code is finer, so it decides where
 * both are present and known.
 */
export function classifyRefusal(status: number, errorCode: number | undefined): Refusal {
  const exact = errorCode === undefined ? undefined : BY_ERROR_CODE.get(errorCode)
  return exact ?? { code: classOf(status) }
}

/** A registration that ended as `failed`: the operation is over, so only who has to act is left to say. */
export function classifyFailure(errorCode: number | undefined): Refusal {
  if (errorCode === undefined) return { code: 'REGISTRATION_FAILED' }
  const exact = BY_ERROR_CODE.get(errorCode)
  if (exact !== undefined && exact.code !== 'CONFLICT') return exact
  const code = classOf(Math.floor(errorCode / 1000))
  if (code === 'UNAUTHORIZED' || code === 'FORBIDDEN' || code === 'NOT_FOUND') return { code }
  return { code: 'REGISTRATION_FAILED', retryable: code === 'THROTTLED' || code === 'SERVICE_UNAVAILABLE' }
}

function classOf(status: number): DpsErrorCode {
  if (status >= 500) return 'SERVICE_UNAVAILABLE'
  return BY_CLASS.get(status) ?? 'REQUEST_REFUSED'
}
