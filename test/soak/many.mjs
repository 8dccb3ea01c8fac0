// Registers devices of one group, says of each when its line is safe, and is killed at any time.

import { fileJournal, provisionMany, symmetricKey } from 'dps-device-client'
import { deriveDeviceKey } from 'dps-device-client/factory'

const { client, groupKey, journal, devices } = JSON.parse(process.argv[2] ?? '')

async function* all() {
  for (let i = 0; i < devices; i++) {
    const registrationId = `device-${i}`
    const key = await deriveDeviceKey({ groupKey, registrationId })
    yield { credential: symmetricKey({ registrationId, key }) }
  }
}

for await (const { registrationId, source, error } of provisionMany(all(), {
  ...client,
  store: fileJournal(journal),
  concurrency: 8,
  ratePerMinute: Number.POSITIVE_INFINITY,
})) {
  if (error !== undefined) throw error
  await new Promise((done) => process.stdout.write(`${registrationId} ${source}\n`, done))
}
