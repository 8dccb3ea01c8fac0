import { validateHeaderName, validateHeaderValue } from 'node:http'
import { DpsError } from '../errors.ts'
import { checkNames, invalid } from './check.ts'
import type { ScriptedOutcome, ServiceReply } from './service.ts'

/**
 * Where a fault strikes, in the order of a registration: TCP accepted, ClientHello read, TLS established, WebSocket
 * upgrade request read (MQTT over WebSocket), CONNECT and SUBSCRIBE read (both kinds of MQTT), request of an
 * authenticated device read (`register`, `poll`, over HTTPS also `lookup`: the service has not seen it yet), reply ready
 * (`register-reply`, `poll-reply`, `lookup-reply`: the service has acted on the request).
 *
 * On a connection to a hub, in place of those of a registration: CONNECT and SUBSCRIBE read (`hub-connect`,
 * `hub-subscribe`), telemetry read and not recorded yet (`telemetry`), recorded and not acknowledged yet
 * (`telemetry-ack`), request about the twin read (`twin`), answer to it ready (`twin-reply`), request for a certificate
 * read (`renew`), 202 ready (`renew-accepted`), its answer ready (`renew-reply`), PINGREQ read (`ping`).
 *
 * `issue`: a certificate is about to be issued, in a registration or at a hub.
 */
export type FaultStep =
  | 'accept'
  | 'client-hello'
  | 'handshake'
  | 'upgrade'
  | 'connect'
  | 'subscribe'
  | 'register'
  | 'register-reply'
  | 'poll'
  | 'poll-reply'
  | 'lookup'
  | 'lookup-reply'
  | 'issue'
  | 'hub-connect'
  | 'hub-subscribe'
  | 'telemetry'
  | 'telemetry-ack'
  | 'twin'
  | 'twin-reply'
  | 'renew'
  | 'renew-accepted'
  | 'renew-reply'
  | 'ping'

/**
 * `silence`: from here on nothing is answered on this connection, which stays open; at a reply step only that reply is
 * withheld (over HTTPS also what is asked after it on the connection, for replies keep their order). `drop`: the
 * connection is ended in good order (close_notify, then FIN), without a WebSocket close frame. `no-close-notify`: the
 * TCP connection is ended (FIN) and TLS is not, as by an attacker or a middle box. `reset`: it is torn down (RST).
 */
export type ConnectionFault = 'silence' | 'drop' | 'no-close-notify' | 'reset'

/** What is known when bytes or a topic are made up. */
export interface RawContext {
  /** `$rid` of the request, or an empty string before there is one and over HTTPS. */
  readonly rid: string
  readonly registrationId: string
}

/**
 * Sends these bytes in place of the answer: below TLS at `accept` and `client-hello`, inside it afterwards. Over
 * WebSocket they are sent as one binary frame; with `unframed` as they are, so that a frame may be forged.
 */
export interface RawFault {
  raw: Uint8Array | ((context: RawContext) => Uint8Array)
  unframed?: boolean
}

/**
 * A scripted reply. Whatever is left out stays as the service would have it (at a request step: an error of `status`,
 * default 500). One with a `topic` waits for a request over MQTT, one with `headers` for a request over HTTPS.
 */
export interface ReplyFault {
  reply: {
    /** Status of the response, and HTTP-like status in the topic: 100 to 999. */
    status?: number
    /** Six-digit `errorCode` of an error body. Default: `status` times 1000. */
    errorCode?: number
    /** `message` of an error body. */
    message?: string
    /** Text of `retry-after`, sense or nonsense; null leaves it out. In a header, control characters are left out. */
    retryAfter?: string | null
    /** The whole body as it is sent. */
    body?: string | Uint8Array
    /** The whole topic (MQTT), as text or made from the context. */
    topic?: string | ((context: RawContext) => string)
    /** Header fields of the response (HTTPS) to set, or with null to leave out. */
    headers?: Readonly<Record<string, string | null>>
  }
}

/**
 * Faults of a request. `no-puback`: a QoS 1 request is not acknowledged. `reply-before-puback`: it is acknowledged only
 * after its reply; both wait for a request over MQTT. `outcome`: the operation that this request starts ends that way (at `register`), or this request is
 * answered so at once (at `poll`).
 */
