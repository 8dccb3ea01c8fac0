import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

// What decides which bytes are built into the package, or run beside it, says so in full.

const root = fileURLToPath(new URL('../../', import.meta.url))
const read = (path: string) => JSON.parse(readFileSync(join(root, path), 'utf8'))

interface Locked {
  readonly name?: string
  readonly version?: string
  readonly resolved?: string
  readonly integrity?: string
  readonly link?: boolean
  readonly dev?: boolean
  readonly hasInstallScript?: boolean
  readonly dependencies?: Readonly<Record<string, string>>
}

const tracked = execFileSync('git', ['ls-files'], { cwd: root, encoding: 'utf8' }).split('\n')
const locks = tracked.filter((path) =>
  /(?:^|\/)(?:package-lock|npm-shrinkwrap)\.json$|(?:yarn|pnpm-lock)\./.test(path),
)
const manifests = tracked.filter((path) => /(?:^|\/)package\.json$/.test(path))
const bundled = read('dist/sbom.cdx.json').components as readonly {
  name: string
  group?: string
  version: string
  purl: string
}[]

/** The faults of one entry of a lock file, in words. */
function faultsOf(path: string, { name, version, resolved, integrity, link }: Locked): string[] {
  const faults: string[] = []
  // Which host it comes from is the business of whoever installs; what it is, is not.
  if (resolved !== undefined) faults.push(`${path} names where it comes from: ${resolved}`)
  if (link !== undefined) faults.push(`${path} is a link`)
  if (!/^\d+\.\d+\.\d+(?:-[\w.-]+)?$/.test(version ?? ''))
    faults.push(`${path} has no version of the registry`)
  if (!/^sha512-[A-Za-z0-9+/]{86}==$/.test(integrity ?? '')) faults.push(`${path} has no SHA-512`)
  if (name !== undefined && !path.endsWith(`node_modules/${name}`)) faults.push(`${path} is really ${name}`)
  return faults
}

describe('the lock files', () => {
  it('are those that are known, each beside a manifest', () => {
    expect(locks.sort()).toEqual([
      'package-lock.json',
      'test/interop/package-lock.json',
      'test/package/tools/package-lock.json',
    ])
    for (const lock of locks) expect(manifests).toContain(lock.replace('package-lock', 'package'))
  })

  for (const lock of locks) {
    const { lockfileVersion, packages } = read(lock) as {
      lockfileVersion: number
      packages: Record<string, Locked>
    }
    const others = Object.entries(packages).filter(([path]) => path !== '')

    it(`${lock} names a version and a SHA-512 for each package, and no host, link, repository or alias`, () => {
      expect(lockfileVersion).toBe(3)
      expect(others.length).toBeGreaterThan(10)
      expect(others.flatMap(([path, entry]) => faultsOf(path, entry))).toEqual([])
      for (const [, { dependencies = {} }] of others)
        for (const range of Object.values(dependencies))
          expect(range).not.toMatch(/^(?:git|https?|file|npm):|\//)
    })

    it(`${lock} is that of its manifest, where each version is exact`, () => {
      const { dependencies = {}, devDependencies = {} } = read(lock.replace('package-lock', 'package'))
      const asked: Record<string, string> = { ...dependencies, ...devDependencies }
      for (const [name, version] of Object.entries(asked)) {
        expect(version).toMatch(/^\d+\.\d+\.\d+$/)
        expect(packages[`node_modules/${name}`]?.version).toBe(version)
      }
    })
  }
})

describe('what is bundled', () => {
  const { packages } = read('package-lock.json') as { packages: Record<string, Locked> }

  it('is in the lock file with the version of the bill of materials, and for development alone', () => {
    expect(bundled.length).toBeGreaterThan(5)
    for (const { purl } of bundled) {
      const [, name = '', version] = /^pkg:npm\/(.+)@([^@]+)$/.exec(decodeURIComponent(purl)) ?? []
      const found = Object.entries(packages).filter(([path]) => path.endsWith(`node_modules/${name}`))
      expect(
        found.map(([, entry]) => entry.version),
        purl,
      ).toContain(version)
      for (const [path, entry] of found) expect([path, entry.dev]).toEqual([path, true])
    }
  })

  it('runs nothing when it is installed; esbuild alone does, and is not in it', () => {
    const scripts = Object.keys(packages).filter((path) => packages[path]?.hasInstallScript === true)
    expect(scripts).toEqual(['node_modules/esbuild'])
    expect(bundled.map(({ purl }) => purl).filter((purl) => purl.includes('/esbuild@'))).toEqual([])
  })
})

describe('the search', () => {
  const good = { version: '1.2.3', integrity: `sha512-${'A'.repeat(86)}==` }
  for (const [what, path, entry, fault] of [
    ['a host', 'node_modules/a', { ...good, resolved: 'http://example.com/a.tgz' }, 'names where'],
    [
      'a repository',
      'node_modules/a',
      { ...good, resolved: 'git+ssh://git@example.com/a.git#1' },
      'names where',
    ],
    ['a link', 'node_modules/a', { ...good, link: true }, 'is a link'],
    ['SHA-1', 'node_modules/a', { ...good, integrity: 'sha1-AAAA' }, 'no SHA-512'],
    ['no hash', 'node_modules/a', { version: '1.2.3' }, 'no SHA-512'],
    ['an alias', 'node_modules/a', { ...good, name: 'b' }, 'is really b'],
    ['a version that is an address', 'node_modules/a', { ...good, version: 'file:a.tgz' }, 'no version'],
  ] as const) {
    it(`finds ${what}`, () => {
      expect(faultsOf(path, entry)).toEqual([expect.stringContaining(fault)])
    })
  }
})
