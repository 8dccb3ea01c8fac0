import type { Transport, TransportContext, TransportSession } from '../transport.ts'
import { HttpsSession } from './session.ts'

const DEFAULT_PORT = 443

/**
 * HTTP/1.1 over TLS, by default on port 443: register, status and lookup are requests of one kept-alive connection.
 *
 * https://learn.microsoft.com/rest/api/iot-dps/device/runtime-registration
 */
export function httpsTransport(): Transport {
  return Object.freeze({ name: 'https', open })
}

async function open(context: TransportContext): Promise<TransportSession> {
  const { signal } = context
  signal.throwIfAborted()
  const { socket, tls, roundTrips } = await context.dial(context.port ?? DEFAULT_PORT)
  const session = new HttpsSession(socket, Object.freeze({ ...tls, transport: 'https', roundTrips }), context)
  if (signal.aborted) {
    session.abandon(signal.reason)
    throw signal.reason
  }
  return session
}
