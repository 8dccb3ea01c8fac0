import { getEventListeners } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import type { Clock } from '../../../src/clock.ts'
import { DpsError } from '../../../src/errors.ts'
import type { DpsEvent } from '../../../src/options/options.ts'
import {
  type DeviceJournal,
  fileJournal,
  type ManyDevice,
  type ManyResult,
  type ProvisionManyOptions,
  provisionMany,
} from '../../../src/provision-many.ts'
import type { Transport, TransportRequest } from '../../../src/transport/transport.ts'
import { type TestClock, testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

type Reply = { status: number; retryAfter?: string; body: object }

const facts = {
  transport: 'own',
  protocol: 'TLSv1.2',
  cipher: 'c',
  curve: 'X25519',
  root: 'r',
  resumed: false,
  roundTrips: 3,
}
const assigned = (deviceId: string): Reply => ({
  status: 200,
  body: { status: 'assigned', registrationState: { assignedHub: 'h.example', deviceId } },
})
const refused = (status: number, errorCode: number, retryAfter?: string): Reply => ({
  status,
  ...(retryAfter !== undefined && { retryAfter }),
  body: { errorCode, message: 'no' },
})

/** What the service would say to each device, and what was asked. */
class Service implements Transport {
  readonly name = 'own'
  readonly registered: string[] = []
  open_ = 0
  most = 0
  answer: (id: string, request: TransportRequest, count: number) => Reply | Promise<Reply> = (id) =>
    assigned(id)
  readonly #counts = new Map<string, number>()

  async open({ registrationId, signal }: Parameters<Transport['open']>[0]) {
    this.open_++
    this.most = Math.max(this.most, this.open_)
    let isOpen = true
    return {
      connection: facts,
      request: async (request: TransportRequest) => {
        const count = (this.#counts.get(registrationId) ?? 0) + 1
        this.#counts.set(registrationId, count)
        if (request.kind === 'register') this.registered.push(registrationId)
        const aborted = new Promise<never>((_, reject) =>
          signal.addEventListener('abort', () => reject(signal.reason), { once: true }),
        )
        const { retryAfter, status, body } = await Promise.race([
          this.answer(registrationId, request, count),
          aborted,
        ])
        return { status, retryAfter, body: Buffer.from(JSON.stringify(body)) }
      },
      close: async () => {
        if (isOpen) this.open_--
        isOpen = false
      },
    }
  }
}

const device = (registrationId: string, fingerprint = registrationId): ManyDevice<number> => ({
  credential: {
    load: async () => ({ registrationId, fingerprint, checkDates: () => {}, token: async () => undefined }),
  },
})
const list = (count: number) => Array.from({ length: count }, (_, i) => device(`d-${i}`))

const options = (service: Service, over: Partial<ProvisionManyOptions<number>> = {}) => ({
  idScope: '0ne00000000',
  transport: service,
  clock: testClock({ random: () => 0 }) as Clock,
  ratePerMinute: Number.POSITIVE_INFINITY,
  ...over,
})

async function all<T>(results: AsyncIterable<ManyResult<T>>): Promise<ManyResult<T>[]> {
  const found: ManyResult<T>[] = []
  for await (const result of results) found.push(result)
  return found
}

const tick = () => new Promise((resolve) => setImmediate(resolve))

function file(): string {
  const folder = mkdtempSync(join(tmpdir(), 'many-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  return join(folder, 'journal')
}

describe('provisionMany', () => {
  it('registers each, and tells of each with the device it was given', async () => {
    const service = new Service()
    const devices = list(100)
    const results = await all(provisionMany(devices, options(service)))
    expect(results).toHaveLength(100)
    expect(new Set(service.registered).size).toBe(100)
    for (const { device, position, registrationId, assignment, error } of results) {
      expect(device).toBe(devices[position])
      expect(registrationId).toBe(`d-${position}`)
      expect(error).toBeUndefined()
      expect(assignment).toMatchObject({ deviceId: registrationId, assignedHub: 'h.example' })
    }
    expect(service.open_).toBe(0)
    expect(Object.isFrozen(results[0])).toBe(true)
  })

  it('takes an async iterable, and one of nothing', async () => {
    const service = new Service()
    async function* later() {
      for (const one of list(5)) yield one
    }
    expect(await all(provisionMany(later(), options(service)))).toHaveLength(5)
    expect(await all(provisionMany([], options(service)))).toEqual([])
  })

  it('does nothing before it is asked', async () => {
    const next = vi.fn()
    provisionMany({ [Symbol.iterator]: () => ({ next }) }, options(new Service()))
    await tick()
    expect(next).not.toHaveBeenCalled()
  })

  it('hands the payload of the device over, or else the common one', async () => {
    const service = new Service()
    const bodies = new Map<string, unknown>()
    service.answer = (id, request) => {
      if (request.kind === 'register') bodies.set(id, JSON.parse(request.body).payload)
      return assigned(id)
    }
    const devices = [{ ...device('a'), payload: { own: 1 } }, device('b')]
    await all(provisionMany(devices, options(service, { payload: { common: 1 } })))
    expect(Object.fromEntries(bodies)).toEqual({ a: { own: 1 }, b: { common: 1 } })
  })

  it('isolates failures: a credential that throws, one that is refused, a device that is none', async () => {
    const service = new Service()
    service.answer = (id) => (id === 'd-3' ? refused(401, 401002) : assigned(id))
    const devices = list(6) as (ManyDevice<number> | null)[]
    devices[1] = { credential: { load: () => Promise.reject(new Error('chip is gone')) } }
    devices[2] = null
    devices[4] = { ...device('x'), paylod: {} } as never
    const results = await all(provisionMany(devices as ManyDevice<number>[], options(service)))
    const codes = results.sort((a, b) => a.position - b.position).map(({ error }) => error?.code)
    expect(codes).toEqual([
      undefined,
      'TRANSPORT_FAILED',
      'OPTION_INVALID',
      'UNAUTHORIZED',
      'OPTION_INVALID',
      undefined,
    ])
    expect(results[3]).toMatchObject({ registrationId: 'd-3' })
    expect(results[1]!.registrationId).toBeUndefined()
  })

  it('compares the registration id where one is given, in any letter case', async () => {
    const results = await all(
      provisionMany(
        [
          { ...device('Press-1'), registrationId: 'PRESS-1' },
          { ...device('press-2'), registrationId: 'press-3' },
        ],
        options(new Service()),
      ),
    )
    expect(results.map(({ error }) => error?.code)).toContain('CREDENTIAL_NAME_MISMATCH')
    expect(results.filter(({ assignment }) => assignment)).toHaveLength(1)
  })

  it('ends the second of a registration id with one error, and registers the first alone', async () => {
    const service = new Service()
    const results = await all(provisionMany([device('a'), device('b'), device('A')], options(service)))
    const [wrong] = results.filter(({ error }) => error)
    expect(wrong).toMatchObject({ position: 2, registrationId: 'A', error: { code: 'OPTION_INVALID' } })
    expect(wrong!.error!.message).toContain('position 0')
    expect(service.registered.sort()).toEqual(['a', 'b'])
  })

  it('reads the list as far as is under way and unread, and no further', async () => {
    const service = new Service()
    let pulled = 0
    function* endless() {
      for (;;) yield device(`d-${pulled++}`)
    }
    const many = provisionMany(endless(), options(service, { concurrency: 7 }))
    for (let read = 1; read <= 50; read++) {
      await many.next()
      for (let i = 0; i < 20; i++) await tick()
      // Nobody reads meanwhile.
      expect(pulled - read).toBeLessThanOrEqual(7)
    }
    expect(pulled).toBeGreaterThan(50)
    expect(service.most).toBeLessThanOrEqual(7)
    await many.return!()
    expect(service.open_).toBe(0)
  })

  it('is ended by break: what is under way is cut off, and the list is told', async () => {
    const service = new Service()
    service.answer = (id) => (id === 'd-0' ? assigned(id) : new Promise(() => {}))
    let ended = false
    function* devices() {
      try {
        for (let i = 0; ; i++) yield device(`d-${i}`)
      } finally {
        ended = true
      }
    }
    const controller = new AbortController()
    for await (const { registrationId } of provisionMany(
      devices(),
      options(service, { concurrency: 5, signal: controller.signal }),
    )) {
      expect(registrationId).toBe('d-0')
      expect(service.open_).toBeGreaterThan(0)
      break
    }
    expect({ ended, open: service.open_ }).toEqual({ ended: true, open: 0 })
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
  })

  it('is ended by the signal, after what had ended was delivered', async () => {
    const service = new Service()
    service.answer = (id) => (id < 'd-3' ? assigned(id) : new Promise(() => {}))
    const controller = new AbortController()
    const many = provisionMany(list(10), options(service, { concurrency: 10, signal: controller.signal }))
    const first = await many.next()
    for (let i = 0; i < 20; i++) await tick()
    controller.abort(new Error('enough'))
    const results = [first.value as ManyResult]
    const error = await expectDpsError(
      (async () => {
        for (;;) results.push((await many.next()).value as ManyResult)
      })(),
      'CANCELLED',
      'config',
    )
    expect(error.cause).toMatchObject({ message: 'enough' })
    expect(results.map(({ registrationId }) => registrationId).sort()).toEqual(['d-0', 'd-1', 'd-2'])
    expect(service.open_).toBe(0)
    expect(await many.next()).toEqual({ value: undefined, done: true })
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
  })

  it('registers nobody where it was cancelled before', async () => {
    const service = new Service()
    const many = provisionMany(list(3), options(service, { signal: AbortSignal.abort() }))
    await expectDpsError(many.next(), 'CANCELLED', 'config')
    expect(service.registered).toEqual([])
  })

  it('is ended by return while a result is waited for', async () => {
    const service = new Service()
    service.answer = () => new Promise(() => {})
    const many = provisionMany(list(3), options(service))
    const pending = many.next()
    for (let i = 0; i < 20; i++) await tick()
    expect(service.open_).toBe(3)
    expect(await many.return!()).toEqual({ value: undefined, done: true })
    expect(await pending).toEqual({ value: undefined, done: true })
    expect(service.open_).toBe(0)
  })

  it('does not wait for a list, nor for a credential, that never answers', async () => {
    const service = new Service()
    const controller = new AbortController()
    const silent = { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => {}) }) }
    const many = provisionMany<number>(silent, options(service, { signal: controller.signal }))
    const pending = many.next()
    await tick()
    controller.abort()
    await expectDpsError(pending, 'CANCELLED', 'config')
    const slow = provisionMany(
      [{ credential: { load: () => new Promise<never>(() => {}) } }],
      options(service),
    )
    const waiting = slow.next()
    for (let i = 0; i < 20; i++) await tick()
    await slow.return!()
    expect(await waiting).toMatchObject({ done: true })
  })

  it('delivers those begun before it ends with what the list threw', async () => {
    const service = new Service()
    const fault = new Error('no such table')
    async function* devices() {
      yield device('a')
      yield device('b')
      throw fault
    }
    const results: (string | undefined)[] = []
    const error = await expectDpsError(
      (async () => {
        for await (const { registrationId } of provisionMany(devices(), options(service)))
          results.push(registrationId)
      })(),
      'OPTION_INVALID',
      'config',
    )
    expect(error.cause).toBe(fault)
    expect(results.sort()).toEqual(['a', 'b'])
  })

  it.each([
    ['concurrency', { concurrency: 0 }],
    ['concurrency', { concurrency: 1.5 }],
    ['ratePerMinute', { ratePerMinute: 0 }],
    ['ratePerMinute', { ratePerMinute: Number.NaN }],
    ['store', { store: {} }],
    ['inDoubt', { inDoubt: 'maybe' }],
    ['signal', { signal: {} }],
    ['credential', { credential: device('a').credential }],
    ['csr', { csr: 'MII' }],
    ['retry.startDelayMs', { retry: { startDelayMs: -1 } }],
    ['idScope', { idScope: '' }],
  ])('refuses a wrong %s', async (name, over) => {
    const service = new Service()
    const error = await expectDpsError(
      provisionMany(list(1), options(service, over as never)).next(),
      'OPTION_INVALID',
      'config',
    )
    expect(error.message).toContain(name)
    expect(service.registered).toEqual([])
  })

  it('names its own options where one is not known, and not the credential, which is none of them', async () => {
    const error = await expectDpsError(
      provisionMany(list(1), options(new Service(), { rate: 5 } as never)).next(),
      'OPTION_INVALID',
      'config',
    )
    expect(error.message).toMatch(
      /^rate is not an option; known are concurrency, ratePerMinute, store, .*idScope/,
    )
    expect(error.message).not.toContain('credential')
  })

  it('ends with a list whose iterator gives no result, as a loop over it would', async () => {
    const broken = { [Symbol.iterator]: () => ({ next: () => 5 }) } as unknown as Iterable<ManyDevice<number>>
    await expectDpsError(provisionMany(broken, options(new Service())).next(), 'OPTION_INVALID', 'config')
  })

  it.each([undefined, null, 5, 'devices', {}])('refuses %j as a list', async (devices) => {
    await expectDpsError(
      provisionMany(devices as never, options(new Service())).next(),
      'OPTION_INVALID',
      'config',
    )
  })

  it('tells the events of each with its device, and what is said of the options once', async () => {
    const events: [string, string | undefined][] = []
    const devices = [device('a'), device('b')]
    await all(
      provisionMany(
        devices,
        options(new Service(), {
          tls: { legacyCiphers: 'security' },
          onEvent: (event, about) => events.push([event.type, about && (about === devices[0] ? 'a' : 'b')]),
        }),
      ),
    )
    expect(events.filter(([type]) => type === 'warning')).toHaveLength(1)
    for (const id of ['a', 'b']) expect(events).toContainEqual(['phase-started', id])
  })

  it('is not stopped by a handler that throws', async () => {
    const warned = new Promise((resolve) => process.once('warning', resolve))
    const results = await all(
      provisionMany(
        list(2),
        options(new Service(), {
          onEvent: () => {
            throw new Error('mine')
          },
        }),
      ),
    )
    expect(results.every(({ assignment }) => assignment)).toBe(true)
    expect(await warned).toMatchObject({ message: 'mine' })
  })
})

describe('the pace', () => {
  /** Register requests by the time they came at, in virtual time. */
  function timed(service: Service, clock: TestClock) {
    const at: number[] = []
    const { answer } = service
    service.answer = (id, request, count) => {
      if (request.kind === 'register') at.push(clock.monotonic())
      return answer(id, request, count)
    }
    return at
  }

  it('is that of the rate, for all together', async () => {
    const clock = testClock({ random: () => 0 })
    const service = new Service()
    const at = timed(service, clock)
    await all(provisionMany(list(100), options(service, { clock, ratePerMinute: 600, concurrency: 50 })))
    // Ten and a second's worth at once, then one each tenth of a second.
    expect(at.filter((time) => time < 50).length).toBeLessThanOrEqual(11)
    expect(at.at(-1)).toBeGreaterThanOrEqual((100 - 11) * 100)
  })

  it('a 429 to one with retry-after holds up everybody', async () => {
    const clock = testClock({ random: () => 0 })
    const service = new Service()
    service.answer = (id, _, count) =>
      id === 'd-0' && count === 1 ? refused(429, 429001, '30') : assigned(id)
    const at = timed(service, clock)
    const results = await all(
      provisionMany(list(20), options(service, { clock, ratePerMinute: 6000, concurrency: 1 })),
    )
    expect(results.every(({ assignment }) => assignment)).toBe(true)
    expect(at.slice(1).every((time) => time >= 30_000)).toBe(true)
    expect(at).toHaveLength(21)
  })

  it('a device that gives up hands on for how long nobody may ask', async () => {
    const clock = testClock({ random: () => 0 })
    const service = new Service()
    service.answer = (id) => (id === 'd-0' ? refused(503, 503001, '600') : assigned(id))
    const at = timed(service, clock)
    const results = await all(provisionMany(list(3), options(service, { clock, concurrency: 1 })))
    expect(results[0]!.error).toMatchObject({ code: 'SERVICE_UNAVAILABLE', retryAfterMs: 600_000 })
    expect(at.slice(1).every((time) => time >= 600_000)).toBe(true)
  })

  it('a refusal of one, or a lost connection, holds up nobody', async () => {
    const clock = testClock({ random: () => 0 })
    const service = new Service()
    service.answer = (id, _, count) => {
      if (id === 'd-0') return refused(401, 401002)
      if (id === 'd-1' && count === 1) throw new DpsError('CONNECTION_LOST', 'register', 'gone')
      return assigned(id)
    }
    await all(provisionMany(list(5), options(service, { clock, concurrency: 1 })))
    expect(clock.monotonic()).toBe(0)
  })

  it('waits the start delay once, before the first', async () => {
    const clock = testClock({ random: () => 0.5 })
    const service = new Service()
    const at = timed(service, clock)
    await all(provisionMany(list(5), options(service, { clock, retry: { startDelayMs: 10_000 } })))
    expect(at).toEqual([5000, 5000, 5000, 5000, 5000])
  })
})

describe('a run that is gone on with', () => {
  it('registers nobody that is assigned, and tells of all', async () => {
    const [service, store] = [new Service(), fileJournal(file())]
    const first = provisionMany(list(10), options(service, { store, concurrency: 2 }))
    for (let i = 0; i < 4; i++) await first.next()
    await first.return!()
    const made = new Set(service.registered)
    const again = new Service()
    const lookups: string[] = []
    again.answer = (id, { kind }) => {
      if (kind === 'lookup') lookups.push(id)
      return kind === 'lookup' ? refused(404, 404201) : assigned(id)
    }
    const results = await all(provisionMany(list(10), options(again, { store, inDoubt: 'register' })))
    expect(results).toHaveLength(10)
    expect(results.every(({ assignment }) => assignment?.assignedHub === 'h.example')).toBe(true)
    const kept = results.filter((result) => result.assignment && result.source === 'journal')
    expect(kept.length).toBeGreaterThanOrEqual(4)
    for (const { registrationId, assignment } of kept) {
      expect(made).toContain(registrationId)
      expect(again.registered).not.toContain(registrationId)
      expect(assignment).toMatchObject({ deviceId: registrationId, connection: undefined })
    }
    expect(again.registered).toHaveLength(10 - kept.length)
  })

  it('does not take the assignment of another credential', async () => {
    const [service, store] = [new Service(), fileJournal(file())]
    await all(provisionMany([device('a', 'one'), device('b', 'two')], options(service, { store })))
    const again = new Service()
    const results = await all(
      provisionMany([device('a', 'other'), device('b', 'two')], options(again, { store })),
    )
    expect(again.registered).toEqual(['a'])
    expect(results).toHaveLength(2)
  })

  it('tries again who was refused, or was never heard, without asking about it', async () => {
    const [service, store] = [new Service(), fileJournal(file())]
    service.answer = () => refused(401, 401002)
    await all(provisionMany(list(2), options(service, { store })))
    const unreached = {
      ...new Service(),
      name: 'own',
      open: () => Promise.reject(new DpsError('DNS_FAILED', 'dns', 'x')),
    }
    await all(
      provisionMany([device('never')], options(unreached as never, { store, retry: { maxAttempts: 1 } })),
    )
    const again = new Service()
    const results = await all(provisionMany([...list(2), device('never')], options(again, { store })))
    expect(results.map((result) => result.assignment && result.source)).toEqual([
      'register',
      'register',
      'register',
    ])
    expect(again.registered).toHaveLength(3)
  })

  it('delivers nothing whose line is not on the disk, and asks for nothing before the other is', async () => {
    const service = new Service()
    const log: string[] = []
    const entry = (record: Uint8Array) =>
      Object.keys(JSON.parse(Buffer.from(record).toString().slice(17)))[0]!
    service.answer = (id) => {
      log.push(`asked ${id}`)
      return assigned(id)
    }
    const store: DeviceJournal = {
      open: async () => ({
        at: () => Promise.reject(new Error('unused')),
        append: async (records) => {
          await tick()
          log.push(...records.map(entry))
        },
        close: async () => void log.push('closed'),
      }),
    }
    for await (const { registrationId } of provisionMany([device('a')], options(service, { store })))
      log.push(`told ${registrationId}`)
    expect(log).toEqual(['journal', 'begun', 'asked a', 'done', 'told a', 'closed'])
  })

  it('registers nobody once the journal fails, and delivers those that were assigned', async () => {
    const service = new Service()
    const events: DpsEvent[] = []
    let appends = 0
    const store: DeviceJournal = {
      open: async () => ({
        at: () => Promise.reject(new Error('unused')),
        append: async () => {
          if (++appends > 6) throw Object.assign(new Error('no space'), { code: 'ENOSPC' })
        },
        close: async () => {},
      }),
    }
    const results: ManyResult[] = []
    const error = await expectDpsError(
      (async () => {
        for await (const result of provisionMany(
          list(50),
          options(service, { store, concurrency: 1, onEvent: (event) => events.push(event) }),
        ))
          results.push(result)
      })(),
      'STORE_FAILED',
      'store',
    )
    expect(error.cause).toMatchObject({ code: 'ENOSPC' })
    // Head, then two lines for each: the third registration was made and could not be noted.
    expect(results.map(({ assignment }) => assignment?.deviceId)).toEqual(['d-0', 'd-1', 'd-2'])
    expect(service.registered).toEqual(['d-0', 'd-1', 'd-2'])
    expect(events.some(({ type }) => type === 'store-failed')).toBe(true)
  })

  it('gives a journal the minutes that a long one takes to read, and none for ever', async () => {
    const slow = (readMs: number) => {
      const clock = testClock()
      const store: DeviceJournal = {
        open: async () => {
          await tick()
          clock.advance(readMs)
          return {
            at: () => Promise.reject(new Error('unused')),
            append: async () => {},
            close: async () => {},
          }
        },
      }
      return all(provisionMany(list(1), options(new Service(), { store, clock })))
    }
    expect(await slow(600_000)).toMatchObject([{ source: 'register' }])
    await expectDpsError(slow(3_600_000), 'STORE_FAILED', 'store')
  })

  it('says of a journal of another scope so, and leaves it', async () => {
    const path = file()
    const service = new Service()
    await all(provisionMany(list(1), options(service, { store: fileJournal(path) })))
    const before = readFileSync(path)
    const again = new Service()
    await expectDpsError(
      provisionMany(list(1), options(again, { store: fileJournal(path), idScope: '0ne00000001' })).next(),
      'STORE_FAILED',
      'store',
    )
    expect(again.registered).toEqual([])
    expect(readFileSync(path)).toEqual(before)
    expect(readdirSync(join(path, '..'))).toEqual(['journal'])
  })
})
