import { createSecureContext } from 'node:tls'
import { describe, expect, it } from 'vitest'
import type { CurveName } from '../../../src/credential/credential.ts'
import type { TlsOptions } from '../../../src/options/options.ts'
import { LEGACY_SUITES, RECOMMENDED_SUITES } from '../../../src/tls/ciphers.ts'
import { checkIdentityAgainstPolicy, resolvePolicy } from '../../../src/tls/policy.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { ecKey, issue } from './pki.ts'
import { sasIdentity } from './servers.ts'

describe('resolvePolicy', () => {
  it('is TLS 1.2, the recommended suites and curves, and the bundled roots', () => {
    const policy = resolvePolicy(undefined, undefined)
    expect(policy).toMatchObject({
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.2',
      suites: [
        'ECDHE-RSA-AES256-GCM-SHA384',
        'ECDHE-RSA-AES128-GCM-SHA256',
        'ECDHE-RSA-AES256-SHA384',
        'ECDHE-RSA-AES128-SHA256',
      ],
      curves: ['X25519', 'P-256', 'P-384'],
      ecdhCurve: 'X25519:P-256:P-384',
      sessionResumption: true,
      warnings: [],
    })
    expect(policy.ciphers).toBe(policy.suites.join(':'))
    expect(policy.anchors.map((anchor) => anchor.name)).toEqual([
      'DigiCert Global Root G2',
      'Microsoft RSA Root Certificate Authority 2017',
    ])
    expect(policy.sigalgs).not.toMatch(/sha1|sha224|dsa_(?!secp)/i)
  })

  it('is frozen and keeps no array of the caller', () => {
    const curves = ['P-256']
    const ciphers = ['ECDHE-RSA-AES128-GCM-SHA256']
    const policy = resolvePolicy({ curves, ciphers })
    curves.push('P-521')
    ciphers.push('NULL')
    expect(policy.curves).toEqual(['P-256'])
    expect(policy.suites).toEqual(['ECDHE-RSA-AES128-GCM-SHA256'])
    for (const value of [policy, policy.curves, policy.suites, policy.warnings, policy.anchors]) {
      expect(Object.isFrozen(value)).toBe(true)
    }
    expect(Object.isFrozen(resolvePolicy().curves)).toBe(true)
  })

  it('warns of legacy suites, once for the option', () => {
    const { suites, warnings } = resolvePolicy({ legacyCiphers: 'performance' })
    expect(suites).toEqual([...RECOMMENDED_SUITES.security, ...LEGACY_SUITES.performance])
    expect(warnings).toHaveLength(1)
    expect(warnings[0]).toContain('no forward secrecy')
  })

  it('offers TLS 1.3 suites only where the version is allowed', () => {
    expect(resolvePolicy({}).ciphers).not.toContain('TLS_')
    expect(resolvePolicy({ maxVersion: 'TLSv1.3' }).ciphers.split(':').slice(0, 3)).toEqual([
      'TLS_AES_256_GCM_SHA384',
      'TLS_CHACHA20_POLY1305_SHA256',
      'TLS_AES_128_GCM_SHA256',
    ])
    expect(
      resolvePolicy({ maxVersion: 'TLSv1.3', cipherPreference: 'performance' }).ciphers.split(':')[0],
    ).toBe('TLS_AES_128_GCM_SHA256')
  })

  it('has one id for one content', () => {
    const root = issue({ name: 'Test Root', key: ecKey(), ca: true })
    const variants: [TlsOptions, string | undefined][] = [
      [{}, undefined],
      [{ cipherPreference: 'performance' }, undefined],
      [{ legacyCiphers: 'security' }, undefined],
      [{ legacyCiphers: 'performance' }, undefined],
      [{ curves: ['P-256', 'X25519'] }, undefined],
      [{ maxVersion: 'TLSv1.3' }, undefined],
      [{}, root.pem],
    ]
    const ids = variants.map(([tls, extraRoots]) => resolvePolicy(tls, extraRoots ? { extraRoots } : {}).id)
    expect(new Set(ids).size).toBe(variants.length)
    expect(resolvePolicy({ cipherPreference: 'security', curves: ['X25519', 'P-256', 'P-384'] }).id).toBe(
      ids[0],
    )
  })

  it.each([
    {},
    { legacyCiphers: 'security' },
    { maxVersion: 'TLSv1.3' },
    { curves: ['X448', 'P-521'] },
  ] satisfies TlsOptions[])('%j is something that OpenSSL can do', (tls) => {
    const { ciphers, ecdhCurve, sigalgs, minVersion, maxVersion } = resolvePolicy(tls)
    createSecureContext({ ciphers, ecdhCurve, sigalgs, minVersion, maxVersion })
  })

  it.each<[string, unknown, string]>([
    ['a lower maximum', { maxVersion: 'TLSv1.1' }, 'tls.maxVersion'],
    ['resumption that is no boolean', { sessionResumption: 'no' }, 'tls.sessionResumption'],
    ['an unknown preference', { cipherPreference: 'speed' }, 'tls.cipherPreference'],
    ['legacy by true', { legacyCiphers: true }, 'tls.legacyCiphers'],
    [
      'a preference beside a list of its own',
      { cipherPreference: 'security', ciphers: ['x'] },
      'leave it out',
    ],
    ['no ciphers', { ciphers: [] }, 'tls.ciphers must be'],
    ['ciphers as a string', { ciphers: 'ECDHE-RSA-AES128-GCM-SHA256' }, 'tls.ciphers must be'],
    ['a cipher that is no string', { ciphers: [1] }, 'tls.ciphers[0] must be a string'],
    ['a cipher twice', { ciphers: Array(2).fill('ECDHE-RSA-AES128-GCM-SHA256') }, 'tls.ciphers[1] repeats'],
    ['no curves', { curves: [] }, 'tls.curves must be'],
    ['curves as a string', { curves: 'P-256' }, 'tls.curves must be'],
    ['an unknown curve', { curves: ['P-256', 'secp256k1'] }, 'tls.curves[1] must be one of'],
    ['a list of curves in one', { curves: ['P-256:P-192'] }, 'tls.curves[0] must be one of'],
    ['a curve twice', { curves: ['P-256', 'P-256'] }, 'tls.curves[1] repeats P-256'],
  ])('refuses %s', async (_, tls, reason) => {
    const error = await expectDpsError(() => resolvePolicy(tls as TlsOptions), 'TLS_POLICY_INVALID', 'config')
    expect(error.message).toContain(reason)
  })

  it.each([
    'DEFAULT',
    'ALL',
    'HIGH:!aNULL',
    'ECDHE-RSA-AES128-GCM-SHA256:NULL-SHA',
    '!aNULL',
    '+RSA',
    '@SECLEVEL=0',
    '@STRENGTH',
    '-ALL',
    '',
    'DHE-RSA-AES128-GCM-SHA256',
    'NULL-SHA256',
    'AECDH-AES128-SHA',
    'ADH-AES128-GCM-SHA256',
    'RC4-SHA',
    'DES-CBC3-SHA',
    'ECDHE-RSA-DES-CBC3-SHA',
    'PSK-AES128-GCM-SHA256',
    'ECDHE-PSK-CHACHA20-POLY1305',
    'ECDHE-RSA-AES128-SHA',
    'TLS_AES_128_GCM_SHA256',
    'TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256',
    'ecdhe-rsa-aes128-gcm-sha256',
  ])('refuses the cipher "%s"', async (suite) => {
    const error = await expectDpsError(
      () => resolvePolicy({ ciphers: ['ECDHE-RSA-AES128-GCM-SHA256', suite] }),
      'TLS_POLICY_INVALID',
      'config',
    )
    expect(error.message).toMatch(
      /^tls\.ciphers\[1\] (?:is "[A-Z\d_-]+"; it )?must be the OpenSSL name of one suite, of /,
    )
  })

  it.each(LEGACY_SUITES.security)(
    'refuses the legacy suite %s in tls.ciphers, and says how to allow it',
    async (suite) => {
      const error = await expectDpsError(
        () => resolvePolicy({ ciphers: [suite] }),
        'TLS_POLICY_INVALID',
        'config',
      )
      expect(error.message).toContain('tls.legacyCiphers')
    },
  )

  it('refuses an option that nothing reads', () =>
    expectDpsError(
      () => resolvePolicy({ rejectUnauthorized: false } as TlsOptions),
      'OPTION_INVALID',
      'config',
    ))
})

describe('checkIdentityAgainstPolicy', () => {
  const withCurve = (keyCurve: CurveName) => ({ ...sasIdentity(), keyCurve })

  it.each(['P-256', 'P-384'] as const)('takes a %s key by default', (curve) => {
    checkIdentityAgainstPolicy(resolvePolicy(), withCurve(curve))
  })

  it('takes a key without a curve', () => {
    checkIdentityAgainstPolicy(resolvePolicy({ curves: ['X25519'] }), sasIdentity())
  })

  it('takes a P-521 key where the curve is offered', () => {
    checkIdentityAgainstPolicy(resolvePolicy({ curves: ['X25519', 'P-521'] }), withCurve('P-521'))
  })

  it.each([
    [['X25519'], 'P-256'],
    [undefined, 'P-521'],
  ] as const)('with curves %j refuses a %s key', async (curves, curve) => {
    const error = await expectDpsError(
      () => checkIdentityAgainstPolicy(resolvePolicy(curves ? { curves } : {}), withCurve(curve)),
      'CREDENTIAL_KEY_UNSUPPORTED',
      'config',
    )
    expect(error.message).toContain(curve)
  })
})
