// One client of bench/clients that registers again and again. params: { client, scene }

'use strict'

const { serve } = require('../lib/worker.cjs')

serve(async ({ params: { client, scene } }) => {
  const { register } = require(`../clients/${client}.cjs`).open(scene)
  let assigned = 0
  let resumed = 0
  const operation = async () => {
    const { status, connection } = await register()
    if (status === 'assigned') assigned++
    if (connection?.resumed) resumed++
  }
  // The first registration of a worker is never a resumed one.
  await operation()
  assigned = resumed = 0
  return {
    operation,
    facts: () => {
      const facts = { assigned, resumed }
      assigned = resumed = 0
      return facts
    },
  }
})
