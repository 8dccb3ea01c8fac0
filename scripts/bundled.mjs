// What is inside dist/ of other people's packages: the bill of materials and the notices, both made of one list.

import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'

/**
 * Where a package leaves the choice between licences, the one it is taken under, and where the text of that one stands in
 * its licence file.
 */
const ELECTED = {
  'node-forge': {
    offered: '(BSD-3-Clause OR GPL-2.0)',
    licence: 'BSD-3-Clause',
    text: /^New BSD License \(3-clause\)\n(Copyright \(c\)[\s\S]*?)\n-{60,}\n/m,
  },
}

/** The packages that `files`, paths of modules, are of; each once, by name: `{ name, version, licence, notice }`. */
export function readBundled(files) {
  const folders = new Map()
  for (const file of files) {
    const [, folder] = /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(file) ?? []
    if (folder !== undefined) folders.set(folder, [...(folders.get(folder) ?? []), file])
  }
  return [...folders]
    .map(readPackage)
    .sort((a, b) => a.name.localeCompare(b.name) || a.version.localeCompare(b.version))
}

function readPackage([folder, files]) {
  const manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry))
  if (file === undefined) throw new Error(`${manifest.name} is bundled but has no licence file`)
  const { licence, notice } = elect(manifest, readFileSync(join(folder, file), 'utf8'))
  const more = files
    .sort()
    .flatMap((path) => ownTerms(path).map((text) => `${relative(folder, path)}:\n\n${text}`))
  return { ...manifest, licence, notice: [notice, ...more].join('\n\n') }
}

/** What a module says of somebody else's code that is in it, in a comment that is a licence by itself. */
const ownTerms = (path) =>
  (readFileSync(path, 'utf8').match(/\/\*[\s\S]*?\*\//g) ?? [])
    .filter((comment) => /copyright/i.test(comment) && /permission|redistribution/i.test(comment))
    .map((comment) => comment.replace(/^ ?\/?\*+\/?[ \t]?/gm, '').trim())

function elect({ name, license }, text) {
  const choice = ELECTED[name]
  if (choice === undefined) {
    if (/ OR /.test(license))
      throw new Error(`${name} is under "${license}": say in ELECTED which one is taken`)
    return { licence: license, notice: text.trim() }
  }
  const { offered, licence, text: pattern } = choice
  const [, chosen] = pattern.exec(text) ?? []
  if (license !== offered || chosen === undefined) {
    throw new Error(`${name} is no longer under ${offered}, or its licence file has changed: look at ELECTED`)
  }
  const election = `Offered under ${offered}; used here under the ${licence} licence.`
  return { licence, notice: `${election}\n\n${chosen.trim()}` }
}

const purl = ({ name, version }) => `pkg:npm/${name.replace('@', '%40')}@${version}`
const component = (part, licence) => ({
  type: 'library',
  'bom-ref': purl(part),
  name: part.name,
  version: part.version,
  purl: purl(part),
  licenses: [/ AND |[()]/.test(licence) ? { expression: licence } : { license: { id: licence } }],
})

/** CycloneDX 1.5. */
export const billOfMaterials = (own, bundled) => ({
  bomFormat: 'CycloneDX',
  specVersion: '1.5',
  version: 1,
  metadata: { component: component(own, own.license) },
  components: bundled.map((part) => component(part, part.licence)),
  dependencies: [{ ref: purl(own), dependsOn: bundled.map(purl) }],
})

export function thirdPartyNotices(bundled) {
  const notices = bundled.map(({ name, version, licence, notice }) => {
    const title = `${name} ${version} (${licence})`
    return `${title}\n${'-'.repeat(title.length)}\n\n${notice}\n`
  })
  return `This package contains code of the following packages.\n\n${notices.join('\n\n')}`
}
