import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Emulator, startEmulator } from '../../../src/emulator/index.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'
import { pki } from '../../support/stage.ts'

// What nobody checks with types: a slip is told by name, and never by a TypeError from within.

let emulator: Emulator
beforeAll(async () => {
  emulator = await startEmulator({ pki })
})
afterAll(() => emulator.close())

const refused = (work: () => unknown, message: string | RegExp) =>
  expectDpsError((async () => work())(), 'OPTION_INVALID', 'config').then((error) =>
    expect(error.message).toMatch(message),
  )

describe('an enrollment', () => {
  const symmetricKey = {}

  it.each(['press-1', undefined, null, {}, { registrationId: 5 }, ['press-1']])(
    'cannot be named by %j',
    async (ref) => {
      for (const method of ['disable', 'enable', 'remove'] as const) {
        await refused(
          () => emulator.enrollments[method](ref as never),
          /^an enrollment is named by \{ registrationId \}, or by \{ groupId \}/,
        )
      }
    },
  )

  it.each<[unknown, RegExp]>([
    [undefined, /^an individual enrollment must be an object with registrationId, /],
    ['press-1', /^an individual enrollment must be an object with registrationId, /],
    [{ registrationId: 'a' }, /^`attestation` must be an object with symmetricKey, x509$/],
    [{ registrationId: 'a', attestation: 'x509' }, /^`attestation` must be an object/],
    [{ registrationId: 'a', attestation: {} }, /^`attestation` must have either `symmetricKey`/],
    [{ registrationId: 'a', attestation: { symmetricKey, x509: {} } }, /must have either/],
    [
      { registrationId: 'a', attestation: { x509: 'PEM' } },
      /^`attestation.x509` must be an object with certificate/,
    ],
    [
      { registrationId: 'a', attestation: { symmetricKey: { primarykey: 'x' } } },
      /has no option `primarykey`/,
    ],
    [
      { registrationId: 'a', attestation: { symmetricKey: { primaryKey: 5 } } },
      /primaryKey` must be strict base64/,
    ],
    [{ registrationId: 'a', attestation: { symmetricKey }, issuence: {} }, /has no option `issuence`/],
    [{ registrationId: 'a', attestation: { symmetricKey }, issuance: true }, /^`issuance` must be an object/],
    [{ registrationId: 'a', attestation: { symmetricKey }, issuance: { days: 7 } }, /has no option `days`/],
    [
      { registrationId: 'a', attestation: { symmetricKey }, issuance: { curves: 5 } },
      /^`issuance` must have/,
    ],
    [
      { registrationId: 'a', attestation: { symmetricKey }, reprovisioning: 'move' },
      /^`reprovisioning` must be/,
    ],
    [{ registrationId: 'a', attestation: { symmetricKey }, hub: 5 }, /^`hub` must be/],
    [{ registrationId: 'a', attestation: { symmetricKey }, payload: 'x' }, /^`payload` must be/],
    [{ registrationId: 'a', attestation: { symmetricKey }, enabled: 'no' }, /^`enabled` must be/],
  ])('%j is refused', (enrollment, message) =>
    refused(() => emulator.enrollments.addIndividual(enrollment as never), message),
  )

  it.each<[unknown, RegExp]>([
    [undefined, /^an enrollment group must be an object with groupId, /],
    [{ groupId: 'g' }, /^`attestation` must be an object/],
    [
      { groupId: 'g', attestation: { x509: { certificate: 'PEM' } } },
      /has no option `certificate`; known are ca$/,
    ],
  ])('of a group, %j, is refused', (group, message) =>
    refused(() => emulator.enrollments.addGroup(group as never), message),
  )

  it('that was refused is not there', () => expect(emulator.enrollments.list()).toEqual([]))
})

it.each<[unknown, RegExp]>([
  [undefined, /^a fault must be an object with at, do, times, match$/],
  [{ at: 'poll' }, /^`do` at 'poll' must be one of /],
  [{ at: 'poll', do: null }, /^`do` at 'poll' must be one of /],
  [{ at: 'poll', do: 'silence', registrationId: 'a' }, /has no option `registrationId`/],
])('the fault %j is refused', (fault, message) => refused(() => emulator.faults.add(fault as never), message))

it.each<[unknown, RegExp]>([
  ['x', /^what the emulator is started with must be an object with port, /],
  [{ nonsense: 1 }, /has no option `nonsense`/],
  [{ port: 'x' }, /^`port` must be/],
  [{ hubs: 'x.azure-devices.net' }, /^`hubs` must be a list/],
  [{ gateways: [5] }, /must be host names/],
  [{ enrollments: {} }, /^`enrollments` must be a list/],
  [{ enrollments: ['a'] }, /^an individual enrollment must be an object/],
  [{ idScope: 5 }, /^`idScope` must be letters and digits/],
  [{ clock: {} }, /^`clock` must have/],
])('no emulator starts with %j', (options, message) =>
  refused(async () => (await startEmulator(options as never)).close(), message),
)
