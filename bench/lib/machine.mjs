// What a figure was measured on: without it, the figure says nothing.

import { readFileSync } from 'node:fs'
import os from 'node:os'
import { pinning } from './process.mjs'

/**
 * @typedef {object} Machine
 * @property {string} node
 * @property {string} openssl
 * @property {string} v8
 * @property {string} cpu
 * @property {string} architecture
 * @property {number} cores
 * @property {string} kernel
 * @property {string} date ISO 8601, UTC
 * @property {string} pinning which end ran on which core, or why they could not be kept apart
 */

/** @returns {Machine} */
export function machine() {
  return {
    node: process.versions.node,
    openssl: process.versions.openssl,
    v8: process.versions.v8,
    cpu: cpuModel(),
    architecture: process.arch,
    cores: os.availableParallelism(),
    kernel: `${os.type()} ${os.release()}`,
    date: new Date().toISOString(),
    pinning:
      pinning.reason === undefined
        ? `client on core ${pinning.client}, server on core ${pinning.server}`
        : `not pinned: ${pinning.reason}`,
  }
}

/** ARM kernels name the board, not the processor. */
function cpuModel() {
  const model = os.cpus()[0]?.model.trim()
  if (model) return model
  try {
    return readFileSync('/proc/device-tree/model', 'latin1').replaceAll('\0', '')
  } catch {
    return 'unknown'
  }
}

/** One paragraph of Markdown. */
export const describeMachine = (on) =>
  `Node ${on.node} (V8 ${on.v8}, OpenSSL ${on.openssl}), ${on.cpu}, ${on.cores} cores, ${on.architecture}, ` +
  `${on.kernel}; ${on.pinning}; ${on.date.slice(0, 16).replace('T', ' ')} UTC.`
