// A model of the service: what it says to a request at a time. Times are ms since the power came back and never go back.

/**
 * @typedef {object} Outage
 * @property {number} fromMs
 * @property {number} untilMs
 * @property {'refused' | 'silent'} kind `refused`: a connection is refused, one that is open is lost with the next request.
 *   `silent`: nothing is answered
 *
 * @typedef {object} ServiceOptions
 * @property {number} perMinute registrations that are taken
 * @property {number} burst registrations that are taken at once after a time without any
 * @property {number | undefined} retryAfterMs what a 429 asks for
 * @property {number | undefined} pollAfterMs what an answer that says "assigning" asks for
 * @property {boolean} refusalsCount whether a registration that is refused has taken from the quota
 * @property {readonly Outage[]} outages
 */

/** The service as far as its documents go: 1,000 registrations a minute, and nothing about who is throttled how. */
export const SERVICE = Object.freeze({
  perMinute: 1000,
  burst: 1000,
  retryAfterMs: 5000,
  pollAfterMs: 3000,
  refusalsCount: true,
  outages: [],
})

export class Service {
  #options
  #tokens
  #at = 0
  #perMs

  /** @param {ServiceOptions} options */
  constructor(options) {
    this.#options = options
    this.#tokens = options.burst
    this.#perMs = options.perMinute / 60_000
  }

  /** @returns {Outage['kind'] | undefined} */
  outage(ms) {
    for (const { fromMs, untilMs, kind } of this.#options.outages)
      if (ms >= fromMs && ms < untilMs) return kind
    return undefined
  }

  /**
   * @param {number} ms when the request arrives
   * @param {boolean} enrolled
   * @returns {'taken' | 'throttled' | 'unauthorized'}
   */
  register(ms, enrolled) {
    const { burst, refusalsCount } = this.#options
    this.#tokens = Math.min(burst, this.#tokens + (ms - this.#at) * this.#perMs)
    this.#at = ms
    if (!enrolled && !refusalsCount) return 'unauthorized'
    // Ten additions of a tenth are not quite one.
    if (this.#tokens < 1 - 1e-9) return 'throttled'
    this.#tokens -= 1
    return enrolled ? 'taken' : 'unauthorized'
  }
}
