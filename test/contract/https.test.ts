import { httpsTransport } from '../../src/transport/https/https.ts'
import { keepsTheContract } from './run.ts'

await keepsTheContract(httpsTransport)
