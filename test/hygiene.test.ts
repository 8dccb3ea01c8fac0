import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { engines, scripts } from '../package.json'

// What the forge reads is text to these tests: no YAML reader is among the tools. They hold it to the rest of the repository.

const root = new URL('../', import.meta.url)
const read = (path: string) => readFileSync(new URL(path, root), 'utf8')
const forge = readdirSync(fileURLToPath(new URL('.github', root)), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.yml'))
  .map((name) => [name, read(`.github/${name}`)] as const)
const workflows = forge.filter(([name]) => name.startsWith('workflows/'))
const all = (text: string, pattern: RegExp) => [...text.matchAll(pattern)].map(([, found = '']) => found)

it('every file of the forge is indented by spaces and ends in a line', () => {
  expect(forge.length).toBeGreaterThan(5)
  for (const [name, text] of forge) {
    expect(text, name).not.toMatch(/\t| $/m)
    expect(text, name).toMatch(/[^\n]\n$/)
  }
})

describe('the workflows', () => {
  it('run the versions of Node that the package is tested on', () => {
    const [list = ''] = all(read('.github/workflows/ci.yml'), /^ +node: \[(.*)\]$/gm)
    const tested = all(read('test/package/run.mjs'), /'(\d\d)'/g)
    expect(list.split(', ')).toEqual([...new Set(tested)].sort())
    expect(engines.node).toBe(`>=${list.split(', ')[0]}`)
  })

  it('may only read, but for the one job that publishes, which installs nothing', () => {
    for (const [name, text] of workflows) {
      expect(all(text, /^permissions:\n((?: {2}.*\n)+)/gm), name).toEqual(['  contents: read\n'])
      expect(all(text, /^ +([\w-]+): write$/gm), name).toEqual(
        name === 'workflows/release.yml' ? ['id-token'] : [],
      )
      expect(text, name).not.toMatch(/pull_request_target|write-all/)
      // Nothing that anybody may write in a title or a branch name is put into a script.
      expect(all(text, /run: .*(\$\{\{.*)/g), name).toEqual([])
    }
    const [, publishing = ''] = read('.github/workflows/release.yml').split(/^ {2}publish:\n/m)
    expect(publishing).toContain('id-token: write')
    expect(publishing).not.toMatch(/npm (ci|install|run|test)/)
    expect(all(publishing, /run: (.*)/g)).toEqual(['node scripts/release.mjs --publish'])
  })

  it('use actions by major version, and leave no credential behind', () => {
    for (const [name, text] of workflows) {
      const actions = all(text, /uses: (.*)/g)
      for (const action of actions) expect(action, name).toMatch(/^actions\/[\w-]+@v\d+$/)
      expect(text.match(/persist-credentials: false/g), name).toHaveLength(
        actions.filter((action) => action.startsWith('actions/checkout@')).length,
      )
    }
  })
})

it('every script that is named exists', () => {
  for (const [name, text] of [
    ...forge,
    ...['CONTRIBUTING.md', 'docs/tls.md', 'docs/live-test.md'].map((path) => [path, read(path)] as const),
  ]) {
    for (const script of all(text, /npm run ([\w:]+)/g)) expect(Object.keys(scripts), name).toContain(script)
  }
  for (const script of all(read('.ci/run'), /npm run ([\w:]+)/g)) {
    expect(read('CONTRIBUTING.md')).toContain(`npm run ${script}`)
  }
  for (const script of ['test:live', 'test:platforms']) {
    // Neither is a gate: one needs an instance, the other tools that are not everywhere.
    expect(read('.ci/run')).not.toContain(script)
    expect(read('CONTRIBUTING.md')).toContain(`npm run ${script}`)
  }
})

it('every file that CONTRIBUTING links to or names is there', () => {
  const text = read('CONTRIBUTING.md')
  const linked = all(text, /\]\(([^)#]+)\)/g)
  const named = all(text, /`((?:src|test|scripts|bench|docs|roots|\.ci)\/[\w./-]*)`/g)
  expect(linked.length).toBeGreaterThan(2)
  expect(named.length).toBeGreaterThan(5)
  for (const path of [...linked, ...named]) {
    if (path !== 'bench/results')
      expect(() => read(path.endsWith('/') ? `${path}.` : path), path).not.toThrow(/ENOENT/)
  }
})

it('every lock file is one that updates are looked for of', () => {
  const text = read('.github/dependabot.yml')
  const folders = all(text, /director(?:y|ies): \[?([^\]\n]+)/g).flatMap((list) => list.split(', '))
  const locked = readdirSync(fileURLToPath(root), { recursive: true, encoding: 'utf8' })
    .filter((path) => /(^|\/)package-lock\.json$/.test(path) && !/node_modules\//.test(path))
    .map((path) => `/${path.replace(/\/?package-lock\.json$/, '')}`)
  expect(locked.length).toBeGreaterThan(2)
  expect(folders).toEqual(expect.arrayContaining(locked))
})

it('a bug is reported with what doctor says', () => {
  expect(read('.github/ISSUE_TEMPLATE/bug.yml')).toMatch(
    /label: dps-device doctor --json\n[\s\S]*?required: true/,
  )
})
