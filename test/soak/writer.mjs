// Writes one record after the other until it is killed, and says on a line of its own which one is safe.

import { readFileSync } from 'node:fs'
import { fileStore } from 'dps-device-client'

const [file = '', records = '', from = ''] = process.argv.slice(2)
const store = fileStore(file)
const all = JSON.parse(readFileSync(records, 'utf8')).map((/** @type {string} */ text) => Buffer.from(text))
console.log('ready')
for (let n = Number(from); ; n++) {
  await store.write(all[n % all.length])
  // Heard before the next begins: what a reader without a turn leaves in the pipe fills it, and from then on only waits here.
  await new Promise((done) => process.stdout.write(`${n}\n`, done))
}
