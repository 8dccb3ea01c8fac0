import { statSync } from 'node:fs'
import type { DpsError } from '../../errors.ts'
import type * as Library from '../../index.ts'
import type { Credential, ManyDevice, ManyResult } from '../../index.ts'
import type { ExitCode } from '../exit-codes.ts'
import { outOf } from '../files.ts'
import { kit } from '../kit.ts'
import type { Given, OptionSpec, Options, OptionValue } from '../options.ts'
import type { Output } from '../output.ts'
import { CREDENTIAL, NETWORK, optionsOf, type Verb } from '../verb.ts'
import { Failed } from './failed.ts'
import { type Cells, type Row, readRows } from './list.ts'

const COLUMNS = [...CREDENTIAL, 'payload']

const text = (name: string, value: string, help: string): OptionSpec => ({ name, kind: 'text', value, help })
const MORE: readonly OptionSpec[] = [
  text('list', 'FILE', 'the devices: CSV or JSON lines; - is standard input; a word by itself is it too'),
  text('journal', 'FILE', 'remembers who has been registered, to go on after whatever ended the command'),
  text('failed', 'FILE', 'written with what failed and why: a list that can be fed in again'),
  { name: 'force', kind: 'flag', help: 'replaces the file of --failed' },
  { name: 'rate', kind: 'number', value: 'NUMBER', help: 'registrations in a minute, at most; default 900' },
  { name: 'concurrency', kind: 'number', value: 'NUMBER', help: 'devices under way at once; default 64' },
  text('in-doubt', 'WHICH', 'lookup (default) or register: who a run before had begun and not ended'),
  text('group-key-file', 'FILE', 'of the enrollment group, for each device that has no key of its own'),
  {
    name: 'group-key',
    kind: 'secret',
    help: 'the group key itself',
    instead: '--group-key-file FILE, where - is standard input',
  },
  {
    name: 'timeout',
    kind: 'number',
    value: 'SECONDS',
    help: 'for each device, from its first packet; default 120',
  },
]

export const registerMany = (): Verb => ({
  about: 'registers a list of devices, at a pace that the service allows',
  help: `Registers each device of a list, and says of those that failed why. One that fails stops no other. All together keep to
--rate, and to whatever the service asks for: a retry-after that it tells one of them holds up all.

  dps-device register-many devices.csv --id-scope 0ne00000000 --journal devices.journal --failed failed.csv
  dps-device register-many devices.jsonl --id-scope 0ne00000000 --json > assigned.jsonl
  dps-device register-many devices.csv --id-scope 0ne00000000 --group-key-file group.key

The list is CSV, whose first row names its columns, or has one JSON object a line:
  registrationId,cert,key            registrationId,symmetricKeyFile    {"registrationId":"press-42","payload":{"floor":3}}
  press-42,42.pem,42.key             press-42,42.symmetric.key
Columns, each as the option of register:
  ${columns().join(', ')}
What a device has no cell for, and --payload and --key-passphrase-file say, is that of all. Files are named from the folder that
the command runs in. Cells are separated by commas, semicolons or tabs, and quoted where they have one, a quote or a line break,
or spaces around them that count. The text is UTF-8.

The file of --failed has the columns of the list and errorCode, errorMessage and errorRow: the row itself where nothing could be
made of it, which can be mended there. Fed in again it is a list as any other.

With --journal the same command goes on where it was ended, by Ctrl-C, a crash or a power cut: who is assigned is not registered
again, and is told of again. Of who was just being registered the service is asked first, over HTTPS, unless --in-doubt says
otherwise. The journal holds no key; it is of one id scope, service and list.

With --json there is one line for each device as it ends, its assignment or its error, with the line of the list; then a summary.
Exit code ${kit.EXIT.some} says that some devices failed; the others are of what ended the command itself.`,
  operand: 'list',
  options: optionsOf(
    ['id-scope', 'transport', ...NETWORK, 'payload', 'key-passphrase-file', 'key-passphrase', 'api-version'],
    MORE,
  ),
  run: (options, output) => kit.perform(options, output, (listen) => new Batch(options, output).run(listen)),
})

const columns = (): readonly string[] => COLUMNS.map(kit.fileName)

/** What is told of one by one; after that it is only counted. */
const MAX_TOLD = 20

const PROGRESS_MS = 200
/** What is waited for changes by the second. */
const TICK_MS = 1000
const BAR = 24

