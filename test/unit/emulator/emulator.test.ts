import { spawnSync } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect as tcpConnect } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { build } from 'esbuild'
import { generate } from 'mqtt-packet'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type EmulatorOptions,
  generateSymmetricKey,
  issueCertificate,
  type Pki,
  startEmulator,
} from '../../../src/emulator/index.ts'
import {
  bodyOf,
  connackOf,
  connectPacket,
  dial,
  FILTER,
  ManualClock,
  pollPacket,
  publishPacket,
  ready,
  registerFully,
  registerPacket,
  sasToken,
  subscribePacket,
} from './raw-device.ts'

const KEY = generateSymmetricKey()
const SECONDARY = generateSymmetricKey()
const GROUP_KEY = generateSymmetricKey()
const ID = 'sensor-1'
const DAY = 86_400_000

let pki: Pki
beforeAll(async () => {
  pki = await createPki()
})

const sas = (id = ID, key = KEY) => ({ id, sas: sasToken({ key, id }) })

function enrolled(): EmulatorOptions['enrollments'] {
  return [
    { registrationId: ID, attestation: { symmetricKey: { primaryKey: KEY, secondaryKey: SECONDARY } } },
    { groupId: 'by-key', attestation: { symmetricKey: { primaryKey: GROUP_KEY } } },
    { groupId: 'by-ca', attestation: { x509: { ca: pki.deviceRoot.certPem } } },
  ]
}

async function using<T>(
  options: EmulatorOptions,
  body: (emulator: Emulator, events: EmulatorEvent[]) => Promise<T>,
): Promise<T> {
  const events: EmulatorEvent[] = []
  const emulator = await startEmulator({
    pki,
    enrollments: enrolled() ?? [],
    assigning: { retryAfterSeconds: 3 },
    onEvent: (event) => events.push(event),
    ...options,
  })
  try {
    return await body(emulator, events)
  } finally {
    await emulator.close()
    expect(emulator.openConnections).toBe(0)
  }
}

const reasons = (events: EmulatorEvent[]): string[] =>
  events.flatMap((event) => (event.type === 'refused' ? event.reason : []))
const rules = (events: EmulatorEvent[]): string[] =>
  events.flatMap((event) => (event.type === 'violation' ? event.rule : []))

