const UTF8 = new TextDecoder('utf-8', { fatal: true })

/**
 * JSON from outside: any value, in UTF-8, without `__proto__`, which would poison the first merge that it meets in the
 * application. Undefined where it is none.
 */
export function readJson(bytes: Uint8Array): { readonly value: unknown } | undefined {
  try {
    const json = UTF8.decode(bytes)
    const value = /__proto__|\\u/.test(json) ? JSON.parse(json, withoutProto) : JSON.parse(json)
    return { value }
  } catch {
    return undefined
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function withoutProto(key: string, value: unknown): unknown {
  return key === '__proto__' ? undefined : value
}
