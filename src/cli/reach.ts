import type { X509Certificate } from 'node:crypto'
import type { TLSSocket } from 'node:tls'
import type { Clock } from '../clock.ts'
import type { Credential } from '../credential/credential.ts'
import type { DpsError, DpsPhase } from '../errors.ts'
import type * as Library from '../index.ts'
import type { ProvisioningClientOptions, TlsOptions } from '../options/options.ts'
import type { TlsFacts, Transport } from '../transport/transport.ts'
import { kit } from './kit.ts'

export interface Trip {
  readonly library: typeof Library
  readonly settings: Settings
  readonly port: number
  readonly signal: AbortSignal
  readonly timeoutMs: number
  /** What is presented in the handshake. Default: nothing. */
  readonly credential?: Credential | undefined
  readonly tls?: TlsOptions
  /** Whether the server's clock is asked for too. */
  readonly askTime?: boolean
  readonly onPhase?: (phase: DpsPhase) => void
}

/** How far a connection came. */
export interface Reach {
  /** Ms of each phase that was entered. */
  readonly phases: Readonly<Partial<Record<DpsPhase, number>>>
  /** Present once the handshake was verified. */
  readonly tls?: TlsFacts
  readonly certificates: readonly X509Certificate[]
  /** How far the server's clock is ahead of this one, ms, to within a second and the time of the answer. */
  readonly aheadMs?: number | undefined
  /** Why there was no handshake. */
  readonly error?: DpsError
}

export const NOBODY: Credential = Object.freeze({
  load: async () => ({
    registrationId: 'dps-device',
    fingerprint: 'nobody',
    checkDates: () => {},
    token: async () => undefined,
  }),
})

type Settings = Omit<ProvisioningClientOptions, 'credential' | 'idScope'>

/** A client that registers nothing; without a credential it is nobody's. */
export const clientOf = (library: typeof Library, settings: Settings, credential = NOBODY) =>
  new library.ProvisioningClient({ ...settings, idScope: '0ne00000000', credential })

/** The clock of this device, or that of the release where it is behind: what a server says of the time is to be heard. */
export const laterClock = (): Clock => {
  const { systemClock, RELEASED_AT_MS } = kit
  return { ...systemClock, now: () => Math.max(systemClock.now(), RELEASED_AT_MS) }
}

/** As short as can be, and the answer is any: all have a date. */
const TIME_LIMIT_MS = 3000
const MAX_HEAD = 8192

/**
 * Opens one connection as the client does, up to TLS, and closes it: by a transport that asks for nothing. A clock that is
 * behind does not keep it from that, for the server may know better.
 *
 * @throws DpsError CANCELLED, and what is wrong with the settings
 */
export async function reach(trip: Trip): Promise<Reach> {
  const { library, settings, port, signal, timeoutMs, onPhase } = trip
  const { DpsError } = kit
  const found: { -readonly [K in keyof Reach]: Reach[K] } = { phases: {}, certificates: [] }
  const transport: Transport = {
    name: 'tls',
    open: async (context) => {
      const { socket, tls, certificates = [], roundTrips } = await context.dial(port)
      Object.assign(found, { tls, certificates })
      if (trip.askTime) {
        context.enter('connect')
        found.aheadMs = await serverAhead(socket, context.host)
      }
      return {
        connection: { ...tls, transport: 'tls', roundTrips },
        request: () => Promise.reject(new TypeError('nothing is asked')),
        close: async () => {
          socket.destroy()
        },
      }
    },
  }
  const asked: Settings = {
    ...settings,
    transport,
    tls: { sessionResumption: false, ...trip.tls },
    clock: laterClock(),
    onEvent: (event) => {
      if (event.type === 'phase-started') onPhase?.(event.phase)
      if (event.type === 'phase-ended') {
        found.phases = { ...found.phases, [event.phase]: event.durationMs }
      }
    },
  }
  const client = kit.withOwnCertFile(settings.trust, () => clientOf(library, asked, trip.credential))
  try {
    await client.probe({ signal, timeoutMs })
  } catch (error) {
    if (!DpsError.is(error) || error.code === 'CANCELLED' || error.phase === 'config') throw error
    if (found.tls === undefined) found.error = error
  }
  return found
}

/** By the head of an answer to a request for nothing; undefined where none comes. */
function serverAhead(socket: TLSSocket, host: string): Promise<number | undefined> {
  const { now, after } = kit.systemClock
  return new Promise((resolve) => {
    let head = ''
    const askedAt = now()
    const done = (aheadMs?: number) => {
      disarm()
      resolve(aheadMs)
    }
    const disarm = after(TIME_LIMIT_MS, () => done())
    socket.on('error', () => done())
    socket.on('close', () => done())
    socket.on('data', (chunk: Buffer) => {
      head += chunk.toString('latin1')
      const [, date] = /^HTTP\/1\.1 [\s\S]*?^date: *([^\r\n]{1,40})\r$/im.exec(head) ?? []
      // The header has whole seconds, cut off.
      const aheadMs = Date.parse(date ?? '') + 500 - (askedAt + now()) / 2
      if (Number.isFinite(aheadMs)) done(aheadMs)
      else if (head.includes('\r\n\r\n') || head.length > MAX_HEAD) done()
    })
    socket.write(`HEAD / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)
  })
}
