import { createHash } from 'node:crypto'
import { inspect } from 'node:util'
import { describe, expect, expectTypeOf, it, onTestFinished } from 'vitest'
import type { Assignment } from '../../src/assignment/assignment.ts'
import { decodeRecord, encodeRecord, type StoredRecord } from '../../src/assignment/record.ts'
import type { Identity } from '../../src/credential/credential.ts'
import { DpsError, type DpsErrorCode, ERROR_CODES } from '../../src/errors.ts'
import type { DpsEvent } from '../../src/options/options.ts'
import type { DeviceRegistration } from '../../src/protocol/response.ts'
import { type ProvisionedAssignment, type ProvisionOptions, provision } from '../../src/provision.ts'
import { RELEASED_AT_MS } from '../../src/release.ts'
import type { Transport } from '../../src/transport/transport.ts'
import { testClock } from '../support/clock.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { identityOf, type MemoryStore, memoryStore, record } from './assignment/records.ts'

const HOUR = 3_600_000
const NOW = RELEASED_AT_MS + 30 * 24 * HOUR

const facts = {
  transport: 'own',
  protocol: 'TLSv1.2',
  cipher: 'c',
  curve: 'X25519',
  root: 'r',
  resumed: false,
  roundTrips: 3,
}

interface Service extends Transport {
  opens: number
  bodies: string[]
}

/** Answers register requests with `answers` in turn: an error, or what the service knows. */
function service(...answers: (DpsError | object)[]): Service {
  return {
    name: 'own',
    opens: 0,
    bodies: [],
    async open() {
      this.opens++
      return {
        connection: facts,
        request: async (request) => {
          if (request.kind === 'register') this.bodies.push(request.body)
          const answer = answers.shift() ?? {}
          if (DpsError.is(answer)) throw answer
          const registrationState = {
            assignedHub: 'new-hub.azure-devices.net',
            deviceId: 'Device-1',
            lastUpdatedDateTimeUtc: new Date(NOW).toISOString(),
            ...answer,
          }
          const body = Buffer.from(JSON.stringify({ status: 'assigned', registrationState }))
          return { status: 200, retryAfter: undefined, body }
        },
        close: async () => {},
      }
    },
  }
}

interface Scene {
  store?: MemoryStore
  dps?: Service
  identity?: () => Identity
  startMs?: number
}

function scene({ store = memoryStore(), dps = service(), identity = identityOf, startMs = NOW }: Scene = {}) {
  const events: DpsEvent[] = []
  const clock = testClock({ startMs })
  const options = {
    idScope: '0ne00000000',
    credential: { load: async () => identity() },
    clock,
    transport: dps,
    retry: { maxAttempts: 1 },
    store,
    onEvent: (event: DpsEvent) => void events.push(event),
  } satisfies ProvisionOptions
  const told = () =>
    events
      .filter(({ type }) => type.startsWith('no-') || type.startsWith('store'))
      .map((event) => ('reason' in event ? `${event.type} ${event.reason}` : event.type))
  const stored = (): StoredRecord | undefined => {
    const read = store.bytes && decodeRecord(store.bytes)
    return read?.ok ? read.record : undefined
  }
  return { options, store, dps, clock, events, told, stored }
}

const withRecord = (change: Partial<StoredRecord> = {}) =>
  memoryStore(encodeRecord({ ...record(), ...change }))
const offline = () => new DpsError('DNS_FAILED', 'dns', 'no network')

describe('a device that has been provisioned', () => {
  it('comes up with no packet, no clock and no write', async () => {
    for (const startMs of [0, NOW, 4e12]) {
      const t = scene({ store: withRecord(), startMs })
      const assignment = await provision(t.options)
      expect(assignment).toEqual({
        ...record().registration,
        source: 'store',
        stored: true,
        connection: undefined,
        failure: undefined,
      })
      expect(t.dps.opens).toBe(0)
      expect(t.store.calls).toEqual(['read'])
      expect(t.told()).toEqual([])
      expect(t.clock.pending).toBe(0)
    }
  })

  it('has an assignment that is frozen through and through', async () => {
    const assignment = await provision(scene({ store: withRecord() }).options)
    expect(Object.isFrozen(assignment)).toBe(true)
    expect(Object.isFrozen(assignment.payload?.words)).toBe(true)
  })

  it.each([
    ['a wrong option', { idScope: '' }],
    ['a policy that is none', { tls: { ciphers: [] } }],
    ['an unknown option', { verify: false }],
    ['a floor of the clock that is none', { lastContact: 'now' }],
  ])('hears of %s all the same', async (_, wrong) => {
    const t = scene({ store: withRecord() })
    await expect(provision({ ...t.options, ...(wrong as object) })).rejects.toMatchObject({
      name: 'DpsError',
      phase: 'config',
    })
  })
})

