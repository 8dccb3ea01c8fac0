// Makes a release, or says what stands in its way. Last line: `N passed, N failed`.
//
//     node scripts/release.mjs                 a dry run: every check and test, the files in release/, nothing published
//     node scripts/release.mjs --no-tests      the dry run without the tests
//     node scripts/release.mjs --publish       the same as a dry run, then `npm publish --provenance` of what was tested
//     --out FOLDER                             in place of release/
//
// Provenance is a statement of the machine that built the package, so --publish works in the release workflow alone.

import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
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
if (publish && noTests) {
  console.error('What was not tested is not published: leave --no-tests out.')
  process.exit(2)
}
if (publish && process.env.ACTIONS_ID_TOKEN_REQUEST_URL === undefined) {
  console.error('--publish is for the release workflow, whose identity the provenance states.')
  process.exit(2)
}

let passed = 0
let failed = 0
function check(name, action) {
  try {
    const detail = action()
    passed++
    console.log(`ok      ${name}${detail ? ` (${detail})` : ''}`)
  } catch (error) {
    failed++
    console.log(`FAILED  ${name}: ${error.message}`)
  }
}
const npm = (...args) => execFileSync('npm', args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })

for (const [name, action] of prerequisites(root, process.env)) check(name, action)

// `npm test` checks, and builds first, as `npm run test:package` does.
const scripts = noTests ? ['build'] : ['test', 'test:package']
for (const script of scripts) check(`npm run ${script}`, () => void npm('run', script))

const own = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
let tarball
check('the package holds a bill of materials and the notices of the same parts', () => {
  mkdirSync(out, { recursive: true })
  const [{ filename }] = JSON.parse(
    execFileSync('npm', ['pack', '--json', '--pack-destination', out], { cwd: root, encoding: 'utf8' }),
  )
  tarball = join(out, filename)
  const packed = (path) => execFileSync('tar', ['-xzOf', tarball, `package/${path}`], { encoding: 'utf8' })
  const sbom = packed('dist/sbom.cdx.json')
  writeFileSync(join(out, `${filename.slice(0, -'.tgz'.length)}.cdx.json`), sbom)
  const sha256 = createHash('sha256').update(readFileSync(tarball)).digest('hex')
  writeFileSync(join(out, 'SHA256SUMS'), `${sha256}  ${filename}\n`)
  return `${sameParts(sbom, packed('dist/THIRD-PARTY-NOTICES.txt'), own)}, ${filename}, sha256 ${sha256}`
})

if (publish && failed === 0) {
  check('npm publish', () => void npm('publish', tarball, '--provenance', '--access', 'public'))
} else {
  console.log(publish ? 'Not published.' : 'A dry run: nothing was published.')
}
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
