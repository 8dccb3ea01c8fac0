import { createHmac, createPrivateKey } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { generateSymmetricKey, issueCertificate } from '../../src/emulator/index.ts'
import {
  type Credential,
  DpsError,
  ProvisioningClient,
  sasSigner,
  symmetricKey,
  x509,
} from '../../src/index.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { found, linesOf, listen, publicPartOf, said, say, secretsOfKey, spellings } from '../support/said.ts'
import { DEVICE_KEY, pki, REGISTRATION_ID, Stage } from '../support/stage.ts'

listen()

/** Runs the call, keeps its outcome and everything that client and emulator have to show. */
async function tellAll(stage: Stage, credential: Credential, call: Promise<unknown>): Promise<unknown> {
  const outcome = await call.catch((thrown: unknown) => thrown)
  await stage.leavesNothing()
  say('the outcome', outcome)
  say('the client', stage.client)
  say('the credential', credential)
  say('the loaded credential', await credential.load().catch((thrown: unknown) => thrown))
  say('the events', stage.events)
  for (const event of stage.events) say(`the event ${event.type}`, event)
  say('what the emulator saw', stage.seen)
  say('the connections in the log', stage.emulator.log.connections)
  say('the packets in the log', stage.emulator.log.packets)
  say('the enrollments', stage.emulator.enrollments)
  say('the listed enrollments', stage.emulator.enrollments.list())
  say('the registrations', stage.emulator.registrations.list())
  return outcome
}

/** The signature of every token that may have been made while the clock of the stage ran. */
function signatures(stage: Stage, key: string): readonly (readonly [string, string])[] {
  const resource = encodeURIComponent(`${stage.emulator.idScope}/registrations/${REGISTRATION_ID}`)
  const last = Math.floor(stage.clock.now() / 1000)
  const first = Math.floor((stage.clock.now() - stage.clock.monotonic()) / 1000)
  return Array.from({ length: last - first + 1 }, (_, i) => {
    const text = `${resource}\n${first + i + 3600}`
    return createHmac('sha256', Buffer.from(key, 'base64')).update(text).digest()
  }).flatMap((bytes) => spellings('the signature of a token', bytes))
}

describe('the search', () => {
  test('finds what it looks for, wherever it is', () => {
    const key = Buffer.from(generateSymmetricKey(), 'base64')
    const secrets = new Map(spellings('the key', key))
    const cause = new Error(`could not use ${key.toString('base64').slice(20, 40)}`)
    say('an error', new DpsError('SIGNER_FAILED', 'config', 'failed', { cause }))
    expect(found(secrets)).toContain('the key, base64 in cause of an error, stack')
    said.length = 0
    say('an object', { deep: [[{ key }]], set: new Set([key.toString('hex')]) })
    expect(found(secrets)).toContain('the key, hex in an object, inspect')
    expect(found(secrets)).toContain('the key, hex with blanks in an object, inspect')
    expect(found(secrets)).toContain('the key, list of numbers in an object, JSON')
    said.length = 0
    console.error('key: %s', key.toString('base64url'))
    process.stdout.write(key.toString('hex'))
    expect(found(secrets)).toEqual(
      expect.arrayContaining(['the key, base64url in console.error', 'the key, hex in stdout']),
    )
  })
})

/** What goes well or wrong, and the code with which it ends. */
const ADVENTURES: readonly (readonly [string, string, (stage: Stage) => void])[] = [
  ['registered', 'assigned', () => {}],
  [
    'refused at CONNECT',
    'UNAUTHORIZED',
    ({ faults }) => void faults.add({ at: 'connect', do: { refuse: 5 } }),
  ],
  [
    'dropped at CONNECT, for ever',
    'CONNECTION_LOST',
    ({ faults }) => void faults.add({ at: 'connect', do: 'reset', times: Number.POSITIVE_INFINITY }),
  ],
  [
    'answered with what it sent',
    'PROTOCOL_VIOLATION',
    ({ faults }) => void faults.add({ at: 'connect', do: { raw: Buffer.from('SharedAccess') } }),
  ],
  [
    'met with silence',
    'TIMEOUT',
    (stage) => {
      stage.faults.add({ at: 'connect', do: 'silence', times: Number.POSITIVE_INFINITY })
      stage.eachStall('connect', 'connect', () => stage.clock.advance(15_000))
    },
  ],
  [
    'cancelled',
    'CANCELLED',
    (stage) => {
      stage.faults.add({ at: 'register', do: 'silence' })
      stage.eachStall('register', 'register', () => stage.controller.abort())
    },
  ],
  [
    'told nonsense',
    'REPLY_MALFORMED',
    ({ faults }) => void faults.add({ at: 'poll-reply', do: { truncate: 10 } }),
  ],
  [
    'refused by the service',
    'UNAUTHORIZED',
    ({ faults }) => void faults.add({ at: 'register', do: { reply: { status: 401 } } }),
  ],
  [
    'dropped in the handshake',
    'CONNECTION_LOST',
    ({ faults }) => void faults.add({ at: 'client-hello', do: 'drop', times: Number.POSITIVE_INFINITY }),
  ],
]

