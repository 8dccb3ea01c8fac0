// Microsoft's provisioning client, as it is published, registers against the emulator. See README.md.
//
// Their client dials fixed ports, so the cases run in a private network namespace where the system grants one, and on
// this machine's own loopback ports where it does not.

import { execFileSync, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))
const cases = fileURLToPath(new URL('cases.mjs', import.meta.url))

// Node 20 parses every extra certificate at each start; a device is given its own.
const env = { ...process.env }
delete env.NODE_EXTRA_CA_CERTS

const LOOPBACK_UP = 'PATH=$PATH:/usr/sbin:/sbin; ip link set lo up || ifconfig lo up'

/** The arguments of `unshare` that give a network of one's own here, if any do. */
function privateNetwork() {
  if (process.platform !== 'linux') return undefined
  // Who is not root may still be root of a user namespace.
  return [['-n'], ['-r', '-n']].find((flags) => {
    try {
      execFileSync('unshare', [...flags, 'sh', '-c', LOOPBACK_UP], { stdio: 'ignore', timeout: 10_000 })
      return true
    } catch {
      return false
    }
  })
}

function installClient() {
  // No script of a dependency has to run for it, and none does.
  const flags = ['--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund', '--loglevel=error']
  execFileSync('npm', ['ci', ...flags], {
    cwd: here,
    stdio: ['ignore', 'ignore', 'inherit'],
    timeout: 300_000,
    shell: process.platform === 'win32',
  })
}

function runCases() {
  const flags = privateNetwork()
  console.log(flags ? 'in a private network' : "on this machine's own ports")
  // The channel tells the cases when this process is gone; `exec` all the way hands it on.
  const options = { env, stdio: ['inherit', 'inherit', 'inherit', 'ipc'] }
  const script = `{ ${LOOPBACK_UP}; } && exec "$0" "$@"`
  const child = flags
    ? spawn('unshare', [...flags, 'sh', '-c', script, process.execPath, cases], options)
    : spawn(process.execPath, [cases], options)
  child.once('exit', (code) => {
    process.exitCode = code ?? 1
  })
}

function main() {
  try {
    installClient()
  } catch (error) {
    console.log(`FAILED Microsoft's client is installed: ${error.message}\n0 passed, 1 failed`)
    process.exitCode = 1
    return
  }
  runCases()
}

main()
