import { createPublicKey } from 'node:crypto'
import { connect as mqttConnect } from 'mqtt'
import { afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type EmulatorOptions,
  generateSymmetricKey,
  type IssuancePolicy,
  issueCertificate,
  type Pki,
  startEmulator,
} from '../../../../src/emulator/index.ts'
import { certificatesOf, type DeviceCsr, opensslCsr, opensslVerify, pemOf } from '../raw-csr.ts'
import { ManualClock, type RawDevice, ready, registerFully, sasToken } from '../raw-device.ts'
import { HUB, hubConnack, hubToken, onHub, publish, subscribe } from './raw-hub.ts'

const KEY = generateSymmetricKey()
const ID = 'sensor-1'
const FILTER = '$iothub/credentials/res/#'
const QUERY = '/?api-version=2025-08-01-preview'
const DELAY = 50

let pki: Pki
let first: DeviceCsr
let second: DeviceCsr
beforeAll(async () => {
  pki = await createPki()
  first = opensslCsr(ID)
  second = opensslCsr(ID, 'P-256')
})

let emulator: Emulator
let events: EmulatorEvent[]
let clock: ManualClock
let tls: { cert: string; key: string }
afterEach(async () => {
  await emulator?.close()
  expect(emulator?.openConnections).toBe(0)
})

/** An emulator, and a device that was issued its first certificate. */
async function start(issuance: IssuancePolicy = {}, options: EmulatorOptions = {}): Promise<void> {
  events = []
  clock = new ManualClock()
  emulator = await startEmulator({
    pki,
    clock,
    assigning: { polls: 0 },
    onEvent: (event) => events.push(event),
    enrollments: [
      { registrationId: ID, attestation: { symmetricKey: { primaryKey: KEY } }, issuance: { ...issuance } },
    ],
    ...options,
  })
  const sas = sasToken({ key: KEY, id: ID })
  const device = await ready(emulator, { id: ID, apiVersion: '2025-07-01-preview', sas })
  const body = await registerFully(device, ID, { csr: first.csr })
  device.socket.destroy()
  const chain = (body.registrationState as Record<string, unknown>).issuedCertificateChain
  tls = { cert: pemOf(chain), key: first.key }
}

async function connected(qos: 0 | 1 = 0, query = QUERY): Promise<RawDevice> {
  const device = await onHub(emulator, { id: ID, query, tls })
  expect(await subscribe(device, [FILTER], qos)).toEqual([qos])
  return device
}

const ask = (rid: string, more: object = {}) =>
  publish(
    `$iothub/credentials/POST/issueCertificate/?$rid=${rid}`,
    JSON.stringify({ id: ID, csr: second.csr, ...more }),
  )

interface Answer {
  status: number
  rid: string
  body: Record<string, unknown>
}

async function answer(device: RawDevice): Promise<Answer> {
  const packet = await device.publishReply()
  const [, status, rid] = /^\$iothub\/credentials\/res\/(\d+)\/\?\$rid=(.+)$/.exec(packet.topic) ?? []
  return { status: Number(status), rid: rid ?? '', body: JSON.parse(packet.payload.toString()) }
}

/** The answer to one request, where that comes at once. */
async function asked(device: RawDevice, rid: string, more: object = {}): Promise<Answer> {
  device.send(ask(rid, more))
  return answer(device)
}

/** Proof that nothing else was sent before. */
async function nothingMore(device: RawDevice): Promise<void> {
  device.send({ cmd: 'pingreq' })
  expect(await device.next()).toMatchObject({ cmd: 'pingresp' })
}

const rules = (): string[] => events.flatMap((event) => (event.type === 'violation' ? event.rule : []))
const viaHub = () => emulator.issuance.list().filter(({ via }) => via === 'hub')