describe('a registration', () => {
  test('by shared access signature, packet by packet', async () => {
    await using({}, async (emulator) => {
      const device = await ready(emulator, sas())
      device.send(registerPacket(ID, 'one'))
      expect(await device.next()).toMatchObject({ cmd: 'puback', messageId: 2 })
      const accepted = await device.publishReply()
      expect(accepted).toMatchObject({ qos: 0, topic: '$dps/registrations/res/202/?$rid=one&retry-after=3' })
      const { operationId, status } = bodyOf(accepted) as { operationId: string; status: string }
      expect(status).toBe('assigning')
      expect(operationId).toMatch(
        /^5\.[0-9a-f]{16}\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/,
      )

      device.send(pollPacket(operationId, 'two'))
      expect(await device.next()).toMatchObject({ cmd: 'puback' })
      const done = await device.publishReply()
      expect(done.topic).toBe('$dps/registrations/res/200/?$rid=two')
      expect(bodyOf(done)).toMatchObject({
        operationId,
        status: 'assigned',
        registrationState: {
          registrationId: ID,
          deviceId: ID,
          assignedHub: 'emulated-hub.azure-devices.net',
          status: 'assigned',
          substatus: 'initialAssignment',
          symmetricKey: {},
          createdDateTimeUtc: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z$/),
          lastUpdatedDateTimeUtc: expect.stringMatching(/\.\d{7}Z$/),
          etag: expect.stringMatching(/^".+"$/),
        },
      })
      device.send({ cmd: 'pingreq' })
      expect(await device.next()).toMatchObject({ cmd: 'pingresp' })
      device.send({ cmd: 'unsubscribe', messageId: 9, unsubscriptions: [FILTER] })
      expect(await device.next()).toMatchObject({ cmd: 'unsuback', messageId: 9 })
      device.send({ cmd: 'disconnect' })
      await device.closed
      expect(emulator.registrations.get(ID.toUpperCase())).toMatchObject({ deviceId: ID, count: 1 })
      expect(emulator.registrations.size).toBe(1)
    })
  })

  test('by X.509 group, and again after forgetting', async () => {
    await using({ assigning: { polls: 0, retryAfterSeconds: null } }, async (emulator) => {
      const identity = await emulator.issueDeviceCertificate({ registrationId: 'gate-1' })
      const device = await ready(emulator, { id: 'gate-1' }, identity)
      const body = await registerFully(device, 'gate-1')
      expect(body.registrationState).toMatchObject({ x509: {}, deviceId: 'gate-1' })
      await registerFully(device, 'gate-1')
      expect(emulator.registrations.get('gate-1')).toMatchObject({
        count: 2,
        enrollment: { groupId: 'by-ca' },
        substatus: 'initialAssignment',
      })
      emulator.registrations.forget('gate-1')
      expect(emulator.registrations.list()).toEqual([])
      device.socket.destroy()
    })
  })

  test('polls as often as told, without retry-after when told', async () => {
    await using({ assigning: { polls: 3, retryAfterSeconds: null } }, async (emulator) => {
      const device = await ready(emulator, sas())
      await registerFully(device, ID)
      const topics = emulator.log.packets.flatMap(({ direction, topic }) =>
        direction === 'out' && topic ? topic : [],
      )
      expect(topics.map((topic) => topic.split('/')[3])).toEqual(['202', '202', '202', '200'])
      expect(topics.join()).not.toContain('retry-after')
      device.socket.destroy()
    })
  })

  test('payload, custom allocation and device id of the enrollment', async () => {
    await using({ hubs: ['a.azure-devices.net', 'b.azure-devices.net'] }, async (emulator) => {
      emulator.enrollments.addIndividual({
        registrationId: ID,
        deviceId: 'Line-7',
        attestation: { symmetricKey: { primaryKey: KEY } },
        hub: ({ hubs, payload }) => hubs[Number(payload?.index ?? 0)],
        payload: ({ registrationId }) => ({ hello: registrationId }),
      })
      const device = await ready(emulator, sas())
      expect((await registerFully(device, ID, { payload: { index: 1 } })).registrationState).toMatchObject({
        deviceId: 'Line-7',
        assignedHub: 'b.azure-devices.net',
        payload: { hello: ID },
      })
      expect((await registerFully(device, ID, { payload: { index: 0 } })).registrationState).toMatchObject({
        assignedHub: 'a.azure-devices.net',
        substatus: 'deviceDataMigrated',
      })
      expect((await registerFully(device, ID, { payload: { index: 1 } })).registrationState).toMatchObject({
        substatus: 'reprovisionedToInitialAssignment',
      })
      expect((await registerFully(device, ID, { payload: { index: 7 } })).registrationState).toMatchObject({
        status: 'failed',
        errorCode: 400208,
      })
      device.socket.destroy()
    })
  })

  test.each([
    ['reset', 'b.azure-devices.net', 'deviceDataReset'],
    ['never', 'a.azure-devices.net', 'initialAssignment'],
  ] as const)('reprovisioning %s', async (reprovisioning, assignedHub, substatus) => {
    await using({ assigning: { polls: 0 }, hubs: ['a.azure-devices.net'] }, async (emulator) => {
      const device = await ready(emulator, sas())
      await registerFully(device, ID)
      device.socket.destroy()
      emulator.enrollments.addIndividual({
        registrationId: ID,
        attestation: { symmetricKey: { primaryKey: KEY } },
        hub: 'b.azure-devices.net',
        reprovisioning,
      })
      const again = await ready(emulator, sas())
      expect((await registerFully(again, ID)).registrationState).toMatchObject({ assignedHub, substatus })
      again.socket.destroy()
    })
  })

  test('an allocation that throws fails with 400207', async () => {
    await using({ assigning: { polls: 0 } }, async (emulator) => {
      emulator.enrollments.addIndividual({
        registrationId: ID,
        attestation: { symmetricKey: { primaryKey: KEY } },
        hub: () => {
          throw new Error('no')
        },
      })
      const device = await ready(emulator, sas())
      expect(await registerFully(device, ID)).toMatchObject({
        status: 'failed',
        registrationState: { errorCode: 400207 },
      })
      device.socket.destroy()
    })
  })

  test('CONNECT, SUBSCRIBE and PUBLISH in one write', async () => {
    await using({ assigning: { polls: 0 } }, async (emulator) => {
      const device = await dial(emulator)
      device.send(connectPacket(sas()), subscribePacket(), registerPacket(ID))
      expect((await device.next())?.cmd).toBe('connack')
      expect((await device.next())?.cmd).toBe('suback')
      expect((await device.next())?.cmd).toBe('puback')
      expect(bodyOf(await device.publishReply())).toMatchObject({ status: 'assigned' })
      device.socket.destroy()
    })
  })

  test('replies at QoS 1 when asked for, QoS 0 to a QoS 0 subscriber', async () => {
    await using({ replyQos: 1, assigning: { polls: 0 } }, async (emulator) => {
      const device = await ready(emulator, sas())
      device.send(registerPacket(ID, 'r', {}, { qos: 0 }))
      const reply = await device.publishReply()
      expect(reply).toMatchObject({ qos: 1, messageId: 1 })
      device.send({ cmd: 'puback', messageId: 1 })
      device.send(subscribePacket(FILTER, 0))
      expect(await device.next()).toMatchObject({ cmd: 'suback', granted: [0] })
      device.send(registerPacket(ID, 'r', {}, { qos: 0 }))
      expect((await device.publishReply()).qos).toBe(0)
      device.socket.destroy()
    })
  })

  test('nothing is answered to a device that has not subscribed', async () => {
    await using({ assigning: { polls: 0 } }, async (emulator) => {
      const device = await dial(emulator)
      device.send(connectPacket(sas()), registerPacket(ID), { cmd: 'pingreq' })
      expect((await device.next())?.cmd).toBe('connack')
      expect((await device.next())?.cmd).toBe('puback')
      expect((await device.next())?.cmd).toBe('pingresp')
      expect(emulator.registrations.size).toBe(1)
      device.socket.destroy()
    })
  })

  test('the operation outlives its connection', async () => {
    await using({}, async (emulator) => {
      const first = await ready(emulator, sas())
      first.send(registerPacket(ID, 'a', {}, { qos: 0 }))
      const { operationId } = bodyOf(await first.publishReply()) as { operationId: string }
      first.socket.destroy()
      const second = await ready(emulator, sas())
      second.send(pollPacket(operationId, 'b', { qos: 0 }))
      expect(bodyOf(await second.publishReply())).toMatchObject({ status: 'assigned', operationId })
      second.send(pollPacket(operationId, 'c', { qos: 0 }))
      expect(bodyOf(await second.publishReply())).toMatchObject({ status: 'assigned', operationId })
      second.send(pollPacket('5.0.unknown', 'd', { qos: 0 }))
      const missing = await second.publishReply()
      expect(missing.topic).toBe('$dps/registrations/res/404/?$rid=d')
      expect(bodyOf(missing)).toMatchObject({
        errorCode: 404202,
        trackingId: expect.any(String),
        timestampUtc: expect.stringMatching(/\.\d{7}Z$/),
      })
      second.socket.destroy()
    })
  })

  test.each([
    ['conflict', '409'],
    ['allow', '202'],
  ] as const)('two at once from two connections: %s', async (concurrentRegistrations, status) => {
    await using({ concurrentRegistrations }, async (emulator) => {
      const [first, second] = [await ready(emulator, sas()), await ready(emulator, sas())]
      first.send(registerPacket(ID, 'a', {}, { qos: 0 }))
      const { operationId } = bodyOf(await first.publishReply())
      second.send(registerPacket(ID, 'b', {}, { qos: 0 }))
      const reply = await second.publishReply()
      expect(reply.topic).toContain(`/res/${status}/?$rid=b`)
      if (status === '409') expect(bodyOf(reply)).toMatchObject({ errorCode: 409203 })
      // A register repeated on its own connection is the same operation.
      if (status === '409') {
        first.send(registerPacket(ID, 'c', {}, { qos: 0 }))
        expect(bodyOf(await first.publishReply()).operationId).toBe(operationId)
      }
      first.socket.destroy()
      second.socket.destroy()
    })
  })

  test('after the other connection has gone, a new registration starts over', async () => {
    await using({}, async (emulator) => {
      const first = await ready(emulator, sas())
      first.send(registerPacket(ID, 'a', {}, { qos: 0 }))
      await first.publishReply()
      first.send({ cmd: 'disconnect' })
      await first.closed
      const second = await ready(emulator, sas())
      expect(await registerFully(second, ID)).toMatchObject({ status: 'assigned' })
      second.socket.destroy()
    })
  })

  test('more than five polls in ten seconds are throttled, by the clock', async () => {
    const clock = new ManualClock()
    await using({ clock, pollLimit: true, assigning: { polls: 100 } }, async (emulator) => {
      const device = await ready(emulator, sas())
      device.send(registerPacket(ID, 'a', {}, { qos: 0 }))
      const operationId = bodyOf(await device.publishReply()).operationId as string
      const poll = async (): Promise<string> => {
        device.send(pollPacket(operationId, 'p', { qos: 0 }))
        return (await device.publishReply()).topic
      }
      for (let count = 0; count < 5; count += 1) expect(await poll()).toContain('/res/202/')
      expect(await poll()).toBe('$dps/registrations/res/429/?$rid=p&retry-after=3')
      clock.advance(10_000)
      expect(await poll()).toContain('/res/202/')
      device.socket.destroy()
    })
  })
})

