import { getEventListeners } from 'node:events'
import { Duplex } from 'node:stream'
import fc from 'fast-check'
import { generate, type Packet } from 'mqtt-packet'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { DpsError, type DpsErrorCode, type DpsPhase } from '../../../../src/errors.ts'
import { MqttSession } from '../../../../src/transport/mqtt/session.ts'
import type {
  RawReply,
  TransportContext,
  TransportRequest,
  TransportSession,
} from '../../../../src/transport/transport.ts'
import { expectDpsError } from '../../../support/expect-dps-error.ts'
import {
  type Broker,
  CONNACK,
  type Connection,
  connect as connectTo,
  type Peer,
  publish,
  reply,
  ridOf,
  SUBACK,
  startBroker,
} from './broker.ts'

const REGISTER = { kind: 'register', body: '{"registrationId":"my-device"}' } as const
const QUERY = { kind: 'query', operationId: '5.316aac5bdc130deb.b1e02da8' } as const

let broker: Broker
const connections: Connection[] = []
const signals: AbortSignal[] = []

beforeAll(async () => {
  broker = await startBroker()
})
afterAll(() => broker.stop())

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
})

/** Opens a session that sends everything at once, and reads what it has sent. */
async function connect(
  options: Partial<TransportContext> = {},
): Promise<Connection & { readonly rid: string }> {
  const connection = await connectTo(broker, { firstRequest: REGISTER, ...options })
  connections.push(connection)
  return { ...connection, rid: await flight(connection.peer) }
}

/** Takes the three packets; returns the id of the request. */
async function flight(peer: Peer): Promise<string> {
  await peer.expect('connect')
  await peer.expect('subscribe')
  return ridOf(await peer.expect('publish'))
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

const bodyOf = ({ body }: RawReply) => Buffer.from(body).toString()

describe('a session with a first request', () => {
  it('sends CONNECT, SUBSCRIBE and PUBLISH in one TLS record, in this order', async () => {
    const connection = await connectTo(broker, { firstRequest: REGISTER, token: async () => 'token' })
    connections.push(connection)
    const { peer, opening } = connection
    expect(await peer.expect('connect')).toMatchObject({ clientId: 'my-device' })
    expect(await peer.expect('subscribe')).toMatchObject({ messageId: 1 })
    const packet = await peer.expect('publish')
    expect(packet).toMatchObject({ qos: 1, messageId: 2 })
    expect(packet.topic).toContain('$dps/registrations/PUT/iotdps-register/?$rid=')
    expect(packet.payload.toString()).toBe(REGISTER.body)
    expect(peer.chunks).toHaveLength(1)
    peer.socket.destroy()
    await expectDpsError(opening, 'CONNECTION_LOST', 'connect')
  })

  it('announces the same phases, and counts the round trips of the dialer alone', async () => {
    const { peer, opening, phases } = await connect()
    expect(phases).toEqual(['connect'])
    peer.send(CONNACK)
    peer.send(SUBACK)
    const { connection } = await opening
    expect(phases).toEqual(['connect', 'subscribe'])
    expect(connection.roundTrips).toBe(3)
  })

  it('sends nothing more until it is asked for more', async () => {
    const { peer, opening, rid } = await connect()
    const sent = peer.received().length
    peer.send(CONNACK, SUBACK)
    const pending = send(await opening)
    peer.send({ cmd: 'puback', messageId: 2 }, reply(rid, 'first'))
    expect(bodyOf(await pending)).toBe('first')
    expect(peer.received()).toHaveLength(sent)
    const second = send(await opening, QUERY)
    const packet = await peer.expect('publish')
    expect(packet.messageId).toBe(3)
    expect(ridOf(packet)).not.toBe(rid)
    peer.send(reply(ridOf(packet), 'second'))
    expect(bodyOf(await second)).toBe('second')
  })

  it('may begin with a query', async () => {
    const { peer, opening, rid } = await connect({ firstRequest: QUERY })
    peer.send(CONNACK, SUBACK, reply(rid, 'status'))
    expect(bodyOf(await send(await opening, QUERY))).toBe('status')
    expect(peer.received().toString('latin1')).toContain(`operationId=${QUERY.operationId}`)
  })

  it('waits for each answer where the first request is a lookup', async () => {
    const connection = await connectTo(broker, { firstRequest: { kind: 'lookup', body: '{}' } })
    connections.push(connection)
    const { peer, opening } = connection
    await peer.expect('connect')
    peer.send(CONNACK)
    await peer.expect('subscribe')
    peer.send(SUBACK)
    expect((await opening).connection.roundTrips).toBe(5)
  })

  it('sends the same request again where it is asked again', async () => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, SUBACK, reply(rid, 'first'))
    const session = await opening
    expect(bodyOf(await send(session))).toBe('first')
    const again = send(session)
    peer.send(reply(ridOf(await peer.expect('publish')), 'again'))
    expect(bodyOf(await again)).toBe('again')
  })

  it.each<[string, TransportRequest]>([
    ['a query', QUERY],
    ['another body', { kind: 'register', body: '{}' }],
  ])('answers %s in place of the first with its own reply', async (_, request) => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, SUBACK, reply(rid, 'early'))
    const session = await opening
    const pending = send(session, request)
    const own = ridOf(await peer.expect('publish'))
    peer.send(reply(rid, 'early'), reply(own, 'own'))
    expect(bodyOf(await pending)).toBe('own')
  })

  it('keeps the reply for its request while a lookup is refused', async () => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, SUBACK, reply(rid, 'early'))
    const session = await opening
    await expectDpsError(send(session, { kind: 'lookup', body: '{}' }), 'TRANSPORT_FAILED', 'config')
    expect(bodyOf(await send(session))).toBe('early')
  })
})

