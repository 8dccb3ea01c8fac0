import { afterAll, describe, test } from 'vitest'
import { type Emulator, startEmulator } from '../../src/emulator/index.ts'
import { transportContract } from '../../src/testing/index.ts'
import type { Transport } from '../../src/transport/transport.ts'

/** Every sentence of the contract as a test of `makeTransport`. */
export async function keepsTheContract(makeTransport: () => Transport): Promise<Emulator> {
  const emulator = await startEmulator()
  afterAll(() => emulator.close())
  describe(`the contract of a transport: ${makeTransport().name}`, () => {
    for (const { name, run } of transportContract({ makeTransport, emulator })) test(name, run)
  })
  return emulator
}
