import { setMaxListeners } from 'node:events'
import { describe, expect, it } from 'vitest'
import { mix, streams } from '../../../bench/fleet/chance.mjs'
import { svgLines } from '../../../bench/fleet/chart.mjs'
import { deviceOf, simulate } from '../../../bench/fleet/engine.mjs'
import { ours, rawReply } from '../../../bench/fleet/ours.mjs'
import { Queue } from '../../../bench/fleet/queue.mjs'
import * as sdk from '../../../bench/fleet/sdk.ts'
import { SERVICE, Service } from '../../../bench/fleet/service.mjs'
import { study } from '../../../bench/fleet/study.mjs'
import type { Clock } from '../../../src/clock.ts'
import { DpsError } from '../../../src/errors.ts'
import type { RetryOptions } from '../../../src/options/options.ts'
import { provisionForever } from '../../../src/provision-forever.ts'
import { RELEASED_AT_MS } from '../../../src/release.ts'
import type { Transport } from '../../../src/transport/transport.ts'

interface Seen {
  device: number
  ms: number
  what: string
}

const small = {
  devices: 60,
  seed: 7,
  bootMs: 3000,
  badShare: 1 / 3,
  horizonMs: 86_400_000,
  service: {
    ...SERVICE,
    perMinute: 6,
    burst: 4,
    outages: [
      { fromMs: 200_000, untilMs: 290_000, kind: 'refused' as const },
      { fromMs: 290_000, untilMs: 380_000, kind: 'silent' as const },
    ],
  },
}

const connection = {
  transport: 'model',
  protocol: 'TLSv1.2',
  cipher: 'c',
  curve: 'X25519',
  root: 'r',
  resumed: false,
  roundTrips: 5,
}

/** The whole client, in promises, with nothing replaced but time, chance and the wire. */
async function withWholeClient(fleet: typeof small, retry: RetryOptions, untilMs: number): Promise<Seen[]> {
  const seen: Seen[] = []
  const service = new Service(fleet.service)
  const random = streams(fleet.devices, mix(fleet.seed, 0x5d5))
  const stop = new AbortController()
  setMaxListeners(0, stop.signal)
  const timers = new Set<{ ms: number; fire: () => void }>()
  let now = 0
  /** Devices that sleep, and those that are done: time passes only when all do either. */
  let resting = 0

  const after = (ms: number, fire: () => void) => {
    const timer = { ms: now + ms, fire }
    timers.add(timer)
    return () => timers.delete(timer)
  }
  const sleep = (ms: number, signal: AbortSignal) =>
    new Promise<void>((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason)
      resting++
      const end = (settle: () => void) => () => {
        resting--
        disarm()
        signal.removeEventListener('abort', aborted)
        settle()
      }
      const aborted = end(() => reject(signal.reason))
      const disarm = after(ms, end(resolve))
      signal.addEventListener('abort', aborted)
    })
  const epoch = RELEASED_AT_MS + 7 * 86_400_000

  const run = async (device: number) => {
    const { bootMs, tripMs, enrolled } = deviceOf(fleet, device)
    const clock: Clock = {
      now: () => epoch + now,
      monotonic: () => now,
      random: () => random(device),
      sleep,
      after,
    }
    const note = (what: string) => seen.push({ device, ms: now, what })
    const transport: Transport = {
      name: 'model',
      async open({ enter, signal }) {
        enter('tcp')
        await sleep(tripMs / 2, signal)
        note('open')
        const outage = service.outage(now)
        if (outage === 'silent') await sleep(1e9, signal)
        if (outage === 'refused') {
          await sleep(tripMs / 2, signal)
          throw new DpsError('CONNECTION_REFUSED', 'tcp', 'refused')
        }
        await sleep(4.5 * tripMs, signal)
        return {
          connection,
          async request({ kind }, signal) {
            await sleep(tripMs / 2, signal)
            const polled = kind === 'query'
            const answer = service.outage(now) ?? (polled ? 'assigned' : service.register(now, enrolled))
            note(`${polled ? 'poll' : 'register'} ${answer}`)
            if (answer === 'silent') await sleep(1e9, signal)
            await sleep(tripMs / 2, signal)
            if (answer === 'refused') throw new DpsError('CONNECTION_LOST', 'register', 'lost')
            return rawReply(answer, fleet.service)
          },
          close: async () => {},
        }
      },
    }
    await sleep(bootMs, stop.signal)
    await provisionForever(
      {
        idScope: '0ne00000000',
        credential: {
          load: async () => ({
            registrationId: 'd',
            fingerprint: 'f',
            checkDates: () => {},
            token: async () => undefined,
          }),
        },
        clock,
        transport,
        retry,
      },
      { signal: stop.signal },
    )
    note('assigned')
  }

  const runs = Array.from({ length: fleet.devices }, (_, device) =>
    run(device)
      .catch((error) => {
        if (!stop.signal.aborted) throw error
      })
      .finally(() => resting++),
  )
  for (;;) {
    while (resting < fleet.devices) await new Promise(setImmediate)
    let next: { ms: number; fire: () => void } | undefined
    for (const timer of timers) if (next === undefined || timer.ms < next.ms) next = timer
    if (next === undefined || next.ms > untilMs + 1e-6) break
    timers.delete(next)
    now = Math.max(now, next.ms)
    next.fire()
  }
  stop.abort('enough')
  await Promise.all(runs)
  return seen
}

