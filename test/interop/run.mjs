// Microsoft's provisioning client, as it is published, registers against the emulator. See README.md.
//
// Their client dials fixed ports, so the cases run in a private network namespace where the system grants one, and on
// this machine's own loopback ports where it does not.

import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { installClient, privateNetwork } from './setup.mjs'

const cases = fileURLToPath(new URL('cases.mjs', import.meta.url))

// Node 20 parses every extra certificate at each start; a device is given its own.
const env = { ...process.env }
delete env.NODE_EXTRA_CA_CERTS

function runCases() {
  const enter = privateNetwork()
  console.log(enter ? 'in a private network' : "on this machine's own ports")
  const [program, ...args] = (enter ?? ((command) => command))([process.execPath, cases])
  // The channel tells the cases when this process is gone.
  const child = spawn(program, args, { env, stdio: ['inherit', 'inherit', 'inherit', 'ipc'] })
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
