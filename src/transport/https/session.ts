import type { ClientRequest, IncomingMessage } from 'node:http'
import { Agent, type RequestOptions, request as startRequest } from 'node:https'
import type { Duplex } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { DpsError, type DpsPhase } from '../../errors.ts'
import { printable } from '../../printable.ts'
import { lookupPath, operationPath, registerPath } from '../../protocol/wire.ts'
import type {
  ConnectionFacts,
  RawReply,
  TransportContext,
  TransportRequest,
  TransportSession,
} from '../transport.ts'

/** What a session needs to know of its connection. */
export type SessionContext = Pick<
  TransportContext,
  | 'host'
  | 'port'
  | 'idScope'
  | 'registrationId'
  | 'apiVersion'
  | 'userAgent'
  | 'maxReplyBytes'
  | 'signal'
  | 'token'
>

/** Status line and headers together. Node's own default, fixed here because `--max-http-header-size` moves it. */
const MAX_HEADER_BYTES = 16 * 1024

/** Interim responses (1xx) before the one that counts; the service sends none. */
const MAX_INTERIM_RESPONSES = 8

/** A pending request. */
interface Waiter {
  readonly resolve: (reply: RawReply) => void
  readonly reject: (reason: unknown) => void
  readonly signal: AbortSignal
  readonly onAbort: () => void
}

/**
 * One HTTP/1.1 connection to the provisioning service, on a socket that is connected and verified already. `node:https`
 * frames the messages and keeps the connection; everything that ends the session is decided here.
 */
export class HttpsSession implements TransportSession {
  readonly connection: ConnectionFacts
  readonly #socket: TLSSocket
  readonly #context: SessionContext
  #agent: Agent | undefined
  readonly #socketClosed: Promise<void>
  #phase: DpsPhase = 'connect'
  #closed = false
  /** What ended the session, where that was not this side. */
  #ending: unknown
  #waiter: Waiter | undefined
  /** The request that is on the wire, whose fate `node:http` tells. Without one the socket has nothing to say. */
  #outgoing: ClientRequest | undefined
  #token: { readonly value: string | undefined } | undefined

