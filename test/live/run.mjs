// Registers real devices with a real provisioning service: every credential that the environment names, over every
// transport. Opt-in, never part of `npm test` or of CI. docs/live-test.md says how to prepare an instance for it.
//
//     DPS_LIVE_ID_SCOPE                                          the instance; nothing is tried without it
//     DPS_LIVE_REGISTRATION_ID, DPS_LIVE_KEY_FILE                a device with a symmetric key, base64
//     DPS_LIVE_GROUP_REGISTRATION_ID, DPS_LIVE_GROUP_KEY_FILE    a device of a group, and the group's key, base64
//     DPS_LIVE_CERT_FILE, DPS_LIVE_CERT_KEY_FILE                 a device with a certificate; the chain, leaf first
//     DPS_LIVE_GROUP_CERT_FILE, DPS_LIVE_GROUP_CERT_KEY_FILE     one whose CA has an enrollment group
//     DPS_LIVE_HOST, DPS_LIVE_PROXY                              another cloud or endpoint; a proxy's URL
//     DPS_LIVE_CONNECT_TO, DPS_LIVE_PORT, DPS_LIVE_EXTRA_ROOT_FILE    a private endpoint, or the emulator
//
// Each credential costs five billed registrations. What is printed holds no key, token, id scope, registration id, device id
// or hub, and may be published. `--json FILE` writes the same for machines. Last line: `N passed, N failed`, or that nothing
// was tried, with exit code 0.

import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { BUNDLED_ROOTS, DpsError, ProvisioningClient } from 'dps-device-client'
import { readSettings } from './settings.mjs'

const COMMAND = fileURLToPath(new URL('../../dist/dps-device.cjs', import.meta.url))
const TRANSPORTS = ['mqtt', 'mqtt-ws', 'https']
const TIMEOUT_MS = 120_000

const { values } = parseArgs({ options: { json: { type: 'string' } } })
const settings = await readSettings(process.env)
if (settings.wrong.length > 0) {
  for (const what of settings.wrong) console.error(what)
  process.exit(2)
}
const { options, credentials } = settings
if (options.idScope === undefined || credentials.length === 0) {
  console.log('Not set in the environment:')
  for (const what of settings.missing) console.log(`  ${what}`)
  console.log('Nothing was tried: the live tests need an instance and at least one device of it.')
  process.exit(0)
}

const report = []
let passed = 0
let failed = 0
/** Keeps out what names the instance or its devices, whatever an error says. */
const secrets = new Set([options.idScope])
const clean = (text) => [...secrets].reduce((left, secret) => left.replaceAll(secret, '…'), String(text))

async function attempt(name, action) {
  const started = performance.now()
  try {
    const facts = await action()
    passed++
    console.log(`ok      ${name}: ${clean(describe(facts))}`)
    report.push({ name, ok: true, ...facts, ms: Math.round(performance.now() - started) })
    return facts
  } catch (error) {
    failed++
    const { code, phase, serviceErrorCode, hint } = DpsError.is(error) ? error : { code: error.message }
    const told = [
      code,
      phase && `in phase ${phase}`,
      serviceErrorCode && `service code ${serviceErrorCode}`,
      hint,
    ]
    console.log(`FAILED  ${name}: ${clean(told.filter(Boolean).join(', '))}`)
    report.push({ name, ok: false, code: clean(code), phase, serviceErrorCode })
    return undefined
  }
}
const describe = (facts) =>
  Object.entries(facts)
    .map(([key, value]) => `${key} ${Array.isArray(value) ? value.join(' < ') : value}`)
    .join(', ')

function must(holds, message) {
  if (!holds) throw new Error(message)
}

/** What every connection is held to, and what is worth telling of it. */
function facts({ protocol, cipher, curve, root, resumed, roundTrips, timingsMs }, expectedRoots) {
  must(protocol === 'TLSv1.2', `negotiated ${protocol}`)
  must(/^ECDHE-RSA-AES(128|256)-(GCM-)?SHA(256|384)$/.test(cipher), `negotiated ${cipher}`)
  must(expectedRoots === undefined || expectedRoots.includes(root), `validated by ${root}`)
  return { cipher, curve, root, resumed, roundTrips, tlsMs: Math.round(timingsMs.tls ?? 0) }
}
const roots = options.trust === undefined ? BUNDLED_ROOTS.map(({ name }) => name) : undefined

