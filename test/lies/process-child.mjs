// One device in a process of its own, as it would be shipped: the built package, the real clock, nothing to end it.
// Prints one line for everything that happens outside the call, one for its outcome, and then has to end by itself.

import { ProvisioningClient, symmetricKey, x509 } from 'dps-device-client'

/** @typedef {import('dps-device-client').ProvisioningClientOptions} Options */
/** @type {{ options: Omit<Options, 'credential'>, sas?: any, x509?: any, cancelIn?: string }} */
const { options, sas, x509: certificate, cancelIn } = JSON.parse(process.argv[2] ?? '')

/** @param {object} line */
const say = (line) => console.log(JSON.stringify(line))
for (const event of ['uncaughtException', 'unhandledRejection', 'warning']) {
  process.on(event, (what) => say({ [event]: String(what) }))
}
process.on('exit', (code) => say({ exit: code }))

const controller = new AbortController()
let settled = false
const client = new ProvisioningClient({
  ...options,
  credential: certificate ? x509(certificate) : symmetricKey(sas),
  onEvent: (event) => {
    if (settled) say({ late: event.type })
    if (event.type === 'phase-started' && event.phase === cancelIn) setImmediate(() => controller.abort())
  },
})
client
  .register({ signal: controller.signal })
  .then(
    ({ status }) => ({ status }),
    ({ name, code, phase }) => ({ name, code, phase }),
  )
  .then(async (outcome) => {
    settled = true
    // A socket that was destroyed is closed by the next turn of the event loop.
    await new Promise(setImmediate)
    await new Promise(setImmediate)
    // Pipes are those of the parent; whatever else is listed would keep this process alive.
    const left = process.getActiveResourcesInfo().filter((name) => !/Pipe|Immediate/.test(name))
    say({ outcome, left })
  })