describe('a renewal', () => {
  test('is accepted with 202 and answered with a chain that OpenSSL verifies and the hub accepts', async () => {
    await start({ lifetimeMs: 60_000 })
    const device = await connected()
    clock.advance(30_000)
    const { status, rid, body } = await asked(device, 'rid-1')
    expect({ status, rid }).toEqual({ status: 202, rid: 'rid-1' })
    expect(Object.keys(body)).toEqual(['correlationId', 'operationExpires'])
    expect(Date.parse(String(body.operationExpires))).toBeGreaterThan(clock.now())
    await nothingMore(device)
    expect(viaHub()).toEqual([])
    clock.advance(DELAY)
    const done = await answer(device)
    expect(done).toMatchObject({ status: 200, rid: 'rid-1', body: { correlationId: body.correlationId } })
    expect(Object.keys(done.body)).toEqual(['correlationId', 'certificates'])
    const chain = certificatesOf(done.body.certificates)
    expect(chain).toHaveLength(3)
    expect(opensslVerify(chain, clock.now())).toBe('leaf: OK')
    expect(chain[0]!.publicKey.equals(createPublicKey(second.publicKey))).toBe(true)
    expect(viaHub()).toMatchObject([
      { registrationId: ID, deviceId: ID, serialNumber: chain[0]!.serialNumber },
    ])
    expect(events).toContainEqual({ type: 'certificate-issued', certificate: viaHub()[0] })
    // The connection goes on; when the first certificate has ended, the second lets the device in.
    await nothingMore(device)
    clock.advance(40_000)
    expect(await hubConnack(emulator, { id: ID, tls })).toBe(5)
    tls = { cert: pemOf(done.body.certificates), key: second.key }
    expect(await hubConnack(emulator, { id: ID, tls })).toBe(0)
    // And at the provisioning service.
    const again = await ready(emulator, { id: ID, apiVersion: '2025-07-01-preview' }, tls)
    expect(await registerFully(again, ID)).toMatchObject({ status: 'assigned' })
    again.socket.destroy()
  })

  test('follows another one', async () => {
    await start({}, { hubRenewal: { delayMs: 0 } })
    const device = await connected()
    for (const rid of ['rid-1', 'rid-1', 'rid-2']) {
      expect(await asked(device, rid)).toMatchObject({ status: 202, rid })
      expect(await answer(device)).toMatchObject({ status: 200, rid })
    }
    expect(viaHub()).toHaveLength(3)
    device.socket.destroy()
  })

  test('works with MQTT.js as the client', async () => {
    await start({}, { hubRenewal: { delayMs: 0 } })
    const client = mqttConnect({
      protocol: 'mqtts',
      host: emulator.address,
      port: emulator.port,
      servername: HUB,
      ca: emulator.roots[0],
      clientId: ID,
      username: `${HUB}/${ID}${QUERY}`,
      reconnectPeriod: 0,
      ...tls,
    })
    const statuses: string[] = []
    await new Promise<void>((resolve, reject) => {
      client.on('error', reject)
      client.on('message', (topic) => {
        statuses.push(topic)
        if (statuses.length === 2) resolve()
      })
      client.on('connect', () => {
        client.subscribe(FILTER, { qos: 1 }, () => {
          const body = JSON.stringify({ id: ID, csr: second.csr })
          client.publish('$iothub/credentials/POST/issueCertificate/?$rid=rid-1', body, { qos: 1 })
        })
      })
    })
    await client.endAsync(true)
    expect(statuses).toEqual([
      '$iothub/credentials/res/202/?$rid=rid-1',
      '$iothub/credentials/res/200/?$rid=rid-1',
    ])
  })

  test('that becomes ready while the device is away is told when it is back and has subscribed', async () => {
    await start()
    const away = await connected()
    expect(await asked(away, 'rid-1')).toMatchObject({ status: 202 })
    away.socket.destroy()
    await vi.waitFor(() => expect(emulator.openConnections).toBe(0))
    clock.advance(DELAY)
    expect(viaHub()).toHaveLength(1)
    const back = await onHub(emulator, { id: ID, query: QUERY, tls })
    await nothingMore(back)
    expect(await subscribe(back, [FILTER])).toEqual([1])
    expect(await answer(back)).toMatchObject({ status: 200, rid: 'rid-1' })
    back.socket.destroy()
  })

  test('at QoS 1 is told again on the next connection until it is acknowledged, at QoS 0 once', async () => {
    await start({}, { hubRenewal: { delayMs: 0 } })
    const told = async (device: RawDevice) => {
      const packet = await device.publishReply()
      return { topic: packet.topic, messageId: packet.messageId, dup: packet.dup }
    }
    const topic = '$iothub/credentials/res/200/?$rid=rid-1'
    const one = await connected(1)
    await asked(one, 'rid-1')
    expect(await told(one)).toEqual({ topic, messageId: 2, dup: false })
    one.socket.destroy()
    const two = await connected(1)
    expect(await told(two)).toEqual({ topic, messageId: 1, dup: true })
    two.send({ cmd: 'puback', messageId: 1 })
    await nothingMore(two)
    two.socket.destroy()
    const three = await connected(1)
    await nothingMore(three)
    three.socket.destroy()

    const four = await connected(0)
    await asked(four, 'rid-2')
    await answer(four)
    four.socket.destroy()
    const five = await connected(0)
    await nothingMore(five)
    five.socket.destroy()
  })

  test('ends with its operation', async () => {
    await start()
    const device = await onHub(emulator, { id: ID, query: QUERY, tls })
    device.send(ask('rid-1'))
    await nothingMore(device)
    clock.advance(3_600_000)
    expect(await subscribe(device, [FILTER])).toEqual([1])
    await nothingMore(device)
    expect(await asked(device, 'rid-2')).toMatchObject({ status: 202 })
    device.socket.destroy()
  })

  test('of a device with another id takes the one or the other as its name', async () => {
    await start()
    emulator.enrollments.addIndividual({
      registrationId: ID,
      deviceId: 'device-1',
      attestation: { symmetricKey: { primaryKey: KEY } },
      issuance: {},
    })
    const sas = sasToken({ key: KEY, id: ID })
    const dps = await ready(emulator, { id: ID, apiVersion: '2025-07-01-preview', sas })
    await registerFully(dps, ID)
    const { registrationState } = (await registerFully(dps, ID, { csr: first.csr })) as {
      registrationState: Record<string, unknown>
    }
    dps.socket.destroy()
    tls = { cert: pemOf(registrationState.issuedCertificateChain), key: first.key }
    for (const { csr, key } of [second, opensslCsr('device-1')]) {
      const device = await onHub(emulator, { id: 'device-1', query: QUERY, tls })
      await subscribe(device, [FILTER], 0)
      expect(await asked(device, 'rid-1', { id: 'device-1', csr })).toMatchObject({ status: 202 })
      clock.advance(DELAY)
      const { body } = await answer(device)
      device.socket.destroy()
      const renewed = { cert: pemOf(body.certificates), key }
      expect(await hubConnack(emulator, { id: 'device-1', tls: renewed })).toBe(0)
    }
  })

  test('with no request id, or one that is none, gets no answer, and the connection goes on', async () => {
    await start()
    const device = await connected()
    const base = '$iothub/credentials/POST/issueCertificate'
    const wrong = ['', '/', '/?', '/?$rid=', '/?$rid=abc', '/?$rid=-abcd', '/?$rid=abcd-', '/?rid=abcd']
    wrong.push(`/?$rid=${'a'.repeat(37)}`, '/?$rid=ab_cd', '/?$rid=abcd&x=1')
    for (const end of wrong) device.send(publish(base + end, JSON.stringify({ id: ID, csr: second.csr })))
    await nothingMore(device)
    expect(rules()).toHaveLength(wrong.length)
    expect(rules()[0]).toMatch(/one `\$rid`: 4 to 36 letters, digits and inner dashes/)
    expect(await asked(device, 'abcd')).toMatchObject({ status: 202 })
    expect(await asked(device, 'a'.repeat(36), { replace: '*' })).toMatchObject({ status: 202 })
    device.socket.destroy()
  })

  test('is one of five subscriptions', async () => {
    await start()
    const device = await onHub(emulator, { id: ID, query: QUERY, tls })
    const others = ['$iothub/methods/POST/#', '$iothub/twin/res/#', '$iothub/twin/PATCH/properties/desired/#']
    expect(await subscribe(device, [...others, `devices/${ID}/messages/devicebound/#`, FILTER])).toEqual([
      1, 1, 1, 1, 1,
    ])
    device.socket.destroy()
  })

  test('is nothing for a module', async () => {
    await start()
    const { primaryKey } = emulator.hub.addDevice({
      deviceId: ID,
      moduleId: 'm',
      authentication: { symmetricKey: {} },
    })!
    const sas = hubToken({ key: primaryKey, id: ID, moduleId: 'm' })
    const device = await onHub(emulator, { id: ID, moduleId: 'm', query: QUERY, sas })
    expect(await subscribe(device, [FILTER])).toEqual([0x80])
    device.send(ask('rid-1'))
    expect(await device.next()).toBe(undefined)
    expect(rules()[0]).toMatch(/publishes its own telemetry/)
  })
})

