import { getEventListeners } from 'node:events'
import { inspect } from 'node:util'
import { afterAll, describe, expect, it, onTestFinished } from 'vitest'
import { createPki, generateSymmetricKey, startEmulator } from '../../../src/emulator/index.ts'
import type { DpsErrorCode, DpsPhase } from '../../../src/errors.ts'
import {
  type DpsEvent,
  ProvisioningClient,
  type ProvisioningClientOptions,
  symmetricKey,
  x509,
} from '../../../src/index.ts'
import { resolveProxy } from '../../../src/tls/proxy.ts'
import { testClock } from '../../support/clock.ts'
import {
  type ConnectProxy,
  type ConnectProxyOptions,
  INSPECTION_CA_NAME,
  type ProxyBehaviour,
  startConnectProxy,
} from '../../support/connect-proxy.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const USERNAME = 'line-7'
const PASSWORD = 'p@ss:wörd%'
const HUB = 'emulated-hub.azure-devices.net'
const deviceKey = generateSymmetricKey()
const pki = await createPki()
const emulator = await startEmulator({
  pki,
  assigning: { polls: 1, retryAfterSeconds: 0 },
  enrollments: [{ registrationId: 'sensor-1', attestation: { symmetricKey: { primaryKey: deviceKey } } }],
})
afterAll(() => emulator.close())
emulator.enrollments.addGroup({
  groupId: 'presses',
  attestation: { x509: { ca: pki.deviceRoot.certPem } },
})
const device = await emulator.issueDeviceCertificate({ registrationId: 'press-1' })

const sas = symmetricKey({ registrationId: 'sensor-1', key: deviceKey })
const asked = `127.0.0.1:${emulator.port}`

async function proxyThat(
  behaviour: ProxyBehaviour = 'tunnel',
  options: ConnectProxyOptions = {},
): Promise<ConnectProxy> {
  const proxy = await startConnectProxy({ behaviour, ...options })
  onTestFinished(() => proxy.close())
  return proxy
}

function clientWith(options: Partial<ProvisioningClientOptions>) {
  const clock = testClock({ startMs: Date.now() })
  const events: DpsEvent[] = []
  const { signal } = new AbortController()
  const client = new ProvisioningClient({
    ...emulator.clientOptions(),
    credential: sas,
    clock,
    onEvent: (event) => events.push(event),
    retry: { maxAttempts: 1 },
    ...options,
  })
  return {
    client,
    clock,
    events,
    register: () => client.register({ signal }),
    /** After a call of any outcome. */
    leavesNothing: async (proxy?: ConnectProxy) => {
      await proxy?.idle()
      expect(clock.pending).toBe(0)
      expect(getEventListeners(signal, 'abort')).toEqual([])
    },
  }
}

function unexpected(): never {
  expect.fail('the call succeeded')
}

const phases = (events: readonly DpsEvent[]) =>
  events.flatMap((event) => (event.type === 'phase-started' ? [event.phase] : []))

