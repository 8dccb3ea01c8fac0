import type { ExitCode } from './exit-codes.ts'
import { kit } from './kit.ts'
import type { OptionSpec, Options } from './options.ts'
import type { Output } from './output.ts'

/** What the command can do: all that its help is made of, and how it is done. */
export interface Verb {
  /** One line of the list of commands. */
  readonly about: string
  /** Whole lines: what it does, and examples. */
  readonly help: string
  readonly options: readonly OptionSpec[]
  /** The option that a word by itself is the value of. */
  readonly operand?: string
  /** The words that may follow the name. */
  readonly operands?: readonly string[]
  run(options: Options, output: Output): Promise<ExitCode>
}

/** Options of a registration, by name, and those that every command has. */
export function optionsOf(names: readonly string[], more: readonly OptionSpec[] = []): readonly OptionSpec[] {
  const common = ['json', 'quiet', 'config', 'help', 'version']
  const found = (wanted: readonly string[]) =>
    kit.REGISTER_OPTIONS.filter(({ name }) => wanted.includes(name))
  return [...more, ...found(names), ...found(common)]
}

export const CREDENTIAL = [
  'registration-id',
  'cert',
  'key',
  'pkcs12',
  'key-passphrase-file',
  'key-passphrase',
  'symmetric-key-file',
  'symmetric-key',
]
export const NETWORK = ['host', 'port', 'connect-to', 'proxy', 'roots', 'extra-root']

/** Where it is what the command is about. */
export const registrationIdOf = (help: string): OptionSpec => ({
  name: 'registration-id',
  kind: 'text',
  value: 'ID',
  help,
})

/** Where it is that of each connection. */
export const timeoutOf = (seconds: number): OptionSpec => ({
  name: 'timeout',
  kind: 'number',
  value: 'SECONDS',
  help: `for each connection; default ${seconds}`,
})

export const registration = (): Verb => ({
  about: 'registers this device and prints the hub that it is assigned to',
  help: `Registers this device with the Azure IoT Hub Device Provisioning Service.

With a certificate, whose CN is the registration id:
  dps-device register --id-scope 0ne00000000 --cert device.pem --key device.key
With a symmetric key, from a file or from standard input:
  dps-device register --id-scope 0ne00000000 --registration-id press-42 --symmetric-key-file -

Ctrl-C cancels the registration and leaves nothing behind; pressed again it ends the program at once.`,
  options: kit.REGISTER_OPTIONS,
  // The command's own file does that, and loads nothing for it.
  run: () => Promise.reject(new TypeError('register is not done here')),
})
