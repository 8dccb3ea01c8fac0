import { type Clock, MAX_TIMER_MS, systemClock } from '../clock.ts'
import { checkNames, invalid, isObject } from './check.ts'
import {
  EnrollmentBook,
  type EnrollmentGroup,
  type Enrollments,
  type IndividualEnrollment,
} from './enrollments.ts'
import { FaultScript, type Faults } from './faults.ts'
import { strike } from './fronts/exchange.ts'
import { httpFront } from './fronts/http.ts'
import { type EmulatorTlsOptions, Listener, type ServerCertificate } from './fronts/listener.ts'
import { mqttFront } from './fronts/mqtt.ts'
import { webSocketFront } from './fronts/websocket.ts'
import { hubFront, LARGEST_HUB_FRAME } from './hub/front.ts'
import { type EmulatedHub, HubService } from './hub/hub.ts'
import { type Issuance, IssuingAuthority } from './issuance/authority.ts'
import { type EmulatorEvent, type EmulatorLog, Journal } from './journal.ts'
import {
  createPki,
  type DeviceCertificate,
  type DeviceCertificateOptions,
  der,
  issueCertificate,
  issueDeviceCertificate,
  type Pki,
  SERVER_NAMES,
} from './pki.ts'
import { ProvisioningService, type Registration } from './service.ts'

export interface AssigningOptions {
  /**
   * How often a device has to poll: the number of replies that say `assigning`, the one to the register request
   * included. 0 answers the register request with the result. Default 1.
   */
  polls?: number
  /**
   * The service's `retry-after`, seconds; null leaves it out. Default 3, the number in the service's documentation; set
   * 0 for quick tests.
   */
  retryAfterSeconds?: number | null
}

/** How the hubs renew issued certificates (preview). */
export interface HubRenewalOptions {
  /** From 202 to the certificate, ms. Default 50; 0 for at once. */
  delayMs?: number
  /** False answers 403010, as a hub does whose tier lacks the feature. Default true. */
  supported?: boolean
}

export interface EmulatorOptions {
  /**
   * Port to listen on, or several that serve alike: MQTT, MQTT over WebSocket and HTTPS are told apart by what the
   * client sends. 0 takes a free one. Default 0.
   */
  port?: number | readonly number[]
  /** Address to listen on. Default `'127.0.0.1'`. */
  address?: string
  /** Default `'0ne00000000'`. */
  idScope?: string
  /** Certificates made before by {@link createPki}, to save their making. Default: new ones. */
  pki?: Pki
  /** What the server presents in place of `pki.server`: for tests of what a client must refuse. */
  serverCertificate?: ServerCertificate
  /** Time, for dates, tokens and keep-alive. Default: the system's clock. */
  clock?: Clock
  /** Devices and groups to enroll at the start. Default none. */
  enrollments?: readonly (IndividualEnrollment | EnrollmentGroup)[]
  /**
   * Host names of the linked hubs, at least one. They are served here too, told apart by the server name that the client
   * asks for (SNI). Default `['emulated-hub.azure-devices.net']`.
   */
  hubs?: readonly string[]
  /**
   * Server names of IoT Edge gateways, which are asked for in place of a hub's: a device behind one still names its hub
   * in the user name. Default none.
   */
  gateways?: readonly string[]
  assigning?: AssigningOptions
  hubRenewal?: HubRenewalOptions
  /** Answer 429 to more than 5 polls in 10 s of one device, as the service does. Default false. */
  pollLimit?: boolean
  /**
   * A disabled enrollment is refused at connect (`'refuse'`) or takes part and ends with status `disabled`
   * (`'report'`). Default `'refuse'`.
   */
  disabledEnrollment?: 'refuse' | 'report'
  /**
   * A device that registers while a registration of it is running on another open connection gets 409203
   * (`'conflict'`), or starts over (`'allow'`). Default `'conflict'`.
   */
  concurrentRegistrations?: 'conflict' | 'allow'
  /** Quality of service of replies; never more than was subscribed. Default 0. */
  replyQos?: 0 | 1
  /**
   * Whether packets may follow CONNECT before CONNACK (MQTT 3.1.1, section 3.1.4), or end the connection. Default
   * `'accept'`.
   */
  pipelining?: 'accept' | 'drop'
  /** Default: TLS 1.2 with the service's recommended suites. */
  tls?: EmulatorTlsOptions
  /** How many connections, and how many packets, `log` keeps. Default 1 000. */
  logSize?: number
  /** Called with everything that happens, in order. The first error it throws becomes a process warning. */
  onEvent?: (event: EmulatorEvent) => void
}

