import {
  generate,
  type IConnectPacket,
  type IPublishPacket,
  type Packet,
  parser,
  writeToStream,
} from 'mqtt-packet'
import type { Clock } from '../../clock.ts'
import type { FaultScript } from '../faults.ts'
import type { Journal, PacketRecord } from '../journal.ts'
import type { RefusalReason } from '../service.ts'
import type { FrontConnection } from './listener.ts'

export interface MqttServerSettings {
  readonly clock: Clock
  readonly faults: FaultScript
  readonly journal: Journal
  /** Whether packets may follow CONNECT before its CONNACK (MQTT 3.1.1, section 3.1.4). */
  readonly pipelining: 'accept' | 'drop'
}

// Precomputing every number up to 65 535 costs more memory and start-up time than it ever gives back here.
writeToStream.cacheNumbers = false

/** MQTT 3.1.1, section 3.2.2.3. */
export const CONNACK = {
  ACCEPTED: 0,
  UNACCEPTABLE_PROTOCOL: 1,
  IDENTIFIER_REJECTED: 2,
  BAD_USER_NAME: 4,
  NOT_AUTHORIZED: 5,
} as const

const LOGGED_BODY = 4096
const NOT_BEFORE_CONNACK = 'Packets before CONNACK are not taken.'

/** One connection of a device: what every server of MQTT 3.1.1 does, on any stream. Who serves decides the rest. */
export abstract class MqttServer<Settings extends MqttServerSettings = MqttServerSettings> {
  protected readonly settings: Settings
  protected readonly connection: FrontConnection
  readonly #largestPacket: number
  readonly #parser = parser()
  #state: 'new' | 'connecting' | 'connected' | 'closed' = 'new'
  #keepAliveMs = 0
  #cancelKeepAlive: () => void = () => undefined
  #packetId = 0
  /** What is to be written one after the other, and whether that is going on. */
  readonly #steps: (() => void)[] = []
  #writing = false
  /** Bytes so far. */
  #received = 0

  constructor(settings: Settings, connection: FrontConnection, largestPacket: number) {
    this.settings = settings
    this.connection = connection
    this.#largestPacket = largestPacket
  }

  /** Called with the first packet: ends in `admit`, `refuse` or `violate`. */
  protected abstract connect(packet: IConnectPacket): void
  /** SUBSCRIBE, UNSUBSCRIBE, PUBLISH and PUBACK of a device that was let in; packet identifiers are checked. */
  protected abstract receive(packet: Packet): void
  /** The device has said DISCONNECT. */
  protected abstract disconnected(): void
  /** Called once, however the connection came to its end. */
  protected abstract ended(): void
  /** CONNACK has been written. */
  protected admitted(): void {}

