import { type Assignment, deepFreeze, type RegistrationState } from './assignment/assignment.ts'
import {
  type Binding,
  bindingOf,
  decodeRecord,
  encodeRecord,
  foreignPart,
  type StoredRecord,
} from './assignment/record.ts'
import type { AssignmentStore } from './assignment/store.ts'
import { emitter, ProvisioningClient } from './client.ts'
import type { Clock } from './clock.ts'
import { OrderedCredentials } from './credential/ordered.ts'
import { DpsError, type DpsErrorCode } from './errors.ts'
import type { DpsEvent, ProvisioningClientOptions, RegisterOptions } from './options/options.ts'
import { checkMs, instant, object, resolveOptions } from './options/resolve.ts'
import type { DeviceRegistration } from './protocol/response.ts'
import { cancelled, storeFailed, within } from './within.ts'

/** When the service is asked. */
export type ProvisionMode = 'if-needed' | 'always' | 'lookup'

export interface ProvisionOptions extends ProvisioningClientOptions, RegisterOptions {
  /** Where the assignment is kept: `fileStore(path)`, or one of your own. */
  store: AssignmentStore
  /**
   * `'if-needed'`: a stored assignment is used without any network; only where there is none the device registers.
   * `'always'`: it registers each time. `'lookup'`: it asks each time, which is not billed, and registers where it never has.
   * Default `'if-needed'`.
   */
  mode?: ProvisionMode
}

/** An assignment, and where it comes from. Frozen; only what a `Date` allows can be changed. */
export type ProvisionedAssignment =
  | (Assignment & {
      /** The service has just said so. */
      readonly source: 'register' | 'lookup'
      /** Whether it is stored for the next start; where not, a `store-failed` event has said why. */
      readonly stored: boolean
    })
  | (DeviceRegistration & {
      /** It was stored, and the service was not asked, or could not be. */
      readonly source: 'store'
      readonly stored: true
      readonly connection: undefined
      /** Not stored. */
      readonly issuedCertificateChain?: undefined
      /** Why the service could not be asked; undefined where it did not have to be. */
      readonly failure: DpsError | undefined
    })

/** What the service knows about this device and says no by: an assignment must not outlive it. */
export const VERDICTS: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>([
  'UNAUTHORIZED',
  'FORBIDDEN',
  'NOT_FOUND',
  'REGISTRATION_DISABLED',
])

/** A card or a disk may think for seconds; a store that never answers must not hold a device. */
const STORE_LIMIT_MS = 30_000

/** Flash wears out, and the clock may be off by a day before it is called wrong. */
const CONTACT_STEP_MS = 3_600_000

/**
 * The assignment of this device: the stored one, or else a new one, which is then stored.
 *
 * - A stored assignment counts for the same id scope, service, registration id and credential; one that is damaged, foreign
 *   or of a later format counts as none, and an event says why. It is used as it is, with no packet and whatever the clock says.
 * - Of a list of credentials it is bound to the one that registered, and counts for as long as that is in the list and can be
 *   read, wherever it stands: an operational certificate that was issued since changes nothing, one that was swapped does.
 * - A verdict of the service (disabled, 401, 403, 404) erases it and rejects: a device that was switched off on purpose must
 *   not go on from memory. Nothing else does: where the service cannot be asked, or asks for patience, `always` and `lookup`
 *   resolve with what is stored, `source: 'store'` and the reason in `failure`. Wrong options and a cancel reject.
 * - An assignment that could not be stored is returned all the same, with `stored: false` and a `store-failed` event: the
 *   registration has been made and billed, and a caller who retries on a rejection would make it again and again.
 * - A `csr` (preview) is sent where the device registers, and only there: a stored or looked-up assignment comes without
 *   `issuedCertificateChain`, which is not stored: key and chain belong together, in the caller's keeping. Where the
 *   certificate is missing or wrong the assignment is stored, since the registration was made, and the call rejects.
 * - What the store remembers of the last contact with the service is the floor of the clock, as `lastContact`. It is the
 *   earlier of the two clocks, and stays as it is where the service does not tell its own (a refusal over MQTT), so a device
 *   whose clock was ahead is not locked out by its own memory.
 *
 * `timeoutMs` (default `timeouts.totalMs`) bounds all requests to the service together.
 *
 * @throws DpsError as `ProvisioningClient` and its calls
 */