/** What was assigned so far. */
export interface Registrations {
  readonly size: number
  get(registrationId: string): Registration | undefined
  list(): readonly Registration[]
  /** Forgets one device, or all: the next registration is again an initial assignment. */
  forget(registrationId?: string): void
}

/** Options that lead a client to the hubs here; spread them into those of `connectHub`. */
export interface EmulatorHubOptions {
  port: number
  connectTo: string
  trust: { roots: 'none'; extraRoots: string }
}

/** Options that lead a client here; spread them into those of `ProvisioningClient`. */
export interface EmulatorClientOptions {
  idScope: string
  host: string
  port: number
  connectTo: string
  trust: { roots: 'none'; extraRoots: string }
}

export interface Emulator {
  /** The first port. */
  readonly port: number
  readonly ports: readonly number[]
  readonly address: string
  /** The name clients verify: `global.azure-devices-provisioning.net`. */
  readonly host: string
  readonly idScope: string
  /** PEM of both roots; the server's chain ends in the first. */
  readonly roots: readonly [string, string]
  readonly pki: Pki
  readonly enrollments: Enrollments
  readonly registrations: Registrations
  /** The hubs that devices are assigned to. */
  readonly hub: EmulatedHub
  /** The certificate authority that answers certificate signing requests. */
  readonly issuance: Issuance
  readonly faults: Faults
  readonly log: EmulatorLog
  /** Number of connections open now. */
  readonly openConnections: number
  issueDeviceCertificate(options: DeviceCertificateOptions): Promise<DeviceCertificate>
  clientOptions(): EmulatorClientOptions
  hubOptions(): EmulatorHubOptions
  /** Lets the process end while the emulator still listens; connections that are open keep it alive until they close. */
  unref(): void
  /** Stops listening and destroys every connection; resolves when all is gone. May be called again. */
  close(): Promise<void>
}

const HOST = 'global.azure-devices-provisioning.net'
const MQTT_CONNECT = 0x10
const UPPER_CASE_A = 0x41
const UPPER_CASE_Z = 0x5a
/** What DPS assigns, in any cloud: never the provisioning service itself. */
const HUB_NAME = /\.azure-devices\.(?:net|cn|us)$/

const OPTIONS = [
  'port',
  'address',
  'idScope',
  'pki',
  'serverCertificate',
  'clock',
  'enrollments',
  'hubs',
  'gateways',
  'assigning',
  'hubRenewal',
  'pollLimit',
  'disabledEnrollment',
  'concurrentRegistrations',
  'replyQos',
  'pipelining',
  'tls',
  'logSize',
  'onEvent',
] satisfies readonly (keyof EmulatorOptions)[]

const isGroup = (enrollment: IndividualEnrollment | EnrollmentGroup): enrollment is EnrollmentGroup =>
  isObject(enrollment) && 'groupId' in enrollment

