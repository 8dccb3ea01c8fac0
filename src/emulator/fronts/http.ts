import { randomUUID } from 'node:crypto'
import { type IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { Clock } from '../../clock.ts'
import { alter, type OutgoingReply, outgoing, waitsForAnotherFront } from '../faults.ts'
import type { Carrier, ServiceReply } from '../service.ts'
import { type DeviceRequest, Exchange, type ExchangeSettings, performAll, strike } from './exchange.ts'
import { OutputGate } from './gate.ts'
import type { Front, FrontConnection } from './listener.ts'
import { upgradeRefusal, type WebSocketFront } from './websocket.ts'

export interface HttpSettings extends ExchangeSettings {
  readonly clock: Clock
  /** Takes over the connections whose upgrade to MQTT over WebSocket is granted. */
  readonly webSocket: WebSocketFront
  /** Whether the device protocol is spoken too; a hub takes the upgrade alone. */
  readonly operations: boolean
}

type Operation = DeviceRequest['operation']

const ROUTES: readonly { operation: Operation; method: string; path: RegExp }[] = [
  { operation: 'register', method: 'PUT', path: /^\/([^/]+)\/registrations\/([^/]+)\/register$/ },
  { operation: 'poll', method: 'GET', path: /^\/([^/]+)\/registrations\/([^/]+)\/operations\/([^/]+)$/ },
  { operation: 'lookup', method: 'POST', path: /^\/([^/]+)\/registrations\/([^/]+)$/ },
]

const JSON_TYPE = /^application\/json(?:\s*;\s*charset="?utf-8"?)?\s*$/i
const NOT_IN_A_FIELD = /[^\t\x20-\x7e\x80-\xff]/g
const MAY_HOLD_A_SECRET = ['authorization', 'proxy-authorization', 'cookie']

/** More than the service's message limit of 96 KB, as over MQTT. */
const LARGEST_BODY = 131_072
const LARGEST_HEADER = 16_384
const LOGGED_BODY = 4096
const UNAUTHORIZED = 401_002

/** A request that breaks a rule of the protocol, and the status that says so. */
interface Refusal {
  readonly status: number
  readonly rule: string
  readonly headers?: Readonly<Record<string, string>>
}

/** A request as far as it can be told before anyone is believed. */
interface Call {
  readonly idScope: string
  readonly registrationId: string
  readonly apiVersion: string
  readonly sas: string | undefined
  readonly request: DeviceRequest
}

/** Makes the front that speaks HTTP/1.1: the device protocol itself, and the upgrade to MQTT over WebSocket. */
export function httpFront(settings: HttpSettings): Front {
  const sessions = new WeakMap<Duplex, HttpSession>()
  const server = new Server({
    maxHeaderSize: LARGEST_HEADER,
    // A missing one is answered as the service answers.
    requireHostHeader: false,
    // Waits are the business of the clock and of whoever tests with it.
    keepAliveTimeout: 0,
    headersTimeout: 0,
    requestTimeout: 0,
  })
  server.on('request', (request, response) => sessions.get(request.socket)?.receive(request, response))
  server.on('upgrade', (request, socket, head) => sessions.get(socket)?.upgrade(request, head))
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => sessions.get(socket)?.refuseBytes(error))
  return (connection, first) => {
    const gate = new OutputGate(connection, first)
    sessions.set(gate, new HttpSession(settings, connection, gate))
    server.emit('connection', gate)
  }
}

class HttpSession {
  readonly #settings: HttpSettings
  readonly #connection: FrontConnection
  readonly #gate: OutputGate
  readonly #carrier: Carrier
  /** Requests that came before the reply to the one before them. */
  readonly #waiting: (() => void)[] = []
  #busy = false

  constructor(settings: HttpSettings, connection: FrontConnection, gate: OutputGate) {
    this.#settings = settings
    this.#connection = connection
    this.#gate = gate
    connection.record.transport = 'https'
    this.#carrier = { open: true, connectionId: connection.record.id }
    gate.once('close', () => {
      this.#carrier.open = false
    })
  }

