import { createPublicKey, type KeyObject } from 'node:crypto'
import { format, inspect } from 'node:util'
import { afterEach, beforeEach, vi } from 'vitest'
import { DpsError } from '../../src/index.ts'

/** Shortest piece of a secret that counts as having got out, characters. */
const PIECE = 12
/** The same for bytes written with something between them: so few characters could be a coincidence. */
const SPACED_PIECE = 36
const SPACED_BYTES = /^[\da-f]+[, ][\da-f, ]+$/

/** What must not be found, by name. */
type Secrets = ReadonlyMap<string, string>

/** Everything that was said since the test began, by whom. */
export const said: { readonly by: string; readonly text: string }[] = []

/**
 * An object in every way that it may be printed.
 *
 * @param isPlain for what has its secrets in plain properties: what ignores how an object wants to be printed has them
 */
export function say(by: string, value: unknown, isPlain = false): void {
  const ways: Record<string, () => unknown> = {
    inspect: () => inspect(value, { depth: Number.POSITIVE_INFINITY, showHidden: true }),
    JSON: () => JSON.stringify(value),
    text: () => String(value),
    'a format': () => format('%s %o %O %j', value, value, value, value),
    'an error that has it': () => inspect(Object.assign(new Error('x'), { value }), { depth: 9 }),
  }
  const bare = { depth: Number.POSITIVE_INFINITY, showHidden: true, customInspect: false }
  if (!isPlain) ways['inspect without custom printers'] = () => inspect(value, bare)
  for (const [way, print] of Object.entries(ways)) {
    said.push({ by: `${by}, ${way}`, text: String(print()) })
  }
  if (value instanceof Error) {
    said.push({ by: `${by}, stack`, text: `${value.message}\n${value.stack}` })
    if (value.cause !== undefined) say(`cause of ${by}`, value.cause)
  }
  if (DpsError.is(value)) said.push({ by: `${by}, hint`, text: value.hint })
}

/** Where pieces of secrets were found; the pieces are not repeated. What is in `published` is no secret. */
export function found(secrets: Secrets, published = ''): string[] {
  return [...secrets].flatMap(([name, secret]) => {
    const length = SPACED_BYTES.test(secret) ? SPACED_PIECE : PIECE
    const pieces = Array.from({ length: Math.max(1, secret.length - length + 1) }, (_, i) =>
      secret.slice(i, i + length),
    ).filter((piece) => !published.includes(piece))
    return said
      .filter(({ text }) => pieces.some((piece) => text.includes(piece)))
      .map(({ by }) => `${name} in ${by}`)
  })
}

export function spellings(name: string, bytes: Buffer): readonly (readonly [string, string])[] {
  return [
    [`${name}, base64`, bytes.toString('base64').replace(/=+$/, '')],
    [`${name}, base64url`, bytes.toString('base64url')],
    [`${name}, hex`, bytes.toString('hex')],
    [`${name}, HEX`, bytes.toString('hex').toUpperCase()],
    [`${name}, percent-encoded`, encodeURIComponent(bytes.toString('base64'))],
    [`${name}, bytes`, bytes.toString('latin1')],
    [`${name}, list of numbers`, [...bytes].join(',')],
    [`${name}, list of numbers with blanks`, [...bytes].join(', ')],
    // As `inspect` prints a Buffer.
    [`${name}, hex with blanks`, [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(' ')],
  ]
}

export const linesOf = (name: string, pem: string): readonly (readonly [string, string])[] =>
  pem
    .split('\n')
    // The first line tells the algorithm only, and the last may be a few characters long.
    .filter((line, i) => i > 1 && line.length > PIECE && !line.startsWith('-'))
    .map((line, i) => [`${name}, line ${i + 2}`, line])

export function secretsOfKey(key: KeyObject): readonly (readonly [string, string])[] {
  const { d = '' } = key.export({ format: 'jwk' })
  return [
    ...spellings('the private number', Buffer.from(d, 'base64url')),
    ...linesOf('the key as PKCS#8', key.export({ type: 'pkcs8', format: 'pem' }) as string),
    ...linesOf('the key as SEC1', key.export({ type: 'sec1', format: 'pem' } as never) as string),
  ]
}

/** The public key stands in the same lines as the private one, in any of the three ways that base64 may be cut. */
export function publicPartOf(key: string | KeyObject): string {
  const spki = createPublicKey(key).export({ type: 'spki', format: 'der' })
  return [0, 1, 2].map((start) => spki.subarray(start).toString('base64')).join('')
}

/** For all tests of a file: keeps what they say on their own, to the console, a stream or as a warning. */
export function listen(): void {
  const write = { stdout: process.stdout.write, stderr: process.stderr.write }
  const onWarning = (warning: Error) => say('a warning', warning)
  beforeEach(() => {
    said.length = 0
    for (const stream of ['stdout', 'stderr'] as const) {
      process[stream].write = ((text: string | Uint8Array) => {
        said.push({ by: stream, text: String(text) })
        return true
      }) as typeof process.stdout.write
    }
    for (const method of ['debug', 'error', 'info', 'log', 'warn'] as const) {
      vi.spyOn(console, method).mockImplementation((...values: unknown[]) => {
        said.push({ by: `console.${method}`, text: format(...values) })
      })
    }
    process.on('warning', onWarning)
  })
  afterEach(() => {
    process.stdout.write = write.stdout
    process.stderr.write = write.stderr
    process.off('warning', onWarning)
    vi.restoreAllMocks()
  })
}