describe('a device for which nothing is stored', () => {
  it('registers, and finds it stored the next time', async () => {
    const t = scene()
    const first = await provision({ ...t.options, payload: { model: 7 } })
    expect(first).toMatchObject({
      assignedHub: 'new-hub.azure-devices.net',
      source: 'register',
      stored: true,
      connection: { transport: 'own' },
    })
    expect(Object.isFrozen(first)).toBe(true)
    expect(JSON.parse(t.dps.bodies[0]!)).toMatchObject({ payload: { model: 7 } })
    expect(t.told()).toEqual(['no-stored-assignment missing'])
    const second = await provision(t.options)
    expect(second).toMatchObject({ assignedHub: 'new-hub.azure-devices.net', source: 'store' })
    expect(t.dps.opens).toBe(1)
  })

  it.each([
    ['damaged', () => memoryStore(encodeRecord(record()).subarray(0, 300)), 'does not fit|is cut short'],
    ['damaged', () => memoryStore(new Uint8Array(0)), 'is empty'],
    [
      'newer',
      // The checksum is over the version too.
      () => memoryStore(laterFormat()),
      'has the format 2',
    ],
    [
      'foreign',
      () => withRecord({ binding: { ...record().binding, idScope: '0ne00000001' } }),
      'another id scope',
    ],
    [
      'foreign',
      () => withRecord({ binding: { ...record().binding, host: 'x.example' } }),
      'another provisioning service',
    ],
    [
      'foreign',
      () => withRecord({ binding: { ...record().binding, credential: 'e'.repeat(64) } }),
      'another certificate',
    ],
    ['refused', () => withRecord({ registration: undefined }), 'has refused'],
    [
      'unreadable',
      () => ({ ...memoryStore(), read: () => Promise.reject(new Error('bus error')) }),
      'failed',
    ],
    ['unreadable', () => ({ ...memoryStore(), read: () => Promise.resolve('text' as never) }), 'failed'],
    ['unreadable', () => ({ ...memoryStore(), read: throwing }), 'failed'],
  ] as const)('is one whose record is %s (%#)', async (reason, store, message) => {
    const t = scene({ store: store() })
    expect(await provision(t.options)).toMatchObject({ source: 'register', stored: true })
    expect(t.told()).toEqual([`no-stored-assignment ${reason}`])
    const [event] = t.events.filter(({ type }) => type === 'no-stored-assignment')
    expect(event).toMatchObject({ message: expect.stringMatching(message) })
    expect('error' in event!).toBe(reason === 'unreadable')
    expect(t.stored()?.registration?.assignedHub).toBe('new-hub.azure-devices.net')
  })

  it('is one whose certificate was swapped; and its record is of the new one then', async () => {
    let current = identityOf('a'.repeat(64))
    const t = scene({ identity: () => current })
    await provision(t.options)
    current = identityOf('b'.repeat(64))
    expect(await provision(t.options)).toMatchObject({ source: 'register' })
    expect(t.told().at(-1)).toBe('no-stored-assignment foreign')
    expect(await provision(t.options)).toMatchObject({ source: 'store' })
    current = identityOf('a'.repeat(64))
    expect(await provision(t.options)).toMatchObject({ source: 'register' })
  })

  it('is one whose certificate is swapped while it registers: the record is of the one that registered', async () => {
    const [first, second] = [identityOf('a'.repeat(64)), identityOf('b'.repeat(64))]
    let loads = 0
    const t = scene({ identity: () => (loads++ === 0 ? first : second) })
    await provision(t.options)
    const again = scene({ store: t.store, identity: () => second })
    expect(await provision(again.options)).toMatchObject({ source: 'store' })
  })

  it('rejects where the service cannot be reached', async () => {
    const t = scene({ dps: service(offline()) })
    await expectDpsError(provision(t.options), 'DNS_FAILED', 'dns')
    expect(t.store.calls).toEqual(['read'])
  })

  for (let at = 0; at < 40; at++) {
    const bytes = encodeRecord(record())
    const position = Math.floor((at / 40) * bytes.length)
    it(`is one whose record is wrong at byte ${position}`, async () => {
      const copy = Uint8Array.from(bytes)
      copy[position]! ^= 0x20
      const t = scene({ store: memoryStore(copy) })
      expect(await provision(t.options)).toMatchObject({ source: 'register' })
      expect(t.told()).toEqual(['no-stored-assignment damaged'])
    })
  }
})

