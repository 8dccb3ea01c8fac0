import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { symmetricKey } from '../../../src/credential/sas.ts'
import { x509 } from '../../../src/credential/x509.ts'
import { createPki, issueCertificate, startEmulator } from '../../../src/emulator/index.ts'
import { deriveDeviceKey } from '../../../src/factory/index.ts'
import {
  type DeviceJournal,
  fileJournal,
  type ManyDevice,
  type ManyResult,
  type ProvisionManyOptions,
  provisionMany,
} from '../../../src/provision-many.ts'
import { contextStatistics, OwnContexts } from '../../../src/tls/context.ts'
import { testClock } from '../../support/clock.ts'

// Over real TLS: what is shared and what is not, what the service says to all, and what a crash leaves open.

const pki = await createPki()
const emulator = await startEmulator({
  pki,
  assigning: { polls: 0 },
  enrollments: [{ groupId: 'certified', attestation: { x509: { ca: pki.deviceRoot.certPem } } }],
})
const groupKey = emulator.enrollments.addGroup({
  groupId: 'keyed',
  attestation: { symmetricKey: {} },
})!.primaryKey
afterAll(() => emulator.close())
afterEach(() => {
  emulator.faults.clear()
  emulator.registrations.forget()
  emulator.log.clear()
})

const keyed = async (registrationId: string): Promise<ManyDevice<string>> => ({
  credential: symmetricKey({ registrationId, key: await deriveDeviceKey({ groupKey, registrationId }) }),
})
const certified = async (registrationId: string): Promise<ManyDevice<string>> => {
  const { cert, key } = await emulator.issueDeviceCertificate({ registrationId })
  return { credential: x509({ cert, key }) }
}
const several = (make: typeof keyed, count: number, name: string) =>
  Promise.all(Array.from({ length: count }, (_, i) => make(`${name}-${i}`)))

const options = (over: Partial<ProvisionManyOptions<string>> = {}) => ({
  ...emulator.clientOptions(),
  ratePerMinute: Number.POSITIVE_INFINITY,
  ...over,
})

async function all(results: AsyncIterable<ManyResult<string>>): Promise<ManyResult<string>[]> {
  const found: ManyResult<string>[] = []
  for await (const result of results) found.push(result)
  return found.sort((a, b) => a.position - b.position)
}

const handshakes = () => emulator.log.connections.map(({ handshake }) => handshake)
const gone = () => vi.waitFor(() => expect(emulator.openConnections).toBe(0), 5000)

