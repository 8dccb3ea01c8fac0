// What can go wrong between a device and the service, and how the call has to end over each transport.

import { createPki, issueCertificate } from 'dps-device-client/emulator'

/**
 * @typedef {'mqtt' | 'mqtt-ws' | 'https'} Transport
 * @typedef {string | readonly string[]} Ending `assigned` or `CODE · phase`; of several any
 *
 * @typedef {object} Fault one row
 * @property {string} name
 * @property {Ending | Partial<Record<Transport, Ending>>} ends a transport that is left out does not meet this fault
 * @property {object} [options] of the client, beside those that lead it to the server
 * @property {object} [service] options of the emulator
 * @property {object[]} [script] faults of the emulator
 * @property {'nobody' | ((socket: import('node:net').Socket) => void)} [instead] what is on the port of the service
 * @property {(device: import('node:net').Socket, service: import('node:net').Socket) => void} [between] a relay
 * @property {string} [network] one of those in namespace.mjs, in place of any server
 * @property {(event: import('dps-device-client/emulator').EmulatorEvent) => boolean} [switchOff] when the service ends
 * @property {string} [cancel] `before` the call, or the phase or the event in which the caller cancels
 * @property {number} [endsWithinMs] from the settling of the promise to the end of the process
 * @property {(seen: { emulator: import('dps-device-client/emulator').Emulator, report: any }) => string | false | undefined} [wrong]
 *   what else must hold: a sentence where it does not
 */

/** @type {readonly Transport[]} */
export const TRANSPORTS = ['mqtt', 'mqtt-ws', 'https']

export const pki = await createPki()
const HOST = 'global.azure-devices-provisioning.net'
const EVER = Number.POSITIVE_INFINITY
const DAY_MS = 86_400_000
const days = (count) => new Date(Date.now() + count * DAY_MS)

/** The limit of a phase in which the other side is going to be silent. Every other phase keeps its generous default. */
const SHORT_MS = 300
const short = (...phases) => ({
  timeouts: Object.fromEntries(phases.map((phase) => [`${phase}Ms`, SHORT_MS])),
})

/** The phase in which the client waits for an answer at each step of the emulator. */
const PHASES = {
  accept: { mqtt: 'tls', 'mqtt-ws': 'tls', https: 'tls' },
  'client-hello': { mqtt: 'tls', 'mqtt-ws': 'tls', https: 'tls' },
  handshake: { mqtt: 'connect', 'mqtt-ws': 'connect', https: 'register' },
  upgrade: { 'mqtt-ws': 'connect' },
  connect: { mqtt: 'connect', 'mqtt-ws': 'connect' },
  subscribe: { mqtt: 'subscribe', 'mqtt-ws': 'subscribe' },
  register: { mqtt: 'register', 'mqtt-ws': 'register', https: 'register' },
  'register-reply': { mqtt: 'register', 'mqtt-ws': 'register', https: 'register' },
  poll: { mqtt: 'poll', 'mqtt-ws': 'poll', https: 'poll' },
  'poll-reply': { mqtt: 'poll', 'mqtt-ws': 'poll', https: 'poll' },
}

const STEPS = {
  accept: 'at the TCP connection',
  'client-hello': 'at the ClientHello',
  handshake: 'right after the TLS handshake',
  upgrade: 'at the WebSocket upgrade',
  connect: 'at CONNECT',
  subscribe: 'at SUBSCRIBE',
  register: 'at the register request',
  'register-reply': 'in place of the reply to it',
  poll: 'at the status request',
  'poll-reply': 'in place of the status',
}

const endings = (at, code) =>
  Object.fromEntries(
    Object.entries(PHASES[at]).map(([transport, phase]) => [transport, `${code} · ${phase}`]),
  )

/** The same ending for both kinds of MQTT. */
const overMqtt = (ending) => ({ mqtt: ending, 'mqtt-ws': ending })

const phasesOf = (at) => [...new Set(Object.values(PHASES[at]))]

