import { DpsError } from '../errors.ts'

/**
 * The names of certificate issuance, which is a preview and has changed before: this module alone knows them.
 *
 * https://learn.microsoft.com/azure/iot-dps/concept-certificate-issuance
 */

/** The first device API version that takes a certificate signing request and is not dead. */
export const ISSUANCE_API_VERSION = '2025-07-01-preview'

/**
 * Checks that requests with this version may carry a certificate signing request.
 *
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function checkIssuanceVersion(apiVersion: string): void {
  if (apiVersion.slice(0, 10) >= ISSUANCE_API_VERSION.slice(0, 10)) return
  throw new DpsError(
    'OPTION_INVALID',
    'config',
    `csr needs apiVersion ${ISSUANCE_API_VERSION} or later, which is the default with it; apiVersion is ${apiVersion}`,
  )
}

/** The member of a register request, after others. @param csr base64 of DER */
export const csrMember = (csr: string): string => `,"csr":"${csr}"`

/** What the reply carries, not yet believed: an array of base64; null or absent where none was issued. */
export const issuedChainOf = (registrationState: unknown): unknown =>
  (registrationState as { issuedCertificateChain?: unknown }).issuedCertificateChain
