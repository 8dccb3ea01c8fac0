import { generate, type IConnectPacket, type IPublishPacket, type Packet } from 'mqtt-packet'
import type { OutgoingReply } from '../faults.ts'
import type { Carrier, DeviceSession } from '../service.ts'
import { type DeviceRequest, Exchange, type ExchangeSettings, performAll, strike } from './exchange.ts'
import type { Front, FrontConnection } from './listener.ts'
import { CONNACK, MqttServer, type MqttServerSettings, publishPacket } from './mqtt-server.ts'

export interface MqttSettings extends ExchangeSettings, MqttServerSettings {
  /** Quality of service of replies. */
  readonly replyQos: 0 | 1
}

const FILTER = '$dps/registrations/res/#'
const USER_NAME =
  /^([^/]+)\/registrations\/([^/]+)\/api-version=([^&/]+)(?:&ClientVersion=([\x21-\x25\x27-\x7e]*))?$/
const REQUEST_TOPIC =
  /^\$dps\/registrations\/(PUT\/iotdps-register|GET\/iotdps-get-operationstatus)\/\?([\x21-\x7e]+)$/
const RID = /^[A-Za-z0-9\-._~%]{1,128}$/

/** The service's message limit is 96 KB; topics and headers come on top. */
const LARGEST_PACKET = 131_072

/** Makes the front that speaks the device protocol over MQTT 3.1.1, on any stream. */
export function mqttFront(settings: MqttSettings): Front {
  return (connection, first) => {
    new MqttSession(settings, connection).start(first)
  }
}

class MqttSession extends MqttServer<MqttSettings> {
  #session: DeviceSession | undefined
  readonly #carrier: Carrier
  #subscribed: 0 | 1 | undefined

  constructor(settings: MqttSettings, connection: FrontConnection) {
    super(settings, connection, LARGEST_PACKET)
    this.#carrier = { open: true, connectionId: connection.record.id }
  }

  protected override receive(packet: Packet): void {
    switch (packet.cmd) {
      case 'subscribe':
        this.#subscribe(packet.messageId ?? 0, packet.subscriptions)
        break
      case 'publish':
        this.#publish(packet)
        break
      case 'unsubscribe':
        if (packet.unsubscriptions.includes(FILTER)) this.#subscribed = undefined
        this.send({ cmd: 'unsuback', messageId: packet.messageId ?? 0, granted: [] })
        break
      default:
        // Of the acknowledgement of a reply nothing follows.
        break
    }
  }

  protected override disconnected(): void {}

  protected override ended(): void {
    this.#carrier.open = false
  }

  protected override connect(packet: IConnectPacket): void {
    const claimed = packet.clientId
    this.connection.record.registrationId = claimed
    const actions = strike(this.settings, this.connection.record, 'connect', claimed)
    if (actions.length > 0) {
      const context = { rid: '', registrationId: claimed }
      performAll(this.connection, actions, context)
      const refusal = actions.find((action) => typeof action === 'object' && 'refuse' in action)
      if (refusal !== undefined) this.refuse(refusal.refuse)
      // Bytes that took the place of CONNACK: nothing further is understood.
      else if (!this.connection.mute) this.connection.perform('silence', context)
      return
    }
    const code = this.#authenticate(packet)
    if (code === undefined) return
    if (code === CONNACK.ACCEPTED) this.admit(packet, () => false)
    else this.refuse(code)
  }