/** The service refuses or answers each time, or the first time only. */
const register = (action, times = EVER) => [{ at: 'register', do: action, times }]
const replied = (action, times = EVER) => [{ at: 'register-reply', do: action, times }]
const polled = (action, times = EVER) => [{ at: 'poll-reply', do: action, times }]
const refusal = (status, errorCode, more = {}) => ({
  reply: { status, errorCode, message: 'Refused.', ...more },
})

/** The requests that the service saw, by kind. */
function requests(emulator) {
  return emulator.log.packets.flatMap(({ direction, topic = '', method, target = '' }) => {
    if (direction === 'out') return []
    if (topic.includes('/PUT/') || method === 'PUT') return { kind: 'register' }
    const [, operation] = /operationId=(.+)|\/operations\/([^?]+)/.exec(topic + target)?.filter(Boolean) ?? []
    return operation === undefined ? [] : { kind: 'poll', operation }
  })
}

/** A lost connection must not start a second operation. */
function sameOperation({ emulator }) {
  const seen = requests(emulator)
  const operations = seen.flatMap(({ operation }) => operation ?? [])
  if (seen.filter(({ kind }) => kind === 'register').length !== 1) return 'it registered more than once'
  if (operations.length < 2) return `it asked ${operations.length} times for the status`
  return new Set(operations).size > 1 && `it asked about several operations: ${operations.join(', ')}`
}

const once = ({ emulator }) => {
  const { length } = emulator.log.connections
  return length !== 1 && `it connected ${length} times`
}

const repeated = ({ report }) => {
  const { length } = report.retries
  return length !== 1 && `it tried again ${length} times`
}

/** Waits from one attempt to the next, as the service asked. */
const waitedASecond = ({ report }) =>
  !report.retries.every(({ delayMs }) => delayMs >= 1000) &&
  `it waited ${report.retries.map(({ delayMs }) => delayMs)} ms where 1 s was asked for`

async function serverWith(options) {
  const { chainPem, keyPem } = await issueCertificate({
    subject: HOST,
    issuer: pki.serverIntermediate,
    key: pki.server.keyPem,
    sans: [HOST],
    eku: ['serverAuth'],
    ...options,
  })
  return { serverCertificate: { cert: chainPem, key: keyPem } }
}

async function networkFaults() {
  /** @type {Fault[]} */
  const rows = [
    {
      name: 'a resolver that never answers',
      network: 'mute-resolver',
      options: short('dns'),
      ends: 'TIMEOUT · dns',
      // A question that the system's resolver was asked cannot be taken back: the process waits until it gives up, here
      // after 1 s for each of two threads.
      endsWithinMs: 3000,
    },
    { name: 'a name that does not exist', network: 'unknown-name', ends: 'DNS_FAILED · dns' },
    { name: 'a resolver that fails', network: 'failing-resolver', ends: 'DNS_FAILED · dns' },
    {
      name: 'no route',
      network: 'no-route',
      options: { connectTo: '192.0.2.1' },
      ends: 'NETWORK_UNREACHABLE · tcp',
    },
    {
      name: 'a firewall that drops every packet',
      network: 'dropped-packets',
      options: { connectTo: '192.0.2.1', ...short('tcp') },
      ends: 'TIMEOUT · tcp',
    },
    { name: 'connection refused', instead: 'nobody', ends: 'CONNECTION_REFUSED · tcp' },
    {
      name: 'a black hole: accepts and never answers',
      instead: (socket) => socket.resume(),
      options: short('tls'),
      ends: 'TIMEOUT · tls',
    },
    {
      name: 'a plain-text HTTP server',
      instead: (socket) =>
        socket.once('data', () => socket.end('HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n')),
      ends: 'TLS_FAILED · tls',
    },
    {
      name: 'a plain-text server that speaks first',
      instead: (socket) => socket.resume().write('220 mail.example ESMTP ready\r\n'),
      ends: 'TLS_FAILED · tls',
    },
    {
      name: 'bytes one at a time, both ways',
      between: (device, service) => {
        for (const [from, to] of [
          [device, service],
          [service, device],
        ]) {
          let last = Promise.resolve()
          from.on('data', (chunk) => {
            last = last.then(async () => {
              for (const byte of chunk) {
                to.write(Buffer.of(byte))
                await new Promise(setImmediate)
              }
            })
          })
          from.on('end', () => {
            last = last.then(() => void to.end())
          })
        }
      },
      ends: 'assigned',
      wrong: once,
    },
  ]
  return rows
}

