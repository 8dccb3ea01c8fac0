import type { Assignment } from './assignment/assignment.ts'

/** The stage of the flow in which a failure was found. */
export type DpsPhase =
  | 'config'
  | 'clock'
  | 'dns'
  | 'proxy'
  | 'tcp'
  | 'tls'
  | 'connect'
  | 'subscribe'
  | 'register'
  | 'poll'
  | 'parse'
  | 'store'
  | 'hub'

/**
 * Who has to act: the caller (`usage`), the device's clock or credential (`device`), the network between
 * (`network`), the identity of the server (`trust`), a server that does not speak the protocol (`reply`), or the
 * service, which understood and said no (`service`).
 */
export type DpsErrorFamily = 'usage' | 'device' | 'network' | 'trust' | 'reply' | 'service'

interface CodeFacts {
  readonly family: DpsErrorFamily
  /** Whether the same call, unchanged, may succeed later. */
  readonly retryable: boolean
  /** What to do next, in one sentence. */
  readonly hint: string
}

const facts = <T extends Record<string, CodeFacts>>(table: T): Readonly<T> => table

/** Every code, once: the type, the default `retryable` and the default `hint` are all read from here. */
export const ERROR_CODES = facts({
  OPTION_INVALID: { family: 'usage', retryable: false, hint: 'Correct the option named in the message.' },
  TLS_POLICY_INVALID: {
    family: 'usage',
    retryable: false,
    hint: 'Name only TLS 1.2 suites and curves of the documented policy, or leave `tls` out to use the recommended ones.',
  },
  TRUST_ANCHOR_INVALID: {
    family: 'usage',
    retryable: false,
    hint: 'Give self-signed CA root certificates only: leaves and intermediates are renewed without notice, and a pinned one would lock the device out.',
  },
  CREDENTIAL_UNREADABLE: {
    family: 'usage',
    retryable: false,
    hint: 'Give a PEM certificate with its intermediates and the matching PEM private key, or a PKCS#12 bundle.',
  },
  CREDENTIAL_KEY_MISMATCH: {
    family: 'usage',
    retryable: false,
    hint: 'Pair the private key with the certificate that was issued for it.',
  },
  CREDENTIAL_CHAIN_BROKEN: {
    family: 'usage',
    retryable: false,
    hint: 'Give the device certificate and each intermediate between it and the CA that the service knows, in any order.',
  },
  CREDENTIAL_NAME_MISMATCH: {
    family: 'usage',
    retryable: false,
    hint: 'With X.509 the registration id is the CN of the device certificate: leave `registrationId` out or make the two equal.',
  },
  CREDENTIAL_KEY_UNSUPPORTED: {
    family: 'usage',
    retryable: false,
    hint: 'Use an EC P-256 (recommended), EC P-384 or RSA device key, and keep its curve in `tls.curves`.',
  },
  CREDENTIAL_NOT_ISSUED: {
    family: 'usage',
    retryable: false,
    hint: 'Name a bootstrap credential after this one, and register with a `csr`.',
  },
  SAS_KEY_INVALID: {
    family: 'usage',
    retryable: false,
    hint: 'Copy the whole key: strict base64 that decodes to between 16 and 64 bytes.',
  },
  SIGNER_FAILED: {
    family: 'device',
    retryable: true,
    hint: 'See `cause`: the signing function of the credential failed or returned something that is no HMAC-SHA256.',
  },
  DEVICE_CERTIFICATE_EXPIRED: {
    family: 'device',
    retryable: false,
    hint: 'Compare the clock with the dates in the message; if the clock is right, renew the device certificate.',
  },
  DEVICE_CERTIFICATE_NOT_YET_VALID: {
    family: 'device',
    retryable: true,
    hint: 'The clock is probably behind: wait for time synchronisation, then try again.',
  },
  CLOCK_BEHIND: {
    family: 'device',
    retryable: true,
    hint: 'This device’s clock is certainly wrong: set it, or let `waitForClock` wait for time synchronisation.',
  },
  CANCELLED: { family: 'usage', retryable: true, hint: 'The caller aborted; call again when ready.' },
  DEADLINE_EXCEEDED: {
    family: 'network',
    retryable: true,
    hint: 'See `phase` and `cause` for what took the time; raise `timeouts.totalMs` if the network is known to be slow.',
  },
  TIMEOUT: {
    family: 'network',
    retryable: true,
    hint: 'The other side was silent in the phase named here: look for a firewall that drops packets, or raise that phase in `timeouts`.',
  },
  DNS_FAILED: {
    family: 'network',
    retryable: true,
    hint: 'Check that the host name is right and that the device has a working DNS resolver.',
  },
  CONNECTION_REFUSED: {
    family: 'network',
    retryable: true,
    hint: 'Nothing accepts connections there: check the port, and whether a firewall blocks 8883.',
  },
  NETWORK_UNREACHABLE: {
    family: 'network',
    retryable: true,
    hint: 'The device has no route to the service: check that the network is up.',
  },
  CONNECTION_LOST: {
    family: 'network',
    retryable: true,
    hint: 'The connection ended before an answer came; try again, and look at middle boxes if it always happens in the same phase.',
  },
  PROXY_AUTHENTICATION_REQUIRED: {
    family: 'network',
    retryable: false,
    hint: 'The proxy wants a user name and password it accepts: give them in `proxy`.',
  },
  PROXY_REFUSED: {
    family: 'network',
    retryable: true,
    hint: 'The proxy does not open this connection: ask its operator to allow the host and port named in the message.',
  },
  TRANSPORT_FAILED: {
    family: 'usage',
    retryable: false,
    hint: 'A transport or credential of your own threw something that is no DpsError: see `cause`.',
  },
  SERVER_UNTRUSTED: {
    family: 'trust',
    retryable: false,
    hint: 'The chain does not end in a trusted root: something on the way decrypts the traffic, or this cloud uses another root, which then belongs in `trust.extraRoots`.',
  },
  SERVER_NAME_MISMATCH: {
    family: 'trust',
    retryable: false,
    hint: 'The server is not the one named in `host`: keep `host` the service name and put a private address in `connectTo`.',
  },
  SERVER_CERTIFICATE_EXPIRED: {
    family: 'trust',
    retryable: true,
    hint: 'Compare this device’s date with the dates in the message: either the clock is ahead or the server’s certificate was not renewed.',
  },
  SERVER_CERTIFICATE_NOT_YET_VALID: {
    family: 'trust',
    retryable: true,
    hint: 'Compare this device’s date with the dates in the message: the clock is almost certainly behind.',
  },
  SERVER_CERTIFICATE_INVALID: {
    family: 'trust',
    retryable: false,
    hint: 'The server’s certificate may not be used for this; see `cause` for the reason OpenSSL gave.',
  },
  TLS_VERSION_REFUSED: {
    family: 'trust',
    retryable: false,
    hint: 'The other side does not speak TLS 1.2, which is all the service speaks: it is not the service.',
  },
  TLS_NO_COMMON_SUITE: {
    family: 'trust',
    retryable: false,
    hint: 'The server takes none of the offered suites or curves: leave `tls.ciphers` and `tls.curves` at their defaults.',
  },
  TLS_CLIENT_CERTIFICATE_REFUSED: {
    family: 'service',
    retryable: false,
    hint: 'The server refused the device certificate during the handshake: check its chain, its validity and its key type.',
  },
  TLS_FAILED: {
    family: 'network',
    retryable: true,
    hint: 'The other side broke the TLS handshake; see `cause`, and check that the port belongs to the service.',
  },
  PROTOCOL_REFUSED: {
    family: 'reply',
    retryable: false,
    hint: 'The server does not take MQTT 3.1.1: it is not the provisioning service.',
  },
  PROTOCOL_VIOLATION: {
    family: 'reply',
    retryable: true,
    hint: 'The server sent bytes that are not the protocol; check `host` and what stands in between.',
  },
  SUBSCRIPTION_REFUSED: {
    family: 'service',
    retryable: false,
    hint: 'The service refused the subscription to its own replies: check `host` and `apiVersion`.',
  },
  REPLY_MALFORMED: {
    family: 'reply',
    retryable: true,
    hint: 'The reply was not what the protocol says; report it with the `trackingId` if there is one.',
  },
  REPLY_INCOMPLETE: {
    family: 'reply',
    retryable: false,
    hint: 'The service said assigned but not where: report it, with the operation’s time, to the operator of the service.',
  },
  REPLY_TOO_LARGE: {
    family: 'reply',
    retryable: false,
    hint: 'The reply was larger than any the service documents: reduce the payload that the allocation function returns.',
  },
  BAD_REQUEST: {
    family: 'service',
    retryable: false,
    hint: 'Check the id scope, the API version and the payload: the service could not accept the request.',
  },
  UNAUTHORIZED: {
    family: 'service',
    retryable: false,
    hint: 'Check the key or certificate, the id scope and the clock; then, on the service: that the enrollment exists and is enabled, and that it trusts this certificate’s CA.',
  },
  FORBIDDEN: {
    family: 'service',
    retryable: false,
    hint: 'An IP filter, a private-endpoint rule or the tier forbids this device: ask the operator of the service.',
  },
  NOT_FOUND: {
    family: 'service',
    retryable: false,
    hint: 'No enrollment or registration of this device exists in this id scope: create one, or correct the scope.',
  },
  CONFLICT: {
    family: 'service',
    retryable: true,
    hint: 'Another registration of the same device is in flight: let only one process register it.',
  },
  REQUEST_REFUSED: {
    family: 'service',
    retryable: false,
    hint: 'The service refused the request; give `serviceErrorCode` and `trackingId` to its support.',
  },
  THROTTLED: {
    family: 'service',
    retryable: true,
    hint: 'The instance is over its quota: wait at least `retryAfterMs` and spread the fleet with `retry.startDelayMs`.',
  },
  SERVICE_UNAVAILABLE: {
    family: 'service',
    retryable: true,
    hint: 'The service has trouble; try again later.',
  },
  REGISTRATION_DISABLED: {
    family: 'service',
    retryable: false,
    hint: 'The enrollment of this device is disabled: ask the operator to enable it.',
  },
  ALLOCATION_FAILED: {
    family: 'service',
    retryable: false,
    hint: 'The custom allocation function failed or named no hub: look at its logs, then register again.',
  },
  REGISTRATION_FAILED: {
    family: 'service',
    retryable: false,
    hint: 'The service could not assign the device; `serviceErrorCode` and the message say why.',
  },
  CERTIFICATE_NOT_ISSUED: {
    family: 'service',
    retryable: false,
    hint: 'The device is assigned, as `assignment` says, but has no certificate: give its enrollment a certificate policy, then register again with the request.',
  },
  ISSUED_CERTIFICATE_INVALID: {
    family: 'reply',
    retryable: false,
    hint: 'The device is assigned, as `assignment` says: look at the certificate policy and its CA, then register again with a new request.',
  },
  STORE_FAILED: {
    family: 'device',
    retryable: true,
    hint: 'Check that the folder named in the message exists, belongs to the user this process runs as, and is neither full nor read-only.',
  },
  QUEUE_FULL: {
    family: 'device',
    retryable: true,
    hint: 'More is sent than the hub takes: wait for what is queued, send less, or raise the limit in `queue`.',
  },
  HUB_CLOSED: {
    family: 'usage',
    retryable: false,
    hint: 'The application closed this connection: connect anew.',
  },
  HUB_PROFILE_UNSUPPORTED: {
    family: 'service',
    retryable: false,
    hint: 'Assign the device to a hub of the classic profile: this package speaks MQTT 3.1.1 to hubs and nothing newer.',
  },
})