describe('disabled and removed enrollments', () => {
  test('a disabled one is refused at connect, and enabled again is not', async () => {
    await using({}, async (emulator, events) => {
      emulator.enrollments.disable({ registrationId: ID })
      expect(await connackOf(emulator, sas())).toBe(5)
      expect(reasons(events)).toEqual(['enrollment-disabled'])
      emulator.enrollments.enable({ registrationId: ID })
      expect(await connackOf(emulator, sas())).toBe(0)
      expect(emulator.enrollments.remove({ registrationId: ID })).toBe(true)
      expect(emulator.enrollments.remove({ registrationId: ID })).toBe(false)
      expect(await connackOf(emulator, sas())).toBe(5)
      expect(emulator.enrollments.list()).toEqual([
        { groupId: 'by-key', attestation: 'symmetricKey', enabled: true },
        { groupId: 'by-ca', attestation: 'x509', enabled: true },
      ])
    })
  })

  test('a disabled one can be reported as the outcome', async () => {
    await using({ disabledEnrollment: 'report' }, async (emulator) => {
      emulator.enrollments.disable({ registrationId: ID })
      const device = await ready(emulator, sas())
      expect(await registerFully(device, ID)).toMatchObject({
        status: 'disabled',
        registrationState: { status: 'disabled' },
      })
      device.socket.destroy()
    })
  })

  test('one removed after connect is refused with 401002', async () => {
    await using({}, async (emulator) => {
      const device = await ready(emulator, sas())
      emulator.enrollments.remove({ registrationId: ID })
      expect(await registerFully(device, ID)).toMatchObject({ errorCode: 401002 })
      device.socket.destroy()
    })
  })

  test('ids that do not exist, keys that are none, options out of range', async () => {
    const invalid = { code: 'OPTION_INVALID', phase: 'config' }
    await using({}, async (emulator) => {
      const { enrollments } = emulator
      const error = (run: () => unknown): unknown => {
        try {
          return run()
        } catch (thrown) {
          return thrown
        }
      }
      expect(error(() => enrollments.disable({ groupId: 'none' }))).toMatchObject(invalid)
      const symmetricKey = { primaryKey: 'not base64' }
      expect(
        error(() => enrollments.addGroup({ groupId: 'g', attestation: { symmetricKey } })),
      ).toMatchObject(invalid)
      const leaf = pki.server.certPem
      expect(
        error(() => enrollments.addGroup({ groupId: 'g', attestation: { x509: { ca: leaf } } })),
      ).toMatchObject(invalid)
      expect(
        error(() =>
          enrollments.addIndividual({ registrationId: 'no/slash', attestation: { symmetricKey: {} } }),
        ),
      ).toMatchObject(invalid)
    })
    await expect(startEmulator({ port: 70_000, pki })).rejects.toMatchObject(invalid)
    await expect(startEmulator({ hubs: [], pki })).rejects.toMatchObject(invalid)
    await expect(startEmulator({ assigning: { polls: -1 }, pki })).rejects.toMatchObject(invalid)
  })
})

