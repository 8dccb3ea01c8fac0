import fc from 'fast-check'
import { generate, type Packet, parser, writeToStream } from 'mqtt-packet'
import { describe, expect, it } from 'vitest'
import type { DpsPhase } from '../../../../src/errors.ts'
import {
  encodeConnect,
  encodeDisconnect,
  encodePubacks,
  encodePublish,
  encodeSubscribe,
} from '../../../../src/transport/mqtt/codec.ts'
import { PacketReader, type ServerPacket } from '../../../../src/transport/mqtt/reader.ts'
import { expectDpsError } from '../../../support/expect-dps-error.ts'

writeToStream.cacheNumbers = false

/** What mqtt-packet makes of bytes: exactly one packet, nothing left over. */
function parseOne(bytes: Buffer): Packet {
  const packets: Packet[] = []
  const reading = parser({ protocolVersion: 4 })
  reading.on('packet', (packet) => packets.push(packet))
  reading.on('error', (error) => {
    throw error
  })
  expect(reading.parse(bytes)).toBe(0)
  expect(packets).toHaveLength(1)
  return packets[0]!
}

/** Reads chunks to the end; keeps copies, as a session would. */
function readAll(
  reader: PacketReader,
  chunks: readonly Buffer[],
  phase: DpsPhase = 'register',
): ServerPacket[] {
  const packets: ServerPacket[] = []
  for (const chunk of chunks) {
    reader.push(chunk)
    for (let packet = reader.next(phase); packet !== undefined; packet = reader.next(phase)) {
      packets.push(packet.type === 'publish' ? { ...packet, payload: Buffer.from(packet.payload) } : packet)
    }
  }
  return packets
}

const text = (maxLength: number) =>
  fc.oneof(
    fc.string({ maxLength }),
    fc.string({ unit: 'grapheme', maxLength: Math.ceil(maxLength / 4) }),
    fc.constantFrom('', 'ascii', 'é', '日本語', '\u{1F600}', 'a\u{1F600}b'),
  )
