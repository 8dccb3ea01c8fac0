import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeEach, describe, expect, it } from 'vitest'
import { prerequisites, sameParts } from '../../../scripts/release-checks.mjs'

const SCRIPT = fileURLToPath(new URL('../../../scripts/release.mjs', import.meta.url))
const dist = (name: string) => readFileSync(new URL(`../../../dist/${name}`, import.meta.url), 'utf8')
let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'release-'))
  return () => rmSync(folder, { recursive: true })
})

describe('what must hold before', () => {
  const identity = ['-c', 'user.name=a', '-c', 'user.email=a@example.com', '-c', 'tag.gpgsign=false']
  const git = (...args: string[]) =>
    execFileSync('git', [...identity, ...args], { cwd: folder, stdio: 'pipe' })
  const put = (path: string, content: unknown) =>
    writeFileSync(join(folder, path), typeof content === 'string' ? content : JSON.stringify(content))
  const commit = () => {
    git('add', '--all')
    git('commit', '--quiet', '--no-gpg-sign', '--message', 'a')
  }
  const failures = (environment: Record<string, string> = {}): string[] =>
    prerequisites(folder, environment).flatMap(([, check]) => {
      try {
        check()
        return []
      } catch (error) {
        return [(error as Error).message]
      }
    })

  beforeEach(() => {
    mkdirSync(join(folder, 'src'))
    git('init', '--quiet')
    const repository = { type: 'git', url: 'git+https://example.com/owner/ours.git' }
    put('package.json', { name: 'ours', version: '1.2.3', repository })
    put('package-lock.json', { version: '1.2.3', packages: { '': { version: '1.2.3' } } })
    put('CHANGELOG.md', '# Changelog\n\n## 1.2.3 (2026-11-24)\n\n- a\n\n## 1.2.2 (2026-10-01)\n')
    put('src/release.ts', 'export const RELEASED_AT_MS = Date.UTC(2026, 10, 24)\n')
    commit()
    git('tag', 'v1.2.3')
  })

  it('a release that is ready', () => {
    expect(failures({ GITHUB_REPOSITORY: 'owner/ours' })).toEqual([])
  })

  it('a change that nobody committed', () => {
    put('README.md', 'a')
    expect(failures()).toEqual(['not committed:\n?? README.md'])
  })

  it('a lock file of another version', () => {
    put('package-lock.json', { version: '1.2.3', packages: { '': { version: '1.2.2' } } })
    expect(failures()).toContain('package-lock.json has 1.2.2, package.json 1.2.3')
  })

  it('a changelog that ends before this version, and one without a day', () => {
    put('CHANGELOG.md', '## 1.2.2 (2026-10-01)\n')
    expect(failures()).toContain('its first entry is of 1.2.2, not of 1.2.3')
    put('CHANGELOG.md', '## 1.2.3 (unreleased)\n')
    expect(failures()).toContain('1.2.3 is "unreleased": write the day of the release there')
  })

  it('a floor of the clock from another day', () => {
    put('src/release.ts', 'export const RELEASED_AT_MS = Date.UTC(2026, 10, 23)\n')
    expect(failures()).toContainEqual(
      expect.stringContaining('src/release.ts has another day than 2026-11-24'),
    )
  })

  it('a tag of an earlier commit', () => {
    put('README.md', 'a')
    commit()
    expect(failures()).toEqual(['there is no tag v1.2.3 on this commit'])
  })

  it('a repository that is not named, or is another’s', () => {
    expect(failures({ GITHUB_REPOSITORY: 'owner/our' })).toHaveLength(1)
    expect(failures({ GITHUB_REPOSITORY: 'other/ours' })).toEqual([
      'git+https://example.com/owner/ours.git is not other/ours, which publishes',
    ])
    put('package.json', { name: 'ours', version: '1.2.3' })
    expect(failures()).toContain('package.json has no repository.url, which the registry compares')
  })
})

describe('the bill of materials and the notices', () => {
  const own = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8'))
  const [sbom, notices] = [dist('sbom.cdx.json'), dist('THIRD-PARTY-NOTICES.txt')]

  it('are of the same parts', () => {
    expect(sameParts(sbom, notices, own)).toMatch(/^1[0-9] parts$/)
  })

  it('where one lacks a part, has another version or another licence', () => {
    expect(() => sameParts(sbom, notices.replace('ws 8', 'ws 7'), own)).toThrow(
      /^ws 8\S+ \(MIT\) has no notice$/,
    )
    const fewer = JSON.parse(sbom)
    fewer.components.pop()
    expect(() => sameParts(JSON.stringify(fewer), notices, own)).toThrow(/^ws \S+ \(MIT\) is not in the bill/)
    const copyleft = (text: string) => text.replace('BSD-3-Clause', 'GPL-2.0')
    expect(() => sameParts(copyleft(sbom), notices, own)).toThrow(
      /^node-forge \S+ \(GPL-2\.0\) has no notice$/,
    )
    const both = notices.replace('(BSD-3-Clause)\n', '(GPL-2.0)\n')
    expect(() => sameParts(copyleft(sbom), both, own)).toThrow(/^look at the licence of node-forge/)
    expect(() => sameParts(sbom, notices, { ...own, version: '9.9.9' })).toThrow(
      /^it is of dps-device-client/,
    )
  })
})

// A dry run would build dist/ under the feet of every other test: it is run by hand, and before each release.
describe('the script', () => {
  const run = (args: string[], env: Record<string, string | undefined> = {}) =>
    spawnSync(process.execPath, [SCRIPT, ...args], { encoding: 'utf8', env: { ...process.env, ...env } })

  it('publishes from no machine that states no provenance', () => {
    const ran = run(['--publish'], { ACTIONS_ID_TOKEN_REQUEST_URL: undefined })
    expect(ran).toMatchObject({ status: 2, stdout: '', stderr: expect.stringContaining('release workflow') })
    expect(run(['--dry'])).toMatchObject({ status: 1, stdout: '' })
  })

  it('publishes no package but the one that passed', () => {
    // Whatever else holds: there is no registry at this address.
    const env = {
      ACTIONS_ID_TOKEN_REQUEST_URL: 'https://127.0.0.1:9',
      npm_config_registry: 'http://127.0.0.1:9',
    }
    const publish = () => run(['--publish', '--out', folder], env)
    const refused = expect.objectContaining({
      status: 1,
      stdout: expect.stringMatching(
        /FAILED {2}the package is the one that was tested[\s\S]*\nNot published\.\n/,
      ),
    })
    expect(publish()).toEqual(refused)
    const { name, version } = JSON.parse(
      readFileSync(new URL('../../../package.json', import.meta.url), 'utf8'),
    )
    writeFileSync(join(folder, `${name}-${version}.tgz`), 'another')
    expect(publish()).toEqual(refused)
    writeFileSync(join(folder, 'SHA256SUMS'), `${'0'.repeat(64)}  ${name}-${version}.tgz\n`)
    expect(publish()).toEqual(refused)
    expect(publish().stdout).toContain('has another checksum than SHA256SUMS')
  })
})
