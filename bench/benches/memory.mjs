// Memory: the whole process at its peak, per idle connection, over 10,000 registrations, and the smallest heap with which
// a registration still ends assigned; ours, the protocol by hand on MQTT.js, and Microsoft's client. EC P-256, full
// handshakes, against the same emulated service.
//
// - Peak: bench/clients as programs, measured from outside, as in the cold start.
// - Idle connections: registrations that the service never answers, so each is connected, subscribed and waits. The
//   process first registers some hundred times, so that its young generation and its code have grown; then connections
//   are added in steps, with a garbage collection after each, and the slope over all steps is the cost of one.
// - Endurance: the heap in use after a garbage collection, and, in another process with `--max-semi-space-size=1`, the
//   RSS, because the young generation and compiled code grow to their sizes whatever a client does.
// - Smallest heap: the least `--max-old-space-size` that three runs in a row survive.

import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { run as runProgram, start, stop } from '../lib/process.mjs'
import { slope, smallest } from '../lib/search.mjs'
import { startService } from '../lib/service.mjs'
import { summarize } from '../lib/stats.mjs'
import { inTurn, usageMeter } from '../lib/whole-process.mjs'

export const title = 'Memory'
export const about =
  'The peak of one registration, what an idle connection holds, growth over thousands of registrations, and the smallest heap. EC P-256.'

const worker = fileURLToPath(new URL('../workers/memory.cjs', import.meta.url))
const clientProgram = (name) => fileURLToPath(new URL(`../clients/${name}.cjs`, import.meta.url))
const KB = 1024
const MB = 1024 * 1024

const OURS = { label: 'ours, MQTT', client: 'ours' }
const OURS_HTTPS = { label: 'ours, HTTPS', client: 'ours', transport: 'https' }
const BY_HAND = { label: 'MQTT.js by hand', client: 'mqttjs' }
const BY_HAND_NO_CACHE = { label: 'MQTT.js by hand, no number cache', client: 'mqttjs', writeCache: false }
// It gives up after 30 s, whatever it is told: fewer connections, so that the first still waits when the last is there.
const MICROSOFT = { label: "Microsoft's, MQTT", client: 'microsoft', fewer: 20 }

export async function run({ quick, folder, peers, say }) {
  const service = await startService(folder)
  try {
    const why = peers.noMicrosoft ?? service.noFixedPorts
    if (why !== undefined) say(`Microsoft's client: skipped, ${why}`)
    const microsoft = why === undefined ? [MICROSOFT] : []
    const bench = new MemoryBench({ quick, service, folder, say })
    await bench.peak([OURS, OURS_HTTPS, BY_HAND, BY_HAND_NO_CACHE, ...microsoft])
    await bench.idle(quick ? [OURS] : [OURS, OURS_HTTPS, BY_HAND, BY_HAND_NO_CACHE, ...microsoft])
    await bench.endurance(quick ? [OURS] : [OURS, BY_HAND, ...microsoft])
    await bench.smallestHeap(quick ? [OURS] : [OURS, OURS_HTTPS, BY_HAND, BY_HAND_NO_CACHE, ...microsoft])
    const { tables, charts, measured, checks, data } = bench
    return { tables, charts, measured, checks, data }
  } finally {
    await service.stop()
  }
}

class MemoryBench {
  tables = []
  charts = []
  measured = {}
  checks = []
  data = {}
  #quick
  #service
  #folder
  #say

  constructor({ quick, service, folder, say }) {
    this.#quick = quick
    this.#service = service
    this.#folder = folder
    this.#say = say
  }

