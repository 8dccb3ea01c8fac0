import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import https from 'node:https'
import tls from 'node:tls'
import { inspect } from 'node:util'
import mqtt, { type IClientOptions } from 'mqtt'
import { type IConnectPacket, type Packet, parser, writeToStream } from 'mqtt-packet'
import { describe, expect, expectTypeOf, it, onTestFinished } from 'vitest'
import { createWebSocketStream, WebSocketServer } from 'ws'
import { version } from '../../../package.json'
import {
  type HubAssignment,
  type HubMqttOptions,
  type HubOptions,
  type HubTlsOptions,
  hubSettings,
} from '../../../src/assignment/hub.ts'
import { symmetricKey } from '../../../src/credential/sas.ts'
import { x509 } from '../../../src/credential/x509.ts'
import { resolvePolicy } from '../../../src/tls/policy.ts'
import { BUNDLED_ROOTS } from '../../../src/tls/roots.ts'
import { testClock } from '../../support/clock.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { ecKey, type Issued, issue, keyPem, rsaKey } from '../tls/pki.ts'
import { captureClientHello, deferred, recordingProxy } from '../tls/servers.ts'

writeToStream.cacheNumbers = false

const KEY = Buffer.alloc(32, 7).toString('base64')
const sas = symmetricKey({ registrationId: 'd1', key: KEY })
const assigned: HubAssignment = { assignedHub: 'My-Hub.azure-devices.net', deviceId: 'Device-1' }
const HUB = 'my-hub.azure-devices.net'

const root = issue({ name: 'Hub Root', key: ecKey(), ca: true })
const serverFor = (name: string): Issued =>
  issue({ name, key: rsaKey(), issuer: root, dns: [name], purpose: 'serverAuth' })
const server = serverFor(HUB)
const trust = { roots: 'none' as const, extraRoots: root.pem }
const deviceKey = ecKey()
const deviceCertificate = issue({ name: 'd1', key: deviceKey, issuer: root, purpose: 'clientAuth' })
const certificate = x509({ cert: deviceCertificate.pem, key: keyPem(deviceKey) })

