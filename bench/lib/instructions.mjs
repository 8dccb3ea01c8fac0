// Instructions as callgrind counts them: the one measure of this suite that another run repeats.

import { startWorker } from './interleave.mjs'
import { hasProgram, pinning, run } from './process.mjs'
import { summarize } from './stats.mjs'

/** @returns {string | undefined} why instructions cannot be counted here */
export const whyNotCounted = () =>
  hasProgram('valgrind') && hasProgram('vgdb')
    ? undefined
    : 'valgrind is not installed (Debian, Ubuntu: apt-get install valgrind), so instructions are not counted'

// Children too: a command may be a shell script that ends in `exec node`.
const CALLGRIND = ['valgrind', '--tool=callgrind', '--trace-children=yes', '--callgrind-out-file=/dev/null']

/** The numbers after `Collected` in what callgrind says at the end, of all processes together where it follows children. */
export function parseCollected(stderr) {
  const numbers = [...stderr.matchAll(/Collected\s*:\s*(\d+)/g)].map(([, number]) => Number(number))
  if (numbers.length === 0) throw new Error(`callgrind reported no count: ${stderr.trim().slice(-500)}`)
  return numbers.reduce((sum, number) => sum + number)
}

/**
 * Runs tasks, at most two at a time, one on each core: a count does not mind company.
 *
 * @template T
 * @param {readonly ((core: number | undefined) => Promise<T>)[]} tasks
 * @returns {Promise<T[]>}
 */
export async function twoAtATime(tasks) {
  const results = []
  let next = 0
  const lane = async (core) => {
    while (next < tasks.length) {
      const index = next++
      results[index] = await tasks[index](core)
    }
  }
  await Promise.all([lane(pinning.client), lane(pinning.server)])
  return results
}

/**
 * What the threads of a process have executed while they were counted: the first one, which runs the program, and all.
 *
 * @returns {{ main: number, all: number }}
 */
export function parseStatus(text) {
  const events = [...text.matchAll(/^events-(\d+): (\d+)$/gm)].map(([, thread, count]) => [
    thread,
    Number(count),
  ])
  if (events.length === 0) throw new Error(`callgrind told no state: ${text.trim().slice(-500)}`)
  return {
    main: events.find(([thread]) => thread === '1')?.[1] ?? 0,
    all: events.reduce((sum, [, count]) => sum + count, 0),
  }
}

/** A command for a process that runs under valgrind; what it answers. */
async function tell(pid, ...command) {
  const { stdout } = await run(['vgdb', `--pid=${pid}`, ...command], { role: 'anywhere', timeoutMs: 60_000 })
  return stdout
}

/**
 * Instructions per operation of warm work: those after `lengths[0]` operations and before the end of `lengths[1]`, so that
 * start, warm-up and end do not count. One process does both: the counters are read in between, and until the first
 * length it runs under valgrind without being counted, several times faster than with.
 *
 * The first length has to be long enough for V8 to have compiled what it will: of handshakes, about 3 000. At 1 000 the
 * optimising compiler is still at work, and its instructions count too, because those of all threads do. The difference
 * has to be long enough for the garbage collector to have its share: some hundreds.
 *
 * @typedef {object} WarmCount
 * @property {number} perOperation all threads
 * @property {number} mainThread per operation, without V8's helpers, whose share (the garbage collector's, mostly) differs
 *   from block to block: the figure that can be repeated to 1 %
 * @property {readonly [number, number]} lengths
 * @property {readonly { main: number, all: number }[]} blocks the same figures of each part, for the spread
 *
 * @param {object} options
 * @param {readonly import('./interleave.mjs').Variant[]} options.variants
 * @param {string} [options.sceneFile]
 * @param {readonly [number, number]} [options.lengths] Default 3 000 and 3 600
 * @param {(text: string) => void} [options.say]
 * @returns {Promise<Map<string, WarmCount>>} by the variants' names
 */
export async function warmInstructions({ variants, sceneFile, lengths = [3000, 3600], say = () => {} }) {
  const counts = await twoAtATime(
    variants.map((variant) => async (core) => {
      const count = await countWarm(variant, { sceneFile, lengths, core })
      const millions = (number) => (number / 1e6).toFixed(2)
      const parts = count.blocks.map(({ main, all }) => `${millions(main)} of ${millions(all)}`)
      say(
        `${variant.name}: ${millions(count.perOperation)} M instructions (main thread: ${parts.join(', ')})`,
      )
      return count
    }),
  )
  return new Map(variants.map(({ name }, index) => [name, counts[index]]))
}

const BLOCKS = 4

async function countWarm(variant, { sceneFile, lengths, core }) {
  const under = [...CALLGRIND, '--instr-atstart=no']
  const worker = await startWorker(variant, { sceneFile, core, under, stderr: 'ignore' })
  try {
    const { pid } = worker.child
    const read = async () => parseStatus(await tell(pid, 'status', 'internal'))
    const [warmUp, end] = lengths
    // What a compiler made beforehand is warm at once.
    await worker.block(variant.command === undefined ? warmUp : 20)
    await tell(pid, 'instrumentation', 'on')
    // Valgrind translates everything anew now. That is not counted, but nothing else need be under way.
    await worker.block(10)
    const ops = Math.ceil((end - warmUp) / BLOCKS)
    const readings = [await read()]
    for (let i = 0; i < BLOCKS; i++) {
      await worker.block(ops)
      readings.push(await read())
    }
    const between = (from, to, operations) => ({
      main: (to.main - from.main) / operations,
      all: (to.all - from.all) / operations,
    })
    const { main, all } = between(readings[0], readings[BLOCKS], BLOCKS * ops)
    return {
      perOperation: all,
      mainThread: main,
      lengths,
      blocks: readings.slice(1).map((reading, i) => between(readings[i], reading, ops)),
    }
  } finally {
    await worker.end()
  }
}

/**
 * Instructions of whole processes, start and end included.
 *
 * @param {object} options
 * @param {readonly { name: string, command: readonly string[], env?: Record<string, string> }[]} options.programs
 * @param {number} [options.runs] of each. Default 3
 * @param {(text: string) => void} [options.say]
 * @returns {Promise<Map<string, import('./stats.mjs').Summary>>} by name
 */
export async function coldInstructions({ programs, runs = 3, say = () => {} }) {
  const tasks = programs.flatMap(({ name, command, env = {} }) =>
    Array.from({ length: runs }, () => async (core) => {
      const { stderr } = await run([...CALLGRIND, ...command], { core, env, timeoutMs: 600_000 })
      const count = parseCollected(stderr)
      say(`${name}: ${(count / 1e6).toFixed(1)} M instructions`)
      return count
    }),
  )
  const counts = await twoAtATime(tasks)
  return new Map(
    programs.map(({ name }, index) => [name, summarize(counts.slice(index * runs, (index + 1) * runs))]),
  )
}
