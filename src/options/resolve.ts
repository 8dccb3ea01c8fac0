import { version } from '../../package.json'
import { type Clock, MAX_TIMER_MS, systemClock } from '../clock.ts'
import type { Credential } from '../credential/credential.ts'
import { DpsError, type DpsPhase } from '../errors.ts'
import { printable } from '../printable.ts'
import { ISSUANCE_API_VERSION } from '../protocol/issuance.ts'
import { checkIdScope } from '../protocol/wire.ts'
import type { TransportName } from '../transport/transport.ts'
import type {
  ConnectFunction,
  DpsEvent,
  MqttOptions,
  ProvisioningClientOptions,
  RetryOptions,
  TlsOptions,
  TransportChoice,
  TrustOptions,
  WaitForClockOptions,
} from './options.ts'

export const DEFAULT_HOST = 'global.azure-devices-provisioning.net'
/** The stable version every region and cloud has taken since 2019. */
export const DEFAULT_API_VERSION = '2019-03-31'

export type ResolvedRetry = Readonly<Required<RetryOptions>>

/** The options after validation: complete, copied and frozen. */
export interface ResolvedOptions {
  readonly idScope: string
  /** A list has at least one. */
  readonly credential: Credential | readonly Credential[]
  readonly host: string
  /** The caller's port for a transport, or undefined for the transport's own. */
  readonly portFor: (transport: string) => number | undefined
  readonly connectTo: string | undefined
  /** In order of preference, at least one. */
  readonly transports: readonly TransportChoice[]
  readonly pipelining: boolean
  readonly connect: ConnectFunction | undefined
  readonly trust: Readonly<TrustOptions>
  readonly tls: Readonly<TlsOptions>
  readonly apiVersion: string
  /** For a registration with a certificate signing request: the caller's too, where one was named. */
  readonly issuanceApiVersion: string
  readonly userAgent: string
  readonly waitForClock: Readonly<Required<WaitForClockOptions>> | undefined
  /** Ms since the epoch; 0 where there is none. */
  readonly lastContactMs: number
  readonly clock: Clock
  readonly totalMs: number
  readonly limits: Readonly<Partial<Record<DpsPhase, number>>>
  readonly retry: ResolvedRetry
  readonly onEvent: ((event: DpsEvent) => void) | undefined
  /** What is allowed but most often a mistake, one sentence each. */
  readonly warnings: readonly string[]
}

const TIMEOUTS = {
  totalMs: 120_000,
  dnsMs: 10_000,
  tcpMs: 15_000,
  proxyMs: 15_000,
  tlsMs: 30_000,
  connectMs: 15_000,
  subscribeMs: 15_000,
  registerMs: 30_000,
  pollMs: 30_000,
} as const

const RETRY = {
  maxAttempts: 8,
  maxThrottled: 8,
  baseDelayMs: 1000,
  maxDelayMs: 60_000,
  startDelayMs: 0,
  pollIntervalMs: 2000,
} as const

export const CLIENT_OPTIONS: ReadonlySet<string> = new Set([
  'idScope',
  'credential',
  'host',
  'port',
  'connectTo',
  'transport',
  'mqtt',
  'proxy',
  'connect',
  'trust',
  'tls',
  'apiVersion',
  'userAgent',
  'waitForClock',
  'lastContact',
  'clock',
  'timeouts',
  'retry',
  'onEvent',
])

/**
 * Validates the options once. The caller's objects are copied, never written to.
 *
 * @throws DpsError OPTION_INVALID, phase `config`, naming the option and its rule
 */
