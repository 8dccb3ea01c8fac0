// A device on its hub that runs Microsoft's client as it is published. It is told what to do, one step at a time, and
// reports what it saw.

const dns = require('node:dns')
const { Client, Message } = require('azure-iot-device')

// The name service of this device knows the emulator by the names of the hubs.
const { lookup } = dns
dns.lookup = (name, options, callback) =>
  lookup(name.endsWith('.azure-devices.net') ? '127.0.0.1' : name, options, callback)

const seen = { commands: [], methods: [], desired: [] }
let client
let twin

const STEPS = {
  async open({ transport, connectionString, x509 }) {
    const Transport = require(transport.package)[transport.name]
    client = Client.fromConnectionString(connectionString, Transport)
    if (x509 !== undefined) await client.setOptions(x509)
    client.on('error', () => {})
    await client.open()
  },
  async send({ body, properties, contentType, contentEncoding, messageId, correlationId }) {
    const message = new Message(body)
    Object.assign(message, { contentType, contentEncoding, messageId, correlationId })
    for (const [name, value] of Object.entries(properties)) message.properties.add(name, value)
    await client.sendEvent(message)
  },
  async listen() {
    client.on('message', (message) => {
      const properties = Object.fromEntries(
        message.properties.propertyList.map(({ key, value }) => [key, value]),
      )
      const { messageId, correlationId, contentType } = message
      const body = message.data.toString()
      client.complete(message).then(() => {
        seen.commands.push({ body, messageId, correlationId, contentType, properties })
      })
    })
    client.onDeviceMethod('reboot', (request, response) => {
      seen.methods.push(request.payload)
      response.send(202, { after: request.payload.delay })
    })
    twin = await client.getTwin()
    twin.on('properties.desired', (patch) => seen.desired.push(patch))
  },
  async twin() {
    return { desired: twin.properties.desired, reported: { $version: twin.properties.reported.$version } }
  },
  report: ({ patch }) =>
    new Promise((resolve, reject) => {
      twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()))
    }),
  async seen() {
    return seen
  },
  async close() {
    await client.close()
  },
}

// Also when the parent is gone: no device outlives its test.
process.once('disconnect', () => process.exit())
process.on('message', async ({ step, ...input }) => {
  try {
    process.send({ result: await STEPS[step](input) })
  } catch ({ name, message }) {
    process.send({ error: { name, message } })
  }
})
