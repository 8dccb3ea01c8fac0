import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, it } from 'vitest'
import { interleave } from '../../../bench/lib/interleave.mjs'
import { run } from '../../../bench/lib/process.mjs'

const folder = mkdtempSync(join(tmpdir(), 'dps-bench-test-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const frame = fileURLToPath(new URL('../../../bench/lib/worker.cjs', import.meta.url))
const journal = join(folder, 'journal')
const worker = join(folder, 'worker.cjs')
writeFileSync(
  worker,
  `const { appendFileSync } = require('node:fs')
  require(${JSON.stringify(frame)}).serve(({ params }) => {
    let done = 0, underWay = 0, most = 0
    return {
      operation: async () => {
        most = Math.max(most, ++underWay)
        await null
        underWay--
        if (params.fails) throw new Error('no such luck')
        if (params.dies) process.exit(3)
        done++
      },
      facts: () => {
        appendFileSync(${JSON.stringify(journal)}, params.letter + done + ' ')
        const facts = { done, most }
        done = most = 0
        return facts
      },
    }
  })`,
)
const variant = (letter: string, params = {}) => ({ name: letter, worker, params: { letter, ...params } })

describe('blocks of variants', () => {
  it('take turns, forwards and backwards; those that warm up do not count', async () => {
    writeFileSync(journal, '')
    const outcomes = await interleave({
      variants: [variant('a'), variant('b')],
      ops: 5,
      rounds: 3,
      warmUp: 1,
      warmUpOps: 7,
      atOnce: 2,
    })
    expect(readFileSync(journal, 'utf8')).toBe('b7 a7 a5 b5 b5 a5 a5 b5 ')
    for (const { ops, cpuMicros, wallMicros, facts } of outcomes) {
      expect(ops).toBe(5)
      expect(facts).toEqual(Array.from({ length: 3 }, () => ({ done: 5, most: 2 })))
      expect([cpuMicros.count, wallMicros.count]).toEqual([3, 3])
      expect(wallMicros.min).toBeGreaterThan(0)
    }
  })

  it.each([
    ['fails', { fails: true }, /"a": Error: no such luck/],
    ['dies', { dies: true }, /worker of "a" ended with 3/],
  ])('whose operation %s end the comparison with an error', async (_, params, expected) => {
    await expect(interleave({ variants: [variant('a', params)], ops: 1, rounds: 1 })).rejects.toThrow(
      expected,
    )
  })
})

describe('a program that is run to its end', () => {
  it('gives what it said', async () => {
    const { stdout, wallMs } = await run([process.execPath, '-e', 'console.log(6 * 7)'])
    expect(stdout).toBe('42\n')
    expect(wallMs).toBeGreaterThan(0)
  })

  it('is an error where it fails, never ends, or is not there', async () => {
    const node = (code: string, timeoutMs?: number) =>
      run([process.execPath, '-e', code], timeoutMs === undefined ? {} : { timeoutMs })
    await expect(node('console.error("out of luck"); process.exit(9)')).rejects.toThrow(
      /ended with 9: out of luck/,
    )
    await expect(node('setInterval(() => {}, 1000)', 500)).rejects.toThrow(/SIGKILL/)
    await expect(run(['/no/such/program'], { role: 'anywhere' })).rejects.toThrow(/ENOENT/)
  })
})
