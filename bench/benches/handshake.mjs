// The handshake: ours between the floor of Node and the limit of C.

import { writeFileSync } from 'node:fs'
import { warmInstructions, whyNotCounted } from '../lib/instructions.mjs'
import { interleave, startWorker } from '../lib/interleave.mjs'
import { buildLimit } from '../lib/limit.mjs'
import { countingRelay } from '../lib/relay.mjs'

export const title = 'Handshake'
export const about =
  'TCP and TLS 1.2 on loopback, one connection after the other unless said, until the socket is closed. **Ours** is ' +
  '`probe()` over HTTPS: the whole policy, the validated root named. **Bare** is `tls.connect` on one shared context ' +
  'with `maxVersion: "TLSv1.2"` (the floor: its defaults, which offer TLS 1.3 too, cost more); **new context** makes ' +
  'one for every connection, as most clients do; **C** is libssl and nothing else, with the same checks (the limit). All ' +
  'trust the same two roots, verify the host name, have the same key and meet the same server: RSA-2048 leaf and ' +
  'intermediate, unless said. Resumed: each connection offers the newest ticket; the server gives a new one each time. ' +
  'CPU is that of the client; `×` is against bare with the same key in the same blocks.'

const KEYS = [
  ['no client certificate', undefined],
  ['EC P-256', 'ec'],
  ['RSA-2048', 'rsa'],
]
const SUITES = [
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES256-SHA384',
  'ECDHE-RSA-AES128-SHA256',
]
/** Without forward secrecy; for comparison. */
const LEGACY = 'AES256-GCM-SHA384'
const CURVES = ['X25519', 'P-256', 'P-384']
const OPENSSL_CURVES = { prime256v1: 'P-256', secp384r1: 'P-384' }

/**
 * @typedef {import('../lib/interleave.mjs').Variant & {
 *   group: string, kind: 'ours' | 'bare' | 'new context' | 'C' | 'C, new context', key: string, resumed: boolean,
 *   suite: string, curve?: string }} Contender
 */

