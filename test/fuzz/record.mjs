// Records what the emulator sends in registrations over each transport, decrypted, into corpus/*.json: the seeds of the
// fuzz tests. To be run again when the emulator's wire changes, on the built package: `node test/fuzz/record.mjs`.

import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import tls from 'node:tls'
import { DpsError, ProvisioningClient, symmetricKey } from 'dps-device-client'
import { createPki, startEmulator } from 'dps-device-client/emulator'

const pki = await createPki()
const registrationId = 'fuzz'

const SCENES = {
  assigned: { transports: ['mqtt', 'mqtt-ws', 'https'] },
  refused: {
    transports: ['mqtt', 'mqtt-ws', 'https'],
    fault: { at: 'register', do: { reply: { status: 401, errorCode: 401_002, message: 'Unauthorized' } } },
  },
  failed: { transports: ['mqtt', 'mqtt-ws', 'https'], fault: { at: 'register', do: { outcome: 'failed' } } },
  found: { transports: ['https'] },
}

for (const [name, { transports, fault }] of Object.entries(SCENES)) {
  for (const transport of transports) {
    const emulator = await startEmulator({ pki, assigning: { polls: 1, retryAfterSeconds: 0 } })
    const { primaryKey: key } = emulator.enrollments.addIndividual({
      registrationId,
      attestation: { symmetricKey: {} },
      payload: { site: 'Kraków 東京' },
    })
    const options = {
      ...emulator.clientOptions(),
      credential: symmetricKey({ registrationId, key }),
      retry: { pollIntervalMs: 0 },
      transport,
    }
    if (name === 'found') await new ProvisioningClient(options).register()
    if (fault !== undefined) emulator.faults.add(fault)

    // One entry for each time the client has asked and been answered.
    const asked = []
    const answers = []
    const tap = tls.createServer({ cert: pki.server.chainPem, key: pki.server.keyPem }, (device) => {
      const service = tls.connect({
        ...emulator.clientOptions(),
        host: '127.0.0.1',
        rejectUnauthorized: false,
      })
      for (const socket of [device, service]) socket.on('error', () => {})
      device.on('data', (bytes) => {
        asked.push(bytes)
        if (answers.at(-1)?.length !== 0) answers.push(Buffer.alloc(0))
        service.write(bytes)
      })
      service.on('data', (bytes) => {
        answers.push(Buffer.concat([answers.pop(), bytes]))
        device.write(bytes)
      })
      device.on('close', () => service.destroy())
      service.on('close', () => device.destroy())
    })
    tap.listen(0, '127.0.0.1')
    await once(tap, 'listening')
    const client = new ProvisioningClient({ ...options, port: tap.address().port })
    const outcome = await (name === 'found' ? client.lookup() : client.register()).then(
      ({ status }) => status,
      (error) => (DpsError.is(error) ? error.code : Promise.reject(error)),
    )
    tap.close()
    await emulator.close()

    // MQTT over WebSocket is masked on its way to the service; its answers say the same.
    const [, requestId] =
      /\$rid=([0-9a-z]+)/.exec(answers.map((bytes) => bytes.toString('latin1')).join('')) ?? []
    const [, accept] = /Sec-WebSocket-Accept: (\S+)/i.exec(answers[0].toString('latin1')) ?? []
    const transcript = {
      transport,
      outcome,
      ...(requestId && { requestId }),
      ...(accept && { accept }),
      // One character for each byte.
      answers: answers.filter(({ length }) => length > 0).map((bytes) => bytes.toString('latin1')),
    }
    const text = JSON.stringify(transcript, null, 2).replace(
      /[\x7f-\xff]/g,
      (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
    )
    writeFileSync(new URL(`corpus/${transport}-${name}.json`, import.meta.url), `${text}\n`)
    console.log(`${transport} ${name}: ${outcome}, ${transcript.answers.length} answers`)
  }
}