  /** The CONNACK return code, or undefined if the packet broke the protocol and the connection is closed. */
  #authenticate(packet: IConnectPacket): number | undefined {
    const code = this.checkConnect(packet)
    if (code !== CONNACK.ACCEPTED) return code
    // Nothing documents a will here, and no device needs one: better found in a test than in the field.
    if (packet.will !== undefined) {
      this.violate('The service takes no will.')
      return undefined
    }
    const [, idScope, registrationId, apiVersion] = USER_NAME.exec(packet.username ?? '') ?? []
    if (idScope === undefined || registrationId === undefined || apiVersion === undefined) {
      this.report('user-name-malformed', packet.clientId)
      return CONNACK.BAD_USER_NAME
    }
    if (packet.clientId !== registrationId) {
      this.report('registration-id-malformed', packet.clientId)
      return CONNACK.IDENTIFIER_REJECTED
    }
    const password = packet.password?.toString('utf8')
    const result = this.settings.service.authenticate({
      idScope,
      registrationId,
      apiVersion,
      sas: password === undefined || password === '' ? undefined : password,
      certificate: this.connection.certificate,
      carrier: this.#carrier,
    })
    if (result.ok) {
      this.#session = result.session
      return CONNACK.ACCEPTED
    }
    this.report(result.reason, registrationId)
    if (result.reason === 'registration-id-malformed') return CONNACK.IDENTIFIER_REJECTED
    return result.reason === 'api-version-unknown' ? CONNACK.BAD_USER_NAME : CONNACK.NOT_AUTHORIZED
  }

  #subscribe(messageId: number, subscriptions: readonly { topic: string; qos: 0 | 1 | 2 }[]): void {
    const { registrationId } = this.#session!
    const actions = strike(this.settings, this.connection.record, 'subscribe', registrationId)
    if (performAll(this.connection, actions, { rid: '', registrationId })) return
    const granted = subscriptions.map(({ topic, qos }): number => {
      if (topic !== FILTER || actions.includes('refuse')) return 0x80
      this.#subscribed = qos === 0 ? 0 : 1
      return this.#subscribed
    })
    this.send({ cmd: 'suback', messageId, granted })
  }

  #publish(packet: IPublishPacket): void {
    const request = readRequest(packet)
    if (typeof request === 'string') {
      this.violate(request)
      return
    }
    const exchange = new Exchange(
      this.settings,
      this.connection,
      'mqtt',
      this.#session!,
      request,
      request.rid,
    )
    if (exchange.begin() !== undefined) return
    const acknowledge = (): void => {
      if (packet.qos === 1 && !exchange.has('no-puback')) {
        this.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
      }
    }
    const late = exchange.has('reply-before-puback')
    if (!late) acknowledge()
    const answer = exchange.answer()
    if (typeof answer === 'object') this.#deliver(answer)
    if (late) acknowledge()
  }

  #deliver(out: OutgoingReply): void {
    // A reply reaches a subscriber only; who registers first and subscribes later has missed it.
    if (this.#subscribed === undefined || this.connection.mute) return
    const qos = Math.min(this.settings.replyQos, this.#subscribed) as 0 | 1
    const retryAfter = out.retryAfter === undefined ? '' : `&retry-after=${out.retryAfter}`
    const topic = out.topic ?? `$dps/registrations/res/${out.status}/?$rid=${out.rid}${retryAfter}`
    for (let copy = 0; copy < out.copies; copy += 1) {
      const packet = publishPacket(topic, out.body, qos, qos === 1 ? this.nextPacketId() : undefined)
      this.log(packet)
      const bytes = generate(packet)
      const { cut } = out
      const sent = cut === undefined ? bytes : bytes.subarray(0, cut.after)
      if (out.byteByByte) for (const byte of sent) this.write(Buffer.of(byte), true)
      else this.write(sent, false)
      if (cut !== undefined) {
        this.afterWrites(() => this.connection.perform(cut.end, { rid: out.rid, registrationId: '' }))
        return
      }
    }
  }
}

/** The request a PUBLISH makes, or the rule it breaks. */
function readRequest(packet: IPublishPacket): (DeviceRequest & { readonly rid: string }) | string {
  if (packet.retain) return 'PUBLISH with the retain flag is not taken.'
  const [, operation, query] = REQUEST_TOPIC.exec(packet.topic) ?? []
  if (operation === undefined || query === undefined) {
    return 'PUBLISH goes to the register or the operation-status topic.'
  }
  const fields = parseQuery(query)
  const rid = fields?.get('$rid')
  if (fields === undefined || rid === undefined || !RID.test(rid)) {
    return 'The topic needs one `$rid`, and no field twice.'
  }
  const operationId = operation.startsWith('GET') ? (fields.get('operationId') ?? '') : undefined
  fields.delete('$rid')
  if (operationId !== undefined) fields.delete('operationId')
  if (fields.size > 0) return 'The topic holds `$rid`, and `operationId` when polling; nothing else.'
  return operationId === undefined
    ? { operation: 'register', rid, body: packet.payload as Buffer }
    : { operation: 'poll', rid, operationId }
}

/** `&`-separated `name=value`, no name twice. */
function parseQuery(query: string): Map<string, string> | undefined {
  const fields = new Map<string, string>()
  for (const part of query.split('&')) {
    const equals = part.indexOf('=')
    if (equals < 1 || fields.has(part.slice(0, equals))) return undefined
    fields.set(part.slice(0, equals), part.slice(equals + 1))
  }
  return fields
}