/** @param {import('../run.mjs').BenchContext} context */
export async function run({ quick, instructions, folder, server, say }) {
  const { scene, sceneFile, rootsFile } = await server()
  const limit = await buildLimit(folder, scene, rootsFile)
  if (limit.reason !== undefined) say(limit.reason)
  const sizes = quick
    ? { ops: 10, rounds: 2, warmUp: 1, warmUpOps: 10 }
    : { ops: 100, rounds: 12, warmUp: 1, warmUpOps: 1000 }

  const contenders = groups(scene, limit)
  const wanted = contenders.filter(
    ({ group, port, key }) =>
      !quick ||
      (key === 'EC P-256' &&
        (group !== 'suite' || port === SUITES[0] || port === LEGACY) &&
        (group !== 'curve' || port === 'P-384')),
  )
  /** @type {Map<string, import('../lib/interleave.mjs').Outcome>} */
  const outcomes = new Map()
  for (const [comparison, variants] of groupBy(wanted, compared)) {
    say(comparison)
    const measuredNow = await interleave({ variants, sceneFile, ...sizes })
    for (const outcome of measuredNow) outcomes.set(outcome.name, outcome)
  }

  const busy = await atOnce({ scene, sceneFile, quick, say })
  const bytes = await bytesSent({ scene, folder, limit })
  const counted = instructions
    ? await warmInstructions({
        variants: wanted.filter(({ count }) => count),
        sceneFile,
        say,
        // Too short for V8 to have compiled anything: it shows that counting works.
        ...(quick ? { lengths: [20, 60] } : {}),
      })
    : new Map()
  const [oneClient, ours] = ['again, EC P-256: one client', 'full, EC P-256: ours']
  if (counted.has(ours)) counted.set(oneClient, counted.get(ours))

  const measured = { 'client-hello': bytes.find(({ name }) => name === 'ours')?.clientHello }
  ratio('handshake', ours, 'full, EC P-256: bare')
  ratio('resumed', 'resumed, EC P-256: ours', 'full, EC P-256: bare')
  ratio('resumed-own', 'resumed, EC P-256: ours', ours)
  ratio('second-connect', 'again, EC P-256: new credential', oneClient)

  function ratio(id, above, below) {
    const [a, b] = [counted.get(above), counted.get(below)]
    const [cpuA, cpuB] = [outcomes.get(above), outcomes.get(below)]
    const cpu = `CPU, median: ${(cpuA.cpuMicros.median / cpuB.cpuMicros.median).toFixed(2)}`
    const why = quick ? 'a quick run' : (whyNotCounted() ?? 'needs `--instructions`')
    measured[id] =
      a === undefined || b === undefined || quick
        ? { note: `${why}; ${cpu}` }
        : {
            value: a.perOperation / b.perOperation,
            note: `main thread: ${(a.mainThread / b.mainThread).toFixed(2)}; ${cpu}`,
          }
  }

  const figures = (contender) => {
    const { cpuMicros, perSecond } = outcomes.get(contender.name)
    const floor = floorOf(contender, wanted)
    const [own, floors] = [contender, floor].map((one) => counted.get(one?.name))
    return [
      cpuMicros.median,
      cpuMicros.min,
      `${(100 * cpuMicros.spread).toFixed(0)} %`,
      perSecond.median,
      floor === undefined ? undefined : cpuMicros.median / outcomes.get(floor.name).cpuMicros.median,
      own === undefined ? undefined : `${(own.perOperation / 1e6).toFixed(2)} M`,
      own === undefined || floors === undefined ? undefined : own.perOperation / floors.perOperation,
      own === undefined ? undefined : `${(own.mainThread / 1e6).toFixed(2)} M`,
      own === undefined || floors === undefined ? undefined : own.mainThread / floors.mainThread,
    ]
  }
  const FIGURES = ['CPU µs, median', 'min', 'spread', 'per s', '×', 'Instructions', '×', 'main thread', '×']
  const table = (group, heading, columns, note) => ({
    title: heading,
    columns: [...columns, ...FIGURES],
    rows: wanted
      .filter((contender) => contender.group === group)
      .map((contender) => [...contender.labels, ...figures(contender)]),
    ...(note === undefined ? {} : { note }),
  })
  const samples = `${sizes.rounds} blocks of ${sizes.ops}, after ${sizes.warmUp * sizes.warmUpOps} that do not count`
  const tables = [
    table(
      'full',
      'Full',
      ['Client key', 'Client'],
      `${SUITES[0]}, X25519. ${samples}.${limit.openssl ? ` C: ${limit.openssl}.` : ''} Spread: the distance between the quartiles, as a share of the median. Instructions are those of all threads, then of the main thread alone: the rest is V8's helpers, the garbage collector's mostly.`,
    ),
    table('resumed', 'Resumed by ticket', ['Client key', 'Client']),
    table(
      'again',
      'The same credential again, EC P-256, full',
      ['Made anew for each connection'],
      'One context serves all of them, found by the content of the credential.',
    ),
    table('suite', 'Suites, EC P-256, X25519, full', ['Suite', 'Client']),
    table('curve', 'Curves, EC P-256, full', ['Key exchange', 'Client'], `${SUITES[0]}.`),
    table('chain', "A chain like the service's: intermediate of 4096 bits, SHA-384; EC P-256, full", [
      'Client',
    ]),
    {
      title: 'Many at once, full',
      columns: ['Client key', 'Client', 'At once', 'CPU µs, median', 'min', 'per s, median', 'best'],
      rows: busy.map(({ key, kind, atOnce: lanes, outcome: { cpuMicros, perSecond } }) => [
        key,
        kind,
        lanes,
        cpuMicros.median,
        cpuMicros.min,
        perSecond.median,
        perSecond.max,
      ]),
      note: 'One client process and one server process; where a connection costs the server more than the client, the server is what limits `per s`.',
    },
    {
      title: 'Bytes of one handshake, EC P-256',
      columns: ['Client', 'ClientHello', 'Sent', 'Received'],
      rows: bytes.map(({ label, clientHello, up, down }) => [label, clientHello, up, down]),
      note: 'Above TCP, counted by a relay; with the device certificate alone.',
    },
  ]

  return {
    tables,
    charts: charts(wanted, outcomes, counted),
    measured,
    checks: checks(wanted, outcomes, bytes),
    data: {
      sizes,
      limit: limit.openssl ?? limit.reason,
      variants: wanted.map(({ name, group, kind, key, resumed, suite, curve }) => ({
        name,
        group,
        kind,
        key,
        resumed,
        suite,
        curve,
        ...outcomes.get(name),
        ...(counted.has(name) ? { instructions: counted.get(name) } : {}),
      })),
      atOnce: busy,
      bytes,
    },
  }
}

