// A device that connects, sends and leaves, again and again, and one that stays while its link is dropped again and again.
// Heap, handles and listeners have to stay where they were, and no message that was acknowledged may be missing.
// node --expose-gc test/soak/hub.mjs, with SOAK_CYCLES and SOAK_DROPS for other numbers.

import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { connectHub } from '../../dist/hub.mjs'
import { symmetricKey } from '../../dist/index.mjs'

const CYCLES = Number(process.env.SOAK_CYCLES ?? 10_000)
const DROPS = Number(process.env.SOAK_DROPS ?? 100)
/** What V8 keeps of its own accord; a leak of 300 bytes per cycle shows. */
const HEAP_SLACK_BYTES = 3 * 1024 * 1024
const MESSAGES_PER_DROP = 25

assert(globalThis.gc, 'run with --expose-gc')

class Service {
  #child = fork(fileURLToPath(new URL('emulator.mjs', import.meta.url)), { execArgv: [] })
  #waiting = new Map()
  #count = 0

  constructor() {
    this.ready = new Promise((resolve) => {
      this.#child.on('message', ({ ready, id, answer }) => {
        if (ready) resolve(ready)
        this.#waiting.get(id)?.(answer)
        this.#waiting.delete(id)
      })
    })
  }

  ask(question, input = {}) {
    const id = ++this.#count
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve)
      this.#child.send({ id, question, ...input })
    })
  }

  end() {
    this.#child.disconnect()
  }
}

async function measure() {
  // Twice, with a turn of the loop between: what is finalised frees what it held.
  for (let round = 0; round < 2; round += 1) {
    globalThis.gc()
    await sleep(20)
  }
  return { heap: process.memoryUsage().heapUsed, handles: handles(), listeners: listeners() }
}

