import { EventEmitter } from 'node:events'
import type { ClientRequest, IncomingMessage } from 'node:http'
import type { TLSSocket } from 'node:tls'
import WebSocket from 'ws'
import { DpsError, type DpsPhase } from '../../errors.ts'
import { printable } from '../../printable.ts'
import { authority } from '../../protocol/http-connect.ts'
import { parseRetryAfter } from '../../protocol/retry-after.ts'
import { classifyRefusal } from '../../protocol/status.ts'
import type { TransportContext } from '../transport.ts'
import type { ByteStream } from './session.ts'

/** The same for the provisioning service and for a hub; `$` is sent as it is. */
const PATH = '/$iothub/websocket'

const SUB_PROTOCOL = 'mqtt'

/** Room in a message beside the largest reply: its topic, and the acknowledgements that may share the message. */
const MESSAGE_HEADROOM_BYTES = 4096

/** Status line and headers of the answer to the upgrade. */
const MAX_HEADER_BYTES = 16 * 1024

/** Interim responses (1xx) before the answer; the service sends none. */
const MAX_INTERIM_RESPONSES = 8

/**
 * The bytes of the binary messages of one WebSocket (RFC 6455), on a socket that is connected and verified already.
 * What is written before the server has opened the WebSocket is sent as soon as it has.
 */
export class WebSocketStream extends EventEmitter implements ByteStream {
  readonly #socket: TLSSocket
  readonly #webSocket: WebSocket
  /** Undefined once the WebSocket is open. */
  #unsent: Uint8Array[] | undefined = []

  /** Takes over `socket` and asks for the upgrade. Listeners, of `error` above all, have to be there in the same turn. */
  constructor(
    socket: TLSSocket,
    {
      host,
      port,
      userAgent,
      maxReplyBytes,
    }: Pick<TransportContext, 'host' | 'port' | 'userAgent' | 'maxReplyBytes'>,
  ) {
    super()
    this.#socket = socket
    // These stay for as long as the socket does: an error that nobody listens to would end the process.
    socket.on('error', (error) => this.emit('error', error))
    socket.on('end', () => this.emit('end'))
    socket.on('close', () => this.emit('close'))
    const options = {
      createConnection: () => socket,
      finishRequest: (request: ClientRequest) => this.#request(request),
      headers: { 'User-Agent': userAgent },
      maxHeaderSize: MAX_HEADER_BYTES,
      insecureHTTPParser: false,
      followRedirects: false,
      perMessageDeflate: false,
      maxPayload: maxReplyBytes + MESSAGE_HEADROOM_BYTES,
    }
    this.#webSocket = new WebSocket(`wss://${authority(host, port)}${PATH}`, SUB_PROTOCOL, options)
    this.#webSocket.on('error', (error) => this.emit('error', error))
    this.#webSocket.on('unexpected-response', (_, response) => this.emit('error', refusal(response)))
    this.#webSocket.on('open', () => this.#opened())
    this.#webSocket.on('message', (data, isBinary) => {
      if (isBinary) this.emit('data', data)
      else this.emit('error', new Error('a text message where MQTT is binary [MQTT-6.0.0-1]'))
    })
  }

  get destroyed(): boolean {
    return this.#socket.destroyed
  }

  get writableLength(): number {
    const unsent = this.#unsent?.reduce((sum, bytes) => sum + bytes.length, 0) ?? 0
    return this.#socket.writableLength + unsent
  }

  write(bytes: Uint8Array): void {
    if (this.#unsent === undefined) this.#webSocket.send(bytes)
    else this.#unsent.push(bytes)
  }

  end(bytes: Uint8Array, callback: () => void): void {
    this.write(bytes)
    // `ws` now gives the server time to close its side; the end of the socket is what is waited for here instead.
    this.#webSocket.close(1000)
    this.#socket.end(callback)
  }

  destroy(): void {
    this.#socket.destroy()
  }

  /**
   * What an error of this stream means: whoever has no system's code was found by the WebSocket protocol itself.
   */
  explain(error: Error & { code?: unknown }, phase: DpsPhase): DpsError | undefined {
    if (DpsError.is(error)) return error
    const code = typeof error.code === 'string' ? error.code : undefined
    if (code === 'WS_ERR_UNSUPPORTED_MESSAGE_LENGTH' && phase !== 'connect' && phase !== 'subscribe') {
      return new DpsError(
        'REPLY_TOO_LARGE',
        phase,
        'the server sent a message larger than any reply may be',
        {
          cause: error,
        },
      )
    }
    if (code !== undefined && !/^(?:WS_ERR|HPE)_/.test(code)) return undefined
    return new DpsError(
      'PROTOCOL_VIOLATION',
      phase,
      `the server broke the WebSocket protocol: ${printable(error.message, 120)}`,
      { cause: error },
    )
  }

  #request(request: ClientRequest): void {
    let interim = 0
    request.on('information', () => {
      if (++interim > MAX_INTERIM_RESPONSES) this.emit('error', new Error('interim responses without end'))
    })
    request.end()
  }

  #opened(): void {
    const unsent = this.#unsent ?? []
    this.#unsent = undefined
    for (const bytes of unsent) this.#webSocket.send(bytes)
    // Behind the listener of `ws`: it answers a close frame at once, but tells of it only when the server has gone.
    this.#socket.on('data', () => {
      if (this.#webSocket.readyState !== WebSocket.OPEN) this.emit('end')
    })
  }
}

/** The server answered the upgrade with something else than 101. It is never followed to another place. */
function refusal(response: IncomingMessage): Error {
  const status = response.statusCode!
  if (status === 101) return new Error('101 that names no protocol')
  const known = classifyRefusal(status, undefined).code
  const retryAfter = response.headersDistinct['retry-after']
  const misleading = known === 'NOT_FOUND' || known === 'BAD_REQUEST' || known === 'CONFLICT'
  return new DpsError(
    misleading ? 'REQUEST_REFUSED' : known,
    'connect',
    `the server answered ${status} to the WebSocket upgrade`,
    {
      ...((misleading || known === 'REQUEST_REFUSED') && {
        hint: 'This server opens no WebSocket: check `host` and `port`, or use the transport `mqtt` or `https`.',
      }),
      retryAfterMs: retryAfter?.length === 1 ? parseRetryAfter(retryAfter[0]) : undefined,
    },
  )
}
