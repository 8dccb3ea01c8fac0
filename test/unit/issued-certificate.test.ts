import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { fileStore } from '../../src/assignment/file-store.ts'
import type { AssignmentStore } from '../../src/assignment/store.ts'
import { readCertificateRequest } from '../../src/credential/certificate-request.ts'
import { type IssuedCertificate as Issuer, issueCertificate } from '../../src/emulator/index.ts'
import { DpsError } from '../../src/errors.ts'
import {
  type IssuedCertificate,
  type IssuedCertificateRequest,
  issuedCertificate,
} from '../../src/issued-certificate.ts'
import { seal } from '../../src/sealed.ts'
import { testClock } from '../support/clock.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { type MemoryStore, memoryStore } from './assignment/records.ts'

const ID = 'sensor-1'
const DAY = 86_400_000
const clock = testClock({ startMs: Date.now() })
const refused = new DpsError('UNAUTHORIZED', 'connect', 'no')

let root: Issuer
beforeAll(async () => {
  root = await issueCertificate({ subject: 'Root', ca: true, keyType: 'ec-p384', digest: 'sha384' })
})

async function chainFor(
  { csr }: IssuedCertificateRequest,
  { subject = ID, fromMs = -60_000, untilMs = 30 * DAY } = {},
): Promise<string[]> {
  const { certPem } = await issueCertificate({
    subject,
    issuer: root,
    publicKey: readCertificateRequest(csr).publicKey.export({ type: 'spki', format: 'pem' }) as string,
    digest: 'sha384',
    notBefore: new Date(clock.now() + fromMs),
    notAfter: new Date(clock.now() + untilMs),
  })
  return [certPem, root.certPem]
}

const over = (store: AssignmentStore = memoryStore()): IssuedCertificate =>
  issuedCertificate({ store, clock })
const request = (certificate: IssuedCertificate) =>
  certificate.createRequest({ registrationId: ID, curve: 'P-256' })

/** Asks for one and installs it; the serial number. */
async function renew(certificate: IssuedCertificate, more = {}): Promise<string> {
  return (await certificate.install(await chainFor(await request(certificate), more))).serialNumber
}

/** The serial number of the certificate that `load` gives. */
async function inUse(certificate: IssuedCertificate): Promise<string> {
  const { tls } = await certificate.load()
  const { X509Certificate } = await import('node:crypto')
  return new X509Certificate(String(tls?.cert)).serialNumber
}

/** Loads, and tells what a hub made of it. */
async function connect(certificate: IssuedCertificate, error?: DpsError): Promise<boolean> {
  return certificate.settled(await certificate.load(), error)
}

const asText = ({ bytes }: MemoryStore) => Buffer.from(bytes ?? '').toString()

describe('before anything is issued', () => {
  it('load says so by a code, so that a list goes on to the bootstrap credential', async () => {
    const error = await expectDpsError(over().load(), 'CREDENTIAL_NOT_ISSUED', 'config')
    expect(error.hint).toContain('bootstrap')
    expect(await over().status()).toEqual({ current: undefined, candidate: undefined, requested: false })
  })

  it('what takes a step back does nothing', async () => {
    const store = memoryStore()
    const certificate = over(store)
    await certificate.confirm()
    await certificate.reject()
    await certificate.abandon()
    await expectDpsError(certificate.install(undefined), 'OPTION_INVALID', 'config')
    expect(store.bytes).toBeUndefined()
  })

  it.each([[{}], [{ store: {} }], [{ store: memoryStore(), file: 'x' }]])(
    'options %j are refused',
    async (options) => {
      await expectDpsError(() => issuedCertificate(options as never), 'OPTION_INVALID', 'config')
    },
  )

  it.each([
    [{ registrationId: 'a b' }],
    [{ registrationId: ID, curve: 'P-521' }],
    [{ registrationId: ID, key: 'k' }],
  ])('a request with %j is refused, and nothing stored', async (options) => {
    const store = memoryStore()
    await expectDpsError(async () => over(store).createRequest(options as never), 'OPTION_INVALID', 'config')
    expect(store.bytes).toBeUndefined()
  })
})

