import { createHmac, randomUUID, timingSafeEqual, X509Certificate } from 'node:crypto'
import { DpsError } from '../../errors.ts'
import { invalid } from '../check.ts'
import { type EnrollmentKeys, generateSymmetricKey, type SymmetricKeyAttestation } from '../enrollments.ts'
import type { DeviceCredential, PresentedCertificate, RefusalReason, Registration } from '../service.ts'
import { commonName, parseSas } from '../service.ts'
import { type RenewalAnswer, type RenewalDelivery, type RenewalSettings, Renewals } from './renewal.ts'
import {
  commandTopic,
  desiredTopic,
  type HubPrincipal,
  type MessageProperties,
  methodTopic,
  type Subscription,
} from './topics.ts'
import { deviceView, patched, type TwinDocument, type TwinProperties } from './twin.ts'

/** A device, or one module of it: by its id, or with more said. */
export type HubDeviceRef =
  | string
  | {
      readonly deviceId: string
      readonly moduleId?: string
      /** Host name of the hub, where the device is known to several. Default: the first that knows it. */
      readonly hub?: string
    }

export interface HubDeviceOptions {
  /** 1 to 128 characters; letter case matters, as it does to the service. */
  deviceId: string
  /** Adds a module of the device; the device itself need not be there. Default none. */
  moduleId?: string
  /** Host name of the hub. Default: the first of the emulator's `hubs`. */
  hub?: string
  /**
   * Symmetric keys, of which those that are left out are generated, or the device's own certificates, PEM, of which only
   * the fingerprint counts.
   */
  authentication: SymmetricKeyAttestation | { x509: { certificate: string; secondary?: string } }
}

/** A device as listed: no keys. */
export interface HubDeviceInfo {
  readonly hub: string
  readonly deviceId: string
  readonly moduleId: string | undefined
  readonly enabled: boolean
  readonly authentication: 'symmetricKey' | 'x509'
  /** `id` of its connection in the emulator's log, if it is connected. */
  readonly connectionId: number | undefined
  /** Commands that it has not acknowledged. */
  readonly queuedCommands: number
}

/** A message that a device sent. */
export interface TelemetryRecord extends MessageProperties {
  readonly hub: string
  readonly deviceId: string
  readonly moduleId: string | undefined
  readonly connectionId: number
  /** Wall clock, ms. */
  readonly at: number
  readonly body: Buffer
  readonly qos: 0 | 1
  /** Whether the device marked it as sent again. */
  readonly dup: boolean
  /** Whether it was left with the hub at CONNECT, for the case that the connection breaks. */
  readonly will: boolean
}

export type TelemetryMatch = (message: TelemetryRecord) => boolean

export interface Telemetry {
  /** Messages received since the start, those included that are no longer kept. */
  readonly received: number
  /** The newest messages, oldest first: as many as `logSize`. */
  list(match?: TelemetryMatch): readonly TelemetryRecord[]
  /**
   * The oldest kept message that matches, or else the first that comes.
   *
   * @throws the reason of `signal` when it aborts
   */
  wait(match?: TelemetryMatch, options?: { signal?: AbortSignal }): Promise<TelemetryRecord>
  clear(): void
}

export interface CommandOptions {
  properties?: Readonly<Record<string, string>>
  /** Default: a new UUID. */
  messageId?: string
  correlationId?: string
  contentType?: string
  contentEncoding?: string
}

export interface SentCommand {
  readonly messageId: string
  /**
   * Resolves when the device has acknowledged it, or it will never be delivered: the device asked for a clean session,
   * was removed, or was sent it 10 times.
   */
  readonly settled: Promise<'acknowledged' | 'discarded'>
}

export interface MethodResult {
  readonly status: number
  /** The answer as JSON, or undefined where it was empty. */
  readonly payload: unknown
}

export interface MethodOptions {
  /** Default 30 000. */
  timeoutMs?: number
}

/** How a connection ends: close_notify and FIN, FIN alone, or RST. */
export type HubDisconnect = 'drop' | 'no-close-notify' | 'reset'

/**
 * The hubs that devices are assigned to, driven from here as a service's application would drive them. Where a device is
 * named and there is none, OPTION_INVALID is thrown.
 */
