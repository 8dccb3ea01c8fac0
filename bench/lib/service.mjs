// A running `bench/service.mjs`.

import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { start, stop } from './process.mjs'

const program = fileURLToPath(new URL('../service.mjs', import.meta.url))

/**
 * @typedef {object} ServiceUsage
 * @property {number} cpuMicros
 * @property {{ in: number, out: number }} packets
 * @property {number} registrations
 * @property {number} waiting requests of the device `idle` that were never answered
 * @property {number} openConnections
 */

/**
 * @typedef {object} Service
 * @property {object} scene what every client of bench/clients is told, but for the device
 * @property {Record<'ec' | 'rsa' | 'sas' | 'idle', object>} devices the identity to tell it
 * @property {string | undefined} noFixedPorts why it does not listen on the ports that Microsoft's client dials
 * @property {(options: { polls?: number, fixedPorts?: boolean, count?: boolean }) => Promise<void>} restart
 *   `polls`: 0 answers at once; `count`: counts packets and registrations
 * @property {() => Promise<ServiceUsage>} usage since the last restart
 * @property {(count: number) => Promise<Record<'sas' | 'ec', string>>} many makes so many devices of each kind, one a
 *   line in a file, by its name
 * @property {() => Promise<void>} stop
 */

/** For our client, which under callgrind on a busy machine is far slower than its own limits allow for. */
const PATIENCE = Object.fromEntries(
  ['totalMs', 'tcpMs', 'tlsMs', 'connectMs', 'subscribeMs', 'registerMs', 'pollMs'].map((name) => [
    name,
    3_600_000,
  ]),
)

/**
 * @param {string} folder for the roots and the devices' files
 * @returns {Promise<Service>}
 */
export async function startService(folder) {
  const child = start([process.execPath, program, folder], {
    role: 'server',
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const died = new Promise((_, reject) =>
    child.once('exit', (code) => reject(new Error(`the service ended with ${code}`))),
  )
  died.catch(() => undefined)
  const answer = async () => {
    const [message] = await Promise.race([once(child, 'message'), died])
    if (message.error !== undefined) throw new Error(message.error)
    return message
  }
  const { scene, devices, fixedPorts, reason } = await answer()
  return {
    scene: { ...scene, timeouts: PATIENCE },
    devices,
    noFixedPorts: fixedPorts ? undefined : `ports 8883 and 443 of this machine cannot be had (${reason})`,
    restart: async (options) => {
      child.send({ start: { fixedPorts, ...options } })
      await answer()
    },
    usage: () => {
      child.send('usage')
      return answer()
    },
    many: async (count) => {
      child.send({ many: count })
      return (await answer()).lists
    },
    stop: () => stop(child),
  }
}