function throwing(): never {
  throw new Error('bus error')
}

function laterFormat(): Uint8Array {
  const sum = createHash('sha256').update('dps-device-client/assignment 2\n{}').digest('hex')
  return Buffer.from(`dps-device-client/assignment 2 sha256:${sum}\n{}\n`)
}

describe('mode always', () => {
  it('registers each time, and writes only what has changed', async () => {
    const t = scene({ store: withRecord() })
    expect(await provision({ ...t.options, mode: 'always' })).toMatchObject({
      source: 'register',
      stored: true,
    })
    expect(await provision({ ...t.options, mode: 'always' })).toMatchObject({
      source: 'register',
      stored: true,
    })
    expect(t.dps.opens).toBe(2)
    expect(t.store.calls).toEqual(['read', 'write', 'read'])
  })

  const verdicts = ['UNAUTHORIZED', 'FORBIDDEN', 'NOT_FOUND', 'REGISTRATION_DISABLED'] as const
  it.each(verdicts)('%s erases what is stored, and rejects', async (code) => {
    const t = scene({ store: withRecord(), dps: service(new DpsError(code, 'register', 'no')) })
    await expectDpsError(provision({ ...t.options, mode: 'always' }), code, 'register')
    expect(t.told()).toEqual(['stored-assignment-erased'])
    expect(t.stored()).toMatchObject({ registration: undefined, contactMs: record().contactMs })
    // Without the network it has nothing to go on from.
    const later = scene({ store: t.store, dps: service(offline()) })
    await expectDpsError(provision(later.options), 'DNS_FAILED', 'dns')
    expect(later.told()).toEqual(['no-stored-assignment refused'])
  })

  const kept = (Object.keys(ERROR_CODES) as DpsErrorCode[]).filter(
    (code) => ERROR_CODES[code].family !== 'usage' && !(verdicts as readonly string[]).includes(code),
  )
  it.each(kept)('%s keeps what is stored, and resolves with it', async (code) => {
    const failure = new DpsError(code, 'connect', 'm', { cause: new Error('inner') })
    const t = scene({ store: withRecord(), dps: service(failure) })
    const before = t.store.bytes
    const assignment = await provision({ ...t.options, mode: 'always' })
    expect(assignment).toMatchObject({ assignedHub: 'Old-Hub.azure-devices.net', source: 'store' })
    expect(assignment.source === 'store' && assignment.failure).toBe(failure)
    expect(Object.isFrozen(failure.cause)).toBe(false)
    expect(t.store.bytes).toBe(before)
    expect(t.told()).toEqual(['stored-assignment-kept'])
  })

  it('a clock at 1970 keeps it too', async () => {
    const t = scene({ store: withRecord(), startMs: 0 })
    expect(await provision({ ...t.options, mode: 'always' })).toMatchObject({
      source: 'store',
      failure: { code: 'CLOCK_BEHIND' },
    })
    expect(t.dps.opens).toBe(0)
  })

  it('a way of the caller’s own that met the network keeps it, one that is broken is the caller’s to mend', async () => {
    const met = new DpsError('TRANSPORT_FAILED', 'tcp', 'm', { retryable: true })
    const t = scene({ store: withRecord(), dps: service(met) })
    expect(await provision({ ...t.options, mode: 'always' })).toMatchObject({ source: 'store' })
    const broken = scene({ store: withRecord(), dps: service(new DpsError('TRANSPORT_FAILED', 'tcp', 'm')) })
    await expectDpsError(provision({ ...broken.options, mode: 'always' }), 'TRANSPORT_FAILED', 'tcp')
  })

  it('a credential that cannot be read rejects: nothing can be said about what is stored', async () => {
    const t = scene({
      store: withRecord(),
      identity: () => {
        throw new DpsError('CREDENTIAL_UNREADABLE', 'config', 'gone')
      },
    })
    await expectDpsError(provision({ ...t.options, mode: 'always' }), 'CREDENTIAL_UNREADABLE', 'config')
    expect(t.stored()).toEqual(record())
  })

  it('what is stored of another device is no answer to an outage, and no verdict on this one erases it', async () => {
    const foreign = () =>
      withRecord({ binding: { ...record().binding, registrationId: 'other' }, registration: undefined })
    const out = scene({ store: foreign(), dps: service(offline()) })
    await expectDpsError(provision({ ...out.options, mode: 'always' }), 'DNS_FAILED', 'dns')
    const refused = scene({ store: foreign(), dps: service(new DpsError('UNAUTHORIZED', 'connect', 'no')) })
    await expectDpsError(provision({ ...refused.options, mode: 'always' }), 'UNAUTHORIZED', 'connect')
    expect(refused.store.calls).toEqual(['read'])
  })

  it('a certificate that is swapped in the midst of it has no claim to what was stored for the old one', async () => {
    let loads = 0
    const t = scene({
      store: withRecord(),
      dps: service(offline()),
      identity: () => identityOf(loads++ === 0 ? undefined : 'b'.repeat(64)),
    })
    await expectDpsError(provision({ ...t.options, mode: 'always' }), 'DNS_FAILED', 'dns')
  })
})

