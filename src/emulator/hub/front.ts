import type { IConnectPacket, IPublishPacket, Packet } from 'mqtt-packet'
import {
  alter,
  type FaultActions,
  type FaultStep,
  type OutgoingReply,
  outgoing,
  type ReplyStepFault,
  waitsForAnotherFront,
} from '../faults.ts'
import { performAll, strike } from '../fronts/exchange.ts'
import type { Front, FrontConnection } from '../fronts/listener.ts'
import { CONNACK, MqttServer, type MqttServerSettings, publishPacket } from '../fronts/mqtt-server.ts'
import type { ServiceReply } from '../service.ts'
import type { HubDevice, HubDisconnect, HubEnding, HubLink, HubService } from './hub.ts'
import { type RenewalAnswer, type RenewalDelivery, renewalTopic } from './renewal.ts'
import { readFilter, readPublish, type Subscription, twinResponseTopic } from './topics.ts'

export interface HubFrontSettings extends MqttServerSettings {
  readonly hub: HubService
  /** Server names that are a gateway's, which stands before every hub. */
  readonly isGateway: (serverName: string) => boolean
}

/** A message with its properties is at most 256 KB; the fixed header comes on top. */
const LARGEST_MESSAGE = 262_144
const LARGEST_PACKET = LARGEST_MESSAGE + 4096
export const LARGEST_HUB_FRAME = 2 * LARGEST_MESSAGE
const MOST_SUBSCRIPTIONS = 5

/** Makes the front of a hub: MQTT 3.1.1, on any stream. */
export function hubFront(settings: HubFrontSettings): Front {
  return (connection, first) => {
    new HubSession(settings, connection).start(first)
  }
}

class HubSession extends MqttServer<HubFrontSettings> implements HubLink {
  #device: HubDevice | undefined
  #apiVersion = ''
  #x509 = false
  #will: IConnectPacket['will']
  #cancelExpiry: () => void = () => undefined

  constructor(settings: HubFrontSettings, connection: FrontConnection) {
    super(settings, connection, LARGEST_PACKET)
  }

  // What the hub does with a connection.

  get connectionId(): number {
    return this.connection.record.id
  }

  publish(topic: string, body: Uint8Array, qos: 0 | 1, dup = false): number | undefined {
    const packetId = qos === 1 ? this.nextPacketId() : undefined
    this.send(publishPacket(topic, Buffer.from(body), qos, packetId, dup))
    return packetId
  }

  endBy(reason: HubEnding, how: HubDisconnect = 'drop'): void {
    const device = this.#device
    if (this.closed || device === undefined) return
    this.#emit('hub-disconnected', device, reason)
    // Also where a fault has silenced it.
    this.end()
    this.connection.perform(how, { rid: '', registrationId: '' })
  }

  // What a device does.

  protected override connect(packet: IConnectPacket): void {
    const { clientId } = packet
    const { record } = this.connection
    record.registrationId = clientId
    const actions = strike(this.settings, record, 'hub-connect', clientId)
    if (actions.length > 0) {
      const context = { rid: '', registrationId: clientId }
      performAll(this.connection, actions, context)
      const refusal = actions.find((action) => typeof action === 'object' && 'refuse' in action)
      if (refusal !== undefined) this.refuse(refusal.refuse)
      else if (!this.connection.mute) this.connection.perform('silence', context)
      return
    }
    const code = this.checkConnect(packet)
    if (code === undefined) return
    if (code !== CONNACK.ACCEPTED) {
      this.refuse(code)
      return
    }
    const { hub, clock } = this.settings
    const serverName = record.handshake?.serverName ?? ''
    const password = packet.password?.toString('utf8')
    const result = hub.authenticate({
      hub: this.settings.isGateway(serverName) ? undefined : serverName,
      clientId,
      userName: packet.username,
      sas: password === undefined || password === '' ? undefined : password,
      certificate: this.connection.certificate,
    })
    if (!result.ok) {
      this.report(result.reason, clientId)
      this.refuse(REFUSALS[result.reason] ?? CONNACK.NOT_AUTHORIZED)
      return
    }
    const { device, expiresAt, apiVersion } = result
    if (packet.will !== undefined) {
      const will = readPublish(device, packet.will.topic)
      if (typeof will === 'string' || will.kind !== 'telemetry' || packet.will.qos === 2) {
        this.violate('A will is telemetry of the device itself, at QoS 0 or 1.')
        return
      }
    }
    this.#will = packet.will
    this.#device = device
    this.#apiVersion = apiVersion
    this.#x509 = expiresAt === undefined
    if (expiresAt !== undefined) {
      this.#cancelExpiry = clock.after(expiresAt - clock.now(), () => this.endBy('token-expired'))
    }
    this.admit(packet, () => {
      this.#emit('hub-connected', device)
      return hub.attach(device, this, packet.clean !== false)
    })
  }

