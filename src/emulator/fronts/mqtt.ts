import {
  generate,
  type IConnectPacket,
  type IPublishPacket,
  type Packet,
  parser,
  writeToStream,
} from 'mqtt-packet'
import type { Clock } from '../../clock.ts'
import type { OutgoingReply } from '../faults.ts'
import type { PacketRecord } from '../journal.ts'
import type { Carrier, DeviceSession, RefusalReason } from '../service.ts'
import { type DeviceRequest, Exchange, type ExchangeSettings, performAll, strike } from './exchange.ts'
import type { Front, FrontConnection } from './listener.ts'

export interface MqttSettings extends ExchangeSettings {
  readonly clock: Clock
  /** Quality of service of replies. */
  readonly replyQos: 0 | 1
  /** Whether packets may follow CONNECT before its CONNACK (MQTT 3.1.1, section 3.1.4). */
  readonly pipelining: 'accept' | 'drop'
}

// Precomputing every number up to 65 535 costs more memory and start-up time than it ever gives back here.
writeToStream.cacheNumbers = false

/** MQTT 3.1.1, section 3.2.2.3. */
const ACCEPTED = 0
const UNACCEPTABLE_PROTOCOL = 1
const IDENTIFIER_REJECTED = 2
const BAD_USER_NAME = 4
const NOT_AUTHORIZED = 5

const FILTER = '$dps/registrations/res/#'
const USER_NAME =
  /^([^/]+)\/registrations\/([^/]+)\/api-version=([^&/]+)(?:&ClientVersion=([\x21-\x25\x27-\x7e]*))?$/
const REQUEST_TOPIC =
  /^\$dps\/registrations\/(PUT\/iotdps-register|GET\/iotdps-get-operationstatus)\/\?([\x21-\x7e]+)$/
const RID = /^[A-Za-z0-9\-._~%]{1,128}$/

/** The service's message limit is 96 KB; topics and headers come on top. */
const LARGEST_PACKET = 131_072
const LOGGED_BODY = 4096
const NOT_BEFORE_CONNACK = 'Packets before CONNACK are not taken.'

/** Makes the front that speaks the device protocol over MQTT 3.1.1, on any stream. */
export function mqttFront(settings: MqttSettings): Front {
  return (connection, first) => {
    new MqttSession(settings, connection).start(first)
  }
}

class MqttSession {
  readonly #settings: MqttSettings
  readonly #connection: FrontConnection
  readonly #parser = parser()
  #state: 'new' | 'connecting' | 'connected' | 'closed' = 'new'
  #session: DeviceSession | undefined
  readonly #carrier: Carrier = { open: true }
  #subscribed: 0 | 1 | undefined
  #keepAliveMs = 0
  #cancelKeepAlive: () => void = () => undefined
  #packetId = 0
  /** What is to be written one after the other, and whether that is going on. */
  readonly #steps: (() => void)[] = []
  #writing = false
  /** Bytes so far. */
  #received = 0

  constructor(settings: MqttSettings, connection: FrontConnection) {
    this.#settings = settings
    this.#connection = connection
  }

