import dns from 'node:dns'
import { getEventListeners, once } from 'node:events'
import net from 'node:net'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import type { TlsOptions } from '../../../src/options/options.ts'
import { secureContextFor } from '../../../src/tls/context.ts'
import { dial } from '../../../src/tls/dial.ts'
import { resolvePolicy, type TlsPolicy } from '../../../src/tls/policy.ts'
import { resolveTrust } from '../../../src/tls/trust.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { daysFromNow, ecKey, issue, keyPem, type Request, rsaKey } from './pki.ts'
import {
  certificateIdentity,
  deferred,
  dialed,
  finish,
  rawServer,
  recordingProxy,
  sasIdentity,
  scope,
  tlsServer,
  trusting,
} from './servers.ts'

const HOST = 'dps.test'
const leafKey = rsaKey()
const root = issue({ name: 'Test Root', key: ecKey(), ca: true })
const otherRoot = issue({ name: 'Other Root', key: ecKey(), ca: true })
const intermediate = issue({ name: 'Test Intermediate', key: ecKey(), ca: true, issuer: root })

const leafOf = (request: Partial<Request> = {}) =>
  issue({ name: HOST, key: leafKey, issuer: intermediate, dns: [HOST], purpose: 'serverAuth', ...request })

const chain = (...certificates: readonly { readonly pem: string }[]) =>
  certificates.map(({ pem }) => pem).join('')

const leaf = leafOf()
const key = keyPem(leafKey)
const good = { key, cert: chain(leaf, intermediate) }
const policy = trusting([root.pem])

const deviceKey = ecKey()
const device = issue({ name: 'device', key: deviceKey, issuer: root, purpose: 'clientAuth' })
const deviceIdentity = certificateIdentity({ cert: device.pem, key: keyPem(deviceKey) })

const to = (port: number, host = HOST, address = '127.0.0.1') => ({ host, port, address })
const refusal = (
  port: number,
  options: { host?: string; address?: string; policy?: TlsPolicy; identity?: typeof deviceIdentity } = {},
) =>
  dialed(to(port, options.host, options.address), options.policy ?? policy, options.identity ?? sasIdentity())

type LookupDone = (error: null, addresses: readonly { address: string; family: number }[]) => void

describe('a server of a sovereign cloud', () => {
  const OLD_ROOT = '4348A0E9444C78CB265E058D5E8944B4D84F9662BD26DB257F8934A443C70161'

  it.each([
    'global.azure-devices-provisioning.cn',
    'contoso.azure-devices-provisioning.us',
    'hub.azure-devices.cn',
  ])('%s under an unknown root is explained with the root it may need', async (host) => {
    const port = await tlsServer({ key, cert: chain(leafOf({ dns: [host] }), intermediate) })
    const error = await expectDpsError(
      refusal(port, { host, policy: trusting([otherRoot.pem]) }),
      'SERVER_UNTRUSTED',
      'tls',
    )
    expect(error.hint).toContain(OLD_ROOT)
  })

  it('is not thought of for the public cloud', async () => {
    const host = 'global.azure-devices-provisioning.net'
    const port = await tlsServer({ key, cert: chain(leafOf({ dns: [host] }), intermediate) })
    const error = await expectDpsError(
      refusal(port, { host, policy: trusting([otherRoot.pem]) }),
      'SERVER_UNTRUSTED',
      'tls',
    )
    expect(error.hint).not.toContain(OLD_ROOT)
  })
})

