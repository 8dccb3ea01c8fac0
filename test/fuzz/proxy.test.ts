import { once } from 'node:events'
import net from 'node:net'
import fc from 'fast-check'
import { afterAll, expect, it } from 'vitest'
import { generateSymmetricKey } from '../../src/emulator/index.ts'
import { DpsError, ProvisioningClient, symmetricKey } from '../../src/index.ts'
import { testClock } from '../support/clock.ts'
import { changed, check, ending, limitMs, mutation, RUNS } from './fuzz.ts'

// The whole client behind an HTTP proxy whose answer to CONNECT is almost one, and which then hangs up.

/** As squid, tinyproxy, Apache and a captive portal answer. */
const HEADS = [
  'HTTP/1.1 200 Connection established\r\n\r\n',
  'HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n',
  'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nVia: 1.1 proxy.example\r\n\r\n',
  'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm="proxy"\r\nContent-Length: 3\r\n\r\nno\n',
  'HTTP/1.1 403 Forbidden\r\nServer: squid/6.6\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
  'HTTP/1.1 503 Service Unavailable\r\nRetry-After: 30\r\nConnection: close\r\n\r\n',
  'HTTP/1.1 302 Found\r\nLocation: http://portal.example/login\r\n\r\n',
]
const WORDS = [
  ...[
    '\r\n',
    '\n',
    '\r',
    '\r\n\r\n',
    '\0',
    '\t',
    ' ',
    ': ',
    'HTTP/1.1 ',
    'HTTP/1.',
    'HTTP/2 ',
    '200 ',
    '101 ',
    '199 ',
    '999 ',
  ],
  ...[
    'X: y\r\n',
    ' folded\r\n',
    'Proxy-Authenticate: ',
    'Retry-After: 1e9\r\n',
    'Content-Length: -1\r\n',
    '\x16\x03\x03\x00\x02\x02\x28',
  ],
  ...['HTTP/1.1 100 Continue\r\n\r\n', '\x1b[31m', '\u0085'],
]

let answer: Buffer = Buffer.alloc(0)
const open = new Set<net.Socket>()
let gone = () => {}
const server = net.createServer((socket) => {
  open.add(socket)
  socket.on('error', () => {})
  socket.on('close', () => {
    open.delete(socket)
    gone()
  })
  socket.resume()
  socket.once('data', () => socket.end(answer))
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
const { port } = server.address() as net.AddressInfo
afterAll(() => {
  server.close()
})

const credential = symmetricKey({ registrationId: 'fuzz', key: generateSymmetricKey() })

it(
  'an answer of a proxy that was changed ends in phase proxy, or in that of the handshake behind it',
  async () => {
    const phases = new Map<string, number>()
    const answers = fc.tuple(fc.constantFrom(...HEADS), fc.array(mutation(WORDS), { maxLength: 4 }))
    await check(
      fc.asyncProperty(answers, async ([head, mutations]) => {
        answer = changed(Buffer.from(head, 'latin1'), mutations)
        const clock = testClock()
        const client = new ProvisioningClient({
          idScope: '0ne00000000',
          credential,
          proxy: `http://127.0.0.1:${port}`,
          clock,
          retry: { maxAttempts: 1 },
        })
        const end = await ending(client.register())
        if (!DpsError.is(end)) throw new Error('registered with a proxy')
        const sent = JSON.stringify(answer.toString('latin1'))
        expect(['proxy', 'tls'], `${end.code} ${end.phase} after ${sent}`).toContain(end.phase)
        phases.set(end.phase, (phases.get(end.phase) ?? 0) + 1)
        expect(clock.pending).toBe(0)
        while (open.size > 0) {
          await new Promise<void>((resolve) => {
            gone = resolve
          })
        }
      }),
      RUNS * 3,
    )
    expect([...phases.keys()].sort()).toEqual(['proxy', 'tls'])
  },
  limitMs(RUNS * 3),
)