describe('a token', () => {
  it('is asked for before the dial, and once', async () => {
    const order: string[] = []
    const { peer } = await connect({
      token: async () => {
        order.push('token')
        return 'SharedAccessSignature sr=a'
      },
      enter: (phase) => order.push(phase),
    })
    expect(order).toEqual(['token', 'connect'])
    peer.socket.end()
    expect(peer.received().toString('latin1')).toContain('SharedAccessSignature sr=a')
  })

  it('that cannot be made is why open rejects, whether it failed before the connection was there or after', async () => {
    const failure = new DpsError('SIGNER_FAILED', 'config', 'the chip does not answer')
    const later = () => new Promise<never>((_, reject) => setTimeout(reject, 50, failure))
    const thrown = () => {
      throw failure
    }
    for (const token of [() => Promise.reject(failure), later, thrown]) {
      const connection = await connectTo(broker, { firstRequest: REGISTER, token })
      connections.push(connection)
      await expect(connection.opening).rejects.toBe(failure)
      expect(connection.peer.received()).toHaveLength(0)
    }
  })
})

describe('a reply that comes early', () => {
  it('in one chunk with CONNACK and SUBACK is kept', async () => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, SUBACK, { cmd: 'puback', messageId: 2 }, reply(rid, 'early', 202))
    const session = await opening
    await new Promise(setImmediate)
    expect(await send(session)).toEqual({
      status: 202,
      retryAfter: undefined,
      body: new Uint8Array(Buffer.from('early')),
    })
  })

  it('before SUBACK is kept, and acknowledged', async () => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, reply(rid, 'early', 200, 9))
    expect(await peer.expect('puback')).toMatchObject({ messageId: 9 })
    peer.send(SUBACK)
    expect(bodyOf(await send(await opening))).toBe('early')
  })

  it('twice is the first', async () => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, reply(rid, 'first'), SUBACK, reply(rid, 'again'))
    expect(bodyOf(await send(await opening))).toBe('first')
  })

  it('to another id is not kept', async () => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, reply(`${rid}0`, 'foreign'), SUBACK)
    const pending = send(await opening)
    peer.send(reply(rid, 'due'))
    expect(bodyOf(await pending)).toBe('due')
  })

  it('and then the end of the connection is the reply', async () => {
    const { peer, opening, rid, socketClosed } = await connect()
    peer.send(CONNACK, SUBACK, reply(rid, 'last words'))
    const session = await opening
    peer.socket.end()
    await socketClosed
    expect(bodyOf(await send(session))).toBe('last words')
    await expectDpsError(send(session), 'CONNECTION_LOST', 'register')
  })

  it('is nobody’s after close', async () => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, SUBACK, reply(rid, 'early'))
    const session = await opening
    await session.close()
    await expectDpsError(send(session), 'CONNECTION_LOST', 'register')
  })

  it('of no known form is refused when it is asked for, and the session goes on', async () => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, SUBACK, publish(`$dps/registrations/res/abc/?$rid=${rid}`, '{}'))
    const session = await opening
    await expectDpsError(send(session), 'REPLY_MALFORMED', 'parse')
    const next = send(session, QUERY)
    peer.send(reply(ridOf(await peer.expect('publish')), 'fine'))
    expect(bodyOf(await next)).toBe('fine')
  })

  it('one byte at a time is whole', async () => {
    const { peer, opening, rid } = await connect()
    for (const byte of Buffer.concat(
      [CONNACK, SUBACK, reply(rid, 'slowly')].map((packet) => generate(packet)),
    )) {
      await new Promise((resolve) => peer.socket.write(Buffer.from([byte]), resolve))
    }
    expect(bodyOf(await send(await opening))).toBe('slowly')
  })
})

