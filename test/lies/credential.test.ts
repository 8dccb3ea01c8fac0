import { createHmac } from 'node:crypto'
import { describe, expect } from 'vitest'
import { createPki, type DeviceCertificate, generateSymmetricKey } from '../../src/emulator/index.ts'
import { type SasSignerOptions, sasSigner, symmetricKey, x509 } from '../../src/index.ts'
import { testClock } from '../support/clock.ts'
import { DEVICE_GROUP, daysFromNow, deviceCertificate } from '../support/device-certificate.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { DEVICE_KEY, lie, pki, REGISTRATION_ID, type Setup, type Stage } from '../support/stage.ts'

const toSeconds = (date: Date) => date.toISOString().replace(/\.\d+Z$/, '')

const honest = await deviceCertificate()

/** A device whose certificate and key are these until the operator replaces them with good ones. */
function withCertificate(files: DeviceCertificate, more: { registrationId?: string } = {}): Setup {
  let current = files
  return {
    emulator: { enrollments: [DEVICE_GROUP] },
    client: { credential: x509({ cert: () => current.cert, key: () => current.key, ...more }) },
    repair: () => {
      current = honest
    },
  }
}

function withKey(key: string): Setup {
  let current = key
  return {
    client: { credential: symmetricKey({ registrationId: REGISTRATION_ID, key: () => current }) },
    repair: () => {
      current = DEVICE_KEY
    },
  }
}

const sign = (text: string) => createHmac('sha256', Buffer.from(DEVICE_KEY, 'base64')).update(text).digest()

/** A device that signs like this until the operator replaces what signs. */
function withSigner(wrong: SasSignerOptions['sign']): Setup {
  let current = wrong
  return {
    client: {
      credential: sasSigner({ registrationId: REGISTRATION_ID, sign: (text) => current(text) }),
    },
    repair: () => {
      current = sign
    },
  }
}

/** A device whose clock starts at the epoch until it is set. */
function withoutBattery(): Setup {
  let set = false
  return {
    clock: (virtual) => ({ ...virtual, now: () => (set ? virtual.now() : virtual.monotonic()) }),
    repair: () => {
      set = true
    },
  }
}

/** The device found it out by itself. */
function expectNoPacket(stage: Stage): void {
  expect(stage.emulator.log.connections).toEqual([])
}

describe('a certificate that the device could have known is wrong', async () => {
  lie(
    'the key of another device',
    withCertificate({ cert: honest.cert, key: (await deviceCertificate()).key }),
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'CREDENTIAL_KEY_MISMATCH', 'config')
      expect(error.message).toContain(`CN=${REGISTRATION_ID}`)
      expectNoPacket(stage)
    },
  )

  lie(
    'the certificate of another registration id',
    withCertificate(await deviceCertificate({ name: 'sensor-2' }), { registrationId: REGISTRATION_ID }),
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'CREDENTIAL_NAME_MISMATCH', 'config')
      expect(error.message).toContain('sensor-2')
      expect(error.message).toContain(REGISTRATION_ID)
      expectNoPacket(stage)
    },
  )

  lie(
    'a chain in which a link is missing',
    withCertificate({
      cert: `${honest.cert.split('-----END CERTIFICATE-----\n')[0]}-----END CERTIFICATE-----\n${pki.deviceRoot.certPem}`,
      key: honest.key,
    }),
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'CREDENTIAL_CHAIN_BROKEN', 'config')
      expect(error.message).toContain('Emulator Device Root')
      expectNoPacket(stage)
    },
  )

  const yesterday = daysFromNow(-1)
  const lastYear = daysFromNow(-365)
  lie(
    'a device certificate that expired yesterday',
    withCertificate(await deviceCertificate({ notBefore: lastYear, notAfter: yesterday })),
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'DEVICE_CERTIFICATE_EXPIRED', 'clock')
      expect(error.retryable).toBe(false)
      expect(error.message).toContain(toSeconds(lastYear))
      expect(error.message).toContain(toSeconds(yesterday))
      expect(error.message).toContain(toSeconds(new Date(stage.clock.now())))
      expectNoPacket(stage)
    },
  )

  const tomorrow = daysFromNow(1)
  const nextYear = daysFromNow(365)
  lie(
    'a device certificate that begins tomorrow',
    withCertificate(await deviceCertificate({ notBefore: tomorrow, notAfter: nextYear })),
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'DEVICE_CERTIFICATE_NOT_YET_VALID', 'clock')
      expect(error.retryable).toBe(true)
      expect(error.message).toContain(toSeconds(tomorrow))
      expect(error.message).toContain(toSeconds(nextYear))
      expectNoPacket(stage)
    },
  )

  const onP384 = withCertificate(await deviceCertificate({ keyType: 'ec-p384' }))
  lie(
    'a key on a curve that the policy does not offer',
    { ...onP384, client: { ...onP384.client, tls: { curves: ['X25519', 'P-256'] } } },
    async (stage) => {
      const error = await expectDpsError(stage.register(), 'CREDENTIAL_KEY_UNSUPPORTED', 'config')
      expect(error.message).toContain('P-384')
      expectNoPacket(stage)
    },
  )

  lie('half a symmetric key', withKey(DEVICE_KEY.slice(0, 41)), async (stage) => {
    await expectDpsError(stage.register(), 'SAS_KEY_INVALID', 'config')
    expectNoPacket(stage)
  })
})

