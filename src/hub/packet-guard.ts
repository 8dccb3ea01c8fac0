import { DpsError, type DpsPhase } from '../errors.ts'

/** First bytes of what a hub sends a device (MQTT 3.1.1, section 2.2), each with its length; a PUBLISH is looked at closer. */
const FROM_HUB: ReadonlyMap<number, { readonly min: number; readonly max: number }> = new Map([
  [0x20, { min: 2, max: 2 }], // CONNACK
  [0x40, { min: 2, max: 2 }], // PUBACK
  [0x90, { min: 3, max: 128 }], // SUBACK
  [0xb0, { min: 2, max: 2 }], // UNSUBACK
  [0xd0, { min: 0, max: 0 }], // PINGRESP
])

const PUBLISH = 0x30

/**
 * Looks at the fixed headers of what the hub sends before MQTT.js does, which would collect a packet of 256 MB and keep
 * what comes at QoS 2. Nothing is copied.
 */
export class PacketGuard {
  /** Bytes of the current packet that are still to come. */
  #left = 0
  /** Bytes of the remaining length read so far, while it is being read. */
  #lengthBytes: number | undefined
  #length = 0
  #allowed: { readonly min: number; readonly max: number }
  readonly #publish: { readonly min: number; readonly max: number }

  /** @param maxBytes remaining length of the largest PUBLISH */
  constructor(maxBytes: number) {
    this.#publish = { min: 2, max: maxBytes }
    this.#allowed = this.#publish
  }

  /** @throws DpsError PROTOCOL_VIOLATION or REPLY_TOO_LARGE */
  push(chunk: Uint8Array, phase: DpsPhase): void {
    let at = 0
    while (at < chunk.length) {
      if (this.#left > 0) {
        const taken = Math.min(this.#left, chunk.length - at)
        this.#left -= taken
        at += taken
        continue
      }
      const byte = chunk[at++]!
      if (this.#lengthBytes === undefined) this.#begin(byte, phase)
      else this.#extend(byte, phase)
    }
  }

  #begin(byte: number, phase: DpsPhase): void {
    const publish = (byte & 0xf0) === PUBLISH
    if (publish && (byte & 0x06) >= 0x04) throw violation('PUBLISH at QoS 2, which hubs do not speak', phase)
    const allowed = publish ? this.#publish : FROM_HUB.get(byte)
    if (allowed === undefined) {
      throw violation(`a packet that begins with 0x${byte.toString(16).padStart(2, '0')}`, phase)
    }
    this.#allowed = allowed
    this.#lengthBytes = 0
    this.#length = 0
  }

  #extend(byte: number, phase: DpsPhase): void {
    if (this.#lengthBytes === 4) throw violation('a remaining length of more than four bytes [2.2.3]', phase)
    this.#length += (byte & 0x7f) * 128 ** this.#lengthBytes!
    this.#lengthBytes! += 1
    if (this.#length > this.#allowed.max && this.#allowed === this.#publish) {
      throw new DpsError(
        'REPLY_TOO_LARGE',
        phase,
        `the hub sent a message of more than ${this.#publish.max} bytes`,
        { retryable: true, hint: 'No message of a hub is that large: something else answers in its place.' },
      )
    }
    const done = byte < 0x80
    if (this.#length > this.#allowed.max || (done && this.#length < this.#allowed.min)) {
      throw violation(`a packet whose length of ${this.#length} bytes does not fit its type`, phase)
    }
    if (!done) return
    this.#lengthBytes = undefined
    this.#left = this.#length
  }
}

function violation(what: string, phase: DpsPhase): DpsError {
  return new DpsError('PROTOCOL_VIOLATION', phase, `the hub sent ${what}`)
}
