import { TLSSocket } from 'node:tls'
import { beforeEach, describe, expect, it, vi } from 'vitest'
import { narrowedTo } from '../../../src/tls/policy.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { ecKey, type Issued, issue, keyPem, type Request, rsaKey } from './pki.ts'
import { dialed, finish, sasIdentity, switchableServer, trusting } from './servers.ts'

// A server is expected to end in the root that it ended in last. That must save work, and change no verdict.

const HOST = 'dps.test'
const leafKey = rsaKey()
const key = keyPem(leafKey)
const ca = (name: string, request: Partial<Request> = {}) =>
  issue({ name, key: ecKey(), ca: true, ...request })
const rootA = ca('Root A')
const rootB = ca('Root B')
const foreign = ca('Foreign Root')
const intermediate = ca('Intermediate', { issuer: rootA })
/** The same name and key, issued by the other root: the leaf stays the same. */
const cross = ca('Intermediate', { key: intermediate.key, issuer: rootB })
const untrusted = ca('Intermediate', { key: intermediate.key, issuer: foreign })
const leaf = issue({ name: HOST, key: leafKey, issuer: intermediate, dns: [HOST] })

const policy = trusting([rootA.pem, rootB.pem], { sessionResumption: false })
const credential = (chain: readonly Issued[]) => ({ key, cert: chain.map(({ pem }) => pem).join('') })

const looks = vi.spyOn(TLSSocket.prototype, 'getPeerX509Certificate')
beforeEach(() => void looks.mockClear())

async function begin(chain: readonly Issued[] = [leaf, intermediate]) {
  const server = await switchableServer(credential(chain))
  const connect = async (host = HOST, under = policy) => {
    const connection = await dialed({ host, port: server.port, address: '127.0.0.1' }, under, sasIdentity())
    await finish(connection)
    return connection.tls.root
  }
  return {
    connect,
    connections: server.connections,
    present: (next: readonly Issued[]) => server.present(credential(next)),
  }
}

describe('a server that ends in the root of last time', () => {
  it('is looked at as far as its leaf, once that is known', async () => {
    const { connect, connections } = await begin()
    expect(await connect()).toBe('Root A')
    expect(looks).toHaveBeenCalledTimes(1)
    expect(await connect()).toBe('Root A')
    looks.mockClear()
    for (let i = 0; i < 3; i++) expect(await connect()).toBe('Root A')
    expect(looks).not.toHaveBeenCalled()
    expect(connections()).toBe(5)
  })

  it('is looked at anew where its leaf is another', async () => {
    const { connect, present } = await begin()
    for (let i = 0; i < 3; i++) await connect()
    const renewed = issue({ name: HOST, key: leafKey, issuer: intermediate, dns: [HOST] })
    present([renewed, intermediate])
    looks.mockClear()
    expect(await connect()).toBe('Root A')
    expect(looks).toHaveBeenCalledTimes(1)
  })

  it('is expected under the same policy only', async () => {
    const { connect, connections } = await begin()
    await connect()
    expect(await connect(HOST, trusting([rootA.pem], { sessionResumption: false }))).toBe('Root A')
    await expectDpsError(
      connect(HOST, trusting([rootB.pem], { sessionResumption: false })),
      'SERVER_UNTRUSTED',
      'tls',
    )
    expect(connections()).toBe(3)
  })
})

