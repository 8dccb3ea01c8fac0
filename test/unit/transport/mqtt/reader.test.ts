import fc from 'fast-check'
import { generate, writeToStream } from 'mqtt-packet'
import { describe, expect, it } from 'vitest'
import { DpsError } from '../../../../src/errors.ts'
import { PacketReader, type ServerPacket } from '../../../../src/transport/mqtt/reader.ts'
import { expectDpsError } from '../../../support/expect-dps-error.ts'

writeToStream.cacheNumbers = false

const LIMIT = 2048

function read(bytes: Buffer, limit = LIMIT): ServerPacket[] {
  const reader = new PacketReader(limit)
  reader.push(bytes)
  const packets: ServerPacket[] = []
  for (let packet = reader.next('poll'); packet !== undefined; packet = reader.next('poll'))
    packets.push(packet)
  return packets
}

const hex = (text: string) => Buffer.from(text.replace(/ /g, ''), 'hex')

describe('the reader refuses', () => {
  it.each([
    ['a packet of type 0', '00 00'],
    ['CONNECT, which only clients send', '10 00'],
    ['PUBREC, an answer to QoS 2', '50 02 0001'],
    ['PUBREL', '62 02 0001'],
    ['PUBCOMP', '70 02 0001'],
    ['SUBSCRIBE', '82 06 0001 0001 61 00'],
    ['UNSUBSCRIBE', 'a2 05 0001 0001 61'],
    ['UNSUBACK to no UNSUBSCRIBE', 'b0 02 0001'],
    ['PINGREQ', 'c0 00'],
    ['DISCONNECT', 'e0 00'],
    ['a packet of type 15', 'f0 00'],
    ['CONNACK with flags in its first byte', '21 02 00 00'],
    ['PUBACK with flags', '42 02 0001'],
    ['SUBACK with flags', '92 03 0001 00'],
    ['PINGRESP with flags', 'd1 00'],
    ['PUBLISH with QoS 3', '36 05 0001 61 0001'],
    ['PUBLISH with QoS 2, never asked for', '34 05 0001 61 0001'],
    ['PUBLISH with DUP and QoS 0', '38 03 0001 61'],
    ['a remaining length of five bytes', '30 80 80 80 80 01'],
    ['CONNACK that is too short', '20 01 00'],
    ['CONNACK that is too long, as of MQTT 5', '20 03 00 00 00'],
    ['CONNACK with reserved acknowledge flags', '20 02 02 00'],
    ['PUBACK that is too long, as of MQTT 5', '40 03 0001 00'],
    ['PUBACK with packet id 0', '40 02 0000'],
    ['SUBACK for two filters', '90 04 0001 00 00'],
    ['SUBACK for none', '90 02 0001'],
    ['SUBACK with packet id 0', '90 03 0000 00'],
    ['SUBACK with return code 3', '90 03 0001 03'],
    ['SUBACK with return code 0x81, as of MQTT 5', '90 03 0001 81'],
    ['PINGRESP with a body', 'd0 01 00'],
    ['PUBLISH without room for the length of its topic', '30 01 00'],
    ['PUBLISH with nothing in it', '30 00'],
    ['PUBLISH whose topic is longer than the packet', '30 03 0002 61'],
    ['PUBLISH of QoS 1 that ends before its packet id', '32 04 0001 61 00'],
    ['PUBLISH of QoS 1 with packet id 0', '32 05 0001 61 0000'],
    ['an empty topic', '30 02 0000'],
    ['a topic with #', '30 03 0001 23'],
    ['a topic with +', '30 03 0001 2b'],
    ['a topic with U+0000', '30 04 0002 6100'],
    ['a topic with a stray continuation byte', '30 03 0001 80'],
    ['a topic with a cut sequence', '30 04 0002 e282'],
    ['a topic with an overlong sequence', '30 04 0002 c0af'],
    ['a topic with a surrogate', '30 05 0003 eda080'],
    ['a topic beyond U+10FFFF', '30 06 0004 f4908080'],
    ['HTTP', Buffer.from('HTTP/1.1 400 Bad Request\r\n').toString('hex')],
    ['a TLS record', '16 03 03 00 7a'],
  ])('%s', async (_, bytes) => {
    await expectDpsError(() => read(hex(bytes)), 'PROTOCOL_VIOLATION', 'poll')
  })

  it('as early as the bytes allow: by the first byte, and by the length before the rest', async () => {
    await expectDpsError(() => read(hex('34')), 'PROTOCOL_VIOLATION', 'poll')
    await expectDpsError(() => read(hex('20 03')), 'PROTOCOL_VIOLATION', 'poll')
    await expectDpsError(() => read(hex('30 80 80 80 80')), 'PROTOCOL_VIOLATION', 'poll')
  })

  it('gives what came before the lie', async () => {
    const reader = new PacketReader(LIMIT)
    reader.push(hex('d000 00'))
    expect(reader.next('poll')).toEqual({ type: 'pingresp' })
    await expectDpsError(() => reader.next('poll'), 'PROTOCOL_VIOLATION', 'poll')
  })
})

