import { X509Certificate } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import tls from 'node:tls'
import { commonName, printableName } from '../distinguished-name.ts'
import { DpsError } from '../errors.ts'
import { LruMap } from '../lru.ts'
import type { PemInput, TrustOptions } from '../options/options.ts'
import { refuseUnknown } from '../options/resolve.ts'
import { printable } from '../printable.ts'
import { BUNDLED_ROOTS } from './roots.ts'

/** A root that may end a server's chain. */
export interface TrustAnchor {
  /** Subject CN, or the whole subject where it has none. */
  readonly name: string
  /** SHA-256 of the certificate, upper-case hex without colons. */
  readonly sha256: string
  readonly pem: string
  /** Parsed on first use: a cold start that never has to name a root does not pay for it. */
  readonly certificate: X509Certificate
}

/** What is read for `trust.roots: 'system'`; an argument, so that a test can be another machine. */
export interface SystemStore {
  /** `tls.getCACertificates` (Node 22.15, 23.10 and later). */
  readonly getCACertificates: ((type: 'system') => readonly string[]) | undefined
  /** `SSL_CERT_FILE`: as in OpenSSL, it takes the place of the distribution's bundle. */
  readonly certFile: string | undefined
  readonly bundles: readonly string[]
}

const DISTRIBUTION_BUNDLES = [
  '/etc/ssl/certs/ca-certificates.crt', // Debian, Ubuntu, Raspberry Pi OS, Alpine, Arch, OpenWrt, Buildroot, Yocto
  '/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem', // Fedora, RHEL and their kin
  '/etc/pki/tls/certs/ca-bundle.crt', // older Fedora and RHEL
  '/etc/ssl/ca-bundle.pem', // openSUSE
  '/etc/ssl/cert.pem', // macOS, older Alpine
]

/** Far above any bundle; the name of a device or of an image of a disk must not fill the memory. */
const MAX_BUNDLE_BYTES = 16 * 1024 * 1024

const KNOWN = new Set(['roots', 'extraRoots'])

/**
 * The anchors that `trust` names, each once. Bundled roots first, then the caller's.
 *
 * An extra root must be a self-signed CA certificate (RFC 5280 §4.2.1.9 `cA`, subject = issuer, signed by its own key).
 * Leaves and intermediates are renewed without notice; a device that pins one is lost on that day.
 *
 * @throws DpsError TRUST_ANCHOR_INVALID, phase `config`, naming the certificate and saying what it is
 */
export function resolveTrust(
  trust: TrustOptions | undefined = {},
  store: SystemStore = platformStore(),
): readonly TrustAnchor[] {
  refuseUnknown('trust.', trust, KNOWN)
  const { roots = 'bundled', extraRoots } = trust
  const anchors = [
    ...namedRoots(roots, store),
    ...(extraRoots === undefined ? [] : readExtraRoots(extraRoots)),
  ]
  if (anchors.length === 0) {
    throw invalid(
      "trust.roots is 'none', so trust.extraRoots must hold at least one root certificate",
      `Give the root that the chain of the server ends in as \`trust.extraRoots\`, or ${LEAVE_OUT}.`,
    )
  }
  return Object.freeze([...new Map(anchors.map((anchor) => [anchor.sha256, anchor])).values()])
}

const LEAVE_OUT = 'leave `trust.roots` out, which trusts the two roots that it has'

function namedRoots(roots: unknown, store: SystemStore): readonly TrustAnchor[] {
  switch (roots) {
    case 'bundled':
      return bundledAnchors
    case 'system':
      return readSystemStore(store)
    case 'none':
      return []
    default:
      throw invalid(
        "trust.roots must be 'bundled', 'system' or 'none'",
        `For the service itself ${LEAVE_OUT}; 'system' takes the roots of this machine, 'none' those of \`trust.extraRoots\` alone.`,
      )
  }
}

function lazyAnchor(name: string, sha256: string, pem: string): TrustAnchor {
  let parsed: X509Certificate | undefined
  return Object.freeze({
    name,
    sha256,
    pem,
    get certificate() {
      parsed ??= new X509Certificate(pem)
      return parsed
    },
  })
}

const bundledAnchors = BUNDLED_ROOTS.map(({ name, sha256, pem }) => lazyAnchor(name, sha256, pem))

function anchorOf(certificate: X509Certificate): TrustAnchor {
  return Object.freeze({
    name: commonName(certificate.subject),
    sha256: certificate.fingerprint256.replaceAll(':', ''),
    pem: certificate.toString(),
    certificate,
  })
}

interface PemBlock {
  readonly label: string
  readonly text: string
}

const PEM_BLOCK = /-----BEGIN ([A-Z0-9 ]{1,40})-----[\s\S]*?-----END \1-----/g

/** The PEM blocks of a text, whatever stands between them (RFC 7468 §5.2); undefined when one is cut off. */
function pemBlocks(text: string): readonly PemBlock[] | undefined {
  const blocks = [...text.matchAll(PEM_BLOCK)].map(([block, label]) => ({ label: label!, text: block }))
  return blocks.length === text.split('-----BEGIN ').length - 1 ? blocks : undefined
}

const NO_PEM =
  'Give the content of a file with -----BEGIN CERTIFICATE----- in it; `openssl x509 -inform der -in FILE` makes one of DER.'

