import { describe, expect } from 'vitest'
import { generateSymmetricKey } from '../../src/emulator/index.ts'
import { symmetricKey } from '../../src/index.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { DEVICE_KEY, lie, REGISTRATION_ID, type Setup, type Stage } from '../support/stage.ts'

// Packets ahead of CONNACK, and a server that does not want them.

const client: Setup['client'] = { mqtt: { pipelining: true }, tls: { sessionResumption: false } }
const atOnce: Setup['emulator'] = { assigning: { polls: 0 } }

const key = { current: DEVICE_KEY }

const refusals = (stage: Stage) =>
  stage.events.flatMap((event) =>
    event.type === 'pipelining-refused' ? `${event.error.code} · ${event.error.phase}` : [],
  )
const retries = (stage: Stage) => stage.events.filter((event) => event.type === 'retry').length
/** Connections that came as far as CONNECT. */
const connections = (stage: Stage) => packets(stage, 'in').filter((type) => type === 'connect').length
const packets = (stage: Stage, direction: 'in' | 'out') =>
  stage.seen.flatMap((event) =>
    event.type === 'packet' &&
    event.packet.direction === direction &&
    !/^(upgrade|response)$/.test(event.packet.type)
      ? event.packet.type
      : [],
  )

for (const transport of ['mqtt', 'mqtt-ws'] as const) {
  const setup = { emulator: atOnce, client: { ...client, transport } }
  const roundTrips = transport === 'mqtt' ? { pipelined: 4, plain: 6 } : { pipelined: 5, plain: 7 }

  describe(`over ${transport}`, () => {
    lie('none: a registration is one flight', setup, async (stage) => {
      for (let call = 1; call <= 2; call++) {
        expect((await stage.register()).connection.roundTrips).toBe(roundTrips.pipelined)
      }
      expect(refusals(stage)).toEqual([])
      expect(packets(stage, 'in').slice(0, 3)).toEqual(['connect', 'subscribe', 'publish'])
    })

    lie(
      'a server that drops who does not wait for CONNACK is asked again at once, and not a second time',
      { client: { ...client, transport }, emulator: { ...atOnce, pipelining: 'drop' } },
      async (stage) => {
        expect((await stage.register()).connection.roundTrips).toBe(roundTrips.plain)
        expect(refusals(stage)).toEqual(['CONNECTION_LOST · connect'])
        expect(stage.clock.sleeps).toEqual([])
        expect(connections(stage)).toBe(2)
        expect((await stage.register()).connection.roundTrips).toBe(roundTrips.plain)
        expect(refusals(stage)).toHaveLength(1)
        expect(connections(stage)).toBe(3)
      },
    )

    lie('a server that takes CONNECT and closes without SUBACK', setup, async (stage) => {
      stage.faults.add({ at: 'subscribe', do: 'drop' })
      expect((await stage.register()).connection.roundTrips).toBe(roundTrips.plain)
      expect(refusals(stage)).toEqual(['CONNECTION_LOST · subscribe'])
      expect(retries(stage)).toBe(0)
    })

    lie(
      'a wrong key is refused once, and nothing that followed CONNECT is processed',
      {
        ...setup,
        client: {
          ...setup.client,
          credential: symmetricKey({ registrationId: REGISTRATION_ID, key: () => key.current }),
        },
        repair: () => {
          key.current = DEVICE_KEY
        },
      },
      async (stage) => {
        key.current = generateSymmetricKey()
        await expectDpsError(stage.register(), 'UNAUTHORIZED', 'connect')
        expect([refusals(stage), retries(stage)]).toEqual([[], 0])
        expect(packets(stage, 'in')).toEqual(['connect'])
        expect(packets(stage, 'out')).toEqual(['connack'])
        expect(stage.emulator.registrations.size).toBe(0)
      },
    )
  })
}

const setup = { emulator: atOnce, client }

