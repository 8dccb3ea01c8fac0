import { type Socket, connect as tcpConnect } from 'node:net'
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type FaultSpec,
  generateSymmetricKey,
  type Pki,
  startEmulator,
} from '../../../src/emulator/index.ts'
import {
  bodyOf,
  connackOf,
  connectPacket,
  dial,
  ManualClock,
  pollPacket,
  type RawDevice,
  ready,
  registerFully,
  registerPacket,
  sasToken,
  subscribePacket,
} from './raw-device.ts'

const KEY = generateSymmetricKey()
const ID = 'sensor-1'
const hello = { id: ID, sas: sasToken({ key: KEY, id: ID }) }

let pki: Pki
let emulator: Emulator
let events: EmulatorEvent[]
beforeAll(async () => {
  pki = await createPki()
})
beforeEach(async () => {
  events = []
  emulator = await startEmulator({
    pki,
    enrollments: [ID, 'sensor-2'].map((registrationId) => ({
      registrationId,
      attestation: { symmetricKey: { primaryKey: KEY } },
    })),
    onEvent: (event) => events.push(event),
  })
})
afterEach(async () => {
  await emulator.close()
  expect(emulator.openConnections).toBe(0)
})

/** The service is as it was: nothing of a fault is left. */
async function normalAgain(id = ID): Promise<void> {
  const device = await ready(emulator, { id, sas: sasToken({ key: KEY, id }) })
  expect(await registerFully(device, id)).toMatchObject({ status: 'assigned' })
  device.socket.destroy()
  await device.closed
}

async function rawSocket(): Promise<{
  socket: Socket
  closed: Promise<string | undefined>
  bytes: () => Buffer
}> {
  let bytes = Buffer.alloc(0)
  let code: string | undefined
  const socket = tcpConnect(emulator.port, '127.0.0.1')
  socket.on('error', (error: NodeJS.ErrnoException) => {
    code = error.code
  })
  socket.on('data', (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk])
  })
  const closed = new Promise<string | undefined>((resolve) => socket.once('close', () => resolve(code)))
  return { socket, closed, bytes: () => bytes }
}

/** Registers with QoS 0 and returns the reply. */
async function registerOnce(device: RawDevice): ReturnType<RawDevice['publishReply']> {
  device.send(registerPacket(ID, 'rid', {}, { qos: 0 }))
  return device.publishReply()
}

describe('the script', () => {
  test('faults of one step strike in the order they were added, then service is normal', async () => {
    const first = emulator.faults.add({ at: 'register', do: { reply: { status: 503 } }, times: 2 })
    const second = emulator.faults.add({ at: 'register', do: { reply: { status: 429 } } })
    const device = await ready(emulator, hello)
    for (const status of ['503', '503', '429', '202']) {
      expect((await registerOnce(device)).topic).toContain(`/res/${status}/`)
    }
    expect([first.hits, second.hits]).toEqual([2, 1])
    expect(emulator.faults.list()).toEqual([])
    expect(events.filter(({ type }) => type === 'fault')).toHaveLength(3)
    device.socket.destroy()
  })

  test('hit resolves with the place; match picks the device; remove and clear end it', async () => {
    const other = emulator.faults.add({
      at: 'connect',
      do: { refuse: 3 },
      match: { registrationId: 'other' },
    })
    const never = emulator.faults.add({ at: 'connect', do: { refuse: 3 }, match: () => false })
    const fault = emulator.faults.add({
      at: 'connect',
      do: { refuse: 3 },
      times: Number.POSITIVE_INFINITY,
      match: { registrationId: ID.toUpperCase() },
    })
    expect(await connackOf(emulator, hello)).toBe(3)
    expect(await connackOf(emulator, hello)).toBe(3)
    expect(await fault.hit).toEqual({ at: 'connect', connectionId: 1, registrationId: ID })
    fault.remove()
    expect(await connackOf(emulator, hello)).toBe(0)
    expect([other.hits, never.hits, fault.hits]).toEqual([0, 0, 2])
    emulator.faults.clear()
    expect(emulator.faults.list()).toEqual([])
  })

  test.each([
    [{ at: 'nowhere', do: 'drop' }],
    [{ at: 'accept', do: 'duplicate' }],
    [{ at: 'register', do: [] }],
    [{ at: 'register', do: { what: 1 } }],
    [{ at: 'register', do: 'drop', times: 0 }],
  ])('refuses %j', (spec) => {
    expect(() => emulator.faults.add(spec as unknown as FaultSpec)).toThrow(
      expect.objectContaining({ code: 'OPTION_INVALID', phase: 'config' }),
    )
  })
})

