import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type EmulatorOptions,
  type FaultSpec,
  generateSymmetricKey,
  type Pki,
  type RefusalReason,
  startEmulator,
} from '../../../src/emulator/index.ts'
import { bodyOf, ManualClock, pollPacket, ready, registerPacket, sasToken } from './raw-device.ts'
import { HttpDevice, type HttpReply, recordTypes, relay, talk } from './raw-http.ts'

const KEY = generateSymmetricKey()
const ID = 'sensor-1'
const SAS = sasToken({ key: KEY, id: ID })
const HOST = 'global.azure-devices-provisioning.net'
const PATH = `/0ne00000000/registrations/${ID}`
const VERSION = 'api-version=2019-03-31'

let pki: Pki
let emulator: Emulator
let events: EmulatorEvent[]
let device: HttpDevice

async function start(options: EmulatorOptions = {}): Promise<void> {
  events = []
  emulator = await startEmulator({
    pki,
    enrollments: [
      { registrationId: ID, attestation: { symmetricKey: { primaryKey: KEY } } },
      { groupId: 'by-ca', attestation: { x509: { ca: pki.deviceRoot.certPem } } },
    ],
    onEvent: (event) => events.push(event),
    ...options,
  })
  device = new HttpDevice(emulator, ID, { sas: SAS })
}

async function stop(): Promise<void> {
  device.close()
  await emulator.close()
  expect(emulator.openConnections).toBe(0)
}

beforeAll(async () => {
  pki = await createPki()
})
beforeEach(() => start())
afterEach(stop)

const rules = (): string[] => events.flatMap((event) => (event.type === 'violation' ? event.rule : []))
const reasons = (): RefusalReason[] =>
  events.flatMap((event) => (event.type === 'refused' ? event.reason : []))
const closed = (): Promise<void> =>
  new Promise((resolve) => {
    const look = (): void => {
      if (emulator.openConnections === 0) resolve()
      else setImmediate(look)
    }
    look()
  })

/** The bytes of a request. */
function plain(method: string, target: string, extra = ''): string {
  const body = JSON.stringify({ registrationId: ID })
  return (
    `${method} ${target} HTTP/1.1\r\nHost: ${HOST}\r\nAuthorization: ${SAS}\r\n` +
    `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n${extra}\r\n${body}`
  )
}

function expectError(reply: HttpReply, status: number, errorCode: number): void {
  expect(reply.status).toBe(status)
  expect(reply.headers['x-ms-error-code']).toBe(String(errorCode))
  expect(reply.headers['content-type']).toBe('application/json; charset=utf-8')
  expect(reply.json).toMatchObject({
    errorCode,
    trackingId: expect.any(String),
    message: expect.any(String),
    timestampUtc: expect.stringMatching(/\.\d{7}Z$/),
  })
}