const packetId = fc.integer({ min: 1, max: 65_535 })
// Around the places where the remaining length takes another byte.
const payloadSize = fc.oneof(
  fc.integer({ min: 0, max: 300 }),
  fc.constantFrom(100, 120, 125, 127, 128, 129, 16_350, 16_383, 16_384, 16_400, 70_000),
)
const payload = payloadSize.chain((size) =>
  fc.oneof(
    fc.constant(Buffer.alloc(size, 0xa5)),
    fc
      .uint8Array({ minLength: Math.min(size, 300), maxLength: Math.min(size, 300) })
      .map((b) => Buffer.from(b)),
  ),
)
const topic = fc
  .oneof(
    fc.string({ minLength: 1, maxLength: 80 }),
    fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 }),
  )
  .map((t) => t.replace(/[#+\0]/g, '-'))

describe('what we encode, mqtt-packet reads as the same', () => {
  it('CONNECT', () => {
    fc.assert(
      fc.property(
        text(200),
        text(200),
        fc.option(text(400), { nil: undefined }),
        fc.integer({ min: 0, max: 65_535 }),
        (clientId, userName, password, keepAliveSeconds) => {
          const packet = parseOne(encodeConnect({ clientId, userName, password, keepAliveSeconds }))
          expect(packet).toMatchObject({
            cmd: 'connect',
            protocolId: 'MQTT',
            protocolVersion: 4,
            clean: true,
            keepalive: keepAliveSeconds,
            clientId,
            username: userName,
          })
          expect('password' in packet && packet.password?.toString()).toEqual(password ?? false)
          expect(packet).not.toHaveProperty('will')
        },
      ),
    )
  })

  it('SUBSCRIBE', () => {
    fc.assert(
      fc.property(packetId, topic, fc.constantFrom<0 | 1>(0, 1), (messageId, filter, qos) => {
        expect(parseOne(encodeSubscribe(messageId, filter, qos))).toMatchObject({
          cmd: 'subscribe',
          messageId,
          subscriptions: [{ topic: filter, qos }],
        })
      }),
    )
  })

  it('PUBLISH with bytes and with text', () => {
    fc.assert(
      fc.property(
        topic,
        fc.oneof(payload, text(300)),
        fc.constantFrom<0 | 1>(0, 1),
        fc.boolean(),
        packetId,
        (topic, payload, qos, repeated, id) => {
          const dup = repeated && qos === 1
          const packet = parseOne(encodePublish({ topic, payload, qos, dup, packetId: id }))
          expect(packet).toMatchObject({ cmd: 'publish', topic, qos, dup, retain: false })
          expect(
            'payload' in packet && Buffer.from(packet.payload).equals(Buffer.from(payload as Buffer)),
          ).toBe(true)
          if (qos === 1) expect(packet.messageId).toBe(id)
        },
      ),
    )
  })

  it('PUBACKs, each of them, in order', () => {
    fc.assert(
      fc.property(fc.array(packetId, { minLength: 1, maxLength: 20 }), (ids) => {
        const bytes = encodePubacks(ids)
        expect(bytes).toHaveLength(4 * ids.length)
        for (const [i, id] of ids.entries()) {
          expect(parseOne(bytes.subarray(4 * i, 4 * i + 4))).toMatchObject({ cmd: 'puback', messageId: id })
        }
      }),
    )
  })

  it('DISCONNECT', () => expect(parseOne(encodeDisconnect())).toMatchObject({ cmd: 'disconnect' }))

  it('byte for byte as mqtt-packet writes it', () => {
    fc.assert(
      fc.property(
        text(100).filter((id) => id !== ''),
        text(100).filter((name) => name !== ''),
        text(100).filter((password) => password !== ''),
        (clientId, username, password) => {
          const ours = encodeConnect({ clientId, userName: username, password, keepAliveSeconds: 230 })
          const theirs = generate({
            cmd: 'connect',
            protocolId: 'MQTT',
            protocolVersion: 4,
            clean: true,
            keepalive: 230,
            clientId,
            username,
            password: Buffer.from(password),
          })
          expect(ours.equals(theirs)).toBe(true)
        },
      ),
    )
  })

  it.each([127, 128, 16_383, 16_384, 2_097_151, 2_097_152])('a remaining length of %i', (length) => {
    const bytes = encodePublish({ topic: 't', payload: Buffer.alloc(length - 3), qos: 0 })
    expect(parseOne(bytes).length).toBe(length)
  })
})

describe('what does not fit', () => {
  const long = 'x'.repeat(65_536)
  const connect = { clientId: 'd', userName: 'u', keepAliveSeconds: 0 }

  it.each([
    ['a client id', () => encodeConnect({ ...connect, clientId: long })],
    ['a user name', () => encodeConnect({ ...connect, userName: long })],
    ['a password', () => encodeConnect({ ...connect, password: long })],
    ['a filter', () => encodeSubscribe(1, long, 1)],
    ['a topic', () => encodePublish({ topic: long, payload: '', qos: 0 })],
  ])('%s of 65 536 bytes is refused, not truncated', async (_, encode) => {
    await expectDpsError(encode, 'OPTION_INVALID', 'config')
  })

  it('65 535 bytes fit', () => {
    expect(parseOne(encodePublish({ topic: long.slice(1), payload: '', qos: 0 }))).toMatchObject({
      topic: long.slice(1),
    })
  })

  it('a packet over the largest remaining length is refused before memory is taken', async () => {
    const payload = new Proxy(new Uint8Array(), {
      get: (target, name) => (name === 'length' ? 268_435_455 : Reflect.get(target, name, target)),
    })
    await expectDpsError(() => encodePublish({ topic: 't', payload, qos: 0 }), 'OPTION_INVALID', 'config')
  })
})

/** A packet as a server may send it, as mqtt-packet's input and as what we must read. */
const serverPacket: fc.Arbitrary<{ sent: Packet; read: ServerPacket }> = fc.oneof(
  fc.tuple(fc.boolean(), fc.integer({ min: 0, max: 255 })).map(([sessionPresent, returnCode]) => ({
    sent: { cmd: 'connack', sessionPresent, returnCode } as Packet,
    read: { type: 'connack', sessionPresent, returnCode } as ServerPacket,
  })),
  fc.tuple(packetId, fc.constantFrom<0 | 1 | 2 | 0x80>(0, 1, 2, 0x80)).map(([id, returnCode]) => ({
    sent: { cmd: 'suback', messageId: id, granted: [returnCode] } as Packet,
    read: { type: 'suback', packetId: id, returnCode } as ServerPacket,
  })),
  packetId.map((id) => ({
    sent: { cmd: 'puback', messageId: id } as Packet,
    read: { type: 'puback', packetId: id } as ServerPacket,
  })),
  fc.constant({ sent: { cmd: 'pingresp' } as Packet, read: { type: 'pingresp' } as ServerPacket }),
  fc
    .record({
      topic,
      payload,
      qos: fc.constantFrom<0 | 1>(0, 1),
      repeated: fc.boolean(),
      retain: fc.boolean(),
      id: packetId,
    })
    .map(({ topic, payload, qos, repeated, retain, id }) => {
      const dup = repeated && qos === 1
      return {
        sent: { cmd: 'publish', topic, payload, qos, dup, retain, messageId: id } as Packet,
        read: {
          type: 'publish',
          topic,
          payload,
          qos,
          dup,
          retain,
          packetId: qos === 1 ? id : undefined,
        } as ServerPacket,
      }
    }),
)

/** Cuts bytes into chunks of these sizes, and puts an empty one before each. */
function chunked(bytes: Buffer, sizes: Iterator<number>): Buffer[] {
  const chunks: Buffer[] = []
  for (let at = 0; at < bytes.length; ) {
    const size = sizes.next().value as number
    chunks.push(Buffer.alloc(0), bytes.subarray(at, at + size))
    at += size
  }
  return chunks
}
const chunkSizes = fc.oneof(
  fc.infiniteStream(fc.integer({ min: 1, max: 7 })),
  fc.infiniteStream(fc.constant(1)),
  fc.infiniteStream(fc.integer({ min: 1, max: 40_000 })),
)

describe('what mqtt-packet writes, we read as the same', () => {
  it('for any packets in any chunks', () => {
    fc.assert(
      fc.property(fc.array(serverPacket, { maxLength: 8 }), chunkSizes, (packets, sizes) => {
        const bytes = Buffer.concat(packets.map(({ sent }) => generate(sent)))
        const read = readAll(new PacketReader(100_000), chunked(bytes, sizes))
        expect(read).toEqual(packets.map((packet) => packet.read))
      }),
    )
  })

  it('for a large message one byte at a time', () => {
    const payload = Buffer.alloc(192 * 1024, 'x')
    const bytes = generate({ cmd: 'publish', topic: 't', payload, qos: 0, dup: false, retain: false })
    const chunks = Array.from(bytes, (byte) => Buffer.from([byte]))
    const [packet] = readAll(new PacketReader(payload.length), chunks)
    expect(packet).toMatchObject({ type: 'publish', topic: 't' })
    expect(packet?.type === 'publish' && packet.payload.equals(payload)).toBe(true)
  })

  it('for a topic with U+FEFF, which is a character of it [MQTT-1.5.3-3]', () => {
    const bytes = generate({
      cmd: 'publish',
      topic: '\ufefft',
      payload: '',
      qos: 0,
      dup: false,
      retain: false,
    })
    expect(readAll(new PacketReader(10), [bytes])).toMatchObject([{ topic: '\ufefft' }])
  })
})