export type RequestFault = ConnectionFault | RawFault | ReplyFault | ScriptedOutcome | RequestDelivery
export type RequestDelivery = 'no-puback' | 'reply-before-puback'

/**
 * Faults of a reply. `wrong-rid`: it answers another request. `duplicate`: it is sent twice; both wait for a request over
 * MQTT. `no-hub`, `no-device-id`: the next reply that says assigned lacks `assignedHub` or `deviceId`.
 * `no-operation-id`: the next reply that has one lacks `operationId` (and `Location`). `outcome`: the reply says so
 * instead of what it would have said.
 */
export type ReplyStepFault =
  | LookupReplyFault
  | ScriptedOutcome
  | 'wrong-rid'
  | 'duplicate'
  | 'no-operation-id'

/**
 * Faults of the reply to a lookup. `no-hub`, `no-device-id`: as of any reply. `byte-by-byte`: every byte in a TLS record
 * of its own, over WebSocket in a frame of its own. `truncate`: only this many bytes of the body; over HTTPS
 * `Content-Length` still tells its whole length, and FIN follows. `cut`: only this many bytes of the packet or of the
 * response, then the connection is ended, without close_notify where that is false. `oversize`: the body is padded to
 * this many bytes of JSON.
 */
export type LookupReplyFault =
  | ConnectionFault
  | RawFault
  | ReplyFault
  | 'no-hub'
  | 'no-device-id'
  | 'byte-by-byte'
  | { truncate: number }
  | { cut: number; closeNotify?: boolean }
  | { oversize: number }

/**
 * Lies about a certificate that is issued, each alone or several at once. `wrong-key`: it holds another public key.
 * `wrong-name`: its common name is another. `broken-chain`: another key than the issuing CA's signed it. `no-chain`:
 * null in place of the chain, and nothing issued. `leaf-only`: the chain is the leaf alone. `reversed`: the root comes
 * first. `pem`: every element is base64 of PEM text. `duplicate`: the leaf comes twice. `with-unrelated`: a CA that has
 * to do with nothing stands in it. `garbage`: base64 of no certificate stands for the leaf.
 */
export type IssueFault =
  | 'wrong-key'
  | 'wrong-name'
  | 'broken-chain'
  | 'expired'
  | 'not-yet-valid'
  | 'no-chain'
  | 'leaf-only'
  | 'reversed'
  | 'pem'
  | 'duplicate'
  | 'with-unrelated'
  | 'garbage'

/** What may be done at each step. */
export interface FaultActions {
  accept: ConnectionFault | RawFault
  'client-hello': ConnectionFault | RawFault
  handshake: ConnectionFault | RawFault
  /** `refuse`: a response with this HTTP status in place of 101, then close. */
  upgrade: ConnectionFault | RawFault | ReplyFault | { refuse: number }
  /** `refuse`: CONNACK with this return code, then close. */
  connect: ConnectionFault | RawFault | { refuse: number }
  /** `refuse`: SUBACK with 0x80. */
  subscribe: ConnectionFault | RawFault | 'refuse'
  register: RequestFault
  'register-reply': ReplyStepFault
  poll: RequestFault
  'poll-reply': ReplyStepFault
  lookup: ConnectionFault | RawFault | ReplyFault
  'lookup-reply': LookupReplyFault
  issue: IssueFault
  /** `refuse`: CONNACK with this return code, then close. */
  'hub-connect': ConnectionFault | RawFault | { refuse: number }
  /** `refuse`: SUBACK with 0x80. */
  'hub-subscribe': ConnectionFault | RawFault | 'refuse'
  telemetry: ConnectionFault | RawFault
  /** `no-puback`: the message is recorded and never acknowledged. */
  'telemetry-ack': ConnectionFault | RawFault | 'no-puback'
  twin: ConnectionFault | RawFault
  /** `silence` withholds this answer and no other. */
  'twin-reply': TwinReplyFault
  /** `ignore`: this request gets no answer, and the connection goes on. */
  renew: ConnectionFault | RawFault | ReplyFault | 'ignore'
  /** `silence` withholds this answer and no other. */
  'renew-accepted': RenewalReplyFault
  /**
   * `silence` withholds this answer for good, and the request is done. `bare-array`: the list of certificates is the
   * whole body. `late`: it comes so many ms later; with Infinity never, and the request stays pending.
   */
  'renew-reply': RenewalReplyFault | 'bare-array' | { late: number }
  ping: ConnectionFault | RawFault
}

