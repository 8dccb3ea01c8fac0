import { DpsError } from '../errors.ts'
import { nameOfFile } from './input.ts'

/**
 * One option, from which its argument, its environment variable, its name in a configuration file and its line in the help
 * are made.
 */
export interface OptionSpec {
  /** As an argument without the dashes; `id-scope` is `DPS_ID_SCOPE` and, in a file, `idScope`. */
  readonly name: string
  /**
   * `list` may be repeated, and its environment variable separates by `separator`. `json` is an object in a file and text
   * elsewhere. `secret` is taken from the environment and from a file, never from an argument.
   */
  readonly kind: 'text' | 'number' | 'flag' | 'list' | 'json' | 'secret'
  /** How the help calls the value. */
  readonly value?: string
  readonly help: string
  readonly separator?: string
  /** Arguments only. */
  readonly argumentOnly?: boolean
  /** For a secret: what to do in place of an argument. */
  readonly instead?: string
}

const PATHS = process.platform === 'win32' ? ';' : ':'

export const REGISTER_OPTIONS: readonly OptionSpec[] = [
  {
    name: 'id-scope',
    kind: 'text',
    value: 'ID',
    help: 'the id scope of the service instance, such as 0ne00000000',
  },
  {
    name: 'registration-id',
    kind: 'text',
    value: 'ID',
    help: 'with a symmetric key; with a certificate it is the CN, and compared if given',
  },
  { name: 'cert', kind: 'text', value: 'FILE', help: 'the device certificate, then its issuers; PEM or DER' },
  { name: 'key', kind: 'text', value: 'FILE', help: 'its private key, PEM or DER' },
  {
    name: 'pkcs12',
    kind: 'text',
    value: 'FILE',
    help: 'certificates and key in one file (.p12, .pfx), in place of --cert and --key',
  },
  {
    name: 'key-passphrase-file',
    kind: 'text',
    value: 'FILE',
    help: 'holds the passphrase of an encrypted key or of a PKCS#12 file',
  },
  {
    name: 'key-passphrase',
    kind: 'secret',
    help: 'the passphrase itself',
    instead: '--key-passphrase-file FILE, where - is standard input',
  },
  {
    name: 'symmetric-key-file',
    kind: 'text',
    value: 'FILE',
    help: 'holds the symmetric key of this device, base64; - is standard input',
  },
  {
    name: 'symmetric-key',
    kind: 'secret',
    help: 'the symmetric key itself',
    instead: '--symmetric-key-file FILE, where - is standard input',
  },
  { name: 'host', kind: 'text', value: 'NAME', help: 'default global.azure-devices-provisioning.net' },
  { name: 'port', kind: 'number', value: 'PORT', help: 'default 8883 for mqtt, 443 for mqtt-ws and https' },
  {
    name: 'connect-to',
    kind: 'text',
    value: 'ADDRESS',
    help: 'dialled in place of host, which stays verified',
  },
  {
    name: 'transport',
    kind: 'list',
    value: 'NAME',
    separator: ',',
    help: 'mqtt (default), mqtt-ws or https; several, by comma or repeated, are tried in order',
  },
  { name: 'proxy', kind: 'text', value: 'URL', help: 'an HTTP proxy, or "environment" to read https_proxy' },
  {
    name: 'roots',
    kind: 'text',
    value: 'WHICH',
    help: 'bundled (default: the two roots of the service), system, or none',
  },
  {
    name: 'extra-root',
    kind: 'list',
    value: 'FILE',
    separator: PATHS,
    help: `a further root to trust, PEM; may be repeated, and in the environment several are parted by ${PATHS}`,
  },
  {
    name: 'payload',
    kind: 'json',
    value: 'JSON',
    help: 'handed to a custom allocation function; @FILE reads it from there',
  },
  { name: 'api-version', kind: 'text', value: 'DATE', help: 'default 2019-03-31' },
  { name: 'timeout', kind: 'number', value: 'SECONDS', help: 'for everything together; default 120' },
  { name: 'json', kind: 'flag', help: 'one JSON object on standard output, for machines' },
  { name: 'quiet', kind: 'flag', help: 'nothing but errors, and JSON where it is asked for' },
  { name: 'config', kind: 'text', value: 'FILE', help: 'a JSON file of options, such as { "idScope": "…" }' },
  { name: 'help', kind: 'flag', help: 'this text', argumentOnly: true },
  { name: 'version', kind: 'flag', help: 'the version', argumentOnly: true },
]

/** Two ways to say one thing, or two things of which only one can be: what a stronger source says silences the weaker. */
const ALTERNATIVES: readonly (readonly (readonly string[])[])[] = [
  [['symmetric-key'], ['symmetric-key-file']],
  [['group-key'], ['group-key-file']],
  [['key-out'], ['key']],
  [['key-passphrase'], ['key-passphrase-file']],
  [['cert', 'key'], ['pkcs12']],
  [
    ['cert', 'key', 'pkcs12', 'key-passphrase', 'key-passphrase-file'],
    ['symmetric-key', 'symmetric-key-file'],
  ],
]

