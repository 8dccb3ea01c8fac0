// Many devices from one process, 64 at once, each an identity of its own: provisionMany against Microsoft's client, a new one
// for each device, as its documentation has it. SAS and EC P-256; the service (bench/service.mjs), which answers at once, is a
// process of its own. CPU is the client process's alone, and includes its start and the reading of the list.
//
// - Cost: registrations per second of CPU. Of 20 stretches of a run the first is left out, where everything is compiled; the
//   quartiles of the others are the spread.
// - Memory: RSS and heap at each of 20 stations, unforced: what a process that is left alone holds.
// - The journal: the same with two lines for each device on the disk before it is told of.
// - Worker threads: the same list in two threads of one process that may use every core, against one such thread.

import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { start, stop } from '../lib/process.mjs'
import { slope } from '../lib/search.mjs'
import { startService } from '../lib/service.mjs'
import { summarize } from '../lib/stats.mjs'

export const title = 'Many devices from one process'
export const about =
  'A list of devices, 64 under way at once, every one with a key or certificate of its own. Time is CPU time of the client’s process: the wall says more of what else the machine had to do.'

const AT_ONCE = 64
const MB = 1024 * 1024
const KEYS = { sas: 'SAS', ec: 'EC P-256' }
const worker = fileURLToPath(new URL('../workers/many.cjs', import.meta.url))

const OURS = { label: 'ours, provisionMany', client: 'ours' }
const MICROSOFT = { label: "Microsoft's, MQTT", client: 'microsoft' }

export async function run({ quick, devices, folder, peers, say }) {
  if (!Number.isInteger(devices) || devices < 40) throw new RangeError('--devices must be at least 40')
  const service = await startService(folder)
  try {
    const why = peers.noMicrosoft ?? service.noFixedPorts
    if (why !== undefined) say(`Microsoft's client: skipped, ${why}`)
    say(`${devices} devices of either kind are made`)
    const lists = await service.many(devices)
    const bench = new ManyBench({ quick, service, devices, folder, lists, say })
    for (const key of Object.keys(KEYS)) await bench.compare(key, why === undefined)
    await bench.threads()
    const { tables, charts, measured, checks, data } = bench
    return { tables, charts, measured, checks, data }
  } finally {
    await service.stop()
  }
}

class ManyBench {
  tables = []
  charts = []
  measured = {}
  checks = []
  data = {}
  #quick
  #service
  #devices
  #folder
  #lists
  #say

  constructor({ quick, service, devices, folder, lists, say }) {
    this.#quick = quick
    this.#service = service
    this.#devices = devices
    this.#folder = folder
    this.#lists = lists
    this.#say = say
  }

  /** One process that registers the whole list. */
  async #run(key, subject, { role = 'client', ...more } = {}) {
    const { scene } = this.#service
    const job = {
      client: subject.client,
      scene,
      list: this.#lists[key],
      count: this.#devices,
      atOnce: AT_ONCE,
      ...more,
    }
    await this.#service.restart({ count: true })
    const child = start([process.execPath, worker, JSON.stringify(job)], {
      role,
      env: subject.client === 'microsoft' ? { NODE_EXTRA_CA_CERTS: scene.roots } : {},
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    const died = new Promise((_, reject) =>
      child.once('exit', (code, signal) =>
        reject(new Error(`${subject.label} ended with ${code ?? signal}`)),
      ),
    )
    died.catch(() => undefined)
    try {
      const [ran] = await Promise.race([once(child, 'message'), died])
      if (ran.error !== undefined) throw new Error(`${subject.label}: ${ran.error}`)
      const { registrations, cpuMicros: serviceCpuMicros } = await this.#service.usage()
      this.checks.push({
        name: `${subject.label}, ${KEYS[key]}: every device is assigned, and registered once`,
        ok: ran.assigned === this.#devices && registrations === this.#devices,
        detail: `${ran.assigned} assigned, ${ran.failed} failed, ${registrations} registered ${ran.firstError ?? ''}`,
      })
      const result = { ...describe(ran), serviceCpuMicros, ...ran }
      this.#say(
        `${KEYS[key]}, ${subject.label}: ${result.perCpuSecond.median.toFixed(0)} per CPU second, RSS ${(result.growth >= 0 ? '+' : '') + result.growth.toFixed(1)} MB, ${(ran.wallMicros / 1e6).toFixed(0)} s`,
      )
      return result
    } finally {
      await stop(child)
    }
  }

