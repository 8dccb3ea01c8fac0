import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { delimiter, dirname } from 'node:path'
import { promisify } from 'node:util'
import { startEmulator } from 'dps-device-client/emulator'

const emulator = await startEmulator({ assigning: { polls: 0 } })
const device = await emulator.issueDeviceCertificate({ registrationId: 'command' })
emulator.enrollments.addIndividual({
  registrationId: 'command',
  attestation: { x509: { certificate: device.cert } },
})
for (const [name, content] of Object.entries({
  cert: device.cert,
  key: device.key,
  root: emulator.roots[0],
})) {
  writeFileSync(`command-${name}.pem`, content)
}
const { idScope, address, port } = emulator
const args = ['register', '--id-scope', idScope, '--connect-to', address, '--port', `${port}`]
const trust = ['--roots', 'none', '--extra-root', 'command-root.pem', '--json']
// As npm installed it: a link, and whatever `node` is found first.
const env = { ...process.env, PATH: `${dirname(process.execPath)}${delimiter}${process.env.PATH}` }
const command = (more) => promisify(execFile)('node_modules/.bin/dps-device', more, { env })

for (const transport of ['mqtt', 'mqtt-ws', 'https']) {
  const credential = ['--cert', 'command-cert.pem', '--key', 'command-key.pem', '--transport', transport]
  const { stdout, stderr } = await command([...args, ...trust, ...credential])
  assert.equal(stderr, '')
  const { deviceId, connection } = JSON.parse(stdout)
  assert.deepEqual(
    [deviceId, connection.transport, connection.root],
    ['command', transport, 'Emulator Root 1'],
  )
}
const refused = await command([...args, '--cert', 'command-cert.pem', '--key', 'command-key.pem']).catch(
  (e) => e,
)
assert.equal(refused.code, 6)
assert.match(refused.stderr, /^SERVER_UNTRUSTED in phase tls/)
// The other commands are in a file of their own.
const credential = ['--cert', 'command-cert.pem', '--key', 'command-key.pem']
const doctor = JSON.parse((await command(['doctor', ...args.slice(1), ...trust, ...credential])).stdout)
assert.deepEqual([doctor.ok, doctor.exitCode, doctor.counts.error], [true, 0, 0])
assert.equal(JSON.parse((await command(['roots', '--json'])).stdout).length, 2)
// As a user calls it. npx is npm's own: it finds the link, and asks nobody.
const npx = ['--no-install', '--offline', 'dps-device', ...args, ...trust, ...credential]
const called = await promisify(execFile)('npx', npx, { env })
assert.equal(JSON.parse(called.stdout).deviceId, 'command')
await emulator.close()
console.log('dps-device registers over each transport, and examines the way there')
