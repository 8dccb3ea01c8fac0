import {
  HUB_OPTION_NAMES,
  type HubAssignment,
  type HubOptions,
  type HubTarget,
  type HubTransportName,
  resolveHub,
} from '../assignment/hub.ts'
import type { Credential } from '../credential/credential.ts'
import { OrderedCredentials } from '../credential/ordered.ts'
import { DpsError } from '../errors.ts'
import type { IssuedCertificateFacts } from '../issued-certificate.ts'
import type {
  ConnectFunction,
  DpsEvent,
  ProxyOptions,
  RetryOptions,
  TimeoutOptions,
  WaitForClockOptions,
} from '../options/options.ts'
import { checkMs, object, type ResolvedOptions, refuseUnknown, resolveOptions } from '../options/resolve.ts'
import { resolvePolicy, type TlsPolicy } from '../tls/policy.ts'
import { type HttpProxy, resolveProxy } from '../tls/proxy.ts'
import type { ConnectionFacts } from '../transport/transport.ts'

export interface QueueOptions {
  /** Messages and twin requests that may wait at a time, each counted on its own. Default 1 000. */
  maxMessages?: number
  /** Bytes of the messages that may wait, bodies and topics. Default 4 194 304. */
  maxBytes?: number
}

/** What goes on with a connection to a hub, as plain data: the events of connecting, and these. */
export type HubEvent =
  | Extract<
      DpsEvent,
      {
        type:
          | 'phase-started'
          | 'phase-ended'
          | 'fallback'
          | 'credential-fallback'
          | 'waiting-for-clock'
          | 'store-failed'
          | 'warning'
      }
    >
  | {
      readonly type: 'connected'
      readonly hub: string
      readonly connection: ConnectionFacts
      /** Whether the hub had kept the session of the connection before. */
      readonly sessionPresent: boolean
    }
  | {
      /** The connection is gone, and another one will be opened. */
      readonly type: 'disconnected'
      readonly error: DpsError
    }
  | {
      /** Connecting failed, or the connection broke: it is tried again after `delayMs`. */
      readonly type: 'reconnecting'
      /** Failures in a row so far. */
      readonly failures: number
      readonly delayMs: number
      readonly error: DpsError
    }
  | {
      /**
       * The connection is replaced by one with a new token, between 70 and 80 % of the old one's life, by chance; or with a new
       * certificate.
       */
      readonly type: 'renewing'
    }
  | {
      /** The provisioning service is asked again, because of `error`. */
      readonly type: 'reprovisioning'
      readonly error: DpsError
    }
  | {
      /** The device's certificate ends within 30 days, and nothing here renews it. Said once a day. */
      readonly type: 'certificate-expires'
      readonly validUntil: Date
    }
  | {
      /** A certificate is asked for (preview), from the hub or in a registration with the provisioning service. */
      readonly type: 'certificate-requested'
      readonly via: 'hub' | 'dps'
    }
  | {
      /** It came, is what was asked for, and is kept with its key; it is tried with the next connection. */
      readonly type: 'certificate-issued'
      readonly certificate: IssuedCertificateFacts
    }
  | {
      /** The hub has let the device in with it, so the one before is gone. */
      readonly type: 'certificate-in-use'
      readonly certificate: IssuedCertificateFacts
    }
  | {
      /** The hub did not let the device in with it, because of `error`; the device goes on with the one before. */
      readonly type: 'certificate-rejected'
      readonly certificate: IssuedCertificateFacts
      readonly error: DpsError
    }
  | {
      /** No certificate came, or none that is of use: another is asked for after `delayMs`. */
      readonly type: 'certificate-renewal-failed'
      readonly error: DpsError
      readonly delayMs: number
      /** The end of the one that the device has. */
      readonly validUntil: Date
    }
  | {
      /** A handler threw or rejected: a method was answered with 500, a command stays unacknowledged. */
      readonly type: 'handler-failed'
      readonly handler: 'command' | 'method' | 'desired'
      /** Of the method. */
      readonly name?: string
      readonly error: unknown
    }
  | {
      /** The hub does not offer this subscription to this device; it is asked for again with the next connection. */
      readonly type: 'subscription-refused'
      readonly filter: string
      readonly error: DpsError
    }
  | {
      /** The hub sent something that makes no sense here; nothing was done with it. */
      readonly type: 'message-ignored'
      readonly message: string
    }

/**
 * How to reach the hub and stay there. What is said of the provisioning service in the options of the same name holds
 * for the hub.
 */
