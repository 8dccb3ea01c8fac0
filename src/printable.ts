/**
 * Text from the network or from a certificate, made safe for a message or a terminal: control, format and bidirectional
 * characters become `?`, and anything longer than `max` characters is cut.
 */
export function printable(text: string, max = 200): string {
  const clean = text.slice(0, max + 1).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, '?')
  return clean.length > max ? `${clean.slice(0, max)}…` : clean
}
