import { afterAll, expect, test } from 'vitest'
import { REGISTER_OPTIONS, resolveOptions } from '../../../src/cli/options.ts'
import type { Output } from '../../../src/cli/output.ts'
import { register } from '../../../src/cli/register.ts'
import { Bench } from '../../cli/bench.ts'

const bench = await Bench.open()
afterAll(() => bench.close())

/** What was said, in order. */
function recorder(): Output & { readonly said: readonly string[] } {
  const said: string[] = []
  return {
    said,
    lost: false,
    result: (text) => said.push(`result ${text}`),
    note: (text) => said.push(`note ${text}`),
    progress: (text) => said.push(`progress ${text}`),
    clear: () => {},
    strong: (text) => text,
    alarm: (text) => text,
    tint: (_, text) => text,
  }
}

const SIGNALS = ['SIGINT', 'SIGTERM'] as const
const listeners = () => SIGNALS.map((signal) => process.listenerCount(signal))

for (const [index, signal] of SIGNALS.entries()) {
  test(`${signal} is listened to once: a second one ends the process at once`, async () => {
    const before = listeners()
    const { hit } = bench.emulator.faults.add({ at: 'register', do: 'silence' })
    const args = [...bench.there.slice(1), ...bench.trust, ...bench.x509]
    const output = recorder()
    const done = register(
      resolveOptions(REGISTER_OPTIONS, args, {}, () => ''),
      output,
    )
    await hit
    expect(listeners()).toEqual(before.map((count) => count + 1))
    // Only this one: the test runner listens too.
    process.listeners(signal).at(-1)?.(signal)
    // Before anything else had time to happen.
    expect(listeners()).toEqual(before)
    expect(await done).toBe(index === 0 ? 130 : 143)
    expect(output.said.at(-1)).toMatch(/^note CANCELLED in phase register/)
    expect(output.said.filter((line) => line.startsWith('result'))).toEqual([])
  })
}
