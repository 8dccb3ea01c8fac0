import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import {
  declaredPackages,
  loads,
  overBudget,
  packedContents,
  readBudget,
} from '../../../bench/lib/footprint.mjs'

describe('the footprint', () => {
  it('stays within bench/budget.json', () => {
    const { unpackedBytes, files } = packedContents()
    const loadedBytes = Object.fromEntries(loads().map(({ name, bytes }) => [name, bytes]))
    expect(
      overBudget(readBudget(), {
        packages: declaredPackages(),
        unpackedBytes,
        files: files.length,
        loadedBytes,
      }),
    ).toEqual([])
    // A probe that loaded nothing would be within any budget.
    for (const [name, bytes] of Object.entries(loadedBytes)) expect(bytes, name).toBeGreaterThan(10_000)
    expect(loadedBytes['.:https']).toBeGreaterThan(loadedBytes['.']!)
  })

  it('has nothing in a registration of what few registrations need', () => {
    const names = loads().flatMap(({ files }) => files)
    expect(names).toContain('index.cjs')
    expect(names.filter((name) => /^(?:rare|issuance|asn1)-/.test(name))).toEqual([])
    expect(packedContents().files.filter(({ path }) => /dist\/rare-/.test(path))).toHaveLength(1)
  })

  it('is what the README says, which is short', () => {
    const { unpackedBytes, files } = packedContents()
    const readme = readFileSync(new URL('../../../README.md', import.meta.url), 'utf8')
    const weight = `${(unpackedBytes / 2 ** 20).toFixed(2)} MiB`
    expect(readme).toContain(`(${weight}, no scripts)`)
    expect(readme).toContain(`| 1 package, ${files.length} files, ${weight} |`)
    expect(Buffer.byteLength(readme)).toBeLessThan(15 * 1024)
  })

  it('has a budget that is a limit: 1 package, 1 MiB, 60 files', () => {
    expect(readBudget()).toMatchObject({ packages: 1, unpackedBytes: 2 ** 20, files: 60 })
  })

  it('is over it by one byte, one file, one package, one new entry point, or one that is gone', () => {
    const budget = { packages: 1, unpackedBytes: 100, files: 2, loadedBytes: { '.': 10 } }
    const actual = { packages: 1, unpackedBytes: 100, files: 2, loadedBytes: { '.': 10 } }
    expect(overBudget(budget, actual)).toEqual([])
    expect(overBudget(budget, { ...actual, packages: 2, unpackedBytes: 101, files: 3 })).toHaveLength(3)
    expect(overBudget(budget, { ...actual, loadedBytes: { '.': 11 } })).toEqual([
      'loadedBytes: . loads 11 bytes, more than 10',
    ])
    expect(overBudget(budget, { ...actual, loadedBytes: { '.': 10, './hub': 1 } })).toEqual([
      'loadedBytes: ./hub has no budget',
    ])
    expect(overBudget(budget, { ...actual, loadedBytes: {} })).toEqual(['loadedBytes: . is no longer there'])
  })
})
