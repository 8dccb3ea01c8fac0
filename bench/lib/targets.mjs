// What the client has to reach, as data. A target is a wish with a number; a gate is a wide margin beyond which the
// build fails. Only what can be repeated has a gate: instructions, bytes and counts, never CPU or wall time.

/**
 * @typedef {object} Target
 * @property {number} row
 * @property {string} id under which a bench reports what it measured
 * @property {string} bench the one that measures it
 * @property {string} measure
 * @property {string} [unit] Default none: a ratio
 * @property {'at most' | 'at least' | 'exactly'} [direction] Default `'at most'`
 * @property {number} [target] none: reported only
 * @property {number} [gate] fails the run where the value lies beyond it
 * @property {number} [node] the major version of Node that the target is for. Default any
 */

/** @type {readonly Target[]} */
export const TARGETS = [
  {
    row: 1,
    id: 'handshake',
    bench: 'handshake',
    measure:
      'our handshake, validated root named / default `tls.connect` on one shared context (instructions)',
    target: 0.78,
    gate: 0.95,
    node: 20,
  },
  {
    row: 2,
    id: 'registration',
    bench: 'registration',
    measure: 'a whole MQTT registration answered at once / that bare handshake (instructions)',
    target: 0.85,
    gate: 1.05,
    node: 20,
  },
  ...[
    ['ec', 'EC P-256', 3, 2.2],
    ['rsa', 'RSA-2048', undefined, 1.3],
    ['sas', 'SAS', undefined, 2],
  ].map(([key, name, target, gate]) => ({
    row: 3,
    id: `peer-${key}`,
    bench: 'registration',
    measure: `Microsoft's client / ours, per warm registration, ${name} (instructions)`,
    direction: /** @type {const} */ ('at least'),
    target,
    gate,
    node: 20,
  })),
  {
    row: 4,
    id: 'resumed',
    bench: 'handshake',
    measure: 'ours resumed / that bare full handshake (instructions)',
    target: 0.23,
    gate: 0.35,
    node: 20,
  },
  {
    row: 4,
    id: 'resumed-own',
    bench: 'handshake',
    measure: 'ours resumed / ours full, which costs less than the bare one (instructions)',
    node: 20,
  },
  {
    row: 5,
    id: 'second-connect',
    bench: 'handshake',
    measure: 'connect with a credential made anew of the same content / one shared context (instructions)',
    target: 1.02,
    gate: 1.2,
  },
  {
    row: 6,
    id: 'cold-command',
    bench: 'cold-start',
    measure: 'cold registration / `node -e ""`: the command (instructions)',
    target: 2.4,
    gate: 3,
  },
  {
    row: 7,
    id: 'cold-library-20',
    bench: 'cold-start',
    measure: 'cold registration / `node -e ""`: the library, Node 20 (instructions)',
    target: 5,
    gate: 6,
    node: 20,
  },
  {
    row: 7,
    id: 'cold-library-22',
    bench: 'cold-start',
    measure: 'cold registration / `node -e ""`: the library, Node 22 (instructions)',
    target: 2.8,
    gate: 4.2,
    node: 22,
  },
  {
    row: 8,
    id: 'rss-assigned',
    bench: 'memory',
    measure: 'RSS at assigned / bare Node',
    target: 1.2,
  },
  {
    row: 9,
    id: 'rss-connection',
    bench: 'memory',
    measure: 'RSS per idle connection',
    unit: 'KB',
    target: 95,
  },
  {
    row: 10,
    id: 'heap-growth',
    bench: 'memory',
    measure: 'heap growth over 10,000 registrations',
    unit: 'MB',
    target: 1,
  },
  {
    row: 10,
    id: 'rss-growth',
    bench: 'memory',
    measure: 'RSS growth over 10,000 registrations with `--max-semi-space-size=1`',
    unit: 'MB',
    target: 12,
  },
  {
    row: 11,
    id: 'bytes-registration',
    bench: 'registration',
    measure: 'bytes sent, EC registration',
    unit: 'B',
    target: 1250,
    gate: 1400,
  },
  {
    row: 11,
    id: 'client-hello',
    bench: 'handshake',
    measure: 'ClientHello',
    unit: 'B',
    target: 200,
    gate: 230,
  },
  ...[
    ['default', 'MQTT as it comes', 6],
    ['https', 'HTTPS', 4],
    ['pipelined', 'MQTT pipelined (opt-in)', 4],
  ].map(([key, name, trips]) => ({
    row: 12,
    id: `round-trips-${key}`,
    bench: 'registration',
    measure: `round trips to assigned: ${name}`,
    target: trips,
    gate: trips,
  })),
  {
    row: 13,
    id: 'files-opened',
    bench: 'cold-start',
    measure: 'files opened by the command from start to assigned',
    target: 27,
    gate: 40,
  },
  {
    row: 14,
    id: 'packages',
    bench: 'footprint',
    measure: 'packages installed',
    target: 1,
    gate: 1,
  },
  {
    row: 14,
    id: 'unpacked',
    bench: 'footprint',
    measure: 'installed bytes',
    unit: 'B',
    target: 2 ** 20,
    gate: 2 ** 20,
  },
  {
    row: 14,
    id: 'files',
    bench: 'footprint',
    measure: 'files installed',
    target: 60,
    gate: 60,
  },
  ...['sas', 'ec'].flatMap((key) =>
    [1, 16, 64].map((atOnce) => ({
      row: 15,
      id: `throughput-${key}-${atOnce}`,
      bench: 'registration',
      measure: `registrations/s, ours / Microsoft's client, ${key === 'sas' ? 'SAS' : 'EC P-256'}, ${atOnce} at once`,
      direction: /** @type {const} */ ('at least'),
    })),
  ),
  ...['start-delay', 'defaults'].flatMap((policy) => {
    const measure = (what) =>
      `a million devices, worst of three scenarios, ${policy === 'defaults' ? 'defaults' : 'with the start delay'}: ${what}`
    // Counted under a seed, not timed.
    const gated = (target) => (policy === 'defaults' ? { target } : { target, gate: target })
    return [
      {
        row: 16,
        id: `fleet-${policy}-last`,
        bench: 'fleet',
        measure: measure('the last good device / what the quota allows'),
        ...gated(1.1),
      },
      {
        row: 16,
        id: `fleet-${policy}-throttled`,
        bench: 'fleet',
        measure: measure('429s per device'),
        ...gated(0.5),
      },
      {
        row: 16,
        id: `fleet-${policy}-starved`,
        bench: 'fleet',
        measure: measure('longest wait / median, 2 in an even stream'),
        ...gated(2.5),
      },
    ]
  }),
  ...[
    ['sas', 'SAS'],
    ['ec', 'EC P-256'],
  ].flatMap(([key, name]) => [
    {
      row: 17,
      id: `many-${key}`,
      bench: 'many',
      measure: `registrations per CPU second, many devices from one process, ours / Microsoft's client, ${name}`,
      direction: /** @type {const} */ ('at least'),
    },
    {
      row: 17,
      id: `many-rss-${key}`,
      bench: 'many',
      measure: `RSS growth from the first fifth of many devices to the last, ${name}`,
      unit: 'MB',
      target: 10,
    },
  ]),
]

