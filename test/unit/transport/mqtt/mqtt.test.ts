import { getEventListeners, once } from 'node:events'
import { Duplex } from 'node:stream'
import { generate } from 'mqtt-packet'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { DpsError, type DpsErrorCode, type DpsPhase } from '../../../../src/errors.ts'
import { encodePublish } from '../../../../src/transport/mqtt/codec.ts'
import { mqttTransport } from '../../../../src/transport/mqtt/mqtt.ts'
import { MqttSession } from '../../../../src/transport/mqtt/session.ts'
import type { RawReply, TransportContext, TransportSession } from '../../../../src/transport/transport.ts'
import { expectDpsError } from '../../../support/expect-dps-error.ts'
import {
  type Broker,
  CONNACK,
  type Connection,
  connect as connectTo,
  openSession as openSessionTo,
  publish,
  reply,
  ridOf,
  SUBACK,
  startBroker,
} from './broker.ts'

const REGISTER = { kind: 'register', body: '{"registrationId":"my-device"}' } as const
const QUERY = { kind: 'query', operationId: '5.316aac5bdc130deb.b1e02da8' } as const

let broker: Broker
let idle: string[]
const connections: Connection[] = []
const signals: AbortSignal[] = []

const sockets = () =>
  process.getActiveResourcesInfo().filter((name) => /TCP|TLS/.test(name) && name !== 'TCPServerWrap')

beforeAll(async () => {
  broker = await startBroker()
  idle = sockets()
})
afterAll(() => broker.stop())

