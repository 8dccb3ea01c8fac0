import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import type { TLSSocket } from 'node:tls'
import { systemClock } from '../clock.ts'
import type { Identity } from '../credential/credential.ts'
import { symmetricKey } from '../credential/sas.ts'
import type { Emulator, Fault, FaultSpec } from '../emulator/index.ts'
import { DpsError, type DpsErrorCode, type DpsPhase } from '../errors.ts'
import { registrationResource } from '../protocol/sas-token.ts'
import { dial } from '../tls/dial.ts'
import { resolvePolicy, type TlsPolicy } from '../tls/policy.ts'
import type {
  DialedSocket,
  RawReply,
  Transport,
  TransportContext,
  TransportRequest,
  TransportSession,
} from '../transport/transport.ts'

/** How often a state that announces itself to nobody is looked at, ms. */
const LOOK_MS = 2

const TOKEN_LIFETIME_S = 3600

let stages = 0

/** One transport, led to the emulator by the client's own dialer, and everything that was opened on the way. */
export class Stage {
  readonly transport: Transport
  /** What the session was opened with; `signal` is that of `controller`. */
  readonly controller = new AbortController()
  /** Phases as they were announced. */
  readonly phases: DpsPhase[] = []
  /** Ports that were asked for. */
  readonly ports: number[] = []
  readonly dialled: DialedSocket[] = []
  readonly registrationId: string
  readonly #emulator: Emulator
  readonly #limitMs: number
  readonly #policy: TlsPolicy
  readonly #identity: Identity
  readonly #sessions: TransportSession[] = []
  readonly #signals: AbortSignal[] = []

  /** Runs `act` on a stage of its own, and makes sure that nothing is left of it. */
  static async run(
    transport: Transport,
    emulator: Emulator,
    limitMs: number,
    act: (stage: Stage) => Promise<void>,
  ): Promise<void> {
    const registrationId = `transport-contract-${++stages}`
    const key = emulator.enrollments.addIndividual({
      registrationId,
      attestation: { symmetricKey: {} },
      // What was sent comes back with the assignment.
      payload: ({ payload }) => payload,
    })
    assert(key !== undefined)
    const identity = await symmetricKey({ registrationId, key: key.primaryKey }).load()
    const stage = new Stage(transport, emulator, limitMs, identity)
    try {
      await act(stage)
      await stage.#leavesNothing()
    } finally {
      emulator.faults.clear()
      emulator.enrollments.remove({ registrationId })
      // After a failure too, so that the next case begins with nothing.
      for (const { socket } of stage.dialled) socket.destroy()
      await stage.#gone()
    }
  }

  private constructor(transport: Transport, emulator: Emulator, limitMs: number, identity: Identity) {
    this.transport = transport
    this.registrationId = identity.registrationId
    this.#emulator = emulator
    this.#limitMs = limitMs
    this.#identity = identity
    // Resumed handshakes would make a case depend on the one before.
    this.#policy = resolvePolicy({ sessionResumption: false }, emulator.clientOptions().trust)
    this.#signals.push(this.controller.signal)
  }