/** Sockets and timers; pipes and what Node itself keeps do not change. */
function handles() {
  const counts = {}
  for (const name of process.getActiveResourcesInfo()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}

function listeners() {
  return process.eventNames().reduce((sum, name) => sum + process.listenerCount(name), 0)
}

function assertFlat(what, before, after, cycles) {
  const growth = after.heap - before.heap
  const mebi = (bytes) => (bytes / 1_048_576).toFixed(2)
  const perCycle = Math.round(growth / cycles)
  console.log(
    `${what}: heap ${mebi(before.heap)} MiB, then ${mebi(after.heap)} MiB (${perCycle} bytes per cycle); ` +
      `handles ${JSON.stringify(after.handles)}; ${after.listeners} listeners on the process`,
  )
  assert(growth < HEAP_SLACK_BYTES, `the heap grew by ${mebi(growth)} MiB`)
  assert.deepEqual(after.handles, before.handles, 'handles were left')
  assert.equal(after.listeners, before.listeners, 'listeners were left')
}

async function nobodyConnected(service) {
  for (let tries = 0; tries < 100 && (await service.ask('open')) > 0; tries += 1) await sleep(10)
  assert.equal(await service.ask('open'), 0, 'connections were left')
}

/** In a function of its own, whose lists are gone when the heap is measured; returns how many messages there were. */
async function assertNoneLost(service, acknowledged) {
  const { serials, messages } = await service.ask('report')
  const recorded = new Set(serials)
  const lost = acknowledged.filter((mine) => !recorded.has(mine))
  assert.deepEqual(lost, [], 'messages were acknowledged and lost')
  return messages
}

/** Connect, telemetry, close. */
async function soakCycles(service, options) {
  const acknowledged = []
  const cycle = async (serial) => {
    const hub = await connectHub({ assignedHub: 'emulated-hub.azure-devices.net', deviceId: 'soak' }, options)
    await hub.sendTelemetry(String(serial))
    acknowledged.push(serial)
    await hub.close()
  }
  const warmUp = Math.max(20, Math.floor(CYCLES / 20))
  for (let serial = 0; serial < warmUp; serial += 1) await cycle(serial)
  acknowledged.length = 0
  await service.ask('clear')
  const before = await measure()
  const startedAt = performance.now()
  for (let serial = 0; serial < CYCLES; serial += 1) await cycle(serial)
  const seconds = (performance.now() - startedAt) / 1000
  assert.equal(acknowledged.length, CYCLES)
  await assertNoneLost(service, acknowledged)
  acknowledged.length = 0
  await nobodyConnected(service)
  const after = await measure()
  assertFlat(`${CYCLES} cycles in ${seconds.toFixed(1)} s`, before, after, CYCLES)
}

/** One connection whose link breaks in every way, at every step, while it sends. */
async function soakDrops(service, options) {
  const ways = ['drop', 'no-close-notify', 'reset']
  const faults = [
    undefined,
    { at: 'telemetry', do: 'reset' },
    { at: 'telemetry-ack', do: 'drop' },
    { at: 'telemetry-ack', do: 'no-puback' },
    { at: 'hub-connect', do: 'reset' },
    { at: 'handshake', do: 'drop' },
  ]
  const events = {}
  const idle = await measure()
  const hub = await connectHub(
    { assignedHub: 'emulated-hub.azure-devices.net', deviceId: 'soak' },
    {
      ...options,
      retry: { baseDelayMs: 1, maxDelayMs: 20 },
      onEvent: ({ type }) => {
        events[type] = (events[type] ?? 0) + 1
      },
    },
  )
  hub.onCommand(() => {})
  hub.onMethod('ping', () => ({ status: 200 }))
  hub.twin.onDesired(() => {})
  let serial = 0
  const acknowledged = []
  const round = async (turn) => {
    const sent = []
    const send = () => {
      const mine = serial++
      sent.push(hub.sendTelemetry(String(mine)).then(() => acknowledged.push(mine)))
    }
    for (let count = 0; count < MESSAGES_PER_DROP; count += 1) send()
    await service.ask('drop', { how: ways[turn % ways.length], fault: faults[turn % faults.length] })
    for (let count = 0; count < MESSAGES_PER_DROP; count += 1) send()
    // A withheld acknowledgement is made up for by the next drop.
    if (faults[turn % faults.length]?.do === 'no-puback') await service.ask('drop', { how: 'reset' })
    const enough = new AbortController()
    const late = sleep(500, undefined, { signal: enough.signal }).catch(() => {})
    await Promise.race([Promise.all(sent), late])
    enough.abort()
    await service.ask('drop', { how: 'drop' })
    await Promise.all(sent)
    await hub.twin.report({ turn })
  }
  for (let turn = 0; turn < faults.length; turn += 1) await round(turn)
  const before = await measure()
  const connects = events.connected
  for (let turn = 0; turn < DROPS; turn += 1) await round(turn)
  const after = await measure()
  const messages = await assertNoneLost(service, acknowledged)
  assert.equal(acknowledged.length, serial, 'messages were never acknowledged')
  const reconnects = events.connected - connects
  assert(reconnects >= DROPS, `only ${reconnects} reconnects for ${DROPS} drops`)
  await hub.close()
  await nobodyConnected(service)
  assertFlat(
    `${DROPS} rounds of drops, ${reconnects} reconnects, ${serial} messages acknowledged, ${messages} received`,
    // The heap of one open connection before and after; handles and listeners of none.
    { ...idle, heap: before.heap },
    { ...(await measure()), heap: after.heap },
    DROPS,
  )
}

const service = new Service()
const { options, key } = await service.ready
const credential = symmetricKey({ registrationId: 'soak', key })
let passed = 0
let failed = 0
for (const soak of [soakCycles, soakDrops]) {
  try {
    await service.ask('clear')
    await soak(service, { ...options, credential })
    passed += 1
  } catch (error) {
    failed += 1
    console.log(`FAILED ${soak.name}\n${error.stack}`)
  }
}
service.end()
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
