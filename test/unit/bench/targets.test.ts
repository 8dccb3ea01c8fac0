import { describe, expect, it } from 'vitest'
import { judge, TARGETS } from '../../../bench/lib/targets.mjs'

const EVERYTHING = [...new Set(TARGETS.map(({ bench }) => bench))]
const one = (id: string, measured: Parameters<typeof judge>[0], nodeMajor = 20) => {
  const found = judge(measured, { benches: EVERYTHING, nodeMajor }).find((judged) => judged.id === id)
  if (found === undefined) throw new RangeError(id)
  return found
}

describe('the table of targets', () => {
  it('has all seventeen rows, each value under an id of its own', () => {
    expect([...new Set(TARGETS.map(({ row }) => row))]).toEqual(Array.from({ length: 17 }, (_, i) => i + 1))
    const ids = TARGETS.map(({ id }) => id)
    expect(new Set(ids).size).toBe(ids.length)
  })

  it('has gates no stricter than its targets', () => {
    for (const { id, direction = 'at most', target, gate } of TARGETS) {
      if (target === undefined || gate === undefined) continue
      if (direction === 'at least') expect(gate, id).toBeLessThanOrEqual(target)
      else expect(gate, id).toBeGreaterThanOrEqual(target)
    }
  })

  it('never gates time or memory', () => {
    for (const { id, bench, gate } of TARGETS) {
      if (bench === 'memory' || id.startsWith('throughput')) expect(gate, id).toBeUndefined()
    }
  })
})

describe('a value against its target', () => {
  it.each([
    ['handshake', 0.78, 'met', true],
    ['handshake', 0.79, 'not met', true],
    ['handshake', 0.96, 'not met', false],
    ['peer-ec', 3, 'met', true],
    ['peer-ec', 2.9, 'not met', true],
    ['peer-ec', 2, 'not met', false],
    ['rss-assigned', 9, 'not met', true],
    ['throughput-ec-16', 0.5, 'reported', true],
    ['round-trips-https', 5, 'not met', false],
  ])('%s of %d is %s, and passes: %s', (id, value, verdict, passed) => {
    expect(one(id, { [id]: value })).toMatchObject({ value, verdict, passed })
  })

  it('is not measured where there is only a note, and nothing is gated', () => {
    expect(one('handshake', { handshake: { note: 'no valgrind' } })).toMatchObject({
      verdict: 'not measured',
      note: 'no valgrind',
      gated: false,
      passed: true,
    })
    expect(one('handshake', {})).toMatchObject({ verdict: 'not measured', gated: false })
  })

  it('is judged on the Node that it was measured on, where that is another than this one', () => {
    const measured = { 'cold-library-22': { value: 2.7, nodeMajor: 22 } }
    expect(one('cold-library-22', measured)).toMatchObject({ verdict: 'met', gated: true })
  })

  it('is not judged on a Node that the target is not for', () => {
    expect(one('handshake', { handshake: 5 }, 22)).toMatchObject({
      verdict: 'for another Node',
      passed: true,
    })
    expect(one('cold-library-22', {}, 20)).toMatchObject({ verdict: 'for another Node' })
    expect(one('second-connect', { 'second-connect': 5 }, 24)).toMatchObject({
      verdict: 'not met',
      passed: false,
    })
  })

  it('of a bench that did not run is left out', () => {
    const judged = judge({ packages: 1 }, { benches: ['footprint'], nodeMajor: 20 })
    expect(judged.map(({ id }) => id)).toEqual(['packages', 'unpacked', 'files'])
  })

  it('under an unknown id, or that is no number, is a mistake of the bench', () => {
    expect(() => one('handshake', { handshakes: 1 })).toThrow('handshakes')
    expect(() => one('handshake', { handshake: Number.NaN })).toThrow('handshake')
  })
})