describe('a device behind a proxy', () => {
  it('registers through its tunnel, and the server is verified by name as without it', async () => {
    const proxy = await proxyThat()
    const { events, register, leavesNothing } = clientWith({ proxy: proxy.url })
    const { assignedHub, connection } = await register()
    expect(assignedHub).toBe(HUB)
    expect(connection.root).toBe(BY_EMULATOR)
    expect(proxy.requests).toEqual([
      { target: asked, lines: [`CONNECT ${asked} HTTP/1.1`, `Host: ${asked}`] },
    ])
    expect(proxy.connections).toBe(1)
    expect(phases(events).slice(2, 5)).toEqual(['proxy', 'tls', 'connect'])
    await leavesNothing(proxy)
  })

  it.each(['mqtt-ws', 'https'] as const)('registers over %s as well', async (transport) => {
    const proxy = await proxyThat()
    const { register, leavesNothing } = clientWith({ proxy: proxy.url, transport })
    const { assignedHub, connection } = await register()
    expect(assignedHub).toBe(HUB)
    expect(connection.transport).toBe(transport)
    expect(proxy.requests[0]?.target).toBe(asked)
    await leavesNothing(proxy)
  })

  it('needs one round trip more than without', async () => {
    const proxy = await proxyThat()
    const tls = { sessionResumption: false }
    const through = await clientWith({ proxy: proxy.url, tls }).register()
    const direct = await clientWith({ tls }).register()
    expect(through.connection.roundTrips).toBe(direct.connection.roundTrips + 1)
  })

  it('presents its certificate end to end', async () => {
    const proxy = await proxyThat()
    const { register } = clientWith({ proxy: proxy.url, credential: x509(device) })
    expect((await register()).registrationId).toBe('press-1')
  })

  it('has the proxy resolve `host` where there is no `connectTo`', async () => {
    const proxy = await proxyThat('tunnel', { leadsTo: { host: '127.0.0.1', port: emulator.port } })
    const { connectTo: _, ...options } = emulator.clientOptions()
    const clock = testClock({ startMs: Date.now() })
    const named = new ProvisioningClient({ ...options, credential: sas, proxy: proxy.url, clock })
    expect((await named.register()).assignedHub).toBe(HUB)
    expect(proxy.requests[0]?.target).toBe(`global.azure-devices-provisioning.net:${emulator.port}`)
  })

  it('reads a head that comes byte by byte, after interim answers', async () => {
    const proxy = await proxyThat('trickle')
    expect((await clientWith({ proxy: proxy.url }).register()).assignedHub).toBe(HUB)
  })

  it('resumes sessions through the same proxy, and through no other way', async () => {
    const [one, other] = [await proxyThat(), await proxyThat()]
    const credential = symmetricKey({ registrationId: 'sensor-1', key: deviceKey })
    const resumed = async (options: Partial<ProvisioningClientOptions>) => {
      const tls = { curves: ['P-256', 'X25519'] }
      return (await clientWith({ credential, tls, ...options }).register()).connection.resumed
    }
    expect(await resumed({ proxy: one.url })).toBe(false)
    expect(await resumed({ proxy: one.url })).toBe(true)
    expect(await resumed({ proxy: other.url })).toBe(false)
    expect(await resumed({})).toBe(false)
  })

  it('dials without it what is among the exceptions', async () => {
    const proxy = await proxyThat()
    const { events, register } = clientWith({ proxy: { url: proxy.url, noProxy: ['127.0.0.0/8'] } })
    await register()
    expect(proxy.connections).toBe(0)
    expect(phases(events)).not.toContain('proxy')
  })

  it('falls back to another transport where the proxy is in the way', async () => {
    const proxy = await proxyThat({ status: 403 })
    const { events, register } = clientWith({
      proxy: proxy.url,
      transport: [
        'mqtt',
        {
          name: 'own',
          open: () => {
            proxy.behaviour = 'tunnel'
            throw new Error('got here')
          },
        },
      ],
    })
    await expectDpsError(register(), 'TRANSPORT_FAILED', 'clock')
    expect(events.find((event) => event.type === 'fallback')).toMatchObject({
      from: 'mqtt',
      to: 'own',
      error: { code: 'PROXY_REFUSED', phase: 'proxy' },
    })
  })
})

const BY_EMULATOR = await (async () => (await clientWith({}).register()).connection.root)()