describe('a request', () => {
  it('has its key stored before it is known, and is the same for another process', async () => {
    const store = memoryStore()
    const first = await request(over(store))
    expect(first.resume).toBe(false)
    expect(first.requestId).toMatch(/^[0-9a-f]{32}$/)
    expect(asText(store)).toContain('BEGIN PRIVATE KEY')
    const again = await request(over(store))
    expect(again).toMatchObject({ requestId: first.requestId, resume: true })
    expect(
      readCertificateRequest(again.csr).publicKey.equals(readCertificateRequest(first.csr).publicKey),
    ).toBe(true)
    // Its answer is taken by a process that has not asked.
    const facts = await over(store).install(await chainFor(first))
    expect(await inUse(over(store))).toBe(facts.serialNumber)
  })

  it('has a new key once the one before was answered, given up, or was for another name', async () => {
    const certificate = over()
    const ids = [(await request(certificate)).requestId]
    await certificate.abandon()
    ids.push((await request(certificate)).requestId)
    await renew(certificate)
    ids.push((await request(certificate)).requestId)
    ids.push((await certificate.createRequest({ registrationId: 'other', curve: 'P-256' })).requestId)
    expect(new Set(ids).size).toBe(4)
  })
})

describe('a certificate', () => {
  it('is used first, while the one before is kept until it has worked', async () => {
    const store = memoryStore()
    const certificate = over(store)
    const first = await renew(certificate)
    expect(await certificate.status()).toMatchObject({
      current: undefined,
      candidate: { serialNumber: first },
    })
    expect(await connect(certificate)).toBe(false)
    expect(await certificate.status()).toMatchObject({
      current: { serialNumber: first },
      candidate: undefined,
    })
    const second = await renew(certificate)
    expect(await inUse(over(store))).toBe(second)
    expect(await certificate.status()).toMatchObject({
      current: { serialNumber: first, commonName: ID },
      candidate: { serialNumber: second, validUntil: expect.any(Date) },
    })
    await connect(certificate)
    expect(await certificate.status()).toMatchObject({
      current: { serialNumber: second },
      candidate: undefined,
    })
    expect(await inUse(over(store))).toBe(second)
    // Nothing is left of the first, its key least of all.
    expect(asText(store).match(/BEGIN PRIVATE KEY/g)).toHaveLength(1)
  })

  it('that is refused makes way for the one before, which is tried at once', async () => {
    const store = memoryStore()
    const certificate = over(store)
    const first = await renew(certificate)
    await connect(certificate)
    await renew(certificate)
    expect(await connect(certificate, refused)).toBe(true)
    expect(await inUse(certificate)).toBe(first)
    expect(await inUse(over(store))).toBe(first)
    // Refused itself, it has nothing to make way for.
    expect(await connect(certificate, refused)).toBe(false)
    expect(await inUse(certificate)).toBe(first)
  })

  it.each([
    new DpsError('CONNECTION_LOST', 'hub', 'x'),
    new DpsError('TIMEOUT', 'tls', 'x'),
    new DpsError('SERVER_UNTRUSTED', 'tls', 'x'),
    new DpsError('SERVICE_UNAVAILABLE', 'connect', 'x'),
  ])('is not given up for what says nothing about it: $code', async (error) => {
    const certificate = over()
    await renew(certificate)
    await connect(certificate)
    const second = await renew(certificate)
    expect(await connect(certificate, error)).toBe(false)
    expect(await inUse(certificate)).toBe(second)
  })

  it('that ends three times behind the way to the hub has the one before tried at once, and stays where that fails too', async () => {
    const certificate = over()
    const first = await renew(certificate)
    await connect(certificate)
    const second = await renew(certificate)
    const reset = new DpsError('CONNECTION_LOST', 'connect', 'x')
    for (const phase of ['dns', 'tcp', 'proxy'] as const) {
      for (let n = 0; n < 3; n++)
        expect(await connect(certificate, new DpsError('TIMEOUT', phase, 'x'))).toBe(false)
    }
    expect(await connect(certificate, reset)).toBe(false)
    expect(await connect(certificate, reset)).toBe(false)
    expect(await connect(certificate, reset)).toBe(true)
    expect(await inUse(certificate)).toBe(first)
    expect(await connect(certificate, reset)).toBe(false)
    expect(await inUse(certificate)).toBe(second)
    expect(await connect(certificate, reset)).toBe(true)
    expect(await connect(certificate)).toBe(false)
    expect(await inUse(certificate)).toBe(first)
    expect(await certificate.status()).toMatchObject({ candidate: undefined })
    const third = await renew(certificate)
    expect(await connect(certificate, reset)).toBe(false)
    expect(await inUse(certificate)).toBe(third)
  })

  it('that ends so is kept where there is nothing before it', async () => {
    const certificate = over()
    const only = await renew(certificate)
    for (let n = 0; n < 5; n++)
      expect(await connect(certificate, new DpsError('CONNECTION_LOST', 'connect', 'x'))).toBe(false)
    expect(await inUse(certificate)).toBe(only)
  })

  it('that the policy of this device cannot use is given up too', async () => {
    const certificate = over()
    const first = await renew(certificate)
    await connect(certificate)
    await renew(certificate)
    expect(await connect(certificate, new DpsError('TLS_POLICY_INVALID', 'config', 'its curve'))).toBe(true)
    expect(await inUse(certificate)).toBe(first)
  })

  it('that is refused stays where there is nothing before it, or that has ended', async () => {
    const certificate = over()
    const only = await renew(certificate)
    expect(await connect(certificate, refused)).toBe(false)
    expect(await inUse(certificate)).toBe(only)
    const other = over()
    await renew(other, { untilMs: 1000 })
    await connect(other)
    const second = await renew(other)
    clock.advance(2000)
    expect(await connect(other, refused)).toBe(false)
    expect(await inUse(other)).toBe(second)
  })

  it('that is not valid yet waits, while there is one before it', async () => {
    const certificate = over()
    const first = await renew(certificate)
    await connect(certificate)
    const second = await renew(certificate, { fromMs: 60_000 })
    expect(await inUse(certificate)).toBe(first)
    // What came of the one before says nothing about it.
    await connect(certificate)
    expect(await certificate.status()).toMatchObject({ candidate: { serialNumber: second } })
    clock.advance(61_000)
    expect(await inUse(certificate)).toBe(second)
  })

  it.each([
    ['of another name', { subject: 'other' }],
    ['that has ended', { fromMs: -2 * DAY, untilMs: -DAY }],
    ['that begins too late', { fromMs: DAY }],
  ])('%s is refused, and changes nothing', async (_, lie) => {
    const store = memoryStore()
    const certificate = over(store)
    const first = await renew(certificate)
    await connect(certificate)
    const chain = await chainFor(await request(certificate), lie)
    const before = asText(store)
    await expectDpsError(certificate.install(chain), 'ISSUED_CERTIFICATE_INVALID', 'parse')
    expect(asText(store)).toBe(before)
    expect(await inUse(certificate)).toBe(first)
  })

  it('for another key, without its chain, or none at all is refused', async () => {
    const certificate = over()
    const strange = await chainFor(await request(over()))
    const own = await chainFor(await request(certificate))
    await expectDpsError(certificate.install(strange), 'ISSUED_CERTIFICATE_INVALID', 'parse')
    await expectDpsError(certificate.install(own.slice(0, 1)), 'ISSUED_CERTIFICATE_INVALID', 'parse')
    await expectDpsError(certificate.install(undefined), 'CERTIFICATE_NOT_ISSUED', 'parse')
    await certificate.install(own)
  })

  it('has an identity that assignments stay bound to, and contexts do not', async () => {
    const certificate = over()
    await renew(certificate)
    const first = await certificate.load()
    expect(await certificate.load()).toBe(first)
    expect(first).toMatchObject({ registrationId: ID, keyCurve: 'P-256', lineage: expect.any(String) })
    await connect(certificate)
    await renew(certificate)
    const second = await certificate.load()
    expect(second.lineage).toBe(first.lineage)
    expect(second.fingerprint).not.toBe(first.fingerprint)
  })
})

