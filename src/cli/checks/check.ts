import type { DpsError, DpsErrorCode } from '../../errors.ts'
import type { Case } from '../case.ts'
import type { ExitCode } from '../exit-codes.ts'
import { kit } from '../kit.ts'

export type Status = 'ok' | 'warning' | 'error' | 'skipped'

/** What a check found. */
export interface Finding {
  readonly status: Status
  readonly message: string
  /** What to do next: there for every error and warning. */
  readonly next?: string
  readonly code?: DpsErrorCode
  /** Of an error: the exit code of the stage. */
  readonly exit?: ExitCode
  readonly details?: Readonly<Record<string, unknown>>
  /** Further lines for people: what `details` has for machines. */
  readonly more?: readonly string[]
  /** Whether what needs this cannot be tried. Default: for an error. */
  readonly stops?: boolean
  /** Where it is not the time that the check took. */
  readonly durationMs?: number
}

/** One thing to look at. Its id is kept for good. */
export interface Check {
  readonly id: string
  /** Ids of checks before it, without which this one says nothing. */
  readonly needs?: readonly string[]
  /** Whether it is left where anything has failed. */
  readonly needsAll?: boolean
  /** @throws DpsError which is then the error that was found */
  run(on: Case): Finding | Promise<Finding>
}

type Details = Finding['details']

export const ok = (message: string, details?: Details): Finding => ({
  status: 'ok',
  message,
  ...(details && { details }),
})

export const warning = (message: string, next: string, details?: Details): Finding => ({
  ...ok(message, details),
  status: 'warning',
  next,
})

export const failure = (message: string, next: string, exit: ExitCode, details?: Details): Finding => ({
  ...warning(message, next, details),
  status: 'error',
  exit,
})

export const skipped = (message: string, stops = false): Finding => ({
  ...ok(message),
  status: 'skipped',
  stops,
})

/** What the library threw, as it says it. */
export function found(error: DpsError): Finding {
  const { spoken, printable, exitCodeOf } = kit
  const say = (text: string) => spoken(printable(text, 1000))
  const { code, serviceErrorCode, trackingId, serverTime } = error
  return {
    ...failure(say(error.message), say(error.hint), exitCodeOf(error)),
    code,
    ...((serviceErrorCode ?? trackingId ?? serverTime) !== undefined && {
      details: { serviceErrorCode, trackingId, serverTime: serverTime?.toISOString() },
    }),
  }
}

/** The same where something else got through: it need not be put right. */
export const asWarning = (finding: Finding, lesser: boolean): Finding =>
  lesser && finding.status === 'error' ? { ...finding, status: 'warning', stops: true } : finding

export const plural = (n: number, one: string): string => `${n} ${one}${n === 1 ? '' : 's'}`

const DAY_MS = 86_400_000

/** When something ends, and the whole days until then. */
export const endOf = (endsMs: number) => ({
  until: new Date(endsMs).toISOString(),
  days: Math.floor((endsMs - kit.systemClock.now()) / DAY_MS),
})

/** What has to be right before anything is dialled. */
export const REACHES = ['config.endpoint', 'roots.trust', 'dns.ipv4', 'dns.ipv6']
