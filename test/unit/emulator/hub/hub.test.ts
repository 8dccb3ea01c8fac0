import { connect as tlsConnect } from 'node:tls'
import { afterEach, beforeAll, describe, expect, test } from 'vitest'
import { createWebSocketStream, WebSocket } from 'ws'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type EmulatorOptions,
  generateSymmetricKey,
  issueCertificate,
  type Pki,
  startEmulator,
} from '../../../../src/emulator/index.ts'
import { DpsError } from '../../../../src/errors.ts'
import { ManualClock, RawDevice, ready, registerFully, sasToken } from '../raw-device.ts'
import {
  dialHub,
  HUB,
  hubConnack,
  hubConnect,
  hubToken,
  onHub,
  publish,
  subscribe,
  telemetry,
} from './raw-hub.ts'

const KEY = generateSymmetricKey()
const SECONDARY = generateSymmetricKey()
const ID = 'sensor-1'
const COMMANDS = `devices/${ID}/messages/devicebound/#`
const METHODS = '$iothub/methods/POST/#'
const TWIN = '$iothub/twin/res/#'
const DESIRED = '$iothub/twin/PATCH/properties/desired/#'

let pki: Pki
beforeAll(async () => {
  pki = await createPki()
})

let emulator: Emulator
let events: EmulatorEvent[]
afterEach(async () => {
  await emulator?.close()
  expect(emulator?.openConnections).toBe(0)
})

async function start(options: EmulatorOptions = {}): Promise<Emulator> {
  events = []
  emulator = await startEmulator({
    pki,
    assigning: { polls: 0 },
    onEvent: (event) => events.push(event),
    ...options,
  })
  emulator.hub.addDevice({
    deviceId: ID,
    authentication: { symmetricKey: { primaryKey: KEY, secondaryKey: SECONDARY } },
  })
  return emulator
}

const hello = (more: object = {}) => ({ id: ID, sas: hubToken({ key: KEY, id: ID }), ...more })
const reasons = (): string[] => events.flatMap((event) => (event.type === 'refused' ? event.reason : []))
const rules = (): string[] => events.flatMap((event) => (event.type === 'violation' ? event.rule : []))
const endings = (): (string | undefined)[] =>
  events.flatMap((event) => (event.type === 'hub-disconnected' ? [event.reason] : []))

