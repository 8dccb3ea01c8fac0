import { expect, it } from 'vitest'
import { findings } from '../../../scripts/audit.mjs'

const lock = {
  packages: {
    'node_modules/ws': { version: '8.1.0' },
    'node_modules/a/node_modules/ws': { version: '7.0.0' },
    'node_modules/@x/y': { version: '1.0.0' },
    'node_modules/vite': { version: '5.0.0' },
  },
}
const bundled = [{ purl: 'pkg:npm/ws@8.1.0' }, { purl: 'pkg:npm/%40x/y@1.0.0' }]
const advisory = { title: 'Memory', url: 'https://example.com/1' }
const of = (name: string, via: unknown[], ...nodes: string[]) => ({
  vulnerabilities: { [name]: { name, severity: 'high', via, nodes } },
})

it('tells of what is bundled, in the version that is bundled', () => {
  expect(findings(of('ws', [advisory], 'node_modules/ws'), lock, bundled)).toEqual([
    'high: ws: Memory https://example.com/1',
  ])
  expect(findings(of('@x/y', ['ws'], 'node_modules/@x/y'), lock, bundled)).toEqual(['high: @x/y: by ws'])
})

it('says nothing of what is for development, or bundled in another version', () => {
  expect(findings(of('vite', [advisory], 'node_modules/vite'), lock, bundled)).toEqual([])
  expect(findings(of('ws', [advisory], 'node_modules/a/node_modules/ws'), lock, bundled)).toEqual([])
  expect(findings({ vulnerabilities: {} }, lock, bundled)).toEqual([])
})

it('does not take a missing answer for a good one', () => {
  expect(findings({ message: '405 Method Not Allowed' } as never, lock, bundled)).toBeUndefined()
  expect(findings({}, lock, bundled)).toBeUndefined()
})
