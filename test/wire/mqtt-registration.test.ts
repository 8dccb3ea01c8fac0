import { once } from 'node:events'
import net from 'node:net'
import { describe, expect, it } from 'vitest'
import { MqttSession } from '../../src/transport/mqtt/session.ts'
import type { TransportRequest } from '../../src/transport/transport.ts'

// One registration, byte for byte in both directions, written out by hand from the MQTT 3.1.1 standard and
// https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-dps

const OPERATION = '5.316aac5bdc130deb.b1e02da8-c3a0-4ff2-a121-7ea7a6b7f550'
const TOKEN =
  'SharedAccessSignature sr=0ne00000001%2Fregistrations%2Fmy-device&sig=c2ln&se=1790000000&skn=registration'
const ASSIGNING = `{"operationId":"${OPERATION}","status":"assigning"}`
const ASSIGNED = '{"status":"assigned"}'

/** Text and, in angle brackets, bytes in hexadecimal. */
const bytes = (notation: string) =>
  Buffer.concat(
    notation
      .split(/(<[^>]*>)/)
      .map((part) =>
        part.startsWith('<')
          ? Buffer.from(part.slice(1, -1).replace(/ /g, ''), 'hex')
          : Buffer.from(part, 'utf8'),
      ),
  )

interface Turn {
  readonly client: Buffer
  readonly server: Buffer
}

// CONNECT: "MQTT", level 4; user name, clean session and, with a token, password; keep-alive 230 s. Then CONNACK.
const USER_NAME =
  '0ne00000001/registrations/my-device/api-version=2019-03-31&ClientVersion=test%2F1.0%20%C3%A9'
const connectSas = {
  client: bytes(`<10 dd 01 0004>MQTT<04 c2 00e6><0009>my-device<005c>${USER_NAME}<0068>${TOKEN}`),
  server: bytes('<20 02 00 00>'),
}
const connectX509 = {
  client: bytes(`<10 73 0004>MQTT<04 82 00e6><0009>my-device<005c>${USER_NAME}`),
  server: bytes('<20 02 00 00>'),
}

// SUBSCRIBE with packet id 1 and QoS 1. SUBACK grants it.
const subscribe = {
  client: bytes('<82 1d 0001 0018>$dps/registrations/res/#<01>'),
  server: bytes('<90 03 0001 01>'),
}

// PUBLISH of QoS 1. PUBACK, and the reply with QoS 1 and packet id 1.
const register = {
  client: bytes(
    '<32 58 002f>$dps/registrations/PUT/iotdps-register/?$rid=r1<0002>{"registrationId":"my-device","ü":1}',
  ),
  server: bytes(
    `<40 02 0002><32 93 01 0031>$dps/registrations/res/202/?$rid=r1&retry-after=3<0001>${ASSIGNING}`,
  ),
}

// PUBACK to that reply; the status request, without a body. The reply with QoS 0.
const query = {
  client: bytes(
    '<40 02 0001>' +
      `<32 82 01 007e>$dps/registrations/GET/iotdps-get-operationstatus/?$rid=r2&operationId=${OPERATION}<0003>`,
  ),
  server: bytes(`<30 3a 0023>$dps/registrations/res/200/?$rid=r2${ASSIGNED}`),
}

const disconnect = { client: bytes('<e0 00>'), server: Buffer.alloc(0) }

const BODY = '{"registrationId":"my-device","ü":1}'

async function play(
  turns: readonly Turn[],
  password: string | undefined,
  chunkBytes: number,
  firstRequest?: TransportRequest,
): Promise<void> {
  const failures: unknown[] = []
  const server = net.createServer(async (socket) => {
    try {
      const chunks = socket[Symbol.asyncIterator]()
      let received = Buffer.alloc(0)
      for (const { client, server } of turns) {
        while (received.length < client.length) {
          const { value, done } = await chunks.next()
          if (done) throw new Error(`the client left after ${JSON.stringify(received.toString('latin1'))}`)
          received = Buffer.concat([received, value])
        }
        expect(received.subarray(0, client.length).toString('latin1')).toBe(client.toString('latin1'))
        received = received.subarray(client.length)
        for (let at = 0; at < server.length; at += chunkBytes) {
          const chunk = server.subarray(at, at + chunkBytes)
          await new Promise((resolve) => socket.write(chunk, resolve))
        }
      }
      expect(received).toHaveLength(0)
    } catch (error) {
      failures.push(error)
      socket.destroy()
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const socket = net.connect({
    port: (server.address() as net.AddressInfo).port,
    host: '127.0.0.1',
    noDelay: true,
  })
  await once(socket, 'connect')
  try {
    const { signal } = new AbortController()
    const session = await MqttSession.open(
      socket,
      {
        transport: 'mqtt',
        protocol: 'TLSv1.2',
        cipher: 'suite',
        curve: 'X25519',
        root: 'unknown',
        resumed: false,
        roundTrips: 5,
      },
      {
        idScope: '0ne00000001',
        registrationId: 'my-device',
        apiVersion: '2019-03-31',
        userAgent: 'test/1.0 é',
        maxReplyBytes: 1024,
        signal,
        enter: () => {},
        token: async () => password,
        firstRequest,
      },
      'r',
    )
    const first = await session.request({ kind: 'register', body: BODY }, signal)
    expect({ ...first, body: Buffer.from(first.body).toString() }).toEqual({
      status: 202,
      retryAfter: '3',
      body: ASSIGNING,
    })
    const second = await session.request({ kind: 'query', operationId: OPERATION }, signal)
    expect({ ...second, body: Buffer.from(second.body).toString() }).toEqual({
      status: 200,
      retryAfter: undefined,
      body: ASSIGNED,
    })
    await session.close()
  } catch (error) {
    failures.unshift(error)
  } finally {
    socket.destroy()
    server.close()
    await once(server, 'close')
  }
  // What the server saw explains what the client ran into.
  if (failures.length > 0) throw failures.at(-1)
}

describe('a registration on the wire', () => {
  it.each([
    ['with a token', connectSas, TOKEN],
    ['with a certificate, so without a password', connectX509, undefined],
  ])('%s', async (_, connect, password) => {
    const turns = [connect, subscribe, register, query, disconnect]
    await play(turns, password, 65_536)
    await play(turns, password, 1)
    // Pipelined: the same bytes, with one wait in place of three.
    const flight = {
      client: Buffer.concat([connect.client, subscribe.client, register.client]),
      server: Buffer.concat([connect.server, subscribe.server, register.server]),
    }
    const first = { kind: 'register', body: BODY } as const
    await play([flight, query, disconnect], password, 65_536, first)
    await play([flight, query, disconnect], password, 1, first)
  })
})
