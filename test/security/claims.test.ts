import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

// SECURITY.md claims nothing without a test, and names none that is not there.

const root = fileURLToPath(new URL('../../', import.meta.url))
const text = readFileSync(`${root}SECURITY.md`, 'utf8')

const TITLE =
  /\b(?:it|test|lie|describe)(?:\.\w+(?:<[^>]*>)?(?:\([^;]*?\))?)*\(\s*(?:'((?:[^'\\]|\\.)*)'|`([^`]*)`)/g
const titlesOf = (file: string): readonly string[] => {
  const source = readFileSync(file, 'utf8')
  // A title may also stand in a table of cases.
  const cases = [...source.matchAll(/^\s*\[?\s*'([^'\n]+)',/gm)].map(([, title]) => title!)
  return [...[...source.matchAll(TITLE)].map(([, plain, template]) => (plain ?? template)!), ...cases]
}

interface Claim {
  readonly claim: string
  readonly tests: readonly (readonly [file: string, names: readonly string[]])[]
}
const claims: readonly Claim[] = [...text.matchAll(/^\| (?!Claim \||Asset \||-)(.+) \| (.+) \|$/gm)]
  .filter(([row]) => row.split(' | ').length === 2)
  .map(([, claim = '', tests = '']) => ({
    claim,
    tests: [...tests.matchAll(/`([\w/-]+)`: (\*[^*]+\*(?:, \*[^*]+\*)*)/g)].map(
      ([, file = '', names = '']) => [file, [...names.matchAll(/\*([^*]+)\*/g)].map(([, name]) => name!)],
    ),
  }))

describe('SECURITY.md', () => {
  it('claims something in each of its parts', () => {
    expect(claims.length).toBeGreaterThan(25)
    const parts = text.split(/^### /m).slice(1)
    expect(parts.length).toBe(6)
    for (const part of parts) {
      expect(part).toContain('| Claim | Test |')
      expect(part).toContain('\nNot stopped: ')
    }
    expect(text).toContain(
      '`issuedCertificate` keeps private keys unencrypted in its store (`fileStore`: mode 0600).',
    )
  })

  for (const { claim, tests } of claims) {
    it(`is tested where it says: ${claim}`, () => {
      expect(tests.length).toBeGreaterThan(0)
      for (const [file, names] of tests) {
        const path = `${root}test/${file}.test.ts`
        expect([file, existsSync(path)]).toEqual([file, true])
        const titles = titlesOf(path)
        for (const name of names) {
          expect([file, name, titles.some((title) => title.includes(name))]).toEqual([file, name, true])
        }
      }
    })
  }

  it('names every test of this folder that is about the product', () => {
    const named = new Set(claims.flatMap(({ tests }) => tests.map(([file]) => file)))
    for (const name of ['secrets', 'pollution', 'oversized', 'lock-files'])
      expect(named).toContain(`security/${name}`)
  })
})
