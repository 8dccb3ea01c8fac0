import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { brotliDecompressSync } from 'node:zlib'
import type { Emulator, EmulatorEvent, FAULT_ACTIONS, Fault } from '../../emulator/index.ts'
import { kit } from '../kit.ts'
import { faultText, parseFault, wordsOf } from './faults.ts'
import packed from './page/page.html'
import { Timeline } from './timeline.ts'

type Table = typeof FAULT_ACTIONS

const LOOPBACK = '127.0.0.1'
const LARGEST_BODY = 4096
/** A page that takes nothing any more is cut off; it asks again, and is told all. */
const LARGEST_BACKLOG = 1024 * 1024
const MOST_LISTENERS = 16
/** The newest are shown. */
const MOST_DEVICES = 200

/** Faults that the page has a switch for. */
const SWITCHES: readonly (readonly [text: string, label: string])[] = [
  ['register=429*forever', 'Throttle'],
  ['register=500*forever', 'Fail with 500'],
  ['poll=silence*forever', 'Fall silent'],
  ['connect=refuse:5*forever', 'Refuse to connect'],
  ['accept=reset*forever', 'Reset TCP'],
  ['poll-reply=failed*forever', 'Fail to allocate'],
]

const hashOf = (html: string, element: string): string => {
  const [, content = ''] = new RegExp(`<${element}>([^]*?)</${element}>`).exec(html) ?? []
  return `'sha256-${createHash('sha256').update(content).digest('base64')}'`
}

type Wish = Readonly<Record<string, unknown>>

/** The live page of an emulator, to this machine alone, under an address that only its user is told. */
export class Page {
  readonly #emulator: Emulator
  readonly #table: Table
  readonly #commands: readonly string[]
  readonly #timeline = new Timeline()
  readonly #listeners = new Set<ServerResponse>()
  readonly #ids = new Map<number, Fault>()
  readonly #token = randomBytes(18).toString('base64url')
  readonly #server: Server
  readonly #html = brotliDecompressSync(Buffer.from(packed, 'base64')).toString()
  #lastId = 0
  #said = ''

