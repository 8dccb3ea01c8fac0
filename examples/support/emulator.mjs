// The emulator in place of Azure: a strict provisioning service on a free port of this machine, with real TLS and a
// certificate authority made a moment ago. One is shared by all examples that run in the same process.

import { startEmulator } from 'dps-device-client/emulator'

export const emulator = await startEmulator({
  hubs: ['contoso-hub-west.azure-devices.net', 'contoso-hub-east.azure-devices.net'],
  assigning: { polls: 1, retryAfterSeconds: 0 },
})

// It does not keep the example running once there is nothing left to do.
emulator.unref()
