import { getEventListeners, once } from 'node:events'
import { generate, type Packet } from 'mqtt-packet'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { DpsError, type DpsErrorCode, type DpsPhase } from '../../../../src/errors.ts'
import { mqttWebSocketTransport } from '../../../../src/transport/mqtt/mqtt-ws.ts'
import type {
  RawReply,
  TransportContext,
  TransportRequest,
  TransportSession,
} from '../../../../src/transport/transport.ts'
import { expectDpsError } from '../../../support/expect-dps-error.ts'
import {
  type Connection,
  connect as connectTo,
  frame,
  openSockets,
  openTimers,
  type PeerServer,
  startPeerServer,
} from '../peer.ts'
import { CONNACK, reply, ridOf, SUBACK } from './broker.ts'

const REGISTER = { kind: 'register', body: '{"registrationId":"my-device"}' } as const
const QUERY = { kind: 'query', operationId: '5.316aac5bdc130deb.b1e02da8' } as const
const CLOSE = 8
const PING = 9
const PONG = 10

let server: PeerServer
let idle: string[]
let timers: number
const connections: Connection[] = []
const signals: AbortSignal[] = []

beforeAll(async () => {
  server = await startPeerServer()
  idle = openSockets()
  timers = openTimers()
})
afterAll(() => server.stop())

// Of every test, however it ended: no socket, no timer, no listener on a signal.
afterEach(async () => {
  for (const { opening, peer, socketClosed, controller } of connections.splice(0)) {
    // Only a test that failed has left it pending.
    controller.abort()
    await opening.then(
      (session) => session.close(),
      () => {},
    )
    await socketClosed
    peer.socket.destroy()
    await peer.closed
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
  }
  for (const signal of signals.splice(0)) expect(getEventListeners(signal, 'abort')).toEqual([])
  expect(openSockets()).toEqual(idle)
  // The test runner has one of its own for the test.
  expect(openTimers()).toBeLessThanOrEqual(timers + 1)
})

async function connect(options: Partial<TransportContext> = {}): Promise<Connection> {
  const connection = await connectTo(server, mqttWebSocketTransport(), options)
  connections.push(connection)
  return connection
}

/** Connects and answers as the service does, up to a session that takes requests. */
async function openSession(
  options: Partial<TransportContext> = {},
): Promise<Connection & { session: TransportSession }> {
  const connection = await connect(options)
  const { peer } = connection
  await peer.upgrade()
  await peer.packet('connect')
  peer.message(CONNACK)
  await peer.packet('subscribe')
  peer.message(SUBACK)
  return { ...connection, session: await connection.opening }
}

function send(
  session: TransportSession,
  request: TransportRequest = REGISTER,
): Promise<RawReply> & { controller: AbortController } {
  const controller = new AbortController()
  signals.push(controller.signal)
  const pending = session.request(request, controller.signal)
  pending.catch(() => {})
  return Object.assign(pending, { controller })
}

/** A request that was read by the server and is not answered yet. */
async function asked(request: TransportRequest = REGISTER, options: Partial<TransportContext> = {}) {
  const connection = await openSession(options)
  const pending = send(connection.session, request)
  const rid = ridOf(await connection.peer.packet('publish'))
  return { ...connection, pending, rid }
}

const bodyOf = ({ body }: RawReply) => Buffer.from(body).toString()

