// Keys in hardware, with every Node that can be had: SoftHSM2 stands for the chip, swtpm for the TPM, and the emulator for
// the service. Prints the table of docs/hardware-keys.md and fails where the file says otherwise; last line:
// `N passed, N failed[, N skipped]`.
//
//     npm run hardware                     what the tools that are there allow
//     npm run hardware -- --install        asks Debian for missing tools first (root)
//     npm run hardware -- --write          all, and writes the table

import { spawn, spawnSync } from 'node:child_process'
import { createHmac, createPublicKey, generateKeyPairSync, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { DpsError, ProvisioningClient, sasSigner } from 'dps-device-client'
import { issueCertificate, startEmulator } from 'dps-device-client/emulator'
import { debian13, env, library, missingTools, publishedNodes, run, serve } from './machine.mjs'

const here = (name) => fileURLToPath(new URL(name, import.meta.url))
const DOCUMENT = here('../../docs/hardware-keys.md')
const BLOCK = /(<!-- npm run hardware -- --write -->\n)[\s\S]*?(<!-- end -->)/
const KEYS = { ec: 'EC:prime256v1', rsa: 'rsa:2048' }
const TOKEN = 'device'
// Not a number that could stand in any output by chance.
const PIN = `pin-${randomBytes(8).toString('hex')}`
/** Ways to a key in a PKCS#11 token: what has to be there, what the device process is given. */
const WAYS = [
  {
    name: 'engine by its path',
    needs: 'engines-3/pkcs11.so',
    credential: 'path',
    env: ({ root, softhsm }) => ({ ...softhsm, PKCS11_MODULE_PATH: library(root, 'softhsm/libsofthsm2.so') }),
  },
  {
    name: 'engine by configuration',
    needs: 'engines-3/pkcs11.so',
    credential: 'engine',
    configuration: 'engine.cnf',
    env: ({ softhsm }) => softhsm,
  },
  {
    name: 'engine, token in another process',
    needs: 'engines-3/pkcs11.so',
    credential: 'engine',
    configuration: 'engine-remote.cnf',
    env: ({ remote }) => remote,
  },
  {
    name: 'provider',
    needs: 'ossl-modules/pkcs11.so',
    credential: 'provider',
    configuration: 'provider.cnf',
    env: ({ softhsm }) => softhsm,
  },
  {
    name: 'provider, token in another process',
    needs: 'ossl-modules/pkcs11.so',
    credential: 'provider',
    configuration: 'provider-remote.cnf',
    env: ({ remote }) => remote,
  },
]
const { values } = parseArgs({ options: { install: { type: 'boolean' }, write: { type: 'boolean' } } })

let passed = 0
let failed = 0
let skipped = 0
function report(ok, name, detail) {
  if (ok) passed++
  else failed++
  console.log(`${ok ? 'ok     ' : 'FAILED '} ${name}${detail ? `: ${detail}` : ''}`)
}
function skip(name, why) {
  skipped++
  console.log(`skipped ${name}: ${why}`)
}
async function check(name, action) {
  try {
    report(true, name, await action())
  } catch (error) {
    report(false, name, `${error.message}${error.stderr ? `\n${error.stderr}` : ''}`)
  }
}
function expect(holds, what) {
  if (!holds) throw new Error(what)
}

const missing = missingTools(values.install)
if (missing.length > 0) {
  skip(
    'keys in hardware',
    `${missing.join(', ')} not installed; on Debian, as root: npm run hardware -- --install`,
  )
  console.log(`\n${passed} passed, ${failed} failed, ${skipped} skipped`)
  process.exit(values.write ? 1 : 0)
}

const folder = mkdtempSync(join(tmpdir(), 'dps-hardware-'))
const emulator = await startEmulator({ assigning: { polls: 0 } })
const services = []
const versions = new Set()
const rows = []
try {
  emulator.enrollments.addGroup({
    groupId: 'chips',
    attestation: { x509: { ca: emulator.pki.deviceRoot.certPem } },
  })
  await cases()
} finally {
  for (const service of services.reverse()) await service.stop()
  await emulator.close()
  rmSync(folder, { recursive: true, force: true })
}
compareWithDocument()
console.log(`\n${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1

async function cases() {
  const nodes = publishedNodes(folder)
  const machine = {
    debian: run('sh', ['-c', '. /etc/os-release; echo "$ID $VERSION_ID"']).trim().replace('debian', 'Debian'),
    root: '/',
    outside: join(folder, 'device'),
    inside: join(folder, 'device'),
    enter: (command) => command,
    nodes,
  }
  mkdirSync(machine.outside)
  makeToken(machine.outside)
  const certificates = {}
  const { publicKey: anotherKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const stranger = await issueFor(anotherKey, 'stranger')
  for (const name of Object.keys(KEYS))
    certificates[name] = await issueFor(readToken(machine.outside, name), name)
  const userlands = [machine]
  try {
    userlands.push(inFolder(nodes))
  } catch (error) {
    skip(
      'Debian 13',
      String(error.stderr || error.message)
        .trim()
        .split('\n')
        .at(-1),
    )
  }
  for (const userland of userlands) {
    await prepare(userland, certificates)
    for (const way of WAYS.filter(({ needs }) => library(userland.root, needs) !== undefined)) {
      await tableRow(userland, way)
    }
  }
  for (const name of ['engine.cnf', 'provider.cnf']) {
    const userland = name === 'engine.cnf' ? machine : userlands[1]
    if (userland !== undefined) await documented(name, userland.outside)
  }
  await check('the document’s commands make the PEM of a URI', () => {
    const script = readFileSync(DOCUMENT, 'utf8').match(/```sh\n(cat > uri\.cnf[\s\S]*?)```/)[1]
    run('bash', ['-e', '-c', script], { cwd: machine.outside })
    const uri = script.match(/UTF8:(\S+)/)[1]
    expect(readFileSync(join(machine.outside, 'key.pem'), 'utf8') === uriPem(uri), 'another PEM')
  })
  await refusals(machine, stranger)
  await symmetricKeys(machine)
  await tpmProvider(machine)
  for (const name of ['x509-pkcs11', 'sas-tpm']) {
    await check(`examples/hardware-key/${name}.mjs`, () => example(name))
  }
}

/** A token with one key pair of each kind, made inside it and never to leave it. */
function makeToken(place) {
  mkdirSync(join(place, 'tokens'))
  writeFileSync(join(place, 'pin'), PIN, { mode: 0o600 })
  writeFileSync(join(place, 'softhsm2.conf'), `directories.tokendir = ${join(place, 'tokens')}\n`)
  const soPin = randomBytes(8).toString('hex')
  const softhsm = { env: { ...env, SOFTHSM2_CONF: join(place, 'softhsm2.conf') } }
  run('softhsm2-util', ['--init-token', '--free', '--label', TOKEN, '--pin', PIN, '--so-pin', soPin], softhsm)
  for (const [name, type] of Object.entries(KEYS)) {
    tokenTool(place, '--keypairgen', '--key-type', type, '--label', name, '--id', idOf(name))
  }
}

function idOf(name) {
  return `0${Object.keys(KEYS).indexOf(name) + 1}`
}

function tokenTool(place, ...args) {
  const softhsm = { ...env, SOFTHSM2_CONF: join(place, 'softhsm2.conf'), TOKEN_PIN: PIN }
  const login = [
    '--module',
    library('/', 'softhsm/libsofthsm2.so'),
    '--token-label',
    TOKEN,
    '--login',
    '--pin',
    'env:TOKEN_PIN',
  ]
  return run('pkcs11-tool', [...login, ...args], { env: softhsm, encoding: 'buffer' })
}

function readToken(place, name) {
  return createPublicKey({
    key: tokenTool(place, '--read-object', '--type', 'pubkey', '--id', idOf(name)),
    format: 'der',
    type: 'spki',
  })
}

async function issueFor(publicKey, name) {
  const { chainPem } = await issueCertificate({
    subject: `chip-${name}`,
    issuer: emulator.pki.deviceIntermediate,
    publicKey: publicKey.export({ type: 'spki', format: 'pem' }),
    eku: ['clientAuth'],
  })
  return chainPem
}

/** Debian 13 in a folder: with its own Node, whose OpenSSL is the system's, beside the published ones. */
function inFolder(nodes) {
  const root = debian13(folder)
  const outside = join(root, 'device')
  cpSync(join(folder, 'device'), outside, { recursive: true })
  writeFileSync(join(outside, 'softhsm2.conf'), 'directories.tokendir = /device/tokens\n')
  const copies = nodes.map(({ major, binary }) => {
    cpSync(binary, join(outside, `node-${major}`))
    return { major, binary: `/device/node-${major}` }
  })
  return {
    debian: 'Debian 13',
    root,
    outside,
    inside: '/device',
    enter: (command) => ['chroot', root, ...command],
    nodes: [...copies, { major: 'Debian’s `nodejs`', binary: '/usr/bin/node' }],
  }
}

/** All that a device of this userland is given: the client, its certificates, keys by every name, configurations. */
async function prepare(userland, certificates) {
  const { root, outside, inside, enter } = userland
  const at = (name) => join(inside, name)
  cpSync(here('../../dist'), join(outside, 'dist'), { recursive: true })
  cpSync(here('device.mjs'), join(outside, 'device.mjs'))
  const engine = library(root, 'engines-3/pkcs11.so')
  const softhsm = library(root, 'softhsm/libsofthsm2.so')
  const remote = library(root, 'pkcs11/p11-kit-client.so')
  const write = (name, text) => writeFileSync(join(outside, name), text)
  const credentials = {}
  for (const [name, cert] of Object.entries(certificates)) {
    const uri = `pkcs11:token=${TOKEN};object=${name};type=private`
    const withPin = `${uri}?pin-source=file:${at('pin')}`
    write(`${name}.crt`, cert)
    write(`${name}.uri.pem`, uriPem(withPin))
    const certFile = at(`${name}.crt`)
    credentials[`path ${name}`] = { certFile, privateKeyEngine: engine, privateKeyIdentifier: withPin }
    credentials[`engine ${name}`] = { certFile, privateKeyEngine: 'pkcs11', privateKeyIdentifier: withPin }
    credentials[`provider ${name}`] = { certFile, keyFile: at(`${name}.uri.pem`) }
    credentials[`tpm ${name}`] = { certFile: at(`tpm-${name}.crt`), keyFile: at(`tpm-${name}.pem`) }
  }
  // What must be refused: the key of another certificate, a PIN that is not the token's.
  credentials.other = { ...credentials['engine ec'], certFile: at('stranger.crt') }
  credentials.wrongPin = {
    ...credentials['engine ec'],
    privateKeyIdentifier: `pkcs11:token=${TOKEN};object=ec;type=private?pin-source=file:${at('wrong-pin')}`,
  }
  const client = emulator.clientOptions()
  write('devices.json', JSON.stringify({ library: at('dist/index.mjs'), client, credentials }))
  write('engine.cnf', engineConfiguration(engine, softhsm))
  write('engine-remote.cnf', engineConfiguration(engine, remote))
  const provider = library(root, 'ossl-modules/pkcs11.so')
  write('provider.cnf', providerConfiguration('pkcs11', provider, moduleOf(softhsm)))
  write('provider-remote.cnf', providerConfiguration('pkcs11', provider, moduleOf(remote)))
  userland.softhsm = { SOFTHSM2_CONF: at('softhsm2.conf') }
  userland.remote = { P11_KIT_SERVER_ADDRESS: `unix:path=${at('token.sock')}` }
  const args = ['server', '--foreground', '--name', at('token.sock'), '--provider', softhsm]
  const [program, ...rest] = enter(['/usr/bin/p11-kit', ...args, `pkcs11:token=${TOKEN}`])
  services.push(await serve(program, rest, { env: { ...env, ...userland.softhsm } }))
}

function moduleOf(path) {
  return `pkcs11-module-path = ${path}\npkcs11-module-quirks = no-deinit\n`
}

function engineConfiguration(engine, module) {
  return `nodejs_conf = device
[device]
engines = engines
[engines]
pkcs11 = pkcs11
[pkcs11]
engine_id = pkcs11
dynamic_path = ${engine}
MODULE_PATH = ${module}
init = 0
`
}

function providerConfiguration(name, module, own, properties) {
  const algorithms = properties ? `[algorithms]\ndefault_properties = ${properties}\n` : ''
  return `nodejs_conf = device
[device]
providers = providers
${properties ? 'alg_section = algorithms\n' : ''}${algorithms}[providers]
default = own
${name} = ${name}
[own]
activate = 1
[${name}]
module = ${module}
${own}activate = 1
`
}

/** What the document tells a device to use is what was used here, but for the architecture. */
function documented(name, outside) {
  const used = readFileSync(join(outside, name), 'utf8').replaceAll(
    /\/usr\/lib\/[^/]+\//g,
    '/usr/lib/aarch64-linux-gnu/',
  )
  return check(`the document has ${name}`, () => {
    expect(readFileSync(DOCUMENT, 'utf8').includes(used), `it has not:\n${used}`)
  })
}

/** The form in which pkcs11-provider reads a URI as a key: SEQUENCE { VisibleString, UTF8String }. */
function uriPem(uri) {
  const tlv = (tag, value) => {
    const content = Buffer.from(value)
    const length = content.length < 128 ? [content.length] : [0x81, content.length]
    return Buffer.concat([Buffer.of(tag, ...length), content])
  }
  const der = tlv(0x30, Buffer.concat([tlv(0x1a, 'PKCS#11 Provider URI v1.0'), tlv(0x0c, uri)]))
  const lines = der.toString('base64').match(/.{1,64}/g)
  return ['-----BEGIN PKCS#11 PROVIDER URI-----', ...lines, '-----END PKCS#11 PROVIDER URI-----', ''].join(
    '\n',
  )
}

async function device(userland, node, way, names, extra = {}) {
  const { binary } = node
  const configuration = way.configuration
    ? [`--openssl-config=${join(userland.inside, way.configuration)}`]
    : []
  const script = join(userland.inside, 'device.mjs')
  const command = userland.enter([binary, ...configuration, script, userland.inside, ...names])
  // Not one of the synchronous kind: the emulator answers in this process.
  const child = spawn(command[0], command.slice(1), {
    env: { ...env, ...way.env(userland), ...extra },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 60_000,
    killSignal: 'SIGKILL',
  })
  const [stdout, stderr, [status, signal]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'exit'),
  ])
  const lines = stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line))
  return { status, signal, lines, stdout, stderr }
}

/** How the registrations of some credentials in one process ended: '' for all assigned. */
async function outcome(userland, node, way, keys) {
  const before = keys.map(registrations)
  const { status, signal, lines } = await device(
    userland,
    node,
    way,
    keys.map((key) => `${way.credential} ${key}`),
  )
  if (signal !== null || status > 128) return `crash (${signal ?? `signal ${status - 128}`})`
  const refused = lines.find(({ code }) => code !== undefined)
  if (refused !== undefined) return `\`${refused.code}\``
  // The emulator has seen each of them, in a handshake that the key in the token signed.
  const all = keys.every((key, i) => registrations(key) === before[i] + 2)
  return status === 0 && lines.length === 2 * keys.length && all ? '' : `exit ${status}`
}

function registrations(key) {
  const ids = [`chip-${key}`, `tpm-${key}`]
  return ids.reduce((sum, id) => sum + (emulator.registrations.get(id)?.count ?? 0), 0)
}

async function cell(userland, node, way) {
  const ec = await outcome(userland, node, way, ['ec'])
  if (ec !== '') return ec
  const rsa = await outcome(userland, node, way, ['rsa'])
  if (rsa !== '') return `EC works; RSA: ${rsa}`
  return (await outcome(userland, node, way, ['ec', 'rsa'])) === '' ? 'works' : 'one certificate per process'
}

async function tableRow(userland, way) {
  const documented = rowOf(userland, way)
  const cells = []
  for (const node of userland.nodes) {
    const [program, ...args] = userland.enter([
      node.binary,
      '-p',
      'process.version+", OpenSSL "+process.versions.openssl',
    ])
    versions.add(
      `${node.major === '20' || /^\d/.test(node.major) ? '' : `${node.major} `}${run(program, args).trim()}`,
    )
    const found = await cell(userland, node, way)
    cells.push(found)
    const expected = documented?.[cells.length + 1]
    const name = `${userland.debian}, ${way.name}, Node ${node.major}`
    report(
      values.write || found === expected,
      name,
      found === expected ? found : `${found}, and not ${expected}`,
    )
  }
  while (cells.length < 5) cells.push('—')
  rows.push([userland.debian, way.name, ...cells])
}

function rowOf(userland, way) {
  let text
  try {
    text = readFileSync(DOCUMENT, 'utf8')
  } catch {
    return undefined
  }
  return text
    .split('\n')
    .map((line) => line.split(' | ').map((part) => part.replace(/^\| | \|$/g, '')))
    .find((parts) => parts[0] === userland.debian && parts[1] === way.name)
}

function compareWithDocument() {
  const table = [
    '| | Way | Node 20 | Node 22 | Node 24 | Node 26 | Debian’s `nodejs` |',
    '|---|---|---|---|---|---|---|',
    ...rows.map((row) => `| ${row.join(' | ')} |`),
  ].join('\n')
  const measured = `Measured with ${[...versions].join('; ')}.`
  console.log(`\n${table}\n\n${measured}`)
  if (!values.write) return
  if (failed > 0 || skipped > 0) {
    report(false, 'the table is written', 'only when nothing failed and nothing was skipped')
    return
  }
  const text = readFileSync(DOCUMENT, 'utf8')
  writeFileSync(
    DOCUMENT,
    text.replace(BLOCK, (_, head, tail) => `${head}\n${table}\n\n${measured}\n\n${tail}`),
  )
}

async function refusals(machine, stranger) {
  writeFileSync(join(machine.outside, 'stranger.crt'), stranger)
  writeFileSync(join(machine.outside, 'wrong-pin'), `${PIN.slice(0, -1)}x`)
  const node = machine.nodes[0]
  const way = WAYS.find(({ credential }) => credential === 'engine')
  const refused = async (name, code, extra) => {
    const { lines, stdout, stderr } = await device(machine, node, way, [name], extra)
    expect(lines.length === 2, `${lines.length} answers: ${stdout}${stderr}`)
    for (const { code: found, phase } of lines) {
      expect(found === code && phase === 'config', `${found} in phase ${phase}`)
    }
    expect(!`${stdout}${stderr}`.includes(PIN.slice(0, -1)), 'the PIN was printed')
    return `${code}, phase config`
  }
  await check('the key of another certificate', () => refused('other', 'CREDENTIAL_KEY_MISMATCH'))
  await check('a wrong PIN, which is not printed', () => refused('wrongPin', 'CREDENTIAL_UNREADABLE'))
  await check('a token that was taken out', () => {
    const empty = join(machine.outside, 'empty')
    mkdirSync(empty)
    writeFileSync(join(empty, 'softhsm2.conf'), `directories.tokendir = ${empty}\n`)
    return refused('engine ec', 'CREDENTIAL_UNREADABLE', { SOFTHSM2_CONF: join(empty, 'softhsm2.conf') })
  })
  await check('a provider’s URI where no provider is loaded', () =>
    refused('provider ec', 'CREDENTIAL_UNREADABLE'),
  )
  for (const name of Object.keys(KEYS)) {
    await check(`the private key ${name} does not leave the token`, () => {
      const listed = tokenTool(machine.outside, '--list-objects', '--type', 'privkey', '--id', idOf(name))
      expect(/sensitive, always sensitive, never extractable/.test(listed.toString()), listed.toString())
      let content = Buffer.alloc(0)
      try {
        content = tokenTool(machine.outside, '--read-object', '--type', 'privkey', '--id', idOf(name))
      } catch {
        // As it must.
      }
      expect(content.length === 0, 'it was read')
    })
  }
}

async function symmetricKeys(machine) {
  await check('a PKCS#11 token computes the HMAC of the SAS tokens', async () => {
    // No tool of OpenSC writes a secret that is to be an HMAC key, so this one is made inside and read for the service.
    const object = ['--type', 'secrkey', '--id', '0a']
    tokenTool(machine.outside, '--keygen', '--key-type', 'GENERIC:32', '--id', '0a', '--extractable')
    const key = tokenTool(machine.outside, '--read-object', ...object)
    const file = join(folder, 'string-to-sign')
    const sign = (string) => {
      writeFileSync(file, string)
      const input = ['--id', '0a', '--input-file', file]
      return tokenTool(machine.outside, '--sign', '--mechanism', 'SHA256-HMAC', ...input)
    }
    for (const transport of ['mqtt', 'https']) await registerBySas(`sas-${transport}`, key, sign, transport)
    return 'mqtt, https'
  })
}

async function registerBySas(registrationId, key, sign, transport) {
  emulator.enrollments.addIndividual({
    registrationId,
    attestation: { symmetricKey: { primaryKey: key.toString('base64') } },
  })
  const credential = sasSigner({ registrationId, sign })
  await new ProvisioningClient({ ...emulator.clientOptions(), transport, credential }).register()
  // A signer that has another key is refused: what was accepted came from this one.
  const other = sasSigner({
    registrationId,
    sign: (text) => createHmac('sha256', 'other').update(text).digest(),
  })
  const error = await new ProvisioningClient({ ...emulator.clientOptions(), transport, credential: other })
    .register()
    .catch((thrown) => thrown)
  expect(DpsError.is(error) && error.code === 'UNAUTHORIZED', `another key was answered with ${error.code}`)
}

/** The TPM's own OpenSSL provider, over the resource manager that a kernel has built in as /dev/tpmrm0. */
async function tpmProvider(machine) {
  const way = {
    name: 'TPM 2.0, provider `tpm2`',
    credential: 'tpm',
    configuration: 'tpm.cnf',
    env: () => tpm,
  }
  const place = join(folder, 'tpm')
  mkdirSync(place)
  const socket = join(place, 'sock')
  services.push(
    await serve(
      'swtpm',
      [
        ...['socket', '--tpm2', '--tpmstate', `dir=${place}`, '--flags', 'not-need-init,startup-clear'],
        ...['--server', `type=unixio,path=${socket}`, '--ctrl', `type=unixio,path=${socket}.ctrl`],
      ],
      { isReady: () => spawnSync('test', ['-S', `${socket}.ctrl`]).status === 0 },
    ),
  )
  const bus = await serve('dbus-daemon', ['--session', '--nofork', '--nopidfile', '--print-address=1'])
  services.push(bus)
  const tcti = 'tabrmd:bus_type=session'
  const tpm = {
    DBUS_SESSION_BUS_ADDRESS: bus.said.trim(),
    TPM2TOOLS_TCTI: tcti,
    TPM2OPENSSL_TCTI: tcti,
    TSS2_LOG: 'all+NONE',
  }
  const options = { env: { ...env, ...tpm } }
  services.push(
    await serve('tpm2-abrmd', ['--allow-root', '--session', `--tcti=swtpm:path=${socket}`], {
      ...options,
      isReady: () => spawnSync('tpm2_getrandom', ['8'], options).status === 0,
    }),
  )
  const algorithms = { ec: ['EC', 'group:P-256'], rsa: ['RSA', 'bits:2048'] }
  for (const [name, [algorithm, parameter]] of Object.entries(algorithms)) {
    const file = join(machine.outside, `tpm-${name}.pem`)
    const tpm2 = ['-provider', 'tpm2', '-provider', 'default']
    run(
      'openssl',
      ['genpkey', ...tpm2, '-algorithm', algorithm, '-pkeyopt', parameter, '-out', file],
      options,
    )
    const publicKey = createPublicKey(run('openssl', ['pkey', ...tpm2, '-in', file, '-pubout'], options))
    const { chainPem } = await issueCertificate({
      subject: `tpm-${name}`,
      issuer: emulator.pki.deviceIntermediate,
      publicKey: publicKey.export({ type: 'spki', format: 'pem' }),
      eku: ['clientAuth'],
    })
    writeFileSync(join(machine.outside, `tpm-${name}.crt`), chainPem)
  }
  const properties = '?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes,tpm2.rand!=yes'
  const module = library('/', 'ossl-modules/tpm2.so')
  writeFileSync(join(machine.outside, 'tpm.cnf'), providerConfiguration('tpm2', module, '', properties))
  await tableRow(machine, way)
  await documented('tpm.cnf', machine.outside)
}

/** As a reader runs it. */
function example(name) {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [here(`../../examples/hardware-key/${name}.mjs`)],
    {
      encoding: 'utf8',
      env,
      timeout: 60_000,
    },
  )
  expect(status === 0 && /is device/.test(stdout), `exit ${status}: ${stdout}${stderr}`)
}
