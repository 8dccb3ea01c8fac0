// Writes src/tls/bundled-roots.ts from roots/*.pem; with --check only compares the two, exit code 1 when they differ.
import { createHash, X509Certificate } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'

/** The fingerprints are written down here too: a swapped file must not pass by regenerating. */
const ROOTS = [
  {
    file: 'digicert-global-root-g2.pem',
    sha256: 'CB3CCBB76031E5E0138F8DD39A23F9DE47FFC35E43C1144CEA27D46A5AB1CB5F',
  },
  {
    file: 'microsoft-rsa-root-ca-2017.pem',
    sha256: 'C741F70F4B2A8D88BF2E71C14122EF53EF10EBA0CFA5E64CFA20F418853073E0',
  },
]

const target = new URL('../src/tls/bundled-roots.ts', import.meta.url)

function entry({ file, sha256 }) {
  const certificate = new X509Certificate(readFileSync(new URL(`../roots/${file}`, import.meta.url)))
  if (certificate.fingerprint256.replaceAll(':', '') !== sha256) {
    throw new Error(`roots/${file} has SHA-256 ${certificate.fingerprint256}, which is not the pinned one`)
  }
  if (
    !certificate.ca ||
    !certificate.checkIssued(certificate) ||
    !certificate.verify(certificate.publicKey)
  ) {
    throw new Error(`roots/${file} is not a self-signed CA certificate`)
  }
  const spki = certificate.publicKey.export({ type: 'spki', format: 'der' })
  const name = certificate.subject.split('\n').find((line) => line.startsWith('CN='))
  return `  {
    name: '${name.slice(3)}',
    file: '${file}',
    sha256: '${sha256}',
    spkiSha256: '${createHash('sha256').update(spki).digest('base64')}',
    validFrom: '${new Date(certificate.validFrom).toISOString()}',
    validTo: '${new Date(certificate.validTo).toISOString()}',
    pem: \`${certificate.toString()}\`,
  },
`
}

const text = `// Generated from roots/*.pem by scripts/embed-roots.mjs. Do not edit.
export const bundledRoots = [
${ROOTS.map(entry).join('')}] as const
`

if (process.argv.includes('--check')) {
  if (readFileSync(target, 'utf8') !== text) {
    console.error('src/tls/bundled-roots.ts differs from roots/*.pem: run `node scripts/embed-roots.mjs`')
    process.exitCode = 1
  }
} else {
  writeFileSync(target, text)
}
