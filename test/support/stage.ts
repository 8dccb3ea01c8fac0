import { getEventListeners, once } from 'node:events'
import net from 'node:net'
import { expect, test } from 'vitest'
import {
  createPki,
  type Emulator,
  type EmulatorEvent,
  type EmulatorOptions,
  type FaultStep,
  generateSymmetricKey,
  startEmulator,
} from '../../src/emulator/index.ts'
import {
  type Assignment,
  type Clock,
  type DpsEvent,
  type DpsPhase,
  ProvisioningClient,
  type ProvisioningClientOptions,
  type RegisterOptions,
  symmetricKey,
} from '../../src/index.ts'
import { type TestClock, testClock } from './clock.ts'

/** Shared by all tests of a file: its keys take a while to make. */
export const pki = await createPki()

/** The device that everybody tells the truth about; its key is known to the service. */
export const REGISTRATION_ID = 'sensor-1'
export const DEVICE_KEY = generateSymmetricKey()

export interface Setup {
  /** Of the emulator while it lies. Taken away afterwards, when the client has to succeed. */
  lies?: EmulatorOptions
  /** Of the emulator all the time. */
  emulator?: EmulatorOptions
  /** Of the client. */
  client?: Partial<ProvisioningClientOptions>
  /** Makes the client's clock out of the virtual one. */
  clock?: (virtual: TestClock) => Clock
  /** Puts right what was wrong on the device, before the same client is used again. */
  repair?: (stage: Stage) => void | Promise<void>
}

/** One emulator, and one client that is led there and lives in virtual time. */
export class Stage {
  readonly clock: TestClock = testClock({ startMs: Date.now() })
  readonly client: ProvisioningClient
  /** What the client reported. */
  readonly events: DpsEvent[] = []
  /** What the emulator saw, restarts included. */
  readonly seen: EmulatorEvent[] = []
  readonly controller = new AbortController()
  readonly port: number
  readonly #setup: Setup
  readonly #watchers = new Set<() => void>()
  #emulator: Emulator
  #impostor: { readonly open: ReadonlySet<net.Socket>; close(): Promise<void> } | undefined

  static async open(setup: Setup): Promise<Stage> {
    // What the emulator sees before the stage is complete is nothing.
    let stage: Stage | undefined
    const emulator = await startEmulator({
      ...optionsOf(setup, (event) => stage?.saw(event)),
      ...setup.lies,
    })
    stage = new Stage(setup, emulator)
    return stage
  }

  private constructor(setup: Setup, emulator: Emulator) {
    this.#setup = setup
    this.#emulator = emulator
    this.port = emulator.port
    this.client = new ProvisioningClient({
      ...emulator.clientOptions(),
      credential: symmetricKey({ registrationId: REGISTRATION_ID, key: DEVICE_KEY }),
      clock: setup.clock?.(this.clock) ?? this.clock,
      ...setup.client,
      onEvent: (event) => {
        this.events.push(event)
        setup.client?.onEvent?.(event)
        this.#look()
      },
    })
  }

  get emulator(): Emulator {
    return this.#emulator
  }

  get faults(): Emulator['faults'] {
    return this.#emulator.faults
  }

  register(options: RegisterOptions = {}): Promise<Assignment> {
    return this.client.register({ signal: this.controller.signal, ...options })
  }

  /** Topics of the requests that reached the emulator, in order. */
  get requests(): readonly string[] {
    return this.seen.flatMap((event) =>
      event.type === 'packet' && event.packet.direction === 'in' && event.packet.type === 'publish'
        ? (event.packet.topic ?? '')
        : [],
    )
  }

  /** The reasons for which the service let nobody in; it does not tell them to the device. */
  get refusals(): readonly string[] {
    return this.seen.flatMap((event) => (event.type === 'refused' ? event.reason : []))
  }