export const provision = (options: ProvisionOptions): Promise<ProvisionedAssignment> =>
  provisionAs(options, () => undefined)

/** Tells the last contact with the service as well, ms since the epoch: what is read, and again what it has become. */
export async function provisionAs(
  options: ProvisionOptions,
  onContact: (contactMs: number) => void,
): Promise<ProvisionedAssignment> {
  object('options', options)
  const { store, mode = 'if-needed', payload, csr, signal, timeoutMs, ...clientOptions } = options
  if (mode !== 'if-needed' && mode !== 'always' && mode !== 'lookup') {
    throw invalid("mode must be 'if-needed', 'always' or 'lookup'")
  }
  for (const method of ['read', 'write', 'remove'] as const) {
    if (typeof store?.[method] !== 'function') {
      throw invalid(`store must be made by fileStore(), or have the methods read, write and remove`)
    }
  }
  if (signal !== undefined && typeof signal?.addEventListener !== 'function') {
    throw invalid('signal must be an AbortSignal')
  }
  const { idScope, host, credential, clock, totalMs, onEvent } = resolveOptions(clientOptions)
  const credentials = OrderedCredentials.of(credential)
  const limitMs = timeoutMs === undefined ? totalMs : checkMs('timeoutMs', timeoutMs, 1)
  if (signal?.aborted) throw cancelled(signal)
  const emit = emitter(onEvent)

  // The credential may be replaced at any time: what is stored belongs to the one that registered.
  // Of a list it is enough that one still is: the first may have been issued since.
  await within(limitMs, clock, signal, () => loadChecked(credentials), 'the credential')
  const ownOf = (index: number) => {
    const identity = credentials.identities[index]
    return identity === undefined ? [] : [bindingOf(idScope, host, identity)]
  }
  const own = () => [...credentials.identities.keys()].flatMap(ownOf)
  for (const identity of credentials.identities) {
    if (identity === undefined) continue
    const doubts = onEvent === undefined ? [] : await credentials.newDoubts(identity, clock.now())
    for (const message of [...credentials.newNotices(identity), ...doubts]) emit({ type: 'warning', message })
  }
  const memory = await Memory.open(store, own(), clock, emit, signal)
  onContact(memory.contactMs)
  const client = new ProvisioningClient({
    ...clientOptions,
    credential: credentials,
    lastContact: Math.max(
      memory.contactMs,
      clientOptions.lastContact === undefined ? 0 : instant('lastContact', clientOptions.lastContact),
    ),
  })
  const remembered = mode === 'if-needed' ? memory.of(own()) : undefined
  if (remembered !== undefined) return fromStore(remembered, undefined)

  const keep = (assignment: Assignment): Promise<boolean> =>
    memory.keep(ownOf(assignment.connection.credential ?? 0)[0]!, assignment)
  const startedAt = clock.monotonic()
  const call = (): RegisterOptions => ({
    ...(signal !== undefined && { signal }),
    timeoutMs: Math.max(1, Math.ceil(limitMs - (clock.monotonic() - startedAt))),
  })
  try {
    const found =
      mode === 'lookup' ? await lookUp(client, call(), (error) => memory.erase(own(), error)) : undefined
    const source = found === undefined ? 'register' : 'lookup'
    const assignment =
      found ??
      (await client.register({
        ...call(),
        ...(payload !== undefined && { payload }),
        ...(csr !== undefined && { csr }),
      }))
    const stored = await keep(assignment)
    return Object.freeze({ ...assignment, source, stored })
  } catch (error) {
    if (!DpsError.is(error)) throw error
    if (error.assignment !== undefined) {
      await keep(error.assignment)
      throw error
    }
    if (VERDICTS.has(error.code)) {
      await memory.erase(own(), error)
      throw error
    }
    await memory.heard(error)
    const kept = isForCaller(error) ? undefined : memory.of(own())
    if (kept === undefined) throw error
    emit({ type: 'stored-assignment-kept', error })
    return fromStore(kept, error)
  } finally {
    onContact(memory.contactMs)
  }
}

