import { errorOfAll } from '../credential/ordered.ts'
import type { DpsError, DpsErrorCode, DpsPhase } from '../errors.ts'
import type { DpsEvent } from '../options/options.ts'

const ON_THE_WAY: ReadonlySet<DpsPhase> = new Set<DpsPhase>(['dns', 'proxy', 'tcp'])

/** What a firewall or a middle box does to a handshake. A chain or a name that is wrong is not among them. */
const CUT_OFF: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>(['TIMEOUT', 'CONNECTION_LOST', 'TLS_FAILED'])

/** What a server does that cannot take, or does not look at, what is sent ahead of CONNACK. Whatever it answers is an answer. */
const UNSERVED: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>(['CONNECTION_LOST', 'TIMEOUT'])

/** A wrong proxy password that is sent once per transport locks the account; a broken hook is broken for all. */
const NOT_THE_NETWORK: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>([
  'PROXY_AUTHENTICATION_REQUIRED',
  'OPTION_INVALID',
])

/**
 * Whether another transport may get through where this failed: only the network was at fault. A refused identity or an
 * untrusted server would be met again, and must not be talked around.
 */
export function mayFallBack(error: {
  readonly code: DpsErrorCode
  readonly phase: DpsPhase
  readonly retryable: boolean
}): boolean {
  if (NOT_THE_NETWORK.has(error.code) || (error.code === 'TRANSPORT_FAILED' && !error.retryable)) return false
  return ON_THE_WAY.has(error.phase) || (error.phase === 'tls' && CUT_OFF.has(error.code))
}

/** Whether a session that sent its first request ahead may have failed because of it. */
export function mayBeRefusedPipelining(error: {
  readonly code: DpsErrorCode
  readonly phase: DpsPhase
}): boolean {
  switch (error.phase) {
    case 'connect':
    case 'subscribe':
      return UNSERVED.has(error.code) || error.code === 'PROTOCOL_VIOLATION'
    case 'register':
    case 'poll':
      return UNSERVED.has(error.code)
    default:
      return false
  }
}

/** What speaks against a credential: it cannot be read or used, its time is over, or it was refused. */
const CREDENTIAL_FAILED: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>([
  'CREDENTIAL_UNREADABLE',
  'CREDENTIAL_KEY_MISMATCH',
  'CREDENTIAL_CHAIN_BROKEN',
  'CREDENTIAL_KEY_UNSUPPORTED',
  'CREDENTIAL_NOT_ISSUED',
  'SAS_KEY_INVALID',
  'SIGNER_FAILED',
  'DEVICE_CERTIFICATE_EXPIRED',
  'TLS_CLIENT_CERTIFICATE_REFUSED',
  'UNAUTHORIZED',
])

/**
 * Whether another credential may work where one failed by this error. Not one that is of another device, which a person has
 * to mend, nor one that is not valid yet, which says more about the clock; and the network is no credential's fault.
 */
export function isCredentialFailure({
  code,
  phase,
}: {
  readonly code: DpsErrorCode
  readonly phase: DpsPhase
}): boolean {
  return CREDENTIAL_FAILED.has(code) || (code === 'TRANSPORT_FAILED' && phase === 'config')
}

/** Whose turn it is among the credentials in one call: each has one, and none comes back. */
export class CredentialTurns {
  readonly #count: number
  readonly #failed: DpsError[] = []

  constructor(count: number) {
    this.#count = count
  }

  get index(): number {
    return this.#failed.length
  }

  /** Goes on to the next because of `error`, as the event says; else the call is over, by what is thrown. */
  next(error: DpsError): Extract<DpsEvent, { type: 'credential-fallback' }> {
    if (!isCredentialFailure(error)) throw error
    const from = this.index
    if (from + 1 >= this.#count) throw errorOfAll([...this.#failed, error])
    this.#failed.push(error)
    return { type: 'credential-fallback', from, to: from + 1, error }
  }
}
