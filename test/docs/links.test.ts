import { existsSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { describe, expect, it } from 'vitest'
import { type Page, pageOf, pages, ROOT } from './markdown.ts'

/** As the forge makes them. */
function anchorsOf({ prose }: Page): ReadonlySet<string> {
  const seen = new Map<string, number>()
  const anchors = new Set<string>()
  for (const line of prose) {
    const title = /^#{1,6} (.*)$/.exec(line)?.[1]
    if (title === undefined) continue
    const plain = title.replace(/\[([^\]]*)\]\([^)]*\)/g, '$1').toLowerCase()
    const slug = plain.replace(/[^\p{L}\p{N}\p{M}_ -]/gu, '').replaceAll(' ', '-')
    const count = seen.get(slug) ?? 0
    seen.set(slug, count + 1)
    anchors.add(count === 0 ? slug : `${slug}-${count}`)
  }
  return anchors
}

/** Pages that are still to come. */
const AWAITED = new Set(['docs/fleet.md'])

const links = pages.flatMap((page) =>
  page.prose.flatMap((line, index) =>
    [...line.replace(/`[^`]*`/g, '').matchAll(/\]\(([^)\s]+)\)/g)].map(([, target = '']) => ({
      page,
      target,
      where: `${page.name}:${index + 1}`,
    })),
  ),
)
const relative = links.filter(({ target }) => !/^[a-z]+:/.test(target))

describe('links of the pages', () => {
  it('lead to what is there', () => {
    const broken = relative.flatMap(({ page, target, where }) => {
      const [path = '', anchor] = target.split('#')
      const name = path === '' ? page.name : normalize(join(dirname(page.name), path))
      if (name.startsWith('..') || !existsSync(join(ROOT, name)))
        return AWAITED.has(name) ? [] : `${where}: ${target}`
      if (anchor === undefined) return []
      const other = pageOf(name)
      return other !== undefined && anchorsOf(other).has(anchor) ? [] : `${where}: ${target}`
    })
    expect(broken).toEqual([])
    expect(relative.length).toBeGreaterThan(40)
  })

  it('to the outside are https', () => {
    expect(links.filter(({ target }) => /^[a-z]+:/.test(target) && !target.startsWith('https://'))).toEqual(
      [],
    )
  })

  it('reach every guide from the index', () => {
    const index = pageOf('docs/README.md')
    const named = new Set(
      relative.filter(({ page }) => page === index).map(({ target }) => target.split('#')[0]),
    )
    const guides = pages.filter(({ name }) => /^docs\/[^/]+\.md$/.test(name) && name !== index.name)
    expect(
      guides.filter(({ name }) => !named.has(name.slice('docs/'.length))).map(({ name }) => name),
    ).toEqual([])
  })
})
