import { EXIT_CODES } from './exit-codes.ts'
import { environmentName, fileName, type OptionSpec, REGISTER_OPTIONS } from './options.ts'

const WIDTH = 28

const row = (left: string, right: string): string =>
  left.length < WIDTH - 2 ? `  ${left.padEnd(WIDTH - 2)}${right}` : `  ${left}\n${' '.repeat(WIDTH)}${right}`

const argument = ({ name, value }: OptionSpec): string =>
  value === undefined ? `--${name}` : `--${name} ${value}`

/** Made of the tables that the program itself goes by. */
export function help(): string {
  const options = REGISTER_OPTIONS.filter(({ kind }) => kind !== 'secret')
  const secrets = REGISTER_OPTIONS.filter(({ kind }) => kind === 'secret')
  return `dps-device register: registers this device with the Azure IoT Hub Device Provisioning Service

With a certificate, whose CN is the registration id:
  dps-device register --id-scope 0ne00000000 --cert device.pem --key device.key
With a symmetric key, from a file or from standard input:
  dps-device register --id-scope 0ne00000000 --registration-id press-42 --symmetric-key-file -

Options
${options.map((option) => row(argument(option), option.help)).join('\n')}

Each of them is also an environment variable, as --id-scope is ${environmentName('id-scope')}, and a member of the --config file,
as it is ${fileName('id-scope')} there. An argument is stronger than the environment, and that than the file.
Secrets are never arguments, which every user of the machine can read:
${secrets.map(({ name, help, instead }) => row(environmentName(name), `${help}; else ${instead}`)).join('\n')}
A proxy with a password goes into ${environmentName('proxy')}.

Exit codes
${EXIT_CODES.map(([code, meaning]) => row(`${code}`.padStart(3), meaning)).join('\n')}

Ctrl-C cancels the registration and leaves nothing behind; pressed again it ends the program at once.`
}
