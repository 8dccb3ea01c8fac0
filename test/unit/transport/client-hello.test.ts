import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  type DeviceCertificate,
  type Emulator,
  generateSymmetricKey,
  startEmulator,
} from '../../../src/emulator/index.ts'
import { type Credential, ProvisioningClient, symmetricKey, x509 } from '../../../src/index.ts'
import type { TlsOptions } from '../../../src/options/options.ts'
import { parseClientHello } from '../../support/client-hello.ts'

// One dialer means one handshake: what a transport does with the connection must not show in how it is made.

const KEY_SHARE = 51
const key = generateSymmetricKey()

let emulator: Emulator
let device: DeviceCertificate

beforeAll(async () => {
  emulator = await startEmulator({ assigning: { polls: 0 } })
  device = await emulator.issueDeviceCertificate({ registrationId: 'x509-device' })
  const { enrollments } = emulator
  enrollments.addIndividual({
    registrationId: 'x509-device',
    attestation: { x509: { certificate: device.cert } },
  })
  enrollments.addIndividual({
    registrationId: 'sas-device',
    attestation: { symmetricKey: { primaryKey: key } },
  })
})
afterAll(() => emulator.close())

const credentials: [string, () => Credential][] = [
  ['X.509', () => x509(device)],
  ['SAS', () => symmetricKey({ registrationId: 'sas-device', key })],
]
const policies: [string, TlsOptions][] = [
  ['the default policy', {}],
  ['TLS 1.3 offered', { maxVersion: 'TLSv1.3' }],
  ['other suites and curves', { cipherPreference: 'performance', curves: ['P-256', 'P-384'] }],
]

async function clientHello(transport: 'mqtt' | 'mqtt-ws' | 'https', credential: Credential, tls: TlsOptions) {
  const before = emulator.log.connections.length
  const client = new ProvisioningClient({
    ...emulator.clientOptions(),
    transport,
    credential,
    // A ticket would differ from one connection to the next.
    tls: { ...tls, sessionResumption: false },
  })
  const { connection } = await client.register()
  expect(connection.transport).toBe(transport)
  const [record, ...others] = emulator.log.connections.slice(before)
  expect(others).toEqual([])
  expect(record?.transport).toBe(transport)
  return withoutChance(record!.clientHello)
}

/** The bytes with zeros for what is drawn anew each time: random, session id and public keys of the key share. */
function withoutChance(bytes: Buffer): Buffer {
  const hello = parseClientHello(bytes)
  const copy = Buffer.from(bytes)
  // Record header 5, handshake header 4, client_version 2.
  const random = 11
  copy.fill(0, random, random + 32)
  const sessionId = random + 32
  copy.fill(0, sessionId + 1, sessionId + 1 + hello.sessionId.length)
  if (hello.extensions.includes(KEY_SHARE)) {
    let at = sessionId + 1 + hello.sessionId.length
    at += 2 + 2 * hello.suites.length
    at += 1 + hello.compressions.length
    at += 2
    while (copy.readUInt16BE(at) !== KEY_SHARE) at += 4 + copy.readUInt16BE(at + 2)
    // Extension header 4, list length 2, then for each group its number 2, a length 2 and the key.
    const end = at + 4 + copy.readUInt16BE(at + 2)
    for (let share = at + 6; share < end; ) {
      const length = copy.readUInt16BE(share + 2)
      copy.fill(0, share + 4, share + 4 + length)
      share += 4 + length
    }
  }
  return copy
}

describe('the ClientHello is the same for every transport, byte for byte', () => {
  for (const [attestation, credential] of credentials) {
    it.each(policies)(`${attestation}, %s`, async (_, tls) => {
      const mqtt = await clientHello('mqtt', credential(), tls)
      expect(mqtt.length).toBeGreaterThan(100)
      expect(await clientHello('mqtt-ws', credential(), tls)).toEqual(mqtt)
      expect(await clientHello('https', credential(), tls)).toEqual(mqtt)
    })
  }

  it('and another policy shows in it', async () => {
    const credential = symmetricKey({ registrationId: 'sas-device', key })
    expect(await clientHello('https', credential, {})).not.toEqual(
      await clientHello('https', credential, { cipherPreference: 'performance' }),
    )
  })
})
