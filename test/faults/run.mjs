// Every fault over every transport, each in a process of its own, on the built package and the real clock. Prints a table
// of how each call ended; last line: `N passed, N failed[, N skipped]`. Fails too where docs/fault-matrix.md says otherwise.
//
//     npm run faults                     all
//     npm run faults -- --write          all, and writes docs/fault-matrix.md
//     npm run faults -- --only 429       those whose name holds 429

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { startEmulator } from 'dps-device-client/emulator'
import { pki, SECTIONS, TRANSPORTS } from './faults.mjs'

const AT_ONCE = 2
/** From the settling of the promise to the end of the process, on a slow, shared machine. */
const ENDS_WITHIN_MS = 1000
const HANGS_AFTER_MS = 30_000
const TOTAL_MS = 8000
const RETRY = { maxAttempts: 2, baseDelayMs: 10, maxDelayMs: 20, pollIntervalMs: 10 }

const here = (name) => fileURLToPath(new URL(name, import.meta.url))
const DOCUMENT = here('../../docs/fault-matrix.md')
const { values } = parseArgs({ options: { write: { type: 'boolean' }, only: { type: 'string' } } })

const folder = mkdtempSync(join(tmpdir(), 'dps-faults-'))
writeFileSync(join(folder, 'resolv.conf'), 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n')
writeFileSync(join(folder, 'nsswitch.conf'), 'hosts: files dns\n')
const inNamespace = (network, ...command) => [
  'unshare',
  ...(process.getuid?.() === 0 ? [] : ['--map-root-user']),
  ...['--mount', '--net', process.execPath, here('namespace.mjs'), network, folder, ...command],
]
// What a device is told and has loaded is all of its own.
const { NODE_EXTRA_CA_CERTS: _, NODE_OPTIONS: __, ...env } = process.env

const credential = await issueDevice()
const cells = new Map()
const outcomes = { passed: [], failed: [], skipped: [] }
const slowest = { overdueMs: 0, endedAfterMs: 0 }
const startedAt = performance.now()

try {
  const noNamespace = whyNoNamespace()
  const queue = SECTIONS.flatMap(({ faults }) =>
    faults.flatMap((fault) =>
      TRANSPORTS.filter((transport) => expected(fault, transport) !== undefined).map((transport) => ({
        fault,
        transport,
        name: `${fault.name}, over ${transport}`,
      })),
    ),
  ).filter(({ name }) => values.only === undefined || name.includes(values.only))
  const worker = async () => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      const { fault, transport, name } = next
      if (fault.network !== undefined && noNamespace !== undefined) {
        outcomes.skipped.push(`${name}: ${noNamespace}`)
        continue
      }
      const { ending, complaints } = await suffer(fault, transport)
      cells.set(`${fault.name}/${transport}`, ending)
      if (complaints.length === 0) outcomes.passed.push(name)
      else outcomes.failed.push(`${name}: ${complaints.join('; ')}`)
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker))
} finally {
  rmSync(folder, { recursive: true, force: true })
}

report()

/** The endings that are right, or undefined where the transport does not meet the fault. */
function expected({ ends }, transport) {
  const ending = typeof ends === 'string' || Array.isArray(ends) ? ends : ends[transport]
  return typeof ending === 'string' ? [ending] : ending
}

async function issueDevice() {
  const emulator = await startEmulator({ pki })
  try {
    const { cert, key } = await emulator.issueDeviceCertificate({ registrationId: 'sensor-1' })
    return { cert, key }
  } finally {
    await emulator.close()
  }
}

function whyNoNamespace() {
  const [program, ...args] = inNamespace('dropped-packets')
  const { error, status } = spawnSync(program, args, { env, stdio: 'ignore' })
  return error || status !== 0 ? 'no network namespaces here' : undefined
}

/** One device meets one fault: how it ended, and what is wrong with that. */
async function suffer(fault, transport) {
  const { payload, ...service } = fault.service ?? {}
  let off
  const emulator = await startEmulator({
    pki,
    assigning: { polls: 1, retryAfterSeconds: 0 },
    // A connection that the service has not yet noticed to be gone is not what is tested.
    concurrentRegistrations: 'allow',
    enrollments: [{ groupId: 'g', attestation: { x509: { ca: pki.deviceRoot.certPem } }, payload }],
    onEvent: (event) => {
      if (off === undefined && fault.switchOff?.(event)) off = emulator.close()
    },
    ...service,
  })
  for (const spec of fault.script ?? []) emulator.faults.add(spec)
  const relay = await inTheWay(fault, emulator.port)
  if (fault.instead === 'nobody') await emulator.close()
  try {
    const { connectTo, ...led } = emulator.clientOptions()
    const plan = {
      options: {
        ...led,
        ...(fault.network === undefined && { connectTo }),
        port: relay?.port ?? emulator.port,
        transport,
        retry: RETRY,
        ...fault.options,
        timeouts: { totalMs: TOTAL_MS, ...fault.options?.timeouts },
      },
      credential,
      cancel: fault.cancel,
    }
    const device = [process.execPath, here('device.mjs'), JSON.stringify(plan)]
    return judge(
      fault,
      transport,
      emulator,
      await run(fault.network === undefined ? device : inNamespace(fault.network, ...device)),
    )
  } finally {
    await relay?.close()
    await emulator.close()
    await off
  }
}

