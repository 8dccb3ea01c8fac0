/**
 * Text from the network or from a certificate, made safe for a message or a terminal: control, format and bidirectional
 * characters become `?`, and anything longer than `max` characters is cut.
 */
export function printable(text: string, max = 200): string {
  const cut = text.slice(0, max + 1)
  const clean = /^[ -~]*$/.test(cut) ? cut : cut.replace(hidden(), '?')
  return clean.length > max ? `${clean.slice(0, max)}…` : clean
}

/** Made where it is needed: collecting the characters of these categories takes five million instructions. */
// biome-ignore lint/complexity/useRegexLiterals: a literal is checked, categories and all, whenever this file is read.
const hidden = (): RegExp => new RegExp('[\\p{C}\\p{Zl}\\p{Zp}]', 'gu')
