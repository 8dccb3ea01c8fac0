import { createHash } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  bindingOf,
  decodeRecord,
  encodeRecord,
  foreignPart,
  type StoredRecord,
} from '../../../src/assignment/record.ts'
import { identityOf, record } from './records.ts'

const MAGIC = 'dps-device-client/assignment'

/** A record made by hand, checksum and all. */
function made(body: string | Uint8Array, version: number | string = 1): Buffer {
  const sum = createHash('sha256').update(`${MAGIC} ${version}\n`).update(body).digest('hex')
  return Buffer.concat([
    Buffer.from(`${MAGIC} ${version} sha256:${sum}\n`),
    Buffer.from(body as string),
    Buffer.from('\n'),
  ])
}

type Body = Record<'binding' | 'registration', Record<string, unknown>> & Record<string, unknown>

const bodyOf = (bytes: Uint8Array): Body => JSON.parse(Buffer.from(bytes).toString().split('\n')[1]!)
const changed = (change: (body: Body) => void): Buffer => {
  const body = bodyOf(encodeRecord(record()))
  change(body)
  return made(JSON.stringify(body))
}

describe('a record', () => {
  it('comes back as it went', () => {
    expect(decodeRecord(encodeRecord(record()))).toEqual({ ok: true, record: record() })
    const refused: StoredRecord = { ...record(), registration: undefined }
    expect(decodeRecord(encodeRecord(refused))).toEqual({ ok: true, record: refused })
  })

  it('is text that a person can read, in the format that is documented', () => {
    const bytes = encodeRecord(record())
    expect(Buffer.from(bytes).toString()).toMatch(
      /^dps-device-client\/assignment 1 sha256:[0-9a-f]{64}\n\{"binding":\{"idScope":"0ne00000000",.*\}\n$/,
    )
    expect(made(JSON.stringify(bodyOf(bytes)))).toEqual(Buffer.from(bytes))
  })

  it('does not hold the fingerprint under which contexts and sessions are kept', () => {
    expect(Buffer.from(encodeRecord(record())).toString()).not.toContain(identityOf().fingerprint)
  })

  it('carries whatever payload a function returned', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string({ unit: 'grapheme' }), fc.jsonValue()), (made) => {
        const { __proto__: _, ...payload } = JSON.parse(JSON.stringify(made))
        const { registration, ...rest } = record()
        const sent = { ...rest, registration: { ...registration!, payload } }
        const read = decodeRecord(encodeRecord(sent))
        if (JSON.stringify(payload).includes('__proto__')) return
        expect(read).toMatchObject({ ok: true })
        expect(read.ok && read.record.registration?.payload).toEqual(payload)
      }),
    )
  })
})

