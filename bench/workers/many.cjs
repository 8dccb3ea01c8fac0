// Registers the devices of a list, so many at once, and tells what it took. A process of its own.
//
//     node bench/workers/many.cjs '{ client, scene, list, count, atOnce, threads, journal }'
//
// `client`: `ours` is provisionMany, with no limit to its rate; another is one of bench/clients, a new one for each device.
// `threads`: each takes its share of the list, and of what is under way at once. `journal`: ours alone, the name of a file.
// The list is read as it is needed, so that what is measured holds no more of it than what is under way.
//
// Answers on the IPC channel with `{ assigned, failed, cpuMicros, wallMicros, maxRssKb, samples }`: a sample at each
// twentieth of the way is [devices done, CPU µs so far, RSS bytes, bytes of heap in use].

'use strict'

const { createReadStream } = require('node:fs')
const { createInterface } = require('node:readline')
const { isMainThread, parentPort, Worker, workerData } = require('node:worker_threads')

const SAMPLES = 20

async function* devicesOf({ list, count, share = 0, threads = 1 }) {
  let at = 0
  for await (const line of createInterface({ input: createReadStream(list) })) {
    if (at === count) return
    if (at++ % threads === share) yield JSON.parse(line)
  }
}

async function ours(job, onDone) {
  const { fileJournal, provisionMany, symmetricKey, x509 } = require('dps-device-client')
  const { readFileSync } = require('node:fs')
  const { host, port, address, idScope, roots, timeouts } = job.scene
  async function* devices() {
    for await (const { registrationId, key, certPem, keyPem } of devicesOf(job)) {
      yield { credential: key ? symmetricKey({ registrationId, key }) : x509({ cert: certPem, key: keyPem }) }
    }
  }
  const options = {
    idScope,
    host,
    port,
    connectTo: address,
    trust: { roots: 'none', extraRoots: readFileSync(roots) },
    // A failure is to be seen, not mended.
    retry: { maxAttempts: 1, pollIntervalMs: 0 },
    timeouts,
    concurrency: job.atOnce,
    ratePerMinute: Number.POSITIVE_INFINITY,
    ...(job.journal && { store: fileJournal(job.journal) }),
  }
  for await (const { assignment, error } of provisionMany(devices(), options)) {
    onDone(assignment?.status === 'assigned', error)
  }
}

async function theirs(job, onDone) {
  const { open } = require(`../clients/${job.client}.cjs`)
  const devices = devicesOf(job)
  const lane = async () => {
    for (;;) {
      const { value: device, done } = await devices.next()
      if (done) return
      try {
        const { status } = await open({ ...job.scene, device }).register()
        onDone(status === 'assigned', status)
      } catch (error) {
        onDone(false, error)
      }
    }
  }
  await Promise.all(Array.from({ length: job.atOnce }, lane))
}

const register = (job, onDone) => (job.client === 'ours' ? ours : theirs)(job, onDone)

/** In a thread for each share, which tell of every device. */
async function inThreads(job, onDone) {
  const shares = Array.from({ length: job.threads }, (_, share) => share)
  await Promise.all(
    shares.map((share) => {
      const workerData = { ...job, share, atOnce: Math.ceil(job.atOnce / job.threads) }
      const worker = new Worker(__filename, { workerData })
      worker.on('message', (failed) => onDone(failed === undefined, failed))
      return new Promise((resolve, reject) => worker.once('exit', resolve).once('error', reject))
    }),
  )
}

async function main() {
  const job = JSON.parse(process.argv[2])
  const { count, threads = 1 } = job
  const samples = []
  let [assigned, failed, firstError] = [0, 0, undefined]
  const started = process.hrtime.bigint()
  const cpu = process.cpuUsage()
  const used = () => {
    const { user, system } = process.cpuUsage(cpu)
    return user + system
  }
  const onDone = (ok, error) => {
    if (ok) assigned++
    else {
      failed++
      firstError ??= error?.stack ?? String(error)
    }
    const done = assigned + failed
    if (done % Math.ceil(count / SAMPLES) !== 0 && done !== count) return
    const { rss, heapUsed } = process.memoryUsage()
    samples.push([done, used(), rss, heapUsed])
  }
  await (threads > 1 ? inThreads : register)(job, onDone)
  process.send({
    assigned,
    failed,
    firstError,
    cpuMicros: used(),
    wallMicros: Number(process.hrtime.bigint() - started) / 1000,
    maxRssKb: process.resourceUsage().maxRSS,
    samples,
  })
}

if (isMainThread) main().catch((error) => process.send({ error: error.stack }))
else {
  void register(workerData, (ok, error) =>
    parentPort.postMessage(ok ? undefined : String(error?.stack ?? error)),
  )
}