describe('the limit', () => {
  const publish = (payloadBytes: number, topic = 't') =>
    generate({
      cmd: 'publish',
      topic,
      payload: Buffer.alloc(payloadBytes),
      qos: 0,
      dup: false,
      retain: false,
    })

  it('takes a payload of exactly its size, beside a topic of any length', () => {
    expect(read(publish(LIMIT, 't'.repeat(900)))).toHaveLength(1)
    expect(read(publish(10, 't'.repeat(LIMIT)))).toHaveLength(1)
  })

  it('refuses one byte more', async () => {
    await expectDpsError(() => read(publish(LIMIT + 1)), 'REPLY_TOO_LARGE', 'poll')
  })

  it('refuses by the announced length, before any of it has come', async () => {
    await expectDpsError(() => read(hex('30 ff ff ff 7f')), 'REPLY_TOO_LARGE', 'poll')
  })
})

/** Feeds one chunk after the other; what comes out but packets must be a DpsError, and is the end. */
function survive(chunks: readonly Buffer[], limit: number): void {
  const reader = new PacketReader(limit)
  let packets = 0
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0)
  try {
    for (const chunk of chunks) {
      reader.push(chunk)
      for (let packet = reader.next('tls'); packet !== undefined; packet = reader.next('tls')) {
        packets++
        if (packet.type === 'publish') {
          expect(packet.payload.length).toBeLessThanOrEqual(limit)
          expect(packet.topic).not.toMatch(/[#+\0]/)
          expect(packet.topic).not.toBe('')
        }
      }
    }
  } catch (error) {
    if (!DpsError.is(error)) throw error
    expect(['PROTOCOL_VIOLATION', 'REPLY_TOO_LARGE']).toContain(error.code)
    expect(error.phase).toBe('tls')
  }
  // The shortest packet has two bytes: termination, as a number.
  expect(packets).toBeLessThanOrEqual(bytes / 2)
}

describe('under fuzzing', () => {
  const firstBytes = fc.constantFrom(0x20, 0x30, 0x31, 0x32, 0x3a, 0x34, 0x40, 0x90, 0xd0, 0xb0)
  const plausible = fc
    .tuple(firstBytes, fc.nat({ max: 40 }), fc.uint8Array({ maxLength: 40 }))
    .map(([first, length, rest]) => Buffer.concat([Buffer.from([first, length]), rest]))

  it('arbitrary bytes in arbitrary chunks bring nothing but packets and DpsError', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes))), (chunks) =>
        survive(chunks, 64),
      ),
      { numRuns: 2000 },
    )
  })

  it('nor do bytes that begin like packets', () => {
    fc.assert(
      fc.property(fc.array(plausible, { maxLength: 12 }), (chunks) => survive(chunks, 64)),
      { numRuns: 3000 },
    )
  })

  it('nor does a valid conversation with some bytes changed', () => {
    const valid = Buffer.concat([
      generate({ cmd: 'connack', returnCode: 0, sessionPresent: false }),
      generate({ cmd: 'suback', messageId: 1, granted: [1] }),
      generate({ cmd: 'puback', messageId: 2 }),
      generate({
        cmd: 'publish',
        topic: '$dps/registrations/res/202/?$rid=1&retry-after=3',
        payload: '{"operationId":"5.316aac5bdc130deb.b1e02da8","status":"assigning"}',
        qos: 1,
        dup: false,
        retain: false,
        messageId: 9,
      }),
      generate({ cmd: 'pingresp' }),
    ])
    const change = fc.tuple(fc.nat({ max: valid.length - 1 }), fc.integer({ min: 0, max: 255 }))
    fc.assert(
      fc.property(
        fc.array(change, { minLength: 1, maxLength: 5 }),
        fc.nat({ max: valid.length }),
        fc.integer({ min: 1, max: valid.length }),
        (changes, cut, size) => {
          const bytes = Buffer.from(valid.subarray(0, valid.length - (cut % 10)))
          for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value
          const chunks: Buffer[] = []
          for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.subarray(at, at + size))
          survive(chunks, 256)
        },
      ),
      { numRuns: 3000 },
    )
  })

  it('a message that dribbles in takes the memory it announced, once', () => {
    const allocated: number[] = []
    const { allocUnsafeSlow } = Buffer
    Buffer.allocUnsafeSlow = (size) => {
      allocated.push(size)
      return allocUnsafeSlow(size)
    }
    try {
      const reader = new PacketReader(65_536)
      const bytes = generate({
        cmd: 'publish',
        topic: 't',
        payload: Buffer.alloc(65_536),
        qos: 0,
        dup: false,
        retain: false,
      })
      for (const byte of bytes.subarray(0, -1)) {
        reader.push(Buffer.from([byte]))
        expect(reader.next('poll')).toBeUndefined()
      }
    } finally {
      Buffer.allocUnsafeSlow = allocUnsafeSlow
    }
    expect(allocated).toEqual([65_539])
  })
})
