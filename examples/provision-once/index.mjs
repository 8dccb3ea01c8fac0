// A device that registers once: three boots, each a process of its own, as provision-once.service starts it.
//
//   first boot
//   press-0042 belongs to contoso-hub-east.azure-devices.net, says the service
//   second boot, with no network
//   press-0042 belongs to contoso-hub-east.azure-devices.net, says the store
//   third boot, with another key
//   press-0042 belongs to contoso-hub-east.azure-devices.net, says the service
//   2 registrations were billed

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { emulator } from '../support/emulator.mjs'

const registrationId = 'press-0042'
const enroll = () => emulator.enrollments.addIndividual({ registrationId, attestation: { symmetricKey: {} } })

// On the device: its folders, its key and its configuration. Against Azure that is `{ "idScope": "0ne…", … }`.
const folder = mkdtempSync(join(tmpdir(), 'provision-once-'))
const keyFile = join(folder, 'key')
writeFileSync(keyFile, enroll().primaryKey, { mode: 0o600 })
const config = { ...emulator.clientOptions(), registrationId, keyFile }
writeFileSync(join(folder, 'config.json'), JSON.stringify(config))

async function boot() {
  const script = fileURLToPath(new URL('provision.mjs', import.meta.url))
  const env = {
    DEVICE_CONFIG: join(folder, 'config.json'),
    STATE_DIRECTORY: folder,
    RUNTIME_DIRECTORY: folder,
  }
  const device = spawn(process.execPath, [script], { env: { ...process.env, ...env }, stdio: 'inherit' })
  await once(device, 'exit')
}

console.log('  first boot')
await boot()

console.log('  second boot, with no network')
const offline = emulator.faults.add({ at: 'accept', do: 'reset', times: Number.POSITIVE_INFINITY })
await boot()
offline.remove()

console.log('  third boot, with another key')
writeFileSync(keyFile, enroll().primaryKey)
await boot()

console.log(`  ${emulator.registrations.get(registrationId)?.count} registrations were billed`)
rmSync(folder, { recursive: true })
