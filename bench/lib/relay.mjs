// A relay on loopback that counts what a client sends, what it gets, and how often it waits for an answer.

import net from 'node:net'

/**
 * @typedef {object} RelayCounts
 * @property {number} connections
 * @property {number} up bytes from the client, above TCP
 * @property {number} down bytes to the client, above TCP
 * @property {number} turns answers after a question: round trips, but for that of TCP, which ends at the relay
 * @property {number} clientHello bytes of the first record of the first connection, its header included
 */

/**
 * @param {{ host?: string, port: number }} target
 * @param {number} [listen] on this port. Default: a free one
 * @returns {Promise<{ port: number, counts: RelayCounts, reset: () => void, close: () => Promise<void> }>}
 */
export async function countingRelay({ host = '127.0.0.1', port }, listen = 0) {
  const zero = { connections: 0, up: 0, down: 0, turns: 0, clientHello: 0 }
  const counts = { ...zero }
  const sockets = new Set()
  const server = net.createServer({ noDelay: true }, (client) => {
    const first = counts.connections++ === 0
    const service = net.connect({ host, port, noDelay: true })
    let asked = false
    client.on('data', (chunk) => {
      if (first && counts.up === 0 && chunk[0] === 22) counts.clientHello = 5 + chunk.readUInt16BE(3)
      counts.up += chunk.length
      asked = true
    })
    service.on('data', (chunk) => {
      counts.down += chunk.length
      if (asked) counts.turns++
      asked = false
    })
    for (const [from, to] of [
      [client, service],
      [service, client],
    ]) {
      sockets.add(from)
      from.pipe(to)
      from.on('error', () => to.destroy())
      from.on('close', () => {
        sockets.delete(from)
        to.destroySoon()
      })
    }
  })
  await new Promise((resolve) => server.listen(listen, '127.0.0.1', resolve))
  return {
    port: server.address().port,
    counts,
    reset: () => Object.assign(counts, zero),
    close: () =>
      new Promise((resolve) => {
        server.close(resolve)
        for (const socket of sockets) socket.destroy()
      }),
  }
}