describe('the keys of devices that tell the truth', async () => {
  for (const keyType of ['ec-p256', 'ec-p384', 'rsa-2048'] as const) {
    lie(`${keyType} is let in`, withCertificate(await deviceCertificate({ keyType })), async (stage) => {
      const assignment = await stage.register()
      expect(assignment).toMatchObject({ registrationId: REGISTRATION_ID, deviceId: REGISTRATION_ID })
      expect(assignment.connection).toMatchObject({ protocol: 'TLSv1.2', root: 'Emulator Root 1' })
    })
  }
})

describe('what only the service can find out', async () => {
  async function refused(stage: Stage, reason: string): Promise<void> {
    const error = await expectDpsError(stage.register(), 'UNAUTHORIZED', 'connect')
    expect(error.retryable).toBe(false)
    expect(error.message).toContain('CONNACK return code 5')
    expect(stage.refusals).toEqual([reason])
  }

  const roguePki = await createPki()
  lie(
    'a device certificate from a CA that has the name of the real one',
    withCertificate(await deviceCertificate({ by: roguePki })),
    (stage) => refused(stage, 'certificate-chain-unknown'),
  )

  lie(
    'a device certificate without the intermediate that leads to the group',
    withCertificate({
      cert: `${honest.cert.split('-----END CERTIFICATE-----\n')[0]}-----END CERTIFICATE-----\n`,
      key: honest.key,
    }),
    (stage) => refused(stage, 'certificate-chain-unknown'),
  )

  lie('the key of another device, symmetric', withKey(generateSymmetricKey()), (stage) =>
    refused(stage, 'sas-signature-wrong'),
  )

  lie(
    'a signer that holds another key',
    withSigner(() => new Uint8Array(32)),
    (stage) => refused(stage, 'sas-signature-wrong'),
  )

  lie('a device that nobody enrolled', { lies: { enrollments: [] } }, (stage) =>
    refused(stage, 'not-enrolled'),
  )

  lie(
    'another id scope',
    { lies: { idScope: '0ne00000bad' }, client: { idScope: '0ne00000000' } },
    async (stage) => {
      await refused(stage, 'id-scope-wrong')
    },
  )

  lie(
    'a disabled enrollment, where the service lets nobody of it in',
    { repair: ({ emulator }) => emulator.enrollments.enable({ registrationId: REGISTRATION_ID }) },
    async (stage) => {
      stage.emulator.enrollments.disable({ registrationId: REGISTRATION_ID })
      await refused(stage, 'enrollment-disabled')
    },
  )

  for (const [polls, phase] of [
    [0, 'register'],
    [1, 'poll'],
  ] as const) {
    lie(
      `a disabled enrollment, where the service says so in reply to ${phase}`,
      {
        emulator: { disabledEnrollment: 'report', assigning: { polls, retryAfterSeconds: 0 } },
        repair: ({ emulator }) => emulator.enrollments.enable({ registrationId: REGISTRATION_ID }),
      },
      async (stage) => {
        stage.emulator.enrollments.disable({ registrationId: REGISTRATION_ID })
        const error = await expectDpsError(stage.register(), 'REGISTRATION_DISABLED', phase)
        expect(error.retryable).toBe(false)
        expect(error.hint).toContain('enable')
        expect(stage.requests).toHaveLength(1 + polls)
      },
    )
  }

  const twoHoursAhead = testClock({ startMs: Date.now() + 7_200_000 })
  lie('a device clock that is two hours behind', { lies: { clock: twoHoursAhead } }, (stage) =>
    refused(stage, 'sas-expired'),
  )
})

describe('a signer that fails', () => {
  const answers: readonly (readonly [string, SasSignerOptions['sign']])[] = [
    [
      'throws',
      () => {
        throw new Error('the chip is gone')
      },
    ],
    ['rejects', () => Promise.reject(new Error('the chip is gone'))],
    ['returns too few bytes', () => new Uint8Array(31)],
    ['returns something that is no base64', () => 'not a signature'],
    ['returns nothing', () => undefined as never],
  ]
  for (const [what, answer] of answers) {
    lie(what, withSigner(answer), async (stage) => {
      const error = await expectDpsError(stage.register(), 'SIGNER_FAILED', 'config')
      expect(error.retryable).toBe(true)
      expect(stage.emulator.log.packets).toEqual([])
    })
  }
})

describe('a clock that is certainly wrong', () => {
  lie('a device that believes it is 1970', withoutBattery(), async (stage) => {
    const error = await expectDpsError(stage.register(), 'CLOCK_BEHIND', 'clock')
    expect(error.message).toContain('1970-01-01')
    expectNoPacket(stage)
  })
})