describe.each([
  'accept',
  'client-hello',
  'handshake',
  'connect',
  'subscribe',
  'register',
  'register-reply',
  'poll',
  'poll-reply',
] as const)('at %s', (at) => {
  /** Goes on until the step is reached, whatever happens; the device at that point. */
  async function walk(): Promise<RawDevice> {
    const device = await dial(emulator)
    device.send(connectPacket(hello))
    if ((await device.next())?.cmd !== 'connack') return device
    device.send(subscribePacket())
    if ((await device.next())?.cmd !== 'suback') return device
    device.send(registerPacket(ID, 'a', {}, { qos: 0 }))
    const reply = await device.next()
    if (reply?.cmd !== 'publish') return device
    device.send(pollPacket(bodyOf(reply).operationId as string, 'b', { qos: 0 }))
    await device.next()
    return device
  }

  test('drop ends the connection in good order', async () => {
    const fault = emulator.faults.add({ at, do: 'drop' })
    const device = await walk()
    await device.closed
    // Before TLS is up, Node itself reports the end of the connection as a reset.
    const early = at === 'accept' || at === 'client-hello'
    expect(device.error).toBe(early ? 'ECONNRESET' : undefined)
    expect(fault.hits).toBe(1)
    await normalAgain()
  })

  test('reset tears it down', async () => {
    const fault = emulator.faults.add({ at, do: 'reset' })
    const device = await walk()
    await device.closed
    expect(device.error).toBe('ECONNRESET')
    expect(fault.hits).toBe(1)
    await normalAgain()
  })

  test('silence leaves the connection open and unanswered', async () => {
    const fault = emulator.faults.add({ at, do: 'silence' })
    const walking = walk()
    await fault.hit
    expect(emulator.openConnections).toBe(1)
    const before = emulator.log.packets.length
    // Another device: this one's registration is still running on the silent connection.
    await normalAgain('sensor-2')
    const silent = emulator.log.packets.slice(before).filter(({ connectionId }) => connectionId === 1)
    expect(silent).toEqual([])
    await emulator.close()
    await (await walking).closed
  })
})