/** Everything that is measured in blocks. @returns {Contender[]} */
function groups(scene, limit) {
  const all = []
  const add = (group, port, key, kind, more = {}) => {
    const [keyName, device] = KEYS.find(([name]) => name === key)
    const { suite, curve } = scene.tls[port]
    const { resumed = false, labels = [key, kind], worker, params = {}, ...rest } = more
    const at = { port: scene.tls[port].port, ...(device && { device }), ...(resumed && { resume: true }) }
    const native = kind.startsWith('C')
    if (native && limit.command === undefined) return
    all.push({
      name: `${group}, ${key}${group === 'full' || group === 'resumed' || group === 'again' ? '' : `, ${port}`}: ${kind}`,
      group,
      port,
      key: keyName,
      kind,
      resumed,
      suite,
      curve,
      labels,
      ...(native
        ? { command: limit.command({ ...at, contextEach: kind === 'C, new context' }) }
        : {
            worker: worker ?? (kind === 'ours' ? 'ours.cjs' : 'bare.cjs'),
            params: { ...at, ...(kind === 'new context' ? { context: 'each' } : {}), ...params },
          }),
      ...rest,
    })
  }
  for (const [key] of KEYS) {
    const ec = key === 'EC P-256'
    for (const kind of ['ours', 'bare', 'new context', 'C', 'C, new context']) {
      // A count takes a minute: only where it decides or shows something.
      const count = ec ? kind !== 'C, new context' : kind === 'ours' || kind === 'bare'
      add('full', 'default', key, kind, { count })
    }
    if (ec) add('full', 'default', key, 'bare, every default', { params: { everyDefault: true } })
    for (const kind of ['ours', 'bare', 'C'])
      add('resumed', 'default', key, kind, { resumed: true, count: ec })
  }
  for (const [kind, again] of [
    ['one client', undefined],
    ['credential from files', 'files'],
    ['new credential', 'credential'],
    ['new client and credential', 'client'],
  ]) {
    const params = again === undefined ? {} : { again }
    // Counted already, as ours.
    const count = again === 'credential' || again === 'client'
    add('again', 'default', 'EC P-256', kind, { worker: 'ours.cjs', params, labels: [kind], count })
  }
  for (const suite of [...SUITES, LEGACY]) {
    for (const kind of ['ours', 'bare']) {
      const params = kind === 'ours' && suite === LEGACY ? { legacy: true } : {}
      const label = suite === LEGACY ? `${suite} (legacy, no forward secrecy)` : suite
      add('suite', suite, 'EC P-256', kind, { params, labels: [label, kind] })
    }
  }
  for (const curve of CURVES) {
    for (const kind of ['ours', 'bare']) {
      add('curve', curve, 'EC P-256', kind, {
        labels: [curve, kind],
        count: kind === 'ours' && curve === 'P-384',
      })
    }
  }
  for (const kind of ['ours', 'bare', 'C'])
    add('chain', 'azure', 'EC P-256', kind, { labels: [kind], count: kind !== 'C' })
  return all
}

/** Contenders with the same answer take turns. */
const compared = ({ group, key, port }) => [group, key, port].join(', ')

const floorOf = ({ group, key, port }, all) =>
  all.find(
    (other) =>
      other.group === group &&
      other.key === key &&
      other.port === port &&
      other.kind === (group === 'again' ? 'one client' : 'bare'),
  )

function groupBy(items, keyOf) {
  const map = new Map()
  for (const item of items) map.set(keyOf(item), [...(map.get(keyOf(item)) ?? []), item])
  return map
}

async function atOnce({ scene, sceneFile, quick, say }) {
  const results = []
  const { port } = scene.tls.default
  for (const [key, device] of quick ? KEYS.slice(1, 2) : KEYS) {
    for (const lanes of quick ? [16] : [1, 4, 16, 64]) {
      say(`${key}, ${lanes} at once`)
      const params = { port, ...(device && { device }) }
      const outcomes = await interleave({
        variants: [
          { name: 'ours', worker: 'ours.cjs', params },
          { name: 'bare', worker: 'bare.cjs', params },
        ],
        sceneFile,
        atOnce: lanes,
        ...(quick ? { ops: 32, rounds: 2 } : { ops: 256, rounds: 6, warmUpOps: 1000 }),
      })
      for (const outcome of outcomes) results.push({ key, kind: outcome.name, atOnce: lanes, outcome })
    }
  }
  return results
}

