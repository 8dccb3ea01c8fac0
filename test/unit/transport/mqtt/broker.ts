import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import { generate, type Packet, parser, writeToStream } from 'mqtt-packet'
import type { DpsPhase } from '../../../../src/errors.ts'
import { mqttTransport } from '../../../../src/transport/mqtt/mqtt.ts'
import type { TransportContext, TransportSession } from '../../../../src/transport/transport.ts'

writeToStream.cacheNumbers = false

/** The server's end of one connection, played by the test. */
export interface Peer {
  readonly socket: tls.TLSSocket
  /** Every byte the client has sent so far. */
  received(): Buffer
  /** The same as it came: Node tells of each TLS record by itself. */
  readonly chunks: readonly Buffer[]
  /** The next packet the client sends; it must be of this kind. */
  expect<C extends Packet['cmd']>(cmd: C): Promise<Extract<Packet, { cmd: C }>>
  /** Packets and raw bytes, in one write. */
  send(...items: (Packet | Buffer)[]): void
  /** Ends the connection with a TCP reset. */
  reset(): void
  readonly closed: Promise<unknown>
}

export interface Broker {
  readonly port: number
  readonly ca: string
  accept(): Promise<Peer>
  stop(): Promise<void>
}

/** A TLS server with a certificate made for it, that answers nothing by itself. */
export async function startBroker(): Promise<Broker> {
  const folder = mkdtempSync(join(tmpdir(), 'mqtt-broker-'))
  const file = (name: string) => join(folder, name)
  execFileSync('openssl', [
    ...'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=broker'.split(' '),
    ...['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', file('key'), '-out', file('cert')],
  ])
  const ca = readFileSync(file('cert'), 'utf8')
  const key = readFileSync(file('key'), 'utf8')
  rmSync(folder, { recursive: true })

  const waiting: ((peer: Peer) => void)[] = []
  const tcpSockets = new Map<number, net.Socket>()
  const server = tls.createServer({ key, cert: ca, maxVersion: 'TLSv1.2' }, (socket) => {
    const port = socket.remotePort!
    waiting.shift()!(createPeer(socket, tcpSockets.get(port)!))
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

function createPeer(socket: tls.TLSSocket, tcp: net.Socket): Peer {
  const chunks: Buffer[] = []
  const packets: Packet[] = []
  const reading = parser({ protocolVersion: 4 })
  let wake = () => {}
  reading.on('packet', (packet) => {
    packets.push(packet)
    wake()
  })
  reading.on('error', (error) => socket.destroy(error))
  socket.on('data', (chunk) => {
    chunks.push(chunk)
    reading.parse(chunk)
  })
  socket.on('error', () => {})
  const closed = new Promise((resolve) => socket.on('close', resolve))
  socket.on('close', () => wake())
  return {
    socket,
    closed,
    reset: () => {
      tcp.resetAndDestroy()
    },
    received: () => Buffer.concat(chunks),
    chunks,
    expect: async (cmd) => {
      while (packets.length === 0) {
        if (socket.destroyed) throw new Error(`the client left before it sent ${cmd}`)
        await new Promise<void>((resolve) => {
          wake = resolve
        })
      }
      const packet = packets.shift()!
      if (packet.cmd !== cmd) throw new Error(`the client sent ${packet.cmd}, not ${cmd}`)
      return packet as never
    },
    send: (...items) => {
      socket.write(Buffer.concat(items.map((item) => (Buffer.isBuffer(item) ? item : generate(item)))))
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

/** Opens the transport to `broker` as the dialer would: TLS on top of a connected socket. */
export async function connect(broker: Broker, options: Partial<TransportContext> = {}): Promise<Connection> {
  const controller = new AbortController()
  const phases: DpsPhase[] = []
  const accepted = broker.accept()
  let socket!: tls.TLSSocket
  let socketClosed!: Promise<unknown>
  let dialled = () => {}
  const handedOver = new Promise<void>((resolve) => {
    dialled = resolve
  })
  const opening = mqttTransport().open({
    host: '127.0.0.1',
    port: broker.port,
    idScope: '0ne00000001',
    registrationId: 'my-device',
    apiVersion: '2019-03-31',
    userAgent: 'test/1.0',
    maxReplyBytes: 8192,
    signal: controller.signal,
    enter: (phase) => phases.push(phase),
    token: async () => undefined,
    dial: async (port) => {
      const tcp = net.connect({ port, host: '127.0.0.1', noDelay: true })
      await once(tcp, 'connect')
      socket = tls.connect({ socket: tcp, host: '127.0.0.1', ca: broker.ca, maxVersion: 'TLSv1.2' })
      socketClosed = Promise.all([once(tcp, 'close'), new Promise((resolve) => socket.on('close', resolve))])
      await once(socket, 'secureConnect')
      dialled()
      return {
        socket,
        tls: { protocol: 'TLSv1.2', cipher: 'suite', curve: 'X25519', root: 'broker', resumed: false },
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

/** Connects and answers as the service does, up to a session that takes requests. */
export async function openSession(
  broker: Broker,
  options: Partial<TransportContext> = {},
): Promise<Connection & { session: TransportSession }> {
  const connection = await connect(broker, options)
  const { peer } = connection
  await peer.expect('connect')
  peer.send(CONNACK)
  await peer.expect('subscribe')
  peer.send(SUBACK)
  return { ...connection, session: await connection.opening }
}

export const CONNACK: Packet = { cmd: 'connack', returnCode: 0, sessionPresent: false }
export const SUBACK: Packet = { cmd: 'suback', messageId: 1, granted: [1] }

/** A reply as the service sends it: QoS 0 unless a packet id is given. */
export function reply(rid: string, body = '{}', status: number | string = 200, packetId?: number): Packet {
  return publish(`$dps/registrations/res/${status}/?$rid=${rid}`, body, packetId)
}

export function publish(topic: string, payload: string | Buffer, packetId?: number): Packet {
  return {
    cmd: 'publish',
    topic,
    payload,
    qos: packetId === undefined ? 0 : 1,
    dup: false,
    retain: false,
    ...(packetId !== undefined && { messageId: packetId }),
  }
}

/** The request id in the topic of a request. */
export function ridOf(packet: { readonly topic: string }): string {
  return /[?&]\$rid=([^&]+)/.exec(packet.topic)![1]!
}