function checkOptions(options: EmulatorOptions): void {
  checkNames('what the emulator is started with', options, OPTIONS)
  const { clock } = options
  for (const method of ['now', 'monotonic', 'random', 'sleep', 'after'] as const) {
    if (clock !== undefined && typeof clock?.[method] !== 'function')
      throw invalid(`\`clock\` must have the method ${method}`)
  }
  for (const name of ['hubs', 'gateways', 'enrollments'] as const) {
    if (!Array.isArray(options[name] ?? [])) throw invalid(`\`${name}\` must be a list`)
  }
  const whole = (value: number, max: number): boolean => Number.isInteger(value) && value >= 0 && value <= max
  const ports = Array.isArray(options.port) ? options.port : [options.port ?? 0]
  if (ports.length === 0 || !ports.every((port) => whole(port, 65_535))) {
    throw invalid('`port` must be an integer from 0 to 65535, or a list of them')
  }
  const { idScope = '0' } = options
  if (typeof idScope !== 'string' || !/^[A-Za-z0-9]+$/.test(idScope)) {
    throw invalid('`idScope` must be letters and digits')
  }
  if (options.hubs !== undefined && options.hubs.length === 0) {
    throw invalid('`hubs` must name at least one hub')
  }
  for (const name of [...(options.hubs ?? []), ...(options.gateways ?? [])]) {
    if (typeof name !== 'string') throw invalid('`hubs` and `gateways` must be host names')
    if (name.toLowerCase() === HOST) throw invalid('`hubs` and `gateways` must not name the service itself')
  }
  const { polls = 1, retryAfterSeconds = 3 } = options.assigning ?? {}
  if (!whole(polls, Number.MAX_SAFE_INTEGER))
    throw invalid('`assigning.polls` must be an integer of at least 0')
  if (retryAfterSeconds !== null && !whole(retryAfterSeconds, Number.MAX_SAFE_INTEGER)) {
    throw invalid('`assigning.retryAfterSeconds` must be an integer of at least 0, or null')
  }
  if (!whole(options.hubRenewal?.delayMs ?? 0, MAX_TIMER_MS)) {
    throw invalid(`\`hubRenewal.delayMs\` must be an integer from 0 to ${MAX_TIMER_MS}`)
  }
  if (!whole(options.logSize ?? 0, 10_000_000)) {
    throw invalid('`logSize` must be an integer from 0 to 10000000')
  }
}

/** Certificates for the names that the common one does not hold. */
async function certificatesFor(
  names: readonly string[],
  pki: Pki,
  clock: Clock,
): Promise<Map<string, ServerCertificate>> {
  const covered = (name: string): boolean =>
    SERVER_NAMES.includes(name) || SERVER_NAMES.includes(name.replace(/^[^.]+/, '*'))
  const missing = names.map((name) => name.toLowerCase()).filter((name) => !covered(name))
  if (missing.length === 0) return new Map()
  const { chainPem, keyPem } = await issueCertificate({
    subject: missing[0]!.slice(0, 64),
    key: pki.server.keyPem,
    issuer: pki.serverIntermediate,
    sans: missing,
    eku: ['serverAuth'],
    clock,
  })
  return new Map(missing.map((name) => [name, { cert: chainPem, key: keyPem }]))
}

/**
 * Starts an emulated Device Provisioning Service and the hubs behind it: the device protocols over real TLS, with
 * certificates of its own, strict about every field, and with faults on demand.
 *
 * @throws DpsError OPTION_INVALID, phase `config`
 * @throws the system's error if a port cannot be listened on
 */
