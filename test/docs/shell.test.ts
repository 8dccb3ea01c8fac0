import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { perform } from '../../src/cli/commands.ts'
import { createKit } from '../../src/cli/kit.ts'
import { environmentName, REGISTER_OPTIONS } from '../../src/cli/options.ts'
import type { Output } from '../../src/cli/output.ts'
import { pages, ROOT } from './markdown.ts'

// What the pages tell the reader to type is there to be typed.

interface Command {
  readonly where: string
  readonly words: readonly string[]
}

const SHELL = new Set(['sh', 'bash', 'shell', 'console'])

/** Commands of shell blocks and of code within text, quotes and comments away. */
const commands: readonly Command[] = pages.flatMap(({ name, fences, prose }) => {
  const typed = fences
    .filter(({ language }) => SHELL.has(language))
    .flatMap(({ text, line }) =>
      text
        .replaceAll('\\\n', ' ')
        .split('\n')
        .flatMap((whole) => whole.split(/\||&&|;|\$\(/))
        .map((part) => ({ where: `${name}:${line}`, part })),
    )
  const mentioned = prose.flatMap((text, index) =>
    [...text.matchAll(/`([^`]+)`/g)].map(([, part = '']) => ({ where: `${name}:${index + 1}`, part })),
  )
  return [...typed, ...mentioned].map(({ where, part }) => ({
    where,
    words: part
      .replace(/(^|\s)#.*$/, '')
      .replace(/'[^']*'|"[^"]*"/g, 'TEXT')
      .trim()
      .split(/\s+/)
      .filter(
        (word, index, all) =>
          !(/^[A-Z_]+=/.test(word) && all.slice(0, index + 1).every((w) => /^[A-Z_]+=/.test(w))),
      ),
  }))
})

/** What the command says of itself. */
async function say(...args: string[]): Promise<string> {
  let said = ''
  const output = { result: (text: string) => (said += `${text}\n`) } as unknown as Output
  await perform(createKit(), args, output, () => new Map())
  return said
}

const optionsOf = new Map<string, ReadonlySet<string>>()
beforeAll(async () => {
  const overview = await say('--help')
  const verbs = [...overview.matchAll(/^ {2}([a-z][a-z-]*(?: [a-z]+)?) {2,}/gm)].map(([, verb = '']) => verb)
  for (const verb of verbs) {
    const help = await say(...verb.split(' '), '--help')
    const names = [...help.matchAll(/^ {2}(--[a-z0-9-]+)/gm)].map(([, option = '']) => option)
    optionsOf.set(verb, new Set(names))
  }
})

describe('commands in the pages', () => {
  it('are known by name, with their options', () => {
    expect([...optionsOf.keys()]).toEqual(expect.arrayContaining(['doctor', 'register', 'roots rehearse']))
    expect(optionsOf.get('register')).toContain('--id-scope')
    const wrong: string[] = []
    let seen = 0
    for (const { where, words } of commands) {
      const [first, ...rest] = words[0] === 'npx' ? words.slice(1) : words
      if (!/^dps-device(?:-client)?$/.test(first ?? '') || rest.length === 0) continue
      if (words[0] === 'npx' && first === 'dps-device')
        wrong.push(`${where}: npx takes the name of a package`)
      seen += 1
      const [one = '', two] = rest
      const both = `${one} ${two}`
      const verb = optionsOf.has(both) ? both : one
      const options = optionsOf.get(verb)
      const asked = rest.filter((word) => /^--[a-z]/.test(word)).map((word) => word.replace(/=.*/, ''))
      if (options === undefined) {
        if (!/^(?:--help|--version|…|COMMAND|VERB)$/.test(one)) wrong.push(`${where}: dps-device ${one}`)
      } else {
        for (const option of asked) if (!options.has(option)) wrong.push(`${where}: ${verb} ${option}`)
      }
    }
    expect(wrong).toEqual([])
    expect(seen).toBeGreaterThan(20)
  })

  it('and scripts of the package are there', () => {
    const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
      scripts: Record<string, string>
    }
    const named = commands.flatMap(({ where, words: [npm, run, script = ''] }) =>
      npm === 'npm' && run === 'run' ? [{ where, script }] : [],
    )
    expect(named.length).toBeGreaterThan(5)
    expect(named.filter(({ script }) => !Object.hasOwn(scripts, script))).toEqual([])
  })

  it('and environment variables are read', () => {
    const known = new Set(
      [
        ...REGISTER_OPTIONS.map(({ name }) => name),
        ...[...optionsOf.values()].flatMap((all) => [...all].map((o) => o.slice(2))),
      ].map(environmentName),
    )
    known.add('DPS_GROUP_KEY')
    const live = readFileSync(join(ROOT, 'test', 'live', 'settings.mjs'), 'utf8')
    for (const [, name = ''] of live.matchAll(/'(DPS_LIVE_[A-Z_]+)'/g)) known.add(name)
    const unknown = pages.flatMap(({ name, text }) =>
      [...text.matchAll(/\bDPS_[A-Z_]+\b/g)].flatMap(([variable]) =>
        known.has(variable) ? [] : `${name}: ${variable}`,
      ),
    )
    expect(unknown).toEqual([])
  })
})