const inOrder = (seen: readonly Seen[]) => [...seen].sort((a, b) => a.device - b.device || a.ms - b.ms)

describe('the fleet, driven from a queue', () => {
  it.each<[string, RetryOptions]>([
    ['by default', {}],
    ['with a start delay', { startDelayMs: 630_000 }],
    ['with a budget for 429 in a call', { maxThrottled: 3, startDelayMs: 60_000 }],
  ])('does to the millisecond what the whole client does, %s', async (_, retry) => {
    const driven: Seen[] = []
    const { lastMs, assigned, good } = simulate(small, ours(sdk, retry), (device, ms, what) => {
      driven.push({ device, ms, what })
    })
    expect([assigned, good]).toEqual([40, 40])
    const whole = inOrder(await withWholeClient(small, retry, lastMs))
    const upToLast = inOrder(driven.filter(({ ms }) => ms <= lastMs + 1e-6))
    expect(upToLast.map(({ device, what }) => `${device} ${what}`)).toEqual(
      whole.map(({ device, what }) => `${device} ${what}`),
    )
    for (const [at, { ms }] of whole.entries()) expect(upToLast[at]!.ms).toBeCloseTo(ms, 5)
    // A scenario in which nothing goes wrong would prove little.
    const kinds = new Set(whole.map(({ what }) => what))
    for (const what of [
      'open',
      'register taken',
      'register throttled',
      'register unauthorized',
      'assigned',
    ]) {
      expect(kinds).toContain(what)
    }
    const during = ({ fromMs, untilMs }: { fromMs: number; untilMs: number }) =>
      whole.filter(({ ms, what }) => what === 'open' && ms >= fromMs && ms < untilMs).length
    for (const outage of small.service.outages) expect(during(outage)).toBeGreaterThan(10)
  })
})

describe('the queue', () => {
  it('gives back in order of time, and of number where that is the same', () => {
    const random = streams(1, 3)
    const queue = new Queue(500)
    const times = Array.from({ length: 500 }, () => Math.floor(random(0) * 50))
    for (const [device, ms] of times.entries()) queue.push(device, ms)
    const expected = [...times.entries()]
    const taken: [number, number][] = []
    let again = 300
    while (queue.size > 0) {
      const { device, time } = queue
      taken.push([device, time])
      if (again-- > 0) {
        queue.replace(time + 7)
        expected.push([device, time + 7])
      } else queue.pop()
    }
    expected.sort(([a, x], [b, y]) => x - y || a - b)
    expect(taken).toEqual(expected)
    expect(queue.time).toBe(Number.POSITIVE_INFINITY)
  })
})

describe('chance', () => {
  it('is a stream for each device that no other one disturbs, even and seeded', () => {
    const [one, other] = [streams(2, 1), streams(2, 1)]
    const alone = Array.from({ length: 1000 }, () => one(1))
    const between = Array.from({ length: 1000 }, () => {
      other(0)
      return other(1)
    })
    expect(between).toEqual(alone)
    expect(Array.from({ length: 5 }, () => streams(2, 2)(1))).not.toContain(alone[0])
    const fleet = streams(100_000, 5)
    const tenths = new Array<number>(10).fill(0)
    for (let device = 0; device < 100_000; device++) tenths[Math.floor(fleet(device) * 10)]!++
    for (const count of tenths) expect(Math.abs(count - 10_000)).toBeLessThan(400)
  })
})

describe('the model of the service', () => {
  const taken = (service: Service, times: readonly number[], enrolled = true) =>
    times.map((ms) => service.register(ms, enrolled))

  it('takes a burst, then what flows in, and throttling costs nothing', () => {
    const service = new Service({ ...SERVICE, perMinute: 60, burst: 3 })
    expect(taken(service, [0, 0, 0, 0, 500, 1000, 1000, 1500, 2000])).toEqual([
      'taken',
      'taken',
      'taken',
      'throttled',
      'throttled',
      'taken',
      'throttled',
      'throttled',
      'taken',
    ])
    expect(taken(service, Array(5).fill(3_600_000)).filter((answer) => answer === 'taken')).toHaveLength(3)
  })

  it('lets a refused registration take from the quota, or not', () => {
    const service = (refusalsCount: boolean) =>
      new Service({ ...SERVICE, perMinute: 60, burst: 1, refusalsCount })
    expect(taken(service(true), [0, 0], false)).toEqual(['unauthorized', 'throttled'])
    const free = service(false)
    expect(taken(free, [0, 0], false)).toEqual(['unauthorized', 'unauthorized'])
    expect(free.register(0, true)).toBe('taken')
  })

  it('is away for as long as it is', () => {
    const service = new Service({ ...SERVICE, outages: [{ fromMs: 10, untilMs: 20, kind: 'silent' }] })
    expect([9, 10, 19, 20].map((ms) => service.outage(ms))).toEqual([
      undefined,
      'silent',
      'silent',
      undefined,
    ])
  })
})

