import type { KeyObject } from 'node:crypto'

/** A key that never leaves its chip: its public half, and the operation the chip offers. */
export interface KeySigner {
  /** PEM (SPKI), DER (SPKI) or a KeyObject of type `public`: EC P-384 or P-256, or RSA of 2048 bits or more. */
  readonly publicKey: string | Uint8Array | KeyObject
  /**
   * Signs `data`, the DER of a CertificationRequestInfo (RFC 2986, section 4.1), which is not hashed yet. `digest` is what
   * to hash it with: `'sha384'` for EC P-384, else `'sha256'`. Returns bytes: for EC the DER of an ECDSA-Sig-Value
   * (RFC 3279, section 2.2.3; PKCS#11 tokens return the bare `r` and `s`, which have to be wrapped), for RSA a signature of
   * PKCS#1 v1.5. What it returns is verified with `publicKey`. Nothing bounds the time it takes.
   */
  sign(data: Uint8Array, digest: 'sha256' | 'sha384'): Uint8Array | Promise<Uint8Array>
}

/** At most one of `curve`, `rsaBits` and `key`. */
export type CreateCsrOptions = {
  /** Becomes the CN, in exactly this spelling: at most 64 characters, as X.520 allows a CN. */
  registrationId: string
} & (
  | {
      /** Curve of a key pair to be generated. Default `'P-384'`, the one that the documentation of issuance names. */
      curve?: 'P-384' | 'P-256'
      rsaBits?: undefined
      key?: undefined
    }
  | {
      /** Length of an RSA key to be generated; the documentation of issuance says that RSA is refused. */
      rsaBits: 2048 | 3072 | 4096
      curve?: undefined
      key?: undefined
    }
  | {
      /** An existing private key, not encrypted: PEM, DER or a KeyObject; or one in hardware. */
      key: string | Uint8Array | KeyObject | KeySigner
      curve?: undefined
      rsaBits?: undefined
    }
)

/** A certificate signing request and the key pair it is for. Frozen; `key` prints as `[redacted]`. */
export interface CertificateSigningRequest {
  /** Base64 of the DER, without line breaks: what `register({ csr })` sends. */
  readonly csr: string
  /** The same as PEM, for other tools. */
  readonly pem: string
  /** The generated private key, PKCS#8 PEM; absent where the caller gave one. Store it before the request is sent. */
  readonly key?: string
  /** SPKI PEM. */
  readonly publicKey: string
}

/** A certificate signing request for a new key, which comes with it. @throws DpsError OPTION_INVALID, phase `config` */
export function createCsr(
  options: CreateCsrOptions & { key?: undefined },
): Promise<CertificateSigningRequest & { readonly key: string }>
/**
 * A certificate signing request (PKCS#10, RFC 2986) for `register({ csr })`: its subject is one CN, the registration id,
 * and it has no attributes, since the service asks for no more. Signed with SHA-384 for EC P-384, else with SHA-256.
 *
 * A new key pair for every request is the service's recommendation, and the default.
 *
 * https://learn.microsoft.com/azure/iot-dps/concept-certificate-issuance
 *
 * @throws DpsError OPTION_INVALID, CREDENTIAL_UNREADABLE, CREDENTIAL_KEY_UNSUPPORTED or SIGNER_FAILED, phase `config`
 */
export function createCsr(options: CreateCsrOptions): Promise<CertificateSigningRequest>
export async function createCsr(options: CreateCsrOptions): Promise<CertificateSigningRequest> {
  const { makeCsr } = await import('../issuance.ts')
  return makeCsr(options)
}
