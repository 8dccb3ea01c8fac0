import type { DpsError } from '../errors.ts'
import type { DeviceRegistration, RegistrationRecord } from '../protocol/response.ts'

/**
 * What is asked of the service next. The operation id outlives the connection it was given on. `probe` asks nothing: to be
 * let in is the answer.
 */
export type Step =
  | { readonly kind: 'register' }
  | { readonly kind: 'poll'; readonly operationId: string }
  | { readonly kind: 'lookup' }
  | { readonly kind: 'probe' }

/** The steps that are a request. */
export type Request = Exclude<Step, { readonly kind: 'probe' }>

/** What can fail, and has its own budget. */
export type StepName = 'connect' | Request['kind']

/** What a call was made for. */
export type Outcome =
  | {
      readonly kind: 'assigned'
      readonly registration: DeviceRegistration
      /** What came as certificates for a request, not believed. */
      readonly issuedChain?: unknown
    }
  | { readonly kind: 'found'; readonly record: RegistrationRecord }
  | { readonly kind: 'reached' }

/** Failures in a row, per step: a budget each, so that a bad link does not use up the patience for a busy service. */
export type Failures = Readonly<Record<StepName, number>>

export type State =
  | { readonly name: 'idle'; readonly step: Step }
  | { readonly name: 'opening'; readonly step: Step; readonly failures: Failures }
  | { readonly name: 'requesting'; readonly step: Request; readonly failures: Failures }
  | {
      readonly name: 'waiting'
      readonly step: Step
      readonly failures: Failures
      readonly connected: boolean
    }
  | { readonly name: 'settled' }

export type RegistrationEvent =
  | { readonly name: 'start' }
  /** As `start`, where the call is under way already, with another credential. */
  | { readonly name: 'start-again' }
  | { readonly name: 'opened' }
  /** No session could be opened. */
  | { readonly name: 'open-failed'; readonly error: DpsError }
  /** The service took the request and is at work. */
  | { readonly name: 'assigning'; readonly operationId: string; readonly retryAfterMs: number | undefined }
  | { readonly name: 'finished'; readonly outcome: Outcome }
  /** The service answered no; the session is still good. */
  | { readonly name: 'refused'; readonly error: DpsError }
  /** The request got no answer; the session is gone. */
  | { readonly name: 'lost'; readonly error: DpsError }
  | { readonly name: 'waited' }
  /** The caller or the deadline ended it, in whatever state. */
  | { readonly name: 'stopped'; readonly error: DpsError }

/** Why the engine waits: `schedule.ts` turns it into milliseconds. */
export type Wait =
  | { readonly reason: 'start' }
  | { readonly reason: 'assigning'; readonly operationId: string; readonly retryAfterMs: number | undefined }
  | { readonly reason: 'retry'; readonly step: StepName; readonly failures: number; readonly error: DpsError }

export type Effect =
  /** `step` is what will be asked on the connection. */
  | { readonly name: 'open'; readonly step: Step }
  | { readonly name: 'request'; readonly step: Request }
  /** `keep` is false where the session is of no more use and must be closed first. */
  | { readonly name: 'wait'; readonly wait: Wait; readonly keep: boolean }
  | { readonly name: 'resolve'; readonly outcome: Outcome }
  | { readonly name: 'reject'; readonly error: DpsError }
  /** The event came after the end: nothing is left to do. */
  | { readonly name: 'none' }
