// A device whose symmetric key is in its TPM; swtpm stands for the chip. The TPM computes the HMAC of every token: a child
// process each time, about once per connection.
//
// Needs on Debian: swtpm, tpm2-tools.
//
//   ✓ tcp           4.8 ms   connected
//   ✓ tls          12.5 ms   chain, name and suite verified
//   tpm2_hmac -c 0x81010001 -g sha256
//   ✓ connect      48.4 ms   identity accepted
//   ✓ subscribe     0.9 ms   listening for replies
//   ✓ register      7.6 ms   registration accepted
//   … assigning  asking again in 2.2 s
//   ✓ poll          7.4 ms   operation finished
//   meter-0815 is device meter-0815 of contoso-hub-east.azure-devices.net
//   TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384, X25519
//   validated by "Emulator Root 1"; 7 round trips, 2248 ms in all

import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ProvisioningClient, sasSigner } from 'dps-device-client'
import { generateSymmetricKey } from 'dps-device-client/emulator'
import { emulator } from '../support/emulator.mjs'
import { dim, progress, summary } from '../support/print.mjs'

if (['swtpm', 'tpm2_hmac'].some((tool) => spawnSync(tool, ['--version']).error)) {
  console.error('This example needs: apt-get install swtpm tpm2-tools')
  process.exit(1)
}

// The chip. On a device it is /dev/tpmrm0, and nothing has to be started or named.
const folder = mkdtempSync(join(tmpdir(), 'hardware-key-'))
const socket = join(folder, 'tpm')
const sockets = ['--server', `type=unixio,path=${socket}`, '--ctrl', `type=unixio,path=${socket}.ctrl`]
const state = ['--tpm2', '--tpmstate', `dir=${folder}`, '--flags', 'not-need-init,startup-clear']
execFileSync('swtpm', ['socket', ...state, ...sockets, '--daemon', '--pid', `file=${socket}.pid`])
process.on('exit', () => {
  process.kill(Number(readFileSync(`${socket}.pid`, 'utf8')))
  rmSync(folder, { recursive: true, force: true })
})
const options = {
  cwd: folder,
  env: { ...process.env, TPM2TOOLS_TCTI: `swtpm:path=${socket}` },
}
/** @type {(command: string) => void} */
const tpm = (command) => {
  const [program = '', ...args] = command.split(' ')
  execFileSync(program, args, { ...options, stdio: 'ignore' })
  // A bare TPM holds three objects; the kernel's resource manager swaps them.
  execFileSync('tpm2_flushcontext', ['-t'], { ...options, stdio: 'ignore' })
}

// In the factory: the key of the enrollment goes into the TPM, under a handle that stays, and is wiped elsewhere.
const registrationId = 'meter-0815'
const primaryKey = generateSymmetricKey()
emulator.enrollments.addIndividual({ registrationId, attestation: { symmetricKey: { primaryKey } } })
writeFileSync(join(folder, 'key'), Buffer.from(primaryKey, 'base64'), { mode: 0o600 })
tpm('tpm2_createprimary -Q -C o -c primary.ctx')
tpm('tpm2_import -Q -C primary.ctx -G hmac -i key -u key.pub -r key.priv')
rmSync(join(folder, 'key'))
tpm('tpm2_load -Q -C primary.ctx -u key.pub -r key.priv -c key.ctx')
tpm('tpm2_evictcontrol -Q -C o -c key.ctx 0x81010001')

/** @type {(text: string) => Promise<Uint8Array>} */
const sign = (text) =>
  new Promise((resolve, reject) => {
    console.log(`  ${dim('tpm2_hmac -c 0x81010001 -g sha256')}`)
    const child = execFile(
      'tpm2_hmac',
      ['-c', '0x81010001', '-g', 'sha256'],
      { ...options, encoding: 'buffer', timeout: 10_000 },
      (error, signature) => (error ? reject(error) : resolve(signature)),
    )
    // What became of the tool is told by the callback above.
    child.stdin?.on('error', () => {}).end(text)
  })

const client = new ProvisioningClient({
  ...emulator.clientOptions(),
  credential: sasSigner({ registrationId, sign, keyId: '0x81010001' }),
  onEvent: progress,
})

summary(await client.register())
