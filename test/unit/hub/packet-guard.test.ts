import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DpsError } from '../../../src/errors.ts'
import { PacketGuard } from '../../../src/hub/packet-guard.ts'

const header = (type: number, length: number): number[] => {
  const bytes = [type]
  do {
    bytes.push((length & 0x7f) | (length > 0x7f ? 0x80 : 0))
    length >>>= 7
  } while (length > 0)
  return bytes
}
const packet = (type: number, length: number): number[] => [
  ...header(type, length),
  ...Array(length).fill(0xff),
]
const push = (bytes: readonly number[], limit = 300) =>
  new PacketGuard(limit).push(Uint8Array.from(bytes), 'hub')

describe('the packet guard', () => {
  it('lets pass what a hub sends, in one piece, byte by byte and across chunks', () => {
    const bytes = [
      packet(0x20, 2),
      packet(0x90, 3),
      packet(0x30, 300),
      packet(0x3b, 128),
      packet(0x40, 2),
      packet(0xb0, 2),
      packet(0xd0, 0),
    ].flat()
    push(bytes)
    const guard = new PacketGuard(300)
    for (const byte of bytes) guard.push(Uint8Array.of(byte), 'hub')
  })

  it.each([
    ['a message larger than any', header(0x30, 301), 'REPLY_TOO_LARGE'],
    ['a message of 256 MB', [0x30, 0xff, 0xff, 0xff, 0x7f], 'REPLY_TOO_LARGE'],
    ['a remaining length of five bytes', [0x30, 0x80, 0x80, 0x80, 0x80, 0x01], 'PROTOCOL_VIOLATION'],
    ['a message at QoS 2', packet(0x34, 4), 'PROTOCOL_VIOLATION'],
    ['a message at QoS 3', packet(0x36, 4), 'PROTOCOL_VIOLATION'],
    ['an acknowledgement without end', header(0x90, 129), 'PROTOCOL_VIOLATION'],
    ['CONNECT', packet(0x10, 2), 'PROTOCOL_VIOLATION'],
    ['PUBREC', packet(0x50, 2), 'PROTOCOL_VIOLATION'],
    ['PUBREL', packet(0x62, 2), 'PROTOCOL_VIOLATION'],
    ['DISCONNECT', packet(0xe0, 0), 'PROTOCOL_VIOLATION'],
    ['AUTH', packet(0xf0, 0), 'PROTOCOL_VIOLATION'],
    ['CONNACK of three bytes', packet(0x20, 3), 'PROTOCOL_VIOLATION'],
    ['PUBACK of nothing', packet(0x40, 0), 'PROTOCOL_VIOLATION'],
    ['CONNACK with flags', packet(0x21, 2), 'PROTOCOL_VIOLATION'],
  ])('refuses %s', (_, bytes, code) => {
    expect(() => push(bytes)).toThrow(expect.objectContaining({ code, phase: 'hub' }))
  })

  it('throws nothing but a DpsError, however the bytes are cut', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 20 }), (chunks) => {
        const whole = new PacketGuard(300)
        const parts = new PacketGuard(300)
        const outcome = (work: () => void): string => {
          try {
            work()
            return 'passed'
          } catch (error) {
            return DpsError.is(error) ? error.code : String(error)
          }
        }
        const one = outcome(() => whole.push(Buffer.concat(chunks), 'hub'))
        expect(outcome(() => chunks.forEach((chunk) => void parts.push(chunk, 'hub')))).toBe(one)
        expect(one).toMatch(/^(passed|PROTOCOL_VIOLATION|REPLY_TOO_LARGE)$/)
      }),
    )
  })
})
