import { methodResponseTopic, parseMethodTopic } from '../protocol/hub-wire.ts'
import { readJson } from './json.ts'
import type { HubEvent } from './options.ts'

/** What the application of the service asks for. */
export interface MethodRequest {
  readonly name: string
  /** JSON; null where there is none. */
  readonly payload: unknown
}

export interface MethodAnswer {
  /** HTTP-like; a whole number. */
  readonly status: number
  /** JSON. Default null. */
  readonly payload?: unknown
}

/** Answers a method call. Where it throws, the answer is 500. */
export type MethodHandler = (request: MethodRequest) => MethodAnswer | Promise<MethodAnswer>

/** No hub asks for that much at a time. */
const MAX_RUNNING = 64
const MAX_ANSWER_BYTES = 131_072

const BAD_REQUEST = 400
const TOO_MANY_REQUESTS = 429
const FAILED = 500
const NOT_IMPLEMENTED = 501

/** Method calls, each answered over the connection that it came over. */
export class MethodTable {
  readonly #emit: (event: HubEvent) => void
  readonly #handlers = new Map<string, MethodHandler>()
  #running = 0

  constructor(emit: (event: HubEvent) => void) {
    this.#emit = emit
  }

  has(name: string): boolean {
    return this.#handlers.has(name)
  }

  /** @returns what removes the handler */
  handle(name: string, handler: MethodHandler): () => void {
    this.#handlers.set(name, handler)
    return () => {
      if (this.#handlers.get(name) === handler) this.#handlers.delete(name)
    }
  }

  receive(topic: string, body: Uint8Array, send: (topic: string, body: string) => void): void {
    const call = parseMethodTopic(topic)
    const name = call === undefined ? undefined : decoded(call.name)
    if (call === undefined || name === undefined) {
      this.#emit({ type: 'message-ignored', message: 'a method call whose topic cannot be read' })
      return
    }
    const answer = (status: number, payload: string): void =>
      send(methodResponseTopic(status, call.requestId), payload)
    const handler = this.#handlers.get(name)
    const read = body.length === 0 ? { value: null } : readJson(body)
    if (handler === undefined) answer(NOT_IMPLEMENTED, 'null')
    else if (read === undefined) answer(BAD_REQUEST, 'null')
    else if (this.#running >= MAX_RUNNING) answer(TOO_MANY_REQUESTS, 'null')
    else void this.#run(handler, Object.freeze({ name, payload: read.value }), answer)
  }

  async #run(
    handler: MethodHandler,
    request: MethodRequest,
    answer: (status: number, payload: string) => void,
  ): Promise<void> {
    this.#running += 1
    try {
      const { status, payload } = await handler(request)
      if (!Number.isSafeInteger(status))
        throw new TypeError('`status` of a method’s answer must be a whole number')
      const json = JSON.stringify(payload ?? null)
      if (json === undefined || Buffer.byteLength(json) > MAX_ANSWER_BYTES) {
        throw new TypeError(
          `\`payload\` of a method’s answer must be JSON of at most ${MAX_ANSWER_BYTES} bytes`,
        )
      }
      answer(status, json)
    } catch (error) {
      this.#emit({ type: 'handler-failed', handler: 'method', name: request.name, error })
      answer(FAILED, 'null')
    } finally {
      this.#running -= 1
    }
  }
}

function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}
