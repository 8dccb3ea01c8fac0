import net from 'node:net'
import { inspect } from 'node:util'
import { afterEach, describe, expect, it } from 'vitest'
import { createPki, issueCertificate } from '../../../src/emulator/index.ts'
import { type ConnectProxy, startConnectProxy } from '../../support/connect-proxy.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { HUB, HubStage, ID, KEY } from './stage.ts'

let stage: HubStage
let proxy: ConnectProxy | undefined
afterEach(async () => {
  await stage?.close()
  await proxy?.close()
  proxy = undefined
})

describe.each(['mqtt', 'mqtt-ws'] as const)('the way to the hub over %s', (transport) => {
  it('leads through a proxy, TLS end to end', async () => {
    stage = await HubStage.open()
    const { port } = stage.emulator
    proxy = await startConnectProxy({ leadsTo: { host: '127.0.0.1', port } })
    const hub = await stage.connect({ transport, proxy: proxy.url, connectTo: HUB })
    await hub.sendTelemetry('x')
    expect(proxy.requests.map(({ target }) => target)).toEqual([`${HUB}:${port}`])
    const back = stage.next('connected', 1)
    stage.emulator.hub.disconnect(ID)
    await back
    await hub.sendTelemetry('y')
    expect(proxy.requests).toHaveLength(2)
  })

  it('is opened by a function of the caller’s', async () => {
    stage = await HubStage.open()
    const asked: string[] = []
    const hub = await stage.connect({
      transport,
      connect: ({ host, port }) => {
        asked.push(host)
        return net.connect({ host, port })
      },
    })
    await hub.sendTelemetry('x')
    expect(asked).toEqual(['127.0.0.1'])
  })

  it('ends at a server that another root vouches for', async () => {
    const other = await createPki()
    stage = await HubStage.open({
      serverCertificate: { cert: other.server.chainPem, key: other.server.keyPem },
    })
    await expectDpsError(stage.connect({ transport }), 'SERVER_UNTRUSTED', 'tls')
    expect(stage.emulator.log.packets).toEqual([])
  })

  it('ends at a server of another name', async () => {
    const pki = await createPki()
    const { chainPem, keyPem } = await issueCertificate({
      subject: 'other',
      sans: ['other.azure-devices.net'],
      issuer: pki.serverIntermediate,
      keyType: 'rsa-2048',
      eku: ['serverAuth'],
    })
    stage = await HubStage.open({ pki, serverCertificate: { cert: chainPem, key: keyPem } })
    await expectDpsError(stage.connect({ transport }), 'SERVER_NAME_MISMATCH', 'tls')
    expect(stage.emulator.log.packets).toEqual([])
  })
})

describe('secrets', () => {
  it('are in no event, error or printed object, also where DEBUG asks for everything', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    stage.emulator.hub.publish(ID, 'nonsense', 'x')
    const back = stage.next('connected', 1)
    stage.emulator.hub.disconnect(ID)
    await back
    stage.emulator.faults.add({ at: 'hub-connect', do: { refuse: 5 } })
    const error = await stage.connect({ retry: { maxAttempts: 1 } }).catch((thrown) => thrown)
    const printed = inspect([hub, stage.events, error], { depth: 20, showHidden: true })
    expect(printed).toContain('UNAUTHORIZED')
    expect(printed).not.toContain(KEY)
    expect(printed).not.toContain('SharedAccessSignature')
    expect(printed).not.toContain('sig=')
  })
})

describe('over WebSocket', () => {
  it.each([
    [401, 'UNAUTHORIZED'],
    [403, 'FORBIDDEN'],
    [404, 'REQUEST_REFUSED'],
    [503, 'SERVICE_UNAVAILABLE'],
    [302, 'REQUEST_REFUSED'],
  ] as const)('an upgrade that is answered with %i is %s', async (refuse, code) => {
    stage = await HubStage.open()
    stage.emulator.faults.add({ at: 'upgrade', do: { refuse }, times: 5 })
    const options = { transport: 'mqtt-ws', retry: { maxAttempts: 1 } } as const
    await expectDpsError(stage.connect(options), code, 'connect')
    await expect.poll(() => stage.emulator.openConnections).toBe(0)
  })

  it('a frame that is forged ends the connection', async () => {
    stage = await HubStage.open()
    const raw = Buffer.from([0xff, 0xff, 0xff, 0xff])
    stage.emulator.faults.add({ at: 'telemetry-ack', do: { raw, unframed: true } })
    const hub = await stage.connect({ transport: 'mqtt-ws' })
    await hub.sendTelemetry('x')
    expect(stage.of('disconnected')).toMatchObject([{ error: { code: 'PROTOCOL_VIOLATION', phase: 'hub' } }])
  })

  it('messages of 256 KB pass both ways', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect({ transport: 'mqtt-ws' })
    await hub.sendTelemetry(Buffer.alloc(262_000, 'a'))
    expect(stage.emulator.hub.telemetry.list()[0]?.body.length).toBe(262_000)
    const sizes: number[] = []
    hub.onCommand(({ body }) => sizes.push(body.length))
    await hub.twin.get()
    stage.emulator.hub.publish(ID, `devices/${ID}/messages/devicebound/`, Buffer.alloc(262_000), { qos: 1 })
    await expect.poll(() => sizes).toEqual([262_000])
  })
})
