import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest'
import { type Emulator, startEmulator } from '../../../src/emulator/index.ts'
import { connectHub, provisionAndConnect } from '../../../src/hub/index.ts'
import { fileStore, ProvisioningClient, provision, x509 } from '../../../src/index.ts'
import { OpenSsl } from './certificates.ts'

// What was put right in a credential is told by whoever uses it, once: a device that runs for years is not to repeat it
// with every connection.

let emulator: Emulator
let folder: string
let warnings: string[]
const openssl = new OpenSsl()

beforeAll(async () => {
  emulator = await startEmulator({ assigning: { polls: 0 } })
  const attestation = { x509: { ca: emulator.pki.deviceRoot.certPem } }
  emulator.enrollments.addGroup({ groupId: 'g', attestation })
})
afterAll(async () => {
  openssl.remove()
  await emulator.close()
})
beforeEach(async () => {
  warnings = []
  folder = mkdtempSync(join(tmpdir(), 'notices-'))
  await reversed()
  return () => rmSync(folder, { recursive: true })
})

const files = () => ({ certFile: join(folder, 'cert.pem'), keyFile: join(folder, 'key.pem') })

/** A new certificate behind its intermediate. */
async function reversed(): Promise<void> {
  const { cert, key } = await emulator.issueDeviceCertificate({ registrationId: 'sensor-1' })
  const blocks = cert.match(/-----BEGIN[\s\S]*?-----END CERTIFICATE-----\n/g)!
  expect(blocks).toHaveLength(2)
  writeFileSync(files().keyFile, key)
  writeFileSync(files().certFile, blocks.reverse().join(''))
}

const onEvent = (event: { type: string; message?: unknown }) => {
  if (event.type === 'warning') warnings.push(String(event.message))
}
const options = () => ({ ...emulator.clientOptions(), credential: x509(files()), onEvent })
const notInOrder = expect.stringContaining('`certFile` was not in order')

it('by a client, once for each content', async () => {
  const client = new ProvisioningClient(options())
  await client.register()
  await client.register()
  expect(warnings).toEqual([notInOrder])
  await reversed()
  await client.register()
  await client.probe()
  expect(warnings).toEqual([notInOrder, notInOrder])
})

it('by provision, from the store too', async () => {
  const store = fileStore(join(folder, 'assignment'))
  await provision({ ...options(), store })
  expect(warnings).toEqual([notInOrder])
  expect(await provision({ ...options(), store })).toMatchObject({ source: 'store' })
  expect(warnings).toEqual([notInOrder, notInOrder])
})

it('by a connection to a hub', async () => {
  const assignment = await new ProvisioningClient({ ...options(), onEvent: () => {} }).register()
  const hub = await connectHub(assignment, { ...emulator.hubOptions(), credential: x509(files()), onEvent })
  await hub.close()
  expect(warnings).toEqual([notInOrder])
})

it('by provisionAndConnect once for both', async () => {
  const hub = await provisionAndConnect({
    ...options(),
    store: fileStore(join(folder, 'assignment')),
    hub: emulator.hubOptions(),
  })
  await hub.close()
  expect(warnings).toEqual([notInOrder])
})

it('and a PKCS#12 bundle registers, whose file is read again when it was replaced', async () => {
  const pkcs12File = join(folder, 'device.p12')
  const bundled = async () => {
    const { cert, key } = await emulator.issueDeviceCertificate({ registrationId: 'sensor-1' })
    openssl.write('chain.pem', cert)
    openssl.write('device.key', key)
    const args = ['-export', '-inkey', 'device.key', '-in', 'chain.pem', '-passout', 'pass:secret']
    writeFileSync(pkcs12File, openssl.run(['pkcs12', ...args]))
  }
  await bundled()
  const credential = x509({ pkcs12File, passphrase: 'secret' })
  const client = new ProvisioningClient({ ...options(), credential })
  expect((await client.register()).connection.resumed).toBe(false)
  expect((await client.register()).connection.resumed).toBe(true)
  await bundled()
  expect((await client.register()).connection.resumed).toBe(false)
  expect(warnings).toEqual([])
})