describe('a registration', () => {
  test('by shared access signature, request by request on one connection', async () => {
    const accepted = await device.register()
    expect(accepted.status).toBe(202)
    expect(accepted.json).toEqual({ operationId: expect.stringMatching(/^5\./), status: 'assigning' })
    const operationId = String(accepted.json.operationId)
    expect(accepted.headers).toMatchObject({
      'content-type': 'application/json; charset=utf-8',
      'content-length': String(accepted.body.length),
      'retry-after': '3',
      'x-ms-request-id': expect.stringMatching(/^[0-9a-f-]{36}$/),
      location: `https://${HOST}${PATH}/operations/${operationId}?${VERSION}`,
    })
    expect(accepted.headers).not.toHaveProperty('x-ms-error-code')
    expect(emulator.registrations.size).toBe(0)

    const { pathname, search } = new URL(accepted.headers.location ?? '')
    const done = await device.ask('GET', pathname + search, { sas: SAS })
    expect(done.status).toBe(200)
    expect(done.headers).not.toHaveProperty('location')
    expect(done.headers).not.toHaveProperty('retry-after')
    expect(done.json).toMatchObject({
      operationId,
      status: 'assigned',
      registrationState: {
        registrationId: ID,
        deviceId: ID,
        substatus: 'initialAssignment',
        symmetricKey: {},
      },
    })
    expect(emulator.registrations.get(ID)).toMatchObject({ count: 1 })
    expect(emulator.log.connections).toMatchObject([{ transport: 'https', registrationId: ID }])
    expect(rules()).toEqual([])
  })

  test('by client certificate', async () => {
    const id = 'gate:1'
    const identity = await emulator.issueDeviceCertificate({ registrationId: id })
    const gate = new HttpDevice(emulator, id, identity)
    const reply = await gate.registerFully()
    expect(reply.json).toMatchObject({ status: 'assigned', registrationState: { x509: {}, deviceId: id } })
    expect(emulator.registrations.get(id)?.enrollment).toEqual({ groupId: 'by-ca' })
    gate.close()
  })

  test('with a payload, forceRegistration, charset and the content coding of the documentation', async () => {
    const received: unknown[] = []
    emulator.enrollments.addIndividual({
      registrationId: ID,
      attestation: { symmetricKey: { primaryKey: KEY } },
      hub: ({ payload, hubs }) => {
        received.push(payload)
        return hubs[0]
      },
    })
    const headers = { 'content-type': 'Application/JSON;charset=UTF-8', 'content-encoding': 'utf-8' }
    const body = JSON.stringify({ registrationId: ID, payload: { site: 'Zürich' } })
    const target = `${PATH}/register?${VERSION}&forceRegistration=true`
    const { json } = await device.ask('PUT', target, { sas: SAS, headers, body })
    // Microsoft's client sends a body with GET.
    expect((await device.poll(String(json.operationId), { body: '{}' })).json.status).toBe('assigned')
    expect(received).toEqual([{ site: 'Zürich' }])
  })

  test('dates are those of the clock', async () => {
    await stop()
    const clock = new ManualClock()
    clock.advance(-86_400_000 * 30)
    await start({ clock })
    expect((await device.register()).headers.date).toBe(new Date(clock.now()).toUTCString())
  })

  test('an operation that nobody knows is 404', async () => {
    expectError(await device.poll('5.0.unknown'), 404, 404202)
  })

  test('polls beyond the limit are 429 with Retry-After', async () => {
    await stop()
    await start({ pollLimit: true, assigning: { polls: 100 } })
    const operationId = String((await device.register()).json.operationId)
    for (let poll = 0; poll < 5; poll += 1) expect((await device.poll(operationId)).status).toBe(202)
    const reply = await device.poll(operationId)
    expectError(reply, 429, 429001)
    expect(reply.headers['retry-after']).toBe('3')
  })
})

describe('a lookup', () => {
  test('gives the latest result, without starting anything', async () => {
    const { registrationState } = (await device.registerFully()).json
    const looked = await device.lookup()
    expect(looked.status).toBe(200)
    expect(looked.json).toEqual(registrationState)
    expect(emulator.registrations.get(ID)?.count).toBe(1)
  })

  test('of a device that was never assigned is 404', async () => {
    expectError(await device.lookup(), 404, 404202)
    await device.register()
    expectError(await device.lookup(), 404, 404202)
    expect(emulator.registrations.size).toBe(0)
  })

  test('of a device that was forgotten is 404', async () => {
    await device.registerFully()
    emulator.registrations.forget(ID)
    expectError(await device.lookup(), 404, 404202)
  })

  test.each([
    ['a csr', { csr: 'MIIB' }],
    ['a payload', { payload: {} }],
    ['another registration id', { registrationId: 'sensor-2' }],
  ])('with %s is 400', async (_what, extra) => {
    await device.registerFully()
    expectError(await device.lookup(extra), 400, 400000)
  })
})

