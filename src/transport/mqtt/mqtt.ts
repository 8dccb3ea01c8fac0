import type { Transport, TransportContext, TransportSession } from '../transport.ts'
import { MqttSession } from './session.ts'

/** Registered with IANA as `secure-mqtt`. */
const DEFAULT_PORT = 8883

/** TCP connection and TLS handshake are counted by the dialer; here CONNECT and SUBSCRIBE wait for an answer each. */
const MQTT_ROUND_TRIPS = 2

/** MQTT 3.1.1 over TLS, by default on port 8883. */
export function mqttTransport(): Transport {
  return Object.freeze({ name: 'mqtt', open })
}

async function open(context: TransportContext): Promise<TransportSession> {
  context.signal.throwIfAborted()
  const { socket, tls, roundTrips } = await context.dial(context.port ?? DEFAULT_PORT)
  const connection = Object.freeze({
    ...tls,
    transport: 'mqtt',
    roundTrips: roundTrips + MQTT_ROUND_TRIPS,
  })
  return MqttSession.open(socket, connection, context)
}
