import type { CredentialFinding, CredentialFindingId, FindingSeverity } from '../inspection.ts'

const ERROR = 'error'
const WARNING = 'warning'
const NOTICE = 'notice'

const EXPORT_AGAIN = 'Copy or export the file again, whole and unchanged.'
const SERVICE_KEY = 'Copy the primary or secondary key of the enrollment again, whole.'
const ISSUE = 'Have the device certificate issued again with'

/** How grave each finding is, and how it is mended. */
export const FINDINGS: Readonly<Record<CredentialFindingId, readonly [FindingSeverity, string]>> = {
  'source-unreadable': [ERROR, 'Check the path or the function, and that this user may read the file.'],
  'input-empty': [ERROR, 'Give the content of the certificate or key: the file or variable has none.'],
  'input-damaged': [ERROR, EXPORT_AGAIN],
  'not-pem': [ERROR, 'Give PEM text, with its BEGIN and END lines, or DER as bytes.'],
  'utf-16': [ERROR, 'Save the file as UTF-8 or ASCII.'],
  'escaped-line-breaks': [
    ERROR,
    'Put real line breaks where the two characters \\n are, as `text.replaceAll("\\\\n", "\\n")` does.',
  ],
  'byte-order-mark': [NOTICE, 'Nothing has to be done here; other programs may want it saved without one.'],
  'windows-line-ends': [NOTICE, 'Nothing has to be done here; other programs may want plain line feeds.'],
  'der-given': [NOTICE, 'Nothing has to be done here; other programs may want PEM.'],
  'certificate-given': [ERROR, 'Give the private key that was made with the certificate’s request.'],
  'certificate-request-given': [
    ERROR,
    'Give the certificate that the CA returned for the request, and as key the one the request was made with.',
  ],
  'private-key-given': [
    ERROR,
    'Give the device certificate here, and the private key as `key` or `keyFile`.',
  ],
  'public-key-given': [ERROR, 'Give the certificate or the private key itself: a public key is neither.'],
  'openssh-key-given': [ERROR, 'Convert a copy of the key with `ssh-keygen -p -m PKCS8`.'],
  'pkcs12-given': [ERROR, 'Give the bundle as `pkcs12` or `pkcs12File`, in place of certificate and key.'],
  'pkcs7-given': [ERROR, 'Convert it with `openssl pkcs7 -print_certs`.'],
  'other-pem-given': [ERROR, 'Give a CERTIFICATE block as certificate and a PRIVATE KEY block as key.'],
  'bundle-unusable': [ERROR, 'Export it again, with one private key, its certificate and its passphrase.'],
  'several-keys': [ERROR, 'Leave only the private key of the device certificate in it.'],
  'passphrase-missing': [ERROR, 'Give its `passphrase`.'],
  'passphrase-wrong': [
    ERROR,
    'Give the passphrase that the key was encrypted with; if it is that, the file is damaged.',
  ],
  'passphrase-unused': [NOTICE, 'Leave `passphrase` out, or encrypt the key.'],
  'key-unreadable': [ERROR, 'Give a key in PKCS#8, for instance by `openssl pkey`.'],
  'key-mismatch': [ERROR, 'Pair the certificate with the key that its request was made with.'],
  'key-not-examined': [NOTICE, 'Let a handshake prove the pair, for instance with `probe()` over MQTT.'],
  'chain-broken': [
    ERROR,
    'Give the device certificate and each intermediate between it and the CA that the service knows.',
  ],
  'chain-reordered': [
    NOTICE,
    'Nothing has to be done here; other programs may want the device certificate first.',
  ],
  'certificate-repeated': [NOTICE, 'Nothing has to be done here; leave the copies out.'],
  'certificate-unused': [
    NOTICE,
    'Leave it out, or add the certificates that link it to the device certificate.',
  ],
  'issuer-missing': [
    WARNING,
    'Append the intermediate certificates, unless this very issuer is uploaded and verified at the service or the enrollment names this certificate.',
  ],
  'issuer-not-ca': [WARNING, 'Have that CA certificate issued again with basicConstraints CA:TRUE.'],
  'root-included': [
    NOTICE,
    'Leave the root out: the service has its own copy, and sending it only takes bytes.',
  ],
  'weak-signature': [WARNING, 'Have it issued again with a signature over SHA-256 or better.'],
  'self-signed': [
    NOTICE,
    'Use an individual enrollment that has this certificate or its thumbprint: an enrollment group cannot accept it.',
  ],
  'leaf-is-ca': [WARNING, `${ISSUE} basicConstraints CA:FALSE: whoever has its key could make devices.`],
  'common-name-missing': [ERROR, `${ISSUE} the registration id as its one CN.`],
  'common-name-repeated': [ERROR, `${ISSUE} the registration id as its one CN.`],
  'key-unsupported': [ERROR, `${ISSUE} an EC P-256 key.`],
  'curve-not-offered': [
    WARNING,
    `${ISSUE} an EC P-256 key, or add the curve to \`tls.curves\` and try whether the service takes it.`,
  ],
  'digital-signature-missing': [WARNING, `${ISSUE} digitalSignature in keyUsage.`],
  'client-authentication-missing': [WARNING, `${ISSUE} clientAuth in extendedKeyUsage.`],
  expired: [ERROR, 'Renew it, or set the clock if that is wrong.'],
  'not-yet-valid': [ERROR, 'Set the clock, which is probably behind.'],
  'expires-soon': [WARNING, 'Renew it now, unless something renews it by itself.'],
  'registration-id-invalid': [
    ERROR,
    'Use up to 128 letters, digits and - . _ : of which the last is a letter, a digit or -.',
  ],
  'registration-id-differs': [ERROR, 'Give the certificate of this device, or correct the registration id.'],
  'registration-id-case': [
    NOTICE,
    'Derive its key from the id in this very spelling: the service ignores case, but a derived key does not.',
  ],
  'sas-key-connection-string': [ERROR, 'Give only what follows `SharedAccessKey=`.'],
  'sas-key-token': [ERROR, 'Give the key that signs tokens, not a token.'],
  'sas-key-pem': [ERROR, 'Use `x509` for certificates, or give the symmetric key.'],
  'sas-key-hexadecimal': [ERROR, 'Give the key in base64.'],
  'sas-key-whitespace': [ERROR, 'Take the spaces and line breaks away.'],
  'sas-key-not-base64': [ERROR, SERVICE_KEY],
  'sas-key-length': [ERROR, SERVICE_KEY],
  'signer-failed': [ERROR, 'Call the function given as `sign` by itself, and mend what it fails of.'],
  'signature-malformed': [ERROR, 'Return HMAC-SHA256 from `sign`: 32 bytes, or their base64.'],
  'credential-refused': [ERROR, 'Mend what `load` rejects with.'],
  'credential-repeated': [
    WARNING,
    'Give credentials that differ: what was refused once is not presented again.',
  ],
  'credential-of-another-device': [
    ERROR,
    'Give credentials of one device: the registration id must be that of each.',
  ],
}

const ORDER: readonly FindingSeverity[] = [ERROR, WARNING, NOTICE]

/** What has been found so far. */
export class Findings {
  readonly #found: CredentialFinding[] = []

  /** @param details override what the table says */
  add(id: CredentialFindingId, message: string, details: Partial<CredentialFinding> = {}): void {
    const [severity, mend] = FINDINGS[id]
    const finding = Object.freeze({ id, severity, message: `${message}.`, mend, ...details })
    if (!this.#found.some((other) => other.id === id && other.message === finding.message)) {
      this.#found.push(finding)
    }
  }

  has(...ids: readonly CredentialFindingId[]): boolean {
    return this.#found.some(({ id }) => ids.includes(id))
  }

  get hasError(): boolean {
    return this.#found.some(({ severity }) => severity === ERROR)
  }

  /** The gravest first. */
  get all(): readonly CredentialFinding[] {
    return ORDER.flatMap((one) => this.#found.filter(({ severity }) => severity === one))
  }
}
