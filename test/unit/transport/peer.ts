import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import { generate, type Packet, parser, writeToStream } from 'mqtt-packet'
import type { DpsPhase } from '../../../src/errors.ts'
import type { Transport, TransportContext, TransportSession } from '../../../src/transport/transport.ts'

writeToStream.cacheNumbers = false

/** A request as it came off the wire. */
export interface HttpRequest {
  readonly method: string
  readonly target: string
  /** Field lines as they were sent, in order. */
  readonly lines: readonly string[]
  /** By name in lower case. */
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/** The server's end of one connection, played by the test: it understands bytes and answers nothing by itself. */
export class Peer {
  readonly socket: tls.TLSSocket
  readonly closed: Promise<unknown>
  readonly #tcp: net.Socket
  #unread: Buffer = Buffer.alloc(0)
  #wake = () => {}
  readonly #packets: Packet[] = []
  readonly #parser = parser({ protocolVersion: 4 })
  /** Opcodes of the frames the client has sent. */
  readonly opcodes: number[] = []

  constructor(socket: tls.TLSSocket, tcp: net.Socket) {
    this.socket = socket
    this.#tcp = tcp
    this.#parser.on('packet', (packet) => this.#packets.push(packet))
    socket.on('data', (chunk) => {
      this.#unread = Buffer.concat([this.#unread, chunk])
      this.#wake()
    })
    socket.on('error', () => {})
    this.closed = new Promise((resolve) => socket.on('close', resolve))
    socket.on('close', () => this.#wake())
  }

  /** What has come and was not read yet. */
  get unread(): Buffer {
    return this.#unread
  }

  async #read<T>(
    what: string,
    take: (bytes: Buffer) => { value: T; length: number } | undefined,
  ): Promise<T> {
    for (;;) {
      const taken = take(this.#unread)
      if (taken !== undefined) {
        this.#unread = this.#unread.subarray(taken.length)
        return taken.value
      }
      if (this.socket.destroyed) throw new Error(`the client left before it sent ${what}`)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  /** The next whole HTTP request. */
  request(): Promise<HttpRequest> {
    return this.#read('a request', (bytes) => {
      const end = bytes.indexOf('\r\n\r\n')
      if (end < 0) return undefined
      const [first = '', ...lines] = bytes.subarray(0, end).toString('latin1').split('\r\n')
      const headers = Object.fromEntries(
        lines.map((line) => [
          line.slice(0, line.indexOf(':')).toLowerCase(),
          line.slice(line.indexOf(':') + 1).trim(),
        ]),
      )
      const length = end + 4 + Number(headers['content-length'] ?? 0)
      if (bytes.length < length) return undefined
      const [method = '', target = '', version = ''] = first.split(' ')
      if (version !== 'HTTP/1.1') throw new Error(`not a request line: ${first}`)
      return {
        value: { method, target, lines, headers, body: bytes.subarray(end + 4, length).toString() },
        length,
      }
    })
  }

  send(...items: (string | Buffer)[]): void {
    this.socket.write(Buffer.concat(items.map((item) => Buffer.from(item as string))))
  }

  /** Bytes that came, those of TLS itself included. */
  get bytesRead(): number {
    return this.#tcp.bytesRead
  }

  /** Ends the connection with a TCP reset. */
  reset(): void {
    this.#tcp.resetAndDestroy()
  }

  /** Ends TCP in good order and TLS not at all: without close_notify, as someone in between would have to. */
  cut(): void {
    this.#tcp.end()
  }

  /** Answers the upgrade as RFC 6455 section 4.2.2 says, with some lines replaced or, by undefined, left out. */
  async upgrade(lines: Readonly<Record<string, string | undefined>> = {}, after: Buffer = Buffer.alloc(0)) {
    const request = await this.request()
    const fields = {
      Upgrade: 'websocket',
      Connection: 'Upgrade',
      'Sec-WebSocket-Accept': acceptKey(request),
      'Sec-WebSocket-Protocol': 'mqtt',
      ...lines,
    }
    const head = Object.entries(fields).flatMap(([name, value]) =>
      value === undefined ? [] : `${name}: ${value}\r\n`,
    )
    this.send(`HTTP/1.1 101 Switching Protocols\r\n${head.join('')}\r\n`, after)
    return request
  }

  /** The next MQTT packet in the client's binary messages; it must be of this kind. */
  async packet<C extends Packet['cmd']>(cmd: C): Promise<Extract<Packet, { cmd: C }>> {
    while (this.#packets.length === 0) {
      const { opcode, payload } = await this.frame()
      if (opcode === 1) throw new Error('the client sent a text message')
      // Others are control frames, which may come at any time.
      if (opcode === 2) this.#parser.parse(payload)
    }
    const packet = this.#packets.shift()!
    if (packet.cmd !== cmd) throw new Error(`the client sent ${packet.cmd}, not ${cmd}`)
    return packet as never
  }

  /** The next frame the client sends, unmasked. */
  frame(): Promise<{ opcode: number; payload: Buffer }> {
    return this.#read('a frame', (bytes) => {
      if (bytes.length < 6) return undefined
      if (bytes[1]! < 0x80) throw new Error('the client sent a frame without mask')
      const short = bytes[1]! & 0x7f
      if (short === 127) throw new Error('no such frame was expected')
      const head = short === 126 ? 8 : 6
      const size = short === 126 ? bytes.readUInt16BE(2) : short
      if (bytes.length < head + size) return undefined
      const mask = bytes.subarray(head - 4, head)
      const payload = Buffer.from(bytes.subarray(head, head + size)).map((byte, i) => byte ^ mask[i % 4]!)
      const opcode = bytes[0]! & 0x0f
      this.opcodes.push(opcode)
      return { value: { opcode, payload: Buffer.from(payload) }, length: head + size }
    })
  }

