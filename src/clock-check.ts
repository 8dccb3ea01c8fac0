import { access } from 'node:fs'
import type { Clock } from './clock.ts'
import { DpsError } from './errors.ts'
import { isoTime } from './iso-time.ts'
import { RELEASED_AT_MS } from './release.ts'

export interface ClockCheck {
  readonly clock: Clock
  /** The last verified contact that is remembered, ms since the epoch; 0 for none. */
  readonly lastContactMs: number
  readonly wait:
    | {
        readonly until:
          | 'plausible'
          | 'systemd-timesyncd'
          | ((signal: AbortSignal) => boolean | Promise<boolean>)
        readonly limitMs: number
      }
    | undefined
  readonly signal: AbortSignal
  readonly onWait: (delayMs: number) => void
}

const LOOK_AGAIN_MS = 1000

/**
 * How far a clock may step back behind the last contact: time synchronisation corrects a clock that was ahead when the
 * contact was made, and such a clock must not lock the device out.
 */
const CORRECTION_MS = 86_400_000

/** Made by systemd-timesyncd when the clock has been set (systemd-timesyncd.service(8)). */
export const TIMESYNC_FLAG = '/run/systemd/timesync/synchronized'

/**
 * Resolves when the clock can be believed, before any packet. A clock that is behind this release, or more than a day behind
 * the last verified contact, is wrong with certainty; certificates and tokens judged by it would be judged wrongly.
 *
 * @throws DpsError CLOCK_BEHIND, phase `clock`, at once or, with `wait`, after its limit
 */
export async function checkClock(check: ClockCheck): Promise<void> {
  const { clock, wait, signal } = check
  const startedAt = clock.monotonic()
  for (;;) {
    const leftMs = wait === undefined ? 0 : wait.limitMs - (clock.monotonic() - startedAt)
    const error = behind(check)
    if (error === undefined && (await isSynchronised(check, leftMs))) return
    signal.throwIfAborted()
    const left = wait === undefined ? 0 : wait.limitMs - (clock.monotonic() - startedAt)
    if (left <= 0) throw error ?? notSynchronised(clock.now(), wait?.limitMs ?? 0)
    const delayMs = Math.min(LOOK_AGAIN_MS, left)
    check.onWait(delayMs)
    await clock.sleep(delayMs, signal)
  }
}

function behind({ clock, lastContactMs }: ClockCheck): DpsError | undefined {
  const nowMs = clock.now()
  const floorMs = Math.max(RELEASED_AT_MS, lastContactMs - CORRECTION_MS)
  if (nowMs >= floorMs) return undefined
  const floor =
    floorMs === RELEASED_AT_MS
      ? `this release was made on ${isoTime(RELEASED_AT_MS)}`
      : `the service was last in contact with this device on ${isoTime(lastContactMs)}`
  return new DpsError('CLOCK_BEHIND', 'clock', `this device believes it is ${isoTime(nowMs)}, but ${floor}`)
}

async function isSynchronised({ clock, wait, signal }: ClockCheck, leftMs: number): Promise<boolean> {
  if (wait === undefined || wait.until === 'plausible') return true
  if (wait.until !== 'systemd-timesyncd') return ask(wait.until, clock, signal, leftMs)
  return new Promise((resolve) => access(TIMESYNC_FLAG, (error) => resolve(error === null)))
}

/** The function is the caller's: it may hang, and it may fail. */
async function ask(
  until: (signal: AbortSignal) => boolean | Promise<boolean>,
  clock: Clock,
  signal: AbortSignal,
  leftMs: number,
): Promise<boolean> {
  let disarm: (() => void) | undefined
  const limit = new Promise<false>((resolve) => {
    disarm = clock.after(leftMs, () => resolve(false))
  })
  try {
    return (await Promise.race([until(signal), limit])) === true
  } catch (cause) {
    signal.throwIfAborted()
    throw new DpsError('CLOCK_BEHIND', 'clock', 'the function given as waitForClock.until failed', { cause })
  } finally {
    disarm?.()
  }
}

function notSynchronised(nowMs: number, limitMs: number): DpsError {
  return new DpsError(
    'CLOCK_BEHIND',
    'clock',
    `the clock (${isoTime(nowMs)}) was not synchronised within ${limitMs} ms`,
  )
}
