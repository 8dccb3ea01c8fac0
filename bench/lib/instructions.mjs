// Instructions as callgrind counts them: the one measure of this suite that another run repeats.

import { commandOf } from './interleave.mjs'
import { hasProgram, pinning, run } from './process.mjs'
import { summarize } from './stats.mjs'

/** @returns {string | undefined} why instructions cannot be counted here */
export const whyNotCounted = () =>
  hasProgram('valgrind')
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
 * Instructions per operation of warm work: the same worker with two run lengths, subtracted, so that start, warm-up and
 * end cancel out. Below some 3 000 operations V8 still compiles, which would count as work.
 *
 * @param {object} options
 * @param {readonly import('./interleave.mjs').Variant[]} options.variants
 * @param {string} [options.sceneFile]
 * @param {readonly [number, number]} [options.lengths] Default 3 000 and 4 000
 * @param {(text: string) => void} [options.say]
 * @returns {Promise<Map<string, { perOperation: number, collected: readonly number[], lengths: readonly number[] }>>}
 *   by the variants' names
 */
export async function warmInstructions({ variants, sceneFile, lengths = [3000, 4000], say = () => {} }) {
  const tasks = variants.flatMap((variant) =>
    [...lengths].reverse().map((ops) => async (core) => {
      const command = [...CALLGRIND, ...commandOf(variant, sceneFile), '--ops', String(ops)]
      const { stderr } = await run(command, { core, env: variant.env ?? {}, timeoutMs: 1_800_000 })
      const count = parseCollected(stderr)
      say(`${variant.name}: ${ops} operations, ${(count / 1e6).toFixed(0)} M instructions`)
      return count
    }),
  )
  const counts = await twoAtATime(tasks)
  return new Map(
    variants.map(({ name }, index) => {
      const [long, short] = counts.slice(2 * index, 2 * index + 2)
      const perOperation = (long - short) / (lengths[1] - lengths[0])
      return [name, { perOperation, collected: [short, long], lengths }]
    }),
  )
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
