// The service's protocol by hand on MQTT.js, the way a good engineer would write it: one secure context for all
// connections, no reconnecting, one subscription, every reply checked. `writeCache: false` in the scene turns off the
// table of 65,536 buffers that mqtt-packet builds at its first write; by default it is on, as MQTT.js has it. Neither
// `noDelay` nor pipelining: MQTT.js sets and does neither. See ours.cjs for what a client is.

const { createHmac, randomUUID } = require('node:crypto')
const { readFileSync } = require('node:fs')
const { createSecureContext } = require('node:tls')

const API_VERSION = '2019-03-31'
const RESPONSES = '$dps/registrations/res/'

function token(idScope, registrationId, key) {
  const resource = encodeURIComponent(`${idScope}/registrations/${registrationId}`)
  const expiry = Math.floor(Date.now() / 1000) + 3600
  const signature = createHmac('sha256', Buffer.from(key, 'base64'))
    .update(`${resource}\n${expiry}`)
    .digest('base64')
  return `SharedAccessSignature sr=${resource}&sig=${encodeURIComponent(signature)}&se=${expiry}&skn=registration`
}

/** @param mqtt the library, from `require` or `import` */
exports.open = (scene, mqtt = require('mqtt')) => {
  const { host, port, address, idScope, roots, writeCache } = scene
  const { registrationId, key, certFile, keyFile } = scene.device
  const secureContext = createSecureContext({
    ca: readFileSync(roots),
    minVersion: 'TLSv1.2',
    ...(key === undefined && { cert: readFileSync(certFile), key: readFileSync(keyFile) }),
  })

  function register() {
    const client = mqtt.connect({
      protocol: 'mqtts',
      host: address,
      port,
      servername: host,
      secureContext,
      clientId: registrationId,
      username: `${idScope}/registrations/${registrationId}/api-version=${API_VERSION}`,
      password: key === undefined ? undefined : token(idScope, registrationId, key),
      clean: true,
      reconnectPeriod: 0,
      resubscribe: false,
      ...(writeCache === false && { writeCache }),
    })
    return new Promise((resolve, reject) => {
      let requestId
      let poll
      let outcome
      const fail = (error) => {
        clearTimeout(poll)
        outcome ??= { error }
        client.end(true)
      }
      const publish = (topic, payload) =>
        client.publish(topic, payload, { qos: 1 }, (error) => error && fail(error))
      const ask = (topic, payload = '') => {
        requestId = randomUUID()
        publish(topic.replace('{rid}', requestId), payload)
      }
      client.on('connect', () => {
        client.subscribe(`${RESPONSES}#`, { qos: 1 }, (error, [granted] = []) => {
          if (error) return fail(error)
          if (granted === undefined || granted.qos > 1) return fail(new Error('the subscription was refused'))
          ask('$dps/registrations/PUT/iotdps-register/?$rid={rid}', JSON.stringify({ registrationId }))
        })
      })
      client.on('message', (topic, payload) => {
        try {
          const [, status, query] = /^\$dps\/registrations\/res\/(\d{3})\/\?(.*)$/.exec(topic) ?? []
          const parameters = new URLSearchParams(query)
          if (parameters.get('$rid') !== requestId) return
          const reply = JSON.parse(payload.toString())
          if (status >= 300)
            throw new Error(`the service answered ${status}: ${reply.message ?? 'no message'}`)
          if (reply.status === 'assigning') {
            const seconds = Number(parameters.get('retry-after') ?? 2)
            if (!(seconds >= 0 && seconds < 3600)) throw new Error('retry-after makes no sense')
            const operation = `operationId=${reply.operationId}`
            poll = setTimeout(
              () => ask(`$dps/registrations/GET/iotdps-get-operationstatus/?$rid={rid}&${operation}`),
              seconds * 1000,
            )
            return
          }
          if (reply.status !== 'assigned' || !reply.registrationState?.assignedHub) {
            throw new Error(`the registration ended as ${reply.status}`)
          }
          outcome = { state: reply.registrationState }
          scene.onAssigned?.()
          client.end()
        } catch (error) {
          fail(error)
        }
      })
      client.on('error', fail)
      client.on('close', () => {
        clearTimeout(poll)
        if (outcome?.state !== undefined) resolve(outcome.state)
        else reject(outcome?.error ?? new Error('the connection was lost'))
      })
    })
  }
  return { register }
}

/** Registers once, as a program. */
exports.main = (mqtt) =>
  exports
    .open(JSON.parse(process.argv[2]), mqtt)
    .register()
    .then(({ status }) => {
      if (status !== 'assigned') process.exitCode = 1
    })

if (require.main === module) exports.main()
