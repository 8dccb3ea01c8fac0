import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import {
  createPki,
  type DeviceCertificate,
  type EnrollmentGroup,
  generateSymmetricKey,
  issueCertificate,
} from '../../src/emulator/index.ts'
import { connectHub, type HubEvent, provisionAndConnect } from '../../src/hub/index.ts'
import {
  type Credential,
  DpsError,
  fileStore,
  type Identity,
  ProvisioningClient,
  provision,
  symmetricKey,
  x509,
} from '../../src/index.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { DEVICE_KEY, pki, REGISTRATION_ID, type Setup, Stage } from '../support/stage.ts'

const DAY_MS = 86_400_000
const daysFromNow = (days: number) => new Date(Date.now() + days * DAY_MS)
const strangers = await createPki()

/** What a device of the group has in its folder. */
async function certificate(
  options: { name?: string; notBefore?: Date; notAfter?: Date; by?: typeof pki } = {},
): Promise<DeviceCertificate> {
  const { name = REGISTRATION_ID, by = pki, ...rest } = options
  const { chainPem, keyPem } = await issueCertificate({
    subject: name,
    issuer: by.deviceIntermediate,
    eku: ['clientAuth'],
    ...rest,
  })
  return { cert: chainPem, key: keyPem }
}

const group: EnrollmentGroup = {
  groupId: 'devices',
  attestation: { x509: { ca: pki.deviceRoot.certPem } },
}
const withGroup: Setup['emulator'] = { enrollments: [group] }
const bootstrap = () => symmetricKey({ registrationId: REGISTRATION_ID, key: DEVICE_KEY })
const unknownKey = () => symmetricKey({ registrationId: REGISTRATION_ID, key: generateSymmetricKey() })
const expired = x509(await certificate({ notBefore: daysFromNow(-365), notAfter: daysFromNow(-1) }))
const missing = x509({ certFile: '/nowhere/op.pem', keyFile: '/nowhere/op.key' })

/** Counts how often it is asked. */
function counted(credential: Credential): Credential & { loads: number } {
  return {
    loads: 0,
    load(): Promise<Identity> {
      this.loads++
      return credential.load()
    },
  }
}

async function stageOf(credential: readonly Credential[], setup: Setup = {}): Promise<Stage> {
  const stage = await Stage.open({ ...setup, client: { credential, ...setup.client } })
  onTestFinished(() => stage.close())
  return stage
}

const fallbacks = ({ events }: Stage) =>
  events.flatMap((e) => (e.type === 'credential-fallback' ? `${e.from} ${e.to} ${e.error.code}` : []))
const handshakes = ({ seen }: Stage) => seen.filter(({ type }) => type === 'handshake-done').length

