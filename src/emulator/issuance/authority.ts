import { generateKeyPairSync, type KeyObject, randomBytes, X509Certificate } from 'node:crypto'
import type { Clock } from '../../clock.ts'
import { DpsError } from '../../errors.ts'
import { checkNames } from '../check.ts'
import type { EnrollmentRef } from '../enrollments.ts'
import type { IssueFault } from '../faults.ts'
import { type Der, type IssueCertificateOptions, type IssuedCertificate, signCertificate } from '../pki.ts'
import { type Csr, readCsr } from './csr.ts'

export type IssuanceCurve = 'P-384' | 'P-256'

/** What the devices of an enrollment are issued for a certificate signing request. */
export interface IssuancePolicy {
  /**
   * How long a certificate is valid from its issue on, ms: whole seconds, at most 10 years. Its `notBefore` lies a
   * tenth of that further back, at most 5 minutes. Default 30 days; the service's policies have 7 to 90.
   */
  lifetimeMs?: number
  /** Curves of keys that get one. Default `['P-384', 'P-256']`. */
  curves?: readonly IssuanceCurve[]
  /** Whether RSA keys of 2 048 bits and more get one. Default false. */
  allowRsa?: boolean
}

/** A certificate that was issued for a device's request. */
export interface IssuedCertificateInfo {
  /** Upper-case hex, as `node:crypto` prints it. */
  readonly serialNumber: string
  /** SHA-256 of the DER, upper-case hex with colons. */
  readonly fingerprint256: string
  readonly registrationId: string
  readonly deviceId: string
  /** Whether it was asked for in a registration or at the hub. */
  readonly via: 'dps' | 'hub'
  readonly enrollment: EnrollmentRef
  readonly issuedAt: Date
  readonly notBefore: Date
  readonly notAfter: Date
  readonly revokedAt: Date | undefined
}

/** The emulator's certificate authority for devices: what it issued, and what it has taken back. */
export interface Issuance {
  /** PEM of its root, EC P-384, made on first use. */
  readonly rootPem: string
  /** PEM of the issuing CA, EC P-384, signed by the root; it signs the devices' certificates with SHA-384. */
  readonly caPem: string
  /** What was issued, oldest first, the revoked included. */
  list(): readonly IssuedCertificateInfo[]
  /**
   * Revokes one certificate, or all of a device: from now on neither the provisioning service nor a hub lets it in. A
   * connection that is open stays.
   *
   * @returns how many were revoked by this
   */
  revoke(which: { serialNumber: string } | { registrationId: string }): number
}

export interface AuthoritySettings {
  readonly der: Der
  readonly clock: Clock
  readonly onIssued: (certificate: IssuedCertificateInfo) => void
  /** The lies that are to be told about a certificate of this device. */
  readonly faults: (registrationId: string, connectionId: number) => readonly IssueFault[]
}

/** Whom a certificate is for. */
export interface IssueRequest {
  readonly csr: Csr
  readonly policy: IssuancePolicy
  readonly registrationId: string
  readonly deviceId: string
  readonly via: 'dps' | 'hub'
  readonly enrollment: EnrollmentRef
  /** The connection on which it was asked for. */
  readonly connectionId: number
}

const DAY_MS = 86_400_000
const LIFETIME_MS = 30 * DAY_MS
const CA_LIFETIME_MS = 3650 * DAY_MS
const MOST_BACKDATING_MS = 300_000
const REMEMBERED = 100_000

/** @throws DpsError OPTION_INVALID, phase `config` */
export function checkPolicy(policy: IssuancePolicy): void {
  checkNames('`issuance`', policy, ['lifetimeMs', 'curves', 'allowRsa'])
  const { lifetimeMs = LIFETIME_MS, curves = ['P-384'] } = policy
  const known =
    Array.isArray(curves) &&
    curves.length > 0 &&
    curves.every((curve) => curve === 'P-384' || curve === 'P-256')
  if (known && Number.isInteger(lifetimeMs / 1000) && lifetimeMs > 0 && lifetimeMs <= CA_LIFETIME_MS) return
  const message =
    "`issuance` must have a `lifetimeMs` of whole seconds, at most 10 years, and `curves` out of 'P-384' and 'P-256'"
  throw new DpsError('OPTION_INVALID', 'config', message)
}

const newKeys = () => generateKeyPairSync('ec', { namedCurve: 'P-384' })

export class IssuingAuthority implements Issuance {
  readonly #settings: AuthoritySettings
  readonly #issued = new Map<string, IssuedCertificateInfo>()
  #root: IssuedCertificate | undefined
  #ca: IssuedCertificate | undefined

  constructor(settings: AuthoritySettings) {
    this.#settings = settings
  }

