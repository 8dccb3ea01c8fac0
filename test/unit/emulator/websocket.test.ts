import type { ConnectionOptions, TLSSocket } from 'node:tls'
import { generate, type IPublishPacket, type Packet, parser } from 'mqtt-packet'
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { type ClientOptions, WebSocket } from 'ws'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type FaultSpec,
  generateSymmetricKey,
  type Pki,
  startEmulator,
} from '../../../src/emulator/index.ts'
import {
  bodyOf,
  connectPacket,
  dial as dialTls,
  type Hello,
  pollPacket,
  registerPacket,
  sasToken,
  subscribePacket,
} from './raw-device.ts'
import { HttpDevice, talk } from './raw-http.ts'

const KEY = generateSymmetricKey()
const ID = 'sensor-1'
const hello: Hello = { id: ID, sas: sasToken({ key: KEY, id: ID }) }
const PATH = '/$iothub/websocket'

let pki: Pki
let emulator: Emulator
let events: EmulatorEvent[]
beforeAll(async () => {
  pki = await createPki()
})
beforeEach(async () => {
  events = []
  emulator = await startEmulator({
    pki,
    enrollments: [
      { registrationId: ID, attestation: { symmetricKey: { primaryKey: KEY } } },
      { groupId: 'by-ca', attestation: { x509: { ca: pki.deviceRoot.certPem } } },
    ],
    onEvent: (event) => events.push(event),
  })
})
afterEach(async () => {
  await emulator.close()
  expect(emulator.openConnections).toBe(0)
})

const rules = (): string[] => events.flatMap((event) => (event.type === 'violation' ? event.rule : []))

interface Dial extends ClientOptions {
  path?: string
  protocols?: string[]
}

/** MQTT in WebSocket messages, cut as a test likes. */
class WebSocketDevice {
  readonly socket: WebSocket
  readonly #parser = parser()
  readonly #packets: Packet[] = []
  readonly frames: Buffer[] = []
  readonly pongs: Buffer[] = []
  #wake: () => void = () => undefined
  #ended = false
  /** Close code, 1006 without a close frame. */
  readonly closed: Promise<number>
  /** Status of a response that was no 101. */
  refused: number | undefined
  refusal = ''
  headers: Record<string, unknown> = {}
  error: Error | undefined

