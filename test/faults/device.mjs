// One registration of one device, alone in its process: the built package, the real clock, and nothing that would end
// the process but the end of its work. Prints one line of JSON when the process ends; exit code 0 only if the promise
// settled once and in time, with an assignment or a DpsError, and nothing happened beside it.

import { getEventListeners } from 'node:events'
import { writeSync } from 'node:fs'
import { DpsError, ProvisioningClient, x509 } from 'dps-device-client'

/** A close that the other side does not finish is waited for this long; the rest is for a slow, shared machine. */
const DEADLINE_MARGIN_MS = 1000 + 500

/** @type {{ options: object, credential: { cert: string, key: string }, cancel: string | undefined }} */
const { options, credential, cancel } = JSON.parse(process.argv[2] ?? '')
const { totalMs } = options.timeouts

const report = { settled: 0, outcome: undefined, elapsedMs: 0, endedAfterMs: 0, retries: [], trouble: [] }
for (const event of ['uncaughtException', 'unhandledRejection', 'warning']) {
  process.on(event, (what) => report.trouble.push(`${event}: ${String(what?.stack ?? what)}`))
}

const controller = new AbortController()
const stop = () => controller.abort()
if (cancel === 'before') stop()
let settledAt = 0

const client = new ProvisioningClient({
  ...options,
  credential: x509(credential),
  onEvent: (event) => {
    if (report.settled > 0) report.trouble.push(`the event ${event.type} after the call had settled`)
    if (event.type === 'retry') {
      report.retries.push({ outcome: `${event.error.code} · ${event.error.phase}`, delayMs: event.delayMs })
    }
    // Later than the event, so that what it announces is under way.
    if (event.type === 'phase-started' && event.phase === cancel) setTimeout(stop, 50)
    if (event.type === cancel) setTimeout(stop, 10)
  },
})

function settle(outcome) {
  report.settled++
  report.outcome = outcome
  settledAt = performance.now()
  report.elapsedMs = Math.round(settledAt - startedAt)
  if (report.elapsedMs > totalMs + DEADLINE_MARGIN_MS) {
    report.trouble.push(`settled after ${report.elapsedMs} ms, with a deadline of ${totalMs} ms`)
  }
  const listeners = getEventListeners(controller.signal, 'abort').length
  if (listeners > 0) report.trouble.push(`${listeners} listeners left on the caller's signal`)
}

const startedAt = performance.now()
client.register({ signal: controller.signal }).then(
  ({ status, payload }) => {
    report.payload = payload
    settle(status)
  },
  (error) => {
    if (!DpsError.is(error)) report.trouble.push(`no DpsError: ${String(error?.stack ?? error)}`)
    settle(`${error.code} · ${error.phase}`)
  },
)

process.on('exit', () => {
  if (report.settled !== 1) report.trouble.push(`the promise settled ${report.settled} times`)
  report.endedAfterMs = Math.round(performance.now() - settledAt)
  if (report.trouble.length > 0) process.exitCode = 1
  writeSync(1, `${JSON.stringify(report)}\n`)
})