describe('who may connect', () => {
  test('a device with its primary or secondary key, at the name of its hub', async () => {
    await start()
    expect(await hubConnack(emulator, hello())).toBe(0)
    expect(await hubConnack(emulator, hello({ sas: hubToken({ key: SECONDARY, id: ID }) }))).toBe(0)
    const [record] = emulator.log.connections
    expect(record).toMatchObject({ transport: 'mqtt', registrationId: ID })
    expect(record?.handshake).toMatchObject({ serverName: HUB, protocol: 'TLSv1.2' })
    expect(events).toContainEqual({ type: 'hub-connected', connectionId: 1, hub: HUB, clientId: ID })
  })

  test('what Microsoft’s clients add to the user name is taken', async () => {
    await start()
    const query = '/?api-version=2021-04-12&model-id=dtmi%3Aa%3Bb&DeviceClientType=py%2F1'
    expect(await hubConnack(emulator, hello({ query }))).toBe(0)
  })

  test('a module, with its own key and name', async () => {
    await start()
    const { primaryKey } = emulator.hub.addDevice({
      deviceId: ID,
      moduleId: 'camera',
      authentication: { symmetricKey: {} },
    })!
    const sas = hubToken({ key: primaryKey, id: ID, moduleId: 'camera' })
    const module = await onHub(emulator, { id: ID, moduleId: 'camera', sas })
    module.send(telemetry(`${ID}/modules/camera`, 'a=1', 'x'))
    expect(await module.next()).toMatchObject({ cmd: 'puback' })
    expect(emulator.hub.telemetry.list()).toMatchObject([{ deviceId: ID, moduleId: 'camera' }])
    expect(await subscribe(module, [`devices/${ID}/messages/devicebound/#`])).toEqual([0x80])
    // The device's key is not the module's.
    expect(
      await hubConnack(emulator, {
        id: ID,
        moduleId: 'camera',
        sas: hubToken({ key: KEY, id: ID, moduleId: 'camera' }),
      }),
    ).toBe(5)
  })

  test('an X.509 device with the certificate that is known, and no other', async () => {
    await start()
    const known = await issueCertificate({ subject: 'x', eku: ['clientAuth'] })
    const other = await issueCertificate({ subject: 'x', eku: ['clientAuth'] })
    emulator.hub.addDevice({ deviceId: 'x', authentication: { x509: { certificate: known.certPem } } })
    const tls = ({ certPem, keyPem }: typeof known) => ({ cert: certPem, key: keyPem })
    expect(await hubConnack(emulator, { id: 'x', tls: tls(known) })).toBe(0)
    expect(await hubConnack(emulator, { id: 'x', tls: tls(other) })).toBe(5)
    expect(await hubConnack(emulator, { id: 'x' })).toBe(5)
    expect(reasons()).toEqual(['certificate-unknown', 'credential-missing'])
  })

  test('a device that the provisioning service assigned, with the key it registered with', async () => {
    const groupKey = generateSymmetricKey()
    await start({
      enrollments: [{ groupId: 'g', attestation: { symmetricKey: { primaryKey: groupKey } } }],
    })
    const { createHmac } = await import('node:crypto')
    const key = createHmac('sha256', Buffer.from(groupKey, 'base64')).update('d-1').digest('base64')
    expect(await hubConnack(emulator, { id: 'd-1', sas: hubToken({ key, id: 'd-1' }) })).toBe(5)
    const device = await ready(emulator, { id: 'd-1', sas: sasToken({ key, id: 'd-1' }) })
    await registerFully(device, 'd-1')
    device.socket.destroy()
    expect(await hubConnack(emulator, { id: 'd-1', sas: hubToken({ key, id: 'd-1' }) })).toBe(0)
    expect(emulator.hub.listDevices()).toMatchObject([
      { deviceId: ID },
      { deviceId: 'd-1', hub: HUB, authentication: 'symmetricKey', enabled: true },
    ])
  })

  test('a device that registered with a new certificate, with that one alone', async () => {
    await start({ enrollments: [{ groupId: 'g', attestation: { x509: { ca: pki.deviceRoot.certPem } } }] })
    const [first, second] = await Promise.all(
      [1, 2].map(() => emulator.issueDeviceCertificate({ registrationId: 'd-2' })),
    )
    for (const certificate of [first!, second!]) {
      const device = await ready(emulator, { id: 'd-2' }, certificate)
      await registerFully(device, 'd-2')
      device.socket.destroy()
    }
    expect(await hubConnack(emulator, { id: 'd-2', tls: first! })).toBe(5)
    expect(await hubConnack(emulator, { id: 'd-2', tls: second! })).toBe(0)
  })

  test.each([
    [
      'a user name of the provisioning service',
      { userName: `0ne/registrations/${ID}/api-version=2019-03-31` },
      4,
      'user-name-malformed',
    ],
    ['a user name without `?`', { query: '/api-version=2021-04-12' }, 4, 'user-name-malformed'],
    [
      'a user name with an unknown field',
      { query: '/?api-version=2021-04-12&x=1' },
      4,
      'user-name-malformed',
    ],
    [
      'a user name with a field twice',
      { query: '/?api-version=2021-04-12&api-version=2021-04-12' },
      4,
      'user-name-malformed',
    ],
    ['no user name', { packet: { username: undefined, password: undefined } }, 4, 'user-name-malformed'],
    ['an unknown api-version', { query: '/?api-version=2031-04-12' }, 4, 'api-version-unknown'],
    ['another client id', { clientId: 'sensor-2' }, 2, 'client-id-wrong'],
    ['a client id in another case', { clientId: ID.toUpperCase() }, 2, 'client-id-wrong'],
    ['the user name of another hub', { hub: 'other.azure-devices.net', serverName: HUB }, 5, 'hub-wrong'],
    ['a hub that nobody linked', { hub: 'other.azure-devices.net' }, 5, 'device-unknown'],
    ['an unknown device', { id: 'nobody' }, 5, 'device-unknown'],
    ['no credential', { sas: undefined }, 5, 'credential-missing'],
    ['no token', { sas: 'secret' }, 5, 'sas-malformed'],
    ['a token of the provisioning service', { sas: sasToken({ key: KEY, id: ID }) }, 5, 'sas-resource-wrong'],
    [
      'a token with the name of a policy',
      { sas: hubToken({ key: KEY, id: ID, suffix: '&skn=device' }) },
      5,
      'sas-key-name-wrong',
    ],
    ['a token for another device', { sas: hubToken({ key: KEY, id: 'sensor-2' }) }, 5, 'sas-resource-wrong'],
    ['an expired token', { sas: hubToken({ key: KEY, id: ID, expiresAt: 1000 }) }, 5, 'sas-expired'],
    [
      'a token under another key',
      { sas: hubToken({ key: generateSymmetricKey(), id: ID }) },
      5,
      'sas-signature-wrong',
    ],
  ])('not with %s', async (_, more, code, reason) => {
    await start()
    expect(await hubConnack(emulator, hello(more))).toBe(code)
    expect(reasons()).toEqual([reason])
  })

  test('MQTT 5 is refused as a version', async () => {
    await start()
    const packet = { protocolVersion: 5 as const }
    expect(await hubConnack(emulator, hello({ packet }))).toBe(1)
  })

  test('at a gateway, whichever hub the user name names', async () => {
    await start({ gateways: ['edge.factory.example'] })
    const serverName = 'edge.factory.example'
    const device = await onHub(emulator, hello({ serverName }))
    expect(device.socket.authorized).toBe(true)
    expect(await hubConnack(emulator, hello({ serverName: 'localhost' }))).toBe(4)
  })

  test('hubs of other clouds and names of one’s own have a certificate too', async () => {
    const hubs = ['hub.azure-devices.cn', 'hub.factory.example']
    await start({ hubs })
    for (const hub of hubs) {
      emulator.hub.addDevice({ deviceId: 'd', hub, authentication: { symmetricKey: { primaryKey: KEY } } })
      const device = await onHub(emulator, { id: 'd', hub, sas: hubToken({ key: KEY, id: 'd', hub }) })
      expect(device.socket.authorized).toBe(true)
    }
  })

  test('a token’s end is the connection’s end', async () => {
    const clock = new ManualClock()
    await start({ clock })
    const expiresAt = Math.floor(clock.now() / 1000) + 60
    const device = await onHub(emulator, hello({ sas: hubToken({ key: KEY, id: ID, expiresAt }) }))
    clock.advance(61_000)
    await device.closed
    expect(endings()).toEqual(['token-expired'])
  })
})

