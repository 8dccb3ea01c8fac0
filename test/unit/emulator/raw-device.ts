import { createHmac } from 'node:crypto'
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls'
import {
  generate,
  type IConnectPacket,
  type IPublishPacket,
  type Packet,
  parser,
  writeToStream,
} from 'mqtt-packet'
import type { Clock } from '../../../src/clock.ts'
import type { Emulator } from '../../../src/emulator/index.ts'

writeToStream.cacheNumbers = false

/** A device that says exactly what a test tells it to, true or not. */
export class RawDevice {
  readonly socket: TLSSocket
  readonly #parser = parser()
  readonly #received: Packet[] = []
  #waiting: (() => void) | undefined
  #ended = false
  error: string | undefined
  ticket: Buffer | undefined
  readonly closed: Promise<void>
  bytes = Buffer.alloc(0)
  chunks: number[] = []

  constructor(socket: TLSSocket) {
    this.socket = socket
    this.#parser.on('packet', (packet) => {
      this.#received.push(packet)
      this.#wake()
    })
    this.#parser.on('error', () => socket.destroy())
    socket.on('error', (error: NodeJS.ErrnoException) => {
      this.error = error.code
    })
    socket.on('session', (ticket) => {
      this.ticket = ticket
    })
    socket.on('data', (chunk: Buffer) => {
      this.bytes = Buffer.concat([this.bytes, chunk])
      this.chunks.push(chunk.length)
      this.#parser.parse(chunk)
    })
    this.closed = new Promise((resolve) => {
      socket.once('close', () => {
        this.#ended = true
        this.#wake()
        resolve()
      })
    })
  }

  #wake(): void {
    this.#waiting?.()
    this.#waiting = undefined
  }

  /** The next packet, or undefined once the connection is closed. */
  async next(): Promise<Packet | undefined> {
    while (this.#received.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#waiting = resolve
      })
    }
    return this.#received.shift()
  }

  send(...packets: (Packet | Uint8Array)[]): void {
    const bytes = packets.map((packet) => (packet instanceof Uint8Array ? packet : generate(packet)))
    this.socket.write(Buffer.concat(bytes))
  }

  async publishReply(): Promise<IPublishPacket> {
    const packet = await this.next()
    if (packet?.cmd !== 'publish') throw new Error(`expected PUBLISH, got ${packet?.cmd ?? 'close'}`)
    return packet
  }
}

export interface DialOptions extends ConnectionOptions {
  port?: number
}

export async function dial(emulator: Emulator, options: DialOptions = {}): Promise<RawDevice> {
  const socket = connect({
    host: emulator.address,
    port: emulator.port,
    servername: emulator.host,
    ca: emulator.roots[0],
    ...options,
  })
  const device = new RawDevice(socket)
  await Promise.race([new Promise((resolve) => socket.once('secureConnect', resolve)), device.closed])
  return device
}

export interface Hello {
  id: string
  scope?: string
  apiVersion?: string
  sas?: string
  userName?: string
  packet?: Partial<IConnectPacket>
}

export function connectPacket({ id, scope, apiVersion, sas, userName, packet }: Hello): IConnectPacket {
  return {
    cmd: 'connect',
    protocolId: 'MQTT',
    protocolVersion: 4,
    clean: true,
    keepalive: 0,
    clientId: id,
    username:
      userName ?? `${scope ?? '0ne00000000'}/registrations/${id}/api-version=${apiVersion ?? '2019-03-31'}`,
    ...(sas === undefined ? {} : { password: Buffer.from(sas) }),
    ...packet,
  }
}

export const FILTER = '$dps/registrations/res/#'

export const subscribePacket = (topic = FILTER, qos: 0 | 1 | 2 = 1): Packet => ({
  cmd: 'subscribe',
  messageId: 1,
  subscriptions: [{ topic, qos }],
})

