import { describe, expect, it, vi } from 'vitest'
import { LruMap } from '../../../src/lru.ts'
import { contextStatistics, keptContextFor, OwnContexts, secureContextFor } from '../../../src/tls/context.ts'
import { resolvePolicy, type TlsPolicy } from '../../../src/tls/policy.ts'
import { MAX_SESSION_AGE_MS, SessionCache } from '../../../src/tls/sessions.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { ecKey, issue, keyPem } from './pki.ts'
import { certificateIdentity, sasIdentity } from './servers.ts'

const deviceKey = ecKey()
const key = keyPem(deviceKey)
const device = issue({ name: 'device', key: deviceKey })
const policy = resolvePolicy()

describe('secureContextFor', () => {
  it('builds one context for one content under one policy', () => {
    const before = contextStatistics()
    const first = secureContextFor(certificateIdentity({ cert: device.pem, key }), policy)
    const again = secureContextFor(certificateIdentity({ cert: device.pem, key }), resolvePolicy())
    expect(again).toBe(first)
    expect(contextStatistics().misses - before.misses).toBe(1)
    expect(contextStatistics().hits - before.hits).toBe(1)
  })

  it('never gives one credential the context of another', () => {
    const other = issue({ name: 'other', key: deviceKey })
    expect(secureContextFor(certificateIdentity({ cert: other.pem, key }, 'one'), policy)).not.toBe(
      secureContextFor(certificateIdentity({ cert: device.pem, key }, 'one'), policy),
    )
    expect(secureContextFor(sasIdentity('one'), policy)).not.toBe(
      secureContextFor(certificateIdentity({ cert: device.pem, key }, 'one'), policy),
    )
  })

  it('serves all devices that present no certificate', () => {
    expect(secureContextFor(sasIdentity('one'), policy)).toBe(secureContextFor(sasIdentity('two'), policy))
  })

  it('builds anew when the content changes under one fingerprint', () => {
    const renewed = issue({ name: 'device', key: deviceKey })
    expect(secureContextFor(certificateIdentity({ cert: renewed.pem, key }), policy)).not.toBe(
      secureContextFor(certificateIdentity({ cert: device.pem, key }), policy),
    )
  })

  it('does not confuse a certificate and a key that join to the same bytes', () => {
    const joined = { cert: `${device.pem}`, key: `\n${key}` }
    const other = { cert: `${device.pem}\n`, key }
    expect(secureContextFor(certificateIdentity(joined), policy)).not.toBe(
      secureContextFor(certificateIdentity(other), policy),
    )
  })

  it('builds anew for another policy', () => {
    const identity = sasIdentity('policy')
    expect(secureContextFor(identity, policy)).not.toBe(
      secureContextFor(identity, resolvePolicy({ cipherPreference: 'performance' })),
    )
  })

  it('keeps a bounded number', () => {
    for (let i = 0; i < 70; i++) {
      secureContextFor(certificateIdentity({ cert: device.pem, key }, `bounded ${i}`), policy)
    }
    expect(contextStatistics().size).toBe(64)
  })

  it('takes nothing but the certificate and key from a credential', () => {
    const smuggling = { cert: device.pem, key, minVersion: 'TLSv9', ciphers: 'nonsense', ca: 'nonsense' }
    secureContextFor(certificateIdentity(smuggling, 'smuggling'), policy)
  })

  it.each([
    ['nonsense', { cert: 'nonsense', key: 'nonsense' }],
    ['a key of nonsense', { cert: device.pem, key: 'nonsense' }],
    [
      'an encrypted key with another passphrase',
      {
        cert: device.pem,
        key: deviceKey.privateKey
          .export({ type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: 'right' })
          .toString(),
        passphrase: 'wrong-passphrase',
      },
    ],
    ['a PKCS#12 file of nonsense', { pfx: Buffer.from('nonsense') }],
  ])('refuses %s with its cause', async (_, tls) => {
    const error = await expectDpsError(
      () => secureContextFor(certificateIdentity(tls), policy),
      'CREDENTIAL_UNREADABLE',
      'config',
    )
    expect(error.cause).toBeInstanceOf(Error)
    expect(`${error.message}${String((error.cause as Error).message)}`).not.toContain('wrong-passphrase')
  })

  it('refuses a key that belongs to another certificate', () =>
    expectDpsError(
      () => secureContextFor(certificateIdentity({ cert: device.pem, key: keyPem(ecKey()) }), policy),
      'CREDENTIAL_KEY_MISMATCH',
      'config',
    ))

  it('does not repeat a passphrase of the wrong type', async () => {
    const tls = { cert: device.pem, key, passphrase: ['hunter2'] as unknown as string }
    const error = await expectDpsError(
      () => secureContextFor(certificateIdentity(tls), policy),
      'CREDENTIAL_UNREADABLE',
      'config',
    )
    expect(error.cause).toBeUndefined()
  })

  it('tells a policy that this OpenSSL cannot do from a credential it cannot use', () => {
    const impossible: TlsPolicy = { ...policy, id: 'impossible', ecdhCurve: 'P-257' }
    return expectDpsError(
      () => secureContextFor(certificateIdentity({ cert: device.pem, key }), impossible),
      'TLS_POLICY_INVALID',
      'config',
    )
  })
})

