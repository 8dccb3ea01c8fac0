// What one client puts on the wire: its registrations, one after the other, through a relay in the same process, so that
// the relay is read at the very moment at which the client says that it is assigned.
//
//     node bench/workers/wire.mjs '{ client, scene, target, listen, runs }'
//
// `target` is the port of the service, `listen` the port that this client dials and cannot be told otherwise.

import { createRequire } from 'node:module'
import { setTimeout as delay } from 'node:timers/promises'
import { countingRelay } from '../lib/relay.mjs'

const { client, scene, target, listen, runs } = JSON.parse(process.argv[2])
const require = createRequire(import.meta.url)
const relay = await countingRelay({ port: target }, listen)
const { counts } = relay

let turns
const { register } = require(`../clients/${client}.cjs`).open({
  ...scene,
  port: relay.port,
  // Here a client that only settles when its connection is closed says that it has its assignment.
  onAssigned: () => {
    turns = counts.turns
  },
})

/** Nothing has come for a while: the connection is closed, or as good as. */
async function quiet() {
  for (let before = -1; before !== counts.up + counts.down; await delay(30)) before = counts.up + counts.down
}

const samples = []
for (let i = 0; i < runs; i++) {
  relay.reset()
  turns = undefined
  const { connection } = await register()
  // The handshake of TCP is the one round trip that a relay cannot see.
  const roundTrips = 1 + (turns ?? counts.turns)
  await quiet()
  const { connections, up, down } = counts
  samples.push({ connections, up, down, roundTrips, reported: connection?.roundTrips })
}
await relay.close()
console.log(JSON.stringify(samples))
process.exit()
