import { randomBytes } from 'node:crypto'
import { deepFreeze } from '../assignment/assignment.ts'
import type { Clock } from '../clock.ts'
import { DpsError } from '../errors.ts'
import type { ResolvedRetry } from '../options/resolve.ts'
import { parseDesiredTopic, parseTwinResponse, twinGetTopic, twinReportTopic } from '../protocol/hub-wire.ts'
import { backoffCeilingMs } from '../registration/schedule.ts'
import { isObject, readJson } from './json.ts'
import type { HubEvent } from './options.ts'
import { twinRefused } from './refusal.ts'
import type { HubSession } from './session.ts'

export type TwinProperties = Readonly<Record<string, unknown>>

export interface TwinSide {
  readonly properties: TwinProperties
  /** The hub counts every change. */
  readonly version: number
}

/** Desired properties are the cloud's to write, reported ones the device's. Frozen. */
export interface Twin {
  readonly desired: TwinSide
  readonly reported: TwinSide
}

/** What the cloud wants of the device. */
export interface DesiredChange {
  /** With `complete`, all desired properties; else those that changed, null for one that was removed. Frozen. */
  readonly properties: TwinProperties
  readonly version: number
  readonly complete: boolean
}

export type DesiredHandler = (change: DesiredChange) => unknown

export interface TwinOptions {
  /** Cancels it: the promise rejects with CANCELLED. A report may have been made all the same. */
  signal?: AbortSignal
}

interface Request {
  readonly topicOf: (requestId: string) => string
  readonly body: string
  resolve(reply: TwinReply): void
  reject(error: DpsError): void
  disarm(): void
}

interface TwinReply {
  readonly body: Uint8Array
  readonly version: number | undefined
}

/** Changes that a slow handler lets pile up; beyond, the whole is read once instead. */
const MAX_CHANGES = 64

/** Requests about the twin: each is asked again over the next connection until it is answered. */
export class TwinRequests {
  readonly #clock: Clock
  readonly #limitMs: number
  readonly #maxRequests: number
  readonly #emit: (event: HubEvent) => void
  readonly #requests = new Set<Request>()
  /** Those that were sent over the present connection. */
  readonly #sent = new Map<string, Request>()
  // Request ids of another connection of this device must not be taken for one's own.
  readonly #prefix = randomBytes(4).toString('hex')
  #count = 0
  #session: HubSession | undefined

  constructor(clock: Clock, limitMs: number, maxRequests: number, emit: (event: HubEvent) => void) {
    this.#clock = clock
    this.#limitMs = limitMs
    this.#maxRequests = maxRequests
    this.#emit = emit
  }

  async get(signal?: AbortSignal): Promise<Twin> {
    const { body } = await this.#ask(twinGetTopic, '', signal)
    const read = readJson(body)?.value
    const desired = isObject(read) ? sideOf(read.desired) : undefined
    const reported = isObject(read) ? sideOf(read.reported) : undefined
    if (desired === undefined || reported === undefined) {
      throw new DpsError('REPLY_MALFORMED', 'hub', 'the hub answered with what is no twin')
    }
    return deepFreeze({ desired, reported })
  }

