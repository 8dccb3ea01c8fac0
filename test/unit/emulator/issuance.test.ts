import { createPublicKey, X509Certificate } from 'node:crypto'
import { afterEach, beforeAll, describe, expect, test } from 'vitest'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type EmulatorOptions,
  generateSymmetricKey,
  type IssuancePolicy,
  type IssueFault,
  type Pki,
  startEmulator,
} from '../../../src/emulator/index.ts'
import { DpsError } from '../../../src/errors.ts'
import { hubConnack, hubToken } from './hub/raw-hub.ts'
import { certificatesOf, type DeviceCsr, opensslCsr, opensslVerify, pemOf } from './raw-csr.ts'
import {
  bodyOf,
  connackOf,
  ManualClock,
  pollPacket,
  type RawDevice,
  ready,
  registerFully,
  registerPacket,
  sasToken,
} from './raw-device.ts'
import { HttpDevice } from './raw-http.ts'

const KEY = generateSymmetricKey()
const ID = 'sensor-1'
const PREVIEW = '2025-07-01-preview'
const DAY = 86_400_000

let pki: Pki
let p384: DeviceCsr
let p256: DeviceCsr
beforeAll(async () => {
  pki = await createPki()
  p384 = opensslCsr(ID)
  p256 = opensslCsr(ID, 'P-256')
})

let emulator: Emulator
let events: EmulatorEvent[]
let clock: ManualClock
afterEach(async () => {
  await emulator?.close()
  expect(emulator?.openConnections).toBe(0)
})

async function start(issuance?: IssuancePolicy, options: EmulatorOptions = {}): Promise<Emulator> {
  events = []
  clock = new ManualClock()
  emulator = await startEmulator({
    pki,
    clock,
    assigning: { polls: 0 },
    onEvent: (event) => events.push(event),
    ...options,
  })
  emulator.enrollments.addIndividual({
    registrationId: ID,
    attestation: { symmetricKey: { primaryKey: KEY } },
    ...(issuance === undefined ? {} : { issuance }),
  })
  return emulator
}

const hello = (apiVersion = PREVIEW) => ({ id: ID, apiVersion, sas: sasToken({ key: KEY, id: ID }) })
const device = (): Promise<RawDevice> => ready(emulator, hello())
const reasons = (): string[] => events.flatMap((event) => (event.type === 'refused' ? event.reason : []))

async function register(csr?: unknown): Promise<Record<string, unknown>> {
  const raw = await device()
  const body = await registerFully(raw, ID, csr === undefined ? {} : { csr })
  raw.socket.destroy()
  return body
}

const stateOf = (body: Record<string, unknown>) => body.registrationState as Record<string, unknown>
const chainOf = async (csr = p384.csr): Promise<unknown> =>
  stateOf(await register(csr)).issuedCertificateChain