describe('a server that lies', () => {
  it.each<[string, (rid: string) => Packet[]]>([
    ['a reply before CONNACK', (rid) => [reply(rid), CONNACK, SUBACK]],
    ['SUBACK before CONNACK', () => [SUBACK, CONNACK]],
    ['PUBACK before CONNACK', () => [{ cmd: 'puback', messageId: 2 }, CONNACK, SUBACK]],
    ['a session that was not asked for', () => [{ ...CONNACK, sessionPresent: true } as Packet, SUBACK]],
    ['a reserved return code', () => [{ ...CONNACK, returnCode: 6 } as Packet, SUBACK]],
  ])('with %s breaks the protocol', async (_, packets) => {
    const { peer, opening, rid } = await connect()
    peer.send(...packets(rid))
    await expectDpsError(opening, 'PROTOCOL_VIOLATION', 'connect')
    await peer.closed
  })

  it.each<[string, (rid: string) => Packet[], DpsErrorCode]>([
    ['SUBACK to another packet', () => [{ cmd: 'suback', messageId: 2, granted: [1] }], 'PROTOCOL_VIOLATION'],
    [
      'SUBACK to another packet behind a reply',
      (rid) => [reply(rid), { cmd: 'suback', messageId: 2, granted: [1] }],
      'PROTOCOL_VIOLATION',
    ],
    ['a second CONNACK', () => [CONNACK, SUBACK], 'PROTOCOL_VIOLATION'],
    ['more than was asked for', () => [{ cmd: 'suback', messageId: 1, granted: [2] }], 'PROTOCOL_VIOLATION'],
    [
      'a refused subscription before a reply',
      (rid) => [{ cmd: 'suback', messageId: 1, granted: [0x80] }, reply(rid)],
      'SUBSCRIPTION_REFUSED',
    ],
  ])('with %s after CONNACK is %s', async (_, packets, code) => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, ...packets(rid))
    await expectDpsError(opening, code, 'subscribe')
    await peer.closed
  })

  it.each<[number, DpsErrorCode]>([
    [1, 'PROTOCOL_REFUSED'],
    [2, 'UNAUTHORIZED'],
    [3, 'SERVICE_UNAVAILABLE'],
    [4, 'UNAUTHORIZED'],
    [5, 'UNAUTHORIZED'],
  ])('with CONNACK %i, and answers to what followed nevertheless, is %s', async (returnCode, code) => {
    const { peer, opening, rid } = await connect()
    peer.send({ cmd: 'connack', returnCode, sessionPresent: false }, SUBACK, reply(rid, 'assigned'))
    await expectDpsError(opening, code, 'connect')
    await peer.closed
  })

  it.each<[string, (rid: string) => Packet, DpsErrorCode]>([
    ['a reply that is too large', (rid) => reply(rid, 'x'.repeat(8193)), 'REPLY_TOO_LARGE'],
    ['a second SUBACK', () => SUBACK, 'PROTOCOL_VIOLATION'],
    ['a second CONNACK', () => CONNACK, 'PROTOCOL_VIOLATION'],
  ])('with %s right behind SUBACK fails the request', async (_, packet, code) => {
    const { peer, opening, rid } = await connect()
    peer.send(CONNACK, SUBACK, packet(rid))
    const error = await expectDpsError(send(await opening), code, 'register')
    await peer.closed
    const after = await expectDpsError(send(await opening, QUERY), 'CONNECTION_LOST', 'poll')
    expect(after.cause).toBe(error)
  })
})