describe('the store', () => {
  it('is read again for every connection', async () => {
    const store = memoryStore()
    const [one, other] = [over(store), over(store)]
    const first = await renew(one)
    expect(await inUse(other)).toBe(first)
    const second = await renew(one)
    expect(await inUse(other)).toBe(second)
  })

  it('that is full is told of, and what it did not take is used all the same, and written later', async () => {
    const store = memoryStore()
    const certificate = over(store)
    const first = await renew(certificate)
    await connect(certificate)
    const { write } = store
    store.write = async () => {
      throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' })
    }
    const before = asText(store)
    const asked = await request(certificate).catch((error) => error)
    expect(asked).toMatchObject({ code: 'STORE_FAILED', phase: 'store', cause: { code: 'ENOSPC' } })
    const made = await request(certificate)
    expect(made.resume).toBe(true)
    await expectDpsError(certificate.install(await chainFor(made)), 'STORE_FAILED', 'store')
    const second = await inUse(certificate)
    expect(second).not.toBe(first)
    const loaded = await certificate.load()
    await expectDpsError(certificate.settled(loaded, undefined), 'STORE_FAILED', 'store')
    expect(await certificate.status()).toMatchObject({
      current: { serialNumber: second },
      candidate: undefined,
    })
    // Who starts now begins where the store stands.
    expect(asText(store)).toBe(before)
    expect(await inUse(over(store))).toBe(first)
    store.write = write
    await certificate.status()
    expect(await inUse(over(store))).toBe(second)
  })

  it('that gives a refused one no way out of it lets go of it in memory', async () => {
    const store = memoryStore()
    const certificate = over(store)
    const first = await renew(certificate)
    await connect(certificate)
    await renew(certificate)
    store.write = async () => {
      throw new Error('read-only')
    }
    expect(await connect(certificate, refused)).toBe(true)
    expect(await inUse(certificate)).toBe(first)
  })

  it('that fails, hangs, or holds something else is told by a code that a list goes on from', async () => {
    const failing = memoryStore()
    failing.read = async () => {
      throw new Error('EIO')
    }
    await expectDpsError(over(failing).load(), 'CREDENTIAL_UNREADABLE', 'config')
    const hanging = memoryStore()
    hanging.read = () => new Promise(() => undefined)
    const loading = expectDpsError(over(hanging).load(), 'CREDENTIAL_UNREADABLE', 'config')
    await expect.poll(() => clock.pending).toBe(1)
    clock.advance(30_000)
    await loading
    for (const body of [
      '{"current":7}',
      '{"current":{"key":"k","chain":[]}}',
      '{"current":{"key":"k","chain":["no certificate"]}}',
      '{"candidate":{"key":"","chain":["x"]}}',
      '{"request":{"key":"k"}}',
      '{"request":null}',
      '[]',
      '',
    ]) {
      const store = memoryStore(seal('dps-device-client/certificate', 1, body))
      await expectDpsError(over(store).load(), 'CREDENTIAL_UNREADABLE', 'config')
      // What cannot be read does not stand in the way of another.
      const serial = await renew(over(store))
      expect(await inUse(over(store))).toBe(serial)
    }
    const newer = over(memoryStore(seal('dps-device-client/certificate', 2, '{}')))
    const error = await expectDpsError(newer.load(), 'CREDENTIAL_UNREADABLE', 'config')
    expect(error.message).toContain('has the format 2')
    const foreign = over(memoryStore(seal('dps-device-client/assignment', 1, '{}')))
    await expectDpsError(foreign.load(), 'CREDENTIAL_UNREADABLE', 'config')
  })

  it('that gives what it has, and no promise of it, is one too', async () => {
    let bytes: Uint8Array | undefined
    const store = {
      read: () => bytes,
      write: (next: Uint8Array) => {
        bytes = next
      },
      remove: () => undefined,
    } as unknown as AssignmentStore
    expect(await over(store).status()).toMatchObject({ current: undefined, requested: false })
    const serial = await renew(over(store))
    expect(await inUse(over(store))).toBe(serial)
  })

  it('that answers a write too late is given what has come since once more', async () => {
    const store = memoryStore()
    const certificate = over(store)
    const { write } = store
    let late = (): Promise<void> => Promise.resolve()
    store.write = (bytes) =>
      new Promise((resolve) => {
        late = async () => resolve(await write.call(store, bytes))
      })
    const first = expectDpsError(request(certificate), 'STORE_FAILED', 'store')
    await expect.poll(() => clock.pending).toBe(1)
    clock.advance(30_000)
    await first
    store.write = write
    // Left alone, and then asked again.
    const left = await expectDpsError(certificate.abandon(), 'STORE_FAILED', 'store')
    expect(left.message).toBe('the store did not answer before, and is asked again in 600 s')
    clock.advance(600_000)
    expect(await certificate.status()).toMatchObject({ requested: false })
    const without = asText(store)
    await late()
    expect(asText(store)).not.toBe(without)
    expect(await certificate.status()).toMatchObject({ requested: false })
    expect(asText(store)).toBe(without)
  })

  it.each([
    ['fails', async () => Promise.reject(new Error('EMFILE'))],
    ['is damaged', async () => Buffer.from('nonsense')],
  ])(
    'that %s once it was read takes no certificate from this process, and is written again',
    async (_, read) => {
      const store = memoryStore()
      const certificate = over(store)
      const serial = await renew(certificate)
      await connect(certificate)
      const before = asText(store)
      const well = store.read
      store.read = read
      expect(await inUse(certificate)).toBe(serial)
      await request(certificate)
      store.read = well
      expect(asText(store)).not.toBe(before)
      expect(await over(store).status()).toMatchObject({ current: { serialNumber: serial }, requested: true })
      store.read = read
      expect(await inUse(certificate)).toBe(serial)
      store.bytes = Buffer.from('nonsense')
      await certificate.status()
      store.read = well
      expect(await inUse(over(store))).toBe(serial)
    },
  )

  it('as a file is for its owner alone, and what is cut or damaged at any byte holds no certificate', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'issued-'))
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
    const file = join(folder, 'certificate')
    const certificate = issuedCertificate({ store: fileStore(file), clock })
    await renew(certificate)
    await connect(certificate)
    await request(certificate)
    expect(statSync(file).mode & 0o777).toBe(0o600)
    const bytes = readFileSync(file)
    for (let at = 0; at < bytes.length; at++) {
      writeFileSync(file, bytes)
      truncateSync(file, at)
      await expectDpsError(over(fileStore(file)).load(), 'CREDENTIAL_UNREADABLE', 'config')
      const damaged = Buffer.from(bytes)
      damaged[at]! ^= 1 + Math.floor(Math.random() * 255)
      writeFileSync(file, damaged)
      await expectDpsError(over(fileStore(file)).load(), 'CREDENTIAL_UNREADABLE', 'config')
    }
    writeFileSync(file, bytes)
    await certificate.load()
  }, 60_000)
})

