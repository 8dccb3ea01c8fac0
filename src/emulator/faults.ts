import { DpsError } from '../errors.ts'
import type { ScriptedOutcome, ServiceReply } from './service.ts'

/**
 * Where a fault strikes, in the order of a registration: TCP accepted, ClientHello read, TLS established, CONNECT read,
 * SUBSCRIBE read, request read (`register`, `poll`: the service has not seen it yet), reply ready (`register-reply`,
 * `poll-reply`: the service has acted on the request).
 */
export type FaultStep =
  | 'accept'
  | 'client-hello'
  | 'handshake'
  | 'connect'
  | 'subscribe'
  | 'register'
  | 'register-reply'
  | 'poll'
  | 'poll-reply'

/**
 * `silence`: from here on nothing is answered on this connection, which stays open; at a reply step only that reply is
 * withheld. `drop`: the connection is ended in good order (FIN). `reset`: it is torn down (RST).
 */
export type ConnectionFault = 'silence' | 'drop' | 'reset'

/** What is known when bytes or a topic are made up. */
export interface RawContext {
  /** `$rid` of the request, or an empty string before there is one. */
  readonly rid: string
  readonly registrationId: string
}

/** Sends these bytes in place of the answer: below TLS at `accept` and `client-hello`, inside it afterwards. */
export interface RawFault {
  raw: Uint8Array | ((context: RawContext) => Uint8Array)
}

/** A scripted reply. Whatever is left out stays as the service would have it (at a request step: an error of `status`). */
export interface ReplyFault {
  reply: {
    /** HTTP-like status in the topic. */
    status?: number
    /** Six-digit `errorCode` of an error body. Default: `status` times 1000. */
    errorCode?: number
    /** `message` of an error body. */
    message?: string
    /** Text of `retry-after`, sense or nonsense; null leaves it out. */
    retryAfter?: string | null
    /** The whole body as it is sent. */
    body?: string | Uint8Array
    /** The whole topic (MQTT), as text or made from the context. */
    topic?: string | ((context: RawContext) => string)
  }
}

/**
 * Faults of a request. `no-puback`: a QoS 1 request is not acknowledged. `reply-before-puback`: it is acknowledged only
 * after its reply. `outcome`: the operation that this request starts ends that way (at `register`), or this request is
 * answered so at once (at `poll`).
 */
export type RequestFault = ConnectionFault | RawFault | ReplyFault | ScriptedOutcome | RequestDelivery
export type RequestDelivery = 'no-puback' | 'reply-before-puback'

/**
 * Faults of a reply. `wrong-rid`: it answers another request. `duplicate`: it is sent twice. `no-hub`, `no-device-id`:
 * the next reply that says assigned lacks `assignedHub` or `deviceId`. `no-operation-id`: the next reply that has one
 * lacks `operationId`. `byte-by-byte`: every byte in a TLS record of its own. `truncate`: only this many bytes of the
 * body. `cut`: only this many bytes of the packet, then FIN. `oversize`: the body is padded to this many bytes of JSON.
 * `outcome`: the reply says so instead of what it would have said.
 */
export type ReplyStepFault =
  | ConnectionFault
  | RawFault
  | ReplyFault
  | ScriptedOutcome
  | 'wrong-rid'
  | 'duplicate'
  | 'no-hub'
  | 'no-device-id'
  | 'no-operation-id'
  | 'byte-by-byte'
  | { truncate: number }
  | { cut: number }
  | { oversize: number }

/** What may be done at each step. */
export interface FaultActions {
  accept: ConnectionFault | RawFault
  'client-hello': ConnectionFault | RawFault
  handshake: ConnectionFault | RawFault
  /** `refuse`: CONNACK with this return code, then close. */
  connect: ConnectionFault | RawFault | { refuse: number }
  /** `refuse`: SUBACK with 0x80. */
  subscribe: ConnectionFault | RawFault | 'refuse'
  register: RequestFault
  'register-reply': ReplyStepFault
  poll: RequestFault
  'poll-reply': ReplyStepFault
}

export type FaultSpec = {
  [Step in FaultStep]: {
    at: Step
    /** One action, or several that are combined, such as `['duplicate', 'byte-by-byte']`. */
    do: FaultActions[Step] | readonly FaultActions[Step][]
    /** How often. Default 1; Infinity for ever. */
    times?: number
    /** Only for this registration id (from `connect` on) or what the function accepts. Default: every connection. */
    match?: { registrationId: string } | ((at: FaultPoint) => boolean)
  }
}[FaultStep]

/** Where and on whom a fault struck. */
export interface FaultPoint {
  readonly at: FaultStep
  readonly connectionId: number
  /** Known from `connect` on. */
  readonly registrationId: string | undefined
}

/** A fault in force. */
export interface Fault {
  readonly spec: FaultSpec
  /** How often it struck. */
  readonly hits: number
  /** Resolves when it strikes for the first time. */
  readonly hit: Promise<FaultPoint>
  /** Ends it early; normal service resumes. */
  remove(): void
}

