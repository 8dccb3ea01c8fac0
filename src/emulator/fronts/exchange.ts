import {
  actionName,
  alter,
  type FaultActions,
  type FaultScript,
  type FaultStep,
  type LookupReplyFault,
  type OutgoingReply,
  outgoing,
  type RawContext,
  type ReplyStepFault,
  type RequestFault,
  waitsForAnotherFront,
  waitsForAnotherReply,
} from '../faults.ts'
import type { Journal, LiveRecord } from '../journal.ts'
import type { DeviceSession, ProvisioningService, ScriptedOutcome, ServiceReply } from '../service.ts'
import type { FrontConnection } from './listener.ts'

// What a request meets on its way through any front: the script, the service, the script again.

export interface ExchangeSettings {
  readonly service: ProvisioningService
  readonly faults: FaultScript
  readonly journal: Journal
}

/** What an authenticated device asks for. */
export type DeviceRequest =
  | { readonly operation: 'register'; readonly body: Buffer }
  | { readonly operation: 'lookup'; readonly body: Buffer }
  | { readonly operation: 'poll'; readonly operationId: string }

/** A reply; or none, because something else was sent in its place or nothing is to be sent. */
export type Answer = OutgoingReply | 'replaced' | 'withheld'

/** The actions of the fault that strikes here, if one does, which is then reported. */
export function strike<Step extends FaultStep>(
  { faults, journal }: Pick<ExchangeSettings, 'faults' | 'journal'>,
  { id: connectionId }: Pick<LiveRecord, 'id'>,
  at: Step,
  registrationId: string | undefined,
  waits?: (action: FaultActions[Step]) => boolean,
): readonly FaultActions[Step][] {
  const point = { at, connectionId, registrationId }
  const actions = faults.strike<Step>(point, waits)
  if (actions.length > 0) journal.emit({ type: 'fault', point, actions: actions.map(actionName) })
  return actions
}

/** Performs what needs nothing of the protocol; true if any of it took the place of an answer. */
export function performAll(
  connection: FrontConnection,
  actions: readonly FaultActions[FaultStep][],
  context: RawContext,
): boolean {
  return actions.filter((action) => connection.perform(action, context)).length > 0
}

/** One request over one connection. */
export class Exchange {
  readonly #settings: ExchangeSettings
  readonly #connection: FrontConnection
  readonly #front: 'mqtt' | 'http'
  readonly #session: DeviceSession
  readonly #request: DeviceRequest
  readonly #context: RawContext
  readonly #actions: readonly (RequestFault | FaultActions['lookup'])[]

  /** @param rid `$rid` of the request, or an empty string where there is none */
  constructor(
    settings: ExchangeSettings,
    connection: FrontConnection,
    front: 'mqtt' | 'http',
    session: DeviceSession,
    request: DeviceRequest,
    rid: string,
  ) {
    this.#settings = settings
    this.#connection = connection
    this.#front = front
    this.#session = session
    this.#request = request
    this.#context = { rid, registrationId: session.registrationId }
    this.#actions = strike(settings, connection.record, request.operation, session.registrationId, (action) =>
      waitsForAnotherFront(front, action),
    )
  }

  /** Whether the fault of the request has this action. */
  has(action: RequestFault): boolean {
    return this.#actions.includes(action)
  }

  /** Performs what is to happen in place of the service's work; undefined if that goes on. */
  begin(): 'replaced' | 'withheld' | undefined {
    if (!performAll(this.#connection, this.#actions, this.#context)) return undefined
    return this.#connection.mute ? 'withheld' : 'replaced'
  }

  answer(): Answer {
    const { service } = this.#settings
    const { rid, registrationId } = this.#context
    const request = this.#request
    const scripted = this.#actions.find((action) => typeof action === 'object' && 'reply' in action)
    if (scripted !== undefined) {
      const base = service.error(500, 500_000, 'Scripted error.')
      const out = outgoing({ ...base, retryAfter: undefined }, rid)
      alter(out, scripted as ReplyStepFault, this.#context, service)
      return out
    }
    const outcome = this.#actions.find(
      (action): action is ScriptedOutcome => typeof action === 'object' && 'outcome' in action,
    )
    if (request.operation === 'lookup') {
      return this.#reply('lookup-reply', service.lookup(this.#session, request.body))
    }
    if (request.operation === 'register') {
      return this.#reply('register-reply', service.register(this.#session, request.body, outcome))
    }
    if (outcome !== undefined) {
      const body = service.ended(registrationId, request.operationId, outcome)
      return outgoing({ status: 200, retryAfter: undefined, body }, rid)
    }
    return this.#reply('poll-reply', service.query(this.#session, request.operationId))
  }

  #reply(step: 'register-reply' | 'poll-reply' | 'lookup-reply', reply: ServiceReply): Answer {
    const connection = this.#connection
    const actions: readonly (ReplyStepFault | LookupReplyFault)[] = strike(
      this.#settings,
      connection.record,
      step,
      this.#context.registrationId,
      (action) => waitsForAnotherFront(this.#front, action) || waitsForAnotherReply(action, reply),
    )
    if (actions.includes('silence')) return 'withheld'
    if (performAll(connection, actions, this.#context)) return connection.mute ? 'withheld' : 'replaced'
    const out = outgoing(reply, this.#context.rid)
    for (const action of actions) alter(out, action, this.#context, this.#settings.service)
    return out
  }
}