  /** Packets and raw MQTT bytes in one binary message. */
  message(...items: (Packet | Buffer)[]): void {
    this.send(frame(Buffer.concat(items.map((item) => (Buffer.isBuffer(item) ? item : generate(item))))))
  }
}

export interface FrameOptions {
  /** Default 2, binary. */
  opcode?: number
  fin?: boolean
  /** Bits 0x40, 0x20, 0x10. */
  reserved?: number
  mask?: boolean
}

/** A frame as a server sends it (RFC 6455 section 5.2), or as none may. */
export function frame(payload: Buffer | string, options: FrameOptions = {}): Buffer {
  const { opcode = 2, fin = true, reserved = 0, mask = false } = options
  const body = Buffer.from(payload as string)
  const first = (fin ? 0x80 : 0) | reserved | opcode
  const masked = mask ? 0x80 : 0
  const head =
    body.length < 126
      ? Buffer.from([first, masked | body.length])
      : body.length < 65_536
        ? Buffer.from([first, masked | 126, body.length >> 8, body.length & 0xff])
        : Buffer.from([first, masked | 127, 0, 0, 0, 0, ...new Uint8Array(4)])
  if (body.length >= 65_536) head.writeUInt32BE(body.length, 6)
  // A mask of zeros leaves the bytes as they are.
  return Buffer.concat([head, mask ? Buffer.alloc(4) : Buffer.alloc(0), body])
}

export function acceptKey(request: HttpRequest): string {
  const guid = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
  return createHash('sha1')
    .update(request.headers['sec-websocket-key'] + guid)
    .digest('base64')
}

export interface PeerServer {
  readonly port: number
  readonly ca: string
  accept(): Promise<Peer>
  stop(): Promise<void>
}

/** A TLS server with a certificate made for it. */
export async function startPeerServer(): Promise<PeerServer> {
  const folder = mkdtempSync(join(tmpdir(), 'transport-peer-'))
  const file = (name: string) => join(folder, name)
  execFileSync('openssl', [
    ...'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=peer'.split(' '),
    ...['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', file('key'), '-out', file('cert')],
  ])
  const ca = readFileSync(file('cert'), 'utf8')
  const key = readFileSync(file('key'), 'utf8')
  rmSync(folder, { recursive: true })

  const waiting: ((peer: Peer) => void)[] = []
  const tcpSockets = new Map<number, net.Socket>()
  const server = tls.createServer({ key, cert: ca, maxVersion: 'TLSv1.2', noDelay: true }, (socket) => {
    const port = socket.remotePort!
    waiting.shift()!(new Peer(socket, tcpSockets.get(port)!))
    tcpSockets.delete(port)
  })
  server.on('connection', (tcp) => {
    tcp.on('error', () => {})
    tcpSockets.set(tcp.remotePort!, tcp)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as net.AddressInfo).port,
    ca,
    accept: () => new Promise((resolve) => waiting.push(resolve)),
    stop: async () => {
      server.close()
      await once(server, 'close')
    },
  }
}

export interface Connection {
  readonly peer: Peer
  readonly opening: Promise<TransportSession>
  readonly controller: AbortController
  /** Phases as they were entered. */
  readonly phases: DpsPhase[]
  /** The client's end. */
  readonly socket: tls.TLSSocket
  /** When the client's end has been given back to the system. */
  readonly socketClosed: Promise<unknown>
}

/** Opens `transport` to `server` as the dialer would: TLS on top of a connected socket. */
export async function connect(
  server: PeerServer,
  transport: Transport,
  options: Partial<TransportContext> = {},
): Promise<Connection> {
  const controller = new AbortController()
  const phases: DpsPhase[] = []
  const accepted = server.accept()
  let socket!: tls.TLSSocket
  let socketClosed!: Promise<unknown>
  let dialled = () => {}
  const handedOver = new Promise<void>((resolve) => {
    dialled = resolve
  })
  const opening = transport.open({
    host: 'dps.test',
    port: undefined,
    idScope: '0ne00000001',
    registrationId: 'my-device',
    apiVersion: '2019-03-31',
    userAgent: 'test/1.0',
    maxReplyBytes: 8192,
    signal: controller.signal,
    enter: (phase) => phases.push(phase),
    token: async () => undefined,
    dial: async () => {
      const tcp = net.connect({ port: server.port, host: '127.0.0.1', noDelay: true })
      await once(tcp, 'connect')
      socket = tls.connect({ socket: tcp, host: '127.0.0.1', ca: server.ca, maxVersion: 'TLSv1.2' })
      socketClosed = Promise.all([once(tcp, 'close'), new Promise((resolve) => socket.on('close', resolve))])
      await once(socket, 'secureConnect')
      dialled()
      return {
        socket,
        tls: { protocol: 'TLSv1.2', cipher: 'suite', curve: 'X25519', root: 'peer', resumed: false },
        roundTrips: 3,
      }
    },
    ...options,
  })
  opening.catch(() => {})
  const peer = await accepted
  await handedOver
  // The promises between the dial and the session have run by the next turn of the event loop.
  await new Promise(setImmediate)
  return { peer, opening, controller, phases, socket, socketClosed }
}

/** Sockets of this process that keep it alive, without servers. */
export const openSockets = () =>
  process.getActiveResourcesInfo().filter((name) => /TCP|TLS/.test(name) && name !== 'TCPServerWrap')

/** Timers of this process that keep it alive. */
export const openTimers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
