import { harmlessJson } from '../protocol/response.ts'

/** JSON from outside: any value, without what would poison a merge. Undefined where it is none. */
export function readJson(bytes: Uint8Array): { readonly value: unknown } | undefined {
  try {
    return { value: harmlessJson(bytes) }
  } catch {
    return undefined
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
