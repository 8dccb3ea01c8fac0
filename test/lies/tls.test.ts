import { describe, expect, test } from 'vitest'
import {
  type DeviceCertificate,
  type EmulatorTlsOptions,
  type IssueCertificateOptions,
  issueCertificate,
} from '../../src/emulator/index.ts'
import {
  type DpsErrorCode,
  ProvisioningClient,
  type ProvisioningClientOptions,
  symmetricKey,
  type TlsFacts,
  type TlsOptions,
  x509,
} from '../../src/index.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { DEVICE_KEY, lie, pki, REGISTRATION_ID, type Stage } from '../support/stage.ts'

const HOST = 'global.azure-devices-provisioning.net'
const DAY_MS = 86_400_000
const daysFromNow = (days: number) => new Date(Date.now() + days * DAY_MS)
const seconds = (date: Date) => date.toISOString().replace(/\.\d+Z$/, 'Z')

/** A server certificate with the service's key that differs from the honest one in what is given. */
async function serverWith(options: Partial<IssueCertificateOptions>) {
  const { chainPem, keyPem } = await issueCertificate({
    subject: HOST,
    issuer: pki.serverIntermediate,
    key: pki.server.keyPem,
    sans: [HOST],
    eku: ['serverAuth'],
    ...options,
  })
  return { cert: chainPem, key: keyPem }
}

const rogueRoot = await issueCertificate({ subject: 'Rogue Root', ca: true })
const rogueIntermediate = await issueCertificate({ subject: 'Rogue CA', ca: true, issuer: rogueRoot })
const elsewhere = await serverWith({ issuer: rogueIntermediate })

describe('whom the server says it is', async () => {
  lie('a chain that ends in another root', { lies: { serverCertificate: elsewhere } }, async (stage) => {
    const error = await expectDpsError(stage.register(), 'SERVER_UNTRUSTED', 'tls')
    expect(error.retryable).toBe(false)
    expect(error.message).toContain('"Rogue CA", issued by "CN=Rogue Root"')
    expect(error.message).toContain('(Emulator Root 1)')
    expect(stage.emulator.log.connections).toHaveLength(1)
    expect(stage.emulator.log.packets).toEqual([])
  })

  lie(
    'a chain that brings its own root along',
    { lies: { serverCertificate: { ...elsewhere, cert: elsewhere.cert + rogueRoot.certPem } } },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'SERVER_UNTRUSTED', 'tls')
      expect(error.message).toContain('"Rogue Root"')
    },
  )

  lie(
    'a certificate that signed itself',
    { lies: { serverCertificate: await selfSigned() } },
    async (stage) => {
      await expectDpsError(stage.register(), 'SERVER_UNTRUSTED', 'tls')
    },
  )

  lie(
    'a chain whose intermediate has the name of the real one and another key',
    { lies: { serverCertificate: await forgedChain() } },
    async (stage) => {
      await expectDpsError(stage.register(), 'SERVER_UNTRUSTED', 'tls')
    },
  )

  lie(
    'a chain without its intermediate',
    {
      lies: { serverCertificate: { cert: pki.server.certPem, key: pki.server.keyPem } },
    },
    async (stage) => {
      await expectDpsError(stage.register(), 'SERVER_UNTRUSTED', 'tls')
    },
  )

  lie(
    'a certificate for another host',
    { lies: { serverCertificate: await serverWith({ sans: ['dps.example.org'] }) } },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'SERVER_NAME_MISMATCH', 'tls')
      expect(error.retryable).toBe(false)
      expect(error.message).toContain('DNS:dps.example.org')
      expect(error.message).toContain(HOST)
      expect(error.hint).toContain('connectTo')
      expect(stage.emulator.log.packets).toEqual([])
    },
  )

  lie(
    'a certificate with the name in its subject only',
    { lies: { serverCertificate: await serverWith({ subject: HOST, sans: [] }) } },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'SERVER_NAME_MISMATCH', 'tls')
      expect(error.message).toContain('no subjectAltName')
    },
  )

  for (const [what, name] of [
    ['part of a label', 'glob*.azure-devices-provisioning.net'],
    ['two labels', '*.net'],
    ['a label too many', `*.${HOST}`],
  ] as const) {
    lie(
      `a wildcard for ${what}`,
      { lies: { serverCertificate: await serverWith({ sans: [name] }) } },
      async (stage) => {
        await expectDpsError(stage.register(), 'SERVER_NAME_MISMATCH', 'tls')
      },
    )
  }

  lie('an impostor on the port of a server met before', {}, async (stage) => {
    expect((await stage.register()).connection).toMatchObject({ root: 'Emulator Root 1', resumed: false })
    expect((await stage.register()).connection.resumed).toBe(true)
    await stage.leavesNothing()
    await stage.restart({ serverCertificate: elsewhere })
    await expectDpsError(stage.register(), 'SERVER_UNTRUSTED', 'tls')
    await stage.leavesNothing()
    await stage.restart()
  })
})

