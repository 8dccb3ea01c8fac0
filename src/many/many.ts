import { setMaxListeners } from 'node:events'
import type { Assignment, RegistrationState } from '../assignment/assignment.ts'
import type { Errand } from '../client.ts'
import type { Credential } from '../credential/credential.ts'
import { DpsError } from '../errors.ts'
import type { DpsEvent, RegisterOptions } from '../options/options.ts'
import { sameRegistrationId } from '../protocol/registration-id.ts'
import type { ManyDevice, ManyResult, ManyTools, ProvisionManyOptions } from '../provision-many.ts'
import type { Pace } from '../registration/run.ts'
import { Bucket } from './bucket.ts'
import { IdTable } from './id-table.ts'
import { Journal } from './journal.ts'

const DEVICE = new Set(['credential', 'registrationId', 'payload', 'tag'])
const OWN = ['concurrency', 'ratePerMinute', 'store', 'inDoubt', 'payload', 'signal']

/** From there on a number in the table is a place in this list; below, it is one in the journal. */
const SEEN = 2 ** 52

/** What a clock that is kept in time may be off by. */
const CLOCK_SLACK_MS = 300_000

/** A disk may think for seconds; a journal that never answers must not hold a run. */
const STORE_LIMIT_MS = 30_000

/** That of a million devices is half a gigabyte, which a small board takes minutes to read. */
const OPEN_LIMIT_MS = 900_000

/** A service that is still assigning is asked again so often, and so long after. */
const MAX_LOOKUPS = 10
const LOOKUP_GAP_MS = 3000

const MAX_CONCURRENCY = 10_000

type Devices<T> = Iterable<ManyDevice<T>> | AsyncIterable<ManyDevice<T>>
type End<T> = IteratorResult<ManyResult<T>, undefined>

/** What `provisionMany` iterates over. Nothing happens before it is asked for the first result. */
export function openMany<T>(
  devices: Devices<T>,
  options: ProvisionManyOptions<T>,
  tools: ManyTools,
): AsyncIterator<ManyResult<T>, undefined> {
  let run: Run<T> | undefined
  let over = false
  let last: Promise<unknown> = Promise.resolve()
  const end = async (): Promise<End<T>> => {
    over = true
    await run?.close()
    return { value: undefined, done: true }
  }
  const take = async (): Promise<End<T>> => {
    if (over) return end()
    try {
      run ??= new Run(devices, options, tools)
      const value = await run.take()
      return value === undefined ? await end() : { value, done: false }
    } catch (error) {
      // Whoever has gone is not told that it was cut off by that.
      const told = !over
      await end()
      if (told) throw error
      return end()
    }
  }
  return {
    // One after the other, as a generator would.
    next: () => {
      const turn = last.then(take)
      last = turn.catch(() => {})
      return turn
    },
    return: end,
  }
}

class Run<T> {
  readonly #tools: ManyTools
  readonly #options: ProvisionManyOptions<T>
  readonly #concurrency: number
  readonly #settings: ReturnType<ManyTools['resolveOptions']>
  readonly #client: InstanceType<ManyTools['ProvisioningClient']>
  readonly #bucket: Bucket
  readonly #emit: (event: DpsEvent, device: ManyDevice<T> | undefined) => void
  readonly #devices: Devices<T>
  /** Of the devices so far, and of those in the journal. */
  readonly #known = new IdTable()
  readonly #stop = new AbortController()
  readonly #onAbort: () => void
  readonly #ready: ManyResult<T>[] = []
  #opening: Promise<void> | undefined
  #closing: Promise<void> | undefined
  #source: Iterator<ManyDevice<T>> | AsyncIterator<ManyDevice<T>> | undefined
  #journal: Journal | undefined
  readonly #said = new Set<string>()
  #notices = 0
  #position = 0
  #inFlight = 0
  #pulling = false
  /** The list has no more, or is not to be asked for more. */
  #ended = false
  /** What the iteration ends with, after the results of those begun. */
  #failure: DpsError | undefined
  #wake = () => {}

