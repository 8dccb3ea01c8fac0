import { DpsError } from '../../errors.ts'

/**
 * The MQTT 3.1.1 packets a device sends in one exchange with the provisioning service, each as one Buffer of exactly its
 * size. Section and statement numbers are those of the OASIS standard.
 *
 * http://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html
 */

/** Control packet types, MQTT 3.1.1 table 2.1. */
export const PacketType = Object.freeze({
  CONNECT: 1,
  CONNACK: 2,
  PUBLISH: 3,
  PUBACK: 4,
  SUBSCRIBE: 8,
  SUBACK: 9,
  PINGRESP: 13,
  DISCONNECT: 14,
} as const)

/** The largest remaining length four bytes can say, MQTT 3.1.1 table 2.4. */
const MAX_REMAINING_LENGTH = 268_435_455

/** Longest string, in bytes: its length is two bytes [MQTT-1.5.3]. */
const MAX_STRING_BYTES = 65_535

/** Protocol name `MQTT`, level 4: the first seven bytes of the variable header, section 3.1.2. */
const PROTOCOL = Buffer.from([0, 4, 0x4d, 0x51, 0x54, 0x54, 4])

const CLEAN_SESSION = 0x02
const PASSWORD = 0x40
const USER_NAME = 0x80

export interface ConnectFields {
  readonly clientId: string
  readonly userName: string
  /** Absent where the TLS handshake authenticates. */
  readonly password?: string | undefined
  /** Seconds, 0 to 65 535. */
  readonly keepAliveSeconds: number
}

/** CONNECT with a clean session and no will, section 3.1. */
export function encodeConnect({ clientId, userName, password, keepAliveSeconds }: ConnectFields): Buffer {
  const clientIdBytes = stringBytes('the client id', clientId)
  const userNameBytes = stringBytes('the user name', userName)
  const passwordBytes = password === undefined ? -2 : stringBytes('the password', password)
  const length = PROTOCOL.length + 3 + 2 + clientIdBytes + 2 + userNameBytes + 2 + passwordBytes
  const packet = allocate(PacketType.CONNECT << 4, length)
  let at = packet.length - length
  at += PROTOCOL.copy(packet, at)
  packet[at++] = CLEAN_SESSION | USER_NAME | (password === undefined ? 0 : PASSWORD)
  at = packet.writeUInt16BE(keepAliveSeconds, at)
  at = writeString(packet, at, clientId, clientIdBytes)
  at = writeString(packet, at, userName, userNameBytes)
  if (password !== undefined) writeString(packet, at, password, passwordBytes)
  return packet
}

/** SUBSCRIBE to one filter, section 3.8. */
export function encodeSubscribe(packetId: number, filter: string, qos: 0 | 1): Buffer {
  const filterBytes = stringBytes('the filter', filter)
  const length = 2 + 2 + filterBytes + 1
  // The reserved flags of this packet are 0010 [MQTT-3.8.1-1].
  const packet = allocate((PacketType.SUBSCRIBE << 4) | 0x02, length)
  let at = packet.writeUInt16BE(packetId, packet.length - length)
  at = writeString(packet, at, filter, filterBytes)
  packet[at] = qos
  return packet
}

export interface PublishFields {
  readonly topic: string
  /** Text is written as UTF-8. */
  readonly payload: string | Uint8Array
  readonly qos: 0 | 1
  /** A repeated delivery; only with QoS 1 [MQTT-3.3.1-2]. Default false. */
  readonly dup?: boolean
  /** 1 to 65 535; unused with QoS 0 [MQTT-2.3.1-5]. */
  readonly packetId?: number
}

/** PUBLISH, section 3.3. */
export function encodePublish({ topic, payload, qos, dup = false, packetId = 0 }: PublishFields): Buffer {
  const topicBytes = stringBytes('the topic', topic)
  const payloadBytes = typeof payload === 'string' ? Buffer.byteLength(payload) : payload.length
  const length = 2 + topicBytes + 2 * qos + payloadBytes
  const packet = allocate((PacketType.PUBLISH << 4) | (dup ? 0x08 : 0) | (qos << 1), length)
  let at = writeString(packet, packet.length - length, topic, topicBytes)
  if (qos === 1) at = packet.writeUInt16BE(packetId, at)
  if (typeof payload === 'string') writeText(packet, at, payload, payloadBytes)
  else packet.set(payload, at)
  return packet
}

/** One PUBACK for each packet id, in order, in one Buffer; section 3.4. */
export function encodePubacks(packetIds: readonly number[]): Buffer {
  const packets = Buffer.allocUnsafe(4 * packetIds.length)
  let at = 0
  for (const packetId of packetIds) {
    packets[at] = PacketType.PUBACK << 4
    packets[at + 1] = 2
    at = packets.writeUInt16BE(packetId, at + 2)
  }
  return packets
}

/** DISCONNECT, section 3.14. A new Buffer each time: streams may keep or transfer what they are given. */
export function encodeDisconnect(): Buffer {
  return Buffer.from([PacketType.DISCONNECT << 4, 0])
}

/** A packet of exactly the right size with its fixed header written; the rest starts at `packet.length - length`. */
function allocate(first: number, length: number): Buffer {
  if (length > MAX_REMAINING_LENGTH) throw tooLong('the packet', MAX_REMAINING_LENGTH)
  const lengthBytes = length < 128 ? 1 : length < 16_384 ? 2 : length < 2_097_152 ? 3 : 4
  const packet = Buffer.allocUnsafe(1 + lengthBytes + length)
  packet[0] = first
  let rest = length
  for (let at = 1; at <= lengthBytes; at++) {
    packet[at] = (rest & 0x7f) | (at < lengthBytes ? 0x80 : 0)
    rest >>>= 7
  }
  return packet
}

function stringBytes(name: string, text: string): number {
  const bytes = Buffer.byteLength(text)
  if (bytes > MAX_STRING_BYTES) throw tooLong(name, MAX_STRING_BYTES)
  return bytes
}

function writeString(packet: Buffer, at: number, text: string, bytes: number): number {
  return writeText(packet, packet.writeUInt16BE(bytes, at), text, bytes)
}

function writeText(packet: Buffer, at: number, text: string, bytes: number): number {
  // As many bytes as characters means ASCII, which needs no transcoding.
  return at + packet.write(text, at, bytes === text.length ? 'latin1' : 'utf8')
}

function tooLong(name: string, limit: number): DpsError {
  return new DpsError('OPTION_INVALID', 'config', `${name} is longer than MQTT can carry: ${limit} bytes`)
}