/**
 * The script of what goes wrong. Of several faults at one step the earliest added strikes first and is used up before
 * the next, so that a sequence is written as it shall happen; what is to happen together is one fault with several
 * actions. When all are used up the service is normal again.
 */
export interface Faults {
  /** @throws DpsError OPTION_INVALID, phase `config` */
  add(spec: FaultSpec): Fault
  /** Removes every fault. */
  clear(): void
  /** Faults still in force. */
  list(): readonly Fault[]
}

export type AnyAction = FaultActions[FaultStep]

const CONNECTION = ['silence', 'drop', 'reset', 'raw']
const REQUEST = [...CONNECTION, 'reply', 'outcome', 'no-puback', 'reply-before-puback']
const REPLY = [
  ...CONNECTION,
  'reply',
  'outcome',
  'wrong-rid',
  'duplicate',
  'no-hub',
  'no-device-id',
  'no-operation-id',
  'byte-by-byte',
  'truncate',
  'cut',
  'oversize',
]

const ALLOWED: Readonly<Record<FaultStep, readonly string[]>> = {
  accept: CONNECTION,
  'client-hello': CONNECTION,
  handshake: CONNECTION,
  connect: [...CONNECTION, 'refuse'],
  subscribe: [...CONNECTION, 'refuse'],
  register: REQUEST,
  'register-reply': REPLY,
  poll: REQUEST,
  'poll-reply': REPLY,
}

const NAMED_BY_KEY = ['raw', 'reply', 'outcome', 'refuse', 'truncate', 'cut', 'oversize']

/** The name an action goes by in events and messages. */
export function actionName(action: AnyAction): string {
  if (typeof action === 'string') return action
  return NAMED_BY_KEY.find((key) => Object.hasOwn(action, key)) ?? 'unknown'
}

const isList = (value: AnyAction | readonly AnyAction[]): value is readonly AnyAction[] =>
  Array.isArray(value)

const invalid = (message: string): DpsError => new DpsError('OPTION_INVALID', 'config', message)

interface ScriptedFault {
  readonly fault: Fault
  readonly actions: readonly AnyAction[]
  strike(point: FaultPoint): void
  readonly spent: boolean
}

export class FaultScript implements Faults {
  readonly #scripted = new Map<FaultStep, ScriptedFault[]>()

  add(spec: FaultSpec): Fault {
    const allowed = Object.hasOwn(ALLOWED, spec.at) ? ALLOWED[spec.at] : undefined
    if (allowed === undefined) throw invalid(`\`at\` must be one of ${Object.keys(ALLOWED).join(', ')}`)
    const chosen: AnyAction | readonly AnyAction[] = spec.do
    const actions = isList(chosen) ? [...chosen] : [chosen]
    if (actions.length === 0) throw invalid('`do` must name at least one action')
    for (const action of actions) {
      if (!allowed.includes(actionName(action))) {
        throw invalid(
          `\`do\` at '${spec.at}' must be one of ${allowed.join(', ')}; got '${actionName(action)}'`,
        )
      }
    }
    const { times = 1 } = spec
    if (!(times === Number.POSITIVE_INFINITY || (Number.isInteger(times) && times > 0))) {
      throw invalid('`times` must be a positive integer or Infinity')
    }

    let hits = 0
    let left = times
    let resolveHit: (point: FaultPoint) => void
    const hit = new Promise<FaultPoint>((resolve) => {
      resolveHit = resolve
    })
    const fault: Fault = {
      spec,
      get hits() {
        return hits
      },
      hit,
      remove: () => {
        left = 0
      },
    }
    const queue = this.#scripted.get(spec.at) ?? []
    queue.push({
      fault,
      actions,
      strike: (point) => {
        left -= 1
        hits += 1
        resolveHit(point)
      },
      get spent() {
        return left <= 0
      },
    })
    this.#scripted.set(spec.at, queue)
    return fault
  }

  clear(): void {
    for (const fault of this.list()) fault.remove()
    this.#scripted.clear()
  }

