// `tls.connect` and nothing else. params: { port, device?, resume?, context?: 'shared' | 'each', everyDefault? }

'use strict'

const tls = require('node:tls')
const { serve } = require('../lib/worker.cjs')

serve(async ({ scene, params }) => {
  const { port, device, resume = false, context = 'shared', everyDefault = false } = params
  const { cert, key } = scene.devices[device] ?? {}
  const options = {
    ca: scene.roots,
    ...(device === undefined ? {} : { cert, key }),
    // Offering TLS 1.3 as well costs more: the floor is the cheaper one.
    ...(everyDefault ? {} : { maxVersion: 'TLSv1.2' }),
  }
  const shared = tls.createSecureContext(options)
  const target = { host: scene.address, port, servername: scene.host }
  let session
  let done = 0
  let resumed = 0
  const connect = (look) =>
    new Promise((resolve, reject) => {
      const secureContext = context === 'shared' ? shared : tls.createSecureContext(options)
      const socket = tls.connect({ ...target, secureContext, ...(session && { session }) }, () => {
        done++
        if (socket.isSessionReused()) resumed++
        look?.(socket)
        socket.destroy()
      })
      // The newest ticket: the server sends one with every handshake, to our client too.
      if (resume) {
        socket.on('session', (ticket) => {
          session = ticket
        })
      }
      socket.on('error', reject)
      socket.on('close', resolve)
    })
  // Looked at once: looking costs instructions. The first handshake of a worker is never a resumed one.
  const seen = {}
  await connect((socket) => {
    seen.protocol = socket.getProtocol()
    seen.cipher = socket.getCipher().name
    seen.curve = socket.getEphemeralKeyInfo().name
  })
  done = resumed = 0
  return {
    operation: () => connect(),
    facts: () => {
      const facts = { done, resumed, ...seen }
      done = resumed = 0
      return facts
    },
  }
})
