import { mqttWebSocketTransport } from '../../src/transport/mqtt/mqtt-ws.ts'
import { keepsTheContract } from './run.ts'

await keepsTheContract(mqttWebSocketTransport)