  /** Takes over `socket`. */
  constructor(socket: TLSSocket, connection: ConnectionFacts, context: SessionContext) {
    this.connection = connection
    this.#socket = socket
    this.#context = context
    this.#socketClosed = socket.closed
      ? Promise.resolve()
      : new Promise((resolve) => socket.on('close', () => resolve()))
    // Stays for as long as the socket does: an error that nobody listens to would end the process.
    socket.on('error', (cause) => this.#outgoing === undefined && this.#lose('broke', cause))
    socket.on('end', () => this.#outgoing === undefined && this.#lose('was ended by the server'))
    socket.on('close', () => this.#outgoing === undefined && this.#lose('was closed'))
    // What nobody asked for must not be taken for the answer to the next request.
    socket.on('data', () => this.#outgoing === undefined && this.#fail(this.#violation('bytes unasked')))
  }

  /** Ends the session at once because of `reason`. */
  abandon(reason: unknown): void {
    this.#fail(reason)
  }

  async request(request: TransportRequest, signal: AbortSignal): Promise<RawReply> {
    const phase = request.kind === 'register' ? 'register' : 'poll'
    if (this.#waiter !== undefined) {
      throw new DpsError('TRANSPORT_FAILED', phase, 'a session takes one request at a time', {
        hint: 'Wait for the reply to the request before, or open a second session.',
      })
    }
    if (signal.aborted) {
      this.#fail(signal.reason)
      throw signal.reason
    }
    // Closed, or about to be: the reply before may have said that it was the last.
    if (!this.#socket.writable) {
      throw new DpsError('CONNECTION_LOST', phase, 'the connection had ended before the request', {
        cause: this.#closed ? (this.#ending ?? this.#lost('was closed by this side')) : undefined,
      })
    }
    this.#phase = phase
    const reply = this.#wait(signal)
    void this.#send(request)
    return reply
  }

  close(): Promise<void> {
    if (!this.#closed) {
      // With a request under way, or where the server does not read, ending politely could take for ever.
      const polite = this.#outgoing === undefined && this.#socket.writableLength === 0
      // No wait for the server to end its side: that would cost a round trip.
      if (polite) this.#socket.end(() => this.#socket.destroy())
      else this.#socket.destroy()
      this.#end()
    }
    return this.#socketClosed
  }

  async #send(request: TransportRequest): Promise<void> {
    try {
      this.#token ??= { value: await this.#context.token() }
    } catch (error) {
      this.#fail(error)
      return
    }
    if (this.#closed) return
    try {
      const body = 'body' in request ? request.body : undefined
      const outgoing = startRequest(this.#options(request, this.#token.value))
      this.#outgoing = outgoing
      let interim = 0
      outgoing.on('information', () => {
        if (++interim > MAX_INTERIM_RESPONSES) this.#fail(this.#violation('interim responses without end'))
      })
      // Not listened to, the event would be the end of the socket and nothing more.
      outgoing.on('upgrade', () => this.#fail(this.#switched()))
      outgoing.on('response', (response) => this.#receive(response))
      // After the reply as well: bytes behind it may be no HTTP.
      outgoing.on('error', (error) => this.#fail(this.#explain(error)))
      outgoing.end(body)
    } catch (cause) {
      // Node refuses what would break out of a header or of the request line; its message quotes no value.
      this.#fail(
        new DpsError('OPTION_INVALID', 'config', 'the token or another value cannot be sent over HTTP', {
          cause,
        }),
      )
    }
  }

  #options(request: TransportRequest, token: string | undefined): RequestOptions {
    const { host, port, userAgent } = this.#context
    const [method, path] =
      request.kind === 'register'
        ? (['PUT', registerPath(this.#context)] as const)
        : request.kind === 'query'
          ? (['GET', operationPath(this.#context, request.operationId)] as const)
          : (['POST', lookupPath(this.#context)] as const)
    this.#agent ??= new SingleSocketAgent(this.#socket)
    return {
      agent: this.#agent,
      // `Host` is made of these; the agent has the socket already.
      host,
      ...(port !== undefined && { port }),
      method,
      path,
      maxHeaderSize: MAX_HEADER_BYTES,
      insecureHTTPParser: false,
      headers: {
        Accept: 'application/json',
        'User-Agent': userAgent,
        ...(token !== undefined && { Authorization: token }),
        ...('body' in request && {
          'Content-Type': 'application/json; charset=utf-8',
          'Content-Length': Buffer.byteLength(request.body),
        }),
      },
    }
  }

  #receive(response: IncomingMessage): void {
    // Also where it ends too early.
    response.on('error', (cause) => this.#lose('broke within the reply', cause))
    const refusal = this.#refuse(response)
    if (refusal !== undefined) {
      this.#fail(refusal)
      return
    }
    const chunks: Buffer[] = []
    let length = 0
    response.on('data', (chunk: Buffer) => {
      length += chunk.length
      if (length <= this.#context.maxReplyBytes) chunks.push(chunk)
      else
        this.#fail(this.#tooLarge(`is larger than the ${this.#context.maxReplyBytes} bytes that are taken`))
    })
    response.on('end', () => {
      this.#outgoing = undefined
      const body = new Uint8Array(length)
      let at = 0
      for (const chunk of chunks) {
        body.set(chunk, at)
        at += chunk.length
      }
      this.#settle()?.resolve({
        status: response.statusCode!,
        retryAfter: only(response, 'retry-after'),
        date: only(response, 'date'),
        body,
      })
    })
  }

  /** What can be said against a reply by its head alone. */
  #refuse(response: IncomingMessage): DpsError | undefined {
    const { headers, statusCode } = response
    if (statusCode === 101) return this.#switched()
    // None was asked for, and a few kilobytes could unfold into any number.
    const encoding = headers['content-encoding']
    if (encoding !== undefined && encoding.trim().toLowerCase() !== 'identity') {
      return new DpsError(
        'REPLY_MALFORMED',
        'parse',
        `the reply has the Content-Encoding "${printable(encoding, 40)}" where only identity is accepted`,
      )
    }
    const transfer = headers['transfer-encoding']
    if (transfer !== undefined && transfer.trim().toLowerCase() !== 'chunked') {
      return this.#violation(`the Transfer-Encoding "${printable(transfer, 40)}"`)
    }
    const announced = Number(headers['content-length'] ?? 0)
    const { maxReplyBytes } = this.#context
    return announced > maxReplyBytes
      ? this.#tooLarge(`is announced with ${announced} bytes; at most ${maxReplyBytes} are taken`)
      : undefined
  }

  #explain(error: NodeJS.ErrnoException & { rawPacket?: unknown }): DpsError {
    const { code } = error
    if (!code?.startsWith('HPE_')) return this.#lost('broke', error)
    // The reply, or the rest of one: nothing to be logged with an error.
    delete error.rawPacket
    return code === 'HPE_HEADER_OVERFLOW'
      ? this.#tooLarge(`has headers of more than ${MAX_HEADER_BYTES} bytes`, error)
      : this.#violation(`what is no HTTP/1.1: ${code}`, error)
  }

  #wait(signal: AbortSignal): Promise<RawReply> {
    return new Promise((resolve, reject) => {
      const onAbort = () => this.#fail(signal.reason)
      signal.addEventListener('abort', onAbort, { once: true })
      this.#waiter = { resolve, reject, signal, onAbort }
    })
  }

  #settle(): Waiter | undefined {
    const waiter = this.#waiter
    this.#waiter = undefined
    waiter?.signal.removeEventListener('abort', waiter.onAbort)
    return waiter
  }

  #lose(how: string, cause?: unknown): void {
    if (!this.#closed) this.#fail(this.#lost(how, cause))
  }

  #fail(reason: unknown): void {
    if (this.#closed) return
    this.#socket.destroy()
    this.#end(reason)
  }

  /** Nothing changes after this. Without a reason it was closed by this side. */
  #end(reason?: unknown): void {
    this.#closed = true
    this.#ending = reason
    // An error has a stack, which is not collected for nobody.
    if (this.#waiter !== undefined) this.#settle()?.reject(reason ?? this.#lost('was closed by this side'))
  }

  #lost(how: string, cause?: unknown): DpsError {
    return new DpsError(
      'CONNECTION_LOST',
      this.#phase,
      `the connection ${how} in phase ${this.#phase}`,
      cause === undefined ? {} : { cause },
    )
  }

  #violation(what: string, cause?: unknown): DpsError {
    return new DpsError(
      'PROTOCOL_VIOLATION',
      this.#phase,
      `the server sent ${what}`,
      cause === undefined ? {} : { cause },
    )
  }

  #switched(): DpsError {
    return this.#violation('101 where no other protocol was asked for')
  }

  #tooLarge(how: string, cause?: unknown): DpsError {
    return new DpsError(
      'REPLY_TOO_LARGE',
      this.#phase,
      `the reply ${how}`,
      cause === undefined ? {} : { cause },
    )
  }
}

/** Gives the one socket to the first request and keeps it for the next; there is no second. */
class SingleSocketAgent extends Agent {
  #socket: TLSSocket | undefined

  constructor(socket: TLSSocket) {
    super({ keepAlive: true, maxSockets: 1 })
    this.#socket = socket
  }

  override createConnection(
    _options: RequestOptions,
    callback?: (error: Error | null, stream: Duplex) => void,
  ): Duplex | undefined {
    const socket = this.#socket
    this.#socket = undefined
    if (socket === undefined) {
      // With an error there is no stream, which the type does not know.
      callback?.(
        Object.assign(new Error('the connection is gone'), { code: 'ECONNRESET' }),
        undefined as never,
      )
    }
    return socket
  }
}

/** A header that is there once; one that is repeated says nothing certain. */
function only(response: IncomingMessage, name: string): string | undefined {
  const values = response.headersDistinct[name]
  return values?.length === 1 ? values[0] : undefined
}
