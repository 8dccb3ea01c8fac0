import type { Assignment } from './assignment/assignment.ts'
import { checkPath } from './assignment/file-store.ts'
import { bindingOf } from './assignment/record.ts'
import { codeOf, failed, flush, isAlive, replace } from './assignment/replace-file.ts'
import { ERRAND, emitter, ProvisioningClient } from './client.ts'
import type { Credential } from './credential/credential.ts'
import { OrderedCredentials } from './credential/ordered.ts'
import type { DpsError } from './errors.ts'
import type { DpsEvent, ProvisioningClientOptions, RegisterOptions } from './options/options.ts'
import { CLIENT_OPTIONS, checkCredential, object, refuseUnknown, resolveOptions } from './options/resolve.ts'
import type { DeviceRegistration } from './protocol/response.ts'
import { assignmentOf, loadChecked } from './provision.ts'
import { OwnContexts } from './tls/context.ts'
import { within } from './within.ts'

/** One of many devices: what a client is told of it. */
export interface ManyDevice<T = unknown> {
  /** Who it is, as for `ProvisioningClient`: one credential, or several in order of preference. */
  readonly credential: Credential | readonly Credential[]
  /** The registration id that the credential is meant to have, in any letter case. Default: not compared. */
  readonly registrationId?: string
  /** Handed to a custom allocation function, in place of that of the options: a JSON object. */
  readonly payload?: RegisterOptions['payload']
  /** Anything of the caller's own, such as a line number: it is not looked at, and comes back with the result. */
  readonly tag?: T
}

/** How it ended for one device. Frozen. */
export type ManyResult<T = unknown> = {
  /** The one that was taken from the list. */
  readonly device: ManyDevice<T>
  /** Its place in the list, from 0. */
  readonly position: number
} & (
  | {
      /** In the spelling of the credential. */
      readonly registrationId: string
      readonly assignment:
        | Assignment
        | (DeviceRegistration & {
            readonly connection: undefined
            readonly issuedCertificateChain?: undefined
          })
      /**
       * `register`: the service has just said so. `journal`: a run before has been told, and nothing was asked. `lookup`: a run
       * before was cut off within this registration, and the service, asked about it, had made it.
       */
      readonly source: 'register' | 'journal' | 'lookup'
      readonly error?: undefined
    }
  | {
      /** As far as it is known. */
      readonly registrationId: string | undefined
      readonly error: DpsError
      readonly assignment?: undefined
      readonly source?: undefined
    }
)

/**
 * Remembers over crashes and power cuts who has been registered: records that are only ever added to, as bytes, which
 * `provisionMany` writes, checks and interprets. Kept by `fileJournal(path)`, or by one of your own.
 */
export interface DeviceJournal {
  /**
   * Begins a run; until that is closed, nobody else's may begin. Calls `onRecord` with each record in the order in which they
   * were appended, and a number of at least 0 by which `at` finds it again. What a crash has cut short may come as a record
   * too: each has a checksum.
   */
  open(onRecord: (record: Uint8Array, position: number) => void): Promise<OpenJournal>
}

export interface OpenJournal {
  at(position: number): Promise<Uint8Array>
  /** Resolves when they will outlast a power cut. Never called while another call of it is under way. No record has a line break. */
  append(records: readonly Uint8Array[]): Promise<void>
  close(): Promise<void>
  /** What this platform could not do so far, one sentence each; they become `warning` events. */
  readonly notices?: readonly string[]
}

export interface ProvisionManyOptions<T = unknown>
  extends Omit<ProvisioningClientOptions, 'credential' | 'onEvent'> {
  /**
   * Devices that are under way at once, those whose result has not been read included: the list is read no further ahead.
   * From 1 to 10 000. Default 64.
   */
  concurrency?: number
  /**
   * Register requests of all devices together, repeated ones and lookups included, in a minute; spread evenly, with at most a
   * second's worth at once. Infinity for no limit. Default 900: an instance of the service takes 1 000 a minute, of everybody
   * together (https://learn.microsoft.com/azure/iot-dps/about-iot-dps#quotas-and-limits).
   */
  ratePerMinute?: number
  /** Who has been registered already, over crashes: `fileJournal(path)`, or one of your own. Default: nothing is remembered. */
  store?: DeviceJournal
  /**
   * What to do about a device whose registration was begun in a run before and is not known to have ended. `'lookup'`: the
   * service is asked, over HTTPS, which is not billed. `'register'`: it is registered again. Default `'lookup'`.
   */
  inDoubt?: 'lookup' | 'register'
  /** Of every device that has none of its own. */
  payload?: RegisterOptions['payload']
  /** Ends everything: the iteration rejects with CANCELLED once nothing is left running. */
  signal?: AbortSignal
  /** Receives the events of all; `device` is undefined for what is about the journal. */
  onEvent?: (event: DpsEvent, device: ManyDevice<T> | undefined) => void
}