export interface ConnectHubOptions
  extends Omit<HubOptions, 'transport' | 'port' | 'connectTo' | 'gatewayHostName'> {
  /**
   * Or several of one device in order of preference, as in `ProvisioningClientOptions`: each connection begins with the first,
   * whichever the device registered with, so that one that was issued meanwhile is used.
   */
  credential: Credential | readonly Credential[]
  /** Or both in order of preference, with the fallback of `ProvisioningClient`. Default `'mqtt'`. */
  transport?: HubTransportName | readonly HubTransportName[]
  /** One for whatever transport is used, or one for each. Default 8883 for `mqtt`, 443 for `mqtt-ws`. */
  port?: number | Readonly<Partial<Record<HubTransportName, number>>>
  gatewayHostName?: string
  connectTo?: string
  proxy?: string | ProxyOptions
  connect?: ConnectFunction
  waitForClock?: WaitForClockOptions
  lastContact?: Date | number
  /**
   * `totalMs` bounds the first connection, retries included; `pollMs` an answer about the twin; those of the phases hold
   * for every connection.
   */
  timeouts?: TimeoutOptions
  /**
   * `maxAttempts` bounds the first connection alone: one that was open once comes back for as long as it takes. Each
   * wait is uniform between 0 and a ceiling that begins at `baseDelayMs` and doubles up to `maxDelayMs`; where the hub
   * refused the device, or something in between is not trusted, it is between one minute and an hour.
   */
  retry?: RetryOptions
  queue?: QueueOptions
  /** Ends the attempt to connect first; later `close()` does. */
  signal?: AbortSignal
  onEvent?: (event: HubEvent) => void
}

/** The options after validation: complete and copied. */
export interface ResolvedHub {
  readonly base: ResolvedOptions
  readonly credentials: OrderedCredentials
  readonly policy: TlsPolicy
  readonly proxy: HttpProxy | undefined
  /** In order of preference, at least one. */
  readonly transports: readonly HubTransportName[]
  readonly maxMessages: number
  readonly maxBytes: number
  readonly signal: AbortSignal | undefined
  readonly onEvent: ((event: HubEvent) => void) | undefined
  targetOf(assignment: HubAssignment, transport: HubTransportName): HubTarget
}

const SHARED = [
  'proxy',
  'connect',
  'waitForClock',
  'lastContact',
  'timeouts',
  'retry',
] as const satisfies readonly (keyof ConnectHubOptions)[]

const OWN = [
  'credential',
  'queue',
  'signal',
  'onEvent',
] as const satisfies readonly (keyof ConnectHubOptions)[]

/** Options of `connectHub`, by name. */
export const CONNECT_HUB_OPTION_NAMES: ReadonlySet<string> = new Set([...HUB_OPTION_NAMES, ...SHARED, ...OWN])

/** Looked at by nothing: there is no id scope at a hub. */
const NO_ID_SCOPE = '0'

/**
 * Validates the options once.
 *
 * @throws DpsError OPTION_INVALID, TLS_POLICY_INVALID or TRUST_ANCHOR_INVALID, phase `config`
 */
export function resolveConnectHub(options: ConnectHubOptions): ResolvedHub {
  refuseUnknown('', object('options', options), CONNECT_HUB_OPTION_NAMES)
  const { transport = 'mqtt', port, queue = {}, signal, onEvent, ...rest } = options
  if (onEvent !== undefined && typeof onEvent !== 'function') throw invalid('onEvent', 'must be a function')
  if (signal !== undefined && typeof signal?.addEventListener !== 'function') {
    throw invalid('signal', 'must be an AbortSignal')
  }
  const base = resolveOptions({
    idScope: NO_ID_SCOPE,
    ...pick(options, SHARED),
    credential: options.credential,
    ...(options.clock !== undefined && { clock: options.clock }),
    transport: transport as HubTransportName,
    ...(port !== undefined && { port }),
  })
  const transports = base.transports as readonly HubTransportName[]
  if (!transports.every((name) => name === 'mqtt' || name === 'mqtt-ws')) {
    throw invalid('transport', "must be 'mqtt', 'mqtt-ws', or a list of those")
  }
  refuseUnknown('queue.', object('queue', queue), new Set(['maxMessages', 'maxBytes']))
  const { maxMessages = 1000, maxBytes = 4_194_304 } = queue
  const hubOptions = Object.fromEntries(
    Object.entries(rest).filter(([name, value]) => HUB_OPTION_NAMES.has(name) && value !== undefined),
  )
  const targetOf = (assignment: HubAssignment, name: HubTransportName): HubTarget => {
    const chosen = base.portFor(name)
    return resolveHub(assignment, {
      ...hubOptions,
      transport: name,
      ...(chosen !== undefined && { port: chosen }),
    })
  }
  return Object.freeze({
    base,
    credentials: OrderedCredentials.of(base.credential),
    policy: resolvePolicy(options.tls, options.trust),
    proxy: resolveProxy(options.proxy),
    transports,
    maxMessages: checkMs('queue.maxMessages', maxMessages, 1),
    maxBytes: checkMs('queue.maxBytes', maxBytes, 1),
    signal,
    onEvent,
    targetOf,
  })
}

export function pick<T extends object, K extends keyof T>(from: T, names: readonly K[]): Partial<Pick<T, K>> {
  const picked: Partial<Pick<T, K>> = {}
  for (const name of names) if (from[name] !== undefined) picked[name] = from[name]
  return picked
}

export function invalid(name: string, rule: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', `${name} ${rule}`)
}