describe('a study', () => {
  const given = { devices: 3000, scenario: 'outage', policy: 'defaults', seed: 1 } as const

  it('is the same by the same seed, to the last digit, and another by another', () => {
    const text = (seed: number) => JSON.stringify(study(sdk, { ...given, seed }))
    expect(text(1)).toBe(text(1))
    expect(text(2)).not.toBe(text(1))
  })

  it('never has more assigned than the quota allows, nor a good device that is not', () => {
    for (const policy of ['microsoft', 'microsoft-spread', 'defaults', 'start-delay'] as const) {
      for (const scenario of ['power-cut', 'outage', 'bad-third'] as const) {
        const { assigned, good, lastMinutes, refusalsPerDevice } = study(sdk, { ...given, policy, scenario })
        expect(assigned, policy).toBe(good)
        expect(good, policy).toBe(scenario === 'bad-third' ? 2000 : 3000)
        expect(assigned, policy).toBeLessThanOrEqual(1000 + 1000 * lastMinutes)
        expect(refusalsPerDevice > 0, policy).toBe(scenario === 'bad-third')
      }
    }
  })

  it('of a tenth of the fleet with a tenth of the quota says what the whole says', () => {
    const cut = { devices: 20_000, scenario: 'power-cut', policy: 'microsoft', seed: 1 } as const
    const [whole, tenth] = [study(sdk, cut), study(sdk, { ...cut, scale: 10 })]
    for (const key of ['lastToBound', 'throttledPerDevice', 'longestToMedian'] as const) {
      expect(Math.abs(tenth[key] / whole[key] - 1), key).toBeLessThan(0.03)
    }
    // Each is throttled once in every `retry-after` and round trip that it waits.
    expect(whole.throttledPerDevice).toBeGreaterThan(80)
  })

  it('meets the target with the start delay, and needs far fewer 429s by default', () => {
    const of = (policy: 'microsoft' | 'defaults' | 'start-delay') =>
      study(sdk, { devices: 20_000, scenario: 'power-cut', policy, seed: 1 })
    const [peer, byDefault, spread] = [of('microsoft'), of('defaults'), of('start-delay')]
    expect(spread.lastToBound).toBeLessThan(1.1)
    expect(spread.throttledPerDevice).toBeLessThan(0.5)
    expect(byDefault.throttledPerDevice).toBeLessThan(peer.throttledPerDevice / 5)
    expect(byDefault.lastToBound).toBeLessThan(1.3)
  })

  it('does not let a third of bad credentials hold up the good of a million, by default', () => {
    const of = (seed: number) =>
      study(sdk, { devices: 1_000_000, scenario: 'bad-third', policy: 'defaults', seed, scale: 50 })
    for (const seed of [1, 2]) expect(of(seed).lastToBound).toBeLessThan(1.1)
  })
})

describe('the lines of a chart', () => {
  const svg = svgLines({
    title: 'a < b',
    words: 'said',
    minutes: 100,
    panels: [
      {
        title: 'share',
        top: 1,
        lines: [
          {
            name: 'ours',
            style: 'start-delay',
            points: [
              [0, 0],
              [50, 1],
              [200, 1],
            ],
          },
        ],
      },
      {
        title: '429s',
        top: 5000,
        log: true,
        lines: [
          {
            name: 'ours',
            style: 'start-delay',
            points: [
              [0, 0],
              [100, 5000],
            ],
          },
        ],
      },
    ],
  })

  it('stay within their panel, and end where the chart ends', () => {
    const paths = [...svg.matchAll(/ d="M([\d. L]+)"/g)].map(([, path]) =>
      path!.split('L').map((point) => point.split(' ').map(Number)),
    )
    expect(paths.map((points) => points.length)).toEqual([2, 2])
    for (const points of paths) {
      for (const [x, y] of points) {
        expect(x).toBeGreaterThanOrEqual(64)
        expect(x).toBeLessThanOrEqual(744)
        expect(Number.isFinite(y)).toBe(true)
      }
    }
    expect(svg).toContain('>10k</text>')
  })

  it('have a text for who cannot see them, escaped, and colours for both schemes', () => {
    expect(svg).toContain('<title id="title">a &lt; b</title>')
    expect(svg).toContain('<desc id="words">said</desc>')
    expect(svg).toContain('prefers-color-scheme: dark')
  })
})