describe('shared access signatures', () => {
  let emulator: Emulator
  let events: EmulatorEvent[] = []
  beforeAll(async () => {
    emulator = await startEmulator({ pki, enrollments: enrolled()!, onEvent: (event) => events.push(event) })
  })
  afterAll(() => emulator.close())

  const resource = `0ne00000000/registrations/${ID}`
  test.each([
    ['percent-encoded, upper case', encodeURIComponent(resource)],
    ['percent-encoded, lower case', encodeURIComponent(resource).replace(/%2F/g, '%2f')],
    ['not encoded', resource],
    ['lower-cased as a whole', encodeURIComponent(resource).toLowerCase()],
  ])('accepted with a resource %s', async (_, text) => {
    expect(await connackOf(emulator, { id: ID, sas: sasToken({ key: KEY, id: ID, resource: text }) })).toBe(0)
  })

  test('accepted under the secondary key and in another field order', async () => {
    expect(await connackOf(emulator, sas(ID, SECONDARY))).toBe(0)
    const [sr, sig, se, skn] = sasToken({ key: KEY, id: ID })
      .slice('SharedAccessSignature '.length)
      .split('&')
    expect(
      await connackOf(emulator, { id: ID, sas: `SharedAccessSignature ${skn}&${se}&${sig}&${sr}` }),
    ).toBe(0)
  })

  test('accepted under a key derived from a group key, of the id as given', async () => {
    const derived = createHmac('sha256', Buffer.from(GROUP_KEY, 'base64')).update('Meter-9').digest('base64')
    expect(await connackOf(emulator, sas('Meter-9', derived))).toBe(0)
    expect(await connackOf(emulator, sas('meter-9', derived))).toBe(5)
  })

  const token = sasToken({ key: KEY, id: ID })
  test.each([
    ['an unknown key', sasToken({ key: generateSymmetricKey(), id: ID }), 'sas-signature-wrong'],
    ['an expiry in the past', sasToken({ key: KEY, id: ID, expiresAt: 1_600_000_000 }), 'sas-expired'],
    ['another key name', sasToken({ key: KEY, id: ID, keyName: 'device' }), 'sas-key-name-wrong'],
    ['no key name', token.replace('&skn=registration', ''), 'sas-key-name-wrong'],
    [
      'a resource of another device',
      sasToken({ key: KEY, id: ID, resource: '0ne00000000%2Fregistrations%2Fother' }),
      'sas-resource-wrong',
    ],
    [
      'a resource of another scope',
      sasToken({ key: KEY, id: ID, scope: '0ne0000000F' }),
      'sas-resource-wrong',
    ],
    [
      'a doubly encoded resource',
      sasToken({ key: KEY, id: ID, resource: encodeURIComponent(encodeURIComponent(resource)) }),
      'sas-resource-wrong',
    ],
    [
      'an expiry changed after signing',
      token.replace('se=4000000000', 'se=4000000001'),
      'sas-signature-wrong',
    ],
    ['a signature that is not percent-encoded', decodeURIComponent(token), 'sas-malformed'],
    ['a field twice', `${token}&se=4000000000`, 'sas-malformed'],
    ['an unknown field', `${token}&extra=1`, 'sas-malformed'],
    ['no signature', token.replace(/&sig=[^&]+/, ''), 'sas-malformed'],
    ['an expiry that is no number', token.replace('se=4000000000', 'se=soon'), 'sas-malformed'],
    ['no scheme', token.slice('SharedAccessSignature '.length), 'sas-malformed'],
  ])('refused with %s', async (_, text, reason) => {
    events = []
    expect(await connackOf(emulator, { id: ID, sas: text })).toBe(5)
    expect(reasons(events)).toEqual([reason])
    expect(JSON.stringify([events, emulator.log.packets])).not.toContain('sig=')
  })
})