describe('the next credential is used', () => {
  it.each([
    ['has expired', expired, 'DEVICE_CERTIFICATE_EXPIRED', 1],
    ['has no file', missing, 'CREDENTIAL_UNREADABLE', 1],
    ['was refused by the service', unknownKey(), 'UNAUTHORIZED', 2],
    [
      'fails in the caller’s own way',
      { load: () => Promise.reject(new Error('chip')) },
      'TRANSPORT_FAILED',
      1,
    ],
  ] as const)('where the first %s', async (_, operational, code, connections) => {
    const stage = await stageOf([operational, bootstrap()])
    const assignment = await stage.register()
    expect(assignment).toMatchObject({ status: 'assigned', connection: { credential: 1 } })
    expect(fallbacks(stage)).toEqual([`0 1 ${code}`])
    expect(handshakes(stage)).toBe(connections)
    await stage.leavesNothing()
  })

  it('where the first is refused from now on, and its TLS session is not carried over', async () => {
    const [operational, other] = [await certificate(), await certificate()]
    const stage = await stageOf([x509(operational), x509(other)], { emulator: withGroup })
    expect((await stage.register()).connection).toMatchObject({ credential: 0, resumed: false })
    expect((await stage.register()).connection).toMatchObject({ credential: 0, resumed: true })
    const [leaf] = other.cert.split(/(?<=-----END CERTIFICATE-----\n)/)
    stage.emulator.enrollments.remove({ groupId: 'devices' })
    stage.emulator.enrollments.addIndividual({
      registrationId: REGISTRATION_ID,
      attestation: { x509: { certificate: leaf! } },
    })
    expect((await stage.register()).connection).toMatchObject({ credential: 1, resumed: false })
    expect(fallbacks(stage)).toEqual(['0 1 UNAUTHORIZED'])
  })

  it('until the first is there, and no longer', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ordered-'))
    onTestFinished(() => rmSync(folder, { recursive: true }))
    const files = { certFile: join(folder, 'op.pem'), keyFile: join(folder, 'op.key') }
    const stage = await stageOf([x509(files), x509(await certificate())], { emulator: withGroup })
    expect((await stage.register()).connection.credential).toBe(1)
    const { cert, key } = await certificate()
    writeFileSync(files.keyFile, key)
    writeFileSync(files.certFile, cert)
    expect((await stage.register()).connection.credential).toBe(0)
    expect(fallbacks(stage)).toEqual(['0 1 CREDENTIAL_UNREADABLE'])
  })

  it('by every call: lookup and probe fall back too', async () => {
    const stage = await stageOf([unknownKey(), bootstrap()])
    expect((await stage.client.probe()).connection.credential).toBe(1)
    await stage.register()
    expect((await stage.client.lookup()).connection.credential).toBe(1)
    expect(fallbacks(stage)).toEqual(Array(3).fill('0 1 UNAUTHORIZED'))
  })

  it('for the rest of the call: what was refused is not presented again', async () => {
    const first = counted(unknownKey())
    const stage = await stageOf([first, bootstrap()], {
      client: { retry: { baseDelayMs: 1, pollIntervalMs: 1 } },
    })
    stage.faults.add({ at: 'poll', do: 'reset', times: 2 })
    expect((await stage.register()).connection.credential).toBe(1)
    expect(stage.events.filter(({ type }) => type === 'retry').length).toBeGreaterThan(0)
    expect(first.loads).toBe(1)
    expect(stage.refusals).toHaveLength(1)
  })
})

describe('no other credential is presented', () => {
  it.each([
    [
      'one that is not valid yet',
      { notBefore: daysFromNow(1), notAfter: daysFromNow(9) },
      {},
      'DEVICE_CERTIFICATE_NOT_YET_VALID',
      'clock',
    ],
    ['a clock behind the release', {}, { clock: (c) => ({ ...c, now: () => 0 }) }, 'CLOCK_BEHIND', 'clock'],
    [
      'a network that refuses',
      {},
      { client: { port: 9, retry: { maxAttempts: 1 } } },
      'CONNECTION_REFUSED',
      'tcp',
    ],
  ] as [string, object, Setup, DpsError['code'], DpsError['phase']][])(
    'for %s',
    async (_, dates, setup, code, phase) => {
      const stage = await stageOf([x509(await certificate(dates)), bootstrap()], setup)
      await expectDpsError(stage.register(), code, phase)
      expect(fallbacks(stage)).toEqual([])
      expect(stage.emulator.log.connections).toEqual([])
    },
  )

  it('for a server that is not trusted', async () => {
    const stage = await stageOf([x509(await certificate()), bootstrap()], {
      emulator: { pki: strangers },
      client: { trust: { roots: 'none', extraRoots: pki.roots[0].certPem } },
    })
    await expectDpsError(stage.register(), 'SERVER_UNTRUSTED', 'tls')
    expect(fallbacks(stage)).toEqual([])
  })

  it('where the handler of the event cancels', async () => {
    const second = counted(bootstrap())
    const controller = new AbortController()
    const stage = await stageOf([expired, second], {
      client: {
        onEvent: ({ type }) => {
          if (type === 'credential-fallback') controller.abort('no')
        },
      },
    })
    await second.load()
    const error = await expectDpsError(stage.register({ signal: controller.signal }), 'CANCELLED', 'clock')
    expect(error.cause).toBe('no')
    expect(stage.emulator.log.connections).toEqual([])
  })
})

