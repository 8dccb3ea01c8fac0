import { mqttTransport } from '../../src/transport/mqtt/mqtt.ts'
import { mqttWebSocketTransport } from '../../src/transport/mqtt/mqtt-ws.ts'
import type { Transport } from '../../src/transport/transport.ts'
import { keepsTheContract } from './run.ts'

/** The transport as it is where every session is opened with the request that the suite asks first. */
function pipelining(transport: Transport): Transport {
  return {
    name: transport.name,
    open: (context) => {
      const body = JSON.stringify({ registrationId: context.registrationId })
      return transport.open({ ...context, firstRequest: { kind: 'register', body } })
    },
  }
}

/**
 * Said of a request that is sent when it is asked. Here it was sent before, with another body in the first case; in the
 * others what becomes of it may overtake SUBACK, and then is why `open` rejects.
 */
const EXCEPT = [
  'request sends and receives bodies in UTF-8',
  'request rejects with CONNECTION_LOST in phase register where the connection ends first (drop)',
  'request rejects with CONNECTION_LOST in phase register where the connection ends first (no-close-notify)',
  'request rejects with CONNECTION_LOST in phase register where the connection ends first (reset)',
  'close resolves after a loss, an abort and a reply that is not the protocol',
]

await keepsTheContract(() => pipelining(mqttTransport()), EXCEPT)
await keepsTheContract(() => pipelining(mqttWebSocketTransport()), EXCEPT)
