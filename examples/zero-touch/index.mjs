// A device that leaves the factory with a bootstrap key, gets a certificate of two minutes from the service, and renews it
// three times while it sends a message each second. It takes some five minutes; ZERO_TOUCH_LIFETIME_S=6 makes lives shorter.
//
//     0.0 s  asks for a certificate, with the bootstrap key
//     2.3 s  ✓ the hub takes certificate 560EE2AD until 07:48:48
//     2.3 s  sensor-7f3a is on contoso-hub-east.azure-devices.net
//   101.6 s  asks for a certificate, of the hub
//   101.7 s  ✓ the hub takes certificate 7D9262E3 until 07:50:28
//   197.8 s  asks for a certificate, of the hub
//   197.9 s  ✓ the hub takes certificate 61FAAD13 until 07:52:04
//   292.2 s  asks for a certificate, of the hub
//   292.2 s  ✓ the hub takes certificate 54C436CF until 07:53:38
//   3 renewals, 4 certificates, 290 messages sent, 0 lost

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileStore, issuedCertificate, symmetricKey } from 'dps-device-client'
import { provisionAndConnect } from 'dps-device-client/hub'
import { emulator } from '../support/emulator.mjs'
import { bold, dim, green } from '../support/print.mjs'

const lifetimeMs = Number(process.env.ZERO_TOUCH_LIFETIME_S ?? 120) * 1000
const RENEWALS = 3

// On the service: an enrollment with a bootstrap key, and a policy by which certificates are issued.
const registrationId = 'sensor-7f3a'
const keys = emulator.enrollments.addIndividual({
  registrationId,
  attestation: { symmetricKey: {} },
  issuance: { lifetimeMs },
})
const bootstrap = symmetricKey({ registrationId, key: keys.primaryKey })

// On the device: what it has to keep. Files that only it can read, each replaced at one stroke.
const folder = mkdtempSync(join(tmpdir(), 'zero-touch-'))
const issued = issuedCertificate({ store: fileStore(join(folder, 'certificate')) })

const startedAt = performance.now()
let renewals = -1
/** @param {string} text */
const say = (text) =>
  console.log(`  ${dim(`${((performance.now() - startedAt) / 1000).toFixed(1).padStart(6)} s`)}  ${text}`)

// Against Azure `idScope: '0ne…'` stands in place of the emulator's options, and nothing in place of those of its hub.
const hub = await provisionAndConnect({
  ...emulator.clientOptions(),
  hub: emulator.hubOptions(),
  store: fileStore(join(folder, 'assignment')),
  credential: [issued, bootstrap],
  issuance: {},
  onEvent: (event) => {
    if (event.type === 'certificate-requested')
      say(`asks for a certificate, ${event.via === 'hub' ? 'of the hub' : 'with the bootstrap key'}`)
    if (event.type === 'certificate-in-use') {
      renewals += 1
      const { serialNumber, validUntil } = event.certificate
      say(
        `${green('✓')} the hub takes certificate ${bold(serialNumber.slice(0, 8))} ${dim(`until ${validUntil.toISOString().slice(11, 19)}`)}`,
      )
    }
    if (event.type === 'certificate-renewal-failed')
      say(`failed: ${event.error.code}, again in ${event.delayMs} ms`)
  },
})
say(`${bold(hub.deviceId)} is on ${hub.hub}`)

// The application: it sends, and knows nothing of certificates.
let sent = 0
/** @type {Promise<void>[]} */
const sending = []
while (renewals < RENEWALS) {
  sending.push(hub.sendTelemetry({ n: sent++ }))
  await setTimeout(lifetimeMs / 120)
}
await Promise.all(sending)
await hub.close()
rmSync(folder, { recursive: true })

const received = new Set(emulator.hub.telemetry.list().map(({ body }) => JSON.parse(String(body)).n))
const certificates = new Set(emulator.issuance.list().map(({ fingerprint256 }) => fingerprint256))
const lost = sent - received.size
console.log(
  `  ${renewals} renewals, ${certificates.size} certificates, ${sent} messages sent, ${bold(`${lost} lost`)}`,
)
process.exitCode = lost === 0 && certificates.size === RENEWALS + 1 ? 0 : 1
