// From the first packet to the assignment, over and over, in a warm process: ours over MQTT, MQTT over WebSocket and
// HTTPS, the protocol by hand on MQTT.js, and Microsoft's client, against the same emulated service (bench/service.mjs)
// that answers at once or after one poll without delay.
//
// - CPU and wall time: each client in a process of its own (bench/workers/registration.cjs), blocks in turn, together
//   with the bare handshake of bench/workers/bare.cjs, which is `tls.connect` on one shared context and no more.
// - Throughput: 1, 16 and 64 registrations under way in one process, the service on the other core.
// - The wire (bench/workers/wire.mjs): bytes and round trips as a relay sees them, packets as the service counts them.
// - Instructions: the same workers under callgrind, from one length of run to another.
//
// Microsoft's client dials port 8883 or 443 of a host name; that is why all this runs in a private network where one is
// granted. It trusts Node's own roots, so its processes have NODE_EXTRA_CA_CERTS, which costs nothing once warm.

import { fileURLToPath } from 'node:url'
import { ProvisioningClient, symmetricKey } from '../../dist/index.mjs'
import { warmInstructions } from '../lib/instructions.mjs'
import { interleave } from '../lib/interleave.mjs'
import { run as runProgram } from '../lib/process.mjs'
import { startService } from '../lib/service.mjs'
import { median } from '../lib/stats.mjs'

export const title = 'Registration'
export const about =
  'Connect to assigned in a warm process, against one emulated service. CPU is the client’s alone.'

const KEYS = { ec: 'EC P-256', rsa: 'RSA-2048', sas: 'SAS' }
const wireWorker = fileURLToPath(new URL('../workers/wire.mjs', import.meta.url))

/** All clients, by name. `fixedPort`: the one that this client dials, whatever it is told. */
const CLIENTS = {
  ours: { label: 'ours, MQTT', client: 'ours', transport: 'mqtt' },
  pipelined: { label: 'ours, MQTT pipelined', client: 'ours', transport: 'mqtt', pipelining: true },
  resumed: { label: 'ours, MQTT, session resumed', client: 'ours', transport: 'mqtt', resumption: true },
  webSocket: { label: 'ours, MQTT over WebSocket', client: 'ours', transport: 'mqtt-ws' },
  https: { label: 'ours, HTTPS', client: 'ours', transport: 'https' },
  httpsResumed: {
    label: 'ours, HTTPS, session resumed',
    client: 'ours',
    transport: 'https',
    resumption: true,
  },
  byHand: { label: 'MQTT.js by hand', client: 'mqttjs', transport: 'mqtt' },
  microsoft: { label: "Microsoft's, MQTT", client: 'microsoft', transport: 'mqtt', fixedPort: 8883 },
  // Through Node's own agent, which since Node 19 keeps connections: once warm there is no handshake to compare.
  microsoftHttps: {
    label: "Microsoft's, HTTPS, its connection kept",
    client: 'microsoft',
    transport: 'https',
    fixedPort: 443,
    keepsConnection: true,
  },
}

/** Whether the opt-in is there: an option that nobody knows is refused. */
function pipeliningExists() {
  try {
    new ProvisioningClient({
      idScope: '0ne00000000',
      credential: symmetricKey({ registrationId: 'a', key: Buffer.alloc(32).toString('base64') }),
      mqtt: { pipelining: true },
    })
    return true
  } catch {
    return false
  }
}

export async function run({ quick, instructions, folder, server, peers, say }) {
  const service = await startService(folder)
  try {
    const missing = {
      ...(!pipeliningExists() && { pipelined: 'this build has no pipelining' }),
      ...((peers.noMicrosoft ?? service.noFixedPorts) && {
        microsoft: peers.noMicrosoft ?? service.noFixedPorts,
        microsoftHttps: peers.noMicrosoft ?? service.noFixedPorts,
      }),
    }
    for (const [name, why] of Object.entries(missing)) say(`${CLIENTS[name].label}: skipped, ${why}`)
    const bench = new RegistrationBench({ quick, service, bare: await server(), missing, say })
    await bench.oneAtATime()
    await bench.withOnePoll()
    await bench.throughput()
    await bench.wire()
    if (instructions) await bench.instructions()
    const { tables, charts, measured, checks, data } = bench
    return { tables, charts, measured, checks, data: { ...data, missing, network: peers.network } }
  } finally {
    await service.stop()
  }
}

class RegistrationBench {
  tables = []
  charts = []
  measured = {}
  checks = []
  data = {}
  #quick
  #service
  #bare
  #missing
  #say