// Of every test, however it ended: no socket, no listener on a signal.
afterEach(async () => {
  for (const { opening, peer, socketClosed, controller } of connections.splice(0)) {
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
  expect(sockets()).toEqual(idle)
})

async function connect(options: Partial<TransportContext> = {}): Promise<Connection> {
  const connection = await connectTo(broker, options)
  connections.push(connection)
  return connection
}

async function openSession(
  options: Partial<TransportContext> = {},
): Promise<Connection & { session: TransportSession }> {
  const connection = await openSessionTo(broker, options)
  connections.push(connection)
  return connection
}

/** A request with a signal of its own, whose rejection waits until it is looked at. */
function send(
  session: TransportSession,
  request: typeof REGISTER | typeof QUERY = REGISTER,
): Promise<RawReply> & { controller: AbortController } {
  const controller = new AbortController()
  signals.push(controller.signal)
  const pending = session.request(request, controller.signal)
  pending.catch(() => {})
  return Object.assign(pending, { controller })
}

const bodyOf = ({ body }: RawReply) => Buffer.from(body).toString()

describe('opening', () => {
  it('announces its phases and reports the connection', async () => {
    const { session, phases } = await openSession()
    expect(phases).toEqual(['connect', 'subscribe'])
    expect(session.connection).toEqual({
      transport: 'mqtt',
      protocol: 'TLSv1.2',
      cipher: 'suite',
      curve: 'X25519',
      root: 'broker',
      resumed: false,
      roundTrips: 5,
    })
    expect(Object.isFrozen(session.connection)).toBe(true)
  })

  it('sends the token as password, and asks for it once', async () => {
    let asked = 0
    const { peer } = await connect({
      token: async () => {
        asked++
        return 'SharedAccessSignature sr=a&sig=b&se=1'
      },
    })
    expect(await peer.expect('connect')).toMatchObject({
      clientId: 'my-device',
      username: '0ne00000001/registrations/my-device/api-version=2019-03-31&ClientVersion=test%2F1.0',
      password: Buffer.from('SharedAccessSignature sr=a&sig=b&se=1'),
      clean: true,
      keepalive: 230,
    })
    expect(asked).toBe(1)
    peer.socket.destroy()
  })

  it('dials 8883 unless told otherwise', async () => {
    const dialled: number[] = []
    const refusal = new DpsError('CONNECTION_REFUSED', 'tcp', 'no')
    const context = (port: number | undefined): TransportContext => ({
      host: 'h',
      port,
      idScope: '0ne00000001',
      registrationId: 'd',
      apiVersion: '2019-03-31',
      userAgent: 't',
      maxReplyBytes: 1,
      signal: new AbortController().signal,
      enter: () => expect.fail('the dialer enters its phases itself'),
      token: () => expect.fail('no token before there is a connection'),
      dial: (port) => {
        dialled.push(port)
        return Promise.reject(refusal)
      },
    })
    await expect(mqttTransport().open(context(undefined))).rejects.toBe(refusal)
    await expect(mqttTransport().open(context(18_883))).rejects.toBe(refusal)
    expect(dialled).toEqual([8883, 18_883])
    expect(mqttTransport().name).toBe('mqtt')
  })

  it.each<[number, DpsErrorCode, boolean]>([
    [1, 'PROTOCOL_REFUSED', false],
    [2, 'UNAUTHORIZED', false],
    [3, 'SERVICE_UNAVAILABLE', true],
    [4, 'UNAUTHORIZED', false],
    [5, 'UNAUTHORIZED', false],
    [6, 'PROTOCOL_VIOLATION', true],
    [255, 'PROTOCOL_VIOLATION', true],
  ])('CONNACK %i is %s', async (returnCode, code, retryable) => {
    const { peer, opening } = await connect()
    await peer.expect('connect')
    peer.send({ cmd: 'connack', returnCode, sessionPresent: false })
    const error = await expectDpsError(opening, code, 'connect')
    expect(error.retryable).toBe(retryable)
    expect(error.message).toContain(String(returnCode))
    await peer.closed
  })

  it.each<[string, number, DpsErrorCode | 'success']>([
    ['0x00', 0, 'success'],
    ['0x01', 1, 'success'],
    ['0x02', 2, 'PROTOCOL_VIOLATION'],
    ['0x80', 0x80, 'SUBSCRIPTION_REFUSED'],
  ])('SUBACK %s (%i) is %s', async (_, granted, code) => {
    const { peer, opening } = await connect()
    await peer.expect('connect')
    peer.send(CONNACK)
    expect(await peer.expect('subscribe')).toMatchObject({
      messageId: 1,
      subscriptions: [{ topic: '$dps/registrations/res/#', qos: 1 }],
    })
    peer.send({ cmd: 'suback', messageId: 1, granted: [granted] })
    if (code === 'success') await opening
    else await expectDpsError(opening, code, 'subscribe')
  })

  it('a PUBLISH before SUBACK is acknowledged and answers nobody', async () => {
    const { peer, opening } = await connect()
    await peer.expect('connect')
    peer.send(CONNACK)
    await peer.expect('subscribe')
    peer.send(reply('1', 'early', 200, 5), SUBACK)
    const session = await opening
    expect(await peer.expect('puback')).toMatchObject({ messageId: 5 })
    const pending = send(session)
    peer.send(reply(ridOf(await peer.expect('publish')), 'due'))
    expect(bodyOf(await pending)).toBe('due')
  })

  const lies: [string, DpsPhase, Buffer][] = [
    ['a session although a clean one was asked for', 'connect', Buffer.from([0x20, 2, 1, 0])],
    ['a refusal with a session', 'connect', Buffer.from([0x20, 2, 1, 5])],
    ['SUBACK before CONNACK', 'connect', generate(SUBACK)],
    ['PUBLISH before CONNACK', 'connect', generate(reply('1'))],
    ['PUBACK before CONNACK', 'connect', generate({ cmd: 'puback', messageId: 2 })],
    ['PINGRESP before CONNACK', 'connect', generate({ cmd: 'pingresp' })],
    ['HTTP', 'connect', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
    ['two CONNACKs', 'subscribe', Buffer.concat([generate(CONNACK), generate(CONNACK)])],
    [
      'SUBACK to another packet',
      'subscribe',
      Buffer.concat([generate(CONNACK), generate({ cmd: 'suback', messageId: 2, granted: [1] })]),
    ],
  ]
  it.each(lies)('refuses %s', async (_, phase, bytes) => {
    const { peer, opening } = await connect()
    await peer.expect('connect')
    peer.send(bytes)
    await expectDpsError(opening, 'PROTOCOL_VIOLATION', phase)
    await peer.closed
  })

  it.each([
    ['CONNACK', CONNACK],
    ['PUBLISH', reply('1')],
  ])('refuses %s to a CONNECT that was not sent yet', async (_, packet) => {
    const { peer, opening } = await connect({ token: () => new Promise(() => {}) })
    peer.send(packet)
    await expectDpsError(opening, 'PROTOCOL_VIOLATION', 'connect')
    expect(peer.received()).toHaveLength(0)
  })

  it('a reply of no known form before SUBACK answers nobody either', async () => {
    const { peer, opening } = await connect()
    await peer.expect('connect')
    peer.send(CONNACK)
    await peer.expect('subscribe')
    peer.send(publish('$dps/registrations/res/', 'x'), SUBACK)
    await opening
  })

  it('rejects with what the token function rejects with', async () => {
    const failure = new DpsError('SIGNER_FAILED', 'config', 'the chip does not answer')
    const { peer, opening } = await connect({ token: () => Promise.reject(failure) })
    await expect(opening).rejects.toBe(failure)
    await peer.closed
    expect(peer.received()).toHaveLength(0)
  })

  it('rejects with what the token function throws', async () => {
    const failure = new Error('no driver')
    const token = () => {
      throw failure
    }
    await expect((await connect({ token })).opening).rejects.toBe(failure)
  })

  it('refuses a token that no CONNECT can carry', async () => {
    const { opening } = await connect({ token: async () => 'x'.repeat(65_536) })
    await expectDpsError(opening, 'OPTION_INVALID', 'config')
  })
})

describe('a request', () => {
  it('is a PUBLISH of QoS 1, each with packet and request ids of its own', async () => {
    const { session, peer } = await openSession()
    const ids = new Set<string>()
    for (const [i, request] of [REGISTER, QUERY, QUERY].entries()) {
      const pending = send(session, request)
      const packet = await peer.expect('publish')
      const rid = ridOf(packet)
      ids.add(rid)
      expect(rid).toMatch(/^[0-9a-f]{8}[0-9a-z]+$/)
      expect(packet).toMatchObject({ qos: 1, dup: false, retain: false, messageId: 2 + i })
      expect(packet.topic).toBe(
        request.kind === 'register'
          ? `$dps/registrations/PUT/iotdps-register/?$rid=${rid}`
          : `$dps/registrations/GET/iotdps-get-operationstatus/?$rid=${rid}&operationId=${QUERY.operationId}`,
      )
      expect(packet.payload.toString()).toBe(request.kind === 'register' ? REGISTER.body : '')
      peer.send({ cmd: 'puback', messageId: 2 + i }, reply(rid, `body ${i}`))
      expect(bodyOf(await pending)).toBe(`body ${i}`)
    }
    expect(ids.size).toBe(3)
  })

  it('of another session has another request id', async () => {
    const rids: string[] = []
    for (let i = 0; i < 2; i++) {
      const { session, peer } = await openSession()
      void send(session)
      rids.push(ridOf(await peer.expect('publish')))
    }
    expect(rids[0]).not.toBe(rids[1])
  })

  it('takes its body as UTF-8 and gives the reply as bytes of its own', async () => {
    const { session, peer } = await openSession()
    const controller = new AbortController()
    const body = '{"payload":{"name":"日本 \u{1F600} é"}}'
    const pending = session.request({ kind: 'register', body }, controller.signal)
    const packet = await peer.expect('publish')
    expect(packet.payload.toString()).toBe(body)
    const bytes = Buffer.from([0, 0xff, 0x7b])
    peer.send(publish(`$dps/registrations/res/202/?$rid=${ridOf(packet)}&retry-after=3`, bytes))
    const raw = await pending
    expect(raw).toEqual({ status: 202, retryAfter: '3', body: new Uint8Array(bytes) })
    expect(raw.body.buffer.byteLength).toBe(3)
  })

  it('is answered without any PUBACK', async () => {
    const { session, peer } = await openSession()
    for (let i = 0; i < 3; i++) {
      const pending = send(session)
      peer.send(reply(ridOf(await peer.expect('publish')), 'ok'))
      expect(bodyOf(await pending)).toBe('ok')
    }
  })

  it('is answered before its PUBACK, which may come during the next', async () => {
    const { session, peer } = await openSession()
    const first = send(session)
    peer.send(reply(ridOf(await peer.expect('publish')), 'first'))
    expect(bodyOf(await first)).toBe('first')
    const second = send(session)
    const rid = ridOf(await peer.expect('publish'))
    peer.send({ cmd: 'puback', messageId: 2 }, { cmd: 'pingresp' }, reply(rid, 'second'))
    expect(bodyOf(await second)).toBe('second')
  })

  it('acknowledges every message of QoS 1, in order, its reply or not', async () => {
    const { session, peer } = await openSession()
    const pending = send(session)
    const rid = ridOf(await peer.expect('publish'))
    peer.send(reply('0', 'x', 200, 7), publish('other', 'x', 300), reply(rid, 'ok', 200, 65_535))
    expect(bodyOf(await pending)).toBe('ok')
    for (const messageId of [7, 300, 65_535]) {
      expect(await peer.expect('puback')).toMatchObject({ messageId })
    }
  })

  it('ignores replies to other ids and other topics', async () => {
    const { session, peer } = await openSession()
    const pending = send(session)
    const rid = ridOf(await peer.expect('publish'))
    peer.send(
      reply(`${rid}1`, 'longer'),
      reply(rid.slice(0, -1), 'shorter'),
      reply(rid.toUpperCase() === rid ? 'x' : rid.toUpperCase(), 'another case'),
      publish(`$iothub/twin/res/200/?$rid=${rid}`, 'another service'),
      publish('$dps/registrations/res', 'the filter matches its parent too'),
      reply(rid, 'due'),
    )
    expect(bodyOf(await pending)).toBe('due')
  })

  it('ignores a second reply, at once or during the next request', async () => {
    const { session, peer } = await openSession()
    const first = send(session)
    const rid = ridOf(await peer.expect('publish'))
    peer.send(reply(rid, 'first'), reply(rid, 'again'))
    expect(bodyOf(await first)).toBe('first')
    const second = send(session, QUERY)
    const next = ridOf(await peer.expect('publish'))
    peer.send(reply(rid, 'again'), reply(next, 'second'))
    expect(bodyOf(await second)).toBe('second')
  })

  it('is answered one byte at a time', async () => {
    const { session, peer } = await openSession()
    const pending = send(session)
    const rid = ridOf(await peer.expect('publish'))
    for (const byte of generate(reply(rid, 'slowly', 202, 9))) {
      await new Promise((resolve) => peer.socket.write(Buffer.from([byte]), resolve))
    }
    expect(bodyOf(await pending)).toBe('slowly')
    expect(await peer.expect('puback')).toMatchObject({ messageId: 9 })
  })

  it('is answered by a body of the largest size', async () => {
    const { session, peer } = await openSession()
    const pending = send(session)
    const rid = ridOf(await peer.expect('publish'))
    peer.send(reply(rid, 'x'.repeat(8192)))
    expect((await pending).body).toHaveLength(8192)
  })

  it.each<[string, 'register' | 'poll', (rid: string) => Buffer, DpsErrorCode]>([
    [
      'a body that is one byte too large',
      'register',
      (rid) => generate(reply(rid, 'x'.repeat(8193))),
      'REPLY_TOO_LARGE',
    ],
    [
      'the announcement of a huge body',
      'poll',
      () => Buffer.from([0x30, 0xff, 0xff, 0xff, 0x7f]),
      'REPLY_TOO_LARGE',
    ],
    ['a topic that is not UTF-8', 'poll', () => Buffer.from([0x30, 3, 0, 1, 0x80]), 'PROTOCOL_VIOLATION'],
    ['QoS 2', 'register', () => Buffer.from([0x34, 5, 0, 1, 0x74, 0, 1]), 'PROTOCOL_VIOLATION'],
    ['a second CONNACK', 'register', () => generate(CONNACK), 'PROTOCOL_VIOLATION'],
    ['a second SUBACK', 'poll', () => generate(SUBACK), 'PROTOCOL_VIOLATION'],
  ])('ends the session at %s', async (_, phase, bytes, code) => {
    const { session, peer } = await openSession()
    const pending = send(session, phase === 'register' ? REGISTER : QUERY)
    peer.send(bytes(ridOf(await peer.expect('publish'))))
    const error = await expectDpsError(pending, code, phase)
    await peer.closed
    const after = await expectDpsError(send(session, QUERY), 'CONNECTION_LOST', 'poll')
    expect(after.cause).toBe(error)
  })

  it.each([
    ['no status', '$dps/registrations/res/?$rid='],
    ['a status of letters', '$dps/registrations/res/abc/?$rid='],
    ['no request id', '$dps/registrations/res/200/?retry-after='],
  ])('is refused by a reply topic with %s, and the session goes on', async (_, start) => {
    const { session, peer } = await openSession()
    const pending = send(session)
    peer.send(publish(start + ridOf(await peer.expect('publish')), '{}'))
    await expectDpsError(pending, 'REPLY_MALFORMED', 'parse')
    const next = send(session, QUERY)
    peer.send(reply(ridOf(await peer.expect('publish')), 'fine'))
    expect(bodyOf(await next)).toBe('fine')
  })

  it('is refused while another is under way, which goes on', async () => {
    const { session, peer } = await openSession()
    const first = send(session)
    await expectDpsError(send(session, QUERY), 'TRANSPORT_FAILED', 'poll')
    peer.send(reply(ridOf(await peer.expect('publish')), 'ok'))
    expect(bodyOf(await first)).toBe('ok')
  })

  it('for a lookup, which the service does not offer here, sends nothing and spoils nothing', async () => {
    const { session, peer } = await openSession()
    const sent = peer.received().length
    const lookup = session.request({ kind: 'lookup', body: '{}' }, new AbortController().signal)
    await expectDpsError(lookup, 'TRANSPORT_FAILED', 'config')
    expect(peer.received()).toHaveLength(sent)
    const pending = send(session)
    peer.send(reply(ridOf(await peer.expect('publish')), 'ok'))
    expect(bodyOf(await pending)).toBe('ok')
  })

  it('uses packet ids in turn and never 0', async () => {
    const stream = new Stuck()
    const session = await openOn(stream)
    const { signal } = new AbortController()
    const ids: number[] = []
    for (let i = 0; i < 65_537; i++) {
      const pending = session.request(QUERY, signal)
      const packet = stream.written.pop()!
      const topicBytes = packet.readUInt16BE(2)
      ids.push(packet.readUInt16BE(4 + topicBytes))
      const rid = ridOf({ topic: packet.toString('latin1', 4, 4 + topicBytes) })
      stream.push(encodePublish({ topic: `$dps/registrations/res/202/?$rid=${rid}`, payload: '', qos: 0 }))
      await pending
    }
    expect(ids.slice(0, 2)).toEqual([2, 3])
    expect(ids.slice(65_533)).toEqual([65_535, 1, 2, 3])
    stream.destroy()
  })
})

describe('a connection that is lost', () => {
  // Both ways a peer goes away: it ends its side, or the network says so.
  const ways: [string, (connection: Connection) => void][] = [
    ['ended', ({ peer }) => peer.socket.end()],
    ['reset', ({ peer }) => peer.reset()],
    ['destroyed', ({ peer }) => peer.socket.destroy()],
  ]

  it.each(ways)('while the token is made, by being %s', async (_, drop) => {
    const connection = await connect({ token: () => new Promise(() => {}) })
    drop(connection)
    await expectDpsError(connection.opening, 'CONNECTION_LOST', 'connect')
  })

  it.each(ways)('before CONNACK, by being %s', async (_, drop) => {
    const connection = await connect()
    await connection.peer.expect('connect')
    drop(connection)
    await expectDpsError(connection.opening, 'CONNECTION_LOST', 'connect')
  })

  it.each(ways)('before SUBACK, by being %s', async (_, drop) => {
    const connection = await connect()
    await connection.peer.expect('connect')
    connection.peer.send(CONNACK)
    await connection.peer.expect('subscribe')
    drop(connection)
    await expectDpsError(connection.opening, 'CONNECTION_LOST', 'subscribe')
  })

  it.each(ways)('before the reply, by being %s', async (_, drop) => {
    const connection = await openSession()
    const pending = send(connection.session)
    await connection.peer.expect('publish')
    drop(connection)
    const error = await expectDpsError(pending, 'CONNECTION_LOST', 'register')
    expect(error.retryable).toBe(true)
  })

  it.each(ways)('in the middle of a reply, by being %s', async (_, drop) => {
    const connection = await openSession()
    const pending = send(connection.session, QUERY)
    const bytes = generate(reply(ridOf(await connection.peer.expect('publish')), 'cut short'))
    connection.peer.send(bytes.subarray(0, -1))
    drop(connection)
    await expectDpsError(pending, 'CONNECTION_LOST', 'poll')
  })

  it.each(ways)('between requests, by being %s: the next is refused at once', async (_, drop) => {
    const connection = await openSession()
    const pending = send(connection.session)
    connection.peer.send(reply(ridOf(await connection.peer.expect('publish'))))
    await pending
    drop(connection)
    await connection.socketClosed
    await expectDpsError(send(connection.session, QUERY), 'CONNECTION_LOST', 'poll')
    await connection.session.close()
  })

  it('before the session was made', async () => {
    const stream = new Stuck()
    stream.destroy()
    await once(stream, 'close')
    await expectDpsError(openOn(stream), 'CONNECTION_LOST', 'connect')
  })

  it('by an end while what was sent is stuck', async () => {
    const stream = new Stuck()
    const pending = send(await openOn(stream))
    stream.push(null)
    await expectDpsError(pending, 'CONNECTION_LOST', 'register')
    expect(stream.destroyed).toBe(true)
  })

  it('by this side of the socket, without a word', async () => {
    const { session, socket, peer } = await openSession()
    const pending = send(session)
    await peer.expect('publish')
    socket.destroy()
    await expectDpsError(pending, 'CONNECTION_LOST', 'register')
  })
})

describe('an abort', () => {
  const reason = new DpsError('TIMEOUT', 'connect', 'no answer')

  it('before everything dials nothing', async () => {
    const controller = new AbortController()
    controller.abort(reason)
    const open = mqttTransport().open({
      signal: controller.signal,
      dial: () => expect.fail('dialled'),
    } as unknown as TransportContext)
    await expect(open).rejects.toBe(reason)
  })

  it('right after the dial leaves no socket', async () => {
    const stream = new Stuck()
    const controller = new AbortController()
    const dial = async () => {
      controller.abort(reason)
      return { socket: stream, tls: {}, roundTrips: 3 }
    }
    const enter = () => expect.fail('went on')
    const context = { signal: controller.signal, dial, enter } as unknown as TransportContext
    await expect(mqttTransport().open(context)).rejects.toBe(reason)
    expect(stream.destroyed).toBe(true)
  })

  it('by the announcement of a phase leaves nothing', async () => {
    const asked: string[] = []
    for (const at of ['connect', 'subscribe']) {
      const controller = new AbortController()
      signals.push(controller.signal)
      const { opening, peer } = await connect({
        signal: controller.signal,
        enter: (phase) => phase === at && controller.abort(reason),
        token: async () => {
          asked.push(at)
          return undefined
        },
      })
      if (at === 'subscribe') {
        await peer.expect('connect')
        peer.send(CONNACK)
      }
      await expect(opening).rejects.toBe(reason)
      await peer.closed
    }
    expect(asked).toEqual(['subscribe'])
  })

  it('while the token is made, which then is not sent', async () => {
    let give: (token: string) => void = () => {}
    const token = () =>
      new Promise<string>((resolve) => {
        give = resolve
      })
    const stream = new Stuck()
    const controller = new AbortController()
    const opening = openOn(stream, { token, signal: controller.signal })
    controller.abort(reason)
    await expect(opening).rejects.toBe(reason)
    give('late')
    await new Promise(setImmediate)
    expect(stream.written).toEqual([])
    expect(stream.destroyed).toBe(true)
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
  })

  it('in the silence before CONNACK', async () => {
    const { opening, controller, peer } = await connect()
    await peer.expect('connect')
    controller.abort(reason)
    await expect(opening).rejects.toBe(reason)
    await peer.closed
  })

  it('in the silence before SUBACK', async () => {
    const { opening, controller, peer } = await connect()
    await peer.expect('connect')
    peer.send(CONNACK)
    await peer.expect('subscribe')
    controller.abort(reason)
    await expect(opening).rejects.toBe(reason)
    await peer.closed
  })

  it('in the silence before the reply', async () => {
    const { session, peer } = await openSession()
    const pending = send(session)
    await peer.expect('publish')
    pending.controller.abort(reason)
    await expect(pending).rejects.toBe(reason)
    await peer.closed
    await expectDpsError(send(session), 'CONNECTION_LOST', 'register')
  })

  it('before the request sends nothing', async () => {
    const { session, peer } = await openSession()
    const sent = peer.received().length
    const controller = new AbortController()
    controller.abort(reason)
    await expect(session.request(REGISTER, controller.signal)).rejects.toBe(reason)
    await peer.closed
    expect(peer.received()).toHaveLength(sent)
  })

  it('on a session that has ended changes nothing', async () => {
    const { session, peer, socketClosed } = await openSession()
    peer.send(CONNACK)
    await socketClosed
    const controller = new AbortController()
    controller.abort(reason)
    await expect(session.request(REGISTER, controller.signal)).rejects.toBe(reason)
    const error = await expectDpsError(send(session), 'CONNECTION_LOST', 'register')
    expect(error.cause).toMatchObject({ code: 'PROTOCOL_VIOLATION' })
  })

  it('of the signal of opening means nothing to the open session', async () => {
    const { session, peer, controller } = await openSession()
    controller.abort(reason)
    const pending = send(session)
    peer.send(reply(ridOf(await peer.expect('publish')), 'ok'))
    expect(bodyOf(await pending)).toBe('ok')
  })

  it('after the reply means nothing', async () => {
    const { session, peer } = await openSession()
    const first = send(session)
    peer.send(reply(ridOf(await peer.expect('publish')), 'ok'))
    await first
    first.controller.abort(reason)
    const second = send(session)
    peer.send(reply(ridOf(await peer.expect('publish')), 'ok'))
    expect(bodyOf(await second)).toBe('ok')
  })
})

describe('close', () => {
  const DISCONNECT = Buffer.from([0xe0, 0])

  it('sends DISCONNECT and gives the socket back, without waiting for the server', async () => {
    const { session, peer, socketClosed } = await openSession()
    const ended = once(peer.socket, 'end')
    await session.close()
    await socketClosed
    await ended
    expect(peer.received().subarray(-2)).toEqual(DISCONNECT)
  })

  it('right after a reply of QoS 1 still sends PUBACK first', async () => {
    const { session, peer } = await openSession()
    const pending = send(session)
    peer.send(reply(ridOf(await peer.expect('publish')), 'ok', 200, 9))
    await pending.then(() => session.close())
    await peer.closed
    expect(await peer.expect('puback')).toMatchObject({ messageId: 9 })
    expect(peer.received().subarray(-2)).toEqual(DISCONNECT)
  })

  it('twice, at once and afterwards, is once', async () => {
    const { session, peer } = await openSession()
    const sent = peer.received().length
    await Promise.all([session.close(), session.close()])
    await session.close()
    await peer.closed
    expect(peer.received()).toHaveLength(sent + DISCONNECT.length)
  })

  it('rejects the request that is under way', async () => {
    const { session, peer } = await openSession()
    const pending = send(session, QUERY)
    await peer.expect('publish')
    await session.close()
    await expectDpsError(pending, 'CONNECTION_LOST', 'poll')
    await peer.closed
  })

  it('refuses every later request', async () => {
    const { session, peer } = await openSession()
    await session.close()
    await expectDpsError(send(session), 'CONNECTION_LOST', 'register')
    await expectDpsError(send(session, QUERY), 'CONNECTION_LOST', 'poll')
    await peer.closed
  })

  it('after a loss, an abort and a violation resolves', async () => {
    const lost = await openSession()
    lost.peer.socket.destroy()
    await lost.socketClosed
    await lost.session.close()

    const aborted = await openSession()
    const pending = send(aborted.session)
    pending.controller.abort(new DpsError('CANCELLED', 'register', 'stop'))
    await expectDpsError(pending, 'CANCELLED', 'register')
    await aborted.session.close()

    const violated = await openSession()
    violated.peer.send(generate(CONNACK))
    await violated.socketClosed
    await violated.session.close()
  })

  it('ignores what the server still sends', async () => {
    const stream = new Stuck()
    const session = await openOn(stream)
    const closing = session.close()
    const sent = stream.written.length
    stream.push(generate(reply('x', 'y', 200, 3)))
    await new Promise(setImmediate)
    expect(stream.written).toHaveLength(sent)
    stream.destroy()
    await closing
  })

  it('does not wait for bytes that the server does not take', async () => {
    const stream = new Stuck()
    const session = await openOn(stream)
    const pending = session.request(
      { kind: 'register', body: 'x'.repeat(2000) },
      new AbortController().signal,
    )
    stream.push(generate(reply('r1')))
    await pending
    await session.close()
    expect(stream.destroyed).toBe(true)
    expect(stream.writableEnded).toBe(false)
  })
})

describe('a server that sends and does not read', () => {
  it('cannot make the client hold acknowledgements without end', async () => {
    const stream = new Stuck()
    const session = await openOn(stream)
    const pending = send(session)
    const message = generate(publish('t', '', 1))
    const flood = Buffer.concat(Array.from({ length: 8192 }, () => message))
    for (let i = 0; i < 100 && !stream.destroyed; i++) {
      stream.push(flood)
      await new Promise(setImmediate)
    }
    await expectDpsError(pending, 'PROTOCOL_VIOLATION', 'register')
    expect(stream.writableLength).toBeLessThan(512 * 1024)
  })
})

/** A stream that takes everything and passes nothing on, as a socket whose peer does not read. */
class Stuck extends Duplex {
  readonly written: Buffer[] = []

  constructor() {
    super({ allowHalfOpen: false })
    this.on('error', () => {})
  }

  override _read(): void {}

  override write(chunk: Buffer): boolean {
    this.written.push(chunk)
    return super.write(chunk)
  }

  override _write(): void {}
}

async function openOn(stream: Stuck, context: Partial<TransportContext> = {}): Promise<MqttSession> {
  const opening = MqttSession.open(
    stream,
    {
      transport: 'mqtt',
      protocol: 'TLSv1.2',
      cipher: 'suite',
      curve: 'X25519',
      root: 'broker',
      resumed: false,
      roundTrips: 5,
    },
    {
      idScope: '0ne00000001',
      registrationId: 'my-device',
      apiVersion: '2019-03-31',
      userAgent: 'test/1.0',
      maxReplyBytes: 8192,
      signal: new AbortController().signal,
      enter: () => {},
      token: async () => undefined,
      ...context,
    },
    'r',
  )
  opening.catch(() => {})
  await new Promise(setImmediate)
  if (!stream.destroyed) stream.push(Buffer.concat([generate(CONNACK), generate(SUBACK)]))
  return opening
}
