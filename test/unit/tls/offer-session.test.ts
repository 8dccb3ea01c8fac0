import { once } from 'node:events'
import net from 'node:net'
import tls, { type ConnectionOptions, TLSSocket } from 'node:tls'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { offerSession } from '../../../src/tls/offer-session.ts'
import { issue, keyPem, rsaKey } from './pki.ts'
import { tlsServer } from './servers.ts'

// Whichever way a session is offered, the handshake decides, and what was not resumed is verified like any other.

const HOST = 'dps.test'
const key = rsaKey()
const rootKey = rsaKey()
const root = issue({ name: 'Root', key: rootKey, ca: true })
const leaf = issue({ name: HOST, key, issuer: root, dns: [HOST] })
const server = { key: keyPem(key), cert: leaf.pem, maxVersion: 'TLSv1.2' as const }

const prototype = TLSSocket.prototype as { setSession?: unknown }
const own = prototype.setSession
afterEach(() => {
  prototype.setSession = own
  vi.restoreAllMocks()
})

const options = (port: number, more: ConnectionOptions = {}): ConnectionOptions => ({
  host: '127.0.0.1',
  port,
  servername: HOST,
  ca: root.pem,
  ...more,
})

async function begun(port: number): Promise<Buffer> {
  const socket = tls.connect(options(port))
  const [session] = await once(socket, 'session')
  await finished(socket)
  return session
}

async function resumes(socket: TLSSocket): Promise<boolean> {
  await once(socket, 'secureConnect')
  const resumed = socket.isSessionReused()
  expect(socket.authorized).toBe(true)
  await finished(socket)
  return resumed
}

async function finished(socket: TLSSocket): Promise<void> {
  const closed = once(socket, 'close')
  socket.destroy()
  await closed
}

describe('a session is resumed', () => {
  it('and decoded once, where TCP has yet to connect', async () => {
    const port = await tlsServer(server)
    const session = await begun(port)
    const setSession = vi.spyOn(
      TLSSocket.prototype as unknown as { setSession(s: Buffer): void },
      'setSession',
    )
    const connect = vi.fn((given: ConnectionOptions) => tls.connect(given))
    expect(await resumes(offerSession(session, options(port), connect))).toBe(true)
    expect(setSession).toHaveBeenCalledTimes(1)
    expect(connect.mock.calls[0]![0]).not.toHaveProperty('session')
  })

  it('over a socket that is connected', async () => {
    const port = await tlsServer(server)
    const session = await begun(port)
    const socket = net.connect(port, '127.0.0.1')
    await once(socket, 'connect')
    expect(await resumes(offerSession(session, options(port, { socket }), tls.connect))).toBe(true)
  })

  it('by a Node.js whose sockets have no method for it', async () => {
    const port = await tlsServer(server)
    const session = await begun(port)
    prototype.setSession = undefined
    const connect = vi.fn((given: ConnectionOptions) => {
      prototype.setSession = own
      return tls.connect(given)
    })
    expect(await resumes(offerSession(session, options(port), connect))).toBe(true)
    expect(connect.mock.calls[0]![0].session).toBe(session)
  })
})

describe('a session does not replace verification', () => {
  it('of a server that does not know it', async () => {
    const session = await begun(await tlsServer(server))
    const other = await tlsServer(server)
    expect(await resumes(offerSession(session, options(other), tls.connect))).toBe(false)
  })

  it('of a server that does not know it and has another name', async () => {
    const session = await begun(await tlsServer(server))
    const cert = issue({ name: 'else', key, issuer: root, dns: ['else.test'] }).pem
    const socket = offerSession(session, options(await tlsServer({ ...server, cert })), tls.connect)
    const [error] = await once(socket, 'error')
    expect(error.code).toBe('ERR_TLS_CERT_ALTNAME_INVALID')
  })

  it('of a server that does not know it and has another root', async () => {
    const session = await begun(await tlsServer(server))
    const foreign = issue({ name: 'Foreign', key: rootKey, ca: true })
    const cert = issue({ name: HOST, key, issuer: foreign, dns: [HOST] }).pem
    const socket = offerSession(session, options(await tlsServer({ ...server, cert })), tls.connect)
    const [error] = await once(socket, 'error')
    expect(error.code).toBe('UNABLE_TO_VERIFY_LEAF_SIGNATURE')
  })
})
