// Processes on cores of their own, with a clean environment, ended whatever happens.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** @typedef {'client' | 'server' | 'anywhere'} Role */

/**
 * @typedef {object} StartOptions
 * @property {Role} [role] which core. Default `'client'`
 * @property {number} [core] this core, in place of the role's
 * @property {Record<string, string>} [env] set on top of the clean environment
 * @property {string} [cwd]
 */

/** What changes how Node starts or whom it trusts: Node 20 parses every extra root at every start. */
const DISTURBING = [
  'NODE_EXTRA_CA_CERTS',
  'NODE_OPTIONS',
  'NODE_COMPILE_CACHE',
  'NODE_V8_COVERAGE',
  'SSL_CERT_FILE',
  'SSL_CERT_DIR',
]

const benchFolder = fileURLToPath(new URL('..', import.meta.url))

/** @type {Set<import('node:child_process').ChildProcess>} */
const running = new Set()
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL')
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => process.exit(1))

/** @param {Record<string, string>} [extra] */
export function cleanEnvironment(extra = {}) {
  const env = { ...process.env, ...extra }
  for (const name of DISTURBING) if (extra[name] === undefined) delete env[name]
  return env
}

/** The cores that this process may use, as the kernel lists them (`0-3,6`). */
export function parseCores(text) {
  return text
    .trim()
    .split(',')
    .flatMap((range) => {
      const [first, last = first] = range.split('-').map(Number)
      return Array.from({ length: last - first + 1 }, (_, index) => first + index)
    })
}

function allowedCores() {
  try {
    const [, list] = /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/self/status', 'latin1')) ?? []
    return parseCores(list)
  } catch {
    return Array.from({ length: os.availableParallelism() }, (_, index) => index)
  }
}

/** Where the two ends run, or why they could not be kept apart. */
export const pinning = findPinning()

function findPinning() {
  const [client, server] = allowedCores()
  if (server === undefined) return { reason: 'there is one core only' }
  const { status } = spawnSync('taskset', ['-c', String(client), 'true'], { stdio: 'ignore' })
  return status === 0 ? { client, server } : { reason: '`taskset` is missing or not permitted' }
}

/** Whether a program is installed. */
export const hasProgram = (name) =>
  spawnSync('sh', ['-c', `command -v ${name}`], { stdio: 'ignore' }).status === 0

/** @param {StartOptions} options */
function pinned(command, { role = 'client', core = pinning[role] }) {
  return core === undefined || role === 'anywhere' || pinning.reason !== undefined
    ? command
    : ['taskset', '-c', String(core), ...command]
}

/**
 * Starts a program. It is killed when this process ends.
 *
 * @param {readonly string[]} command
 * @param {StartOptions & { stdio?: import('node:child_process').StdioOptions }} [options]
 */
export function start(command, options = {}) {
  const { env, cwd, stdio = ['ignore', 'pipe', 'pipe'] } = options
  const [program, ...args] = pinned([...command], options)
  const child = spawn(program, args, { env: cleanEnvironment(env), cwd, stdio })
  running.add(child)
  child.once('exit', () => running.delete(child))
  child.once('error', () => running.delete(child))
  return child
}

/** Ends a process that `start` gave and waits until it is gone. */
export async function stop(child, signal = 'SIGTERM') {
  if (child.exitCode !== null || child.signalCode !== null) return
  const gone = once(child, 'exit')
  child.kill(signal)
  const impatient = setTimeout(() => child.kill('SIGKILL'), 5000)
  await gone
  clearTimeout(impatient)
}

/**
 * Runs a program to its end.
 *
 * @param {readonly string[]} command
 * @param {StartOptions & { timeoutMs?: number, input?: string }} [options] `timeoutMs`: default 120 000
 * @returns {Promise<{ stdout: string, stderr: string, wallMs: number }>}
 * @throws when it could not be started, took too long, or ended with anything but 0
 */
export async function run(command, options = {}) {
  const { timeoutMs = 120_000 } = options
  const startedAt = performance.now()
  const child = start(command, options)
  const output = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr']) {
    child[name].setEncoding('utf8').on('data', (text) => {
      output[name] += text
    })
  }
  const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs)
  let exitedAt = 0
  child.once('exit', () => {
    exitedAt = performance.now()
  })
  try {
    const [code, signal] = await once(child, 'close')
    if (code !== 0) {
      throw new Error(
        `${command.join(' ').slice(0, 200)} ended with ${code ?? signal}: ${output.stderr.trim().slice(-2000)}`,
      )
    }
  } finally {
    clearTimeout(timer)
  }
  return { ...output, wallMs: exitedAt - startedAt }
}

/**
 * A running `bench/server.mjs`.
 *
 * @typedef {object} Server
 * @property {import('../server.mjs').Scene} scene
 * @property {string} sceneFile the scene as JSON, for workers
 * @property {string} rootsFile both roots as PEM, for peers that can only be told by NODE_EXTRA_CA_CERTS
 * @property {() => Promise<{ cpuMicros: number, openConnections: number }>} usage
 * @property {() => Promise<void>} stop
 */

/**
 * @param {string} folder for the scene
 * @returns {Promise<Server>}
 */
export async function startServer(folder) {
  const child = start([process.execPath, join(benchFolder, 'server.mjs')], {
    role: 'server',
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const died = new Promise((_, reject) =>
    child.once('exit', (code) => reject(new Error(`the server ended with ${code}`))),
  )
  died.catch(() => undefined)
  const answer = async () => (await Promise.race([once(child, 'message'), died]))[0]
  const scene = await answer()
  const sceneFile = join(folder, 'scene.json')
  const rootsFile = join(folder, 'roots.pem')
  writeFileSync(sceneFile, JSON.stringify(scene), { mode: 0o600 })
  writeFileSync(rootsFile, scene.roots.join(''))
  return {
    scene,
    sceneFile,
    rootsFile,
    usage: () => {
      child.send('usage')
      return answer()
    },
    stop: () => stop(child),
  }
}
