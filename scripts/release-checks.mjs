// What must hold before a version is published. Each check throws where it does not, and returns what it found.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

const git = (root, ...args) =>
  execFileSync('git', args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim()
const read = (root, path) => readFileSync(join(root, path), 'utf8')
const json = (root, path) => JSON.parse(read(root, path))

/**
 * Of a project at `root`.
 *
 * @param {string} root
 * @param {Record<string, string | undefined>} environment
 * @returns {[name: string, check: () => string][]}
 */
export const prerequisites = (root, environment) => [
  ['nothing is uncommitted', () => cleanTree(root)],
  ['one version in package.json and package-lock.json', () => oneVersion(root)],
  ['the changelog begins with this version and its day', () => dated(root)],
  ['the commit is tagged with the version', () => tagged(root)],
  ['the repository is named, for the statement of provenance', () => named(root, environment)],
]

function cleanTree(root) {
  const changes = git(root, 'status', '--porcelain')
  if (changes !== '') throw new Error(`not committed:\n${changes}`)
  return git(root, 'rev-parse', '--short', 'HEAD')
}

function oneVersion(root) {
  const { version, name } = json(root, 'package.json')
  if (!/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version)) throw new Error(`"${version}" is no semantic version`)
  const lock = json(root, 'package-lock.json')
  for (const locked of [lock.version, lock.packages[''].version]) {
    if (locked !== version) throw new Error(`package-lock.json has ${locked}, package.json ${version}`)
  }
  return `${name} ${version}`
}

function dated(root) {
  const { version } = json(root, 'package.json')
  const [, latest, day] = /^## (\S+) \((.+)\)$/m.exec(read(root, 'CHANGELOG.md')) ?? []
  if (latest !== version)
    throw new Error(`its first entry is of ${latest ?? 'no version'}, not of ${version}`)
  if (!/^\d{4}-\d\d-\d\d$/.test(day))
    throw new Error(`${version} is "${day}": write the day of the release there`)
  const [, made] = /RELEASED_AT_MS = Date\.UTC\(([\d, ]+)\)/.exec(read(root, 'src/release.ts')) ?? []
  const [year, month, date] = (made ?? '').split(',').map(Number)
  const released = new Date(Date.UTC(year, month, date))
  if (Number.isNaN(released.getTime()) || released.toISOString().slice(0, 10) !== day) {
    throw new Error(`src/release.ts has another day than ${day}: it is the floor of every device's clock`)
  }
  return day
}

function tagged(root) {
  const tag = `v${json(root, 'package.json').version}`
  const tags = git(root, 'tag', '--points-at', 'HEAD').split('\n')
  if (!tags.includes(tag)) throw new Error(`there is no tag ${tag} on this commit`)
  return tag
}

function named(root, { GITHUB_REPOSITORY: here }) {
  const { url } = json(root, 'package.json').repository ?? {}
  if (url === undefined) throw new Error('package.json has no repository.url, which the registry compares')
  if (here !== undefined && !url.replace(/\.git$/, '').endsWith(`/${here}`))
    throw new Error(`${url} is not ${here}, which publishes`)
  return url
}

/**
 * The bill of materials and the notices of what is bundled: one list, each part under a licence that asks for no more than its text.
 *
 * @param {string} sbom
 * @param {string} notices
 * @param {{ name: string, version: string }} own
 */
export function sameParts(sbom, notices, own) {
  const { bomFormat, metadata, components, dependencies } = JSON.parse(sbom)
  if (bomFormat !== 'CycloneDX') throw new Error('the bill of materials is not CycloneDX')
  const { name, version } = metadata.component
  if (name !== own.name || version !== own.version) throw new Error(`it is of ${name} ${version}`)
  const listed = components.map((part) => {
    const [{ license, expression }] = part.licenses
    return `${part.name} ${part.version} (${license?.id ?? expression})`
  })
  const noticed = [...notices.matchAll(/^(\S+ \S+ \(.+\))\n-+\n/gm)].map(([, title]) => title)
  const lacks = (these, those) => these.filter((part) => !those.includes(part))
  for (const part of lacks(listed, noticed)) throw new Error(`${part} has no notice`)
  for (const part of lacks(noticed, listed)) throw new Error(`${part} is not in the bill of materials`)
  if (listed.length === 0) throw new Error('both are empty')
  const strange = listed.filter(
    (part) => !/\((MIT|ISC|BSD-[23]-Clause|Apache-2\.0|BlueOak-1\.0\.0)\)$/.test(part),
  )
  if (strange.length > 0) throw new Error(`look at the licence of ${strange.join(', ')}`)
  if (dependencies[0].dependsOn.length !== components.length)
    throw new Error('its dependencies are not its parts')
  return `${listed.length} parts`
}