describe('X.509', () => {
  let emulator: Emulator
  let events: EmulatorEvent[] = []
  beforeAll(async () => {
    emulator = await startEmulator({ pki, enrollments: enrolled()!, onEvent: (event) => events.push(event) })
  })
  afterAll(() => emulator.close())

  const outcome = async (
    id: string,
    identity: { cert?: string; key?: string },
  ): Promise<[number | 'closed', string[]]> => {
    events = []
    return [await connackOf(emulator, { id }, identity), reasons(events)]
  }
  const device = async (options: Partial<Parameters<typeof issueCertificate>[0]> = {}) => {
    const issued = await issueCertificate({
      subject: 'x-1',
      issuer: pki.deviceIntermediate,
      eku: ['clientAuth'],
      ...options,
    })
    return { cert: issued.chainPem, key: issued.keyPem }
  }

  test.each(['ec-p256', 'ec-p384', 'rsa-2048'] as const)(
    'accepted with a %s key under the group',
    async (keyType) => {
      const identity = await emulator.issueDeviceCertificate({ registrationId: 'X-1', keyType })
      expect(await outcome('x-1', identity)).toEqual([0, []])
    },
  )

  test('accepted with an empty password, without EKU, and with the root sent along', async () => {
    const identity = await device()
    const withPassword = { id: 'x-1', packet: { password: Buffer.alloc(0) } }
    expect(await connackOf(emulator, withPassword, identity)).toBe(0)
    const plain = await issueCertificate({ subject: 'x-1', issuer: pki.deviceIntermediate })
    expect(await outcome('x-1', { cert: plain.chainPem, key: plain.keyPem })).toEqual([0, []])
    expect(await outcome('x-1', { ...identity, cert: identity.cert + pki.deviceRoot.certPem })).toEqual([
      0,
      [],
    ])
  })

  test('accepted as an individual enrollment, primary or secondary, whoever signed it', async () => {
    const [primary, secondary, third] = await Promise.all(
      [0, 1, 2].map(() => issueCertificate({ subject: 'lone' })),
    )
    emulator.enrollments.addIndividual({
      registrationId: 'lone',
      attestation: { x509: { certificate: primary!.certPem, secondary: secondary!.certPem } },
    })
    for (const { certPem, keyPem } of [primary!, secondary!]) {
      expect(await outcome('lone', { cert: certPem, key: keyPem })).toEqual([0, []])
    }
    expect(await outcome('lone', { cert: third!.certPem, key: third!.keyPem })).toEqual([
      5,
      ['certificate-chain-unknown'],
    ])
    emulator.enrollments.remove({ registrationId: 'lone' })
    expect((await outcome('lone', { cert: primary!.certPem, key: primary!.keyPem }))[0]).toBe(5)
  })

  test('accepted where the group names the intermediate; the nearest group decides, even if disabled', async () => {
    const identity = await device()
    emulator.enrollments.addGroup({
      groupId: 'nearest',
      attestation: { x509: { ca: pki.deviceIntermediate.certPem } },
      enabled: false,
    })
    expect(await outcome('x-1', identity)).toEqual([5, ['enrollment-disabled']])
    emulator.enrollments.enable({ groupId: 'nearest' })
    expect(
      await outcome('x-1', {
        ...identity,
        cert: `${identity.cert.split('-----END CERTIFICATE-----\n')[0]}-----END CERTIFICATE-----\n`,
      }),
    ).toEqual([0, []])
    emulator.enrollments.remove({ groupId: 'nearest' })
    expect(await outcome('x-1', identity)).toEqual([0, []])
  })

  test('refused without a certificate', async () => {
    expect(await outcome('x-1', {})).toEqual([5, ['credential-missing']])
  })

  test('refused with another common name', async () => {
    expect(await outcome('x-2', await device())).toEqual([5, ['certificate-name-wrong']])
  })

  test('refused when expired', async () => {
    const identity = await device({
      notBefore: new Date(Date.now() - 2 * DAY),
      notAfter: new Date(Date.now() - DAY),
    })
    expect(await outcome('x-1', identity)).toEqual([5, ['certificate-expired']])
  })

  test('refused before it is valid', async () => {
    const identity = await device({ notBefore: new Date(Date.now() + DAY) })
    expect(await outcome('x-1', identity)).toEqual([5, ['certificate-not-yet-valid']])
  })

  test('refused when its intermediate has expired', async () => {
    const old = { notBefore: new Date(Date.now() - 2 * DAY), notAfter: new Date(Date.now() - DAY) }
    const issuer = await issueCertificate({ subject: 'old', issuer: pki.deviceRoot, ca: true, ...old })
    expect(await outcome('x-1', await device({ issuer }))).toEqual([5, ['certificate-expired']])
  })

  test('refused with a server certificate', async () => {
    expect(await outcome('x-1', await device({ eku: ['serverAuth'] }))).toEqual([
      5,
      ['certificate-purpose-wrong'],
    ])
  })

  test('refused without its intermediate', async () => {
    const leaf = await issueCertificate({ subject: 'x-1', issuer: pki.deviceIntermediate })
    expect(await outcome('x-1', { cert: leaf.certPem, key: leaf.keyPem })).toEqual([
      5,
      ['certificate-chain-unknown'],
    ])
  })

  test('refused under a rogue authority of the same names', async () => {
    const root = await issueCertificate({ subject: 'Emulator Device Root', ca: true })
    const issuer = await issueCertificate({ subject: 'Emulator Device CA', issuer: root, ca: true })
    const rogue = await device({ issuer })
    expect(await outcome('x-1', rogue)).toEqual([5, ['certificate-chain-unknown']])
    // With the true intermediate beside it the names fit, but not the signature.
    const [leaf] = rogue.cert.split('-----END CERTIFICATE-----\n')
    const mixed = `${leaf}-----END CERTIFICATE-----\n${pki.deviceIntermediate.certPem}`
    expect(await outcome('x-1', { ...rogue, cert: mixed })).toEqual([5, ['certificate-chain-unknown']])
  })

  test('refused when an intermediate says it is no authority, whatever its key usage', async () => {
    const issuer = await issueCertificate({
      subject: 'no ca',
      issuer: pki.deviceIntermediate,
      keyUsage: ['keyCertSign'],
    })
    expect(await outcome('x-1', await device({ issuer }))).toEqual([5, ['certificate-chain-unknown']])
  })

  test('refused when an intermediate has no right to sign', async () => {
    const issuer = await issueCertificate({ subject: 'no ca', issuer: pki.deviceIntermediate })
    expect(await outcome('x-1', await device({ issuer }))).toEqual([5, ['certificate-chain-unknown']])
  })

  test('a resumed session still says who the device is, chain included', async () => {
    const identity = await emulator.issueDeviceCertificate({ registrationId: 'again' })
    const first = await ready(emulator, { id: 'again' }, identity)
    const { ticket } = first
    expect(ticket).toBeDefined()
    first.socket.destroy()
    await first.closed
    const resumed = await ready(emulator, { id: 'again' }, { ...identity, session: ticket! })
    expect(resumed.socket.isSessionReused()).toBe(true)
    expect(await registerFully(resumed, 'again')).toMatchObject({ status: 'assigned' })
    expect(emulator.log.connections.at(-1)).toMatchObject({
      handshake: { resumed: true, clientCertificate: { subject: 'CN=again', intermediates: 1 } },
    })
    resumed.socket.destroy()
    expect(await connackOf(emulator, { id: 'someone-else' }, { session: ticket! })).toBe(5)
  })
})

