// A gateway that runs for years: it boots without a network, provisions itself, sends readings, and outlives `kill -9`, a
// replaced certificate (`systemctl reload gateway`) and a move to another hub. gateway.service starts it.
//
//   fallback {"error":"DpsError: global.azure-devices-provisioning.net (127.0.0.1) port 42215 ended the connection before …"}
//   connected {"hub":"contoso-hub-east.azure-devices.net"}
//   command {"body":"open"}
//   reload
//   connected {"hub":"contoso-hub-east.azure-devices.net"}
//   stop

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
/** More than that are not kept, 28 hours of them at one in ten seconds: the oldest go first. */
const maxReadings = config.maxReadings ?? 10_000
/** How many are on their way at a time. */
const BATCH = 100

/** @param {string} text @param {object} [details] */
const log = (text, details) =>
  console.log(details === undefined ? text : `${text} ${JSON.stringify(details)}`)

/** @type {import('dps-device-client/hub').HubConnection | undefined} */
let hub
let intervalMs = 10_000
let sending = false

const isWhole = (/** @type {string} */ name) => !name.endsWith('.tmp')
const readings = async () => (await readdir(spool)).filter(isWhole).sort()

/** A reading stays on disk until the hub has acknowledged it. @param {string} name */
async function send(name) {
  const body = await readFile(join(spool, name))
  if (hub === undefined) throw new Error('there is no hub just now')
  await hub.sendTelemetry(body, {
    messageId: name,
    contentType: 'application/json',
    contentEncoding: 'utf-8',
  })
  await rm(join(spool, name), { force: true })
}

/** The oldest first. While the hub is away it waits for it; what fails goes with the next reading or connection. */
async function sendAll() {
  if (hub === undefined || sending) return
  sending = true
  try {
    for (let names = await readings(); names.length > 0; names = await readings()) {
      const sent = await Promise.allSettled(names.slice(0, BATCH).map(send))
      const [first] = sent
      // A queue that is full takes more once it has sent something.
      if (first?.status === 'rejected' && sent.every(({ status }) => status === 'rejected'))
        throw first.reason
    }
  } catch (error) {
    log('readings not sent', { error: String(error) })
  } finally {
    sending = false
  }
}

let count = 0
async function read() {
  const name = `${Date.now()}-${count++}`
  const [load] = loadavg()
  // Renamed when it is whole, so that no half of a reading is ever sent.
  await writeFile(join(spool, `${name}.tmp`), JSON.stringify({ at: new Date().toISOString(), load }))
  await rename(join(spool, `${name}.tmp`), join(spool, name))
  const names = await readings()
  const surplus = names.slice(0, Math.max(0, names.length - maxReadings))
  for (const old of surplus) await rm(join(spool, old), { force: true })
  if (surplus.length > 0) log('readings dropped, the oldest', { dropped: surplus.length })
  void sendAll()
}

// Halves that a power cut has left.
for (const name of await readdir(spool)) if (!isWhole(name)) await rm(join(spool, name), { force: true })

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
        if (event.type === 'connected') {
          log('connected', { hub: event.hub })
          void sendAll()
        } else if ('error' in event) log(event.type, { error: String(event.error) })
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
