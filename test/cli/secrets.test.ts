import { readFileSync } from 'node:fs'
import { afterAll, describe, expect, test } from 'vitest'
import { Bench, DEVICE_KEY, PASSPHRASE, run } from './bench.ts'

// Whatever is done wrong with a secret, no output of the command has a piece of it.

const bench = await Bench.open()
const { there, trust, x509, sas } = bench
afterAll(() => bench.close())

/** Shortest piece of a secret that counts as having got out, characters. */
const PIECE = 12

const bytes = Buffer.from(DEVICE_KEY, 'base64')
const pem = readFileSync(bench.file('key.pem'), 'utf8')
const secrets: readonly string[] = [
  DEVICE_KEY.replace(/=+$/, ''),
  bytes.toString('hex'),
  encodeURIComponent(DEVICE_KEY),
  PASSPHRASE,
  encodeURIComponent(PASSPHRASE),
  // The first line of a key tells its algorithm only.
  ...pem.split('\n').slice(2, -2),
]

function pieces(output: string): readonly string[] {
  return secrets.flatMap((secret) =>
    Array.from({ length: secret.length - PIECE + 1 }, (_, i) => secret.slice(i, i + PIECE)).filter((piece) =>
      output.includes(piece),
    ),
  )
}

const withKey = bench.write('with-key.json', JSON.stringify({ symetricKey: DEVICE_KEY }))
const badKey = bench.write('bad-key', `${DEVICE_KEY.slice(0, -6)}\n`)
const badJson = bench.write('bad.json', `{ "symmetricKey": "${DEVICE_KEY}" `)
const badPem = bench.write('bad.pem', pem.replace(/\n(.{30})./, '\n$1!'))
const id = ['--registration-id', 'sensor-1']
const encrypted = ['--cert', bench.file('cert.pem'), '--key', bench.file('encrypted.pem')]
const proxy = `http://user:${encodeURIComponent(PASSPHRASE)}@127.0.0.1:1`

const mistakes: readonly (readonly [
  string,
  readonly string[],
  Readonly<Record<string, string>>?,
  string?,
])[] = [
  ['nothing', [...there, ...trust, ...sas]],
  ['nothing, with a certificate', [...there, ...trust, ...x509]],
  ['a key as an argument', [...there, '--symmetric-key', DEVICE_KEY]],
  ['a key as an argument that does not exist', [...there, '--symetric-key', DEVICE_KEY]],
  ['a key as the name of an argument', [...there, `--${DEVICE_KEY}`]],
  ['a key joined to an argument that does not exist', [...there, `--sas-key=${DEVICE_KEY}`]],
  ['a key without an option', [...there, DEVICE_KEY]],
  ['a key in the place of the verb', [DEVICE_KEY]],
  ['a key in the place of its file', [...there, ...id, '--symmetric-key-file', DEVICE_KEY]],
  ['a key in the place of the configuration', [...there, '--config', DEVICE_KEY]],
  ['a key in the place of the host', [...there, ...trust, ...sas, '--host', DEVICE_KEY]],
  ['a key in the place of the id scope', ['register', '--id-scope', DEVICE_KEY, ...sas]],
  ['a key in the place of the transport', [...there, ...sas, '--transport', DEVICE_KEY]],
  ['a key in the place of the timeout', [...there, ...sas, '--timeout', DEVICE_KEY]],
  ['a key in the place of the roots', [...there, ...sas, '--roots', DEVICE_KEY]],
  ['a key in the place of the proxy', [...there, ...sas, '--proxy', DEVICE_KEY]],
  ['a key in the place of the payload', [...there, ...sas, '--payload', DEVICE_KEY]],
  ['a key that is cut off, in a file', [...there, ...trust, ...id, '--symmetric-key-file', badKey]],
  [
    'a key that is cut off, on standard input',
    [...there, ...id, '--symmetric-key-file', '-'],
    {},
    DEVICE_KEY.slice(7),
  ],
  [
    'a key that is cut off, in the environment',
    [...there, ...id],
    { DPS_SYMMETRIC_KEY: DEVICE_KEY.slice(7) },
  ],
  ['a key in a variable of another kind', [...there, ...sas], { DPS_JSON: DEVICE_KEY }],
  ['a key under a name that does not exist, in a file', [...there, ...id, '--config', withKey]],
  ['a file that is no JSON', [...there, ...id, '--config', badJson]],
  [
    'a private key in the place of the certificate',
    [...there, '--cert', bench.file('key.pem'), '--key', bench.file('key.pem')],
  ],
  ['a private key in the place of a root', [...there, ...x509, '--extra-root', bench.file('key.pem')]],
  [
    'a private key in the place of the symmetric key',
    [...there, ...id, '--symmetric-key-file', bench.file('key.pem')],
  ],
  ['a private key that is damaged', [...there, ...trust, '--cert', bench.file('cert.pem'), '--key', badPem]],
  ['a private key as the configuration', [...there, '--config', bench.file('key.pem')]],
  ['a passphrase as an argument', [...there, ...encrypted, '--key-passphrase', PASSPHRASE]],
  [
    'a passphrase that is wrong',
    [...there, ...trust, ...encrypted],
    { DPS_KEY_PASSPHRASE: `${PASSPHRASE}!` },
  ],
  [
    'a passphrase in the place of its file',
    [...there, ...encrypted, '--key-passphrase-file', PASSPHRASE.replaceAll(' ', '')],
  ],
  ['a proxy with a password as an argument', [...there, ...sas, '--proxy', proxy]],
  ['a proxy that is not there', [...there, ...trust, ...sas, '--timeout', '2'], { DPS_PROXY: proxy }],
  ['a server that is not trusted', [...there, ...sas]],
]

describe('the command says nothing of a secret when it is given', () => {
  for (const [what, args, env = {}, input = ''] of mistakes) {
    test(what, async () => {
      for (const more of [[], ['--json']]) {
        const ran = await run([...args, ...more], { env, input })
        expect(ran.stdout + ran.stderr).not.toBe('')
        expect(ran.code === 0).toBe(what.startsWith('nothing'))
        expect(pieces(ran.stdout + ran.stderr)).toEqual([])
        if (args[0] !== 'register') continue
        // What it says is made to be pasted.
        const checked = await run(['doctor', ...args.slice(1), '--register', ...more], { env, input })
        expect(checked.stdout + checked.stderr).not.toBe('')
        expect(pieces(checked.stdout + checked.stderr)).toEqual([])
      }
    })
  }
})

test('the search finds what it looks for', () => {
  expect(pieces(`x${DEVICE_KEY.slice(3, 20)}`)).not.toEqual([])
  expect(pieces(pem)).not.toEqual([])
})
