import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { TLSSocket } from 'node:tls'
import forge from 'node-forge'
import { describe, expect, it } from 'vitest'
import { type PresentedChain, validatingRoot } from '../../../src/tls/identity.ts'
import { resolveTrust } from '../../../src/tls/trust.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { ecKey, type Issued, issue, keyPem, type Request, rsaKey } from './pki.ts'
import { certificateIdentity, dialed, sasIdentity, tlsServer, trusting } from './servers.ts'

const HOST = 'dps.test'
const leafKey = rsaKey()
const key = keyPem(leafKey)
const ca = (name: string, request: Partial<Request> = {}) =>
  issue({ name, key: ecKey(), ca: true, ...request })

const rootA = ca('Root A')
const rootB = ca('Root B')
const intermediate = ca('Intermediate', { issuer: rootA })
/** The same name and key as `intermediate`, issued by the other root. */
const cross = ca('Intermediate', { key: intermediate.key, issuer: rootB })
/** The same name and key as root A, issued by root B: a root that was itself cross-signed. */
const crossRoot = ca('Root A', { key: rootA.key, issuer: rootB })
/** The same names as `cross`, under a signature that is not root B's. */
const forgedCross = ca('Intermediate', { key: intermediate.key, issuer: rootB, signedBy: ecKey() })
const stray = ca('Stray', { issuer: rootB })
const leaf = issue({ name: HOST, key: leafKey, issuer: intermediate, dns: [HOST] })

const both = trusting([rootA.pem, rootB.pem])
const onlyA = trusting([rootA.pem])
const onlyB = trusting([rootB.pem])

async function rootOf(chain: readonly Issued[], policy = both): Promise<string> {
  const port = await tlsServer({ key, cert: chain.map(({ pem }) => pem).join('') })
  const { tls } = await dialed({ host: HOST, port, address: '127.0.0.1' }, policy, sasIdentity())
  return tls.root
}

describe('the root that validated', () => {
  it.each<[string, readonly Issued[], string]>([
    ['a plain chain', [leaf, intermediate], 'Root A'],
    ['a chain with its root', [leaf, intermediate, rootA], 'Root A'],
    ['a chain with a root that is not its own', [leaf, intermediate, rootB], 'Root A'],
    ['a chain with a stray certificate', [leaf, intermediate, stray], 'Root A'],
    ['a chain out of order', [leaf, stray, rootB, intermediate], 'Root A'],
    ['a chain with the same certificate twice', [leaf, intermediate, intermediate], 'Root A'],
    ['a chain through the cross-certificate alone', [leaf, cross], 'Root B'],
    ['a chain with a cross-certificate of forged signature', [leaf, intermediate, forgedCross], 'Root A'],
    ['a chain with both cross-certificates', [leaf, intermediate, cross], 'unknown'],
    ['a chain with a cross-signed root', [leaf, intermediate, crossRoot], 'unknown'],
  ])('of %s is named from the paths there are', async (_, chain, name) => {
    expect(await rootOf(chain)).toBe(name)
  })

  it('of cross-signed chains is the one that is trusted', async () => {
    expect(await rootOf([leaf, intermediate, cross], onlyA)).toBe('Root A')
    // OpenSSL follows the first certificate that fits, and does not turn back.
    expect(await rootOf([leaf, cross, intermediate], onlyB)).toBe('Root B')
    expect(await rootOf([leaf, intermediate, crossRoot], onlyB)).toBe('Root B')
  })

  it('of two roots with one name is the one whose key signed', async () => {
    const namesake = ca('Root A')
    const policy = trusting([namesake.pem, rootA.pem])
    expect(await rootOf([leaf, intermediate], policy)).toBe('Root A')
    const names = policy.anchors.map((anchor) => anchor.sha256)
    expect(new Set(names).size).toBe(2)
  })

  it('of a leaf issued by the root itself is that root', async () => {
    const direct = issue({ name: HOST, key: leafKey, issuer: rootB, dns: [HOST] })
    expect(await rootOf([direct])).toBe('Root B')
  })

  it('leaves the socket its own methods', async () => {
    const port = await tlsServer({ key, cert: leaf.pem + intermediate.pem })
    const { socket } = await dialed({ host: HOST, port, address: '127.0.0.1' }, both)
    expect(socket.getPeerCertificate()).toEqual(TLSSocket.prototype.getPeerCertificate.call(socket))
    const failed = once(socket, 'error')
    socket.destroy(new Error('as it likes'))
    await expect(failed).resolves.toEqual([new Error('as it likes')])
  })
})

