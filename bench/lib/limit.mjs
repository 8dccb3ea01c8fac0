// Builds the client in C, where there is a compiler.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { hasProgram, run } from './process.mjs'

const source = fileURLToPath(new URL('../c/handshake.c', import.meta.url))

/**
 * @param {string} folder for the program and the keys
 * @param {import('../server.mjs').Scene} scene
 * @param {string} rootsFile
 * @returns {Promise<{ openssl: string, command: Function } | { reason: string }>} `command` makes the command line of one
 *   variant: `{ port, device?, resume?, contextEach? }`
 */
export async function buildLimit(folder, scene, rootsFile) {
  if (!hasProgram('cc')) return { reason: 'there is no C compiler, so the limit is left out' }
  const program = join(folder, 'handshake')
  try {
    await run(['cc', '-O2', '-o', program, source, '-lssl', '-lcrypto'], { role: 'anywhere' })
  } catch (error) {
    if (!/openssl|lssl|lcrypto/.test(error.message)) throw error
    return { reason: 'the headers of libssl are missing, so the limit is left out (Debian: libssl-dev)' }
  }
  const { stdout } = await run([program, '--version'], { role: 'anywhere' })
  const files = {}
  for (const device of ['ec', 'rsa']) {
    files[device] = ['cert', 'key'].flatMap((name) => {
      const file = join(folder, `${device}-${name}.pem`)
      writeFileSync(file, scene.devices[device][name], { mode: 0o600 })
      return [`--${name}`, file]
    })
  }
  return {
    openssl: stdout.trim(),
    command: ({ port, device, resume = false, contextEach = false }) => [
      program,
      rootsFile,
      scene.host,
      String(port),
      ...(files[device] ?? []),
      ...(resume ? ['--resume'] : []),
      ...(contextEach ? ['--context-each'] : []),
    ],
  }
}
