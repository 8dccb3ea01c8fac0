// Chance by seed, and by device: what one device draws does not depend on when another one does.

/** A 32-bit number from two, well mixed (the finalizer of MurmurHash3). */
export function mix(a, b) {
  let h = (a ^ Math.imul(b + 0x9e3779b9, 0x85ebca6b)) | 0
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/**
 * A stream of numbers in [0, 1) for each device (mulberry32).
 *
 * @param {number} devices
 * @param {number} seed
 * @returns {(device: number) => number}
 */
export function streams(devices, seed) {
  const states = new Uint32Array(devices)
  for (let device = 0; device < devices; device++) states[device] = mix(seed, device)
  return (device) => {
    const state = (states[device] + 0x6d2b79f5) | 0
    states[device] = state
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