/** A stable, literal identifier of what went wrong; `docs/errors.md` has each. Never parse `message`; compare this. */
export type DpsErrorCode = keyof typeof ERROR_CODES

export interface DpsErrorDetails {
  /** Overrides the code's own `retryable`. */
  retryable?: boolean | undefined
  retryAfterMs?: number | undefined
  serviceErrorCode?: number | undefined
  trackingId?: string | undefined
  serverTime?: Date | undefined
  /** Overrides the code's own hint. */
  hint?: string | undefined
  assignment?: Assignment | undefined
  cause?: unknown
}

const BRAND = Symbol.for('dps-device-client.DpsError')

/**
 * The only error this package rejects or throws with.
 *
 * `message` is for people and may change; `code`, `phase` and the other fields are the contract. No field ever
 * holds a key, a token or a private key.
 */
export class DpsError extends Error {
  override readonly name = 'DpsError'
  readonly code: DpsErrorCode
  readonly phase: DpsPhase
  /** Whether the same call, unchanged, may succeed later. */
  readonly retryable: boolean
  /** Milliseconds the service asked to wait; absent when it did not say. */
  readonly retryAfterMs: number | undefined
  /** The service's six-digit `errorCode`, when it sent one. */
  readonly serviceErrorCode: number | undefined
  /** The service's `trackingId`: what its support asks for first. */
  readonly trackingId: string | undefined
  /** The service's own clock when it answered (`timestampUtc`). */
  readonly serverTime: Date | undefined
  /** One sentence: what to do next. */
  readonly hint: string
  /**
   * Where the device belongs, although the call failed: with CERTIFICATE_NOT_ISSUED and ISSUED_CERTIFICATE_INVALID the
   * registration was made, and billed. Not printed with the error; in its JSON without `payload`, which may hold anything.
   */
  declare readonly assignment: Assignment | undefined

