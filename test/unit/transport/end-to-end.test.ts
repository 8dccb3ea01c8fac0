import { once } from 'node:events'
import net from 'node:net'
import { Duplex } from 'node:stream'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type Emulator, generateSymmetricKey, startEmulator } from '../../../src/emulator/index.ts'
import {
  type DpsEvent,
  ProvisioningClient,
  type ProvisioningClientOptions,
  symmetricKey,
} from '../../../src/index.ts'
import { testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const REGISTRATION_ID = 'my-device'
const key = generateSymmetricKey()

let emulator: Emulator
beforeAll(async () => {
  emulator = await startEmulator({
    assigning: { polls: 3, retryAfterSeconds: 1 },
    enrollments: [{ registrationId: REGISTRATION_ID, attestation: { symmetricKey: { primaryKey: key } } }],
  })
})
afterAll(() => emulator.close())
beforeEach(() => {
  emulator.log.clear()
  emulator.faults.clear()
  emulator.registrations.forget()
})

function client(options: Partial<ProvisioningClientOptions>): ProvisioningClient {
  return new ProvisioningClient({
    ...emulator.clientOptions(),
    credential: symmetricKey({ registrationId: REGISTRATION_ID, key }),
    clock: testClock({ startMs: Date.now() }),
    ...options,
  })
}

/** A stream that is no socket: the bytes of one, handed on by hand. */
async function throughStream({ port }: { port: number }): Promise<Duplex> {
  const socket = net.connect({ port, host: '127.0.0.1' })
  await once(socket, 'connect')
  const stream = new Duplex({
    read: () => socket.resume(),
    write: (chunk, _, done) => void socket.write(chunk, () => done()),
    final: (done) => void socket.end(done),
    destroy: (error, done) => {
      socket.destroy()
      done(error)
    },
  })
  socket.on('data', (chunk) => stream.push(chunk) || socket.pause())
  socket.on('end', () => stream.push(null))
  socket.on('close', () => stream.destroy())
  socket.on('error', () => {})
  return stream
}

const ways: [string, Partial<ProvisioningClientOptions>][] = [
  ['directly', {}],
  ['through a stream of the caller', { connect: throughStream }],
]

describe.each(ways)('a registration %s', (_, way) => {
  it.each([
    // TCP 1, TLS 2, what the transport needs, and the requests: register and three polls.
    ['mqtt', 3 + 2 + 4],
    ['mqtt-ws', 3 + 3 + 4],
    ['https', 3 + 4],
  ] as const)('over %s is one connection of %i round trips', async (transport, roundTrips) => {
    const assignment = await client({ transport, ...way, tls: { sessionResumption: false } }).register()
    expect(assignment).toMatchObject({
      assignedHub: 'emulated-hub.azure-devices.net',
      connection: { transport, protocol: 'TLSv1.2', root: 'Emulator Root 1' },
    })
    if (way.connect === undefined) expect(assignment.connection.roundTrips).toBe(roundTrips)
    expect(emulator.log.connections).toHaveLength(1)
    expect(emulator.log.connections[0]).toMatchObject({ transport })
  })

  it('and a lookup over HTTPS, whatever the transport', async () => {
    const device = client({ transport: 'mqtt-ws', ...way })
    await device.register()
    expect(await device.lookup()).toMatchObject({ status: 'assigned', deviceId: REGISTRATION_ID })
    expect(emulator.log.connections.map(({ transport }) => transport)).toEqual(['mqtt-ws', 'https'])
  })
})

it('the phases of HTTPS are those of the dial and of the requests', async () => {
  const events: DpsEvent[] = []
  await client({ transport: 'https', onEvent: (event) => events.push(event) }).register()
  const phases = events.flatMap((event) => (event.type === 'phase-started' ? event.phase : []))
  expect(phases).toEqual(['config', 'clock', 'tcp', 'tls', 'register', 'poll', 'poll', 'poll'])
})

it('a port that is closed leads to the next transport of the list', async () => {
  const closed = net.createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const { port } = closed.address() as net.AddressInfo
  closed.close()
  await once(closed, 'close')
  const { connection } = await client({
    transport: ['mqtt', 'mqtt-ws'],
    port: { mqtt: port, 'mqtt-ws': emulator.port },
  }).register()
  expect(connection.transport).toBe('mqtt-ws')
})

it('a redirect over HTTPS is a refusal, and nothing goes elsewhere', async () => {
  emulator.faults.add({
    at: 'register',
    do: { reply: { status: 307, headers: { location: `https://127.0.0.1:${emulator.port}/elsewhere` } } },
  })
  await expectDpsError(client({ transport: 'https' }).register(), 'REQUEST_REFUSED', 'register')
  expect(emulator.log.connections).toHaveLength(1)
  expect(emulator.log.packets.filter(({ type }) => type === 'request')).toHaveLength(1)
})

it.each([
  [401, 'UNAUTHORIZED'],
  [404, 'REQUEST_REFUSED'],
] as const)('an upgrade that is refused with %i ends the call', async (status, code) => {
  emulator.faults.add({ at: 'upgrade', do: { refuse: status }, times: Number.POSITIVE_INFINITY })
  await expectDpsError(client({ transport: 'mqtt-ws' }).register(), code, 'connect')
  expect(emulator.log.connections).toHaveLength(1)
})

it('an upgrade that is refused for now is asked for again', async () => {
  const fault = emulator.faults.add({ at: 'upgrade', do: { refuse: 503 }, times: 2 })
  await client({ transport: 'mqtt-ws' }).register()
  expect(fault.hits).toBe(2)
})

it.each(['mqtt-ws', 'https'] as const)(
  '%s keeps the operation over a connection that is lost',
  async (transport) => {
    emulator.faults.add({ at: 'poll', do: 'no-close-notify' })
    await client({ transport }).register()
    const started = emulator.log.packets.filter(
      ({ topic, target, direction }) =>
        direction === 'in' && /iotdps-register|\/register\?/.test(topic ?? target ?? ''),
    )
    expect(started).toHaveLength(1)
    expect(emulator.log.connections).toHaveLength(2)
  },
)