/** What stands on the port in place of the service, or between. */
async function inTheWay({ instead, between }, servicePort) {
  if (between === undefined && typeof instead !== 'function') return undefined
  const sockets = new Set()
  const keep = (socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => sockets.delete(socket))
    return socket
  }
  const server = net.createServer({ noDelay: true }, (device) => {
    keep(device)
    if (between === undefined) return instead(device)
    const service = keep(net.connect({ port: servicePort, host: '127.0.0.1', noDelay: true }))
    device.on('close', () => service.destroy())
    between(device, service)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: server.address().port,
    close: async () => {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}

/** Runs a program until it ends by itself, or is past hope. */
async function run([program, ...args]) {
  const child = spawn(program, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
  const output = { stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr']) {
    child[stream].setEncoding('utf8').on('data', (text) => {
      output[stream] += text
    })
  }
  const hang = setTimeout(() => child.kill('SIGKILL'), HANGS_AFTER_MS)
  const [code, signal] = await once(child, 'close')
  clearTimeout(hang)
  return { code, signal, ...output }
}

function judge(fault, transport, emulator, { code, signal, stdout, stderr }) {
  const complaints = []
  if (signal !== null) complaints.push(`it did not end by itself within ${HANGS_AFTER_MS} ms`)
  else if (code !== 0) complaints.push(`exit code ${code}`)
  if (stderr !== '') complaints.push(`it wrote to stderr: ${stderr.trim()}`)
  let told
  try {
    told = JSON.parse(stdout)
  } catch {
    return { ending: undefined, complaints: [...complaints, `it printed no report: ${stdout}`] }
  }
  complaints.push(...told.trouble)
  const right = expected(fault, transport)
  if (!right.includes(told.outcome)) {
    const before = told.retries.map(({ outcome }) => outcome).join(', ')
    complaints.push(
      `ended with ${told.outcome}${before && ` after ${before}`} in place of ${right.join(' or ')}`,
    )
  }
  const { endsWithinMs = ENDS_WITHIN_MS, options, wrong } = fault
  if (told.endedAfterMs > endsWithinMs) {
    complaints.push(
      `the process ended ${told.endedAfterMs} ms after the call; ${endsWithinMs} ms are allowed`,
    )
  }
  if (fault.endsWithinMs === undefined) {
    slowest.endedAfterMs = Math.max(slowest.endedAfterMs, told.endedAfterMs)
  }
  slowest.overdueMs = Math.max(slowest.overdueMs, told.elapsedMs - (options?.timeouts?.totalMs ?? TOTAL_MS))
  const complaint = complaints.length === 0 && wrong?.({ emulator, report: told })
  if (complaint) complaints.push(complaint)
  return { ending: told.outcome, complaints }
}

function report() {
  const rows = SECTIONS.flatMap(({ title, faults }) => [[title], ...faults.map(tableRow)])
  const widths = [0, 1, 2, 3].map((column) =>
    Math.max(...rows.filter(({ length }) => length > 1).map((row) => row[column].length)),
  )
  const line = (row) => row.map((text, column) => text.padEnd(widths[column])).join('  ')
  if (values.only === undefined) {
    console.log(line(['', ...TRANSPORTS]))
    for (const row of rows) console.log(row.length === 1 ? `\n${row[0]}` : line(row).trimEnd())
  }
  console.log(
    `\n${((performance.now() - startedAt) / 1000).toFixed(0)} s; the latest end of a process ${slowest.endedAfterMs} ms after its call; the latest call ${slowest.overdueMs > 0 ? `${slowest.overdueMs} ms after` : 'before'} its deadline`,
  )
  if (values.only === undefined) compareDocument()
  for (const name of outcomes.skipped) console.log(`skipped ${name}`)
  for (const name of outcomes.failed) console.log(`FAILED  ${name}`)
  const { passed, failed, skipped } = outcomes
  console.log(
    `\n${passed.length} passed, ${failed.length} failed${skipped.length > 0 ? `, ${skipped.length} skipped` : ''}`,
  )
  process.exitCode = failed.length === 0 && passed.length > 0 ? 0 : 1
}

function tableRow(fault) {
  return [
    `  ${fault.name}`,
    ...TRANSPORTS.map((transport) => {
      if (expected(fault, transport) === undefined) return '—'
      return cells.get(`${fault.name}/${transport}`) ?? 'skipped'
    }),
  ]
}

/** Only where every call ended as it must: what was skipped or may end in several ways is written as it must be. */
function compareDocument() {
  if (outcomes.failed.length > 0) return
  const text = document()
  if (values.write) {
    writeFileSync(DOCUMENT, text)
    console.log('docs/fault-matrix.md written')
    return
  }
  const name = 'docs/fault-matrix.md is what was found'
  if (text === readDocument()) outcomes.passed.push(name)
  else outcomes.failed.push(`${name}: it differs; write it with \`npm run faults -- --write\``)
}

function readDocument() {
  try {
    return readFileSync(DOCUMENT, 'utf8')
  } catch {
    return undefined
  }
}

function document() {
  const cell = (fault, transport) => {
    const right = expected(fault, transport)
    return right === undefined ? '—' : right.map((ending) => `\`${ending}\``).join(' or ')
  }
  const table = ({ title, faults }) => `## ${title}

| | ${TRANSPORTS.map((name) => `\`${name}\``).join(' | ')} |
|---|---|---|---|
${faults.map((fault) => `| ${fault.name} | ${TRANSPORTS.map((transport) => cell(fault, transport)).join(' | ')} |`).join('\n')}
`
  return `# Fault matrix

How a registration ends when something goes wrong, by transport: \`assigned\`, or the \`code\` and the \`phase\` of the
\`DpsError\`; — where the transport does not meet the fault.

\`npm run faults\` lets a device meet each fault in a process of its own, with one repetition per step, and checks that the
promise settled once and in time, that nothing was printed or left unhandled, and that the process then ended by itself.
\`npm run faults -- --write\` writes this file once all have ended as they must; without \`--write\` the run fails where they
differ from it.

${SECTIONS.map(table).join('\n')}`
}
