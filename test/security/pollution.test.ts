import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { runInNewContext } from 'node:vm'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { generateSymmetricKey, startEmulator } from '../../src/emulator/index.ts'
import {
  DpsError,
  fileStore,
  issuedCertificate,
  ProvisioningClient,
  provision,
  symmetricKey,
} from '../../src/index.ts'
import { seal } from '../../src/sealed.ts'
import { Bench, run } from '../cli/bench.ts'
import { HubStage, ID } from '../unit/hub/stage.ts'

// Names that lead to the prototype of all objects, in all JSON that the client reads. What it hands on can be merged into
// anything by a function that knows no better, and nothing else in the process changes.

const folder = mkdtempSync(join(tmpdir(), 'pollution-'))
const emulator = await startEmulator({ assigning: { polls: 0 } })
const { primaryKey: key } = emulator.enrollments.addIndividual({
  registrationId: ID,
  attestation: { symmetricKey: {} },
})!
const credential = symmetricKey({ registrationId: ID, key })
const bench = await Bench.open()
let stage: HubStage | undefined
afterEach(async () => {
  emulator.faults.clear()
  await stage?.close()
  stage = undefined
})
afterAll(async () => {
  await Promise.all([emulator.close(), bench.close()])
  rmSync(folder, { recursive: true })
})

/** Members of an object, as JSON, each of which poisons. */
const SPELLINGS: Readonly<Record<string, string>> = {
  __proto__: '"__proto__":{"polluted":1,"kept":2}',
  '__proto__, escaped': '"\\u005f_proto__":{"polluted":1}',
  '__proto__ twice': '"__proto__":1,"__proto__":{"polluted":1}',
  constructor: '"constructor":{"prototype":{"polluted":1}}',
  'constructor, escaped': '"\\u0063onstructor":{"prototype":{"polluted":1},"polluted":1}',
  'constructor and __proto__': '"constructor":{"__proto__":{"polluted":1}}',
}
/** The same at several depths, beside what has to be kept. */
const poisoned = (poison: string) => `{"kept":1,${poison},"deep":{${poison},"list":[{${poison},"kept":[2]}]}}`
const KEPT = { kept: 1, deep: { list: [{ kept: [2] }] } }

/** As they are written everywhere. */
function merge(target: object, source: object): object {
  const into = target as Record<string, object>
  for (const [name, value] of Object.entries(source)) {
    if (typeof value === 'object' && value !== null) into[name] = merge(into[name] ?? {}, value)
    else into[name] = value
  }
  return target
}
const isClean = () => !('polluted' in {}) && !('polluted' in Object) && !('polluted' in Function.prototype)

/** What was read holds no poison, wherever it is looked for. */
function expectHarmless(value: unknown): void {
  expect(isClean()).toBe(true)
  if (typeof value !== 'object' || value === null) return
  merge({}, value)
  merge([], value)
  expect(isClean()).toBe(true)
  expect(JSON.stringify(value)).not.toContain('polluted')
}

it('the merge is one that each of the spellings poisons', () => {
  for (const [name, poison] of Object.entries(SPELLINGS)) {
    // In a world of its own, which is thrown away.
    const script = `(${merge})({}, JSON.parse(${JSON.stringify(poisoned(poison))})); (${isClean})()`
    expect([name, runInNewContext(script)]).toEqual([name, false])
  }
  expect(isClean()).toBe(true)
})

const assigned = (poison: string) =>
  `{"operationId":"1.2","status":"assigned",${poison},"registrationState":{${poison},"registrationId":"${ID}","assignedHub":"emulated-hub.azure-devices.net","deviceId":"${ID}","status":"assigned","payload":${poisoned(poison)}}}`
const client = (transport: 'mqtt' | 'mqtt-ws' | 'https') =>
  new ProvisioningClient({ ...emulator.clientOptions(), credential, transport, retry: { maxAttempts: 1 } })