export interface EmulatedHub {
  /**
   * Adds a device or module, replacing one of the same name. Devices that the provisioning service assigns are added by
   * themselves, with the credential they registered with.
   *
   * @returns the symmetric keys, or undefined for X.509
   * @throws DpsError OPTION_INVALID, phase `config`
   */
  addDevice(device: HubDeviceOptions): EnrollmentKeys | undefined
  /** Ends its connection and forgets it, its twin and its commands; false if there was none. */
  removeDevice(device: HubDeviceRef): boolean
  /** Ends its connection and refuses further ones. */
  disableDevice(device: HubDeviceRef): void
  enableDevice(device: HubDeviceRef): void
  listDevices(): readonly HubDeviceInfo[]
  /** Ends its connection; false if it has none. */
  disconnect(device: HubDeviceRef, how?: HubDisconnect): boolean
  readonly telemetry: Telemetry
  /**
   * Queues a command for the device, which gets it now or when it subscribes. At most 50 wait.
   *
   * @throws DpsError OPTION_INVALID, phase `config`, where the queue is full or the body larger than 64 KB
   */
  sendCommand(device: HubDeviceRef, body: string | Uint8Array, options?: CommandOptions): SentCommand
  /**
   * Calls a method of the device and waits for its answer.
   *
   * @throws DpsError NOT_FOUND (404103) if it is not connected or has not subscribed, TIMEOUT (504101),
   *   CONNECTION_LOST, or REPLY_MALFORMED if the answer is no JSON
   */
  invokeMethod(
    device: HubDeviceRef,
    name: string,
    payload?: unknown,
    options?: MethodOptions,
  ): Promise<MethodResult>
  twin(device: HubDeviceRef): TwinDocument
  /**
   * Changes desired properties, null removing what it names, and tells the device if it listens.
   *
   * @returns the new version
   * @throws DpsError OPTION_INVALID, phase `config`, for what a twin cannot hold
   */
  updateDesired(device: HubDeviceRef, patch: TwinProperties): number
  /**
   * Resolves with the reported properties as soon as they match.
   *
   * @throws the reason of `signal` when it aborts
   */
  waitForReported(
    device: HubDeviceRef,
    match: (reported: TwinProperties, version: number) => boolean,
    options?: { signal?: AbortSignal },
  ): Promise<TwinProperties>
  /** Sends any PUBLISH at all, sense or nonsense; false if the device is not connected. */
  publish(device: HubDeviceRef, topic: string, body: string | Uint8Array, options?: { qos?: 0 | 1 }): boolean
}

/** Why the hub ended a connection. */
export type HubEnding = 'evicted' | 'disabled' | 'removed' | 'token-expired' | 'moved' | 'asked-for'

/** A device's connection, as the hub uses it. */
export interface HubLink {
  readonly connectionId: number
  /** Sends a PUBLISH; returns its packet id, or undefined at QoS 0. */
  publish(topic: string, body: Uint8Array, qos: 0 | 1, dup?: boolean): number | undefined
  endBy(reason: HubEnding, how?: HubDisconnect): void
  answerRenewal(answer: RenewalAnswer): RenewalDelivery
}

interface Command {
  readonly messageId: string
  readonly topic: string
  readonly body: Buffer
  deliveries: number
  /** Connection and packet id of the delivery that is not acknowledged yet. */
  sent: { readonly link: HubLink; readonly packetId: number } | undefined
  settle(outcome: 'acknowledged' | 'discarded'): void
}

/** A device as the hub keeps it. */
export interface HubDevice extends HubPrincipal {
  readonly hub: string
  keys: readonly Buffer[] | undefined
  fingerprints: readonly string[]
  /** Whether certificates that were issued for it are accepted. */
  issued: boolean
  /** What the provisioning service knows it by, where it was assigned. */
  registration: Registration | undefined
  enabled: boolean
  twin: TwinDocument
  commands: Command[]
  /** What is subscribed, and with which quality of service; kept for the next connection unless that is a clean one. */
  subscriptions: Map<Subscription, 0 | 1>
  link: HubLink | undefined
  /** Methods that are waiting for an answer, by request id. */
  calls: Map<string, { answer(status: number, body: Buffer): void; fail(error: DpsError): void }>
}

