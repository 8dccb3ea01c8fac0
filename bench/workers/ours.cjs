// Our handshake: `probe()` over HTTPS, which is TCP, TLS under the whole policy, the validated root named, and the end.
// params: { port, device?, resume?, rebuild?, ciphers?, legacy? }

'use strict'

const { ProvisioningClient, symmetricKey, x509 } = require('../../dist/index.cjs')
const { serve } = require('../lib/worker.cjs')

serve(async ({ scene, params }) => {
  const { port, device, resume = false, rebuild = false, legacy = false } = params
  const credential = () =>
    device === undefined
      ? symmetricKey(scene.devices.sas)
      : x509({ cert: scene.devices[device].cert, key: scene.devices[device].key })
  const build = () =>
    new ProvisioningClient({
      idScope: scene.idScope,
      host: scene.host,
      connectTo: scene.address,
      port,
      trust: scene.trust,
      transport: 'https',
      tls: { sessionResumption: resume, ...(legacy ? { legacyCiphers: 'security' } : {}) },
      credential: credential(),
    })
  let client = build()
  let done = 0
  let resumed = 0
  let last
  // The first handshake of a worker is never a resumed one.
  if (resume) await client.probe()
  return {
    operation: async () => {
      if (rebuild) client = build()
      const { connection } = await client.probe()
      done++
      if (connection.resumed) resumed++
      last = connection
    },
    facts: () => {
      const { protocol, cipher, curve, root } = last ?? {}
      const facts = { done, resumed, protocol, cipher, curve, root }
      done = resumed = 0
      return facts
    },
  }
})
