import { describe, expect, it, vi } from 'vitest'
import { hintOf } from '../../../../src/credential/doubt.ts'
import { unseenCauses } from '../../../../src/credential/inspect/unseen.ts'
import {
  type EnrollmentGroup,
  generateSymmetricKey,
  type IssueCertificateOptions,
  issueCertificate,
} from '../../../../src/emulator/index.ts'
import {
  type AssignmentStore,
  type Credential,
  type DpsError,
  type ProvisioningClientOptions,
  provision,
  symmetricKey,
  x509,
} from '../../../../src/index.ts'
import { expectDpsError } from '../../../support/expect-dps-error.ts'
import { pki, REGISTRATION_ID, Stage } from '../../../support/stage.ts'

let loads = 0
let fails = false
vi.mock('../../../../src/credential/inspect/inspect.ts', async (original) => {
  const { inspectCredential } =
    await original<typeof import('../../../../src/credential/inspect/inspect.ts')>()
  return {
    inspectCredential: (...args: Parameters<typeof inspectCredential>) => {
      loads++
      if (fails) throw new TypeError('a fault of the inspector')
      return inspectCredential(...args)
    },
  }
})

const DAY_MS = 86_400_000
const START = Date.now()
const inDays = (days: number) => new Date(START + days * DAY_MS)

const devices: EnrollmentGroup = {
  groupId: 'devices',
  attestation: { x509: { ca: pki.deviceRoot.certPem } },
}

async function certificate(options: Partial<IssueCertificateOptions> = {}) {
  const { chainPem, keyPem } = await issueCertificate({
    subject: REGISTRATION_ID,
    issuer: pki.deviceIntermediate,
    eku: ['clientAuth'],
    notBefore: inDays(-300),
    ...options,
  })
  return { cert: chainPem, key: keyPem }
}

const good = await certificate()
const key = generateSymmetricKey()

/** Runs with a client that has this credential, at a service that has the enrollment group. */
async function onStage(
  credential: ProvisioningClientOptions['credential'],
  run: (stage: Stage) => Promise<void>,
  more: { client?: Partial<ProvisioningClientOptions>; enrollments?: readonly EnrollmentGroup[] } = {},
): Promise<void> {
  const { enrollments = [devices], client = {} } = more
  const stage = await Stage.open({
    emulator: { enrollments: [...enrollments] },
    client: { credential, ...client },
  })
  try {
    await run(stage)
  } finally {
    await stage.close()
  }
}

const warningsOf = (stage: Stage) =>
  stage.events.flatMap((event) => (event.type === 'warning' ? event.message : []))