describe('dial to a server that tells the truth', () => {
  it('verifies it and tells what was agreed', async () => {
    const port = await tlsServer({ ...good, honorCipherOrder: false })
    const watched = scope()
    const { socket, tls, roundTrips } = await dialed(to(port), policy, sasIdentity(), watched)
    expect(tls).toEqual({
      protocol: 'TLSv1.2',
      cipher: 'ECDHE-RSA-AES256-GCM-SHA384',
      curve: 'X25519',
      root: 'Test Root',
      resumed: false,
    })
    expect(socket.authorized).toBe(true)
    expect(roundTrips).toBe(3)
    expect(watched.phases).toEqual(['tcp', 'tls'])
  })

  it('resolves a name in a phase of its own', async () => {
    const port = await tlsServer({ key, cert: chain(leafOf({ dns: ['localhost'] }), intermediate) })
    const watched = scope()
    await dialed({ host: 'localhost', port }, policy, sasIdentity(), watched)
    expect(watched.phases).toEqual(['dns', 'tcp', 'tls'])
  })

  it('presents the device certificate', async () => {
    const seen = deferred<string | undefined>()
    const port = await tlsServer(
      { ...good, requestCert: true, rejectUnauthorized: true, ca: root.pem },
      (socket) => seen.resolve(socket.getPeerX509Certificate()?.subject),
    )
    await dialed(to(port), policy, deviceIdentity)
    expect(await seen.promise).toBe('CN=device')
  })

  it.each([
    ['P-256', 'prime256v1'],
    ['P-384', 'secp384r1'],
    ['P-521', 'secp521r1'],
    ['X448', 'X448'],
  ])('names the curve %s', async (curve, ecdhCurve) => {
    const port = await tlsServer({ ...good, ecdhCurve })
    const { tls } = await dialed(to(port), trusting([root.pem], { curves: ['X25519', curve] }))
    expect(tls.curve).toBe(curve)
  })

  it('has no curve to name for static RSA', async () => {
    const port = await tlsServer({ ...good, ciphers: 'AES128-GCM-SHA256', maxVersion: 'TLSv1.2' })
    const { tls } = await dialed(to(port), trusting([root.pem], { legacyCiphers: 'security' }))
    expect(tls).toMatchObject({ cipher: 'AES128-GCM-SHA256', curve: 'unknown' })
  })

  it('speaks TLS 1.3 in one round trip less where that is allowed', async () => {
    const port = await tlsServer(good)
    const { tls, roundTrips } = await dialed(to(port), trusting([root.pem], { maxVersion: 'TLSv1.3' }))
    expect(tls).toMatchObject({ protocol: 'TLSv1.3', curve: 'X25519', root: 'Test Root' })
    expect(roundTrips).toBe(2)
  })

  it('verifies an IP address by the addresses in the certificate', async () => {
    const port = await tlsServer({
      key,
      cert: chain(leafOf({ dns: [], ip: [[127, 0, 0, 1]] }), intermediate),
    })
    const { tls } = await dialed({ host: '127.0.0.1', port }, policy)
    expect(tls.root).toBe('Test Root')
  })

  it('takes a wildcard for one whole label', async () => {
    const port = await tlsServer({ key, cert: chain(leafOf({ dns: ['*.dps.test'] }), intermediate) })
    const { tls } = await dialed(to(port, 'global.dps.test'), policy)
    expect(tls.root).toBe('Test Root')
  })

  it('delivers what the server sent with its last handshake message', async () => {
    const port = await tlsServer(good, (socket) => socket.write('early'))
    const { socket } = await dialed(to(port), policy)
    const [data] = await once(socket, 'data')
    expect(String(data)).toBe('early')
  })
})

