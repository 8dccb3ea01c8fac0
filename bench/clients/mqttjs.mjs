// mqttjs.cjs with MQTT.js imported as an ES module: a program only, for the cold start.

import mqtt from 'mqtt'
import byHand from './mqttjs.cjs'

await byHand.main(mqtt)