class Batch {
  readonly #options: Options
  readonly #output: Output
  readonly #json: boolean
  readonly #quiet: boolean
  readonly #startedAt = kit.systemClock.monotonic()
  readonly #codes = new Map<string, number>()
  readonly #hubs = new Map<string, number>()
  readonly #sources = { register: 0, lookup: 0, journal: 0 }
  #size: number | undefined
  #failures = 0
  #told = 0
  #shownAt = Number.NEGATIVE_INFINITY
  #endsAt = 0
  #movedAt = this.#startedAt
  /** The longest waits that are known, of one device and of all, and when they are about over. */
  readonly #waits = { one: { until: 0, code: '' }, all: { until: 0, code: '' } }

  constructor(options: Options, output: Output) {
    this.#options = options
    this.#output = output
    this.#json = kit.flag(options, 'json')
    this.#quiet = kit.flag(options, 'quiet')
  }

  async run(listen: () => AbortSignal): Promise<ExitCode> {
    const options = this.#options
    const { text, number, given, flag } = kit
    const list = options.get('list')
    if (list === undefined) throw kit.usage('the list of devices is missing: dps-device register-many FILE')
    const path = `${list.value}`
    if (path === '-' && SECRET_FILES.some((name) => text(options, name) === '-'))
      throw kit.usage('standard input cannot be both the list and a secret')
    const inDoubt = text(options, 'in-doubt')
    if (inDoubt !== undefined && !IN_DOUBT.includes(inDoubt as never))
      throw kit.unknown(inDoubt, IN_DOUBT, ` as ${options.get('in-doubt')!.as}`)
    const rate = number(options, 'rate')
    if (rate !== undefined && rate < 1) throw kit.usage(`${options.get('rate')!.as} must be at least 1`)
    const failedAt = outOf(options, ['journal', ...SECRET_FILES], 'failed')
    const library = await import('../../index.ts')
    const settings = kit.settingsOf(options)
    const [idScope, payload, journal] = [
      kit.idScopeOf(options),
      kit.payloadOf(options),
      text(options, 'journal'),
    ]
    const totalMs = kit.timeoutOf(options)
    const credentialOf = await this.#credentials(library)
    useOwnCertFile(settings.trust?.roots)
    if (path !== '-') this.#size = sizeOf(path, list.as)
    const failed = new Failed(failedAt, flag(options, 'force'), path)
    const signal = listen()
    async function* devices(): AsyncGenerator<ManyDevice<Row>> {
      for await (const tag of readRows(path, list!.as, columns(), signal, (format) => failed.begin(format))) {
        try {
          if (tag.error !== undefined) throw tag.error
          const row = optionsOfRow(tag)
          yield { tag, credential: await credentialOf(row), ...given('payload', kit.payloadOf(row)) }
        } catch (error) {
          if (!kit.DpsError.is(error)) throw error
          // A failure of its own, in its turn.
          yield { tag, credential: { load: () => Promise.reject(error) } }
        }
      }
    }
    let end: DpsError | undefined
    let disarm = () => {}
    const tick = () => {
      disarm = kit.systemClock.after(TICK_MS, () => {
        this.#show()
        tick()
      })
    }
    tick()
    try {
      for await (const result of library.provisionMany<Row>(devices(), {
        ...settings,
        idScope,
        signal,
        transport: kit.transportsOf(options),
        ...given('payload', payload),
        ...given('ratePerMinute', rate),
        ...given('concurrency', number(options, 'concurrency')),
        ...given('inDoubt', inDoubt as (typeof IN_DOUBT)[number] | undefined),
        ...given('store', journal === undefined ? undefined : library.fileJournal(journal)),
        ...given('timeouts', totalMs === undefined ? undefined : { totalMs }),
        onEvent: (event, device) => {
          if (event.type === 'warning')
            this.#tell(
              `warning: ${device === undefined ? kit.spoken(event.message) : kit.spokenOfRow(event.message)}`,
              device?.tag,
            )
          else if (event.type === 'retry') this.#awaits(event.error, event.delayMs)
        },
      })) {
        if (result.error !== undefined) failed.add(result.device.tag!, result.error)
        this.#count(result)
      }
    } catch (error) {
      if (!kit.DpsError.is(error)) {
        failed.end(false)
        throw error
      }
      end = error
    } finally {
      disarm()
    }
    this.#output.clear()
    let failedFile: string | undefined
    try {
      failedFile = failed.end(end === undefined)
    } catch (error) {
      if (!kit.DpsError.is(error)) throw error
      end ??= error
    }
    this.#summarize(failedFile, end !== undefined && journal !== undefined)
    if (end !== undefined) throw end
    if (this.#assigned + this.#failures === 0) this.#tell('warning: the list names no device', undefined)
    return this.#failures > 0 ? kit.EXIT.some : kit.EXIT.ok
  }