describe('the life of a device', () => {
  test('a second connection of the same device ends the first', async () => {
    await start()
    const first = await onHub(emulator, hello())
    const second = await onHub(emulator, hello())
    await first.closed
    expect(endings()).toEqual(['evicted'])
    second.send({ cmd: 'pingreq' })
    expect(await second.next()).toMatchObject({ cmd: 'pingresp' })
    expect(emulator.hub.listDevices()[0]).toMatchObject({ connectionId: 2 })
  })

  test('disabled: its connection ends, and it is refused until it is enabled', async () => {
    await start()
    const device = await onHub(emulator, hello())
    emulator.hub.disableDevice(ID)
    await device.closed
    expect(await hubConnack(emulator, hello())).toBe(5)
    emulator.hub.enableDevice(ID)
    expect(await hubConnack(emulator, hello())).toBe(0)
    expect(reasons()).toEqual(['device-disabled'])
    expect(endings()).toEqual(['disabled'])
  })

  test('deleted: its connection ends, and it is unknown', async () => {
    await start()
    const device = await onHub(emulator, hello())
    const command = emulator.hub.sendCommand(ID, 'x')
    expect(emulator.hub.removeDevice(ID)).toBe(true)
    expect(emulator.hub.removeDevice(ID)).toBe(false)
    await device.closed
    expect(await command.settled).toBe('discarded')
    expect(await hubConnack(emulator, hello())).toBe(5)
    expect(() => emulator.hub.twin(ID)).toThrow(DpsError)
  })

  test('moved by the provisioning service: its twin goes along or is dropped', async () => {
    for (const [reprovisioning, kept] of [
      ['migrate', { site: 'north' }],
      ['reset', {}],
    ] as const) {
      let hub = 'hub-a.azure-devices.net'
      await start({
        hubs: ['hub-a.azure-devices.net', 'hub-b.azure-devices.net'],
        enrollments: [
          {
            registrationId: 'm',
            hub: () => hub,
            reprovisioning,
            attestation: { symmetricKey: { primaryKey: KEY } },
          },
        ],
      })
      const register = async () => {
        const device = await ready(emulator, { id: 'm', sas: sasToken({ key: KEY, id: 'm' }) })
        await registerFully(device, 'm')
        device.socket.destroy()
      }
      await register()
      emulator.hub.updateDesired('m', { site: 'north' })
      const device = await onHub(emulator, { id: 'm', hub, sas: hubToken({ key: KEY, id: 'm', hub }) })
      hub = 'hub-b.azure-devices.net'
      await register()
      await device.closed
      expect(endings()).toEqual(['moved'])
      expect(emulator.hub.listDevices().filter(({ deviceId }) => deviceId === 'm')).toMatchObject([{ hub }])
      expect(emulator.hub.twin('m').desired.properties).toEqual(kept)
      await emulator.close()
    }
  })
})

