// What the package weighs, and the budget it is held to.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cleanEnvironment } from './process.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const readJson = (path) => JSON.parse(readFileSync(join(root, path), 'utf8'))

/**
 * Upper limits, each a little above today's figure; raised on purpose, in a commit that says what for.
 *
 * @typedef {object} Budget
 * @property {number} packages installed
 * @property {number} unpackedBytes
 * @property {number} files
 * @property {Record<string, number>} loadedBytes of our files, by entry point, or by transport as `.:mqtt`
 */

/** @returns {Budget} */
export const readBudget = () => readJson('bench/budget.json')

/**
 * What npm would publish from what is built now.
 *
 * @returns {{ packedBytes: number, unpackedBytes: number, files: { path: string, size: number }[] }}
 */
export function packedContents() {
  const output = execFileSync('npm', ['pack', '--dry-run', '--json'], {
    cwd: root,
    env: cleanEnvironment({ npm_config_update_notifier: 'false' }),
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  const [{ size, unpackedSize, files }] = JSON.parse(output)
  return {
    packedBytes: size,
    unpackedBytes: unpackedSize,
    files: files.map((file) => ({ path: file.path, size: file.size })),
  }
}

/** Entry points that hold code, by subpath, with the name of their file in dist. */
export function entryPoints() {
  return Object.entries(readJson('package.json').exports).flatMap(([subpath, target]) =>
    target.require === undefined
      ? []
      : [[subpath, target.require.default.replace(/^\.\/dist\/|\.cjs$/g, '')]],
  )
}

const TRANSPORTS = ['mqtt', 'mqtt-ws', 'https']

/**
 * What each entry point loads, and what a connection over each transport has loaded by the time it dials.
 *
 * @returns {{ name: string, files: string[], bytes: number, builtins: string[] }[]} builtins: modules of Node that were
 *   not there before
 */
export function loads() {
  const load = (name, ...args) => {
    const output = execFileSync(process.execPath, [join(root, 'bench/lib/load-probe.cjs'), ...args], {
      env: cleanEnvironment(),
      encoding: 'utf8',
    })
    return { name, ...JSON.parse(output) }
  }
  return [
    ...entryPoints().map(([subpath, file]) => load(subpath, file)),
    ...TRANSPORTS.map((transport) => load(`.:${transport}`, 'index', transport)),
  ]
}

/** Packages that an installation of ours brings: itself, and everything it declares. */
export function declaredPackages() {
  const manifest = readJson('package.json')
  const fields = ['dependencies', 'optionalDependencies', 'peerDependencies', 'bundleDependencies']
  return 1 + fields.reduce((sum, field) => sum + Object.keys(manifest[field] ?? {}).length, 0)
}

/**
 * Every limit that is passed, and everything measured that has none, in one sentence each.
 *
 * @param {Budget} budget
 * @param {{ packages: number, unpackedBytes: number, files: number, loadedBytes: Record<string, number> }} actual
 * @returns {string[]}
 */
export function overBudget(budget, actual) {
  const faults = []
  for (const name of ['packages', 'unpackedBytes', 'files']) {
    if (actual[name] > budget[name]) faults.push(`${name}: ${actual[name]} is more than ${budget[name]}`)
  }
  for (const [name, bytes] of Object.entries(actual.loadedBytes)) {
    const limit = budget.loadedBytes[name]
    if (limit === undefined) faults.push(`loadedBytes: ${name} has no budget`)
    else if (bytes > limit) faults.push(`loadedBytes: ${name} loads ${bytes} bytes, more than ${limit}`)
  }
  for (const name of Object.keys(budget.loadedBytes)) {
    if (actual.loadedBytes[name] === undefined) faults.push(`loadedBytes: ${name} is no longer there`)
  }
  return faults
}