describe('when the server says it is who it is', async () => {
  const yesterday = daysFromNow(-1)
  const lastYear = daysFromNow(-365)
  const tomorrow = daysFromNow(1)
  const nextYear = daysFromNow(365)

  lie(
    'a server whose certificate expired yesterday',
    { lies: { serverCertificate: await serverWith({ notBefore: lastYear, notAfter: yesterday }) } },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'SERVER_CERTIFICATE_EXPIRED', 'tls')
      expect(error.retryable).toBe(true)
      expect(error.message).toContain(
        `the server certificate is valid ${seconds(lastYear)} to ${seconds(yesterday)}`,
      )
      expect(error.message).toContain(new Date(stage.clock.now()).toISOString().slice(0, 10))
      expect(stage.emulator.log.connections).toHaveLength(1)
      expect(stage.emulator.log.packets).toEqual([])
    },
  )

  lie(
    'a server whose certificate begins tomorrow',
    { lies: { serverCertificate: await serverWith({ notBefore: tomorrow, notAfter: nextYear }) } },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'SERVER_CERTIFICATE_NOT_YET_VALID', 'tls')
      expect(error.message).toContain(
        `the server certificate is valid ${seconds(tomorrow)} to ${seconds(nextYear)}`,
      )
      expect(error.message).toContain(new Date(stage.clock.now()).toISOString().slice(0, 10))
    },
  )

  lie(
    'a server whose intermediate expired yesterday',
    {
      lies: {
        serverCertificate: await serverWith({
          issuer: await issueCertificate({
            subject: 'Old Server CA',
            ca: true,
            issuer: pki.roots[0],
            notBefore: lastYear,
            notAfter: yesterday,
          }),
        }),
      },
    },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'SERVER_CERTIFICATE_EXPIRED', 'tls')
      expect(error.message).toContain('Old Server CA')
      expect(error.message).toContain(seconds(yesterday))
    },
  )
})

describe('what the certificate was made for', async () => {
  lie(
    'a server with a certificate for clients',
    { lies: { serverCertificate: await serverWith({ eku: ['clientAuth'] }) } },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'SERVER_CERTIFICATE_INVALID', 'tls')
      expect(error.retryable).toBe(false)
    },
  )

  lie(
    'a chain signed by a leaf',
    { lies: { serverCertificate: await serverWith({ issuer: pki.server }) } },
    async (stage) => {
      await expectDpsError(stage.register(), 'SERVER_UNTRUSTED', 'tls')
    },
  )

  lie(
    'a chain signed by a certificate that claims the right to and is no CA',
    {
      lies: {
        serverCertificate: await serverWith({
          issuer: await issueCertificate({
            subject: 'No CA',
            issuer: pki.roots[0],
            keyUsage: ['keyCertSign'],
            ca: false,
          }),
        }),
      },
    },
    async (stage) => {
      await expectDpsError(stage.register(), 'SERVER_CERTIFICATE_INVALID', 'tls')
    },
  )

  lie(
    'a chain longer than its CA allows',
    {
      lies: {
        serverCertificate: await serverWith({
          issuer: await issueCertificate({
            subject: 'One CA too many',
            ca: true,
            issuer: pki.serverIntermediate,
          }),
        }),
      },
    },
    async (stage) => {
      await expectDpsError(stage.register(), 'SERVER_CERTIFICATE_INVALID', 'tls')
    },
  )

  lie(
    'a certificate signed with SHA-1',
    {
      lies: {
        serverCertificate: await serverWith({ digest: 'sha1' }),
        tls: { ciphers: 'ECDHE-RSA-AES256-GCM-SHA384:@SECLEVEL=0' },
      },
    },
    async (stage) => {
      await expectDpsError(stage.register(), 'SERVER_CERTIFICATE_INVALID', 'tls')
    },
  )
})