  constructor(emulator: Emulator, table: Table, commands: readonly string[]) {
    this.#emulator = emulator
    this.#table = table
    this.#commands = commands
    this.#server = createServer((request, response) => {
      this.#serve(request, response).catch((error: unknown) => {
        if (!kit.DpsError.is(error)) process.emitWarning(error as Error)
        if (response.headersSent) response.destroy()
        else end(response, 400, kit.DpsError.is(error) ? kit.spoken(error.message) : 'The request is broken.')
      })
    })
  }

  /** Resolves to the address of the page. */
  async listen(port: number): Promise<string> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(port, LOOPBACK, () => resolve())
    })
    this.#server.on('error', (error) => process.emitWarning(error))
    return `http://${this.#host}/${this.#token}/`
  }

  event(event: EmulatorEvent): void {
    const change = this.#timeline.add(event)
    if (change !== undefined) this.#tell('lane', change)
    // What was set in motion by it is told once, and only where it changes anything.
    if (event.type !== 'packet') this.#tellState()
  }

  close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()))
    this.#server.closeAllConnections()
    return closed
  }

  get #host(): string {
    return `${LOOPBACK}:${(this.#server.address() as { port: number }).port}`
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.setHeader('Cache-Control', 'no-store')
    response.setHeader('X-Content-Type-Options', 'nosniff')
    response.setHeader('Referrer-Policy', 'no-referrer')
    response.setHeader('Cross-Origin-Resource-Policy', 'same-origin')
    // Another name that leads here is one that somebody has made lead here.
    if (request.headers.host !== this.#host) return end(response, 421, 'This is not the host of the page.')
    const [, token = '', rest, more] = (request.url ?? '').split('/')
    if (!same(token, this.#token) || more !== undefined) return end(response, 404, 'There is nothing here.')
    const { method } = request
    if (rest === '' && method === 'GET') return this.#page(response)
    if (rest === 'events' && method === 'GET') return this.#listen(response)
    if (rest === 'wish' && method === 'POST') {
      const { origin, 'content-type': type } = request.headers
      if (origin !== `http://${this.#host}` || type !== 'application/json')
        return end(response, 403, 'Only the page itself may ask for that.')
      const wish = await bodyOf(request)
      try {
        this.#grant(wish)
      } catch (error) {
        // A slip of the user, to be read on the page: no browser need complain of it too.
        if (!kit.DpsError.is(error)) throw error
        return end(response, 200, kit.spoken(error.message))
      }
      this.#tellState()
      return end(response, 204)
    }
    return end(response, 404, 'There is nothing here.')
  }

  #page(response: ServerResponse): void {
    response.setHeader('Content-Type', 'text/html; charset=utf-8')
    response.setHeader(
      'Content-Security-Policy',
      `default-src 'none'; connect-src 'self'; script-src ${hashOf(this.#html, 'script')}; style-src ${hashOf(this.#html, 'style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'`,
    )
    response.end(this.#html)
  }

  #listen(response: ServerResponse): void {
    if (this.#listeners.size >= MOST_LISTENERS) {
      end(response, 503, 'Too many pages are open.')
      return
    }
    response.writeHead(200, { 'Content-Type': 'text/event-stream' })
    this.#listeners.add(response)
    response.once('close', () => this.#listeners.delete(response))
    const { address, port, idScope } = this.#emulator
    send(response, 'all', {
      about: `${address}:${port}, id scope ${idScope}`,
      commands: this.#commands,
      policy: kit.RECOMMENDED_SUITES.security,
      switches: SWITCHES,
      words: Object.keys(this.#table).flatMap((step) =>
        wordsOf(this.#table, step as keyof Table).map((word) => `${step}=${word}`),
      ),
      lanes: this.#timeline.all(),
      state: this.#state(),
    })
  }

  #tell(name: string, data: unknown): void {
    for (const response of this.#listeners) send(response, name, data)
  }

  #tellState(): void {
    if (this.#listeners.size === 0) return
    const state = this.#state()
    const text = JSON.stringify(state)
    if (text === this.#said) return
    this.#said = text
    this.#tell('state', state)
  }

  #state() {
    const { enrollments, faults, hub } = this.#emulator
    const devices = hub.listDevices()
    const inForce = faults.list()
    for (const [id, fault] of this.#ids) if (!inForce.includes(fault)) this.#ids.delete(id)
    const known = new Set(this.#ids.values())
    for (const fault of inForce) if (!known.has(fault)) this.#ids.set(++this.#lastId, fault)
    return {
      enrollments: enrollments.list(),
      devices: devices
        .slice(-MOST_DEVICES)
        .map(({ hub: at, deviceId, moduleId, enabled, authentication, connectionId }) => ({
          hub: at,
          deviceId,
          moduleId,
          enabled,
          authentication,
          connected: connectionId !== undefined,
        })),
      hidden: Math.max(0, devices.length - MOST_DEVICES),
      faults: [...this.#ids].map(([id, { spec, hits }]) => ({ id, text: faultText(spec), hits })),
    }
  }

  #grant(wish: Wish): void {
    const { enrollments, faults, hub } = this.#emulator
    const enable = wish.enabled === true
    if (typeof wish.fault === 'string') faults.add(parseFault(wish.fault, this.#table, 'The fault'))
    else if (typeof wish.remove === 'number') this.#ids.get(wish.remove)?.remove()
    else if (typeof wish.deviceId === 'string' && typeof wish.hub === 'string') {
      const { deviceId, moduleId } = wish
      const device = { deviceId, hub: wish.hub, ...(typeof moduleId === 'string' ? { moduleId } : {}) }
      if (enable) hub.enableDevice(device)
      else hub.disableDevice(device)
    } else {
      const { groupId, registrationId } = wish
      if (typeof groupId !== 'string' && typeof registrationId !== 'string')
        throw kit.usage('It is not said what is to change')
      const ref = typeof groupId === 'string' ? { groupId } : { registrationId: registrationId as string }
      if (enable) enrollments.enable(ref)
      else enrollments.disable(ref)
    }
  }
}

const same = (a: string, b: string): boolean =>
  a.length === b.length && timingSafeEqual(Buffer.from(a.replace(/[^\w-]/g, '?')), Buffer.from(b))

function end(response: ServerResponse, status: number, text?: string): void {
  response.statusCode = status
  response.setHeader('Content-Type', 'text/plain; charset=utf-8')
  // What is left of a request is not read.
  if (status >= 400) response.setHeader('Connection', 'close')
  response.end(text)
}

function send(response: ServerResponse, name: string, data: unknown): void {
  if (response.writableLength > LARGEST_BACKLOG) response.destroy()
  else response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`)
}

async function bodyOf(request: IncomingMessage): Promise<Wish> {
  let text = ''
  try {
    for await (const chunk of request.setEncoding('utf8')) {
      text += chunk
      if (text.length > LARGEST_BODY) break
    }
    const wish: unknown = JSON.parse(text)
    if (typeof wish === 'object' && wish !== null && text.length <= LARGEST_BODY) return wish as Wish
  } catch {
    // As anything else that is no object, or is too large to be one that was meant.
  }
  throw kit.usage('The request is not a JSON object')
}