  #scene({ transport = 'mqtt', writeCache }) {
    const { scene, devices } = this.#service
    return { ...scene, device: devices.ec, transport, writeCache }
  }

  #env({ client }) {
    return client === 'microsoft' ? { NODE_EXTRA_CA_CERTS: this.#service.scene.roots } : {}
  }

  /** A process of bench/workers/memory.cjs. */
  #process(subject, flags) {
    const job = { client: subject.client, scene: this.#scene(subject), idle: this.#service.devices.idle }
    const child = start([process.execPath, ...flags, worker, JSON.stringify(job)], {
      env: this.#env(subject),
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    const died = new Promise((_, reject) =>
      child.once('exit', (code, signal) =>
        reject(new Error(`${subject.label} ended with ${code ?? signal}`)),
      ),
    )
    died.catch(() => undefined)
    return {
      ask: async (message) => {
        child.send(message)
        const [reply] = await Promise.race([once(child, 'message'), died])
        if (reply.error !== undefined) throw new Error(`${subject.label}: ${reply.error}`)
        return reply
      },
      end: () => stop(child),
    }
  }

  async peak(subjects) {
    const meter = await usageMeter(this.#folder)
    if (meter.note) this.#say(meter.note)
    if (meter.measure === undefined) {
      this.measured['rss-assigned'] = { note: meter.note }
      return
    }
    const bare = { name: "`node -e ''`", command: [process.execPath, '-e', ''] }
    const programs = subjects.map((subject) => ({
      name: subject.label,
      command: [process.execPath, clientProgram(subject.client), JSON.stringify(this.#scene(subject))],
      env: this.#env(subject),
    }))
    const rounds = this.#quick ? 2 : 11
    this.#say(`peak: ${programs.length + 1} programs, ${rounds} rounds`)
    const usage = await inTurn(meter.measure, [bare, ...programs], rounds)
    const floor = usage.get(bare.name).maxRssKb.median
    this.data.peak = Object.fromEntries(usage)
    this.measured['rss-assigned'] = usage.get(OURS.label).maxRssKb.median / floor
    this.tables.push({
      title: 'Peak RSS of a process that registers once',
      columns: ['program', 'RSS MB', 'min', 'max', '× bare', 'samples'],
      rows: [...usage].map(([name, { maxRssKb }]) => [
        name,
        maxRssKb.median / 1024,
        maxRssKb.min / 1024,
        maxRssKb.max / 1024,
        maxRssKb.median / floor,
        maxRssKb.count,
      ]),
    })
    this.charts.push({
      title: 'Peak RSS of a process that registers once',
      unit: 'MB',
      bars: [...usage].map(([label, { maxRssKb }]) => ({
        label,
        value: maxRssKb.median / 1024,
        strong: label.startsWith('ours'),
      })),
    })
  }

  async idle(subjects) {
    const [usual, steps, warmUp, processes] = this.#quick ? [20, 3, 20, 1] : [50, 10, 400, 3]
    const rows = []
    this.data.idle = {}
    for (const subject of subjects) {
      const step = subject.fewer ?? usual
      const samples = []
      try {
        while (samples.length < processes) {
          samples.push(await this.#addConnections(subject, step, steps, warmUp))
        }
      } catch (error) {
        // A peer that does not wait is no failure of ours.
        if (subject.client === 'ours') throw error
        rows.push([`${subject.label}: not measured, ${error.message.split('\n')[0]}`])
        continue
      }
      const [rss, heap] = ['rss', 'heapUsed'].map((field) =>
        summarize(samples.map((points) => slope(points.map((point) => [point.open, point[field]])) / KB)),
      )
      this.data.idle[subject.label] = samples
      rows.push([subject.label, step * steps, rss.median, rss.min, rss.max, heap.median, processes])
      if (subject === OURS && !this.#quick) this.measured['rss-connection'] = rss.median
      this.#say(
        `idle, ${subject.label}: ${rss.median.toFixed(1)} KB of RSS, ${heap.median.toFixed(1)} KB of heap`,
      )
    }
    this.tables.push({
      title: 'One idle connection: connected, subscribed, waiting',
      columns: ['client', 'connections', 'RSS KB each', 'min', 'max', 'heap KB each', 'processes'],
      rows,
      note: `Slope over ${steps} steps, after ${warmUp} registrations one by one, with a garbage collection at each step. Over HTTPS there is no subscription: the request waits.`,
    })
  }

  async #addConnections(subject, step, steps, warmUp) {
    const process_ = this.#process(subject, ['--expose-gc'])
    try {
      await process_.ask({ register: warmUp })
      const { waiting: before } = await this.#service.usage()
      const points = [{ open: 0, ...(await process_.ask('look')) }]
      for (let open = step; open <= step * steps; open += step) {
        await process_.ask({ open: step })
        await this.#until(({ waiting }) => waiting === before + open)
        points.push({ open, ...(await process_.ask('look')) })
      }
      const { openConnections } = await this.#service.usage()
      this.checks.push({
        name: `${subject.label}: every idle connection is open`,
        ok: openConnections === step * steps,
        detail: `${openConnections} of ${step * steps}`,
      })
      return points
    } finally {
      await process_.end()
      await this.#until(({ openConnections }) => openConnections === 0)
    }
  }

  async #until(holds) {
    for (let tries = 0; tries < 600; tries++) {
      if (holds(await this.#service.usage())) return
      await delay(50)
    }
    throw new Error('the service did not come to the state waited for within 30 s')
  }

  async endurance(subjects) {
    const stations = this.#quick ? [1, 20, 40] : [1, 1000, 10_000]
    const rows = []
    this.data.endurance = {}
    for (const subject of subjects) {
      const seen = {}
      // The target is ours; for the others a thousand show where they are going.
      const own = subject === OURS ? stations : stations.slice(0, 2)
      for (const [mode, flags] of [
        ['heap', ['--expose-gc']],
        ['rss', ['--max-semi-space-size=1']],
        ...(this.#quick ? [] : [['rss, no flag', []]]),
      ]) {
        const process_ = this.#process(subject, flags)
        seen[mode] = []
        try {
          let done = 0
          for (const station of own) {
            await process_.ask({ register: station - done })
            done = station
            const { rss, heapUsed } = await process_.ask('look')
            seen[mode].push((mode === 'heap' ? heapUsed : rss) / MB)
          }
        } finally {
          await process_.end()
        }
        this.#say(
          `endurance, ${subject.label}, ${mode}: ${seen[mode].map((mb) => mb.toFixed(1)).join(' → ')} MB`,
        )
        const [first, thousand, last] = seen[mode]
        rows.push([subject.label, mode, first, thousand, last, seen[mode].at(-1) - first])
      }
      this.data.endurance[subject.label] = { stations: own, ...seen }
      if (subject !== OURS || this.#quick) continue
      this.measured['heap-growth'] = seen.heap.at(-1) - seen.heap[0]
      this.measured['rss-growth'] = seen.rss.at(-1) - seen.rss[0]
    }
    this.tables.push({
      title: 'Registrations in a row, MB',
      columns: ['client', 'what', ...stations.map((n) => `after ${n.toLocaleString('en-US')}`), 'growth'],
      rows,
      note: '`heap`: in use after a garbage collection. `rss`: with `--max-semi-space-size=1`. One process each. Full handshakes, one after the other.',
    })
  }

  async smallestHeap(subjects) {
    const [low, high, tries] = this.#quick ? [3, 6, 1] : [1, 64, 3]
    const rows = []
    this.data.smallestHeap = {}
    for (const subject of subjects) {
      const works = async (mb) => {
        for (let i = 0; i < tries; i++) {
          const flag = `--max-old-space-size=${mb}`
          try {
            await runProgram(
              [process.execPath, flag, clientProgram(subject.client), JSON.stringify(this.#scene(subject))],
              { env: this.#env(subject), timeoutMs: 30_000 },
            )
          } catch {
            return false
          }
        }
        return true
      }
      const found = await smallest(low, high, works)
      this.data.smallestHeap[subject.label] = found
      this.#say(`smallest heap, ${subject.label}: ${found} MB`)
      rows.push([subject.label, found ?? `more than ${high}`])
    }
    this.tables.push({
      title: 'Smallest `--max-old-space-size` with which a registration ends assigned',
      columns: ['client', 'MB'],
      rows,
      note: `Searched from ${low} to ${high} MB; ${tries === 1 ? 'one run decides' : `${tries} runs in a row decide`}.`,
    })
  }
}
