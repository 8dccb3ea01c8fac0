import type { X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import type { PeerCertificate, TLSSocket } from 'node:tls'
import { isIssuedBy } from '../credential/certificate.ts'
import { commonName, printableName } from '../distinguished-name.ts'
import { DpsError } from '../errors.ts'
import { LruMap } from '../lru.ts'
import { printable } from '../printable.ts'
import type { TrustAnchor } from './trust.ts'

/** More than any real chain has; what lies beyond is not looked at, so a hostile chain buys no work. */
const MAX_PRESENTED = 12

/** The certificates a server sent, leaf first, as it sent them. */
export interface PresentedChain {
  readonly certificates: readonly X509Certificate[]
  /** True when there were more than are looked at. */
  readonly truncated: boolean
}

/** The identity check of one connection. */
export interface ServerIdentity {
  /** For `tls.connect`; called once OpenSSL has verified the chain, never on resumption. */
  readonly checkServerIdentity: (hostname: string, leaf: Partial<PeerCertificate>) => Error | undefined
  /** To be called right after `tls.connect`. */
  attach(socket: TLSSocket): void
  /** The socket is again what Node made it. */
  release(): void
  /** The same, and what the server presented is forgotten: for a connection that lives on. */
  pass(): void
  /** Set once the check has passed: the name of the root that validated the chain, or `'unknown'`. */
  readonly root: string | undefined
  /** What the server presented, as far as it is known, for the explanation of a failure. */
  readonly presented: PresentedChain
}

export interface ServerIdentityOptions {
  /** The name, or IP address, that the certificate must have. */
  readonly host: string
  /** Whether `host` is a name. */
  readonly isName: boolean
  readonly anchors: readonly TrustAnchor[]
  /**
   * True where OpenSSL may have trusted more than `anchors`: Node adds the CA certificates of a PKCS#12 file to the
   * trust store. A root then counts only if it is reached by links whose signatures hold.
   */
  readonly foreignAnchors: boolean
}

const EMPTY: PresentedChain = { certificates: [], truncated: false }

/** Leaves, by SHA-256, and the host whose name they were found to have. */
const named = new LruMap<true>(64)

/**
 * The one check of who the server is, for one connection: host name or IP address by RFC 6125 without the subject
 * fallback (§6.4.4) and without partial wildcards (§6.4.3), and which root validated it.
 *
 * `tls` builds the whole peer chain as legacy objects only to pass them to `checkServerIdentity`, at a third of the
 * instructions of a handshake. The socket's own `getPeerCertificate` is shadowed while that happens. Should Node stop
 * calling it, the cost returns and this check stays.
 *
 * Where one root alone was trusted, that root it was, and of the chain nothing need be seen but its leaf: whether that has
 * the name was decided when it was first met, and is not decided again. To look at a chain costs an eighth of a
 * handshake, and Node (20 to 22 at least) never frees the issuers that it hands out.
 */
export function serverIdentity(options: ServerIdentityOptions): ServerIdentity {
  const { host, anchors, foreignAnchors } = options
  const only = anchors.length === 1 && !foreignAnchors ? anchors[0]!.name : undefined
  let socket: TLSSocket | undefined
  let presented: PresentedChain | undefined
  let root: string | undefined

  const capture = (): PresentedChain => {
    presented ??= socket === undefined ? EMPTY : presentedChain(socket)
    return presented
  }
  let released = false
  return {
    checkServerIdentity: (_, { fingerprint256 }) => {
      const met = only === undefined || fingerprint256 === undefined ? undefined : `${fingerprint256} ${host}`
      if (met !== undefined && named.get(met)) {
        root = only
        return undefined
      }
      const verdict = checkIdentity(capture(), options)
      if (typeof verdict !== 'string') return verdict
      root = verdict
      if (met !== undefined) named.set(met, true)
      return undefined
    },
    attach: (attached) => {
      socket = attached
      // They stay and hand on: to delete a property makes an object slow for all its life.
      const { getPeerCertificate, destroy } = attached
      attached.getPeerCertificate = ((detailed?: boolean) => {
        if (released) return getPeerCertificate.call(attached, detailed)
        return only === undefined ? {} : getPeerCertificate.call(attached, false)
      }) as typeof getPeerCertificate
      // A socket that fails verification forgets its peer before it says so: look at the chain while it is there.
      attached.destroy = (error) => {
        if (error !== undefined && !released) capture()
        released = true
        return destroy.call(attached, error)
      }
    },
    release: () => {
      released = true
    },
    pass: () => {
      released = true
      socket = presented = undefined
    },
    get root() {
      return root
    },
    get presented() {
      return presented ?? EMPTY
    },
  }
}

/**
 * Up to Node 24 `getPeerX509Certificate` takes the chain out of the connection: it answers once. Its
 * `issuerCertificate` links are the certificates as presented, not the path that was verified.
 */
function presentedChain(socket: TLSSocket): PresentedChain {
  const certificates: X509Certificate[] = []
  try {
    for (let next = socket.getPeerX509Certificate(); next !== undefined; next = next.issuerCertificate) {
      if (certificates.length === MAX_PRESENTED) return { certificates, truncated: true }
      certificates.push(next)
    }
  } catch {
    // A certificate that cannot be represented ends what can be seen.
    return { certificates, truncated: true }
  }
  return { certificates, truncated: false }
}

function checkIdentity(
  chain: PresentedChain,
  { host, isName, anchors, foreignAnchors }: ServerIdentityOptions,
): string | DpsError {
  const leaf = chain.certificates[0]
  if (leaf === undefined) {
    return new DpsError('SERVER_UNTRUSTED', 'tls', `${host} presented no certificate`)
  }
  if (!hasName(leaf, host, isName)) return nameMismatch(leaf, host)
  const root = validatingRoot(chain, anchors, foreignAnchors)
  if (root !== undefined) return root
  return new DpsError(
    'SERVER_UNTRUSTED',
    'tls',
    `the chain of ${host}, issued by "${printableName(leaf.issuer)}", does not end in a root of the policy`,
  )
}

/** What is wrong with the name of a certificate, by the same rules, for TLS options that are handed out. */
export function hostNameFault(leaf: X509Certificate, host: string): DpsError | undefined {
  return hasName(leaf, host, isIP(host) === 0) ? undefined : nameMismatch(leaf, host)
}

/** What is sent as SNI: nothing for an IP address (RFC 6066 §3). */
export function serverNameOf(host: string): string {
  return isIP(host) === 0 ? host : ''
}

function hasName(leaf: X509Certificate, host: string, isName: boolean): boolean {
  if (!isName) return leaf.checkIP(host) !== undefined
  const name = leaf.checkHost(host, {
    subject: 'never',
    wildcards: true,
    partialWildcards: false,
    multiLabelWildcards: false,
    singleLabelSubdomains: false,
  })
  return name !== undefined
}

function nameMismatch(leaf: X509Certificate, host: string): DpsError {
  const names = leaf.subjectAltName
  const has =
    names === undefined
      ? `has no subjectAltName (its subject is "${printableName(leaf.subject)}", which is not looked at)`
      : `is for ${printable(names)}`
  return new DpsError('SERVER_NAME_MISMATCH', 'tls', `the certificate of ${host} ${has}, not for ${host}`)
}

/**
 * The root in which the path that OpenSSL verified ends: its name, `'unknown'` where that cannot be told, undefined where
 * no path of the presented certificates leads to any anchor.
 *
 * Node does not give the verified path. But it is one of the paths from the leaf over presented certificates to an
 * anchor, and each of its links satisfies `checkIssued`, OpenSSL's own rule for building it: where all such paths end
 * in one anchor, that is the root. Only where they differ are signatures looked at, which the verified path has right.
 */
export function validatingRoot(
  chain: PresentedChain,
  anchors: readonly TrustAnchor[],
  foreignAnchors = false,
): string | undefined {
  const { certificates, truncated } = chain
  if (foreignAnchors) {
    const proven = reachable(certificates, anchors, isSignedByCa)
    if (proven.length === 0) return undefined
    return proven.length === 1 && !truncated ? proven[0]!.name : 'unknown'
  }
  const named = reachable(certificates, anchors, isNamedAsIssuer)
  if (named.length === 0) return undefined
  if (truncated) return 'unknown'
  const [only, ...others] = named.length === 1 ? named : reachable(certificates, anchors, isIssuedBy)
  return only === undefined || others.length > 0 ? 'unknown' : only.name
}

type Link = (certificate: X509Certificate, issuer: X509Certificate) => boolean

const isNamedAsIssuer: Link = (certificate, issuer) => certificate.checkIssued(issuer)

const isSignedByCa: Link = (certificate, issuer) => issuer.ca && isIssuedBy(certificate, issuer)

/** Whether a certificate is that of an anchor; anchors are their own issuers, and to ask that first costs less. */
function isSame(certificate: X509Certificate, anchor: X509Certificate): boolean {
  return certificate.checkIssued(certificate) && certificate.fingerprint256 === anchor.fingerprint256
}

/** The anchors that can be reached from the first certificate. Every certificate is visited at most once. */
function reachable(
  certificates: readonly X509Certificate[],
  anchors: readonly TrustAnchor[],
  link: Link,
): readonly TrustAnchor[] {
  const reached = new Set<TrustAnchor>()
  const [leaf, ...unvisited] = certificates
  const queue = leaf === undefined ? [] : [leaf]
  for (let current = queue.shift(); current !== undefined; current = queue.shift()) {
    let isAnchor = false
    for (const anchor of anchors) {
      if (!link(current, anchor.certificate)) continue
      reached.add(anchor)
      isAnchor ||= isSame(current, anchor.certificate)
    }
    // The end of every path through it.
    if (isAnchor) continue
    for (let i = unvisited.length - 1; i >= 0; i--) {
      if (link(current, unvisited[i]!)) queue.push(...unvisited.splice(i, 1))
    }
  }
  return [...reached]
}

/** Who stands at the top of what the server presented. */
export function describeTop(chain: PresentedChain): string | undefined {
  const top = chain.certificates.at(-1)
  if (top === undefined) return undefined
  return `"${commonName(top.subject)}", issued by "${printableName(top.issuer)}"`
}
