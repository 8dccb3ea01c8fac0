import { createHmac } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type SasSignerOptions, sasSigner, symmetricKey } from '../../../src/credential/sas.ts'

const keyA = Buffer.alloc(32, 0xa7).toString('base64')
const keyB = Buffer.alloc(64, 0xb9).toString('base64')

const refused = (code: string) => expect.objectContaining({ code, phase: 'config' })

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sas-'))
})
afterAll(() => rm(folder, { recursive: true }))

describe('symmetricKey', () => {
  it('gives the same frozen identity while the key stays the same', async () => {
    const credential = symmetricKey({ registrationId: 'Dev-1', key: () => keyA })
    const identity = await credential.load()
    expect(await credential.load()).toBe(identity)
    expect(Object.isFrozen(identity)).toBe(true)
    expect(identity).toMatchObject({
      registrationId: 'Dev-1',
      fingerprint: expect.stringMatching(/^[0-9a-f]{64}$/),
    })
    expect(identity.tls).toBeUndefined()
    expect(() => identity.checkDates(0)).not.toThrow()
  })

  it('asks again on every load, so a rotated key needs no restart', async () => {
    let key = keyA
    const credential = symmetricKey({ registrationId: 'd', key: async () => key })
    const before = await credential.load()
    key = keyB
    const after = await credential.load()
    expect(after.fingerprint).not.toBe(before.fingerprint)
    expect(await after.token('r', 1)).not.toBe(await before.token('r', 1))
    expect(await after.token('r', 1)).toBe(
      await (await symmetricKey({ registrationId: 'd', key: keyB }).load()).token('r', 1),
    )
  })

  it('has a fingerprint for each id and key, the same in every process', async () => {
    const fingerprintOf = async (registrationId: string, key: string) =>
      (await symmetricKey({ registrationId, key }).load()).fingerprint
    expect(await fingerprintOf('d', keyA)).toBe(await fingerprintOf('d', keyA))
    const all = await Promise.all([
      fingerprintOf('d', keyA),
      fingerprintOf('e', keyA),
      fingerprintOf('d', keyB),
    ])
    expect(new Set(all).size).toBe(3)
  })

  it('reads a file anew on every load and takes the line break at its end', async () => {
    const keyFile = join(folder, 'key')
    await writeFile(keyFile, `${keyA}\n`)
    const credential = symmetricKey({ registrationId: 'd', keyFile })
    const before = await credential.load()
    await writeFile(keyFile, `${keyB}\r\n`)
    expect((await credential.load()).fingerprint).not.toBe(before.fingerprint)
    await writeFile(keyFile, ` ${keyB}\n`)
    await expect(credential.load()).rejects.toThrow(refused('SAS_KEY_INVALID'))
    await writeFile(keyFile, `${keyB}\n\n`)
    await expect(credential.load()).rejects.toThrow(refused('SAS_KEY_INVALID'))
  })

  it('says that a key file does not exist', async () => {
    const load = symmetricKey({ registrationId: 'd', keyFile: join(folder, 'absent') }).load()
    await expect(load).rejects.toThrow(refused('CREDENTIAL_UNREADABLE'))
    await expect(load).rejects.toThrow('`keyFile`')
    await expect(load).rejects.toThrow('does not exist')
  })

  it('keeps the cause when the function that gives the key fails', async () => {
    const cause = new Error('vault is sealed')
    const load = symmetricKey({ registrationId: 'd', key: () => Promise.reject(cause) }).load()
    await expect(load).rejects.toMatchObject({ code: 'CREDENTIAL_UNREADABLE', phase: 'config', cause })
  })

  it('refuses a damaged key when it is loaded', async () => {
    const credential = symmetricKey({ registrationId: 'd', key: `${keyA} ` })
    await expect(credential.load()).rejects.toThrow(refused('SAS_KEY_INVALID'))
  })

  it('never prints its key', async () => {
    const credential = symmetricKey({ registrationId: 'd', key: keyA })
    const identity = await credential.load()
    for (const it of [credential, identity, { credential, identity }]) {
      for (const text of [
        inspect(it, { depth: null, showHidden: true, getters: true }),
        inspect(it, { depth: null, showHidden: true, customInspect: false }),
        JSON.stringify(it),
        String(it),
      ]) {
        expect(text).not.toContain(keyA.slice(0, 12))
        expect(text).not.toContain('a7a7')
        expect(text).not.toContain('a7 a7')
      }
    }
  })

  it.each<[string, object, string]>([
    ['no key', { registrationId: 'd' }, 'exactly one of `key` or `keyFile`; none'],
    ['two keys', { registrationId: 'd', key: keyA, keyFile: 'x' }, '`key` and `keyFile` were given'],
    ['an option that nothing reads', { registrationId: 'd', key: keyA, keyfile: 'x' }, 'no option `keyfile`'],
    ['an invalid id', { registrationId: 'd d', key: keyA }, '`registrationId`'],
    ['no id', { key: keyA }, '`registrationId`'],
    ['a path that is none', { registrationId: 'd', keyFile: 5 }, '`keyFile` must be a path'],
  ])('refuses %s when it is made', (_, options, message) => {
    const make = () => symmetricKey(options as never)
    expect(make).toThrow(refused('OPTION_INVALID'))
    expect(make).toThrow(message)
  })
})