describe('a request that breaks the protocol', () => {
  const body = JSON.stringify({ registrationId: ID })
  const register = `${PATH}/register?${VERSION}`

  test.each([
    ['unknown path', 'GET', '/', {}, 404],
    ['path of no operation', 'PUT', `${PATH}/unregister?${VERSION}`, { body }, 404],
    ['operation without id', 'GET', `${PATH}/operations/?${VERSION}`, {}, 404],
    ['register by POST', 'POST', register, { body }, 405],
    ['lookup by GET', 'GET', `${PATH}?${VERSION}`, {}, 405],
    ['poll by PUT', 'PUT', `${PATH}/operations/5.1?${VERSION}`, { body }, 405],
    ['no api-version', 'PUT', `${PATH}/register`, { body }, 400],
    ['unknown api-version', 'PUT', `${PATH}/register?api-version=2023-02-01-preview`, { body }, 400],
    ['api-version twice', 'PUT', `${register}&${VERSION}`, { body }, 400],
    ['unknown field in the query', 'PUT', `${register}&x=1`, { body }, 400],
    ['forceRegistration in a lookup', 'POST', `${PATH}?${VERSION}&forceRegistration=true`, { body }, 400],
    ['path that is no UTF-8', 'PUT', `/0ne00000000/registrations/%ff/register?${VERSION}`, { body }, 400],
    ['operation id that is no UTF-8', 'GET', `${PATH}/operations/%ff?${VERSION}`, {}, 400],
    [
      'malformed registration id',
      'PUT',
      `/0ne00000000/registrations/a%20b/register?${VERSION}`,
      { body },
      400,
    ],
    ['two hosts', 'PUT', register, { body, headers: { host: [HOST, 'other.example'] } }, 400],
    ['two credentials', 'PUT', register, { body, headers: { authorization: [SAS, SAS] } }, 400],
    ['no content type', 'PUT', register, { body, headers: { 'content-type': [] } }, 415],
    ['text', 'PUT', register, { body, headers: { 'content-type': 'text/plain' } }, 415],
    [
      'Latin-1',
      'PUT',
      register,
      { body, headers: { 'content-type': 'application/json; charset=latin1' } },
      415,
    ],
    ['compressed body', 'PUT', register, { body, headers: { 'content-encoding': 'gzip' } }, 415],
    ['no body', 'PUT', register, { headers: { 'content-type': 'application/json' } }, 400],
    ['body that is no JSON', 'PUT', register, { body: '{' }, 400],
    ['registration id of another', 'PUT', register, { body: '{"registrationId":"sensor-2"}' }, 400],
    ['unknown field in the body', 'PUT', register, { body: `{"registrationId":"${ID}","x":1}` }, 400],
    ['body beyond the limit', 'PUT', register, { body: 'x'.repeat(131_073) }, 413],
  ] as const)('%s', async (_what, method, target, ask, status) => {
    const reply = await device.ask(method, target, { sas: SAS, ...(ask as object) })
    expectError(reply, status, status * 1000)
    if (status === 413) expect(reply.headers.connection).toBe('close')
    if (status === 405) expect(reply.headers.allow).toMatch(/^(PUT|GET|POST)$/)
    expect(emulator.registrations.size).toBe(0)
    // Whoever made the mistake may go on, on the same connection where it was kept.
    expect((await device.register()).status).toBe(202)
  })

  test('no Host is 400 in HTTP/1.1 and allowed in HTTP/1.0', async () => {
    const request = (version: string): string =>
      `POST ${PATH}?${VERSION} HTTP/${version}\r\nConnection: close\r\nAuthorization: ${SAS}\r\n` +
      `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
    expect(await talk(emulator, request('1.1'))).toMatch(/^HTTP\/1\.1 400 .*"errorCode":400000/s)
    expect(await talk(emulator, request('1.0'))).toMatch(/^HTTP\/1\.1 404 /)
  })

  test.each([
    ['malformed header', 'GET / HTTP/1.1\r\nno colon\r\n\r\n', 400],
    ['HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400],
    ['header beyond the limit', `GET / HTTP/1.1\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, 431],
  ])('%s ends the connection', async (_what, bytes, status) => {
    expect(await talk(emulator, bytes)).toMatch(new RegExp(`^HTTP/1.1 ${status} `))
    expect(rules()).toHaveLength(1)
  })

  test('a first byte of no protocol ends the connection', async () => {
    expect(await talk(emulator, 'get / HTTP/1.1\r\n\r\n')).toBe('')
    expect(rules()).toEqual(['The first byte must begin an MQTT CONNECT packet or an HTTP request.'])
  })
})