describe.each(Object.entries(SPELLINGS))('%s', (_, poison) => {
  for (const transport of ['mqtt', 'mqtt-ws', 'https'] as const) {
    it(`in the reply to a registration over ${transport}`, async () => {
      emulator.faults.add({ at: 'register-reply', do: { reply: { body: assigned(poison) } } })
      const assignment = await client(transport).register()
      expect(assignment.payload).toEqual(KEPT)
      expectHarmless(assignment)
    })

    it(`in a refusal over ${transport}`, async () => {
      const body = `{"errorCode":400207,${poison},"trackingId":"t","message":"m","info":{${poison}}}`
      emulator.faults.add({ at: 'register', do: { reply: { status: 400, body } } })
      const error = await client(transport)
        .register()
        .catch((thrown: unknown) => thrown)
      expect(error).toMatchObject({ code: 'ALLOCATION_FAILED', serviceErrorCode: 400207 })
      expectHarmless({ ...(error as object) })
    })
  }

  it('in the state of a registration', async () => {
    await client('https').register()
    const body = `{"registrationId":"${ID}","status":"assigned","assignedHub":"h.azure-devices.net","deviceId":"${ID}",${poison},"payload":${poisoned(poison)}}`
    emulator.faults.add({ at: 'lookup-reply', do: { reply: { body } } })
    const state = await client('https').lookup()
    expect(state.payload).toEqual(KEPT)
    expectHarmless(state)
  })

  it('in a stored assignment, whose checksum fits', async () => {
    const store = fileStore(join(folder, 'assignment'))
    const options = { ...emulator.clientOptions(), credential, store }
    await provision({ ...options, mode: 'always' })
    const [, body = ''] = Buffer.from((await store.read())!)
      .toString()
      .split('\n')
    const record = body.replace(
      '"registration":{',
      `"registration":{${poison},"payload":${poisoned(poison)},`,
    )
    expect(record).not.toBe(body)
    await store.write(seal('dps-device-client/assignment', 1, `{${poison},${record.slice(1)}`))
    const stored = await provision({ ...options, port: 1 })
    expect([stored.source, stored.payload]).toEqual(['store', KEPT])
    expectHarmless(stored)
  })

  it('in a stored certificate, whose checksum fits', async () => {
    const store = fileStore(join(folder, 'certificate'))
    await store.remove()
    await issuedCertificate({ store }).createRequest({ registrationId: ID })
    const [, body = ''] = Buffer.from((await store.read())!)
      .toString()
      .split('\n')
    const record = body.replace('"request":{', `"request":{${poison},`)
    expect(record).not.toBe(body)
    await store.write(seal('dps-device-client/certificate', 1, `{${poison},${record.slice(1)}`))
    const held = issuedCertificate({ store })
    const request = await held.createRequest({ registrationId: ID })
    expect(request.resume).toBe(true)
    expectHarmless(request)
    expectHarmless(await held.status())
    // What is written anew has none of it.
    await held.abandon()
    expect(Buffer.from((await store.read())!).toString()).not.toContain('polluted')
  })

  it('in a twin, in a change of it and in the call of a method', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const sides = `{"desired":{"$version":1,${poisoned(poison).slice(1)},"reported":{"$version":1,${poison}}}`
    const fault = stage.emulator.faults.add({ at: 'twin-reply', do: { reply: { body: sides } } })
    const twin = await hub.twin.get()
    fault.remove()
    expect(twin.desired.properties).toEqual(KEPT)
    expectHarmless(twin)

    const changes: unknown[] = []
    let changed = () => {}
    const both = new Promise<void>((resolve) => {
      changed = () => void (changes.length === 2 && resolve())
    })
    hub.twin.onDesired((change) => {
      changes.push(change)
      changed()
    })
    hub.onMethod('m', ({ payload }) => {
      expectHarmless(payload)
      return { status: 200, payload }
    })
    await expect.poll(() => changes.length, { timeout: 15_000 }).toBe(1)
    stage.emulator.hub.publish(
      ID,
      '$iothub/twin/PATCH/properties/desired/?$version=2',
      `{"$version":2,${poisoned(poison).slice(1)}`,
    )
    await both
    expect(changes[1]).toMatchObject({ properties: KEPT, version: 2 })
    for (const change of changes) expectHarmless(change)
    const answer = await stage.emulator.hub.invokeMethod(ID, 'm', JSON.parse(poisoned(poison)))
    expect(answer).toEqual({ status: 200, payload: KEPT })
    expectHarmless(answer)
  })

  it('in the configuration of the command, which knows no such option', async () => {
    const file = bench.write('poisoned.json', `{${poison},"idScope":"0ne1"}`)
    const { code, stderr } = await run(['register', '--config', file, ...bench.sas])
    expect(code).toBe(2)
    expect(stderr).toMatch(/^OPTION_INVALID in phase config: .*(?:__proto__|constructor|no name known here)/)
  })

  it('in a payload that the command is given, which is sent as it is', async () => {
    const there = [...bench.there, ...bench.trust, ...bench.sas]
    const { code } = await run([...there, '--payload', poisoned(poison)])
    expect(code).toBe(0)
    expect(bench.payloads.at(-1)).toEqual(JSON.parse(poisoned(poison)))
    expect(isClean()).toBe(true)
  })
})