export type OptionValue = string | number | boolean | readonly string[] | Readonly<Record<string, unknown>>

/** Where a value came from, strongest first. */
type Source = 'argument' | 'environment' | 'file'
const SOURCES: readonly Source[] = ['argument', 'environment', 'file']

export interface Given {
  readonly value: OptionValue
  /** What the user calls it: `--key`, `DPS_KEY` or `key in FILE`. */
  readonly as: string
  readonly source: Source
}

export type Options = ReadonlyMap<string, Given>
type Environment = Readonly<Record<string, string | undefined>>

export const environmentName = (name: string): string => `DPS_${name.toUpperCase().replaceAll('-', '_')}`
export const fileName = (name: string): string =>
  name
    .split('-')
    .map((word, i) => (i === 0 ? word : word.charAt(0).toUpperCase() + word.slice(1)))
    .join('')

/**
 * Arguments over environment over configuration file.
 *
 * @param read the text of the file that `--config` names
 * @throws DpsError OPTION_INVALID, phase `config`; no message repeats a value
 */
export function resolveOptions(
  specs: readonly OptionSpec[],
  args: readonly string[],
  environment: Environment,
  read: (path: string, as: string) => string,
): Options {
  const found: Record<Source, Map<string, Given>> = {
    argument: fromArguments(specs, args),
    environment: fromEnvironment(specs, environment),
    file: new Map(),
  }
  const config = found.argument.get('config') ?? found.environment.get('config')
  if (config !== undefined)
    found.file = fromFile(specs, `${config.value}`, read(`${config.value}`, config.as))
  const strongest = (names: readonly string[]) =>
    SOURCES.findIndex((source) => names.some((name) => found[source].has(name)))
  for (const [one = [], other = []] of ALTERNATIVES) {
    const a = strongest(one)
    const b = strongest(other)
    if (a === -1 || b === -1) continue
    if (a === b) {
      const as = (names: readonly string[]) =>
        names.map((name) => found[SOURCES[a]!].get(name)?.as).find((name) => name !== undefined)
      throw usage(`${as(one)} and ${as(other)} exclude each other: give one of the two`)
    }
    for (const source of SOURCES) for (const name of a < b ? other : one) found[source].delete(name)
  }
  return new Map([...found.file, ...found.environment, ...found.argument])
}

function fromArguments(specs: readonly OptionSpec[], args: readonly string[]): Map<string, Given> {
  const found = new Map<string, Given>()
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!
    // Neither here nor below is repeated what may be a secret that lost its option.
    if (!arg.startsWith('--')) throw usage(`argument ${i + 1} belongs to no option`)
    const equals = arg.indexOf('=')
    const as = equals === -1 ? arg : arg.slice(0, equals)
    const spec = specs.find(({ name }) => as === `--${name}`)
    if (spec === undefined)
      throw unknown(
        as,
        specs.filter(({ kind }) => kind !== 'secret').map(({ name }) => `--${name}`),
      )
    if (spec.kind === 'secret') {
      throw new DpsError(
        'OPTION_INVALID',
        'config',
        `${as} is not taken as an argument: every user of this machine can read it in the list of processes, and the shell keeps it`,
        {
          hint: `Use ${spec.instead}, or the environment variable ${environmentName(spec.name)}. If it was typed here, replace the secret.`,
        },
      )
    }
    let text: string | undefined
    if (equals !== -1) text = arg.slice(equals + 1)
    else if (spec.kind !== 'flag') {
      const next = args[++i]
      if (next === undefined || next.startsWith('--')) throw usage(`${as} needs a value: ${spec.value}`)
      text = next
    }
    const value = text === undefined ? true : parse(spec, text, as)
    const before = found.get(spec.name)
    if (before !== undefined && spec.kind !== 'list') throw usage(`${as} is given twice`)
    found.set(spec.name, {
      value: before === undefined ? value : [...(before.value as string[]), ...(value as string[])],
      as,
      source: 'argument',
    })
  }
  return found
}

function fromEnvironment(specs: readonly OptionSpec[], environment: Environment): Map<string, Given> {
  const found = new Map<string, Given>()
  for (const spec of specs) {
    const as = environmentName(spec.name)
    const text = environment[as]
    // A variable that is empty is what a unit file leaves of one that is not wanted.
    if (text === undefined || text === '' || spec.argumentOnly === true) continue
    found.set(spec.name, { value: parse(spec, text, as), as, source: 'environment' })
  }
  return found
}

