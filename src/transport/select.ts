import type { Transport } from './transport.ts'

/** A transport by name, loaded only when it is used; a transport of the caller's own as it is. */
export async function selectTransport(transport: 'mqtt' | Transport): Promise<Transport> {
  if (typeof transport !== 'string') return transport
  const { mqttTransport } = await import('./mqtt/mqtt.ts')
  return mqttTransport()
}
