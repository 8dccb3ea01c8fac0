import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto'
import { DpsError } from '../../errors.ts'
import { isoTime } from '../../iso-time.ts'
import type { PemInput } from '../../options/options.ts'
import { printable } from '../../printable.ts'
import { registrationIdFault } from '../../protocol/registration-id.ts'
import {
  checkKeyType,
  commonNamesOf,
  isIssuedBy,
  mayAuthenticate,
  nameOf,
  renewAtMs,
} from '../certificate.ts'
import { orderChain } from '../chain.ts'
import type { TlsIdentity } from '../credential.ts'
import type { CredentialFindingId } from '../inspection.ts'
import {
  checkIterations,
  MAX_ITERATIONS,
  type PemBlock,
  type PemKind,
  readPem,
  readPrivateKey,
} from '../pem.ts'
import { readPkcs12 } from '../pkcs12.ts'
import { fromFile, fromValue, type Read, type Readable } from '../source.ts'
import type { X509Options } from '../x509.ts'
import { isSelfSigned, maySign, weakDigestOf } from './certificate.ts'
import type { Findings } from './findings.ts'

/** What a device presents, as far as it can be read. */
export interface Presented {
  readonly chain: readonly X509Certificate[]
  readonly registrationId?: string
}

type Bytes = string | Uint8Array

interface Source {
  readonly field: string
  readonly read: Read<unknown>
}

interface Sources {
  readonly certificates?: Source | undefined
  readonly key?: Source | undefined
  readonly bundle?: Source | undefined
  readonly passphrase?: string | undefined
}

export function sourcesOf(options: X509Options): Sources {
  const source = (name: 'cert' | 'key' | 'pkcs12'): Source | undefined => {
    const path = options[`${name}File`]
    if (path) return { field: `${name}File`, read: fromFile(path, `${name}File`) }
    const value = options[name] as Readable<Bytes> | undefined
    return value === undefined ? undefined : { field: name, read: fromValue(value, name) }
  }
  return {
    certificates: source('cert'),
    key: source('key'),
    bundle: source('pkcs12'),
    passphrase: options.passphrase,
  }
}

/** Of a credential of the caller's own, what the handshake would be given. */
export function sourcesOfIdentity({ cert, key, pfx, passphrase }: TlsIdentity): Sources {
  const source = (field: string, value: unknown) =>
    value === undefined ? undefined : { field: `tls.${field}`, read: async () => value }
  return {
    certificates: source('cert', cert),
    key: source('key', key),
    bundle: source('pfx', pfx),
    passphrase,
  }
}

/** Looks at everything an X.509 credential was given. */
export async function inspectX509(sources: Sources, nowMs: number, findings: Findings): Promise<Presented> {
  const { bundle, key: keySource, passphrase } = sources
  let certificates: readonly X509Certificate[]
  let key: KeyObject | undefined
  const field = bundle?.field ?? sources.certificates?.field ?? 'cert'
  const keyField = bundle?.field ?? keySource?.field ?? 'key'
  if (bundle === undefined) {
    certificates = await certificatesFrom(sources.certificates, findings)
    key = await keyFrom(keySource, passphrase, findings)
    if (keySource === undefined) {
      findings.add(
        'key-not-examined',
        'The private key is out of reach, so nothing can be said of whether it is that of the certificate',
      )
    }
  } else {
    ;[certificates, key] = await contentsOf(bundle, passphrase, findings)
  }
  if (certificates.length === 0) return { chain: [] }
  const chain = chainOf(certificates, key, field, keyField, findings)
  inspectChain(chain, findings)
  inspectDates(chain, nowMs, findings)
  const registrationId = inspectLeaf(chain[0]!, findings)
  return registrationId === undefined ? { chain } : { chain, registrationId }
}

async function read({ field, read }: Source, findings: Findings): Promise<unknown> {
  try {
    return await read()
  } catch (error) {
    findings.add('source-unreadable', said(error, `\`${field}\` could not be read`))
    return undefined
  }
}

/** What one of our own errors says, without its full stop. */
export function said(error: unknown, otherwise: string): string {
  return DpsError.is(error) ? error.message.replace(/\.$/, '') : otherwise
}

