// Instructions as callgrind counts them: the one measure of this suite that another run repeats.

import { startWorker } from './interleave.mjs'
import { hasProgram, pinning, run } from './process.mjs'
import { summarize } from './stats.mjs'

/** @returns {string | undefined} why instructions cannot be counted here */
export const whyNotCounted = () =>
  hasProgram('valgrind') && hasProgram('vgdb')
    ? undefined
    : 'valgrind is not installed (Debian, Ubuntu: apt-get install valgrind), so instructions are not counted'

const CALLGRIND = ['valgrind', '--tool=callgrind', '--callgrind-out-file=/dev/null']

/** The number after `Collected` in what callgrind says at the end. */
export function parseCollected(stderr) {
  const [, number] = /Collected\s*:\s*(\d+)/.exec(stderr) ?? []
  if (number === undefined) throw new Error(`callgrind reported no count: ${stderr.trim().slice(-500)}`)
  return Number(number)
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

/** All that the threads of a process have executed while they were counted. */
export function parseStatus(text) {
  const events = [...text.matchAll(/^events-(\d+): (\d+)$/gm)]
  if (events.length === 0) throw new Error(`callgrind told no state: ${text.trim().slice(-500)}`)
  return events.reduce((sum, [, , count]) => sum + Number(count), 0)
}

/** A command for a process that runs under valgrind; what it answers. */
async function tell(pid, ...command) {
  const { stdout } = await run(['vgdb', `--pid=${pid}`, ...command], { role: 'anywhere', timeoutMs: 60_000 })
  return stdout
}

/**
 * Instructions per operation of warm work, in blocks of one process: the state of the counters after a block less that
 * before it, so that start, warm-up and end do not count. While it warms up, the process runs under valgrind without
 * being counted, several times faster.
 *
 * `warmUp` has to be long enough for V8 to have compiled what it will: of handshakes, 3 000. At 1 000 the optimising
 * compiler is still at work, and its instructions count too, because all threads do.
 *
 * @param {object} options
 * @param {readonly import('./interleave.mjs').Variant[]} options.variants
 * @param {string} [options.sceneFile]
 * @param {number} [options.warmUp] operations. Default 3 000
 * @param {number} [options.ops] operations per block. Default 100
 * @param {number} [options.blocks] Default 4
 * @param {(text: string) => void} [options.say]
 * @returns {Promise<Map<string, import('./stats.mjs').Summary>>} per operation, by the variants' names
 */
export async function warmInstructions(options) {
  const { variants, sceneFile, warmUp = 3000, ops = 100, blocks = 4, say = () => {} } = options
  const tasks = variants.map((variant) => async (core) => {
    const under = [...CALLGRIND, '--instr-atstart=no']
    const worker = await startWorker(variant, { sceneFile, core, under, stderr: 'ignore' })
    const { pid } = worker.child
    try {
      // What is compiled native is warm at once.
      await worker.block(variant.command === undefined ? warmUp : 20)
      await tell(pid, 'instrumentation', 'on')
      // Switching it on throws away what valgrind has translated; nothing of that is counted, but let it settle.
      await worker.block(10)
      const samples = []
      let before = parseStatus(await tell(pid, 'status', 'internal'))
      for (let i = 0; i < blocks; i++) {
        await worker.block(ops)
        const after = parseStatus(await tell(pid, 'status', 'internal'))
        samples.push((after - before) / ops)
        before = after
      }
      const summary = summarize(samples)
      say(
        `${variant.name}: ${(summary.median / 1e6).toFixed(3)} M instructions (${samples.map((sample) => (sample / 1e6).toFixed(3)).join(', ')})`,
      )
      return summary
    } finally {
      await worker.end()
    }
  })
  const summaries = await twoAtATime(tasks)
  return new Map(variants.map(({ name }, index) => [name, summaries[index]]))
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
