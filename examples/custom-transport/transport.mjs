// A transport of one's own: the service's HTTP interface through Node's `http` module. The client dials, verifies the
// server, waits, retries and reads the replies; what is left for a transport is to carry one request and its reply.

import { once } from 'node:events'
import { Agent, request as startRequest } from 'node:http'
import { DpsError } from 'dps-device-client'

/**
 * @typedef {import('dps-device-client').TransportContext} TransportContext
 * @typedef {import('dps-device-client').TransportRequest} TransportRequest
 * @typedef {import('dps-device-client').TransportSession} TransportSession
 * @typedef {import('dps-device-client').RawReply} RawReply
 */

/** @returns {import('dps-device-client').Transport} */
export function ownTransport() {
  return { name: 'own-http', open }
}

/** @param {TransportContext} context */
async function open(context) {
  const { signal } = context
  signal.throwIfAborted()
  const { socket, tls, roundTrips } = await context.dial(context.port ?? 443)
  const session = new Session(socket, { ...tls, transport: 'own-http', roundTrips }, context)
  if (signal.aborted) {
    socket.destroy()
    throw signal.reason
  }
  return session
}

/** @implements {TransportSession} */
class Session {
  #socket
  #context
  #agent = new Agent({ keepAlive: true, maxSockets: 1 })
  #busy = false
  #gone

  /**
   * @param {import('node:tls').TLSSocket} socket
   * @param {import('dps-device-client').ConnectionFacts} connection
   * @param {TransportContext} context
   */
  constructor(socket, connection, context) {
    this.connection = connection
    this.#socket = socket
    this.#context = context
    this.#agent.createConnection = () => socket
    this.#gone = new Promise((resolve) => socket.on('close', resolve))
    // What comes between requests answers none of them; and an error without a listener would end the process.
    socket.on('data', () => this.#busy || socket.destroy())
    socket.on('error', () => {})
  }

  /**
   * @param {TransportRequest} request
   * @param {AbortSignal} signal
   * @returns {Promise<RawReply>}
   */
  async request(request, signal) {
    const phase = request.kind === 'register' ? 'register' : 'poll'
    if (this.#busy) throw new DpsError('TRANSPORT_FAILED', phase, 'one request at a time')
    if (signal.aborted) this.#socket.destroy()
    signal.throwIfAborted()
    if (!this.#socket.writable) throw new DpsError('CONNECTION_LOST', phase, 'the connection has ended')

    this.#busy = true
    const onAbort = () => this.#socket.destroy()
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      return await this.#exchange(request, phase)
    } catch (error) {
      this.#socket.destroy()
      signal.throwIfAborted()
      throw DpsError.is(error) ? error : explain(error, phase)
    } finally {
      signal.removeEventListener('abort', onAbort)
      this.#busy = false
    }
  }

  async close() {
    // Not kept waiting by a server that does not answer, nor by one that does not end its side.
    if (this.#busy) this.#socket.destroy()
    else this.#socket.end(() => this.#socket.destroy())
    await this.#gone
  }

  /**
   * @param {TransportRequest} request
   * @param {'register' | 'poll'} phase
   * @returns {Promise<RawReply>}
   */
  async #exchange(request, phase) {
    const { host, port, userAgent, maxReplyBytes } = this.#context
    // A signer may take its time; the connection is not there for ever.
    const token = await Promise.race([this.#context.token(), this.#gone.then(() => undefined)])
    if (this.#socket.destroyed) throw new DpsError('CONNECTION_LOST', phase, 'the connection has ended')
    const body = 'body' in request ? request.body : ''
    const outgoing = startRequest({
      agent: this.#agent,
      host,
      port: port ?? 443,
      defaultPort: 443,
      ...addressOf(request, this.#context),
      headers: {
        Accept: 'application/json',
        'User-Agent': userAgent,
        ...(token !== undefined && { Authorization: token }),
        ...(body !== '' && { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) }),
      },
    })
    outgoing.on('error', () => {})
    outgoing.end(body)
    const answered = await once(outgoing, 'response')
    const response = /** @type {import('node:http').IncomingMessage} */ (answered[0])

    // Nothing from the network is trusted: neither the length of a reply nor that it has an end.
    const chunks = []
    let length = 0
    for await (const chunk of response) {
      length += chunk.length
      if (length > maxReplyBytes) throw new DpsError('REPLY_TOO_LARGE', phase, 'the reply is too large')
      chunks.push(chunk)
    }
    return {
      status: response.statusCode ?? 0,
      retryAfter: response.headers['retry-after'],
      date: response.headers.date,
      body: Buffer.concat(chunks),
    }
  }
}

/**
 * @param {TransportRequest} request
 * @param {TransportContext} context
 */
function addressOf(request, { idScope, registrationId, apiVersion }) {
  const path = `/${idScope}/registrations/${encodeURIComponent(registrationId)}`
  const query = `?api-version=${apiVersion}`
  switch (request.kind) {
    case 'register':
      return { method: 'PUT', path: `${path}/register${query}` }
    case 'query':
      return { method: 'GET', path: `${path}/operations/${encodeURIComponent(request.operationId)}${query}` }
    case 'lookup':
      return { method: 'POST', path: path + query }
  }
}

/**
 * Every error that leaves a transport is a DpsError: here one of two codes.
 *
 * @param {unknown} error
 * @param {'register' | 'poll'} phase
 */
function explain(error, phase) {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  return code.startsWith('HPE_')
    ? new DpsError('PROTOCOL_VIOLATION', phase, 'the server sent what is no HTTP', { cause: error })
    : new DpsError('CONNECTION_LOST', phase, 'the connection ended before the reply', { cause: error })
}
