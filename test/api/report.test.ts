import { readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { apiReports } from '../../scripts/api-report.mjs'

// The reports that are committed are those of the declarations that are built: what a release changes is seen in review.

const here = fileURLToPath(new URL('.', import.meta.url))
const require = createRequire(import.meta.url)
const reports = apiReports()

describe('the API report', () => {
  it('is there for every entry, and for nothing else', () => {
    expect([...reports.keys()]).toEqual(
      ['index', 'hub', 'factory', 'emulator', 'testing'].map((n) => `${n}.api.md`),
    )
    expect(
      readdirSync(here)
        .filter((name) => name.endsWith('.md'))
        .sort(),
    ).toEqual([...reports.keys()].sort())
  })

  for (const [file, text] of reports) {
    it(`${file} says what the entry exports now; else run \`npm run api\` and look at the difference`, () => {
      expect(readFileSync(`${here}/${file}`, 'utf8')).toBe(text)
    })

    it(`${file} names what the entry has at run time`, () => {
      const values: object = require(`../../dist/${file.replace('.api.md', '.cjs')}`)
      const [exported = ''] = text.split('## Named by')
      const named = [
        ...exported.matchAll(/^```ts\n(?:\/\/ @\w+\n)*(?:const|function|class) (\w+)/gm),
        ...exported.matchAll(/^- `(\w+)` \(value\)/gm),
      ].map(([, name]) => name)
      expect(named.sort()).toEqual(Object.keys(values).sort())
    })
  }

  it('shows a signature whole, what it names without exporting it, and what is a preview', () => {
    const text = reports.get('index.api.md')!
    expect(text).toContain(
      '\nfunction shouldReprovision(error: unknown, { failures, after }?: ReprovisionOptions): boolean;\n',
    )
    expect(text).toContain(
      '\n// @beta\nfunction issuedCertificate(options: IssuedCertificateOptions): IssuedCertificate;\n',
    )
    const [, hidden] = text.split('## Named by these, not exported')
    expect(hidden).toContain('type Readable<T>')
    for (const one of reports.values()) expect(one).not.toMatch(/\$\d|\/\*\*/)
  })
})
