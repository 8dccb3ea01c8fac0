import type { AssignmentStore } from './assignment/store.ts'
import { type Clock, systemClock } from './clock.ts'
import type { Credential, Identity } from './credential/credential.ts'
import { ofLineage } from './credential/material.ts'
import { checkOptionNames } from './credential/source.ts'
import { x509 } from './credential/x509.ts'
import { DpsError } from './errors.ts'
import { loadIssuance } from './load-issuance.ts'
import { jsonObject } from './protocol/response.ts'
import { isCredentialFailure } from './registration/fallback.ts'
import { seal, unseal } from './sealed.ts'
import { storeFailed, within } from './within.ts'

/** What the keeping of pairs is handed, since it comes with issuance alone and all of this is here already. */
const KIT = { x509, ofLineage, jsonObject, isCredentialFailure, seal, unseal, within, storeFailed }

export type PairKit = typeof KIT

const METHODS = [
  'load',
  'settled',
  'status',
  'createRequest',
  'install',
  'confirm',
  'reject',
  'abandon',
] as const
type Methods = Record<(typeof METHODS)[number], (...given: unknown[]) => unknown>

/** What a certificate says. Frozen. */
export interface IssuedCertificateFacts {
  readonly commonName: string
  /** Upper-case hex, as `node:crypto` prints it. */
  readonly serialNumber: string
  /** SHA-256 of the DER, upper-case hex with colons. */
  readonly fingerprint256: string
  readonly validFrom: Date
  readonly validUntil: Date
}

/** Where an issued certificate stands. Frozen. */
export interface IssuedCertificateStatus {
  /** The one that has worked; undefined before the first. */
  readonly current: IssuedCertificateFacts | undefined
  /** One that was issued since and has not been used yet. */
  readonly candidate: IssuedCertificateFacts | undefined
  /** Whether another was asked for, and has not come. */
  readonly requested: boolean
}

export interface CertificateRequestOptions {
  /** Of the device; on a hub its device id. Becomes the CN. */
  registrationId: string
  /** Of the new key. Default `'P-384'`. */
  curve?: 'P-384' | 'P-256'
}

/** A request for a certificate whose key is stored. */
export interface IssuedCertificateRequest {
  /** Base64 of DER, for `register({ csr })`, `provision({ csr })` or `requestCertificate({ csr })`. */
  readonly csr: string
  /** For `requestCertificate`. */
  readonly requestId: string
  /** Whether the key was there already: the request may have been made, and its answer be under way. */
  readonly resume: boolean
}

export interface IssuedCertificateOptions {
  /**
   * Where certificates are kept, with their keys: a `fileStore` of its own, which has mode 0600 and is replaced at one stroke.
   */
  store: AssignmentStore
  /** For tests. Default: the system's. */
  clock?: Clock
}

/**
 * A certificate that the service issues and renews (preview), as a credential: the first of `[issued, bootstrap]`.
 * `provisionAndConnect({ issuance })` does all that is said here by itself.
 *
 * Key and certificate are one record, written as a whole: a process that dies at any point, or a power cut, leaves the one
 * before or the one after. A new pair is a candidate until `confirm` says that a hub has let the device in with it; `load`
 * gives it first, and the one before is kept. `connectHub` confirms by itself, and goes back, at once, where it is refused;
 * where the connection ends otherwise, three times, it tries the one before as well, and the candidate is given up if that works.
 *
 * What the store does not take stays in memory and is written with the next change; the method rejects with STORE_FAILED. What
 * it gives back no longer, or damaged, is as this process knew it last.
 */
export interface IssuedCertificate extends Credential {
  /** @throws DpsError CREDENTIAL_NOT_ISSUED, phase `config`, before there is one; CREDENTIAL_UNREADABLE */
  load(): Promise<Identity>
  settled(identity: Identity, error: DpsError | undefined): Promise<boolean>
  /** @throws DpsError CREDENTIAL_UNREADABLE, phase `config` */
  status(): Promise<IssuedCertificateStatus>
  /**
   * A request with a new key, which is stored before this resolves; or with the key of a request that has not been answered.
   *
   * @throws DpsError OPTION_INVALID, phase `config`; STORE_FAILED
   */
  createRequest(options: CertificateRequestOptions): Promise<IssuedCertificateRequest>
  /**
   * Checks what was issued for the request, and keeps it with its key.
   *
   * @param chain `issuedCertificateChain`, or what `requestCertificate` resolves with
   * @throws DpsError CERTIFICATE_NOT_ISSUED, ISSUED_CERTIFICATE_INVALID, STORE_FAILED; OPTION_INVALID where none was asked for
   */
  install(chain: readonly string[] | undefined): Promise<IssuedCertificateFacts>
  /** The candidate works; the one before is forgotten. Without one nothing happens. @throws DpsError STORE_FAILED */
  confirm(): Promise<void>
  /** The candidate does not work; without one nothing happens. @throws DpsError STORE_FAILED */
  reject(): Promise<void>
  /** Forgets a request that will not be answered, and its key. @throws DpsError STORE_FAILED */
  abandon(): Promise<void>
}

/**
 * A certificate that is issued for the device and renewed, kept in `store`.
 *
 * https://learn.microsoft.com/azure/iot-dps/concept-certificate-issuance
 *
 * @beta
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function issuedCertificate(options: IssuedCertificateOptions): IssuedCertificate {
  checkOptionNames(options, 'issuedCertificate', ['store', 'clock'])
  const { store, clock = systemClock } = options
  if (typeof store?.read !== 'function' || typeof store.write !== 'function') {
    throw new DpsError(
      'OPTION_INVALID',
      'config',
      '`store` must be made by fileStore(), or have the methods read, write and remove.',
    )
  }
  let pairs: Promise<IssuedCertificate> | undefined
  const kept = (): Promise<IssuedCertificate> => {
    pairs ??= loadIssuance().then(({ keepPairs }) => keepPairs(store, clock, KIT))
    return pairs
  }
  return Object.freeze(
    Object.fromEntries(
      METHODS.map((name) => [
        name,
        async (...given: unknown[]) => ((await kept()) as unknown as Methods)[name](...given),
      ]),
    ),
  ) as unknown as IssuedCertificate
}
