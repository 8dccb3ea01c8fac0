import {
  type CertificateKeyType,
  type DeviceCertificate,
  type EnrollmentGroup,
  issueCertificate,
} from '../../src/emulator/index.ts'
import { pki, REGISTRATION_ID } from './stage.ts'

const DAY_MS = 86_400_000
export const daysFromNow = (days: number) => new Date(Date.now() + days * DAY_MS)

/** The devices whose certificates come from the device CA of the tests. */
export const DEVICE_GROUP: EnrollmentGroup = {
  groupId: 'devices',
  attestation: { x509: { ca: pki.deviceRoot.certPem } },
}

/** What a device of the group has in its folder. */
export async function deviceCertificate(
  options: {
    name?: string
    keyType?: CertificateKeyType
    notBefore?: Date
    notAfter?: Date
    by?: typeof pki
  } = {},
): Promise<DeviceCertificate> {
  const { name = REGISTRATION_ID, by = pki, ...rest } = options
  const { chainPem, keyPem } = await issueCertificate({
    subject: name,
    issuer: by.deviceIntermediate,
    eku: ['clientAuth'],
    ...rest,
  })
  return { cert: chainPem, key: keyPem }
}