describe('a proxy that', () => {
  interface Refusal {
    readonly code: DpsErrorCode
    readonly phase?: DpsPhase
    readonly retryable?: boolean
    readonly message?: string
    readonly hint?: string
  }
  const cases: [string, ProxyBehaviour, Refusal][] = [
    ['hangs up on the request', 'drop', { code: 'CONNECTION_LOST', retryable: true }],
    ['resets the connection', 'reset', { code: 'CONNECTION_LOST', retryable: true }],
    ['hangs up in the middle of its head', 'drop-in-head', { code: 'CONNECTION_LOST', retryable: true }],
    [
      'hangs up once the tunnel is open',
      'drop-after-head',
      { code: 'CONNECTION_LOST', phase: 'tls', retryable: true, message: 'through the proxy' },
    ],
    ['speaks first in the tunnel', 'extra-bytes', { code: 'PROTOCOL_VIOLATION', message: 'into the tunnel' }],
    ['sends a head without end', 'huge-head', { code: 'PROTOCOL_VIOLATION', message: '16384 bytes' }],
    ['is no HTTP proxy', 'garbage', { code: 'PROTOCOL_VIOLATION', message: 'did not answer with HTTP/1' }],
    ['answers with TLS', { raw: '\x15\x03\x03\x00\x02\x02\x28' }, { code: 'PROTOCOL_VIOLATION' }],
    [
      'does not allow the port',
      { status: 403, reason: 'Port \x1b[2Jnot\u202e allowed' },
      { code: 'PROTOCOL_VIOLATION', message: 'control character' },
    ],
    [
      'forbids the port',
      { status: 403, reason: 'Forbidden by policy' },
      {
        code: 'PROXY_REFUSED',
        retryable: false,
        message: `does not open ${asked} (403 Forbidden by policy)`,
        hint: 'port 443 only',
      },
    ],
    ['knows no CONNECT', { status: 405 }, { code: 'PROXY_REFUSED', retryable: false }],
    ['redirects', { status: 302, fields: ['Location: /login'] }, { code: 'PROXY_REFUSED', retryable: false }],
    ['cannot reach the service', { status: 502 }, { code: 'PROXY_REFUSED', retryable: true, message: '502' }],
    ['is overloaded', { status: 503 }, { code: 'PROXY_REFUSED', retryable: true }],
    ['waits for the service in vain', { status: 504 }, { code: 'PROXY_REFUSED', retryable: true }],
    [
      'gives a reason that is longer than a line',
      { status: 403, reason: 'x'.repeat(500) },
      { code: 'PROXY_REFUSED', message: `${'x'.repeat(80)}…)` },
    ],
    [
      'speaks Kerberos only',
      { status: 407, fields: ['Proxy-Authenticate: Negotiate', 'Proxy-Authenticate: NTLM'] },
      {
        code: 'PROXY_AUTHENTICATION_REQUIRED',
        retryable: false,
        hint: 'negotiate, ntlm authentication only',
      },
    ],
  ]
  it.each(cases)('%s', async (_, behaviour, { code, phase = 'proxy', message, hint, ...rest }) => {
    const proxy = await proxyThat(behaviour)
    const { client, register, leavesNothing } = clientWith({ proxy: proxy.url })
    const error = await expectDpsError(register(), code, phase)
    expect(error).toMatchObject(rest)
    expect(error.message).toContain(`the proxy 127.0.0.1:${proxy.port}`)
    if (message !== undefined) expect(error.message).toContain(message)
    if (hint !== undefined) expect(error.hint).toContain(hint)
    await leavesNothing(proxy)
    proxy.behaviour = 'tunnel'
    expect((await client.register()).assignedHub).toBe(HUB)
  })

  it('asks for a later time is asked again then', async () => {
    const proxy = await proxyThat({ status: 503, fields: ['Retry-After: 7'] })
    const { clock, register } = clientWith({
      proxy: proxy.url,
      retry: { maxAttempts: 2 },
      onEvent: (event) => {
        if (event.type === 'retry') proxy.behaviour = 'tunnel'
      },
    })
    expect((await register()).assignedHub).toBe(HUB)
    expect(clock.sleeps[0]).toBeGreaterThanOrEqual(7000)
  })

  it('is mute ends the call by a limit of its own', async () => {
    const proxy: ConnectProxy = await proxyThat('mute', {
      onChange: () => proxy.requests.length > 0 && clock.advance(700),
    })
    const { clock, register, leavesNothing } = clientWith({ proxy: proxy.url, timeouts: { proxyMs: 700 } })
    const error = await expectDpsError(register(), 'TIMEOUT', 'proxy')
    expect(error.message).toContain(`from the proxy 127.0.0.1:${proxy.port} within 700 ms`)
    await leavesNothing(proxy)
  })

  it('refuses connections', async () => {
    const proxy = await proxyThat()
    await proxy.close()
    const { register, leavesNothing } = clientWith({ proxy: proxy.url })
    const error = await expectDpsError(register(), 'CONNECTION_REFUSED', 'proxy')
    expect(error.message).toBe(`the proxy 127.0.0.1:${proxy.port} refused the connection`)
    expect(error.hint).toContain('the proxy and not the service')
    await leavesNothing()
  })

  it('has no address', async () => {
    const { register, leavesNothing } = clientWith({ proxy: 'http://no-such-proxy.invalid:3128' })
    const error = await expectDpsError(register(), 'DNS_FAILED', 'proxy')
    expect(error.message).toContain('the name of the proxy, no-such-proxy.invalid,')
    expect(error.hint).toContain('the proxy and not the service')
    await leavesNothing()
  })
})

describe('a call that is cancelled', () => {
  it.each(['mute', 'tunnel'] as const)('while the proxy is %s leaves nothing', async (behaviour) => {
    const controller = new AbortController()
    const proxy = await proxyThat(behaviour, { onChange: () => controller.abort() })
    const { client, clock } = clientWith({ proxy: proxy.url })
    const { code } = await client.register({ signal: controller.signal }).then(unexpected, (error) => error)
    expect(code).toBe('CANCELLED')
    await proxy.idle()
    expect(clock.pending).toBe(0)
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
  })
})

