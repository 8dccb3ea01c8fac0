// Loads an entry, in a process of its own, and prints what came with it.
// node load-probe.cjs ENTRY [TRANSPORT]

'use strict'

const { statSync, writeSync } = require('node:fs')
const { basename, dirname, join } = require('node:path')

const [entry, transport] = process.argv.slice(2)
const dist = join(dirname(dirname(__dirname)), 'dist')
const before = new Set(process.moduleLoadList)

const report = () => {
  const builtins = process.moduleLoadList.filter((name) => !before.has(name))
  const files = Object.keys(require.cache).filter((path) => dirname(path) === dist)
  const facts = {
    files: files.map((path) => basename(path)),
    bytes: files.reduce((sum, path) => sum + statSync(path).size, 0),
    builtins: builtins
      .filter((name) => name.startsWith('NativeModule '))
      .map((name) => name.slice('NativeModule '.length)),
  }
  writeSync(1, JSON.stringify(facts))
}

const loaded = require(join(dist, `${entry}.cjs`))
if (transport === undefined) report()
else {
  // A transport loads when a call needs it; nobody listens on this port, and by then all of it is there.
  const client = new loaded.ProvisioningClient({
    idScope: '0ne00000000',
    credential: loaded.symmetricKey({ registrationId: 'load', key: Buffer.alloc(32, 1).toString('base64') }),
    transport,
    connectTo: '127.0.0.1',
    port: 1,
  })
  client.probe().then(
    () => {
      throw new Error('somebody listens on port 1')
    },
    (error) => {
      if (error.phase !== 'tcp') throw error
      report()
    },
  )
}
