// A device in a process of its own: `node device.mjs FOLDER NAME…` registers with each credential of FOLDER/devices.json
// named, over MQTT and HTTPS. Prints one line of JSON for each registration and ends with 0 only if all were assigned.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [folder, ...names] = process.argv.slice(2)
const { library, client, credentials } = JSON.parse(readFileSync(join(folder, 'devices.json'), 'utf8'))
const { ProvisioningClient, DpsError, x509 } = await import(pathToFileURL(library).href)

for (const name of names) {
  const credential = x509(credentials[name])
  for (const transport of ['mqtt', 'https']) {
    // Each is a full handshake, in which the key has to sign.
    const tls = { sessionResumption: false }
    try {
      const assignment = await new ProvisioningClient({ ...client, transport, tls, credential }).register()
      console.log(JSON.stringify({ name, transport, assigned: assignment.assignedHub }))
    } catch (error) {
      const { code, phase } = DpsError.is(error) ? error : { code: 'NOT_OURS', phase: '' }
      const cause = error.cause?.message
      console.log(JSON.stringify({ name, transport, code, phase, message: error.message, cause }))
      process.exitCode = 1
    }
  }
}