describe('a registration with a certificate signing request', () => {
  test('is answered with a chain of three, the leaf first, that OpenSSL verifies', async () => {
    await start({})
    const chain = certificatesOf(await chainOf())
    expect(chain.map(({ subject }) => subject)).toEqual([
      `CN=${ID}`,
      'CN=Emulator Issuing CA',
      'CN=Emulator Issuance Root',
    ])
    expect(opensslVerify(chain, clock.now())).toBe('leaf: OK')
    const [leaf, ca, root] = chain
    expect(leaf!.publicKey.equals(createPublicKey(p384.publicKey))).toBe(true)
    expect(leaf).toMatchObject({ ca: false, keyUsage: ['1.3.6.1.5.5.7.3.2'] })
    expect(ca!.toString()).toBe(emulator.issuance.caPem)
    expect(root!.toString()).toBe(emulator.issuance.rootPem)
    for (const { publicKey } of [ca!, root!]) {
      expect(publicKey.asymmetricKeyDetails).toEqual({ namedCurve: 'secp384r1' })
    }
  })

  test('is issued for 30 days by default, and from a little earlier', async () => {
    await start({})
    const [leaf] = certificatesOf(await chainOf())
    const now = Math.floor(clock.now() / 1000) * 1000
    expect(Math.abs(Date.parse(leaf!.validTo) - now - 30 * DAY)).toBeLessThanOrEqual(1000)
    expect(Math.abs(now - Date.parse(leaf!.validFrom) - 300_000)).toBeLessThanOrEqual(1000)
  })

  test('is issued for as long as the policy of its group says', async () => {
    await start()
    emulator.enrollments.addGroup({
      groupId: 'g',
      attestation: { x509: { ca: pki.deviceRoot.certPem } },
      issuance: { lifetimeMs: 120_000 },
    })
    const bootstrap = await emulator.issueDeviceCertificate({ registrationId: 'd-1' })
    const raw = await ready(emulator, { id: 'd-1', apiVersion: PREVIEW }, bootstrap)
    const body = await registerFully(raw, 'd-1', { csr: opensslCsr('d-1').csr })
    raw.socket.destroy()
    const [leaf] = certificatesOf(stateOf(body).issuedCertificateChain)
    expect(Date.parse(leaf!.validTo) - Date.parse(leaf!.validFrom)).toBe(132_000)
    expect(emulator.issuance.list()).toMatchObject([{ enrollment: { groupId: 'g' }, via: 'dps' }])
  })

  test('gets another certificate each time', async () => {
    await start({})
    const [first] = certificatesOf(await chainOf())
    const [second] = certificatesOf(await chainOf())
    expect(first!.serialNumber).not.toBe(second!.serialNumber)
    expect(emulator.issuance.list().map(({ serialNumber }) => serialNumber)).toEqual([
      first!.serialNumber,
      second!.serialNumber,
    ])
  })

  test('is told its chain in the last reply, also when asked again, and never in a lookup', async () => {
    await start({}, { assigning: { polls: 1, retryAfterSeconds: 0 } })
    const http = new HttpDevice(emulator, ID, { sas: sasToken({ key: KEY, id: ID }) })
    const at = (path: string): string => `/0ne00000000/registrations/${ID}${path}?api-version=${PREVIEW}`
    const ask = (method: string, path: string, fields?: object) =>
      http.ask(method, at(path), {
        sas: http.sas,
        body: fields && JSON.stringify({ registrationId: ID, ...fields }),
      })
    const accepted = await ask('PUT', '/register', { csr: p384.csr })
    expect(accepted.json).toEqual({ operationId: expect.any(String), status: 'assigning' })
    const operation = `/operations/${accepted.json.operationId}`
    const first = stateOf((await ask('GET', operation)).json).issuedCertificateChain
    expect(first).toHaveLength(3)
    expect(stateOf((await ask('GET', operation)).json).issuedCertificateChain).toEqual(first)
    expect(emulator.issuance.list()).toHaveLength(1)
    const looked = await ask('POST', '', {})
    expect(looked).toMatchObject({ status: 200, json: { status: 'assigned' } })
    expect(looked.json).not.toHaveProperty('issuedCertificateChain')
    const refused = await ask('POST', '', { csr: p384.csr })
    expect(refused).toMatchObject({ status: 400, json: { message: "Unknown field 'csr'." } })
    http.close()
  })

  test('starts over where the key is another one, and goes on where it is the same', async () => {
    await start({}, { assigning: { polls: 1, retryAfterSeconds: 0 } })
    const raw = await device()
    const operation = async (csr: string): Promise<unknown> => {
      raw.send(registerPacket(ID, 'r', { csr }, { qos: 0 }))
      return bodyOf(await raw.publishReply()).operationId
    }
    const first = await operation(p384.csr)
    expect(await operation(p384.csr)).toBe(first)
    const second = await operation(p256.csr)
    expect(second).not.toBe(first)
    raw.send(pollPacket(String(second), 'p', { qos: 0 }))
    const [leaf] = certificatesOf(stateOf(bodyOf(await raw.publishReply())).issuedCertificateChain)
    expect(leaf!.publicKey.equals(createPublicKey(p256.publicKey))).toBe(true)
    raw.socket.destroy()
  })

  test('without a policy is assigned, and gets no chain', async () => {
    await start()
    const body = await register(p384.csr)
    expect(body.status).toBe('assigned')
    expect(stateOf(body)).not.toHaveProperty('issuedCertificateChain')
    expect(emulator.issuance.list()).toEqual([])
  })

  test('without a request gets no chain either, whatever the policy', async () => {
    await start({})
    expect(stateOf(await register())).not.toHaveProperty('issuedCertificateChain')
  })

  test('is made known, without a secret', async () => {
    await start({})
    const [leaf] = certificatesOf(await chainOf())
    expect(events).toContainEqual({
      type: 'certificate-issued',
      certificate: {
        serialNumber: leaf!.serialNumber,
        fingerprint256: leaf!.fingerprint256,
        registrationId: ID,
        deviceId: ID,
        via: 'dps',
        enrollment: { registrationId: ID },
        issuedAt: new Date(clock.now()),
        notBefore: new Date(leaf!.validFrom),
        notAfter: new Date(leaf!.validTo),
        revokedAt: undefined,
      },
    })
  })
})

