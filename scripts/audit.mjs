// What is known against the packages that are bundled, of all that `npm audit` knows: those are in no dependency tree of a
// user, so nobody else can ask. `npm run audit` after a build; exits 1 where there is something, 2 where nobody answered.

import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/**
 * One line for each package of `bundled`, the components of the bill of materials, that a report of `npm audit --json` names
 * in the version that is bundled; undefined where it is no report.
 */
export function findings({ vulnerabilities } = {}, { packages }, bundled) {
  if (typeof vulnerabilities !== 'object' || vulnerabilities === null) return undefined
  const shipped = new Set(bundled.map(({ purl }) => decodeURIComponent(purl)))
  return Object.values(vulnerabilities).flatMap(({ name, severity, via, nodes }) => {
    if (!nodes.some((path) => shipped.has(`pkg:npm/${name}@${packages[path]?.version}`))) return []
    const advisories = via.map((one) => (typeof one === 'string' ? `by ${one}` : `${one.title} ${one.url}`))
    return [`${severity}: ${name}: ${advisories.join('; ')}`]
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = fileURLToPath(new URL('..', import.meta.url))
  const read = (path) => JSON.parse(readFileSync(join(root, path), 'utf8'))
  const { components } = read('dist/sbom.cdx.json')
  const { stdout } = spawnSync('npm', ['audit', '--json'], { cwd: root, encoding: 'utf8' })
  const found = findings(JSON.parse(stdout || '{}'), read('package-lock.json'), components)
  console.log(
    found === undefined
      ? 'the registry gave no answer, so nothing is known'
      : [...found, `${components.length} packages bundled, ${found.length} with advisories`].join('\n'),
  )
  process.exitCode = found === undefined ? 2 : found.length === 0 ? 0 : 1
}
