import { X509Certificate } from 'node:crypto'
import type { PeerCertificate } from 'node:tls'
import { type Clock, systemClock } from '../clock.ts'
import type { Credential, Identity } from '../credential/credential.ts'
import { DpsError } from '../errors.ts'
import type { TlsOptions, TrustOptions } from '../options/options.ts'
import {
  apiVersion,
  checkMs,
  port as checkPort,
  hostName,
  object,
  refuseUnknown,
  token,
  userAgentOf,
} from '../options/resolve.ts'
import { printable } from '../printable.ts'
import {
  HUB_API_VERSION,
  HUB_WEBSOCKET_PATH,
  hubClientId,
  hubResource,
  hubUserName,
} from '../protocol/hub-address.ts'
import { isHubHost, isHubIdentity } from '../protocol/hub-names.ts'
import { IDENTITY_FIELDS, policyOptions } from '../tls/context.ts'
import { hostNameFault, serverNameOf } from '../tls/identity.ts'
import { checkIdentityAgainstPolicy, resolvePolicy, type TlsPolicy } from '../tls/policy.ts'

/** What is needed of an `Assignment`: also what an application has kept of one, or knows of its own. */
export interface HubAssignment {
  readonly assignedHub: string | undefined
  readonly deviceId: string | undefined
  readonly connectionProfile?: string | undefined
}

/** How the hub is reached. */
export type HubTransportName = 'mqtt' | 'mqtt-ws'

export interface HubOptions {
  /** `'mqtt-ws'` is MQTT in a WebSocket, for networks that let only port 443 through. Default `'mqtt'`. */
  transport?: HubTransportName
  /** Default 8883 for `mqtt`, 443 for `mqtt-ws`. */
  port?: number
  /**
   * An IoT Edge or other transparent gateway: dialled and verified in place of the hub, which is still what user name and
   * token name. Its own root usually belongs in `trust.extraRoots`. Default none.
   */
  gatewayHostName?: string
  /** The address to dial in place of the hub or the gateway, whose name is still what is verified. Default none. */
  connectTo?: string
  /** Connects as this module of the device. Default: as the device itself. */
  moduleId?: string
  /** The DTDL model the device implements, such as `dtmi:com:example:Pump;1`. Default none. */
  modelId?: string
  /** Device API version of the hub. Default `2021-04-12`. */
  apiVersion?: string
  /** Informational product name sent to the hub. Default `dps-device-client/<version>`. */
  userAgent?: string
  /** True throws away what the hub has kept for this device, commands of the cloud among it. Default false. */
  cleanSession?: boolean
  /** MQTT keep-alive, seconds: 1 to 1177, since the hub looks after 1.5 times that and never later than 1767. Default 180. */
  keepAliveSeconds?: number
  /** Life of a token, seconds: 60 to 86 400. The hub ends the connection when it has passed. Default 3600. */
  tokenLifetimeSeconds?: number
  trust?: TrustOptions
  tls?: TlsOptions
  /** For tests. Default: the system's. */
  clock?: Clock
}

/**
 * The TLS policy as options of `tls.connect`. Prints without the private key. `sessionResumption` has no part in it: the
 * application resumes sessions or does not.
 */
export interface HubTlsOptions {
  minVersion: 'TLSv1.2'
  maxVersion: 'TLSv1.2' | 'TLSv1.3'
  ciphers: string
  ecdhCurve: string
  sigalgs: string
  /** Roots, PEM. */
  ca: string[]
  /** SNI; empty for an IP address, which is not sent. */
  servername: string
  /** Said, because the environment variable NODE_TLS_REJECT_UNAUTHORIZED decides about what is not said. */
  rejectUnauthorized: true
  /** Without subject fallback and without partial wildcards. */
  checkServerIdentity: (host: string, certificate: PeerCertificate) => Error | undefined
  cert?: string | Buffer
  key?: string | Buffer
  passphrase?: string
  pfx?: string | Buffer
  privateKeyEngine?: string
  privateKeyIdentifier?: string
  clientCertEngine?: string
}

/** Options for `connect(options)` of MQTT.js 5, written down here so that its types are not needed. */
export interface HubMqttOptions extends Partial<HubTlsOptions> {
  protocol: 'mqtts' | 'wss'
  /** What is dialled. */
  host: string
  port: number
  /** Of the WebSocket. */
  path?: string
  protocolVersion: 4
  clientId: string
  username: string
  /** A token made for this connection; absent with X.509. */
  password?: string
  clean: boolean
  /** Seconds. */
  keepalive: number
  /** 0: MQTT.js would come back with the same token for ever. Ask for new options and connect again. */
  reconnectPeriod: 0
  /** Of the WebSocket: the TLS policy is in here then, because MQTT.js takes only a part of it from the top. */
  wsOptions?: HubTlsOptions & { perMessageDeflate: false; headers: { 'User-Agent': string } }
}