describe('what the server speaks', () => {
  const weak = 'ALL:@SECLEVEL=0'
  const servers: readonly (readonly [string, EmulatorTlsOptions, DpsErrorCode])[] = [
    // No suite that is offered exists in TLS 1.1, and the server finds that out first.
    [
      'TLS 1.1 and no newer',
      { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: weak },
      'TLS_NO_COMMON_SUITE',
    ],
    ['TLS 1.3 only', { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' }, 'TLS_VERSION_REFUSED'],
    ['legacy suites only', { ciphers: 'AES256-GCM-SHA384:AES128-SHA' }, 'TLS_NO_COMMON_SUITE'],
    ['suites without encryption', { ciphers: 'NULL-SHA256:@SECLEVEL=0' }, 'TLS_NO_COMMON_SUITE'],
    ['a curve that was not offered', { ecdhCurve: 'P-521' }, 'TLS_NO_COMMON_SUITE'],
    ['SHA-224 signatures only', { sigalgs: 'RSA+SHA224' }, 'TLS_NO_COMMON_SUITE'],
    [
      'SHA-1 signatures only',
      { sigalgs: 'RSA+SHA1', ciphers: `ECDHE-RSA-AES256-GCM-SHA384:@SECLEVEL=0` },
      'TLS_NO_COMMON_SUITE',
    ],
  ]
  for (const [what, tls, code] of servers) {
    lie(`a server that speaks ${what}`, { lies: { tls } }, async (stage) => {
      const error = await expectDpsError(stage.register(), code, 'tls')
      expect(error.retryable).toBe(false)
      expect(stage.emulator.log.connections).toHaveLength(1)
      expect(stage.emulator.log.packets).toEqual([])
    })
  }

  lie(
    'a server that answers with TLS 1.1 although it was offered suites for it',
    {
      lies: { tls: { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: weak } },
      client: { tls: { legacyCiphers: 'security' } },
    },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'TLS_VERSION_REFUSED', 'tls')
      expect(error.retryable).toBe(false)
      expect(stage.emulator.log.packets).toEqual([])
    },
  )

  // Otherwise the tests above might pass for another reason than the one they name.
  const allowed: readonly (readonly [string, EmulatorTlsOptions, TlsOptions, Partial<TlsFacts>])[] = [
    [
      'TLS 1.3 only',
      { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' },
      { maxVersion: 'TLSv1.3' },
      { protocol: 'TLSv1.3' },
    ],
    [
      'legacy suites only',
      { ciphers: 'AES256-GCM-SHA384:AES128-SHA' },
      { legacyCiphers: 'security' },
      { cipher: 'AES256-GCM-SHA384' },
    ],
    ['a curve of its own', { ecdhCurve: 'P-521' }, { curves: ['X25519', 'P-521'] }, { curve: 'P-521' }],
  ]
  for (const [what, server, own, facts] of allowed) {
    lie(
      `the truth: ${what} is taken where the caller allows it`,
      { emulator: { tls: server }, client: { tls: own } },
      async (stage) => {
        expect((await stage.register()).connection).toMatchObject(facts)
      },
    )
  }
})

describe('a TLS session', () => {
  const setup = {
    emulator: {
      enrollments: [
        { groupId: 'devices', attestation: { x509: { ca: pki.deviceRoot.certPem } } },
        { registrationId: REGISTRATION_ID, attestation: { symmetricKey: { primaryKey: DEVICE_KEY } } },
      ],
    },
  }
  /** Another client of the same emulator; registers once and tells whether it resumed. */
  async function resumed(
    stage: Stage,
    registrationId: string,
    options: Partial<ProvisioningClientOptions> = {},
    certificate?: DeviceCertificate,
  ): Promise<boolean> {
    const client = new ProvisioningClient({
      ...stage.emulator.clientOptions(),
      credential: x509(certificate ?? (await stage.emulator.issueDeviceCertificate({ registrationId }))),
      clock: stage.clock,
      ...options,
    })
    const assignment = await client.register()
    expect(assignment).toMatchObject({ registrationId, deviceId: registrationId })
    return assignment.connection.resumed
  }

  lie('of one device, offered by another', setup, async (stage) => {
    const press = await stage.emulator.issueDeviceCertificate({ registrationId: 'press' })
    expect(await resumed(stage, 'press', {}, press)).toBe(false)
    expect(await resumed(stage, 'press', {}, press)).toBe(true)
    expect(await resumed(stage, 'lathe')).toBe(false)
    // The same name with another key is another device too.
    expect(await resumed(stage, 'press')).toBe(false)
    expect(
      stage.seen.flatMap((e) => (e.type === 'handshake-done' ? e.clientCertificate?.subject : [])),
    ).toEqual(['CN=press', 'CN=press', 'CN=lathe', 'CN=press'])
  })

  lie('of one server name, offered to another', setup, async (stage) => {
    const press = await stage.emulator.issueDeviceCertificate({ registrationId: 'press' })
    expect(await resumed(stage, 'press', {}, press)).toBe(false)
    expect(await resumed(stage, 'press', { host: 'localhost' }, press)).toBe(false)
    expect(await resumed(stage, 'press', { host: 'localhost' }, press)).toBe(true)
  })

  lie('made under one policy, offered under another', setup, async (stage) => {
    const press = await stage.emulator.issueDeviceCertificate({ registrationId: 'press' })
    const [ca] = stage.emulator.roots
    expect(await resumed(stage, 'press', {}, press)).toBe(false)
    expect(await resumed(stage, 'press', { tls: { cipherPreference: 'performance' } }, press)).toBe(false)
    const trust = { roots: 'bundled', extraRoots: ca } as const
    expect(await resumed(stage, 'press', { trust }, press)).toBe(false)
    expect(await resumed(stage, 'press', { tls: { sessionResumption: false } }, press)).toBe(false)
    expect(await resumed(stage, 'press', {}, press)).toBe(true)
  })

  lie('that is a day old', setup, async (stage) => {
    const press = await stage.emulator.issueDeviceCertificate({ registrationId: 'press' })
    expect(await resumed(stage, 'press', {}, press)).toBe(false)
    stage.clock.advance(86_400_001)
    expect(await resumed(stage, 'press', {}, press)).toBe(false)
  })
})

describe('a trust anchor that is none', () => {
  const client = (extraRoots: string) => () =>
    new ProvisioningClient({
      idScope: '0ne00000000',
      credential: symmetricKey({ registrationId: REGISTRATION_ID, key: DEVICE_KEY }),
      trust: { roots: 'none', extraRoots },
    })

  test('the certificate of the server itself is refused by name', async () => {
    const error = await expectDpsError(client(pki.server.certPem), 'TRUST_ANCHOR_INVALID', 'config')
    expect(error.message).toContain(HOST)
    expect(error.message).toContain('leaf')
  })

  test('an intermediate is refused by name', async () => {
    const error = await expectDpsError(
      client(pki.serverIntermediate.certPem),
      'TRUST_ANCHOR_INVALID',
      'config',
    )
    expect(error.message).toContain('Emulator Server CA')
    expect(error.message).toContain('intermediate')
  })

  test('a self-signed certificate that is no CA is refused by name', async () => {
    const { cert } = await selfSigned()
    const error = await expectDpsError(client(cert), 'TRUST_ANCHOR_INVALID', 'config')
    expect(error.message).toContain(HOST)
  })

  test('a root beside an intermediate does not hide it', async () => {
    await expectDpsError(
      client(pki.roots[0].certPem + pki.serverIntermediate.certPem),
      'TRUST_ANCHOR_INVALID',
      'config',
    )
  })
})

async function selfSigned(): Promise<{ cert: string; key: string }> {
  const { certPem, keyPem } = await issueCertificate({
    subject: HOST,
    key: pki.server.keyPem,
    sans: [HOST],
    eku: ['serverAuth'],
  })
  return { cert: certPem, key: keyPem }
}

async function forgedChain(): Promise<{ cert: string; key: string }> {
  const forged = await issueCertificate({
    subject: 'Emulator Server CA',
    ca: true,
    issuer: rogueRoot,
    keyType: 'rsa-2048',
  })
  const { certPem, keyPem } = await issueCertificate({
    subject: HOST,
    issuer: forged,
    key: pki.server.keyPem,
    sans: [HOST],
    eku: ['serverAuth'],
  })
  return { cert: certPem + pki.serverIntermediate.certPem, key: keyPem }
}