it('a text as `constructor` is a property like any other', async () => {
  const body = assigned('"x":1').replace('"kept":1,', '"kept":1,"constructor":"Acme",')
  emulator.faults.add({ at: 'register-reply', do: { reply: { body } } })
  expect((await client('mqtt').register()).payload).toMatchObject({ constructor: 'Acme' })
})

/** Names that every object has, where a table is asked for a name from the network. */
const INHERITED = ['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'valueOf']

describe.each(INHERITED)('%s as a name', (name) => {
  it('of a status is none', async () => {
    emulator.faults.add({
      at: 'register-reply',
      do: { reply: { body: `{"operationId":"1","status":"${name}"}` } },
    })
    const error = await client('mqtt')
      .register()
      .catch((thrown: unknown) => thrown)
    expect(error).toBeInstanceOf(DpsError)
    expect(error).toMatchObject({ code: 'REGISTRATION_FAILED' })
  })

  it('of a method that nobody handles is answered so, and of a property is one like any other', async () => {
    stage = await HubStage.open()
    const hub = await stage.connect()
    const bags: object[] = []
    hub.onMethod('another', () => ({ status: 200 }))
    hub.onCommand(({ properties }) => bags.push(properties))
    // Answered in order, so the hub knows by then that there are methods.
    await hub.twin.get()
    expect((await stage.emulator.hub.invokeMethod(ID, name)).status).toBe(501)
    await stage.emulator.hub.sendCommand(ID, 'x', { properties: Object.fromEntries([[name, 'y']]) }).settled
    const [bag] = bags as [object]
    expect(Object.getPrototypeOf(bag)).toBe(Object.prototype)
    expect(Object.entries(bag)).toEqual(name === '__proto__' ? [] : [[name, 'y']])
  })

  it('of an environment variable, an option or a verb of the command is unknown', async () => {
    for (const args of [[name], ['register', `--${name}`, 'x'], ['help', name]]) {
      const { code, stderr } = await run(args, { env: { [`DPS_${name.toUpperCase()}`]: 'x' } })
      expect([args, code]).toEqual([args, 2])
      expect(stderr).not.toMatch(/TypeError|at .*\.cjs/)
    }
  })
})

it('an option of its own object, whose prototype was changed, is not read from there', () => {
  // Whoever has polluted already has won; options that nobody gave are refused by name all the same.
  const options = JSON.parse('{"__proto__":{"trust":{"roots":"none"}},"idScope":"0ne1"}') as object
  expect(() => new ProvisioningClient({ ...options, credential } as never)).toThrow(DpsError)
  expect(() =>
    symmetricKey(
      JSON.parse(`{"__proto__":{"key":"x"},"registrationId":"a","key":"${generateSymmetricKey()}"}`),
    ),
  ).toThrow(DpsError)
})
