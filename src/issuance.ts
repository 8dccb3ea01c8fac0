import type { Assignment } from './assignment/assignment.ts'
import { readCertificateRequest } from './credential/certificate-request.ts'
import { checkIssuedChain } from './credential/issued-chain.ts'
import type { RegisterOptions } from './options/options.ts'

// Whoever makes a request has it answered, mostly in the same process, and answered again: one chunk for all of it.
export { readCertificateRequest } from './credential/certificate-request.ts'
export { checkIssuedChain } from './credential/issued-chain.ts'
export { makeCsr } from './factory/make-csr.ts'
export { CertificateLifecycle } from './renewal/lifecycle.ts'
export { keepPairs } from './renewal/pairs.ts'

/** What a registration with a certificate signing request needs beside one without. Loaded for it alone. */
export interface Issuance {
  /**
   * The request as it is sent, once it is sure that it is for this device.
   *
   * @throws DpsError OPTION_INVALID, phase `config`
   */
  wireFor(registrationId: string): string
  /**
   * The assignment with the chain that came with it, once that may be used.
   *
   * @throws DpsError CERTIFICATE_NOT_ISSUED or ISSUED_CERTIFICATE_INVALID, phase `parse`, with the assignment
   */
  complete(assignment: Assignment, elements: unknown, nowMs: number): Assignment
}

/** @throws DpsError OPTION_INVALID, phase `config` */
export function issuanceFor(csr: RegisterOptions['csr']): Issuance {
  const { publicKey, wireFor } = readCertificateRequest(csr)
  return {
    wireFor,
    complete: (assignment, elements, nowMs) => {
      const { registrationId, deviceId } = assignment
      const names = deviceId === registrationId ? [deviceId] : [registrationId, deviceId]
      const { chain } = checkIssuedChain({ elements, publicKey, names, nowMs, assignment })
      return Object.freeze({ ...assignment, issuedCertificateChain: chain })
    },
  }
}