export function publishPacket(
  topic: string,
  body: string | Buffer,
  extra: Partial<IPublishPacket> = {},
): Packet {
  return { cmd: 'publish', topic, payload: body, qos: 1, messageId: 2, dup: false, retain: false, ...extra }
}

export const registerPacket = (
  id: string,
  rid = 'r1',
  extra: object = {},
  packet: Partial<IPublishPacket> = {},
): Packet =>
  publishPacket(
    `$dps/registrations/PUT/iotdps-register/?$rid=${rid}`,
    JSON.stringify({ registrationId: id, ...extra }),
    packet,
  )

export const pollPacket = (operationId: string, rid = 'r2', packet: Partial<IPublishPacket> = {}): Packet =>
  publishPacket(
    `$dps/registrations/GET/iotdps-get-operationstatus/?$rid=${rid}&operationId=${operationId}`,
    ' ',
    packet,
  )

/** Connects, subscribes and leaves the device ready to register. */
export async function ready(emulator: Emulator, hello: Hello, options?: DialOptions): Promise<RawDevice> {
  const device = await dial(emulator, options)
  device.send(connectPacket(hello))
  const connack = await device.next()
  if (connack?.cmd !== 'connack' || connack.returnCode !== 0) throw new Error('not accepted')
  device.send(subscribePacket())
  const suback = await device.next()
  if (suback?.cmd !== 'suback') throw new Error('not subscribed')
  return device
}

/** CONNACK return code of a CONNECT, or `'closed'`. */
export async function connackOf(
  emulator: Emulator,
  hello: Hello,
  options?: DialOptions,
): Promise<number | 'closed'> {
  const device = await dial(emulator, options)
  device.send(connectPacket(hello))
  const packet = await device.next()
  device.socket.destroy()
  await device.closed
  return packet?.cmd === 'connack' ? (packet.returnCode ?? -1) : 'closed'
}

export const bodyOf = (packet: IPublishPacket): Record<string, unknown> =>
  JSON.parse(packet.payload.toString())

/** Registers and polls as often as told to; the last body. */
export async function registerFully(
  device: RawDevice,
  id: string,
  extra: object = {},
): Promise<Record<string, unknown>> {
  device.send(registerPacket(id, 'r1', extra, { qos: 0 }))
  let reply = await device.publishReply()
  while (reply.topic.startsWith('$dps/registrations/res/202/')) {
    device.send(pollPacket(bodyOf(reply).operationId as string, 'r2', { qos: 0 }))
    reply = await device.publishReply()
  }
  return bodyOf(reply)
}

export interface SasOptions {
  key: string
  id: string
  scope?: string
  expiresAt?: number
  resource?: string
  keyName?: string
}

export function sasToken({
  key,
  id,
  scope = '0ne00000000',
  expiresAt,
  resource,
  keyName,
}: SasOptions): string {
  const sr = resource ?? encodeURIComponent(`${scope}/registrations/${id}`)
  const se = expiresAt ?? 4_000_000_000
  const mac = createHmac('sha256', Buffer.from(key, 'base64')).update(`${sr}\n${se}`).digest('base64')
  return `SharedAccessSignature sr=${sr}&sig=${encodeURIComponent(mac)}&se=${se}&skn=${keyName ?? 'registration'}`
}

/** A clock that moves when told. */
export class ManualClock implements Clock {
  #now = Date.now()
  #timers: { at: number; run: () => void }[] = []

  /** Timers that have neither run nor been cancelled. */
  get pending(): number {
    return this.#timers.length
  }

  now(): number {
    return this.#now
  }

  monotonic(): number {
    return this.#now
  }

  random(): number {
    return 0.5
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.after(ms, resolve)
    })
  }

  after(ms: number, run: () => void): () => void {
    const timer = { at: this.#now + ms, run }
    this.#timers.push(timer)
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer)
    }
  }

  advance(ms: number): void {
    this.#now += ms
    for (const timer of this.#timers.filter(({ at }) => at <= this.#now)) {
      this.#timers = this.#timers.filter((other) => other !== timer)
      timer.run()
    }
  }
}
