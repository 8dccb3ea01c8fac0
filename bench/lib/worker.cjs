// The frame of every worker in bench/workers: options, blocks over IPC, or a fixed number of operations and an end.

'use strict'

const { readFileSync } = require('node:fs')

/**
 * What a worker does again and again.
 *
 * @typedef {object} Work
 * @property {() => Promise<void> | void} operation
 * @property {() => object} [facts] what the operations since the last call were like; proves what was measured
 */

/**
 * node worker.cjs --scene FILE [--params JSON] [--ops N] [--at-once N]
 *
 * With `--ops` it does so many operations and ends; otherwise it waits for `{ ops, atOnce }` on the IPC channel and
 * answers with the CPU time and the wall time of each block.
 *
 * @param {(setting: { scene: any, sceneFile: string, params: any }) => Work | Promise<Work>} setup
 */
exports.serve = async (setup) => {
  const given = {}
  for (let i = 2; i < process.argv.length; i += 2) given[process.argv[i].slice(2)] = process.argv[i + 1]
  const scene = given.scene === undefined ? undefined : JSON.parse(readFileSync(given.scene, 'utf8'))
  const work = await setup({ scene, sceneFile: given.scene, params: JSON.parse(given.params ?? '{}') })
  if (given.ops !== undefined) {
    await operations(work, Number(given.ops), Number(given['at-once'] ?? 1))
    if (process.env.BENCH_FACTS) console.log(JSON.stringify(work.facts?.() ?? {}))
    return
  }
  process.on('message', async ({ ops, atOnce = 1 }) => {
    try {
      const wall = process.hrtime.bigint()
      const cpu = process.cpuUsage()
      await operations(work, ops, atOnce)
      const { user, system } = process.cpuUsage(cpu)
      const wallMicros = Number(process.hrtime.bigint() - wall) / 1000
      process.send({ cpuMicros: user + system, wallMicros, facts: work.facts?.() ?? {} })
    } catch (error) {
      process.send({ error: error.stack })
    }
  })
  process.send({ ready: true })
}

async function operations({ operation }, count, atOnce) {
  let left = count
  const lane = async () => {
    while (left-- > 0) await operation()
  }
  await Promise.all(Array.from({ length: atOnce }, lane))
}