describe('a store that does not work', () => {
  const full = () => new DpsError('STORE_FAILED', 'store', 'no space (ENOSPC)')

  it('costs no assignment: it is returned, and said not to be stored', async () => {
    const store = { ...memoryStore(), write: () => Promise.reject(full()) }
    const t = scene({ store })
    expect(await provision(t.options)).toMatchObject({
      assignedHub: 'new-hub.azure-devices.net',
      source: 'register',
      stored: false,
    })
    expect(t.told()).toEqual(['no-stored-assignment missing', 'store-failed'])
    expect(t.events.find(({ type }) => type === 'store-failed')).toMatchObject({
      error: { code: 'STORE_FAILED', phase: 'store' },
    })
  })

  it('throws what it likes: it is told as STORE_FAILED with its cause', async () => {
    for (const write of [() => Promise.reject('broken'), throwing]) {
      const t = scene({ store: { ...memoryStore(), write } })
      expect(await provision(t.options)).toMatchObject({ stored: false })
      const failed = t.events.find((event) => event.type === 'store-failed')
      expect(failed?.error).toMatchObject({ code: 'STORE_FAILED', phase: 'store' })
      expect(failed?.error.cause).toBeDefined()
    }
  })

  it('because it is full still forgets a device that was refused', async () => {
    const store = withRecord()
    store.write = () => Promise.reject(full())
    const t = scene({ store, dps: service(new DpsError('UNAUTHORIZED', 'connect', 'no')) })
    await expectDpsError(provision({ ...t.options, mode: 'always' }), 'UNAUTHORIZED', 'connect')
    expect(store.calls).toEqual(['read', 'remove'])
    expect(store.bytes).toBeUndefined()
    expect(t.told()).toEqual(['store-failed', 'stored-assignment-erased'])
  })

  it('in no way says so, and not that it was erased', async () => {
    const store = withRecord()
    store.write = store.remove = () => Promise.reject(full())
    const t = scene({ store, dps: service(new DpsError('UNAUTHORIZED', 'connect', 'no')) })
    await expectDpsError(provision({ ...t.options, mode: 'always' }), 'UNAUTHORIZED', 'connect')
    expect(t.told()).toEqual(['store-failed', 'store-failed'])
  })

  it.each([
    ['could not be read', () => ({ ...withRecord(), read: () => Promise.reject(full()) })],
    ['is of a later format', () => memoryStore(laterFormat())],
  ])('holds nothing after a refusal, though what it held %s', async (_, make) => {
    const store = make()
    const t = scene({ store, dps: service(new DpsError('UNAUTHORIZED', 'connect', 'no')) })
    await expectDpsError(provision(t.options), 'UNAUTHORIZED', 'connect')
    expect(store.bytes).toBeUndefined()
  })

  it('because it hangs is not waited for', async () => {
    const never = () => new Promise<never>(() => {})
    const t = scene({ store: { ...memoryStore(), read: never, write: never } })
    const timer = setInterval(() => t.clock.advance(10_000), 1)
    onTestFinished(() => clearInterval(timer))
    expect(await provision(t.options)).toMatchObject({ source: 'register', stored: false })
    expect(t.told()).toEqual(['no-stored-assignment unreadable', 'store-failed'])
    expect(t.events.find(({ type }) => type === 'store-failed')).toMatchObject({
      error: { code: 'STORE_FAILED', phase: 'store', message: 'the store did not answer within 30000 ms' },
    })
  })

  it('has its notices passed on, each once', async () => {
    const notices = ['no 0600 here']
    const store: MemoryStore = { ...memoryStore(), notices }
    const write = store.write.bind(store)
    store.write = async (bytes) => {
      notices.push('no fsync here')
      await write(bytes)
    }
    const t = scene({ store })
    await provision(t.options)
    expect(t.events.filter(({ type }) => type === 'warning')).toEqual([
      { type: 'warning', message: 'no 0600 here' },
      { type: 'warning', message: 'no fsync here' },
    ])
  })
})

