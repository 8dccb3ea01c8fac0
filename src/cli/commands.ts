import { lookup, probe } from './contact.ts'
import { csr } from './csr.ts'
import { deriveKey } from './derive-key.ts'
import { doctor, inspect } from './doctor.ts'
import { emulator } from './emulator/verb.ts'
import type { ExitCode } from './exit-codes.ts'
import { helpOf, overview } from './help.ts'
import { hold, type Kit, kit } from './kit.ts'
import { registerMany } from './many/verb.ts'
import type { OptionSpec, Options } from './options.ts'
import type { Output } from './output.ts'
import { rootsCheck, rootsList, rootsRehearse } from './roots.ts'
import { registration, type Verb } from './verb.ts'

/** By name, in the order of the help. Made when the kit is there, of which they are made. */
const verbs = (): Readonly<Record<string, Verb>> => ({
  doctor: doctor(),
  register: registration(),
  'register-many': registerMany(),
  lookup: lookup(),
  probe: probe(),
  inspect: inspect(),
  roots: rootsList(),
  'roots list': { ...rootsList(), about: '' },
  'roots rehearse': rootsRehearse(),
  'roots check': rootsCheck(),
  'derive-key': deriveKey(),
  csr: csr(),
  emulator: emulator(),
})

/** Everything that the command does but a registration. */
export async function perform(
  handed: Kit,
  args: readonly string[],
  output: Output,
  resolve: (specs: readonly OptionSpec[], args: readonly string[]) => Options,
): Promise<ExitCode> {
  hold(handed)
  const known = verbs()
  const asksHelp = args[0] === 'help' || args.some((arg) => arg === '--help' || arg === '-h')
  const words = args.filter((arg, i) => arg !== '-h' && (i > 0 || arg !== 'help'))
  const [first, second] = words
  if (first === undefined || first === '--help') {
    output.result(overview(known))
    return args.length === 0 ? kit.EXIT.usage : kit.EXIT.ok
  }
  const both = `${first} ${second}`
  const name = Object.hasOwn(known, both) ? both : first
  const verb = Object.hasOwn(known, name) ? known[name] : undefined
  if (verb === undefined) {
    if (first.startsWith('--')) throw kit.usage('the name of a command must come first')
    throw kit.unknown(first, Object.keys(known))
  }
  if (asksHelp) {
    output.result(helpOf(name, verb, known))
    return kit.EXIT.ok
  }
  kit.helpIsOf(name)
  return verb.run(resolve(verb.options, operandOf(name, verb, words.slice(name.split(' ').length))), output)
}

/** A word that stands by itself, where the command takes one, as the argument that it stands for. */
function operandOf(name: string, { operand, operands }: Verb, args: readonly string[]): readonly string[] {
  const [word, ...rest] = args
  if (word === undefined || (word.startsWith('-') && word !== '-')) return args
  if (operand !== undefined) return [`--${operand}=${word}`, ...rest]
  if (operands !== undefined) throw kit.unknown(word, operands, ` as a part of ${name}`)
  return args
}