describe('CONNECT', () => {
  const user = (text: string) => ({ ...sas(), userName: text })
  const good = `0ne00000000/registrations/${ID}/api-version=2019-03-31`
  test.each([
    ['plain', good, 0],
    ['with a client version', `${good}&ClientVersion=azure-iot-provisioning-device%2F1.9.1`, 0],
    ['with a later version', good.replace('2019-03-31', '2025-07-01-preview'), 0],
    ['another scope', good.replace('0ne00000000', '0ne0000000F'), 5],
    ['a question mark', good.replace('/api', '/?api'), 4],
    ['no version', `0ne00000000/registrations/${ID}`, 4],
    ['an unknown version', good.replace('2019-03-31', '2023-02-01-preview'), 4],
    ['a version from the prototype', good.replace('2019-03-31', 'constructor'), 4],
    ['another field', `${good}&model-id=dtmi:x;1`, 4],
    ['an empty one', '', 4],
    ['another id than the client id', good.replace(ID, 'other'), 2],
  ])('user name %s', async (_, text, code) => {
    await using({}, async (emulator) => {
      expect(await connackOf(emulator, user(text))).toBe(code)
    })
  })

  test.each([
    ['MQTT 5', { protocolVersion: 5 as const }, 1],
    ['MQTT 3.1', { protocolVersion: 3 as const, protocolId: 'MQIsdp' as const }, 1],
    ['a will', { will: { topic: 'x', payload: Buffer.from('y') } }, 'closed'],
    ['a session to keep', { clean: false }, 0],
  ])('%s', async (_, packet, result) => {
    await using({}, async (emulator) => {
      expect(await connackOf(emulator, { ...sas(), packet })).toBe(result)
    })
  })

  test.each([
    ['bad/id', 4],
    ['ends-with.', 2],
    ['x'.repeat(129), 2],
    ['späße', 2],
    ['', 4],
  ])('refuses the registration id %s', async (id, code) => {
    await using({}, async (emulator) => {
      expect(await connackOf(emulator, { id, sas: 'x' })).toBe(code)
    })
  })

  test('a password without a user name', async () => {
    await using({}, async (emulator, events) => {
      const device = await dial(emulator)
      device.send(Buffer.from('\x10\x10\x00\x04MQTT\x04\x42\x00\x00\x00\x01a\x00\x01b', 'latin1'))
      expect(await device.next()).toBeUndefined()
      expect(rules(events)).toEqual(['A password needs a user name [MQTT-3.1.2-22].'])
    })
  })

  test('a device that is not enrolled', async () => {
    await using({ enrollments: [] }, async (emulator, events) => {
      expect(await connackOf(emulator, sas())).toBe(5)
      expect(reasons(events)).toEqual(['not-enrolled'])
    })
  })

  test('what follows a refused CONNECT is not processed', async () => {
    await using({}, async (emulator) => {
      const device = await dial(emulator)
      device.send(connectPacket(sas(ID, generateSymmetricKey())), subscribePacket(), registerPacket(ID))
      expect(await device.next()).toMatchObject({ cmd: 'connack', returnCode: 5 })
      expect(await device.next()).toBeUndefined()
      expect(emulator.log.packets.map(({ type }) => type)).toEqual(['connect', 'connack'])
    })
  })

  test('bytes after its last field, and a packet before it', async () => {
    await using({}, async (emulator, events) => {
      const bytes = generate(connectPacket({ ...sas() }))
      const padded = Buffer.concat([bytes, Buffer.of(0)])
      // The remaining length takes two bytes here; its low seven bits have room for one more.
      padded[1] = padded[1]! + 1
      const device = await dial(emulator)
      device.send(padded)
      expect(await device.next()).toBeUndefined()
      const other = await dial(emulator)
      other.send(connectPacket(sas()), connectPacket(sas()))
      expect((await other.next())?.cmd).toBe('connack')
      expect(await other.next()).toBeUndefined()
      expect(rules(events)).toEqual([
        'CONNECT holds exactly the announced fields, in UTF-8 [MQTT-1.5.3-1].',
        'CONNECT may be sent once [MQTT-3.1.0-2].',
      ])
    })
  })

  test('a service that takes nothing before CONNACK', async () => {
    await using({ pipelining: 'drop', assigning: { polls: 0 } }, async (emulator, events) => {
      const hasty = await dial(emulator)
      hasty.send(connectPacket(sas()), subscribePacket())
      expect(await hasty.next()).toBeUndefined()
      const half = await dial(emulator)
      half.send(connectPacket(sas()), Buffer.of(0x82))
      expect(await half.next()).toBeUndefined()
      expect(rules(events)).toHaveLength(2)
      const patient = await ready(emulator, sas())
      expect(await registerFully(patient, ID)).toMatchObject({ status: 'assigned' })
      patient.socket.destroy()
    })
  })

  test('keep-alive is enforced at one and a half times, by the clock', async () => {
    const clock = new ManualClock()
    await using({ clock }, async (emulator, events) => {
      const device = await ready(emulator, { ...sas(), packet: { keepalive: 10 } })
      clock.advance(14_999)
      device.send({ cmd: 'pingreq' })
      expect((await device.next())?.cmd).toBe('pingresp')
      clock.advance(14_999)
      expect(rules(events)).toEqual([])
      clock.advance(1)
      expect(await device.next()).toBeUndefined()
      expect(rules(events)[0]).toContain('keep-alive')

      const other = await ready(emulator, { ...sas(), packet: { keepalive: 10 } })
      expect(clock.pending).toBe(1)
      other.send({ cmd: 'disconnect' })
      await other.closed
      expect(clock.pending).toBe(0)
    })
  })
})

describe('SUBSCRIBE', () => {
  test.each(['#', '$dps/#', '$dps/registrations/res/200/#', 'devices/x/messages/devicebound/#'])(
    '%s is refused',
    async (topic) => {
      await using({}, async (emulator) => {
        const device = await ready(emulator, sas())
        device.send(subscribePacket(topic))
        expect(await device.next()).toMatchObject({ cmd: 'suback', granted: [0x80] })
        device.socket.destroy()
      })
    },
  )

  test('QoS 2 is granted as 1', async () => {
    await using({}, async (emulator) => {
      const device = await ready(emulator, sas())
      device.send(subscribePacket(FILTER, 2))
      expect(await device.next()).toMatchObject({ cmd: 'suback', granted: [1] })
      device.socket.destroy()
    })
  })
})