describe('a credential', () => {
  const other = generateSymmetricKey()
  test.each([
    ['none', undefined, 'credential-missing'],
    ['another scheme', 'Bearer x', 'sas-malformed'],
    ['a wrong key', sasToken({ key: other, id: ID }), 'sas-signature-wrong'],
    ['an old token', sasToken({ key: KEY, id: ID, expiresAt: 1_000_000_000 }), 'sas-expired'],
    ['another device’s resource', sasToken({ key: KEY, id: 'sensor-2' }), 'sas-resource-wrong'],
    ['a hub’s key name', sasToken({ key: KEY, id: ID, keyName: 'device' }), 'sas-key-name-wrong'],
  ] as const)('%s is 401, with the reason kept in the journal', async (_what, sas, reason) => {
    const ask = { sas }
    for (const reply of [await device.register({}, ask), await device.lookup({}, ask)]) {
      expectError(reply, 401, 401002)
      expect(reply.json.message).toBe('Unauthorized')
    }
    expect(reasons()).toEqual([reason, reason])
  })

  test('is asked of every request', async () => {
    const { json } = await device.register()
    expectError(await device.poll(String(json.operationId), { sas: undefined }), 401, 401002)
    emulator.enrollments.disable({ registrationId: ID })
    expectError(await device.poll(String(json.operationId)), 401, 401002)
    expect(reasons()).toEqual(['credential-missing', 'enrollment-disabled'])
  })

  test('of another scope is 401', async () => {
    const target = `/0ne00000001/registrations/${ID}?${VERSION}`
    const body = JSON.stringify({ registrationId: ID })
    expectError(await device.ask('POST', target, { sas: SAS, body }), 401, 401002)
    expect(reasons()).toEqual(['id-scope-wrong'])
  })

  test('certificate of another device is 401', async () => {
    const identity = await emulator.issueDeviceCertificate({ registrationId: 'gate-2' })
    const gate = new HttpDevice(emulator, 'gate-1', identity)
    expectError(await gate.register(), 401, 401002)
    expect(reasons()).toEqual(['certificate-name-wrong'])
    gate.close()
  })
})

describe('one registration of a device at a time', () => {
  test('while it runs over MQTT, HTTPS is told 409203', async () => {
    const other = await ready(emulator, { id: ID, sas: SAS })
    other.send(registerPacket(ID, 'r', {}, { qos: 0 }))
    const { operationId } = bodyOf(await other.publishReply())
    expectError(await device.register(), 409, 409203)
    // Who polls takes the operation over.
    expect((await device.poll(String(operationId))).json.status).toBe('assigned')
    expect((await device.register()).status).toBe(202)
    other.socket.destroy()
  })

  test('while it runs over HTTPS, MQTT is told 409203 until the connection ends', async () => {
    await device.register()
    const other = await ready(emulator, { id: ID, sas: SAS })
    other.send(registerPacket(ID, 'r', {}, { qos: 0 }))
    expect((await other.publishReply()).topic).toContain('/res/409/')
    device.close()
    await new Promise<void>((resolve) => {
      const look = (): void => {
        if (emulator.openConnections === 1) resolve()
        else setImmediate(look)
      }
      look()
    })
    other.send(registerPacket(ID, 'r', {}, { qos: 0 }))
    const accepted = await other.publishReply()
    expect(accepted.topic).toContain('/res/202/')
    other.send(pollPacket(String(bodyOf(accepted).operationId), 'p', { qos: 0 }))
    expect(bodyOf(await other.publishReply())).toMatchObject({ status: 'assigned' })
    other.socket.destroy()
  })

  test('registering again on the same connection finds the same operation', async () => {
    const first = await device.register()
    expect((await device.register()).json).toEqual(first.json)
  })
})

