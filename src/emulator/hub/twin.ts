// A device twin as the hub keeps it, and its rules. No sockets.
// https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-device-twins#device-twin-size

import { isObject } from '../check.ts'

/** Properties of one side, `$version` apart. */
export type TwinProperties = Readonly<Record<string, unknown>>

export interface TwinSide {
  readonly properties: TwinProperties
  /** Counts from 1; every change adds 1. */
  readonly version: number
}

export interface TwinDocument {
  readonly desired: TwinSide
  readonly reported: TwinSide
}

const LARGEST_SIDE = 32_768
const LARGEST_TEXT = 4096
const LONGEST_NAME = 1024
const DEEPEST = 10
// Control characters, `.`, `$` and space.
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what may not be in a name
const NOT_IN_A_NAME = /[\u0000-\u001f\u0080-\u009f.$ ]/

export type PatchResult =
  | { readonly ok: true; readonly properties: TwinProperties }
  | { readonly ok: false; readonly status: 400 | 413; readonly rule: string }

/** The properties after a patch, `null` having removed what it names. */
export function patched(properties: TwinProperties, patch: unknown): PatchResult {
  if (!isObject(patch)) return { ok: false, status: 400, rule: 'Properties are a JSON object.' }
  const broken = brokenRule(patch, 1)
  if (broken !== undefined) return { ok: false, status: 400, rule: broken }
  const merged = merge(properties, patch)
  return Buffer.byteLength(JSON.stringify(merged)) > LARGEST_SIDE
    ? { ok: false, status: 413, rule: `Properties are at most ${LARGEST_SIDE} bytes.` }
    : { ok: true, properties: merged }
}

/** The document as the device reads it. */
export function deviceView({ desired, reported }: TwinDocument): Record<string, unknown> {
  const side = ({ properties, version }: TwinSide) => ({ ...properties, $version: version })
  return { desired: side(desired), reported: side(reported) }
}

function merge(properties: TwinProperties, patch: TwinProperties): TwinProperties {
  const merged = new Map(Object.entries(properties))
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name)
    else if (isObject(value)) {
      const before = merged.get(name)
      merged.set(name, merge(isObject(before) ? before : {}, value))
    } else merged.set(name, value)
  }
  return Object.fromEntries(merged)
}

function brokenRule(value: unknown, depth: number): string | undefined {
  if (typeof value === 'string' && Buffer.byteLength(value) > LARGEST_TEXT) {
    return `A text is at most ${LARGEST_TEXT} bytes.`
  }
  if (Array.isArray(value)) return firstBroken(value, depth)
  if (!isObject(value)) return undefined
  if (depth > DEEPEST) return `Properties are at most ${DEEPEST} deep.`
  for (const name of Object.keys(value)) {
    if (name.length > LONGEST_NAME) return `A name is at most ${LONGEST_NAME} characters.`
    if (name === '' || NOT_IN_A_NAME.test(name)) {
      return 'A name has no control character, space, `.` or `$`.'
    }
  }
  return firstBroken(Object.values(value), depth)
}

function firstBroken(values: readonly unknown[], depth: number): string | undefined {
  for (const value of values) {
    const broken = brokenRule(value, depth + 1)
    if (broken !== undefined) return broken
  }
  return undefined
}
