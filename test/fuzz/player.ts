import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import type net from 'node:net'
import tls from 'node:tls'
import { parser } from 'mqtt-packet'
import { createPki } from '../../src/emulator/index.ts'
import type { TransportName } from '../../src/index.ts'

/** What the emulator sent in one call, as record.mjs has written it down. */
export interface Transcript {
  readonly name: string
  readonly transport: TransportName
  /** Status of the registration, or code of the error. */
  readonly outcome: string
  /** The first request id in it (MQTT), to be replaced by that of the request. */
  readonly requestId?: string
  /** `Sec-WebSocket-Accept` in it. */
  readonly accept?: string
  /** One for each time the client waits, in order; one character for each byte. */
  readonly answers: readonly string[]
}

const CORPUS = new URL('corpus/', import.meta.url)

export const TRANSCRIPTS: readonly Transcript[] = readdirSync(CORPUS)
  .sort()
  .map((file) => ({ name: file.slice(0, -5), ...JSON.parse(readFileSync(new URL(file, CORPUS), 'utf8')) }))

/** How a transcript is played. */
export interface Performance {
  readonly transcript: Transcript
  /** Which answer is not as it was recorded. */
  readonly at: number
  readonly mutate: (answer: Buffer) => Buffer
  /** Whether all later answers follow at once, before anybody asks. */
  readonly rest: boolean
  /** Length of the pieces in which the answer is sent. */
  readonly piece: number
}

/**
 * A server that plays transcripts: it answers as recorded up to one answer, which it sends as it was told to, and then
 * ends the connection. So the client always has an end to come to, and time plays no part.
 */
export class Player {
  readonly pki = createPki()
  readonly #sockets = new Set<net.Socket>()
  #server: tls.Server | undefined
  #performance: Performance | undefined
  #gone = () => {}

  async start(): Promise<number> {
    const { server } = await this.pki
    this.#server = tls.createServer({ cert: server.chainPem, key: server.keyPem, maxVersion: 'TLSv1.2' })
    this.#server.on('secureConnection', (socket) => this.#play(socket, this.#performance!))
    this.#server.on('connection', (socket: net.Socket) => {
      this.#sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => {
        this.#sockets.delete(socket)
        this.#gone()
      })
    })
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
    return (this.#server.address() as net.AddressInfo).port
  }

  perform(performance: Performance): void {
    this.#performance = performance
  }

  /** Resolves when the client has closed every connection. */
  async gone(): Promise<void> {
    while (this.#sockets.size > 0) {
      await new Promise<void>((resolve) => {
        this.#gone = resolve
      })
    }
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    this.#server?.close()
    if (this.#server !== undefined) await once(this.#server, 'close')
  }

  #play(socket: tls.TLSSocket, { transcript, at, mutate, rest, piece }: Performance): void {
    socket.on('error', () => {})
    let next = 0
    const replaced = new Map<string, string>()
    const answer = (index: number): Buffer => {
      let text = transcript.answers[index] ?? ''
      for (const [recorded, now] of replaced) text = text.replaceAll(recorded, now)
      return Buffer.from(text, 'latin1')
    }
    const asked = (): void => {
      const index = next++
      if (index < at) socket.write(answer(index))
      if (index !== at) return
      let bytes = mutate(answer(index))
      if (rest) {
        const later = transcript.answers.slice(index + 1).map((_, offset) => answer(index + 1 + offset))
        bytes = Buffer.concat([bytes, ...later])
      }
      for (let from = 0; from < bytes.length; from += piece) socket.write(bytes.subarray(from, from + piece))
      socket.end()
    }
    const mqtt = parser({ protocolVersion: 4 })
    mqtt.on('packet', (packet) => {
      if (packet.cmd === 'publish') {
        // Same length, so that the lengths around it stay true; the next request counts on from it.
        const id = /\$rid=([0-9a-z]+)/.exec(packet.topic)?.[1] ?? ''
        const prefix = transcript.requestId?.slice(0, -1)
        if (prefix !== undefined) replaced.set(prefix, id.slice(0, -1))
      }
      if (packet.cmd === 'connect' || packet.cmd === 'subscribe' || packet.cmd === 'publish') asked()
    })
    let unread: Buffer = Buffer.alloc(0)
    let upgraded = false
    socket.on('data', (chunk: Buffer) => {
      if (transcript.transport === 'mqtt') {
        mqtt.parse(chunk)
        return
      }
      unread = Buffer.concat([unread, chunk])
      for (;;) {
        if (upgraded) {
          const frame = unmask(unread)
          if (frame === undefined) return
          unread = unread.subarray(frame.length)
          if (frame.opcode === BINARY) mqtt.parse(frame.payload)
          continue
        }
        const request = requestIn(unread)
        if (request === undefined) return
        unread = unread.subarray(request.length)
        if (transcript.transport === 'mqtt-ws') {
          upgraded = true
          if (transcript.accept !== undefined) replaced.set(transcript.accept, acceptFor(request.head))
        }
        asked()
      }
    })
  }
}

const BINARY = 2

/** RFC 6455 section 4.2.2. */
function acceptFor(head: string): string {
  const key = /^sec-websocket-key: *(\S+)/im.exec(head)?.[1] ?? ''
  return createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64')
}

function requestIn(bytes: Buffer): { head: string; length: number } | undefined {
  const end = bytes.indexOf('\r\n\r\n')
  if (end < 0) return undefined
  const head = bytes.subarray(0, end).toString('latin1')
  const length = end + 4 + Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0)
  return bytes.length < length ? undefined : { head, length }
}

/** The first frame of a client, which sends short ones (RFC 6455 section 5.2). */
function unmask(bytes: Buffer): { opcode: number; payload: Buffer; length: number } | undefined {
  if (bytes.length < 2) return undefined
  const short = bytes[1]! & 0x7f
  const mask = short === 126 ? 4 : 2
  if (bytes.length < mask + 4) return undefined
  const size = short === 126 ? bytes.readUInt16BE(2) : short
  const length = mask + 4 + size
  if (bytes.length < length) return undefined
  const payload = Buffer.from(bytes.subarray(mask + 4, length))
  for (let i = 0; i < size; i++) payload[i]! ^= bytes[mask + (i & 3)]!
  return { opcode: bytes[0]! & 0x0f, payload, length }
}