describe('PUBLISH closes the connection', () => {
  const topic = '$dps/registrations/PUT/iotdps-register/?$rid=1'
  const status = '$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1'
  const body = JSON.stringify({ registrationId: ID })
  test.each([
    ['at QoS 2', publishPacket(topic, body, { qos: 2 })],
    ['with retain', publishPacket(topic, body, { retain: true })],
    ['to another topic', publishPacket('devices/x/messages/events/', body)],
    ['without a query', publishPacket('$dps/registrations/PUT/iotdps-register/', body)],
    ['without $rid', publishPacket(topic.replace('$rid', 'rid'), body)],
    ['with an empty $rid', publishPacket(topic.replace('=1', '='), body)],
    ['with $rid twice', publishPacket(`${topic}&$rid=2`, body)],
    ['with a field too many', publishPacket(`${topic}&operationId=5`, body)],
    ['with a field too many when polling', publishPacket(`${status}&operationId=5&x=1`, body)],
    ['with other methods swapped', publishPacket(topic.replace('PUT', 'GET'), body)],
    ['not ASCII', publishPacket(`${topic}ü`, body)],
  ])('%s', async (_, packet) => {
    await using({}, async (emulator, events) => {
      const device = await ready(emulator, sas())
      device.send(packet)
      expect(await device.next()).toBeUndefined()
      expect(rules(events)).toHaveLength(1)
      expect(emulator.registrations.size).toBe(0)
    })
  })

  test.each([
    ['SUBSCRIBE without packet identifier', Buffer.of(0x82, 6, 0, 0, 0, 1, 0x23, 1)],
    ['UNSUBSCRIBE without packet identifier', Buffer.of(0xa2, 5, 0, 0, 0, 1, 0x23)],
    [
      'PUBLISH at QoS 1 without packet identifier',
      Buffer.concat([
        Buffer.of(0x32, topic.length + 4, 0, topic.length),
        Buffer.from(topic),
        Buffer.of(0, 0),
      ]),
    ],
    [
      'a whole packet that is just too large',
      generate(publishPacket(topic, 'x'.repeat(131_072 - topic.length), { qos: 0 })),
    ],
    ['a packet of a server', Buffer.of(0x20, 2, 0, 0)],
    ['reserved flags', Buffer.of(0x83, 0)],
    ['reserved type', Buffer.of(0xf0, 0)],
    [
      'a packet that announces 200 MB and sends 200 KB',
      Buffer.concat([Buffer.of(0x30, 0x80, 0x80, 0x80, 0x60), Buffer.alloc(200_000)]),
    ],
  ])('%s', async (_, bytes) => {
    await using({}, async (emulator, events) => {
      const device = await ready(emulator, sas())
      device.send(bytes)
      expect(await device.next()).toBeUndefined()
      expect(rules(events)).toHaveLength(1)
    })
  })
})

describe('register body', () => {
  const topic = '$dps/registrations/PUT/iotdps-register/?$rid=1'
  test.each<[string, string | Buffer]>([
    ['not JSON', '{"registrationId":'],
    ['not an object', '[]'],
    ['empty', ''],
    [
      'not UTF-8',
      Buffer.concat([
        Buffer.from(`{"registrationId":"${ID}","payload":{"a":"`),
        Buffer.of(0xff),
        Buffer.from('"}}'),
      ]),
    ],
    ['with a byte order mark', `\ufeff{"registrationId":"${ID}"}`],
    ['without registration id', '{}'],
    ['of another device', '{"registrationId":"other"}'],
    ['in another case', `{"registrationId":"${ID.toUpperCase()}"}`],
    ['with an unknown field', `{"registrationId":"${ID}","extra":1}`],
    ['with a TPM', `{"registrationId":"${ID}","tpm":{}}`],
    ['with a payload that is a list', `{"registrationId":"${ID}","payload":[]}`],
    ['with a payload that is text', `{"registrationId":"${ID}","payload":"x"}`],
    ['with a CSR the version does not know', `{"registrationId":"${ID}","csr":"AAAA"}`],
  ])('%s is refused with 400', async (_, text) => {
    await using({}, async (emulator) => {
      const device = await ready(emulator, sas())
      device.send(publishPacket(topic, text, { qos: 0 }))
      const reply = await device.publishReply()
      expect(reply.topic).toBe('$dps/registrations/res/400/?$rid=1')
      expect(bodyOf(reply)).toMatchObject({ errorCode: 400000, message: expect.any(String) })
      device.socket.destroy()
    })
  })

  test.each([
    ['a null payload', '2019-03-31', { payload: null }],
    ['a payload', '2019-03-31', { payload: { a: 'ü' } }],
    ['a null CSR in a version that knows it', '2025-07-01-preview', { csr: null }],
  ])('%s is taken', async (_, apiVersion, extra) => {
    await using({}, async (emulator) => {
      const device = await ready(emulator, { ...sas(), apiVersion })
      expect(await registerFully(device, ID, extra)).toMatchObject({ status: 'assigned' })
      device.socket.destroy()
    })
  })
})

