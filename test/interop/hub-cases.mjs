// What Microsoft's device client does with the emulator's hub: every case with both of its MQTT transports.

import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { generateSymmetricKey, issueCertificate, startEmulator } from '../../dist/emulator.mjs'

const DEVICE = fileURLToPath(new URL('hub-device.cjs', import.meta.url))
const HUB = 'hub-a.azure-devices.net'
const STEP_MS = 20_000
const manifest = readFileSync(new URL('package.json', import.meta.url), 'utf8')
const clientVersion = JSON.parse(manifest).dependencies['azure-iot-device']

export const HUB_TRANSPORTS = [
  { label: 'Hub over MQTT', port: 8883, package: 'azure-iot-device-mqtt', name: 'Mqtt', speaks: 'mqtt' },
  {
    label: 'Hub over MQTT over WebSocket',
    port: 443,
    package: 'azure-iot-device-mqtt',
    name: 'MqttWs',
    speaks: 'mqtt-ws',
  },
]

export const HUB_CASES = {
  'SAS: telemetry, commands, methods, twin': async (bench) => {
    const { primaryKey } = bench.emulator.hub.addDevice({
      deviceId: 'sensor-1',
      authentication: { symmetricKey: {} },
    })
    const connectionString = `HostName=${HUB};DeviceId=sensor-1;SharedAccessKey=${primaryKey}`
    await bench.everything('sensor-1', { connectionString }, true)
  },

  'SAS: a module, with the name of a model': async (bench) => {
    const { primaryKey } = bench.emulator.hub.addDevice({
      deviceId: 'sensor-1',
      moduleId: 'camera',
      authentication: { symmetricKey: {} },
    })
    await bench.step('open', {
      connectionString: `HostName=${HUB};DeviceId=sensor-1;ModuleId=camera;SharedAccessKey=${primaryKey}`,
    })
    await bench.step('send', { body: 'x', properties: {} })
    await bench.step('close')
    const [message] = bench.emulator.hub.telemetry.list()
    assert.equal(message.moduleId, 'camera')
    bench.assertNothingRefused()
  },

  'X.509: telemetry, commands, methods, twin': async (bench) => {
    const { certPem, keyPem } = await issueCertificate({ subject: 'sensor-2', eku: ['clientAuth'] })
    bench.emulator.hub.addDevice({
      deviceId: 'sensor-2',
      authentication: { x509: { certificate: certPem } },
    })
    const connectionString = `HostName=${HUB};DeviceId=sensor-2;x509=true`
    await bench.everything('sensor-2', { connectionString, x509: { cert: certPem, key: keyPem } }, false)
  },

  'a wrong key is refused': async (bench) => {
    bench.emulator.hub.addDevice({ deviceId: 'sensor-3', authentication: { symmetricKey: {} } })
    const SharedAccessKey = generateSymmetricKey()
    const connectionString = `HostName=${HUB};DeviceId=sensor-3;SharedAccessKey=${SharedAccessKey}`
    await assert.rejects(bench.step('open', { connectionString }), { name: 'UnauthorizedError' })
    assert.equal(bench.refusal(), 'sas-signature-wrong')
  },
}

export class HubBench {
  #events = []
  #child
  #transport

  static async open(transport, { pki, rootFile }) {
    const bench = new HubBench()
    bench.#transport = transport
    bench.emulator = await startEmulator({
      pki,
      port: transport.port,
      hubs: [HUB],
      onEvent: (event) => bench.#events.push(event),
    })
    bench.#child = fork(DEVICE, {
      env: { ...process.env, NODE_EXTRA_CA_CERTS: rootFile },
      execArgv: [],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
    return bench
  }

  async close() {
    this.#child.kill('SIGKILL')
    await this.emulator.close()
  }

