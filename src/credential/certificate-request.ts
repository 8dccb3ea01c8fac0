import { createPublicKey, type KeyObject, verify } from 'node:crypto'
import { DpsError } from '../errors.ts'
import { printable } from '../printable.ts'
import { decodeBase64 } from './base64.ts'
import { base64Of, childrenOf, readPem, type Tlv, tlvAt } from './pem.ts'

/** A certificate signing request that has been read and whose signature is good. */
export interface CertificateRequest {
  readonly publicKey: KeyObject
  /**
   * Base64 of the DER, once it is sure that the request is for this registration id, in exactly this spelling.
   *
   * @throws DpsError OPTION_INVALID, phase `config`
   */
  wireFor(registrationId: string): string
}

/** Most characters of a request in base64 that the service takes: 8 KB. */
const MAX_CSR_CHARACTERS = 8192

const SEQUENCE = 0x30
const COMMON_NAME = '0603550403'

/** Signature algorithms, as the DER of their object identifiers (RFC 5758, section 3.2; RFC 4055, section 5). */
const DIGESTS: Readonly<Record<string, string>> = {
  '06082a8648ce3d040302': 'sha256',
  '06082a8648ce3d040303': 'sha384',
  '06082a8648ce3d040304': 'sha512',
  '06092a864886f70d01010b': 'sha256',
  '06092a864886f70d01010c': 'sha384',
  '06092a864886f70d01010d': 'sha512',
}

/**
 * Reads a PKCS#10 request (RFC 2986): base64 of its DER, PEM, or what `createCsr` returns. A signature by an algorithm that
 * is not known here is left to the service.
 *
 * @throws DpsError OPTION_INVALID, phase `config`; the message quotes nothing but a CN
 */
export function readCertificateRequest(input: unknown): CertificateRequest {
  const given =
    typeof input === 'object' && input !== null && 'csr' in input ? (input as { csr: unknown }).csr : input
  if (typeof given !== 'string') throw invalid('must be base64 of DER, PEM, or what createCsr() returns')
  const wire = given.includes('-----BEGIN ') ? unarmoured(given) : given.replace(/\s+/g, '')
  if (wire.length > MAX_CSR_CHARACTERS) {
    throw invalid(`is ${wire.length} characters of base64; the service takes at most ${MAX_CSR_CHARACTERS}`)
  }
  const der = decodeBase64(wire)
  if (typeof der === 'string') throw invalid(`must be base64 of DER, or PEM; it ${der}`)

  const outer = tlvAt(der, 0)
  const isWhole = outer?.tag === SEQUENCE && outer.end === der.length
  const [info, algorithm, signature, ...more] = isWhole ? partsOf(outer) : []
  const [version, subject, spki, attributes] = partsOf(info)
  // A damaged name of the algorithm is not taken for one that is not known here.
  const [oid] = partsOf(algorithm)
  const isRequest =
    signature?.tag === 0x03 &&
    oid?.tag === 0x06 &&
    version?.content.toString('hex') === '00' &&
    attributes?.tag === 0xa0
  if (!isRequest || more.length > 0)
    throw invalid('is no certificate signing request: PKCS#10 in DER, and nothing else')

  let publicKey: KeyObject
  try {
    publicKey = createPublicKey({ key: spki!.whole, format: 'der', type: 'spki' })
  } catch (cause) {
    throw invalid('has a public key that OpenSSL does not read', cause)
  }
  const digest = DIGESTS[oid!.whole.toString('hex')]
  if (digest !== undefined && !isSigned(digest, info!.whole, publicKey, signature!.content.subarray(1))) {
    throw invalid('was not signed by the key that it is for, or was changed since')
  }
  const names = partsOf(subject)
    .flatMap(partsOf)
    .map(partsOf)
    .filter(([type]) => type?.whole.toString('hex') === COMMON_NAME)
    .map(([, value]) => value?.content.toString('utf8') ?? '')
  return {
    publicKey,
    wireFor: (registrationId) => {
      if (names.length === 1 && names[0] === registrationId) return wire
      const found =
        names.length === 1 ? `its CN is "${printable(names[0]!, 140)}"` : `it has ${names.length} CNs`
      throw invalid(
        `must have one CN that is the registration id, "${registrationId}", letter for letter; ${found}`,
      )
    },
  }
}

function unarmoured(text: string): string {
  let blocks: ReturnType<typeof readPem>
  try {
    blocks = readPem(text, 'csr')
  } catch (cause) {
    throw invalid('is damaged PEM', cause)
  }
  const [block, ...more] = blocks.filter(({ kind }) => kind === 'certificate request')
  if (block === undefined || more.length > 0) {
    throw invalid(`holds ${block === undefined ? 'no' : 'more than one'} CERTIFICATE REQUEST`)
  }
  return base64Of(block.pem)
}

interface Part extends Tlv {
  /** Tag and length too. */
  readonly whole: Buffer
}

/** What a constructed element holds; nothing where it is damaged. */
function partsOf(parent: Tlv | undefined): readonly Part[] {
  const children = childrenOf(parent)
  if (parent === undefined || children.at(-1)?.end !== parent.content.length) return []
  return children.map((child) => ({ ...child, whole: parent.content.subarray(child.at, child.end) }))
}

/** False too for what is no signature at all. */
export function isSigned(digest: string, data: Buffer, publicKey: KeyObject, signature: Uint8Array): boolean {
  try {
    return verify(digest, data, publicKey, signature)
  } catch {
    return false
  }
}

function invalid(rule: string, cause?: unknown): DpsError {
  return new DpsError('OPTION_INVALID', 'config', `csr ${rule}`, cause === undefined ? {} : { cause })
}