const isBytes = (value: unknown): value is Bytes => typeof value === 'string' || value instanceof Uint8Array

const GIVEN: Readonly<Partial<Record<PemKind, CredentialFindingId>>> = {
  certificate: 'certificate-given',
  'certificate request': 'certificate-request-given',
  'private key': 'private-key-given',
  'encrypted private key': 'private-key-given',
  'public key': 'public-key-given',
  'OpenSSH key': 'openssh-key-given',
  'PKCS#7': 'pkcs7-given',
  'PKCS#12': 'pkcs12-given',
}

const ARTICLE = (label: string) => `${/^[AEIOU]/.test(label) ? 'an' : 'a'} ${label}`

function givenInstead(blocks: readonly PemBlock[], field: string, wanted: string, findings: Findings): void {
  const telling = blocks.find(({ kind }) => kind in GIVEN) ?? blocks[0]!
  const id = GIVEN[telling.kind] ?? 'other-pem-given'
  findings.add(id, `\`${field}\` holds ${ARTICLE(printable(telling.label, 64))}, and no ${wanted}`)
}

/** The PEM blocks of one input, and what is to be said of the form it came in. */
function blocksOf(input: Bytes, field: string, findings: Findings): readonly PemBlock[] {
  const bytes = Buffer.from(input as string)
  if (bytes.length === 0) {
    findings.add('input-empty', `\`${field}\` is empty`)
    return []
  }
  const isDer = typeof input !== 'string' && bytes[0] === 0x30
  const text = isDer ? '' : bytes.toString('utf8')
  if (!isDer && (/^(?:fffe|feff)/.test(bytes.toString('hex', 0, 2)) || /^\0?-\0/.test(text))) {
    findings.add('utf-16', `\`${field}\` is UTF-16 text`)
    return []
  }
  if (text.trim() === '' && !isDer) {
    findings.add('input-empty', `\`${field}\` is blank`)
    return []
  }
  try {
    const blocks = readPem(input, field)
    if (isDer && !blocks[0]?.kind.startsWith('PKCS')) findings.add('der-given', `\`${field}\` is DER`)
    if (text.startsWith('\ufeff'))
      findings.add('byte-order-mark', `\`${field}\` begins with a byte order mark`)
    if (text.includes('\r')) findings.add('windows-line-ends', `\`${field}\` has carriage returns`)
    return blocks
  } catch (error) {
    const isPem = text.includes('-----BEGIN ')
    const isEscaped = isPem && /\\[nr]/.test(text)
    const id = isEscaped ? 'escaped-line-breaks' : isPem || isDer ? 'input-damaged' : 'not-pem'
    findings.add(id, said(error, `\`${field}\` cannot be read`))
    return []
  }
}

async function certificatesFrom(
  source: Source | undefined,
  findings: Findings,
): Promise<readonly X509Certificate[]> {
  const given = source && ((await read(source, findings)) as PemInput | undefined)
  const inputs = isBytes(given) ? [given] : Array.isArray(given) ? given.filter(isBytes) : []
  return inputs.flatMap((input, at) => {
    const field = inputs.length === 1 ? source!.field : `${source!.field}[${at}]`
    const blocks = blocksOf(input, field, findings)
    const pems = blocks.filter(({ kind }) => kind === 'certificate')
    if (blocks.length > 0 && pems.length === 0) givenInstead(blocks, field, 'CERTIFICATE', findings)
    return pems.flatMap(({ pem }) => {
      try {
        return [new X509Certificate(pem)]
      } catch {
        findings.add('input-damaged', `\`${field}\` holds a CERTIFICATE block that is no certificate`)
        return []
      }
    })
  })
}

async function keyFrom(
  source: Source | undefined,
  passphrase: string | undefined,
  findings: Findings,
): Promise<KeyObject | undefined> {
  const given = source && (await read(source, findings))
  if (!isBytes(given)) return undefined
  const { field } = source!
  const blocks = blocksOf(given, field, findings)
  const keys = blocks.filter(({ kind, label }) => /PRIVATE KEY$/.test(label) && kind !== 'OpenSSH key')
  if (keys.length > 1) {
    findings.add('several-keys', `\`${field}\` holds ${keys.length} private keys`)
    return undefined
  }
  const [block] = keys
  if (block === undefined) {
    if (blocks.length > 0) givenInstead(blocks, field, 'PRIVATE KEY', findings)
    return undefined
  }
  return openKey(block, field, passphrase, findings)
}