describe('what devices share', () => {
  it('with symmetric keys: one context, and no session', async () => {
    const before = contextStatistics()
    // The first teaches which root the server ends in; one after the other, so that a session could be offered.
    const results = await all(provisionMany(await several(keyed, 6, 'sas'), options({ concurrency: 1 })))
    expect(results.map(({ assignment }) => assignment?.connection?.resumed)).toEqual(Array(6).fill(false))
    expect(handshakes().map((facts) => facts?.resumed)).toEqual(Array(6).fill(false))
    // The whole policy, and the same narrowed to that root.
    expect(contextStatistics().misses - before.misses).toBeLessThanOrEqual(2)
    await gone()
  })

  it('with certificates: neither, and each presents its own', async () => {
    const results = await all(provisionMany(await several(certified, 6, 'cert'), options({ concurrency: 3 })))
    expect(results.map(({ assignment }) => assignment?.deviceId)).toEqual(
      Array.from({ length: 6 }, (_, i) => `cert-${i}`),
    )
    expect(handshakes().map((facts) => facts?.resumed)).toEqual(Array(6).fill(false))
    for (const { registrationId, handshake } of emulator.log.connections)
      expect(handshake?.clientCertificate?.subject).toContain(`CN=${registrationId}`)
    await gone()
  })

  it('with certificates: no place among the contexts of this process, and each context is freed', async () => {
    const freed: number[] = []
    const { free } = OwnContexts.prototype
    const watched = vi.spyOn(OwnContexts.prototype, 'free').mockImplementation(function (this: OwnContexts) {
      freed.push(this.size)
      free.call(this)
    })
    onTestFinished(() => watched.mockRestore())
    const { size } = contextStatistics()
    const devices = await several(certified, 5, 'once')
    const stranger = await issueCertificate({ subject: 'once-not', eku: ['clientAuth'] })
    devices.push({ credential: x509({ cert: stranger.certPem, key: stranger.keyPem }) })
    const results = await all(provisionMany(devices, options({ concurrency: 3 })))
    expect(results.map(({ error }) => error?.code)).toEqual([...Array(5).fill(undefined), 'UNAUTHORIZED'])
    expect(freed).toEqual(Array(6).fill(1))
    expect(contextStatistics().size).toBe(size)
    await gone()
  })

  it.each(['accept', 'connect'] as const)(
    'with certificates: nothing where all is cut off at %s, when the contexts are freed too',
    async (at) => {
      const free = vi.spyOn(OwnContexts.prototype, 'free')
      onTestFinished(() => free.mockRestore())
      emulator.faults.add({ at, do: 'silence', times: Number.POSITIVE_INFINITY })
      const stop = new AbortController()
      const devices = await several(certified, 3, 'cut')
      const results = all(provisionMany(devices, options({ concurrency: 3, signal: stop.signal })))
      await vi.waitFor(() => expect(emulator.openConnections).toBe(3), 5000)
      expect(free).not.toHaveBeenCalled()
      stop.abort()
      await expect(results).rejects.toMatchObject({ code: 'CANCELLED' })
      expect(free).toHaveBeenCalledTimes(3)
      await gone()
    },
  )

  it('a device again, in another run, goes on with its own session and no other’s', async () => {
    const devices = await several(keyed, 2, 'again')
    await all(provisionMany(devices, options({ concurrency: 1 })))
    const results = await all(provisionMany(devices, options({ concurrency: 1 })))
    expect(results.map(({ assignment }) => assignment?.connection?.resumed)).toEqual([true, true])
  })
})

describe('a service that says no', () => {
  it('to one key and one certificate, while all others are assigned', async () => {
    const stranger = await issueCertificate({ subject: 'bad-3', eku: ['clientAuth'] })
    const devices = await several(keyed, 3, 'good')
    devices.push({
      credential: symmetricKey({ registrationId: 'bad-1', key: Buffer.alloc(32).toString('base64') }),
    })
    devices.push({ credential: symmetricKey({ registrationId: 'bad-2', key: 'no base64' }) })
    devices.push(...(await several(certified, 2, 'better')))
    devices.push({ credential: x509({ cert: stranger.certPem, key: stranger.keyPem }) })
    const results = await all(provisionMany(devices, options({ concurrency: 2 })))
    expect(results.map(({ error }) => error?.code)).toEqual([
      undefined,
      undefined,
      undefined,
      'UNAUTHORIZED',
      'SAS_KEY_INVALID',
      undefined,
      undefined,
      expect.stringMatching(/UNAUTHORIZED|TLS_CLIENT_CERTIFICATE_REFUSED/),
    ])
    await gone()
  })

  it('for so long to one is asked by nobody meanwhile', async () => {
    const clock = testClock({ startMs: Date.now(), random: () => 0 })
    const seen: number[] = []
    emulator.faults.add({ at: 'register-reply', do: { reply: { status: 429, retryAfter: '40' } } })
    for await (const { error } of provisionMany(
      await several(keyed, 4, 'calm'),
      options({ clock, concurrency: 1 }),
    )) {
      expect(error).toBeUndefined()
      seen.push(clock.monotonic())
    }
    expect(seen).toHaveLength(4)
    expect(seen.every((at) => at >= 40_000)).toBe(true)
  })
})