describe('a server that falls silent', () => {
  for (const [step, phase] of [
    ['connect', 'connect'],
    ['subscribe', 'subscribe'],
  ] as const) {
    lie(`at ${step} is asked again at once, without`, setup, async (stage) => {
      const silence = stage.faults.add({ at: step, do: 'silence' })
      const registering = stage.register()
      await silence.hit
      await stage.when(() => stage.events.some((e) => e.type === 'phase-started' && e.phase === phase))
      stage.clock.advance(15_000)
      expect((await registering).connection.roundTrips).toBe(6)
      expect(refusals(stage)).toEqual([`TIMEOUT · ${phase}`])
      expect(retries(stage)).toBe(0)
    })
  }

  lie('at the request is asked again in its turn, and remembered', setup, async (stage) => {
    const silence = stage.faults.add({ at: 'register', do: 'silence' })
    const registering = stage.register()
    await silence.hit
    await stage.when(() => stage.events.some((e) => e.type === 'phase-started' && e.phase === 'register'))
    stage.clock.advance(30_000)
    await registering
    expect(refusals(stage)).toEqual(['TIMEOUT · register'])
    expect(retries(stage)).toBe(1)
    await stage.register()
    expect(refusals(stage)).toHaveLength(1)
    expect(packets(stage, 'in').slice(-4)).toEqual(['connect', 'subscribe', 'publish', 'disconnect'])
    expect(packets(stage, 'out').slice(-4)).toEqual(['connack', 'suback', 'puback', 'publish'])
  })
})

lie('a server that drops everybody is not believed to mind pipelining', setup, async (stage) => {
  stage.faults.add({ at: 'connect', do: 'drop', times: 2 })
  await stage.register()
  expect(refusals(stage)).toEqual(['CONNECTION_LOST · connect'])
  expect(retries(stage)).toBe(1)
  expect((await stage.register()).connection.roundTrips).toBe(4)
})

lie('an answer that is no MQTT is met again without, and is the error', setup, async (stage) => {
  stage.faults.add({ at: 'connect', do: { raw: new Uint8Array(8).fill(0xff) }, times: 2 })
  await expectDpsError(stage.register(), 'PROTOCOL_VIOLATION', 'connect')
  expect(refusals(stage)).toEqual(['PROTOCOL_VIOLATION · connect'])
  expect(connections(stage)).toBe(2)
})

lie(
  'a connection that is lost while it polls is opened with the query in one flight',
  { client, emulator: { assigning: { polls: 1, retryAfterSeconds: 0 } } },
  async (stage) => {
    stage.faults.add({ at: 'poll', do: 'drop' })
    // Register 4; its lost query none; the query again 4.
    expect((await stage.register()).connection.roundTrips).toBe(8)
    expect(refusals(stage)).toEqual([])
    expect(stage.requests.map((topic) => topic.slice(0, 22))).toEqual([
      '$dps/registrations/PUT',
      '$dps/registrations/GET',
      '$dps/registrations/GET',
    ])
  },
)

let cancel = () => {}
lie(
  'a caller who cancels when pipelining is refused',
  {
    ...setup,
    client: { ...client, onEvent: (event) => event.type === 'pipelining-refused' && cancel() },
  },
  async (stage) => {
    cancel = () => stage.controller.abort()
    stage.faults.add({ at: 'connect', do: 'drop' })
    await expectDpsError(stage.register(), 'CANCELLED', 'connect')
    expect(connections(stage)).toBe(1)
  },
)

const keys = new Map([
  [REGISTRATION_ID, DEVICE_KEY],
  ['another', generateSymmetricKey()],
])
let current = REGISTRATION_ID
lie(
  'a credential that becomes another device’s has asked for nothing by then',
  {
    emulator: {
      assigning: { polls: 1, retryAfterSeconds: 0 },
      enrollments: [...keys].map(([registrationId, primaryKey]) => ({
        registrationId,
        attestation: { symmetricKey: { primaryKey } },
      })),
    },
    client: {
      ...client,
      credential: {
        load: () => symmetricKey({ registrationId: current, key: keys.get(current)! }).load(),
      },
      onEvent: (event) => {
        if (event.type === 'retry') current = 'another'
      },
    },
    repair: () => {
      current = REGISTRATION_ID
    },
  },
  async (stage) => {
    stage.faults.add({ at: 'poll', do: 'drop' })
    await expectDpsError(stage.register(), 'CREDENTIAL_NAME_MISMATCH', 'config')
    expect(connections(stage)).toBe(2)
    expect(stage.requests).toHaveLength(2)
  },
)
