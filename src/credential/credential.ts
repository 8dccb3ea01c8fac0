import type { DpsError } from '../errors.ts'

/** What the TLS handshake presents: passed to `tls.createSecureContext` as it is. */
export interface TlsIdentity {
  readonly cert?: string | Uint8Array
  readonly key?: string | Uint8Array
  readonly passphrase?: string
  readonly pfx?: string | Uint8Array
  /** OpenSSL engine options, for keys that never leave a chip. */
  readonly privateKeyEngine?: string
  readonly privateKeyIdentifier?: string
  readonly clientCertEngine?: string
}

/** A curve by the name the TLS policy uses. */
export type CurveName = 'X25519' | 'P-256' | 'P-384' | 'P-521' | 'X448'

/** One credential as it was when it was read: everything a single connection needs, already checked. */
export interface Identity {
  /** The registration id, in the spelling the credential itself uses (the CN, for X.509). */
  readonly registrationId: string
  /**
   * SHA-256, hex, of the credential's content. Contexts and TLS sessions are kept under it, so two credentials never
   * share either. Not a secret and not printed.
   */
  readonly fingerprint: string
  /**
   * What a stored assignment is bound to in place of `fingerprint`: of a credential that is renewed by the device itself, and
   * is of the same device then. Absent for all others.
   */
  readonly lineage?: string
  /** When the first of the device's certificates ends, ms since the epoch; absent where none does. */
  readonly validUntilMs?: number
  /** Present for X.509 only. */
  readonly tls?: TlsIdentity
  /** The named curve of an EC device certificate: the TLS policy must offer it. Absent for RSA and SAS. */
  readonly keyCurve?: CurveName
  /** What was put right in what was given, one sentence each; the client reports each as a warning. Default: nothing. */
  readonly notices?: readonly string[]
  /**
   * Checks what depends on the date; called before every connection, with no packet sent yet.
   *
   * @throws DpsError DEVICE_CERTIFICATE_EXPIRED or DEVICE_CERTIFICATE_NOT_YET_VALID, phase `clock`
   */
  checkDates(nowMs: number): void
  /**
   * A shared access signature for `resource` (already percent-encoded) that ends at `expiresAt` (Unix seconds), or
   * undefined where the TLS handshake already authenticates. `keyName` becomes `skn`.
   *
   * @throws DpsError SIGNER_FAILED
   */
  token(resource: string, expiresAt: number, keyName?: string): Promise<string | undefined>
}

const constants = new WeakSet<Identity>()

/** Says of an identity, and all it holds, that it will never change: what is derived from it may be remembered. */
export function constant(identity: Identity): Identity {
  constants.add(identity)
  return Object.freeze(identity)
}

/** Whether it was said by `constant`. One of the caller's own may be changed behind our back. */
export function isConstant(identity: Identity): boolean {
  return constants.has(identity)
}

/** Something that can prove who the device is. Made by `x509`, `symmetricKey` or `sasSigner`, or by the caller. */
export interface Credential {
  /**
   * Reads the credential; called for every connection, so a replaced file or a rotated key needs no restart.
   * Implementations compare content and do not parse the same bytes twice.
   *
   * @throws DpsError with phase `config`
   */
  load(): Promise<Identity>
  /**
   * Told what a hub made of an identity: undefined where it let the device in, else what speaks against it. Resolves with true
   * where `load` now gives another one, which is then tried at once. Need not be there.
   */
  settled?(identity: Identity, error: DpsError | undefined): Promise<boolean>
}
