import { type ConnectionOptions, TLSSocket } from 'node:tls'

type SetSession = (session: Buffer) => void

/**
 * Connects with a session to resume.
 *
 * To decode a session is three quarters of what a resumption costs, and Node 20 decodes its option `session` twice: when
 * the socket is made and once more in `connect`. The socket's own `setSession`, which is not documented, decodes it once.
 * It can be used where the handshake has not begun when `connect` returns, which is where TCP has yet to connect.
 * Should it be gone, or the socket be connected, the option does the same for more. Either way the session is only
 * offered: what the server and OpenSSL make of it is not decided here.
 */
export function offerSession(
  session: Buffer,
  options: ConnectionOptions,
  connect: (options: ConnectionOptions) => TLSSocket,
): TLSSocket {
  const setSession = (TLSSocket.prototype as { setSession?: SetSession }).setSession
  if (options.socket !== undefined || typeof setSession !== 'function') {
    return connect({ ...options, session })
  }
  const socket = connect(options)
  setSession.call(socket, session)
  // From Node 22 on each further address has a handle of its own, and what was set is lost with that of a dead one.
  for (const dead of ['connectionAttemptFailed', 'connectionAttemptTimeout']) {
    socket.on(dead, () => socket.once('connectionAttempt', () => setSession.call(socket, session)))
  }
  return socket
}