test('requests sent at once are answered in order', async () => {
  emulator.faults.add({ at: 'register-reply', do: 'byte-by-byte' })
  const text = await talk(
    emulator,
    plain('PUT', `${PATH}/register?${VERSION}`) +
      plain('DELETE', `${PATH}/register?${VERSION}`) +
      plain('POST', `${PATH}?${VERSION}`, 'Connection: close\r\n'),
  )
  expect([...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status)).toEqual(['202', '405', '404'])
})

test('the journal tells what was said, but no token', async () => {
  await device.registerFully()
  await device.ask('GET', `${PATH}?${new URLSearchParams({ token: SAS })}`, { headers: { 'x-token': SAS } })
  await device.lookup({}, { sas: 'Bearer hunter2' })
  expect(emulator.log.packets).toMatchObject([
    {
      direction: 'in',
      type: 'request',
      method: 'PUT',
      target: `${PATH}/register?${VERSION}`,
      headers: { 'content-type': 'application/json' },
      authorizationPresent: true,
      body: JSON.stringify({ registrationId: ID }),
    },
    { direction: 'out', type: 'response', status: 202, headers: { 'retry-after': '3' } },
    { direction: 'in', method: 'GET', authorizationPresent: true },
    { direction: 'out', status: 200 },
    { direction: 'in', target: expect.stringContaining('sig=[redacted]'), authorizationPresent: false },
    { direction: 'out', status: 405 },
    { direction: 'in', method: 'POST', authorizationPresent: true },
    { direction: 'out', status: 401 },
  ])
  const signature = /sig=([^&]+)/.exec(SAS)?.[1] ?? ''
  const everything = JSON.stringify(events)
  expect(everything).not.toContain(signature)
  expect(everything).not.toContain(decodeURIComponent(signature))
  expect(everything).not.toContain(encodeURIComponent(signature))
  expect(everything).not.toContain(KEY)
  expect(everything).not.toContain('hunter2')
})