describe('what is doubtful in a credential', () => {
  it('is not looked for in one that looks well, and nothing is loaded', async () => {
    loads = 0
    await onStage(x509(good), async (stage) => {
      await stage.register()
      expect(warningsOf(stage)).toEqual([])
    })
    expect(loads).toBe(0)
  })

  it.each<[string, Partial<IssueCertificateOptions>, string]>([
    [
      'the certificate of a CA',
      { ca: true, keyUsage: ['digitalSignature', 'keyCertSign'] },
      'is that of a CA',
    ],
    ['no clientAuth', { eku: ['serverAuth'] }, 'lacks clientAuth'],
    ['a key that may not sign', { keyUsage: ['keyAgreement'] }, 'lacks digitalSignature'],
    ['a signature over SHA-1', { digest: 'sha1' }, 'over SHA-1'],
    ['a certificate that ends in 20 days', { notAfter: inDays(20) }, ', in 19 days. Renew it now'],
  ])('is said before anything is dialled: %s', async (_, options, text) => {
    await onStage(x509(await certificate(options)), async (stage) => {
      // What the service makes of it is its own business.
      await stage.register().catch(() => {})
      const [warning, ...more] = warningsOf(stage)
      expect(warning).toContain(text)
      expect(warning).toMatch(/\.$/)
      expect(more).toEqual([])
      const said = stage.events.findIndex(({ type }) => type === 'warning')
      const dialled = stage.events.findIndex((e) => e.type === 'phase-started' && e.phase === 'tcp')
      expect(said).toBeGreaterThan(-1)
      expect(dialled === -1 ? Number.POSITIVE_INFINITY : dialled).toBeGreaterThan(said)
    })
  })

  it('is said once, and of another content again', async () => {
    const first = await certificate({ notAfter: inDays(20) })
    let current = first
    await onStage(x509({ cert: () => current.cert, key: () => current.key }), async (stage) => {
      await stage.register()
      await stage.register()
      expect(warningsOf(stage)).toHaveLength(1)
      current = await certificate({ notAfter: inDays(10) })
      await stage.register()
      expect(warningsOf(stage)).toHaveLength(2)
      current = first
      await stage.register()
      expect(warningsOf(stage)).toHaveLength(2)
    })
  })

  it('is said when its time has come, in a process that runs on, beside what was said before', async () => {
    const credential = x509(await certificate({ eku: ['serverAuth', 'clientAuth'], notAfter: inDays(60) }))
    await onStage(credential, async (stage) => {
      await stage.register()
      expect(warningsOf(stage)).toEqual([])
      await stage.clock.advance(29 * DAY_MS)
      await stage.register()
      expect(warningsOf(stage)).toEqual([])
      await stage.clock.advance(12 * DAY_MS)
      await stage.register()
      expect(warningsOf(stage)).toMatchObject([expect.stringContaining('Renew it now')])
    })
  })

  it('is not said of a device certificate alone: it may be all that the service needs', async () => {
    await onStage(
      x509({ cert: `${good.cert.split('-----END')[0]}-----END CERTIFICATE-----\n`, key: good.key }),
      async (stage) => {
        await stage.register()
        expect(warningsOf(stage)).toEqual([])
      },
      {
        enrollments: [{ groupId: 'devices', attestation: { x509: { ca: pki.deviceIntermediate.certPem } } }],
      },
    )
  })

  it('is found in a credential of the caller’s own too', async () => {
    const made = x509(await certificate({ eku: ['serverAuth'] }))
    const own: Credential = { load: async () => ({ ...(await made.load()) }) }
    await onStage(own, async (stage) => {
      await stage.register().catch(() => {})
      expect(warningsOf(stage)).toMatchObject([expect.stringContaining('lacks clientAuth')])
    })
  })

  it('is said where the assignment was stored and nothing is dialled at all, and once where it is', async () => {
    const credential = x509(await certificate({ notAfter: inDays(20) }))
    const stage = await Stage.open({ emulator: { enrollments: [devices] } })
    let stored: Uint8Array | undefined
    const store: AssignmentStore = {
      read: async () => stored,
      write: async (bytes) => {
        stored = bytes
      },
      remove: async () => {},
    }
    for (const source of ['register', 'store']) {
      const warnings: string[] = []
      const assignment = await provision({
        ...stage.emulator.clientOptions(),
        credential,
        store,
        onEvent: (event) => event.type === 'warning' && warnings.push(event.message),
      })
      expect(assignment.source).toBe(source)
      expect(warnings).toMatchObject([expect.stringContaining('Renew it now')])
    }
    expect(stage.emulator.log.connections).toHaveLength(1)
    await stage.close()
  })

  it('does not decide about a registration, even where it cannot be looked for', async () => {
    fails = true
    try {
      await onStage(x509(await certificate({ notAfter: inDays(20) })), async (stage) => {
        expect(await stage.register()).toMatchObject({ status: 'assigned' })
        expect(warningsOf(stage)).toEqual([])
      })
      await onStage(symmetricKey({ registrationId: REGISTRATION_ID, key }), async (stage) => {
        expect((await refused(stage)).hint).not.toMatch(NUMBERED)
      })
    } finally {
      fails = false
    }
  })

  it('is not looked for where nobody listens', async () => {
    loads = 0
    const { cert, key } = await certificate({ notAfter: inDays(20) })
    const stage = await Stage.open({ emulator: { enrollments: [devices] } })
    const { ProvisioningClient } = await import('../../../../src/index.ts')
    const client = new ProvisioningClient({
      ...stage.emulator.clientOptions(),
      credential: x509({ cert, key }),
    })
    await client.register()
    await stage.close()
    expect(loads).toBe(0)
  })
})

const NUMBERED = /\(1\) [^;]+; \(2\) [^;]+; \(3\) [^;]+/

async function refused(stage: Stage): Promise<DpsError> {
  const error = await stage.register().then(
    () => expect.fail('it was let in'),
    (thrown) => thrown,
  )
  return expectDpsError(Promise.reject(error), 'UNAUTHORIZED', error.phase)
}

