// A device behind a network that is broken below TCP. Runs in a network and mount namespace of its own (`unshare`), makes
// the network, then the device in it; ends as the device does.
//
//     unshare --mount --net node namespace.mjs NETWORK FOLDER [PROGRAM ARGUMENTS…]
//
// NETWORK is one of those below; FOLDER holds the files `resolv.conf` and `nsswitch.conf` that name resolution shall use.

import { execFileSync, spawn } from 'node:child_process'
import dgram from 'node:dgram'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'

const SERVFAIL = 2
const NXDOMAIN = 3

const [network, folder, ...command] = process.argv.slice(2)
const run = (program, ...args) => execFileSync(program, args, { stdio: ['ignore', 'ignore', 'inherit'] })

/** Answers every question over UDP with an error, or not at all. */
async function nameServer(rcode) {
  const server = dgram.createSocket('udp4')
  server.on('message', (query, { port, address }) => {
    if (rcode === undefined) return
    const answer = Buffer.from(query)
    // RFC 1035 section 4.1.1: the question again, as a response, recursion available, with the code.
    answer[2] |= 0x80
    answer[3] = 0x80 | rcode
    server.send(answer, port, address)
  })
  server.bind(53, '127.0.0.1')
  await once(server, 'listening')
  return server
}

const NETWORKS = {
  /** Names are asked of a server that never answers. */
  'mute-resolver': () => nameServer(undefined),
  'unknown-name': () => nameServer(NXDOMAIN),
  'failing-resolver': () => nameServer(SERVFAIL),
  /** Nothing but loopback. */
  'no-route': () => undefined,
  /** A cable into nothing: what is sent to 192.0.2.1 leaves, and no answer comes. */
  'dropped-packets': () => {
    run('ip', 'link', 'add', 'dev0', 'type', 'veth', 'peer', 'name', 'dev1')
    run('ip', 'addr', 'add', '192.0.2.2/24', 'dev', 'dev0')
    run('ip', 'link', 'set', 'dev0', 'up')
    run('ip', 'link', 'set', 'dev1', 'up')
    run('ip', 'neigh', 'add', '192.0.2.1', 'lladdr', '02:00:00:00:00:01', 'dev', 'dev0')
  },
}

run('ip', 'link', 'set', 'lo', 'up')
for (const file of ['resolv.conf', 'nsswitch.conf']) {
  if (existsSync(`/etc/${file}`)) run('mount', '--bind', join(folder, file), `/etc/${file}`)
}
const server = await NETWORKS[network]()
if (command.length > 0) {
  const [code] = await once(spawn(command[0], command.slice(1), { stdio: 'inherit' }), 'exit')
  process.exitCode = code ?? 1
}
server?.close()