  /** How the credential of a row is made: its own, or from the key of the group. */
  async #credentials(library: typeof Library) {
    const groupKey = kit.secretOf(this.#options, 'group-key', 'SAS_KEY_INVALID')
    const { deriveDeviceKey } = await import('../../factory/index.ts')
    // One that is wrong is wrong for all.
    if (groupKey !== undefined) await deriveDeviceKey({ groupKey, registrationId: 'a' })
    const common = [...this.#options].filter(([name]) => name.startsWith('key-passphrase'))
    return async (row: Options): Promise<Credential> => {
      const has = (...names: string[]) => names.some((name) => row.has(name))
      const registrationId = kit.text(row, 'registration-id')
      const symmetric = has('symmetric-key', 'symmetric-key-file')
      const certified = has('cert', 'key', 'pkcs12')
      for (const names of EXCLUSIVE) {
        const both = names.filter((name) => row.has(name)).map(kit.fileName)
        if (both.length > 1) throw kit.usage(`the row has both ${both.join(' and ')}: give one of the two`)
      }
      if (symmetric && certified) throw kit.usage('the row has both a certificate and a symmetric key')
      if (!symmetric && !certified && groupKey === undefined)
        throw kit.usage(
          'the row has no credential: it needs cert and key, pkcs12, symmetricKeyFile or symmetricKey',
        )
      const called = (name: string) => `a cell for ${kit.fileName(name)}`
      if (groupKey !== undefined && !symmetric && !certified) {
        if (registrationId === undefined)
          throw kit.usage(`${called('registration-id')} is missing: the key of the device is made from it`)
        return library.symmetricKey({
          registrationId,
          key: await deriveDeviceKey({ groupKey, registrationId }),
        })
      }
      const own = has('key-passphrase', 'key-passphrase-file')
      return kit.credentialOf(own ? row : new Map([...common, ...row]), library, undefined, called)
    }
  }

  #count(result: ManyResult<Row>): void {
    const { line, cells } = result.device.tag!
    const { registrationId = namedIn(cells) } = result
    if (result.error === undefined) {
      const { source, assignment } = result
      this.#sources[source]++
      increase(this.#hubs, assignment.assignedHub)
      if (this.#json) this.#output.result(JSON.stringify({ line, source, ...assignment }))
    } else {
      const { error } = result
      this.#failures++
      this.#awaits(error, undefined)
      increase(this.#codes, error.code)
      if (this.#json)
        this.#output.result(JSON.stringify({ line, registrationId, ...JSON.parse(kit.errorJson(error)) }))
      else {
        const who = registrationId === undefined ? '' : ` ${registrationId}:`
        this.#tell(
          `${kit.printable(who, 140)} ${error.code} in phase ${error.phase}: ${kit.spokenOfRow(error.message)}`.trimStart(),
          result.device.tag,
        )
      }
    }
    this.#endsAt = result.device.tag!.endsAt
    this.#movedAt = kit.systemClock.monotonic()
    this.#show()
  }

  /** @param delayMs until the device tries again, if it does */
  #awaits({ code, retryAfterMs }: DpsError, delayMs: number | undefined): void {
    const forAll = code === 'THROTTLED' || (code === 'SERVICE_UNAVAILABLE' && retryAfterMs !== undefined)
    // Some of it is by chance.
    const ms = forAll && retryAfterMs !== undefined ? retryAfterMs * 1.1 : delayMs
    const who = forAll ? 'all' : 'one'
    const until = kit.systemClock.monotonic() + (ms ?? 0)
    if (until > this.#waits[who].until) this.#waits[who] = { until, code }
  }

  /** What nothing happens for. */
  #waitsFor(now: number): string | undefined {
    const { one, all } = this.#waits
    const left = (until: number) => duration(Math.round((until - now) / 1000))
    // One that is over in a moment is no news; nor is that of one device while others come on.
    if (all.until - now > TICK_MS) return `${all.code}: all wait ${left(all.until)}`
    if (one.until - now > TICK_MS && now - this.#movedAt > TICK_MS)
      return `${one.code}: tried again within ${left(one.until)}`
    return undefined
  }

  #tell(message: string, row: Row | undefined): void {
    if (this.#json || (this.#quiet && message.startsWith('warning')) || this.#told > MAX_TOLD) return
    this.#told++
    const where = row === undefined || message.startsWith('line ') ? '' : `line ${row.line}: `
    this.#output.note(
      this.#told > MAX_TOLD
        ? 'What else there is to tell is only counted; --failed FILE has all of it.'
        : kit.printable(`${where}${message}`, 1000),
    )
  }

  get #assigned(): number {
    const { register, lookup, journal } = this.#sources
    return register + lookup + journal
  }

  /** So that a device now and then does not cost what many would. */
  #show(): void {
    const now = kit.systemClock.monotonic()
    if (this.#quiet || now - this.#shownAt < PROGRESS_MS) return
    this.#shownAt = now
    const seconds = (now - this.#startedAt) / 1000
    const part = this.#size === undefined ? undefined : Math.min(1, this.#endsAt / this.#size)
    const filled = Math.round((part ?? 0) * BAR)
    const bar =
      part === undefined
        ? ''
        : `${'█'.repeat(filled)}${'░'.repeat(BAR - filled)} ${Math.floor(part * 100)} %  `
    const rate = ((this.#sources.register + this.#sources.lookup + this.#failures) / seconds).toFixed(1)
    const left = part === undefined || part === 0 ? '' : `, ${duration((seconds * (1 - part)) / part)} left`
    const wait = this.#waitsFor(now)
    const then = wait === undefined ? `, ${rate} a second${left}` : `; ${wait}`
    this.#output.progress(`${bar}${this.#assigned} assigned, ${this.#failures} failed${then}`)
  }

  #summarize(failedFile: string | undefined, canGoOn: boolean): void {
    const seconds = (kit.systemClock.monotonic() - this.#startedAt) / 1000
    const [assigned, failed] = [this.#assigned, this.#failures]
    if (this.#json) {
      const [hubs, codes] = [this.#hubs, this.#codes].map((counts) => Object.fromEntries(counts))
      const summary = {
        assigned,
        ...this.#sources,
        failed,
        hubs,
        codes,
        failedFile,
        seconds: Math.round(seconds * 1000) / 1000,
      }
      this.#output.result(JSON.stringify({ summary }))
      return
    }
    if (this.#quiet) return
    const { journal, lookup } = this.#sources
    const before = [
      journal > 0 ? `${journal} by a run before` : '',
      lookup > 0 ? `${lookup} found to be registered` : '',
    ].filter((part) => part !== '')
    const counted = (counts: ReadonlyMap<string, number>) =>
      [...counts]
        .sort(([, a], [, b]) => b - a)
        .map(([name, count]) => `${count} ${kit.printable(name, 255)}`)
        .join(', ')
    this.#output.result(
      kit.describeRows([
        ['done', this.#output.strong(`${assigned}${before.length > 0 ? ` (${before.join(', ')})` : ''}`)],
        ['hubs', assigned > 0 ? counted(this.#hubs) : undefined],
        ['failed', failed > 0 ? `${failed}: ${counted(this.#codes)}` : undefined],
        ['written', failedFile && kit.printable(failedFile, 200)],
        ['time', duration(seconds)],
        ['next', canGoOn ? 'the same command goes on from here' : undefined],
      ]),
    )
  }
}

/** Two columns of one thing. */
const EXCLUSIVE = [
  ['symmetric-key', 'symmetric-key-file'],
  ['key-passphrase', 'key-passphrase-file'],
  ['cert', 'pkcs12'],
  ['key', 'pkcs12'],
]

const IN_DOUBT = ['lookup', 'register'] as const
const SECRET_FILES = ['group-key-file', 'key-passphrase-file']

/** The cells of a row as the options that they stand for. */
function optionsOfRow({ line, cells }: Row): Options {
  const found = new Map<string, Given>()
  for (const name of COLUMNS) {
    const value = cells[kit.fileName(name)]
    if (value === undefined) continue
    const as = `${kit.fileName(name)} in line ${line}`
    if (value === '-' && name !== 'registration-id') throw kit.usage(`${as} cannot be standard input`)
    found.set(name, { value: value as OptionValue, as, source: 'file' })
  }
  return found
}

/** What it calls itself; where the columns are mixed up, a key may stand there. */
function namedIn({ registrationId }: Cells): string | undefined {
  try {
    return registrationId === undefined ? undefined : kit.checkRegistrationId(registrationId)
  } catch {
    return undefined
  }
}

function increase(counts: Map<string, number>, name: string): void {
  counts.set(name, (counts.get(name) ?? 0) + 1)
}

function sizeOf(path: string, as: string): number | undefined {
  try {
    const stats = statSync(path)
    if (stats.isDirectory()) throw kit.usage(`${as}: ${kit.printable(path, 200)} is a directory`)
    return stats.isFile() && stats.size > 0 ? stats.size : undefined
  } catch (error) {
    if (kit.DpsError.is(error)) throw error
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT'
    throw kit.usage(
      `${as}: ${kit.printable(path, 200)} ${missing ? 'does not exist' : 'may not be read by this user'}`,
    )
  }
}

/** The roots are read when the first device is; nothing else of this process reads them. */
function useOwnCertFile(roots: unknown): void {
  const { env } = process
  const own = env.DPS_DEVICE_SSL_CERT_FILE
  if (roots !== 'system' || own === undefined) return
  if (own === '') delete env.SSL_CERT_FILE
  else env.SSL_CERT_FILE = own
}

function duration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`
  const minutes = Math.round(seconds / 60)
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}