describe('the chain: a server that lies', () => {
  it('with a chain from another root is refused, and the top of its chain named', async () => {
    const port = await tlsServer(good)
    const error = await expectDpsError(
      refusal(port, { policy: trusting([otherRoot.pem]) }),
      'SERVER_UNTRUSTED',
      'tls',
    )
    expect(error.message).toContain('"Test Intermediate", issued by "CN=Test Root"')
    expect(error.message).toContain('(Other Root)')
  })

  it('with an unknown root at the end of its chain is refused', async () => {
    const port = await tlsServer({ key, cert: chain(leaf, intermediate, root) })
    const error = await expectDpsError(
      refusal(port, { policy: trusting([otherRoot.pem]) }),
      'SERVER_UNTRUSTED',
      'tls',
    )
    expect(error.message).toContain('"Test Root", issued by "CN=Test Root"')
  })

  it('without its intermediate is refused', async () => {
    const port = await tlsServer({ key, cert: leaf.pem })
    await expectDpsError(refusal(port), 'SERVER_UNTRUSTED', 'tls')
  })

  it('with a self-signed certificate is refused', async () => {
    const self = issue({ name: HOST, key: leafKey, dns: [HOST] })
    const port = await tlsServer({ key, cert: self.pem })
    await expectDpsError(refusal(port), 'SERVER_UNTRUSTED', 'tls')
  })

  it('with a root of the right name and another key is refused', async () => {
    const impostor = issue({ name: 'Test Root', key: ecKey(), ca: true })
    const port = await tlsServer({ key, cert: chain(leafOf({ issuer: impostor }), impostor) })
    await expectDpsError(refusal(port), 'SERVER_UNTRUSTED', 'tls')
  })

  it('with a leaf that its issuer did not sign is refused', async () => {
    const port = await tlsServer({ key, cert: chain(leafOf({ signedBy: ecKey() }), intermediate) })
    await expectDpsError(refusal(port), 'SERVER_UNTRUSTED', 'tls')
  })

  it('with a leaf that was issued by a leaf is refused', async () => {
    const notCa = issue({ name: 'Not a CA', key: ecKey(), issuer: root })
    const port = await tlsServer({ key, cert: chain(leafOf({ issuer: notCa }), notCa) })
    await expectDpsError(refusal(port), 'SERVER_CERTIFICATE_INVALID', 'tls')
  })

  it('with a longer chain than its CA allows is refused', async () => {
    const short = issue({ name: 'Last CA', key: ecKey(), ca: true, pathLength: 0, issuer: root })
    const beyond = issue({ name: 'One CA too many', key: ecKey(), ca: true, issuer: short })
    const port = await tlsServer({ key, cert: chain(leafOf({ issuer: beyond }), beyond, short) })
    await expectDpsError(refusal(port), 'SERVER_CERTIFICATE_INVALID', 'tls')
  })

  it('with a client certificate is refused', async () => {
    const port = await tlsServer({ key, cert: chain(leafOf({ purpose: 'clientAuth' }), intermediate) })
    await expectDpsError(refusal(port), 'SERVER_CERTIFICATE_INVALID', 'tls')
  })

  it.each([
    ['intermediate', intermediate],
    ['leaf', leaf],
  ])('is refused even when its own %s gets past the policy as an anchor', async (_, anchor) => {
    const [known] = policy.anchors
    const forged = { ...policy, id: `forged ${anchor.name}`, anchors: [{ ...known!, pem: anchor.pem }] }
    const port = await tlsServer(good)
    await expectDpsError(refusal(port, { policy: forged }), 'SERVER_UNTRUSTED', 'tls')
  })

  it('is refused although NODE_TLS_REJECT_UNAUTHORIZED says otherwise', async () => {
    const before = process.env.NODE_TLS_REJECT_UNAUTHORIZED
    onTestFinished(() => {
      if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED
      else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before
    })
    process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0'
    const port = await tlsServer(good)
    await expectDpsError(refusal(port, { policy: trusting([otherRoot.pem]) }), 'SERVER_UNTRUSTED', 'tls')
    await expectDpsError(refusal(port, { host: 'other.test' }), 'SERVER_NAME_MISMATCH', 'tls')
  })
})