describe('sasSigner', () => {
  const hmac = (text: string) => createHmac('sha256', Buffer.from(keyA, 'base64')).update(text).digest()

  it.each<[string, SasSignerOptions['sign']]>([
    ['base64', (text) => hmac(text).toString('base64')],
    ['a promise of base64', async (text) => hmac(text).toString('base64')],
    ['bytes', (text) => new Uint8Array(hmac(text))],
    ['a promise of bytes', async (text) => hmac(text)],
  ])('makes the token of the same key from %s', async (_, sign) => {
    const signed = await sasSigner({ registrationId: 'd', sign }).load()
    const own = await symmetricKey({ registrationId: 'd', key: keyA }).load()
    expect(await signed.token('a%2Fb', 1700003600, 'registration')).toBe(
      await own.token('a%2Fb', 1700003600, 'registration'),
    )
  })

  it('signs for tokens only, and gives the same identity', async () => {
    const asked: string[] = []
    const credential = sasSigner({
      registrationId: 'd',
      sign: (text) => {
        asked.push(text)
        return hmac(text)
      },
    })
    const identity = await credential.load()
    expect(await credential.load()).toBe(identity)
    expect(asked).toEqual([])
    await identity.token('r', 9)
    expect(asked).toEqual(['r\n9'])
  })

  it('tells keys apart by keyId', async () => {
    const fingerprintOf = async (options: object) =>
      (await sasSigner({ registrationId: 'd', sign: hmac, ...options }).load()).fingerprint
    const all = await Promise.all([{}, { keyId: '' }, { keyId: '1' }, { keyId: '2' }].map(fingerprintOf))
    expect(new Set(all).size).toBe(4)
    expect(await fingerprintOf({ keyId: '1' })).toBe(all[2])
  })

  it('does not confuse an id with the beginning of an id and a keyId', async () => {
    const one = await sasSigner({ registrationId: 'as1', sign: hmac }).load()
    const two = await sasSigner({ registrationId: 'a', keyId: '1', sign: hmac }).load()
    expect(two.fingerprint).not.toBe(one.fingerprint)
  })

  it.each<[string, unknown, string]>([
    ['nothing', undefined, 'returned undefined'],
    ['null', null, 'returned null'],
    ['a number', 7, 'returned number'],
    ['hexadecimal', hmac('x').toString('hex'), '48 bytes'],
    ['an HMAC-SHA1', Buffer.alloc(20), '20 bytes; an HMAC-SHA256 has 32'],
    ['an HMAC-SHA512 in base64', Buffer.alloc(64).toString('base64'), '64 bytes'],
    ['base64 with a line break', `${hmac('x').toString('base64')}\n`, 'line break'],
    ['a percent-encoded signature', encodeURIComponent(hmac('x').toString('base64')), 'percent-encoded'],
    ['an empty string', '', '0 bytes'],
  ])('refuses a signer that returns %s', async (_, answer, message) => {
    const identity = await sasSigner({ registrationId: 'd', sign: () => answer as string }).load()
    const token = identity.token('r', 1)
    await expect(token).rejects.toThrow(refused('SIGNER_FAILED'))
    await expect(token).rejects.toThrow(message)
  })

  it.each<[string, () => never | Promise<never>]>([
    [
      'throws',
      () => {
        throw new RangeError('slot 3 is empty')
      },
    ],
    ['rejects', () => Promise.reject(new RangeError('slot 3 is empty'))],
  ])('keeps the cause of a signer that %s', async (_, sign) => {
    const identity = await sasSigner({ registrationId: 'd', sign }).load()
    await expect(identity.token('r', 1)).rejects.toMatchObject({
      code: 'SIGNER_FAILED',
      phase: 'config',
      retryable: true,
      cause: expect.any(RangeError),
    })
  })

  it.each<[string, object]>([
    ['no function', { registrationId: 'd' }],
    ['a key in place of a function', { registrationId: 'd', sign: keyA }],
    ['an invalid id', { registrationId: '', sign: hmac }],
    ['a keyId that is no string', { registrationId: 'd', sign: hmac, keyId: 3 }],
    ['an option that nothing reads', { registrationId: 'd', sign: hmac, key: keyA }],
  ])('refuses %s when it is made', (_, options) => {
    expect(() => sasSigner(options as never)).toThrow(refused('OPTION_INVALID'))
  })
})
