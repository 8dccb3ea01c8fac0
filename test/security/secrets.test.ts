import { execFile } from 'node:child_process'
import { createHmac, createPrivateKey } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, describe, expect, test } from 'vitest'
import * as emulatorEntry from '../../src/emulator/index.ts'
import * as factory from '../../src/factory/index.ts'
import * as hubEntry from '../../src/hub/index.ts'
import * as main from '../../src/index.ts'
import * as testing from '../../src/testing/index.ts'
import { found, linesOf, listen, publicPartOf, said, say, secretsOfKey, spellings } from '../support/said.ts'

// Every name that the package exports, and every option that it takes: whatever holds a secret, or is given one by mistake,
// is printed in all ways and has none of it. Memory is not looked at.

const require = createRequire(import.meta.url)
const { DpsError } = main
const PASSPHRASE = 'correct horse battery staple'
const PROXY_PASSWORD = 'open sesame, said the forty'
const folder = mkdtempSync(join(tmpdir(), 'secrets-'))
const emulator = await emulatorEntry.startEmulator({ assigning: { polls: 0 } })
const groupKey = emulatorEntry.generateSymmetricKey()
const keyOf = (registrationId: string) => factory.deriveDeviceKey({ groupKey, registrationId })
/** The key of the first device of that name that is so: one key in four has neither `+` nor `/`, and some options take it. */
async function keyThatIs(so: RegExp): Promise<readonly [string, string]> {
  for (let i = 1; ; i++) {
    const own = await keyOf(`sensor-${i}`)
    if (so.test(own)) return [`sensor-${i}`, own]
  }
}
const [ID, key] = await keyThatIs(/^(?=.*\+).*\//)
const [, plainKey] = await keyThatIs(/^[A-Za-z0-9]+=$/)
emulator.enrollments.addGroup({
  groupId: 'sas',
  attestation: { symmetricKey: { primaryKey: groupKey } },
  issuance: {},
})
emulator.enrollments.addGroup({
  groupId: 'x509',
  attestation: { x509: { ca: emulator.pki.deviceRoot.certPem } },
})
const device = await emulator.issueDeviceCertificate({ registrationId: 'press-2' })
const privateKey = createPrivateKey(device.key)
const pkcs8 = { type: 'pkcs8', format: 'pem' } as const
const encrypted = privateKey.export({ ...pkcs8, cipher: 'aes-256-cbc', passphrase: PASSPHRASE }) as string
afterAll(async () => {
  await emulator.close()
  rmSync(folder, { recursive: true })
})
listen()

const secrets = new Map([
  ...spellings('the key', Buffer.from(key, 'base64')),
  ...spellings('the key of letters and digits', Buffer.from(plainKey, 'base64')),
  ...spellings('the group key', Buffer.from(groupKey, 'base64')),
  ...secretsOfKey(privateKey),
  ...linesOf('the encrypted key', encrypted),
  ['the passphrase', PASSPHRASE],
  ['the password of the proxy', PROXY_PASSWORD],
  ['the password of the proxy, encoded', encodeURIComponent(PROXY_PASSWORD)],
  ['that password as Basic', Buffer.from(`device:${PROXY_PASSWORD}`).toString('base64')],
])

const published = [
  device.cert,
  (await factory.createCsr({ registrationId: ID, key: device.key })).pem,
  publicPartOf(privateKey),
].join('')

const sas = () => main.symmetricKey({ registrationId: ID, key })
const certificate = () => main.x509({ cert: device.cert, key: encrypted, passphrase: PASSPHRASE })
const client = (more: Partial<main.ProvisioningClientOptions> = {}) =>
  new main.ProvisioningClient({ ...emulator.clientOptions(), credential: sas(), ...more })
const failing = {
  timeouts: { totalMs: 20_000 },
  retry: { maxAttempts: 1 },
  connectTo: '127.0.0.1',
  port: 1,
} as const
const failure = (call: () => unknown) =>
  Promise.resolve()
    .then(call)
    .catch((error: unknown) => error)
let files = 0
const store = () => main.fileStore(join(folder, `record-${++files}`))

async function tellCredential(credential: main.Credential): Promise<void> {
  say('the credential', credential)
  const identity = await credential.load()
  say('the identity', identity)
  say('what TLS is given', identity.tls)
  say('a copy of the credential', await failure(() => structuredClone(credential)))
  say('a copy of the identity', await failure(() => structuredClone(identity)))
  say('the inspection', await main.inspectCredential(credential))
}

/** What is shown of each export; or why there is nothing to show. */
type Exhibits = Readonly<Record<string, (() => Promise<void>) | string>>

const EXHIBITS: Readonly<Record<string, readonly [object, Exhibits]>> = {
  'dps-device-client': [
    main,
    {
      BUNDLED_ROOTS: 'they are public',
      systemClock: 'it holds nothing',
      shouldReprovision: 'it returns yes or no',
      x509: async () => {
        await tellCredential(certificate())
        writeFileSync(join(folder, 'key.pem'), device.key)
        await tellCredential(main.x509({ cert: device.cert, keyFile: join(folder, 'key.pem') }))
        await tellCredential(main.x509({ cert: () => device.cert, key: async () => device.key }))
      },
      symmetricKey: async () => {
        await tellCredential(sas())
        writeFileSync(join(folder, 'sas.key'), key)
        await tellCredential(main.symmetricKey({ registrationId: ID, keyFile: join(folder, 'sas.key') }))
      },
      sasSigner: async () => {
        const held = Buffer.from(key, 'base64')
        const sign = (text: string) => createHmac('sha256', held).update(text).digest()
        await tellCredential(main.sasSigner({ registrationId: ID, sign }))
      },
      DpsError: async () => {
        const cause = new DpsError('SAS_KEY_INVALID', 'config', 'text', {
          cause: await failure(() => badKey()),
        })
        say('an error of errors', new DpsError('TRANSPORT_FAILED', 'tcp', 'text', { cause }))
        say('several', new AggregateError([cause, await failure(() => badKey())]))
      },
      ProvisioningClient: async () => {
        const events: unknown[] = []
        const onEvent = (event: unknown) => void events.push(event)
        const proxies = [
          `http://device:${encodeURIComponent(PROXY_PASSWORD)}@127.0.0.1:1`,
          { url: 'http://127.0.0.1:1', username: 'device', password: PROXY_PASSWORD },
        ]
        for (const proxy of proxies) {
          const proxied = client({ ...failing, proxy, onEvent })
          const error = await failure(() => proxied.register())
          expect(error).toMatchObject({ code: 'CONNECTION_REFUSED', phase: 'proxy' })
          say('the failure', error)
          say('a client behind a proxy', proxied)
        }
        for (const transport of ['mqtt', 'mqtt-ws', 'https'] as const) {
          for (const credential of [sas(), certificate()]) {
            const one = client({ transport, credential, onEvent })
            say('the assignment', await one.register())
            say('the state', await one.lookup())
            say('the contact', await one.probe())
            say('the client', one)
          }
        }
        const last = client()
        say('a copy of the client', await failure(() => structuredClone(last)))
        say('the events', events)
        expect(events.length).toBeGreaterThan(20)
      },
      fileStore: async () => {
        const kept = store()
        await main.provision({ ...emulator.clientOptions(), credential: sas(), store: kept })
        say('the store', kept)
        // What an assignment is kept in has no secret at all.
        said.push({ by: 'the record', text: Buffer.from((await kept.read())!).toString('latin1') })
      },
      provision: async () => {
        const options = { ...emulator.clientOptions(), credential: certificate(), store: store() }
        say('the first', await main.provision(options))
        say('the stored', await main.provision(options))
        say('none', await failure(() => main.provision({ ...options, ...failing, store: store() })))
      },
      fileJournal: async () => {
        const path = join(folder, `journal-${++files}`)
        const journal = main.fileJournal(path)
        const devices = [{ credential: sas() }, { credential: certificate() }]
        const options = { ...emulator.clientOptions(), store: journal, inDoubt: 'register' } as const
        for await (const result of main.provisionMany(devices, options)) say('the result', result.assignment)
        say('the journal', journal)
        said.push({ by: 'the file', text: readFileSync(path, 'latin1') })
      },
      provisionMany: async () => {
        const events: object[] = []
        const devices = [{ credential: sas() }, { credential: sas() }, { credential: certificate() }]
        const options = { ...emulator.clientOptions(), onEvent: (event: object) => void events.push(event) }
        const run = main.provisionMany(devices, options)
        say('the run', run)
        // The device in it is the caller's own, whose credential prints as it does.
        for await (const result of run) say('the result', result)
        for await (const result of main.provisionMany(devices, { ...options, ...failing }))
          say('a failure', result)
        say('the events', events)
      },
      provisionForever: async () => {
        say('the assignment', await main.provisionForever({ ...emulator.clientOptions(), credential: sas() }))
      },
      hubSettings: async () => {
        const target = { assignedHub: 'a.azure-devices.net', deviceId: ID }
        for (const credential of [sas(), certificate()]) {
          for (const transport of ['mqtt', 'mqtt-ws'] as const) {
            const settings = await main.hubSettings(target, credential, { transport })
            // MQTT.js and Node copy plain properties: these have them.
            say('the settings', settings, true)
            say('the options for MQTT.js', await settings.mqtt(), true)
            for (const { text } of said) expect(text).not.toMatch(/SharedAccessSignature sr=/)
          }
        }
      },
      inspectCredential: async () => {
        const damaged = encrypted.replace(/\n(.{9})./, '\n$1!')
        const wrong = [
          main.x509({ cert: device.cert, key: damaged, passphrase: PASSPHRASE }),
          main.x509({ cert: device.cert, key: encrypted, passphrase: `${PASSPHRASE}.` }),
          main.x509({ cert: encrypted, key: device.cert, passphrase: PASSPHRASE }),
          main.x509({ pkcs12: Buffer.from(device.key), passphrase: PASSPHRASE }),
          main.symmetricKey({ registrationId: ID, key: `HostName=a;SharedAccessKey=${key}` }),
          main.symmetricKey({ registrationId: ID, key: () => Buffer.from(key, 'base64').toString('hex') }),
        ]
        for (const one of wrong) {
          const inspection = await main.inspectCredential(one)
          expect(inspection.ok).toBe(false)
          say('the inspection', inspection)
          say('the failure', await failure(() => one.load()))
        }
      },
      issuedCertificate: async () => {
        const kept = store()
        const held = main.issuedCertificate({ store: kept })
        const request = await held.createRequest({ registrationId: ID })
        say('the request', request)
        const { issuedCertificateChain } = await client().register({ csr: request.csr })
        say('what is installed', await held.install(issuedCertificateChain))
        const [, path] = [...readable(kept)]
        const [own] =
          /-----BEGIN PRIVATE KEY-----[^-]+-----END PRIVATE KEY-----/.exec(path!.replaceAll('\\n', '\n')) ??
          []
        // The file has it, and says so by its mode alone.
        expect(statSync(join(folder, `record-${files}`)).mode & 0o777).toBe(0o600)
        await tellCredential(held)
        say('the certificate', held)
        say('its status', await held.status())
        say('the store', kept)
        expect(
          found(
            new Map(secretsOfKey(createPrivateKey(own!))),
            issuedCertificateChain!.join('') + publicPartOf(own!),
          ),
        ).toEqual([])
      },
    },
  ],
  'dps-device-client/factory': [
    factory,
    {
      deriveDeviceKey: async () => {
        say(
          'the failure',
          await failure(() => factory.deriveDeviceKey({ groupKey: `${groupKey}!`, registrationId: ID })),
        )
        say('another', await failure(() => factory.deriveDeviceKey({ groupKey, registrationId: groupKey })))
      },
      createCsr: async () => {
        const request = await factory.createCsr({ registrationId: ID, key: device.key })
        say('a request with a key that was given', request)
        const made = await factory.createCsr({ registrationId: ID })
        say('a request with a new key', made)
        expect(
          found(new Map(secretsOfKey(createPrivateKey(made.key!))), made.pem + publicPartOf(made.key!)),
        ).toEqual([])
      },
    },
  ],
  'dps-device-client/hub': [
    hubEntry,
    {
      DpsError: 'it is that of the main entry',
      connectHub: async () => {
        const events: unknown[] = []
        for (const [transport, credential] of [
          ['mqtt', sas()],
          ['mqtt-ws', certificate()],
        ] as const) {
          const assigned = await client({ credential }).register()
          const onEvent = (event: unknown) => void events.push(event)
          const options = { ...emulator.hubOptions(), credential, transport, onEvent }
          const hub = await hubEntry.connectHub(assigned, options)
          await hub.sendTelemetry('x')
          say('the connection', hub)
          say('the twin', await hub.twin.get())
          emulator.hub.disableDevice(assigned.deviceId)
          say('the connection, lost', hub)
          await hub.close()
          const refused = await failure(() =>
            hubEntry.connectHub(assigned, { ...options, retry: { maxAttempts: 1 } }),
          )
          expect(refused).toBeInstanceOf(DpsError)
          say('a refusal', refused)
          emulator.hub.enableDevice(assigned.deviceId)
        }
        say('the events', events)
      },
      provisionAndConnect: async () => {
        const events: unknown[] = []
        const held = main.issuedCertificate({ store: store() })
        const hub = await hubEntry.provisionAndConnect({
          ...emulator.clientOptions(),
          credential: [held, sas()],
          issuance: {},
          store: store(),
          hub: emulator.hubOptions(),
          onEvent: (event) => void events.push(event),
        })
        say('the connection', hub)
        say('the certificate', held)
        await hub.close()
        say('the events', events)
        expect(events).toContainEqual(expect.objectContaining({ type: 'certificate-issued' }))
      },
    },
  ],
  'dps-device-client/emulator': [
    emulatorEntry,
    {
      FAULT_ACTIONS: 'they are names',
      generateSymmetricKey: 'what it returns is a key, as text',
      createPki: 'its keys are for throwing away, and plain',
      issueCertificate: 'the same',
      startEmulator: async () => {
        // What it makes itself is for throwing away; what a device has shown it, or it was told of a device, is not.
        for (const part of ['enrollments', 'registrations', 'hub', 'issuance', 'faults', 'log'] as const) {
          say(part, emulator[part])
        }
        say('the enrollments', emulator.enrollments.list())
        say('the devices', emulator.hub.listDevices())
        say('the packets', emulator.log.packets)
        expect(emulator.log.packets.length).toBeGreaterThan(50)
      },
    },
  ],
  'dps-device-client/testing': [
    testing,
    {
      transportContract: async () => {
        const makeTransport = () => ({ name: 'own', open: () => Promise.reject(new Error('none')) })
        const cases = testing.transportContract({ makeTransport, emulator })
        say('the cases', cases)
        say('a failure', await failure(() => cases[0]!.run()))
      },
    },
  ],
}

const badKey = () => main.symmetricKey({ registrationId: ID, key: key.slice(1) }).load()

/** The file that was written last. */
function readable(kept: main.AssignmentStore): readonly string[] {
  return [String(kept), readFileSync(join(folder, `record-${files}`), 'utf8')]
}

for (const [entry, [module, exhibits]] of Object.entries(EXHIBITS)) {
  describe(entry, () => {
    test('has every export in the table', () => {
      expect(Object.keys(exhibits).sort()).toEqual(Object.keys(module).sort())
      const built = require(`../../dist/${entry.split('/')[1] ?? 'index'}.cjs`) as object
      expect(Object.keys(built).sort()).toEqual(Object.keys(module).sort())
    })

    for (const [name, show] of Object.entries(exhibits)) {
      if (typeof show === 'string') continue
      test(`${name} prints no secret`, async () => {
        await show()
        expect(said.length).toBeGreaterThan(3)
        expect(found(secrets, published)).toEqual([])
      })
    }
  })
}

/** What is shown because that is what it is for: what a hub is told, what a service said, where an engine or a file is. */
const SHOWN = /^(?:hubSettings: userAgent|the assignment: connectionProfile|x509: privateKeyEngine)$/
const PATH = /File$/
/** What a key of letters, digits and `=` is a valid name for, which is shown; any other key is refused and not repeated. */
const NAME = /^(?:hubSettings: moduleId|the assignment: deviceId)$/

/** Every option of each kind, as the API report has it. */
const reports = ['index', 'hub', 'factory'].map((name) =>
  readFileSync(fileURLToPath(new URL(`../api/${name}.api.md`, import.meta.url)), 'utf8'),
)
function optionsOf(...names: readonly string[]): readonly string[] {
  const members = names.flatMap((name) => {
    const pattern = new RegExp(
      `^(?:interface|type) ${name}(?:<[^>]+>)?(?: extends [^{]+)? (?:= )?[^]*?^(?:}.*;?|\`\`\`)$`,
      'm',
    )
    const [text] = reports.flatMap((report) => pattern.exec(report)?.[0] ?? [])
    if (text === undefined) throw new Error(`the API report has no ${name}`)
    return [...text.matchAll(/^ {4}(?:readonly )?(\w+)\??[:(]/gm)].map(([, member]) => member!)
  })
  return [...new Set(members)]
}

/** With whatever else makes it a whole. */
function x509With(given: object): main.X509Options {
  const own = Object.keys(given)
  const has = (...names: readonly string[]) => names.some((name) => own.includes(name))
  return {
    ...(!has('cert', 'certFile', 'pkcs12', 'pkcs12File') && { cert: device.cert }),
    ...(!has('key', 'keyFile', 'pkcs12', 'pkcs12File', 'privateKeyEngine') && { key: encrypted }),
    ...(has('privateKeyEngine') && { privateKeyIdentifier: 'i' }),
    ...given,
  } as object as main.X509Options
}

const nested = (name: string) => (options: object) => client({ ...failing, [name]: options })
const target = { assignedHub: 'a.azure-devices.net', deviceId: ID }
const MISTAKES: readonly (readonly [string, readonly string[], (options: never) => unknown])[] = [
  [
    'ProvisioningClient',
    optionsOf('ProvisioningClientOptions'),
    (o: object) => client({ ...failing, ...o }).register(),
  ],
  ['trust', optionsOf('TrustOptions'), nested('trust')],
  ['tls', optionsOf('TlsOptions'), nested('tls')],
  ['timeouts', optionsOf('TimeoutOptions'), nested('timeouts')],
  ['retry', optionsOf('RetryOptions'), nested('retry')],
  ['mqtt', optionsOf('MqttOptions'), nested('mqtt')],
  ['waitForClock', optionsOf('WaitForClockOptions'), nested('waitForClock')],
  [
    'proxy',
    optionsOf('ProxyOptions'),
    (o: object) => client({ ...failing, proxy: { url: 'http://127.0.0.1:1', ...o } }).register(),
  ],
  ['register', optionsOf('CallOptions', 'RegisterOptions'), (o: object) => client(failing).register(o)],
  ['lookup', optionsOf('CallOptions'), (o: object) => client(failing).lookup(o)],
  [
    'provision',
    ['store', 'mode'],
    (o: object) =>
      main.provision({ ...emulator.clientOptions(), ...failing, credential: sas(), store: store(), ...o }),
  ],
  [
    'x509',
    optionsOf('X509Options', 'X509CertificateOptions', 'X509KeyOptions', 'X509Pkcs12Options'),
    (o: object) => main.x509(x509With(o)).load(),
  ],
  [
    'x509 of a bundle',
    ['pkcs12', 'pkcs12File', 'passphrase'],
    (o: object) =>
      main
        .x509({ pkcs12: readFileSync(new URL('../data/legacy.p12', import.meta.url)), ...o } as never)
        .load(),
  ],
  [
    'symmetricKey',
    optionsOf('SymmetricKeyOptions'),
    (o: object) => main.symmetricKey({ registrationId: ID, ...o } as never).load(),
  ],
  [
    'sasSigner',
    optionsOf('SasSignerOptions'),
    async (o: object) =>
      void (await (await main.sasSigner({ registrationId: ID, sign: () => key, ...o }).load()).token('a', 1)),
  ],
  [
    'provisionMany',
    optionsOf('ProvisionManyOptions'),
    async (o: object) => {
      for await (const { error } of main.provisionMany([{ credential: sas() }], {
        ...emulator.clientOptions(),
        ...failing,
        ...o,
      })) {
        if (error !== undefined) throw error
      }
    },
  ],
  ['hubSettings', optionsOf('HubOptions'), (o: object) => main.hubSettings(target, sas(), o)],
  ['the assignment', optionsOf('HubAssignment'), (o: object) => main.hubSettings({ ...target, ...o }, sas())],
  ['inspectCredential', optionsOf('InspectOptions'), (o: object) => main.inspectCredential(sas(), o)],
  [
    'issuedCertificate',
    optionsOf('IssuedCertificateOptions'),
    (o: object) => main.issuedCertificate({ store: store(), ...o }),
  ],
  [
    'createRequest',
    optionsOf('CertificateRequestOptions'),
    (o: object) => main.issuedCertificate({ store: store() }).createRequest({ registrationId: ID, ...o }),
  ],
  [
    'createCsr',
    ['registrationId', 'curve', 'rsaBits', 'key'],
    (o: object) => factory.createCsr({ registrationId: ID, ...o }),
  ],
  [
    'deriveDeviceKey',
    optionsOf('DeriveDeviceKeyOptions'),
    async (o: object) => void (await factory.deriveDeviceKey({ groupKey, registrationId: ID, ...o })),
  ],
  [
    'connectHub',
    optionsOf('ConnectHubOptions'),
    (o: object) => hubEntry.connectHub(target, { ...failing, credential: sas(), ...o }),
  ],
  [
    'queue',
    optionsOf('QueueOptions'),
    (queue: object) => hubEntry.connectHub(target, { ...failing, credential: sas(), queue }),
  ],
  [
    'issuance',
    optionsOf('IssuanceOptions'),
    (issuance: object) =>
      hubEntry.provisionAndConnect({
        ...emulator.clientOptions(),
        ...failing,
        credential: [main.issuedCertificate({ store: store() }), sas()],
        store: store(),
        issuance,
      }),
  ],
]

const SHAPES: Readonly<Record<string, (secret: string) => unknown>> = {
  text: (secret) => secret,
  bytes: (secret) => Buffer.from(secret),
  'an object': (secret) => ({ value: secret }),
  'a list': (secret) => [secret],
  'a function': (secret) => () => secret,
  'the end of a text': (secret) => `key: ${secret}`,
}

describe('a secret in the place of an option', () => {
  test('is tried with every option', () => {
    expect(optionsOf('ProvisioningClientOptions')).toEqual(
      expect.arrayContaining(['idScope', 'proxy', 'onEvent']),
    )
    expect(optionsOf('X509CertificateOptions')).toEqual(['cert', 'certFile'])
    for (const [owner, names] of MISTAKES) expect([owner, names.length > 0]).toEqual([owner, true])
  })

  for (const [owner, names, call] of MISTAKES) {
    for (const name of names) {
      if (SHOWN.test(`${owner}: ${name}`)) continue
      test(`${owner}: ${name}`, async () => {
        for (const [shape, make] of Object.entries(SHAPES)) {
          for (const secret of [key, plainKey, device.key, PASSPHRASE]) {
            if (NAME.test(`${owner}: ${name}`) && secret === plainKey && shape === 'text') continue
            // Words may be a path. What has the letters of a key is taken for one, or the content of a file.
            if (PATH.test(name) && (secret === PASSPHRASE || shape === 'the end of a text')) continue
            const outcome = await failure(() => call({ [name]: make(secret) } as never))
            say(`the outcome of ${shape}`, outcome)
            const { close } = (outcome ?? {}) as { close?: () => Promise<void> }
            if (typeof close === 'function') await close.call(outcome)
          }
        }
        expect(found(secrets, published)).toEqual([])
      })
    }
  }
})

test('every debug switch of Node and of what is bundled prints no secret', async () => {
  const script = `
    import { ProvisioningClient, symmetricKey, x509 } from 'dps-device-client'
    import { connectHub } from 'dps-device-client/hub'
    const { options, hubOptions, sas, certificate } = JSON.parse(process.env.TASK)
    for (const credential of [symmetricKey(sas), x509(certificate)]) {
      let assignment
      for (const transport of ['mqtt', 'mqtt-ws', 'https'])
        assignment = await new ProvisioningClient({ ...options, transport, credential }).register()
      for (const transport of ['mqtt', 'mqtt-ws']) {
        const hub = await connectHub(assignment, { ...hubOptions, transport, credential })
        await hub.sendTelemetry('x')
        await hub.close()
      }
    }
    console.log('done')`
  const task = {
    options: emulator.clientOptions(),
    hubOptions: emulator.hubOptions(),
    sas: { registrationId: ID, key },
    certificate: { cert: device.cert, key: encrypted, passphrase: PASSPHRASE },
  }
  const env = {
    ...process.env,
    TASK: JSON.stringify(task),
    DEBUG: '*',
    NODE_DEBUG: 'net,tls,http,https,stream,crypto,timer',
  }
  const args = ['--trace-warnings', '--input-type=module', '-e', script]
  const cwd = fileURLToPath(new URL('../..', import.meta.url))
  const { stdout, stderr } = await promisify(execFile)(process.execPath, args, {
    env,
    cwd,
    maxBuffer: 2 ** 28,
  })
  // Node's own switch for HTTP shows each header, and Node says so: a token is good for an hour, and makes no other.
  const withoutHeaders = stderr.replace(/^ *Authorization: '.*$/gim, '')
  said.push({ by: 'standard output', text: stdout }, { by: 'the debug output', text: stderr })
  expect(stdout).toContain('done')
  expect(stderr.length - withoutHeaders.length).toBeGreaterThan(100)
  expect(stderr).toMatch(/^TLS \d/m)
  expect(found(secrets, published)).toEqual([])
  expect(withoutHeaders).not.toMatch(/SharedAccessSignature sr|[&?]sig=/)
})
