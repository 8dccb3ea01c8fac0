import type { ClientHelloFacts } from './client-hello.ts'
import type { FaultPoint } from './faults.ts'
import type { HubEnding, TelemetryRecord } from './hub/hub.ts'
import type { IssuedCertificateInfo } from './issuance/authority.ts'
import type { RefusalReason, Registration } from './service.ts'

/** What TLS settled on for a connection. */
export interface HandshakeFacts {
  /** `'TLSv1.2'` */
  readonly protocol: string
  /** OpenSSL's name of the suite. */
  readonly cipher: string
  /** The server name the client asked for (SNI), if any. */
  readonly serverName: string | undefined
  readonly resumed: boolean
  /** The certificate the client presented, verified or not. */
  readonly clientCertificate:
    | { readonly subject: string; readonly fingerprint256: string; readonly intermediates: number }
    | undefined
}

/** One connection, as far as it has come. */
export interface ConnectionRecord {
  /** Counts from 1. */
  readonly id: number
  /** The emulator's port. */
  readonly port: number
  readonly remotePort: number
  /** Wall clock, ms. */
  readonly openedAt: number
  /** The TLS records that carry the ClientHello, byte for byte as received; empty until complete. */
  readonly clientHello: Buffer
  readonly handshake: HandshakeFacts | undefined
  /** `code` of the error that ended the handshake. */
  readonly handshakeError: string | undefined
  /** What the device speaks, once it is known. */
  readonly transport: 'mqtt' | 'mqtt-ws' | 'https' | undefined
  /** As the device names itself: in CONNECT (at a hub, its client id), or in its latest request over HTTPS. */
  readonly registrationId: string | undefined
  readonly closedAt: number | undefined
}

/** A packet, HTTP request or response in short. A password or token is only ever said to be there. */
export interface PacketRecord {
  readonly connectionId: number
  /** `in`: from the device. */
  readonly direction: 'in' | 'out'
  /** Wall clock, ms. */
  readonly at: number
  /**
   * MQTT control packet type in lower case, such as `'publish'`; `'request'` and `'response'` over HTTPS, `'upgrade'`
   * for the request that begins MQTT over WebSocket.
   */
  readonly type: string
  readonly clientId?: string
  readonly userName?: string
  readonly passwordPresent?: boolean
  readonly keepAliveSeconds?: number
  readonly topic?: string
  readonly qos?: number
  readonly packetId?: number
  readonly returnCode?: number
  readonly topics?: readonly { readonly filter: string; readonly qos: number }[]
  /** HTTP method. */
  readonly method?: string
  /** Path and query as requested. */
  readonly target?: string
  /** HTTP status. */
  readonly status?: number
  /** HTTP header fields, names in lower case; those that may hold a secret are left out. */
  readonly headers?: Readonly<Record<string, string>>
  readonly authorizationPresent?: boolean
  /** Of a PUBLISH, HTTP request or response, as text; at most 4 096 characters. */
  readonly body?: string
}

/** Everything the emulator sees, as plain data. No event carries a key or a token. */
export type EmulatorEvent =
  | { readonly type: 'connection-opened'; readonly connectionId: number; readonly port: number }
  | {
      readonly type: 'client-hello'
      readonly connectionId: number
      readonly bytes: Buffer
      /** What the bytes say. */
      readonly offered: ClientHelloFacts
    }
  | ({ readonly type: 'handshake-done'; readonly connectionId: number } & HandshakeFacts)
  | { readonly type: 'handshake-failed'; readonly connectionId: number; readonly code: string }
  | { readonly type: 'packet'; readonly packet: PacketRecord }
  | {
      /** The service's or the hub's reason, which a device is not told. */
      readonly type: 'refused'
      readonly connectionId: number
      /** At a hub, the client id. */
      readonly registrationId: string
      readonly reason: RefusalReason
    }
  | {
      /** The device broke a rule of the protocol: its connection was closed, or its HTTP request answered with 4xx. */
      readonly type: 'violation'
      readonly connectionId: number
      readonly rule: string
    }
  | { readonly type: 'fault'; readonly point: FaultPoint; readonly actions: readonly string[] }
  | { readonly type: 'registration'; readonly registration: Registration }
  | { readonly type: 'certificate-issued'; readonly certificate: IssuedCertificateInfo }
  | { readonly type: 'telemetry'; readonly message: TelemetryRecord }
  | {
      /** A hub let a device in, or ended its connection by itself. */
      readonly type: 'hub-connected' | 'hub-disconnected'
      readonly connectionId: number
      readonly hub: string
      readonly clientId: string
      /** Why the hub ended it. */
      readonly reason?: HubEnding
    }
  | { readonly type: 'connection-closed'; readonly connectionId: number }

/** The latest connections and packets, oldest first. */
export interface EmulatorLog {
  readonly connections: readonly ConnectionRecord[]
  readonly packets: readonly PacketRecord[]
  clear(): void
}

type Mutable<T> = { -readonly [Key in keyof T]: T[Key] }

/** A record while its connection lives. */
export type LiveRecord = Mutable<ConnectionRecord>

/** Keeps the newest `capacity` items; adding costs the same however many there are. */
class Ring<T> {
  readonly #capacity: number
  #items: T[] = []
  #next = 0

  constructor(capacity: number) {
    this.#capacity = capacity
  }

  add(item: T): void {
    if (this.#capacity === 0) return
    if (this.#items.length < this.#capacity) {
      this.#items.push(item)
      return
    }
    this.#items[this.#next] = item
    this.#next = (this.#next + 1) % this.#capacity
  }

  toArray(): T[] {
    return [...this.#items.slice(this.#next), ...this.#items.slice(0, this.#next)]
  }

  clear(): void {
    this.#items = []
    this.#next = 0
  }
}

export class Journal implements EmulatorLog {
  readonly #connections: Ring<ConnectionRecord>
  readonly #packets: Ring<PacketRecord>
  readonly #listener: ((event: EmulatorEvent) => void) | undefined
  #warned = false

  constructor(capacity: number, listener: ((event: EmulatorEvent) => void) | undefined) {
    this.#connections = new Ring(capacity)
    this.#packets = new Ring(capacity)
    this.#listener = listener
  }

  get connections(): readonly ConnectionRecord[] {
    return this.#connections.toArray()
  }

  get packets(): readonly PacketRecord[] {
    return this.#packets.toArray()
  }

  clear(): void {
    this.#connections.clear()
    this.#packets.clear()
  }

  opened(record: ConnectionRecord): void {
    this.#connections.add(record)
    this.emit({ type: 'connection-opened', connectionId: record.id, port: record.port })
  }

  packet(packet: PacketRecord): void {
    this.#packets.add(packet)
    this.emit({ type: 'packet', packet })
  }

  emit(event: EmulatorEvent): void {
    try {
      this.#listener?.(event)
    } catch (error) {
      // The listener is called from socket handlers, where a throw would end the process of the user's tests.
      if (!this.#warned) process.emitWarning(`onEvent threw: ${String(error)}`, 'EmulatorWarning')
      this.#warned = true
    }
  }
}
