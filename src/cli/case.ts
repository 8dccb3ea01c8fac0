import type { Credential, Identity } from '../credential/credential.ts'
import type { DpsError, DpsPhase } from '../errors.ts'
import type * as Library from '../index.ts'
import type { ProvisioningClientOptions } from '../options/options.ts'
import type { HttpProxy } from '../tls/proxy.ts'
import { kit } from './kit.ts'
import type { Options } from './options.ts'
import { NOBODY, type Reach, reach, type Trip } from './reach.ts'
import type { TransportName } from './settings.ts'

/** The two ports that lead to the service. */
export type Way = 'mqtt' | 'web'

export const wayOf = (transport: TransportName): Way => (transport === 'mqtt' ? 'mqtt' : 'web')

export const DEFAULT_TIMEOUT_S = 20

/** One device and its way to the service: what was given, and what the checks have found out so far. */
export class Case {
  readonly library: typeof Library
  readonly options: Options
  readonly signal: AbortSignal
  readonly onPhase: (phase: DpsPhase) => void
  /** All but the trust, which has a check of its own. */
  readonly settings: Omit<ProvisioningClientOptions, 'credential' | 'idScope'>
  readonly host: string
  /** What is dialled. */
  readonly address: string
  readonly idScope: string | undefined
  /** What the device would register over. */
  readonly transports: readonly TransportName[]
  readonly timeoutMs: number
  readonly ports: Readonly<Record<Way, number>>
  readonly factory: boolean
  readonly register: boolean
  /** Whether to have none is an error. */
  needsCredential: boolean
  /** Nothing is sent: then a symmetric key need not say whose it is. */
  offline = false
  /** What must not be printed, as it was given. */
  readonly secrets: (string | Buffer)[] = []
  credential: Credential | undefined
  /** Once it has been read and its dates are right. */
  identity: Identity | undefined
  proxy: HttpProxy | undefined
  /** How far the server's clock is ahead, ms. */
  aheadMs: number | undefined
  /** Whether the service has let this device in. */
  admitted = false
  /** What is signed with, where it is a symmetric key. */
  sasKey: string | undefined
  /** What the service refused this device with. */
  refusal: DpsError | undefined
  trust: ProvisioningClientOptions['trust']
  readonly #reached = new Map<Way, Promise<Reach>>()

  constructor(
    library: typeof Library,
    options: Options,
    signal: AbortSignal,
    onPhase: (phase: DpsPhase) => void,
  ) {
    const { text, number, flag } = kit
    this.library = library
    this.options = options
    this.signal = signal
    this.onPhase = onPhase
    const web = number(options, 'web-port') ?? number(options, 'port')
    this.ports = { mqtt: number(options, 'port') ?? 8883, web: web ?? 443 }
    const { mqtt, web: webPort } = this.ports
    const { trust: _, ...settings } = kit.settingsOf(
      new Map([...options].filter(([name]) => !TRUST.has(name))),
    )
    this.settings = { ...settings, port: { mqtt, 'mqtt-ws': webPort, https: webPort } }
    this.host = settings.host ?? kit.DEFAULT_HOST
    this.address = settings.connectTo ?? this.host
    this.idScope = text(options, 'id-scope')
    this.transports = kit.transportsOf(options)
    this.timeoutMs = kit.timeoutOf(options) ?? DEFAULT_TIMEOUT_S * 1000
    this.factory = flag(options, 'factory')
    this.register = flag(options, 'register')
    this.needsCredential = this.factory
    for (const proxy of [settings.proxy, ...PROXY_VARIABLES.map((name) => process.env[name])]) {
      // By the text: what is no URL may hold a password all the same.
      const [, user, password = ''] = /^(?:[^/]*\/\/)?([^:]*):(.*)@/.exec(`${proxy ?? ''}`) ?? []
      if (password === '') continue
      const plain = password.replace(/%([0-9a-f]{2})/gi, (_, hex) =>
        String.fromCharCode(Number.parseInt(hex, 16)),
      )
      this.secrets.push(password, plain, `${user}:${plain}`)
    }
  }

  /** The proxy that stands between, if one does. */
  proxyFor(way: Way): HttpProxy | undefined {
    return this.proxy?.bypasses(this.address, this.ports[way]) ? undefined : this.proxy
  }

  /** One connection for each port, however many checks look at it. */
  reach(way: Way): Promise<Reach> {
    const made =
      this.#reached.get(way) ?? reach({ ...this.#trip(), port: this.ports[way], askTime: way === 'web' })
    this.#reached.set(way, made)
    // Both are under way at once, and the other may be waited for first.
    made.then(
      ({ aheadMs }) => {
        this.aheadMs ??= aheadMs
      },
      () => {},
    )
    return made
  }

  /** One connection of its own. */
  handshake(way: Way, tls: NonNullable<Trip['tls']>): Promise<Reach> {
    return reach({ ...this.#trip(), port: this.ports[way], tls })
  }

  #trip(): Omit<Trip, 'port'> {
    const { library, signal, timeoutMs, onPhase, identity } = this
    const settings = { ...this.settings, trust: this.trust ?? {} }
    const presented = identity?.tls && { ...identity, checkDates: () => {} }
    const credential = presented === undefined ? NOBODY : { load: async () => presented }
    return { library, settings, signal, timeoutMs, onPhase, credential }
  }

  /** Whether a registration could take this way. */
  chosen(way: Way): boolean {
    return this.transports.some((name) => wayOf(name) === way)
  }

  /** Whether it need not: it was not chosen, or another one that was gets through. */
  async spare(way: Way): Promise<boolean> {
    if (!this.chosen(way)) return true
    const other = way === 'mqtt' ? 'web' : 'mqtt'
    return this.chosen(other) && (await this.reach(other)).tls !== undefined
  }

  /** A connection that was verified, and by preference one that a registration would take. */
  async verified(): Promise<readonly [Way, Reach & { tls: NonNullable<Reach['tls']> }] | undefined> {
    const ways = this.chosen('mqtt') ? (['mqtt', 'web'] as const) : (['web', 'mqtt'] as const)
    const both = await Promise.all(ways.map((way) => this.reach(way)))
    // Whoever meets a server again does not look at its certificates.
    const certificates = both.map((reached) => reached.certificates).find(({ length }) => length > 0) ?? []
    for (const [i, reached] of both.entries()) {
      if (reached.tls !== undefined) return [ways[i]!, { ...reached, tls: reached.tls, certificates }]
    }
    return undefined
  }

  /** A client as the device would make it, with one transport. */
  client(transport: TransportName, credential = this.credential!) {
    return kit.withOwnCertFile(
      this.trust,
      () =>
        new this.library.ProvisioningClient({
          ...this.settings,
          trust: this.trust ?? {},
          idScope: this.idScope!,
          credential,
          transport,
          onEvent: (event) => {
            if (event.type === 'phase-started') this.onPhase(event.phase)
          },
        }),
    )
  }
}

export const PROXY_VARIABLES = ['https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY']
const TRUST = new Set(['roots', 'extra-root'])