export interface HubConnect {
  /** The hub that the TLS server name stands for; undefined at a gateway, which stands before all of them. */
  readonly hub: string | undefined
  readonly clientId: string
  readonly userName: string | undefined
  /** The shared access signature as it was sent. */
  readonly sas: string | undefined
  readonly certificate: PresentedCertificate | undefined
}

export type HubAuthentication =
  | {
      readonly ok: true
      readonly device: HubDevice
      /** Wall clock, ms, when the token ends; undefined with a certificate. */
      readonly expiresAt: number | undefined
      readonly apiVersion: string
    }
  | { readonly ok: false; readonly reason: RefusalReason; readonly clientId: string }

export interface HubSettings extends RenewalSettings {
  readonly hubs: readonly string[]
  readonly logSize: number
  readonly onTelemetry: (message: TelemetryRecord) => void
}

/** The hub API versions that are known to exist. */
const API_VERSIONS = new Set([
  '2016-11-14',
  '2017-06-30',
  '2017-08-21-preview',
  '2018-06-30',
  '2019-03-30',
  '2019-10-01',
  '2020-03-13',
  '2020-09-30',
  '2021-04-12',
  '2025-08-01-preview',
])

const NAME = /^[A-Za-z0-9\-.+%_#*?!(),:=@$']{1,128}$/
const USER_NAME = /^([^/]+)\/([^/]+)(?:\/([^/]+))?\/\?([\x21-\x7e]+)$/
const LARGEST_COMMAND = 65_536
const MOST_COMMANDS = 50
const MOST_DELIVERIES = 10
const METHOD_TIMEOUT_MS = 30_000
const NOT_ONLINE = 404_103
const GATEWAY_TIMEOUT = 504_101
const keyOf = (hub: string, deviceId: string, moduleId: string | undefined): string =>
  JSON.stringify([hub.toLowerCase(), deviceId, moduleId ?? null])
const emptyTwin = (): TwinDocument => ({
  desired: { properties: {}, version: 1 },
  reported: { properties: {}, version: 1 },
})

/** Every hub of an emulator: who may connect, what they sent and what waits for them. No sockets. */
export class HubService implements EmulatedHub {
  readonly #settings: HubSettings
  readonly #devices = new Map<string, HubDevice>()
  readonly #messages: TelemetryRecord[] = []
  readonly #waiting = new Set<() => void>()
  readonly telemetry: Telemetry
  readonly renewals: Renewals
  #received = 0

  constructor(settings: HubSettings) {
    this.#settings = settings
    this.renewals = new Renewals(settings)
    const received = (): number => this.#received
    this.telemetry = Object.freeze({
      get received() {
        return received()
      },
      list: (match: TelemetryMatch = () => true) => this.#messages.filter(match),
      wait: (match: TelemetryMatch = () => true, options: { signal?: AbortSignal } = {}) =>
        this.#until(() => this.#messages.find(match), options.signal),
      clear: () => {
        this.#messages.length = 0
      },
    })
  }

  // What an application of the service may do.

  addDevice(options: HubDeviceOptions): EnrollmentKeys | undefined {
    const { deviceId, moduleId, hub = this.#settings.hubs[0]!, authentication } = options
    if (!NAME.test(deviceId))
      throw invalid("`deviceId` must be 1 to 128 letters, digits and -.+%_#*?!(),:=@$'")
    if (moduleId !== undefined && !NAME.test(moduleId)) {
      throw invalid("`moduleId` must be 1 to 128 letters, digits and -.+%_#*?!(),:=@$'")
    }
    if ('x509' in authentication) {
      const { certificate, secondary } = authentication.x509
      const fingerprints = [certificate, ...(secondary === undefined ? [] : [secondary])].map(fingerprintOf)
      this.#put(hub, deviceId, moduleId, { keys: undefined, fingerprints })
      return undefined
    }
    const { primaryKey = generateSymmetricKey(), secondaryKey = generateSymmetricKey() } =
      authentication.symmetricKey
    const keys = [decodeKey(primaryKey, 'primaryKey'), decodeKey(secondaryKey, 'secondaryKey')]
    this.#put(hub, deviceId, moduleId, { keys, fingerprints: [] })
    return { primaryKey, secondaryKey }
  }

  removeDevice(ref: HubDeviceRef): boolean {
    const device = this.#find(ref)
    if (device === undefined) return false
    this.#remove(device, 'removed')
    return true
  }

  disableDevice(ref: HubDeviceRef): void {
    const device = this.#existing(ref)
    device.enabled = false
    device.link?.endBy('disabled')
  }

  enableDevice(ref: HubDeviceRef): void {
    this.#existing(ref).enabled = true
  }

  listDevices(): readonly HubDeviceInfo[] {
    return [...this.#devices.values()].map((device) =>
      Object.freeze({
        hub: device.hub,
        deviceId: device.deviceId,
        moduleId: device.moduleId,
        enabled: device.enabled,
        authentication: device.keys === undefined ? 'x509' : 'symmetricKey',
        connectionId: device.link?.connectionId,
        queuedCommands: device.commands.length,
      }),
    )
  }

  disconnect(ref: HubDeviceRef, how: HubDisconnect = 'drop'): boolean {
    const { link } = this.#existing(ref)
    link?.endBy('asked-for', how)
    return link !== undefined
  }

  sendCommand(ref: HubDeviceRef, body: string | Uint8Array, options: CommandOptions = {}): SentCommand {
    const device = this.#existing(ref)
    if (device.moduleId !== undefined) throw invalid('a module gets no commands')
    const bytes = Buffer.from(body as Uint8Array)
    if (bytes.length > LARGEST_COMMAND) throw invalid(`a command is at most ${LARGEST_COMMAND} bytes`)
    if (device.commands.length >= MOST_COMMANDS) {
      throw invalid(`at most ${MOST_COMMANDS} commands wait for a device`)
    }
    const { properties = {}, messageId = randomUUID(), ...system } = options
    let settle!: Command['settle']
    const settled = new Promise<'acknowledged' | 'discarded'>((resolve) => {
      settle = resolve
    })
    const topic = commandTopic(device, { messageId, ...system }, properties)
    device.commands.push({ messageId, topic, body: bytes, deliveries: 0, sent: undefined, settle })
    this.deliverCommands(device)
    return Object.freeze({ messageId, settled })
  }

  async invokeMethod(
    ref: HubDeviceRef,
    name: string,
    payload: unknown = null,
    { timeoutMs = METHOD_TIMEOUT_MS }: MethodOptions = {},
  ): Promise<MethodResult> {
    const device = this.#existing(ref)
    const { link } = device
    if (link === undefined || !device.subscriptions.has('methods')) {
      throw new DpsError('NOT_FOUND', 'connect', `${device.deviceId} is not online for methods`, {
        serviceErrorCode: NOT_ONLINE,
        hint: 'Connect the device and let it subscribe to methods.',
      })
    }
    const rid = randomUUID()
    let disarm: (() => void) | undefined
    try {
      return await new Promise<MethodResult>((resolve, reject) => {
        device.calls.set(rid, {
          answer: (status, body) => {
            try {
              resolve({ status, payload: body.length === 0 ? undefined : parseJson(body) })
            } catch (cause) {
              reject(new DpsError('REPLY_MALFORMED', 'parse', `the answer to ${name} is no JSON`, { cause }))
            }
          },
          fail: reject,
        })
        disarm = this.#settings.clock.after(timeoutMs, () =>
          reject(
            new DpsError('TIMEOUT', 'poll', `no answer to ${name} within ${timeoutMs} ms`, {
              serviceErrorCode: GATEWAY_TIMEOUT,
            }),
          ),
        )
        link.publish(methodTopic(name, rid), Buffer.from(JSON.stringify(payload)), 0)
      })
    } finally {
      disarm?.()
      device.calls.delete(rid)
    }
  }

  twin(ref: HubDeviceRef): TwinDocument {
    return structuredClone(this.#existing(ref).twin)
  }

  updateDesired(ref: HubDeviceRef, patch: TwinProperties): number {
    const device = this.#existing(ref)
    const { desired } = device.twin
    const result = patched(desired.properties, patch)
    if (!result.ok) throw invalid(result.rule)
    const version = desired.version + 1
    device.twin = { ...device.twin, desired: { properties: result.properties, version } }
    if (device.subscriptions.has('twin-desired')) {
      const body = Buffer.from(JSON.stringify({ ...patch, $version: version }))
      device.link?.publish(desiredTopic(version), body, 0)
    }
    return version
  }

  waitForReported(
    ref: HubDeviceRef,
    match: (reported: TwinProperties, version: number) => boolean,
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<TwinProperties> {
    const device = this.#existing(ref)
    return this.#until(() => {
      const { properties, version } = device.twin.reported
      return match(properties, version) ? properties : undefined
    }, signal)
  }

  publish(
    ref: HubDeviceRef,
    topic: string,
    body: string | Uint8Array,
    { qos = 0 }: { qos?: 0 | 1 } = {},
  ): boolean {
    const { link } = this.#existing(ref)
    link?.publish(topic, Buffer.from(body as Uint8Array), qos)
    return link !== undefined
  }

  // What the provisioning service does.

  /** Whether a server name stands for a hub that exists, or that would. */
  knows(hub: string): boolean {
    const name = hub.toLowerCase()
    return (
      this.#settings.hubs.some((known) => known.toLowerCase() === name) ||
      [...this.#devices.values()].some((device) => device.hub === name)
    )
  }

  /** Enters a device as it was assigned; what an earlier hub knew of it goes along, or is dropped. */
  assign(registration: Registration, credential: DeviceCredential): void {
    const { deviceId, assignedHub: hub } = registration
    const { keys, fingerprints, issued, movedFrom } = credential
    const earlier =
      movedFrom === undefined ? undefined : this.#devices.get(keyOf(movedFrom.hub, deviceId, undefined))
    if (earlier !== undefined) this.#remove(earlier, 'moved')
    let device = this.#devices.get(keyOf(hub, deviceId, undefined))
    if (device === undefined) {
      device = this.#put(hub, deviceId, undefined, { keys, fingerprints })
      device.issued = earlier?.issued ?? false
      if (earlier !== undefined && movedFrom?.data === 'migrate') device.twin = earlier.twin
    }
    Object.assign(device, { keys, fingerprints, registration, issued: device.issued || issued })
  }

  // What connections do.

  authenticate(request: HubConnect): HubAuthentication {
    const refuse = (reason: RefusalReason): HubAuthentication => ({
      ok: false,
      reason,
      clientId: request.clientId,
    })
    const [, hub, deviceId, moduleId, query] = USER_NAME.exec(request.userName ?? '') ?? []
    const fields = query === undefined ? undefined : readUserNameQuery(query)
    if (hub === undefined || deviceId === undefined || fields === undefined)
      return refuse('user-name-malformed')
    const apiVersion = fields.get('api-version') ?? ''
    if (!API_VERSIONS.has(apiVersion)) return refuse('api-version-unknown')
    if (request.clientId !== (moduleId === undefined ? deviceId : `${deviceId}/${moduleId}`)) {
      return refuse('client-id-wrong')
    }
    if (request.hub !== undefined && request.hub.toLowerCase() !== hub.toLowerCase())
      return refuse('hub-wrong')
    const device = this.#devices.get(keyOf(hub, deviceId, moduleId))
    if (device === undefined) return refuse('device-unknown')
    const verdict =
      request.sas === undefined
        ? this.#checkCertificate(device, request.certificate)
        : this.#checkSas(device, request.sas)
    if (typeof verdict === 'string') return refuse(verdict)
    if (!device.enabled) return refuse('device-disabled')
    return { ok: true, device, apiVersion, expiresAt: verdict.expiresAt }
  }

  /** Makes this the device's only connection; true if it goes on where an earlier one ended. */
  attach(device: HubDevice, link: HubLink, clean: boolean): boolean {
    device.link?.endBy('evicted')
    device.link = link
    const present = !clean && device.subscriptions.size > 0
    if (clean) {
      device.subscriptions.clear()
      for (const command of device.commands.splice(0)) command.settle('discarded')
    }
    for (const name of ['methods', 'twin-responses', 'twin-desired', 'credentials'] as const) {
      // Only that of commands outlives a connection.
      device.subscriptions.delete(name)
    }
    return present && device.subscriptions.has('commands')
  }

  detach(device: HubDevice, link: HubLink): void {
    if (device.link !== link) return
    device.link = undefined
    for (const { fail } of device.calls.values()) {
      fail(new DpsError('CONNECTION_LOST', 'poll', 'the device went away before it answered'))
    }
  }

  record(message: TelemetryRecord): void {
    this.#received += 1
    this.#messages.push(message)
    if (this.#messages.length > this.#settings.logSize) this.#messages.shift()
    this.#settings.onTelemetry(message)
    this.#changed()
  }

  /** Sends what waits, if there is anyone to take it. */
  deliverCommands(device: HubDevice): void {
    const qos = device.subscriptions.get('commands')
    const { link } = device
    if (qos === undefined || link === undefined) return
    for (const command of [...device.commands]) {
      if (command.sent?.link === link) continue
      if (command.deliveries >= MOST_DELIVERIES) {
        this.#settle(device, command, 'discarded')
        continue
      }
      command.deliveries += 1
      const packetId = link.publish(command.topic, command.body, qos, command.sent !== undefined)
      if (packetId === undefined) this.#settle(device, command, 'acknowledged')
      else command.sent = { link, packetId }
    }
  }

  acknowledge(device: HubDevice, link: HubLink, packetId: number): void {
    const command = device.commands.find(({ sent }) => sent?.link === link && sent.packetId === packetId)
    if (command !== undefined) this.#settle(device, command, 'acknowledged')
    else this.renewals.acknowledge(device, link, packetId)
  }

  answerMethod(device: HubDevice, rid: string, status: number, body: Buffer): void {
    device.calls.get(rid)?.answer(status, body)
  }

  readTwin(device: HubDevice): Buffer {
    return Buffer.from(JSON.stringify(deviceView(device.twin)))
  }

  /** The answer to reported properties: empty, with the new version, where they were taken. */
  report(
    device: HubDevice,
    body: Buffer,
    expected: number | undefined,
  ): { readonly status: number; readonly body: Buffer; readonly version?: number } {
    const { reported } = device.twin
    let patch: unknown
    try {
      patch = parseJson(body)
    } catch {
      return this.#refusal(400, 'Properties are a JSON object in UTF-8.')
    }
    if (expected !== undefined && expected !== reported.version) {
      return this.#refusal(412, 'The version is another one.')
    }
    const result = patched(reported.properties, patch)
    if (!result.ok) return this.#refusal(result.status, result.rule)
    const version = reported.version + 1
    device.twin = { ...device.twin, reported: { properties: result.properties, version } }
    this.#changed()
    return { status: 204, body: Buffer.alloc(0), version }
  }

  #refusal(status: number, message: string): { status: number; body: Buffer } {
    const timestampUtc = new Date(this.#settings.clock.now()).toISOString()
    const error = { errorCode: status * 1000, trackingId: randomUUID(), message, timestampUtc }
    return { status, body: Buffer.from(JSON.stringify(error)) }
  }

  #checkSas(device: HubDevice, token: string): { expiresAt: number } | RefusalReason {
    const fields = parseSas(token)
    if (fields === undefined) return 'sas-malformed'
    const { hub, deviceId, moduleId } = device
    const resource = `${hub}/devices/${deviceId}${moduleId === undefined ? '' : `/modules/${moduleId}`}`
    if (fields.resource.toLowerCase() !== resource.toLowerCase()) return 'sas-resource-wrong'
    // A policy's name belongs to the keys of a hub; a device signs with its own.
    if (fields.keyName !== undefined) return 'sas-key-name-wrong'
    const expiresAt = fields.expiry * 1000
    if (expiresAt <= this.#settings.clock.now()) return 'sas-expired'
    if (device.keys === undefined) return 'sas-signature-wrong'
    const text = `${fields.rawResource}\n${fields.rawExpiry}`
    const signed = device.keys.some((key) =>
      timingSafeEqual(createHmac('sha256', key).update(text, 'utf8').digest(), fields.signature),
    )
    return signed ? { expiresAt } : 'sas-signature-wrong'
  }

  #checkCertificate(
    device: HubDevice,
    presented: PresentedCertificate | undefined,
  ): { expiresAt: undefined } | RefusalReason {
    if (presented === undefined) return 'credential-missing'
    const { leaf } = presented
    const issued = device.issued ? this.#settings.authority.find(leaf.fingerprint256) : undefined
    if (issued === undefined && device.keys !== undefined) return 'credential-missing'
    if (issued?.revokedAt !== undefined) return 'certificate-revoked'
    const known =
      issued === undefined
        ? device.fingerprints.includes(leaf.fingerprint256)
        : issued.deviceId === device.deviceId && device.moduleId === undefined
    if (!known) return 'certificate-unknown'
    if (issued !== undefined && ![issued.registrationId, issued.deviceId].includes(commonName(leaf) ?? '')) {
      return 'certificate-name-wrong'
    }
    const now = this.#settings.clock.now()
    if (Date.parse(leaf.validTo) < now) return 'certificate-expired'
    return Date.parse(leaf.validFrom) > now ? 'certificate-not-yet-valid' : { expiresAt: undefined }
  }

  #put(
    hub: string,
    deviceId: string,
    moduleId: string | undefined,
    proof: { keys: readonly Buffer[] | undefined; fingerprints: readonly string[] },
  ): HubDevice {
    const key = keyOf(hub, deviceId, moduleId)
    const existing = this.#devices.get(key)
    if (existing !== undefined) this.#remove(existing, 'removed')
    const device: HubDevice = {
      hub: hub.toLowerCase(),
      deviceId,
      moduleId,
      ...proof,
      issued: false,
      registration: undefined,
      enabled: true,
      twin: emptyTwin(),
      commands: [],
      subscriptions: new Map(),
      link: undefined,
      calls: new Map(),
    }
    this.#devices.set(key, device)
    return device
  }

  #remove(device: HubDevice, reason: HubEnding): void {
    this.#devices.delete(keyOf(device.hub, device.deviceId, device.moduleId))
    device.link?.endBy(reason)
    this.renewals.drop(device)
    for (const command of device.commands.splice(0)) command.settle('discarded')
  }

  #settle(device: HubDevice, command: Command, outcome: 'acknowledged' | 'discarded'): void {
    device.commands = device.commands.filter((other) => other !== command)
    command.settle(outcome)
  }

  #find(ref: HubDeviceRef): HubDevice | undefined {
    const { deviceId, moduleId, hub } =
      typeof ref === 'string' ? { deviceId: ref } : { hub: undefined, moduleId: undefined, ...ref }
    return [...this.#devices.values()].find(
      (device) =>
        device.deviceId === deviceId &&
        device.moduleId === moduleId &&
        (hub === undefined || device.hub === hub.toLowerCase()),
    )
  }

  #existing(ref: HubDeviceRef): HubDevice {
    const device = this.#find(ref)
    if (device !== undefined) return device
    throw invalid(`no hub knows the device ${typeof ref === 'string' ? ref : JSON.stringify(ref)}`)
  }

  async #until<T>(look: () => T | undefined, signal: AbortSignal | undefined): Promise<T> {
    for (;;) {
      signal?.throwIfAborted()
      const found = look()
      if (found !== undefined) return found
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          this.#waiting.delete(wake)
          signal?.removeEventListener('abort', wake)
          resolve()
        }
        this.#waiting.add(wake)
        signal?.addEventListener('abort', wake)
      })
    }
  }

  #changed(): void {
    for (const wake of [...this.#waiting]) wake()
  }
}

function fingerprintOf(pem: string): string {
  try {
    return new X509Certificate(pem).fingerprint256
  } catch (cause) {
    throw new DpsError('OPTION_INVALID', 'config', 'a certificate must be PEM', { cause })
  }
}

function decodeKey(text: string, field: string): Buffer {
  const bytes = Buffer.from(text, 'base64')
  if (bytes.toString('base64') !== text || bytes.length < 16 || bytes.length > 64) {
    throw invalid(`\`${field}\` must be strict base64 of 16 to 64 bytes`)
  }
  return bytes
}

function parseJson(body: Buffer): unknown {
  return JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body))
}

/** `api-version`, and what a client may add, no name twice. */
function readUserNameQuery(query: string): Map<string, string> | undefined {
  const fields = new Map<string, string>()
  for (const part of query.split('&')) {
    const equals = part.indexOf('=')
    const name = part.slice(0, equals)
    if (equals < 1 || fields.has(name)) return undefined
    if (!['api-version', 'model-id', 'DeviceClientType'].includes(name)) return undefined
    fields.set(name, part.slice(equals + 1))
  }
  return fields
}
