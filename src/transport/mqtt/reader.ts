import { isUtf8 } from 'node:buffer'
import { DpsError, type DpsPhase } from '../../errors.ts'
import { PacketType } from './codec.ts'

/** A packet from the server that is well formed in itself; whether it is due is for the session to judge. */
export type ServerPacket =
  | { readonly type: 'connack'; readonly sessionPresent: boolean; readonly returnCode: number }
  | { readonly type: 'suback'; readonly packetId: number; readonly returnCode: 0 | 1 | 2 | 0x80 }
  | { readonly type: 'puback'; readonly packetId: number }
  | {
      readonly type: 'publish'
      readonly topic: string
      /** A view of the read buffer: copy what is to be kept. */
      readonly payload: Buffer
      readonly qos: 0 | 1
      readonly dup: boolean
      readonly retain: boolean
      /** Undefined with QoS 0. */
      readonly packetId: number | undefined
    }
  | { readonly type: 'pingresp' }

/** Room for topic and packet id beside the payload, when a packet is refused by its announced length alone. */
const TOPIC_HEADROOM_BYTES = 1024

const EMPTY = Buffer.alloc(0)
const PINGRESP: ServerPacket = Object.freeze({ type: 'pingresp' })

/**
 * Reads MQTT 3.1.1 packets out of chunks of any size: `push` a chunk, then call `next` until it returns undefined.
 *
 * No byte is copied unless a packet is spread over chunks, and then once, into a buffer of the packet's announced size,
 * which has been held against the limit before. After `next` has thrown, the reader must not be used again.
 */
export class PacketReader {
  readonly #maxPayloadBytes: number
  #chunk: Buffer = EMPTY
  #offset = 0
  /** First byte of the packet being read; 0, which no packet begins with, between packets. */
  #first = 0
  #length = 0
  #lengthBytes = 0
  #lengthKnown = false
  /** The packet so far, once it is known to be spread over chunks. */
  #spread: Buffer | undefined
  #filled = 0

  /** `maxPayloadBytes` bounds the payload of a PUBLISH; a longer one is refused before it is buffered. */
  constructor(maxPayloadBytes: number) {
    this.#maxPayloadBytes = maxPayloadBytes
  }

  push(chunk: Buffer): void {
    this.#chunk = chunk
    this.#offset = 0
  }

  /**
   * The next whole packet, or undefined when the chunk is used up.
   *
   * @param phase of the error, if there is one
   * @throws DpsError PROTOCOL_VIOLATION for anything MQTT 3.1.1 does not let a server send here, REPLY_TOO_LARGE
   */
  next(phase: DpsPhase): ServerPacket | undefined {
    if (!this.#lengthKnown && !this.#readFixedHeader(phase)) return this.#exhausted()
    const start = this.#offset
    if (this.#spread === undefined && this.#chunk.length - start >= this.#length) {
      this.#offset += this.#length
      return this.#decode(this.#chunk, start, phase)
    }
    const packet = this.#gather()
    return packet === undefined ? this.#exhausted() : this.#decode(packet, 0, phase)
  }

  #exhausted(): undefined {
    this.#chunk = EMPTY
    this.#offset = 0
    return undefined
  }

