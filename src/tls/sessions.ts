import { LruMap } from '../lru.ts'

/** What has to be equal for a session to be offered again. */
export interface SessionKey {
  /** The name that was verified and sent as SNI: Node does not check it again on resumption. */
  readonly host: string
  readonly port: number
  /** The address dialled in place of `host`, if one was. */
  readonly address: string | undefined
  /** What the connection ran through in place of TCP: a proxy, or `connect`. */
  readonly via?: string | undefined
  readonly policyId: string
  /** A resumed session carries the identity of the client that began it. */
  readonly identityKey: string
}

export interface StoredSession {
  readonly session: Buffer
  /** The root that validated the full handshake, which resumption does not repeat. */
  readonly root: string
  /** When that full handshake was, on the monotonic clock, ms. A renewed ticket keeps it. */
  readonly verifiedAt: number
}

const MAX_SESSIONS = 64

/** RFC 5246 §F.1.4 suggests at most 24 hours. It also bounds how long a certificate is believed unseen. */
export const MAX_SESSION_AGE_MS = 24 * 60 * 60 * 1000

/** TLS sessions of this process, never written anywhere. */
export class SessionCache {
  readonly #sessions = new LruMap<StoredSession>(MAX_SESSIONS)

  get size(): number {
    return this.#sessions.size
  }

  /** @param now the monotonic clock, ms */
  get(key: SessionKey, now: number): StoredSession | undefined {
    const stored = this.#sessions.get(text(key))
    if (stored === undefined || now - stored.verifiedAt <= MAX_SESSION_AGE_MS) return stored
    this.delete(key)
    return undefined
  }

  /** Only for the session of a connection whose chain and host name have been verified, or resumed from one. */
  set(key: SessionKey, stored: StoredSession): void {
    this.#sessions.set(text(key), stored)
  }

  delete(key: SessionKey): void {
    this.#sessions.delete(text(key))
  }
}

function text({ host, port, address, via, policyId, identityKey }: SessionKey): string {
  return JSON.stringify([host, port, address ?? null, via ?? null, policyId, identityKey])
}

export const sessionCache = new SessionCache()