  /** Everything a transport is given, for this device. */
  context(overrides: Partial<TransportContext> = {}): TransportContext {
    const { host, port, connectTo, idScope } = this.#emulator.clientOptions()
    const { registrationId, controller } = this
    return {
      host,
      port,
      idScope,
      registrationId,
      apiVersion: '2019-03-31',
      userAgent: 'transport-contract',
      maxReplyBytes: 65_536,
      signal: controller.signal,
      enter: (phase) => {
        this.phases.push(phase)
      },
      dial: (asked) => this.dial(asked, connectTo),
      token: () =>
        this.#identity.token(
          registrationResource(idScope, registrationId),
          Math.floor(systemClock.now() / 1000) + TOKEN_LIFETIME_S,
          'registration',
        ),
      ...overrides,
    }
  }

  /** The client's dialer; remembers what it has opened. */
  async dial(port: number, address = this.#emulator.clientOptions().connectTo): Promise<DialedSocket> {
    this.ports.push(port)
    const { host } = this.#emulator.clientOptions()
    const dialled = await dial({ host, port, address }, this.#policy, this.#identity, {
      signal: this.controller.signal,
      enter: (phase) => this.phases.push(phase),
      clock: systemClock,
    })
    this.dialled.push(dialled)
    return dialled
  }

  /** Opens a session; one that opens after all is closed in the end. */
  open(overrides: Partial<TransportContext> = {}): Promise<TransportSession> {
    const opening = this.transport.open(this.context(overrides))
    opening.then(
      (session) => this.#sessions.push(session),
      () => {},
    )
    return this.within('open', opening)
  }

  /** A request with a signal of its own. Its rejection waits until it is looked at. */
  request(
    session: TransportSession,
    request: TransportRequest = this.register(),
  ): Promise<RawReply> & { controller: AbortController } {
    const controller = new AbortController()
    this.#signals.push(controller.signal)
    const pending = this.within('request', session.request(request, controller.signal))
    pending.catch(() => {})
    return Object.assign(pending, { controller })
  }

  register(): TransportRequest {
    return { kind: 'register', body: JSON.stringify({ registrationId: this.registrationId }) }
  }

  /** Opens a session and sends a register request, and rejects where either does. */
  async exchange(overrides: Partial<TransportContext> = {}): Promise<RawReply> {
    return this.request(await this.open(overrides))
  }

  /** A session on which an operation has been started. */
  async started(
    overrides: Partial<TransportContext> = {},
  ): Promise<{ session: TransportSession; query: TransportRequest }> {
    const session = await this.open(overrides)
    const { operationId } = bodyOf(await this.request(session))
    assert(
      typeof operationId === 'string',
      'the reply to a register request carries no operationId: start the emulator with `assigning.polls` of at least 1',
    )
    return { session, query: { kind: 'query', operationId } }
  }

  fault(spec: FaultSpec): Fault {
    return this.#emulator.faults.add(spec)
  }

  /** The rejection of `promise`, which must be a DpsError, of this code and phase where they are given. */
  async refused(promise: Promise<unknown>, code?: DpsErrorCode, phase?: DpsPhase): Promise<DpsError> {
    const error = await this.rejection(promise)
    assert(DpsError.is(error), `only a DpsError may come out of a transport, not: ${String(error)}`)
    assert.equal(error.code, code ?? error.code, `the code of the error must be ${code}: ${error.message}`)
    assert.equal(error.phase, phase ?? error.phase, `the phase of ${error.code} must be ${phase}`)
    return error
  }

  async rejection(promise: Promise<unknown>): Promise<unknown> {
    const outcome = await this.within(
      'the promise',
      promise.then(
        () => undefined,
        (error: unknown) => ({ error }),
      ),
    )
    assert(outcome !== undefined, 'the promise must reject, but it resolved')
    if (outcome.error instanceof assert.AssertionError) throw outcome.error
    return outcome.error
  }

  /** Rejects where `promise` takes longer than the limit of the suite. */
  async within<T>(what: string, promise: Promise<T>): Promise<T> {
    let disarm: (() => void) | undefined
    const late = new Promise<never>((_, reject) => {
      disarm = systemClock.after(this.#limitMs, () =>
        reject(new assert.AssertionError({ message: `${what} was not settled within ${this.#limitMs} ms` })),
      )
    })
    try {
      return await Promise.race([promise, late])
    } finally {
      disarm?.()
    }
  }

  /** Waits until no connection is left, neither here nor at the emulator. */
  async gone(): Promise<void> {
    assert(await this.#gone(), 'a connection is left open')
  }

  async #gone(): Promise<boolean> {
    const until = systemClock.monotonic() + this.#limitMs
    const { signal } = new AbortController()
    const closed = (socket: TLSSocket) => socket.closed
    while (this.#emulator.openConnections > 0 || !this.dialled.every(({ socket }) => closed(socket))) {
      if (systemClock.monotonic() > until) return false
      await systemClock.sleep(LOOK_MS, signal)
    }
    return true
  }

  async #leavesNothing(): Promise<void> {
    for (const session of this.#sessions) await this.within('close', session.close())
    await this.gone()
    for (const signal of this.#signals) {
      const { length } = getEventListeners(signal, 'abort')
      assert.equal(length, 0, 'a listener is left on a signal')
    }
  }
}

/** The body of a reply, which must be a JSON object. */
export function bodyOf(reply: RawReply): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(reply.body))
  } catch (cause) {
    assert.fail(`the body of a reply must be as the server sent it: ${String(cause)}`)
  }
  assert(typeof value === 'object' && value !== null, 'the body of a reply must be as the server sent it')
  return value as Record<string, unknown>
}
