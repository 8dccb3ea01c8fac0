import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { exitCodeOf } from '../../src/cli/exit-codes.ts'
import { DpsError, type DpsErrorCode, type DpsPhase, ERROR_CODES } from '../../src/errors.ts'
import { pageOf, ROOT } from './markdown.ts'

const page = pageOf('docs/errors.md')

interface Entry {
  readonly code: string
  readonly family: string
  readonly retryable: boolean
  readonly phases: readonly string[]
  readonly exit: string
  readonly text: string
}

const entries: readonly Entry[] = page.text
  .split(/^### /m)
  .slice(1)
  .map((section) => {
    const [code = '', ...lines] = section.split('\n')
    const text = lines.join('\n').split(/^## /m)[0]!
    const facts = /^`(\w+)` · (not )?retryable · phase (.+) · exit code (.+)$/m.exec(text)
    if (facts === null) throw new Error(`docs/errors.md: ${code} has no line of facts`)
    const [, family = '', not, phases = '', exit = ''] = facts
    return {
      code,
      family,
      retryable: not === undefined,
      phases: phases.replaceAll('`', '').split(', '),
      exit,
      text,
    }
  })

/** No command connects to a hub or has a store. */
const OF_THE_LIBRARY = new Set(['hub', 'store'])

const sources = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' }).filter(
  (name) => name.endsWith('.ts') && !/^(?:emulator|testing)[\\/]/.test(name),
)

/** Code and phase wherever both are written out. */
const raised = sources.flatMap((name) =>
  [
    ...readFileSync(join(ROOT, 'src', name), 'utf8').matchAll(/DpsError\(\s*'([A-Z_0-9]+)',\s*'([a-z]+)'/g),
  ].map(([, code = '', phase = '']) => `${code} ${phase}`),
)

describe('the page of errors', () => {
  it('has every code once, and no other', () => {
    expect(entries.map(({ code }) => code).sort()).toEqual(Object.keys(ERROR_CODES).sort())
  })

  for (const { code, family, retryable, phases, exit, text } of entries) {
    it(`tells the truth about ${code}`, () => {
      const facts = ERROR_CODES[code as DpsErrorCode]
      expect({ family, retryable }).toEqual({ family: facts.family, retryable: facts.retryable })
      const codes = phases
        .filter((phase) => !OF_THE_LIBRARY.has(phase))
        .map((phase) => exitCodeOf(new DpsError(code as DpsErrorCode, phase as DpsPhase, '')))
      const expected =
        code === 'CANCELLED' ? '130, 143' : [...new Set(codes)].sort((a, b) => a - b).join(', ') || '—'
      expect(exit).toBe(expected)
      expect(text).toMatch(/^- \*\*Causes:\*\* .{10,}$/m)
      expect(text).toMatch(/^- \*\*Do:\*\* .{5,}$/m)
    })
  }

  it('names the phases in which each is raised', () => {
    const said = new Set(entries.flatMap(({ code, phases }) => phases.map((phase) => `${code} ${phase}`)))
    expect(raised.length).toBeGreaterThan(50)
    expect(raised.filter((pair) => !said.has(pair))).toEqual([])
    const matrix = pageOf('docs/fault-matrix.md').text.matchAll(/`([A-Z_]+) · ([a-z]+)`/g)
    const met = [...new Set([...matrix].map(([, code, phase]) => `${code} ${phase}`))]
    expect(met.length).toBeGreaterThan(30)
    expect(met.filter((pair) => !said.has(pair))).toEqual([])
  })

  it('is what the other pages link to: a code in a link leads to its entry', () => {
    expect(page.prose.filter((line) => /^### [A-Z_0-9]+$/.test(line))).toHaveLength(entries.length)
  })
})