  constructor(code: DpsErrorCode, phase: DpsPhase, message: string, details: DpsErrorDetails = {}) {
    super(message, 'cause' in details ? { cause: details.cause } : undefined)
    this.code = code
    this.phase = phase
    this.retryable = details.retryable ?? ERROR_CODES[code].retryable
    this.retryAfterMs = details.retryAfterMs
    this.serviceErrorCode = details.serviceErrorCode
    this.trackingId = details.trackingId
    this.serverTime = details.serverTime
    this.hint = details.hint ?? ERROR_CODES[code].hint
    Object.defineProperty(this, BRAND, { value: true })
    if (details.assignment !== undefined) {
      Object.defineProperty(this, 'assignment', { value: details.assignment })
    }
  }

  get family(): DpsErrorFamily {
    return ERROR_CODES[this.code].family
  }

  /** True for a `DpsError` of this or any other installed copy of the package, where `instanceof` is not. */
  static is(value: unknown): value is DpsError {
    return typeof value === 'object' && value !== null && (value as Record<symbol, unknown>)[BRAND] === true
  }

  /** Everything but the stack and the cause, as plain data. */
  toJSON(): Record<string, unknown> {
    return {
      name: this.name,
      code: this.code,
      phase: this.phase,
      message: this.message,
      retryable: this.retryable,
      retryAfterMs: this.retryAfterMs,
      serviceErrorCode: this.serviceErrorCode,
      trackingId: this.trackingId,
      serverTime: this.serverTime?.toISOString(),
      hint: this.hint,
      ...(this.assignment !== undefined && { assignment: { ...this.assignment, payload: undefined } }),
    }
  }
}