  /** Resolves as soon as `holds` does, which is asked after every event of either side. */
  when(holds: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const watcher = () => {
        if (!holds()) return
        this.#watchers.delete(watcher)
        resolve()
      }
      this.#watchers.add(watcher)
      watcher()
    })
  }

  /** Calls `then` every time the client has come to wait in `phase` and the fault at `step` has struck it there. */
  eachStall(step: Exclude<FaultStep, 'issue'>, phase: DpsPhase, then: () => void): void {
    let served = 0
    const watcher = () => {
      const waits = this.events.filter((e) => e.type === 'phase-started' && e.phase === phase).length
      const hits = this.seen.filter((e) => e.type === 'fault' && e.point.at === step).length
      if (Math.min(waits, hits) <= served) return
      served++
      // Not within the event: what it announces has to have happened.
      setImmediate(then)
    }
    this.#watchers.add(watcher)
    watcher()
  }

  /** Something else than the service, on the port where it was. */
  async replaceServer(handle: (socket: net.Socket) => void): Promise<void> {
    await this.#emulator.close()
    const open = new Set<net.Socket>()
    const server = net.createServer((socket) => {
      open.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => {
        open.delete(socket)
        this.#look()
      })
      handle(socket)
    })
    server.listen(this.port, '127.0.0.1')
    await once(server, 'listening')
    this.#impostor = {
      open,
      close: async () => {
        server.close()
        await once(server, 'close')
      },
    }
  }

  /** The service on the same port again: as it should be, or with other lies. */
  async restart(lies: EmulatorOptions = {}): Promise<void> {
    await this.#emulator.close()
    await this.#impostor?.close()
    this.#impostor = undefined
    this.#emulator = await startEmulator({
      ...optionsOf(this.#setup, (event) => this.saw(event)),
      port: this.port,
      ...lies,
    })
  }

  /** After any call, whatever its outcome. */
  async leavesNothing(): Promise<void> {
    await this.when(() => this.#emulator.openConnections === 0 && (this.#impostor?.open.size ?? 0) === 0)
    expect(this.clock.pending, 'timers left').toBe(0)
    expect(getEventListeners(this.controller.signal, 'abort'), 'listeners left on the signal').toEqual([])
  }

  /** The lie is over: the same client succeeds, as if nothing had been. */
  async recovers(): Promise<void> {
    this.#watchers.clear()
    this.faults.clear()
    const { lies, repair } = this.#setup
    if (lies !== undefined || this.#impostor !== undefined) await this.restart()
    await repair?.(this)
    const { signal } = new AbortController()
    expect(await this.client.register({ signal })).toMatchObject({
      status: 'assigned',
      assignedHub: 'emulated-hub.azure-devices.net',
    })
    expect(getEventListeners(signal, 'abort')).toEqual([])
    await this.leavesNothing()
  }

  async close(): Promise<void> {
    this.controller.abort()
    await this.#emulator.close()
    await this.#impostor?.close()
  }

  saw(event: EmulatorEvent): void {
    this.seen.push(event)
    this.#look()
  }

  #look(): void {
    for (const watcher of [...this.#watchers]) watcher()
  }
}

function optionsOf({ emulator }: Setup, onEvent: (event: EmulatorEvent) => void): EmulatorOptions {
  return {
    pki,
    assigning: { polls: 1, retryAfterSeconds: 0 },
    enrollments: [
      {
        registrationId: REGISTRATION_ID,
        attestation: { symmetricKey: { primaryKey: DEVICE_KEY } },
      },
    ],
    ...emulator,
    onEvent,
  }
}

/**
 * A test named after a lie. Afterwards nothing of the call may be left, and the same client must register when the lie
 * is over.
 */
export function lie(name: string, setup: Setup, tell: (stage: Stage) => Promise<void>): void {
  test(name, async () => {
    const stage = await Stage.open(setup)
    try {
      await tell(stage)
      await stage.leavesNothing()
      await stage.recovers()
    } finally {
      await stage.close()
    }
  })
}
