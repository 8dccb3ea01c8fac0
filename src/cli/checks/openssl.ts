import { Duplex } from 'node:stream'
import type { TlsOptions } from '../../options/options.ts'
import type { Case } from '../case.ts'
import { kit } from '../kit.ts'
import { clientOf, laterClock } from '../reach.ts'
import { type Check, failure, ok, warning } from './check.ts'

/** IANA's numbers of what the policy names (RFC 5289, RFC 8422, RFC 8446 section 4.2.3). */
const SUITES: readonly Named[] = [
  ['ECDHE-RSA-AES256-GCM-SHA384', 0xc030],
  ['ECDHE-RSA-AES128-GCM-SHA256', 0xc02f],
  ['ECDHE-RSA-AES256-SHA384', 0xc028],
  ['ECDHE-RSA-AES128-SHA256', 0xc027],
]
const CURVES: readonly Named[] = [
  ['X25519', 0x001d],
  ['P-256', 0x0017],
  ['P-384', 0x0018],
]
const ALGORITHMS: readonly Named[] = [
  ['ecdsa_secp256r1_sha256', 0x0403],
  ['rsa_pss_rsae_sha256', 0x0804],
  ['rsa_pkcs1_sha256', 0x0401],
  ['ecdsa_secp384r1_sha384', 0x0503],
  ['rsa_pss_rsae_sha384', 0x0805],
  ['rsa_pkcs1_sha384', 0x0501],
  ['ecdsa_secp521r1_sha512', 0x0603],
  ['rsa_pss_rsae_sha512', 0x0806],
  ['rsa_pkcs1_sha512', 0x0601],
]
type Named = readonly [name: string, number: number]

const SUPPORTED_GROUPS = 10
const SIGNATURE_ALGORITHMS = 13
const TLS12 = 0x0303

interface Hello {
  readonly version: number
  readonly suites: readonly number[]
  readonly groups: readonly number[]
  readonly algorithms: readonly number[]
}

const POLICY =
  'Look at the configuration of OpenSSL that this Node.js reads (OPENSSL_CONF, --openssl-config, the system’s crypto policy), or use a Node.js with its own OpenSSL.'

/** What OpenSSL offers is read from the first message that it would send: the system’s configuration has its say in it. */
export const opensslChecks: readonly Check[] = [
  {
    id: 'openssl.tls12',
    run: async (on) => {
      const { node, openssl } = process.versions
      const details = { node, openssl }
      const unsupported = await refusedParts(on)
      if (unsupported.length > 0) {
        const message = `OpenSSL ${openssl} cannot do what the TLS policy names: ${unsupported.join(', ')}`
        return failure(message, POLICY, kit.EXIT.tls, { ...details, unsupported })
      }
      const { version } = await helloOf(on)
      return version === TLS12
        ? ok(`Node.js ${node}, OpenSSL ${openssl}: TLS 1.2 is offered`, details)
        : failure(`TLS 1.2 is not offered by OpenSSL ${openssl}`, POLICY, kit.EXIT.tls, details)
    },
  },
  part('suites', SUITES, 'suites'),
  part('curves', CURVES, 'groups'),
  part('sigalgs', ALGORITHMS, 'algorithms'),
]

function part(name: string, wanted: readonly Named[], of: 'suites' | 'groups' | 'algorithms'): Check {
  return {
    id: `openssl.${name}`,
    needs: ['openssl.tls12'],
    run: async (on) => {
      const offered = (await helloOf(on))[of]
      const missing = wanted.filter(([, number]) => !offered.includes(number))
      const names = missing.map(([one]) => one)
      if (missing.length === 0) return ok(wanted.map(([one]) => one).join(', '))
      const message = `not offered by this OpenSSL: ${names.join(', ')}`
      const details = { missing: names }
      return missing.length === wanted.length
        ? failure(message, POLICY, kit.EXIT.tls, details)
        : warning(message, POLICY, details)
    },
  }
}

/** What OpenSSL makes no context with, each by itself; none where all together are well. */
async function refusedParts(on: Case): Promise<readonly string[]> {
  const refusal = await helloOf(on).then(() => undefined, reasonOf)
  if (refusal === undefined) return []
  const parts: readonly (readonly [string, TlsOptions])[] = [
    ...SUITES.map(([name]) => [name, { ciphers: [name] }] as const),
    ...CURVES.map(([name]) => [name, { curves: [name] }] as const),
  ]
  const refused: string[] = []
  for (const [name, tls] of parts) {
    if ((await readHello(on, tls).then(() => undefined, reasonOf)) !== undefined) refused.push(name)
  }
  return refused.length > 0 ? refused : [refusal]
}

/** Of what OpenSSL objects to; the rest is thrown on. */
function reasonOf(error: unknown): string {
  if (kit.DpsError.is(error) && error.code !== 'CANCELLED') return error.message
  throw error
}

const hellos = new WeakMap<Case, Promise<Hello>>()

function helloOf(on: Case): Promise<Hello> {
  const made = hellos.get(on) ?? readHello(on)
  hellos.set(on, made)
  return made
}

/**
 * The ClientHello of the client's own dialer, into a stream that leads nowhere.
 *
 * @throws DpsError TLS_POLICY_INVALID where OpenSSL cannot do what the policy names
 */
async function readHello({ library, settings, signal }: Case, tls: TlsOptions = {}): Promise<Hello> {
  const chunks: Buffer[] = []
  const { proxy: _, connectTo: __, ...rest } = settings
  const client = clientOf(library, {
    ...rest,
    transport: {
      name: 'tls',
      open: (context) => context.dial(443).then(() => Promise.reject(new TypeError('nobody answers'))),
    },
    tls,
    connect: () =>
      new Duplex({
        read() {},
        write(chunk: Buffer, _encoding, done) {
          chunks.push(chunk)
          this.destroy()
          done()
        },
      }),
    clock: laterClock(),
  })
  try {
    await client.probe({ signal })
  } catch (error) {
    if (chunks.length === 0) throw error
  }
  return parse(Buffer.concat(chunks))
}

/** RFC 5246 section 7.4.1.2; written by OpenSSL, so it is as it must be. */
function parse(record: Buffer): Hello {
  let at = 5 + 4
  const version = record.readUInt16BE(at)
  at += 2 + 32
  at += 1 + record.readUInt8(at)
  const suites = list(record, at)
  at += 2 + suites.length * 2
  at += 1 + record.readUInt8(at)
  const extensions = new Map<number, readonly number[]>()
  for (at += 2; at + 4 <= record.length; at += 4 + record.readUInt16BE(at + 2)) {
    const type = record.readUInt16BE(at)
    if (type === SUPPORTED_GROUPS || type === SIGNATURE_ALGORITHMS) extensions.set(type, list(record, at + 4))
  }
  return {
    version,
    suites,
    groups: extensions.get(SUPPORTED_GROUPS) ?? [],
    algorithms: extensions.get(SIGNATURE_ALGORITHMS) ?? [],
  }
}

const list = (bytes: Buffer, at: number): readonly number[] =>
  Array.from({ length: bytes.readUInt16BE(at) / 2 }, (_, i) => bytes.readUInt16BE(at + 2 + i * 2))