describe('a connection that is lost', () => {
  const ways: [string, (peer: Peer) => void][] = [
    ['ended', (peer) => peer.socket.end()],
    ['reset', (peer) => peer.reset()],
    ['destroyed', (peer) => peer.socket.destroy()],
  ]
  const states: [DpsPhase, Packet[]][] = [
    ['connect', []],
    ['subscribe', [CONNACK]],
  ]
  for (const [phase, answers] of states) {
    it.each(ways)(`in phase ${phase}, by being %s`, async (_, drop) => {
      const { peer, opening, phases } = await connect()
      if (answers.length > 0) peer.send(...answers)
      while (!phases.includes(phase)) await new Promise(setImmediate)
      drop(peer)
      await expectDpsError(opening, 'CONNECTION_LOST', phase)
    })
  }

  it.each(ways)('before the reply, by being %s, whether it was asked for or not', async (_, drop) => {
    for (const asked of [true, false]) {
      const { peer, opening, socketClosed } = await connect()
      peer.send(CONNACK, SUBACK)
      const session = await opening
      const before = asked ? send(session) : undefined
      drop(peer)
      await socketClosed
      await expectDpsError(before ?? send(session), 'CONNECTION_LOST', 'register')
    }
  })
})

describe('an abort', () => {
  const reason = new DpsError('TIMEOUT', 'connect', 'no answer')

  it('while the token is made sends nothing', async () => {
    const connection = await connectTo(broker, { firstRequest: REGISTER, token: () => new Promise(() => {}) })
    connections.push(connection)
    connection.controller.abort(reason)
    await expect(connection.opening).rejects.toBe(reason)
    await connection.peer.closed
    expect(connection.peer.received()).toHaveLength(0)
  })

  it('in the silence before CONNACK, and before SUBACK with a reply there', async () => {
    for (const answered of [false, true]) {
      const { peer, opening, controller, rid, phases } = await connect()
      if (answered) peer.send(CONNACK, reply(rid))
      while (answered && !phases.includes('subscribe')) await new Promise(setImmediate)
      controller.abort(reason)
      await expect(opening).rejects.toBe(reason)
      await peer.closed
    }
  })

  it('by the announcement of a phase', async () => {
    for (const at of ['connect', 'subscribe']) {
      const controller = new AbortController()
      signals.push(controller.signal)
      const connection = await connectTo(broker, {
        firstRequest: REGISTER,
        signal: controller.signal,
        enter: (phase) => phase === at && controller.abort(reason),
      })
      connections.push(connection)
      if (at === 'subscribe') {
        const rid = await flight(connection.peer)
        connection.peer.send(CONNACK, SUBACK, reply(rid))
      }
      await expect(connection.opening).rejects.toBe(reason)
      await connection.peer.closed
    }
  })

  it('of the request, before and after its reply is there', async () => {
    const waiting = await connect()
    waiting.peer.send(CONNACK, SUBACK)
    const pending = send(await waiting.opening)
    pending.controller.abort(reason)
    await expect(pending).rejects.toBe(reason)
    await waiting.peer.closed

    const answered = await connect()
    answered.peer.send(CONNACK, SUBACK, reply(answered.rid))
    const session = await answered.opening
    const controller = new AbortController()
    controller.abort(reason)
    await expect(session.request(REGISTER, controller.signal)).rejects.toBe(reason)
    await answered.peer.closed
    await expectDpsError(send(session), 'CONNECTION_LOST', 'register')
  })

  it('of the signal of opening means nothing to the open session', async () => {
    const { peer, opening, controller, rid } = await connect()
    peer.send(CONNACK, SUBACK)
    const pending = send(await opening)
    controller.abort(reason)
    peer.send(reply(rid, 'ok'))
    expect(bodyOf(await pending)).toBe('ok')
  })
})

// What a server may say at each of its three turns, and when it ends the connection.

interface Turn {
  readonly packets: readonly Buffer[]
  /** Whether the device has got what it waits for. */
  readonly goesOn: boolean
}

interface Script {
  readonly turns: readonly Turn[]
  /** The turn after which the server goes away, if it has not before. */
  readonly end: number
  /** Length of the pieces in which the server speaks. */
  readonly piece: number
}

