import { execFileSync } from 'node:child_process'
import { generateKeyPairSync, X509Certificate } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export interface DeviceCsr {
  /** Base64 of DER. */
  readonly csr: string
  /** PKCS#8 PEM. */
  readonly key: string
  /** SPKI PEM. */
  readonly publicKey: string
}

/** Runs something in a folder that is gone afterwards. */
function inFolder<T>(run: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), 'csr-'))
  try {
    return run(folder)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** A request as OpenSSL makes it. */
export function opensslCsr(
  subject: string,
  key: 'P-256' | 'P-384' | 'P-521' | 'rsa' = 'P-384',
  ...more: string[]
): DeviceCsr {
  const { privateKey, publicKey } =
    key === 'rsa'
      ? generateKeyPairSync('rsa', { modulusLength: 2048 })
      : generateKeyPairSync('ec', { namedCurve: key })
  const pem = privateKey.export({ type: 'pkcs8', format: 'pem' }) as string
  const csr = inFolder((folder) => {
    const file = join(folder, 'key.pem')
    writeFileSync(file, pem)
    const subj = subject.startsWith('/') ? subject : `/CN=${subject}`
    return execFileSync('openssl', ['req', '-new', '-key', file, '-subj', subj, '-outform', 'DER', ...more], {
      stdio: ['ignore', 'pipe', 'ignore'],
    }).toString('base64')
  })
  return { csr, key: pem, publicKey: publicKey.export({ type: 'spki', format: 'pem' }) as string }
}

export const certificatesOf = (chain: unknown): X509Certificate[] =>
  (chain as string[]).map((element) => new X509Certificate(Buffer.from(element, 'base64')))

/** PEM chain for a TLS client: the leaf and its CA. */
export const pemOf = (chain: unknown): string =>
  certificatesOf(chain)
    .slice(0, -1)
    .map((certificate) => certificate.toString())
    .join('')

/** What `openssl verify` says of a chain, leaf first and root last, as of a client at a server. */
export function opensslVerify(chain: readonly X509Certificate[], at: number): string {
  return inFolder((folder) => {
    const [leaf, ...authorities] = chain.map((certificate) => certificate.toString())
    const root = authorities.pop()
    const files = { leaf: leaf ?? '', middle: authorities.join(''), root: root ?? '' }
    for (const [name, pem] of Object.entries(files)) writeFileSync(join(folder, name), pem)
    const file = (name: string): string => join(folder, name)
    try {
      const args = ['-x509_strict', '-purpose', 'sslclient', '-attime', String(Math.floor(at / 1000))]
      return execFileSync(
        'openssl',
        ['verify', ...args, '-CAfile', file('root'), '-untrusted', file('middle'), file('leaf')],
        { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] },
      )
        .replace(file('leaf'), 'leaf')
        .trim()
    } catch (error) {
      return String((error as { stderr?: unknown }).stderr)
    }
  })
}