  start(first: Buffer): void {
    const { stream, record } = this.#connection
    record.transport ??= 'mqtt'
    this.#parser.on('packet', (packet) => this.#receive(packet))
    this.#parser.on('error', () => this.#violate('The packet must be well-formed MQTT 3.1.1.'))
    stream.on('data', (chunk: Buffer) => this.#read(chunk))
    stream.once('close', () => this.#end())
    // A device that ends its side has nothing more to say.
    stream.once('end', () => this.#end())
    this.#read(first)
  }

  #read(chunk: Buffer): void {
    if (this.#state === 'closed' || this.#connection.mute) return
    if (this.#state === 'connecting') {
      this.#violate(NOT_BEFORE_CONNACK)
      return
    }
    this.#received += chunk.length
    const incomplete = this.#parser.parse(chunk)
    if (incomplete > LARGEST_PACKET) this.#violate(`A packet is at most ${LARGEST_PACKET} bytes.`)
  }

  #receive(packet: Packet): void {
    // [MQTT-3.1.4-5]: what follows a refused CONNECT is not processed.
    if (this.#state === 'closed' || this.#connection.mute) return
    this.#logIncoming(packet)
    if ((packet.length ?? 0) > LARGEST_PACKET) {
      this.#violate(`A packet is at most ${LARGEST_PACKET} bytes.`)
      return
    }
    if (this.#state === 'new') {
      if (packet.cmd === 'connect') this.#connect(packet)
      else this.#violate('The first packet must be CONNECT [MQTT-3.1.0-1].')
      return
    }
    this.#restartKeepAlive()
    switch (packet.cmd) {
      case 'subscribe':
        this.#subscribe(packet.messageId ?? 0, packet.subscriptions)
        break
      case 'publish':
        this.#publish(packet)
        break
      case 'unsubscribe':
        if ((packet.messageId ?? 0) === 0) {
          this.#violate('UNSUBSCRIBE needs a packet identifier [MQTT-2.3.1-1].')
          return
        }
        if (packet.unsubscriptions.includes(FILTER)) this.#subscribed = undefined
        this.#send({ cmd: 'unsuback', messageId: packet.messageId ?? 0, granted: [] })
        break
      case 'pingreq':
        this.#send({ cmd: 'pingresp' })
        break
      case 'puback':
        break
      case 'disconnect':
        this.#end()
        this.#connection.stream.end()
        break
      case 'connect':
        this.#violate('CONNECT may be sent once [MQTT-3.1.0-2].')
        break
      default:
        this.#violate(`A device does not send ${packet.cmd.toUpperCase()}.`)
    }
  }

  #connect(packet: IConnectPacket): void {
    const claimed = packet.clientId
    this.#connection.record.registrationId = claimed
    const actions = strike(this.#settings, this.#connection.record, 'connect', claimed)
    if (actions.length > 0) {
      const context = { rid: '', registrationId: claimed }
      performAll(this.#connection, actions, context)
      const refusal = actions.find((action) => typeof action === 'object' && 'refuse' in action)
      if (refusal !== undefined) this.#refuse(refusal.refuse)
      // Bytes that took the place of CONNACK: nothing further is understood.
      else if (!this.#connection.mute) this.#connection.perform('silence', context)
      return
    }
    const code = this.#authenticate(packet)
    if (code === undefined) return
    if (code !== ACCEPTED) {
      this.#refuse(code)
      return
    }
    this.#keepAliveMs = (packet.keepalive ?? 0) * 1500
    if (this.#settings.pipelining === 'accept') {
      this.#accept()
      return
    }
    if (this.#received > packetSize(packet)) {
      this.#violate(NOT_BEFORE_CONNACK)
      return
    }
    this.#state = 'connecting'
    // What was sent right behind CONNECT in a TLS record of its own has arrived by the next turn of the event loop.
    setImmediate(() => {
      if (this.#state === 'connecting') this.#accept()
    })
  }

  #accept(): void {
    this.#state = 'connected'
    this.#restartKeepAlive()
    this.#send({ cmd: 'connack', returnCode: ACCEPTED, sessionPresent: false })
  }

  /** The CONNACK return code, or undefined if the packet broke the protocol and the connection is closed. */
  #authenticate(packet: IConnectPacket): number | undefined {
    if (packet.protocolId !== 'MQTT' || packet.protocolVersion !== 4) return UNACCEPTABLE_PROTOCOL
    if (packet.length !== connectLength(packet)) {
      this.#violate('CONNECT holds exactly the announced fields, in UTF-8 [MQTT-1.5.3-1].')
      return undefined
    }
    // Nothing documents a will here, and no device needs one: better found in a test than in the field.
    if (packet.will !== undefined) {
      this.#violate('The service takes no will.')
      return undefined
    }
    if (packet.password !== undefined && packet.username === undefined) {
      this.#violate('A password needs a user name [MQTT-3.1.2-22].')
      return undefined
    }
    const [, idScope, registrationId, apiVersion] = USER_NAME.exec(packet.username ?? '') ?? []
    if (idScope === undefined || registrationId === undefined || apiVersion === undefined) {
      this.#report('user-name-malformed', packet.clientId)
      return BAD_USER_NAME
    }
    if (packet.clientId !== registrationId) {
      this.#report('registration-id-malformed', packet.clientId)
      return IDENTIFIER_REJECTED
    }
    const password = packet.password?.toString('utf8')
    const result = this.#settings.service.authenticate({
      idScope,
      registrationId,
      apiVersion,
      sas: password === undefined || password === '' ? undefined : password,
      certificate: this.#connection.certificate,
      carrier: this.#carrier,
    })
    if (result.ok) {
      this.#session = result.session
      return ACCEPTED
    }
    this.#report(result.reason, registrationId)
    if (result.reason === 'registration-id-malformed') return IDENTIFIER_REJECTED
    return result.reason === 'api-version-unknown' ? BAD_USER_NAME : NOT_AUTHORIZED
  }

  #report(reason: RefusalReason, registrationId: string): void {
    const connectionId = this.#connection.record.id
    this.#settings.journal.emit({ type: 'refused', connectionId, registrationId, reason })
  }

  #refuse(returnCode: number): void {
    this.#send({ cmd: 'connack', returnCode, sessionPresent: false })
    this.#end()
    this.#connection.stream.end()
  }

