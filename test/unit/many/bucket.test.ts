import { describe, expect, it } from 'vitest'
import { Bucket } from '../../../src/many/bucket.ts'
import { testClock } from '../../support/clock.ts'

const never = new AbortController().signal

/** When each of so many turns came, on a virtual clock. */
async function turns(count: number, ratePerMinute: number, before?: (bucket: Bucket, turn: number) => void) {
  const clock = testClock({ random: () => 0 })
  const bucket = new Bucket(ratePerMinute, clock)
  const at: number[] = []
  for (let turn = 0; turn < count; turn++) {
    before?.(bucket, turn)
    await bucket.turn(never)
    at.push(clock.monotonic())
  }
  return at
}

describe('the token bucket', () => {
  it('lets a second’s worth go at once, and the rest evenly', async () => {
    expect(await turns(8, 240)).toEqual([0, 0, 0, 0, 0, 250, 500, 750])
  })

  it('never lets more than the rate and one burst go in any minute', async () => {
    const at = await turns(3000, 900)
    for (const [i, from] of at.entries()) {
      expect(at.filter((time) => time >= from && time < from + 60_000).length).toBeLessThanOrEqual(900 + 16)
      if (i > 100) break
    }
    // And it loses none of it.
    expect(at.at(-1)).toBeLessThanOrEqual((3000 / 900) * 60_000)
  })

  it('has no limit where that is said', async () => {
    expect(await turns(100, Number.POSITIVE_INFINITY)).toEqual(Array.from({ length: 100 }, () => 0))
  })

  it('lets nobody go while it is held, nor a burst afterwards', async () => {
    const at = await turns(6, 60, (bucket, turn) => turn === 2 && bucket.hold(10_000))
    expect(at.slice(0, 2)).toEqual([0, 0])
    expect(at.slice(2)).toEqual([10_000, 11_000, 12_000, 13_000])
  })

  it('is held for the longest that was asked, and up to a fifth more', async () => {
    const clock = testClock({ random: () => 0.5 })
    const bucket = new Bucket(60, clock)
    bucket.hold(10_000)
    bucket.hold(2000)
    await bucket.turn(never)
    expect(clock.monotonic()).toBe(11_000)
  })

  it('lets who tries again go before who begins', async () => {
    const order: string[] = []
    const bucket = new Bucket(60, testClock({ random: () => 0 }))
    bucket.hold(1000)
    await Promise.all([
      bucket.turn(never).then(() => order.push('first')),
      bucket.turn(never).then(() => order.push('second')),
      bucket.turn(never, true).then(() => order.push('again')),
    ])
    expect(order).toEqual(['again', 'first', 'second'])
  })

  it('leaves nothing of who gives up, and goes on for the others', async () => {
    const bucket = new Bucket(60, testClock({ random: () => 0 }))
    bucket.hold(1000)
    const controller = new AbortController()
    const given = bucket.turn(controller.signal)
    const other = bucket.turn(never)
    controller.abort(new Error('enough'))
    await expect(given).rejects.toThrow('enough')
    await expect(bucket.turn(controller.signal)).rejects.toThrow('enough')
    await other
  })
})