function expectOutcome(outcome: unknown, expected: string): void {
  const { code, status } = outcome as { code?: string; status?: string }
  expect(code ?? status).toBe(expected)
}

describe('a symmetric key', () => {
  const bytes = Buffer.from(DEVICE_KEY, 'base64')
  const key = spellings('the key', bytes)

  for (const [what, ends, begin] of ADVENTURES) {
    test(`of a device that is ${what}`, async () => {
      const credential = symmetricKey({ registrationId: REGISTRATION_ID, key: DEVICE_KEY })
      const stage = await Stage.open({ client: { credential } })
      try {
        begin(stage)
        expectOutcome(await tellAll(stage, credential, stage.register()), ends)
        expect(found(new Map([...key, ...signatures(stage, DEVICE_KEY)]))).toEqual([])
        for (const { text } of said) expect(text).not.toMatch(/SharedAccessSignature sr|[&?]sig=/)
      } finally {
        await stage.close()
      }
    })
  }

  test('that is not the one the service knows', async () => {
    const wrong = generateSymmetricKey()
    const credential = symmetricKey({ registrationId: REGISTRATION_ID, key: wrong })
    const stage = await Stage.open({ client: { credential } })
    try {
      expectOutcome(await tellAll(stage, credential, stage.register()), 'UNAUTHORIZED')
      const wrongKey = spellings('the wrong key', Buffer.from(wrong, 'base64'))
      expect(found(new Map([...key, ...wrongKey, ...signatures(stage, wrong)]))).toEqual([])
    } finally {
      await stage.close()
    }
  })

  test('that leaves its signer only as a signature', async () => {
    const signature = (text: string) => createHmac('sha256', bytes).update(text).digest()
    for (const [sign, ends] of [
      [signature, 'assigned'],
      [(text: string) => signature(text).subarray(1), 'SIGNER_FAILED'],
      [(text: string) => `${signature(text).toString('base64')}!`, 'SIGNER_FAILED'],
      [(text: string) => ({ signature: signature(text) }) as never, 'SIGNER_FAILED'],
    ] as const) {
      const credential = sasSigner({ registrationId: REGISTRATION_ID, sign })
      const stage = await Stage.open({ client: { credential } })
      try {
        expectOutcome(await tellAll(stage, credential, stage.register()), ends)
        expect(found(new Map([...key, ...signatures(stage, DEVICE_KEY)]))).toEqual([])
      } finally {
        await stage.close()
      }
    }
  })

  const mistakes: readonly (readonly [string, (text: string) => unknown])[] = [
    ['cut off', (text) => symmetricKey({ registrationId: REGISTRATION_ID, key: text.slice(0, -7) }).load()],
    ['cut short', (text) => symmetricKey({ registrationId: REGISTRATION_ID, key: text.slice(0, 16) }).load()],
    ['doubled', (text) => symmetricKey({ registrationId: REGISTRATION_ID, key: text + text }).load()],
    ['with a blank', (text) => symmetricKey({ registrationId: REGISTRATION_ID, key: ` ${text}` }).load()],
    [
      'in base64url',
      (text) => symmetricKey({ registrationId: REGISTRATION_ID, key: `-_${text.replace(/=+$/, '')}` }).load(),
    ],
    ['in the place of the registration id', (text) => symmetricKey({ registrationId: text, key: text })],
    [
      'in the place of its file',
      (text) => symmetricKey({ registrationId: REGISTRATION_ID, keyFile: text }).load(),
    ],
    [
      'in the place of its file, and cut off',
      (text) => symmetricKey({ registrationId: REGISTRATION_ID, keyFile: text.slice(0, 50) }).load(),
    ],
    [
      'in the place of the id scope',
      (text) =>
        new ProvisioningClient({
          idScope: text,
          credential: symmetricKey({ registrationId: 'a', key: text }),
        }),
    ],
    [
      'in the place of the host',
      (text) =>
        new ProvisioningClient({
          idScope: '0ne00000000',
          host: text,
          credential: symmetricKey({ registrationId: 'a', key: text }),
        }),
    ],
    [
      'as bytes',
      (text) => symmetricKey({ registrationId: REGISTRATION_ID, key: Buffer.from(text) as never }).load(),
    ],
    [
      'as an option that does not exist',
      (text) => symmetricKey({ registrationId: REGISTRATION_ID, primaryKey: text } as never),
    ],
    [
      'as an option of the client',
      (text) => new ProvisioningClient({ idScope: '0ne00000000', key: text } as never),
    ],
    [
      'in the place of the credential',
      (text) => new ProvisioningClient({ idScope: '0ne00000000', credential: text as never }),
    ],
  ]
  for (const [what, make] of mistakes) {
    test(`${what}, which is a mistake`, async () => {
      const thrown = await Promise.resolve()
        .then(() => make(DEVICE_KEY))
        .catch((error: unknown) => error)
      expect(thrown).toBeInstanceOf(DpsError)
      say('the error', thrown)
      expect(found(new Map(key))).toEqual([])
    })
  }
})

