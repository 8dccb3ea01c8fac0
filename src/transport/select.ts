import type { Transport, TransportName } from './transport.ts'

/** A transport by name, loaded only when it is used; a transport of the caller's own as it is. */
export async function selectTransport(transport: TransportName | Transport): Promise<Transport> {
  switch (transport) {
    case 'mqtt':
      return (await import('./mqtt/mqtt.ts')).mqttTransport()
    case 'mqtt-ws':
      return (await import('./mqtt/mqtt-ws.ts')).mqttWebSocketTransport()
    case 'https':
      return (await import('./https/https.ts')).httpsTransport()
    default:
      return transport
  }
}