export async function startEmulator(options: EmulatorOptions = {}): Promise<Emulator> {
  checkOptions(options)
  const clock = options.clock ?? systemClock
  const idScope = options.idScope ?? '0ne00000000'
  const address = options.address ?? '127.0.0.1'
  const enrollments = new EnrollmentBook()
  for (const enrollment of options.enrollments ?? []) {
    if (isGroup(enrollment)) enrollments.addGroup(enrollment)
    else enrollments.addIndividual(enrollment)
  }
  const pki = options.pki ?? (await createPki({ clock }))
  const logSize = options.logSize ?? 1000
  const journal = new Journal(logSize, options.onEvent)
  const faults = new FaultScript()
  const { polls = 1, retryAfterSeconds = 3 } = options.assigning ?? {}
  const hubs = [...(options.hubs ?? ['emulated-hub.azure-devices.net'])]
  const gateways = new Set((options.gateways ?? []).map((name) => name.toLowerCase()))
  const authority = new IssuingAuthority({
    der: await der(),
    clock,
    onIssued: (certificate) => journal.emit({ type: 'certificate-issued', certificate }),
    faults: (registrationId, id) => strike({ faults, journal }, { id }, 'issue', registrationId),
  })
  const { delayMs: renewalDelayMs = 50 } = options.hubRenewal ?? {}
  const hub = new HubService({
    clock,
    hubs,
    logSize,
    authority,
    enrollments,
    renewalDelayMs,
    renewalSupported: options.hubRenewal?.supported ?? true,
    onTelemetry: (message) => journal.emit({ type: 'telemetry', message }),
  })
  const service = new ProvisioningService({
    idScope,
    clock,
    enrollments,
    hubs,
    polls,
    retryAfter: retryAfterSeconds === null ? undefined : String(retryAfterSeconds),
    pollLimit: options.pollLimit ?? false,
    disabledEnrollment: options.disabledEnrollment ?? 'refuse',
    concurrentRegistrations: options.concurrentRegistrations ?? 'conflict',
    authority,
    onRegistration: (registration, credential) => {
      hub.assign(registration, credential)
      journal.emit({ type: 'registration', registration })
    },
  })
  const mqtt = mqttFront({
    service,
    faults,
    journal,
    clock,
    replyQos: options.replyQos ?? 0,
    pipelining: options.pipelining ?? 'accept',
  })
  const http = httpFront({
    service,
    faults,
    journal,
    clock,
    webSocket: webSocketFront(mqtt, journal),
    operations: true,
  })
  const hubMqtt = hubFront({
    hub,
    faults,
    journal,
    clock,
    pipelining: options.pipelining ?? 'accept',
    isGateway: (serverName) => gateways.has(serverName),
  })
  const hubHttp = httpFront({
    service,
    faults,
    journal,
    clock,
    webSocket: webSocketFront(hubMqtt, journal, LARGEST_HUB_FRAME),
    operations: false,
  })
  const certificate = options.serverCertificate ?? { cert: pki.server.chainPem, key: pki.server.keyPem }
  const isHub = (serverName: string): boolean =>
    gateways.has(serverName) || HUB_NAME.test(serverName) || hub.knows(serverName)
  const listener = new Listener({
    address,
    ports: typeof options.port === 'number' ? [options.port] : (options.port ?? [0]),
    certificate,
    certificates: options.serverCertificate
      ? new Map()
      : await certificatesFor([...hubs, ...gateways], pki, clock),
    tls: options.tls ?? {},
    clock,
    faults,
    journal,
    frontFor: (serverName, firstByte) => {
      const toHub = serverName !== undefined && isHub(serverName.toLowerCase())
      if (firstByte === MQTT_CONNECT) return toHub ? hubMqtt : mqtt
      // HTTP begins with the name of a method.
      if (firstByte < UPPER_CASE_A || firstByte > UPPER_CASE_Z) return undefined
      return toHub ? hubHttp : http
    },
  })
  const ports = await listener.listen()
  const port = ports[0] ?? 0

  let closing: Promise<void> | undefined
  return Object.freeze({
    port,
    ports,
    address,
    host: HOST,
    idScope,
    roots: [pki.roots[0].certPem, pki.roots[1].certPem] as const,
    pki,
    enrollments,
    registrations: Object.freeze({
      get size() {
        return service.registrations().length
      },
      get: (registrationId: string) => service.registration(registrationId),
      list: () => service.registrations(),
      forget: (registrationId?: string) => service.forget(registrationId),
    }),
    hub: hub as EmulatedHub,
    issuance: authority as Issuance,
    faults,
    log: journal,
    get openConnections() {
      return listener.open
    },
    issueDeviceCertificate: (device: DeviceCertificateOptions) => issueDeviceCertificate(pki, device, clock),
    clientOptions: () => ({
      idScope,
      host: HOST,
      port,
      connectTo: address,
      trust: { roots: 'none' as const, extraRoots: pki.roots[0].certPem },
    }),
    hubOptions: () => ({
      port,
      connectTo: address,
      trust: { roots: 'none' as const, extraRoots: pki.roots[0].certPem },
    }),
    unref: () => listener.unref(),
    close: () => {
      hub.renewals.close()
      closing ??= listener.close()
      return closing
    },
  })
}