describe('opening', () => {
  it('asks for the upgrade with these headers and no others, and reports the connection', async () => {
    const { peer, opening, phases } = await connect({ token: async () => 'SharedAccessSignature sr=a' })
    const request = await peer.upgrade()
    expect(request).toMatchObject({ method: 'GET', target: '/$iothub/websocket', body: '' })
    expect(request.headers).toEqual({
      'user-agent': 'test/1.0',
      'sec-websocket-version': '13',
      'sec-websocket-key': expect.stringMatching(/^[A-Za-z0-9+/]{22}==$/),
      'sec-websocket-protocol': 'mqtt',
      connection: 'Upgrade',
      upgrade: 'websocket',
      host: 'dps.test',
    })
    expect(await peer.packet('connect')).toMatchObject({
      clientId: 'my-device',
      username: '0ne00000001/registrations/my-device/api-version=2019-03-31&ClientVersion=test%2F1.0',
      password: Buffer.from('SharedAccessSignature sr=a'),
    })
    peer.message(CONNACK)
    await peer.packet('subscribe')
    peer.message(SUBACK)
    const session = await opening
    expect(new Set(phases)).toEqual(new Set(['connect', 'subscribe']))
    expect(session.connection).toEqual({
      transport: 'mqtt-ws',
      protocol: 'TLSv1.2',
      cipher: 'suite',
      curve: 'X25519',
      root: 'peer',
      resumed: false,
      roundTrips: 6,
    })
    expect(Object.isFrozen(session.connection)).toBe(true)
  })

  it('dials 443 unless told otherwise', async () => {
    const dialled: number[] = []
    const refusal = new DpsError('CONNECTION_REFUSED', 'tcp', 'no')
    const context = (port: number | undefined) =>
      ({
        port,
        signal: new AbortController().signal,
        dial: (port: number) => {
          dialled.push(port)
          return Promise.reject(refusal)
        },
      }) as unknown as TransportContext
    await expect(mqttWebSocketTransport().open(context(undefined))).rejects.toBe(refusal)
    await expect(mqttWebSocketTransport().open(context(8443))).rejects.toBe(refusal)
    expect(dialled).toEqual([443, 8443])
  })

  it.each([
    ['dps.test', 443, 'dps.test'],
    ['dps.test', 8443, 'dps.test:8443'],
    ['::1', 8443, '[::1]:8443'],
  ])('names the host %s and the port %s as %s', async (host, port, expected) => {
    const { peer } = await connect({ host, port })
    expect((await peer.request()).headers.host).toBe(expected)
    peer.socket.destroy()
  })

  it('sends nothing of MQTT before the server has switched protocols', async () => {
    const { peer } = await connect()
    const request = await peer.request()
    await new Promise(setImmediate)
    expect(peer.unread).toHaveLength(0)
    expect(request.headers).not.toHaveProperty('authorization')
    peer.socket.destroy()
  })

  it('takes frames that came with the 101', async () => {
    const { peer, opening } = await connect()
    await peer.upgrade({}, frame('', { opcode: PING }))
    await peer.packet('connect')
    peer.message(CONNACK)
    await peer.packet('subscribe')
    peer.message(SUBACK)
    await opening
    expect(peer.opcodes).toContain(PONG)
  })

  it('rejects with what the token function rejects with', async () => {
    const refusal = new DpsError('SIGNER_FAILED', 'config', 'no')
    const { opening, peer } = await connect({ token: () => Promise.reject(refusal) })
    await expect(opening).rejects.toBe(refusal)
    await peer.closed
  })

  it('waits for a token that comes after the upgrade', async () => {
    let give: (token: string) => void = () => {}
    const { peer } = await connect({
      token: () =>
        new Promise((resolve) => {
          give = resolve
        }),
    })
    await peer.upgrade()
    await new Promise(setImmediate)
    give('late')
    expect(await peer.packet('connect')).toMatchObject({ password: Buffer.from('late') })
    peer.socket.destroy()
  })
})

describe('an upgrade that is refused', () => {
  const hint = expect.stringContaining('WebSocket')
  it.each<[number, DpsErrorCode, boolean, unknown]>([
    [401, 'UNAUTHORIZED', false, expect.any(String)],
    [403, 'FORBIDDEN', false, expect.any(String)],
    [404, 'REQUEST_REFUSED', false, hint],
    [400, 'REQUEST_REFUSED', false, hint],
    [426, 'REQUEST_REFUSED', false, hint],
    [412, 'REQUEST_REFUSED', false, hint],
    [429, 'THROTTLED', true, expect.any(String)],
    [503, 'SERVICE_UNAVAILABLE', true, expect.any(String)],
    [200, 'REQUEST_REFUSED', false, hint],
  ])('with %i', async (status, code, retryable, hint) => {
    const { peer, opening } = await connect()
    await peer.request()
    peer.send(`HTTP/1.1 ${status} No\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbody`)
    const error = await expectDpsError(opening, code, 'connect')
    expect(error).toMatchObject({ retryable, retryAfterMs: 7000, hint })
    expect(error.message).toContain(String(status))
    await peer.closed
  })

  it.each([301, 302, 307, 308])('with a redirect (%i) is not followed', async (status) => {
    const { peer, opening } = await connect()
    await peer.request()
    peer.send(
      `HTTP/1.1 ${status} Go\r\nLocation: wss://127.0.0.1:${server.port}/x\r\nContent-Length: 0\r\n\r\n`,
    )
    await expectDpsError(opening, 'REQUEST_REFUSED', 'connect')
    await peer.closed
    expect(peer.unread).toHaveLength(0)
  })
})