  get rootPem(): string {
    this.#issuer()
    return this.#root!.certPem
  }

  get caPem(): string {
    return this.#issuer().certPem
  }

  list(): readonly IssuedCertificateInfo[] {
    return [...this.#issued.values()]
  }

  revoke(which: { serialNumber: string } | { registrationId: string }): number {
    const revokedAt = new Date(this.#settings.clock.now())
    const [name, value] = Object.entries(which)[0]!
    const hit = this.list().filter(
      (info) =>
        info.revokedAt === undefined &&
        info[name as 'serialNumber'].toLowerCase() === String(value).toLowerCase(),
    )
    for (const info of hit) this.#issued.set(info.fingerprint256, Object.freeze({ ...info, revokedAt }))
    return hit.length
  }

  /** The certificate with this fingerprint, if it was issued here. */
  find(fingerprint256: string): IssuedCertificateInfo | undefined {
    return this.#issued.get(fingerprint256)
  }

  /** A request that may be granted, or the rule it breaks. */
  read(text: unknown, names: readonly string[], policy: IssuancePolicy | undefined): Csr | string {
    return readCsr(this.#settings.der, text, names, policy)
  }

  /** The chain as it is sent: base64 of DER, the leaf first and the root last. Null is what a fault has left of it. */
  issue({ csr, policy, connectionId, ...whom }: IssueRequest): readonly string[] | null {
    const { clock, onIssued } = this.#settings
    const faults = this.#settings.faults(whom.registrationId, connectionId)
    const lies = (name: IssueFault): boolean => faults.includes(name)
    if (lies('no-chain')) return null
    const { lifetimeMs = LIFETIME_MS } = policy
    const now = clock.now()
    const ca = this.#issuer()
    let from = now - Math.min(MOST_BACKDATING_MS, lifetimeMs / 10)
    let until = now + lifetimeMs
    if (lies('expired')) [from, until] = [now - DAY_MS, now - 60_000]
    if (lies('not-yet-valid')) [from, until] = [now + DAY_MS, until + DAY_MS]
    const { certPem, fingerprint256 } = this.#sign(
      {
        subject: lies('wrong-name') ? `not-${csr.commonName}` : csr.commonName,
        // All of a broken chain fits, by name and by key identifier, but the signature.
        issuer: lies('broken-chain') ? { ...ca, keyPem: this.#authority('Thief').keyPem } : ca,
        notBefore: new Date(from),
        notAfter: new Date(until),
      },
      lies('wrong-key') ? newKeys().publicKey : csr.publicKey,
    )
    const { serialNumber, validFrom, validTo } = new X509Certificate(certPem)
    const info: IssuedCertificateInfo = Object.freeze({
      serialNumber,
      fingerprint256,
      ...whom,
      issuedAt: new Date(now),
      notBefore: new Date(validFrom),
      notAfter: new Date(validTo),
      revokedAt: undefined,
    })
    this.#issued.set(fingerprint256, info)
    if (this.#issued.size > REMEMBERED) this.#issued.delete(this.#issued.keys().next().value ?? '')
    onIssued(info)

    const chain = lies('leaf-only') ? [certPem] : [certPem, ca.certPem, this.rootPem]
    if (lies('duplicate')) chain.unshift(certPem)
    if (lies('with-unrelated')) chain.splice(1, 0, this.#authority('Unrelated').certPem)
    if (lies('reversed')) chain.reverse()
    const encoded = chain.map((pem) =>
      (lies('pem') ? Buffer.from(pem) : new X509Certificate(pem).raw).toString('base64'),
    )
    if (lies('garbage')) encoded[0] = randomBytes(400).toString('base64')
    return encoded
  }

  #sign(options: IssueCertificateOptions, publicKey: KeyObject, privateKey?: KeyObject) {
    const { der, clock } = this.#settings
    const leaf = { keyUsage: ['digitalSignature'], eku: ['clientAuth'] } as const
    const purpose = options.ca === true ? {} : leaf
    return signCertificate(der, { digest: 'sha384', clock, ...purpose, ...options }, publicKey, privateKey)
  }

  #issuer(): IssuedCertificate {
    this.#root ??= this.#authority('Emulator Issuance Root')
    this.#ca ??= this.#authority('Emulator Issuing CA', this.#root)
    return this.#ca
  }

  #authority(subject: string, issuer?: IssuedCertificate): IssuedCertificate {
    const { privateKey, publicKey } = newKeys()
    const notAfter = new Date(this.#settings.clock.now() + CA_LIFETIME_MS)
    const from = issuer === undefined ? {} : { issuer, pathLength: 0 }
    const signed = this.#sign({ subject, ca: true, notAfter, ...from }, publicKey, privateKey)
    return { ...signed, keyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string }
  }
}
