import { describe, expect, test } from 'vitest'
import type { FaultStep } from '../../src/emulator/index.ts'
import type { DpsErrorCode, DpsPhase } from '../../src/index.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { lie, REGISTRATION_ID, type Setup, Stage } from '../support/stage.ts'

const singleAttempt: Setup = { client: { retry: { maxAttempts: 1 } } }

/** Where the connection ends, and the phases in which the client may be by then. */
const ENDS: readonly (readonly [Exclude<FaultStep, 'issue'>, readonly DpsPhase[]])[] = [
  // A reset may overtake what was sent before it: the news that the connection was made, the end of the handshake.
  ['accept', ['tcp', 'tls']],
  ['client-hello', ['tls']],
  ['handshake', ['tls', 'connect']],
  ['connect', ['connect']],
  ['subscribe', ['subscribe']],
  ['register', ['register']],
  ['register-reply', ['register']],
  ['poll', ['poll']],
  ['poll-reply', ['poll']],
]

async function lost(stage: Stage, phases: readonly DpsPhase[]): Promise<void> {
  const error = await stage.register().then(
    () => expect.fail('registered over a connection that had ended'),
    (thrown: unknown) => thrown,
  )
  expect(error).toMatchObject({ name: 'DpsError', code: 'CONNECTION_LOST', retryable: true })
  expect(phases).toContain((error as { phase: DpsPhase }).phase)
}

const kindOf = (topic: string) => (topic.includes('/PUT/') ? 'register' : 'poll')

for (const [what, action] of [
  ['ends the connection (FIN)', 'drop'],
  ['tears the connection down (RST)', 'reset'],
] as const) {
  describe(`a server that ${what}`, () => {
    for (const [at, phases] of ENDS) {
      lie(`at ${at}, and one attempt`, singleAttempt, async (stage) => {
        stage.faults.add({ at, do: action })
        await lost(stage, phases)
        expect(stage.emulator.log.connections).toHaveLength(1)
      })

      lie(`at ${at} once`, {}, async (stage) => {
        stage.faults.add({ at, do: action })
        expect(await stage.register()).toMatchObject({ registrationId: REGISTRATION_ID, status: 'assigned' })
        expect(stage.emulator.log.connections).toHaveLength(2)
        expect(stage.emulator.registrations.get(REGISTRATION_ID)?.count).toBe(1)

        const kinds = stage.requests.map(kindOf)
        if (at.startsWith('register')) {
          // The operation was never heard of, so another one has to be started.
          expect(kinds).toEqual(['register', 'register', 'poll'])
        } else if (at.startsWith('poll')) {
          // It is not started again: the same operation is asked about over the new connection.
          expect(kinds).toEqual(['register', 'poll', 'poll'])
          const [first, second] = stage.requests.slice(1).map((topic) => topic.split('&operationId=')[1])
          expect(first).toMatch(/^5\./)
          expect(second).toBe(first)
        } else {
          expect(kinds).toEqual(['register', 'poll'])
        }
      })

      lie(`at ${at} three times`, {}, async (stage) => {
        stage.faults.add({ at, do: action, times: 3 })
        expect((await stage.register()).status).toBe('assigned')
        expect(stage.emulator.log.connections).toHaveLength(4)
        const pauses = stage.clock.sleeps.filter((ms) => ms !== 2200)
        expect(pauses).toEqual([500, 1000, 2000])
      })

      lie(`at ${at} for ever`, {}, async (stage) => {
        stage.faults.add({ at, do: action, times: Number.POSITIVE_INFINITY })
        await lost(stage, phases)
        // maxAttempts in a row, and never without a pause.
        expect(stage.emulator.log.connections).toHaveLength(8)
        expect(stage.clock.sleeps.filter((ms) => ms !== 2200)).toEqual([
          500, 1000, 2000, 4000, 8000, 16_000, 30_000,
        ])
      })
    }
  })
}

