import type { Clock } from './clock.ts'
import { DpsError } from './errors.ts'

/** Waits for what is not of this package no longer than it may take, and not at all once the caller has cancelled. */
export async function within<T>(
  limitMs: number,
  clock: Clock,
  signal: AbortSignal | undefined,
  work: () => Promise<T>,
  who: string,
): Promise<T> {
  let disarm: (() => void) | undefined
  let onAbort: (() => void) | undefined
  const limit = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal && cancelled(signal))
    signal?.addEventListener('abort', onAbort, { once: true })
    disarm = clock.after(limitMs, () =>
      reject(new DpsError('TIMEOUT', 'config', `${who} did not answer within ${limitMs} ms`)),
    )
  })
  try {
    return await Promise.race([work(), limit])
  } finally {
    disarm?.()
    if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort)
  }
}

/** A store of the caller's own may fail in any way. */
export function storeFailed(cause: unknown): DpsError {
  if (DpsError.is(cause) && cause.phase === 'store') return cause
  return new DpsError('STORE_FAILED', 'store', DpsError.is(cause) ? cause.message : 'the store failed', {
    cause,
    hint: 'See `cause`: the store given as `store` threw it.',
  })
}

export function cancelled(signal: AbortSignal): DpsError {
  return new DpsError('CANCELLED', 'store', 'cancelled by the caller before the service was asked', {
    cause: signal.reason,
  })
}
