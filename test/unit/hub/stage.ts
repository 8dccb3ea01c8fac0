import { symmetricKey } from '../../../src/credential/sas.ts'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type EmulatorOptions,
  generateSymmetricKey,
  type Pki,
  startEmulator,
} from '../../../src/emulator/index.ts'
import {
  type ConnectHubOptions,
  connectHub,
  type HubConnection,
  type HubEvent,
} from '../../../src/hub/index.ts'

export const HUB = 'emulated-hub.azure-devices.net'
export const ID = 'sensor-1'
export const KEY = generateSymmetricKey()
export const ASSIGNMENT = { assignedHub: HUB, deviceId: ID }

let pki: Promise<Pki> | undefined

export type HubEventOf<T extends HubEvent['type']> = Extract<HubEvent, { type: T }>

/** A hub that knows one device, and connections of that device; `close` ends all of it. */
export class HubStage {
  readonly emulator: Emulator
  readonly events: HubEvent[] = []
  readonly seen: EmulatorEvent[]
  readonly #connections: HubConnection[] = []
  readonly #waiting = new Set<() => void>()

  private constructor(emulator: Emulator, seen: EmulatorEvent[]) {
    this.emulator = emulator
    this.seen = seen
  }

  static async open(options: EmulatorOptions = {}): Promise<HubStage> {
    pki ??= createPki()
    const seen: EmulatorEvent[] = []
    const emulator = await startEmulator({
      pki: await pki,
      assigning: { polls: 0 },
      onEvent: (event) => seen.push(event),
      ...options,
    })
    emulator.hub.addDevice({ deviceId: ID, authentication: { symmetricKey: { primaryKey: KEY } } })
    return new HubStage(emulator, seen)
  }

  options(more: Partial<ConnectHubOptions> = {}): ConnectHubOptions {
    return {
      ...this.emulator.hubOptions(),
      credential: symmetricKey({ registrationId: ID, key: KEY }),
      retry: { baseDelayMs: 5, maxDelayMs: 50 },
      onEvent: (event) => {
        this.events.push(event)
        for (const wake of [...this.#waiting]) wake()
      },
      ...more,
    }
  }

  async connect(
    more: Partial<ConnectHubOptions> = {},
    assignment: object = ASSIGNMENT,
  ): Promise<HubConnection> {
    const connection = await connectHub(assignment as typeof ASSIGNMENT, this.options(more))
    this.#connections.push(connection)
    return connection
  }

  adopt(connection: HubConnection): HubConnection {
    this.#connections.push(connection)
    return connection
  }

  of<T extends HubEvent['type']>(type: T): HubEventOf<T>[] {
    return this.events.filter((event): event is HubEventOf<T> => event.type === type)
  }

  /** The event of this type that comes next, `count` of them having been seen. */
  async next<T extends HubEvent['type']>(type: T, count = this.of(type).length): Promise<HubEventOf<T>> {
    while (this.of(type).length <= count) {
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          this.#waiting.delete(wake)
          resolve()
        }
        this.#waiting.add(wake)
      })
    }
    return this.of(type)[count]!
  }

  async close(): Promise<void> {
    for (const connection of this.#connections) await connection.close({ drainMs: 0 })
    await this.emulator.close()
  }
}