describe('the contexts of one device alone', () => {
  it('are not those of the process, in either direction', () => {
    const identity = certificateIdentity({ cert: device.pem, key }, 'own')
    const own = new OwnContexts()
    const first = secureContextFor(identity, policy, own)
    expect(secureContextFor(identity, policy, own)).toBe(first)
    expect(keptContextFor(identity, policy)).toBeUndefined()
    const common = secureContextFor(identity, policy)
    expect(common).not.toBe(first)
    expect(secureContextFor(identity, policy, new OwnContexts())).not.toBe(common)
  })

  it('are freed, and what all devices share is not', () => {
    const own = new OwnContexts()
    const contexts = [
      secureContextFor(certificateIdentity({ cert: device.pem, key }, 'own'), policy, own),
      secureContextFor(
        certificateIdentity({ cert: device.pem, key }, 'own'),
        resolvePolicy({ cipherPreference: 'performance' }),
        own,
      ),
      secureContextFor(sasIdentity('own'), policy, own),
    ]
    const closed = contexts.map(({ context }) => vi.spyOn(context, 'close'))
    own.free()
    expect(closed.map(({ mock }) => mock.calls.length)).toEqual([1, 1, 0])
    expect(own.size).toBe(0)
    expect(secureContextFor(sasIdentity('own'), policy)).toBe(contexts[2])
  })
})

describe('LruMap', () => {
  it('forgets what was unused for longest', () => {
    const map = new LruMap<number>(2)
    map.set('a', 1)
    map.set('b', 2)
    map.get('a')
    map.set('c', 3)
    expect([map.get('a'), map.get('b'), map.get('c'), map.size]).toEqual([1, undefined, 3, 2])
  })
})

describe('SessionCache', () => {
  const key = { host: 'a', port: 1, address: undefined, policyId: 'p', identityKey: 'i' }
  const stored = { session: Buffer.from('s'), root: 'Root', verifiedAt: 1000 }

  it('gives a session back for an equal key only', () => {
    const cache = new SessionCache()
    cache.set(key, stored)
    expect(cache.get({ ...key }, 1000)).toEqual(stored)
    for (const other of [
      { host: 'b' },
      { port: 2 },
      { address: 'a' },
      { policyId: 'q' },
      { identityKey: 'j' },
    ]) {
      expect(cache.get({ ...key, ...other }, 1000)).toBeUndefined()
    }
  })

  it('forgets a session a day after its chain was verified', () => {
    const cache = new SessionCache()
    cache.set(key, stored)
    expect(cache.get(key, 1000 + MAX_SESSION_AGE_MS)).toEqual(stored)
    expect(cache.get(key, 1001 + MAX_SESSION_AGE_MS)).toBeUndefined()
    expect(cache.size).toBe(0)
  })

  it('keeps a bounded number', () => {
    const cache = new SessionCache()
    for (let port = 1; port <= 70; port++) cache.set({ ...key, port }, stored)
    expect(cache.size).toBe(64)
  })
})