describe('a private key', async () => {
  const passphrase = 'correct horse battery staple'
  const certificate = await issueCertificate({
    subject: REGISTRATION_ID,
    issuer: pki.deviceIntermediate,
    eku: ['clientAuth'],
  })
  const { chainPem: cert, keyPem: plain } = certificate
  const privateKey = createPrivateKey(plain)
  const encrypted = privateKey.export({
    type: 'pkcs8',
    format: 'pem',
    cipher: 'aes-256-cbc',
    passphrase,
  }) as string
  const secrets = new Map([
    ['the passphrase', passphrase],
    ...secretsOfKey(privateKey),
    ...linesOf('the encrypted key', encrypted),
  ])
  const setup = {
    emulator: {
      enrollments: [{ groupId: 'devices', attestation: { x509: { ca: pki.deviceRoot.certPem } } }],
    },
  }

  for (const [what, ends, begin] of ADVENTURES) {
    test(`with a passphrase, of a device that is ${what}`, async () => {
      const credential = x509({ cert, key: encrypted, passphrase })
      const stage = await Stage.open({ ...setup, client: { credential } })
      try {
        begin(stage)
        expectOutcome(await tellAll(stage, credential, stage.register()), ends)
        expect(found(secrets, cert + publicPartOf(privateKey))).toEqual([])
      } finally {
        await stage.close()
      }
    })
  }

  test('without a passphrase', async () => {
    const credential = x509({ cert, key: plain })
    const stage = await Stage.open({ ...setup, client: { credential } })
    try {
      expectOutcome(await tellAll(stage, credential, stage.register()), 'assigned')
      expect(found(secrets, cert + publicPartOf(privateKey))).toEqual([])
    } finally {
      await stage.close()
    }
  })

  const other = await issueCertificate({ subject: REGISTRATION_ID, issuer: pki.deviceIntermediate })
  const damaged = (pem: string) =>
    pem.replace(/\n(.{20})(.)/, (_, head: string, one: string) => `\n${head}${one === 'A' ? 'B' : 'A'}`)
  const mistakes: readonly (readonly [string, Parameters<typeof x509>[0], string])[] = [
    [
      'with another passphrase',
      { cert, key: encrypted, passphrase: `${passphrase}!` },
      'CREDENTIAL_UNREADABLE',
    ],
    ['whose passphrase is missing', { cert, key: encrypted }, 'CREDENTIAL_UNREADABLE'],
    [
      'of another certificate',
      { cert: other.chainPem, key: encrypted, passphrase },
      'CREDENTIAL_KEY_MISMATCH',
    ],
    ['that is damaged', { cert, key: damaged(encrypted), passphrase }, 'CREDENTIAL_UNREADABLE'],
    [
      'without its last line',
      { cert, key: plain.split('\n').slice(0, -2).join('\n') },
      'CREDENTIAL_UNREADABLE',
    ],
    ['without its first line', { cert, key: plain.split('\n').slice(1).join('\n') }, 'CREDENTIAL_UNREADABLE'],
    ['in the place of the certificate', { cert: plain, key: plain }, 'CREDENTIAL_UNREADABLE'],
    ['in the place of the passphrase', { cert, key: encrypted, passphrase: plain }, 'CREDENTIAL_UNREADABLE'],
    ['as an object', { cert, key: { key: plain, passphrase } as never }, 'CREDENTIAL_UNREADABLE'],
  ]
  for (const options of [
    { cert, keyFile: plain },
    { cert, keyFile: encrypted, passphrase },
    { cert, keyFile: plain.replaceAll('\n', ' ') },
    { certFile: plain, key: plain },
  ]) {
    test(`in the place of the path in ${'certFile' in options ? 'certFile' : 'keyFile'}, which is a mistake`, async () => {
      const error = await expectDpsError(() => x509(options), 'OPTION_INVALID', 'config')
      say('the error', error)
      expect(found(secrets, cert + publicPartOf(privateKey))).toEqual([])
    })
  }

  for (const [what, options, code] of mistakes) {
    test(`${what}, which is a mistake`, async () => {
      const credential = x509(options)
      const stage = await Stage.open({ ...setup, client: { credential } })
      try {
        expectOutcome(await tellAll(stage, credential, stage.register()), code)
        expect(found(secrets, cert + publicPartOf(privateKey))).toEqual([])
      } finally {
        await stage.close()
      }
    })
  }
})