function openKey(
  { kind, label, pem }: PemBlock,
  field: string,
  passphrase: string | undefined,
  findings: Findings,
): KeyObject | undefined {
  const isEncrypted = kind === 'encrypted private key'
  if (isEncrypted && passphrase === undefined) {
    findings.add('passphrase-missing', `\`${field}\` is encrypted, and no passphrase was given`)
    return undefined
  }
  if (!isEncrypted && passphrase) {
    findings.add('passphrase-unused', `A passphrase was given, and \`${field}\` is not encrypted`)
  }
  try {
    if (label === 'ENCRYPTED PRIVATE KEY') checkIterations(pem, field)
    return createPrivateKey(isEncrypted ? { key: pem, passphrase: passphrase! } : pem)
  } catch (error) {
    if (isEncrypted && !DpsError.is(error)) {
      findings.add('passphrase-wrong', `\`${field}\` could not be decrypted by the passphrase that was given`)
    } else {
      findings.add(
        'key-unreadable',
        said(error, `\`${field}\` holds ${ARTICLE(label)} that OpenSSL cannot read`),
      )
    }
    return undefined
  }
}

async function contentsOf(
  bundle: Source,
  passphrase: string | undefined,
  findings: Findings,
): Promise<[readonly X509Certificate[], KeyObject | undefined]> {
  const bytes = await read(bundle, findings)
  if (!(bytes instanceof Uint8Array)) return [[], undefined]
  try {
    const { certificates, key } = await readPkcs12(bytes, passphrase, bundle.field, MAX_ITERATIONS)
    const { pem } = readPrivateKey(key.reveal(), bundle.field)
    return [certificates, createPrivateKey({ key: pem, passphrase: passphrase ?? '' })]
  } catch (error) {
    findings.add('bundle-unusable', said(error, `\`${bundle.field}\` holds a key that OpenSSL cannot read`))
    return [[], undefined]
  }
}

/** The chain as it would be sent; the device certificate alone where none can be made of what was given. */
function chainOf(
  given: readonly X509Certificate[],
  key: KeyObject | undefined,
  field: string,
  keyField: string,
  findings: Findings,
): readonly X509Certificate[] {
  const fits = key && ((certificate: X509Certificate) => certificate.checkPrivateKey(key))
  const order = (by: typeof fits) => orderChain(given, by, field, keyField).chain
  let chain: readonly X509Certificate[]
  try {
    chain = order(fits)
  } catch (error) {
    const isMismatch = DpsError.is(error) && error.code === 'CREDENTIAL_KEY_MISMATCH'
    findings.add(isMismatch ? 'key-mismatch' : 'chain-broken', said(error, `\`${field}\` is no chain`))
    if (!isMismatch) return [(fits && given.find(fits)) ?? given[0]!]
    // What can be said of the certificates is true whoever has their key.
    try {
      chain = order(undefined)
    } catch {
      return [given[0]!]
    }
  }
  const different = given.filter((one, at) => !given.slice(0, at).some(({ raw }) => raw.equals(one.raw)))
  if (different.length < given.length) {
    findings.add('certificate-repeated', `\`${field}\` holds a certificate more than once`)
  }
  for (const one of different.filter((one) => !chain.includes(one))) {
    const unused = `\`${field}\` holds ${nameOf(one)}, which is not in the chain of the device and is not sent`
    findings.add('certificate-unused', unused)
  }
  if (different.filter((one) => chain.includes(one)).some((one, at) => one !== chain[at])) {
    const order = `\`${field}\` is not in order; the device certificate is sent first, and then each issuer`
    findings.add('chain-reordered', order)
  }
  return chain
}