/** The names and numbers of a connection to a hub, all checked, and nothing of a credential. Frozen. */
export interface HubTarget {
  readonly transport: HubTransportName
  /** The name that is verified and sent as SNI: the hub's, or the gateway's. Lower case. */
  readonly host: string
  /** What is dialled: `host`, or `connectTo`. */
  readonly address: string
  readonly port: number
  /** Lower case. */
  readonly hub: string
  readonly deviceId: string
  readonly moduleId: string | undefined
  readonly clientId: string
  readonly userName: string
  /** What tokens are signed for, percent-encoded. */
  readonly resource: string
  readonly cleanSession: boolean
  readonly keepAliveSeconds: number
  readonly tokenLifetimeSeconds: number
  readonly userAgent: string
  /** Of the WebSocket (`wss://<host>:<port><path>`, sub-protocol `mqtt`); undefined for `mqtt`. */
  readonly path: string | undefined
}

/** All that is needed to connect to the hub. Frozen; prints without secrets. */
export interface HubSettings extends HubTarget {
  /** The policy, and the certificate as it was when the settings were made. */
  readonly tls: Readonly<HubTlsOptions>
  /**
   * A token (MQTT password) for one connection, made now from the credential as it is now; undefined where the TLS
   * handshake authenticates.
   *
   * @throws DpsError of phase `config`
   */
  password(): Promise<string | undefined>
  /**
   * Options for one `connect` of MQTT.js, made now from the credential as it is now. A new object each time, since
   * MQTT.js writes to it.
   *
   * @throws DpsError of phase `config`
   */
  mqtt(): Promise<HubMqttOptions>
}

export const HUB_OPTION_NAMES: ReadonlySet<string> = new Set([
  'transport',
  'port',
  'gatewayHostName',
  'connectTo',
  'moduleId',
  'modelId',
  'apiVersion',
  'userAgent',
  'cleanSession',
  'keepAliveSeconds',
  'tokenLifetimeSeconds',
  'trust',
  'tls',
  'clock',
])

const MAX_KEEP_ALIVE_S = 1177
const DAY_S = 86_400

/** Not printed: a PKCS#11 URI may carry a PIN. */
const SECRET_FIELDS: ReadonlySet<string> = new Set([
  'key',
  'passphrase',
  'pfx',
  'privateKeyIdentifier',
  'password',
])

/**
 * Where and as whom a device connects to the hub it was assigned to: for an MQTT client of one's own.
 *
 * The certificate is read once, here; tokens and the options for MQTT.js come from the credential as it is when they are
 * asked for. No packet is sent.
 *
 * https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub
 *
 * @throws DpsError HUB_PROFILE_UNSUPPORTED for a hub that speaks MQTT 5; OPTION_INVALID, TLS_POLICY_INVALID,
 *   TRUST_ANCHOR_INVALID or an error of the credential; all phase `config`
 */
export async function hubSettings(
  assignment: HubAssignment,
  credential: Credential,
  options: HubOptions = {},
): Promise<HubSettings> {
  const target = resolveHub(assignment, options)
  const policy = resolvePolicy(options.tls, options.trust)
  const { clock = systemClock } = options
  if (typeof credential?.load !== 'function') {
    throw invalid('credential', 'must be made by x509(), symmetricKey() or sasSigner()')
  }
  const load = async (): Promise<Identity> => {
    const identity = await credential.load()
    checkIdentityAgainstPolicy(policy, identity)
    return identity
  }
  const passwordOf = (identity: Identity) => hubToken(identity, target, clock)
  const tls = Object.freeze(tlsOptions(target.host, policy, await load()))
  return Object.freeze({
    ...target,
    tls,
    password: async () => passwordOf(await load()),
    mqtt: async () => {
      const identity = await load()
      return mqttOptions(target, tlsOptions(target.host, policy, identity), await passwordOf(identity))
    },
  })
}

/** A token for the hub, or undefined where the TLS handshake authenticates. There is no policy name in it. */
export function hubToken(
  identity: Identity,
  { resource, tokenLifetimeSeconds }: Pick<HubTarget, 'resource' | 'tokenLifetimeSeconds'>,
  clock: Clock,
): Promise<string | undefined> {
  return identity.token(resource, Math.floor(clock.now() / 1000) + tokenLifetimeSeconds)
}

/**
 * Everything about the connection but TLS and the credential.
 *
 * @throws DpsError HUB_PROFILE_UNSUPPORTED or OPTION_INVALID, phase `config`
 */
