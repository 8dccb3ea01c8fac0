import { instant, object, refuseUnknown } from '../options/resolve.ts'
import type { Credential } from './credential.ts'
import { materialOf, renewAtMs } from './material.ts'
import { checkKeyType, isIssuedBy, isSignedBy, nameOf } from './x509.ts'

/** `error`: a registration is certain to fail. `warning`: it may fail, or soon will. `notice`: good to know. */
export type FindingSeverity = 'error' | 'warning' | 'notice'

/** Stable identifiers of what an inspection can find. */
export type CredentialFindingId =
  // What was given
  | 'source-unreadable'
  | 'input-empty'
  | 'input-damaged'
  | 'not-pem'
  | 'utf-16'
  | 'escaped-line-breaks'
  | 'byte-order-mark'
  | 'windows-line-ends'
  | 'der-given'
  | 'certificate-given'
  | 'certificate-request-given'
  | 'private-key-given'
  | 'public-key-given'
  | 'openssh-key-given'
  | 'pkcs12-given'
  | 'pkcs7-given'
  | 'other-pem-given'
  | 'bundle-unusable'
  // The private key
  | 'several-keys'
  | 'passphrase-missing'
  | 'passphrase-wrong'
  | 'passphrase-unused'
  | 'key-unreadable'
  | 'key-mismatch'
  | 'key-not-examined'
  // The chain
  | 'chain-broken'
  | 'chain-reordered'
  | 'certificate-repeated'
  | 'certificate-unused'
  | 'issuer-missing'
  | 'issuer-not-ca'
  | 'root-included'
  | 'weak-signature'
  // The device certificate
  | 'self-signed'
  | 'leaf-is-ca'
  | 'common-name-missing'
  | 'common-name-repeated'
  | 'key-unsupported'
  | 'curve-not-offered'
  | 'digital-signature-missing'
  | 'client-authentication-missing'
  // Dates, of it and of its intermediates
  | 'expired'
  | 'not-yet-valid'
  | 'expires-soon'
  // The registration id
  | 'registration-id-invalid'
  | 'registration-id-differs'
  | 'registration-id-case'
  // Symmetric keys
  | 'sas-key-connection-string'
  | 'sas-key-token'
  | 'sas-key-pem'
  | 'sas-key-hexadecimal'
  | 'sas-key-whitespace'
  | 'sas-key-not-base64'
  | 'sas-key-length'
  | 'signer-failed'
  | 'signature-malformed'
  // The credential as a whole
  | 'credential-refused'
  | 'credential-repeated'
  | 'credential-of-another-device'

/** One thing that was found. No field holds a key, a passphrase or anything else of what was given but printable names. */
export interface CredentialFinding {
  readonly id: CredentialFindingId
  readonly severity: FindingSeverity
  /** What is the case, in one sentence. For people; may change. */
  readonly message: string
  /** How to mend it, in one sentence. For people; may change. */
  readonly mend: string
}

/** What one certificate says of itself. */
export interface CertificateFacts {
  /** On one line, safe to print. */
  readonly subject: string
  /** On one line, safe to print. */
  readonly issuer: string
  /** SHA-1 of its DER, upper-case hex: a thumbprint in an individual enrollment. */
  readonly thumbprint: string
  /** SHA-256 of its DER, upper-case hex: the other thumbprint that an individual enrollment takes. */
  readonly thumbprint256: string
  /** ISO 8601, UTC. */
  readonly validFrom: string
  /** ISO 8601, UTC. */
  readonly validUntil: string
  /** `EC P-256`, `RSA 2048`; or what OpenSSL calls it. */
  readonly keyType: string
  readonly isCa: boolean
  readonly isSelfSigned: boolean
}

/** What can be told of a credential without a network. Frozen, with all that it holds. */
export interface CredentialInspection {
  /** No finding is an `error`. What only the service knows may still be wrong: see `unseen`. */
  readonly ok: boolean
  /** The place in the list that was given; 0 for a single credential. */
  readonly index: number
  /** Absent for a credential of the caller's own that presents no certificate. */
  readonly kind?: 'x509' | 'symmetric-key' | 'sas-signer'
  /** As the credential itself spells it; absent where it has none that is valid. */
  readonly registrationId?: string
  /** The kind of the device's key, as `CertificateFacts.keyType`; X.509 only. */
  readonly keyType?: string
  /** What is presented to the service: the device certificate and after each certificate its issuer. Empty for SAS. */
  readonly chain: readonly CertificateFacts[]
  /** Errors first, then warnings, then notices. */
  readonly findings: readonly CredentialFinding[]
  /**
   * The causes of a refusal (401002) that cannot be seen from the device, most likely ones for this kind of credential, each
   * the end of a sentence.
   */
  readonly unseen: readonly string[]
}

export interface InspectOptions {
  /** The registration id that the device is meant to have, in any letter case. Default: not compared. */
  registrationId?: string
  /** A Date or ms since the epoch, to judge dates by. Default: now. */
  now?: Date | number
}

/**
 * Looks at a credential as a registration would and further: what was given, whether key and certificate belong together,
 * the chain and its signatures, the registration id, usage, dates. Nothing is sent, and a bad credential is an answer, never
 * a rejection. Sources are read anew; a function given to `sasSigner` is asked for one signature, for a token that ended in
 * 1970, and given ten seconds. Of a credential of the caller's own, what its `load` returns is looked at.
 *
 * RFC 5280; RFC 5246 section 7.4.6; https://learn.microsoft.com/azure/iot-dps/concepts-x509-attestation
 *
 * @param credential one, or a list in order of preference, which gives a list
 * @throws DpsError OPTION_INVALID, phase `config`, for what is no credential or no option
 */
export function inspectCredential(
  credential: Credential,
  options?: InspectOptions,
): Promise<CredentialInspection>
export function inspectCredential(
  credential: readonly Credential[],
  options?: InspectOptions,
): Promise<readonly CredentialInspection[]>
export async function inspectCredential(
  credential: Credential | readonly Credential[],
  options: InspectOptions = {},
): Promise<CredentialInspection | readonly CredentialInspection[]> {
  // Most of it is text, which a registration does not need.
  const inspect = (await import('./rare.ts')).inspectCredential
  return inspect(credential as Credential, options, inspectionTools)
}

/** What is loaded already: were it imported there, bundling would take it apart, for every start to put together again. */
const inspectionTools = {
  instant,
  object,
  refuseUnknown,
  materialOf,
  renewAtMs,
  checkKeyType,
  isIssuedBy,
  isSignedBy,
  nameOf,
}

export type InspectionTools = typeof inspectionTools