describe('hubSettings', () => {
  it('are those of the documentation', async () => {
    const settings = await hubSettings(assigned, sas)
    expect(settings).toMatchObject({
      transport: 'mqtt',
      host: HUB,
      address: HUB,
      port: 8883,
      hub: HUB,
      deviceId: 'Device-1',
      clientId: 'Device-1',
      userName: `my-hub.azure-devices.net/Device-1/?api-version=2021-04-12&DeviceClientType=dps-device-client%2F${version}`,
      resource: 'my-hub.azure-devices.net%2Fdevices%2FDevice-1',
      cleanSession: false,
      keepAliveSeconds: 180,
      path: undefined,
    })
    expect(Object.isFrozen(settings)).toBe(true)
  })

  it('of a module name it, and keep the identity of the hub behind a gateway', async () => {
    const settings = await hubSettings(assigned, sas, {
      moduleId: 'filter',
      gatewayHostName: 'Edge.Local',
      modelId: 'dtmi:com:example:Pump;1',
      userAgent: 'pump/2',
      apiVersion: '2020-09-30',
    })
    expect(settings).toMatchObject({
      host: 'edge.local',
      hub: HUB,
      clientId: 'Device-1/filter',
      userName:
        'my-hub.azure-devices.net/Device-1/filter/?api-version=2020-09-30&model-id=dtmi%3Acom%3Aexample%3APump%3B1&DeviceClientType=pump%2F2',
      resource: 'my-hub.azure-devices.net%2Fdevices%2FDevice-1%2Fmodules%2Ffilter',
      tls: { servername: 'edge.local' },
    })
  })

  it('over WebSocket take port 443 and the path of the hub', async () => {
    expect(await hubSettings(assigned, sas, { transport: 'mqtt-ws' })).toMatchObject({
      port: 443,
      path: '/$iothub/websocket',
    })
  })

  it('sign a fresh token for each connection, without a policy name', async () => {
    const clock = testClock({ startMs: 1_900_000_000_500 })
    const settings = await hubSettings(assigned, sas, { clock, tokenLifetimeSeconds: 600 })
    const expected = (expiresAt: number) => {
      const resource = 'my-hub.azure-devices.net%2Fdevices%2FDevice-1'
      const signature = createHmac('sha256', Buffer.from(KEY, 'base64'))
        .update(`${resource}\n${expiresAt}`)
        .digest('base64')
      return `SharedAccessSignature sr=${resource}&sig=${encodeURIComponent(signature)}&se=${expiresAt}`
    }
    expect(await settings.password()).toBe(expected(1_900_000_600))
    clock.advance(10_000)
    expect(await settings.password()).toBe(expected(1_900_000_610))
    expect((await settings.mqtt()).password).toBe(expected(1_900_000_610))
  })

  it('of X.509 have no password, and the certificate as it is when it is asked for', async () => {
    const other = issue({ name: 'd1', key: deviceKey, issuer: root })
    let current = deviceCertificate
    const credential = x509({ cert: () => current.pem, key: keyPem(deviceKey) })
    const settings = await hubSettings(assigned, credential, { trust })
    expect(await settings.password()).toBeUndefined()
    expect('password' in (await settings.mqtt())).toBe(false)
    expect(settings.tls.cert).toBe(deviceCertificate.pem)
    current = other
    expect((await settings.mqtt()).cert).toBe(other.pem)
  })

  it('carry the whole policy', async () => {
    const { tls: options } = await hubSettings(assigned, sas, { tls: { maxVersion: 'TLSv1.3' } })
    const policy = resolvePolicy({ maxVersion: 'TLSv1.3' })
    expect(options).toMatchObject({
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.3',
      ciphers: policy.ciphers,
      ecdhCurve: 'X25519:P-256:P-384',
      sigalgs: policy.sigalgs,
      servername: HUB,
      rejectUnauthorized: true,
    })
    expect(options.ca).toEqual(BUNDLED_ROOTS.map(({ pem }) => pem))
    // What they are for: OpenSSL takes them.
    tls.createSecureContext(options)
  })

  it('send no name for an IP address, which is verified as one', async () => {
    const { tls: options } = await hubSettings(assigned, sas, { gatewayHostName: '192.0.2.7', trust })
    expect(options.servername).toBe('')
  })

  it('print without key and token, in every way', async () => {
    const secret = keyPem(deviceKey).split('\n')[1]!
    for (const transport of ['mqtt', 'mqtt-ws'] as const) {
      const x = await hubSettings(assigned, certificate, { transport, trust })
      const s = await hubSettings(assigned, sas, { transport })
      for (const value of [x, x.tls, await x.mqtt(), s, await s.mqtt()]) {
        for (const text of [inspect(value, { depth: 9 }), JSON.stringify(value)]) {
          expect(text).not.toContain(secret)
          expect(text).not.toContain('SharedAccessSignature')
          expect(text).not.toContain(KEY)
        }
      }
      expect(inspect(await s.mqtt())).toContain('[redacted]')
    }
  })
})

describe('a hub that speaks MQTT 5', () => {
  it.each(['mqttV5', 'MQTTv5', 'somethingNewer', ''])('profile %j is refused', async (connectionProfile) => {
    const error = await expectDpsError(
      hubSettings({ ...assigned, connectionProfile }, sas),
      'HUB_PROFILE_UNSUPPORTED',
      'config',
    )
    expect(error).toMatchObject({ retryable: false, family: 'service' })
    expect(error.message).toContain('My-Hub.azure-devices.net')
  })

  it.each([undefined, 'classic', 'Classic'])('profile %j is not', async (connectionProfile) => {
    expect((await hubSettings({ ...assigned, connectionProfile }, sas)).hub).toBe(HUB)
  })
})