describe('connections', () => {
  test('several ports, the ClientHello byte for byte, TLS facts, SNI', async () => {
    await using({ port: [0, 0] }, async (emulator) => {
      expect(new Set(emulator.ports).size).toBe(2)
      expect(emulator.port).toBe(emulator.ports[0])
      const device = await dial(emulator, { port: emulator.ports[1]!, ciphers: 'ECDHE-RSA-AES128-SHA256' })
      const [record] = emulator.log.connections
      expect(record).toMatchObject({
        id: 1,
        port: emulator.ports[1],
        handshake: {
          protocol: 'TLSv1.2',
          cipher: 'ECDHE-RSA-AES128-SHA256',
          resumed: false,
          serverName: emulator.host,
          clientCertificate: undefined,
        },
      })
      const hello = record!.clientHello
      expect(hello[0]).toBe(22)
      expect(hello.length).toBe(5 + hello.readUInt16BE(3))
      expect(hello.includes(Buffer.from(emulator.host))).toBe(true)
      device.socket.destroy()
    })
  })

  test('a ClientHello that arrives in pieces is whole in the log, and TLS completes', async () => {
    await using({}, async (emulator) => {
      const { connect } = await import('node:tls')
      const { Duplex } = await import('node:stream')
      const raw = tcpConnect(emulator.port, '127.0.0.1')
      raw.on('error', () => undefined)
      raw.setNoDelay(true)
      const slow = new Duplex({
        read: () => undefined,
        write: (chunk: Buffer, _encoding, done) => {
          const step = (at: number): void => {
            if (at >= chunk.length) done()
            else raw.write(chunk.subarray(at, at + 3), () => setImmediate(step, at + 3))
          }
          step(0)
        },
        final: (done) => {
          raw.end()
          done()
        },
      })
      raw.on('data', (chunk) => slow.push(chunk))
      const socket = connect({ socket: slow, servername: emulator.host, ca: emulator.roots[0] })
      socket.on('error', () => undefined)
      await new Promise((resolve) => socket.once('secureConnect', resolve))
      const [record] = emulator.log.connections
      expect(record!.clientHello.length).toBe(5 + record!.clientHello.readUInt16BE(3))
      socket.destroy()
      raw.destroy()
    })
  })

  test('TLS 1.1 and 1.3 only are not spoken by default; a TLS 1.1 service can be played', async () => {
    await using({}, async (emulator) => {
      const device = await dial(emulator, { minVersion: 'TLSv1.3' })
      await device.closed
      expect(device.error).toBe('ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION')
      expect(emulator.log.connections[0]!.handshakeError).toBe('ERR_SSL_UNSUPPORTED_PROTOCOL')
    })
    const old = { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' } as const
    await using({ tls: old }, async (emulator) => {
      const device = await dial(emulator, old)
      expect(device.socket.getProtocol()).toBe('TLSv1.1')
      device.socket.destroy()
      const modern = await dial(emulator)
      await modern.closed
      expect(modern.error).toBeDefined()
    })
  })

  test('another server certificate can be presented', async () => {
    const liar = await issueCertificate({ subject: 'evil.example', sans: ['evil.example'] })
    await using(
      { serverCertificate: { cert: liar.chainPem, key: liar.keyPem }, tls: { ciphers: 'DEFAULT' } },
      async (emulator) => {
        const device = await dial(emulator)
        await device.closed
        expect(device.error).toBe('DEPTH_ZERO_SELF_SIGNED_CERT')
      },
    )
  })

  test.each([
    ['plain HTTP', 'GET / HTTP/1.1\r\n\r\n'],
    ['a handshake that never is one', Buffer.concat([Buffer.of(22, 3, 1, 0, 4), Buffer.from([2, 0, 0, 0])])],
  ])('%s instead of TLS is closed', async (_, bytes) => {
    await using({}, async (emulator) => {
      const socket = tcpConnect(emulator.port, '127.0.0.1')
      socket.on('error', () => undefined)
      socket.resume()
      socket.write(bytes)
      await new Promise((resolve) => socket.once('close', resolve))
      expect(emulator.log.connections[0]!.clientHello).toHaveLength(0)
    })
  })

  test('something else than MQTT inside TLS is closed', async () => {
    await using({}, async (emulator, events) => {
      const device = await dial(emulator)
      device.send(Buffer.of(0x30, 0))
      expect(await device.next()).toBeUndefined()
      expect(rules(events)).toHaveLength(1)
    })
  })

  test('the log is bounded and keeps the newest', async () => {
    await using({ logSize: 2 }, async (emulator) => {
      for (let count = 0; count < 3; count += 1) await connackOf(emulator, sas())
      expect(emulator.log.connections.map(({ id }) => id)).toEqual([2, 3])
      expect(emulator.log.packets.map(({ type }) => type)).toEqual(['connect', 'connack'])
      emulator.log.clear()
      expect(emulator.log.connections).toEqual([])
    })
  })

  test('close() ends connections in every state and frees the port', async () => {
    const emulator = await startEmulator({ pki, enrollments: enrolled()! })
    const silent = tcpConnect(emulator.port, '127.0.0.1')
    silent.on('error', () => undefined)
    silent.resume()
    await new Promise((resolve) => silent.once('connect', resolve))
    const idle = await dial(emulator)
    const busy = await ready(emulator, sas())
    expect(emulator.openConnections).toBe(3)
    await Promise.all([emulator.close(), emulator.close()])
    expect(emulator.openConnections).toBe(0)
    await Promise.all([idle.closed, busy.closed, new Promise((resolve) => silent.once('close', resolve))])
    const again = await startEmulator({ pki, port: emulator.port })
    await again.close()
  })

  test('unref lets a process end that only listens', async () => {
    const source = new URL('../../../src/emulator/index.ts', import.meta.url).pathname
    const script = join(mkdtempSync(join(tmpdir(), 'unref-')), 'main.cjs')
    await build({
      entryPoints: [source],
      bundle: true,
      platform: 'node',
      format: 'cjs',
      outfile: script,
      logLevel: 'error',
    })
    const run = `
      const { startEmulator } = require(${JSON.stringify(script)})
      startEmulator().then((emulator) => {
        emulator.unref()
        console.log('listening')
      })`
    const child = spawnSync(process.execPath, ['-e', run], { encoding: 'utf8', timeout: 15_000 })
    rmSync(dirname(script), { recursive: true })
    expect(child).toMatchObject({ status: 0, signal: null, stdout: 'listening\n', stderr: '' })
  })

  test('a port in use is reported, and nothing stays open', async () => {
    await using({}, async (emulator) => {
      await expect(startEmulator({ pki, port: [0, emulator.port] })).rejects.toMatchObject({
        code: 'EADDRINUSE',
      })
    })
  })

  test('an onEvent that throws does not end the process', async () => {
    const warned = new Promise<Error>((resolve) => process.once('warning', resolve))
    await using(
      {
        onEvent: () => {
          throw new Error('from a listener')
        },
      },
      async (emulator) => {
        expect(await connackOf(emulator, sas())).toBe(0)
        expect((await warned).name).toBe('EmulatorWarning')
      },
    )
  })
})