describe('telemetry', () => {
  test('is acknowledged and recorded, with its properties', async () => {
    await start()
    const device = await onHub(emulator, hello())
    const waiting = emulator.hub.telemetry.wait(({ messageId }) => messageId === 'm 1')
    const bag = '%24.ct=application%2Fjson&%24.ce=utf-8&%24.mid=m%201&%24.cid=c&room=3%20east&flag&empty='
    device.send(telemetry(ID, bag, '{"t":21}'))
    expect(await device.next()).toMatchObject({ cmd: 'puback', messageId: 5 })
    expect(await waiting).toMatchObject({
      hub: HUB,
      deviceId: ID,
      moduleId: undefined,
      contentType: 'application/json',
      contentEncoding: 'utf-8',
      correlationId: 'c',
      properties: { room: '3 east', flag: '', empty: '' },
      body: Buffer.from('{"t":21}'),
      qos: 1,
      dup: false,
      will: false,
    })
    device.send(telemetry(ID, '', 'a', { retain: true, qos: 0, messageId: 0 }))
    const retained = await emulator.hub.telemetry.wait(({ qos }) => qos === 0)
    expect(retained.properties).toEqual({ 'mqtt-retain': 'true' })
    expect(emulator.hub.telemetry.received).toBe(2)
    emulator.hub.telemetry.clear()
    expect(emulator.hub.telemetry.list()).toEqual([])
    expect(events.filter(({ type }) => type === 'telemetry')).toHaveLength(2)
  })

  test('that is waited for may be waited for in vain', async () => {
    await start()
    const abort = new AbortController()
    const waiting = emulator.hub.telemetry.wait(() => true, { signal: abort.signal })
    abort.abort(new Error('enough'))
    await expect(waiting).rejects.toThrow('enough')
  })

  test('of up to 256 KB is taken, and more ends the connection', async () => {
    await start()
    const device = await onHub(emulator, hello())
    const topic = `devices/${ID}/messages/events/`
    device.send(telemetry(ID, '', Buffer.alloc(262_144 - topic.length)))
    expect(await device.next()).toMatchObject({ cmd: 'puback' })
    device.send(telemetry(ID, '', Buffer.alloc(262_145 - topic.length)))
    await device.closed
    expect(rules()).toEqual(['A message with its properties is at most 262144 bytes.'])
  })

  test.each([
    ['of another device', telemetry('sensor-2')],
    ['to the topic of commands', publish(`devices/${ID}/messages/devicebound/`)],
    ['to a topic of one’s own', publish('factory/line-1')],
    ['at QoS 2', telemetry(ID, '', '{}', { qos: 2 })],
    ['at QoS 1 without a packet identifier', Buffer.from([0x32, 4, 0, 0, 0, 0])],
    ['with a property twice', telemetry(ID, 'a=1&a=2')],
    ['with a property that is not encoded', telemetry(ID, 'a=b/c')],
    ['with a property that is no UTF-8', telemetry(ID, 'a=%ff')],
    ['with a property without a name', telemetry(ID, '=1')],
  ])('%s ends the connection', async (_, packet) => {
    await start()
    const device = await onHub(emulator, hello())
    device.send(packet)
    await device.closed
    expect(rules()).toHaveLength(1)
    expect(emulator.hub.telemetry.received).toBe(0)
  })

  test('left as a will is recorded when the connection breaks, and not when it is ended', async () => {
    await start()
    const will = {
      topic: `devices/${ID}/messages/events/why=gone`,
      payload: Buffer.from('bye'),
      qos: 1 as const,
      retain: false,
    }
    const polite = await onHub(emulator, hello({ packet: { will } }))
    polite.send({ cmd: 'disconnect' })
    await polite.closed
    const rude = await onHub(emulator, hello({ packet: { will } }))
    rude.socket.destroy()
    expect(await emulator.hub.telemetry.wait()).toMatchObject({
      will: true,
      properties: { why: 'gone' },
      connectionId: 2,
    })
    expect(emulator.hub.telemetry.received).toBe(1)
    const foreign = { ...will, topic: 'factory' }
    expect(await hubConnack(emulator, hello({ packet: { will: foreign } }))).toBe('closed')
  })
})

