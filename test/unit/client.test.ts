import { describe, expect, it, onTestFinished } from 'vitest'
import { emitter, ProvisioningClient } from '../../src/client.ts'
import type { Identity } from '../../src/credential/credential.ts'
import { DpsError } from '../../src/errors.ts'
import type { DpsEvent, ProvisioningClientOptions } from '../../src/options/options.ts'
import type { Transport } from '../../src/transport/transport.ts'
import { testClock } from '../support/clock.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'

const identity: Identity = {
  registrationId: 'd',
  fingerprint: 'f',
  checkDates: () => {},
  token: async () => undefined,
}
const facts = {
  protocol: 'TLSv1.2',
  cipher: 'c',
  curve: 'X25519',
  root: 'r',
  resumed: false,
  roundTrips: 3,
}
const body = Buffer.from(
  JSON.stringify({ status: 'assigned', registrationState: { assignedHub: 'h.example', deviceId: 'd' } }),
)

function own(name: string, failures: Error[] = []): Transport & { opens: number } {
  return {
    name,
    opens: 0,
    async open() {
      this.opens++
      const failure = failures.shift()
      if (failure !== undefined) throw failure
      return {
        connection: { ...facts, transport: name },
        request: async () => ({ status: 200, retryAfter: undefined, body }),
        close: async () => {},
      }
    },
  }
}

const client = (over: Partial<ProvisioningClientOptions> = {}) =>
  new ProvisioningClient({
    idScope: '0ne00000000',
    credential: { load: async () => identity },
    clock: testClock(),
    transport: own('own'),
    ...over,
  })

describe('a call', () => {
  it.each([
    ['register(null)', (c: ProvisioningClient) => c.register(null as never)],
    ['lookup of a string', (c: ProvisioningClient) => c.lookup('x' as never)],
    ['probe with a list', (c: ProvisioningClient) => c.probe([] as never)],
    ['a signal that is null', (c: ProvisioningClient) => c.register({ signal: null as never })],
    ['a signal that is none', (c: ProvisioningClient) => c.probe({ signal: {} as never })],
    ['an unknown option', (c: ProvisioningClient) => c.register({ timeout: 5 } as never)],
    ['a payload on lookup', (c: ProvisioningClient) => c.lookup({ payload: {} } as never)],
    ['a time-out of 0', (c: ProvisioningClient) => c.register({ timeoutMs: 0 })],
  ])('with %s is refused as an option, not as a crash', async (_, call) => {
    await expectDpsError(call(client()), 'OPTION_INVALID', 'config')
  })

  it('checks the registration id of a credential of the caller’s own', async () => {
    const credential = { load: async () => ({ ...identity, registrationId: 'a/b&c' }) }
    await expectDpsError(client({ credential }).register(), 'OPTION_INVALID', 'config')
  })

  it('is frozen through and through', async () => {
    const assignment = await client().register()
    expect(Object.isFrozen(assignment) && Object.isFrozen(assignment.connection.timingsMs)).toBe(true)
  })
})

describe('the order of transports', () => {
  const blocked = () => new DpsError('CONNECTION_REFUSED', 'tcp', 'blocked')

  it('begins with the one that got through last', async () => {
    const [first, second] = [own('first', [blocked(), blocked()]), own('second')]
    const c = client({ transport: [first, second] })
    expect((await c.register()).connection.transport).toBe('second')
    expect((await c.probe()).connection.transport).toBe('second')
    expect([first.opens, second.opens]).toEqual([1, 2])
  })
})

describe('the handler of events', () => {
  it('that throws, or is async and rejects, is reported once and decides nothing', async () => {
    const warnings: Error[] = []
    const onWarning = (warning: Error) => warnings.push(warning)
    process.on('warning', onWarning)
    onTestFinished(() => void process.off('warning', onWarning))
    const rejecting = (async () => {
      throw new Error('logger down')
    }) as unknown as (event: DpsEvent) => void
    const throwing = () => {
      throw new Error('logger down')
    }
    for (const handler of [rejecting, throwing]) {
      const emit = emitter(handler)
      emit({ type: 'warning', message: 'a' })
      emit({ type: 'warning', message: 'b' })
    }
    await new Promise((resolve) => setImmediate(resolve))
    expect(warnings.map(({ message }) => message)).toEqual(['logger down', 'logger down'])
  })
})
