// Variants against each other in one run: each in a process that stays, their blocks taking turns, so that whatever
// else the machine does meets all of them alike.

import { once } from 'node:events'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { start, stop } from './process.mjs'
import { summarize } from './stats.mjs'

const workers = fileURLToPath(new URL('../workers/', import.meta.url))

/**
 * One contender.
 *
 * @typedef {object} Variant
 * @property {string} name
 * @property {string} [worker] a file in bench/workers, or an absolute path
 * @property {object} [params] passed to the worker
 * @property {readonly string[]} [nodeOptions]
 * @property {readonly string[]} [command] a program that speaks lines in place of a worker: it is told `OPS` and
 *   answers with the JSON of `{ cpuMicros, wallMicros, facts }`; `--ops N` makes it do N and end
 * @property {Record<string, string>} [env]
 * @property {number} [atOnce] in place of the comparison's
 * @property {number} [ops] in place of the comparison's
 */

/**
 * @typedef {object} Outcome
 * @property {string} name
 * @property {import('./stats.mjs').Summary} cpuMicros of the client, per operation
 * @property {import('./stats.mjs').Summary} wallMicros per operation
 * @property {import('./stats.mjs').Summary} perSecond operations
 * @property {number} ops per block
 * @property {object[]} facts of each block
 */

/** The command that does a variant's operations, for a process of its own. */
export function commandOf({ worker, params = {}, nodeOptions = [], command }, sceneFile) {
  if (command !== undefined) return [...command]
  const scene = sceneFile === undefined ? [] : ['--scene', sceneFile]
  const file = resolve(workers, worker)
  return [process.execPath, ...nodeOptions, file, ...scene, '--params', JSON.stringify(params)]
}

/**
 * A variant's process, ready for blocks.
 *
 * @param {Variant} variant
 * @param {{ sceneFile?: string, core?: number, under?: readonly string[], stderr?: 'inherit' | 'ignore' }} [options] `under`:
 *   a program, with its arguments, that runs the variant's
 */
export async function startWorker(variant, { sceneFile, core, under = [], stderr = 'inherit' } = {}) {
  const lines = variant.command !== undefined
  const child = start([...under, ...commandOf(variant, sceneFile)], {
    ...(core === undefined ? {} : { core }),
    env: variant.env ?? {},
    stdio: lines ? ['pipe', 'pipe', stderr] : ['ignore', 'inherit', stderr, 'ipc'],
  })
  const died = new Promise((_, reject) => {
    child.once('error', reject)
    child.once('exit', (code, signal) =>
      reject(new Error(`the worker of "${variant.name}" ended with ${code ?? signal}`)),
    )
  })
  died.catch(() => undefined)
  const reader = lines ? createInterface({ input: child.stdout }) : undefined
  const answer = async () => {
    const [message] = await Promise.race([once(reader ?? child, reader ? 'line' : 'message'), died])
    const reply = reader ? JSON.parse(message) : message
    if (reply.error !== undefined) throw new Error(`"${variant.name}": ${reply.error}`)
    return reply
  }
  if (!lines) await answer()
  return {
    child,
    /** @returns {Promise<{ cpuMicros: number, wallMicros: number, facts: any }>} */
    block: (ops, atOnce = 1) => {
      if (lines) child.stdin.write(`${ops}\n`)
      else child.send({ ops, atOnce })
      return answer()
    },
    end: () => stop(child),
  }
}

/**
 * Measures variants in turn.
 *
 * @param {object} comparison
 * @param {readonly Variant[]} comparison.variants
 * @param {string} [comparison.sceneFile]
 * @param {number} comparison.ops operations per block
 * @param {number} comparison.rounds blocks of each variant that count
 * @param {number} [comparison.warmUp] blocks of each variant that do not. Default 1
 * @param {number} [comparison.warmUpOps] operations per warm-up block. Default `ops`
 * @param {number} [comparison.atOnce] operations under way at the same time. Default 1
 * @returns {Promise<Outcome[]>} in the order of `variants`
 */
export async function interleave({ variants, sceneFile, rounds, warmUp = 1, atOnce = 1, ...sizes }) {
  const contenders = []
  try {
    for (const variant of variants) {
      const worker = await startWorker(variant, { sceneFile })
      contenders.push({ variant, worker, samples: [] })
    }
    for (let round = -warmUp; round < rounds; round++) {
      // Forwards, then backwards: nobody always runs behind the same neighbour.
      const order = round % 2 === 0 ? contenders : [...contenders].reverse()
      for (const { variant, worker, samples } of order) {
        const ops = round < 0 ? (sizes.warmUpOps ?? sizes.ops) : (variant.ops ?? sizes.ops)
        const sample = await worker.block(ops, variant.atOnce ?? atOnce)
        if (round >= 0) samples.push({ ...sample, ops })
      }
    }
  } finally {
    for (const { worker } of contenders) await worker.end()
  }
  return contenders.map(({ variant, samples }) => ({
    name: variant.name,
    cpuMicros: summarize(samples.map(({ cpuMicros, ops }) => cpuMicros / ops)),
    wallMicros: summarize(samples.map(({ wallMicros, ops }) => wallMicros / ops)),
    perSecond: summarize(samples.map(({ wallMicros, ops }) => (1e6 * ops) / wallMicros)),
    ops: variant.ops ?? sizes.ops,
    facts: samples.map(({ facts }) => facts),
  }))
}