describe('the dates: a server that lies', () => {
  it('with an expired leaf is refused, with both dates', async () => {
    const old = leafOf({ notBefore: new Date('2020-01-01'), notAfter: new Date('2021-02-03T04:05:06Z') })
    const port = await tlsServer({ key, cert: chain(old, intermediate) })
    const error = await expectDpsError(refusal(port), 'SERVER_CERTIFICATE_EXPIRED', 'tls')
    expect(error.message).toMatch(
      /^this device believes it is \d{4}-\d\d-\d\dT[\d:.]+Z; the server certificate is/,
    )
    expect(error.message).toContain('valid 2020-01-01T00:00:00Z to 2021-02-03T04:05:06Z')
  })

  it('with a leaf from the future is refused, with both dates', async () => {
    const next = leafOf({ notBefore: new Date('2049-01-01'), notAfter: new Date('2049-12-31') })
    const port = await tlsServer({ key, cert: chain(next, intermediate) })
    const error = await expectDpsError(refusal(port), 'SERVER_CERTIFICATE_NOT_YET_VALID', 'tls')
    expect(error.message).toContain(
      'the server certificate is valid 2049-01-01T00:00:00Z to 2049-12-31T00:00:00Z',
    )
  })

  it('with an expired intermediate is refused, and the intermediate named', async () => {
    const lapsed = issue({
      name: 'Lapsed CA',
      key: ecKey(),
      ca: true,
      issuer: root,
      notAfter: daysFromNow(-1),
    })
    const port = await tlsServer({ key, cert: chain(leafOf({ issuer: lapsed }), lapsed) })
    const error = await expectDpsError(refusal(port), 'SERVER_CERTIFICATE_EXPIRED', 'tls')
    expect(error.message).toContain('the certificate "CN=Lapsed CA" in the server’s chain')
  })

  it('under a root that has expired is refused, and the root named', async () => {
    const lapsed = issue({ name: 'Lapsed Root', key: ecKey(), ca: true, notAfter: daysFromNow(-1) })
    const port = await tlsServer({ key, cert: leafOf({ issuer: lapsed }).pem })
    const error = await expectDpsError(
      refusal(port, { policy: trusting([lapsed.pem]) }),
      'SERVER_CERTIFICATE_EXPIRED',
      'tls',
    )
    expect(error.message).toContain('"CN=Lapsed Root"')
  })
})

describe('the name: a server that lies', () => {
  const misnamed = async (host: string, request: Partial<Request>) => {
    const port = await tlsServer({ key, cert: chain(leafOf(request), intermediate) })
    return expectDpsError(refusal(port, { host }), 'SERVER_NAME_MISMATCH', 'tls')
  }

  it('with a certificate of another name is refused, and both names told', async () => {
    const error = await misnamed('other.test', {})
    expect(error.message).toBe('the certificate of other.test is for DNS:dps.test, not for other.test')
  })

  it('with the name in the subject alone is refused', async () => {
    const error = await misnamed(HOST, { dns: [] })
    expect(error.message).toContain(
      'has no subjectAltName (its subject is "CN=dps.test", which is not looked at)',
    )
  })

  it('with a partial wildcard is refused', () => misnamed('global.dps.test', { dns: ['glo*.dps.test'] }))

  it('with two labels under a wildcard is refused', () => misnamed('a.b.dps.test', { dns: ['*.dps.test'] }))

  it('with a wildcard for the name itself is refused', () => misnamed('dps.test', { dns: ['*.dps.test'] }))

  it('with a wildcard under a top-level domain is refused', () => misnamed('dps.test', { dns: ['*.test'] }))

  it('with the IP address in the subject is refused', () =>
    misnamed('127.0.0.1', { name: '127.0.0.1', dns: [] }))

  it('with the IP address as a DNS name is refused', () => misnamed('127.0.0.1', { dns: ['127.0.0.1'] }))

  it('with another IP address is refused', () => misnamed('127.0.0.1', { dns: [], ip: [[127, 0, 0, 2]] }))

  it('with a NUL in its name is refused', () => misnamed(HOST, { dns: [`${HOST}\0.evil.test`] }))

  it('with control characters and without end in its names cannot write into the message', async () => {
    const error = await misnamed(HOST, {
      dns: ['\x1b[2J\n', ...Array.from({ length: 60 }, (_, i) => `a${i}.test`)],
    })
    // biome-ignore lint/suspicious/noControlCharactersInRegex: their absence is what is asserted
    expect(error.message).not.toMatch(/[\x00-\x1f\x7f]/)
    expect(error.message.length).toBeLessThan(300)
  })
})