describe('subscriptions', () => {
  test('are those of the device itself, at QoS 0 or 1', async () => {
    await start()
    const device = await onHub(emulator, hello())
    const filters = [COMMANDS, METHODS, TWIN, DESIRED]
    expect(await subscribe(device, filters, 2)).toEqual([1, 1, 1, 1])
    expect(await subscribe(device, filters, 0)).toEqual([0, 0, 0, 0])
    expect(
      await subscribe(device, ['#', 'devices/sensor-2/messages/devicebound/#', '$dps/registrations/res/#']),
    ).toEqual([0x80, 0x80, 0x80])
  })

  test('without a packet identifier end the connection', async () => {
    await start()
    const device = await onHub(emulator, hello())
    device.send(Buffer.from([0x82, 6, 0, 0, 0, 1, 0x23, 0]))
    await device.closed
    expect(rules()).toHaveLength(1)
  })
})

describe('commands', () => {
  test('reach the device with their properties, and are kept until it acknowledges', async () => {
    await start()
    const sent = emulator.hub.sendCommand(ID, 'open', {
      messageId: 'm-1',
      correlationId: 'c-1',
      contentType: 'text/plain',
      properties: { valve: '3 é' },
    })
    const device = await onHub(emulator, hello({ clean: false }))
    expect(device.sessionPresent).toBe(false)
    expect(await subscribe(device, [COMMANDS])).toEqual([1])
    const command = await device.publishReply()
    expect(command).toMatchObject({ qos: 1, dup: false, payload: Buffer.from('open') })
    expect(command.topic).toBe(
      `devices/${ID}/messages/devicebound/%24.mid=m-1&%24.to=%2Fdevices%2F${ID}%2Fmessages%2Fdevicebound&%24.cid=c-1&%24.ct=text%2Fplain&valve=3%20%C3%A9`,
    )
    expect(emulator.hub.listDevices()[0]?.queuedCommands).toBe(1)
    // Not acknowledged: again on the next connection, which takes up the session.
    device.socket.destroy()
    await device.closed
    const again = await onHub(emulator, hello({ clean: false }))
    expect(again.sessionPresent).toBe(true)
    const repeated = await again.publishReply()
    expect(repeated).toMatchObject({ dup: true, topic: command.topic })
    again.send({ cmd: 'puback', messageId: repeated.messageId! })
    expect(await sent.settled).toBe('acknowledged')
    expect(emulator.hub.listDevices()[0]?.queuedCommands).toBe(0)
  })

  test('are discarded by a clean session', async () => {
    await start()
    const sent = emulator.hub.sendCommand(ID, 'open')
    await onHub(emulator, hello({ clean: true }))
    expect(await sent.settled).toBe('discarded')
  })

  test('at QoS 0 are done with when they are sent', async () => {
    await start()
    const device = await onHub(emulator, hello())
    await subscribe(device, [COMMANDS], 0)
    const sent = emulator.hub.sendCommand(ID, 'open')
    expect(await device.publishReply()).toMatchObject({ qos: 0 })
    expect(await sent.settled).toBe('acknowledged')
  })

  test('wait at most 50 at a time, hold at most 64 KB and are tried 10 times', async () => {
    await start()
    expect(() => emulator.hub.sendCommand(ID, Buffer.alloc(65_537))).toThrow(/65536 bytes/)
    const first = emulator.hub.sendCommand(ID, '')
    for (let count = 1; count < 50; count += 1) emulator.hub.sendCommand(ID, '')
    expect(() => emulator.hub.sendCommand(ID, '')).toThrow(/50 commands/)
    for (let count = 0; count < 11; count += 1) {
      const device = await onHub(emulator, hello({ clean: false }))
      if (count === 0) await subscribe(device, [COMMANDS])
      device.socket.destroy()
      await device.closed
    }
    expect(await first.settled).toBe('discarded')
  })
})