  receive(request: IncomingMessage, response: ServerResponse): void {
    const chunks: Buffer[] = []
    let length = 0
    let tooLong = false
    request.on('error', () => undefined)
    request.on('data', (chunk: Buffer) => {
      length += chunk.length
      if (length <= LARGEST_BODY) {
        chunks.push(chunk)
      } else if (!tooLong) {
        tooLong = true
        this.#inTurn(() => {
          this.#logRequest('request', request)
          const rule = `A body is at most ${LARGEST_BODY} bytes.`
          this.#refuse(request, response, { status: 413, rule, headers: { connection: 'close' } })
        })
      }
    })
    request.on('end', () => {
      if (!tooLong) this.#inTurn(() => this.#serve(request, Buffer.concat(chunks), response))
    })
  }

  upgrade(request: IncomingMessage, head: Buffer): void {
    const { record } = this.#connection
    this.#logRequest('upgrade', request)
    const context = { rid: '', registrationId: '' }
    const actions = strike(this.#settings, record, 'upgrade', undefined, (action) =>
      waitsForAnotherFront('http', action),
    )
    if (performAll(this.#connection, actions, context)) {
      // Bytes that took the place of 101: nothing further is understood.
      if (!this.#connection.mute) this.#connection.perform('silence', context)
      return
    }
    const refusal = upgradeRefusal(request)
    if (actions.length === 0 && refusal === undefined) {
      this.#log({ type: 'response', status: 101 })
      this.#settings.webSocket(this.#connection, request, this.#gate, head)
      return
    }
    // node:http has let go of the connection.
    const response = new ServerResponse(request)
    response.assignSocket(this.#gate as unknown as Socket)
    response.shouldKeepAlive = false
    response.once('finish', () => this.#gate.end())
    const [action] = actions
    if (typeof action === 'object' && 'refuse' in action) {
      this.#send(request, response, outgoing(this.#scripted(action.refuse), ''))
    } else if (typeof action === 'object' && 'reply' in action) {
      const out = outgoing(this.#scripted(500), '')
      alter(out, action, context, this.#settings.service)
      this.#send(request, response, out)
    } else if (refusal !== undefined) {
      this.#refuse(request, response, refusal)
    }
  }

  /** Bytes that are no HTTP; node:http has stopped reading. */
  refuseBytes({ code }: NodeJS.ErrnoException): void {
    if (code === 'ECONNRESET') {
      this.#gate.destroy()
      return
    }
    const tooLarge = code === 'HPE_HEADER_OVERFLOW'
    // A request before them that was whole is heard of only now.
    setImmediate(() =>
      this.#inTurn(() => {
        this.#violated(
          tooLarge
            ? `The header is at most ${LARGEST_HEADER} bytes.`
            : 'The request must be well-formed HTTP/1.1 [RFC 9112].',
        )
        const [status, reason] = tooLarge ? [431, 'Request Header Fields Too Large'] : [400, 'Bad Request']
        this.#log({ type: 'response', status })
        this.#gate.end(`HTTP/1.1 ${status} ${reason}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`)
      }),
    )
  }

  /** Requests are served one after the other, as their replies have to be. */
  #inTurn(serve: () => void): void {
    if (this.#busy) {
      this.#waiting.push(serve)
      return
    }
    this.#busy = true
    if (!this.#connection.mute) serve()
  }

  #next(): void {
    this.#busy = false
    const serve = this.#waiting.shift()
    if (serve !== undefined) this.#inTurn(serve)
  }

  #serve(request: IncomingMessage, body: Buffer, response: ServerResponse): void {
    this.#logRequest('request', request, body)
    const call: Call | Refusal = this.#settings.operations
      ? readCall(request, body)
      : { status: 404, rule: 'A hub serves no HTTP here but the upgrade to MQTT over WebSocket.' }
    if ('status' in call) {
      this.#refuse(request, response, call)
      return
    }
    const { service, journal } = this.#settings
    const { record, certificate } = this.#connection
    const { registrationId } = call
    record.registrationId = registrationId
    const result = service.authenticate({ ...call, certificate, carrier: this.#carrier })
    if (!result.ok) {
      const { reason } = result
      journal.emit({ type: 'refused', connectionId: record.id, registrationId, reason })
      // Who is refused for a credential is not told which part of it was wrong.
      const reply =
        reason === 'registration-id-malformed' || reason === 'api-version-unknown'
          ? service.error(400, 400_000, `Bad request: ${reason}.`)
          : service.error(401, UNAUTHORIZED, 'Unauthorized')
      this.#send(request, response, outgoing(reply, ''))
      return
    }
    const exchange = new Exchange(this.#settings, this.#connection, 'http', result.session, call.request, '')
    const answer = exchange.begin() ?? exchange.answer()
    if (typeof answer === 'object') this.#send(request, response, answer, call)
    else if (answer === 'replaced') this.#discard(response)
  }

  #refuse(request: IncomingMessage, response: ServerResponse, { status, rule, headers }: Refusal): void {
    this.#violated(rule)
    const reply = outgoing(this.#settings.service.error(status, status * 1000, rule), '')
    this.#send(request, response, { ...reply, headers: headers ?? {} })
  }

  #scripted(status: number): ServiceReply {
    return this.#settings.service.error(status, status * 1000, 'Scripted error.')
  }

  /** Ends a response that other bytes have taken the place of. */
  #discard(response: ServerResponse): void {
    this.#gate.remaining = 0
    this.#finally(response, () => undefined)
    response.end()
  }

  #send(request: IncomingMessage, response: ServerResponse, out: OutgoingReply, call?: Call): void {
    const { cut, body, status } = out
    response.sendDate = false
    response.setHeader('Date', new Date(this.#settings.clock.now()).toUTCString())
    response.setHeader('Content-Type', 'application/json; charset=utf-8')
    response.setHeader('Content-Length', body.length + out.missing)
    response.setHeader('x-ms-request-id', randomUUID())
    const errorCode = status >= 300 ? errorCodeOf(body) : undefined
    if (errorCode !== undefined) response.setHeader('x-ms-error-code', errorCode)
    if (out.retryAfter !== undefined) {
      response.setHeader('Retry-After', out.retryAfter.replace(NOT_IN_A_FIELD, ''))
    }
    if (status === 202 && out.operationId !== undefined && call !== undefined) {
      response.setHeader('Location', operationUrl(request.headers.host ?? '', call, out.operationId))
    }
    for (const [name, value] of Object.entries(out.headers)) {
      if (value === null) response.removeHeader(name)
      else response.setHeader(name, value)
    }
    response.writeHead(status)
    this.#log({
      type: 'response',
      status,
      headers: journaled(response.getHeaders()),
      body: body.toString('utf8').slice(0, LOGGED_BODY),
    })
    this.#gate.byteByByte = out.byteByByte
    this.#gate.remaining = cut?.after ?? Number.POSITIVE_INFINITY
    this.#finally(response, () => {
      const end = cut?.end ?? (out.missing > 0 ? 'drop' : undefined)
      if (end !== undefined) this.#connection.perform(end, { rid: '', registrationId: '' })
    })
    response.end(body)
  }

  /** When the response has passed the gate, before node:http turns to the next. */
  #finally(response: ServerResponse, then: () => void): void {
    response.prependOnceListener('finish', () => {
      this.#gate.byteByByte = false
      this.#gate.remaining = Number.POSITIVE_INFINITY
      then()
      setImmediate(() => this.#next())
    })
  }

  #violated(rule: string): void {
    this.#settings.journal.emit({ type: 'violation', connectionId: this.#connection.record.id, rule })
  }

  #logRequest(type: 'request' | 'upgrade', request: IncomingMessage, body?: Buffer): void {
    const { method = '', url = '', headers } = request
    this.#settings.journal.packet({
      connectionId: this.#connection.record.id,
      direction: 'in',
      at: this.#settings.clock.now(),
      type,
      method,
      target: withoutSignature(url),
      headers: journaled(headers),
      authorizationPresent: headers.authorization !== undefined,
      ...(body === undefined ? {} : { body: body.toString('utf8').slice(0, LOGGED_BODY) }),
    })
  }

  #log(response: {
    type: 'response'
    status: number
    headers?: Record<string, string>
    body?: string
  }): void {
    this.#settings.journal.packet({
      connectionId: this.#connection.record.id,
      direction: 'out',
      at: this.#settings.clock.now(),
      ...response,
    })
  }
}