describe('the handshake: a server that lies', () => {
  const tls11 = { ...good, minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'ALL@SECLEVEL=0' } as const

  it('that speaks TLS 1.1 only finds none of its suites among those offered', async () => {
    const error = await expectDpsError(refusal(await tlsServer(tls11)), 'TLS_NO_COMMON_SUITE', 'tls')
    expect(error.message).toContain('TLS 1.2')
  })

  it('that speaks TLS 1.1 only is refused by its version where it finds a legacy suite', async () => {
    const legacy = trusting([root.pem], { legacyCiphers: 'security' })
    await expectDpsError(refusal(await tlsServer(tls11), { policy: legacy }), 'TLS_VERSION_REFUSED', 'tls')
  })

  it('that answers with a TLS 1.1 ServerHello and one of the suites is refused', async () => {
    const body = Buffer.concat([Buffer.from([3, 2]), Buffer.alloc(32, 7), Buffer.from([0, 0xc0, 0x30, 0])])
    const message = Buffer.concat([Buffer.from([2, 0, 0, body.length]), body])
    const record = Buffer.concat([Buffer.from([22, 3, 2, 0, message.length]), message])
    const port = await rawServer((socket) => socket.once('data', () => socket.write(record)))
    await expectDpsError(refusal(port), 'TLS_VERSION_REFUSED', 'tls')
  })

  it('that speaks TLS 1.3 only is refused', async () => {
    const port = await tlsServer({ ...good, minVersion: 'TLSv1.3' })
    await expectDpsError(refusal(port), 'TLS_VERSION_REFUSED', 'tls')
  })

  it.each([
    ['static RSA', 'AES128-SHA:AES256-GCM-SHA384'],
    ['finite-field Diffie-Hellman', 'DHE-RSA-AES128-GCM-SHA256'],
    ['a SHA-1 MAC', 'ECDHE-RSA-AES128-SHA'],
  ])('that has suites of %s only is refused', async (_, ciphers) => {
    const port = await tlsServer({ ...good, ciphers, dhparam: 'auto', maxVersion: 'TLSv1.2' })
    await expectDpsError(refusal(port), 'TLS_NO_COMMON_SUITE', 'tls')
  })

  it('that shares no curve is refused', async () => {
    const port = await tlsServer({
      ...good,
      ecdhCurve: 'P-521',
      ciphers: 'ECDHE-RSA-AES128-GCM-SHA256',
      maxVersion: 'TLSv1.2',
    })
    await expectDpsError(refusal(port), 'TLS_NO_COMMON_SUITE', 'tls')
  })

  it('that is no TLS server is told apart', async () => {
    const port = await rawServer((socket) => socket.write('220 mail.test ESMTP ready\r\n'))
    const error = await expectDpsError(refusal(port), 'TLS_FAILED', 'tls')
    expect(error.message).toContain(`${HOST} (127.0.0.1) port ${port} did not answer with TLS`)
  })

  it('that resets after the ClientHello loses the connection', async () => {
    const port = await rawServer((socket) => socket.once('data', () => socket.resetAndDestroy()))
    await expectDpsError(refusal(port), 'CONNECTION_LOST', 'tls')
  })

  it('that closes after the ClientHello loses the connection', async () => {
    const port = await rawServer((socket) => socket.once('data', () => socket.end()))
    await expectDpsError(refusal(port), 'CONNECTION_LOST', 'tls')
  })

  it('that demands a certificate of a credential without one says so', async () => {
    const port = await tlsServer({ ...good, requestCert: true, rejectUnauthorized: true, ca: root.pem })
    const error = await expectDpsError(refusal(port), 'TLS_CLIENT_CERTIFICATE_REFUSED', 'tls')
    expect(error.message).toContain('this credential has none')
  })

  it('that hangs up on the device certificate loses the connection, with a hint at the certificate', async () => {
    const port = await tlsServer({ ...good, requestCert: true, rejectUnauthorized: true, ca: otherRoot.pem })
    const error = await expectDpsError(refusal(port, { identity: deviceIdentity }), 'CONNECTION_LOST', 'tls')
    expect(error.hint).toContain('the server refuses that certificate')
  })

  it.each([
    [40, 'TLS_NO_COMMON_SUITE'],
    [42, 'TLS_CLIENT_CERTIFICATE_REFUSED'],
    [43, 'TLS_CLIENT_CERTIFICATE_REFUSED'],
    [44, 'TLS_CLIENT_CERTIFICATE_REFUSED'],
    [45, 'TLS_CLIENT_CERTIFICATE_REFUSED'],
    [46, 'TLS_CLIENT_CERTIFICATE_REFUSED'],
    [47, 'TLS_FAILED'],
    [48, 'TLS_CLIENT_CERTIFICATE_REFUSED'],
    [49, 'TLS_CLIENT_CERTIFICATE_REFUSED'],
    [51, 'TLS_FAILED'],
    [70, 'TLS_VERSION_REFUSED'],
    [71, 'TLS_NO_COMMON_SUITE'],
    [80, 'TLS_FAILED'],
    [86, 'TLS_VERSION_REFUSED'],
    [112, 'SERVER_NAME_MISMATCH'],
    [116, 'TLS_CLIENT_CERTIFICATE_REFUSED'],
  ] as const)('that answers the ClientHello with alert %i is reported as %s', async (alert, code) => {
    const port = await rawServer((socket) =>
      socket.once('data', () => socket.end(Buffer.from([21, 3, 3, 0, 2, 2, alert]))),
    )
    await expectDpsError(refusal(port, { identity: deviceIdentity }), code, 'tls')
  })
})

