import type { DpsError, DpsErrorCode, DpsPhase } from '../errors.ts'

/** What a script or a service manager sees; each number is kept for good. */
export const EXIT = {
  ok: 0,
  unexpected: 1,
  usage: 2,
  config: 3,
  clock: 4,
  network: 5,
  tls: 6,
  refused: 7,
  service: 8,
  warnings: 9,
  some: 10,
  hungUp: 129,
  interrupted: 130,
  terminated: 143,
} as const

export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

/** As a shell counts them: 128 and the number of the signal. */
export const EXIT_OF_SIGNAL = {
  SIGHUP: EXIT.hungUp,
  SIGINT: EXIT.interrupted,
  SIGTERM: EXIT.terminated,
} as const

/** For the help, in the order of the flow. */
export const EXIT_CODES: readonly (readonly [ExitCode, string])[] = [
  [EXIT.ok, 'done'],
  [EXIT.unexpected, 'a fault of this program'],
  [EXIT.usage, 'an option is missing, unknown or wrong'],
  [EXIT.config, 'a certificate, a key, a root or a file cannot be used as it is; or output is lost'],
  [EXIT.clock, 'the clock, or the dates of the device certificate'],
  [EXIT.network, 'the network: name, route, proxy, TCP'],
  [EXIT.tls, 'TLS: the server is not trusted, or the handshake failed'],
  [EXIT.refused, 'the service refused this device'],
  [EXIT.service, 'the service failed, fell silent or answered nonsense'],
  [EXIT.warnings, 'warnings, where --strict counts them'],
  [EXIT.some, 'some devices of a list could not be registered'],
  [EXIT.hungUp, 'the terminal was closed (SIGHUP)'],
  [EXIT.interrupted, 'interrupted (SIGINT, Ctrl-C)'],
  [EXIT.terminated, 'terminated (SIGTERM)'],
]

/** What trying again does not change, and the operator of the service can. */
const REFUSALS: ReadonlySet<DpsErrorCode> = new Set<DpsErrorCode>([
  'BAD_REQUEST',
  'UNAUTHORIZED',
  'FORBIDDEN',
  'NOT_FOUND',
  'REQUEST_REFUSED',
  'SUBSCRIPTION_REFUSED',
  'REGISTRATION_DISABLED',
  'CERTIFICATE_NOT_ISSUED',
  'TLS_CLIENT_CERTIFICATE_REFUSED',
])

const BY_PHASE: Readonly<Record<DpsPhase, ExitCode>> = {
  config: EXIT.config,
  clock: EXIT.clock,
  dns: EXIT.network,
  proxy: EXIT.network,
  tcp: EXIT.network,
  tls: EXIT.tls,
  connect: EXIT.service,
  subscribe: EXIT.service,
  register: EXIT.service,
  poll: EXIT.service,
  parse: EXIT.service,
  store: EXIT.config,
  hub: EXIT.service,
}

/** The stage that failed; a limit of time counts for the stage that used it up. */
export function exitCodeOf(error: DpsError): ExitCode {
  if (error.code === 'OPTION_INVALID' || error.code === 'TLS_POLICY_INVALID') return EXIT.usage
  return REFUSALS.has(error.code) ? EXIT.refused : BY_PHASE[error.phase]
}
