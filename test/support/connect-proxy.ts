import { once } from 'node:events'
import net from 'node:net'
import tls from 'node:tls'
import { type IssuedCertificate, issueCertificate } from '../../src/emulator/index.ts'

/**
 * What the proxy does with a CONNECT that it has read:
 *
 * - `tunnel` opens it; `trickle` does so with a head that is sent byte by byte, after two interim answers
 * - `inspect` opens it and answers the TLS handshake itself, with a certificate from its own CA
 * - `mute` says nothing; `drop` hangs up and `reset` resets without an answer
 * - `drop-in-head` hangs up in the middle of the head, `drop-after-head` when the tunnel is open
 * - `extra-bytes` sends some of its own after the head; `huge-head` never ends its head; `garbage` is no HTTP
 * - `{ status }` refuses; `{ raw }` sends these bytes, and then opens a tunnel
 */
export type ProxyBehaviour =
  | 'tunnel'
  | 'trickle'
  | 'inspect'
  | 'mute'
  | 'drop'
  | 'reset'
  | 'drop-in-head'
  | 'drop-after-head'
  | 'extra-bytes'
  | 'huge-head'
  | 'garbage'
  | { readonly status: number; readonly reason?: string; readonly fields?: readonly string[] }
  | { readonly raw: string | Uint8Array }

export interface ConnectProxyOptions {
  /** Default `'tunnel'`. */
  behaviour?: ProxyBehaviour
  /** Asked for by Basic authentication; without them, or with others, the answer is 407. Default: none needed. */
  credentials?: { readonly username: string; readonly password: string }
  /** Where tunnels really lead, so that a name which only the proxy can resolve may be asked for. Default: where asked. */
  leadsTo?: { readonly host: string; readonly port: number }
  /** Default `127.0.0.1`. */
  address?: string
  /** Called after every change of `requests` or `open`. */
  onChange?: () => void
}

export interface ConnectRequest {
  /** `host:port` as it was asked for. */
  readonly target: string
  /** Request line and header fields, each one line. */
  readonly lines: readonly string[]
}

/** A real HTTP proxy on a free loopback port. */
export interface ConnectProxy {
  readonly port: number
  /** `http://127.0.0.1:port` */
  readonly url: string
  /** May be changed at any time, for the next request. */
  behaviour: ProxyBehaviour
  /** Connections accepted since the start. */
  readonly connections: number
  /** Connections open now, towards devices and servers. */
  readonly open: number
  readonly requests: readonly ConnectRequest[]
  /** The CA of `inspect`: what a device would have to trust. */
  readonly ca: IssuedCertificate
  /** Resolves as soon as no connection is open. */
  idle(): Promise<void>
  close(): Promise<void>
}

const ESTABLISHED = 'HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n'

export const INSPECTION_CA_NAME = 'Contoso Inspection CA'

// Keys take a while to make; one CA and one server key serve all proxies of a test file.
let inspection: Promise<{ ca: IssuedCertificate; key: string }> | undefined

async function makeInspection(): Promise<{ ca: IssuedCertificate; key: string }> {
  const ca = await issueCertificate({ subject: INSPECTION_CA_NAME, ca: true, keyType: 'rsa-2048' })
  const leaf = await issueCertificate({ subject: 'inspected', issuer: ca, keyType: 'rsa-2048' })
  return { ca, key: leaf.keyPem }
}

