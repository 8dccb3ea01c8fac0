export type { CertificateSigningRequest, CreateCsrOptions, KeySigner } from './create-csr.ts'
export { createCsr } from './create-csr.ts'
export type { DeriveDeviceKeyOptions } from './derive-device-key.ts'
export { deriveDeviceKey } from './derive-device-key.ts'