  start(first: Buffer): void {
    const { stream, record } = this.connection
    record.transport ??= 'mqtt'
    this.#parser.on('packet', (packet) => this.#receive(packet))
    this.#parser.on('error', () => this.violate('The packet must be well-formed MQTT 3.1.1.'))
    stream.on('data', (chunk: Buffer) => this.#read(chunk))
    stream.once('close', () => this.end())
    // A device that ends its side has nothing more to say.
    stream.once('end', () => this.end())
    this.#read(first)
  }

  protected get closed(): boolean {
    return this.#state === 'closed'
  }

  #read(chunk: Buffer): void {
    if (this.closed || this.connection.mute) return
    if (this.#state === 'connecting') {
      this.violate(NOT_BEFORE_CONNACK)
      return
    }
    this.#received += chunk.length
    const incomplete = this.#parser.parse(chunk)
    if (incomplete > this.#largestPacket) this.violate(`A packet is at most ${this.#largestPacket} bytes.`)
  }

  #receive(packet: Packet): void {
    // [MQTT-3.1.4-5]: what follows a refused CONNECT is not processed.
    if (this.closed || this.connection.mute) return
    this.settings.journal.packet(this.#summary(packet, 'in'))
    if ((packet.length ?? 0) > this.#largestPacket) {
      this.violate(`A packet is at most ${this.#largestPacket} bytes.`)
      return
    }
    if (this.#state === 'new') {
      if (packet.cmd === 'connect') this.connect(packet)
      else this.violate('The first packet must be CONNECT [MQTT-3.1.0-1].')
      return
    }
    this.#restartKeepAlive()
    switch (packet.cmd) {
      case 'subscribe':
      case 'unsubscribe':
        if ((packet.messageId ?? 0) === 0) {
          this.violate(`${packet.cmd.toUpperCase()} needs a packet identifier [MQTT-2.3.1-1].`)
        } else this.receive(packet)
        break
      case 'publish':
        if (packet.qos === 2) this.violate('PUBLISH at QoS 2 is not taken.')
        else if (packet.qos === 1 && (packet.messageId ?? 0) === 0) {
          this.violate('PUBLISH at QoS 1 needs a packet identifier [MQTT-2.3.1-1].')
        } else this.receive(packet)
        break
      case 'puback':
        this.receive(packet)
        break
      case 'pingreq':
        this.pinged()
        break
      case 'disconnect':
        this.disconnected()
        this.end()
        this.connection.stream.end()
        break
      case 'connect':
        this.violate('CONNECT may be sent once [MQTT-3.1.0-2].')
        break
      default:
        this.violate(`A device does not send ${packet.cmd.toUpperCase()}.`)
    }
  }

  protected pinged(): void {
    this.send({ cmd: 'pingresp' })
  }

  /** The CONNACK return code of what is wrong with any CONNECT, 0, or undefined if it broke the protocol. */
  protected checkConnect(packet: IConnectPacket): number | undefined {
    if (packet.protocolId !== 'MQTT' || packet.protocolVersion !== 4) return CONNACK.UNACCEPTABLE_PROTOCOL
    if (packet.length !== connectLength(packet)) {
      this.violate('CONNECT holds exactly the announced fields, in UTF-8 [MQTT-1.5.3-1].')
      return undefined
    }
    if (packet.password !== undefined && packet.username === undefined) {
      this.violate('A password needs a user name [MQTT-3.1.2-22].')
      return undefined
    }
    return CONNACK.ACCEPTED
  }

  /** Lets the device in; `sessionPresent` is asked for when CONNACK is written. */
  protected admit(packet: IConnectPacket, sessionPresent: () => boolean): void {
    this.#keepAliveMs = (packet.keepalive ?? 0) * 1500
    if (this.settings.pipelining === 'accept') {
      this.#accept(sessionPresent)
      return
    }
    if (this.#received > packetSize(packet)) {
      this.violate(NOT_BEFORE_CONNACK)
      return
    }
    this.#state = 'connecting'
    // What was sent right behind CONNECT in a TLS record of its own has arrived by the next turn of the event loop.
    setImmediate(() => {
      if (this.#state === 'connecting') this.#accept(sessionPresent)
    })
  }

  #accept(sessionPresent: () => boolean): void {
    this.#state = 'connected'
    this.#restartKeepAlive()
    this.send({ cmd: 'connack', returnCode: CONNACK.ACCEPTED, sessionPresent: sessionPresent() })
    this.admitted()
  }

  protected refuse(returnCode: number): void {
    this.send({ cmd: 'connack', returnCode, sessionPresent: false })
    this.end()
    this.connection.stream.end()
  }

  /** The service's own reason, which a device is not told. */
  protected report(reason: RefusalReason, registrationId: string): void {
    this.settings.journal.emit({
      type: 'refused',
      connectionId: this.connection.record.id,
      registrationId,
      reason,
    })
  }

  protected send(packet: Packet): void {
    if (this.connection.mute) return
    this.log(packet)
    this.write(generate(packet), false)
  }

  protected log(packet: Packet): void {
    this.settings.journal.packet(this.#summary(packet, 'out'))
  }

  protected nextPacketId(): number {
    this.#packetId = (this.#packetId % 65_535) + 1
    return this.#packetId
  }

  /** Writes in order; with `alone`, in a TLS record that nothing else shares. */
  protected write(bytes: Buffer, alone: boolean): void {
    if (alone || this.#writing)
      this.afterWrites(() => this.connection.stream.write(bytes, () => this.#next()))
    else this.connection.stream.write(bytes)
  }

  protected afterWrites(step: () => void): void {
    this.#steps.push(step)
    if (!this.#writing) this.#next()
  }

  #next(): void {
    const step = this.#steps.shift()
    this.#writing = step !== undefined
    step?.()
  }

  #restartKeepAlive(): void {
    this.#cancelKeepAlive()
    if (this.#keepAliveMs === 0) return
    this.#cancelKeepAlive = this.settings.clock.after(this.#keepAliveMs, () => {
      this.violate('A packet is due within one and a half times the keep-alive [MQTT-3.1.2-24].')
    })
  }

  protected violate(rule: string): void {
    if (this.closed || this.connection.mute) return
    this.settings.journal.emit({ type: 'violation', connectionId: this.connection.record.id, rule })
    this.end()
    this.connection.hangUp()
  }

  protected end(): void {
    if (this.closed) return
    this.#state = 'closed'
    this.#cancelKeepAlive()
    this.ended()
  }

  #summary(packet: Packet, direction: 'in' | 'out'): PacketRecord {
    const base = {
      connectionId: this.connection.record.id,
      direction,
      at: this.settings.clock.now(),
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

/** A PUBLISH to a device. */
export function publishPacket(
  topic: string,
  payload: Buffer,
  qos: 0 | 1,
  packetId: number | undefined,
  dup = false,
): IPublishPacket {
  return {
    cmd: 'publish',
    topic,
    payload,
    qos,
    dup,
    retain: false,
    ...(packetId === undefined ? {} : { messageId: packetId }),
  }
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
