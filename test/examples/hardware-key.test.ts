import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

// The examples as they are, over the built package. `npm run hardware` runs them too, with every Node.

const isThere = (tool: string) => spawnSync(tool, ['--version']).error === undefined
const isLibrary = (name: string) =>
  existsSync('/usr/lib') &&
  readdirSync('/usr/lib').some((folder) => existsSync(join('/usr/lib', folder, name)))

const EXAMPLES = [
  {
    name: 'x509-pkcs11',
    hasTools:
      ['softhsm2-util', 'pkcs11-tool'].every(isThere) &&
      ['engines-3/pkcs11.so', 'softhsm/libsofthsm2.so'].every(isLibrary),
    packages: 'softhsm2 opensc libengine-pkcs11-openssl',
    says: /press-0043 is device press-0043 of contoso-hub-(west|east)\./,
  },
  {
    name: 'sas-tpm',
    hasTools: ['swtpm', 'tpm2_hmac'].every(isThere),
    packages: 'swtpm tpm2-tools',
    says: /tpm2_hmac -c 0x81010001[\s\S]*meter-0815 is device meter-0815 of contoso-hub-(west|east)\./,
  },
]

async function run(name: string) {
  const script = fileURLToPath(new URL(`../../examples/hardware-key/${name}.mjs`, import.meta.url))
  const { NODE_EXTRA_CA_CERTS: _, ...env } = process.env
  const child = spawn(process.execPath, [script], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  const [output, error, [code]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'exit'),
  ])
  return { output, error, code }
}

describe.each(EXAMPLES)('examples/hardware-key/$name.mjs', ({ name, hasTools, packages, says }) => {
  it.skipIf(!hasTools)(
    `registers with a key that stays in the chip (needs ${packages})`,
    async () => {
      const { output, error, code } = await run(name)
      expect({ error, code }).toEqual({ error: '', code: 0 })
      expect(output).toMatch(says)
    },
    60_000,
  )

  it.skipIf(hasTools)(
    'says what to install where the tools are missing',
    async () => {
      const { error, code } = await run(name)
      expect(code).toBe(1)
      expect(error).toBe(`This example needs: apt-get install ${packages}\n`)
    },
    60_000,
  )
})