export function resolveOptions(options: ProvisioningClientOptions): ResolvedOptions {
  object('options', options)
  // A misspelt option that is silently ignored is a policy that silently does not apply.
  refuseUnknown('', options, CLIENT_OPTIONS)
  const { clock = systemClock, onEvent } = options
  if (onEvent !== undefined && typeof onEvent !== 'function') throw invalid('onEvent', 'must be a function')
  object('clock', clock)
  for (const method of ['now', 'monotonic', 'random', 'sleep', 'after'] as const) {
    if (typeof clock[method] !== 'function') throw invalid('clock', `must have the method ${method}`)
  }
  const timeouts = numbers('timeouts', options.timeouts, TIMEOUTS, 1)
  const given = numbers('retry', options.retry, RETRY, 0)
  const retry = Object.freeze({ ...given, maxThrottled: options.retry?.maxThrottled ?? given.maxAttempts })
  for (const name of ['maxAttempts', 'maxThrottled'] as const) {
    if (retry[name] < 1) throw invalid(`retry.${name}`, 'must be at least 1')
  }
  const idScope = checkIdScope(options.idScope)
  const host = hostName('host', options.host ?? DEFAULT_HOST)
  return Object.freeze({
    idScope,
    credential: checkCredential(options.credential),
    host,
    portFor: ports(options.port),
    connectTo: options.connectTo === undefined ? undefined : hostName('connectTo', options.connectTo),
    transports: transports(options.transport ?? 'mqtt'),
    pipelining: pipelining(options.mqtt ?? {}),
    connect: connectFunction(options),
    trust: Object.freeze({ ...object('trust', options.trust ?? {}) }),
    tls: Object.freeze({ ...object('tls', options.tls ?? {}) }),
    apiVersion: apiVersion(options.apiVersion ?? DEFAULT_API_VERSION),
    issuanceApiVersion: apiVersion(options.apiVersion ?? ISSUANCE_API_VERSION),
    userAgent: userAgentOf(options.userAgent),
    waitForClock: options.waitForClock === undefined ? undefined : waitForClock(options.waitForClock),
    lastContactMs: options.lastContact === undefined ? 0 : instant('lastContact', options.lastContact),
    clock,
    totalMs: timeouts.totalMs,
    limits: Object.freeze({
      dns: timeouts.dnsMs,
      tcp: timeouts.tcpMs,
      proxy: timeouts.proxyMs,
      tls: timeouts.tlsMs,
      connect: timeouts.connectMs,
      subscribe: timeouts.subscribeMs,
      register: timeouts.registerMs,
      poll: timeouts.pollMs,
    }),
    retry,
    onEvent,
    warnings: Object.freeze(cloudWarnings(idScope, host)),
  })
}

export const apiVersion = (given: string, such = DEFAULT_API_VERSION): string =>
  token(
    'apiVersion',
    given,
    /^\d{4}-\d{2}-\d{2}(-preview)?$/,
    `a date such as ${such}, or one that -preview follows`,
  )

export const userAgentOf = (given = `dps-device-client/${version}`): string =>
  token('userAgent', given, /^[\x20-\x7e]{1,128}$/, '1 to 128 printable characters of ASCII')

/** An id scope of one cloud sent to the endpoint of another is refused as if no such device existed. */
export function cloudWarnings(idScope: string, host: string): string[] {
  const scopeInChina = idScope.toLowerCase().startsWith('0cn')
  if (scopeInChina === host.endsWith('.cn') || !/\.azure-devices-provisioning\.[a-z]+$/.test(host)) return []
  return scopeInChina
    ? [`idScope "${idScope}" is of the cloud in China, whose endpoint ends in .cn; host is "${host}"`]
    : [`host "${host}" is of the cloud in China, whose id scopes begin with 0cn; idScope is "${idScope}"`]
}

/** @throws DpsError OPTION_INVALID unless `value` is a whole number of milliseconds that a timer can hold */
export function checkMs(name: string, value: unknown, min: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > MAX_TIMER_MS) {
    throw invalid(name, `must be a whole number from ${min} to ${MAX_TIMER_MS}`)
  }
  return value
}

/** @throws DpsError OPTION_INVALID when `value` has a property that nothing reads */
export function refuseUnknown(prefix: string, value: object, known: ReadonlySet<string>): void {
  for (const name of Object.keys(value)) {
    if (!known.has(name)) {
      throw invalid(`${prefix}${printable(name, 40)}`, `is not an option; known are ${[...known].join(', ')}`)
    }
  }
}

function numbers<T extends Readonly<Record<string, number>>>(
  group: string,
  given: Partial<Record<keyof T, number>> | undefined,
  defaults: T,
  min: number,
): Readonly<Record<keyof T, number>> {
  const values: Record<string, number> = { ...defaults }
  object(group, given ?? {})
  refuseUnknown(`${group}.`, given ?? {}, new Set(Object.keys(defaults)))
  for (const [name, value] of Object.entries(given ?? {})) {
    if (value !== undefined) values[name] = checkMs(`${group}.${name}`, value, min)
  }
  return Object.freeze(values) as Readonly<Record<keyof T, number>>
}

/** @throws DpsError OPTION_INVALID unless `value` is an object */
export function object<T extends object>(name: string, value: T): T {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw invalid(name, 'must be an object')
  return value
}