  list(): readonly Fault[] {
    return [...this.#scripted.values()].flat().flatMap(({ fault, spent }) => (spent ? [] : fault))
  }

  /**
   * The actions of the fault that strikes at this point, or none.
   *
   * @param waits tells whether an action has nothing to act on here and shall wait for a later point
   */
  strike<Step extends FaultStep>(
    point: FaultPoint & { at: Step },
    waits: (action: FaultActions[Step]) => boolean = () => false,
  ): readonly FaultActions[Step][] {
    const queue = this.#scripted.get(point.at)
    if (queue === undefined) return []
    const remaining = queue.filter(({ spent }) => !spent)
    if (remaining.length === 0) this.#scripted.delete(point.at)
    else if (remaining.length < queue.length) this.#scripted.set(point.at, remaining)
    for (const scripted of remaining) {
      // `add` has checked that every action belongs to the step under which it is kept.
      const actions = scripted.actions as readonly FaultActions[Step][]
      if (!matches(scripted.fault.spec, point) || actions.some(waits)) continue
      scripted.strike(point)
      return actions
    }
    return []
  }
}

function matches({ match }: FaultSpec, point: FaultPoint): boolean {
  if (match === undefined) return true
  if (typeof match === 'function') return match(point)
  return match.registrationId.toLowerCase() === point.registrationId?.toLowerCase()
}

/** A reply on its way to a front: what a fault may change is all here. */
export interface OutgoingReply {
  status: number
  retryAfter: string | undefined
  rid: string
  body: Buffer
  /** Replaces the topic that a front would make. */
  topic: string | undefined
  copies: number
  byteByByte: boolean
  /** Bytes of the packet after which the connection ends. */
  cutAfter: number | undefined
}

/** What a fault needs of the service to write a reply. */
export interface ReplyMaker {
  error(status: number, errorCode: number, message: string): ServiceReply
  ended(registrationId: string, operationId: string, script: ScriptedOutcome): Record<string, unknown>
}

export function outgoing(reply: ServiceReply, rid: string): OutgoingReply {
  return {
    status: reply.status,
    retryAfter: reply.retryAfter,
    rid,
    body: Buffer.from(JSON.stringify(reply.body)),
    topic: undefined,
    copies: 1,
    byteByByte: false,
    cutAfter: undefined,
  }
}

/** Whether a reply fault has to wait, because this reply has nothing for it to leave out. */
export function waitsForAnotherReply(action: ReplyStepFault, reply: ServiceReply): boolean {
  if (action === 'no-operation-id') return !Object.hasOwn(reply.body, 'operationId')
  if (action === 'no-hub' || action === 'no-device-id') return reply.body.status !== 'assigned'
  return false
}

/** Applies one action to a reply; the actions that end the connection are the front's. */
export function alter(
  out: OutgoingReply,
  action: ReplyStepFault,
  context: RawContext,
  maker: ReplyMaker,
): void {
  if (typeof action === 'string') {
    alterByName(out, action)
  } else if ('reply' in action) {
    script(out, action.reply, context, maker)
  } else if ('outcome' in action) {
    const { operationId } = readBody(out)
    const body = maker.ended(
      context.registrationId,
      typeof operationId === 'string' ? operationId : '',
      action,
    )
    out.status = 200
    out.retryAfter = undefined
    out.body = Buffer.from(JSON.stringify(body))
  } else if ('truncate' in action) {
    out.body = out.body.subarray(0, action.truncate)
  } else if ('cut' in action) {
    out.cutAfter = action.cut
  } else if ('oversize' in action) {
    const padding = action.oversize - out.body.length - '"padding":"",'.length
    const rest = out.body.subarray(1)
    out.body = Buffer.concat([Buffer.from(`{"padding":"${'x'.repeat(Math.max(0, padding))}",`), rest])
  }
}

function alterByName(out: OutgoingReply, action: Extract<ReplyStepFault, string>): void {
  if (action === 'duplicate') out.copies = 2
  else if (action === 'byte-by-byte') out.byteByByte = true
  else if (action === 'wrong-rid') out.rid = `not-${out.rid}`
  else if (action === 'no-operation-id') {
    out.body = without(out, (body) => delete body.operationId)
  } else if (action === 'no-hub' || action === 'no-device-id') {
    const field = action === 'no-hub' ? 'assignedHub' : 'deviceId'
    out.body = without(
      out,
      (body) => delete (body.registrationState as Record<string, unknown> | undefined)?.[field],
    )
  }
}

function script(
  out: OutgoingReply,
  reply: ReplyFault['reply'],
  context: RawContext,
  maker: ReplyMaker,
): void {
  const status = reply.status ?? out.status
  if (reply.errorCode !== undefined || reply.message !== undefined || status >= 300) {
    const error = maker.error(status, reply.errorCode ?? status * 1000, reply.message ?? 'Scripted error.')
    out.body = Buffer.from(JSON.stringify(error.body))
    out.retryAfter = error.retryAfter
  }
  out.status = status
  if (reply.retryAfter !== undefined) out.retryAfter = reply.retryAfter ?? undefined
  if (reply.body !== undefined) out.body = Buffer.from(reply.body as Uint8Array)
  if (reply.topic !== undefined) {
    out.topic = typeof reply.topic === 'function' ? reply.topic(context) : reply.topic
  }
}

function readBody(out: OutgoingReply): Record<string, unknown> {
  try {
    return JSON.parse(out.body.toString()) as Record<string, unknown>
  } catch {
    // An earlier action of the same fault has already made it something else.
    return {}
  }
}

function without(out: OutgoingReply, remove: (body: Record<string, unknown>) => void): Buffer {
  const body = readBody(out)
  remove(body)
  return Buffer.from(JSON.stringify(body))
}
