import client, { type IClientOptions } from 'mqtt/lib/client'
import type { Packet } from 'mqtt-packet'
import type { Clock } from '../clock.ts'

// The client alone: the package's main module brings every way of connecting along. It is CommonJS with a default export,
// of which loaders hand over either the class or the module.
export const MqttClient = (client as unknown as { default?: typeof client }).default ?? client
export type MqttClient = InstanceType<typeof MqttClient>
export type { IClientOptions }

/** MQTT.js measures its keep-alive with an interval; here with the one clock. */
export function intervalOf(clock: Clock): Exclude<IClientOptions['timerVariant'], string | undefined> {
  const set = (callback: () => void, ms: number): { cancel: () => void } => {
    const interval = { cancel: (): void => undefined }
    const arm = (): void => {
      interval.cancel = clock.after(ms, () => {
        arm()
        callback()
      })
    }
    arm()
    return interval
  }
  return {
    set: set as never,
    clear: ((interval: { cancel: () => void } | undefined) => interval?.cancel()) as never,
  }
}

interface Internals {
  _sendPacket(packet: Packet, done?: () => void, ...rest: unknown[]): void
}

/**
 * MQTT.js acknowledges a message (QoS 1) as soon as it has handed it over, and has no option to do so when it has been
 * dealt with: the one way all packets leave by is taken over. What is returned acknowledges.
 */
export function acknowledgeByHand(client: MqttClient): (messageId: number) => void {
  const internals = client as unknown as Internals
  const send = internals._sendPacket.bind(client)
  internals._sendPacket = (packet, done, ...rest) => {
    if (packet.cmd === 'puback') done?.()
    else send(packet, done, ...rest)
  }
  return (messageId) => send({ cmd: 'puback', messageId })
}
