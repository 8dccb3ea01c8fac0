import type { IncomingMessage } from 'node:http'
import { Duplex } from 'node:stream'
import { type WebSocket, WebSocketServer } from 'ws'
import type { FaultActions, FaultStep, RawContext } from '../faults.ts'
import type { Journal, LiveRecord } from '../journal.ts'
import type { PresentedCertificate } from '../service.ts'
import type { Front, FrontConnection } from './listener.ts'

const PATH = '/$iothub/websocket'
const SUB_PROTOCOL = 'mqtt'
const KEY = /^[A-Za-z0-9+/]{22}==$/
const UNSUPPORTED_DATA = 1003
const NORMAL_CLOSURE = 1000

/** Why an upgrade request is not granted, as HTTP says it. */
export interface UpgradeRefusal {
  readonly status: number
  readonly rule: string
  readonly headers?: Readonly<Record<string, string>>
}

/** The rule that an upgrade request breaks (RFC 6455, section 4.2.1), or undefined. */
export function upgradeRefusal({ method, url = '', headers }: IncomingMessage): UpgradeRefusal | undefined {
  if (url.split('?', 1)[0] !== PATH) return { status: 404, rule: `The path must be '${PATH}'.` }
  if (method !== 'GET') {
    return { status: 405, rule: 'An upgrade is requested with GET.', headers: { allow: 'GET' } }
  }
  if (headers.upgrade?.toLowerCase() !== 'websocket') {
    return { status: 400, rule: 'The upgrade must be to WebSocket.' }
  }
  if (headers['sec-websocket-version'] !== '13') {
    return {
      status: 426,
      rule: 'The version of WebSocket must be 13.',
      headers: { 'sec-websocket-version': '13', upgrade: 'websocket' },
    }
  }
  if (!KEY.test(headers['sec-websocket-key'] ?? '')) {
    return { status: 400, rule: "The field 'Sec-WebSocket-Key' must be 16 bytes in base64." }
  }
  const offered = (headers['sec-websocket-protocol'] ?? '').split(',').map((name) => name.trim())
  return offered.includes(SUB_PROTOCOL)
    ? undefined
    : { status: 400, rule: `The sub-protocol '${SUB_PROTOCOL}' must be offered.` }
}

/** Grants an upgrade request that {@link upgradeRefusal} found nothing wrong with, and hands its bytes to MQTT. */
export type WebSocketFront = (
  connection: FrontConnection,
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
) => void

/** @param largestMessage bytes; a message may hold several MQTT packets */
export function webSocketFront(mqtt: Front, journal: Journal, largestMessage = 262_144): WebSocketFront {
  const server = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: largestMessage,
    handleProtocols: () => SUB_PROTOCOL,
  })
  return (connection, request, socket, head) => {
    connection.record.transport = 'mqtt-ws'
    const violated = (rule: string): void => {
      journal.emit({ type: 'violation', connectionId: connection.record.id, rule })
    }
    server.handleUpgrade(request, socket, head, (webSocket) => {
      mqtt(new WebSocketConnection(connection, webSocket, violated, largestMessage), Buffer.alloc(0))
    })
  }
}

/** The binary messages of a WebSocket as one stream of bytes: an MQTT packet may span messages, or share one. */
class WebSocketStream extends Duplex {
  readonly #webSocket: WebSocket

  constructor(webSocket: WebSocket, violated: (rule: string) => void, largestMessage: number) {
    super()
    this.#webSocket = webSocket
    let refused = false
    webSocket.on('message', (data: Buffer, isBinary) => {
      if (refused) return
      if (isBinary) {
        if (!this.push(data)) webSocket.pause()
        return
      }
      refused = true
      violated('MQTT goes in binary frames [MQTT-6.0.0-1].')
      webSocket.close(UNSUPPORTED_DATA)
    })
    // It closes the connection by itself, with the status code that belongs to the error.
    webSocket.on('error', () =>
      violated(`Frames must be well-formed, and messages at most ${largestMessage} bytes.`),
    )
    webSocket.once('close', () => this.destroy())
    this.on('error', () => undefined)
  }

  override _read(): void {
    this.#webSocket.resume()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#webSocket.send(chunk, { binary: true }, () => undefined)
    done()
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#webSocket.close(NORMAL_CLOSURE)
    done()
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#webSocket.terminate()
    done(error)
  }
}

class WebSocketConnection implements FrontConnection {
  readonly stream: Duplex
  readonly #below: FrontConnection

  constructor(
    below: FrontConnection,
    webSocket: WebSocket,
    violated: (rule: string) => void,
    largestMessage: number,
  ) {
    this.#below = below
    this.stream = new WebSocketStream(webSocket, violated, largestMessage)
  }

  get record(): LiveRecord {
    return this.#below.record
  }

  get certificate(): PresentedCertificate | undefined {
    return this.#below.certificate
  }

  get mute(): boolean {
    return this.#below.mute
  }

  perform(action: FaultActions[FaultStep], context: RawContext): boolean {
    if (typeof action === 'object' && 'raw' in action && action.unframed !== true) {
      this.stream.write(typeof action.raw === 'function' ? action.raw(context) : action.raw)
      return true
    }
    return this.#below.perform(action, context)
  }

  hangUp(): void {
    this.stream.end()
  }
}
