import { fstatSync, writeSync } from 'node:fs'
import type { Assignment, AssignmentConnection } from '../assignment/assignment.ts'
import { DpsError } from '../errors.ts'
import type { DpsEvent } from '../options/options.ts'
import { printable } from '../printable.ts'
import { pause } from './input.ts'

const STDOUT = 1
const STDERR = 2

/** A reader that takes nothing for so long is gone. */
const MAX_PAUSES = 500

export interface Output {
  /** Whether some of what was to be on standard output is not there, though somebody may be waiting for it. */
  readonly lost: boolean
  /** The result, or the error where `--json` asks for it there. */
  result(text: string): void
  /** For people. */
  note(text: string): void
  /** One line that the next one replaces; on a terminal only. */
  progress(text: string): void
  /** Takes the line of progress away. */
  clear(): void
  /** Emphasis on standard output, on standard error; nothing but on a terminal. */
  readonly strong: (text: string) => string
  readonly alarm: (text: string) => string
  /** A colour (SGR) on standard output; nothing but on a terminal. */
  readonly tint: (code: number, text: string) => string
}

/** The process's own streams, without Node's: their objects cost as much as reading every file of a registration. */
export async function openOutput(environment: NodeJS.ProcessEnv): Promise<Output> {
  const [out, err] = [await isTerminal(STDOUT), await isTerminal(STDERR)]
  // https://no-color.org
  const colour = (environment.NO_COLOR ?? '') === '' && environment.TERM !== 'dumb'
  let shown = false
  let lost: string | undefined
  const clear = () => {
    if (shown) write(STDERR, '\r\x1b[K')
    shown = false
  }
  const paint = (on: boolean, code: number) => (text: string) =>
    on && colour ? `\x1b[${code}m${text}\x1b[0m` : text
  return {
    get lost() {
      return lost !== undefined
    },
    result: (text) => {
      clear()
      if (lost !== undefined) return
      lost = write(STDOUT, `${text}\n`)
      if (lost !== undefined)
        write(STDERR, `standard output could not be written (${lost}): what is there is not whole\n`)
    },
    note: (text) => {
      clear()
      write(STDERR, `${text}\n`)
    },
    progress: (text) => {
      if (!err || environment.TERM === 'dumb') return
      // Without wrapping (DECAWM): what a narrow terminal breaks into two lines, the next one cannot replace.
      write(STDERR, `\r\x1b[K\x1b[?7l${text}\x1b[?7h`)
      shown = true
    },
    clear,
    strong: paint(out, 1),
    tint: (code, text) => paint(out, code)(text),
    alarm: paint(err, 31),
  }
}

async function isTerminal(fd: number): Promise<boolean> {
  try {
    // A pipe or a file is told apart without loading anything.
    return fstatSync(fd).isCharacterDevice() && (await import('node:tty')).isatty(fd)
  } catch {
    // Closed by whoever started this.
    return false
  }
}

/** Nobody reads: that is no failure of the registration. */
const UNREAD = ['EPIPE', 'EIO', 'EBADF']

/**
 * All of it, before anything else happens: nothing is lost where the process ends next.
 *
 * @returns what kept it from being written: a disk that is full, or a reader that stands still
 */
function write(fd: number, text: string): string | undefined {
  let bytes = Buffer.from(text)
  for (let pauses = 0; bytes.length > 0; ) {
    try {
      bytes = bytes.subarray(writeSync(fd, bytes))
    } catch (error) {
      const { code = 'unknown error' } = error as NodeJS.ErrnoException
      if (UNREAD.includes(code)) return undefined
      if (code !== 'EAGAIN' || ++pauses > MAX_PAUSES) return code
      pause(10)
    }
  }
  return undefined
}

/** A few lines for people. */
export function describeAssignment(assignment: Assignment, { strong }: Pick<Output, 'strong'>): string {
  const { substatus, payload } = assignment
  return describeRows([
    ['device', strong(printable(assignment.deviceId))],
    ['hub', strong(printable(assignment.assignedHub))],
    ['status', substatus === undefined ? undefined : printable(substatus)],
    ['payload', payload === undefined ? undefined : printable(JSON.stringify(payload), 400)],
    ...connectionRows(assignment.connection),
  ])
}

type Row = readonly [name: string, value: string | undefined]

