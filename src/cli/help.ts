import { kit } from './kit.ts'
import type { OptionSpec } from './options.ts'
import type { Verb } from './verb.ts'

const WIDTH = 28

const row = (left: string, right: string): string =>
  left.length < WIDTH - 2 ? `  ${left.padEnd(WIDTH - 2)}${right}` : `  ${left}\n${' '.repeat(WIDTH)}${right}`

const argument = ({ name, value }: OptionSpec): string =>
  value === undefined ? `--${name}` : `--${name} ${value}`

const exitCodes = (): string =>
  `Exit codes
${kit.EXIT_CODES.map(([code, meaning]) => row(`${code}`.padStart(3), meaning)).join('\n')}`

type Verbs = Readonly<Record<string, Verb>>

export const overview = (verbs: Verbs): string =>
  `dps-device: provisions devices with the Azure IoT Hub Device Provisioning Service

${Object.entries(verbs)
  .filter(([, { about }]) => about !== '')
  .map(([name, { about }]) => row(name, about))
  .join('\n')}

First see whether this device can reach the service, then register it:
  dps-device doctor --id-scope 0ne00000000 --cert device.pem --key device.key
  dps-device register --id-scope 0ne00000000 --cert device.pem --key device.key

dps-device COMMAND --help explains each, with examples.

${exitCodes()}`

/** Made of the tables that the program itself goes by. */
export function helpOf(name: string, { help, operand, options }: Verb, verbs: Verbs): string {
  const shown = options.filter(({ kind }) => kind !== 'secret')
  const secrets = options.filter(({ kind }) => kind === 'secret')
  const example = (shown.find(({ name }) => name.includes('-')) ?? shown[0]!).name
  const others = Object.keys(verbs).filter((other) => other.startsWith(`${name} `))
  const { environmentName, fileName } = kit
  return `dps-device ${name}${operand === undefined ? '' : ` [${operand.toUpperCase()}]`}

${help}
${others.length === 0 ? '' : `\nSee also dps-device ${others.join(' --help, dps-device ')} --help.\n`}
Options
${shown.map((option) => row(argument(option), option.help)).join('\n')}

Each of them is also an environment variable, as --${example} is ${environmentName(example)}, and a member of the --config file,
as it is ${fileName(example)} there. An argument is stronger than the environment, and that than the file.${
    secrets.length === 0
      ? ''
      : `
Secrets are never arguments, which every user of the machine can read:
${secrets.map(({ name, help, instead }) => row(environmentName(name), `${help}; else ${instead}`)).join('\n')}`
  }${shown.some(({ name }) => name === 'proxy') ? `\nA proxy with a password goes into ${environmentName('proxy')}.` : ''}

${exitCodes()}`
}