export function resolveHub(assignment: HubAssignment, options: HubOptions = {}): HubTarget {
  object('assignment', assignment)
  refuseUnknown('', object('options', options), HUB_OPTION_NAMES)
  checkConnectionProfile(assignment)
  const { transport = 'mqtt', moduleId, modelId, gatewayHostName, connectTo, cleanSession = false } = options
  if (transport !== 'mqtt' && transport !== 'mqtt-ws')
    throw invalid('transport', "must be 'mqtt' or 'mqtt-ws'")
  if (typeof cleanSession !== 'boolean') throw invalid('cleanSession', 'must be true or false')
  const { assignedHub, deviceId } = assignment
  if (typeof assignedHub !== 'string' || !isHubHost(assignedHub)) {
    throw invalid('assignment.assignedHub', 'must be the host name of a hub')
  }
  checkIdentity('assignment.deviceId', deviceId)
  if (moduleId !== undefined) checkIdentity('moduleId', moduleId)
  const hub = assignedHub.toLowerCase()
  const address = { hub, deviceId, moduleId }
  const userAgent = userAgentOf(options.userAgent)
  const host = gatewayHostName === undefined ? hub : hostName('gatewayHostName', gatewayHostName)
  return Object.freeze({
    transport,
    host,
    address: connectTo === undefined ? host : hostName('connectTo', connectTo),
    port: checkPort('port', options.port ?? (transport === 'mqtt' ? 8883 : 443)),
    hub,
    deviceId,
    moduleId,
    clientId: hubClientId(address),
    userName: hubUserName({
      ...address,
      apiVersion: apiVersion(options.apiVersion ?? HUB_API_VERSION, HUB_API_VERSION),
      modelId:
        modelId === undefined
          ? undefined
          : token(
              'modelId',
              modelId,
              /^dtmi:[A-Za-z0-9_:;.]{1,2048}$/,
              'a DTMI, such as dtmi:com:example:Pump;1',
            ),
      userAgent,
    }),
    resource: hubResource(address),
    cleanSession,
    keepAliveSeconds: seconds('keepAliveSeconds', options.keepAliveSeconds ?? 180, 1, MAX_KEEP_ALIVE_S),
    tokenLifetimeSeconds: seconds('tokenLifetimeSeconds', options.tokenLifetimeSeconds ?? 3600, 60, DAY_S),
    userAgent,
    path: transport === 'mqtt' ? undefined : HUB_WEBSOCKET_PATH,
  })
}

/**
 * A hub says by its profile which protocol it speaks; none means `classic`, the only one that is spoken here.
 *
 * @throws DpsError HUB_PROFILE_UNSUPPORTED, phase `config`
 */
export function checkConnectionProfile({ connectionProfile, assignedHub }: HubAssignment): void {
  if (connectionProfile === undefined || connectionProfile === null) return
  if (typeof connectionProfile === 'string' && connectionProfile.toLowerCase() === 'classic') return
  const profile = printable(String(connectionProfile), 40)
  throw new DpsError(
    'HUB_PROFILE_UNSUPPORTED',
    'config',
    `the hub ${printable(String(assignedHub), 80)} has the connection profile "${profile}", not "classic"`,
  )
}

function tlsOptions(host: string, policy: TlsPolicy, identity: Identity): HubTlsOptions {
  const own: Record<string, unknown> = {}
  for (const field of IDENTITY_FIELDS) {
    const value = identity.tls?.[field]
    if (value !== undefined) own[field] = typeof value === 'string' ? value : Buffer.from(value)
  }
  return withoutSecretsInPrint<HubTlsOptions>({
    ...policyOptions(policy),
    servername: serverNameOf(host),
    rejectUnauthorized: true,
    checkServerIdentity: (_, certificate) => hostNameFault(new X509Certificate(certificate.raw), host),
    ...own,
  })
}

function mqttOptions(target: HubTarget, tls: HubTlsOptions, password: string | undefined): HubMqttOptions {
  const { transport, address, port, clientId, userName, cleanSession, keepAliveSeconds, userAgent } = target
  const common = {
    host: address,
    port,
    protocolVersion: 4,
    clientId,
    username: userName,
    ...(password !== undefined && { password }),
    clean: cleanSession,
    keepalive: keepAliveSeconds,
    reconnectPeriod: 0,
  } as const
  if (transport === 'mqtt')
    return withoutSecretsInPrint<HubMqttOptions>({ ...tls, ...common, protocol: 'mqtts' })
  const headers = { 'User-Agent': userAgent }
  return withoutSecretsInPrint<HubMqttOptions>({
    ...common,
    protocol: 'wss',
    path: HUB_WEBSOCKET_PATH,
    wsOptions: withoutSecretsInPrint({ ...tls, perMessageDeflate: false, headers }),
  })
}

/** Plain properties, because MQTT.js and `tls` copy, write and read them; only printing leaves some of them out. */
function withoutSecretsInPrint<T extends object>(options: T): T {
  const print = () =>
    Object.fromEntries(
      Object.entries(options).map(([name, value]) => [name, SECRET_FIELDS.has(name) ? '[redacted]' : value]),
    )
  for (const printer of ['toJSON', Symbol.for('nodejs.util.inspect.custom')]) {
    Object.defineProperty(options, printer, { value: print })
  }
  return options
}

function checkIdentity(name: string, value: unknown): asserts value is string {
  if (typeof value !== 'string' || !isHubIdentity(value)) {
    throw invalid(name, "must be 1 to 128 letters, digits and - . _ : % * ? ! ( ) , = @ $ '")
  }
}

function seconds(name: string, value: unknown, min: number, max: number): number {
  if (checkMs(name, value, min) > max) throw invalid(name, `must be a whole number from ${min} to ${max}`)
  return value as number
}

function invalid(name: string, rule: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', `${name} ${rule}`)
}
