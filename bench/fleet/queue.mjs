/**
 * Who is next: a heap of devices by time, each in it at most once, in typed arrays. Of two at the same time the one with
 * the lower number is first.
 */
export class Queue {
  #times
  #devices
  #size = 0

  /** @param {number} capacity */
  constructor(capacity) {
    this.#times = new Float64Array(capacity)
    this.#devices = new Int32Array(capacity)
  }

  get size() {
    return this.#size
  }

  /**
   * The time of the first; Infinity where there is none.
   *
   * @returns {number}
   */
  get time() {
    return this.#size === 0 ? Number.POSITIVE_INFINITY : this.#times[0]
  }

  /** @returns {number} the first, of at least one */
  get device() {
    return this.#devices[0]
  }

  push(device, time) {
    const times = this.#times
    const devices = this.#devices
    let at = this.#size++
    while (at > 0) {
      const up = (at - 1) >> 2
      if (times[up] < time || (times[up] === time && devices[up] < device)) break
      times[at] = times[up]
      devices[at] = devices[up]
      at = up
    }
    times[at] = time
    devices[at] = device
  }

  /** Gives the first another time, no earlier than the one it has. */
  replace(time) {
    this.#sink(this.#devices[0], time)
  }

  /** Takes the first away. */
  pop() {
    const last = --this.#size
    if (last > 0) this.#sink(this.#devices[last], this.#times[last])
  }

  #sink(device, time) {
    const times = this.#times
    const devices = this.#devices
    const size = this.#size
    let at = 0
    for (;;) {
      const first = 4 * at + 1
      if (first >= size) break
      let least = first
      const end = first + 4 < size ? first + 4 : size
      for (let child = first + 1; child < end; child++) {
        if (
          times[child] < times[least] ||
          (times[child] === times[least] && devices[child] < devices[least])
        ) {
          least = child
        }
      }
      if (times[least] > time || (times[least] === time && devices[least] > device)) break
      times[at] = times[least]
      devices[at] = devices[least]
      at = least
    }
    times[at] = time
    devices[at] = device
  }
}