describe('an option that is wrong', () => {
  const cases: [string, Partial<HubAssignment>, unknown, RegExp][] = [
    ['no hub', { assignedHub: undefined }, {}, /assignedHub/],
    ['a hub with a path', { assignedHub: 'hub/x' }, {}, /assignedHub/],
    ['no device id', { deviceId: undefined }, {}, /deviceId/],
    ['a device id with a slash', { deviceId: 'a/b' }, {}, /deviceId/],
    ['a module id with a slash', {}, { moduleId: 'a/b' }, /moduleId/],
    ['a gateway with a port', {}, { gatewayHostName: 'edge:8883' }, /gatewayHostName/],
    ['an address with a scheme', {}, { connectTo: 'mqtts://x' }, /connectTo/],
    ['a transport that hubs do not take', {}, { transport: 'https' }, /transport/],
    ['a keep-alive above the hub’s', {}, { keepAliveSeconds: 1178 }, /keepAliveSeconds must be .* 1 to 1177/],
    ['a keep-alive of 0', {}, { keepAliveSeconds: 0 }, /keepAliveSeconds/],
    ['a token for longer than a day', {}, { tokenLifetimeSeconds: 86_401 }, /tokenLifetimeSeconds/],
    ['a model that is none', {}, { modelId: 'Pump' }, /modelId/],
    ['a clean session of 1', {}, { cleanSession: 1 }, /cleanSession/],
    ['an api-version that is none', {}, { apiVersion: 'latest' }, /apiVersion/],
    ['an unknown option', {}, { rejectUnauthorized: false }, /rejectUnauthorized is not an option/],
    ['no object', {}, null, /options/],
  ]
  it.each(cases)('%s', async (_, change, options, message) => {
    const error = await expectDpsError(
      hubSettings({ ...assigned, ...change }, sas, options as HubOptions),
      'OPTION_INVALID',
      'config',
    )
    expect(error.message).toMatch(message)
  })

  it('a credential that is none, and one that the policy does not offer', async () => {
    await expectDpsError(hubSettings(assigned, {} as never), 'OPTION_INVALID', 'config')
    await expectDpsError(
      hubSettings(assigned, certificate, { tls: { curves: ['P-384'] } }),
      'CREDENTIAL_KEY_UNSUPPORTED',
      'config',
    )
    await expectDpsError(hubSettings(assigned, sas, { tls: { ciphers: [] } }), 'TLS_POLICY_INVALID', 'config')
  })
})

it('are of types that MQTT.js and tls take, though not of theirs', () => {
  expectTypeOf<HubMqttOptions>().toExtend<IClientOptions>()
  expectTypeOf<HubTlsOptions>().toExtend<tls.ConnectionOptions>()
})

interface Hub {
  readonly port: number
  readonly connect: Promise<{ packet: IConnectPacket; socket: tls.TLSSocket; url: string | undefined }>
}

/** Takes one connection, answers CONNECT, and remembers what it was told. */
async function hub(identity: Issued, transport: 'mqtt' | 'mqtt-ws'): Promise<Hub> {
  const { promise, resolve } = deferred<Awaited<Hub['connect']>>()
  const options = {
    cert: identity.pem,
    key: keyPem(identity.key),
    ca: root.pem,
    requestCert: true,
    rejectUnauthorized: false,
    maxVersion: 'TLSv1.2',
  } as const
  const serve = (stream: NodeJS.ReadWriteStream, socket: tls.TLSSocket, url?: string) => {
    const read = parser()
    stream.on('error', () => {})
    read.on('packet', (packet: Packet) => {
      if (packet.cmd !== 'connect') return
      writeToStream({ cmd: 'connack', returnCode: 0, sessionPresent: false }, stream)
      resolve({ packet, socket, url })
    })
    stream.on('data', (chunk: Buffer) => read.parse(chunk))
  }
  let listener: tls.Server | https.Server
  if (transport === 'mqtt') {
    listener = tls.createServer(options, (socket) => serve(socket, socket))
  } else {
    listener = https.createServer(options)
    const webSocket = new WebSocketServer({ server: listener as https.Server, handleProtocols: () => 'mqtt' })
    webSocket.on('connection', (ws, request) => {
      serve(createWebSocketStream(ws), request.socket as tls.TLSSocket, request.url)
    })
  }
  listener.on('tlsClientError', () => {})
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  onTestFinished(() => {
    listener.close()
  })
  return { port: (listener.address() as { port: number }).port, connect: promise }
}

