import type { Transport, TransportName } from './transport.ts'

const loaded = new Map<TransportName, Transport>()

/** A transport by name, loaded only when it is used; a transport of the caller's own as it is. */
export async function selectTransport(choice: TransportName | Transport): Promise<Transport> {
  if (typeof choice !== 'string') return choice
  const kept = loaded.get(choice)
  if (kept !== undefined) return kept
  const transport = await load(choice)
  loaded.set(choice, transport)
  return transport
}

async function load(name: TransportName): Promise<Transport> {
  switch (name) {
    case 'mqtt':
      return (await import('./mqtt/mqtt.ts')).mqttTransport()
    case 'mqtt-ws':
      return (await import('./mqtt/mqtt-ws.ts')).mqttWebSocketTransport()
    case 'https':
      return (await import('./https/https.ts')).httpsTransport()
  }
}