/** What a request asks for, or the rule it breaks. */
function readCall(message: IncomingMessage, body: Buffer): Call | Refusal {
  const { method = '', url = '', headersDistinct, httpVersion } = message
  const hosts = headersDistinct.host ?? []
  if (hosts.length !== 1 && !(hosts.length === 0 && httpVersion === '1.0')) {
    return { status: 400, rule: "There must be one field 'Host' [RFC 9112, section 3.2]." }
  }
  const [path = '', query = ''] = splitOnce(url, '?')
  const known = ROUTES.filter((route) => route.path.test(path))
  if (known.length === 0) return { status: 404, rule: 'The path must be that of an operation.' }
  const route = known.find((candidate) => candidate.method === method)
  if (route === undefined) {
    const allow = known.map((candidate) => candidate.method).join(', ')
    return { status: 405, rule: `The method must be ${allow}.`, headers: { allow } }
  }
  const segments = route.path.exec(path)!.slice(1).map(decode)
  const [idScope, registrationId, operationId = ''] = segments
  const fields = new Map<string, string | undefined>()
  for (const part of query === '' ? [] : query.split('&')) {
    const [name = '', value = ''] = splitOnce(part, '=')
    if (fields.has(name)) return { status: 400, rule: 'The query must hold no field twice.' }
    fields.set(name, decode(value))
  }
  if (idScope === undefined || registrationId === undefined || segments.includes(undefined)) {
    return { status: 400, rule: 'The path must be percent-encoded UTF-8.' }
  }
  const apiVersion = fields.get('api-version')
  if (apiVersion === undefined) return { status: 400, rule: "The query must hold one 'api-version'." }
  fields.delete('api-version')
  // Sent by older clients; it changes nothing.
  if (route.operation === 'register') fields.delete('forceRegistration')
  const [unexpected] = fields.keys()
  if (unexpected !== undefined) return { status: 400, rule: 'The query holds a field that is not known.' }
  const authorization = headersDistinct.authorization ?? []
  if (authorization.length > 1) {
    return { status: 400, rule: "There must be at most one field 'Authorization'." }
  }
  const call = { idScope, registrationId, apiVersion, sas: authorization[0] }
  // Microsoft's client sends a body with GET too.
  if (route.operation === 'poll') return { ...call, request: { operation: 'poll', operationId } }
  if (!JSON_TYPE.test((headersDistinct['content-type'] ?? []).join(', '))) {
    return { status: 415, rule: "The field 'Content-Type' must be application/json, in UTF-8." }
  }
  // The service's documentation shows requests with "utf-8", which is no content coding and means none.
  const coding = (headersDistinct['content-encoding'] ?? ['identity']).join(', ').toLowerCase()
  if (coding !== 'identity' && coding !== 'utf-8') {
    return { status: 415, rule: 'The body must be sent without content coding.' }
  }
  return { ...call, request: { operation: route.operation, body } }
}

