// Our handshake: `probe()` over HTTPS, which is TCP, TLS under the whole policy, the validated root named, and the end.
// params: { port, device?, resume?, legacy?, again? }
// again: what is made anew for every connection, of the same content: 'client' (and its credential), 'credential',
// 'files' (the credential reads them). Default nothing.

'use strict'

const { writeFileSync } = require('node:fs')
const { dirname, join } = require('node:path')
const { ProvisioningClient, symmetricKey, x509 } = require('../../dist/index.cjs')
const { serve } = require('../lib/worker.cjs')

serve(async ({ scene, sceneFile, params }) => {
  const { port, device, resume = false, legacy = false, again } = params
  const identity = () =>
    device === undefined
      ? symmetricKey(scene.devices.sas)
      : x509({ cert: scene.devices[device].cert, key: scene.devices[device].key })
  const credential = {
    credential: () => ({ load: () => identity().load() }),
    files: () => {
      const [certFile, keyFile] = ['cert', 'key'].map((name) => {
        const file = join(dirname(sceneFile), `${process.pid}-${name}.pem`)
        writeFileSync(file, scene.devices[device][name], { mode: 0o600 })
        return file
      })
      return x509({ certFile, keyFile })
    },
  }
  const build = () =>
    new ProvisioningClient({
      idScope: scene.idScope,
      host: scene.host,
      connectTo: scene.address,
      port,
      trust: scene.trust,
      transport: 'https',
      tls: { sessionResumption: resume, ...(legacy ? { legacyCiphers: 'security' } : {}) },
      credential: (credential[again] ?? identity)(),
    })
  let client = build()
  // The first handshake of a worker is never a resumed one.
  const seen = (await client.probe()).connection
  let done = 0
  let resumed = 0
  return {
    operation: async () => {
      if (again === 'client') client = build()
      const { connection } = await client.probe()
      done++
      if (connection.resumed) resumed++
    },
    facts: () => {
      const { protocol, cipher, curve, root } = seen
      const facts = { done, resumed, protocol, cipher, curve, root }
      done = resumed = 0
      return facts
    },
  }
})