describe('faults', () => {
  /** Goes on until the step is reached, whatever happens. */
  async function walk(): Promise<unknown> {
    try {
      await device.registerFully()
      await device.lookup()
      return undefined
    } catch (error) {
      return (error as NodeJS.ErrnoException).code
    }
  }

  async function normalAgain(): Promise<void> {
    const next = new HttpDevice(emulator, ID, { sas: SAS })
    expect((await next.registerFully()).json.status).toBe('assigned')
    expect((await next.lookup()).status).toBe(200)
    next.close()
  }

  describe.each(['register', 'register-reply', 'poll', 'poll-reply', 'lookup', 'lookup-reply'] as const)(
    'at %s',
    (at) => {
      test.each(['drop', 'no-close-notify', 'reset'] as const)('%s ends the connection', async (what) => {
        const fault = emulator.faults.add({ at, do: what })
        expect(await walk()).toBe('ECONNRESET')
        expect(fault.hits).toBe(1)
        await closed()
        await normalAgain()
      })

      test('silence: nothing is answered, the connection stays', async () => {
        const fault = emulator.faults.add({ at, do: 'silence' })
        const walking = walk()
        expect(await fault.hit).toMatchObject({ at, connectionId: 1, registrationId: ID })
        expect(emulator.openConnections).toBe(1)
        expect(emulator.log.packets.at(-1)?.direction).toBe('in')
        device.close()
        expect(await walking).toBe('ECONNRESET')
        await closed()
        await normalAgain()
      })
    },
  )

  test('silence is kept whatever comes', async () => {
    const fault = emulator.faults.add({ at: 'lookup', do: 'silence' })
    const request = plain('POST', `${PATH}?${VERSION}`)
    const heard = talk(emulator, `${request}${request}no HTTP\r\n\r\n`)
    await fault.hit
    await normalAgain()
    expect(emulator.openConnections).toBeGreaterThan(0)
    await emulator.close()
    expect(await heard).toBe('')
    expect(rules()).toEqual([])
  })

  test('silence at a reply holds back what comes after it too', async () => {
    const fault = emulator.faults.add({ at: 'lookup-reply', do: 'silence' })
    const request = plain('POST', `${PATH}?${VERSION}`)
    const heard = talk(emulator, request + request)
    await fault.hit
    await normalAgain()
    const { packets } = emulator.log
    const asked = packets.filter((packet) => packet.connectionId === 1 && packet.direction === 'in')
    expect(asked).toHaveLength(1)
    await emulator.close()
    expect(await heard).toBe('')
  })

  test('at accept and at the handshake, as over MQTT', async () => {
    for (const at of ['accept', 'handshake'] as const) {
      emulator.faults.add({ at, do: 'drop' })
      expect(await walk()).toBe('ECONNRESET')
    }
    await normalAgain()
  })

  test('a scripted reply at a request: the service does not see it', async () => {
    emulator.faults.add({
      at: 'register',
      do: { reply: { status: 503, errorCode: 503001, message: 'busy', retryAfter: 'so\non' } },
    })
    const busy = await device.register()
    expectError(busy, 503, 503001)
    expect(busy.headers['retry-after']).toBe('soon')
    for (const at of ['poll', 'lookup'] as const) emulator.faults.add({ at, do: { reply: {} } })
    expectError(await device.poll('5.1'), 500, 500000)
    expectError(await device.lookup(), 500, 500000)
    expect((await device.registerFully()).json.status).toBe('assigned')
    expect(emulator.log.connections).toHaveLength(1)
  })

  test('a reply altered: header fields set and left out', async () => {
    emulator.faults.add({
      at: 'register-reply',
      do: {
        reply: {
          status: 307,
          headers: {
            Location: 'https://elsewhere.example/',
            'X-Extra': '1',
            Date: null,
            'Content-Length': null,
          },
        },
      },
    })
    const moved = await device.register()
    expect(moved.status).toBe(307)
    expect(moved.headers).toMatchObject({ location: 'https://elsewhere.example/', 'x-extra': '1' })
    expect(moved.headers).not.toHaveProperty('date')
    expect(moved.headers).not.toHaveProperty('content-length')
    expect(moved.json.errorCode).toBe(307000)
  })

  test('a body of any bytes, under any content type', async () => {
    emulator.faults.add({
      at: 'register-reply',
      do: { reply: { body: Buffer.of(0xff, 0), headers: { 'content-type': 'text/html' } } },
    })
    const reply = await device.register()
    expect(reply.status).toBe(202)
    expect(reply.body).toEqual(Buffer.of(0xff, 0))
    expect(reply.headers['content-type']).toBe('text/html')
  })

  test.each(['failed', 'disabled', 'unassigned'] as const)('the operation ends as %s', async (outcome) => {
    emulator.faults.add({ at: 'register', do: { outcome, errorCode: 400209 } })
    expect((await device.registerFully()).json).toMatchObject({
      status: outcome,
      registrationState: { status: outcome, errorCode: 400209 },
    })
    emulator.faults.add({ at: 'poll', do: { outcome } })
    expect((await device.registerFully()).json.status).toBe(outcome)
    emulator.faults.add({ at: 'poll-reply', do: { outcome } })
    expect((await device.registerFully()).json.status).toBe(outcome)
  })

  test.each([
    ['no-hub', 'assignedHub'],
    ['no-device-id', 'deviceId'],
  ] as const)('%s, in a result and in a lookup', async (name, field) => {
    emulator.faults.add({ at: 'poll-reply', do: name })
    const { json } = await device.registerFully()
    expect(json.status).toBe('assigned')
    expect(json.registrationState).not.toHaveProperty(field)
    emulator.faults.add({ at: 'lookup-reply', do: name })
    const looked = (await device.lookup()).json
    expect(looked.status).toBe('assigned')
    expect(looked).not.toHaveProperty(field)
    expect((await device.lookup()).json).toHaveProperty(field)
  })

  test('no-operation-id: neither in the body nor in Location', async () => {
    emulator.faults.add({ at: 'register-reply', do: 'no-operation-id' })
    const reply = await device.register()
    expect(reply.json).toEqual({ status: 'assigning' })
    expect(reply.headers).not.toHaveProperty('location')
  })

  test('oversize pads the body to the byte', async () => {
    emulator.faults.add({ at: 'register-reply', do: { oversize: 300_000 } })
    const reply = await device.register()
    expect(reply.body).toHaveLength(300_000)
    expect(reply.json.status).toBe('assigning')
    expect((await device.register()).body.length).toBeLessThan(300)
  })

  test('truncate: fewer bytes than Content-Length tells, then the end', async () => {
    emulator.faults.add({ at: 'register-reply', do: { truncate: 7 } })
    await expect(device.register()).rejects.toMatchObject({ code: 'ECONNRESET' })
    emulator.faults.add({ at: 'register-reply', do: { truncate: 100_000 } })
    expect((await device.register()).status).toBe(202)
    emulator.faults.add({ at: 'lookup-reply', do: [{ truncate: 0 }, { reply: { body: '{}' } }] })
    const text = await talk(emulator, plain('POST', `${PATH}?${VERSION}`))
    expect(text).toMatch(/\r\n\r\n{}$/)
    expect(Number(/content-length: (\d+)/i.exec(text)?.[1])).toBeGreaterThan(2)
  })

  test('cut: a part of the response, then the end', async () => {
    const text = plain('POST', `${PATH}?${VERSION}`)
    emulator.faults.add({ at: 'lookup-reply', do: { cut: 12 } })
    expect(await talk(emulator, text + text)).toBe('HTTP/1.1 404')
    // What came with it is not served any more.
    expect(emulator.log.packets.map(({ direction }) => direction)).toEqual(['in', 'out'])
    emulator.faults.add({ at: 'lookup-reply', do: { cut: 1_000_000 } })
    expect(await talk(emulator, text)).toMatch(/^HTTP\/1\.1 404 .*}$/s)
  })

  test('byte by byte: every byte in a record of its own, and the connection is kept', async () => {
    const between = await relay(emulator)
    emulator.faults.add({ at: 'register-reply', do: 'byte-by-byte' })
    const slow = new HttpDevice({ ...emulator, port: between.port }, ID, { sas: SAS })
    const accepted = await slow.register()
    expect(accepted.json.status).toBe('assigning')
    expect((await slow.poll(String(accepted.json.operationId))).json.status).toBe('assigned')
    slow.close()
    const { types } = recordTypes((await between.ended).bytes)
    // The second response is few records, the first as many as it has bytes.
    expect(types.filter((type) => type === 23).length).toBeGreaterThan(accepted.body.length + 200)
    between.close()
    expect(emulator.log.connections).toHaveLength(1)
  })

  test('raw bytes in place of a response, and the connection is kept', async () => {
    const teapot = 'HTTP/1.1 418 I am a teapot\r\nContent-Length: 2\r\n\r\n{}'
    for (const at of ['register', 'register-reply'] as const) {
      emulator.faults.add({
        at,
        do: { raw: ({ rid, registrationId }) => Buffer.from(teapot + rid.slice(0, registrationId.length)) },
      })
      expect((await device.register()).status).toBe(418)
    }
    expect((await device.registerFully()).json.status).toBe('assigned')
    expect(emulator.log.connections).toHaveLength(1)
  })

  test('raw bytes, and then bytes that are no HTTP', async () => {
    emulator.faults.add({ at: 'lookup', do: { raw: Buffer.from('instead ') } })
    const text = await talk(emulator, `${plain('POST', `${PATH}?${VERSION}`)}no HTTP\r\n\r\n`)
    expect(text).toMatch(/^instead HTTP\/1\.1 400 /)
  })

  test('what is about MQTT only waits for it', async () => {
    const specs: FaultSpec[] = [
      { at: 'register', do: 'no-puback' },
      { at: 'register', do: 'reply-before-puback' },
      { at: 'register', do: { reply: { topic: 'x' } } },
      { at: 'register-reply', do: 'wrong-rid' },
      { at: 'poll-reply', do: ['duplicate', 'byte-by-byte'] },
      { at: 'connect', do: { refuse: 5 } },
      { at: 'subscribe', do: 'refuse' },
    ]
    const faults = specs.map((spec) => emulator.faults.add(spec))
    expect((await device.registerFully()).json.status).toBe('assigned')
    expect(faults.map(({ hits }) => hits)).toEqual(specs.map(() => 0))
  })

  test('and header fields wait for HTTPS', async () => {
    const fault = emulator.faults.add({
      at: 'register',
      do: { reply: { status: 307, headers: { location: '/' } } },
    })
    const other = await ready(emulator, { id: ID, sas: SAS })
    other.send(registerPacket(ID, 'r', {}, { qos: 0 }))
    expect((await other.publishReply()).topic).toContain('/res/202/')
    expect(fault.hits).toBe(0)
    other.socket.destroy()
  })

  test.each([
    { at: 'register', do: { reply: { status: 99 } } },
    { at: 'register', do: { reply: { status: 200.5 } } },
    { at: 'register-reply', do: { reply: { headers: { 'no colon:': '1' } } } },
    { at: 'register-reply', do: { reply: { headers: { name: 'two\r\nlines' } } } },
    { at: 'upgrade', do: { refuse: 5 } },
    { at: 'lookup', do: { outcome: 'failed' } },
    { at: 'lookup-reply', do: 'no-operation-id' },
    { at: 'register', do: { refuse: 503 } },
  ])('$at refuses $do', (spec) => {
    expect(() => emulator.faults.add(spec as unknown as FaultSpec)).toThrow(
      expect.objectContaining({ code: 'OPTION_INVALID', phase: 'config' }),
    )
  })
})

