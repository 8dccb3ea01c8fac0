import { MAX_TIMER_MS } from '../clock.ts'
import type { Credential } from '../credential/credential.ts'
import type { symmetricKey } from '../credential/sas.ts'
import type { x509 } from '../credential/x509.ts'
import { DpsError, type DpsErrorCode } from '../errors.ts'
import type { ProvisioningClientOptions, RegisterOptions, TrustOptions } from '../options/options.ts'
import { EXIT, EXIT_OF_SIGNAL, type ExitCode, exitCodeOf } from './exit-codes.ts'
import { lineOf, readInput } from './input.ts'
import { type Options, unknown, usage } from './options.ts'
import { describeError, errorJson, type Output } from './output.ts'

/** What a credential is made with. */
interface Library {
  readonly symmetricKey: typeof symmetricKey
  readonly x509: typeof x509
}

const TRANSPORTS = ['mqtt', 'mqtt-ws', 'https'] as const
export type TransportName = (typeof TRANSPORTS)[number]

const SIGNALS = Object.keys(EXIT_OF_SIGNAL) as NodeJS.Signals[]

/**
 * Does what a command is there for, and returns its exit code: a DpsError becomes a message and the code of its stage.
 * `work` calls `listen` when it has read what it needs: from then on the first signal aborts, and a second one is not for
 * this program to judge.
 */
export async function perform(
  options: Options,
  output: Output,
  work: (listen: () => AbortSignal) => Promise<ExitCode>,
): Promise<ExitCode> {
  const controller = new AbortController()
  let interrupted: ExitCode | undefined
  const onSignal = (signal: NodeJS.Signals) => {
    for (const name of SIGNALS) process.removeListener(name, onSignal)
    interrupted = EXIT_OF_SIGNAL[signal as keyof typeof EXIT_OF_SIGNAL]
    controller.abort()
  }
  try {
    const code = await work(() => {
      for (const name of SIGNALS) process.on(name, onSignal)
      return controller.signal
    })
    return interrupted === EXIT.hungUp ? interrupted : code
  } catch (error) {
    if (!DpsError.is(error)) throw error
    output.clear()
    if (flag(options, 'json')) output.result(errorJson(error))
    else output.note(describeError(error, output))
    return error.code === 'CANCELLED' || interrupted === EXIT.hungUp
      ? (interrupted ?? EXIT.unexpected)
      : exitCodeOf(error)
  } finally {
    for (const name of SIGNALS) process.removeListener(name, onSignal)
  }
}

/** The options of a client but its credential, its transport and its handlers. */
export function settingsOf(options: Options): Omit<ProvisioningClientOptions, 'credential' | 'idScope'> {
  return {
    trust: trustOf(options),
    ...given('host', text(options, 'host')),
    ...given('port', number(options, 'port')),
    ...given('connectTo', text(options, 'connect-to')),
    ...given('proxy', proxyOf(options)),
    ...given('apiVersion', text(options, 'api-version')),
  }
}

export function flag(options: Options, name: string): boolean {
  return options.get(name)?.value === true
}

export function text(options: Options, name: string): string | undefined {
  return options.get(name)?.value as string | undefined
}

export function number(options: Options, name: string): number | undefined {
  return options.get(name)?.value as number | undefined
}

export function given<N extends string, T>(name: N, value: T | undefined): { readonly [K in N]?: T } {
  return (value === undefined ? {} : { [name]: value }) as { readonly [K in N]?: T }
}

/** A secret, or what the option of its file names. @param code where that cannot be read */
export function secretOf(options: Options, name: string, code: DpsErrorCode): string | undefined {
  const file = options.get(`${name}-file`)
  return text(options, name) ?? (file && lineOf(readInput(file.value as string, file.as, code)))
}

/** @param as what the user calls it */
export function missing(as: string, what: string): never {
  throw usage(`${as} is missing: ${what}`)
}

export function idScopeOf(options: Options): string {
  return text(options, 'id-scope') ?? missing('--id-scope', 'the id scope of the service instance')
}

export function transportsOf(options: Options): readonly TransportName[] {
  const choice = options.get('transport')
  if (choice === undefined) return ['mqtt']
  return (choice.value as readonly string[]).map((name) => {
    if (!TRANSPORTS.includes(name as TransportName))
      throw unknown(name, TRANSPORTS, ` as a transport in ${choice.as}`)
    return name as TransportName
  })
}

const ROOTS =
  'Leave --roots out to trust the two roots of the service; system trusts the roots of this machine, none those of --extra-root alone.'