function inspectChain(chain: readonly X509Certificate[], findings: Findings): void {
  const [leaf, ...issuers] = chain as [X509Certificate]
  const top = chain.at(-1)!
  const isRoot = isSelfSigned(top)
  if (leaf === top && isRoot)
    findings.add('self-signed', `The device certificate (${nameOf(leaf)}) signed itself`)
  else if (isRoot) findings.add('root-included', `The chain holds the root ${nameOf(top)}`)
  else if (leaf === top && !findings.has('chain-broken')) {
    const issuer = nameOf({ subject: leaf.issuer })
    const alone = `The device certificate is sent alone, so the service must know its direct issuer (${issuer})`
    findings.add('issuer-missing', alone)
  }
  for (const issuer of issuers as readonly X509Certificate[]) {
    if (!issuer.ca) findings.add('issuer-not-ca', `${nameOf(issuer)} issued another certificate and is no CA`)
  }
  for (const one of chain) {
    // Nobody verifies the signature of what is trusted, or not, by itself.
    const digest = one === top && isRoot ? undefined : weakDigestOf(one)
    if (digest)
      findings.add('weak-signature', `The signature of ${nameOf(one)} is over ${digest}, which can be forged`)
  }
}

function inspectDates(chain: readonly X509Certificate[], nowMs: number, findings: Findings): void {
  for (const [at, one] of chain.entries()) {
    // Of a root the service has its own copy.
    if (at > 0 && isIssuedBy(one, one)) continue
    const [fromMs, untilMs] = [Date.parse(one.validFrom), Date.parse(one.validTo)]
    const period = `${nameOf(one)} is valid from ${isoTime(fromMs)} to ${isoTime(untilMs)}, and here it is ${isoTime(nowMs)}`
    if (nowMs > untilMs) findings.add('expired', period)
    else if (nowMs < fromMs) findings.add('not-yet-valid', period)
    else if (nowMs >= renewAtMs(fromMs, untilMs)) {
      const days = Math.floor((untilMs - nowMs) / 86_400_000)
      const left = days < 1 ? 'within a day' : `in ${days} day${days === 1 ? '' : 's'}`
      findings.add('expires-soon', `${nameOf(one)} ends at ${isoTime(untilMs)}, ${left}`)
    }
  }
}

/** @returns the registration id, if there is one */
function inspectLeaf(leaf: X509Certificate, findings: Findings): string | undefined {
  const name = nameOf(leaf)
  if (leaf.ca) {
    // What signed itself is trusted by its thumbprint alone; `openssl req -x509` makes it a CA unasked.
    const details = findings.has('self-signed') ? ({ severity: 'notice' } as const) : {}
    findings.add('leaf-is-ca', `The device certificate (${name}) is that of a CA`, details)
  }
  try {
    const curve = checkKeyType(leaf)
    if (curve === 'P-521') {
      const message =
        'The device certificate has a key on P-521, which is not offered by default nor documented for DPS'
      findings.add('curve-not-offered', message)
    }
  } catch (error) {
    findings.add('key-unsupported', said(error, 'The key of the device certificate is not supported'))
  }
  if (!maySign(leaf)) {
    const message =
      'The keyUsage of the device certificate lacks digitalSignature, by which TLS 1.2 proves the key'
    findings.add('digital-signature-missing', message)
  }
  if (!mayAuthenticate(leaf)) {
    const message = 'The extendedKeyUsage of the device certificate lacks clientAuth'
    findings.add('client-authentication-missing', message)
  }
  const [id, ...more] = commonNamesOf(leaf)
  if (id === undefined) {
    findings.add(
      'common-name-missing',
      `The device certificate (${name}) has no CN, which is the registration id`,
    )
    return undefined
  }
  if (more.length > 0) {
    const count = `${more.length + 1} CNs; the registration id must be the only one`
    findings.add('common-name-repeated', `The device certificate (${name}) has ${count}`)
    return undefined
  }
  const fault = registrationIdFault(id)
  if (fault === undefined) return id
  const message = `The CN of the device certificate is the registration id, and ${JSON.stringify(printable(id))} ${fault}`
  findings.add('registration-id-invalid', message, {
    mend: 'Have the device certificate issued again with a CN of up to 128 letters, digits and - . _ : of which the last is a letter, a digit or -.',
  })
  return undefined
}