describe('a server that ends the connection while nothing is asked of it', () => {
  lie('right behind its reply', {}, async (stage) => {
    // Longer than any reply: the whole of it is sent, and the end with it.
    stage.faults.add({ at: 'register-reply', do: { cut: 100_000 } })
    expect((await stage.register()).status).toBe('assigned')
    expect(stage.requests.map(kindOf)).toEqual(['register', 'poll'])
    expect(stage.emulator.log.connections).toHaveLength(2)
    expect(stage.events.filter(({ type }) => type === 'retry')).toMatchObject([
      { step: 'poll', error: { code: 'CONNECTION_LOST', phase: 'poll' } },
    ])
  })

  lie('right behind its last reply', {}, async (stage) => {
    stage.faults.add({ at: 'poll-reply', do: { cut: 100_000 } })
    expect((await stage.register()).status).toBe('assigned')
    expect(stage.emulator.log.connections).toHaveLength(1)
  })
})

describe('a place where there is no service', () => {
  lie('a port where nobody listens', singleAttempt, async (stage) => {
    await stage.emulator.close()
    const error = await expectDpsError(stage.register(), 'CONNECTION_REFUSED', 'tcp')
    expect(error.retryable).toBe(true)
    expect(error.message).toContain(`127.0.0.1`)
    expect(error.message).toContain(`${stage.port}`)
    await stage.restart()
  })

  let back: Promise<void> = Promise.resolve()
  lie(
    'a port where somebody listens again in the third pause',
    {
      clock: (virtual) => ({
        ...virtual,
        sleep: async (ms, signal) => {
          if (virtual.sleeps.length === 2) await back
          return virtual.sleep(ms, signal)
        },
      }),
    },
    async (stage) => {
      await stage.emulator.close()
      back = stage
        .when(() => stage.events.filter((e) => e.type === 'retry').length === 3)
        .then(() => stage.restart())
      expect((await stage.register()).status).toBe('assigned')
      expect(stage.events.flatMap((e) => (e.type === 'retry' ? e.error.code : []))).toEqual([
        'CONNECTION_REFUSED',
        'CONNECTION_REFUSED',
        'CONNECTION_REFUSED',
      ])
    },
  )

  const places: readonly (readonly [string, string, DpsErrorCode, DpsPhase])[] = [
    ['a name that does not exist', 'dps.invalid', 'DNS_FAILED', 'dns'],
    // Linux knows at once that no TCP connection leads to everybody.
    ['an address that no route leads to', '255.255.255.255', 'NETWORK_UNREACHABLE', 'tcp'],
  ]
  for (const [what, connectTo, code, phase] of places) {
    test(what, async () => {
      const stage = await Stage.open({ client: { connectTo } })
      try {
        const error = await expectDpsError(stage.register(), code, phase)
        expect(error.retryable).toBe(true)
        expect(error.message).toContain(connectTo)
        expect(stage.clock.sleeps).toEqual([500, 1000, 2000, 4000, 8000, 16_000, 30_000])
        await stage.leavesNothing()
      } finally {
        await stage.close()
      }
    })
  }

  const servers: readonly (readonly [string, string | Buffer, DpsErrorCode])[] = [
    ['speaks HTTP', 'HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n', 'TLS_FAILED'],
    ['greets like a mail server', '220 mail.example ESMTP\r\n', 'TLS_FAILED'],
    ['speaks MQTT without TLS', Buffer.of(0x20, 2, 0, 0, 0x90, 3, 0, 1, 1), 'TLS_FAILED'],
    ['sends a TLS alert: handshake failure', Buffer.of(21, 3, 3, 0, 2, 2, 40), 'TLS_NO_COMMON_SUITE'],
    ['sends a TLS alert: protocol version', Buffer.of(21, 3, 3, 0, 2, 2, 70), 'TLS_VERSION_REFUSED'],
    ['sends a TLS alert: close notify', Buffer.of(21, 3, 3, 0, 2, 1, 0), 'CONNECTION_LOST'],
    ['sends application data before the handshake', Buffer.of(23, 3, 3, 0, 1, 0), 'TLS_FAILED'],
    ['sends a record without end', Buffer.from('160303ffff'.padEnd(80_000, '0'), 'hex'), 'TLS_FAILED'],
    ['sends zeros', Buffer.alloc(4096), 'TLS_FAILED'],
  ]
  for (const [what, bytes, code] of servers) {
    lie(`a server that ${what}`, singleAttempt, async (stage) => {
      await stage.replaceServer((socket) => {
        socket.resume()
        socket.end(bytes)
      })
      await expectDpsError(stage.register(), code, 'tls')
    })
  }
})