function operationUrl(host: string, call: Call, operationId: string): string {
  const path = [call.idScope, 'registrations', call.registrationId, 'operations', operationId]
  return `https://${host}/${path.map(encodeURIComponent).join('/')}?api-version=${call.apiVersion}`
}

function errorCodeOf(body: Buffer): number | undefined {
  try {
    const { errorCode } = JSON.parse(body.toString('utf8')) as { errorCode?: unknown }
    return typeof errorCode === 'number' ? errorCode : undefined
  } catch {
    // A scripted body need not be JSON.
    return undefined
  }
}

/** Header fields that are safe to keep. */
function journaled(headers: Readonly<Record<string, unknown>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(headers)
      .map(([name, value]) => [name.toLowerCase(), String(value)] as const)
      .filter(([name, value]) => !MAY_HOLD_A_SECRET.includes(name) && withoutSignature(value) === value),
  )
}

/** Also where a token was put in the wrong place, and percent-encoded for it. */
function withoutSignature(text: string): string {
  return text.replace(/(?<![a-z])sig(?:=|%3d)[^&\s]*/gi, 'sig=[redacted]')
}

/** A percent-encoded part, or undefined where it is not UTF-8. */
function decode(text: string): string | undefined {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

function splitOnce(text: string, separator: string): string[] {
  const at = text.indexOf(separator)
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + 1)]
}
