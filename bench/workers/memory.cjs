// A process whose memory is looked at. params of the job: { client, scene, idle }
//
//     node [--expose-gc] bench/workers/memory.cjs '{ client, scene, idle }'
//
// On the IPC channel: `{ register: n }` registers n times, one after the other, and answers when done; `{ open: n }`
// begins n registrations of the device `idle`, which wait for ever, and answers at once; `'look'` collects garbage where
// that is exposed, and answers with the RSS and the heap in use, bytes.

'use strict'

const { setImmediate: turn } = require('node:timers/promises')

const { client, scene, idle } = JSON.parse(process.argv[2])
const { open } = require(`../clients/${client}.cjs`)
const device = open(scene)
const waiting = idle && open({ ...scene, device: idle })

async function look() {
  // Twice: what a finalizer lets go of is collected the next time.
  for (let i = 0; i < 2 && global.gc !== undefined; i++) {
    global.gc()
    await turn()
  }
  const { rss, heapUsed } = process.memoryUsage()
  return { rss, heapUsed }
}

const fail = (error) => process.send({ error: error.stack })

process.on('message', async (message) => {
  try {
    if (message === 'look') return process.send(await look())
    for (let i = 0; i < (message.register ?? 0); i++) {
      const { status } = await device.register()
      if (status !== 'assigned') throw new Error(`ended as ${status}`)
    }
    for (let i = 0; i < (message.open ?? 0); i++)
      waiting.register().then(() => fail(new Error('answered')), fail)
    process.send({ done: true })
  } catch (error) {
    fail(error)
  }
})
process.once('disconnect', () => process.exit())