describe('the floor of the clock', () => {
  it('is what the store remembers, once the network is used', async () => {
    const contactMs = NOW + 100 * 24 * HOUR
    const t = scene({ store: withRecord({ contactMs, registration: undefined }) })
    await expectDpsError(provision(t.options), 'CLOCK_BEHIND', 'clock')
    expect(t.dps.opens).toBe(0)
  })

  it('is that of the application where it is later, and that of another device’s record too', async () => {
    const t = scene({ store: withRecord({ registration: undefined }) })
    await expectDpsError(
      provision({ ...t.options, lastContact: NOW + 30 * 24 * HOUR }),
      'CLOCK_BEHIND',
      'clock',
    )
    const binding = { ...record().binding, registrationId: 'other' }
    const foreign = scene({
      store: withRecord({ binding, contactMs: NOW + 30 * 24 * HOUR, registration: undefined }),
    })
    await expectDpsError(provision(foreign.options), 'CLOCK_BEHIND', 'clock')
  })

  it('moves on with every contact, by the earlier of the two clocks', async () => {
    const t = scene()
    await provision(t.options)
    expect(t.stored()?.contactMs).toBe(NOW)
    // This device's clock is a year ahead; it must not be locked out when that is put right.
    const ahead = scene({ store: t.store, startMs: NOW + 365 * 24 * HOUR })
    await provision({ ...ahead.options, mode: 'always' })
    expect(ahead.stored()?.contactMs).toBe(NOW)
    const behind = scene({ store: memoryStore(), startMs: NOW - 5000 })
    await provision(behind.options)
    expect(behind.stored()?.contactMs).toBe(NOW - 5000)
  })

  it('stays where the service tells no time, so that a clock that was ahead locks nobody out', async () => {
    const startMs = NOW + 60 * 24 * HOUR
    // A refusal over MQTT has no time, and an assignment may have none.
    const refusal = new DpsError('UNAUTHORIZED', 'connect', 'CONNACK 5')
    const answers = [refusal, { lastUpdatedDateTimeUtc: undefined }]
    const ahead = scene({ store: withRecord(), dps: service(...answers), startMs })
    await expectDpsError(provision({ ...ahead.options, mode: 'always' }), 'UNAUTHORIZED', 'connect')
    expect(ahead.stored()).toEqual({ ...record(), registration: undefined })
    await provision({ ...ahead.options, mode: 'always' })
    expect(ahead.stored()?.contactMs).toBe(record().contactMs)
    const right = scene({ store: ahead.store })
    expect(await provision({ ...right.options, mode: 'always' })).toMatchObject({ source: 'register' })
  })

  it('moves on with a refusal and with a service that is busy, and spares the flash', async () => {
    const busy = (ms: number) => new DpsError('THROTTLED', 'register', 'busy', { serverTime: new Date(ms) })
    const store = withRecord({ contactMs: NOW })
    const soon = scene({ store, dps: service(busy(NOW + 10_000)), startMs: NOW + 10_000 })
    await provision({ ...soon.options, mode: 'always' })
    expect(store.calls).toEqual(['read'])
    const later = scene({ store, dps: service(busy(NOW + 2 * HOUR)), startMs: NOW + 2 * HOUR })
    await provision({ ...later.options, mode: 'always' })
    expect(later.stored()).toEqual({ ...record(), contactMs: NOW + 2 * HOUR })
    const refusal = new DpsError('UNAUTHORIZED', 'connect', 'no', { serverTime: new Date(NOW + 5 * HOUR) })
    const refused = scene({ store, dps: service(refusal), startMs: NOW + 5 * HOUR })
    await expectDpsError(provision({ ...refused.options, mode: 'always' }), 'UNAUTHORIZED', 'connect')
    expect(refused.stored()).toEqual({ ...record(), contactMs: NOW + 5 * HOUR, registration: undefined })
  })
})

