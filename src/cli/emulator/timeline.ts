import type { ClientHelloFacts, EmulatorEvent } from '../../emulator/index.ts'
import { kit } from '../kit.ts'
import { connectionOf, eventText, statusOf, type Tone, timeOf } from './log.ts'

/** One thing that happened on a connection. */
export interface Step {
  /** Since the connection was opened, ms. */
  readonly at: number
  readonly name: string
  readonly text: string
  readonly tone?: Tone | undefined
}

/** A connection as the page shows it. */
export interface Lane {
  readonly id: number
  /** Wall clock, `hh:mm:ss`. */
  readonly time: string
  readonly who?: string
  readonly open: boolean
  /** How the latest thing that was good or bad was. */
  readonly tone?: Tone
  /** The name of that. */
  readonly outcome?: string
  readonly hello?: ClientHelloFacts
  readonly cipher?: string
  readonly resumed?: boolean
}

interface Kept {
  lane: Lane
  readonly steps: Step[]
  readonly opened: number
}

export interface Change extends Lane {
  readonly steps: readonly Step[]
}

const LANES = 40
const STEPS = 200

const PACKETS: readonly (readonly [RegExp, string])[] = [
  [/\/PUT\/iotdps-register|\/register(?:\?|$)/, 'register'],
  [/\/GET\/iotdps-get-operationstatus|\/operations\//, 'poll'],
]

function nameOf(event: EmulatorEvent): string {
  switch (event.type) {
    case 'connection-opened':
      return 'TCP'
    case 'client-hello':
      return 'ClientHello'
    case 'handshake-done':
    case 'handshake-failed':
      return 'TLS'
    case 'registration':
      return 'assigned'
    case 'hub-connected':
    case 'hub-disconnected':
      return 'hub'
    case 'connection-closed':
      return 'closed'
    case 'packet': {
      const { type, topic, target } = event.packet
      const status = statusOf(event.packet)
      if (status !== undefined) return `reply ${status}`
      return PACKETS.find(([pattern]) => pattern.test(topic ?? target ?? ''))?.[1] ?? type.toUpperCase()
    }
    default:
      return event.type
  }
}

/** What a line of the log says beside its first word, which is the name here. */
const withoutName = (text: string, name: string): string =>
  text.replace(/^([→←] )?(\S+?)(?:,? |,|$)/, (whole, arrow = '', word: string) =>
    word.toLowerCase() === name.toLowerCase() ? arrow : whole,
  )

/** The latest connections, each with what happened on it. */
export class Timeline {
  readonly #lanes = new Map<number, Kept>()

  /** @returns what is new, or nothing where it is about no connection that is kept */
  add(event: EmulatorEvent): Change | undefined {
    const { systemClock: clock } = kit
    const now = clock.monotonic()
    if (event.type === 'connection-opened') {
      const { connectionId: id } = event
      const time = timeOf(clock.now()).slice(0, 8)
      this.#lanes.set(id, { lane: { id, time, open: true }, steps: [], opened: now })
      if (this.#lanes.size > LANES) this.#lanes.delete(this.#lanes.keys().next().value!)
    }
    const kept = this.#laneOf(event)
    if (kept === undefined) return undefined
    const [text, tone] = eventText(event)
    const name = nameOf(event)
    const rest = withoutName(text, name)
    // The suites and curves of a ClientHello are in a table of their own; an arrow alone says nothing.
    const said = event.type === 'client-hello' ? rest.split(': ')[0]! : rest.replace(/^[→←] $/, '')
    const step: Step = { at: now - kept.opened, name, text: kit.printable(said, 600), tone }
    kept.lane = {
      ...kept.lane,
      ...this.#learnt(event),
      ...(tone === undefined ? {} : { tone, outcome: name }),
    }
    kept.steps.push(step)
    if (kept.steps.length > STEPS) kept.steps.shift()
    return { ...kept.lane, steps: [step] }
  }

  all(): readonly Change[] {
    return [...this.#lanes.values()].map(({ lane, steps }) => ({ ...lane, steps }))
  }

  #laneOf(event: EmulatorEvent): Kept | undefined {
    const id = connectionOf(event)
    if (id !== undefined) return this.#lanes.get(id)
    const who =
      event.type === 'registration'
        ? event.registration.registrationId
        : event.type === 'certificate-issued'
          ? event.certificate.registrationId
          : undefined
    return [...this.#lanes.values()].reverse().find(({ lane }) => lane.open && lane.who === who)
  }

  #learnt(event: EmulatorEvent): Partial<Lane> {
    switch (event.type) {
      case 'client-hello':
        return { hello: event.offered }
      case 'handshake-done':
        return { cipher: event.cipher, resumed: event.resumed }
      case 'connection-closed':
        return { open: false }
      case 'packet': {
        const { clientId, target } = event.packet
        const who = clientId ?? /\/registrations\/([^/?]+)\//.exec(target ?? '')?.[1]
        return who === undefined ? {} : { who: kit.printable(who, 128) }
      }
      default:
        return {}
    }
  }
}