/**
 * Faults of an answer about a twin. `wrong-rid`: it answers another request. `duplicate`: it is sent twice. `reply`: of
 * its fields those that make an answer over MQTT: `status`, `errorCode`, `message`, `body`, `topic`.
 */
export type TwinReplyFault = ConnectionFault | RawFault | ReplyFault | 'wrong-rid' | 'duplicate'

/**
 * Faults of an answer to a request for a certificate. Of a `reply`, what makes an answer over MQTT: `status`,
 * `errorCode`, `message`, `body`, `topic`. After the end of a connection the answer is still to come on the next one.
 */
export type RenewalReplyFault =
  | ConnectionFault
  | RawFault
  | ReplyFault
  | 'wrong-rid'
  | 'duplicate'
  | { truncate: number }
  | { oversize: number }

export type FaultSpec = {
  [Step in FaultStep]: {
    at: Step
    /** One action, or several that are combined, such as `['duplicate', 'byte-by-byte']`. */
    do: FaultActions[Step] | readonly FaultActions[Step][]
    /** How often. Default 1; Infinity for ever. */
    times?: number
    /**
     * Only for this registration id (from CONNECT or from the first request on; on a connection to a hub the client id) or
     * what the function accepts. Default: every connection.
     */
    match?: { registrationId: string } | ((at: FaultPoint) => boolean)
  }
}[FaultStep]

/** Where and on whom a fault struck. */
export interface FaultPoint {
  readonly at: FaultStep
  readonly connectionId: number
  /** Known from CONNECT or from the first request on; on a connection to a hub it is the client id. */
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

const CONNECTION = ['silence', 'drop', 'no-close-notify', 'reset', 'raw']
const REQUEST = [...CONNECTION, 'reply', 'outcome', 'no-puback', 'reply-before-puback']
const LOOKUP_REPLY = [
  ...CONNECTION,
  'reply',
  'no-hub',
  'no-device-id',
  'byte-by-byte',
  'truncate',
  'cut',
  'oversize',
]
const REPLY = [...LOOKUP_REPLY, 'outcome', 'wrong-rid', 'duplicate', 'no-operation-id']

const ISSUE = [
  'wrong-key',
  'wrong-name',
  'broken-chain',
  'expired',
  'not-yet-valid',
  'no-chain',
  'leaf-only',
  'reversed',
  'pem',
  'duplicate',
  'with-unrelated',
  'garbage',
]

const RENEWAL_REPLY = [...CONNECTION, 'reply', 'wrong-rid', 'duplicate', 'truncate', 'oversize']

/** What may be done at each step, by the name of the action or of its one field. */
export const FAULT_ACTIONS: Readonly<Record<FaultStep, readonly string[]>> = {
  accept: CONNECTION,
  'client-hello': CONNECTION,
  handshake: CONNECTION,
  upgrade: [...CONNECTION, 'reply', 'refuse'],
  connect: [...CONNECTION, 'refuse'],
  subscribe: [...CONNECTION, 'refuse'],
  register: REQUEST,
  'register-reply': REPLY,
  poll: REQUEST,
  'poll-reply': REPLY,
  lookup: [...CONNECTION, 'reply'],
  'lookup-reply': LOOKUP_REPLY,
  issue: ISSUE,
  'hub-connect': [...CONNECTION, 'refuse'],
  'hub-subscribe': [...CONNECTION, 'refuse'],
  telemetry: CONNECTION,
  'telemetry-ack': [...CONNECTION, 'no-puback'],
  twin: CONNECTION,
  'twin-reply': [...CONNECTION, 'reply', 'wrong-rid', 'duplicate'],
  renew: [...CONNECTION, 'reply', 'ignore'],
  'renew-accepted': RENEWAL_REPLY,
  'renew-reply': [...RENEWAL_REPLY, 'bare-array', 'late'],
  ping: CONNECTION,
}

const OF_MQTT: readonly string[] = ['no-puback', 'reply-before-puback', 'wrong-rid', 'duplicate']

const NAMED_BY_KEY = ['late', 'raw', 'reply', 'outcome', 'refuse', 'truncate', 'cut', 'oversize']

/** The name an action goes by in events and messages. */
export function actionName(action: AnyAction): string {
  if (typeof action === 'string') return action
  return NAMED_BY_KEY.find((key) => Object.hasOwn(Object(action), key)) ?? 'unknown'
}

const isList = (value: AnyAction | readonly AnyAction[]): value is readonly AnyAction[] =>
  Array.isArray(value)

const isStatus = (value: number): boolean => Number.isInteger(value) && value >= 100 && value <= 999

/** What a response over HTTPS could not be made of. */
function checkResponse(at: FaultStep, action: AnyAction): void {
  if (typeof action === 'string') return
  if ('refuse' in action && at === 'upgrade' && !isStatus(action.refuse)) {
    throw invalid("`refuse` at 'upgrade' must be an HTTP status from 100 to 999")
  }
  if (!('reply' in action)) return
  const { status, headers = {} } = action.reply
  if (status !== undefined && !isStatus(status)) {
    throw invalid('`reply.status` must be an integer from 100 to 999')
  }
  for (const [name, value] of Object.entries(headers)) {
    try {
      validateHeaderName(name)
      if (value !== null) validateHeaderValue(name, value)
    } catch (cause) {
      const message = '`reply.headers` must hold names and values of header fields (RFC 9110, section 5)'
      throw new DpsError('OPTION_INVALID', 'config', message, { cause })
    }
  }
}

interface ScriptedFault {
  readonly fault: Fault
  readonly actions: readonly AnyAction[]
  strike(point: FaultPoint): void
  readonly spent: boolean
}

export class FaultScript implements Faults {
  readonly #scripted = new Map<FaultStep, ScriptedFault[]>()

