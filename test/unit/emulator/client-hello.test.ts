import { once } from 'node:events'
import { connect } from 'node:tls'
import { afterAll, describe, expect, test } from 'vitest'
import { readClientHello } from '../../../src/emulator/client-hello.ts'
import { startEmulator } from '../../../src/emulator/index.ts'

const emulator = await startEmulator({ tls: { maxVersion: 'TLSv1.3' } })
afterAll(() => emulator.close())

/** What OpenSSL sends with these settings. */
async function helloOf(options: object): Promise<Buffer> {
  emulator.log.clear()
  const socket = connect({ port: emulator.port, host: emulator.address, ca: [...emulator.roots], ...options })
  await once(socket, 'secureConnect')
  socket.destroy()
  return emulator.log.connections[0]!.clientHello
}

const narrow = {
  servername: 'Global.Azure-Devices-Provisioning.net',
  maxVersion: 'TLSv1.2',
  ciphers: 'ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-SHA384',
  ecdhCurve: 'P-384:X25519',
}

describe('a ClientHello', () => {
  test('of TLS 1.2 is read in the order in which it offers', async () => {
    expect(readClientHello(await helloOf(narrow))).toEqual({
      versions: ['TLSv1.2'],
      suites: ['ECDHE-RSA-AES128-GCM-SHA256', 'ECDHE-RSA-AES256-SHA384'],
      groups: ['P-384', 'X25519'],
      serverName: 'global.azure-devices-provisioning.net',
      ticket: false,
    })
  })

  test('of TLS 1.3 says all its versions', async () => {
    const facts = readClientHello(
      await helloOf({ servername: 'localhost', ciphers: 'TLS_AES_256_GCM_SHA384:AES128-SHA' }),
    )
    expect(facts).toMatchObject({
      versions: ['TLSv1.3', 'TLSv1.2'],
      suites: ['TLS_AES_256_GCM_SHA384', 'AES128-SHA'],
      serverName: 'localhost',
    })
  })

  test('that is cut anywhere is read as far as it goes, and nothing is thrown', async () => {
    const whole = await helloOf(narrow)
    for (let length = 0; length < whole.length; length++) {
      const facts = readClientHello(whole.subarray(0, length))
      expect(facts.suites.length).toBeLessThanOrEqual(2)
    }
    expect(readClientHello(Buffer.alloc(0))).toEqual({
      versions: ['0x0000'],
      suites: [],
      groups: [],
      serverName: undefined,
      ticket: false,
    })
    for (let at = 0; at < whole.length; at++) {
      const bent = Buffer.from(whole)
      bent[at] = bent[at]! ^ 0xff
      readClientHello(bent)
    }
  })
})
