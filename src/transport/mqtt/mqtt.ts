import type { Transport, TransportContext, TransportSession } from '../transport.ts'
import { earlyRequest, MqttSession, withTokenAhead } from './session.ts'

/** Registered with IANA as `secure-mqtt`. */
const DEFAULT_PORT = 8883

/**
 * TCP connection and TLS handshake are counted by the dialer; here CONNECT and SUBSCRIBE wait for an answer each, unless
 * the first request goes out with them.
 */
const MQTT_ROUND_TRIPS = 2

/** MQTT 3.1.1 over TLS, by default on port 8883. */
export function mqttTransport(): Transport {
  return Object.freeze({ name: 'mqtt', open })
}

async function open(context: TransportContext): Promise<TransportSession> {
  context.signal.throwIfAborted()
  const ahead = withTokenAhead(context)
  const { socket, tls, roundTrips } = await context.dial(context.port ?? DEFAULT_PORT)
  const connection = Object.freeze({
    ...tls,
    transport: 'mqtt',
    roundTrips: roundTrips + (earlyRequest(context) === undefined ? MQTT_ROUND_TRIPS : 0),
  })
  return MqttSession.open(socket, connection, ahead)
}
