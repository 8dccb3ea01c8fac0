import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { environmentName, fileName, REGISTER_OPTIONS, resolveOptions } from '../../../src/cli/options.ts'
import { DpsError } from '../../../src/errors.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

type Environment = Readonly<Record<string, string>>

function resolve(args: readonly string[], environment: Environment = {}, file?: unknown) {
  const text = typeof file === 'string' ? file : JSON.stringify(file)
  const given = resolveOptions(REGISTER_OPTIONS, args, environment, () => text)
  return Object.fromEntries([...given].map(([name, { value }]) => [name, value]))
}

async function refused(
  args: readonly string[],
  environment: Environment = {},
  file?: unknown,
): Promise<string> {
  const error = await expectDpsError(() => resolve(args, environment, file), 'OPTION_INVALID', 'config')
  return `${error.message} | ${error.hint}`
}

describe('an option', () => {
  test('has three names, made from one', () => {
    expect(environmentName('key-passphrase-file')).toBe('DPS_KEY_PASSPHRASE_FILE')
    expect(fileName('key-passphrase-file')).toBe('keyPassphraseFile')
    for (const names of [environmentName, fileName]) {
      const all = REGISTER_OPTIONS.map(({ name }) => names(name))
      expect(new Set(all).size).toBe(all.length)
    }
  })

  test('is written with a blank or an equals sign', () => {
    expect(resolve(['--host', 'a', '--port=8883', '--json', '--quiet=false'])).toEqual({
      host: 'a',
      port: 8883,
      json: true,
      quiet: false,
    })
    expect(resolve(['--payload={"a":"b=c"}'])).toEqual({ payload: '{"a":"b=c"}' })
    expect(resolve(['--symmetric-key-file', '-'])).toEqual({ 'symmetric-key-file': '-' })
  })

  test('is a list where it may be one', () => {
    expect(resolve(['--transport', 'mqtt,https', '--transport', 'mqtt-ws'])).toEqual({
      transport: ['mqtt', 'https', 'mqtt-ws'],
    })
    expect(resolve(['--extra-root', 'a:b,c', '--extra-root', 'd'])).toEqual({ 'extra-root': ['a:b,c', 'd'] })
    expect(resolve([], { DPS_TRANSPORT: 'mqtt,https' })).toEqual({ transport: ['mqtt', 'https'] })
    expect(resolve(['--config', 'f'], {}, { transport: 'mqtt', extraRoot: ['a', 'b'] })).toEqual({
      config: 'f',
      transport: ['mqtt'],
      'extra-root': ['a', 'b'],
    })
  })

  test('comes from the argument, else the environment, else the file', () => {
    const file = { host: 'of-file', port: 3, connectTo: 'of-file' }
    const environment = { DPS_HOST: 'of-environment', DPS_PORT: '2', DPS_CONFIG: 'f' }
    expect(resolve(['--host', 'of-argument'], environment, file)).toEqual({
      config: 'f',
      host: 'of-argument',
      port: 2,
      'connect-to': 'of-file',
    })
  })

  test('that is empty in the environment is not there', () => {
    expect(resolve([], { DPS_HOST: '', DPS_JSON: '' })).toEqual({})
  })

  test('silences its alternative from a weaker source', () => {
    expect(resolve(['--symmetric-key-file', 'a'], { DPS_SYMMETRIC_KEY: 'b' })).toEqual({
      'symmetric-key-file': 'a',
    })
    expect(resolve([], { DPS_SYMMETRIC_KEY: 'b', DPS_CONFIG: 'f' }, { symmetricKeyFile: 'a' })).toEqual({
      config: 'f',
      'symmetric-key': 'b',
    })
    expect(resolve(['--cert', 'c', '--key', 'k'], { DPS_SYMMETRIC_KEY: 'b' })).toEqual({
      cert: 'c',
      key: 'k',
    })
    expect(
      resolve(['--symmetric-key-file', 'a'], { DPS_CERT: 'c', DPS_KEY: 'k', DPS_KEY_PASSPHRASE: 'p' }),
    ).toEqual({
      'symmetric-key-file': 'a',
    })
  })

  test('excludes its alternative from the same source', async () => {
    expect(await refused(['--cert', 'c', '--symmetric-key-file', 'a'])).toContain(
      '--cert and --symmetric-key-file exclude each other',
    )
    const both = { DPS_SYMMETRIC_KEY: 'b', DPS_SYMMETRIC_KEY_FILE: 'a' }
    expect(await refused([], both)).toContain(
      'DPS_SYMMETRIC_KEY and DPS_SYMMETRIC_KEY_FILE exclude each other',
    )
  })
})

