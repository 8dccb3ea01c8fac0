import { afterAll, describe, expect, test } from 'vitest'
import { type Emulator, startEmulator } from '../../src/emulator/index.ts'
import { transportContract } from '../../src/testing/index.ts'
import type { Transport } from '../../src/transport/transport.ts'

/** Every sentence of the contract, but those excepted, as a test of `makeTransport`. */
export async function keepsTheContract(
  makeTransport: () => Transport,
  except: readonly string[] = [],
): Promise<Emulator> {
  const emulator = await startEmulator()
  afterAll(() => emulator.close())
  describe(`the contract of a transport: ${makeTransport().name}`, () => {
    const cases = transportContract({ makeTransport, emulator })
    for (const name of except) expect(cases.map((sentence) => sentence.name)).toContain(name)
    for (const { name, run } of cases) if (!except.includes(name)) test(name, run)
  })
  return emulator
}