const ok = [generate(CONNACK), generate(SUBACK), generate(reply('r1', '{"status":"assigned"}'))] as const
const harmless: readonly Packet[] = [
  { cmd: 'puback', messageId: 2 },
  { cmd: 'pingresp' },
  reply('other', 'x', 200, 4),
  publish('elsewhere', 'x'),
]
const harmful: readonly Packet[] = [
  CONNACK,
  { cmd: 'connack', returnCode: 5, sessionPresent: false },
  { cmd: 'connack', returnCode: 0, sessionPresent: true },
  { cmd: 'suback', messageId: 1, granted: [0x80] },
  { cmd: 'suback', messageId: 7, granted: [1] },
]
const one = (packets: readonly Packet[]): fc.Arbitrary<Buffer> =>
  fc.oneof(
    { weight: 4, arbitrary: fc.constantFrom(...packets.map((packet) => generate(packet))) },
    { weight: 1, arbitrary: fc.constant(Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')) },
  )
const any = one([...harmless, ...harmful])

function turn(index: number): fc.Arbitrary<Turn> {
  const due =
    index < 2
      ? fc.constant(ok[index]!)
      : fc.constantFrom(
          ok[2],
          generate(reply('r1', 'first', 202, 8)),
          generate(publish('$dps/registrations/res/2x2/?$rid=r1', '')),
          generate(reply('r1', 'x'.repeat(300))),
        )
  // Behind SUBACK it is a matter of time whether the request was sent before something harmful comes.
  const behind = index === 1 ? fc.constantFrom(...harmless.map((packet) => generate(packet))) : any
  return fc.oneof(
    { weight: 6, arbitrary: due.map((packet) => ({ packets: [packet], goesOn: true })) },
    { weight: 2, arbitrary: fc.tuple(any, due).map((packets) => ({ packets, goesOn: true })) },
    { weight: 2, arbitrary: fc.tuple(due, behind).map((packets) => ({ packets, goesOn: true })) },
    {
      weight: 1,
      arbitrary: fc.array(any, { maxLength: 2 }).map((packets) => ({ packets, goesOn: false })),
    },
  )
}

const script: fc.Arbitrary<Script> = fc.record({
  turns: fc.tuple(turn(0), turn(1), turn(2)),
  end: fc.constantFrom(0, 1, 2, 2, 2),
  piece: fc.integer({ min: 1, max: 60 }),
})

/** Answers as scripted: one turn for each packet of the device, as soon as it has sent it. */
class Scripted extends Duplex {
  #turn = 0
  readonly #script: Script

  constructor(played: Script) {
    super({ allowHalfOpen: false })
    this.#script = played
    this.on('error', () => {})
  }

  override _read(): void {}

  override _write(chunk: Buffer, _: string, done: () => void): void {
    done()
    let asked = 0
    for (let at = 0; at < chunk.length; ) {
      // CONNECT, SUBSCRIBE and PUBLISH: the others wait for no answer. Every packet here is shorter than 16 384 bytes.
      if ([1, 8, 3].includes(chunk[at]! >> 4)) asked++
      const long = chunk[at + 1]! >= 0x80
      at += long ? 3 + ((chunk[at + 1]! & 0x7f) | (chunk[at + 2]! << 7)) : 2 + chunk[at + 1]!
    }
    // As a socket does: never within the write.
    setImmediate(() => this.#answer(asked))
  }

  #answer(asked: number): void {
    const { turns, end, piece } = this.#script
    for (; asked > 0 && this.#turn <= end; asked--) {
      const { packets, goesOn } = turns[this.#turn]!
      const bytes = Buffer.concat(packets)
      for (let at = 0; at < bytes.length; at += piece) this.push(bytes.subarray(at, at + piece))
      this.#turn = goesOn ? this.#turn + 1 : Number.POSITIVE_INFINITY
      if (this.#turn > end) this.push(null)
    }
  }
}

async function outcome(played: Script, firstRequest?: TransportRequest) {
  const stream = new Scripted(played)
  const { signal } = new AbortController()
  try {
    const session = await MqttSession.open(
      stream,
      {
        ...{ transport: 'mqtt', protocol: 'TLSv1.2', cipher: 'suite', curve: 'X25519', root: 'broker' },
        ...{ resumed: false, roundTrips: 3 },
      },
      {
        ...{ idScope: '0ne00000001', registrationId: 'my-device', apiVersion: '2019-03-31', userAgent: 't' },
        ...{ maxReplyBytes: 256, signal, enter: () => {}, token: async () => undefined, firstRequest },
      },
      'r',
    )
    const { status, body } = await session.request(REGISTER, signal)
    return `${status} ${Buffer.from(body)}`
  } catch (error) {
    if (!DpsError.is(error)) throw error
    return `${error.code} · ${error.phase}`
  } finally {
    stream.destroy()
    expect(getEventListeners(signal, 'abort')).toEqual([])
  }
}

it('a server that says the same at each turn leads to the same outcome, pipelined or not', async () => {
  const seen = new Set<string>()
  await fc.assert(
    fc.asyncProperty(script, async (played) => {
      const plain = await outcome(played)
      seen.add(plain)
      expect(await outcome(played, REGISTER)).toBe(plain)
    }),
    { numRuns: 500 },
  )
  // Else it says little.
  expect(seen.size).toBeGreaterThan(10)
})
