import { createHash } from 'node:crypto'
import { DpsError } from '../errors.ts'
import { type DeviceRegistration, jsonObject, parseRegistration } from '../protocol/response.ts'
import type { DeviceJournal, OpenJournal } from '../provision-many.ts'
import type { IdTable } from './id-table.ts'

const VERSION = 1

/** What a journal is about. One that is about something else is refused. */
export interface JournalScope {
  readonly idScope: string
  /** Host name of the provisioning service. */
  readonly host: string
}

/** A registration was begun, has ended assigned, or has not been made. */
type Entry =
  | { readonly begun: string; readonly at: number }
  | { readonly done: string; readonly credential: string; readonly registration: unknown }
  | { readonly refused: string }

/**
 * What is known of each device from before, in the table by its registration id: where its assignment is, or, below 0, where
 * it was begun and nothing has followed; 0 where a registration was begun and refused.
 */
export class Journal {
  readonly #open: OpenJournal
  /** Who waits for the next write. */
  #queue: { readonly record: Buffer; resolve(): void; reject(error: unknown): void }[] = []
  #writing: Promise<void> | undefined
  /** Records that a power cut, or a disk, has left unreadable. */
  readonly damaged: number

  private constructor(open: OpenJournal, damaged: number) {
    this.#open = open
    this.damaged = damaged
  }

  /** @throws DpsError STORE_FAILED for one of another scope or service, or for what is no journal */
  static async open(store: DeviceJournal, scope: JournalScope, table: IdTable): Promise<Journal> {
    let refusal: DpsError | undefined
    let count = 0
    let damaged = 0
    const opened = await store.open((bytes, position) => {
      const content = decode(bytes)
      if (count++ === 0) refusal = checkHead(content, scope)
      else if (content === undefined) damaged++
      else if (refusal === undefined) note(content, position, table)
    })
    try {
      if (refusal !== undefined) throw refusal
      if (count === 0) await opened.append([encode({ journal: VERSION, ...scope })])
      return new Journal(opened, damaged)
    } catch (error) {
      await opened.close().catch(() => {})
      throw error
    }
  }

  get notices(): readonly string[] {
    return this.#open.notices ?? []
  }

  /** What was stored there. @throws DpsError STORE_FAILED where it is no longer */
  async doneAt(position: number, registrationId: string) {
    const { credential, registration } = await this.#read<Extract<Entry, { done: string }>>(position)
    return { credential, registration: parseRegistration(registration, { registrationId }) }
  }

  /** Ms since the epoch. */
  async begunAt(position: number): Promise<number> {
    return (await this.#read<Extract<Entry, { begun: string }>>(position)).at
  }

  begun(registrationId: string, now: number): Promise<void> {
    return this.#append({ begun: registrationId, at: now })
  }

  done(
    credential: string,
    { registrationId, createdAt, lastUpdatedAt, ...rest }: DeviceRegistration,
  ): Promise<void> {
    // The fields of the service, so that what reads its replies reads this too.
    const registration = { ...rest, createdDateTimeUtc: createdAt, lastUpdatedDateTimeUtc: lastUpdatedAt }
    return this.#append({ done: registrationId, credential, registration })
  }

  refused(registrationId: string): Promise<void> {
    return this.#append({ refused: registrationId })
  }

  async close(): Promise<void> {
    await this.#writing
    await this.#open.close()
  }

  async #read<E extends Entry>(position: number): Promise<E> {
    const content = decode(await this.#open.at(position))
    if (content === undefined) throw failed('a record of the journal can no longer be read')
    return content as unknown as E
  }

  #append(entry: Entry): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#queue.push({ record: encode(entry), resolve, reject })
      this.#writing ??= this.#write()
    })
  }

  /** All that came while the disk was at work goes to it together. */
  async #write(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#queue
      this.#queue = []
      try {
        await this.#open.append(batch.map(({ record }) => record))
        for (const { resolve } of batch) resolve()
      } catch (cause) {
        const error = DpsError.is(cause) ? cause : failed('the journal could not be written', cause)
        for (const { reject } of batch) reject(error)
      }
    }
    this.#writing = undefined
  }
}

function checkHead(content: Record<string, unknown> | undefined, scope: JournalScope): DpsError | undefined {
  const { journal, idScope, host } = content ?? {}
  if (typeof journal !== 'number') return failed('what is there is no journal of this package')
  if (journal > VERSION) return failed('a later version of this package wrote the journal')
  if (idScope === scope.idScope && host === scope.host) return undefined
  return failed(
    `the journal is of another ${idScope === scope.idScope ? 'provisioning service' : 'id scope'}: what it knows does not count here`,
  )
}

function note(content: Record<string, unknown>, position: number, table: IdTable): void {
  const { begun, done, refused } = content
  if (typeof done === 'string') table.set(done, position)
  else if (typeof begun === 'string') table.set(begun, -position)
  else if (typeof refused === 'string') table.set(refused, 0)
}

/** One line of JSON after its checksum: one that is cut short or damaged anywhere is none. */
function encode(content: object): Buffer {
  const json = JSON.stringify(content)
  return Buffer.from(`${sumOf(json)} ${json}`)
}

function decode(bytes: Uint8Array): Record<string, unknown> | undefined {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8')
  const json = text.slice(SUM_LENGTH + 1)
  if (text.slice(0, SUM_LENGTH + 1) !== `${sumOf(json)} `) return undefined
  try {
    return jsonObject(Buffer.from(json))
  } catch {
    return undefined
  }
}

const SUM_LENGTH = 16

const sumOf = (json: string): string => createHash('sha256').update(json).digest('hex').slice(0, SUM_LENGTH)

function failed(message: string, cause?: unknown): DpsError {
  return new DpsError('STORE_FAILED', 'store', message, {
    ...(cause !== undefined && { cause }),
    hint: 'Give each id scope and service a journal of its own, in a place that is neither full nor read-only.',
  })
}
