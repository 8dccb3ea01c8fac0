import { ProvisioningClient } from '../client.ts'
import { symmetricKey } from '../credential/sas.ts'
import { x509 } from '../credential/x509.ts'
import type { ProvisioningClientOptions, RegisterOptions } from '../options/options.ts'
import { mqttTransport } from '../transport/mqtt/mqtt.ts'
import { EXIT, type ExitCode } from './exit-codes.ts'
import type { Options } from './options.ts'
import { describeAssignment, type Output, onEvent } from './output.ts'
import {
  credentialOf,
  flag,
  given,
  idScopeOf,
  payloadOf,
  perform,
  settingsOf,
  text,
  timeoutOf,
  transportsOf,
  withOwnCertFile,
} from './settings.ts'

/** Registers the device, says how it went and returns the exit code. Everything is over when it resolves. */
export function register(options: Options, output: Output): Promise<ExitCode> {
  return perform(options, output, async (listen) => {
    const quiet = flag(options, 'quiet')
    const names = transportsOf(options)
    const onlyMqtt = names.length === 1 && names[0] === 'mqtt'
    // All the others come with the library, which is one implementation too: nothing here has any state by then.
    const library =
      onlyMqtt && !options.has('pkcs12')
        ? { ProvisioningClient, symmetricKey, x509 }
        : await import('../index.ts')
    const common = settingsOf(options)
    const settings: ProvisioningClientOptions = {
      ...common,
      idScope: idScopeOf(options),
      credential: credentialOf(options, library),
      transport: onlyMqtt ? mqttTransport() : names,
      onEvent: onEvent(output, quiet),
    }
    const call: RegisterOptions = {
      ...given('payload', payloadOf(options)),
      ...given('timeoutMs', timeoutOf(options)),
    }
    if (onlyMqtt) await favourShortRuns(text(options, 'connect-to') ?? text(options, 'host'))
    const client = withOwnCertFile(common.trust, () => new library.ProvisioningClient(settings))
    const assignment = await client.register({ ...call, signal: listen() })
    output.clear()
    if (flag(options, 'json')) output.result(JSON.stringify(assignment))
    else if (!quiet) output.result(describeAssignment(assignment, output))
    return EXIT.ok
  })
}

/**
 * V8 compiles a regular expression for speed before it has run twice, and Node's own for IP addresses is a big one. For
 * the whole process, so only the command may do it.
 */
async function favourShortRuns(host: string | undefined): Promise<void> {
  // Node's cache of its own code is made with other flags: what is loaded from now on is compiled anew.
  if (host === undefined || !/^[\d.:A-Fa-f]+$/.test(host)) await import('node:dns')
  const { setFlagsFromString } = await import('node:v8')
  setFlagsFromString('--no-regexp-optimization')
}