describe('a proxy that wants credentials', () => {
  const credentials = { username: USERNAME, password: PASSWORD }
  const withCredentials = ({ url }: ConnectProxy, username = USERNAME, password = PASSWORD) =>
    url.replace('://', `://${encodeURIComponent(username)}:${encodeURIComponent(password)}@`)

  it('gets them with the first request, from the URL or from fields of their own', async () => {
    const proxy = await proxyThat('tunnel', { credentials })
    expect((await clientWith({ proxy: withCredentials(proxy) }).register()).assignedHub).toBe(HUB)
    await clientWith({ proxy: { url: proxy.url, ...credentials } }).register()
    expect(proxy.connections).toBe(2)
    expect(proxy.requests).toHaveLength(2)
  })

  it('and gets none says so', async () => {
    const proxy = await proxyThat('tunnel', { credentials })
    const { register, leavesNothing } = clientWith({ proxy: proxy.url })
    const error = await expectDpsError(register(), 'PROXY_AUTHENTICATION_REQUIRED', 'proxy')
    expect(error.retryable).toBe(false)
    expect(error.message).toContain('asks for a user name and password')
    await leavesNothing(proxy)
  })

  it('and gets others says so', async () => {
    const proxy = await proxyThat('tunnel', { credentials })
    const { register } = clientWith({ proxy: withCredentials(proxy, USERNAME, 'wrong') })
    const error = await expectDpsError(register(), 'PROXY_AUTHENTICATION_REQUIRED', 'proxy')
    expect(error.message).toContain('does not accept the user name and password it was given')
  })

  it('finds them in nothing that is printed', async () => {
    const proxy = await proxyThat({ status: 403 }, { credentials })
    const url = withCredentials(proxy)
    const resolved = resolveProxy(url)!
    const printed: unknown[] = [resolved, { ...resolved }]
    for (const behaviour of [
      { status: 403 },
      { status: 407 },
      'drop',
      'garbage',
      'drop-after-head',
    ] as const) {
      proxy.behaviour = behaviour
      const { client, events, register } = clientWith({
        proxy: url,
        retry: { maxAttempts: 2, baseDelayMs: 1 },
      })
      printed.push(client, events, await register().then(unexpected, (error) => error))
    }
    for (const bad of [
      `https://${USERNAME}:${PASSWORD}@h`,
      `${USERNAME}:${PASSWORD}@h:1`,
      `http://${USERNAME}:%zz@h`,
      `http://${USERNAME}:${PASSWORD}@h:99999`,
      `http://${USERNAME}:x@h/path`,
    ]) {
      printed.push(await expectDpsError(() => resolveProxy(bad), 'OPTION_INVALID', 'config'))
    }
    const text = printed.map(
      (value) => `${inspect(value, { depth: 9, showHidden: true })}${JSON.stringify(value)}`,
    )
    const basic = Buffer.from(`${USERNAME}:${PASSWORD}`).toString('base64')
    for (const secret of [USERNAME, PASSWORD, encodeURIComponent(PASSWORD), basic, '%zz']) {
      expect(text.join('\n')).not.toContain(secret)
    }
  })
})

describe('a proxy that decrypts', () => {
  it('is refused, its CA named, and what to do said', async () => {
    const proxy = await proxyThat('inspect')
    const { register, leavesNothing } = clientWith({ proxy: proxy.url })
    const error = await expectDpsError(register(), 'SERVER_UNTRUSTED', 'tls')
    expect(error.message).toContain(INSPECTION_CA_NAME)
    expect(error.hint).toContain(`decrypted on its way through the proxy 127.0.0.1:${proxy.port}`)
    expect(error.hint).toContain(`"${INSPECTION_CA_NAME}"`)
    expect(error.hint).toContain('trust.extraRoots')
    await leavesNothing(proxy)
  })

  it('is refused as well where the proxy was found by name', async () => {
    const proxy = await proxyThat('inspect')
    const { register } = clientWith({ proxy: `http://localhost:${proxy.port}` })
    await expectDpsError(register(), 'SERVER_UNTRUSTED', 'tls')
  })

  it('is told apart for a device certificate, which it cannot present', async () => {
    const proxy = await proxyThat('inspect')
    const { register } = clientWith({ proxy: proxy.url, credential: x509(device) })
    const error = await expectDpsError(register(), 'SERVER_UNTRUSTED', 'tls')
    expect(error.hint).toContain('cannot present the device certificate')
  })

  it('is let through where its CA is an extra root, and every assignment says so', async () => {
    const proxy = await proxyThat('inspect')
    const extraRoots = proxy.ca.certPem
    const { register, leavesNothing } = clientWith({ proxy: proxy.url, trust: { roots: 'none', extraRoots } })
    const { assignedHub, connection } = await register()
    expect(assignedHub).toBe(HUB)
    expect(connection.root).toBe(INSPECTION_CA_NAME)
    await leavesNothing(proxy)
  })
})