describe('below and inside TLS', () => {
  test('raw bytes at accept and at client-hello reach the peer in the clear', async () => {
    emulator.faults.add({
      at: 'accept',
      do: [{ raw: Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n') }, 'drop'],
    })
    const { closed, bytes } = await rawSocket()
    await closed
    expect(bytes().toString()).toBe('HTTP/1.1 400 Bad Request\r\n\r\n')
    const alert = Buffer.of(21, 3, 3, 0, 2, 2, 40)
    emulator.faults.add({ at: 'client-hello', do: [{ raw: alert }, 'drop'] })
    const device = await dial(emulator)
    await device.closed
    expect(device.error).toContain('HANDSHAKE_FAILURE')
    await normalAgain()
  })

  test('raw bytes at handshake and connect take the place of any answer', async () => {
    for (const at of ['handshake', 'connect'] as const) {
      emulator.faults.add({ at, do: { raw: Buffer.of(0x20, 2, 0, 0) } })
      const device = await dial(emulator)
      device.send(connectPacket(hello), subscribePacket(), registerPacket(ID))
      expect((await device.next())?.cmd).toBe('connack')
      device.socket.destroy()
      await device.closed
      expect(device.bytes).toHaveLength(4)
    }
  })
})

describe('at subscribe', () => {
  test('refuse answers 0x80', async () => {
    emulator.faults.add({ at: 'subscribe', do: 'refuse' })
    const device = await dial(emulator)
    device.send(connectPacket(hello), subscribePacket())
    await device.next()
    expect(await device.next()).toMatchObject({ cmd: 'suback', granted: [0x80] })
    device.socket.destroy()
  })
})

describe('at a request', () => {
  test('no-puback: the reply comes alone', async () => {
    emulator.faults.add({ at: 'register', do: 'no-puback' })
    const device = await ready(emulator, hello)
    device.send(registerPacket(ID))
    expect((await device.next())?.cmd).toBe('publish')
    device.send({ cmd: 'pingreq' })
    expect((await device.next())?.cmd).toBe('pingresp')
    device.socket.destroy()
  })

  test('reply-before-puback: they change places', async () => {
    emulator.faults.add({ at: 'register', do: 'reply-before-puback' })
    const device = await ready(emulator, hello)
    device.send(registerPacket(ID))
    expect((await device.next())?.cmd).toBe('publish')
    expect((await device.next())?.cmd).toBe('puback')
    device.socket.destroy()
  })

  test('a scripted reply: status, code, message, nonsense in retry-after, any body', async () => {
    const device = await ready(emulator, hello)
    emulator.faults.add({
      at: 'register',
      do: { reply: { status: 503, errorCode: 503001, message: 'busy', retryAfter: 'soon' } },
    })
    const busy = await registerOnce(device)
    expect(busy.topic).toBe('$dps/registrations/res/503/?$rid=rid&retry-after=soon')
    expect(bodyOf(busy)).toMatchObject({ errorCode: 503001, message: 'busy', trackingId: expect.any(String) })
    emulator.faults.add({
      at: 'register',
      do: { reply: { status: 500, retryAfter: null, body: Buffer.of(0xff, 0) } },
    })
    const bytes = await registerOnce(device)
    expect(bytes.topic).toBe('$dps/registrations/res/500/?$rid=rid')
    expect(bytes.payload).toEqual(Buffer.of(0xff, 0))
    expect(emulator.registrations.size).toBe(0)
    device.socket.destroy()
  })

  test.each(['failed', 'disabled', 'unassigned'] as const)('the operation ends as %s', async (outcome) => {
    emulator.faults.add({ at: 'register', do: { outcome, errorCode: 400209, message: 'scripted' } })
    const device = await ready(emulator, hello)
    expect(await registerFully(device, ID)).toMatchObject({
      operationId: expect.any(String),
      status: outcome,
      registrationState: { status: outcome, errorCode: 400209, errorMessage: 'scripted' },
    })
    emulator.faults.add({ at: 'poll', do: { outcome } })
    expect(await registerFully(device, ID)).toMatchObject({ status: outcome })
    expect(emulator.registrations.size).toBe(0)
    device.socket.destroy()
  })
})

describe('at a reply', () => {
  let device: RawDevice
  beforeEach(async () => {
    device = await ready(emulator, hello)
  })
  afterEach(() => device.socket.destroy())

  test('retry-after=soon on an otherwise true reply', async () => {
    emulator.faults.add({ at: 'register-reply', do: { reply: { retryAfter: 'soon' } } })
    const reply = await registerOnce(device)
    expect(reply.topic).toBe('$dps/registrations/res/202/?$rid=rid&retry-after=soon')
    expect(bodyOf(reply)).toMatchObject({ status: 'assigning' })
  })

  test('a topic of its own', async () => {
    emulator.faults.add({
      at: 'register-reply',
      do: { reply: { topic: ({ rid }) => `$dps/registrations/res/20x/?$rid=${rid}` } },
    })
    expect((await registerOnce(device)).topic).toBe('$dps/registrations/res/20x/?$rid=rid')
  })

  test('wrong-rid, and twice', async () => {
    emulator.faults.add({ at: 'register-reply', do: ['wrong-rid', 'duplicate'] })
    const topics = [(await registerOnce(device)).topic, (await device.publishReply()).topic]
    expect(topics).toEqual(Array(2).fill('$dps/registrations/res/202/?$rid=not-rid&retry-after=3'))
  })

  test('byte by byte: the same packet, one byte to a record', async () => {
    emulator.faults.add({ at: 'register-reply', do: 'byte-by-byte' })
    device.chunks = []
    expect(bodyOf(await registerOnce(device))).toMatchObject({ status: 'assigning' })
    expect(Math.max(...device.chunks)).toBe(1)
  })

  test('truncate shortens the body, oversize pads it to the byte', async () => {
    emulator.faults.add({ at: 'register-reply', do: { truncate: 7 } })
    expect((await registerOnce(device)).payload).toHaveLength(7)
    emulator.faults.add({ at: 'register-reply', do: { oversize: 300_000 } })
    const large = await registerOnce(device)
    expect(large.payload).toHaveLength(300_000)
    expect(bodyOf(large)).toMatchObject({ status: 'assigning' })
  })

  test('cut sends a part of the packet and ends the connection', async () => {
    emulator.faults.add({ at: 'register-reply', do: { cut: 5 } })
    const before = device.bytes.length
    device.send(registerPacket(ID, 'rid', {}, { qos: 0 }))
    await device.closed
    expect(device.bytes.length - before).toBe(5)
    expect(device.error).toBeUndefined()
  })

  test('raw bytes made from the request', async () => {
    emulator.faults.add({
      at: 'register-reply',
      do: { raw: ({ rid }) => Buffer.from([0xd0, rid.length - 3]) },
    })
    device.send(registerPacket(ID, 'rid', {}, { qos: 0 }))
    expect((await device.next())?.cmd).toBe('pingresp')
  })

  test.each([
    ['no-hub', 'assignedHub'],
    ['no-device-id', 'deviceId'],
  ] as const)('%s waits for the reply that says assigned', async (name, field) => {
    const early = emulator.faults.add({ at: 'register-reply', do: name })
    emulator.faults.add({ at: 'poll-reply', do: name })
    const body = await registerFully(device, ID)
    expect(body).toMatchObject({ status: 'assigned' })
    expect(body.registrationState).not.toHaveProperty(field)
    expect(early.hits).toBe(0)
  })

  test('no-operation-id', async () => {
    emulator.faults.add({ at: 'register-reply', do: 'no-operation-id' })
    expect(bodyOf(await registerOnce(device))).toEqual({ status: 'assigning' })
  })

  test.each(['failed', 'disabled', 'unassigned'] as const)('outcome %s at once', async (outcome) => {
    emulator.faults.add({ at: 'register-reply', do: { outcome } })
    const reply = await registerOnce(device)
    expect(reply.topic).toBe('$dps/registrations/res/200/?$rid=rid')
    expect(bodyOf(reply)).toMatchObject({ status: outcome })
  })

  test('actions that spoil each other still send something', async () => {
    emulator.faults.add({
      at: 'register-reply',
      do: [{ truncate: 3 }, { outcome: 'failed' }, { cut: 9 }, 'duplicate'],
    })
    const before = device.bytes.length
    device.send(registerPacket(ID, 'rid', {}, { qos: 0 }))
    await device.closed
    expect(device.bytes.length - before).toBe(9)
  })
})

test('a muted connection stays open beyond its keep-alive', async () => {
  const clock = new ManualClock()
  const quiet = await startEmulator({
    pki,
    clock,
    enrollments: [{ registrationId: ID, attestation: { symmetricKey: { primaryKey: KEY } } }],
  })
  const fault = quiet.faults.add({ at: 'register', do: 'silence' })
  const device = await ready(quiet, { ...hello, packet: { keepalive: 1 } })
  device.send(registerPacket(ID))
  await fault.hit
  clock.advance(3_600_000)
  expect(quiet.openConnections).toBe(1)
  await quiet.close()
  await device.closed
})
