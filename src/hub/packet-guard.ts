import { DpsError } from '../errors.ts'

/** Control packet types that a hub sends a device (MQTT 3.1.1, section 2.2.1); `publish` is looked at more closely. */
const FROM_HUB: ReadonlyMap<number, string> = new Map([
  [0x20, 'CONNACK'],
  [0x40, 'PUBACK'],
  [0x90, 'SUBACK'],
  [0xb0, 'UNSUBACK'],
  [0xd0, 'PINGRESP'],
])

const PUBLISH = 0x30

/** Length of a packet that is nothing but its acknowledgement or its short list of return codes. */
const MAX_SMALL_BYTES = 128

/**
 * Looks at the fixed headers of what the hub sends before MQTT.js does, which would collect a packet of 256 MB and keep
 * what comes at QoS 2. Nothing is copied.
 */
export class PacketGuard {
  readonly #maxBytes: number
  /** Bytes of the current packet that are still to come. */
  #left = 0
  /** Bytes of the remaining length read so far, while it is being read. */
  #lengthBytes: number | undefined
  #length = 0
  #maxLength = 0

  /** @param maxBytes remaining length of the largest PUBLISH */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  /** @throws DpsError PROTOCOL_VIOLATION or REPLY_TOO_LARGE, phase `hub` */
  push(chunk: Uint8Array): void {
    let at = 0
    while (at < chunk.length) {
      if (this.#left > 0) {
        const taken = Math.min(this.#left, chunk.length - at)
        this.#left -= taken
        at += taken
        continue
      }
      const byte = chunk[at++]!
      if (this.#lengthBytes === undefined) this.#begin(byte)
      else this.#extend(byte)
    }
  }

  #begin(byte: number): void {
    const publish = (byte & 0xf0) === PUBLISH
    if (publish && (byte & 0x06) >= 0x04) throw violation('PUBLISH at QoS 2, which hubs do not speak')
    if (!publish && !FROM_HUB.has(byte)) {
      throw violation(`a packet that begins with 0x${byte.toString(16).padStart(2, '0')}`)
    }
    this.#maxLength = publish ? this.#maxBytes : MAX_SMALL_BYTES
    this.#lengthBytes = 0
    this.#length = 0
  }

  #extend(byte: number): void {
    if (this.#lengthBytes === 4) throw violation('a remaining length of more than four bytes [2.2.3]')
    this.#length += (byte & 0x7f) * 128 ** this.#lengthBytes!
    this.#lengthBytes! += 1
    if (this.#length > this.#maxLength) {
      if (this.#maxLength === MAX_SMALL_BYTES) throw violation(`an acknowledgement of ${this.#length} bytes`)
      throw new DpsError(
        'REPLY_TOO_LARGE',
        'hub',
        `the hub sent a message of more than ${this.#maxLength} bytes`,
        { hint: 'No message of a hub is that large: something else answers in its place.' },
      )
    }
    if (byte >= 0x80) return
    this.#lengthBytes = undefined
    this.#left = this.#length
  }
}

function violation(what: string): DpsError {
  return new DpsError('PROTOCOL_VIOLATION', 'hub', `the hub sent ${what}`)
}