/** @throws DpsError OPTION_INVALID unless `value` is a host name or an IP address; lower case comes out */
export function hostName(name: string, value: unknown): string {
  // Two colons at least: one is a port, which has an option of its own.
  const ip = typeof value === 'string' && /^[0-9A-Fa-f:.]+$/.test(value) && value.split(':').length > 2
  if (
    typeof value !== 'string' ||
    (!ip && !/^(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?$/.test(value))
  ) {
    throw invalid(name, 'must be a host name or an IP address, without scheme, path or port')
  }
  return value.toLowerCase()
}

export function checkCredential<T extends ProvisioningClientOptions['credential']>(
  given: T,
): T | readonly Credential[] {
  const list: readonly Credential[] = Array.isArray(given) ? given : [given]
  if (list.length === 0) throw invalid('credential', 'must have at least one credential in its list')
  for (const [index, one] of list.entries()) {
    if (typeof one?.load !== 'function') {
      throw invalid(
        'credential',
        'must be made by x509(), symmetricKey() or sasSigner(), or be a list of those',
      )
    }
    if (list.indexOf(one) !== index) throw invalid('credential', 'names a credential twice')
  }
  return Array.isArray(given) ? Object.freeze([...list]) : given
}

const TRANSPORT_NAMES: readonly TransportName[] = ['mqtt', 'mqtt-ws', 'https']

function transports(given: TransportChoice | readonly TransportChoice[]): readonly TransportChoice[] {
  const list = Array.isArray(given) ? (given as readonly TransportChoice[]) : [given as TransportChoice]
  if (list.length === 0) throw invalid('transport', 'must name at least one transport')
  for (const [index, choice] of list.entries()) {
    const known = TRANSPORT_NAMES.includes(choice as TransportName)
    const own =
      typeof choice === 'object' && typeof choice?.open === 'function' && typeof choice.name === 'string'
    if (!known && !own) {
      throw invalid('transport', "must be 'mqtt', 'mqtt-ws', 'https', a Transport, or a list of those")
    }
    if (list.indexOf(choice) !== index) throw invalid('transport', 'names a transport twice')
  }
  return Object.freeze([...list])
}

function pipelining(given: MqttOptions): boolean {
  refuseUnknown('mqtt.', object('mqtt', given), new Set(['pipelining']))
  const { pipelining = false } = given
  if (typeof pipelining !== 'boolean') throw invalid('mqtt.pipelining', 'must be true or false')
  return pipelining
}

function ports(given: ProvisioningClientOptions['port']): (transport: string) => number | undefined {
  if (typeof given !== 'object' || given === null) {
    const one = given === undefined ? undefined : port('port', given)
    return () => one
  }
  refuseUnknown('port.', given, new Set(TRANSPORT_NAMES))
  const each = new Map(
    Object.entries(given).flatMap(([name, value]) =>
      value === undefined ? [] : [[name, port(`port.${name}`, value)] as const],
    ),
  )
  return (transport) => each.get(transport)
}

/** @throws DpsError OPTION_INVALID unless `value` is a port */
export function port(name: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > 65_535) {
    throw invalid(name, 'must be a whole number from 1 to 65535')
  }
  return value
}

/** `proxy` itself is resolved where it is used: it may hold a password, which is not copied here. */
function connectFunction({ connect, proxy }: ProvisioningClientOptions): ConnectFunction | undefined {
  if (connect === undefined) return undefined
  if (typeof connect !== 'function')
    throw invalid('connect', 'must be a function that returns a Duplex stream')
  if (proxy !== undefined) throw invalid('connect', 'and `proxy` exclude each other: give one of the two')
  return connect
}

const DEFAULT_CLOCK_WAIT_MS = 90_000

function waitForClock(given: WaitForClockOptions): Readonly<Required<WaitForClockOptions>> {
  refuseUnknown('waitForClock.', object('waitForClock', given), new Set(['until', 'limitMs']))
  const { until = 'plausible', limitMs = DEFAULT_CLOCK_WAIT_MS } = given
  if (until !== 'plausible' && until !== 'systemd-timesyncd' && typeof until !== 'function') {
    throw invalid('waitForClock.until', "must be 'plausible', 'systemd-timesyncd' or a function")
  }
  return Object.freeze({ until, limitMs: checkMs('waitForClock.limitMs', limitMs, 0) })
}

/** @throws DpsError OPTION_INVALID unless `value` is a Date or a number; ms since the epoch come out */
export function instant(name: string, value: Date | number): number {
  const ms = value instanceof Date ? value.getTime() : value
  if (typeof ms !== 'number' || !Number.isFinite(ms))
    throw invalid(name, 'must be a Date or ms since the epoch')
  return ms
}

/** @throws DpsError OPTION_INVALID unless `value` is text that matches `rule`, which is `what` */
export function token(name: string, value: unknown, rule: RegExp, what: string): string {
  if (typeof value !== 'string' || !rule.test(value)) {
    throw invalid(name, `must be ${what}`)
  }
  return value
}

function invalid(name: string, rule: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', `${name} ${rule}`)
}