export async function startConnectProxy(options: ConnectProxyOptions = {}): Promise<ConnectProxy> {
  const { credentials, leadsTo, address = '127.0.0.1', onChange = () => {} } = options
  inspection ??= makeInspection()
  const { ca, key } = await inspection
  const sockets = new Set<net.Socket>()
  const requests: ConnectRequest[] = []
  const waiting = new Set<() => void>()
  let connections = 0
  let behaviour = options.behaviour ?? 'tunnel'

  const track = (socket: net.Socket): void => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => {
      sockets.delete(socket)
      onChange()
      if (sockets.size === 0) for (const resolve of waiting) resolve()
    })
  }
  const server = net.createServer((socket) => {
    connections++
    track(socket)
    void readHead(socket).then((head) => {
      if (head === undefined) return
      const lines = head.split('\r\n')
      const target = /^CONNECT (\S+) HTTP\/1\.1$/.exec(lines[0] ?? '')?.[1]
      if (target === undefined) {
        socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')
        return
      }
      requests.push({ target, lines })
      onChange()
      if (credentials !== undefined && !lines.includes(expected(credentials))) {
        refuse(socket, 407, 'Proxy Authentication Required', ['Proxy-Authenticate: Basic realm="test"'])
        return
      }
      void behave(socket, target)
    })
  })

  const connectTarget = (target: string): net.Socket => {
    const [, host = '', port] = /^\[?(.*?)\]?:(\d+)$/.exec(target) ?? []
    const upstream = net.connect(leadsTo ?? { host, port: Number(port) })
    track(upstream)
    return upstream
  }
  const tunnel = (socket: net.Socket, target: string): void => {
    const upstream = connectTarget(target)
    socket.pipe(upstream)
    upstream.pipe(socket)
    socket.on('close', () => upstream.destroy())
    upstream.on('close', () => socket.destroy())
  }
  const inspect = (socket: net.Socket, target: string): void => {
    let asked = 'localhost'
    const inside = new tls.TLSSocket(socket, {
      isServer: true,
      SNICallback: (servername, done) => {
        asked = servername
        issueCertificate({ subject: servername, sans: [servername], issuer: ca, key }).then(
          ({ certPem }) => done(null, tls.createSecureContext({ cert: certPem, key })),
          (error) => done(error),
        )
      },
    })
    inside.on('error', () => socket.destroy())
    inside.on('secure', () => {
      // What an inspecting proxy thinks of the server is its own affair, and not under test here.
      const outside = tls.connect({
        socket: connectTarget(target),
        servername: asked,
        rejectUnauthorized: false,
      })
      outside.on('error', () => socket.destroy())
      inside.pipe(outside)
      outside.pipe(inside)
      inside.on('close', () => outside.destroy())
      outside.on('close', () => inside.destroy())
    })
  }

  const behave = async (socket: net.Socket, target: string): Promise<void> => {
    // What nobody reads would hide the end of the connection; a tunnel takes it over.
    socket.resume()
    if (typeof behaviour === 'object') {
      if ('raw' in behaviour) {
        socket.write(behaviour.raw)
        tunnel(socket, target)
      } else {
        refuse(socket, behaviour.status, behaviour.reason ?? 'Refused', behaviour.fields ?? [])
      }
      return
    }
    switch (behaviour) {
      case 'tunnel':
        socket.write(ESTABLISHED)
        tunnel(socket, target)
        break
      case 'trickle':
        socket.setNoDelay(true)
        for (const byte of Buffer.from(
          `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 103\nLink: <a>\n\n${ESTABLISHED}`,
        )) {
          await new Promise<void>((written) => socket.write(Buffer.from([byte]), () => setImmediate(written)))
        }
        tunnel(socket, target)
        break
      case 'inspect':
        socket.write(ESTABLISHED)
        inspect(socket, target)
        break
      case 'mute':
        break
      case 'drop':
        socket.end()
        break
      case 'reset':
        socket.resetAndDestroy()
        break
      case 'drop-in-head':
        socket.end(ESTABLISHED.slice(0, 30))
        break
      case 'drop-after-head':
        socket.end(ESTABLISHED)
        break
      case 'extra-bytes':
        socket.write(`${ESTABLISHED}<html>Welcome to the internet</html>`)
        break
      case 'huge-head':
        socket.write(`HTTP/1.1 200 OK\r\n${'X-Filler: x\r\n'.repeat(2000)}`)
        break
      case 'garbage':
        socket.write('SSH-2.0-OpenSSH_9.2p1\r\n')
        break
    }
  }

  server.listen(0, address)
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  return {
    port,
    url: `http://${address.includes(':') ? `[${address}]` : address}:${port}`,
    get behaviour() {
      return behaviour
    },
    set behaviour(next) {
      behaviour = next
    },
    get connections() {
      return connections
    },
    get open() {
      return sockets.size
    },
    requests,
    ca,
    idle: () =>
      new Promise((resolve) => {
        if (sockets.size === 0) return resolve()
        waiting.add(resolve)
      }),
    close: async () => {
      for (const socket of sockets) socket.destroy()
      server.close()
      if (server.listening) await once(server, 'close')
    },
  }
}

const expected = ({ username, password }: { username: string; password: string }): string =>
  `Proxy-Authorization: Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`

function refuse(socket: net.Socket, status: number, reason: string, fields: readonly string[]): void {
  const body = 'go away'
  const head = [`HTTP/1.1 ${status} ${reason}`, `Content-Length: ${body.length}`, ...fields, '', body]
  socket.end(head.join('\r\n'))
}

/** The request without its last empty line; undefined when the connection ended first. */
async function readHead(socket: net.Socket): Promise<string | undefined> {
  let head = ''
  return new Promise((resolve) => {
    const onData = (chunk: Buffer): void => {
      head += chunk.toString('latin1')
      if (!head.endsWith('\r\n\r\n')) return
      socket.off('data', onData)
      socket.pause()
      resolve(head.slice(0, -4))
    }
    socket.on('data', onData)
    socket.once('close', () => resolve(undefined))
  })
}
