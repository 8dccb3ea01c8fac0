// The other side of test/soak/hub.mjs, in a process of its own so that only the device is measured.

import { startEmulator } from '../../dist/emulator.mjs'

/** Serial numbers that the hub has recorded, and how often. */
const recorded = new Map()
const emulator = await startEmulator({
  logSize: 10,
  onEvent: (event) => {
    if (event.type !== 'telemetry') return
    const serial = Number(event.message.body.toString())
    recorded.set(serial, (recorded.get(serial) ?? 0) + 1)
  },
})
const { primaryKey } = emulator.hub.addDevice({ deviceId: 'soak', authentication: { symmetricKey: {} } })

const QUESTIONS = {
  drop: ({ how, fault }) => {
    if (fault) emulator.faults.add(fault)
    return emulator.hub.disconnect('soak', how)
  },
  report: () => ({ serials: [...recorded.keys()], messages: emulator.hub.telemetry.received }),
  clear: () => recorded.clear(),
  open: () => emulator.openConnections,
}

process.once('disconnect', () => process.exit())
process.on('message', ({ id, question, ...input }) => {
  process.send({ id, answer: QUESTIONS[question](input) })
})
process.send({ ready: { options: emulator.hubOptions(), key: primaryKey } })
