// Makes a release, or says what stands in its way. Last line: `N passed, N failed`.
//
//     node scripts/release.mjs                 a dry run: every check and test, and the package in release/; nothing is published
//     node scripts/release.mjs --no-tests      the same without the tests, for whoever works on this script
//     node scripts/release.mjs --publish       publishes, with provenance, the package that a dry run left in release/
//     --out FOLDER                             in place of release/
//
// Provenance is a statement of the workflow that publishes, so --publish works there alone. It runs no code but this and
// npm's: what was built and tested with the code of others is held to its checksum, which only a dry run without a fault writes.

import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { checks } from './checks.mjs'
import { prerequisites, sameParts } from './release-checks.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values } = parseArgs({
  options: {
    publish: { type: 'boolean', default: false },
    'no-tests': { type: 'boolean', default: false },
    out: { type: 'string', default: join(root, 'release') },
  },
})
const { publish, 'no-tests': noTests, out } = values
if (publish && process.env.ACTIONS_ID_TOKEN_REQUEST_URL === undefined) {
  console.error('--publish is for the release workflow, whose identity the provenance states.')
  process.exit(2)
}

const { check, count, end } = checks()
const npm = (...args) => execFileSync('npm', args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })
const own = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const filename = `${own.name}-${own.version}.tgz`
const tarball = join(out, filename)
const sums = join(out, 'SHA256SUMS')
const sumOf = () => `${createHash('sha256').update(readFileSync(tarball)).digest('hex')}  ${filename}\n`
const packed = (path) => execFileSync('tar', ['-xzOf', tarball, `package/${path}`], { encoding: 'utf8' })

for (const [name, action] of prerequisites(root, process.env)) check(name, action)

if (!publish) {
  mkdirSync(out, { recursive: true })
  rmSync(sums, { force: true })
  // `npm test` checks, and builds first, as `npm run test:package` does.
  for (const script of noTests ? ['build'] : ['test', 'test:package']) {
    check(`npm run ${script}`, () => void npm('run', script))
  }
  check('it is packed', () => void npm('pack', '--silent', '--pack-destination', out))
}
check('the package holds a bill of materials and the notices of the same parts', () => {
  const sbom = packed('dist/sbom.cdx.json')
  const parts = sameParts(sbom, packed('dist/THIRD-PARTY-NOTICES.txt'), own)
  if (!publish) writeFileSync(tarball.replace(/tgz$/, 'cdx.json'), sbom)
  return parts
})
if (publish) {
  check('the package is the one that was tested', () => {
    if (readFileSync(sums, 'utf8') !== sumOf())
      throw new Error(`${filename} has another checksum than SHA256SUMS`)
  })
  if (count.failed === 0)
    check('npm publish', () => void npm('publish', tarball, '--provenance', '--access', 'public'))
  else console.log('Not published.')
} else {
  if (count.failed === 0 && !noTests) writeFileSync(sums, sumOf())
  console.log(
    `A dry run: nothing was published. ${count.failed === 0 && !noTests ? sumOf().trim() : 'Not to be published either.'}`,
  )
}
end()
