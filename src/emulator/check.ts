import { DpsError } from '../errors.ts'

export const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** @throws DpsError OPTION_INVALID unless `value` is an object with no other names: what nobody reads would silently not apply */
export function checkNames(what: string, value: unknown, names: readonly string[]): void {
  const known = names.join(', ')
  if (!isObject(value)) throw invalid(`${what} must be an object with ${known}`)
  const other = Object.keys(value).find((name) => !names.includes(name))
  if (other !== undefined)
    throw invalid(`${what} has no option \`${other.slice(0, 40)}\`; known are ${known}`)
}

const invalid = (message: string): DpsError => new DpsError('OPTION_INVALID', 'config', message)
