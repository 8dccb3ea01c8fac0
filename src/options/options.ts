import type { Duplex } from 'node:stream'
import type { Clock } from '../clock.ts'
import type { Credential } from '../credential/credential.ts'
import type { DpsError, DpsPhase } from '../errors.ts'
import type { Transport, TransportName } from '../transport/transport.ts'

/** PEM text, PEM bytes, or several of either. */
export type PemInput = string | Uint8Array | readonly (string | Uint8Array)[]

export interface TrustOptions {
  /**
   * `'bundled'`: exactly the two roots in `roots/`. `'system'`: the certificate store of the platform, as files; never
   * Node's own list. `'none'`: only `extraRoots`. Default `'bundled'`.
   */
  roots?: 'bundled' | 'system' | 'none'
  /** Further roots, PEM. Each must be a self-signed CA certificate; anything else is refused. Default none. */
  extraRoots?: PemInput
}

export interface TlsOptions {
  /** `'security'` puts AES-256 of each pair first, `'performance'` AES-128. Default `'security'`. */
  cipherPreference?: 'security' | 'performance'
  /**
   * Appends the documented legacy suites (static RSA, no forward secrecy) after the recommended ones, in the named
   * order, and reports a warning event. Default off.
   */
  legacyCiphers?: 'security' | 'performance'
  /** Replaces the recommended list: OpenSSL names, in order of preference. Default: the recommended suites. */
  ciphers?: readonly string[]
  /** Key-exchange groups in order of preference. Must contain the curve of an EC device key. Default X25519, P-256, P-384. */
  curves?: readonly string[]
  /** May be raised; the minimum is always TLS 1.2. Default `'TLSv1.2'`. */
  maxVersion?: 'TLSv1.2' | 'TLSv1.3'
  /** Resume TLS sessions within this process, never across credentials. Default true. */
  sessionResumption?: boolean
}

/** All in milliseconds; integers of at least 1. Each phase has its own limit; `totalMs` bounds all of them together. */
export interface TimeoutOptions {
  /** The whole call, waits and retries included. Default 120 000. */
  totalMs?: number
  /** Name resolution. Default 10 000. */
  dnsMs?: number
  /** TCP connection, or the function `connect`. Default 15 000. */
  tcpMs?: number
  /** With a proxy: its name, the connection to it and its answer to CONNECT. Default 15 000. */
  proxyMs?: number
  /** TLS handshake; generous, because an RSA key on a small board under load needs seconds. Default 30 000. */
  tlsMs?: number
  /** MQTT CONNECT to CONNACK. Default 15 000. */
  connectMs?: number
  /** SUBSCRIBE to SUBACK. Default 15 000. */
  subscribeMs?: number
  /** Register request to its reply. Default 30 000. */
  registerMs?: number
  /** Status request to its reply. Default 30 000. */
  pollMs?: number
}

export interface RetryOptions {
  /**
   * Consecutive failures allowed per step (connecting, registering, polling) before the last one is thrown; a success
   * of the step starts the count again. 1 means no retry. Default 8.
   */
  maxAttempts?: number
  /**
   * Of those, how many registration requests in a row may be answered that the service is over its quota (429). Default
   * as `maxAttempts`; 1 in `provisionForever`, which then waits longer, and without a connection.
   */
  maxThrottled?: number
  /** First back-off ceiling, ms. Each further failure doubles it; the delay is uniform between 0 and it. Default 1 000. */
  baseDelayMs?: number
  /** Largest back-off ceiling, ms. Jitter stays full at it, because that is when a fleet is in step. Default 60 000. */
  maxDelayMs?: number
  /**
   * Uniform random wait before the first packet, ms: for devices that power up together. In `register` it is part of
   * `timeouts.totalMs`; `provisionForever` waits it once, beside that limit, and takes it for the time in which the fleet
   * gets through: a device that is refused lets it pass. 63 ms for each device of the fleet suit the service's quota of
   * 1 000 a minute. Default 0.
   */
  startDelayMs?: number
  /** Gap before the next status request where the service names none, and never less than this, ms. Default 2 000. */
  pollIntervalMs?: number
}

export interface MqttOptions {
  /**
   * Sends CONNECT, SUBSCRIBE and the first request in one flight, over `mqtt` and `mqtt-ws`: two round trips less (4 in
   * place of 6 until a registration that is answered at once, 5 in place of 7 over WebSocket). MQTT 3.1.1 section 3.1.4
   * allows a client to send packets without waiting for CONNACK, and obliges a server that refuses the CONNECT not to
   * process them [MQTT-3.1.4-5].
   *
   * The risk: nothing public says that the service accepts it. Where a connection ends, breaks the protocol or falls silent
   * before CONNACK and SUBACK have come, the same step is tried once more, at once and without, within the same limits, and
   * the event `pipelining-refused` says so. Once that has brought a reply, this client does not pipeline again to that host,
   * port and address. A refusal in CONNACK is an answer, not a reason to try again. A registration whose reply was lost is
   * sent again, as it is without. A SAS token is signed while the connection is being made. Default false.
   */
  pipelining?: boolean
}

