import { createHash } from 'node:crypto'

/**
 * A stored record as bytes: one line that says what it is, in which version, and the SHA-256 of what follows; then one line of
 * JSON. Every byte of it matters, so a record that is cut short or damaged anywhere is none.
 */
export function seal(format: string, version: number, body: string): Uint8Array {
  return Buffer.from(`${headOf(format, version, body)}\n${body}\n`)
}

export type Unsealed =
  | { readonly ok: true; readonly body: Uint8Array }
  | {
      readonly ok: false
      readonly reason: 'damaged' | 'newer'
      /** The end of a sentence that begins with "the stored record". */
      readonly why: string
    }

/** The JSON of a record of this format, up to this version. Never throws, whatever the bytes are. */
export function unseal(format: string, newest: number, bytes: Uint8Array): Unsealed {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const lineEnd = text.indexOf(0x0a)
  const head = text.subarray(0, Math.max(lineEnd, 0)).toString('latin1')
  const version = new RegExp(`^${format} ([1-9][0-9]{0,8}) sha256:[0-9a-f]{64}$`).exec(head)?.[1]
  if (version === undefined) return damaged(bytes.length === 0 ? 'is empty' : 'does not begin as one')
  if (text.at(-1) !== 0x0a) return damaged('is cut short')
  const body = text.subarray(lineEnd + 1, -1)
  if (head !== headOf(format, version, body)) return damaged('does not fit its checksum')
  if (Number(version) <= newest) return { ok: true, body }
  const why = `has the format ${version}; this version of the package reads up to ${newest}`
  return { ok: false, reason: 'newer', why }
}

export function damaged(why: string) {
  return { ok: false, reason: 'damaged', why } as const
}

function headOf(format: string, version: number | string, body: string | Uint8Array): string {
  // The version is part of what is summed: one that was damaged into another is not taken for it.
  const sum = createHash('sha256').update(`${format} ${version}\n`).update(body).digest('hex')
  return `${format} ${version} sha256:${sum}`
}
