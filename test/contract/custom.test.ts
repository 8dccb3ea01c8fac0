import type { Transport } from '../../src/transport/transport.ts'
import { keepsTheContract } from './run.ts'

// The example is JavaScript that imports the built package, as a user's would be.
const example = new URL('../../examples/custom-transport/transport.mjs', import.meta.url).href
const { ownTransport } = (await import(example)) as { ownTransport: () => Transport }

await keepsTheContract(ownTransport)