describe('the network', () => {
  it('that refuses the port is told apart', async () => {
    await expectDpsError(refusal(1), 'CONNECTION_REFUSED', 'tcp')
  })

  it('that does not know the name is told apart', () =>
    expectDpsError(dialed({ host: 'no-such-host.invalid', port: 8883 }, policy), 'DNS_FAILED', 'dns'))

  it('that knows no route is told apart', () =>
    expectDpsError(
      dialed({ host: HOST, port: 8883, address: '255.255.255.255' }, policy),
      'NETWORK_UNREACHABLE',
      'tcp',
    ))
})

describe('abort', () => {
  const reason = new Error('enough')

  it('before the start opens nothing', async () => {
    const port = await rawServer(() => expect.fail('a connection was opened'))
    const watched = scope(AbortSignal.abort(reason))
    await expect(dial(to(port), policy, sasIdentity(), watched)).rejects.toBe(reason)
    expect(watched.phases).toEqual([])
  })

  it('while the server is mute rejects with the reason and closes the connection', async () => {
    const controller = new AbortController()
    const closed = deferred<undefined>()
    const port = await rawServer((socket) => {
      socket.once('data', () => controller.abort(reason))
      socket.on('close', () => closed.resolve(undefined))
    })
    await expect(dial(to(port), policy, sasIdentity(), scope(controller.signal))).rejects.toBe(reason)
    await closed.promise
  })

  it('while the name is resolved rejects with the reason', async () => {
    const controller = new AbortController()
    const attempt = dial({ host: 'localhost', port: 1 }, policy, sasIdentity(), scope(controller.signal))
    controller.abort(reason)
    await expect(attempt).rejects.toBe(reason)
  })

  it('between TCP and TLS closes the connection', async () => {
    const controller = new AbortController()
    const closed = deferred<boolean>()
    const port = await rawServer((socket) => socket.resume().on('close', closed.resolve))
    const watched = scope(controller.signal)
    const enter = (phase: string) => phase === 'tls' && controller.abort(reason)
    await expect(dial(to(port), policy, sasIdentity(), { ...watched, enter })).rejects.toBe(reason)
    expect(await closed.promise).toBe(false)
  })

  it('is not listened for any longer after success or failure', async () => {
    const { signal } = new AbortController()
    await dialed(to(await tlsServer(good)), policy, sasIdentity(), scope(signal))
    expect(getEventListeners(signal, 'abort')).toEqual([])
    await expectDpsError(dialed(to(1), policy, sasIdentity(), scope(signal)), 'CONNECTION_REFUSED', 'tcp')
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })

  it('after success changes nothing', async () => {
    const controller = new AbortController()
    const port = await tlsServer(good, (socket) => socket.write('still here'))
    const { socket } = await dialed(to(port), policy, sasIdentity(), scope(controller.signal))
    controller.abort(reason)
    const [data] = await once(socket, 'data')
    expect(String(data)).toBe('still here')
  })
})