  constructor({ quick, service, bare, missing, say }) {
    this.#quick = quick
    this.#service = service
    this.#bare = bare
    this.#missing = missing
    this.#say = say
  }

  #scene(name, key) {
    const { transport, resumption, pipelining, writeCache } = CLIENTS[name]
    const scene = { transport, resumption, pipelining, writeCache }
    return { ...this.#service.scene, ...scene, device: this.#service.devices[key] }
  }

  #present(names) {
    return names.filter((name) => this.#missing[name] === undefined)
  }

  #variant(name, key) {
    const { label, client } = CLIENTS[name]
    return {
      name: label,
      worker: 'registration.cjs',
      params: { client, scene: this.#scene(name, key) },
      env: client === 'microsoft' ? { NODE_EXTRA_CA_CERTS: this.#service.scene.roots } : {},
    }
  }

  #bareHandshake(key) {
    const params = { port: this.#bare.scene.tls.default.port, ...(key !== 'sas' && { device: key }) }
    return { name: 'bare handshake, `tls.connect`', worker: 'bare.cjs', params }
  }

  /** That every registration ended assigned, and resumed where it should have. */
  #check(outcomes, ops, what) {
    const wrong = outcomes.filter(({ name, facts }) =>
      facts.some(
        (block) =>
          block.assigned !== undefined &&
          (block.assigned !== ops || block.resumed !== (name.includes('resumed') ? ops : 0)),
      ),
    )
    this.checks.push({
      name: `every registration is assigned, resumed only where meant (${what})`,
      ok: wrong.length === 0,
      detail: wrong.map(({ name, facts }) => `${name} ${JSON.stringify(facts[0])}`).join('; '),
    })
  }