describe('resolveProxy', () => {
  const header = (proxy: ReturnType<typeof resolveProxy>) => {
    const value = proxy?.authorization?.reveal()
    return value === undefined ? undefined : Buffer.from(value.slice('Basic '.length), 'base64').toString()
  }

  it.each([
    ['http://proxy.test:3128', 'proxy.test:3128', undefined],
    ['HTTP://Proxy.Test', 'proxy.test:80', undefined],
    ['http://[2001:db8::1]:3128/', '[2001:db8::1]:3128', undefined],
    ['http://user@10.0.0.1:8080', '10.0.0.1:8080', 'user:'],
    ['http://us%40er:a%2fb%3Ac@10.0.0.1:8080', '10.0.0.1:8080', 'us@er:a/b:c'],
  ])('reads %s', (url, name, credentials) => {
    const proxy = resolveProxy(url)
    expect(proxy?.name).toBe(name)
    expect(header(proxy)).toBe(credentials)
  })

  it('takes the user name and password as they are where they have fields of their own', () => {
    expect(header(resolveProxy({ url: 'http://p', username: 'ü', password: 'a%40:b' }))).toBe('ü:a%40:b')
    expect(header(resolveProxy({ url: 'http://p', password: 'token' }))).toBe(':token')
  })

  it.each([
    ['no URL', 'proxy.test'],
    ['an empty string', ''],
    ['TLS to the proxy', 'https://proxy.test:443'],
    ['SOCKS', 'socks5://proxy.test:1080'],
    ['no scheme', 'proxy.test:3128'],
    ['port 0', 'http://proxy.test:0'],
    ['a path', 'http://proxy.test/pac'],
    ['a query', 'http://proxy.test?x'],
    ['a number', 3128],
    ['null', null],
    ['an array', ['http://proxy.test']],
    ['no url', {}],
    ['an unknown field', { url: 'http://proxy.test', user: 'x' }],
    ['credentials twice', { url: 'http://u:p@proxy.test', username: 'u' }],
    ['a colon in the user name', 'http://a%3Ab:p@proxy.test'],
    ['a line break in the password', { url: 'http://p', username: 'u', password: 'p\r\nX: y' }],
    ['an encoded line break', 'http://u:p%0d%0aX@proxy.test'],
    ['a password that is no string', { url: 'http://p', username: 'u', password: 1 }],
    ['exceptions of another type', { url: 'http://p', noProxy: 1 }],
    ['an exception of another type', { url: 'http://p', noProxy: [1] }],
    ['an exception that is a URL', { url: 'http://p', noProxy: ['http://a'] }],
    ['an exception with a wildcard in the middle', { url: 'http://p', noProxy: 'a.*.b' }],
    ['a block that is none', { url: 'http://p', noProxy: '10.0.0.0/33' }],
    ['an exception with port 0', { url: 'http://p', noProxy: 'a:0' }],
    ['an empty exception', { url: 'http://p', noProxy: [''] }],
  ])('refuses %s', async (_, option) => {
    const error = await expectDpsError(() => resolveProxy(option as never), 'OPTION_INVALID', 'config')
    expect(error.message).toMatch(/^proxy/)
  })

  it.each([
    // list, host, port, bypassed
    ['', 'a.test', 443, false],
    ['*', 'a.test', 443, true],
    ['a.test', 'a.test', 443, true],
    ['a.test', 'A.Test', 443, true],
    ['A.TEST.', 'a.test', 443, true],
    ['a.test', 'a.test.', 443, true],
    ['a.test', 'x.a.test', 443, true],
    ['a.test', 'xa.test', 443, false],
    ['a.test', 'a.test.evil', 443, false],
    ['.a.test', 'x.a.test', 443, true],
    ['.a.test', 'a.test', 443, false],
    ['*.a.test', 'x.a.test', 443, true],
    ['*.a.test', 'a.test', 443, false],
    ['a.test:8883', 'a.test', 8883, true],
    ['a.test:8883', 'a.test', 443, false],
    ['.a.test:8883', 'x.a.test', 8883, true],
    ['b.test, a.test', 'a.test', 443, true],
    ['b.test a.test', 'a.test', 443, true],
    ['b.test,,a.test,', 'a.test', 443, true],
    ['10.0.0.1', '10.0.0.1', 443, true],
    ['10.0.0.1', '10.0.0.11', 443, false],
    ['10.0.0.1:8883', '10.0.0.1', 8883, true],
    ['10.0.0.1:8883', '10.0.0.1', 443, false],
    ['10.0.0.0/8', '10.200.0.1', 443, true],
    ['10.0.0.0/8', '11.0.0.1', 443, false],
    ['10.0.0.0/8:443', '10.0.0.1', 443, true],
    ['10.0.0.0/8:443', '10.0.0.1', 8883, false],
    ['10.0.0.0/8', '10.test', 443, false],
    ['0.0.0.0/0', 'a.test', 443, false],
    ['2001:db8::/32', '2001:db8:1::1', 443, true],
    ['2001:db8::/32', '2001:db9::1', 443, false],
    ['2001:db8::1', '2001:DB8:0:0::1', 443, true],
    ['[2001:db8::1]:8883', '2001:db8::1', 8883, true],
    ['[2001:db8::1]:8883', '2001:db8::1', 443, false],
    ['1', '10.0.0.1', 443, false],
  ])('with the exceptions "%s": %s port %i without the proxy is %s', (noProxy, host, port, expected) => {
    const url = 'http://proxy.test:3128'
    expect(resolveProxy({ url, noProxy })!.bypasses(host, port)).toBe(expected)
    expect(resolveProxy('environment', { https_proxy: url, no_proxy: noProxy })!.bypasses(host, port)).toBe(
      expected,
    )
  })
})