async function connect(options: HubMqttOptions): Promise<void> {
  const client = mqtt.connect(options)
  onTestFinished(async () => {
    await client.endAsync(true)
  })
  await new Promise<void>((resolve, reject) => {
    client.once('connect', () => resolve())
    client.once('error', reject)
  })
}

describe('MQTT.js with these options', () => {
  for (const transport of ['mqtt', 'mqtt-ws'] as const) {
    it(`gets through to a hub over ${transport}, with the policy of this package`, async () => {
      const { port, connect: arrived } = await hub(server, transport)
      const proxy = await recordingProxy(port)
      const settings = await hubSettings(assigned, certificate, {
        transport,
        trust,
        connectTo: '127.0.0.1',
        port: proxy.port,
        moduleId: 'm',
      })
      await connect(await settings.mqtt())
      const { packet, socket, url } = await arrived
      expect(packet).toMatchObject({
        clientId: 'Device-1/m',
        username: settings.userName,
        clean: false,
        keepalive: 180,
        protocolVersion: 4,
      })
      expect(packet.password ?? undefined).toBeUndefined()
      expect(url).toBe(transport === 'mqtt' ? undefined : '/$iothub/websocket')
      expect(socket.getPeerCertificate().subject.CN).toBe('d1')
      const expected = await captureClientHello(
        resolvePolicy({ sessionResumption: false }, trust),
        await certificate.load(),
        HUB,
      )
      const hello = proxy.hellos[0]!
      for (const part of [
        'version',
        'suites',
        'groups',
        'signatureAlgorithms',
        'serverName',
        'supportedVersions',
      ] as const) {
        expect({ [part]: hello[part] }).toEqual({ [part]: expected[part] })
      }
    })

    it(`sends a token over ${transport}`, async () => {
      const { port, connect: arrived } = await hub(server, transport)
      const settings = await hubSettings(assigned, sas, { transport, trust, connectTo: '127.0.0.1', port })
      await connect(await settings.mqtt())
      const { packet } = await arrived
      expect(String(packet.password)).toMatch(
        /^SharedAccessSignature sr=my-hub\.azure-devices\.net%2Fdevices%2FDevice-1&sig=[^&]+&se=\d+$/,
      )
    })

    it(`verifies the gateway, and not the hub, over ${transport}`, async () => {
      const { port, connect: arrived } = await hub(serverFor('edge.local'), transport)
      const settings = await hubSettings(assigned, sas, {
        transport,
        trust,
        connectTo: '127.0.0.1',
        port,
        gatewayHostName: 'edge.local',
      })
      await connect(await settings.mqtt())
      const { packet, socket } = await arrived
      expect(packet.username).toMatch(/^my-hub\.azure-devices\.net\/Device-1\/\?/)
      expect((socket as { servername?: string }).servername).toBe('edge.local')
    })

    it.each([
      ['another name', () => serverFor('other.azure-devices.net')],
      ['a partial wildcard', () => serverFor('my-*.azure-devices.net')],
      [
        'its name in the subject alone',
        () => issue({ name: HUB, key: rsaKey(), issuer: root, purpose: 'serverAuth' }),
      ],
    ] as const)(`refuses a server with %s over ${transport}`, async (_, impostor) => {
      const { port } = await hub(impostor(), transport)
      const settings = await hubSettings(assigned, sas, { transport, trust, connectTo: '127.0.0.1', port })
      await expectDpsError(connect(await settings.mqtt()), 'SERVER_NAME_MISMATCH', 'tls')
    })

    it(`refuses a root that is not of the policy over ${transport}, whatever the environment says`, async () => {
      const { port } = await hub(server, transport)
      const settings = await hubSettings(assigned, sas, { transport, connectTo: '127.0.0.1', port })
      const before = process.env.NODE_TLS_REJECT_UNAUTHORIZED
      process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0'
      try {
        await expect(connect(await settings.mqtt())).rejects.toMatchObject({
          code: 'SELF_SIGNED_CERT_IN_CHAIN',
        })
      } finally {
        if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED
        else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before
      }
    })
  }
})