/**
 * What became of a target.
 *
 * @typedef {Target & { value?: number, note?: string, verdict: Verdict, gated: boolean, passed: boolean }} Judged
 * @typedef {'met' | 'not met' | 'reported' | 'not measured' | 'for another Node'} Verdict
 */

const holds = (value, direction, limit) =>
  direction === 'at least' ? value >= limit : direction === 'exactly' ? value === limit : value <= limit

/**
 * Values against targets. A value nobody knows a target for is a mistake of the bench and throws.
 *
 * @param {Record<string, number | { value?: number, note?: string, nodeMajor?: number }>} measured by id; a note alone says
 *   why there is none; `nodeMajor` where another Node than this process's was measured
 * @param {{ benches: readonly string[], nodeMajor: number }} run the benches that ran
 * @returns {Judged[]} in the order of the table, of these benches alone
 */
export function judge(measured, { benches, nodeMajor }) {
  for (const id of Object.keys(measured)) {
    if (!TARGETS.some((target) => target.id === id)) throw new RangeError(`no target has the id ${id}`)
  }
  return TARGETS.filter(({ bench }) => benches.includes(bench)).map((entry) => {
    const given = measured[entry.id]
    const { value, note, nodeMajor: on = nodeMajor } = typeof given === 'object' ? given : { value: given }
    if (value !== undefined && !Number.isFinite(value)) throw new RangeError(`${entry.id} is ${value}`)
    const { direction = 'at most', target, gate, node } = entry
    const elsewhere = node !== undefined && node !== on
    const verdict =
      value === undefined
        ? elsewhere
          ? 'for another Node'
          : 'not measured'
        : target === undefined
          ? 'reported'
          : elsewhere
            ? 'for another Node'
            : holds(value, direction, target)
              ? 'met'
              : 'not met'
    const gated = value !== undefined && gate !== undefined && !elsewhere
    return {
      ...entry,
      ...(value === undefined ? {} : { value }),
      ...(note === undefined ? {} : { note }),
      verdict,
      gated,
      passed: !gated || holds(value, direction, gate),
    }
  })
}
