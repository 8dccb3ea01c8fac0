import { createPrivateKey, type KeyObject } from 'node:crypto'
import { unlinkSync } from 'node:fs'
import type { CreateCsrOptions } from '../factory/index.ts'
import { FORCE, OUT } from './derive-key.ts'
import { outOf, writePrivate } from './files.ts'
import { kit } from './kit.ts'
import type { Options } from './options.ts'
import { optionsOf, registrationIdOf, type Verb } from './verb.ts'

type KeyType = Pick<CreateCsrOptions, 'curve' | 'rsaBits'>

const KEY_TYPES: Readonly<Record<string, KeyType>> = {
  p384: { curve: 'P-384' },
  p256: { curve: 'P-256' },
  rsa2048: { rsaBits: 2048 },
  rsa3072: { rsaBits: 3072 },
  rsa4096: { rsaBits: 4096 },
}

export const csr = (): Verb => ({
  about: 'makes a key and a certificate signing request for it',
  help: `Makes a private key and a certificate signing request (PKCS#10) for it, whose CN is the registration id. The key goes into a
new file that only this user may read, and over no file that is there. With --key the request is for a key that exists.

  dps-device csr --registration-id press-42 --key-out press-42.key --out press-42.csr
  dps-device csr --registration-id press-42 --key press-42.key > press-42.csr`,
  options: optionsOf(
    ['key-passphrase-file', 'key-passphrase'],
    [
      registrationIdOf('of the device; becomes the CN'),
      {
        name: 'key-out',
        kind: 'text',
        value: 'FILE',
        help: 'where the new key goes, mode 0600; never replaced',
      },
      {
        name: 'key-type',
        kind: 'text',
        value: 'TYPE',
        help: `of the new key: ${Object.keys(KEY_TYPES).join(', ')}; default p384, which issuance asks for`,
      },
      { name: 'key', kind: 'text', value: 'FILE', help: 'an existing key in place of a new one, PEM or DER' },
      { ...OUT, help: 'of the request, PEM, in place of standard output' },
      FORCE,
    ],
  ),
  run: (options, output) =>
    kit.perform(options, output, async () => {
      const registrationId = kit.text(options, 'registration-id')
      const keyOut = kit.text(options, 'key-out')
      const out = outOf(options, ['key', 'key-out', 'key-passphrase-file'])
      const given = options.get('key')
      if (registrationId === undefined) throw kit.usage('--registration-id is missing: it becomes the CN')
      if (given === undefined && keyOut === undefined) {
        throw kit.usage('give one of --key-out, for a new key, and --key, for one that exists')
      }
      const { createCsr } = await import('../factory/index.ts')
      if (!kit.flag(options, 'quiet')) output.progress('making the key …')
      const made = await createCsr({
        registrationId,
        ...(given === undefined ? keyType(options) : { key: existing(options) }),
      } as CreateCsrOptions)
      output.clear()
      // First: without the key the request is for nothing.
      if (keyOut !== undefined) writePrivate(keyOut, '--key-out', made.key!, false)
      try {
        if (out !== undefined) writePrivate(out, '--out', made.pem, kit.flag(options, 'force'))
      } catch (error) {
        if (keyOut !== undefined) unlinkSync(keyOut)
        throw error
      }
      if (kit.flag(options, 'json')) {
        output.result(JSON.stringify({ registrationId, csr: made.csr, keyFile: keyOut, file: out }))
      } else if (out === undefined) output.result(made.pem.trimEnd())
      return kit.EXIT.ok
    }),
})

function keyType(options: Options): KeyType {
  const type = kit.text(options, 'key-type') ?? 'p384'
  if (!Object.hasOwn(KEY_TYPES, type)) throw kit.unknown(type, Object.keys(KEY_TYPES), ' as --key-type')
  return KEY_TYPES[type]!
}

function existing(options: Options): KeyObject | Buffer {
  const { value, as } = options.get('key')!
  const key = kit.readInput(value as string, as, 'CREDENTIAL_UNREADABLE')
  const passphrase = kit.secretOf(options, 'key-passphrase', 'CREDENTIAL_UNREADABLE')
  if (passphrase === undefined) return key
  try {
    return createPrivateKey({ key, passphrase })
  } catch (cause) {
    throw new kit.DpsError('CREDENTIAL_UNREADABLE', 'config', `${as} could not be decrypted`, {
      cause,
      hint: 'The passphrase is wrong, or the file is no PEM of an encrypted key.',
    })
  }
}