describe('a crash between the answer and its line', () => {
  /** What the service says of that device, of whom it has heard just now unless `body` says otherwise. */
  function answerLookups(registrationId: string, body: object, times = 1): void {
    const state = { registrationId, lastUpdatedDateTimeUtc: new Date().toISOString(), ...body }
    emulator.faults.add({
      at: 'lookup-reply',
      times,
      do: { reply: { status: 200, body: JSON.stringify(state) } },
    })
  }

  /** A journal whose last line, of the device that was assigned, never reaches the disk. */
  async function crashed(devices: readonly ManyDevice<string>[]): Promise<DeviceJournal> {
    const folder = mkdtempSync(join(tmpdir(), 'many-'))
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
    const store = fileJournal(join(folder, 'journal'))
    const losing: DeviceJournal = {
      open: async (onRecord) => {
        const opened = await store.open(onRecord)
        return {
          ...opened,
          append: (records) =>
            opened.append(records.filter((record) => !Buffer.from(record).includes('"done"'))),
        }
      },
    }
    await all(provisionMany(devices, options({ store: losing })))
    expect(emulator.registrations.size).toBe(devices.length)
    return store
  }
  const counts = () => emulator.registrations.list().map(({ count }) => count)

  it('is found out from the service, and nobody is registered twice', async () => {
    const devices = [...(await several(keyed, 2, 'lost')), await certified('lost-2')]
    const store = await crashed(devices)
    const results = await all(provisionMany(devices, options({ store })))
    expect(results.map((result) => result.assignment && result.source)).toEqual([
      'lookup',
      'lookup',
      'lookup',
    ])
    expect(counts()).toEqual([1, 1, 1])
    // And from then on the journal knows.
    const again = await all(provisionMany(devices, options({ store })))
    expect(again.map((result) => result.assignment && result.source)).toEqual([
      'journal',
      'journal',
      'journal',
    ])
  })

  it('is not asked about where that was said', async () => {
    const devices = [await keyed('lost-3')]
    const store = await crashed(devices)
    const [result] = await all(provisionMany(devices, options({ store, inDoubt: 'register' })))
    expect(result).toMatchObject({ source: 'register' })
    expect(counts()).toEqual([2])
  })

  it('is not made good by a registration of long before', async () => {
    const devices = [await keyed('lost-4')]
    const store = await crashed(devices)
    answerLookups('lost-4', {
      status: 'assigned',
      assignedHub: 'old.azure-devices.net',
      deviceId: 'lost-4',
      lastUpdatedDateTimeUtc: '2020-01-01T00:00:00Z',
    })
    const [result] = await all(provisionMany(devices, options({ store })))
    expect(result).toMatchObject({
      source: 'register',
      assignment: { assignedHub: 'emulated-hub.azure-devices.net' },
    })
  })

  it('is asked about again while the service is assigning', async () => {
    const devices = [await keyed('lost-5')]
    const store = await crashed(devices)
    const clock = testClock({ startMs: Date.now(), random: () => 0 })
    answerLookups('lost-5', { status: 'assigning' }, 2)
    const [result] = await all(provisionMany(devices, options({ store, clock })))
    expect(result).toMatchObject({ source: 'lookup' })
    expect(clock.sleeps).toEqual([3000, 3000])
    expect(counts()).toEqual([1])
  })

  it('stays in doubt where the service cannot be asked, and is asked about the next time', async () => {
    const devices = [await keyed('lost-6')]
    const store = await crashed(devices)
    emulator.faults.add({ at: 'lookup', do: 'reset', times: Number.POSITIVE_INFINITY })
    const [result] = await all(provisionMany(devices, options({ store, retry: { maxAttempts: 1 } })))
    expect(result!.error).toMatchObject({ code: 'CONNECTION_LOST' })
    emulator.faults.clear()
    expect(await all(provisionMany(devices, options({ store })))).toMatchObject([{ source: 'lookup' }])
    expect(counts()).toEqual([1])
  })

  it('has ended where the service says that it is disabled: it is registered once that is put right', async () => {
    const devices = [await keyed('lost-7')]
    const store = await crashed(devices)
    answerLookups('lost-7', { status: 'disabled' })
    const [disabled] = await all(provisionMany(devices, options({ store })))
    expect(disabled!.error).toMatchObject({ code: 'REGISTRATION_DISABLED' })
    expect(await all(provisionMany(devices, options({ store })))).toMatchObject([{ source: 'register' }])
  })
})
