// A gateway that runs for years: it boots without a network, provisions itself, sends readings, and outlives `kill -9`, a
// replaced certificate (`systemctl reload gateway`) and a move to another hub. gateway.service starts it.

import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { loadavg } from 'node:os'
import { join } from 'node:path'
import { fileStore, x509 } from 'dps-device-client'
import { provisionAndConnect } from 'dps-device-client/hub'

// config.json: `provisioning` and `hub` hold options as they are, such as `"idScope": "0ne…"`.
const config = JSON.parse(await readFile(process.env.GATEWAY_CONFIG ?? '/etc/gateway/config.json', 'utf8'))
const state = process.env.STATE_DIRECTORY ?? '/var/lib/gateway'
const spool = join(state, 'readings')
await mkdir(spool, { recursive: true })

/** @param {string} text @param {object} [details] */
const log = (text, details) =>
  console.log(details === undefined ? text : `${text} ${JSON.stringify(details)}`)

/** @type {import('dps-device-client/hub').HubConnection | undefined} */
let hub
let intervalMs = 10_000
/** @type {Set<string>} */
const sending = new Set()

/** A reading stays on disk until the hub has acknowledged it. @param {string} name */
async function send(name) {
  if (hub === undefined || sending.has(name)) return
  sending.add(name)
  try {
    const body = await readFile(join(spool, name))
    await hub.sendTelemetry(body, {
      messageId: name,
      contentType: 'application/json',
      contentEncoding: 'utf-8',
    })
    await rm(join(spool, name))
  } catch (error) {
    // It is still there, and goes with the next connection.
    log('reading not sent', { name, error: String(error) })
  } finally {
    sending.delete(name)
  }
}

async function sendAll() {
  for (const name of (await readdir(spool)).filter((file) => !file.endsWith('.tmp')).sort()) await send(name)
}

let count = 0
async function read() {
  const name = `${Date.now()}-${count++}`
  const [load] = loadavg()
  // Renamed when it is whole, so that no half of a reading is ever sent.
  await writeFile(join(spool, `${name}.tmp`), JSON.stringify({ at: new Date().toISOString(), load }))
  await rename(join(spool, `${name}.tmp`), join(spool, name))
  void send(name)
}

/** @type {NodeJS.Timeout | undefined} */
let timer
function readEvery() {
  clearInterval(timer)
  timer = setInterval(
    () => read().catch((error) => log('reading not stored', { error: String(error) })),
    intervalMs,
  )
}
if (typeof config.intervalMs === 'number') intervalMs = config.intervalMs
readEvery()

const stop = new AbortController()
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => stop.abort())
let reload = () => {}
process.on('SIGHUP', () => reload())

while (!stop.signal.aborted) {
  const reloaded = new Promise((resolve) => {
    reload = () => resolve('reload')
    stop.signal.addEventListener('abort', () => resolve('stop'))
  })
  try {
    hub = await provisionAndConnect({
      transport: ['mqtt', 'mqtt-ws'],
      ...config.provisioning,
      hub: config.hub ?? {},
      // Read again for every connection: a replaced file needs no restart.
      credential: x509({ certFile: config.certFile, keyFile: config.keyFile }),
      // A swapped certificate makes what is stored count for nothing, and the device registers with the new one.
      store: fileStore(join(state, 'assignment')),
      signal: stop.signal,
      onEvent: (event) => {
        if (event.type === 'connected') log('connected', { hub: event.hub })
        else if ('error' in event) log(event.type, { error: String(event.error) })
      },
    })
  } catch (error) {
    if (stop.signal.aborted) break
    throw error
  }
  hub.onMethod('ping', () => ({ status: 200, payload: { uptimeSeconds: Math.round(process.uptime()) } }))
  hub.onCommand(({ body }) => log('command', { body: Buffer.from(body).toString() }))
  hub.twin.onDesired(({ properties }) => {
    if (typeof properties.intervalMs !== 'number' || properties.intervalMs < 100) return
    intervalMs = properties.intervalMs
    readEvery()
  })
  hub.twin.report({ pid: process.pid }).catch((error) => log('not reported', { error: String(error) }))
  void sendAll()
  log(String(await reloaded))
  await hub.close()
  hub = undefined
}
clearInterval(timer)