describe('how a connection ends', () => {
  const ALERT = 21

  async function endOf(spec: FaultSpec): Promise<{ bytes: Buffer; by: 'fin' | 'reset' }> {
    const between = await relay(emulator)
    const fault = emulator.faults.add(spec)
    const watched = new HttpDevice({ ...emulator, port: between.port }, ID, { sas: SAS })
    await watched.register().catch(() => undefined)
    const end = await between.ended
    watched.close()
    between.close()
    expect(fault.hits).toBe(1)
    return end
  }

  test('drop says close_notify, then FIN', async () => {
    const { bytes, by } = await endOf({ at: 'register', do: 'drop' })
    expect(by).toBe('fin')
    expect(recordTypes(bytes).types.at(-1)).toBe(ALERT)
  })

  test('no-close-notify is FIN alone', async () => {
    const { bytes, by } = await endOf({ at: 'register', do: 'no-close-notify' })
    expect(by).toBe('fin')
    expect(recordTypes(bytes)).toMatchObject({ whole: true })
    expect(recordTypes(bytes).types).not.toContain(ALERT)
  })

  test('a large part of a response, then FIN alone', async () => {
    const { bytes, by } = await endOf({
      at: 'register-reply',
      do: [{ oversize: 3_000_000 }, { cut: 2_000_000, closeNotify: false }],
    })
    expect(by).toBe('fin')
    expect(bytes.length).toBeGreaterThan(2_000_000)
    expect(recordTypes(bytes)).toMatchObject({ whole: true })
    expect(recordTypes(bytes).types).not.toContain(ALERT)
  })

  test('reset is RST', async () => {
    expect((await endOf({ at: 'register', do: 'reset' })).by).toBe('reset')
  })
})