/** A credential of the caller's own may fail in any way. */
export async function loadChecked(credentials: OrderedCredentials): Promise<void> {
  try {
    await credentials.loadAll()
  } catch (cause) {
    if (DpsError.is(cause)) throw cause
    throw new DpsError('TRANSPORT_FAILED', 'config', 'the credential failed', { cause })
  }
}

/** The assignment that the service remembers; undefined where the device has to register to get one. */
async function lookUp(
  client: ProvisioningClient,
  call: RegisterOptions,
  onUnknown: (error: DpsError) => Promise<void>,
): Promise<Assignment | undefined> {
  let state: RegistrationState
  try {
    state = await client.lookup(call)
  } catch (error) {
    if (!DpsError.is(error) || error.code !== 'NOT_FOUND') throw error
    // No registration is left. There may be an enrollment all the same, and that decides.
    await onUnknown(error)
    return undefined
  }
  return assignmentOf(state)
}

/** @throws DpsError REGISTRATION_DISABLED */
export function assignmentOf(state: RegistrationState): Assignment | undefined {
  if (state.status === 'disabled') {
    throw new DpsError('REGISTRATION_DISABLED', 'poll', 'the service says that the registration is disabled')
  }
  if (state.status !== 'assigned') return undefined
  const { serviceErrorCode: _, serviceErrorMessage: __, deviceId, assignedHub, ...rest } = state
  return { ...rest, status: 'assigned', deviceId: deviceId!, assignedHub: assignedHub! }
}

/** What a record differs in from each of `own`; of a list they are of one device, and differ in the credential alone. */
function foreignTo(own: readonly Binding[], stored: Binding): string | undefined {
  const parts = own.map((binding) => foreignPart(stored, binding))
  return parts.includes(undefined) ? undefined : (parts[0] ?? 'another certificate or key')
}

/** What is stored, as far as it counts for this device. */
class Memory {
  readonly #store: AssignmentStore
  readonly #clock: Clock
  readonly #emit: (event: DpsEvent) => void
  /** What is stored under this device's name, whether it is assigned or not. */
  #own: StoredRecord | undefined
  /** Something is stored of which nothing is known. */
  #unknown = false
  #notices = 0
  /** When the service was last heard, whoever the device was then. Ms since the epoch; 0 for never. */
  contactMs = 0

  private constructor(store: AssignmentStore, clock: Clock, emit: (event: DpsEvent) => void) {
    this.#store = store
    this.#clock = clock
    this.#emit = emit
  }

  static async open(
    store: AssignmentStore,
    own: readonly Binding[],
    clock: Clock,
    emit: (event: DpsEvent) => void,
    signal: AbortSignal | undefined,
  ): Promise<Memory> {
    const memory = new Memory(store, clock, emit)
    await memory.#read(own, signal)
    memory.#report()
    if (signal?.aborted) throw cancelled(signal)
    return memory
  }

  /** The assignment of this device, if one is stored. */
  of(own: readonly Binding[]): DeviceRegistration | undefined {
    const kept = this.#own
    return kept !== undefined && foreignTo(own, kept.binding) === undefined ? kept.registration : undefined
  }