describe('an upgrade that lies', () => {
  it.each([
    ['no sub-protocol', { 'Sec-WebSocket-Protocol': undefined }],
    ['another sub-protocol', { 'Sec-WebSocket-Protocol': 'AMQPWSB10' }],
    ['two sub-protocols', { 'Sec-WebSocket-Protocol': 'mqtt, mqttv3.1' }],
    ['another key accepted', { 'Sec-WebSocket-Accept': 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=' }],
    ['no key accepted', { 'Sec-WebSocket-Accept': undefined }],
    ['compression nobody asked for', { 'Sec-WebSocket-Extensions': 'permessage-deflate' }],
    ['another protocol', { Upgrade: 'h2c' }],
    ['no protocol', { Upgrade: undefined, Connection: undefined }],
  ])('%s', async (_, lines) => {
    const { peer, opening } = await connect()
    await peer.upgrade(lines)
    await expectDpsError(opening, 'PROTOCOL_VIOLATION', 'connect')
    await peer.closed
  })

  it.each([
    ['bytes that are no HTTP', '\x20\x02\x00\x00'],
    ['headers without end', `HTTP/1.1 101 S\r\n${`X-Padding: ${'x'.repeat(1000)}\r\n`.repeat(17)}`],
    ['interim replies without end', 'HTTP/1.1 102 P\r\n\r\n'.repeat(9)],
  ])('%s', async (_, bytes) => {
    const { peer, opening } = await connect()
    await peer.request()
    peer.send(bytes)
    await expectDpsError(opening, 'PROTOCOL_VIOLATION', 'connect')
    await peer.closed
  })
})

describe('a request', () => {
  it('is one binary message, and so is its reply', async () => {
    const { peer, pending, rid } = await asked()
    expect(new Set(peer.opcodes)).toEqual(new Set([2]))
    peer.message(reply(rid, '{"grüß":"Gott"}', 202))
    const answer = await pending
    expect(answer.status).toBe(202)
    expect(bodyOf(answer)).toBe('{"grüß":"Gott"}')
  })

  it('is answered by a packet that spans messages, one byte in each', async () => {
    const { peer, pending, rid } = await asked()
    for (const byte of generate(reply(rid, 'ok'))) peer.message(Buffer.from([byte]))
    expect(bodyOf(await pending)).toBe('ok')
  })

  it('is answered by a message in fragments, with a ping between them, byte by byte on the wire', async () => {
    const { peer, pending, rid } = await asked()
    const bytes = generate(reply(rid, 'ok'))
    const wire = Buffer.concat([
      frame(bytes.subarray(0, 3), { fin: false }),
      frame('are you there', { opcode: PING }),
      frame('', { opcode: 0, fin: false }),
      frame(bytes.subarray(3), { opcode: 0 }),
    ])
    for (const byte of wire) peer.send(Buffer.from([byte]))
    expect(bodyOf(await pending)).toBe('ok')
    expect(await peer.frame()).toEqual({ opcode: PONG, payload: Buffer.from('are you there') })
  })

  it('is answered by a message that holds other packets too', async () => {
    const { session, peer, pending, rid } = await asked()
    const puback: Packet = { cmd: 'puback', messageId: 2 }
    peer.message(puback, reply('other'), reply(rid, 'ok', 200, 9))
    expect(bodyOf(await pending)).toBe('ok')
    expect(await peer.packet('puback')).toMatchObject({ messageId: 9 })
    const second = send(session, QUERY)
    peer.message(reply(ridOf(await peer.packet('publish')), 'second'))
    expect(bodyOf(await second)).toBe('second')
  })

  it('is answered by a body of the largest size, in one message', async () => {
    const { peer, pending, rid } = await asked(REGISTER, { maxReplyBytes: 100_000 })
    peer.message(reply(rid, 'x'.repeat(100_000)))
    expect((await pending).body).toHaveLength(100_000)
  })

  it('of the largest size is sent', async () => {
    const { peer, pending, rid } = await asked({ kind: 'register', body: 'x'.repeat(60_000) })
    peer.message(reply(rid, 'ok'))
    await pending
  })
})

describe('a server that lies', () => {
  const lies: [string, (rid: string) => Buffer, DpsErrorCode, DpsPhase][] = [
    [
      'in a text message',
      (rid) => frame(generate(reply(rid)), { opcode: 1 }),
      'PROTOCOL_VIOLATION',
      'register',
    ],
    ['in a compressed frame', () => frame('x', { reserved: 0x40 }), 'PROTOCOL_VIOLATION', 'register'],
    ['with other reserved bits', () => frame('x', { reserved: 0x20 }), 'PROTOCOL_VIOLATION', 'register'],
    [
      'in a masked frame',
      (rid) => frame(generate(reply(rid)), { mask: true }),
      'PROTOCOL_VIOLATION',
      'register',
    ],
    ['in a frame of no known kind', () => frame('x', { opcode: 3 }), 'PROTOCOL_VIOLATION', 'register'],
    ['with a continuation of nothing', () => frame('x', { opcode: 0 }), 'PROTOCOL_VIOLATION', 'register'],
    [
      'with a message within a message',
      () => Buffer.concat([frame('x', { fin: false }), frame('x')]),
      'PROTOCOL_VIOLATION',
      'register',
    ],
    [
      'with a ping in fragments',
      () => frame('x', { opcode: PING, fin: false }),
      'PROTOCOL_VIOLATION',
      'register',
    ],
    [
      'with a ping that is too long',
      () => frame('x'.repeat(126), { opcode: PING }),
      'PROTOCOL_VIOLATION',
      'register',
    ],
    ['with a close of one byte', () => frame('x', { opcode: CLOSE }), 'PROTOCOL_VIOLATION', 'register'],
    [
      'with a length that is no number',
      () => Buffer.from([0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
      'PROTOCOL_VIOLATION',
      'register',
    ],
    [
      'with a message too large',
      () => Buffer.from([0x82, 127, 0, 0, 0, 0, 1, 0, 0, 0]),
      'REPLY_TOO_LARGE',
      'register',
    ],
    [
      'with fragments that are too large together',
      () =>
        Buffer.concat([frame('\x30'.repeat(8192), { fin: false }), frame('x'.repeat(8192), { opcode: 0 })]),
      'REPLY_TOO_LARGE',
      'register',
    ],
    [
      'with a reply too large in messages that are not',
      (rid) => {
        const bytes = generate(reply(rid, 'x'.repeat(10_000)))
        return Buffer.concat([frame(bytes.subarray(0, 5000)), frame(bytes.subarray(5000))])
      },
      'REPLY_TOO_LARGE',
      'register',
    ],
    ['with a message that is no MQTT', () => frame('HTTP/1.1 200 OK'), 'PROTOCOL_VIOLATION', 'register'],
    ['without WebSocket', (rid) => generate(reply(rid)), 'PROTOCOL_VIOLATION', 'register'],
  ]

  it.each(lies)('%s', async (_, make, code, phase) => {
    const { session, peer, pending, rid } = await asked()
    peer.send(make(rid))
    await expectDpsError(pending, code, phase)
    await peer.closed
    await expectDpsError(send(session), 'CONNECTION_LOST', 'register')
  })

  it('with a message too large before anything was asked', async () => {
    const { peer, opening } = await connect()
    await peer.upgrade()
    await peer.packet('connect')
    peer.send(Buffer.from([0x82, 127, 0, 0, 0, 0, 1, 0, 0, 0]))
    await expectDpsError(opening, 'PROTOCOL_VIOLATION', 'connect')
  })

  it('with MQTT that was not due, right behind the 101', async () => {
    const { peer, opening } = await connect()
    await peer.upgrade({}, frame(generate(SUBACK)))
    await expectDpsError(opening, 'PROTOCOL_VIOLATION', 'connect')
  })

  it('with a refusal in MQTT: that decides', async () => {
    const { peer, opening } = await connect()
    await peer.upgrade()
    await peer.packet('connect')
    peer.message({ cmd: 'connack', returnCode: 5, sessionPresent: false })
    await expectDpsError(opening, 'UNAUTHORIZED', 'connect')
  })

  it('with pings without end and no ear for pongs ends the connection', async () => {
    const { peer, pending } = await asked()
    peer.socket.pause()
    const pings = Buffer.concat(Array.from({ length: 2000 }, () => frame('x'.repeat(125), { opcode: PING })))
    for (let i = 0; i < 200 && peer.socket.writable; i++) {
      peer.socket.write(pings)
      await new Promise(setImmediate)
    }
    await expectDpsError(pending, 'CONNECTION_LOST', 'register')
    peer.socket.destroy()
  })
})

describe('a connection that is lost', () => {
  const ways: [string, (connection: Connection) => void][] = [
    ['ended', ({ peer }) => peer.socket.end()],
    ['cut without close_notify', ({ peer }) => peer.cut()],
    ['reset', ({ peer }) => peer.reset()],
    ['destroyed', ({ peer }) => peer.socket.destroy()],
    ['closed', ({ peer }) => peer.send(frame(Buffer.from([3, 232]), { opcode: CLOSE }))],
    ['closed without a code', ({ peer }) => peer.send(frame('', { opcode: CLOSE }))],
  ]
  const transportWays = ways.slice(0, 4)
  const politeWays = [...ways.slice(0, 2), ...ways.slice(4)]

  it.each(transportWays)('before the 101, by being %s', async (_, drop) => {
    const connection = await connect()
    await connection.peer.request()
    drop(connection)
    await expectDpsError(connection.opening, 'CONNECTION_LOST', 'connect')
  })

  it.each(transportWays)('within the 101, by being %s', async (_, drop) => {
    const connection = await connect()
    await connection.peer.request()
    connection.peer.send('HTTP/1.1 101 Switching Protocols\r\nUpgrade: webs')
    drop(connection)
    await expectDpsError(connection.opening, 'CONNECTION_LOST', 'connect')
  })

  it.each(ways)('before CONNACK, by being %s', async (_, drop) => {
    const connection = await connect()
    await connection.peer.upgrade()
    await connection.peer.packet('connect')
    drop(connection)
    await expectDpsError(connection.opening, 'CONNECTION_LOST', 'connect')
  })

  it.each(ways)('before SUBACK, by being %s', async (_, drop) => {
    const connection = await connect()
    await connection.peer.upgrade()
    await connection.peer.packet('connect')
    connection.peer.message(CONNACK)
    await connection.peer.packet('subscribe')
    drop(connection)
    await expectDpsError(connection.opening, 'CONNECTION_LOST', 'subscribe')
  })

  it.each(ways)('before the reply, by being %s', async (_, drop) => {
    const connection = await asked()
    drop(connection)
    const error = await expectDpsError(connection.pending, 'CONNECTION_LOST', 'register')
    expect(error.retryable).toBe(true)
  })

  it.each(transportWays)('within a frame, by being %s', async (_, drop) => {
    const connection = await asked(QUERY)
    connection.peer.send(frame(generate(reply(connection.rid, 'cut short'))).subarray(0, -1))
    drop(connection)
    await expectDpsError(connection.pending, 'CONNECTION_LOST', 'poll')
  })

  it.each(ways)('within a packet, by being %s', async (_, drop) => {
    const connection = await asked(QUERY)
    connection.peer.message(generate(reply(connection.rid, 'cut short')).subarray(0, -1))
    drop(connection)
    await expectDpsError(connection.pending, 'CONNECTION_LOST', 'poll')
  })

  it.each(ways)('between requests, by being %s: the next is refused at once', async (_, drop) => {
    const connection = await asked()
    connection.peer.message(reply(connection.rid))
    await connection.pending
    drop(connection)
    await connection.socketClosed
    await expectDpsError(send(connection.session, QUERY), 'CONNECTION_LOST', 'poll')
    await connection.session.close()
  })

  // A reset would overtake it.
  it.each(politeWays)('right behind a reply, by being %s: the reply counts', async (_, drop) => {
    const connection = await asked()
    connection.peer.message(reply(connection.rid, 'ok'))
    drop(connection)
    expect(bodyOf(await connection.pending)).toBe('ok')
  })

  it('by a close frame, from a server that then keeps its side open', async () => {
    const { peer, pending } = await asked()
    peer.socket.allowHalfOpen = true
    peer.send(frame('', { opcode: CLOSE }))
    await expectDpsError(pending, 'CONNECTION_LOST', 'register')
    expect(peer.socket.writable).toBe(true)
  })

  it('by an end while what was sent is stuck', async () => {
    const { session, peer } = await openSession()
    peer.socket.pause()
    const pending = send(session, { kind: 'register', body: 'x'.repeat(8_000_000) })
    peer.socket.end()
    await expectDpsError(pending, 'CONNECTION_LOST', 'register')
    peer.socket.destroy()
  })

  it('tells the system’s reason', async () => {
    const { peer, pending } = await asked()
    peer.reset()
    const error = await expectDpsError(pending, 'CONNECTION_LOST', 'register')
    expect(error.cause).toMatchObject({ code: 'ECONNRESET' })
  })
})

describe('an abort', () => {
  const reason = new DpsError('TIMEOUT', 'connect', 'no answer')

  it('before everything dials nothing', async () => {
    const controller = new AbortController()
    controller.abort(reason)
    const open = mqttWebSocketTransport().open({
      signal: controller.signal,
      dial: () => expect.fail('dialled'),
    } as unknown as TransportContext)
    await expect(open).rejects.toBe(reason)
  })

  it('right after the dial leaves no socket and sends nothing', async () => {
    const controller = new AbortController()
    signals.push(controller.signal)
    const { opening, peer } = await connect({
      signal: controller.signal,
      enter: () => controller.abort(reason),
    })
    await expect(opening).rejects.toBe(reason)
    await peer.closed
    expect(peer.unread).toHaveLength(0)
  })

  it('in the silence before the 101', async () => {
    const { opening, controller, peer } = await connect()
    await peer.request()
    controller.abort(reason)
    await expect(opening).rejects.toBe(reason)
    await peer.closed
  })

  it('in the silence within the 101', async () => {
    const { opening, controller, peer } = await connect()
    await peer.request()
    peer.send('HTTP/1.1 101 Switching')
    await new Promise(setImmediate)
    controller.abort(reason)
    await expect(opening).rejects.toBe(reason)
    await peer.closed
  })

  it('in the silence before CONNACK', async () => {
    const { opening, controller, peer } = await connect()
    await peer.upgrade()
    await peer.packet('connect')
    controller.abort(reason)
    await expect(opening).rejects.toBe(reason)
    await peer.closed
  })

  it('in the silence before the reply', async () => {
    const { session, peer, pending } = await asked()
    pending.controller.abort(reason)
    await expect(pending).rejects.toBe(reason)
    await peer.closed
    await expectDpsError(send(session), 'CONNECTION_LOST', 'register')
  })
})

describe('close', () => {
  it('sends DISCONNECT, then a close frame, and gives the socket back without waiting for the server', async () => {
    const { session, peer, socketClosed } = await openSession()
    const ended = once(peer.socket, 'end')
    await session.close()
    await socketClosed
    await ended
    await peer.packet('disconnect')
    expect(await peer.frame()).toEqual({ opcode: CLOSE, payload: Buffer.from([3, 232]) })
    expect(peer.unread).toHaveLength(0)
  })

  it('leaves no timer of the close handshake', async () => {
    const { session } = await openSession()
    const before = openTimers()
    await session.close()
    expect(openTimers()).toBeLessThanOrEqual(before)
  })

  it('twice, at once and afterwards, is once', async () => {
    const { session, peer } = await openSession()
    await Promise.all([session.close(), session.close()])
    await session.close()
    await peer.closed
    await peer.packet('disconnect')
    await peer.frame()
    expect(peer.unread).toHaveLength(0)
  })

  it('does not wait for a server that keeps its side open', async () => {
    const { session, peer } = await openSession()
    peer.socket.allowHalfOpen = true
    const ended = once(peer.socket, 'end')
    await session.close()
    await ended
    expect(peer.socket.writable).toBe(true)
  })

  it('does not wait for bytes that the server does not take', async () => {
    const { session, peer } = await openSession()
    peer.socket.pause()
    const pending = send(session, { kind: 'register', body: 'x'.repeat(8_000_000) })
    await session.close()
    await expectDpsError(pending, 'CONNECTION_LOST', 'register')
    peer.socket.destroy()
  })

  it('rejects the request that is under way', async () => {
    const { session, pending } = await asked(QUERY)
    await session.close()
    await expectDpsError(pending, 'CONNECTION_LOST', 'poll')
  })

  it('after a loss, an abort, a violation and a close frame resolves', async () => {
    const lost = await openSession()
    lost.peer.socket.destroy()
    await lost.socketClosed
    await lost.session.close()

    const aborted = await asked()
    aborted.pending.controller.abort(new DpsError('CANCELLED', 'register', 'stop'))
    await expectDpsError(aborted.pending, 'CANCELLED', 'register')
    await aborted.session.close()

    const violated = await openSession()
    violated.peer.message(CONNACK)
    await violated.socketClosed
    await violated.session.close()

    const closed = await openSession()
    closed.peer.send(frame('', { opcode: CLOSE }))
    await closed.socketClosed
    await closed.session.close()
  })
})