describe('a request is refused', () => {
  const codeOf = async (device: RawDevice, more: object = {}, rid = 'rid-1'): Promise<unknown> => {
    const { status, body } = await asked(device, rid, more)
    expect(Math.floor(Number(body.errorCode) / 1000)).toBe(status)
    expect(body).toMatchObject({ message: expect.any(String), trackingId: expect.any(String) })
    return body.errorCode
  }

  test('under an older API version: 400001', async () => {
    await start()
    const device = await connected(0, '/?api-version=2021-04-12')
    expect(await codeOf(device)).toBe(400_001)
    device.socket.destroy()
  })

  test('with another field, or a field of another kind: 400004', async () => {
    await start()
    const device = await connected()
    for (const more of [
      { extra: 1 },
      { id: 'other' },
      { id: undefined },
      { csr: undefined },
      { csr: 7 },
      { replace: null },
      { replace: 'no good' },
    ]) {
      expect(await codeOf(device, more)).toBe(400_004)
    }
    device.socket.destroy()
  })

  test('with a body that is no JSON object: 400006', async () => {
    await start()
    const device = await connected()
    for (const body of ['', '{', '[]', 'null', Buffer.of(0x7b, 0xff, 0x7d)]) {
      device.send(publish('$iothub/credentials/POST/issueCertificate/?$rid=rid-1', body))
      expect(await answer(device)).toMatchObject({ status: 400, body: { errorCode: 400_006 } })
    }
    device.socket.destroy()
  })

  test('for a signing request that is none, or for a key that the policy refuses: 400037', async () => {
    await start({ curves: ['P-384'] })
    const device = await connected()
    const { body } = await asked(device, 'rid-1', { csr: 'AAAA' })
    expect(body).toMatchObject({
      errorCode: 400_037,
      info: { correlationId: expect.any(String), credentialMessage: expect.stringMatching(/PKCS#10/) },
    })
    expect(await codeOf(device)).toBe(400_037)
    expect(await codeOf(device, { csr: opensslCsr('other').csr })).toBe(400_037)
    device.socket.destroy()
  })

  test('of a device that connected with a key: 403000', async () => {
    await start()
    emulator.hub.addDevice({ deviceId: ID, authentication: { symmetricKey: { primaryKey: KEY } } })
    const device = await onHub(emulator, { id: ID, query: QUERY, sas: hubToken({ key: KEY, id: ID }) })
    await subscribe(device, [FILTER], 0)
    expect(await codeOf(device)).toBe(403_000)
    device.socket.destroy()
  })

  test('by a hub whose tier lacks the feature, and without a policy: 403010', async () => {
    await start({}, { hubRenewal: { supported: false } })
    const device = await connected()
    expect(await codeOf(device)).toBe(403_010)
    await emulator.close()
    await start()
    const other = await connected()
    emulator.enrollments.addIndividual({
      registrationId: ID,
      attestation: { symmetricKey: { primaryKey: KEY } },
    })
    expect(await codeOf(other)).toBe(403_010)
    other.socket.destroy()
  })

  test('of a device that was never registered, or is no longer enrolled: 404001', async () => {
    await start()
    const { certPem, keyPem } = await issueCertificate({ subject: 'byhand' })
    emulator.hub.addDevice({ deviceId: 'byhand', authentication: { x509: { certificate: certPem } } })
    const device = await onHub(emulator, {
      id: 'byhand',
      query: QUERY,
      tls: { cert: certPem, key: keyPem },
    })
    await subscribe(device, [FILTER], 0)
    expect(await codeOf(device, { id: 'byhand' })).toBe(404_001)
    device.socket.destroy()

    const enrolled = await connected()
    expect(await asked(enrolled, 'rid-1')).toMatchObject({ status: 202 })
    emulator.enrollments.remove({ registrationId: ID })
    clock.advance(DELAY)
    expect(await answer(enrolled)).toMatchObject({ status: 404, body: { errorCode: 404_001 } })
    expect(await codeOf(enrolled)).toBe(404_001)
    expect(viaHub()).toEqual([])
    enrolled.socket.destroy()
  })

  test('while one is pending: 409004, under the same id 409005', async () => {
    await start()
    const device = await connected()
    const { body: accepted } = await asked(device, 'rid-1')
    const { body } = await asked(device, 'rid-2')
    expect(body).toMatchObject({
      errorCode: 409_004,
      info: { ...accepted, requestId: 'rid-1' },
    })
    expect(await codeOf(device)).toBe(409_005)
    clock.advance(DELAY)
    expect(await answer(device)).toMatchObject({ status: 200, rid: 'rid-1' })
    expect(await asked(device, 'rid-2')).toMatchObject({ status: 202 })
    device.socket.destroy()
  })

  test.each(['*', 'rid-1'])('and replaces the one that is pending where it says so: %s', async (replace) => {
    await start()
    const device = await connected()
    await asked(device, 'rid-1')
    expect(await asked(device, 'rid-2', { replace })).toMatchObject({ status: 202 })
    clock.advance(DELAY)
    expect(await answer(device)).toMatchObject({ status: 200, rid: 'rid-2' })
    await nothingMore(device)
    expect(viaHub()).toHaveLength(1)
    device.socket.destroy()
  })

  test('to replace nothing: 412001, or another one: 412005, and the pending one stays', async () => {
    await start()
    const device = await connected()
    expect(await codeOf(device, { replace: '*' })).toBe(412_001)
    await asked(device, 'rid-1')
    expect(await codeOf(device, { replace: 'rid-9' }, 'rid-2')).toBe(412_005)
    expect(await codeOf(device, { replace: '*', csr: 'AAAA' }, 'rid-2')).toBe(400_037)
    clock.advance(DELAY)
    expect(await answer(device)).toMatchObject({ status: 200, rid: 'rid-1' })
    device.socket.destroy()
  })
})

describe('a fault of a renewal', () => {
  const started = async (): Promise<RawDevice> => {
    await start({}, { hubRenewal: { delayMs: 0 } })
    return connected()
  }
  const statuses = async (device: RawDevice, count: number): Promise<number[]> => {
    const seen: number[] = []
    while (seen.length < count) seen.push((await answer(device)).status)
    await nothingMore(device)
    return seen
  }

  test('ignore: the request gets no answer, the next one does', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew', do: 'ignore' })
    device.send(ask('rid-1'))
    await nothingMore(device)
    device.send(ask('rid-1'))
    expect(await statuses(device, 2)).toEqual([202, 200])
    device.socket.destroy()
  })

  test.each([
    [429, 429_002, 1],
    [500, 500_001, 300],
    [503, 503_001, 5],
    [403, 403_010, undefined],
    [409, 409_004, undefined],
    [412, 412_001, undefined],
  ])('%i as scripted', async (status, errorCode, retryAfter) => {
    const device = await started()
    emulator.faults.add({ at: 'renew', do: { reply: { status, errorCode, message: 'No.' } } })
    const { body, ...rest } = await asked(device, 'rid-1')
    expect(rest).toEqual({ status, rid: 'rid-1' })
    expect(body).toMatchObject({ errorCode, message: 'No.' })
    expect(body.retryAfter).toBe(retryAfter)
    await nothingMore(device)
    expect(viaHub()).toEqual([])
    device.socket.destroy()
  })

  test('202 twice', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-accepted', do: 'duplicate' })
    device.send(ask('rid-1'))
    expect(await statuses(device, 3)).toEqual([202, 202, 200])
    device.socket.destroy()
  })

  test('200 without 202', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-accepted', do: 'silence' })
    device.send(ask('rid-1'))
    expect(await statuses(device, 1)).toEqual([200])
    device.socket.destroy()
  })

  test('200 twice', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-reply', do: 'duplicate' })
    device.send(ask('rid-1'))
    expect(await statuses(device, 3)).toEqual([202, 200, 200])
    device.socket.destroy()
  })

  test('200 never: the request is done', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-reply', do: 'silence' })
    device.send(ask('rid-1'))
    expect(await statuses(device, 1)).toEqual([202])
    device.send(ask('rid-2'))
    expect(await statuses(device, 2)).toEqual([202, 200])
    device.socket.destroy()
  })

  test('200 never: the request stays pending', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-reply', do: { late: Number.POSITIVE_INFINITY } })
    device.send(ask('rid-1'))
    expect(await statuses(device, 1)).toEqual([202])
    expect((await asked(device, 'rid-2')).body).toMatchObject({ errorCode: 409_004 })
    device.send(ask('rid-2', { replace: '*' }))
    expect(await statuses(device, 2)).toEqual([202, 200])
    device.socket.destroy()
  })

  test('200 late, and also to a device that has come back meanwhile', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-reply', do: { late: 5000 }, times: Number.POSITIVE_INFINITY })
    device.send(ask('rid-1'))
    expect(await statuses(device, 1)).toEqual([202])
    clock.advance(4999)
    await nothingMore(device)
    clock.advance(1)
    expect(await statuses(device, 1)).toEqual([200])
    device.send(ask('rid-2'))
    expect(await statuses(device, 1)).toEqual([202])
    device.socket.destroy()
    await device.closed
    const back = await connected()
    await nothingMore(back)
    clock.advance(5000)
    expect(await statuses(back, 1)).toEqual([200])
    back.socket.destroy()
  })

  test('bare array', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-reply', do: 'bare-array' })
    await asked(device, 'rid-1')
    const { status, body } = await answer(device)
    expect(status).toBe(200)
    expect(Array.isArray(body)).toBe(true)
    expect(certificatesOf(body)[0]!.subject).toBe(`CN=${ID}`)
    device.socket.destroy()
  })

  test('wrong rid, of either answer', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-accepted', do: 'wrong-rid' })
    emulator.faults.add({ at: 'renew-reply', do: 'wrong-rid' })
    expect(await asked(device, 'rid-1')).toMatchObject({ status: 202, rid: 'not-rid-1' })
    expect(await answer(device)).toMatchObject({ status: 200, rid: 'not-rid-1' })
    device.socket.destroy()
  })

  test('body and topic as scripted, cut short and padded', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-accepted', do: { reply: { body: '{}' } } })
    emulator.faults.add({
      at: 'renew-reply',
      do: { reply: { topic: ({ rid }) => `$iothub/credentials/res/?$rid=${rid}` } },
    })
    expect((await asked(device, 'rid-1')).body).toEqual({})
    expect((await device.publishReply()).topic).toBe('$iothub/credentials/res/?$rid=rid-1')
    emulator.faults.add({ at: 'renew-accepted', do: { truncate: 5 } })
    emulator.faults.add({ at: 'renew-reply', do: { oversize: 200_000 } })
    device.send(ask('rid-2'))
    expect((await device.publishReply()).payload.toString()).toBe('{"cor')
    expect((await device.publishReply()).payload).toHaveLength(200_000)
    device.socket.destroy()
  })

  test('an error in place of the certificate', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew-reply', do: { reply: { status: 500, errorCode: 500_001 } } })
    await asked(device, 'rid-1')
    expect(await answer(device)).toMatchObject({ status: 500, body: { errorCode: 500_001 } })
    device.socket.destroy()
  })

  test.each(['renew-accepted', 'renew-reply'] as const)(
    'the connection ends at %s: the certificate comes on the next one',
    async (at) => {
      const device = await started()
      emulator.faults.add({ at, do: 'drop' })
      device.send(ask('rid-1'))
      if (at === 'renew-reply') expect(await answer(device)).toMatchObject({ status: 202 })
      expect(await device.next()).toBe(undefined)
      const back = await connected()
      expect(await answer(back)).toMatchObject({ status: 200, rid: 'rid-1' })
      back.socket.destroy()
    },
  )

  test('silence of the whole connection', async () => {
    const device = await started()
    emulator.faults.add({ at: 'renew', do: 'silence' })
    device.send(ask('rid-1'), { cmd: 'pingreq' })
    device.socket.end()
    expect(await device.next()).toBe(undefined)
  })

  test('lies about the certificate itself', async () => {
    const device = await started()
    emulator.faults.add({ at: 'issue', do: ['wrong-key', 'reversed'], match: { registrationId: ID } })
    await asked(device, 'rid-1')
    const chain = certificatesOf((await answer(device)).body.certificates)
    expect(chain[2]!.publicKey.equals(createPublicKey(second.publicKey))).toBe(false)
    emulator.faults.add({ at: 'issue', do: 'no-chain' })
    await asked(device, 'rid-1')
    expect((await answer(device)).body.certificates).toBe(null)
    device.socket.destroy()
  })
})

test('closing the emulator leaves no timer of a renewal behind', async () => {
  await start()
  const device = await connected()
  await asked(device, 'rid-1')
  expect(clock.pending).toBe(1)
  await emulator.close()
  expect(clock.pending).toBe(0)
  await device.closed
})

test('a delay that is none is refused', async () => {
  await expect(startEmulator({ pki, hubRenewal: { delayMs: -1 } })).rejects.toMatchObject({
    code: 'OPTION_INVALID',
    phase: 'config',
  })
})