console.log(
  settings.elsewhere.length === 0
    ? `Against global.azure-devices-provisioning.net, Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`
    : `Elsewhere than the public service (${settings.elsewhere.join(', ')}), Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`,
)

await attempt('the way there, by dps-device doctor', async () => {
  // The exit code tells of what does not concern a live test, such as a slow resolver: the checks are read one by one.
  const env = { ...process.env, ...(options.proxy === undefined ? {} : { https_proxy: options.proxy }) }
  const { stdout } = await promisify(execFile)(COMMAND, ['doctor', '--json', ...settings.args], {
    env,
  }).catch((error) => error)
  const { checks, error } = JSON.parse(stdout)
  must(checks !== undefined, error?.code)
  const found = (id) => checks.find((check) => check.id === id)
  const bad = checks.find(({ status }) => status === 'error')
  must(bad === undefined, `${bad?.id}: ${bad?.message}`)
  const chain = found('tls.chain').details?.chain ?? []
  return {
    root: found('tls.root').details?.root,
    chain: chain.map(({ subject }) => subject),
    'chain ends': chain.map(({ until }) => until.slice(0, 10)),
    suites: checks
      .filter(({ id, status }) => id.startsWith('suite.') && status === 'ok')
      .map(({ id }) => id.slice('suite.'.length)),
    'server ahead by s': found('clock.server').details?.serverAheadSeconds ?? 'unknown',
  }
})

for (const { name, make } of credentials) {
  const credential = await make()
  const { registrationId } = await credential.load()
  secrets.add(registrationId)
  let last
  for (const transport of TRANSPORTS) {
    // Sessions are shared by all clients of a process: where a whole handshake is to be seen, none is offered.
    const client = (more = {}) =>
      new ProvisioningClient({
        ...options,
        credential,
        transport,
        tls: { sessionResumption: false },
        ...more,
      })
    const call = { timeoutMs: TIMEOUT_MS }
    const where = `${name} over ${transport}`

    const reached = await attempt(`${where}: reached`, async () =>
      facts((await client().probe(call)).connection, roots),
    )
    // Trying a refused device again tells nothing.
    if (reached === undefined) continue
    await attempt(`${where}: reached again, offering the session`, async () => {
      const resuming = client({ tls: {} })
      await resuming.probe(call)
      return facts((await resuming.probe(call)).connection, roots)
    })
    await attempt(`${where}: registered`, async () => register(client(), call))
    if (transport === 'https') continue
    await attempt(`${where}: registered, pipelined`, async () => {
      let refused = false
      const onEvent = ({ type }) => {
        refused ||= type === 'pipelining-refused'
      }
      const made = await register(client({ mqtt: { pipelining: true }, onEvent }), call)
      return { pipelining: refused ? 'refused' : 'accepted', ...made }
    })
  }
  if (last === undefined) continue
  await attempt(`${name}: looked up`, async () => {
    const fresh = new ProvisioningClient({ ...options, credential, tls: { sessionResumption: false } })
    const state = await fresh.lookup({ timeoutMs: TIMEOUT_MS })
    must(
      state.status === 'assigned' && state.deviceId === last.deviceId,
      'another device than was registered',
    )
    must(state.assignedHub === last.assignedHub, 'another hub than was registered')
    return facts(state.connection, roots)
  })

  async function register(client, call) {
    const assignment = await client.register(call)
    secrets.add(assignment.assignedHub).add(assignment.deviceId)
    must(assignment.status === 'assigned', `status ${assignment.status}`)
    must(last === undefined || last.assignedHub === assignment.assignedHub, 'another hub than a moment ago')
    last = assignment
    return { substatus: assignment.substatus ?? 'none', ...facts(assignment.connection, roots) }
  }
}

for (const what of settings.missing) console.log(`not tried: ${what}`)
if (values.json !== undefined) writeFileSync(values.json, `${clean(JSON.stringify(report, null, 1))}\n`)
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