describe('a server that moves to another root', () => {
  it('under the same leaf is reported with that root, at the price of one more connection', async () => {
    const { connect, connections, present } = await begin()
    for (let i = 0; i < 3; i++) expect(await connect()).toBe('Root A')
    present([leaf, cross])
    expect(await connect()).toBe('Root B')
    expect(connections()).toBe(5)
    expect(await connect()).toBe('Root B')
    expect(connections()).toBe(6)
  })

  it('and still sends the cross-certificate of the old one, out of date by now, is not refused for it', async () => {
    const { connect, connections, present } = await begin()
    for (let i = 0; i < 2; i++) await connect()
    const below = ca('Intermediate B', { issuer: rootB })
    const day = 86_400_000
    const old = ca('Root B', {
      key: rootB.key,
      issuer: rootA,
      notBefore: new Date(Date.now() - 3 * day),
      notAfter: new Date(Date.now() - day),
    })
    present([issue({ name: HOST, key: leafKey, issuer: below, dns: [HOST] }), below, old])
    // By names and signatures both roots can be reached; that one way is out of date is not for the report to weigh.
    expect(await connect()).toBe('unknown')
    expect(connections()).toBe(4)
    expect(await connect()).toBe('unknown')
    expect(connections()).toBe(5)
  })

  it('that is not of the policy is refused', async () => {
    const { connect, connections, present } = await begin()
    for (let i = 0; i < 2; i++) await connect()
    present([leaf, untrusted])
    await expectDpsError(connect(), 'SERVER_UNTRUSTED', 'tls')
    expect(connections()).toBe(4)
    await expectDpsError(connect(), 'SERVER_UNTRUSTED', 'tls')
    expect(connections()).toBe(5)
  })

  it('and shows both ways leaves it unknown, and nothing is expected of it', async () => {
    const { connect, connections } = await begin([leaf, intermediate, cross])
    for (let i = 0; i < 3; i++) expect(await connect()).toBe('unknown')
    expect(connections()).toBe(3)
    expect(looks).toHaveBeenCalledTimes(3)
  })
})

describe('what is remembered of a leaf', () => {
  it('does not let it pass for another host', async () => {
    const { connect } = await begin()
    for (let i = 0; i < 3; i++) await connect()
    await expectDpsError(connect('else.test'), 'SERVER_NAME_MISMATCH', 'tls')
    await expectDpsError(connect('else.test'), 'SERVER_NAME_MISMATCH', 'tls')
  })

  it('does not let another leaf pass', async () => {
    const { connect, present } = await begin()
    for (let i = 0; i < 3; i++) await connect()
    present([issue({ name: 'else', key: leafKey, issuer: intermediate, dns: ['else.test'] }), intermediate])
    await expectDpsError(connect(), 'SERVER_NAME_MISMATCH', 'tls')
    await expectDpsError(connect(), 'SERVER_NAME_MISMATCH', 'tls')
  })

  it('does not let it outlive its dates', async () => {
    const { connect, present } = await begin()
    for (let i = 0; i < 3; i++) await connect()
    const day = 86_400_000
    const expired = issue({
      name: HOST,
      key: leafKey,
      issuer: intermediate,
      dns: [HOST],
      notBefore: new Date(Date.now() - 3 * day),
      notAfter: new Date(Date.now() - day),
    })
    present([expired, intermediate])
    await expectDpsError(connect(), 'SERVER_CERTIFICATE_EXPIRED', 'tls')
  })

  it('is of no use where Node.js shows no leaf', async () => {
    const { connect } = await begin()
    for (let i = 0; i < 2; i++) await connect()
    const shown = vi.spyOn(TLSSocket.prototype, 'getPeerCertificate').mockReturnValue({} as never)
    try {
      looks.mockClear()
      expect(await connect()).toBe('Root A')
      expect(looks).toHaveBeenCalledTimes(1)
    } finally {
      shown.mockRestore()
    }
  })
})

describe('a policy narrowed to one anchor', () => {
  it('is another policy, made once, that differs in nothing else', () => {
    const [a, b] = policy.anchors
    const narrow = narrowedTo(a!, policy)
    expect(narrow.anchors).toEqual([a])
    expect(new Set([narrow.id, narrowedTo(b!, policy).id, policy.id]).size).toBe(3)
    expect(narrowedTo(a!, policy)).toBe(narrow)
    expect({ ...narrow, anchors: policy.anchors, id: policy.id }).toEqual(policy)
    expect(Object.isFrozen(narrow) && Object.isFrozen(narrow.anchors)).toBe(true)
    expect(narrowedTo(a!, narrow)).toBe(narrow)
  })
})
