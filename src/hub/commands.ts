import type { HubIdentity } from '../protocol/hub-address.ts'
import { type IncomingProperties, parseCommandTopic } from '../protocol/hub-wire.ts'
import type { HubEvent } from './options.ts'
import type { HubMessage } from './session.ts'

/** A command of the cloud (cloud-to-device message). */
export interface Command extends IncomingProperties {
  readonly body: Uint8Array
  /** It may have been delivered before. */
  readonly redelivered: boolean
}

/**
 * Deals with one command. It is acknowledged when this returns, or resolves; where it throws, the hub delivers it again
 * with the next connection, up to the delivery count that the hub is set to.
 */
export type CommandHandler = (command: Command) => unknown

/** A hub keeps 50 for a device; what comes above that is not acknowledged, and so comes again. */
const MAX_WAITING = 64

/** Commands, one at a time and in order, which is the order in which they have to be acknowledged [MQTT-4.6.0-2]. */
export class CommandInbox {
  readonly #emit: (event: HubEvent) => void
  #handler: CommandHandler | undefined
  #waiting: { readonly command: Command; readonly message: HubMessage }[] = []
  #working = false

  constructor(emit: (event: HubEvent) => void) {
    this.#emit = emit
  }

  get handled(): boolean {
    return this.#handler !== undefined
  }

  handle(handler: CommandHandler | undefined): void {
    this.#handler = handler
    void this.#work()
  }

  receive(identity: HubIdentity, message: HubMessage): void {
    const properties = parseCommandTopic(identity, message.topic)
    if (properties === undefined) {
      this.#emit({ type: 'message-ignored', message: 'a command with properties that cannot be read' })
      return
    }
    if (this.#waiting.length >= MAX_WAITING) {
      this.#emit({ type: 'message-ignored', message: `a command beyond the ${MAX_WAITING} that wait` })
      return
    }
    const command = Object.freeze({ ...properties, body: message.body, redelivered: message.dup })
    this.#waiting.push({ command, message })
    void this.#work()
  }

  /** The connection is gone, and with it the only way to acknowledge; what waited comes again. */
  detach(): void {
    this.#waiting = []
  }

  async #work(): Promise<void> {
    if (this.#working) return
    this.#working = true
    for (;;) {
      const handler = this.#handler
      const next = handler === undefined ? undefined : this.#waiting.shift()
      if (handler === undefined || next === undefined) break
      try {
        await handler(next.command)
        next.message.acknowledge()
      } catch (error) {
        this.#emit({ type: 'handler-failed', handler: 'command', error })
      }
    }
    this.#working = false
  }
}
