import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export interface Issued {
  /** PEM. */
  readonly cert: string
  /** PEM, PKCS#8 unless converted. */
  readonly key: string
}

export interface IssueOptions {
  /** As `openssl req -subj`, UTF-8. */
  subject?: string
  /** Self-signed if absent. */
  issuer?: Issued
  ca?: boolean
  /** Arguments of `openssl genpkey`. */
  algorithm?: readonly string[]
  /** `YYYYMMDDHHMMSSZ` */
  from?: string
  until?: string
  /** Lines of the extension section. */
  extensions?: readonly string[]
  key?: string
}

export const EC_P256 = ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256'] as const

/** A throw-away certificate authority on the `openssl` command: an independent opinion on what a certificate is. */
export class OpenSsl {
  readonly folder = mkdtempSync(join(tmpdir(), 'x509-'))
  #serial = 1

  run(args: readonly string[], input?: string | Uint8Array): Buffer {
    return execFileSync('openssl', args, {
      cwd: this.folder,
      stdio: ['pipe', 'pipe', 'pipe'],
      ...(input === undefined ? {} : { input }),
    })
  }

  write(name: string, content: string | Uint8Array): string {
    const path = join(this.folder, name)
    writeFileSync(path, content)
    return path
  }

  key(algorithm: readonly string[] = EC_P256): string {
    return this.run(['genpkey', ...algorithm]).toString()
  }

  request(key: string, subject: string): string {
    this.write('request.key', key)
    return this.run(['req', '-new', '-utf8', '-key', 'request.key', '-subj', subject]).toString()
  }

  issue(options: IssueOptions = {}): Issued {
    const {
      subject = '/CN=dev-1',
      issuer,
      ca = false,
      from = '20260101000000Z',
      until = '20300101000000Z',
    } = options
    const key = options.key ?? this.key(options.algorithm)
    this.write('request.pem', this.request(key, subject))
    this.write('index.txt', '')
    this.write('index.txt.attr', 'unique_subject = no\n')
    this.write('serial', (this.#serial++).toString(16).padStart(16, '1'))
    this.write('signer.key', issuer?.key ?? key)
    if (issuer !== undefined) this.write('signer.pem', issuer.cert)
    const constraints = ca ? ['basicConstraints=critical,CA:true'] : ['basicConstraints=CA:false']
    this.write(
      'ca.cnf',
      `[ca]
default_ca=authority
[authority]
dir=.
new_certs_dir=.
database=index.txt
serial=serial
default_md=sha256
policy=anything
x509_extensions=extensions
[anything]
countryName=optional
organizationName=optional
organizationalUnitName=optional
commonName=optional
[extensions]
${[...constraints, ...(options.extensions ?? [])].join('\n')}
`,
    )
    const signer = issuer === undefined ? ['-selfsign'] : ['-cert', 'signer.pem']
    const args = [
      'ca',
      '-batch',
      '-notext',
      '-utf8',
      '-preserveDN',
      '-config',
      'ca.cnf',
      '-in',
      'request.pem',
    ]
    const dates = ['-startdate', from, '-enddate', until]
    this.run([...args, '-out', 'issued.pem', '-keyfile', 'signer.key', ...signer, ...dates])
    return { cert: readFileSync(join(this.folder, 'issued.pem'), 'utf8'), key }
  }

  remove(): void {
    rmSync(this.folder, { recursive: true })
  }
}