  constructor(devices: Devices<T>, options: ProvisionManyOptions<T>, tools: ManyTools) {
    this.#tools = tools
    this.#devices = devices
    this.#options = tools.object('options', options)
    const {
      concurrency = 64,
      ratePerMinute = 900,
      store,
      inDoubt,
      payload: _,
      signal,
      onEvent,
      ...rest
    } = options
    if (!isIterable(devices)) throw invalid('devices must be an iterable or an async iterable')
    if (!Number.isInteger(concurrency) || concurrency < 1 || concurrency > MAX_CONCURRENCY)
      throw invalid(`concurrency must be a whole number from 1 to ${MAX_CONCURRENCY}`)
    if (typeof ratePerMinute !== 'number' || !(ratePerMinute >= 1))
      throw invalid('ratePerMinute must be a number of at least 1')
    if (store !== undefined && typeof store?.open !== 'function')
      throw invalid('store must be made by fileJournal(), or have the method open')
    if (inDoubt !== undefined && inDoubt !== 'lookup' && inDoubt !== 'register')
      throw invalid("inDoubt must be 'lookup' or 'register'")
    if (signal !== undefined && typeof signal?.addEventListener !== 'function')
      throw invalid('signal must be an AbortSignal')
    if ('credential' in rest) throw invalid('credential is of each device, not of the options')
    const known = new Set([...OWN, ...tools.CLIENT_OPTIONS])
    known.delete('credential')
    tools.refuseUnknown('', options, known)
    // A handler makes the client look for what is doubtful; each call has its own.
    const shared = { ...rest, credential: NOBODY, ...(onEvent !== undefined && { onEvent: () => {} }) }
    this.#settings = tools.resolveOptions(shared)
    this.#client = new tools.ProvisioningClient({ ...shared, retry: { ...rest.retry, startDelayMs: 0 } })
    this.#concurrency = concurrency
    this.#bucket = new Bucket(ratePerMinute, this.#settings.clock)
    let about: ManyDevice<T> | undefined
    const emit = tools.emitter(onEvent && ((event) => onEvent(event, about)))
    this.#emit = (event, device) => {
      about = device
      emit(event)
    }
    // One for each that is under way.
    setMaxListeners(0, this.#stop.signal)
    this.#onAbort = () => this.#abort(signal?.reason)
    signal?.addEventListener('abort', this.#onAbort, { once: true })
    if (signal?.aborted) this.#onAbort()
  }

  /** The next result; undefined after the last. */
  async take(): Promise<ManyResult<T> | undefined> {
    if (this.#failure === undefined) {
      this.#opening ??= this.#open()
      await this.#opening
    }
    for (;;) {
      const result = this.#ready.shift()
      this.#fill()
      if (result !== undefined) return result
      if (this.#inFlight === 0 && (this.#ended || this.#failure !== undefined)) {
        if (this.#failure !== undefined) throw this.#failure
        return undefined
      }
      await this.#change()
    }
  }

  /** Resolves when nothing is left running. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#options.signal?.removeEventListener('abort', this.#onAbort)
    this.#abort(undefined)
    while (this.#inFlight > 0) await this.#change()
    await this.#opening?.catch(() => {})
    this.#bucket.close()
    const journal = this.#journal
    if (journal !== undefined) {
      const { clock } = this.#settings
      await this.#tools
        .within(STORE_LIMIT_MS, clock, undefined, () => journal.close(), 'the journal')
        .catch((error) => this.#emit({ type: 'store-failed', error: asStoreError(error) }, undefined))
    }
    const source = this.#source
    const left = (async () => source?.return?.())().catch(() => {})
    // One that is at work may never come back.
    if (!this.#pulling) await left
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      const before = this.#wake
      this.#wake = () => {
        before()
        resolve()
      }
    })
  }

  #changed(): void {
    const wake = this.#wake
    this.#wake = () => {}
    wake()
  }

  #abort(cause: unknown): void {
    this.#fail(new DpsError('CANCELLED', 'config', 'cancelled by the caller', { cause }))
    this.#stop.abort(this.#failure)
  }

  /** No further device is begun. */
  #fail(error: DpsError): void {
    this.#failure ??= error
    this.#ended = true
    this.#changed()
  }

  async #open(): Promise<void> {
    const { store } = this.#options
    const { idScope, host, clock, retry } = this.#settings
    const { signal } = this.#stop
    try {
      if (store !== undefined) {
        const opening = Journal.open(store, { idScope, host }, this.#known)
        try {
          this.#journal = await this.#tools.within(OPEN_LIMIT_MS, clock, signal, () => opening, 'the journal')
        } catch (error) {
          // One that opens after all has to be closed.
          opening.then((journal) => journal.close()).catch(() => {})
          throw error
        }
        const { damaged } = this.#journal
        if (damaged > 0) {
          const message = `the journal has ${damaged} record${damaged > 1 ? 's' : ''} cut short or damaged, which count for nothing`
          this.#emit({ type: 'warning', message }, undefined)
        }
        this.#report()
      }
      if (retry.startDelayMs > 0) await clock.sleep(clock.random() * retry.startDelayMs, signal)
    } catch (error) {
      this.#fail(asStoreError(error))
    }
  }

  #report(): void {
    const notices = this.#journal?.notices ?? []
    for (const message of notices.slice(this.#notices)) this.#emit({ type: 'warning', message }, undefined)
    this.#notices = notices.length
  }

  #fill(): void {
    if (this.#pulling || this.#ended || this.#inFlight + this.#ready.length >= this.#concurrency) return
    this.#pulling = true
    void this.#pull()
  }

  async #pull(): Promise<void> {
    try {
      this.#source ??= iteratorOf(this.#devices)
      const { value, done } = this.#tools.object('what the list gives', await this.#source.next())
      this.#pulling = false
      if (done === true) {
        this.#source = undefined
        this.#ended = true
      } else if (!this.#ended) this.#begin(value, this.#position++)
    } catch (cause) {
      this.#pulling = false
      // It is over by itself.
      this.#source = undefined
      this.#fail(
        DpsError.is(cause)
          ? cause
          : new DpsError('OPTION_INVALID', 'config', 'the list of devices failed', {
              cause,
              hint: 'See `cause`: what is given as `devices` threw it.',
            }),
      )
    }
    this.#fill()
    this.#changed()
  }

  #begin(device: ManyDevice<T>, position: number): void {
    this.#inFlight++
    void this.#one(device, position).then((result) => {
      if (result !== undefined) this.#ready.push(Object.freeze(result))
      this.#inFlight--
      this.#fill()
      this.#changed()
    })
  }

  /** Never rejects; undefined for one that was cut off. */
  async #one(device: ManyDevice<T>, position: number): Promise<ManyResult<T> | undefined> {
    const end: { registrationId: string | undefined } = { registrationId: undefined }
    const contexts = new this.#tools.OwnContexts()
    try {
      const done = await this.#assigned(device, position, contexts, end)
      return { device, position, ...done }
    } catch (error) {
      if (this.#stop.signal.aborted) return undefined
      const { registrationId } = end
      const found = asDpsError(error)
      this.#hold(found, found.retryAfterMs)
      return { device, position, registrationId, error: found }
    } finally {
      contexts.free()
    }
  }

  async #assigned(
    device: ManyDevice<T>,
    position: number,
    contexts: Errand['contexts'],
    end: { registrationId: string | undefined },
  ) {
    const { object, refuseUnknown, checkCredential, within, loadChecked, OrderedCredentials, bindingOf } =
      this.#tools
    const { idScope, host, clock, totalMs } = this.#settings
    const { signal } = this.#stop
    refuseUnknown('device.', object('device', device), DEVICE)
    const credentials = OrderedCredentials.of(checkCredential(device.credential))
    await within(totalMs, clock, signal, () => loadChecked(credentials), 'the credential')
    const own = credentials.identities.map((identity) => identity && bindingOf(idScope, host, identity))
    const { registrationId } = own.find((binding) => binding !== undefined)!
    end.registrationId = registrationId
    this.#checkName(device.registrationId, registrationId)
    const before = this.#claim(registrationId, position)

    const journal = this.#journal
    if (journal !== undefined && before > 0) {
      const kept = await journal.doneAt(before, registrationId)
      if (own.some((binding) => binding?.credential === kept.credential)) {
        const assignment = Object.freeze({ ...kept.registration, connection: undefined })
        return { registrationId, source: 'journal' as const, assignment }
      }
    }
    const errand = this.#errand(device, credentials, contexts)
    const call = { signal, [this.#tools.ERRAND]: errand } as RegisterOptions
    const finish = async (source: 'register' | 'lookup', assignment: Assignment) => {
      const binding = own[assignment.connection.credential ?? 0]!
      const { connection: _, issuedCertificateChain: __, ...registration } = assignment
      await this.#note((to) => to.done(binding.credential, registration)).catch(() => {})
      return { registrationId, source, assignment }
    }
    if (journal !== undefined && before < 0 && this.#options.inDoubt !== 'register') {
      const found = await this.#made(await journal.begunAt(-before), registrationId, call)
      if (found !== undefined) return finish('lookup', found)
    }
    await this.#bucket.turn(signal)
    await this.#note((to) => to.begun(registrationId, clock.now()))
    const payload = device.payload ?? this.#options.payload
    try {
      const register = () => this.#client.register({ ...call, ...(payload !== undefined && { payload }) })
      return finish('register', await register())
    } catch (error) {
      const answered = DpsError.is(error) && error.family === 'service' && !error.retryable
      if (answered || !errand.sent) await this.#note((to) => to.refused(registrationId)).catch(() => {})
      throw error
    }
  }

  /** What the service has made of a registration that was begun at that time, if it has. */
  async #made(
    begunAt: number,
    registrationId: string,
    call: RegisterOptions,
  ): Promise<Assignment | undefined> {
    const { signal } = this.#stop
    for (let asked = 1; ; asked++) {
      await this.#bucket.turn(signal)
      let state: RegistrationState
      try {
        state = await this.#client.lookup(call)
      } catch (error) {
        if (DpsError.is(error) && error.code === 'NOT_FOUND') return undefined
        throw error
      }
      const at = state.lastUpdatedAt?.getTime() ?? Number.NEGATIVE_INFINITY
      if (at < begunAt - CLOCK_SLACK_MS) return undefined
      // No doubt is left, so that it is registered when it is no longer disabled.
      if (state.status === 'disabled') await this.#note((to) => to.refused(registrationId))
      if (state.status !== 'assigning' || asked === MAX_LOOKUPS) return this.#tools.assignmentOf(state)
      await this.#settings.clock.sleep(LOOKUP_GAP_MS, signal)
    }
  }

  #checkName(wanted: unknown, registrationId: string): void {
    if (wanted === undefined) return
    if (typeof wanted === 'string' && sameRegistrationId(wanted, registrationId)) return
    throw new DpsError(
      'CREDENTIAL_NAME_MISMATCH',
      'config',
      `the credential is of "${registrationId}", not of the registration id that is given for the device`,
    )
  }

  /** What the journal knows of it; 0 for nothing. */
  #claim(registrationId: string, position: number): number {
    const known = this.#known.get(registrationId) ?? 0
    if (known >= SEEN) {
      throw invalid(
        `the registration id "${registrationId}" came before, at position ${known - SEEN} of the list`,
      )
    }
    this.#known.set(registrationId, SEEN + position)
    return known
  }

  /** What one call shares with the others, and whether it may have asked the service to register. */
  #errand(
    device: ManyDevice<T>,
    credentials: Errand['credentials'],
    contexts: Errand['contexts'],
  ): Errand & { sent: boolean } {
    const { pipelining } = this.#settings
    const pace: Pace = {
      turn: (signal) => this.#bucket.turn(signal, true),
      hold: (error, delayMs) => this.#hold(error, error.retryAfterMs ?? delayMs),
    }
    let begun = false
    const errand = {
      credentials,
      pace,
      contexts,
      sent: false,
      onEvent: (event: DpsEvent) => {
        if (event.type === 'phase-started') {
          begun = true
          errand.sent ||= event.phase === 'register' || (pipelining && event.phase === 'connect')
        } else if (event.type === 'warning' && !begun) {
          // What is said of the options is said once.
          if (this.#said.has(event.message)) return
          this.#said.add(event.message)
        }
        this.#emit(event, device)
      },
    }
    return errand
  }

  #hold({ code, retryAfterMs }: DpsError, ms: number | undefined): void {
    const isForAll = code === 'THROTTLED' || (code === 'SERVICE_UNAVAILABLE' && retryAfterMs !== undefined)
    if (isForAll && ms !== undefined) this.#bucket.hold(ms)
  }

  /** @throws DpsError STORE_FAILED, which ends the run */
  async #note(write: (to: Journal) => Promise<void>): Promise<void> {
    const journal = this.#journal
    if (journal === undefined) return
    const { within } = this.#tools
    // Not cut off by a cancel: what has been answered is to be written.
    try {
      await within(STORE_LIMIT_MS, this.#settings.clock, undefined, () => write(journal), 'the journal')
    } catch (cause) {
      const error = asStoreError(cause)
      this.#emit({ type: 'store-failed', error }, undefined)
      this.#fail(error)
      throw error
    } finally {
      this.#report()
    }
  }
}

const NOBODY: Credential = {
  load: () => Promise.reject(new TypeError('a device brings its own credential')),
}

function isIterable(value: unknown): boolean {
  const { [Symbol.iterator]: some, [Symbol.asyncIterator]: later } = Object(value)
  return typeof value !== 'string' && (typeof some === 'function' || typeof later === 'function')
}

function iteratorOf<T>(devices: Devices<T>): Iterator<ManyDevice<T>> | AsyncIterator<ManyDevice<T>> {
  return Symbol.asyncIterator in devices ? devices[Symbol.asyncIterator]() : devices[Symbol.iterator]()
}

/** A journal of the caller's own may throw anything. */
function asStoreError(cause: unknown): DpsError {
  if (DpsError.is(cause) && cause.code !== 'TIMEOUT') return cause
  return new DpsError('STORE_FAILED', 'store', DpsError.is(cause) ? cause.message : 'the journal failed', {
    cause,
  })
}

/** Only a device that is an odd object can make anything else be thrown. */
function asDpsError(cause: unknown): DpsError {
  return DpsError.is(cause)
    ? cause
    : new DpsError('OPTION_INVALID', 'config', 'the device cannot be read', { cause })
}

function invalid(message: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message)
}