/** What one handshake puts on the wire: a worker does its first, full one and then one more. */
async function bytesSent({ scene, folder, limit }) {
  const relay = await countingRelay({ port: scene.tls.default.port })
  const viaRelay = `${folder}/relayed.json`
  writeFileSync(viaRelay, JSON.stringify(scene), { mode: 0o600 })
  const params = { port: relay.port, device: 'ec' }
  const results = []
  try {
    for (const [name, label, variant] of [
      ['ours', 'ours', { worker: 'ours.cjs', params }],
      ['ours resumed', 'ours, resumed', { worker: 'ours.cjs', params: { ...params, resume: true } }],
      ['bare', 'bare', { worker: 'bare.cjs', params }],
      [
        'bare every default',
        'bare, every default',
        { worker: 'bare.cjs', params: { ...params, everyDefault: true } },
      ],
      ['bare resumed', 'bare, resumed', { worker: 'bare.cjs', params: { ...params, resume: true } }],
      ...(limit.command === undefined ? [] : [['C', 'C', { command: limit.command(params) }]]),
    ]) {
      const worker = await startWorker({ name, ...variant }, { sceneFile: viaRelay })
      try {
        relay.reset()
        const { facts } = await worker.block(1)
        results.push({ name, label, ...relay.counts, resumed: facts.resumed === 1 })
      } finally {
        await worker.end()
      }
    }
  } finally {
    await relay.close()
  }
  return results
}

function checks(wanted, outcomes, bytes) {
  const all = [
    ['every connection was made', ({ name }, { done }) => done === outcomes.get(name).ops],
    [
      'full handshakes were full, resumed ones resumed',
      ({ resumed }, facts) => facts.resumed === (resumed ? facts.done : 0),
    ],
    ['the suite was the one named', ({ suite }, { cipher }) => cipher === suite],
    [
      'the curve was the one named',
      ({ curve: wantedCurve, suite, kind }, { curve, resumed }) =>
        kind.startsWith('C') ||
        suite === LEGACY ||
        resumed > 0 ||
        (OPENSSL_CURVES[curve] ?? curve) === wantedCurve,
    ],
    ['ours named the root', ({ worker }, { root }) => worker !== 'ours.cjs' || root === 'Emulator Root 1'],
  ]
  const verdicts = all.map(([name, holds]) => {
    const wrong = wanted.filter(
      (contender) => !outcomes.get(contender.name).facts.every((facts) => holds(contender, facts)),
    )
    return { name, ok: wrong.length === 0, detail: wrong.map((contender) => contender.name).join('; ') }
  })
  const miscounted = bytes.filter(
    ({ name, resumed, connections, clientHello }) =>
      resumed !== name.endsWith('resumed') || connections !== 1 || clientHello === 0,
  )
  verdicts.push({
    name: 'bytes were counted of one handshake each, of the kind named',
    ok: miscounted.length === 0,
    detail: miscounted.map(({ name }) => name).join('; '),
  })
  return verdicts
}

function charts(wanted, outcomes, counted) {
  const bars = (group, key, figure) =>
    wanted
      .filter((contender) => contender.group === group && contender.key === key)
      .map((contender) => ({
        label: contender.kind,
        strong: contender.kind === 'ours',
        ...figure(contender),
      }))
  const cpu = ({ name }) => {
    const { median, lowerQuartile, upperQuartile } = outcomes.get(name).cpuMicros
    return { value: median, low: lowerQuartile, high: upperQuartile }
  }
  const instructions = ({ name }) => ({ value: (counted.get(name)?.perOperation ?? 0) / 1e6 })
  const list = []
  for (const group of ['full', 'resumed']) {
    const heading = `${group === 'full' ? 'Full' : 'Resumed'}, EC P-256`
    if (counted.size > 0) {
      list.push({ title: heading, unit: 'million instructions', bars: bars(group, 'EC P-256', instructions) })
    }
    list.push({ title: heading, unit: 'CPU µs per handshake', bars: bars(group, 'EC P-256', cpu) })
  }
  return list
}
