import { DpsError } from '../errors.ts'

/** Fewest and most bytes a symmetric key of the service decodes to. */
export const SAS_KEY_BYTES = { min: 16, max: 64 } as const

/**
 * Decodes canonical base64 (RFC 4648 section 4): standard alphabet, full padding, unused bits zero, nothing else.
 * Node's own decoder skips what it does not know, and so turns a damaged key into a different key.
 *
 * @returns the bytes, or what is wrong as the end of a sentence, which never quotes the text
 */
export function decodeBase64(text: string): Buffer | string {
  const foreign = /[^A-Za-z0-9+/=]/.exec(text)
  if (foreign !== null) {
    const character = foreign[0]
    const at = `at position ${foreign.index + 1} of ${text.length}`
    if (/\s/.test(character)) return `contains whitespace or a line break ${at}`
    if (/["'`\u2018-\u201d]/.test(character)) return `contains a quote mark ${at}`
    if (character === '-' || character === '_')
      return `contains - or _ ${at}: it is in the URL-safe alphabet, not base64`
    if (character === '%') return `contains % ${at}: it is percent-encoded`
    return `contains a character ${at} that is not base64`
  }
  const unpadded = text.replace(/={1,2}$/, '')
  if (unpadded.includes('=')) return 'has = where it is not padding'
  if (unpadded.length % 4 === 1) return 'is cut off or has a character too many'
  if (text.length % 4 !== 0)
    return 'has the wrong padding: its length, with = at the end, must be a multiple of 4'
  const bytes = Buffer.from(text, 'base64')
  if (bytes.toString('base64') !== text)
    return 'is not canonical: its last characters were cut off or altered'
  return bytes
}

/**
 * Returns a symmetric key unchanged once it is sure to be one: canonical base64 of 16 to 64 bytes.
 *
 * @param whose as the message begins: in the command it has other names than in the library
 * @throws DpsError SAS_KEY_INVALID, phase `config`; the message says what is wrong and never contains the key
 */
export function checkSasKey(key: unknown, whose: 'symmetric' | 'group'): string {
  const fault = sasKeyFault(key)
  if (fault !== undefined) throw new DpsError('SAS_KEY_INVALID', 'config', `The ${whose} key ${fault}.`)
  return key as string
}

function sasKeyFault(key: unknown): string | undefined {
  if (typeof key !== 'string') return `must be a base64 string, not ${key === null ? 'null' : typeof key}`
  if (key === '') return 'is empty'
  if (/SharedAccessKey=|HostName=/i.test(key)) {
    return 'is a connection string: give only what follows `SharedAccessKey=`'
  }
  if (/^SharedAccessSignature\s/i.test(key)) return 'is a SAS token: give the key that signs tokens'
  if (key.includes('-----BEGIN ')) return 'is PEM text: use `x509` for certificates'
  // Hexadecimal of 12 bytes or more would otherwise pass for base64 of a different key.
  if (/^(?:[0-9a-f]{4}){6,}$|^(?:[0-9A-F]{4}){6,}$/.test(key) && /\d/.test(key) && /[a-f]/i.test(key)) {
    return 'is hexadecimal: give it in base64'
  }
  const decoded = decodeBase64(key)
  if (typeof decoded === 'string') return decoded
  const { min, max } = SAS_KEY_BYTES
  if (decoded.length < min || decoded.length > max) {
    return `decodes to ${decoded.length} bytes; it must be ${min} to ${max}`
  }
  return undefined
}
