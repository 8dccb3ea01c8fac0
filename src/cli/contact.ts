import type { ProvisioningClient } from '../index.ts'
import type { CallOptions } from '../options/options.ts'
import { kit } from './kit.ts'
import type { Options } from './options.ts'
import type { Output } from './output.ts'
import { CREDENTIAL, NETWORK, optionsOf, type Verb } from './verb.ts'

const ALL = ['id-scope', ...CREDENTIAL, 'transport', ...NETWORK, 'timeout', 'api-version']

export const lookup = (): Verb => ({
  about: 'asks what the service knows of this device; registers nothing',
  help: `Reads the registration of this device, over HTTPS: its hub, its state, and why it failed if it did. It starts nothing
and is not billed.

  dps-device lookup --id-scope 0ne00000000 --cert device.pem --key device.key
  dps-device lookup --config device.json --json

A device that never registered is refused with NOT_FOUND (exit code ${kit.EXIT.refused}).`,
  options: optionsOf(ALL.filter((name) => name !== 'transport')),
  run: (options, output) =>
    contact(options, output, async (client, call) => {
      const state = await client.lookup(call)
      const { strong } = output
      const { printable } = kit
      const { deviceId, assignedHub, substatus, serviceErrorCode, serviceErrorMessage, payload } = state
      const shown = (text: string | undefined) => (text === undefined ? undefined : printable(text))
      return [
        state,
        [
          ['status', strong(printable(state.status)) + (substatus ? ` (${printable(substatus)})` : '')],
          ['device', shown(deviceId)],
          ['hub', assignedHub && strong(printable(assignedHub))],
          [
            'error',
            serviceErrorCode === undefined
              ? undefined
              : `${serviceErrorCode} ${shown(serviceErrorMessage) ?? ''}`,
          ],
          ['payload', payload && printable(JSON.stringify(payload), 400)],
          ['updated', state.lastUpdatedAt?.toISOString()],
          ...kit.connectionRows(state.connection),
        ],
      ]
    }),
})

export const probe = (): Verb => ({
  about: 'reaches the service and leaves again; registers nothing',
  help: `Reaches the service over each step of the way: name, route, proxy, TLS and, over MQTT, the credential. Nothing is
registered. Over HTTPS the service looks at a credential only with a request: there it stands for network and TLS.

  dps-device probe --id-scope 0ne00000000 --cert device.pem --key device.key
  dps-device probe --id-scope 0ne00000000 --cert device.pem --key device.key --transport mqtt-ws

To find out why it does not get through: dps-device doctor.`,
  options: optionsOf(ALL),
  run: (options, output) =>
    contact(options, output, async (client, call) => {
      const found = await client.probe(call)
      return [
        found,
        [
          ['device', output.strong(kit.printable(found.registrationId))],
          ...kit.connectionRows(found.connection),
        ],
      ]
    }),
})

type Rows = Parameters<typeof kit.describeRows>[0]

function contact(
  options: Options,
  output: Output,
  ask: (client: ProvisioningClient, call: CallOptions) => Promise<readonly [unknown, Rows]>,
) {
  return kit.perform(options, output, async (listen) => {
    const library = await import('../index.ts')
    const quiet = kit.flag(options, 'quiet')
    const settings = kit.settingsOf(options)
    const client = kit.withOwnCertFile(
      settings.trust,
      () =>
        new library.ProvisioningClient({
          ...settings,
          idScope: kit.idScopeOf(options),
          credential: kit.credentialOf(options, library),
          transport: kit.transportsOf(options),
          onEvent: kit.onEvent(output, quiet),
        }),
    )
    const call = kit.given('timeoutMs', kit.timeoutOf(options))
    const [found, rows] = await ask(client, { ...call, signal: listen() })
    output.clear()
    if (kit.flag(options, 'json')) output.result(JSON.stringify(found))
    else if (!quiet) output.result(kit.describeRows(rows))
    return kit.EXIT.ok
  })
}