  constructor({ path = PATH, protocols = ['mqtt'], ...options }: Dial) {
    const tls: ClientOptions & ConnectionOptions = { servername: emulator.host, ca: emulator.roots[0] }
    const url = `wss://${emulator.address}:${emulator.port}${path}`
    this.socket = new WebSocket(url, protocols, { ...tls, ...options })
    this.#parser.on('packet', (packet) => {
      this.#packets.push(packet)
      this.#wake()
    })
    this.socket.on('error', (error) => {
      this.error = error
    })
    this.socket.on('message', (data: Buffer) => {
      this.frames.push(data)
      this.#parser.parse(data)
    })
    this.socket.on('pong', (data) => {
      this.pongs.push(data)
      this.#wake()
    })
    this.socket.on('unexpected-response', (_request, response) => {
      this.refused = response.statusCode
      this.headers = response.headers
      response.setEncoding('utf8').on('data', (text) => {
        this.refusal += text
      })
      response.once('end', () => this.socket.terminate())
    })
    this.closed = new Promise((resolve) => {
      this.socket.once('close', (code) => {
        this.#ended = true
        this.#wake()
        resolve(code)
      })
    })
  }

  send(...packets: Packet[]): void {
    this.socket.send(Buffer.concat(packets.map((packet) => generate(packet))))
  }

  async next(): Promise<Packet | undefined> {
    while (this.#packets.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    return this.#packets.shift()
  }

  async reply(): Promise<IPublishPacket> {
    const packet = await this.next()
    if (packet?.cmd !== 'publish') throw new Error(`expected PUBLISH, got ${packet?.cmd ?? 'close'}`)
    return packet
  }

  async pong(): Promise<void> {
    while (this.pongs.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }
}

/** The TLS socket, for what `ws` gives no way to send. */
const underneath = (device: WebSocketDevice): TLSSocket =>
  (device.socket as unknown as { _socket: TLSSocket })._socket

/** Resolves when the upgrade is granted or refused. */
async function dial(options: Dial = {}): Promise<WebSocketDevice> {
  const device = new WebSocketDevice(options)
  await Promise.race([new Promise((resolve) => device.socket.once('open', resolve)), device.closed])
  return device
}

async function ready(options: Dial = {}, who = hello): Promise<WebSocketDevice> {
  const device = await dial(options)
  device.send(connectPacket(who), subscribePacket())
  expect(await device.next()).toMatchObject({ cmd: 'connack', returnCode: 0 })
  expect(await device.next()).toMatchObject({ cmd: 'suback', granted: [1] })
  return device
}

async function register(device: WebSocketDevice, id = ID): Promise<IPublishPacket> {
  device.send(registerPacket(id, 'rid', {}, { qos: 0 }))
  return device.reply()
}

async function normalAgain(): Promise<void> {
  const device = await ready()
  const { operationId } = bodyOf(await register(device))
  device.send(pollPacket(String(operationId), 'p', { qos: 0 }))
  expect(bodyOf(await device.reply())).toMatchObject({ status: 'assigned' })
  device.socket.terminate()
}

describe('a registration over WebSocket', () => {
  test('goes as over MQTT, and ends with a close frame', async () => {
    const device = await ready({ perMessageDeflate: true })
    expect(device.socket.protocol).toBe('mqtt')
    expect(device.socket.extensions).toBe('')
    device.send(registerPacket(ID, 'one'))
    expect(await device.next()).toMatchObject({ cmd: 'puback', messageId: 2 })
    const accepted = await device.reply()
    expect(accepted.topic).toBe('$dps/registrations/res/202/?$rid=one&retry-after=3')
    device.send(pollPacket(String(bodyOf(accepted).operationId), 'two', { qos: 0 }))
    expect(bodyOf(await device.reply())).toMatchObject({ status: 'assigned' })
    device.send({ cmd: 'disconnect' })
    expect(await device.closed).toBe(1000)
    expect(emulator.registrations.get(ID)).toMatchObject({ count: 1 })
    expect(emulator.log.connections).toMatchObject([{ transport: 'mqtt-ws', registrationId: ID }])
    expect(emulator.log.packets.slice(0, 3)).toMatchObject([
      { direction: 'in', type: 'upgrade', method: 'GET', target: PATH, headers: { upgrade: 'websocket' } },
      { direction: 'out', type: 'response', status: 101 },
      { direction: 'in', type: 'connect', clientId: ID },
    ])
    expect(rules()).toEqual([])
  })

  test('by client certificate', async () => {
    const identity = await emulator.issueDeviceCertificate({ registrationId: 'gate-1' })
    const device = await ready(identity, { id: 'gate-1' })
    expect((await register(device, 'gate-1')).topic).toContain('/res/202/')
    device.socket.terminate()
  })

  test('packets span frames, share a frame, and come in fragments of a message', async () => {
    const device = await dial()
    const bytes = Buffer.concat([connectPacket(hello), subscribePacket()].map((packet) => generate(packet)))
    for (const byte of bytes) device.socket.send(Buffer.of(byte))
    expect((await device.next())?.cmd).toBe('connack')
    expect((await device.next())?.cmd).toBe('suback')
    const [one, two] = ['one', 'two'].map((rid) => generate(registerPacket(ID, rid, {}, { qos: 0 })))
    const both = Buffer.concat([one!, two!])
    device.socket.send(both.subarray(0, 50), { fin: false })
    device.socket.send(both.subarray(50), { fin: true })
    expect((await device.reply()).topic).toContain('$rid=one')
    expect((await device.reply()).topic).toContain('$rid=two')
    device.socket.terminate()
  })

  test('a ping is answered', async () => {
    const device = await dial()
    device.socket.ping('there?')
    await device.pong()
    expect(device.pongs.map(String)).toEqual(['there?'])
    device.socket.terminate()
  })

  test('a running one holds off HTTPS until the WebSocket closes', async () => {
    const device = await ready()
    await register(device)
    const other = new HttpDevice(emulator, ID, { sas: hello.sas! })
    expect((await other.register()).json.errorCode).toBe(409203)
    device.socket.close()
    await device.closed
    expect((await other.register()).status).toBe(202)
    other.close()
  })

  test('the sub-protocol is chosen among those offered', async () => {
    const device = await ready({ protocols: ['mqttv3.1', 'mqtt'] })
    expect(device.socket.protocol).toBe('mqtt')
    device.socket.terminate()
  })

  test('the path may be followed by a query', async () => {
    const device = await ready({ path: `${PATH}?iothub-no-client-cert=true` })
    device.socket.terminate()
  })
})

/** The bytes of an upgrade request. */
const upgrade = (method: string, change: (text: string) => string): string =>
  change(
    `${method} ${PATH} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
      'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n' +
      'Sec-WebSocket-Protocol: mqtt\r\n\r\n',
  )

describe('an upgrade is refused', () => {
  test.each([
    ['on another path', { path: '/mqtt' }, 404],
    ['with the path encoded', { path: '/%24iothub/websocket' }, 404],
    ['without a sub-protocol', { protocols: [] }, 400],
    ['with another sub-protocol', { protocols: ['mqttv3.1', 'amqp'] }, 400],
    ['for an old version', { protocolVersion: 8 }, 426],
  ] as const)('%s', async (_what, options, status) => {
    const device = await dial(options as Dial)
    await device.closed
    expect(device.refused).toBe(status)
    expect(JSON.parse(device.refusal)).toMatchObject({ errorCode: status * 1000 })
    expect(device.headers).toMatchObject({ connection: 'close', 'x-ms-error-code': String(status * 1000) })
    if (status === 426) expect(device.headers).toMatchObject({ 'sec-websocket-version': '13' })
    expect(rules()).toHaveLength(1)
    await normalAgain()
  })

  test.each([
    ['by POST', upgrade('POST', (text) => text), 405],
    ['without a key', upgrade('GET', (text) => text.replace(/Sec-WebSocket-Key.*\r\n/, '')), 400],
    ['with a malformed key', upgrade('GET', (text) => text.replace('AA==', 'A===')), 400],
    ['to something else', upgrade('GET', (text) => text.replace('websocket\r\n', 'h2c\r\n')), 400],
  ])('%s', async (_what, text, status) => {
    expect(await talk(emulator, text)).toMatch(new RegExp(`^HTTP/1.1 ${status} `))
    expect(rules()).toHaveLength(1)
  })

  test('and a request without upgrade finds nothing there', async () => {
    const device = new HttpDevice(emulator, ID)
    expect((await device.ask('GET', PATH)).status).toBe(404)
    device.close()
  })
})

describe('a WebSocket is closed', () => {
  test('with 1003 after text, and nothing after it is heard', async () => {
    const device = await ready()
    device.socket.send('text')
    device.socket.send('more text')
    device.send(registerPacket(ID))
    expect(await device.closed).toBe(1003)
    expect(rules()).toEqual(['MQTT goes in binary frames [MQTT-6.0.0-1].'])
    expect(emulator.log.packets.at(-1)?.type).toBe('suback')
  })

  test('with 1009 after a message that is too large', async () => {
    const device = await ready()
    device.socket.send(Buffer.alloc(262_145))
    expect(await device.closed).toBe(1009)
    expect(rules()).toHaveLength(1)
  })

  test('after a frame that is malformed', async () => {
    const device = await ready()
    // A client's frames are masked (RFC 6455, section 5.1).
    underneath(device).write(Buffer.of(0x82, 1, 0))
    expect(await device.closed).toBe(1002)
    expect(rules()).toHaveLength(1)
  })

  test('after a packet that breaks MQTT', async () => {
    const device = await dial()
    device.send({ cmd: 'pingreq' })
    expect(await device.closed).toBe(1000)
    expect(rules()).toEqual(['The first packet must be CONNECT [MQTT-3.1.0-1].'])
  })

  test('after CONNACK has refused the device', async () => {
    const device = await dial()
    device.send(connectPacket({ id: ID, sas: sasToken({ key: generateSymmetricKey(), id: ID }) }))
    expect(await device.next()).toMatchObject({ cmd: 'connack', returnCode: 5 })
    expect(await device.closed).toBe(1000)
  })
})

describe('faults', () => {
  describe.each(['upgrade', 'connect', 'subscribe', 'register', 'register-reply', 'poll-reply'] as const)(
    'at %s',
    (at) => {
      async function walk(): Promise<WebSocketDevice> {
        const device = await dial()
        if (device.socket.readyState !== WebSocket.OPEN) return device
        device.send(connectPacket(hello), subscribePacket())
        await device.next()
        await device.next()
        if (device.socket.readyState !== WebSocket.OPEN) return device
        device.send(registerPacket(ID, 'rid', {}, { qos: 0 }))
        const reply = await device.next()
        if (reply?.cmd === 'publish') {
          device.send(pollPacket(String(bodyOf(reply).operationId), 'p', { qos: 0 }))
          await device.next()
        }
        return device
      }

      test.each(['drop', 'no-close-notify', 'reset'] as const)('%s: no close frame', async (what) => {
        const fault = emulator.faults.add({ at, do: what })
        const device = await walk()
        expect(await device.closed).toBe(1006)
        expect(fault.hits).toBe(1)
        expect(await fault.hit).toMatchObject({ at, registrationId: at === 'upgrade' ? undefined : ID })
        await normalAgain()
      })

      test('silence leaves it open', async () => {
        const fault = emulator.faults.add({ at, do: 'silence' })
        const walking = walk()
        await fault.hit
        expect(emulator.openConnections).toBe(1)
        await emulator.close()
        expect(await (await walking).closed).toBe(1006)
      })
    },
  )

  test.each([
    ['with the request', true],
    ['after it', false],
  ])('in silence not even a ping or a close frame that comes %s is answered', async (_when, together) => {
    const fault = emulator.faults.add({ at: 'connect', do: 'silence' })
    const device = await dial()
    const below = underneath(device)
    below.cork()
    device.send(connectPacket(hello))
    if (!together) {
      below.uncork()
      await fault.hit
      below.cork()
      device.socket.send('text')
    }
    device.socket.ping('there?')
    device.socket.close(1000)
    below.uncork()
    await fault.hit
    await normalAgain()
    expect(device.socket.readyState).toBe(WebSocket.CLOSING)
    expect(rules()).toEqual([])
    await emulator.close()
    expect(await device.closed).toBe(1006)
    expect(device.pongs).toEqual([])
  })

  test('an upgrade refused with a status, or answered with a reply', async () => {
    emulator.faults.add({ at: 'upgrade', do: { refuse: 503 } })
    emulator.faults.add({
      at: 'upgrade',
      do: { reply: { status: 307, headers: { location: 'wss://elsewhere.example/' }, body: 'moved' } },
    })
    const busy = await dial()
    await busy.closed
    expect(busy.refused).toBe(503)
    expect(busy.headers).toMatchObject({ 'retry-after': '3', 'x-ms-error-code': '503000' })
    const moved = await dial()
    await moved.closed
    expect([moved.refused, moved.headers.location, moved.refusal]).toEqual([
      307,
      'wss://elsewhere.example/',
      'moved',
    ])
    await normalAgain()
  })

  test('bytes in place of the upgrade response', async () => {
    const forged =
      'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
      'Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n'
    emulator.faults.add({ at: 'upgrade', do: { raw: Buffer.from(forged) } })
    const device = await dial()
    await device.closed
    expect(device.error?.message).toContain('Sec-WebSocket-Accept')
    await normalAgain()
  })

  test('after such bytes nothing is understood, but the end is noticed', async () => {
    emulator.faults.add({ at: 'upgrade', do: { raw: Buffer.from('x') } })
    const device = await dialTls(emulator)
    const text = upgrade('GET', (request) => request)
    device.socket.end(Buffer.concat([Buffer.from(text), Buffer.alloc(1_000_000)]))
    await device.closed
    expect(device.bytes.toString()).toBe('x')
    await new Promise<void>((resolve) => {
      const look = (): void => {
        if (emulator.openConnections === 0) resolve()
        else setImmediate(look)
      }
      look()
    })
    expect(rules()).toEqual([])
  })

  test('CONNACK and SUBACK refuse as over MQTT', async () => {
    emulator.faults.add({ at: 'connect', do: { refuse: 3 } })
    emulator.faults.add({ at: 'subscribe', do: 'refuse' })
    const first = await dial()
    first.send(connectPacket(hello))
    expect(await first.next()).toMatchObject({ cmd: 'connack', returnCode: 3 })
    expect(await first.closed).toBe(1000)
    const second = await dial()
    second.send(connectPacket(hello), subscribePacket())
    await second.next()
    expect(await second.next()).toMatchObject({ cmd: 'suback', granted: [0x80] })
    second.socket.terminate()
  })

  test('raw bytes are MQTT in a frame, or unframed what they are', async () => {
    const device = await ready()
    emulator.faults.add({ at: 'register-reply', do: { raw: Buffer.of(0xd0, 0) } })
    device.send(registerPacket(ID))
    expect((await device.next())?.cmd).toBe('puback')
    expect((await device.next())?.cmd).toBe('pingresp')
    expect(device.frames.at(-1)).toEqual(Buffer.of(0xd0, 0))
    const closeFrame = Buffer.of(0x88, 2, 0x03, 0xf3)
    emulator.faults.add({ at: 'register-reply', do: { raw: closeFrame, unframed: true } })
    device.send(registerPacket(ID))
    expect(await device.closed).toBe(1011)
  })

  test('raw bytes, then the end', async () => {
    const device = await ready()
    emulator.faults.add({ at: 'register-reply', do: [{ raw: Buffer.of(0xd0, 0) }, 'drop'] })
    device.send(registerPacket(ID))
    expect((await device.next())?.cmd).toBe('puback')
    expect((await device.next())?.cmd).toBe('pingresp')
    expect(await device.closed).toBe(1006)
  })

  test('byte by byte: one byte to a frame', async () => {
    const device = await ready()
    device.frames.length = 0
    emulator.faults.add({ at: 'register-reply', do: 'byte-by-byte' })
    expect(bodyOf(await register(device))).toMatchObject({ status: 'assigning' })
    expect(new Set(device.frames.map(({ length }) => length))).toEqual(new Set([1]))
    device.socket.terminate()
  })

  test.each([true, false])(
    'cut: a part of the packet, then the end (close_notify: %s)',
    async (closeNotify) => {
      const device = await ready()
      device.frames.length = 0
      emulator.faults.add({ at: 'register-reply', do: { cut: 5, closeNotify } })
      device.send(registerPacket(ID, 'rid', {}, { qos: 0 }))
      expect(await device.closed).toBe(1006)
      expect(Buffer.concat(device.frames)).toHaveLength(5)
    },
  )

  test('wrong-rid, duplicate and a topic, as over MQTT', async () => {
    const device = await ready()
    emulator.faults.add({ at: 'register-reply', do: ['wrong-rid', 'duplicate'] })
    const topics = [(await register(device)).topic, (await device.reply()).topic]
    expect(topics).toEqual(Array(2).fill('$dps/registrations/res/202/?$rid=not-rid&retry-after=3'))
    device.socket.terminate()
  })

  test('a lookup never comes', async () => {
    const specs: FaultSpec[] = [
      { at: 'lookup', do: 'drop' },
      { at: 'lookup-reply', do: 'drop' },
      { at: 'register', do: { reply: { status: 307, headers: { location: '/' } } } },
    ]
    const faults = specs.map((spec) => emulator.faults.add(spec))
    await normalAgain()
    expect(faults.map(({ hits }) => hits)).toEqual([0, 0, 0])
  })
})