  /** Section 2.2. Refuses as early as the bytes allow. */
  #readFixedHeader(phase: DpsPhase): boolean {
    const chunk = this.#chunk
    if (this.#first === 0) {
      if (this.#offset >= chunk.length) return false
      this.#first = chunk[this.#offset++]!
      checkFirstByte(this.#first, phase)
    }
    while (this.#offset < chunk.length) {
      const byte = chunk[this.#offset++]!
      this.#length |= (byte & 0x7f) << (7 * this.#lengthBytes++)
      if (byte < 0x80) {
        this.#checkLength(phase)
        this.#lengthKnown = true
        return true
      }
      if (this.#lengthBytes === 4)
        throw violation(phase, 'a remaining length of more than four bytes [2.2.3]')
    }
    return false
  }

  #checkLength(phase: DpsPhase): void {
    const type = this.#first >> 4
    if (type === PacketType.PUBLISH) {
      if (this.#length > this.#maxPayloadBytes + TOPIC_HEADROOM_BYTES)
        throw this.#tooLarge(phase, this.#length)
      return
    }
    const expected = type === PacketType.SUBACK ? 3 : type === PacketType.PINGRESP ? 0 : 2
    if (this.#length !== expected) {
      throw violation(
        phase,
        `a packet of type ${type} with remaining length ${this.#length}, not ${expected}`,
      )
    }
  }

  /** A packet that is spread over chunks, once it is whole. */
  #gather(): Buffer | undefined {
    if (this.#spread === undefined) {
      // Not from the pool: a reply that is kept waiting must not hold on to other people's memory.
      this.#spread = Buffer.allocUnsafeSlow(this.#length)
      this.#filled = 0
    }
    const copied = this.#chunk.copy(this.#spread, this.#filled, this.#offset)
    this.#offset += copied
    this.#filled += copied
    if (this.#filled < this.#length) return undefined
    const packet = this.#spread
    this.#spread = undefined
    return packet
  }

  /** The packet whose variable header begins at `start`. */
  #decode(bytes: Buffer, start: number, phase: DpsPhase): ServerPacket {
    const first = this.#first
    const length = this.#length
    this.#first = this.#length = this.#lengthBytes = 0
    this.#lengthKnown = false
    switch (first >> 4) {
      case PacketType.PUBLISH:
        return this.#decodePublish(first, bytes, start, start + length, phase)
      case PacketType.CONNACK: {
        const flags = bytes[start]!
        if (flags > 1) throw violation(phase, 'CONNACK with reserved flags set [3.2.2.1]')
        return { type: 'connack', sessionPresent: flags === 1, returnCode: bytes[start + 1]! }
      }
      case PacketType.SUBACK: {
        const packetId = readPacketId(bytes, start, phase)
        const returnCode = bytes[start + 2]!
        if (returnCode !== 0 && returnCode !== 1 && returnCode !== 2 && returnCode !== 0x80) {
          throw violation(phase, `SUBACK with the reserved return code ${returnCode} [MQTT-3.9.3-2]`)
        }
        return { type: 'suback', packetId, returnCode }
      }
      case PacketType.PUBACK:
        return { type: 'puback', packetId: readPacketId(bytes, start, phase) }
      default:
        return PINGRESP
    }
  }

  #decodePublish(first: number, bytes: Buffer, start: number, end: number, phase: DpsPhase): ServerPacket {
    const qos = first & 0x02 ? 1 : 0
    const topicStart = start + 2
    const topicEnd = topicStart > end ? Infinity : topicStart + readUInt16(bytes, start)
    const payloadStart = topicEnd + 2 * qos
    if (payloadStart > end) throw violation(phase, 'PUBLISH that ends before its topic does')
    const topic = readTopic(bytes, topicStart, topicEnd, phase)
    const packetId = qos === 1 ? readPacketId(bytes, topicEnd, phase) : undefined
    if (end - payloadStart > this.#maxPayloadBytes) throw this.#tooLarge(phase, end - start)
    return {
      type: 'publish',
      topic,
      payload: bytes.subarray(payloadStart, end),
      qos,
      dup: (first & 0x08) !== 0,
      retain: (first & 0x01) !== 0,
      packetId,
    }
  }

  #tooLarge(phase: DpsPhase, length: number): DpsError {
    return new DpsError(
      'REPLY_TOO_LARGE',
      phase,
      `the server announced a message of ${length} bytes; at most ${this.#maxPayloadBytes} are taken`,
    )
  }
}

function checkFirstByte(first: number, phase: DpsPhase): void {
  const type = first >> 4
  const flags = first & 0x0f
  switch (type) {
    case PacketType.PUBLISH: {
      const qos = (flags >> 1) & 3
      if (qos === 3) throw violation(phase, 'PUBLISH with both QoS bits set [MQTT-3.3.1-4]')
      if (qos === 2) throw violation(phase, 'PUBLISH with QoS 2 on a subscription of QoS 1 [MQTT-3.8.4-6]')
      if (qos === 0 && flags & 0x08) throw violation(phase, 'PUBLISH with DUP and QoS 0 [MQTT-3.3.1-2]')
      return
    }
    case PacketType.CONNACK:
    case PacketType.SUBACK:
    case PacketType.PUBACK:
    case PacketType.PINGRESP:
      if (flags !== 0) {
        throw violation(phase, `a packet of type ${type} with reserved flags set [MQTT-2.2.2-2]`)
      }
      return
    default:
      throw violation(phase, `a packet of type ${type}, which no server may send to this client [2.2.1]`)
  }
}

function readTopic(bytes: Buffer, start: number, end: number, phase: DpsPhase): string {
  if (start === end) throw violation(phase, 'PUBLISH with an empty topic [MQTT-4.7.3-1]')
  const topic = bytes.toString('utf8', start, end)
  // What is not UTF-8 decodes to U+FFFD, which may also be what was sent.
  if (topic.includes('\ufffd') && !isUtf8(bytes.subarray(start, end))) {
    throw violation(phase, 'PUBLISH with a topic that is not UTF-8 [MQTT-1.5.3-1]')
  }
  if (topic.includes('\0')) throw violation(phase, 'PUBLISH with U+0000 in its topic [MQTT-1.5.3-2]')
  if (topic.includes('#') || topic.includes('+')) {
    throw violation(phase, 'PUBLISH with a wildcard in its topic [MQTT-3.3.2-2]')
  }
  return topic
}

function readPacketId(bytes: Buffer, at: number, phase: DpsPhase): number {
  const packetId = readUInt16(bytes, at)
  if (packetId === 0) throw violation(phase, 'a packet identifier of 0 [MQTT-2.3.1-1]')
  return packetId
}

function readUInt16(bytes: Buffer, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!
}

function violation(phase: DpsPhase, what: string): DpsError {
  return new DpsError('PROTOCOL_VIOLATION', phase, `the server sent ${what}`)
}
