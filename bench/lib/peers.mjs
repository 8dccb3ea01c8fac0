// What the comparisons need from outside: Microsoft's client, another Node, and a network in which its ports are free.

import { execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { installClient, privateNetwork } from '../../test/interop/setup.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const PREPARED = 'DPS_BENCH_PEERS'

/**
 * @typedef {object} Peers
 * @property {string} [noMicrosoft] why Microsoft's client is not there
 * @property {string} [otherNode] path of a further Node to start programs with
 * @property {string} [noOtherNode] why there is none
 * @property {string} network in words
 */

/** npm itself has written why. */
const whatFailed = (error) => error.code ?? (error.status ? `npm ended with ${error.status}` : error.message)

/** As the interoperability test installs it, and only where its lock file is newer. */
function installMicrosoft() {
  const lock = join(root, 'test/interop/package-lock.json')
  const done = join(root, 'test/interop/node_modules/.package-lock.json')
  if (existsSync(done) && statSync(done).mtimeMs >= statSync(lock).mtimeMs) return
  installClient()
}

/** The binary of another major version, from the npm package that holds it. */
function installNode(major) {
  const folder = join(root, 'node_modules/.cache/dps-bench', `node-${major}`)
  const name = `node-${process.platform}-${process.arch}`
  const binary = join(folder, 'node_modules', name, 'bin/node')
  if (existsSync(binary)) return binary
  mkdirSync(folder, { recursive: true })
  const flags = ['--no-package-lock', '--no-audit', '--no-fund', '--loglevel=error', '--prefix', folder]
  execFileSync('npm', ['install', ...flags, `${name}@${major}`], {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'inherit'],
    timeout: 300_000,
  })
  if (!existsSync(binary)) throw new Error('no binary in the package')
  return binary
}

/**
 * Installs what the benches compare with, then goes on in a private network, where one is granted, as a second process
 * with the same arguments: this one only waits for it.
 *
 * @param {{ otherNode?: string, wantsOtherNode?: boolean }} options
 * @returns {Promise<Peers>} in the process that is to measure
 */
export async function preparePeers({ otherNode, wantsOtherNode = false } = {}) {
  if (process.env[PREPARED] !== undefined) return JSON.parse(process.env[PREPARED])
  /** @type {Peers} */
  const peers = { network: "this machine's own ports" }
  try {
    installMicrosoft()
  } catch (error) {
    peers.noMicrosoft = `Microsoft's client could not be installed (${whatFailed(error)})`
  }
  if (otherNode !== undefined) peers.otherNode = otherNode
  else if (!wantsOtherNode) peers.noOtherNode = 'not asked for'
  else {
    try {
      peers.otherNode = installNode(22)
    } catch (error) {
      peers.noOtherNode = `Node 22 could not be installed (${whatFailed(error)})`
    }
  }
  const enter = privateNetwork()
  if (enter === undefined) return peers
  peers.network = 'a private network'
  const [program, ...args] = enter([process.execPath, ...process.execArgv, ...process.argv.slice(1)])
  const child = spawn(program, args, {
    stdio: 'inherit',
    env: { ...process.env, [PREPARED]: JSON.stringify(peers) },
  })
  const end = () => child.kill()
  process.once('exit', end)
  const code = await new Promise((resolve) =>
    child.once('exit', (status, signal) => resolve(status ?? (signal ? 1 : 0))),
  )
  process.off('exit', end)
  process.exit(code)
}
