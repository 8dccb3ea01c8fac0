import dps = require('dps-device-client')
import emulator = require('dps-device-client/emulator')
import factory = require('dps-device-client/factory')
import live = require('dps-device-client/hub')
import testing = require('dps-device-client/testing')

const credential: dps.Credential = dps.sasSigner({
  registrationId: 'r',
  sign: async () => new Uint8Array(32),
})
const client = new dps.ProvisioningClient({ idScope: '0ne', credential })
const hub: Promise<string> = client.register().then((assignment) => assignment.assignedHub)
const started: Promise<emulator.Emulator> = emulator.startEmulator()
const key: Promise<string> = factory.deriveDeviceKey({ groupKey: 'k', registrationId: 'r' })
declare const makeTransport: () => dps.Transport
const cases: readonly testing.ContractCase[] = testing.transportContract({
  makeTransport,
  emulator: started,
})
const connected: Promise<live.HubConnection> = live.connectHub(
  { assignedHub: 'h', deviceId: 'd' },
  { credential },
)
// With verbatimModuleSyntax a CommonJS module says what it is.
export = { hub, started, key, cases, connected }
