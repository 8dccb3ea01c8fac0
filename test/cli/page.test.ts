import { once } from 'node:events'
import { type IncomingHttpHeaders, request } from 'node:http'
import { connect, createServer } from 'node:net'
import { networkInterfaces } from 'node:os'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Page } from '../../src/cli/emulator/page.ts'
import { createKit, hold } from '../../src/cli/kit.ts'
import { FAULT_ACTIONS, startEmulator } from '../../src/emulator/index.ts'
import { pki } from './bench.ts'

// Who may see the page and who may ask by it; what it shows is tested in a browser (npm run page).

let page: Page
let url: URL
const emulator = await startEmulator({ pki, onEvent: (event) => page?.event(event) })
emulator.enrollments.addGroup({ groupId: 'presses', attestation: { symmetricKey: {} } })

beforeAll(async () => {
  hold(createKit())
  page = new Page(emulator, FAULT_ACTIONS, ['dps-device register'])
  url = new URL(await page.listen(0))
})
afterAll(async () => {
  await page.close()
  await emulator.close()
})

interface Asked {
  readonly path?: string
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
}

async function ask({ path = '', method = 'GET', headers = {}, body }: Asked) {
  const sent = request(new URL(path, url), { method, headers, agent: false }).end(body)
  const [response] = await once(sent, 'response')
  let text = ''
  for await (const chunk of response.setEncoding('utf8')) text += chunk
  return { status: response.statusCode as number, headers: response.headers as IncomingHttpHeaders, text }
}

