import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { runScript } from '../support/run-script.ts'

// Each example as it is, over the built package, prints what its first lines say: but times and ports, which are of the day.

const folder = fileURLToPath(new URL('../../examples/', import.meta.url))

/** Those that a test of their own runs, with shorter lives or for longer. */
const OF_THEIR_OWN = new Set(['gateway-service', 'hardware-key', 'zero-touch'])
const examples = readdirSync(folder, { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && entry.name !== 'support' && entry.name !== 'azure')
  .map(({ name }) => name)

/** The part of the first comment after its first empty line. */
function outputSaid(name: string): string {
  const comment = /^(?:\/\/.*\n)+/.exec(readFileSync(join(folder, name, 'index.mjs'), 'utf8'))?.[0] ?? ''
  return comment.slice(comment.indexOf('\n//\n') + 4).replaceAll(/^\/\/ /gm, '')
}

const ofAnyDay = (output: string): string =>
  output
    .replaceAll(/\d+(?:\.\d+)? (ms|s)\b/g, '0 $1')
    .replaceAll(/127\.0\.0\.1:\d+/g, '127.0.0.1:0')
    .replaceAll(/ +/g, ' ')

describe('the examples', () => {
  it('are all run, and all in the index', () => {
    expect(examples.length).toBeGreaterThan(9)
    const index = readFileSync(join(folder, 'README.md'), 'utf8')
    for (const name of examples) expect(index, name).toContain(`](${name}`)
  })

  for (const name of examples) {
    if (OF_THEIR_OWN.has(name)) continue
    it(name, async () => {
      const { code, stderr, stdout } = await runScript(join(folder, name, 'index.mjs'))
      expect({ code, stderr, stdout }).toMatchObject({ code: 0, stderr: '' })
      expect(ofAnyDay(stdout)).toBe(ofAnyDay(outputSaid(name)))
    }, 60_000)
  }
})
