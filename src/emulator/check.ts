import { DpsError } from '../errors.ts'

/** A JSON object, which is no list. */
export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** An error of whoever told the emulator what to do. */
export const invalid = (message: string): DpsError => new DpsError('OPTION_INVALID', 'config', message)

/** @throws DpsError OPTION_INVALID unless `value` is an object with no other names: what nobody reads would silently not apply */
export function checkNames(what: string, value: unknown, names: readonly string[]): void {
  const known = names.join(', ')
  if (!isObject(value)) throw invalid(`${what} must be an object with ${known}`)
  const other = Object.keys(value).find((name) => !names.includes(name))
  if (other !== undefined)
    throw invalid(`${what} has no option \`${other.slice(0, 40)}\`; known are ${known}`)
}
