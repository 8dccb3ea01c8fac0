import { mqttTransport } from '../../src/transport/mqtt/mqtt.ts'
import { keepsTheContract } from './run.ts'

await keepsTheContract(mqttTransport)