export const describeRows = (rows: readonly Row[]): string =>
  rows
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name.padEnd(8)}${value}`)
    .join('\n')

export function connectionRows(connection: AssignmentConnection): readonly Row[] {
  const { protocol, cipher, curve, root, transport, roundTrips, resumed, timingsMs } = connection
  return [
    ['root', printable(root)],
    ['suite', `${cipher}, ${curve}, ${protocol}${resumed ? ', resumed' : ''}`],
    ['time', `${seconds(timingsMs.total)}, ${roundTrips} round trips over ${transport}`],
  ]
}

/** What the library calls by the names of its options, a user of the command knows as arguments. */
const SPOKEN: readonly (readonly [RegExp, string])[] = [
  [/`?\btrust\.extraRoots\b`?/g, '--extra-root'],
  [/`?\btrust\.roots\b`?/g, '--roots'],
  [/`?\btimeouts\.totalMs\b`?/g, '--timeout'],
  [/`?\bidScope\b`?/g, '--id-scope'],
  [/`?\bconnectTo\b`?/g, '--connect-to'],
  [/`?\bapiVersion\b`?/g, '--api-version'],
  [/`(host|port|proxy)`/g, '--$1'],
  // Of the emulator, in the words of its list of enrollments and of its faults.
  [/`attestation\.symmetricKey\.primaryKey`/g, 'what is in symmetricKeyFile'],
  [/`attestation\.x509\.(?:certificate|ca)`/g, 'what is in certificateFile'],
  [/`times` must be a positive integer or Infinity/g, 'TIMES must be a number of at least 1, or forever'],
  [/^(host|port|proxy|transport|payload) (?=must |names )/, '--$1 '],
]
/** And what is an option in the command, and a column in a list. */
const OWN: readonly (readonly [RegExp, string])[] = [
  // Where there is another name for its file, the command has one for both.
  [/`(cert|key|pkcs12)` or `\1File`|`(cert|key|pkcs12)File` or `\2`/g, '`$1$2`'],
  [/`registrationId`/g, 'registration-id'],
  [/`passphrase`/g, 'key-passphrase-file'],
  [/`(cert|key|pkcs12)`/g, '$1'],
]
const FOR_OPTIONS = [
  ...SPOKEN,
  ...OWN.map(([name, option]) => [name, option.replace(/^(?!`)/, '--')] as const),
]
const FOR_COLUMNS = [...SPOKEN, OWN[0]!, [/`(\w+)`/g, '$1'] as const]

const replaced = (text: string, names: readonly (readonly [RegExp, string])[]): string =>
  names.reduce(
    (said, [name, option]) => said.replace(name, option),
    text.replace(/\btrust\.extraRoots\[(\d+)\]/g, (_, at) => `trust.extraRoots number ${Number(at) + 1}`),
  )

/** The text of the library in the words of the command. */
export const spoken = (text: string): string => replaced(text, FOR_OPTIONS)

/** The same about a row of a list, whose columns have the names of the library. */
export const spokenOfRow = (text: string): string => replaced(text, FOR_COLUMNS)

/** Code, phase and message; what to do; what support asks for. */
export function describeError(error: DpsError, { alarm }: Pick<Output, 'alarm'>): string {
  const say = (text: string) => spoken(printable(text, 1000))
  const lines = [`${alarm(error.code)} in phase ${error.phase}: ${say(error.message)}`]
  if (DpsError.is(error.cause)) lines.push(`because of ${error.cause.code}: ${say(error.cause.message)}`)
  lines.push(say(error.hint))
  const { serviceErrorCode, trackingId, serverTime, retryAfterMs } = error
  const details = [
    serviceErrorCode === undefined ? undefined : `service error ${serviceErrorCode}`,
    trackingId === undefined ? undefined : `tracking id ${printable(trackingId, 100)}`,
    serverTime === undefined ? undefined : `service time ${serverTime.toISOString()}`,
    retryAfterMs === undefined ? undefined : `to be tried again after ${seconds(retryAfterMs)}`,
  ].filter((detail) => detail !== undefined)
  if (details.length > 0) lines.push(details.join(', '))
  return lines.join('\n')
}

export function errorJson(error: DpsError): string {
  const { name: _, ...facts } = error.toJSON()
  const cause = DpsError.is(error.cause)
    ? { code: error.cause.code, message: error.cause.message }
    : undefined
  return JSON.stringify({ error: { ...facts, cause } })
}

const PHASES: Readonly<Record<string, string>> = {
  config: 'reading the credential',
  clock: 'looking at the clock',
  dns: 'resolving the name',
  proxy: 'asking the proxy',
  tcp: 'connecting',
  tls: 'TLS handshake',
  connect: 'greeting the service',
  subscribe: 'subscribing',
  register: 'registering',
  poll: 'asking for the assignment',
}

/** Tells people what happens, where they want to know. */
export function onEvent(output: Output, quiet: boolean): (event: DpsEvent) => void {
  return (event) => {
    if (quiet) return
    if (event.type === 'warning') output.note(`warning: ${event.message}`)
    const line = describeEvent(event)
    if (line !== undefined) output.progress(line)
  }
}

/** What happens, in a line; undefined for what need not be said. */
export function describeEvent(event: DpsEvent): string | undefined {
  switch (event.type) {
    case 'phase-started':
      return `${PHASES[event.phase] ?? event.phase} …`
    case 'retry':
      return `${event.error.code} (${event.step}, failure ${event.attempt}); again in ${seconds(event.delayMs)} …`
    case 'assigning':
      return `the service is assigning; asked again in ${seconds(event.delayMs)} …`
    case 'fallback':
      return `${event.from} does not get through (${event.error.code}); trying ${event.to} …`
    case 'credential-fallback':
      return `credential ${event.from + 1} is of no use (${event.error.code}); trying the next …`
    case 'waiting-for-clock':
      return 'waiting for the clock …'
    default:
      return undefined
  }
}

function seconds(ms: number): string {
  return ms < 10_000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.round(ms / 1000)} s`
}