const wish = (body: unknown, headers: Readonly<Record<string, string>> = {}) =>
  ask({
    path: 'wish',
    method: 'POST',
    headers: { Origin: url.origin, 'Content-Type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
const enabled = () => emulator.enrollments.list()[0]!.enabled

describe('the page', () => {
  test('is served with a policy that lets nothing in but its own', async () => {
    const { status, headers, text } = await ask({})
    expect(status).toBe(200)
    const policy = headers['content-security-policy'] as string
    for (const part of [
      "default-src 'none'",
      "connect-src 'self'",
      "base-uri 'none'",
      "frame-ancestors 'none'",
    ])
      expect(policy).toContain(part)
    expect(policy).toMatch(/script-src 'sha256-[A-Za-z0-9+/]{43}='; style-src 'sha256-[A-Za-z0-9+/]{43}='/)
    expect(policy).not.toContain('unsafe')
    expect(headers).toMatchObject({
      'cache-control': 'no-store',
      'referrer-policy': 'no-referrer',
      'x-content-type-options': 'nosniff',
    })
    expect(text).not.toMatch(/https?:\/\/|\bsrc=|<link|@import|innerHTML/)
  })

  test('is not found without its token, or with another of the same length', async () => {
    const [, token = ''] = url.pathname.split('/')
    expect(token.length).toBeGreaterThanOrEqual(24)
    const other = `${token.startsWith('A') ? 'B' : 'A'}${token.slice(1)}`
    for (const path of [
      '/',
      '/events',
      `/${other}/`,
      `/${other}/events`,
      `/${token}`,
      `/${token}/x`,
      `/${token}//`,
      '/é',
    ])
      expect((await ask({ path })).status, path).toBe(404)
    expect((await ask({ method: 'DELETE' })).status).toBe(404)
  })

  test('is refused under another name, as one that was made to lead here (DNS rebinding)', async () => {
    for (const Host of [
      'attacker.example',
      `attacker.example:${url.port}`,
      `localhost:${url.port}`,
      '127.0.0.1',
    ]) {
      const { status, text } = await ask({ headers: { Host } })
      expect(status, Host).toBe(421)
      expect(text).not.toContain('<')
    }
  })

  test('listens on 127.0.0.1 and nowhere else', async () => {
    const others = Object.values(networkInterfaces())
      .flatMap((addresses) => addresses ?? [])
      .filter(({ address, family }) => family === 'IPv4' && address !== '127.0.0.1')
      .map(({ address }) => address)
    for (const host of ['127.0.0.2', ...others]) {
      const socket = connect({ host, port: Number(url.port) })
      const [error] = await once(socket, 'error')
      expect((error as NodeJS.ErrnoException).code, host).toBe('ECONNREFUSED')
    }
  })
})

describe('a wish', () => {
  test('of the page itself is granted', async () => {
    expect(await wish({ groupId: 'presses', enabled: false })).toMatchObject({ status: 204, text: '' })
    expect(enabled()).toBe(false)
    expect((await wish({ groupId: 'presses', enabled: true })).status).toBe(204)
    expect(enabled()).toBe(true)
  })

  test('of another page is refused, whatever it pretends', async () => {
    const disable = { groupId: 'presses', enabled: false }
    const forged: Readonly<Record<string, string>>[] = [
      { Origin: 'http://attacker.example' },
      { Origin: 'null' },
      { Origin: `http://localhost:${url.port}` },
      { Origin: `${url.origin}.attacker.example` },
      { 'Content-Type': 'text/plain' },
      { 'Content-Type': 'application/x-www-form-urlencoded' },
    ]
    for (const headers of forged)
      expect((await wish(disable, headers)).status, JSON.stringify(headers)).toBe(403)
    const bare = await ask({
      path: 'wish',
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(disable),
    })
    expect(bare.status).toBe(403)
    expect(enabled()).toBe(true)
  })

  test('that cannot be granted is answered with the reason, and changes nothing', async () => {
    expect(await wish({ fault: 'register=explode' })).toMatchObject({
      status: 200,
      text: expect.stringContaining('an action at register is one of'),
    })
    expect(await wish({ groupId: 'nobody', enabled: false })).toMatchObject({
      status: 200,
      text: expect.stringContaining('there is no enrollment group'),
    })
    expect((await wish({ deviceId: 'x', hub: 'y', enabled: false })).status).toBe(200)
    expect(await wish({ registrationId: { toString: 'x' } })).toMatchObject({
      status: 200,
      text: expect.stringContaining('not said what'),
    })
    expect((await wish({ remove: 999 })).status).toBe(204)
    for (const body of [
      '',
      '{',
      'null',
      '7',
      'x'.repeat(5000),
      JSON.stringify({ groupId: 'presses', enabled: false, x: 'x'.repeat(5000) }),
    ]) {
      const { status } = await wish(body)
      expect(status, body.slice(0, 10)).toBe(400)
    }
    expect(emulator.faults.list()).toEqual([])
    expect(enabled()).toBe(true)
  })

  test('adds and removes faults, which the page is told of', async () => {
    const events = request(new URL('events', url), { agent: false }).end()
    const [response] = await once(events, 'response')
    let text = ''
    response.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk
    })
    const until = async (pattern: RegExp) => {
      while (!pattern.test(text)) await once(response, 'data')
    }
    await until(/event: all\n/)
    await wish({ fault: 'register=429*2' })
    await until(/event: state\n.*"text":"register=429\*2","hits":0/)
    const [, id = ''] = /"faults":\[\{"id":(\d+)/.exec(text) ?? []
    expect(emulator.faults.list()).toHaveLength(1)
    await wish({ remove: Number(id) })
    await until(/"faults":\[\]\}\n\n$/)
    expect(emulator.faults.list()).toEqual([])
    for (const { symmetricKey } of [{ symmetricKey: /"(?:primary|secondary)Key"/ }])
      expect(text).not.toMatch(symmetricKey)
    events.destroy()
  })
})

test('a port that is taken is an error of whoever named it', async () => {
  const taken = createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  const other = new Page(emulator, FAULT_ACTIONS, [])
  await expect(other.listen((taken.address() as { port: number }).port)).rejects.toMatchObject({
    code: 'EADDRINUSE',
  })
  await other.close()
  taken.close()
})