  /** One step of the device; rejects as its client did. */
  step(step, input = {}) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`no end of ${step} after ${STEP_MS / 1000} s`)),
        STEP_MS,
      )
      this.#child.once('message', ({ error, result }) => {
        clearTimeout(timer)
        if (error) reject(Object.assign(new Error(error.message), { name: error.name }))
        else resolve(result)
      })
      this.#child.send({ step, transport: this.#transport, ...input })
    })
  }

  async everything(deviceId, identity, password) {
    const { hub, log } = this.emulator
    // Waits for the device while it is away.
    const early = hub.sendCommand(deviceId, 'early', { messageId: 'c-0' })
    hub.updateDesired(deviceId, { interval: 10 })
    await this.step('open', identity)
    const message = {
      body: '{"t":21.5}',
      properties: { room: '3 east', 'a&b': 'c=d' },
      contentType: 'application/json',
      contentEncoding: 'utf-8',
      messageId: 'm-1',
      correlationId: 'c 1',
    }
    await this.step('send', message)
    const [received] = hub.telemetry.list()
    for (const [name, value] of Object.entries(message)) {
      assert.deepEqual(name === 'body' ? received.body.toString() : received[name], value, name)
    }

    await this.step('listen')
    assert.deepEqual(await this.step('twin'), {
      desired: { interval: 10, $version: 2 },
      reported: { $version: 1 },
    })
    await this.step('report', { patch: { firmware: { version: '1.4.2' } } })
    assert.deepEqual(hub.twin(deviceId).reported, {
      properties: { firmware: { version: '1.4.2' } },
      version: 2,
    })

    const command = hub.sendCommand(deviceId, 'open', {
      messageId: 'c-1',
      correlationId: 'k 1',
      contentType: 'text/plain',
      properties: { valve: 'Nr. 3 & 4' },
    })
    assert.equal(await early.settled, 'acknowledged')
    assert.equal(await command.settled, 'acknowledged')
    assert.deepEqual(await hub.invokeMethod(deviceId, 'reboot', { delay: 5 }), {
      status: 202,
      payload: { after: 5 },
    })
    hub.updateDesired(deviceId, { interval: null, mode: 'eco' })
    await this.#until(async () => (await this.step('seen')).desired.length >= 2)
    const seen = await this.step('seen')
    assert.deepEqual(seen.methods, [{ delay: 5 }])
    assert.deepEqual(seen.desired.at(-1), { interval: null, mode: 'eco', $version: 3 })
    assert.deepEqual(
      seen.commands.map(({ body, messageId }) => [body, messageId]),
      [
        ['early', 'c-0'],
        ['open', 'c-1'],
      ],
    )
    const [, { correlationId, contentType, properties }] = seen.commands
    assert.equal(correlationId, 'k 1')
    assert.equal(contentType, 'text/plain')
    assert.equal(properties.valve, 'Nr. 3 & 4')
    await this.step('close')

    this.assertNothingRefused()
    for (const { transport, handshake } of log.connections) {
      assert.equal(transport, this.#transport.speaks)
      assert.equal(handshake.serverName, HUB)
      assert.equal(handshake.clientCertificate === undefined, password)
    }
    const connect = log.packets.find(({ type }) => type === 'connect')
    const agent = encodeURIComponent(`azure-iot-device/${clientVersion}`)
    assert.ok(connect.userName.startsWith(`${HUB}/${deviceId}/?api-version=`), connect.userName)
    assert.ok(connect.userName.includes(`&DeviceClientType=${agent}`), connect.userName)
    assert.equal(connect.passwordPresent, password)
  }

  assertNothingRefused() {
    assert.deepEqual(
      this.#events.filter(({ type }) => type === 'refused' || type === 'violation'),
      [],
    )
  }

  refusal() {
    return this.#events.find(({ type }) => type === 'refused')?.reason
  }

  async #until(holds) {
    for (let tries = 0; tries < 100; tries += 1) {
      if (await holds()) return
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    throw new Error('it never came true')
  }
}
