// A TCP relay on loopback that behaves like a bad radio link, in real time.

import net from 'node:net'

/**
 * What a link does to the bytes that pass, in each direction alike.
 *
 * @typedef {object} LinkQuality
 * @property {number} [delayMs] one way; a round trip takes twice as long. Default 0
 * @property {number} [bytesPerSecond] each way. Default unlimited
 * @property {{ afterBytes: number, forMs: number }} [stall] passes nothing for a while, once per connection
 * @property {{ connections: number, withinBytes: number, random: () => number }} [reset] resets the first connections,
 *   each after a number of bytes drawn by chance
 */

const PIECE = 256

/**
 * @param {{ host: string, port: number }} target
 * @param {LinkQuality} [quality]
 */
export async function poorLink(target, quality = {}) {
  const { delayMs = 0, bytesPerSecond = Number.POSITIVE_INFINITY, stall, reset } = quality
  const sockets = new Set()
  const timers = new Set()
  const counts = { connections: 0, up: 0, down: 0, turns: 0 }

  const later = (ms, action) => {
    const timer = setTimeout(() => {
      timers.delete(timer)
      action()
    }, ms)
    timers.add(timer)
  }

  const server = net.createServer({ noDelay: true }, (device) => {
    counts.connections++
    const service = net.connect({ ...target, noDelay: true })
    const resetAfter =
      reset !== undefined && counts.connections <= reset.connections
        ? 1 + reset.random() * reset.withinBytes
        : Number.POSITIVE_INFINITY
    let seen = 0
    let stalledUntil = 0
    let asked = false
    // The kernel answers the device's SYN at once; the round trip that it would have taken is added here.
    const openedAt = performance.now() + 2 * delayMs
    for (const [from, to, direction] of [
      [device, service, 'up'],
      [service, device, 'down'],
    ]) {
      sockets.add(from)
      const waiting = []
      let freeAt = openedAt
      const send = (size, action) => {
        const now = performance.now()
        freeAt = Math.max(freeAt, now, stalledUntil) + (size / bytesPerSecond) * 1000
        waiting.push(action)
        // Timers of different lengths that end in the same instant do so in any order; bytes keep theirs.
        later(freeAt + delayMs - now, () => waiting.shift()())
      }
      from.on('data', (chunk) => {
        counts[direction] += chunk.length
        seen += chunk.length
        // An answer after a question is a round trip.
        if (direction === 'up') asked = true
        else if (asked) {
          asked = false
          counts.turns++
        }
        if (seen > resetAfter) {
          device.resetAndDestroy()
          service.destroy()
          return
        }
        if (stall !== undefined && stalledUntil === 0 && seen > stall.afterBytes) {
          stalledUntil = performance.now() + stall.forMs
        }
        for (let at = 0; at < chunk.length; at += PIECE) {
          const piece = chunk.subarray(at, at + PIECE)
          send(piece.length, () => to.writable && to.write(piece))
        }
      })
      from.on('end', () => send(0, () => to.end()))
      from.on('error', () => to.destroy())
      from.on('close', () => sockets.delete(from))
    }
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    port: server.address().port,
    counts,
    async close() {
      for (const timer of timers) clearTimeout(timer)
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

/** A small generator for chance that can be repeated (mulberry32). */
export function seeded(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
  }
}