export function trustOf(options: Options): TrustOptions {
  const roots = options.get('roots')
  const extra = options.get('extra-root')
  if (roots !== undefined && !/^(?:bundled|system|none)$/.test(roots.value as string)) {
    throw usage(`${roots.as} must be bundled, system or none`, ROOTS)
  }
  if (roots?.value === 'none' && extra === undefined) {
    throw usage(`${roots.as} is none, so --extra-root must name the file of a root`, ROOTS)
  }
  return {
    ...given('roots', roots?.value as NonNullable<TrustOptions['roots']> | undefined),
    ...(extra && {
      extraRoots: (extra.value as readonly string[]).map((path) =>
        readInput(path, extra.as, 'TRUST_ANCHOR_INVALID'),
      ),
    }),
  }
}

/**
 * @param onSecret told what must never be printed, as it was read
 * @param called what the user calls an option that is missing
 */
export function credentialOf(
  options: Options,
  { x509, symmetricKey }: Library,
  onSecret: (secret: string | Buffer) => void = () => {},
  called: (name: string) => string = (name) => `--${name}`,
): Credential {
  const cert = options.get('cert')
  const key = options.get('key')
  const registrationId = text(options, 'registration-id')
  const read = (name: string) => {
    const file = options.get(name)
    return file === undefined ? undefined : readInput(file.value as string, file.as, 'CREDENTIAL_UNREADABLE')
  }
  const isBundle = options.has('pkcs12')
  if (isBundle || cert !== undefined || key !== undefined) {
    if (!isBundle && cert === undefined)
      return missing(called('cert'), `the certificate that belongs to ${key?.as}`)
    if (!isBundle && key === undefined)
      return missing(called('key'), `the private key that belongs to ${cert?.as}`)
    const file = read('key-passphrase-file')
    const passphrase = text(options, 'key-passphrase') ?? (file && lineOf(file))
    if (passphrase !== undefined) onSecret(passphrase)
    const content = read(isBundle ? 'pkcs12' : 'key')!
    onSecret(content)
    return x509({
      ...(isBundle ? { pkcs12: content } : { cert: read('cert')!, key: content }),
      ...given('passphrase', passphrase),
      ...given('registrationId', registrationId),
    })
  }
  const file = read('symmetric-key-file')
  const secret = text(options, 'symmetric-key') ?? (file && lineOf(file))
  if (secret === undefined) {
    throw usage(
      'there is no credential',
      'Give --cert and --key, --pkcs12, or --registration-id and --symmetric-key-file.',
    )
  }
  onSecret(secret)
  return symmetricKey({
    registrationId:
      registrationId ?? missing(called('registration-id'), 'a symmetric key does not say whose it is'),
    key: secret,
  })
}

export function proxyOf(options: Options): string | undefined {
  const proxy = options.get('proxy')
  if (proxy?.source === 'argument' && (proxy.value as string).includes('@')) {
    throw usage(
      `${proxy.as} may not hold a user name and password: every user of this machine can read them in the list of processes`,
      'Put the whole URL into the environment variable DPS_PROXY or into the --config file.',
    )
  }
  return proxy?.value as string | undefined
}

export function timeoutOf(options: Options): number | undefined {
  const timeout = options.get('timeout')
  if (timeout === undefined) return undefined
  const ms = Math.round((timeout.value as number) * 1000)
  if (ms < 1 || ms > MAX_TIMER_MS)
    throw usage(`${timeout.as} must be more than 0 and at most 2147483 seconds`)
  return ms
}

export const payloadOf = (options: Options): RegisterOptions['payload'] =>
  jsonOf(options, 'payload') as RegisterOptions['payload']

/** One JSON object, given as one, as text or as `@FILE`. */
export function jsonOf(options: Options, name: string): Readonly<Record<string, unknown>> | undefined {
  const given = options.get(name)
  if (given === undefined || typeof given.value !== 'string')
    return given?.value as Readonly<Record<string, unknown>> | undefined
  const { value, as } = given
  const json = value.startsWith('@')
    ? readInput(value.slice(1), as, 'OPTION_INVALID').toString('utf8')
    : value
  let content: unknown
  try {
    content = JSON.parse(json)
  } catch {
    throw usage(`${as} is not JSON`, 'A shell takes quotes away: write \'{"name": "value"}\', or @FILE.')
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content)) {
    throw usage(`${as} must be one JSON object`)
  }
  return content as Readonly<Record<string, unknown>>
}

/** Set by the first lines of the command, which give OpenSSL nothing to read. */
const CERT_FILE_BEFORE = 'DPS_DEVICE_SSL_CERT_FILE'

/** Runs `work` with the `SSL_CERT_FILE` that the user set, if any: the one that `--roots system` means. */
export function withOwnCertFile<T>(trust: TrustOptions | undefined, work: () => T): T {
  const { env } = process
  const before = env[CERT_FILE_BEFORE]
  if (trust?.roots !== 'system' || before === undefined) return work()
  const { SSL_CERT_FILE: mine } = env
  set(before)
  try {
    return work()
  } finally {
    set(mine)
  }

  function set(value: string | undefined): void {
    if (value === undefined || value === '') delete env.SSL_CERT_FILE
    else env.SSL_CERT_FILE = value
  }
}