describe('a refusal that the credential does not explain', () => {
  it.each(['mqtt', 'mqtt-ws', 'https'] as const)(
    'names what cannot be seen of a certificate: %s',
    async (transport) => {
      await onStage(
        x509(good),
        async (stage) => {
          const { hint, serviceErrorCode, phase } = await refused(stage)
          expect(transport === 'https' ? serviceErrorCode : phase).toBe(
            transport === 'https' ? 401002 : 'connect',
          )
          expect(hint).toMatch(NUMBERED)
          expect(hint).toContain(
            `no enrollment for "${REGISTRATION_ID}" exists in this id scope, or it is disabled`,
          )
          expect(hint).toContain(
            'none of (CN=Emulator Device CA), (CN=Emulator Device Root) is uploaded and verified at the service',
          )
          expect(hint).not.toContain('clock')
        },
        { enrollments: [], client: { transport } },
      )
    },
  )

  it('names the thumbprints of a certificate that signed itself', async () => {
    const { certPem, keyPem } = await issueCertificate({ subject: REGISTRATION_ID })
    await onStage(x509({ cert: certPem, key: keyPem }), async (stage) => {
      const { hint } = await refused(stage)
      expect(hint).toMatch(/thumbprint [0-9A-F]{40} or [0-9A-F]{64};/)
    })
  })

  it('names what cannot be seen of a key, and the clock where the service did not tell its time', async () => {
    await onStage(symmetricKey({ registrationId: REGISTRATION_ID, key }), async (stage) => {
      const error = await refused(stage)
      expect(error).toMatchObject({ phase: 'connect', serverTime: undefined, retryable: false })
      expect(error.hint).toMatch(NUMBERED)
      expect(error.hint).toContain('derived from the key of another enrollment group')
      expect(error.hint).toContain('compare the clock too')
      expect(error.message).toContain('CONNACK return code')
    })
  })

  it('leaves the clock out where the service told its time, and keeps all that it said', async () => {
    const credential = symmetricKey({ registrationId: REGISTRATION_ID, key })
    await onStage(
      credential,
      async (stage) => {
        const error = await refused(stage)
        expect(error.serviceErrorCode).toBe(401002)
        expect(error.trackingId).toBeTypeOf('string')
        expect(error.serverTime).toBeInstanceOf(Date)
        expect(error.hint).toMatch(NUMBERED)
        expect(error.hint).not.toContain('clock')
      },
      { client: { transport: 'https' } },
    )
  })

  it('says nothing but to set the clock where that is wrong', async () => {
    const credential = symmetricKey({ registrationId: REGISTRATION_ID, key })
    await onStage(
      credential,
      async (stage) => {
        await stage.clock.advance(2 * 3_600_000)
        const { hint } = await refused(stage)
        expect(hint).toContain('Set the clock first')
        expect(hint).not.toMatch(NUMBERED)
      },
      { client: { transport: 'https' } },
    )
  })

  it('is explained for each of a list', async () => {
    const own = { registrationId: REGISTRATION_ID }
    await onStage(
      [x509(good), symmetricKey({ ...own, key })],
      async (stage) => {
        const error = await refused(stage)
        expect(error.hint).toContain('derived from the key')
        const fallback = stage.events.find((event) => event.type === 'credential-fallback')
        expect(fallback?.type === 'credential-fallback' && fallback.error.hint).toContain(
          'uploaded and verified',
        )
      },
      { enrollments: [] },
    )
  })

  it('is no refusal of this kind where the service says something else', async () => {
    loads = 0
    await onStage(x509(good), async (stage) => {
      stage.faults.add({ at: 'register-reply', do: { reply: { status: 404, errorCode: 404_201 } } })
      await expectDpsError(stage.register(), 'NOT_FOUND', 'register')
    })
    expect(loads).toBe(0)
  })
})

describe('the causes that cannot be seen', () => {
  const facts = (subject: string, issuer: string) => ({
    subject,
    issuer,
    thumbprint: 'A'.repeat(40),
    thumbprint256: 'B'.repeat(64),
    validFrom: '',
    validUntil: '',
    keyType: 'EC P-256',
    isCa: false,
    isSelfSigned: subject === issuer,
  })

  it('are three for each kind of credential, with or without an id', () => {
    for (const id of ['dev-1', undefined]) {
      const kinds = [[], [facts('a', 'a')], [facts('a', 'b')], [facts('a', 'b'), facts('b', 'b')]]
      const all = kinds.map((chain) => unseenCauses(id, chain))
      for (const causes of all) expect(causes).toHaveLength(3)
      expect(new Set(all.map(String)).size).toBe(3)
    }
  })

  it('make one sentence', () => {
    expect(hintOf(['x', 'y', 'z'], false)).toMatch(/: \(1\) x; \(2\) y; \(3\) z\.$/)
    expect(hintOf(['x', 'y', 'z'], true)).toMatch(/\(3\) z; compare the clock too.*\.$/)
  })
})