  async compare(key, withMicrosoft) {
    const journal = { ...OURS, label: 'ours, with a journal' }
    const results = new Map()
    results.set(OURS, await this.#run(key, OURS))
    if (withMicrosoft) results.set(MICROSOFT, await this.#run(key, MICROSOFT))
    results.set(journal, await this.#run(key, journal, { journal: join(this.#folder, `journal-${key}`) }))
    this.data[key] = Object.fromEntries([...results].map(([{ label }, result]) => [label, result]))
    const ours = results.get(OURS)
    const theirs = results.get(MICROSOFT)
    if (theirs !== undefined) {
      this.measured[`many-${key}`] = {
        value: ours.perCpuSecond.median / theirs.perCpuSecond.median,
        note: `${Math.round(ours.perCpuSecond.median)} and ${Math.round(theirs.perCpuSecond.median)} per CPU second`,
      }
    } else this.measured[`many-${key}`] = { note: "Microsoft's client is not here" }
    if (!this.#quick) this.measured[`many-rss-${key}`] = ours.growth
    const stations = [0.05, 0.2, 0.4, 0.6, 0.8, 1]
    this.tables.push(
      {
        title: `${KEYS[key]}, ${this.#devices.toLocaleString('en-US')} devices`,
        columns: ['client', 'per CPU second', 'worst stretch', 'best', 'spread %', 'CPU s in all', 'wall s'],
        rows: [...results].map(([{ label }, { perCpuSecond, cpuMicros, wallMicros }]) => [
          label,
          perCpuSecond.median,
          perCpuSecond.min,
          perCpuSecond.max,
          100 * perCpuSecond.spread,
          cpuMicros / 1e6,
          wallMicros / 1e6,
        ]),
      },
      {
        title: `${KEYS[key]}, RSS on the way, MB`,
        columns: [
          'client',
          ...stations.map((share) => Math.round(share * this.#devices).toLocaleString('en-US')),
          'peak',
          'growth after a fifth',
          'KB per 1,000 devices',
        ],
        rows: [...results].map(([{ label }, { samples, maxRssKb, growth, slopeKb }]) => [
          label,
          ...stations.map((share) => at(samples, share * this.#devices) / MB),
          maxRssKb / 1024,
          growth,
          slopeKb,
        ]),
        note: 'Nothing is forced: the garbage collector comes when it wants to. Growth: the median of the last fifth less that of the second; the slope is over all but the first fifth.',
      },
    )
    this.charts.push({
      title: `Registrations per second of CPU, ${KEYS[key]}`,
      unit: 'median and quartiles of 19 stretches',
      bars: [...results].map(([{ label }, { perCpuSecond }]) => ({
        label,
        value: perCpuSecond.median,
        low: perCpuSecond.lowerQuartile,
        high: perCpuSecond.upperQuartile,
        strong: label.startsWith('ours'),
      })),
    })
  }

  async threads() {
    const rows = []
    this.data.threads = {}
    for (const key of Object.keys(KEYS)) {
      for (const threads of [1, 2]) {
        const subject = { ...OURS, label: `ours, ${threads} thread${threads > 1 ? 's' : ''}, any core` }
        const result = await this.#run(key, subject, { role: 'anywhere', threads })
        this.data.threads[`${key}-${threads}`] = result
        rows.push([
          KEYS[key],
          threads,
          this.#devices / (result.cpuMicros / 1e6),
          result.cpuMicros / 1e6,
          result.serviceCpuMicros / 1e6,
          result.wallMicros / 1e6,
          result.maxRssKb / 1024,
        ])
      }
    }
    this.tables.push({
      title: 'Worker threads',
      columns: [
        'key',
        'threads',
        'per CPU second',
        'CPU s, client',
        'CPU s, service',
        'wall s',
        'peak RSS MB',
      ],
      rows,
      note: 'An instance of the service takes 1,000 registrations a minute, which is 17 a second: where one thread does many times that, a second has nothing to do.',
    })
  }
}

/** Of one run: the cost by stretches, without the first, and how its memory went. */
function describe({ samples }) {
  const stretches = samples
    .slice(1)
    .map(([done, cpu], i) => (done - samples[i][0]) / ((cpu - samples[i][1]) / 1e6))
    .filter(Number.isFinite)
  const [total] = samples.at(-1)
  const part = (from, to) => samples.filter(([done]) => done > from * total && done <= to * total)
  const median = (some) => summarize(some.map(([, , rss]) => rss)).median
  const late = part(0.2, 1)
  return {
    perCpuSecond: summarize(stretches),
    growth: (median(part(0.8, 1)) - median(part(0.2, 0.4))) / MB,
    slopeKb: (slope(late.map(([done, , rss]) => [done, rss])) * 1000) / 1024,
  }
}

const at = (samples, wanted) => (samples.find(([done]) => done >= wanted) ?? samples.at(-1))[2]
