// Completes dist/ after tsup: ESM entries, their types, the bill of materials and the notices of what is bundled.

import { chmodSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { billOfMaterials, readBundled, thirdPartyNotices } from './bundled.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const dist = join(root, 'dist')
const require = createRequire(import.meta.url)
const readJson = (path) => JSON.parse(readFileSync(path, 'utf8'))
const own = readJson(join(root, 'package.json'))

const outputs = {}
for (const name of ['metafile-esm.json', 'metafile-cjs.json']) {
  const metafile = join(dist, name)
  Object.assign(outputs, readJson(metafile).outputs)
  rmSync(metafile)
}

// The command: a shell script whose second line is also JavaScript. `--use-openssl-ca` keeps Node 20 from parsing 140
// roots that nobody trusts here; it is taken only at the start of a process, and `env -S` is not everywhere. OpenSSL then
// reads `SSL_CERT_FILE`: a file that cannot exist takes no time, and src/cli/register.ts puts the user's own back.
const start = [
  `case "\${NODE_OPTIONS-}" in *--use-bundled-ca*) exec node "$0" "$@";; esac`,
  `export DPS_DEVICE_SSL_CERT_FILE="\${SSL_CERT_FILE-}" SSL_CERT_FILE=/dev/null/none`,
  `exec node --use-openssl-ca "$0" "$@"`,
].join('; ')
const command = join(dist, 'dps-device.cjs')
const program = readFileSync(command, 'utf8').replace(/^"use strict";/, '')
// Two strings in a row are directives: the second still makes the file strict.
writeFileSync(command, `#!/bin/sh\n":" //; ${start}\n"use strict";${program}`)
chmodSync(command, 0o755)

// Declarations are read by an editor: one space of indentation does what four do, in seven kilobytes less.
for (const name of readdirSync(dist).filter((file) => file.endsWith('.d.cts'))) {
  const text = readFileSync(join(dist, name), 'utf8')
  writeFileSync(
    join(dist, name),
    text.replace(/^(?: {4})+/gm, ({ length }) => ' '.repeat(length / 4)),
  )
}

// An ESM entry holds no code, so `import` and `require` are the same module instances.
for (const subpath of Object.keys(own.exports)) {
  const target = own.exports[subpath].import?.default
  if (target === undefined) continue
  const name = target.slice('./dist/'.length, -'.mjs'.length)
  const names = Object.keys(require(join(dist, `${name}.cjs`))).filter((key) => key !== '__esModule')
  if (names.length === 0) throw new Error(`dist/${name}.cjs exports nothing`)
  writeFileSync(
    join(dist, `${name}.mjs`),
    `import implementation from './${name}.cjs'\nexport const { ${names.sort().join(', ')} } = implementation\n`,
  )
  writeFileSync(join(dist, `${name}.d.mts`), `export * from './${name}.cjs'\n`)
}

// Only what esbuild really put into a file counts: a devDependency that was shaken away is not shipped.
const shipped = new Set()
for (const { inputs } of Object.values(outputs)) {
  for (const [path, { bytesInOutput }] of Object.entries(inputs)) {
    if (bytesInOutput > 0 && path.includes('node_modules/')) shipped.add(join(root, path))
  }
}
const bundled = readBundled([...shipped])
writeFileSync(join(dist, 'sbom.cdx.json'), `${JSON.stringify(billOfMaterials(own, bundled), null, 1)}\n`)
writeFileSync(join(dist, 'THIRD-PARTY-NOTICES.txt'), thirdPartyNotices(bundled))

console.error(
  `dist: ${bundled.map(({ name, version }) => `${name}@${version}`).join(', ') || 'nothing'} bundled`,
)