  #subscribe(messageId: number, subscriptions: readonly { topic: string; qos: 0 | 1 | 2 }[]): void {
    if (messageId === 0) {
      this.#violate('SUBSCRIBE needs a packet identifier [MQTT-2.3.1-1].')
      return
    }
    const { registrationId } = this.#session!
    const actions = strike(this.#settings, this.#connection.record, 'subscribe', registrationId)
    if (performAll(this.#connection, actions, { rid: '', registrationId })) return
    const granted = subscriptions.map(({ topic, qos }): number => {
      if (topic !== FILTER || actions.includes('refuse')) return 0x80
      this.#subscribed = qos === 0 ? 0 : 1
      return this.#subscribed
    })
    this.#send({ cmd: 'suback', messageId, granted })
  }

  #publish(packet: IPublishPacket): void {
    const request = readRequest(packet)
    if (typeof request === 'string') {
      this.#violate(request)
      return
    }
    const exchange = new Exchange(
      this.#settings,
      this.#connection,
      'mqtt',
      this.#session!,
      request,
      request.rid,
    )
    if (exchange.begin() !== undefined) return
    const acknowledge = (): void => {
      if (packet.qos === 1 && !exchange.has('no-puback')) {
        this.#send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
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
    if (this.#subscribed === undefined || this.#connection.mute) return
    const qos = Math.min(this.#settings.replyQos, this.#subscribed) as 0 | 1
    const retryAfter = out.retryAfter === undefined ? '' : `&retry-after=${out.retryAfter}`
    const topic = out.topic ?? `$dps/registrations/res/${out.status}/?$rid=${out.rid}${retryAfter}`
    for (let copy = 0; copy < out.copies; copy += 1) {
      this.#packetId = (this.#packetId % 65_535) + 1
      const packet: IPublishPacket = {
        cmd: 'publish',
        topic,
        payload: out.body,
        qos,
        dup: false,
        retain: false,
        ...(qos === 1 ? { messageId: this.#packetId } : {}),
      }
      this.#logOutgoing(packet)
      const bytes = generate(packet)
      const { cut } = out
      const sent = cut === undefined ? bytes : bytes.subarray(0, cut.after)
      if (out.byteByByte) for (const byte of sent) this.#write(Buffer.of(byte), true)
      else this.#write(sent, false)
      if (cut !== undefined) {
        this.#afterWrites(() => this.#connection.perform(cut.end, { rid: out.rid, registrationId: '' }))
        return
      }
    }
  }

  /** Writes in order; with `alone`, in a TLS record that nothing else shares. */
  #write(bytes: Buffer, alone: boolean): void {
    if (alone || this.#writing)
      this.#afterWrites(() => this.#connection.stream.write(bytes, () => this.#next()))
    else this.#connection.stream.write(bytes)
  }

  #afterWrites(step: () => void): void {
    this.#steps.push(step)
    if (!this.#writing) this.#next()
  }

  #next(): void {
    const step = this.#steps.shift()
    this.#writing = step !== undefined
    step?.()
  }

  #send(packet: Packet): void {
    if (this.#connection.mute) return
    this.#logOutgoing(packet)
    this.#write(generate(packet), false)
  }

  #restartKeepAlive(): void {
    this.#cancelKeepAlive()
    if (this.#keepAliveMs === 0) return
    this.#cancelKeepAlive = this.#settings.clock.after(this.#keepAliveMs, () => {
      this.#violate('A packet is due within one and a half times the keep-alive [MQTT-3.1.2-24].')
    })
  }

  #violate(rule: string): void {
    if (this.#state === 'closed' || this.#connection.mute) return
    this.#settings.journal.emit({ type: 'violation', connectionId: this.#connection.record.id, rule })
    this.#end()
    this.#connection.hangUp()
  }

  #end(): void {
    this.#state = 'closed'
    this.#cancelKeepAlive()
    this.#carrier.open = false
  }

  #logIncoming(packet: Packet): void {
    this.#settings.journal.packet(this.#summary(packet, 'in'))
  }

  #logOutgoing(packet: Packet): void {
    this.#settings.journal.packet(this.#summary(packet, 'out'))
  }

  #summary(packet: Packet, direction: 'in' | 'out'): PacketRecord {
    const base = {
      connectionId: this.#connection.record.id,
      direction,
      at: this.#settings.clock.now(),
      type: packet.cmd,
    }
    const packetId = packet.messageId === undefined ? {} : { packetId: packet.messageId }
    switch (packet.cmd) {
      case 'connect':
        return {
          ...base,
          clientId: packet.clientId,
          ...(packet.username === undefined ? {} : { userName: packet.username }),
          passwordPresent: packet.password !== undefined && packet.password.length > 0,
          keepAliveSeconds: packet.keepalive ?? 0,
        }
      case 'connack':
        return { ...base, returnCode: packet.returnCode ?? 0 }
      case 'subscribe':
        return {
          ...base,
          ...packetId,
          topics: packet.subscriptions.map(({ topic, qos }) => ({ filter: topic, qos })),
        }
      case 'publish':
        return {
          ...base,
          ...packetId,
          topic: packet.topic,
          qos: packet.qos,
          body: packet.payload.toString('utf8').slice(0, LOGGED_BODY),
        }
      default:
        return { ...base, ...packetId }
    }
  }
}

/** The request a PUBLISH makes, or the rule it breaks. */
function readRequest(packet: IPublishPacket): (DeviceRequest & { readonly rid: string }) | string {
  if (packet.qos === 2) return 'PUBLISH at QoS 2 is not taken.'
  if (packet.retain) return 'PUBLISH with the retain flag is not taken.'
  if (packet.qos === 1 && (packet.messageId ?? 0) === 0) {
    return 'PUBLISH at QoS 1 needs a packet identifier [MQTT-2.3.1-1].'
  }
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

/** Remaining length of a CONNECT that holds these fields and nothing else. */
function connectLength(packet: IConnectPacket): number {
  const field = (text: string | undefined): number => (text === undefined ? 0 : 2 + Buffer.byteLength(text))
  const will = packet.will === undefined ? 0 : field(packet.will.topic) + 2 + packet.will.payload.length
  const password = packet.password === undefined ? 0 : 2 + packet.password.length
  return 10 + field(packet.clientId) + will + field(packet.username) + password
}

/** Size of a packet with its fixed header (MQTT 3.1.1, section 2.2.3). */
function packetSize({ length = 0 }: Packet): number {
  return 1 + [0, 128, 16_384, 2_097_152].filter((least) => length >= least).length + length
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