it('calls at the same time are dealt with one after the other', async () => {
  const store = memoryStore()
  const certificate = over(store)
  const requests = await Promise.all(Array.from({ length: 5 }, () => request(certificate)))
  expect(new Set(requests.map(({ requestId }) => requestId)).size).toBe(1)
  expect(requests.map(({ resume }) => resume)).toEqual([false, true, true, true, true])
  const chain = await chainFor(requests[0]!)
  await Promise.all([
    certificate.install(chain),
    certificate.confirm(),
    certificate.load(),
    certificate.status(),
  ])
  expect(await certificate.status()).toMatchObject({ current: {}, candidate: undefined, requested: false })
})

it('no way of printing it, or an error of it, shows a key', async () => {
  const store = memoryStore()
  const certificate = over(store)
  await renew(certificate)
  await connect(certificate)
  await request(certificate)
  const keys = [...asText(store).matchAll(/BEGIN PRIVATE KEY-----\\n([^\\]{40})/g)].map((found) => found[1]!)
  expect(keys).toHaveLength(2)
  const failing = memoryStore(store.bytes)
  failing.write = async () => {
    throw new Error('full')
  }
  const broken = Buffer.from(store.bytes!)
  broken[200]! ^= 1
  const shown = [
    certificate,
    await certificate.status(),
    await certificate.load(),
    await request(certificate),
    await over(memoryStore(broken))
      .load()
      .catch((error) => error),
    await over(failing)
      .abandon()
      .catch((error) => error),
  ].flatMap((value) => [
    JSON.stringify(value),
    inspect(value, { depth: 10, showHidden: true }),
    String(value),
  ])
  for (const key of keys) for (const text of shown) expect(text).not.toContain(key)
})