function readExtraRoots(input: PemInput): readonly TrustAnchor[] {
  const single = !Array.isArray(input)
  const inputs: readonly unknown[] = single ? [input] : (input as readonly unknown[])
  if (inputs.length === 0) throw invalid('trust.extraRoots must hold at least one root certificate')
  return inputs.flatMap((item, index) => {
    const field = single ? 'trust.extraRoots' : `trust.extraRoots[${index}]`
    if (typeof item !== 'string' && !(item instanceof Uint8Array)) {
      throw invalid(`${field} must be PEM text or PEM bytes`, NO_PEM)
    }
    const blocks = pemBlocks(typeof item === 'string' ? item : Buffer.from(item).toString('latin1'))
    if (blocks === undefined) throw invalid(`${field} holds a PEM block that is cut off`)
    if (blocks.length === 0) throw invalid(`${field} holds no PEM certificate`, NO_PEM)
    return blocks.map((block, position) => {
      const where = blocks.length === 1 ? field : `${field}, PEM block ${position + 1},`
      const kept = checkedRoots.get(block.text)
      if (kept !== undefined) return kept
      if (block.label !== 'CERTIFICATE')
        throw invalid(`${where} is ${describeLabel(block.label)}, not a root certificate`)
      const certificate = parse(block.text)
      if (certificate === undefined) throw invalid(`${where} is not a readable certificate`)
      const fault = whyNoRoot(certificate)
      if (fault !== undefined) throw invalid(`${where} "${printableName(certificate.subject)}" is ${fault}`)
      const anchor = anchorOf(certificate)
      checkedRoots.set(block.text, anchor)
      return anchor
    })
  })
}

/** By their PEM text: a client that is made anew for every connection does not check its roots anew. */
const checkedRoots = new LruMap<TrustAnchor>(64)

function describeLabel(label: string): string {
  if (label.endsWith('CERTIFICATE REQUEST')) return 'a certificate signing request'
  if (label.endsWith('PRIVATE KEY')) return 'a private key'
  if (label.endsWith('PUBLIC KEY')) return 'a public key'
  return `a PEM block of type "${printable(label, 40)}"`
}

function parse(pem: string): X509Certificate | undefined {
  try {
    return new X509Certificate(pem)
  } catch {
    return undefined
  }
}

/** Undefined for a root; otherwise what the certificate is instead. */
function whyNoRoot(certificate: X509Certificate): string | undefined {
  const { ca } = certificate
  if (certificate.subject !== certificate.issuer) {
    const issuer = `issued by "${printableName(certificate.issuer)}"`
    return ca
      ? `an intermediate CA certificate, ${issuer}: not a root`
      : `a leaf certificate, ${issuer}: not a root`
  }
  if (!ca) return 'a self-signed leaf certificate (no basicConstraints with cA): not a root'
  return isSelfSigned(certificate)
    ? undefined
    : 'an intermediate CA certificate that bears its own name as issuer but was signed by another key: not a root'
}

function isSelfSigned(certificate: X509Certificate): boolean {
  try {
    return certificate.checkIssued(certificate) && certificate.verify(certificate.publicKey)
  } catch {
    // A key of a type that OpenSSL does not know.
    return false
  }
}

function platformStore(): SystemStore {
  return {
    getCACertificates: (tls as { getCACertificates?: (type: 'system') => readonly string[] })
      .getCACertificates,
    certFile: process.env.SSL_CERT_FILE || undefined,
    bundles: DISTRIBUTION_BUNDLES,
  }
}

/**
 * The roots in the platform's store. What is no root, or cannot be read, is left out: a store is not the caller's text,
 * and one odd entry in it must not stop a device.
 */
function readSystemStore(store: SystemStore): readonly TrustAnchor[] {
  const certificates = store.getCACertificates?.('system') ?? []
  const fromNode = rootsIn(certificates.join('\n'))
  if (fromNode.length > 0) return fromNode
  const files = store.certFile === undefined ? store.bundles : [store.certFile]
  for (const file of files) {
    const text = readIfPresent(file)
    if (text === undefined) continue
    const roots = rootsIn(text)
    if (roots.length > 0) return roots
  }
  throw invalid(
    `trust.roots is 'system', but no root certificate was found in ${printable(files.join(', '), 400)}`,
    `Install the CA certificates of the distribution (ca-certificates), name their file in SSL_CERT_FILE, or ${LEAVE_OUT}.`,
  )
}

function rootsIn(text: string): readonly TrustAnchor[] {
  return [...text.matchAll(PEM_BLOCK)].flatMap(([block, label]) => {
    const certificate = label === 'CERTIFICATE' ? parse(block) : undefined
    return certificate !== undefined && whyNoRoot(certificate) === undefined ? [anchorOf(certificate)] : []
  })
}

function readIfPresent(file: string): string | undefined {
  try {
    const stats = statSync(file)
    return stats.isFile() && stats.size <= MAX_BUNDLE_BYTES ? readFileSync(file, 'latin1') : undefined
  } catch {
    return undefined
  }
}

function invalid(message: string, hint?: string): DpsError {
  return new DpsError('TRUST_ANCHOR_INVALID', 'config', message, hint === undefined ? {} : { hint })
}
