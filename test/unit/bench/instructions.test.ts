import { describe, expect, it } from 'vitest'
import { parseCollected, parseStatus } from '../../../bench/lib/instructions.mjs'
import { cleanEnvironment, parseCores } from '../../../bench/lib/process.mjs'

describe('what callgrind says', () => {
  it('at the end is the number it collected', () => {
    expect(parseCollected('==12== Events    : Ir\n==12== Collected : 2391064937\n==12==\n')).toBe(
      2_391_064_937,
    )
    expect(parseCollected('==1== Collected : 120\n==2== Collected : 3\n'), 'of two processes').toBe(123)
    expect(() => parseCollected('valgrind: not found')).toThrow('not found')
  })

  it('in between is the sum over all threads, without the frames below them', () => {
    const text =
      'instrumentation: on\nevents: Ir\nthreads: 1 5\nevents-1: 100\nevents-1-0: 90\nevents-5: 11\nevents-5-3: 10\n'
    expect(parseStatus(text)).toEqual({ main: 100, all: 111 })
    expect(() => parseStatus('instrumentation: off')).toThrow('off')
  })
})

describe('a child process', () => {
  it.each([
    ['0-1', [0, 1]],
    ['3', [3]],
    ['0,2-4,7\n', [0, 2, 3, 4, 7]],
  ])('may use the cores %j', (text, cores) => {
    expect(parseCores(text)).toEqual(cores)
  })

  it('inherits nothing that changes how Node starts or whom it trusts', () => {
    const before = process.env.NODE_EXTRA_CA_CERTS
    process.env.NODE_EXTRA_CA_CERTS = '/roots.pem'
    try {
      expect(cleanEnvironment().NODE_EXTRA_CA_CERTS).toBeUndefined()
      expect(cleanEnvironment({ NODE_EXTRA_CA_CERTS: '/peer.pem' }).NODE_EXTRA_CA_CERTS).toBe('/peer.pem')
      expect(cleanEnvironment().PATH).toBe(process.env.PATH)
    } finally {
      if (before === undefined) delete process.env.NODE_EXTRA_CA_CERTS
      else process.env.NODE_EXTRA_CA_CERTS = before
    }
  })
})
