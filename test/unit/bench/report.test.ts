import { describe, expect, it } from 'vitest'
import {
  formatNumber,
  markdownPage,
  markdownTable,
  mergeSummary,
  summaryTable,
  svgCharts,
} from '../../../bench/lib/report.mjs'
import { judge } from '../../../bench/lib/targets.mjs'

describe('a number', () => {
  it.each([
    [0, '0'],
    [0.7849, '0.785'],
    [12.345, '12.3'],
    [162, '162'],
    [999.4, '999'],
    [1234.6, '1,235'],
    [1_048_576, '1,048,576'],
  ])('%d reads %s', (value, text) => {
    expect(formatNumber(value)).toBe(text)
  })
})

describe('a Markdown table', () => {
  it('aligns numbers to the right and shows what is missing', () => {
    expect(
      markdownTable({
        title: 't',
        columns: ['Client', 'µs'],
        rows: [
          ['ours', 1000.4],
          ['C', undefined],
        ],
      }),
    ).toBe('| Client | µs |\n|---|---:|\n| ours | 1,000 |\n| C | – |')
  })

  it('keeps its columns whatever a cell holds', () => {
    const lines = markdownTable({ title: 't', columns: ['a', 'b'], rows: [['x|y\nz'], ['1', '2']] }).split(
      '\n',
    )
    expect(lines).toHaveLength(4)
    expect(lines[2]).toBe('| x\\|y z | – |')
  })
})

describe('a page', () => {
  it('has the heading, the machine, the chart with its alternative, the tables and their notes', () => {
    const page = markdownPage({
      title: 'Handshake',
      about: 'What it is.',
      machine: 'Some machine.',
      chart: 'handshake.svg',
      tables: [{ title: 'Full', columns: ['a'], rows: [[1]], note: 'A note.' }],
    })
    expect(page.split('\n\n')).toEqual([
      '# Handshake',
      'What it is.',
      'Some machine.',
      expect.stringMatching(/^!\[Handshake, .+\]\(handshake\.svg\)$/),
      '## Full',
      '| a |\n|---:|\n| 1 |',
      'A note.\n',
    ])
  })
})

describe('an SVG chart', () => {
  const svg = svgCharts('A <b> & "c"', [
    {
      title: 'Full',
      unit: 'µs',
      bars: [
        { label: 'ours <1>', value: 50, low: 40, high: 100, strong: true },
        { label: 'bare', value: 100 },
      ],
    },
  ])

  it('is well formed whatever the labels hold', () => {
    expect(svg).toContain('<title id="title">A &lt;b&gt; &amp; &quot;c&quot;</title>')
    expect(svg).toContain('ours &lt;1&gt;')
    // Every element that is opened is closed.
    const open: string[] = []
    for (const [, close, name = '', self] of svg.matchAll(/<(\/?)([a-z]+)[^>]*?(\/?)>/g)) {
      if (close) expect(open.pop()).toBe(name)
      else if (!self) open.push(name)
    }
    expect(open).toEqual([])
  })

  it('draws to scale, from zero', () => {
    const widths = [...svg.matchAll(/<rect [^>]*width="([\d.]+)"/g)].map(([, width]) => Number(width))
    expect(widths).toHaveLength(2)
    expect(widths[1]! / widths[0]!).toBeCloseTo(2, 2)
  })

  it('has a text alternative with every figure, and colours for dark pages', () => {
    expect(svg).toContain('role="img"')
    expect(svg).toContain('Full, µs: ours &lt;1&gt; 50; bare 100.')
    expect(svg).toContain('prefers-color-scheme: dark')
  })

  it('of nothing but zeros is still a chart', () => {
    expect(svgCharts('t', [{ title: 'z', unit: 'B', bars: [{ label: 'a', value: 0 }] }])).not.toMatch(
      /NaN|Infinity/,
    )
  })
})

describe('the summary', () => {
  it('says of each target what became of it', () => {
    const judged = judge(
      { handshake: 0.97, resumed: { note: 'needs valgrind' }, 'second-connect': 1, 'client-hello': 162 },
      { benches: ['handshake'], nodeMajor: 20 },
    )
    expect(summaryTable(judged).rows.map(([row, , ...rest]) => [row, ...rest])).toEqual([
      [1, '≤ 0.78', '0.97', 'not met; beyond the gate'],
      [4, '≤ 0.23', undefined, 'not measured; needs valgrind'],
      [4, undefined, undefined, 'not measured'],
      [5, '≤ 1.02', '1', 'met'],
      [11, '≤ 200 B', '162 B', 'met'],
    ])
  })

  it('says of a target for another Node that it is one', () => {
    const judged = judge({ handshake: 0.97 }, { benches: ['handshake'], nodeMajor: 24 })
    expect(summaryTable(judged).rows[0]?.at(-1)).toBe('the target is for Node 20')
  })

  describe('after a run of some benches', () => {
    const machine = {
      node: '20.0.0',
      openssl: '3',
      v8: '11',
      cpu: 'a',
      architecture: 'x64',
      cores: 2,
      kernel: 'Linux',
      date: '2026-11-25T03:15:12.529Z',
      pinning: 'none',
    }
    const target = (row: number, bench: string, value: number) => ({ row, bench, value })
    const full = mergeSummary(undefined, {
      machine,
      quick: false,
      ran: ['handshake', 'footprint'],
      targets: [target(1, 'handshake', 7), target(14, 'footprint', 60), target(16, 'fleet', 1)],
    })
    const later = {
      machine: { ...machine, date: '2026-11-26T08:01:00.000Z' },
      quick: false,
      ran: ['footprint'],
      targets: [target(14, 'footprint', 57)],
    }

    it('keeps the others, says which ran apart, and when', () => {
      expect(mergeSummary(full, later)).toEqual({
        machine,
        quick: false,
        runs: { footprint: '2026-11-26 08:01 UTC' },
        targets: [target(1, 'handshake', 7), target(14, 'footprint', 57), target(16, 'fleet', 1)],
      })
    })

    it('keeps nothing of another machine, of another Node, or beside a quick run', () => {
      for (const other of [
        { machine: { ...later.machine, cpu: 'b' } },
        { machine: { ...later.machine, node: '22.0.0' } },
        { quick: true },
      ]) {
        const run = { ...later, ...other }
        expect(mergeSummary(full, run).targets).toEqual(run.targets)
      }
    })
  })
})