describe('what is wrong', () => {
  for (const [args, says] of [
    [['--hots', 'x'], '--hots is not known | Did you mean --host?'],
    [['--idscope', 'x'], 'Did you mean --id-scope?'],
    [['--passphrase-file', 'x'], 'Did you mean --key-passphrase-file?'],
    [['--reg', 'x'], 'Did you mean --registration-id?'],
    [['--frobnicate'], '--frobnicate is not known | See dps-device --help.'],
    [['--host'], '--host needs a value: NAME'],
    [['--host', '--json'], '--host needs a value: NAME'],
    [['--host='], '--host is empty'],
    [['--host', 'a', '--host', 'b'], '--host is given twice'],
    [['--port', 'many'], '--port must be a number'],
    [['--timeout', '-1'], '--timeout must be a number'],
    [['--json=maybe'], '--json must be true or false'],
    [['--transport', 'mqtt,,https'], '--transport has an empty entry'],
    [['a'], 'argument 1 belongs to no option'],
    [['--json', '-x'], 'argument 2 belongs to no option'],
    [['--symmetric-key', 'x'], 'DPS_SYMMETRIC_KEY'],
  ] as const) {
    test(args.join(' '), async () => expect(await refused(args)).toContain(says))
  }

  for (const [file, says] of [
    ['{', 'f is not JSON'],
    [[], 'f must hold one JSON object'],
    [{ hosts: 'x' }, 'hosts in f is not known | Did you mean host?'],
    [{ 'id-scope': 'x' }, 'Did you mean idScope?'],
    [{ port: '8883' }, 'port in f must be a number'],
    [{ json: 1 }, 'json in f must be true or false'],
    [{ host: '' }, 'host in f must be text'],
    [{ payload: 'x' }, 'payload in f must be an object'],
    [{ extraRoot: [1] }, 'extraRoot in f must be text or a list of texts'],
    [{ config: 'g' }, 'config in f is not known'],
    [{ help: true }, 'help in f is not known'],
  ] as const) {
    test(`in a file: ${JSON.stringify(file)}`, async () =>
      expect(await refused(['--config', 'f'], {}, file)).toContain(says))
  }

  test('in a file whose name may be a key: that is not repeated', async () => {
    const key = `${'A'.repeat(42)}==`
    for (const file of ['{', { hosts: 'x' }, { port: 'x' }] as const) {
      const said = await refused(['--config', key], {}, file)
      expect(said).toContain('the file')
      expect(said).not.toContain(key)
    }
  })

  test('is never answered with anything but an error of ours, nor with what was given', () => {
    const word = fc.oneof(
      fc.constantFrom(...REGISTER_OPTIONS.map(({ name }) => `--${name}`), '--', '-', '='),
      fc.string({ maxLength: 60 }),
      fc.base64String({ minLength: 24, maxLength: 88 }),
    )
    fc.assert(
      fc.property(fc.array(word, { maxLength: 6 }), fc.json(), (args, file) => {
        try {
          resolve(args, { DPS_CONFIG: 'f' }, file)
        } catch (error) {
          expect(error).toBeInstanceOf(DpsError)
          const { message, hint } = error as DpsError
          // A name that could be one is repeated; a value, by its length alone, is not.
          for (const arg of args) if (arg.length > 32) expect(`${message} ${hint}`).not.toContain(arg)
        }
      }),
    )
  })
})
