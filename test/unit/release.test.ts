import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { version } from '../../package.json'
import { RELEASED_AT_MS } from '../../src/release.ts'

it('the date of the release is that of the changelog, and has come', () => {
  const changelog = readFileSync(new URL('../../CHANGELOG.md', import.meta.url), 'utf8')
  const [, date] = new RegExp(`^## ${version.replaceAll('.', '\\.')} \\((.+)\\)$`, 'm').exec(changelog) ?? []
  expect(date).toMatch(/^(unreleased|\d{4}-\d\d-\d\d)$/)
  if (date !== 'unreleased') expect(new Date(RELEASED_AT_MS).toISOString().slice(0, 10)).toBe(date)
  // A floor in the future would refuse every right clock.
  expect(RELEASED_AT_MS).toBeLessThanOrEqual(Date.now())
})
