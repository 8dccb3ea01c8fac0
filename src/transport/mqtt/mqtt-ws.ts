import type { Transport, TransportContext, TransportSession } from '../transport.ts'
import { earlyRequest, MqttSession, withTokenAhead } from './session.ts'
import { WebSocketStream } from './websocket.ts'

const DEFAULT_PORT = 443

/**
 * TCP connection and TLS handshake are counted by the dialer; here the upgrade, CONNECT and SUBSCRIBE wait for an answer
 * each, or the upgrade alone where the first request goes out with them.
 */
const MQTT_WS_ROUND_TRIPS = 3
const UPGRADE_ROUND_TRIPS = 1

/** MQTT 3.1.1 in WebSocket messages (MQTT 3.1.1 section 6) over TLS, by default on port 443. */
export function mqttWebSocketTransport(): Transport {
  return Object.freeze({ name: 'mqtt-ws', open })
}

async function open(context: TransportContext): Promise<TransportSession> {
  context.signal.throwIfAborted()
  const ahead = withTokenAhead(context)
  const { socket, tls, roundTrips } = await context.dial(context.port ?? DEFAULT_PORT)
  const connection = Object.freeze({
    ...tls,
    transport: 'mqtt-ws',
    roundTrips:
      roundTrips + (earlyRequest(context) === undefined ? MQTT_WS_ROUND_TRIPS : UPGRADE_ROUND_TRIPS),
  })
  // The session begins at once, so that the token is made while the server answers the upgrade.
  return MqttSession.open(new WebSocketStream(socket, context), connection, ahead)
}