async function tlsFaults() {
  const rogueRoot = await issueCertificate({ subject: 'Rogue Root', ca: true })
  const rogue = await issueCertificate({ subject: 'Rogue CA', ca: true, issuer: rogueRoot })
  /** @type {Fault[]} */
  const rows = [
    {
      name: 'half-open: ServerHello, then silence',
      between: (device, service) => {
        device.pipe(service)
        let left
        service.on('data', (chunk) => {
          // The first record: five bytes, the last two of which are the length of the rest (RFC 5246 section 6.2.1).
          left ??= 5 + chunk.readUInt16BE(3)
          const passed = chunk.subarray(0, left)
          left -= passed.length
          if (passed.length > 0) device.write(passed)
        })
      },
      options: short('tls'),
      ends: 'TIMEOUT · tls',
    },
    {
      name: 'an untrusted chain',
      service: await serverWith({ issuer: rogue }),
      ends: 'SERVER_UNTRUSTED · tls',
      wrong: once,
    },
    {
      name: 'a certificate for another name',
      service: await serverWith({ sans: ['dps.example.org'] }),
      ends: 'SERVER_NAME_MISMATCH · tls',
      wrong: once,
    },
    {
      name: 'an expired server certificate',
      service: await serverWith({ notBefore: days(-365), notAfter: days(-1) }),
      ends: 'SERVER_CERTIFICATE_EXPIRED · tls',
      wrong: once,
    },
    {
      name: 'a server certificate from tomorrow',
      service: await serverWith({ notBefore: days(1), notAfter: days(365) }),
      ends: 'SERVER_CERTIFICATE_NOT_YET_VALID · tls',
      wrong: once,
    },
    {
      name: 'TLS 1.3 only',
      service: { tls: { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' } },
      ends: 'TLS_VERSION_REFUSED · tls',
      wrong: once,
    },
    {
      name: 'legacy suites only',
      service: { tls: { ciphers: 'AES256-GCM-SHA384:AES128-GCM-SHA256' } },
      ends: 'TLS_NO_COMMON_SUITE · tls',
      wrong: once,
    },
  ]
  return rows
}

/** At every step: the other side says no more, or the connection ends in one of three ways. */
function connectionFaults() {
  const rows = []
  for (const [at, where] of Object.entries(STEPS)) {
    // Silence from the first byte on is the black hole.
    if (at === 'accept') continue
    rows.push({
      name: `silence ${where}`,
      script: [{ at, do: 'silence', times: EVER }],
      options: short(...phasesOf(at)),
      ends: endings(at, 'TIMEOUT'),
    })
  }
  for (const [action, what] of [
    ['drop', 'closed'],
    ['no-close-notify', 'closed without a TLS alert'],
    ['reset', 'reset'],
  ]) {
    for (const [at, where] of Object.entries(STEPS)) {
      // Below TLS there is no alert to leave out.
      if (action === 'no-close-notify' && (at === 'accept' || at === 'client-hello')) continue
      let ends = endings(at, 'CONNECTION_LOST')
      // A reset overtakes what was sent before it: that the connection was made, the end of the handshake. Where the alert
      // is left out, TCP may end before TLS has sent that end.
      if (action === 'reset' && at === 'accept') ends = ['CONNECTION_LOST · tcp', 'CONNECTION_LOST · tls']
      if (action !== 'drop' && at === 'handshake') {
        ends = Object.fromEntries(
          Object.entries(ends).map(([name, end]) => [name, ['CONNECTION_LOST · tls', end]]),
        )
      }
      rows.push({ name: `${what} ${where}`, script: [{ at, do: action, times: EVER }], ends })
    }
    rows.push({
      name: `${what} at the status request, once: the same operation is asked about again`,
      script: [{ at: 'poll', do: action }],
      ends: 'assigned',
      wrong: sameOperation,
    })
  }
  return rows
}

/** @returns {Fault[]} */
function protocolFaults() {
  return [
    {
      name: 'a server of another protocol behind TLS',
      script: [{ at: 'handshake', do: { raw: Buffer.from('SSH-2.0-OpenSSH_9.6\r\n') }, times: EVER }],
      ends: {
        ...overMqtt('PROTOCOL_VIOLATION · connect'),
        https: ['PROTOCOL_VIOLATION · connect', 'PROTOCOL_VIOLATION · register'],
      },
    },
    {
      name: 'a redirect to another host',
      script: [
        {
          at: 'upgrade',
          do: { reply: { status: 307, headers: { location: 'https://dps.example.org/' } } },
          times: EVER,
        },
        ...register({ reply: { status: 307, headers: { location: 'https://dps.example.org/' } } }),
      ],
      ends: { 'mqtt-ws': 'REQUEST_REFUSED · connect', https: 'REQUEST_REFUSED · register' },
      wrong: once,
    },
    {
      name: 'an upgrade answered with 403',
      script: [{ at: 'upgrade', do: { refuse: 403 }, times: EVER }],
      ends: { 'mqtt-ws': 'FORBIDDEN · connect' },
      wrong: once,
    },
    {
      name: 'CONNACK 3, server unavailable, once',
      script: [{ at: 'connect', do: { refuse: 3 } }],
      ends: overMqtt('assigned'),
      wrong: repeated,
    },
    {
      name: 'CONNACK 3, server unavailable, for ever',
      script: [{ at: 'connect', do: { refuse: 3 }, times: EVER }],
      ends: overMqtt('SERVICE_UNAVAILABLE · connect'),
      wrong: repeated,
    },
    {
      name: 'CONNACK 5, not authorized',
      script: [{ at: 'connect', do: { refuse: 5 }, times: EVER }],
      ends: overMqtt('UNAUTHORIZED · connect'),
      wrong: once,
    },
    {
      name: 'SUBACK 0x80',
      script: [{ at: 'subscribe', do: 'refuse', times: EVER }],
      ends: overMqtt('SUBSCRIPTION_REFUSED · subscribe'),
      wrong: once,
    },
    {
      name: 'no PUBACK',
      script: register('no-puback'),
      ends: overMqtt('assigned'),
      wrong: once,
    },
    {
      name: 'a reply to another $rid',
      script: replied('wrong-rid'),
      options: short('register'),
      ends: overMqtt('TIMEOUT · register'),
    },
  ]
}

/** @returns {Fault[]} */
function replyFaults() {
  const name = 'Gerät „Zürich“ · 東京 · 🛰️'
  return [
    {
      name: 'malformed JSON',
      script: polled({ reply: { body: '{"operationId":"5.1","status":' } }),
      ends: 'REPLY_MALFORMED · parse',
      wrong: once,
    },
    {
      name: 'JSON that is no object',
      script: polled({ reply: { body: '[]' } }),
      ends: 'REPLY_MALFORMED · parse',
      wrong: once,
    },
    {
      name: 'non-ASCII JSON',
      service: { payload: { name } },
      ends: 'assigned',
      wrong: ({ report }) =>
        report.payload?.name !== name && `the payload became ${JSON.stringify(report.payload)}`,
    },
    {
      name: 'invalid UTF-8',
      script: polled({
        reply: {
          body: Buffer.concat([Buffer.from('{"status":"'), Buffer.of(0xc3, 0x28), Buffer.from('"}')]),
        },
      }),
      ends: 'REPLY_MALFORMED · parse',
      wrong: once,
    },
    {
      name: 'a reply of 1 MiB',
      script: replied({ oversize: 2 ** 20 }),
      ends: 'REPLY_TOO_LARGE · register',
      wrong: once,
    },
    {
      name: 'a reply byte by byte',
      script: [...replied('byte-by-byte'), ...polled('byte-by-byte')],
      ends: 'assigned',
      wrong: once,
    },
    {
      name: 'a reply whose body is cut off',
      script: replied({ truncate: 20 }),
      ends: { ...overMqtt('REPLY_MALFORMED · parse'), https: 'CONNECTION_LOST · register' },
    },
    {
      name: 'a connection that ends within the reply',
      script: replied({ cut: 60 }),
      ends: 'CONNECTION_LOST · register',
    },
    {
      name: 'a connection that ends within the reply, without a TLS alert',
      script: replied({ cut: 60, closeNotify: false }),
      ends: 'CONNECTION_LOST · register',
    },
    {
      name: 'assigning, without an operation id',
      script: replied('no-operation-id'),
      ends: 'REPLY_MALFORMED · parse',
      wrong: once,
    },
    {
      name: 'assigned, without a hub',
      script: polled('no-hub'),
      ends: 'REPLY_INCOMPLETE · parse',
      wrong: once,
    },
  ]
}

/** @returns {Fault[]} */
function serviceFaults() {
  const conflict = refusal(409, 409_203)
  const throttled = refusal(429, 429_001, { retryAfter: null })
  const throttledFor = refusal(429, 429_001, { retryAfter: '1' })
  return [
    {
      name: '401002',
      script: register(refusal(401, 401_002)),
      ends: 'UNAUTHORIZED · register',
      wrong: once,
    },
    { name: '409203 once', script: register(conflict, 1), ends: 'assigned', wrong: repeated },
    { name: '409203 for ever', script: register(conflict), ends: 'CONFLICT · register', wrong: repeated },
    { name: '429 once', script: register(throttled, 1), ends: 'assigned', wrong: repeated },
    {
      name: '429 once, with retry-after',
      script: register(throttledFor, 1),
      ends: 'assigned',
      wrong: (seen) => repeated(seen) || waitedASecond(seen),
    },
    { name: '429 for ever', script: register(throttled), ends: 'THROTTLED · register', wrong: repeated },
    {
      name: '429 for ever, with retry-after',
      script: register(throttledFor),
      ends: 'THROTTLED · register',
      wrong: (seen) => repeated(seen) || waitedASecond(seen),
    },
    {
      name: '429 with a retry-after beyond the deadline',
      script: register(refusal(429, 429_001, { retryAfter: '3600' })),
      ends: 'THROTTLED · register',
      wrong: ({ report }) => report.elapsedMs > 4000 && 'it waited for a deadline that was certain to pass',
    },
    {
      name: '429 to a status request, once',
      script: [{ at: 'poll', do: throttled }],
      ends: 'assigned',
      wrong: sameOperation,
    },
    {
      name: '503 once',
      script: register(refusal(503, 503_000), 1),
      ends: 'assigned',
      wrong: repeated,
    },
    {
      name: '503 for ever',
      script: register(refusal(503, 503_000)),
      ends: 'SERVICE_UNAVAILABLE · register',
      wrong: repeated,
    },
    {
      name: '500 with a page of HTML, for ever',
      script: register({ reply: { status: 500, body: '<html><body>Bad gateway</body></html>' } }),
      ends: 'SERVICE_UNAVAILABLE · register',
      wrong: repeated,
    },
    {
      name: '503 to every status request',
      script: [{ at: 'poll', do: refusal(503, 503_000), times: EVER }],
      ends: 'SERVICE_UNAVAILABLE · poll',
      wrong: sameOperation,
    },
    {
      name: 'the operation ends as failed',
      script: register({ outcome: 'failed' }),
      ends: 'ALLOCATION_FAILED · poll',
      wrong: once,
    },
    {
      name: 'the operation ends as disabled',
      script: register({ outcome: 'disabled' }),
      ends: 'REGISTRATION_DISABLED · poll',
      wrong: once,
    },
  ]
}

/** @returns {Fault[]} */
function switchedOff() {
  const packet = (type) => (event) =>
    event.type === 'packet' && event.packet.direction === 'in' && event.packet.type === type
  const request = (verb) => (event) =>
    event.type === 'packet' &&
    event.packet.direction === 'in' &&
    (event.packet.method === verb || (event.packet.topic?.includes(`/${verb}/`) ?? false))
  /** @type {[keyof typeof PHASES, (event: any) => boolean][]} */
  const moments = [
    ['accept', ({ type }) => type === 'connection-opened'],
    ['client-hello', ({ type }) => type === 'client-hello'],
    ['handshake', ({ type }) => type === 'handshake-done'],
    ['upgrade', packet('upgrade')],
    ['connect', packet('connect')],
    ['subscribe', packet('subscribe')],
    ['register', request('PUT')],
    ['poll', request('GET')],
  ]
  return moments.map(([at, switchOff]) => ({
    name: `switched off ${STEPS[at]}`,
    switchOff,
    ends: Object.fromEntries(Object.keys(PHASES[at]).map((name) => [name, 'CONNECTION_REFUSED · tcp'])),
    // Lost first, and refused when it comes again.
    wrong: ({ report }) => {
      const [first] = report.retries
      return !first?.outcome.startsWith('CONNECTION_LOST') && `at first it ended with ${first?.outcome}`
    },
  }))
}

/** @returns {Fault[]} */
function cancelled() {
  /** @type {Fault[]} */
  const rows = [
    { name: 'before the call', cancel: 'before', ends: 'CANCELLED · config' },
    {
      name: 'while the name is resolved',
      network: 'mute-resolver',
      cancel: 'dns',
      ends: 'CANCELLED · dns',
      endsWithinMs: 3000,
    },
    {
      name: 'while TCP connects',
      network: 'dropped-packets',
      options: { connectTo: '192.0.2.1' },
      cancel: 'tcp',
      ends: 'CANCELLED · tcp',
    },
  ]
  for (const at of ['accept', 'handshake', 'upgrade', 'connect', 'subscribe', 'register', 'poll']) {
    for (const phase of phasesOf(at)) {
      const ends = Object.fromEntries(
        Object.entries(endings(at, 'CANCELLED')).filter(([, ending]) => ending.endsWith(phase)),
      )
      rows.push({
        name: `in phase ${phase}, silence ${STEPS[at]}`,
        script: [{ at, do: 'silence', times: EVER }],
        cancel: phase,
        ends,
        wrong: once,
      })
    }
  }
  rows.push(
    {
      name: 'between the reply and the next status request',
      service: { assigning: { polls: 1, retryAfterSeconds: 60 } },
      options: { timeouts: { totalMs: 100_000 } },
      cancel: 'assigning',
      ends: 'CANCELLED · register',
      wrong: once,
    },
    {
      name: 'between two attempts',
      script: register(refusal(503, 503_000, { retryAfter: '60' })),
      options: { timeouts: { totalMs: 100_000 } },
      cancel: 'retry',
      ends: 'CANCELLED · register',
      wrong: once,
    },
  )
  return rows
}

/** @returns {Fault[]} */
function deadlines() {
  return [
    {
      name: 'in a silence',
      instead: (socket) => socket.resume(),
      options: { timeouts: { totalMs: 1500 } },
      ends: 'DEADLINE_EXCEEDED · tls',
    },
    {
      name: 'while the service is still assigning',
      service: { assigning: { polls: 1_000_000, retryAfterSeconds: 0 } },
      options: { timeouts: { totalMs: 1500 } },
      ends: 'DEADLINE_EXCEEDED · poll',
    },
  ]
}

/** @type {readonly { title: string, faults: readonly Fault[] }[]} */
export const SECTIONS = [
  { title: 'Name, route and port', faults: await networkFaults() },
  { title: 'TLS', faults: await tlsFaults() },
  { title: 'The connection, at every step', faults: connectionFaults() },
  { title: 'The protocol', faults: protocolFaults() },
  { title: 'Replies', faults: replyFaults() },
  { title: 'The service says no', faults: serviceFaults() },
  { title: 'The service is switched off', faults: switchedOff() },
  { title: 'The caller cancels', faults: cancelled() },
  { title: 'The deadline passes', faults: deadlines() },
]
