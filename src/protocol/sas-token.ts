/**
 * Shared access signatures, as text. The signature itself is made elsewhere, so that the key can stay in hardware.
 *
 * https://learn.microsoft.com/azure/iot-dps/how-to-control-access#security-tokens
 */

/** What a token is made of. */
export interface SasTokenParts {
  /** Percent-encoded resource, byte for byte as it was signed. */
  readonly resource: string
  /** HMAC-SHA256 of `stringToSign`, base64. */
  readonly signature: string
  /** Unix seconds. */
  readonly expiresAt: number
  /** The shared access policy, `skn`; `registration` for DPS devices. It is not part of what is signed. */
  readonly keyName?: string | undefined
}

/**
 * What the key signs: the resource exactly as the token shows it, a line feed, the expiry in Unix seconds. The service
 * verifies against the text it received, so encoding and case must be those of the token.
 */
export function stringToSign(resource: string, expiresAt: number): string {
  return `${resource}\n${expiresAt}`
}

/** `SharedAccessSignature sr=…&sig=…&se=…[&skn=…]`. */
export function formatToken({ resource, signature, expiresAt, keyName }: SasTokenParts): string {
  const policy = keyName === undefined ? '' : `&skn=${encodeURIComponent(keyName)}`
  return `SharedAccessSignature sr=${resource}&sig=${encodeURIComponent(signature)}&se=${expiresAt}${policy}`
}

/** The resource of one registration, percent-encoded: `<idScope>%2Fregistrations%2F<registrationId>`. */
export function registrationResource(idScope: string, registrationId: string): string {
  return encodeURIComponent(`${idScope}/registrations/${registrationId}`)
}
