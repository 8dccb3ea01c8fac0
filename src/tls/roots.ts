import { bundledRoots } from './bundled-roots.ts'

/** One of the roots a default client trusts. Provenance: `roots/README.md`. */
export interface BundledRoot {
  /** Common name of the subject. */
  readonly name: string
  /** Name of the PEM file, importable as `dps-device-client/roots/<file>`. */
  readonly file: string
  /** SHA-256 of the certificate, upper-case hex without colons. */
  readonly sha256: string
  /** SHA-256 of the DER SubjectPublicKeyInfo, base64 (the pin of RFC 7469 §2.4). */
  readonly spkiSha256: string
  /** ISO 8601, UTC. */
  readonly validFrom: string
  /** ISO 8601, UTC. */
  readonly validTo: string
  /** The certificate itself. */
  readonly pem: string
}

/**
 * Exactly the roots that `trust.roots: 'bundled'` trusts: DigiCert Global Root G2 and Microsoft RSA Root Certificate
 * Authority 2017, which the service names as those a device must trust
 * (https://learn.microsoft.com/azure/iot-dps/tls-support). Frozen.
 */
export const BUNDLED_ROOTS: readonly BundledRoot[] = Object.freeze(
  bundledRoots.map((root) => Object.freeze({ ...root })),
)
