import { createHmac } from 'node:crypto'
import type { IConnectPacket, IPublishPacket, Packet } from 'mqtt-packet'
import type { Emulator } from '../../../../src/emulator/index.ts'
import { type DialOptions, dial, type RawDevice } from '../raw-device.ts'

export const HUB = 'emulated-hub.azure-devices.net'

export interface HubHello {
  id: string
  moduleId?: string
  hub?: string
  /** Of the TLS server name. Default: `hub`. */
  serverName?: string
  clientId?: string
  query?: string
  userName?: string
  sas?: string
  clean?: boolean
  packet?: Partial<IConnectPacket>
  tls?: DialOptions
}

export interface HubSas {
  key: string
  id: string
  moduleId?: string
  hub?: string
  expiresAt?: number
  resource?: string
  suffix?: string
}

export function hubToken({ key, id, moduleId, hub = HUB, expiresAt, resource, suffix = '' }: HubSas): string {
  const module = moduleId === undefined ? '' : `/modules/${moduleId}`
  const sr = resource ?? encodeURIComponent(`${hub}/devices/${id}${module}`)
  const se = expiresAt ?? 4_000_000_000
  const mac = createHmac('sha256', Buffer.from(key, 'base64')).update(`${sr}\n${se}`).digest('base64')
  return `SharedAccessSignature sr=${sr}&sig=${encodeURIComponent(mac)}&se=${se}${suffix}`
}

export function hubConnect({
  id,
  moduleId,
  hub = HUB,
  clientId = moduleId === undefined ? id : `${id}/${moduleId}`,
  query = '/?api-version=2021-04-12',
  userName = `${hub}/${moduleId === undefined ? id : `${id}/${moduleId}`}${query}`,
  sas,
  clean = true,
  packet,
}: HubHello): IConnectPacket {
  return {
    cmd: 'connect',
    protocolId: 'MQTT',
    protocolVersion: 4,
    clean,
    keepalive: 0,
    clientId,
    username: userName,
    ...(sas === undefined ? {} : { password: Buffer.from(sas) }),
    ...packet,
  }
}

export const dialHub = (emulator: Emulator, hello: HubHello): Promise<RawDevice> =>
  dial(emulator, { servername: hello.serverName ?? hello.hub ?? HUB, ...hello.tls })

/** CONNACK return code of a CONNECT, or `'closed'`. */
export async function hubConnack(emulator: Emulator, hello: HubHello): Promise<number | 'closed'> {
  const device = await dialHub(emulator, hello)
  device.send(hubConnect(hello))
  const packet = await device.next()
  device.socket.destroy()
  await device.closed
  return packet?.cmd === 'connack' ? (packet.returnCode ?? -1) : 'closed'
}

/** A device that is connected. */
export async function onHub(
  emulator: Emulator,
  hello: HubHello,
): Promise<RawDevice & { sessionPresent: boolean }> {
  const device = await dialHub(emulator, hello)
  device.send(hubConnect(hello))
  const connack = await device.next()
  if (connack?.cmd !== 'connack' || connack.returnCode !== 0) throw new Error('not accepted')
  return Object.assign(device, { sessionPresent: connack.sessionPresent })
}

export async function subscribe(
  device: RawDevice,
  filters: readonly string[],
  qos: 0 | 1 | 2 = 1,
): Promise<readonly number[]> {
  device.send({
    cmd: 'subscribe',
    messageId: 77,
    subscriptions: filters.map((topic) => ({ topic, qos })),
  })
  const suback = await device.next()
  if (suback?.cmd !== 'suback') throw new Error(`expected SUBACK, got ${suback?.cmd ?? 'close'}`)
  return suback.granted as number[]
}

export const telemetry = (
  id: string,
  bag = '',
  body: string | Buffer = '{}',
  extra: Partial<IPublishPacket> = {},
): Packet => ({
  cmd: 'publish',
  topic: `devices/${id}/messages/events/${bag}`,
  payload: body,
  qos: 1,
  messageId: 5,
  dup: false,
  retain: false,
  ...extra,
})

export const publish = (topic: string, body: string | Buffer = ''): Packet => ({
  cmd: 'publish',
  topic,
  payload: body,
  qos: 0,
  dup: false,
  retain: false,
})