/** Progress, as plain data. */
export type DpsEvent =
  | { readonly type: 'phase-started'; readonly phase: DpsPhase }
  | {
      readonly type: 'phase-ended'
      readonly phase: DpsPhase
      readonly durationMs: number
      readonly ok: boolean
    }
  | {
      /** The same step will be tried again after `delayMs`, because of `error`. */
      readonly type: 'retry'
      readonly step: 'connect' | 'register' | 'poll' | 'lookup'
      /** Failures of this step in a row so far. */
      readonly attempt: number
      readonly delayMs: number
      readonly error: DpsError
    }
  | {
      /** The service is still assigning; the next status request follows after `delayMs`. */
      readonly type: 'assigning'
      readonly operationId: string
      readonly delayMs: number
    }
  | {
      /** The network did not let this transport through; the next in the list is tried at once. */
      readonly type: 'fallback'
      readonly from: string
      readonly to: string
      readonly error: DpsError
    }
  | {
      /**
       * A credential of the list cannot be read, has expired or was refused, because of `error`: the rest of the call is done
       * with the next. Indices.
       */
      readonly type: 'credential-fallback'
      readonly from: number
      readonly to: number
      readonly error: DpsError
    }
  | {
      /**
       * Nothing answered what was sent ahead of CONNACK (option `mqtt.pipelining`), because of `error`. The rest of the call
       * sends one packet after the other, at once where the connection could not be opened.
       */
      readonly type: 'pipelining-refused'
      readonly transport: string
      readonly error: DpsError
    }
  | {
      /** The clock is not plausible yet; it is looked at again after `delayMs`. */
      readonly type: 'waiting-for-clock'
      readonly delayMs: number
    }
  | {
      /** `provisionForever` starts again after `delayMs`. */
      readonly type: 'attempt-failed'
      /** Attempts so far. */
      readonly attempt: number
      readonly delayMs: number
      readonly error: DpsError
    }
  | {
      /** `provision` found no stored assignment that counts, and has to ask the service. */
      readonly type: 'no-stored-assignment'
      /**
       * `missing`: nothing is stored. `refused`: the service has said no since the last assignment. `unreadable`: the store
       * failed. `damaged`: what is stored is no record. `newer`: a later version of this package wrote it. `foreign`: it is of
       * another id scope, service, registration id, certificate or key.
       */
      readonly reason: 'missing' | 'refused' | 'unreadable' | 'damaged' | 'newer' | 'foreign'
      readonly message: string
      /** What the store failed with, where it is `unreadable`. */
      readonly error?: DpsError
    }
  | {
      /** The service could not be asked, because of `error`: what is stored stays in force and is returned. */
      readonly type: 'stored-assignment-kept'
      readonly error: DpsError
    }
  | {
      /** The service has refused this device by `error`: its stored assignment is gone. */
      readonly type: 'stored-assignment-erased'
      readonly error: DpsError
    }
  | {
      /** The store did not take what should have been stored or erased. */
      readonly type: 'store-failed'
      readonly error: DpsError
    }
  | { readonly type: 'warning'; readonly message: string }

/** A transport by name, or one of your own. */
export type TransportChoice = TransportName | Transport

export interface WaitForClockOptions {
  /**
   * When the clock is to be believed. `'plausible'`: it is behind neither this release nor the last verified contact.
   * `'systemd-timesyncd'`: the same, and systemd has reported synchronisation. A function is asked about once a second.
   * Default `'plausible'`.
   */
  until?: 'plausible' | 'systemd-timesyncd' | ((signal: AbortSignal) => boolean | Promise<boolean>)
  /** Longest wait, ms; then the call fails with CLOCK_BEHIND, because time servers may be blocked for good. Default 90 000. */
  limitMs?: number
}

export interface ProxyOptions {
  /** `http://[user:password@]host[:port]`, port 80 by default; user and password percent-encoded. */
  url: string
  /** In place of one in `url`, not encoded. Sent as Basic authentication (RFC 7617) with the first request. */
  username?: string
  password?: string
  /**
   * What is dialled without the proxy, as an array or separated by commas or spaces. `example.com` is that name and all
   * below it, `.example.com` only those below; an IP address; a CIDR block; each with or without `:port`; `*` is all.
   * Compared with `connectTo` where that is given, else with `host`. Default none.
   */
  noProxy?: string | readonly string[]
}

/** What the function `connect` is asked for. */
export interface ConnectTarget {
  /** `connectTo` where that is given, else `host`: a name or an IP address. */
  readonly host: string
  readonly port: number
  /** Aborts when the attempt is over before the stream was there; a stream that comes later is destroyed. */
  readonly signal: AbortSignal
}

