import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'

it('no entry that is built loads more than it should: the main one neither emulator, hub, MQTT.js, ws nor node-forge, that of the hub no ws', () => {
  // As a consumer has it, since the package can name itself.
  const script = fileURLToPath(new URL('../package/consumer/graph.cjs', import.meta.url))
  const said = execFileSync(process.execPath, [script], { encoding: 'utf8' })
  expect(said).toMatch(/^files loaded: dps-device-client \d+, dps-device-client\/factory \d+, /)
})
