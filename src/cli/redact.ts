const MIN_SECRET = 6

/** Puts `[redacted]` in the place of each secret, however it is written, in a text or in all texts of plain data. */
export function redactor(secrets: readonly (string | Buffer)[]): <T>(value: T) => T {
  const written = [...new Set(secrets.flatMap(writings))]
    .filter((text) => text.length >= MIN_SECRET)
    .sort((a, b) => b.length - a.length)
  const hide = (value: unknown): unknown => {
    if (typeof value === 'string')
      return written.reduce((text, one) => text.replaceAll(one, '[redacted]'), value)
    if (Array.isArray(value)) return value.map(hide)
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, hide(one)]))
  }
  return (value) => hide(value) as typeof value
}

function writings(secret: string | Buffer): readonly string[] {
  const bytes = Buffer.from(secret as string)
  const text = bytes.toString('utf8').trim()
  // A key is recognised by any of its lines, but for those that every key has.
  if (text.includes('-----BEGIN'))
    return text.split(/\r?\n/).filter((line) => !line.startsWith('-----') && line.length > 16)
  const decoded = Buffer.from(text, 'base64')
  return [
    text,
    encodeURIComponent(text),
    bytes.toString('base64'),
    bytes.toString('hex'),
    decoded.toString('hex'),
    decoded.toString('base64'),
    decoded.toString('base64url'),
  ]
}