/**
 * Opens the way to the service: an SSH or SOCKS tunnel, a serial line, a modem vendor's stack. TLS, with the whole policy,
 * runs on top of the stream, which from then on belongs to the client: it reads, ends and destroys it. What the function
 * throws becomes TRANSPORT_FAILED, phase `tcp`, which is tried again where it has a system code such as ECONNREFUSED; a
 * DpsError stays as it is. `connection.roundTrips` does not count those of the way itself. Where a server's
 * chain no longer ends in the root of last time, it is asked twice for one connection.
 */
export type ConnectFunction = (target: ConnectTarget) => Duplex | Promise<Duplex>

export interface ProvisioningClientOptions {
  /** The id scope of the provisioning service instance, such as `0ne00000000`. */
  idScope: string
  /**
   * Who the device is; or several credentials of one device in order of preference, such as `[operational, bootstrap]`. Each
   * call begins with the first, and tries the next, once, where one cannot be read, has expired, or is refused by the service
   * (UNAUTHORIZED, TLS_CLIENT_CERTIFICATE_REFUSED): never for the network's sake, nor for a clock that is behind. Each step is
   * told by a `credential-fallback` event. Where all fail the call rejects with the error of the last that was refused, or else
   * of the last, and its `cause` is an AggregateError with all of them in order.
   */
  credential: Credential | readonly Credential[]
  /**
   * The host name of the service: sent as SNI and verified in the certificate.
   * Default `global.azure-devices-provisioning.net`.
   */
  host?: string
  /** One port for whatever transport is used, or one for each. Default 8883 for `mqtt`, 443 for `mqtt-ws` and `https`. */
  port?: number | Readonly<Partial<Record<TransportName, number>>>
  /** The address to dial in place of `host` (a private endpoint, an emulator). `host` is still what is verified. */
  connectTo?: string
  /**
   * How to reach the service, or several ways in order of preference: the next is tried where the *network* stops one
   * (name, route, firewall, proxy, silence before TLS is up), never where identity or trust is refused. The one that worked is tried
   * first from then on. Default `'mqtt'`.
   */
  transport?: TransportChoice | readonly TransportChoice[]
  mqtt?: MqttOptions
  /**
   * An HTTP proxy that opens tunnels with CONNECT: its URL, `{ url, username, password, noProxy }`, or `'environment'`,
   * and only then are `https_proxy`, `all_proxy` and `no_proxy` read (lower case first, then upper case; at
   * construction). TLS runs end to end inside the tunnel: the proxy sees the name and the port and no more. Default none.
   */
  proxy?: string | ProxyOptions
  /** Opens the way to the service in place of a TCP connection; not together with `proxy`. Default none. */
  connect?: ConnectFunction
  trust?: TrustOptions
  tls?: TlsOptions
  /** Device API version. Default `2019-03-31`, and `2025-07-01-preview` for a registration with a `csr`. */
  apiVersion?: string
  /** Informational product name sent to the service. Default `dps-device-client/<version>`. */
  userAgent?: string
  /**
   * Waits for a plausible clock before the first packet; the wait counts into `timeouts.totalMs`. Default: no wait; a
   * clock that is certainly wrong fails at once.
   */
  waitForClock?: WaitForClockOptions
  /**
   * When this device last had verified contact with the service, as the application remembers it over restarts: a clock
   * that is more than a day behind it now is wrong. Date or ms since the epoch. Default: none.
   */
  lastContact?: Date | number
  /** Time and chance; for tests. Default: the system's. */
  clock?: Clock
  timeouts?: TimeoutOptions
  retry?: RetryOptions
  /** Receives progress while a call runs. It is never called after the call has settled; what it throws is reported as a process warning. */
  onEvent?: (event: DpsEvent) => void
}

export interface CallOptions {
  /** Cancels the call: it rejects with code CANCELLED and leaves nothing running. */
  signal?: AbortSignal
  /** Overrides `timeouts.totalMs` for this call. */
  timeoutMs?: number
}

export interface RegisterOptions extends CallOptions {
  /** Handed to a custom allocation function: a JSON object. */
  payload?: Readonly<Record<string, unknown>>
  /**
   * A certificate signing request, for a certificate to use at the hub: base64 of its DER, PEM, or what `createCsr` of
   * `dps-device-client/factory` returns. Its CN must be the registration id, letter for letter. Checked before anything is
   * sent. The certificates come as `issuedCertificateChain` of the assignment.
   *
   * Every registration with a request issues another certificate. What is repeated within a call, after a conflict or a
   * connection that was lost before the service named the operation, sends the same request again, so two certificates
   * for the same key may be issued: the one that is returned, and one that nobody has and that expires. To wait for an
   * operation that was named starts none.
   *
   * Preview: the service may change it, and so may this package in any release.
   *
   * @beta
   */
  csr?: string | { readonly csr: string }
}
