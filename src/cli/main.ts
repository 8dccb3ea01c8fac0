import { statSync } from 'node:fs'
import { version } from '../../package.json'
import { DpsError } from '../errors.ts'
import { printable } from '../printable.ts'
import { EXIT, type ExitCode, exitCodeOf } from './exit-codes.ts'
import { lineOf, readInput } from './input.ts'
import { createKit } from './kit.ts'
import { helpIsOf, REGISTER_OPTIONS, resolveOptions, withoutMark } from './options.ts'
import { describeError, errorJson, type Output, openOutput } from './output.ts'
import { register } from './register.ts'

/** The whole command: what `args` ask for, done; resolves to the exit code when nothing is left running. */
export async function main(args: readonly string[], environment: NodeJS.ProcessEnv): Promise<ExitCode> {
  const output = await openOutput(environment)
  const code = await attempt(args, environment, output)
  return code === EXIT.ok && output.lost ? EXIT.config : code
}

async function attempt(
  args: readonly string[],
  environment: NodeJS.ProcessEnv,
  output: Output,
): Promise<ExitCode> {
  let config: string | undefined
  const read = (path: string, as: string): string => {
    config = lineOf(readInput(path, as, 'OPTION_INVALID'))
    return config
  }
  try {
    return await run(args, environment, output, read)
  } catch (error) {
    const json = wantsJson(args, environment, () => config ?? peek(args, environment))
    if (DpsError.is(error)) {
      if (json) output.result(errorJson(error))
      else output.note(describeError(error, output))
      return exitCodeOf(error)
    }
    if (json) output.result(JSON.stringify({ error: { code: 'UNEXPECTED', message: describeFault(error) } }))
    else {
      output.note(`${output.alarm('UNEXPECTED')}: ${describeFault(error)}`)
      output.note(`This is a fault of dps-device ${version}: please report it.`)
    }
    return EXIT.unexpected
  }
}

async function run(
  args: readonly string[],
  environment: NodeJS.ProcessEnv,
  output: Output,
  read: (path: string, as: string) => string,
): Promise<ExitCode> {
  const [name, ...rest] = args
  if (args.includes('--version')) {
    output.result(version)
    return EXIT.ok
  }
  if (name === 'register' && !args.some((arg) => arg === '--help' || arg === '-h')) {
    helpIsOf(name)
    return register(resolveOptions(REGISTER_OPTIONS, rest, environment, read), output)
  }
  // Everything else is in a file of its own, which a registration does not load.
  const { perform } = await import('./commands.ts')
  return perform(createKit(), args, output, (specs, more) => resolveOptions(specs, more, environment, read))
}

/** What is wrong with the options is not known to want JSON by its own option. */
function wantsJson(
  args: readonly string[],
  environment: NodeJS.ProcessEnv,
  config: () => string | undefined,
): boolean {
  const arg = args.find((one) => /^--json(?:=|$)/.test(one))
  const said = arg === undefined ? environment.DPS_JSON || undefined : arg.slice('--json='.length)
  if (said !== undefined) return /^(?:|1|true)$/.test(said)
  try {
    return JSON.parse(withoutMark(config() ?? '')).json === true
  } catch {
    return false
  }
}

/** The file of `--config`, where an argument was wrong before it was read; a pipe may have nothing to say, for ever. */
function peek(args: readonly string[], environment: NodeJS.ProcessEnv): string | undefined {
  const at = args.findIndex((arg) => /^--config(?:=|$)/.test(arg))
  const path = at === -1 ? environment.DPS_CONFIG : (/=(.*)/s.exec(args[at]!)?.[1] ?? args[at + 1])
  return path !== undefined && statSync(path).isFile()
    ? readInput(path, '--config', 'OPTION_INVALID').toString()
    : undefined
}

/** What an error of Node or of this program may say: its kind and where it arose. Its message may quote what was given. */
function describeFault(error: unknown): string {
  if (!(error instanceof Error)) return 'something was thrown that is no error'
  const { code } = error as NodeJS.ErrnoException
  const frame = error.stack?.split('\n').find((line) => line.startsWith('    at '))
  return printable(`${error.name}${code === undefined ? '' : ` ${code}`}${frame?.slice(3) ?? ''}`, 400)
}