describe('where all fail', () => {
  it('the last refusal is the error, and its cause has all of them', async () => {
    const stage = await stageOf([expired, unknownKey(), unknownKey()])
    const error = await expectDpsError(stage.register(), 'UNAUTHORIZED', 'connect')
    expect(error.cause).toBeInstanceOf(AggregateError)
    const { errors } = error.cause as AggregateError
    expect(errors.map(({ code }: DpsError) => code)).toEqual([
      'DEVICE_CERTIFICATE_EXPIRED',
      'UNAUTHORIZED',
      'UNAUTHORIZED',
    ])
    expect(error.message).toBe(errors[2].message)
    expect(error.hint).toContain('credential[0] DEVICE_CERTIFICATE_EXPIRED')
    expect(stage.refusals).toHaveLength(2)
    await stage.leavesNothing()
  })

  it('a refusal says more than a file that is missing after it', async () => {
    const stage = await stageOf([unknownKey(), missing])
    const error = await expectDpsError(stage.register(), 'UNAUTHORIZED', 'connect')
    expect((error.cause as AggregateError).errors).toHaveLength(2)
  })

  it('the same content twice is presented once', async () => {
    const key = generateSymmetricKey()
    const same = () => symmetricKey({ registrationId: REGISTRATION_ID, key })
    const stage = await stageOf([same(), same()])
    await expectDpsError(stage.register(), 'UNAUTHORIZED', 'connect')
    expect(stage.refusals).toHaveLength(1)
  })
})

describe('a list', () => {
  it('of two devices is refused before any packet, though the first would do', async () => {
    const other = symmetricKey({ registrationId: 'sensor-2', key: DEVICE_KEY })
    const stage = await stageOf([bootstrap(), other])
    const error = await expectDpsError(stage.register(), 'CREDENTIAL_NAME_MISMATCH', 'config')
    expect(error.message).toContain('sensor-2')
    expect(stage.emulator.log.connections).toEqual([])
    const late = await stageOf([x509(await certificate({ name: 'sensor-2' })), bootstrap()])
    await expectDpsError(late.register(), 'CREDENTIAL_NAME_MISMATCH', 'config')
  })

  it('may become that of another device, without a restart', async () => {
    const other = generateSymmetricKey()
    let [registrationId, key] = [REGISTRATION_ID, DEVICE_KEY]
    const current = (wrong = false): Credential => ({
      load: () => symmetricKey({ registrationId, key: wrong ? generateSymmetricKey() : key }).load(),
    })
    const stage = await stageOf([current(), current(true)])
    await stage.register()
    const attestation = { symmetricKey: { primaryKey: other } }
    stage.emulator.enrollments.addIndividual({ registrationId: 'sensor-2', attestation })
    ;[registrationId, key] = ['sensor-2', other]
    expect(await stage.register()).toMatchObject({
      registrationId: 'sensor-2',
      connection: { credential: 0 },
    })
  })

  it.each([
    ['of nothing', []],
    ['with a hole', [bootstrap(), undefined]],
    ['with one twice', ((one) => [one, one])(bootstrap())],
    ['in a list', [[bootstrap()]]],
  ])('%s is refused', (_, credential) => {
    const options = { idScope: '0ne00000000', credential: credential as never }
    expect(() => new ProvisioningClient(options)).toThrow(DpsError)
  })

  it('of one tells its index, and a single credential none', async () => {
    const stage = await stageOf([bootstrap()])
    expect((await stage.register()).connection.credential).toBe(0)
    const single = await Stage.open({})
    onTestFinished(() => single.close())
    expect((await single.register()).connection).not.toHaveProperty('credential')
  })
})