describe('methods', () => {
  test('are answered by the device, each under its own request id', async () => {
    await start()
    const device = await onHub(emulator, hello())
    await subscribe(device, [METHODS])
    const calls = [
      emulator.hub.invokeMethod(ID, 'reboot', { delay: 5 }),
      emulator.hub.invokeMethod(ID, 'status'),
    ]
    const [first, second] = [await device.publishReply(), await device.publishReply()]
    const rid = (topic: string) => /\$rid=(.+)$/.exec(topic)![1]
    expect(first.topic).toMatch(/^\$iothub\/methods\/POST\/reboot\/\?\$rid=[0-9a-f-]{36}$/)
    expect([first.payload.toString(), second.payload.toString()]).toEqual(['{"delay":5}', 'null'])
    device.send(publish(`$iothub/methods/res/404/?$rid=${rid(second.topic)}`))
    device.send(publish(`$iothub/methods/res/200/?$rid=unknown`, '{}'))
    device.send(publish(`$iothub/methods/res/200/?$rid=${rid(first.topic)}`, '{"ok":true}'))
    expect(await Promise.all(calls)).toEqual([
      { status: 200, payload: { ok: true } },
      { status: 404, payload: undefined },
    ])
  })

  test('fail where nobody listens, nobody answers, the answer is no JSON or the device goes', async () => {
    const clock = new ManualClock()
    await start({ clock })
    const call = (options = {}) => emulator.hub.invokeMethod(ID, 'x', {}, options)
    await expect(call()).rejects.toMatchObject({ code: 'NOT_FOUND', serviceErrorCode: 404_103 })
    const device = await onHub(emulator, hello())
    await expect(call()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await subscribe(device, [METHODS])
    const late = call({ timeoutMs: 1000 })
    await device.publishReply()
    clock.advance(1000)
    await expect(late).rejects.toMatchObject({ code: 'TIMEOUT', serviceErrorCode: 504_101 })
    const nonsense = call()
    const { topic } = await device.publishReply()
    device.send(publish(`$iothub/methods/res/200/?${topic.split('?')[1]}`, '{'))
    await expect(nonsense).rejects.toMatchObject({ code: 'REPLY_MALFORMED' })
    const lost = call()
    await device.publishReply()
    device.socket.destroy()
    await expect(lost).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    expect(clock.pending).toBe(0)
  })
})

describe('the twin', () => {
  test('is read, reported to and changed, with versions', async () => {
    await start()
    emulator.hub.updateDesired(ID, { interval: 10, net: { apn: 'a', pin: 1 } })
    const device = await onHub(emulator, hello())
    await subscribe(device, [TWIN, DESIRED])
    device.send(publish('$iothub/twin/GET/?$rid=1'))
    const whole = await device.publishReply()
    expect(whole.topic).toBe('$iothub/twin/res/200/?$rid=1')
    expect(JSON.parse(whole.payload.toString())).toEqual({
      desired: { interval: 10, net: { apn: 'a', pin: 1 }, $version: 2 },
      reported: { $version: 1 },
    })
    device.send(publish('$iothub/twin/PATCH/properties/reported/?$rid=2', '{"fw":{"a":1,"b":2}}'))
    expect((await device.publishReply()).topic).toBe('$iothub/twin/res/204/?$rid=2&$version=2')
    const reported = emulator.hub.waitForReported(ID, ({ fw }) => !Object.hasOwn(fw as object, 'b'))
    device.send(publish('$iothub/twin/PATCH/properties/reported/?$rid=3&$version=2', '{"fw":{"b":null}}'))
    expect((await device.publishReply()).topic).toBe('$iothub/twin/res/204/?$rid=3&$version=3')
    expect(await reported).toEqual({ fw: { a: 1 } })

    expect(emulator.hub.updateDesired(ID, { net: { pin: null }, list: [1] })).toBe(3)
    const patch = await device.publishReply()
    expect(patch.topic).toBe('$iothub/twin/PATCH/properties/desired/?$version=3')
    expect(JSON.parse(patch.payload.toString())).toEqual({ net: { pin: null }, list: [1], $version: 3 })
    expect(emulator.hub.twin(ID).desired).toEqual({
      properties: { interval: 10, net: { apn: 'a' }, list: [1] },
      version: 3,
    })
  })

  test('does not answer who has not subscribed', async () => {
    await start()
    const device = await onHub(emulator, hello())
    device.send(publish('$iothub/twin/GET/?$rid=1'), { cmd: 'pingreq' })
    expect(await device.next()).toMatchObject({ cmd: 'pingresp' })
  })

  test.each([
    ['no JSON', '{', 400],
    ['no object', '[1]', 400],
    ['a name with a dot', '{"a.b":1}', 400],
    ['a name with a dollar', '{"$version":1}', 400],
    ['a name with a control character', '{"a\\u0001":1}', 400],
    ['a text above 4 KB', JSON.stringify({ a: 'x'.repeat(4097) }), 400],
    ['properties 11 deep', `${'{"a":'.repeat(11)}1${'}'.repeat(11)}`, 400],
    [
      'more than 32 KB',
      JSON.stringify(Object.fromEntries([...'abcdefghi'].map((name) => [name, 'x'.repeat(4000)]))),
      413,
    ],
  ])('refuses a report of %s', async (_, body, status) => {
    await start()
    const device = await onHub(emulator, hello())
    await subscribe(device, [TWIN])
    device.send(publish('$iothub/twin/PATCH/properties/reported/?$rid=r', body))
    expect((await device.publishReply()).topic).toBe(`$iothub/twin/res/${status}/?$rid=r`)
    expect(emulator.hub.twin(ID).reported.version).toBe(1)
  })

  test('refuses a report for another version', async () => {
    await start()
    const device = await onHub(emulator, hello())
    await subscribe(device, [TWIN])
    device.send(publish('$iothub/twin/PATCH/properties/reported/?$rid=r&$version=9', '{}'))
    expect((await device.publishReply()).topic).toBe('$iothub/twin/res/412/?$rid=r')
  })

  test('keeps `__proto__` a property like any other', async () => {
    await start()
    const device = await onHub(emulator, hello())
    await subscribe(device, [TWIN])
    device.send(publish('$iothub/twin/PATCH/properties/reported/?$rid=r', '{"__proto__":{"polluted":true}}'))
    expect((await device.publishReply()).topic).toContain('/204/')
    expect(({} as { polluted?: true }).polluted).toBeUndefined()
  })

  test.each([
    '$iothub/twin/GET/?$rid=',
    '$iothub/twin/GET/',
    '$iothub/twin/GET/?$rid=1&x=2',
    '$iothub/twin/PATCH/properties/reported/?$rid=1&$version=x',
    '$iothub/methods/res/200/?rid=1',
  ])('ends the connection for %s', async (topic) => {
    await start()
    const device = await onHub(emulator, hello())
    device.send(publish(topic))
    await device.closed
    expect(rules()).toHaveLength(1)
  })
})

describe('faults', () => {
  const connected = async () => {
    const device = await onHub(emulator, hello())
    await subscribe(device, [TWIN])
    return device
  }

  test('refuse CONNECT and SUBSCRIBE', async () => {
    await start()
    emulator.faults.add({ at: 'hub-connect', do: { refuse: 3 }, match: { registrationId: ID } })
    expect(await hubConnack(emulator, hello())).toBe(3)
    emulator.faults.add({ at: 'hub-subscribe', do: 'refuse' })
    const device = await onHub(emulator, hello())
    expect(await subscribe(device, [TWIN])).toEqual([0x80])
  })

  test('strike the hub and leave the provisioning service alone', async () => {
    await start({
      enrollments: [{ registrationId: ID, attestation: { symmetricKey: { primaryKey: KEY } } }],
    })
    emulator.faults.add({ at: 'hub-connect', do: { refuse: 3 } })
    const device = await ready(emulator, { id: ID, sas: sasToken({ key: KEY, id: ID }) })
    await registerFully(device, ID)
    expect(emulator.faults.list()).toHaveLength(1)
  })

  test('drop telemetry before or after it is recorded, or withhold PUBACK alone', async () => {
    await start()
    emulator.faults.add({ at: 'telemetry', do: 'drop' })
    const first = await connected()
    first.send(telemetry(ID))
    await first.closed
    expect(emulator.hub.telemetry.received).toBe(0)
    emulator.faults.add({ at: 'telemetry-ack', do: 'reset' })
    const second = await connected()
    second.send(telemetry(ID))
    await second.closed
    expect(emulator.hub.telemetry.received).toBe(1)
    emulator.faults.add({ at: 'telemetry-ack', do: 'no-puback' })
    const third = await connected()
    third.send(telemetry(ID), telemetry(ID, '', '{}', { messageId: 6 }))
    expect(await third.next()).toMatchObject({ cmd: 'puback', messageId: 6 })
    expect(emulator.hub.telemetry.received).toBe(3)
  })

  test('withhold, change, repeat or misdirect an answer about the twin', async () => {
    await start()
    const device = await connected()
    emulator.faults.add({ at: 'twin-reply', do: 'silence' })
    emulator.faults.add({ at: 'twin-reply', do: { reply: { status: 429, body: 'busy' } } })
    emulator.faults.add({ at: 'twin-reply', do: 'duplicate' })
    emulator.faults.add({ at: 'twin-reply', do: 'wrong-rid' })
    for (const rid of 'abcd') device.send(publish(`$iothub/twin/GET/?$rid=${rid}`))
    const topics = []
    for (let count = 0; count < 4; count += 1) topics.push((await device.publishReply()).topic)
    expect(topics).toEqual([
      '$iothub/twin/res/429/?$rid=b',
      '$iothub/twin/res/200/?$rid=c',
      '$iothub/twin/res/200/?$rid=c',
      '$iothub/twin/res/200/?$rid=not-d',
    ])
  })

  test('leave a ping unanswered', async () => {
    await start()
    const device = await connected()
    const fault = emulator.faults.add({ at: 'ping', do: 'silence' })
    device.send({ cmd: 'pingreq' }, telemetry(ID))
    expect(await fault.hit).toMatchObject({ at: 'ping', registrationId: ID })
    expect(emulator.hub.telemetry.received).toBe(0)
  })

  test('end a connection when the test asks for it', async () => {
    await start()
    for (const how of ['drop', 'no-close-notify', 'reset'] as const) {
      const device = await connected()
      expect(emulator.hub.disconnect(ID, how)).toBe(true)
      await device.closed
    }
    expect(emulator.hub.disconnect(ID)).toBe(false)
    expect(endings()).toEqual(['asked-for', 'asked-for', 'asked-for'])
  })

  test('anything at all can be published to a device', async () => {
    await start()
    expect(emulator.hub.publish(ID, 'x', '')).toBe(false)
    const device = await connected()
    expect(emulator.hub.publish(ID, '$iothub/twin/res/nonsense', 'x', { qos: 1 })).toBe(true)
    expect(await device.publishReply()).toMatchObject({ topic: '$iothub/twin/res/nonsense', qos: 1 })
  })
})

describe('over WebSocket', () => {
  const upgrade = (emulator: Emulator, serverName: string): WebSocket =>
    new WebSocket(`wss://${serverName}/$iothub/websocket`, 'mqtt', {
      createConnection: () =>
        tlsConnect({
          host: emulator.address,
          port: emulator.port,
          servername: serverName,
          ca: emulator.roots[0],
        }),
    })

  test('a device connects and sends telemetry of 256 KB', async () => {
    await start()
    const webSocket = upgrade(emulator, HUB)
    const closed = new Promise((resolve) => webSocket.once('close', resolve))
    const device = new RawDevice(createWebSocketStream(webSocket) as never)
    device.send(hubConnect(hello()))
    expect(await device.next()).toMatchObject({ cmd: 'connack', returnCode: 0 })
    device.send(telemetry(ID, '', Buffer.alloc(262_000)))
    expect(await device.next()).toMatchObject({ cmd: 'puback' })
    expect(emulator.log.connections[0]?.transport).toBe('mqtt-ws')
    expect(emulator.hub.disconnect(ID)).toBe(true)
    await closed
    webSocket.terminate()
  })

  test('the requests of the provisioning service are not served at a hub', async () => {
    await start()
    const device = await dialHub(emulator, hello())
    device.socket.write(
      `GET /0ne00000000/registrations/${ID}/operations/1?api-version=2019-03-31 HTTP/1.1\r\nHost: x\r\n\r\n`,
    )
    device.socket.once('data', () => device.socket.destroy())
    await device.closed
    expect(emulator.log.packets.at(-1)).toMatchObject({ type: 'response', status: 404 })
  })
})

describe('what an application asks for wrongly', () => {
  test.each([
    [
      'a device without a name',
      () => emulator.hub.addDevice({ deviceId: '', authentication: { symmetricKey: {} } }),
    ],
    [
      'a module with a slash',
      () => emulator.hub.addDevice({ deviceId: 'a', moduleId: 'b/c', authentication: { symmetricKey: {} } }),
    ],
    [
      'a key that is none',
      () => emulator.hub.addDevice({ deviceId: 'a', authentication: { symmetricKey: { primaryKey: 'x' } } }),
    ],
    [
      'a certificate that is none',
      () => emulator.hub.addDevice({ deviceId: 'a', authentication: { x509: { certificate: 'x' } } }),
    ],
    ['desired properties that no twin can hold', () => emulator.hub.updateDesired(ID, { 'a b': 1 })],
    ['a device that is not there', () => emulator.hub.enableDevice('nobody')],
    ['the same device at another hub', () => emulator.hub.enableDevice({ deviceId: ID, hub: 'other' })],
  ])('%s', async (_, act) => {
    await start()
    expect(act).toThrow(expect.objectContaining({ code: 'OPTION_INVALID', phase: 'config' }))
  })

  test('an emulator whose hub is the service itself', async () => {
    await expect(startEmulator({ pki, hubs: ['global.azure-devices-provisioning.net'] })).rejects.toThrow(
      expect.objectContaining({ code: 'OPTION_INVALID' }),
    )
  })
})