  /** @returns the new version of the reported properties, where the hub tells it */
  async report(patch: string, signal?: AbortSignal): Promise<number | undefined> {
    return (await this.#ask(twinReportTopic, patch, signal)).version
  }

  attach(session: HubSession): void {
    this.#session = session
    for (const request of this.#requests) this.#send(session, request)
  }

  detach(): void {
    this.#session = undefined
    for (const request of this.#sent.values()) request.disarm()
    this.#sent.clear()
  }

  rejectAll(error: DpsError): void {
    for (const request of [...this.#requests]) request.reject(error)
  }

  receive(topic: string, body: Uint8Array): void {
    const response = parseTwinResponse(topic)
    if (response === undefined) {
      this.#emit({ type: 'message-ignored', message: 'an answer about the twin whose topic cannot be read' })
      return
    }
    // One that answers nobody is late, or repeated.
    const request = this.#sent.get(response.requestId)
    if (request === undefined) return
    this.#sent.delete(response.requestId)
    if (response.status >= 300) request.reject(twinRefused(response.status, body))
    else request.resolve({ body, version: response.version })
  }

  #ask(
    topicOf: (requestId: string) => string,
    body: string,
    signal: AbortSignal | undefined,
  ): Promise<TwinReply> {
    if (signal?.aborted) return Promise.reject(cancelled(signal.reason))
    if (this.#requests.size >= this.#maxRequests) {
      return Promise.reject(
        new DpsError('QUEUE_FULL', 'hub', `${this.#requests.size} requests about the twin wait for the hub`),
      )
    }
    return new Promise((resolve, reject) => {
      const onAbort = (): void => request.reject(cancelled(signal?.reason))
      const settle = (): void => {
        this.#requests.delete(request)
        request.disarm()
        signal?.removeEventListener('abort', onAbort)
      }
      const request: Request = {
        topicOf,
        body,
        disarm: () => undefined,
        resolve: (reply) => {
          settle()
          resolve(reply)
        },
        reject: (error) => {
          settle()
          reject(error)
        },
      }
      signal?.addEventListener('abort', onAbort)
      this.#requests.add(request)
      if (this.#session !== undefined) this.#send(this.#session, request)
    })
  }

  #send(session: HubSession, request: Request): void {
    this.#count += 1
    const requestId = this.#prefix + this.#count.toString(36)
    this.#sent.set(requestId, request)
    const disarm = this.#clock.after(this.#limitMs, () =>
      request.reject(
        new DpsError('TIMEOUT', 'hub', `the hub did not answer about the twin within ${this.#limitMs} ms`),
      ),
    )
    request.disarm = () => {
      disarm()
      this.#sent.delete(requestId)
    }
    session.send(request.topicOf(requestId), request.body)
  }
}

/** The whole being read, over one connection. */
interface Reading {
  readonly abort: AbortController
  /** Changes that came since it was asked for; undefined where they were more than is kept. */
  held: DesiredChange[] | undefined
}

/** Desired properties as the application gets to see them: all of them first, then every change, in order and none twice. */
export class DesiredFeed {
  readonly #requests: TwinRequests
  readonly #clock: Clock
  readonly #retry: Pick<ResolvedRetry, 'baseDelayMs' | 'maxDelayMs'>
  readonly #emit: (event: HubEvent) => void
  #handler: DesiredHandler | undefined
  /** Of what was delivered last; undefined where the whole is due whatever its version. */
  #version: number | undefined
  /** Changes were dropped; the whole is to be read again. */
  #stale = false
  #reading: Reading | undefined
  #waiting: DesiredChange[] = []
  #working = false
  #attached = false

  constructor(
    requests: TwinRequests,
    clock: Clock,
    retry: Pick<ResolvedRetry, 'baseDelayMs' | 'maxDelayMs'>,
    emit: (event: HubEvent) => void,
  ) {
    this.#requests = requests
    this.#clock = clock
    this.#retry = retry
    this.#emit = emit
  }

  get handled(): boolean {
    return this.#handler !== undefined
  }

  /** Nothing of what came for one handler reaches another, or comes after undefined. */
  handle(handler: DesiredHandler | undefined): void {
    this.#handler = handler
    this.#waiting = []
    this.#stale = false
    this.forget()
    if (handler === undefined) this.#stopReading()
  }

  /** Versions of one twin say nothing of another's. */
  forget(): void {
    this.#version = undefined
  }

  /** The subscription stands: what was missed before it is read. */
  attach(): void {
    this.#attached = true
    void this.#synchronise()
  }

  detach(): void {
    this.#attached = false
    this.#stopReading()
  }

  receive(topic: string, body: Uint8Array): void {
    const read = readJson(body)?.value
    const side = parseDesiredTopic(topic) === undefined || !isObject(read) ? undefined : sideOf(read)
    if (side === undefined) {
      this.#emit({ type: 'message-ignored', message: 'a change of desired properties that cannot be read' })
      return
    }
    // Before `attach`, it is in the whole that is still to be asked for.
    if (this.#handler === undefined || !this.#attached) return
    const change = deepFreeze({ ...side, complete: false })
    const reading = this.#reading
    if (reading === undefined) this.#change(change)
    else if (reading.held !== undefined && reading.held.length < MAX_CHANGES) reading.held.push(change)
    else reading.held = undefined
  }

  #stopReading(): void {
    this.#reading?.abort.abort()
    this.#reading = undefined
  }

  /** Delivers the whole, unless it is the one delivered last, and then what changed since. */
  async #synchronise(): Promise<void> {
    if (this.#handler === undefined || this.#reading !== undefined) return
    const reading: Reading = { abort: new AbortController(), held: [] }
    this.#reading = reading
    const desired = await this.#read(reading)
    if (desired === undefined || this.#reading !== reading) return
    this.#reading = undefined
    // A twin that was made anew, or restored, counts from a lower version.
    if (desired.version !== this.#version) this.#deliver(deepFreeze({ ...desired, complete: true }))
    for (const change of reading.held ?? []) this.#change(change)
  }

  /** Asks until there is an answer that nothing is missing after; undefined where it is not wanted any more. */
  async #read(reading: Reading): Promise<TwinSide | undefined> {
    const { signal } = reading.abort
    for (let failures = 1; ; failures += 1) {
      // What came before it is asked is in the answer.
      reading.held = []
      let reason: unknown = `more than ${MAX_CHANGES} changes came meanwhile`
      let floorMs = 0
      try {
        const { desired } = await this.#requests.get(signal)
        if (signal.aborted) return undefined
        if (reading.held !== undefined) return desired
      } catch (error) {
        reason = error
        floorMs = (DpsError.is(error) ? error.retryAfterMs : undefined) ?? 0
      }
      if (signal.aborted) return undefined
      this.#emit({ type: 'warning', message: `desired properties could not be read: ${String(reason)}` })
      const delayMs = Math.round(floorMs + this.#clock.random() * backoffCeilingMs(failures, this.#retry))
      await this.#clock.sleep(delayMs, signal).catch(() => undefined)
      if (signal.aborted) return undefined
    }
  }

  #change(change: DesiredChange): void {
    if (this.#version === undefined || change.version > this.#version) this.#deliver(change)
  }

  #deliver(change: DesiredChange): void {
    this.#version = change.version
    if (this.#waiting.length >= MAX_CHANGES) {
      this.#waiting = []
      this.#stale = true
    }
    if (!this.#stale) this.#waiting.push(change)
    void this.#work()
  }

  async #work(): Promise<void> {
    if (this.#working) return
    this.#working = true
    for (;;) {
      const change = this.#waiting.shift()
      if (change === undefined || this.#handler === undefined) break
      try {
        await this.#handler(change)
      } catch (error) {
        this.#emit({ type: 'handler-failed', handler: 'desired', error })
      }
    }
    this.#working = false
    if (!this.#stale) return
    this.#stale = false
    this.forget()
    if (this.#attached) void this.#synchronise()
  }
}

/** One side of a twin, or a change of it; `$metadata` and the like are the hub's own. */
function sideOf(value: unknown): TwinSide | undefined {
  if (!isObject(value)) return undefined
  const { $version } = value
  if (typeof $version !== 'number' || !Number.isSafeInteger($version) || $version < 0) return undefined
  const properties = Object.fromEntries(Object.entries(value).filter(([name]) => !name.startsWith('$')))
  return { properties, version: $version }
}

function cancelled(cause: unknown): DpsError {
  return new DpsError('CANCELLED', 'hub', 'cancelled by the caller; a report may have been made', { cause })
}
