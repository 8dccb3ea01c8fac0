import type { DpsErrorCode, DpsPhase } from '../errors.ts'

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