describe('a hostile chain', () => {
  const parse = (...certificates: readonly Issued[]): PresentedChain => ({
    certificates: certificates.map(({ pem }) => new X509Certificate(pem)),
    truncated: false,
  })
  const anchors = resolveTrust({ roots: 'none', extraRoots: [rootA.pem, rootB.pem] })

  it('with more certificates than are looked at leaves the root unknown', async () => {
    const strays = Array.from({ length: 20 }, (_, i) => ca(`Stray ${i}`, { issuer: rootB }))
    expect(await rootOf([leaf, intermediate, ...strays])).toBe('unknown')
  })

  it('with its issuer beyond what is looked at is refused', async () => {
    const strays = Array.from({ length: 20 }, (_, i) => ca(`Stray ${i}`, { issuer: rootB }))
    const port = await tlsServer({
      key,
      cert: [leaf, ...strays, intermediate].map(({ pem }) => pem).join(''),
    })
    await expectDpsError(dialed({ host: HOST, port, address: '127.0.0.1' }, both), 'SERVER_UNTRUSTED', 'tls')
  })

  it('that goes in a circle ends', () => {
    const one = ca('One', { issuer: rootA })
    const two = ca('Two', { issuer: one })
    const oneByTwo = ca('One', { key: one.key, issuer: two })
    const end = issue({ name: HOST, key: leafKey, issuer: two, dns: [HOST] })
    expect(validatingRoot(parse(end, two, oneByTwo), anchors)).toBeUndefined()
    expect(validatingRoot(parse(end, two, oneByTwo, one), anchors)).toBe('Root A')
  })

  it('that reaches no anchor has no root', () => {
    const elsewhere = ca('Elsewhere')
    const end = issue({ name: HOST, key: leafKey, issuer: elsewhere, dns: [HOST] })
    expect(validatingRoot(parse(end, elsewhere), anchors)).toBeUndefined()
    expect(validatingRoot(parse(), anchors)).toBeUndefined()
  })

  it('of a root alone ends in that root', () => {
    expect(validatingRoot(parse(rootA), anchors)).toBe('Root A')
  })

  it('whose links hold by name alone has no root where OpenSSL may trust more than the anchors', () => {
    const impostor = ca('Root A')
    const end = issue({
      name: HOST,
      key: leafKey,
      issuer: { ...rootA, key: rootA.key },
      signedBy: impostor.key,
      dns: [HOST],
    })
    expect(validatingRoot(parse(end), anchors)).toBe('Root A')
    expect(validatingRoot(parse(end), anchors, true)).toBeUndefined()
    expect(validatingRoot(parse(leaf, intermediate), anchors, true)).toBe('Root A')
    expect(validatingRoot(parse(leaf, intermediate, cross), anchors, true)).toBe('unknown')
    const byLeaf = issue({ name: 'end', key: leafKey, issuer: leaf, dns: [HOST] })
    expect(validatingRoot(parse(byLeaf, leaf, intermediate), anchors, true)).toBeUndefined()
  })
})

describe('a PKCS#12 credential that holds its own CA', () => {
  it('does not make the device’s CA a root of the server', async () => {
    const deviceCa = issue({ name: 'Device CA', key: rsaKey(), ca: true })
    const deviceKey = rsaKey()
    const device = issue({ name: 'device', key: deviceKey, issuer: deviceCa })
    const pfx = forge.asn1
      .toDer(
        forge.pkcs12.toPkcs12Asn1(
          forge.pki.privateKeyFromPem(
            deviceKey.privateKey.export({ type: 'pkcs1', format: 'pem' }).toString(),
          ),
          [device, deviceCa].map(({ pem }) => forge.pki.certificateFromPem(pem)),
          'secret',
          { algorithm: '3des' },
        ),
      )
      .getBytes()
    const identity = certificateIdentity({ pfx: Buffer.from(pfx, 'latin1'), passphrase: 'secret' }, 'pfx')

    const impostor = issue({ name: HOST, key: leafKey, issuer: deviceCa, dns: [HOST] })
    const lying = await tlsServer({ key, cert: impostor.pem })
    await expectDpsError(
      dialed({ host: HOST, port: lying, address: '127.0.0.1' }, both, identity),
      'SERVER_UNTRUSTED',
      'tls',
    )
    // A path by names alone to a root of the policy, beside the one that OpenSSL takes to the device's CA.
    const link = issue({
      name: 'Device CA',
      key: deviceCa.key,
      ca: true,
      issuer: rootA,
      signedBy: ecKey(),
    })
    const cunning = await tlsServer({ key, cert: impostor.pem + link.pem })
    await expectDpsError(
      dialed({ host: HOST, port: cunning, address: '127.0.0.1' }, both, identity),
      'SERVER_UNTRUSTED',
      'tls',
    )
    const honest = await tlsServer({ key, cert: leaf.pem + intermediate.pem })
    const { tls } = await dialed({ host: HOST, port: honest, address: '127.0.0.1' }, both, identity)
    expect(tls.root).toBe('Root A')
  })
})
