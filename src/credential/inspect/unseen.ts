import type { CertificateFacts } from '../inspection.ts'

/**
 * Why the service may refuse a credential that has no fault: three causes that only a look at the service can tell apart.
 * All of it is known before; nothing is asked.
 */
export function unseenCauses(
  registrationId: string | undefined,
  chain: readonly CertificateFacts[],
): readonly string[] {
  const id = registrationId === undefined ? 'this device' : `"${registrationId}"`
  const enrollment = `no enrollment for ${id} exists in this id scope, or it is disabled`
  const [leaf] = chain
  if (leaf === undefined) {
    return [
      enrollment,
      'the individual enrollment has another key, or its key was regenerated',
      `the key was derived from the key of another enrollment group, or from another spelling than ${id}`,
    ]
  }
  const differs = `the registration id of the individual enrollment is not the CN of the certificate, ${id}`
  if (leaf.isSelfSigned && chain.length === 1) {
    const thumbprints = `${leaf.thumbprint} or ${leaf.thumbprint256}`
    return [
      enrollment,
      `the enrollment has another certificate than that of thumbprint ${thumbprints}`,
      differs,
    ]
  }
  const issuers = chain.map(({ issuer }) => issuer).filter((name, at, all) => all.indexOf(name) === at)
  const names = issuers.map((name) => `(${name})`).join(', ')
  const known = `${issuers.length === 1 ? `${names} is not` : `none of ${names} is`} uploaded and verified at the service`
  return [enrollment, `${known}, or the enrollment has another CA, certificate or thumbprint`, differs]
}