describe('what is stored', () => {
  const start = (stage: Stage, credential: Credential | readonly Credential[], path: string) =>
    provision({
      ...stage.emulator.clientOptions(),
      credential,
      store: fileStore(path),
      retry: { maxAttempts: 1, pollIntervalMs: 1 },
    })

  it('outlives the certificate that a device gets, and not one that is swapped', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ordered-'))
    onTestFinished(() => rmSync(folder, { recursive: true }))
    const path = join(folder, 'assignment')
    const files = { certFile: join(folder, 'op.pem'), keyFile: join(folder, 'op.key') }
    const issue = async () => {
      const { cert, key } = await certificate()
      writeFileSync(files.keyFile, key)
      writeFileSync(files.certFile, cert)
    }
    const stage = await stageOf([bootstrap()], { emulator: withGroup })
    const [first, second] = [x509(await certificate()), x509(await certificate())]
    const op = () => x509(files)
    expect(await start(stage, [op(), first], path)).toMatchObject({
      source: 'register',
      connection: { credential: 1 },
    })
    expect(await start(stage, [op(), first], path)).toMatchObject({ source: 'store' })
    await issue()
    expect(await start(stage, [op(), first], path)).toMatchObject({ source: 'store' })
    // The one that it was given to is another now.
    expect(await start(stage, [op(), second], path)).toMatchObject({
      source: 'register',
      connection: { credential: 0 },
    })
    expect(await start(stage, [op(), second], path)).toMatchObject({ source: 'store' })
    expect(await start(stage, op(), path)).toMatchObject({ source: 'store' })
    await issue()
    expect(await start(stage, [op(), second], path)).toMatchObject({ source: 'register' })
  })

  it('is erased where the service refuses the whole list', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ordered-'))
    onTestFinished(() => rmSync(folder, { recursive: true }))
    const path = join(folder, 'assignment')
    const stage = await stageOf([bootstrap()])
    const list = [unknownKey(), bootstrap()]
    expect(await start(stage, list, path)).toMatchObject({
      source: 'register',
      connection: { credential: 1 },
    })
    stage.emulator.enrollments.remove({ registrationId: REGISTRATION_ID })
    const again = {
      ...stage.emulator.clientOptions(),
      credential: list,
      store: fileStore(path),
      mode: 'always',
    }
    await expectDpsError(provision(again as never), 'UNAUTHORIZED', 'connect')
    expect(await fileStore(path).read()).toSatisfy((bytes: Buffer) => !bytes.includes('assignedHub'))
  })
})

describe('at the hub', () => {
  it('each connection begins with the first, and the event tells what was used', async () => {
    const stage = await stageOf([bootstrap()])
    const assignment = await stage.register()
    const events: HubEvent[] = []
    const hub = await connectHub(assignment, {
      ...stage.emulator.hubOptions(),
      credential: [unknownKey(), bootstrap()],
      onEvent: (event) => events.push(event),
    })
    onTestFinished(() => hub.close())
    expect(hub.connection.credential).toBe(1)
    expect(events).toContainEqual(
      expect.objectContaining({ type: 'credential-fallback', from: 0, to: 1, error: expect.any(DpsError) }),
    )
  })

  it('is refused by the verdict where the list is used up', async () => {
    const stage = await stageOf([bootstrap()])
    const assignment = await stage.register()
    const call = connectHub(assignment, {
      ...stage.emulator.hubOptions(),
      credential: [unknownKey(), missing],
    })
    const error = await expectDpsError(call, 'UNAUTHORIZED', 'connect')
    expect((error.cause as AggregateError).errors).toHaveLength(2)
  })

  it('and the way there, in one call', async () => {
    const stage = await stageOf([bootstrap()])
    const folder = mkdtempSync(join(tmpdir(), 'ordered-'))
    onTestFinished(() => rmSync(folder, { recursive: true }))
    const hub = await provisionAndConnect({
      ...stage.emulator.clientOptions(),
      credential: [missing, bootstrap()],
      store: fileStore(join(folder, 'assignment')),
      hub: stage.emulator.hubOptions(),
    })
    onTestFinished(() => hub.close())
    expect(hub.connection.credential).toBe(1)
  })
})