const loadMany = () => import('./rare.ts')

/** What is loaded already: were it imported there, bundling would take it apart, for every start to put together again. */
const fileTools = { codeOf, failed, flush, isAlive, replace }
const manyTools = {
  assignmentOf,
  bindingOf,
  CLIENT_OPTIONS,
  checkCredential,
  ERRAND,
  emitter,
  loadChecked,
  OrderedCredentials,
  OwnContexts,
  object,
  ProvisioningClient,
  refuseUnknown,
  resolveOptions,
  within,
}
export type FileTools = typeof fileTools
export type ManyTools = typeof manyTools

/**
 * Registers many devices from one process, and tells of each as soon as it has ended.
 *
 *     for await (const { registrationId, assignment, error } of provisionMany(devices, { idScope, store: fileJournal(path) }))
 *       console.log(registrationId, assignment?.assignedHub ?? error.code)
 *
 * - `devices` is any iterable or async iterable. It is read as far as `concurrency` allows and no further, so a list of any
 *   length takes the memory of those under way, and up to 32 bytes for each that has been: one whose registration id came
 *   before, in any letter case, ends with OPTION_INVALID. A list that throws ends the iteration, with what it threw as `cause`,
 *   after the results of those already begun.
 * - Failures are results. A credential that cannot be read or is refused stops nobody else.
 * - All share one token bucket. A 429 or 503 whose `retry-after` is told to one device holds up all: nobody begins, or tries
 *   again, before it is over. Who was begun goes before who was not. `retry.startDelayMs` is waited once, for all;
 *   `timeouts.totalMs` is for each, from its first packet.
 * - To stop, `break` or abort `signal`: what is under way is cut off, and nothing is left running. Ended results that were not
 *   read are delivered before the CANCELLED.
 * - All share one client, so a transport that did not get through is not tried first again for the next device. TLS sessions
 *   are never shared between devices, nor contexts with certificates; devices with symmetric keys share one context, which
 *   holds nothing of them.
 *
 * With a `store` a run that was cut off, by whatever, is gone on with by the same call: devices that are assigned come from the
 * journal, for as long as they have the same credential, and are not asked about. A journal of another id scope or service is
 * refused.
 *
 * **What "not registered twice" can mean.** No program can note an answer at the instant the service gives it. So a line is on
 * the disk before the request is sent and another before the result is delivered; of those that a crash finds in between, at
 * most `concurrency`, nobody here knows whether the service has registered them. With `inDoubt: 'lookup'` the service is asked
 * first, and its record counts where it is newer than the first line, less five minutes for the clock: then nothing is
 * registered again. Where it is older or there is none, the device is registered. That leaves these cases: a clock that was
 * more than five minutes ahead; a service that does not date its record anew when a device registers again (its documentation
 * does not say); a disk that loses what it says it has flushed, or is damaged, which a `warning` counts. There, as with
 * `inDoubt: 'register'`, one more registration is made and billed; the service keeps one record for a registration id, and the
 * enrollment's policy decides whether the device stays at its hub. Within a run a request whose answer was lost with its
 * connection is repeated, as in `register`.
 *
 * @throws DpsError, from the iteration: OPTION_INVALID, CANCELLED, STORE_FAILED where the journal cannot be read or written
 *   (nobody is registered whose line cannot be written; those under way are delivered first); else as `ProvisioningClient`
 */
export function provisionMany<T = unknown>(
  devices: Iterable<ManyDevice<T>> | AsyncIterable<ManyDevice<T>>,
  options: ProvisionManyOptions<T>,
): AsyncIterableIterator<ManyResult<T>> {
  let made: Promise<AsyncIterator<ManyResult<T>, undefined>> | undefined
  const many = () => {
    made ??= loadMany().then(({ openMany }) => openMany(devices, options, manyTools))
    return made
  }
  return {
    [Symbol.asyncIterator]() {
      return this
    },
    next: async () => (await many()).next(),
    return: async () => (await many()).return!(),
  }
}

/**
 * A journal in one file, to which lines are only ever added, each with a checksum and flushed (fdatasync(2)) before it counts;
 * several that come at once are flushed together. A line that a crash has cut short is left as it is and counts for nothing.
 *
 * The folder must exist, belong to the user the process runs as, and nobody else should be able to write to it; a link in place
 * of the file is followed. The file is made with mode 0600 and holds no key. While it is open a file with the number of the process
 * in its name, `.lock` at its end, keeps others off; what a dead process has left of that is removed. Processes that cannot see
 * each other, such as those of two machines, are not kept apart.
 *
 * @throws DpsError OPTION_INVALID, phase `config`; the methods reject with STORE_FAILED, phase `store`
 */
export function fileJournal(path: string | URL): DeviceJournal {
  const file = checkPath(path)
  return Object.freeze({
    open: async (onRecord) => (await loadMany()).openJournalFile(file, onRecord, fileTools),
  } satisfies DeviceJournal)
}