describe('an option that is wrong', () => {
  it.each([
    ['no options', undefined],
    ['no store', { store: undefined }],
    ['a store that cannot write', { store: { read: async () => undefined, remove: async () => {} } }],
    ['an unknown mode', { mode: 'never' }],
    ['a signal that is none', { signal: {} }],
    ['a time-out of 0', { timeoutMs: 0 }],
  ])('%s is refused', async (_, wrong) => {
    const options = wrong === undefined ? undefined : { ...scene().options, ...wrong }
    await expectDpsError(provision(options as never), 'OPTION_INVALID', 'config')
  })
})

describe('a cancel', () => {
  it('before it begins reads nothing', async () => {
    const t = scene({ store: withRecord() })
    const error = await expectDpsError(
      provision({ ...t.options, signal: AbortSignal.abort('off') }),
      'CANCELLED',
      'store',
    )
    expect(error.cause).toBe('off')
    expect(t.store.calls).toEqual([])
  })

  it('while the store hangs ends it at once, and leaves nothing', async () => {
    const controller = new AbortController()
    const t = scene({ store: { ...memoryStore(), read: () => new Promise<never>(() => {}) } })
    const call = provision({ ...t.options, signal: controller.signal })
    setImmediate(() => controller.abort('off'))
    await expectDpsError(call, 'CANCELLED', 'store')
    expect(t.clock.pending).toBe(0)
    expect(t.told()).toEqual([])
  })

  it('while it registers rejects, though an assignment is stored', async () => {
    const controller = new AbortController()
    const dps = service()
    dps.open = () => {
      controller.abort('off')
      return new Promise<never>(() => {})
    }
    const t = scene({ store: withRecord(), dps })
    await expectDpsError(
      provision({ ...t.options, mode: 'always', signal: controller.signal }),
      'CANCELLED',
      'clock',
    )
    expect(t.stored()).toEqual(record())
  })
})

describe('a credential of the caller’s own', () => {
  it.each([
    ['throws', () => Promise.reject(new Error('no card in the reader'))],
    ['gives nothing', () => Promise.resolve(null as never)],
  ])('that %s ends in one DpsError', async (_, load) => {
    const t = scene({ store: withRecord() })
    const call = provision({ ...t.options, credential: { load } })
    const error = await expectDpsError(call, 'TRANSPORT_FAILED', 'config')
    expect(error.cause).toBeInstanceOf(Error)
    expect(t.store.calls).toEqual([])
  })

  it('that has an id which no service takes is refused', async () => {
    const t = scene({ identity: () => ({ ...identityOf(), registrationId: 'a/b' }) })
    await expectDpsError(provision(t.options), 'OPTION_INVALID', 'config')
  })

  it('that hangs is not waited for, and can be cancelled', async () => {
    const load = () => new Promise<never>(() => {})
    const t = scene()
    const call = provision({ ...t.options, credential: { load }, timeoutMs: 5000 })
    t.clock.advance(5000)
    await expectDpsError(call, 'TIMEOUT', 'config')
    const controller = new AbortController()
    const other = provision({ ...t.options, credential: { load }, signal: controller.signal })
    controller.abort('off')
    await expectDpsError(other, 'CANCELLED', 'store')
    expect(t.clock.pending).toBe(0)
  })
})

it('prints neither the fingerprint of the credential nor what is made of it', async () => {
  const { fingerprint } = identityOf()
  const t = scene({ store: withRecord({ binding: { ...record().binding, credential: 'e'.repeat(64) } }) })
  const assignment = await provision(t.options)
  const text = inspect([assignment, t.events], { depth: 9 })
  for (const part of [fingerprint, record().binding.credential, 'e'.repeat(64)])
    expect(text).not.toContain(part)
})

it('an assignment tells by its source what else it has', () => {
  expectTypeOf<Extract<ProvisionedAssignment, { source: 'store' }>['connection']>().toEqualTypeOf<undefined>()
  expectTypeOf<Exclude<ProvisionedAssignment, { source: 'store' }>>().toExtend<Assignment>()
  expectTypeOf<ProvisionedAssignment>().toExtend<DeviceRegistration>()
})
