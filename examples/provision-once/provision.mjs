// What provision-once.service runs: it learns the hub of this device, once, and writes it where the application's unit reads
// it. From the second boot on it comes from the store, with no packet.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileStore, provision, symmetricKey } from 'dps-device-client'

// config.json: registrationId, keyFile, and options of `provision` as they are, such as `"idScope": "0ne…"`.
const config = JSON.parse(readFileSync(process.env.DEVICE_CONFIG ?? '/etc/device/config.json', 'utf8'))
const { registrationId, keyFile, ...options } = config

const { assignedHub, deviceId, source } = await provision({
  ...options,
  credential: symmetricKey({ registrationId, keyFile }),
  store: fileStore(join(process.env.STATE_DIRECTORY ?? '/var/lib/device', 'assignment')),
  waitForClock: {},
})
const environment = `HUB=${assignedHub}\nDEVICE_ID=${deviceId}\n`
writeFileSync(join(process.env.RUNTIME_DIRECTORY ?? '/run/device', 'hub.env'), environment)
console.log(`  ${deviceId} belongs to ${assignedHub}, says the ${source === 'store' ? 'store' : 'service'}`)