describe('a socket that fails later', () => {
  it('has an error listener that is not the caller’s', async () => {
    const port = await tlsServer(good)
    const { socket } = await dialed(to(port), policy)
    const closed = deferred<boolean>()
    socket.on('close', closed.resolve)
    socket.destroy(new Error('late'))
    expect(await closed.promise).toBe(true)
  })
})

describe('a credential that OpenSSL cannot use', () => {
  it('is refused before a ClientHello is sent', async () => {
    const port = await rawServer((socket) => socket.on('data', () => expect.fail('a ClientHello was sent')))
    await expectDpsError(
      refusal(port, { identity: certificateIdentity({ cert: 'nonsense', key: 'nonsense' }, 'nonsense') }),
      'CREDENTIAL_UNREADABLE',
      'config',
    )
  })
})

it('a small packet is not held back for an acknowledgement, whoever opened TCP', async () => {
  const port = await tlsServer(good)
  const noDelay = vi.spyOn(net.Socket.prototype, 'setNoDelay')
  try {
    secureContextFor(sasIdentity(), policy)
    await refusal(port)
    expect(noDelay.mock.calls).toEqual([[true]])
  } finally {
    noDelay.mockRestore()
  }
})

describe('session resumption', () => {
  /** A server behind a proxy that keeps every ClientHello; its tickets are good for any client. */
  const resuming = async () => recordingProxy(await tlsServer({ ...good, maxVersion: 'TLSv1.2' }))
  const identity = () => sasIdentity(`session ${Math.random()}`)
  const connect = async (port: number, options: Partial<Parameters<typeof refusal>[1]> & object = {}) => {
    const connection = await refusal(port, options)
    await finish(connection)
    return connection
  }
  const offers = (hellos: readonly { readonly sessionTicket: Buffer | undefined }[]) =>
    hellos.map((hello) => (hello.sessionTicket?.length ?? 0) > 0)

  it('of the same credential saves a round trip and keeps the root', async () => {
    const { port, hellos } = await resuming()
    const same = identity()
    const first = await connect(port, { identity: same })
    const second = await connect(port, { identity: same })
    expect([first.tls.resumed, second.tls.resumed]).toEqual([false, true])
    expect([first.tls.root, second.tls.root]).toEqual(['Test Root', 'Test Root'])
    expect([first.roundTrips, second.roundTrips]).toEqual([3, 2])
    expect(offers(hellos)).toEqual([false, true])
  })

  it('never offers the session of one credential for another', async () => {
    const { port, hellos } = await resuming()
    await connect(port, { identity: identity() })
    const other = await connect(port, { identity: identity() })
    expect(other.tls.resumed).toBe(false)
    expect(offers(hellos)).toEqual([false, false])
  })

  it('never offers it after the certificate was replaced under the same fingerprint', async () => {
    const { port, hellos } = await resuming()
    const renewed = issue({ name: 'device', key: deviceKey, issuer: root, purpose: 'clientAuth' })
    for (const { pem } of [device, renewed]) {
      await connect(port, {
        identity: certificateIdentity({ cert: pem, key: keyPem(deviceKey) }, 'one fingerprint'),
      })
    }
    expect(offers(hellos)).toEqual([false, false])
  })

  it('never offers it to another server name at the same address: full handshake and name check', async () => {
    const { port, hellos } = await resuming()
    const same = identity()
    await connect(port, { identity: same })
    await expectDpsError(refusal(port, { identity: same, host: 'other.test' }), 'SERVER_NAME_MISMATCH', 'tls')
    expect(offers(hellos)).toEqual([false, false])
  })

  it('never offers it under another policy', async () => {
    const { port, hellos } = await resuming()
    const same = identity()
    await connect(port, { identity: same })
    await connect(port, { identity: same, policy: trusting([root.pem], { cipherPreference: 'performance' }) })
    await connect(port, { identity: same, policy: trusting([root.pem, otherRoot.pem]) })
    expect(offers(hellos)).toEqual([false, false, false])
  })

  it('switched off neither offers nor keeps a session', async () => {
    const { port, hellos } = await resuming()
    const same = identity()
    const off: TlsOptions = { sessionResumption: false }
    await connect(port, { identity: same, policy: trusting([root.pem], off) })
    await connect(port, { identity: same })
    await connect(port, { identity: same, policy: trusting([root.pem], off) })
    expect(offers(hellos)).toEqual([false, false, false])
  })

  it('is forgotten when a handshake that tried it fails', async () => {
    const { port, hellos, resetNext } = await resuming()
    const same = identity()
    await connect(port, { identity: same })
    resetNext()
    await expectDpsError(refusal(port, { identity: same }), 'CONNECTION_LOST', 'tls')
    await connect(port, { identity: same })
    expect(offers(hellos)).toEqual([false, true, false])
  })

  it('is kept and renewed where the first address of the name is dead', async () => {
    const { port, hellos } = await resuming()
    const same = identity()
    const lookup = vi.spyOn(dns, 'lookup').mockImplementation(((_: string, __: object, done: LookupDone) =>
      done(null, [
        { address: '::1', family: 6 },
        { address: '127.0.0.1', family: 4 },
      ])) as never)
    try {
      // The context is there, so that each of these opens its own TCP connection.
      secureContextFor(same, trusting([root.pem]))
      const connections = []
      for (let i = 0; i < 3; i++) {
        connections.push(await connect(port, { identity: same, address: 'two-addresses.test' }))
      }
      expect(connections.map(({ tls }) => tls.resumed)).toEqual([false, true, true])
      expect(offers(hellos)).toEqual([false, true, true])
    } finally {
      lookup.mockRestore()
    }
  })

  it('works for TLS 1.3 too', async () => {
    const server = await tlsServer(good)
    const { port, hellos } = await recordingProxy(server)
    const options = { identity: identity(), policy: trusting([root.pem], { maxVersion: 'TLSv1.3' }) }
    const first = await refusal(port, options)
    await once(first.socket, 'session')
    const second = await refusal(port, options)
    expect(second.tls).toMatchObject({ protocol: 'TLSv1.3', resumed: true, root: 'Test Root' })
    expect(hellos.map((hello) => hello.preSharedKey)).toEqual([false, true])
  })
})

describe('an anchor that is no root', () => {
  it.each([
    ['intermediate', intermediate.pem],
    ['leaf', leaf.pem],
  ])('%s is refused before anything is dialled', async (_, pem) => {
    await expectDpsError(() => trusting([pem]), 'TRUST_ANCHOR_INVALID', 'config')
    await expectDpsError(() => resolvePolicy({}, { extraRoots: pem }), 'TRUST_ANCHOR_INVALID', 'config')
    expect(resolveTrust({ extraRoots: root.pem })).toHaveLength(3)
  })
})