  protected override admitted(): void {
    this.settings.hub.deliverCommands(this.#device!)
  }

  protected override receive(packet: Packet): void {
    switch (packet.cmd) {
      case 'subscribe':
        this.#subscribe(packet.messageId ?? 0, packet.subscriptions)
        break
      case 'unsubscribe':
        for (const filter of packet.unsubscriptions) {
          const name = readFilter(this.#device!, filter)
          if (name !== undefined) this.#device!.subscriptions.delete(name)
        }
        this.send({ cmd: 'unsuback', messageId: packet.messageId ?? 0, granted: [] })
        break
      case 'publish':
        this.#publish(packet)
        break
      case 'puback':
        this.settings.hub.acknowledge(this.#device!, this, packet.messageId ?? 0)
        break
      default:
        break
    }
  }

  protected override pinged(): void {
    if (!this.#struck('ping')) super.pinged()
  }

  protected override disconnected(): void {
    this.#will = undefined
  }

  protected override ended(): void {
    this.#cancelExpiry()
    const device = this.#device
    if (device === undefined) return
    this.settings.hub.detach(device, this)
    const will = this.#will
    const said = will === undefined ? undefined : readPublish(device, will.topic)
    if (will === undefined || typeof said !== 'object' || said.kind !== 'telemetry') return
    this.settings.hub.record({
      ...said.properties,
      ...this.#origin(device),
      body: Buffer.from(will.payload),
      qos: will.qos === 1 ? 1 : 0,
      dup: false,
      will: true,
    })
  }

  #subscribe(messageId: number, subscriptions: readonly { topic: string; qos: 0 | 1 | 2 }[]): void {
    const device = this.#device!
    const { record } = this.connection
    const actions = strike(this.settings, record, 'hub-subscribe', record.registrationId)
    if (performAll(this.connection, actions, this.#context())) return
    const granted = subscriptions.map(({ topic, qos }): number => {
      const name = readFilter(device, topic)
      if (name === undefined || actions.includes('refuse')) return 0x80
      if (!device.subscriptions.has(name) && device.subscriptions.size >= MOST_SUBSCRIPTIONS) return 0x80
      device.subscriptions.set(name, qos === 0 ? 0 : 1)
      return qos === 0 ? 0 : 1
    })
    this.send({ cmd: 'suback', messageId, granted })
    this.settings.hub.deliverCommands(device)
    this.settings.hub.renewals.deliver(device)
  }

  #publish(packet: IPublishPacket): void {
    const device = this.#device!
    const said = readPublish(device, packet.topic)
    if (typeof said === 'string') {
      this.violate(said)
      return
    }
    const body = packet.payload as Buffer
    if (body.length + packet.topic.length > LARGEST_MESSAGE) {
      this.violate(`A message with its properties is at most ${LARGEST_MESSAGE} bytes.`)
      return
    }
    if (said.kind === 'telemetry') {
      if (this.#struck('telemetry')) return
      const { properties, ...system } = said.properties
      this.settings.hub.record({
        ...system,
        // The hub retains nothing; it only lets the application know that this was asked for.
        properties: packet.retain ? { ...properties, 'mqtt-retain': 'true' } : properties,
        ...this.#origin(device),
        body: Buffer.from(body),
        qos: packet.qos === 1 ? 1 : 0,
        dup: packet.dup,
        will: false,
      })
      const { record } = this.connection
      const actions = strike(this.settings, record, 'telemetry-ack', record.registrationId)
      if (performAll(this.connection, actions, this.#context()) || actions.includes('no-puback')) return
    }
    if (packet.qos === 1) this.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
    if (said.kind === 'method-response') {
      this.settings.hub.answerMethod(device, said.rid, said.status, Buffer.from(body))
    } else if (said.kind === 'renewal') {
      this.#renew(said.rid, Buffer.from(body))
    } else if (said.kind !== 'telemetry') {
      if (this.#struck('twin')) return
      if (said.kind === 'twin-get') this.#answer(said.rid, 200, this.settings.hub.readTwin(device))
      else {
        const result = this.settings.hub.report(device, body, said.version)
        this.#answer(said.rid, result.status, result.body, result.version)
      }
    }
  }

  #answer(rid: string, status: number, body: Buffer, version?: number): void {
    const { record } = this.connection
    const actions = strike(this.settings, record, 'twin-reply', record.registrationId)
    if (actions.includes('silence')) return
    const context = { rid, registrationId: record.registrationId ?? '' }
    if (performAll(this.connection, actions, context)) return
    const out = { ...outgoing({ status, retryAfter: undefined, body: {} }, rid), body }
    const topicOf = (told: number, of: string): string => twinResponseTopic(told, of, version)
    this.#send('twin-responses', 0, out, topicOf, actions)
  }

  #renew(rid: string | undefined, body: Buffer): void {
    const { journal } = this.settings
    const { renewals } = this.settings.hub
    const { record } = this.connection
    const device = this.#device!
    const context = { rid: rid ?? '', registrationId: record.registrationId ?? '' }
    const actions = strike(this.settings, record, 'renew', record.registrationId, (action) =>
      waitsForAnotherFront('mqtt', action),
    )
    if (performAll(this.connection, actions, context) || actions.includes('ignore')) return
    if (rid === undefined) {
      const rule = 'A certificate is asked for with one `$rid`: 4 to 36 letters, digits and inner dashes.'
      journal.emit({ type: 'violation', connectionId: this.connectionId, rule })
      return
    }
    const reply =
      actions.length > 0
        ? renewals.error(500, 500_001, 'Scripted error.')
        : renewals.ask(device, { link: this, rid, body, apiVersion: this.#apiVersion, x509: this.#x509 })
    const accepted = reply.status === 202
    const told = accepted ? strike(this.settings, record, 'renew-accepted', record.registrationId) : actions
    const withheld = told.includes('silence') || performAll(this.connection, told, context)
    if (!withheld) this.#sendRenewal(rid, reply, told)
    if (accepted) renewals.proceed(device)
  }

  answerRenewal({ rid, reply, again, held }: RenewalAnswer): RenewalDelivery {
    const { record } = this.connection
    if (this.connection.mute) return 'kept'
    const actions = strike(
      this.settings,
      record,
      'renew-reply',
      record.registrationId,
      (action) => held && typeof action === 'object' && 'late' in action,
    )
    if (actions.includes('silence')) return 'done'
    const late = actions.find((action) => typeof action === 'object' && 'late' in action)
    if (late !== undefined) return late
    if (performAll(this.connection, actions, { rid, registrationId: record.registrationId ?? '' })) {
      return this.connection.mute ? 'kept' : 'done'
    }
    return this.#sendRenewal(rid, reply, actions, again) ?? 'done'
  }

  #sendRenewal(
    rid: string,
    reply: ServiceReply,
    actions: readonly FaultActions['renew' | 'renew-reply'][],
    again = false,
  ): number | undefined {
    const out = outgoing(reply, rid)
    if (actions.includes('bare-array')) out.body = Buffer.from(JSON.stringify(reply.body.certificates ?? []))
    return this.#send('credentials', 1, out, renewalTopic, actions, again)
  }

  /** Sends an answer, which reaches a subscriber only; returns the packet id at QoS 1. */
  #send(
    to: Subscription,
    mostQos: 0 | 1,
    out: OutgoingReply,
    topicOf: (status: number, rid: string) => string,
    actions: readonly FaultActions[FaultStep][],
    dup = false,
  ): number | undefined {
    const qos = this.#device!.subscriptions.get(to)
    if (qos === undefined || this.connection.mute) return undefined
    const { renewals } = this.settings.hub
    const context = { rid: out.rid, registrationId: this.connection.record.registrationId ?? '' }
    const maker = { error: renewals.error.bind(renewals), ended: () => ({}) }
    for (const action of actions) alter(out, action as ReplyStepFault, context, maker)
    const topic = out.topic ?? topicOf(out.status, out.rid)
    let packetId: number | undefined
    for (let copy = 0; copy < out.copies; copy += 1) {
      packetId = this.publish(topic, out.body, Math.min(qos, mostQos) as 0 | 1, dup)
    }
    return packetId
  }

  #struck(step: 'telemetry' | 'twin' | 'ping'): boolean {
    const { record } = this.connection
    const actions = strike(this.settings, record, step, record.registrationId)
    return performAll(this.connection, actions, this.#context())
  }

  #context(): { rid: string; registrationId: string } {
    return { rid: '', registrationId: this.connection.record.registrationId ?? '' }
  }

  #origin({ hub, deviceId, moduleId }: HubDevice) {
    return { hub, deviceId, moduleId, connectionId: this.connectionId, at: this.settings.clock.now() }
  }

  #emit(type: 'hub-connected' | 'hub-disconnected', { hub }: HubDevice, reason?: HubEnding): void {
    this.settings.journal.emit({
      type,
      connectionId: this.connectionId,
      hub,
      clientId: this.connection.record.registrationId ?? '',
      ...(reason === undefined ? {} : { reason }),
    })
  }
}

/** What is not answered with "not authorized". */
const REFUSALS: Readonly<Record<string, number>> = {
  'user-name-malformed': CONNACK.BAD_USER_NAME,
  'api-version-unknown': CONNACK.BAD_USER_NAME,
  'client-id-wrong': CONNACK.IDENTIFIER_REJECTED,
}