  add(spec: FaultSpec): Fault {
    checkNames('a fault', spec, ['at', 'do', 'times', 'match'])
    const allowed = Object.hasOwn(FAULT_ACTIONS, spec.at) ? FAULT_ACTIONS[spec.at] : undefined
    if (allowed === undefined) throw invalid(`\`at\` must be one of ${Object.keys(FAULT_ACTIONS).join(', ')}`)
    const chosen: AnyAction | readonly AnyAction[] = spec.do
    const actions = isList(chosen) ? [...chosen] : [chosen]
    if (actions.length === 0) throw invalid('`do` must name at least one action')
    for (const action of actions) {
      if (!allowed.includes(actionName(action))) {
        throw invalid(
          `\`do\` at '${spec.at}' must be one of ${allowed.join(', ')}; got '${actionName(action)}'`,
        )
      }
      checkResponse(spec.at, action)
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
  /** Names the operation that a 202 started or found running. */
  operationId: string | undefined
  headers: Readonly<Record<string, string | null>>
  copies: number
  byteByByte: boolean
  /** Bytes that were taken off the body, and that `Content-Length` still counts. */
  missing: number
  /** Bytes of the packet after which the connection ends, and how. */
  cut: { readonly after: number; readonly end: 'drop' | 'no-close-notify' } | undefined
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
    operationId: typeof reply.body.operationId === 'string' ? reply.body.operationId : undefined,
    headers: {},
    copies: 1,
    byteByByte: false,
    missing: 0,
    cut: undefined,
  }
}

/** Whether an action is about the other kind of front: it waits for a request that comes there. */
export function waitsForAnotherFront(front: 'mqtt' | 'http', action: AnyAction): boolean {
  if (typeof action === 'object' && 'reply' in action) {
    return (front === 'mqtt' ? action.reply.headers : action.reply.topic) !== undefined
  }
  return front === 'http' && typeof action === 'string' && OF_MQTT.includes(action)
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
    out.missing = Math.max(0, out.body.length - action.truncate)
    out.body = out.body.subarray(0, action.truncate)
  } else if ('cut' in action) {
    out.cut = { after: action.cut, end: action.closeNotify === false ? 'no-close-notify' : 'drop' }
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
    out.operationId = undefined
  } else if (action === 'no-hub' || action === 'no-device-id') {
    const field = action === 'no-hub' ? 'assignedHub' : 'deviceId'
    // A lookup's reply is the state itself.
    out.body = without(
      out,
      (body) => delete ((body.registrationState ?? body) as Record<string, unknown>)[field],
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
  if (reply.headers !== undefined) out.headers = reply.headers
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
