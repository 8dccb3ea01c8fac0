import { X509Certificate } from 'node:crypto'
import { describe, expect } from 'vitest'
import type { IssueFault } from '../../src/emulator/index.ts'
import { createCsr } from '../../src/factory/index.ts'
import type { DpsErrorCode } from '../../src/index.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { DEVICE_KEY, lie, REGISTRATION_ID, type Setup } from '../support/stage.ts'

// Lies of the authority: the device is assigned, and the certificate is none to be used.

const csr = await createCsr({ registrationId: REGISTRATION_ID })

const enrolled: Setup = {
  emulator: {
    enrollments: [
      {
        registrationId: REGISTRATION_ID,
        attestation: { symmetricKey: { primaryKey: DEVICE_KEY } },
        issuance: {},
      },
    ],
  },
}

const LIES: readonly (readonly [IssueFault, DpsErrorCode, RegExp])[] = [
  ['no-chain', 'CERTIFICATE_NOT_ISSUED', /carries no certificate/],
  ['wrong-key', 'ISSUED_CERTIFICATE_INVALID', /none in the reply is for the public key/],
  ['wrong-name', 'ISSUED_CERTIFICATE_INVALID', /its CN is "not-sensor-1", not "sensor-1"/],
  ['broken-chain', 'ISSUED_CERTIFICATE_INVALID', /CN=sensor-1 was not signed by CN=Emulator Issuing CA/],
  ['leaf-only', 'ISSUED_CERTIFICATE_INVALID', /its issuer, CN=Emulator Issuing CA, is not in the reply/],
  ['expired', 'ISSUED_CERTIFICATE_INVALID', /CN=sensor-1 is valid from/],
  ['not-yet-valid', 'ISSUED_CERTIFICATE_INVALID', /CN=sensor-1 is valid from/],
  ['garbage', 'ISSUED_CERTIFICATE_INVALID', /element 1 of the chain/],
]

describe.each(['mqtt', 'mqtt-ws', 'https'] as const)('an issued certificate over %s', (transport) => {
  for (const [what, code, why] of LIES) {
    lie(what, { ...enrolled, client: { transport } }, async (stage) => {
      stage.faults.add({ at: 'issue', do: what })
      const error = await expectDpsError(stage.register({ csr }), code, 'parse')
      expect(error.message).toMatch(why)
      expect(error.retryable).toBe(false)
      expect(error.assignment).toMatchObject({
        status: 'assigned',
        assignedHub: 'emulated-hub.azure-devices.net',
        deviceId: REGISTRATION_ID,
        connection: { transport },
      })
      // It is not asked for again: each would be another certificate.
      expect(stage.emulator.issuance.list().length).toBeLessThanOrEqual(1)
      expect(stage.seen.filter(({ type }) => type === 'registration')).toHaveLength(1)
    })
  }
})

describe.each(['mqtt', 'mqtt-ws', 'https'] as const)('a request over %s', (transport) => {
  const atOnce: Setup = {
    emulator: { ...enrolled.emulator, assigning: { polls: 0 } },
    client: { transport },
  }
  lie('whose reply is lost is sent again, and the later certificate is the one', atOnce, async (stage) => {
    stage.faults.add({ at: 'register-reply', do: 'reset' })
    const { issuedCertificateChain } = await stage.register({ csr })
    const [lost, last, ...more] = stage.emulator.issuance.list()
    expect(more).toEqual([])
    expect(lost).toBeDefined()
    expect(new X509Certificate(issuedCertificateChain![0]!).fingerprint256).toBe(last!.fingerprint256)
  })

  lie('that met another registration is sent again', atOnce, async (stage) => {
    const fault = stage.faults.add({
      at: 'register',
      do: { reply: { status: 409, errorCode: 409203 } },
      times: 2,
    })
    const { issuedCertificateChain } = await stage.register({ csr })
    expect(fault.hits).toBe(2)
    expect(issuedCertificateChain).toHaveLength(3)
    expect(stage.emulator.issuance.list()).toHaveLength(1)
  })
})

describe('a chain that was not asked for', () => {
  const chain = [1, 'x', null]
  lie('is not looked at', enrolled, async (stage) => {
    stage.faults.add({
      at: 'poll-reply',
      do: {
        reply: {
          status: 200,
          body: JSON.stringify({
            status: 'assigned',
            registrationState: {
              assignedHub: 'emulated-hub.azure-devices.net',
              deviceId: REGISTRATION_ID,
              issuedCertificateChain: chain,
            },
          }),
        },
      },
    })
    expect(await stage.register()).not.toHaveProperty('issuedCertificateChain')
  })
})

describe('a clock that is ahead of the service', () => {
  const ahead: Setup = {
    ...enrolled,
    clock: (virtual) => ({ ...virtual, now: () => virtual.now() + 40 * 86_400_000 }),
  }
  lie('finds the fresh certificate expired, and says that it may be the clock', ahead, async (stage) => {
    const error = await expectDpsError(stage.register({ csr }), 'ISSUED_CERTIFICATE_INVALID', 'parse')
    expect(error.hint).toContain('Compare the clock')
    expect(error.assignment).toMatchObject({ deviceId: REGISTRATION_ID })
  })
})
