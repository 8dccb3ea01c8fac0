// An HTTP proxy as a plant's network has one: CONNECT with a user name and password, and nothing else.

import { once } from 'node:events'
import { createServer } from 'node:http'
import { connect } from 'node:net'
import { dim } from './print.mjs'

/**
 * The URL of a proxy on a free port of this machine.
 *
 * @param {{ username: string, password: string }} credentials
 */
export async function startProxy({ username, password }) {
  const expected = `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
  const server = createServer((_, response) => response.writeHead(405).end())
  server.on('connect', (request, device, head) => {
    device.on('error', () => {})
    if (request.headers['proxy-authorization'] !== expected) {
      device.end(
        'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="plant"\r\n\r\n',
      )
      return
    }
    console.log(`  ${dim(`proxy: opens a tunnel to ${request.url}`)}`)
    const { hostname, port } = new URL(`http://${request.url}`)
    const service = connect({ host: hostname, port: Number(port) }, () => {
      device.write('HTTP/1.1 200 Connection established\r\n\r\n')
      service.write(head)
      device.pipe(service).pipe(device)
    })
    service.on('error', () => device.destroy())
    device.on('close', () => service.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  // It does not keep the example running once there is nothing left to do.
  server.unref()
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
  return `http://127.0.0.1:${port}`
}
