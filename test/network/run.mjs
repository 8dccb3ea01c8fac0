// Registration over bad networks, in real time: delay, a narrow link, stalls, resets, and a route that disappears and
// comes back. Prints a table of what was measured; last line: `N passed, N failed`.
//
//     npm run network            each case once
//     npm run network -- 5       five times; the table shows medians
//     SEED=7 npm run network     the resets of another day

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { DpsError, ProvisioningClient, x509 } from 'dps-device-client'
import { createPki, startEmulator } from 'dps-device-client/emulator'
import { poorLink, seeded } from './poor-link.mjs'

const runs = Number(process.argv[2] ?? 1)
const seed = Number(process.env.SEED ?? 20_261_124)
/** Each with TCP 1, TLS 2, then what it needs before its first answer. */
const WAYS = [
  { way: 'mqtt', transport: 'mqtt', pipelining: false, expected: 6 },
  { way: 'mqtt, pipelined', transport: 'mqtt', pipelining: true, expected: 4 },
  { way: 'mqtt-ws', transport: 'mqtt-ws', pipelining: false, expected: 7 },
  { way: 'mqtt-ws, pipelined', transport: 'mqtt-ws', pipelining: true, expected: 5 },
  { way: 'https', transport: 'https', pipelining: false, expected: 4 },
]

/** @type {[string, (random: () => number) => import('./poor-link.mjs').LinkQuality][]} */
const LINKS = [
  ['loopback', () => ({})],
  ['round trip of 300 ms', () => ({ delayMs: 150 })],
  ['2 kB/s', () => ({ bytesPerSecond: 2000 })],
  ['300 ms and 2 kB/s', () => ({ delayMs: 150, bytesPerSecond: 2000 })],
  ['stalls for 3 s in the handshake', () => ({ stall: { afterBytes: 2000, forMs: 3000 } })],
  ['first 2 connections reset', (random) => ({ reset: { connections: 2, withinBytes: 5000, random } })],
]

let passed = 0
let failed = 0
let skipped = 0
function report(ok, name, detail) {
  if (ok) passed++
  else failed++
  console.log(`${ok ? 'ok     ' : 'FAILED '} ${name}${detail ? `: ${detail}` : ''}`)
}

const pki = await createPki()
const emulator = await startEmulator({ pki, assigning: { polls: 0 } })
emulator.enrollments.addGroup({ groupId: 'g', attestation: { x509: { ca: pki.deviceRoot.certPem } } })
const device = await emulator.issueDeviceCertificate({ registrationId: 'far-away-1' })
const retry = { baseDelayMs: 200, maxDelayMs: 2000 }

/** One registration through a link; what it took. */
async function measure({ transport, pipelining }, quality) {
  const link = await poorLink({ host: '127.0.0.1', port: emulator.port }, quality)
  // Every sample is a first contact.
  const tls = { sessionResumption: false }
  const client = new ProvisioningClient({
    ...emulator.clientOptions(),
    port: link.port,
    transport,
    mqtt: { pipelining },
    tls,
    retry,
    credential: x509(device),
  })
  const startedAt = performance.now()
  try {
    const { connection } = await client.register()
    return { ms: performance.now() - startedAt, roundTrips: connection.roundTrips, ...link.counts }
  } finally {
    await link.close()
  }
}

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]

console.log(
  `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}, EC P-256, ${runs} runs, seed ${seed}\n`,
)
const rows = []
for (const [name, quality] of LINKS) {
  for (const way of WAYS) {
    const label = `${way.way} over ${name}`
    try {
      const random = seeded(seed)
      const samples = []
      for (let i = 0; i < runs; i++) samples.push(await measure(way, quality(random)))
      const [{ roundTrips, connections, turns, up, down }] = samples
      const ms = median(samples.map((sample) => sample.ms))
      rows.push({ name, way: way.way, ms, roundTrips, connections, up, down })
      // What is reported is what the relay saw: the handshake of TCP is the only round trip it cannot see.
      const honest = connections > 1 || (roundTrips === way.expected && turns + 1 === roundTrips)
      report(
        honest,
        label,
        `${ms.toFixed(0)} ms, ${roundTrips} round trips (relay saw ${turns} + TCP), ${connections} connections`,
      )
    } catch (error) {
      report(
        false,
        label,
        DpsError.is(error) ? `${error.code} in ${error.phase}: ${error.message}` : String(error),
      )
    }
  }
}
await emulator.close()

await disappearingRoute()

console.log(
  '\n| Network | Transport | Time to assigned | Round trips | Connections | Bytes up / down |\n|---|---|---|---|---|---|',
)
for (const { name, way, ms, roundTrips, connections, up, down } of rows) {
  const time = ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`
  console.log(`| ${name} | ${way} | ${time} | ${roundTrips} | ${connections} | ${up} / ${down} |`)
}
console.log(`\n${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1

/**
 * A device and the service in network namespaces of their own, joined by a cable that is pulled: before the first packet,
 * and between a register request and its poll. Both must end assigned without any help.
 */
async function disappearingRoute() {
  const names = [
    'a device whose route appears after 2 s',
    'a device whose route disappears for 3 s in mid-registration',
  ]
  const id = process.pid
  const [service, board] = [`dps-svc-${id}`, `dps-dev-${id}`]
  const ip = (...args) => execFileSync('ip', args, { stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8' })
  try {
    ip('netns', 'add', service)
    ip('netns', 'add', board)
    ip(
      'link',
      'add',
      `dpss${id}`,
      'netns',
      service,
      'type',
      'veth',
      'peer',
      'name',
      `dpsd${id}`,
      'netns',
      board,
    )
    ip('-n', service, 'addr', 'add', '192.0.2.1/24', 'dev', `dpss${id}`)
    ip('-n', board, 'addr', 'add', '192.0.2.2/24', 'dev', `dpsd${id}`)
    ip('-n', service, 'link', 'set', `dpss${id}`, 'up')
  } catch (error) {
    removeNamespaces()
    skipped += names.length
    for (const name of names)
      console.log(`skipped ${name}: no network namespaces here (${error.code ?? 'not permitted'})`)
    return
  }
  const plug = (state) => ip('-n', board, 'link', 'set', `dpsd${id}`, state)
  try {
    for (const name of names) {
      const late = name === names[0]
      plug(late ? 'down' : 'up')
      const peers = fileURLToPath(new URL('./peers.mjs', import.meta.url))
      const server = child(['netns', 'exec', service, process.execPath, peers, 'service'])
      const [hello] = await once(server, 'line')
      const client = child(['netns', 'exec', board, process.execPath, peers, 'device', hello])
      const lines = []
      client.on('line', (line) => {
        lines.push(line)
        if (!late && line === 'assigning') {
          plug('down')
          setTimeout(plug, 3000, 'up')
        }
      })
      if (late) setTimeout(plug, 2000, 'up')
      const [code] = await once(client, 'exit')
      server.kill()
      await once(server, 'exit')
      const last = lines.at(-1) ?? 'nothing'
      report(code === 0 && last.startsWith('assigned'), name, lines.join(', '))
    }
  } finally {
    removeNamespaces()
  }

  function removeNamespaces() {
    for (const name of [service, board]) {
      try {
        ip('netns', 'delete', name)
      } catch {
        // It was never made.
      }
    }
  }
}

/** A child process that emits its output line by line. */
function child(args) {
  const process_ = spawn('ip', args, { stdio: ['ignore', 'pipe', 'inherit'] })
  let rest = ''
  process_.stdout.setEncoding('utf8').on('data', (text) => {
    const lines = (rest + text).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) process_.emit('line', line)
  })
  return process_
}