describe('a request that is refused', () => {
  const messageOf = async (csr: unknown, issuance: IssuancePolicy = {}): Promise<unknown> => {
    await start(issuance)
    const body = await register(csr)
    expect(body.errorCode).toBe(400_000)
    expect(emulator.issuance.list()).toEqual([])
    return body.message
  }

  const flipped = (csr: string, at: number): string => {
    const bytes = Buffer.from(csr, 'base64')
    bytes[bytes.length + at]! ^= 1
    return bytes.toString('base64')
  }

  test('under an API version before the preview', async () => {
    await start({})
    for (const version of ['2019-03-31', '2021-10-01']) {
      const raw = await ready(emulator, hello(version))
      const body = await registerFully(raw, ID, { csr: p384.csr })
      expect(body).toMatchObject({ errorCode: 400_000, message: "Unknown field 'csr'." })
      raw.socket.destroy()
    }
  })

  test('of no string', async () => {
    expect(await messageOf(7)).toMatch(/must be a string of at most 8192/)
  })

  test('in PEM', async () => {
    const pem = `-----BEGIN CERTIFICATE REQUEST-----\n${p384.csr}\n-----END CERTIFICATE REQUEST-----\n`
    expect(await messageOf(pem)).toMatch(/must be base64 of DER, without PEM/)
  })

  test.each(['', '====', 'AAAA\nAAAA', 'AAAAA'])('in base64 that is none: %j', async (csr) => {
    expect(await messageOf(csr)).toMatch(/must be base64 of DER/)
  })

  test('of more than 8 KB', async () => {
    expect(await messageOf(Buffer.alloc(6147).toString('base64'))).toMatch(/at most 8192 characters/)
  })

  test('with bytes behind it, cut short, or of something else', async () => {
    const bytes = Buffer.from(p384.csr, 'base64')
    const certificate = new X509Certificate(pki.deviceRoot.certPem).raw
    for (const wrong of [
      Buffer.concat([bytes, Buffer.of(0)]),
      bytes.subarray(0, -1),
      certificate,
      Buffer.of(0x30, 0),
      Buffer.from('nonsense'),
      Buffer.alloc(6000, 0x30),
    ]) {
      expect(await messageOf(wrong.toString('base64'))).toMatch(/PKCS#10 in DER/)
      await emulator.close()
    }
  })

  test('with a signature that is not its own', async () => {
    expect(await messageOf(flipped(p384.csr, -1))).toMatch(/signed with its own key/)
  })

  test('for another registration id, also in other letter case', async () => {
    expect(await messageOf(opensslCsr('sensor-2').csr)).toBe(
      `The subject's only common name must be '${ID}'.`,
    )
    await emulator.close()
    expect(await messageOf(opensslCsr('Sensor-1').csr)).toMatch(/common name/)
  })

  test('with two common names, or none', async () => {
    expect(await messageOf(opensslCsr(`/CN=${ID}/CN=${ID}`).csr)).toMatch(/only common name/)
    await emulator.close()
    expect(await messageOf(opensslCsr('/O=Factory').csr)).toMatch(/only common name/)
  })

  test('for a key that the policy does not allow', async () => {
    expect(await messageOf(p256.csr, { curves: ['P-384'] })).toBe(
      'The key must be on the curve P-384, no RSA.',
    )
    await emulator.close()
    expect(await messageOf(opensslCsr(ID, 'P-521').csr)).toMatch(/on the curve P-384 or P-256/)
    await emulator.close()
    expect(await messageOf(opensslCsr(ID, 'rsa').csr)).toMatch(/no RSA/)
  })

  test('is the only one of its connection: a better one is granted', async () => {
    await start({})
    const raw = await device()
    expect(await registerFully(raw, ID, { csr: flipped(p384.csr, -1) })).toHaveProperty('errorCode')
    expect(await registerFully(raw, ID, { csr: p384.csr })).toMatchObject({ status: 'assigned' })
    raw.socket.destroy()
  })
})

test.each([
  ['P-256', {}],
  ['rsa', { allowRsa: true }],
] as const)('a key of kind %s gets one where the policy allows it', async (kind, policy) => {
  await start(policy)
  const asked = opensslCsr(ID, kind, '-sha512')
  const chain = certificatesOf(await chainOf(asked.csr))
  expect(chain[0]!.publicKey.equals(createPublicKey(asked.publicKey))).toBe(true)
  expect(opensslVerify(chain, clock.now())).toBe('leaf: OK')
})

test('attributes of the request and other names of its subject change nothing', async () => {
  await start({})
  const { csr } = opensslCsr(`/O=Factory/CN=${ID}`, 'P-384', '-addext', 'basicConstraints=CA:TRUE')
  const chain = certificatesOf(await chainOf(csr))
  expect(chain[0]).toMatchObject({ subject: `CN=${ID}`, ca: false })
})

describe('a policy', () => {
  test.each([
    { lifetimeMs: 999 },
    { lifetimeMs: 1500 },
    { lifetimeMs: 0 },
    { lifetimeMs: 1e300 },
    { lifetimeMs: Number.POSITIVE_INFINITY },
    { curves: [] },
    { curves: ['P-521'] },
  ] as IssuancePolicy[])('that makes no sense is refused: %j', async (issuance) => {
    const started = start(issuance)
    await expect(started).rejects.toThrow(DpsError)
    await expect(started).rejects.toMatchObject({ code: 'OPTION_INVALID', phase: 'config' })
  })
})

describe('an issued certificate', () => {
  const issued = async (asked = p384) => ({ cert: pemOf(await chainOf(asked.csr)), key: asked.key })

  test('is the credential at the hub from then on, and the key of the registration is not', async () => {
    await start({})
    const token = hubToken({ key: KEY, id: ID })
    await register()
    expect(await hubConnack(emulator, { id: ID, sas: token })).toBe(0)
    const tls = await issued()
    expect(await hubConnack(emulator, { id: ID, tls })).toBe(0)
    expect(await hubConnack(emulator, { id: ID, sas: token })).toBe(5)
    expect(emulator.hub.listDevices()).toMatchObject([{ deviceId: ID, authentication: 'x509' }])
  })

  test('of an earlier registration is accepted too, until it ends', async () => {
    await start({ lifetimeMs: 60_000 })
    const first = await issued()
    clock.advance(30_000)
    const second = await issued(p256)
    expect(await hubConnack(emulator, { id: ID, tls: first })).toBe(0)
    clock.advance(31_000)
    expect(await hubConnack(emulator, { id: ID, tls: first })).toBe(5)
    expect(await hubConnack(emulator, { id: ID, tls: second })).toBe(0)
    clock.advance(30_000)
    expect(await hubConnack(emulator, { id: ID, tls: second })).toBe(5)
    expect(await connackOf(emulator, { id: ID, apiVersion: PREVIEW }, second)).toBe(5)
    expect(reasons()).toEqual(['certificate-expired', 'certificate-expired', 'certificate-expired'])
  })

  test('is nobody else’s', async () => {
    await start({})
    emulator.hub.addDevice({ deviceId: 'other', authentication: { symmetricKey: {} } })
    const tls = await issued()
    expect(await hubConnack(emulator, { id: 'other', tls })).toBe(5)
    emulator.hub.addDevice({ deviceId: ID, moduleId: 'm', authentication: { symmetricKey: {} } })
    expect(await hubConnack(emulator, { id: ID, moduleId: 'm', tls })).toBe(5)
    expect(await connackOf(emulator, { id: 'other', apiVersion: PREVIEW }, tls)).toBe(5)
    expect(reasons()).toEqual(['credential-missing', 'credential-missing', 'certificate-name-wrong'])
  })

  test('stays a credential beside the key of a registration without a request', async () => {
    await start({})
    const tls = await issued()
    await register()
    expect(await hubConnack(emulator, { id: ID, tls })).toBe(0)
    expect(await hubConnack(emulator, { id: ID, sas: hubToken({ key: KEY, id: ID }) })).toBe(0)
  })

  test('is not accepted of a device that was added anew by hand', async () => {
    await start({})
    const tls = await issued()
    emulator.hub.addDevice({ deviceId: ID, authentication: { symmetricKey: {} } })
    expect(await hubConnack(emulator, { id: ID, tls })).toBe(5)
  })

  test('registers the device again at the provisioning service, and renews itself there', async () => {
    await start({ lifetimeMs: 60_000 })
    const tls = await issued()
    clock.advance(50_000)
    const raw = await ready(emulator, { id: ID, apiVersion: PREVIEW }, tls)
    const body = await registerFully(raw, ID, { csr: p256.csr })
    raw.socket.destroy()
    clock.advance(50_000)
    const renewed = { cert: pemOf(stateOf(body).issuedCertificateChain), key: p256.key }
    expect(await hubConnack(emulator, { id: ID, tls: renewed })).toBe(0)
    const again = await ready(emulator, { id: ID, apiVersion: PREVIEW }, renewed)
    expect(await registerFully(again, ID)).toMatchObject({ status: 'assigned' })
    again.socket.destroy()
    // It registered with its certificate: that stays its credential.
    expect(await hubConnack(emulator, { id: ID, tls: renewed })).toBe(0)
    expect(await hubConnack(emulator, { id: ID, sas: hubToken({ key: KEY, id: ID }) })).toBe(5)
  })

  test('ends with its enrollment at the provisioning service', async () => {
    await start({})
    const tls = await issued()
    emulator.enrollments.disable({ registrationId: ID })
    expect(await connackOf(emulator, { id: ID, apiVersion: PREVIEW }, tls)).toBe(5)
    emulator.enrollments.remove({ registrationId: ID })
    expect(await connackOf(emulator, { id: ID, apiVersion: PREVIEW }, tls)).toBe(5)
    expect(reasons()).toEqual(['enrollment-disabled', 'not-enrolled'])
  })

  test('that was revoked is refused everywhere, and its successor is not', async () => {
    await start({})
    const tls = await issued()
    const [first] = emulator.issuance.list()
    const second = await issued(p256)
    clock.advance(1000)
    expect(emulator.issuance.revoke({ serialNumber: first!.serialNumber.toLowerCase() })).toBe(1)
    expect(await hubConnack(emulator, { id: ID, tls })).toBe(5)
    expect(await connackOf(emulator, { id: ID, apiVersion: PREVIEW }, tls)).toBe(5)
    expect(reasons()).toEqual(['certificate-revoked', 'certificate-revoked'])
    expect(await hubConnack(emulator, { id: ID, tls: second })).toBe(0)
    expect(emulator.issuance.list().map(({ revokedAt }) => revokedAt)).toEqual([
      new Date(clock.now()),
      undefined,
    ])
    expect(emulator.issuance.revoke({ registrationId: 'SENSOR-1' })).toBe(1)
    expect(emulator.issuance.revoke({ registrationId: ID })).toBe(0)
    expect(await hubConnack(emulator, { id: ID, tls: second })).toBe(5)
  })

  test('goes along to another hub', async () => {
    await start({}, { hubs: ['a.azure-devices.net', 'b.azure-devices.net'] })
    let hub = 'a.azure-devices.net'
    emulator.enrollments.addIndividual({
      registrationId: ID,
      deviceId: 'device-1',
      attestation: { symmetricKey: { primaryKey: KEY } },
      issuance: {},
      hub: () => hub,
    })
    const tls = await issued()
    expect(await hubConnack(emulator, { id: 'device-1', hub, tls })).toBe(0)
    hub = 'b.azure-devices.net'
    await register()
    expect(await hubConnack(emulator, { id: 'device-1', hub, tls })).toBe(0)
    expect(await hubConnack(emulator, { id: 'device-1', hub: 'a.azure-devices.net', tls })).toBe(5)
  })
})

describe('a lie about a certificate', () => {
  const lied = async (lie: IssueFault | readonly IssueFault[]): Promise<string[]> => {
    await start({})
    const fault = emulator.faults.add({ at: 'issue', do: lie, match: { registrationId: ID } })
    const chain = (await chainOf()) as string[]
    expect(fault.hits).toBe(1)
    expect(events).toContainEqual({
      type: 'fault',
      point: { at: 'issue', connectionId: 1, registrationId: ID },
      actions: [lie].flat(),
    })
    // The next one is true again.
    expect(opensslVerify(certificatesOf(await chainOf()), clock.now())).toBe('leaf: OK')
    return chain
  }
  const verdict = (chain: readonly X509Certificate[]): string => opensslVerify(chain, clock.now())

  test('wrong-key', async () => {
    const chain = certificatesOf(await lied('wrong-key'))
    expect(chain[0]!.publicKey.equals(createPublicKey(p384.publicKey))).toBe(false)
    expect(verdict(chain)).toBe('leaf: OK')
  })

  test('wrong-name', async () => {
    const chain = certificatesOf(await lied('wrong-name'))
    expect(chain[0]!.subject).toBe(`CN=not-${ID}`)
    expect(verdict(chain)).toBe('leaf: OK')
    const tls = { cert: chain[0]!.toString(), key: p384.key }
    expect(await hubConnack(emulator, { id: ID, tls })).toBe(5)
    expect(await connackOf(emulator, { id: `not-${ID}`, apiVersion: PREVIEW }, tls)).toBe(5)
    expect(reasons()).toEqual(['certificate-name-wrong', 'certificate-name-wrong'])
  })

  test('broken-chain', async () => {
    const chain = certificatesOf(await lied('broken-chain'))
    expect(chain[0]!.checkIssued(chain[1]!)).toBe(true)
    expect(chain[0]!.verify(chain[1]!.publicKey)).toBe(false)
    expect(verdict(chain)).toMatch(/signature failure/)
  })

  test('expired', async () => {
    const chain = certificatesOf(await lied('expired'))
    expect(verdict(chain)).toMatch(/certificate has expired/)
  })

  test('not-yet-valid', async () => {
    const chain = certificatesOf(await lied('not-yet-valid'))
    expect(verdict(chain)).toMatch(/not yet valid/)
  })

  test('no-chain', async () => {
    expect(await lied('no-chain')).toBe(null)
    expect(emulator.issuance.list()).toHaveLength(1)
  })

  test('leaf-only, reversed, duplicate and with-unrelated', async () => {
    const names = async (lie: IssueFault): Promise<string[]> => {
      const chain = certificatesOf(await lied(lie))
      await emulator.close()
      return chain.map(({ subject }) => subject)
    }
    const [leaf, ca, root] = [`CN=${ID}`, 'CN=Emulator Issuing CA', 'CN=Emulator Issuance Root']
    expect(await names('leaf-only')).toEqual([leaf])
    expect(await names('reversed')).toEqual([root, ca, leaf])
    expect(await names('duplicate')).toEqual([leaf, leaf, ca, root])
    expect(await names('with-unrelated')).toEqual([leaf, 'CN=Unrelated', ca, root])
  })

  test('pem', async () => {
    const chain = await lied('pem')
    expect(chain).toHaveLength(3)
    for (const element of chain) {
      expect(Buffer.from(element, 'base64').toString()).toMatch(/^-----BEGIN CERTIFICATE-----\n/)
    }
  })

  test('garbage', async () => {
    const [element] = await lied('garbage')
    expect(() => new X509Certificate(Buffer.from(element!, 'base64'))).toThrow()
  })

  test('several at once', async () => {
    const chain = certificatesOf(await lied(['expired', 'reversed']))
    expect(chain[2]!.subject).toBe(`CN=${ID}`)
    expect(verdict([...chain].reverse())).toMatch(/certificate has expired/)
  })

  test('that does not exist is refused', async () => {
    await start({})
    expect(() => emulator.faults.add({ at: 'issue', do: 'drop' as never })).toThrow(
      /must be one of wrong-key/,
    )
  })
})
