import { DpsError } from '../errors.ts'
import { LruMap } from '../lru.ts'
import { checkRegistrationId, sameRegistrationId } from '../protocol/registration-id.ts'
import type { Credential, Identity } from './credential.ts'
import { inspectCredential } from './inspection.ts'
import { doubtAbout } from './material.ts'

/** More contents of a credential than anybody replaces one by. */
const MAX_NOTICED = 64

/** The credentials of one device in order of preference, or the one there is, and what was read of each last. */
export class OrderedCredentials {
  readonly #all: readonly Credential[]
  /** Whether several were asked for: then the index of the one that was used is told. */
  readonly isList: boolean
  /** Whether somebody keeps up the one that is issued. */
  isRenewed = false
  /** Undefined where the last reading failed. */
  readonly #read: (Identity | undefined)[] = []
  /** Those that were never read. */
  readonly #unread = new Set<number>()
  readonly #noticed = new LruMap<true>(MAX_NOTICED)

  /** What is one already is shared, with all that it remembers. */
  static of(given: Credential | readonly Credential[]): OrderedCredentials {
    return given instanceof OrderedCredentials ? given : new OrderedCredentials(given)
  }

  private constructor(given: Credential | readonly Credential[]) {
    this.isList = Array.isArray(given)
    this.#all = this.isList ? [...(given as readonly Credential[])] : [given as Credential]
    if (this.isList) for (const index of this.#all.keys()) this.#unread.add(index)
  }

  get count(): number {
    return this.#all.length
  }

  at(index: number): Credential {
    return this.#all[index]!
  }

  /** As they were read last, by index. */
  get identities(): readonly (Identity | undefined)[] {
    return this.#read
  }

  /**
   * Reads one of them, when it is its turn, and those that were never read, to be told at once of a list that mixes devices
   * rather than when its second is needed.
   *
   * @throws DpsError of phase `config`: CREDENTIAL_NAME_MISMATCH where two are of different devices
   */
  async load(index = 0): Promise<Identity> {
    const identity = await this.#load(index)
    for (const other of this.#all.keys()) {
      if (other === index) continue
      const known = this.#read[other]?.registrationId
      // One of another device may have been replaced too since it was read.
      const isDue =
        known === undefined
          ? other > index && this.#unread.has(other)
          : !sameRegistrationId(known, identity.registrationId)
      if (isDue) await this.#load(other).catch(() => undefined)
    }
    this.#checkDevice()
    const same = this.#read
      .slice(0, index)
      .findIndex((before) => before?.fingerprint === identity.fingerprint)
    if (same !== -1) {
      throw new DpsError(
        'CREDENTIAL_UNREADABLE',
        'config',
        `credential[${index}] has the same content as credential[${same}], which has failed`,
      )
    }
    return identity
  }

  /**
   * Reads all of them.
   *
   * @throws DpsError where none can be read, or two are of different devices
   */
  async loadAll(): Promise<void> {
    const errors: unknown[] = []
    for (const index of this.#all.keys()) await this.#load(index).catch((error) => errors.push(error))
    if (errors.length === this.#all.length) {
      throw errors.length > 1 && errors.every(DpsError.is) ? errorOfAll(errors) : errors.at(-1)
    }
    this.#checkDevice()
  }

  /** What was put right in it and has not been said before. */
  newNotices({ fingerprint, notices = [] }: Identity): readonly string[] {
    return notices.length > 0 && this.#isNew(fingerprint) ? notices : []
  }

  /** What is doubtful in it now and has not been said before; what looks well costs a comparison. Never rejects. */
  async newDoubts(identity: Identity, now: number): Promise<readonly string[]> {
    // What is renewed by itself was looked at when it came, and its end is no news.
    if (this.isRenewed && identity.lineage !== undefined) return []
    const doubt = doubtAbout(identity, now)
    const isNew = (subject: string) => this.#isNew(`${identity.fingerprint} ${subject}`)
    if (doubt === '' || !isNew(doubt)) return []
    try {
      const { warningsAbout } = await import('./rare.ts')
      const warnings = await warningsAbout(identity, now, inspectCredential)
      return warnings.flatMap(([id, message]) => (isNew(id) ? message : []))
    } catch {
      // It must not decide about a registration.
      return []
    }
  }

  #isNew(subject: string): boolean {
    const isNew = !this.#noticed.get(subject)
    this.#noticed.set(subject, true)
    return isNew
  }

  async #load(index: number): Promise<Identity> {
    this.#read[index] = undefined
    const identity = await this.#all[index]!.load()
    // One of the caller's own is checked like any other: the id goes into the user name and the path.
    checkRegistrationId(identity.registrationId)
    this.#read[index] = identity
    this.#unread.delete(index)
    return identity
  }

  #checkDevice(): void {
    const [first, ...rest] = this.#read.filter((identity) => identity !== undefined)
    for (const { registrationId } of rest) {
      if (sameRegistrationId(first!.registrationId, registrationId)) continue
      throw new DpsError(
        'CREDENTIAL_NAME_MISMATCH',
        'config',
        `the credentials of one list are of "${first!.registrationId}" and of "${registrationId}"`,
        { hint: 'All credentials of a list must be of one device: the registration id is that of each.' },
      )
    }
  }
}

/**
 * What a call rejects with where all credentials have failed: the error of the last one that the service saw, and refused;
 * where it saw none, that of the last one. Its `cause` is an AggregateError with those of all, in their order.
 *
 * @param errors at least one
 */
export function errorOfAll(errors: readonly DpsError[]): DpsError {
  const last = errors.filter(({ family }) => family === 'service').at(-1) ?? errors.at(-1)!
  if (errors.length === 1) return last
  const others = errors.flatMap((error, index) =>
    error === last ? [] : `credential[${index}] ${error.code} (${error.message})`,
  )
  return new DpsError(last.code, last.phase, last.message, {
    ...last,
    hint: `${last.hint} The other credentials failed too: ${others.join('; ')}.`,
    cause: new AggregateError(errors, 'no credential was of use; `errors` has a reason for each'),
  })
}
