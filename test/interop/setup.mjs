// Where Microsoft's client comes from, and a network in which it can find the emulator.

import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))

const LOOPBACK_UP = 'PATH=$PATH:/usr/sbin:/sbin; ip link set lo up || ifconfig lo up'

/** Installs the client from the lock file in this folder. */
export function installClient() {
  // No script of a dependency has to run for it, and none does.
  const flags = ['--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund', '--loglevel=error']
  execFileSync('npm', ['ci', ...flags], {
    cwd: here,
    stdio: ['ignore', 'ignore', 'inherit'],
    timeout: 300_000,
    shell: process.platform === 'win32',
  })
}

/**
 * The client dials fixed ports, which may be taken or forbidden on this machine and are free in a network of one's own.
 *
 * @returns {((command: readonly string[]) => string[]) | undefined} what makes a command run in one, if the system
 *   grants it
 */
export function privateNetwork() {
  if (process.platform !== 'linux') return undefined
  // Who is not root may still be root of a user namespace.
  const flags = [['-n'], ['-r', '-n']].find((candidate) => {
    try {
      execFileSync('unshare', [...candidate, 'sh', '-c', LOOPBACK_UP], { stdio: 'ignore', timeout: 10_000 })
      return true
    } catch {
      return false
    }
  })
  if (flags === undefined) return undefined
  // `exec` all the way hands file descriptors and signals on.
  const script = `{ ${LOOPBACK_UP}; } && exec "$0" "$@"`
  return (command) => ['unshare', ...flags, 'sh', '-c', script, ...command]
}
