import { DpsError } from '../errors.ts'

/** Longest registration id the service accepts, in characters. */
export const MAX_REGISTRATION_ID_LENGTH = 128

const FOREIGN_CHARACTER = /[^A-Za-z0-9\-._:]/u

/**
 * What is wrong with a registration id, as the end of a sentence that starts with its name; undefined if nothing is.
 *
 * Up to 128 characters, of ASCII letters, digits and `-` `.` `_` `:`; the last one a letter, a digit or `-`.
 * https://learn.microsoft.com/azure/iot-dps/concepts-service#registration-id
 */
export function registrationIdFault(value: string): string | undefined {
  if (value === '') return 'is empty'
  const foreign = FOREIGN_CHARACTER.exec(value)
  if (foreign !== null) {
    return `contains ${named(foreign[0])} at position ${foreign.index + 1}; allowed are letters, digits and - . _ :`
  }
  if (value.length > MAX_REGISTRATION_ID_LENGTH) {
    return `has ${value.length} characters; at most ${MAX_REGISTRATION_ID_LENGTH} are allowed`
  }
  const last = value.slice(-1)
  if ('._:'.includes(last))
    return `ends with ${named(last)}; the last character must be a letter, a digit or -`
  return undefined
}

/**
 * Returns a valid registration id unchanged.
 *
 * @throws DpsError OPTION_INVALID, phase `config`, quoting the offending character
 */
export function checkRegistrationId(value: unknown): string {
  if (typeof value !== 'string') {
    throw new DpsError(
      'OPTION_INVALID',
      'config',
      `\`registrationId\` must be a string, not ${typeof value}.`,
    )
  }
  const fault = registrationIdFault(value)
  if (fault !== undefined) throw new DpsError('OPTION_INVALID', 'config', `\`registrationId\` ${fault}.`)
  return value
}

/** Whether the service would take the two for the same registration: it ignores the case of ASCII letters. */
export function sameRegistrationId(a: string, b: string): boolean {
  return a === b || foldCase(a) === foldCase(b)
}

// Not `toLowerCase` on the whole: that also maps the Kelvin sign to `k` and so would match what the service does not.
function foldCase(value: string): string {
  return value.replace(/[A-Z]/g, (letter) => letter.toLowerCase())
}

// Control and invisible characters are what a person cannot find by looking at the message.
function named(character: string): string {
  const point = character.codePointAt(0)!
  const visible = point > 0x20 && point < 0x7f
  return visible ? `"${character}"` : `U+${point.toString(16).toUpperCase().padStart(4, '0')}`
}