  async #compare(what, variants, { ops, rounds, atOnce = 1 }) {
    this.#say(`${what}: ${variants.length} variants, ${rounds} blocks of ${ops}`)
    const warmUpOps = this.#quick ? ops : Math.max(ops, 100)
    const outcomes = await interleave({
      variants,
      sceneFile: this.#bare.sceneFile,
      ops,
      rounds,
      atOnce,
      warmUpOps,
    })
    this.#check(outcomes, ops, what)
    return outcomes
  }

  async oneAtATime() {
    const names = this.#quick ? ['ours', 'pipelined', 'https', 'byHand', 'microsoft'] : Object.keys(CLIENTS)
    const keys = this.#quick ? ['ec'] : Object.keys(KEYS)
    const size = this.#quick ? { ops: 5, rounds: 2 } : { ops: 40, rounds: 11 }
    for (const key of keys) {
      const variants = [
        this.#bareHandshake(key),
        ...this.#present(names).map((name) => this.#variant(name, key)),
      ]
      const outcomes = await this.#compare(`one at a time, ${KEYS[key]}`, variants, size)
      this.data[`one-at-a-time-${key}`] = outcomes
      const [bare] = outcomes
      this.tables.push({
        title: `${KEYS[key]}, one at a time, answered at once`,
        columns: ['client', 'CPU µs', 'min', 'spread %', '× bare (min)', 'wall µs', 'samples'],
        rows: outcomes.map(({ name, cpuMicros, wallMicros }) => [
          name,
          cpuMicros.median,
          cpuMicros.min,
          100 * cpuMicros.spread,
          cpuMicros.min / bare.cpuMicros.min,
          wallMicros.median,
          `${cpuMicros.count} × ${size.ops}`,
        ]),
      })
      this.charts.push({
        title: `CPU of the client per registration, ${KEYS[key]}`,
        unit: 'µs, median and quartiles',
        bars: outcomes.map(({ name, cpuMicros }) => ({
          label: name,
          value: cpuMicros.median,
          low: cpuMicros.lowerQuartile,
          high: cpuMicros.upperQuartile,
          strong: name.startsWith('ours'),
        })),
      })
    }
  }

  async withOnePoll() {
    await this.#service.restart({ polls: 1 })
    const names = this.#quick
      ? ['ours', 'microsoft']
      : ['ours', 'https', 'byHand', 'microsoft', 'microsoftHttps']
    const size = this.#quick ? { ops: 5, rounds: 2 } : { ops: 40, rounds: 9 }
    const variants = this.#present(names).map((name) => this.#variant(name, 'ec'))
    const outcomes = await this.#compare('one at a time, EC P-256, one poll', variants, size)
    this.data['one-poll-ec'] = outcomes
    this.tables.push({
      title: 'EC P-256, one at a time, one poll without delay',
      columns: ['client', 'CPU µs', 'min', 'spread %', 'wall µs', 'samples'],
      rows: outcomes.map(({ name, cpuMicros, wallMicros }) => [
        name,
        cpuMicros.median,
        cpuMicros.min,
        100 * cpuMicros.spread,
        wallMicros.median,
        `${cpuMicros.count} × ${size.ops}`,
      ]),
      note: 'A client that does not set `noDelay` waits some 40 ms for a delayed acknowledgement before its poll goes out.',
    })
    await this.#service.restart({})
  }

  async throughput() {
    const keys = this.#quick ? ['sas'] : ['sas', 'ec']
    const loads = this.#quick ? [16] : [1, 16, 64]
    const rows = []
    for (const key of keys) {
      for (const atOnce of loads) {
        const names = this.#present(
          this.#quick ? ['ours', 'microsoft'] : ['ours', 'https', 'byHand', 'microsoft'],
        )
        const variants = names.map((name) => this.#variant(name, key))
        const size = this.#quick ? { ops: 32, rounds: 1 } : { ops: Math.max(128, 4 * atOnce), rounds: 5 }
        const outcomes = await this.#compare(`throughput, ${KEYS[key]}, ${atOnce} at once`, variants, {
          ...size,
          atOnce,
        })
        this.data[`throughput-${key}-${atOnce}`] = outcomes
        for (const { name, perSecond, cpuMicros } of outcomes) {
          rows.push([
            KEYS[key],
            atOnce,
            name,
            perSecond.median,
            perSecond.max,
            cpuMicros.median,
            100 * cpuMicros.spread,
            `${cpuMicros.count} × ${size.ops}`,
          ])
        }
        const [ours, peer] = ['ours', 'microsoft'].map((name) =>
          outcomes.find((outcome) => outcome.name === CLIENTS[name].label),
        )
        if (ours !== undefined && peer !== undefined) {
          const cpu = (outcome) => `${(outcome.cpuMicros.median / 1000).toFixed(2)} ms`
          this.measured[`throughput-${key}-${atOnce}`] = {
            value: ours.perSecond.median / peer.perSecond.median,
            note: `${Math.round(ours.perSecond.median)} and ${Math.round(peer.perSecond.median)} per second; client CPU each ${cpu(ours)} and ${cpu(peer)}`,
          }
        }
      }
    }
    this.tables.push({
      title: 'Registrations per second of one process, answered at once',
      columns: ['key', 'at once', 'client', 'per second', 'best', 'CPU µs each', 'spread %', 'samples'],
      rows,
      note: 'The service has the other core, and is what limits where the client’s CPU is less than 1 / rate.',
    })
  }

  async wire() {
    const names = this.#present(Object.keys(CLIENTS))
    const runs = this.#quick ? 3 : 15
    const rows = []
    const seen = {}
    for (const polls of this.#quick ? [0] : [0, 1]) {
      // The relay takes the ports that Microsoft's client dials.
      await this.#service.restart({ polls, fixedPorts: false, count: true })
      for (const key of this.#quick ? ['ec'] : ['ec', 'sas']) {
        for (const name of names) {
          const { label, client, fixedPort, keepsConnection = false } = CLIENTS[name]
          const before = (await this.#service.usage()).packets
          const job = {
            client,
            scene: this.#scene(name, key),
            target: this.#service.scene.port,
            ...(fixedPort && { listen: fixedPort }),
            runs: keepsConnection ? 1 : runs,
          }
          const samples = []
          // Only the first registration of a process that keeps its connection has the whole way to go.
          while (samples.length < runs) {
            const { stdout } = await runProgram([process.execPath, wireWorker, JSON.stringify(job)], {
              env: client === 'microsoft' ? { NODE_EXTRA_CA_CERTS: this.#service.scene.roots } : {},
            })
            samples.push(...JSON.parse(stdout))
          }
          const after = (await this.#service.usage()).packets
          // The first cannot have resumed.
          const counted = label.includes('resumed') ? samples.slice(1) : samples
          const of = (field) => median(counted.map((sample) => sample[field]))
          const range = (field) => {
            const values = counted.map((sample) => sample[field])
            const [low, high] = [Math.min(...values), Math.max(...values)]
            return low === high ? String(low) : `${low} to ${high}`
          }
          const packets = (after.in - before.in + after.out - before.out) / runs
          seen[`${name}-${key}-${polls}`] = {
            up: of('up'),
            down: of('down'),
            roundTrips: of('roundTrips'),
            packets,
            samples,
          }
          rows.push([
            label,
            KEYS[key],
            polls,
            of('roundTrips'),
            packets,
            range('up'),
            range('down'),
            counted.length,
          ])
          const honest = samples.every(
            ({ connections, reported, roundTrips }) =>
              connections === 1 && (reported === undefined || polls > 0 || reported === roundTrips),
          )
          this.checks.push({
            name: `${label}, ${KEYS[key]}, ${polls} polls: one connection, and as many round trips as it reports`,
            ok: honest,
            detail: JSON.stringify(samples[0]),
          })
        }
      }
    }
    await this.#service.restart({})
    this.data.wire = seen
    this.tables.push({
      title: 'On the wire',
      columns: ['client', 'key', 'polls', 'round trips', 'packets', 'bytes up', 'bytes down', 'samples'],
      rows,
      note: [
        'Round trips from TCP’s own until the caller has its assignment. Bytes above TCP of the whole connection. Packets: MQTT packets, or requests and responses, both ways.',
        ...Object.entries(this.#missing).map(([name, why]) => `${CLIENTS[name].label} is not here: ${why}.`),
      ].join(' '),
    })
    const value = (name) => seen[`${name}-ec-0`]
    this.measured['bytes-registration'] = value('ours').up
    this.measured['round-trips-default'] = value('ours').roundTrips
    this.measured['round-trips-https'] = value('https').roundTrips
    this.measured['round-trips-pipelined'] = value('pipelined')?.roundTrips ?? {
      note: this.#missing.pipelined,
    }
  }

  async instructions() {
    const ours = this.#quick ? [100, 140] : [3000, 3600]
    // What takes three times as much is compiled by V8 sooner.
    const theirs = this.#quick ? [100, 140] : [1500, 1800]
    const keys = this.#quick ? ['ec'] : Object.keys(KEYS)
    const rows = []
    for (const key of keys) {
      const names =
        key === 'ec' && !this.#quick
          ? ['ours', 'pipelined', 'resumed', 'webSocket', 'https', 'byHand', 'microsoft']
          : ['ours', 'byHand', 'microsoft']
      const present = this.#present(names)
      const isOurs = (name) => CLIENTS[name].client === 'ours'
      const count = (variants, lengths) =>
        variants.length === 0
          ? new Map()
          : warmInstructions({ variants, sceneFile: this.#bare.sceneFile, lengths, say: this.#say })
      const counts = new Map([
        ...(await count(
          [this.#bareHandshake(key), ...present.filter(isOurs).map((name) => this.#variant(name, key))],
          ours,
        )),
        ...(await count(
          present.filter((name) => !isOurs(name)).map((name) => this.#variant(name, key)),
          theirs,
        )),
      ])
      this.data[`instructions-${key}`] = Object.fromEntries(counts)
      const [bare, own, peer] = [
        this.#bareHandshake(key).name,
        CLIENTS.ours.label,
        CLIENTS.microsoft.label,
      ].map((label) => counts.get(label))
      const ratio = (a, b) => ({
        value: a.perOperation / b.perOperation,
        note: `main thread: ${(a.mainThread / b.mainThread).toFixed(2)}`,
      })
      for (const [name, { perOperation, mainThread, lengths, blocks }] of counts) {
        const all = blocks.map((block) => block.all / 1e6)
        rows.push([
          KEYS[key],
          name,
          perOperation / 1e6,
          perOperation / bare.perOperation,
          perOperation / own.perOperation,
          `${Math.min(...all).toFixed(2)} to ${Math.max(...all).toFixed(2)}`,
          mainThread / 1e6,
          `${lengths[1] - lengths[0]} after ${lengths[0]}`,
        ])
      }
      // Too few operations prove nothing: V8 is still compiling.
      if (this.#quick) continue
      if (key === 'ec') this.measured.registration = ratio(own, bare)
      this.measured[`peer-${key}`] = peer === undefined ? { note: this.#missing.microsoft } : ratio(peer, own)
    }
    this.tables.push({
      title: 'Instructions per registration, warm',
      columns: [
        'key',
        'client',
        'M instructions',
        '× bare handshake',
        '× ours',
        'blocks',
        'main thread',
        'operations',
      ],
      rows,
    })
    this.charts.push({
      title: 'Instructions per registration, EC P-256',
      unit: 'million',
      bars: rows
        .filter(([key]) => key === KEYS.ec)
        .map(([, label, value]) => ({ label, value, strong: label.startsWith('ours') })),
    })
  }
}
