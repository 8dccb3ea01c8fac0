import { describe, expect, it } from 'vitest'
import type { TlsOptions } from '../../../src/options/options.ts'
import { resolvePolicy } from '../../../src/tls/policy.ts'
import { type ClientHello, parseClientHello } from '../../support/client-hello.ts'
import { captureClientHello, sasIdentity } from './servers.ts'

const HOST = 'global.azure-devices-provisioning.net'

/** IANA numbers, written out: the registry decides, not OpenSSL. */
const SUITE = {
  'ECDHE-RSA-AES128-SHA256': 0xc027,
  'ECDHE-RSA-AES256-SHA384': 0xc028,
  'ECDHE-RSA-AES128-GCM-SHA256': 0xc02f,
  'ECDHE-RSA-AES256-GCM-SHA384': 0xc030,
  'ECDHE-ECDSA-CHACHA20-POLY1305': 0xcca9,
  'AES128-SHA': 0x002f,
  'AES256-SHA': 0x0035,
  'AES128-SHA256': 0x003c,
  'AES256-SHA256': 0x003d,
  'AES128-GCM-SHA256': 0x009c,
  'AES256-GCM-SHA384': 0x009d,
  TLS_AES_128_GCM_SHA256: 0x1301,
  TLS_AES_256_GCM_SHA384: 0x1302,
  TLS_CHACHA20_POLY1305_SHA256: 0x1303,
} as const
/** Secure renegotiation (RFC 5746 §3.4) is announced by this signal among the suites, or by the extension. */
const SCSV = 0x00ff
const RENEGOTIATION_INFO = 0xff01
const GROUP = { 'P-256': 23, 'P-384': 24, 'P-521': 25, X25519: 29, X448: 30 } as const

const numbers = (...names: (keyof typeof SUITE)[]) => names.map((name) => SUITE[name])

async function hello(options: TlsOptions = {}, host = HOST): Promise<ClientHello> {
  const sent = await captureClientHello(resolvePolicy(options), sasIdentity(), host)
  const signals = [...sent.suites, ...sent.extensions].filter((n) => n === SCSV || n === RENEGOTIATION_INFO)
  expect(signals).toHaveLength(1)
  return {
    ...sent,
    suites: sent.suites.filter((suite) => suite !== SCSV),
    extensions: sent.extensions.filter((type) => type !== RENEGOTIATION_INFO),
  }
}

const SECURITY = [
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES256-SHA384',
  'ECDHE-RSA-AES128-SHA256',
] as const
const PERFORMANCE = [
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES128-SHA256',
  'ECDHE-RSA-AES256-SHA384',
] as const

describe('the ClientHello on the wire', () => {
  it('of the default policy offers TLS 1.2 and the recommended suites, curves and signatures', async () => {
    const sent = await hello()
    expect(sent).toMatchObject({
      version: 0x0303,
      supportedVersions: [],
      suites: numbers(...SECURITY),
      compressions: [0],
      groups: [GROUP.X25519, GROUP['P-256'], GROUP['P-384']],
      serverName: HOST,
      alpn: [],
      preSharedKey: false,
    })
    expect(sent.sessionId).toHaveLength(0)
    expect(sent.sessionTicket).toHaveLength(0)
  })

  it('offers signatures of SHA-256 and stronger only: ECDSA, RSA-PSS and RSA PKCS#1', async () => {
    const { signatureAlgorithms } = await hello()
    expect(signatureAlgorithms).toEqual([
      0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0603, 0x0806, 0x0601,
    ])
  })

  it('offers no extension beyond those it needs', async () => {
    const { extensions } = await hello()
    // server_name, ec_point_formats, supported_groups, session_ticket, encrypt_then_mac, extended_master_secret,
    // signature_algorithms
    expect([...extensions].sort((a, b) => a - b)).toEqual([0, 10, 11, 13, 22, 23, 35])
  })

  it('fits 220 bytes', async () => {
    const { size } = await hello()
    expect(size).toBeLessThanOrEqual(220)
  })

  it("of cipherPreference 'performance' puts AES-128 of each pair first", async () => {
    expect((await hello({ cipherPreference: 'performance' })).suites).toEqual(numbers(...PERFORMANCE))
  })

  it("of legacyCiphers 'security' appends the documented order after the recommended suites", async () => {
    expect((await hello({ legacyCiphers: 'security' })).suites).toEqual(
      numbers(
        ...SECURITY,
        'AES256-GCM-SHA384',
        'AES128-GCM-SHA256',
        'AES256-SHA256',
        'AES128-SHA256',
        'AES256-SHA',
        'AES128-SHA',
      ),
    )
  })

  it("of legacyCiphers 'performance' appends the other documented order", async () => {
    expect((await hello({ legacyCiphers: 'performance', cipherPreference: 'performance' })).suites).toEqual(
      numbers(
        ...PERFORMANCE,
        'AES128-GCM-SHA256',
        'AES256-GCM-SHA384',
        'AES128-SHA256',
        'AES256-SHA256',
        'AES128-SHA',
        'AES256-SHA',
      ),
    )
  })

  it('of custom ciphers offers those and no other', async () => {
    const ciphers = ['ECDHE-ECDSA-CHACHA20-POLY1305', 'ECDHE-RSA-AES128-GCM-SHA256'] as const
    expect((await hello({ ciphers })).suites).toEqual(numbers(...ciphers))
  })

  it('of custom curves offers those in their order', async () => {
    const { groups } = await hello({ curves: ['P-384', 'X448', 'P-521', 'P-256'] })
    expect(groups).toEqual([GROUP['P-384'], GROUP.X448, GROUP['P-521'], GROUP['P-256']])
  })

  it('of maxVersion TLSv1.3 offers both versions, and authenticated encryption first', async () => {
    const sent = await hello({ maxVersion: 'TLSv1.3' })
    expect(sent.supportedVersions).toEqual([0x0304, 0x0303])
    expect(sent.suites).toEqual(
      numbers(
        'TLS_AES_256_GCM_SHA384',
        'TLS_CHACHA20_POLY1305_SHA256',
        'TLS_AES_128_GCM_SHA256',
        ...SECURITY,
      ),
    )
  })

  it.each(['127.0.0.1', '::1'])('to the IP address %s names no server', async (host) => {
    const sent = await hello({}, host)
    expect(sent.serverName).toBeUndefined()
    expect(sent.extensions).not.toContain(0)
  })
})

describe('parseClientHello', () => {
  it('refuses what is no ClientHello', () => {
    expect(() => parseClientHello(Buffer.from('GET / HTTP/1.1\r\n'))).toThrow('not a handshake record')
    expect(() => parseClientHello(Buffer.from([22, 3, 1, 0, 4, 2, 0, 0, 0]))).toThrow('not a ClientHello')
    expect(() => parseClientHello(Buffer.from([22, 3, 1, 0, 9, 1, 0, 0, 0]))).toThrow('truncated')
  })
})