describe('the environment', () => {
  const set = (variables: Record<string, string>) => {
    for (const [name, value] of Object.entries(variables)) {
      const before = process.env[name]
      process.env[name] = value
      onTestFinished(() => {
        if (before === undefined) delete process.env[name]
        else process.env[name] = before
      })
    }
  }

  it('is not read unless the option says so', async () => {
    const proxy = await proxyThat()
    set({
      https_proxy: proxy.url,
      HTTPS_PROXY: proxy.url,
      all_proxy: proxy.url,
      ALL_PROXY: proxy.url,
      no_proxy: '',
    })
    await clientWith({}).register()
    expect(proxy.connections).toBe(0)
    await clientWith({ proxy: 'environment' }).register()
    expect(proxy.connections).toBe(1)
    set({ no_proxy: '127.0.0.1' })
    await clientWith({ proxy: 'environment' }).register()
    await clientWith({ proxy: proxy.url }).register()
    expect(proxy.connections).toBe(2)
  })

  it.each([
    [{}, undefined],
    [{ http_proxy: 'http://a' }, undefined],
    [{ https_proxy: 'http://a', HTTPS_PROXY: 'http://b', all_proxy: 'http://c' }, 'a:80'],
    [{ HTTPS_PROXY: 'http://b', all_proxy: 'http://c' }, 'b:80'],
    [{ all_proxy: 'http://c', ALL_PROXY: 'http://d' }, 'c:80'],
    [{ ALL_PROXY: 'http://d' }, 'd:80'],
    [{ https_proxy: '', HTTPS_PROXY: 'http://b', ALL_PROXY: 'http://d' }, undefined],
    [{ https_proxy: 'a:3128' }, 'a:3128'],
    [{ https_proxy: 'u:p@a:3128' }, 'a:3128'],
  ])('%j names %s', (variables, name) => {
    expect(resolveProxy('environment', variables)?.name).toBe(name)
  })

  it('names the variable that is wrong, and not its content', async () => {
    const error = await expectDpsError(
      () => resolveProxy('environment', { ALL_PROXY: 'socks5://u:secret@a:1080' }),
      'OPTION_INVALID',
      'config',
    )
    expect(error.message).toContain('ALL_PROXY must begin with http://')
    expect(error.message).not.toContain('secret')
  })

  it('may hold exceptions for other programs, which are no mistake of this one', () => {
    const proxy = resolveProxy('environment', { https_proxy: 'http://a', NO_PROXY: '<local>, b.test' })!
    expect(proxy.bypasses('b.test', 443)).toBe(true)
  })
})