function parse(spec: OptionSpec, text: string, as: string): OptionValue {
  if (text === '') throw usage(`${as} is empty`)
  switch (spec.kind) {
    case 'number': {
      const number = /^\d{1,9}(?:\.\d{1,3})?$/.test(text) ? Number(text) : Number.NaN
      if (Number.isNaN(number)) throw usage(`${as} must be a number`)
      return number
    }
    case 'flag':
      if (text === 'true' || text === '1') return true
      if (text === 'false' || text === '0') return false
      throw usage(`${as} must be true or false`)
    case 'list': {
      // A path given as an argument is one path, whatever it contains.
      const items = spec.separator === ',' || as.startsWith('DPS_') ? text.split(spec.separator!) : [text]
      if (items.includes('')) throw usage(`${as} has an empty entry`)
      return items
    }
    default:
      return text
  }
}

const inFile = (specs: readonly OptionSpec[]): readonly OptionSpec[] =>
  specs.filter(({ name, argumentOnly }) => argumentOnly !== true && name !== 'config')

function fromFile(specs: readonly OptionSpec[], path: string, text: string): Map<string, Given> {
  const file = nameOfFile(path, 120)
  let content: unknown
  try {
    content = JSON.parse(withoutMark(text))
  } catch {
    // The reason that JSON.parse gives quotes the text.
    throw usage(`${file} is not JSON`)
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content)) {
    throw usage(`${file} must hold one JSON object`)
  }
  const found = new Map<string, Given>()
  const known = inFile(specs)
  for (const [name, value] of Object.entries(content)) {
    const spec = known.find((one) => fileName(one.name) === name)
    // One file serves every command: what is of a registration is no mistake.
    if (spec === undefined && inFile(REGISTER_OPTIONS).some((one) => fileName(one.name) === name)) continue
    if (spec === undefined)
      throw unknown(
        name,
        known.map((one) => fileName(one.name)),
        ` in ${file}`,
      )
    const as = `${name} in ${file}`
    if (!fits(spec, value)) throw usage(`${as} must be ${EXPECTED[spec.kind]}`)
    found.set(spec.name, {
      value: spec.kind === 'list' && typeof value === 'string' ? [value] : (value as OptionValue),
      as,
      source: 'file',
    })
  }
  return found
}

/** Editors of Windows begin a file with a mark of its encoding (RFC 8259 section 8.1 lets it be ignored). */
export const withoutMark = (text: string): string => text.replace(/^\uFEFF/, '')

const EXPECTED: Readonly<Record<OptionSpec['kind'], string>> = {
  text: 'text',
  secret: 'text',
  number: 'a number',
  flag: 'true or false',
  list: 'text or a list of texts',
  json: 'an object',
}

function fits({ kind }: OptionSpec, value: unknown): boolean {
  const isText = (item: unknown) => typeof item === 'string' && item !== ''
  switch (kind) {
    case 'number':
      return typeof value === 'number' && Number.isFinite(value) && value >= 0
    case 'flag':
      return typeof value === 'boolean'
    case 'list':
      return isText(value) || (Array.isArray(value) && value.length > 0 && value.every(isText))
    case 'json':
      return typeof value === 'object' && value !== null && !Array.isArray(value)
    default:
      return isText(value)
  }
}

let help = 'dps-device --help'

/** From now on hints name the help of this command, which lists its options. */
export function helpIsOf(command: string): void {
  help = `dps-device ${command} --help`
}

/** An error of whoever wrote the command line. */
export function usage(message: string, hint = `See ${help}.`): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message, { hint })
}

/**
 * @param known as they would have been written
 * @param all where they are listed, if not in the help
 */
export function unknown(name: string, known: readonly string[], where = '', all?: string): DpsError {
  // What does not look like a name may be a value.
  if (!/^-{0,2}[A-Za-z][A-Za-z0-9-]{0,29}$/.test(name))
    return usage(`there is an option${where} that has no name known here`, all)
  const nearest = nearestOf(name, known)
  return usage(
    `${name}${where} is not known`,
    nearest === undefined ? all : `Did you mean ${nearest}? ${all ?? `All are listed by ${help}.`}`,
  )
}

/** The nearest name, where it is near enough to be a slip: a third of its letters. */
function nearestOf(name: string, known: readonly string[]): string | undefined {
  let nearest: string | undefined
  const letters = name.replaceAll('-', '').length
  let least = Math.ceil(letters / 3) + 1
  for (const candidate of known) {
    // Cut short, or said at greater length, by a person who guesses.
    const guessed =
      candidate.startsWith(name) || name.startsWith(candidate) || candidate.endsWith(name.slice(1))
    const away = guessed ? 1 : distance(name, candidate)
    if (away < least) {
      least = away
      nearest = candidate
    }
  }
  return nearest
}

/** Levenshtein's: letters to insert, delete or replace. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1))
    }
    row = next
  }
  return row[b.length]!
}
