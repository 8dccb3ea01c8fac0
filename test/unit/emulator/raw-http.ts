import type { IncomingHttpHeaders } from 'node:http'
import { Agent, request } from 'node:https'
import { createServer, type Socket, connect as tcpConnect } from 'node:net'
import { type ConnectionOptions, connect } from 'node:tls'
import type { Emulator } from '../../../src/emulator/index.ts'

export interface HttpReply {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
  readonly json: Record<string, unknown>
}

export interface HttpAsk {
  readonly sas?: string | undefined
  readonly headers?: Record<string, string | string[]>
  readonly body?: string | Buffer | undefined
}

const SCOPE = '/0ne00000000/registrations'
const VERSION = 'api-version=2019-03-31'

/** A device over HTTPS on one connection that stays open, which says exactly what a test tells it to. */
export class HttpDevice {
  readonly #emulator: Emulator
  readonly #agent: Agent
  readonly id: string
  readonly sas: string | undefined

  constructor(emulator: Emulator, id: string, identity: { sas?: string; cert?: string; key?: string } = {}) {
    const { sas, ...tls } = identity
    this.#emulator = emulator
    this.id = id
    this.sas = sas
    this.#agent = new Agent({ keepAlive: true, maxSockets: 1, ca: emulator.roots[0], ...tls })
  }

  /** Rejects with the error of the request or of the response. */
  ask(method: string, path: string, { sas, headers, body }: HttpAsk = {}): Promise<HttpReply> {
    return new Promise((resolve, reject) => {
      const outgoing = request({
        agent: this.#agent,
        host: this.#emulator.address,
        port: this.#emulator.port,
        servername: this.#emulator.host,
        method,
        path,
        headers: {
          host: this.#emulator.host,
          ...(sas === undefined ? {} : { authorization: sas }),
          ...(body === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) }),
          ...headers,
        },
      })
      outgoing.once('error', reject)
      outgoing.once('response', (response) => {
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.once('error', reject)
        response.once('end', () => {
          const bytes = Buffer.concat(chunks)
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            body: bytes,
            get json() {
              return JSON.parse(bytes.toString())
            },
          })
        })
      })
      outgoing.end(body)
    })
  }

  register(extra: object = {}, ask: HttpAsk = {}): Promise<HttpReply> {
    const path = `${SCOPE}/${encodeURIComponent(this.id)}/register?${VERSION}`
    const body = JSON.stringify({ registrationId: this.id, ...extra })
    return this.ask('PUT', path, { sas: this.sas, body, ...ask })
  }

  poll(operationId: string, ask: HttpAsk = {}): Promise<HttpReply> {
    const path = `${SCOPE}/${encodeURIComponent(this.id)}/operations/${operationId}?${VERSION}`
    return this.ask('GET', path, { sas: this.sas, ...ask })
  }

  lookup(extra: object = {}, ask: HttpAsk = {}): Promise<HttpReply> {
    const path = `${SCOPE}/${encodeURIComponent(this.id)}?${VERSION}`
    const body = JSON.stringify({ registrationId: this.id, ...extra })
    return this.ask('POST', path, { sas: this.sas, body, ...ask })
  }

  /** Registers and polls as often as told to; the last reply. */
  async registerFully(extra: object = {}): Promise<HttpReply> {
    let reply = await this.register(extra)
    while (reply.status === 202) reply = await this.poll(String(reply.json.operationId))
    return reply
  }

  close(): void {
    this.#agent.destroy()
  }
}

/** What comes back for these bytes until the emulator ends the connection. */
export function talk(
  emulator: Emulator,
  bytes: string | Buffer,
  options: ConnectionOptions = {},
): Promise<string> {
  return new Promise((resolve) => {
    let text = ''
    const socket = connect({
      host: emulator.address,
      port: emulator.port,
      servername: emulator.host,
      ca: emulator.roots[0],
      ...options,
    })
    socket.on('error', () => undefined)
    socket.setEncoding('utf8').on('data', (chunk) => {
      text += chunk
    })
    socket.once('close', () => resolve(text))
    socket.write(bytes)
  })
}

/** A relay to the emulator that keeps what it sends, as an eavesdropper sees it. */
export async function relay(emulator: Emulator): Promise<{
  readonly port: number
  /** Resolves with all bytes and how they ended. */
  readonly ended: Promise<{ bytes: Buffer; by: 'fin' | 'reset' }>
  close(): void
}> {
  const sockets = new Set<Socket>()
  let end: (end: { bytes: Buffer; by: 'fin' | 'reset' }) => void
  const ended = new Promise<{ bytes: Buffer; by: 'fin' | 'reset' }>((resolve) => {
    end = resolve
  })
  const server = createServer({ allowHalfOpen: true }, (device) => {
    const service = tcpConnect({ port: emulator.port, host: emulator.address, allowHalfOpen: true })
    const chunks: Buffer[] = []
    for (const socket of [device, service]) {
      sockets.add(socket)
      socket.on('error', () => undefined)
    }
    service.on('data', (chunk: Buffer) => chunks.push(chunk))
    service.once('end', () => end({ bytes: Buffer.concat(chunks), by: 'fin' }))
    service.once('error', () => {
      end({ bytes: Buffer.concat(chunks), by: 'reset' })
      device.destroy()
    })
    device.pipe(service)
    service.pipe(device)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    port: (server.address() as { port: number }).port,
    ended,
    close: () => {
      server.close()
      for (const socket of sockets) socket.destroy()
    },
  }
}

/** Content types of the TLS records in these bytes, and whether the last is whole (RFC 5246, section 6.2.1). */
export function recordTypes(bytes: Buffer): { types: number[]; whole: boolean } {
  const types: number[] = []
  let at = 0
  while (at + 5 <= bytes.length) {
    types.push(bytes[at] ?? 0)
    at += 5 + bytes.readUInt16BE(at + 3)
  }
  return { types, whole: at === bytes.length }
}