  /** False where it could not be stored. */
  async keep(
    binding: Binding,
    { connection: _, issuedCertificateChain: __, ...registration }: Assignment,
  ): Promise<boolean> {
    const contactMs = this.#contact(registration.lastUpdatedAt)
    const record = { binding, contactMs, registration }
    const unchanged = this.#own !== undefined && sameBut(this.#own, record)
    if (unchanged && contactMs - this.#own!.contactMs < CONTACT_STEP_MS) return true
    return this.#write(record)
  }

  /** Makes sure that the assignment of a device that was refused is not found again. */
  async erase(bindings: readonly Binding[], error: DpsError): Promise<void> {
    if (this.#unknown) {
      await this.#attempt(() => this.#store.remove())
      return
    }
    const own = this.#own
    if (own === undefined || foreignTo(bindings, own.binding) !== undefined) return
    const contactMs = this.#contact(error.serverTime)
    if (own.registration === undefined) return this.heard(error)
    const record = { ...own, contactMs, registration: undefined }
    // Without space for a new file the old one can still be removed.
    const gone = (await this.#write(record)) || (await this.#attempt(() => this.#store.remove()))
    if (gone) this.#emit({ type: 'stored-assignment-erased', error })
  }

  /** A service that answered, with whatever, has been heard. */
  async heard({ family, serverTime }: DpsError): Promise<void> {
    if (family !== 'service' || serverTime === undefined || this.#own === undefined) return
    const contactMs = this.#contact(serverTime)
    if (contactMs - this.#own.contactMs >= CONTACT_STEP_MS) await this.#write({ ...this.#own, contactMs })
  }

  /**
   * The earlier of the two clocks, and never before what is known. Where the service does not tell its own, this one alone
   * proves nothing: it may be ahead.
   */
  #contact(serverTime: Date | undefined): number {
    if (serverTime === undefined) return this.contactMs
    return Math.max(0, this.contactMs, Math.floor(Math.min(this.#clock.now(), serverTime.getTime())))
  }

  async #read(own: readonly Binding[], signal: AbortSignal | undefined): Promise<void> {
    const none = (reason: Extract<DpsEvent, { type: 'no-stored-assignment' }>['reason'], message: string) =>
      this.#emit({ type: 'no-stored-assignment', reason, message })
    let bytes: Uint8Array | undefined
    try {
      bytes = await this.#within(() => this.#store.read(), signal)
      if (bytes !== undefined && !(bytes instanceof Uint8Array)) throw new TypeError('read() gave no bytes')
    } catch (cause) {
      if (signal?.aborted) throw cancelled(signal)
      this.#unknown = true
      const error = storeFailed(cause)
      this.#emit({ type: 'no-stored-assignment', reason: 'unreadable', message: error.message, error })
      return
    }
    if (bytes === undefined) return none('missing', 'nothing is stored yet')
    const read = decodeRecord(bytes)
    if (!read.ok) {
      this.#unknown = read.reason === 'newer'
      return none(read.reason, `the stored record ${read.why}`)
    }
    this.contactMs = read.record.contactMs
    const foreign = foreignTo(own, read.record.binding)
    if (foreign !== undefined) return none('foreign', `the stored record is of ${foreign}`)
    this.#own = read.record
    if (this.#own.registration === undefined)
      none('refused', 'the service has refused this device since it was assigned')
  }

  async #write(record: StoredRecord): Promise<boolean> {
    const written = await this.#attempt(() => this.#store.write(encodeRecord(record)))
    if (written) {
      this.#own = record
      this.contactMs = record.contactMs
    }
    return written
  }

  async #attempt(work: () => Promise<void>): Promise<boolean> {
    try {
      await this.#within(work)
      return true
    } catch (cause) {
      this.#emit({ type: 'store-failed', error: storeFailed(cause) })
      return false
    } finally {
      this.#report()
    }
  }

  #within<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    return within(STORE_LIMIT_MS, this.#clock, signal, work, 'the store')
  }

  #report(): void {
    const notices = this.#store.notices ?? []
    for (const message of notices.slice(this.#notices)) this.#emit({ type: 'warning', message })
    this.#notices = notices.length
  }
}

function sameBut(a: StoredRecord, b: StoredRecord): boolean {
  const bytes = (record: StoredRecord) => encodeRecord({ ...record, contactMs: 0 })
  return Buffer.compare(bytes(a), bytes(b)) === 0
}

function fromStore(registration: DeviceRegistration, failure: DpsError | undefined): ProvisionedAssignment {
  // Not the failure: its cause is somebody else's.
  return Object.freeze({
    ...deepFreeze({ ...registration }),
    source: 'store',
    stored: true,
    connection: undefined,
    failure,
  })
}

/** Nothing that the stored assignment is an answer to. */
function isForCaller({ code, family, retryable }: DpsError): boolean {
  return code === 'CANCELLED' || (family === 'usage' && !retryable)
}

function invalid(message: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message)
}
