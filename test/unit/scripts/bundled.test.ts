import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeEach, expect, it } from 'vitest'
import { billOfMaterials, readBundled, thirdPartyNotices } from '../../../scripts/bundled.mjs'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const own = { name: 'ours', version: '1.2.3', license: 'MIT' }
let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'bundled-'))
  return () => rmSync(folder, { recursive: true })
})

/** The one module of a package. */
function put(name: string, license: string, text?: string): string {
  const at = join(folder, 'node_modules', name)
  mkdirSync(at, { recursive: true })
  writeFileSync(join(at, 'package.json'), JSON.stringify({ name, version: '4.5.6', license }))
  if (text !== undefined) writeFileSync(join(at, 'LICENCE.md'), text)
  writeFileSync(join(at, 'index.js'), '/* Copyright (c) of the same. */\n')
  return join(at, 'index.js')
}

it('the bill of materials and the notices name the same packages, in one order', () => {
  const files = [put('zed', 'ISC', ' Text of zed.\n'), put('@a/b', 'MIT', 'Text of b.')]
  const bundled = readBundled([...files, join(root, 'src/index.ts'), files[0]])
  const { components, dependencies, metadata } = billOfMaterials(own, bundled)
  const refs = ['pkg:npm/%40a/b@4.5.6', 'pkg:npm/zed@4.5.6']
  expect(components.map((part: { purl: string }) => part.purl)).toEqual(refs)
  expect(dependencies).toEqual([{ ref: 'pkg:npm/ours@1.2.3', dependsOn: refs }])
  expect(metadata.component.licenses).toEqual([{ license: { id: 'MIT' } }])
  const text = thirdPartyNotices(bundled)
  expect(text).toContain('\n@a/b 4.5.6 (MIT)\n----------------\n\nText of b.\n')
  expect(text.indexOf('Text of zed.')).toBeGreaterThan(text.indexOf('Text of b.'))
})

it('of node-forge the BSD licence is taken, with its whole text and nothing of the other', () => {
  const forge = join(root, 'node_modules/node-forge')
  const bundled = readBundled([join(forge, 'lib/util.js')])
  expect(billOfMaterials(own, bundled).components[0]?.licenses).toEqual([{ license: { id: 'BSD-3-Clause' } }])
  const text = thirdPartyNotices(bundled)
  const [first, bsd, gpl] = readFileSync(join(forge, 'LICENSE'), 'utf8').split(/^-{60,}\n/m)
  expect(first).toContain('either the BSD License or the')
  expect(text).toContain(bsd!.trim().split('\n').slice(1).join('\n'))
  expect(text).toContain('used here under the BSD-3-Clause licence')
  expect(gpl).toContain('GNU GENERAL PUBLIC LICENSE')
  expect(text).not.toContain('GNU')
})

it('a package without a licence file, with a choice nobody made, or with another choice than that made, fails the build', () => {
  expect(() => readBundled([put('none', 'MIT')])).toThrow('none is bundled but has no licence file')
  expect(() => readBundled([put('either', 'MIT OR Apache-2.0', 'text')])).toThrow('say in ELECTED')
  expect(() => readBundled([put('node-forge', 'GPL-3.0', 'New BSD License (3-clause)')])).toThrow(
    'is no longer under',
  )
})

it('a module that is somebody else’s in turn keeps the terms that stand in it', () => {
  const baseN = join(root, 'node_modules/node-forge/lib/baseN.js')
  const notice = thirdPartyNotices(readBundled([baseN, join(root, 'node_modules/node-forge/lib/util.js')]))
  expect(notice).toContain('\nlib/baseN.js:\n')
  expect(notice).toContain('\nCopyright base-x contributors (c) 2016\n')
  expect(notice).toContain('shall be included in\nall copies or substantial portions of the Software.\n')
  expect(notice).toMatch(/DEALINGS\s+IN THE SOFTWARE\.\n$/)
})