describe('a record that is damaged', () => {
  const bytes = encodeRecord(record())

  it('in any bit is none', () => {
    for (let at = 0; at < bytes.length; at++) {
      for (let bit = 0; bit < 8; bit++) {
        const copy = Uint8Array.from(bytes)
        copy[at]! ^= 1 << bit
        expect({ at, bit, read: decodeRecord(copy) }).toMatchObject({
          read: { ok: false, reason: 'damaged' },
        })
      }
    }
  })

  it('in any byte, by any value, is none', () => {
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const copy = Uint8Array.from(bytes)
        copy[at]! ^= change
        expect(decodeRecord(copy)).toMatchObject({ ok: false, reason: 'damaged' })
      }),
      { numRuns: 2000 },
    )
  })

  it('by being cut anywhere is none', () => {
    for (let length = 0; length < bytes.length; length++) {
      const read = decodeRecord(bytes.subarray(0, length))
      expect({ length, read }).toMatchObject({ read: { ok: false, reason: 'damaged' } })
    }
  })

  it('by what a power cut makes of a block (zeros from anywhere on) is none', () => {
    for (let from = 0; from < bytes.length; from++) {
      const copy = Uint8Array.from(bytes).fill(0, from)
      expect({ from, read: decodeRecord(copy) }).toMatchObject({ read: { ok: false, reason: 'damaged' } })
    }
  })

  it('by being half old and half new is none', () => {
    const other = encodeRecord({ ...record(), contactMs: record().contactMs + 1 })
    expect(other).toHaveLength(bytes.length)
    for (let at = 1; at < bytes.length; at++) {
      const mixed = Buffer.concat([bytes.subarray(0, at), other.subarray(at)])
      if (mixed.equals(bytes) || mixed.equals(other)) continue
      expect({ at, read: decodeRecord(mixed) }).toMatchObject({ read: { ok: false, reason: 'damaged' } })
    }
  })

  it('by more after its end is none', () => {
    for (const more of ['\n', ' ', 'x', '\0', Buffer.from(bytes).toString()]) {
      expect(decodeRecord(Buffer.concat([bytes, Buffer.from(more)]))).toMatchObject({ ok: false })
    }
  })

  it('beyond recognition is none, and nothing is thrown', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (any) => {
        expect(decodeRecord(any).ok).toBe(false)
        expect(decodeRecord(made(any)).ok).toBe(false)
      }),
    )
  })

  it.each([
    ['no JSON', made('{"binding":'), 'does not hold what it should'],
    ['a list', made('[]'), 'does not hold what it should'],
    ['no binding', changed((body) => Reflect.deleteProperty(body, 'binding')), 'does not hold'],
    ['a binding that is null', changed((body) => Object.assign(body, { binding: null })), 'does not hold'],
    ['an id scope that is a number', changed((body) => (body.binding.idScope = 1)), 'does not hold'],
    ['no credential', changed((body) => delete body.binding.credential), 'does not hold'],
    ['a contact that is a text', changed((body) => (body.contactMs = '1')), 'does not hold'],
    ['a contact before 1970', changed((body) => (body.contactMs = -1)), 'does not hold'],
    ['no device id', changed((body) => delete body.registration.deviceId), 'does not hold'],
    ['a device id with a slash', changed((body) => (body.registration.deviceId = 'a/#')), 'does not hold'],
    ['a hub with a path', changed((body) => (body.registration.assignedHub = 'hub/x')), 'does not hold'],
    [
      'another device’s registration',
      changed((body) => (body.registration.registrationId = 'e')),
      'does not hold',
    ],
    [
      'a registration that is a text',
      changed((body) => Object.assign(body, { registration: 'assigned' })),
      'does not hold',
    ],
    ['nothing', Buffer.alloc(0), 'is empty'],
    ['another file', Buffer.from('{"assignedHub":"h"}\n'), 'does not begin as one'],
    ['version 0', made('{}', 0), 'does not begin as one'],
    ['version 01', made('{}', '01'), 'does not begin as one'],
  ])('%s', (_, damaged, why) => {
    const read = decodeRecord(damaged)
    expect(read).toMatchObject({ ok: false, reason: 'damaged' })
    expect(!read.ok && read.why).toContain(why)
  })
})

it('a record of a later version is not guessed at', () => {
  const read = decodeRecord(made('{"anything":"else"}', 2))
  expect(read).toEqual({
    ok: false,
    reason: 'newer',
    why: 'has the format 2; this version of the package reads up to 1',
  })
})

it('a payload that would poison the application comes without its sting', () => {
  const text = Buffer.from(encodeRecord(record())).toString().split('\n')[1]!
  const poisoned = text.replace('"payload":{', '"payload":{"__proto__":{"admin":true},')
  expect(poisoned).not.toBe(text)
  const read = decodeRecord(made(poisoned))
  expect(read.ok && Object.hasOwn(read.record.registration!.payload!, '__proto__')).toBe(false)
  expect(read).toEqual({ ok: true, record: record() })
})

describe('what a record is bound to', () => {
  const own = record().binding
  it.each([
    ['nothing else', own, undefined],
    ['the same in other letters', { ...own, registrationId: 'D' }, undefined],
    ['another id scope', { ...own, idScope: '0ne00000001' }, 'another id scope'],
    ['another service', { ...own, host: 'x.example' }, 'another provisioning service'],
    ['another device', { ...own, registrationId: 'e' }, 'another registration id'],
    ['another certificate', { ...own, credential: 'f'.repeat(64) }, 'another certificate or key'],
  ])('%s', (_, stored, part) => {
    expect(foreignPart(stored, own)).toBe(part)
  })

  it('is another for another fingerprint', () => {
    expect(bindingOf('s', 'h', identityOf('a')).credential).not.toBe(
      bindingOf('s', 'h', identityOf('b')).credential,
    )
  })
})
