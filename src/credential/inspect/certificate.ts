import type { X509Certificate } from 'node:crypto'
import { printableName } from '../../distinguished-name.ts'
import { isoTime } from '../../iso-time.ts'
import { printable } from '../../printable.ts'
import { isSignedBy, KEY_CURVES, WEAK_SIGNATURES } from '../certificate.ts'
import type { CertificateFacts } from '../inspection.ts'
import { childrenOf, type Tlv, tlvAt } from '../pem.ts'

export function factsOf(certificate: X509Certificate): CertificateFacts {
  const hex = (fingerprint: string) => fingerprint.replaceAll(':', '')
  return Object.freeze({
    subject: printableName(certificate.subject),
    issuer: printableName(certificate.issuer),
    thumbprint: hex(certificate.fingerprint),
    thumbprint256: hex(certificate.fingerprint256),
    validFrom: isoTime(Date.parse(certificate.validFrom)),
    validUntil: isoTime(Date.parse(certificate.validTo)),
    keyType: keyTypeOf(certificate),
    isCa: certificate.ca,
    isSelfSigned: isSelfSigned(certificate),
  })
}

/** Its own name and its own signature, whatever its keyUsage allows: for OpenSSL, what may not sign has issued nothing. */
export function isSelfSigned(certificate: X509Certificate): boolean {
  return certificate.subject === certificate.issuer && isSignedBy(certificate, certificate)
}

function keyTypeOf(certificate: X509Certificate): string {
  try {
    const { asymmetricKeyType = 'unknown', asymmetricKeyDetails } = certificate.publicKey
    const { namedCurve, modulusLength } = asymmetricKeyDetails ?? {}
    if (modulusLength !== undefined) return `${asymmetricKeyType.toUpperCase()} ${modulusLength}`
    return namedCurve === undefined
      ? asymmetricKeyType
      : `EC ${KEY_CURVES[namedCurve] ?? printable(namedCurve)}`
  } catch {
    return 'unknown'
  }
}

const hexOf = (tlv: Tlv | undefined) => tlv?.content.toString('hex') ?? ''

const EXTENSIONS = 0xa3
const KEY_USAGE = '551d0f'
const DIGITAL_SIGNATURE = 0x80

/** Whether the key may sign, by keyUsage (RFC 5280 4.2.1.3), which X509Certificate does not tell; true where it is absent. */
export function maySign({ raw }: X509Certificate): boolean {
  const [certificate] = childrenOf({ content: raw })
  const [toBeSigned] = childrenOf(certificate!)
  const wrapper = childrenOf(toBeSigned!).find(({ tag }) => tag === EXTENSIONS)
  const extensions = wrapper === undefined ? [] : childrenOf(childrenOf(wrapper)[0]!)
  const usage = extensions.map(childrenOf).find(([oid]) => hexOf(oid) === KEY_USAGE)
  const bits = usage && tlvAt(usage.at(-1)!.content, 0)
  return bits === undefined || ((bits.content[1] ?? 0) & DIGITAL_SIGNATURE) !== 0
}

/** The digest under a certificate's signature, where it is one that can be forged. */
export function weakDigestOf({ raw }: X509Certificate): string | undefined {
  const [certificate] = childrenOf({ content: raw })
  const [oid] = childrenOf(childrenOf(certificate!)[1]!)
  return WEAK_SIGNATURES[hexOf(oid)]
}
