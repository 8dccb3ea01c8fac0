import { Console } from 'node:console'
import { Writable } from 'node:stream'
import { format, inspect } from 'node:util'
import { describe, expect, it } from 'vitest'
import { redacting, Secret } from '../../../src/credential/secret.ts'

const value = 'c3VwZXItc2VjcmV0'

function logged(...args: unknown[]): string {
  let text = ''
  const out = new Writable({
    write: (chunk, _, done) => {
      text += chunk
      done()
    },
  })
  const console = new Console(out)
  console.log(...args)
  console.dir(args[0], { showHidden: true, depth: null })
  return text
}

describe('a secret', () => {
  const secret = new Secret(value)
  const holder = {
    secret,
    list: [secret],
    map: new Map([[secret, secret]]),
    deep: { a: { b: { c: { secret } } } },
  }

  it('is revealed on request only', () => {
    expect(secret.reveal()).toBe(value)
  })

  it.each<[string, () => string]>([
    ['String()', () => String(secret)],
    ['a template literal', () => `${secret}`],
    ['concatenation', () => `${secret}`.concat(secret as unknown as string)],
    ['joining', () => [secret].join()],
    ['JSON.stringify', () => JSON.stringify(secret)],
    ['JSON.stringify of a holder', () => JSON.stringify(holder)],
    ['inspect', () => inspect(secret)],
    ['inspect of a holder', () => inspect(holder, { depth: null, showHidden: true, getters: true })],
    ['format', () => format('%s %o %O %j', secret, secret, secret, secret)],
    ['console', () => logged(secret, holder)],
  ])('prints as [redacted] through %s', (_, print) => {
    const text = print()
    expect(text).toContain('[redacted]')
    expect(text).not.toContain(value)
  })

  it('shows nothing where custom printers are ignored', () => {
    expect(inspect(secret, { customInspect: false, showHidden: true, getters: true })).not.toContain(value)
    expect(Object.entries(secret)).toEqual([])
    expect({ ...secret }).toEqual({})
  })

  it('is empty in a structured clone', () => {
    const clone = structuredClone(secret)
    expect(Object.getOwnPropertyNames(clone)).toEqual([])
    expect((clone as Partial<Secret<string>>).reveal).toBeUndefined()
  })
})

describe('a redacting object', () => {
  const options = redacting<{ cert: string; key?: string; passphrase?: string }>(
    { cert: 'public', key: value },
    ['key', 'passphrase'],
  )

  it('can be read and spread', () => {
    expect(options.key).toBe(value)
    expect({ ...options }).toEqual({ cert: 'public', key: value })
    expect('passphrase' in options).toBe(false)
  })

  it('prints what is public and hides what is not', () => {
    for (const text of [
      JSON.stringify({ options }),
      inspect({ options }),
      format('%o %j', options, options),
    ]) {
      expect(text).toContain('public')
      expect(text).toContain('[redacted]')
      expect(text).not.toContain(value)
    }
    expect(logged(options)).not.toContain(value)
    expect(`${options}`).not.toContain(value)
    expect(inspect(options, { customInspect: false, showHidden: true })).not.toContain(value)
  })
})
