import { outOf, writePrivate } from './files.ts'
import { kit } from './kit.ts'
import type { OptionSpec } from './options.ts'
import { optionsOf, registrationIdOf, type Verb } from './verb.ts'

export const OUT: OptionSpec = {
  name: 'out',
  kind: 'text',
  value: 'FILE',
  help: 'written with mode 0600 in place of standard output',
}
export const FORCE: OptionSpec = { name: 'force', kind: 'flag', help: 'replaces the file of --out' }

export const deriveKey = (): Verb => ({
  about: 'makes the key of one device from the key of its enrollment group; for the factory',
  help: `Derives the symmetric key of one device from the key of its enrollment group, and prints that key and nothing else.
For the factory line only: whoever has the group key can be every device of the group, so it must never be on a device.

  dps-device derive-key --registration-id press-42 --group-key-file group.key --out press-42.key
  pass show dps/group | dps-device derive-key --registration-id press-42 --group-key-file -

The registration id counts letter by letter, and by case: it must be spelt as the device will spell it.`,
  options: optionsOf(
    [],
    [
      registrationIdOf('of the device whose key it will be'),
      {
        name: 'group-key-file',
        kind: 'text',
        value: 'FILE',
        help: 'holds the key of the enrollment group, base64; - is standard input',
      },
      {
        name: 'group-key',
        kind: 'secret',
        help: 'the group key itself',
        instead: '--group-key-file FILE, where - is standard input',
      },
      OUT,
      FORCE,
    ],
  ),
  run: (options, output) =>
    kit.perform(options, output, async () => {
      const registrationId = kit.text(options, 'registration-id')
      const out = outOf(options, ['group-key-file'])
      const groupKey = kit.secretOf(options, 'group-key', 'SAS_KEY_INVALID')
      if (registrationId === undefined) throw kit.usage('--registration-id is missing: whose key it will be')
      if (groupKey === undefined)
        throw kit.usage('--group-key-file is missing: the key of the enrollment group')
      const { deriveDeviceKey } = await import('../factory/index.ts')
      const key = await deriveDeviceKey({ groupKey, registrationId })
      if (out !== undefined) writePrivate(out, '--out', `${key}\n`, kit.flag(options, 'force'))
      if (kit.flag(options, 'json')) {
        output.result(JSON.stringify({ registrationId, ...(out === undefined ? { key } : { file: out }) }))
      } else if (out === undefined) output.result(key)
      return kit.EXIT.ok
    }),
})
