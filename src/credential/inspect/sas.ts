import { systemClock } from '../../clock.ts'
import { DpsError } from '../../errors.ts'
import { checkSasKey, decodeBase64 } from '../base64.ts'
import type { Identity } from '../credential.ts'
import type { CredentialFindingId } from '../inspection.ts'
import type { SymmetricKeyOptions } from '../sas.ts'
import { fromFile, fromValue } from '../source.ts'
import type { Findings } from './findings.ts'
import { said } from './x509.ts'

/** Looks at a symmetric key; a group's key cannot be told from a device's. */
export async function inspectKey(options: SymmetricKeyOptions, findings: Findings): Promise<void> {
  const field = options.keyFile === undefined ? 'key' : 'keyFile'
  let key: unknown
  try {
    key =
      options.keyFile === undefined
        ? await fromValue(options.key, field)()
        : (await fromFile(options.keyFile, field)()).toString('utf8').replace(/\r?\n$/, '')
  } catch (error) {
    findings.add('source-unreadable', said(error, `\`${field}\` could not be read`))
    return
  }
  try {
    checkSasKey(key, 'symmetric')
  } catch (error) {
    findings.add(faultOf(key), said(error, `\`${field}\` is no symmetric key`))
  }
}

function faultOf(key: unknown): CredentialFindingId {
  if (typeof key !== 'string') return 'source-unreadable'
  if (key === '') return 'input-empty'
  if (/SharedAccessKey=|HostName=/i.test(key)) return 'sas-key-connection-string'
  if (/^SharedAccessSignature\s/i.test(key)) return 'sas-key-token'
  if (key.includes('-----BEGIN ')) return 'sas-key-pem'
  if (/\s/.test(key)) return 'sas-key-whitespace'
  if (/^[0-9a-f]{24,}$/i.test(key)) return 'sas-key-hexadecimal'
  return typeof decodeBase64(key) === 'string' ? 'sas-key-not-base64' : 'sas-key-length'
}

/** More than a chip or a service takes for one signature. */
const SIGNATURE_LIMIT_MS = 10_000

/** A token that ended before there was a service authorises nothing, wherever the signature may go. */
const RESOURCE = 'inspection'
const LONG_AGO = 0

export async function inspectSigner(identity: Identity, findings: Findings): Promise<void> {
  let disarm: (() => void) | undefined
  const limit = new Promise<'late'>((resolve) => {
    disarm = systemClock.after(SIGNATURE_LIMIT_MS, () => resolve('late'))
  })
  try {
    const token = identity.token(RESOURCE, LONG_AGO)
    if ((await Promise.race([token, limit])) === 'late') {
      findings.add('signer-failed', `\`sign\` gave no signature within ${SIGNATURE_LIMIT_MS} ms`)
    }
  } catch (error) {
    // What the function threw is the cause; what it returned has none, and is not repeated.
    const failed = !DpsError.is(error) || 'cause' in error
    findings.add(failed ? 'signer-failed' : 'signature-malformed', said(error, '`sign` failed'))
  } finally {
    disarm?.()
  }
}
