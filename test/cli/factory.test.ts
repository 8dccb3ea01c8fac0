import { createServer } from 'node:net'
import { afterAll, describe, expect, test } from 'vitest'
import { Bench, run } from './bench.ts'

const bench = await Bench.open()
const { emulator, trust, x509 } = bench
afterAll(() => bench.close())

/** Port 8883 is blocked, as in many a factory. */
async function blocked(): Promise<readonly string[]> {
  const server = createServer()
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as { port: number }
  await new Promise((done) => server.close(done))
  const { idScope, address } = emulator
  return [
    '--id-scope',
    idScope,
    '--connect-to',
    address,
    '--port',
    `${port}`,
    '--web-port',
    `${emulator.port}`,
  ]
}

const stranger = ['--cert', bench.file('stranger.pem'), '--key', bench.file('stranger-key.pem')]

describe('a factory whose devices will register over port 443', () => {
  for (const [transport, id] of [
    ['mqtt-ws', 'websocket.upgrade'],
    ['https', 'https.request'],
  ] as const) {
    const look = async (credential: readonly string[]) => {
      const args = ['doctor', ...(await blocked()), ...trust, ...credential, '--transport', transport]
      const ran = await run([...args, '--factory', '--json'])
      const report = JSON.parse(ran.stdout) as {
        failed?: string
        checks: readonly { id: string; status: string }[]
      }
      return {
        code: ran.code,
        failed: report.failed,
        status: report.checks.find((one) => one.id === id)?.status,
      }
    }

    test(`is told of a credential that the service does not let in over ${transport}`, async () => {
      expect(await look(stranger)).toEqual({ code: 7, failed: id, status: 'error' })
    })

    test(`is let in over ${transport}, and nothing is registered`, async () => {
      expect(await look(x509)).toEqual({ code: 0, failed: undefined, status: 'ok' })
      expect(emulator.registrations.size).toBe(0)
    })
  }
})
