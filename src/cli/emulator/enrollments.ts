import { join } from 'node:path'
import type { Emulator, EnrollmentPolicy, SymmetricKeyAttestation } from '../../emulator/index.ts'
import { writePrivate } from '../files.ts'
import { kit } from '../kit.ts'

type Entry = Readonly<Record<string, unknown>>

/** A device that can be tried at once: the options of `register` that are its own. */
export interface ReadyDevice {
  readonly registrationId: string
  readonly options: readonly string[]
}

const isText = (value: unknown) => typeof value === 'string' && value !== ''
const isObject = (value: unknown) => typeof value === 'object' && value !== null && !Array.isArray(value)
const oneOf =
  (...words: string[]) =>
  (value: unknown) =>
    words.includes(value as string)

const COMMON: Readonly<Record<string, (value: unknown) => boolean>> = {
  attestation: oneOf('symmetricKey', 'x509'),
  symmetricKeyFile: isText,
  certificateFile: isText,
  hub: isText,
  payload: isObject,
  reprovisioning: oneOf('migrate', 'reset', 'never'),
  enabled: (value) => typeof value === 'boolean',
  issuance: isObject,
}
const DEVICE = { registrationId: isText, deviceId: isText, ...COMMON }
const GROUP = {
  groupId: isText,
  devices: (value: unknown) => Array.isArray(value) && value.every(isText),
  ...COMMON,
}
const ISSUANCE = {
  lifetimeMs: (value: unknown) => typeof value === 'number',
  curves: Array.isArray,
  allowRsa: (value: unknown) => typeof value === 'boolean',
}

/** Names a step beyond what is known, or a value that cannot be one. */
function check(
  entry: unknown,
  fields: Readonly<Record<string, (value: unknown) => boolean>>,
  where: string,
): Entry {
  if (!isObject(entry)) throw kit.usage(`${where} must be an object`)
  for (const [name, value] of Object.entries(entry as Entry)) {
    if (!Object.hasOwn(fields, name)) throw kit.unknown(name, Object.keys(fields), ` in ${where}`)
    if (!fields[name]!(value))
      throw kit.usage(`${name} in ${where} is not what it must be`, 'See dps-device emulator --help.')
  }
  return entry as Entry
}

const listOf = (value: unknown): boolean => Array.isArray(value)

export interface Plan {
  readonly devices: readonly Entry[]
  readonly groups: readonly Entry[]
}

/** What is enrolled where nothing is said: a device of each kind, ready to try. */
const DEFAULT: Plan = {
  devices: [{ registrationId: 'press-43', attestation: 'x509' }],
  groups: [{ groupId: 'presses', devices: ['press-42'] }],
}

/** @throws DpsError OPTION_INVALID, phase `config` */
export function planOf(value: unknown, as: string): Plan {
  if (value === undefined) return DEFAULT
  const { devices = [], groups = [] } = check(value, { devices: listOf, groups: listOf }, as) as {
    devices?: unknown[]
    groups?: unknown[]
  }
  const entry = (one: unknown, fields: typeof DEVICE | typeof GROUP, id: string, where: string): Entry => {
    const checked = check(one, fields, where)
    if (checked[id] === undefined) throw kit.usage(`${where} has no id`)
    // They become the names of files.
    for (const one of [checked.registrationId, ...((checked.devices ?? []) as unknown[])])
      if (one !== undefined) kit.checkRegistrationId(one as string)
    if (checked.issuance !== undefined) check(checked.issuance, ISSUANCE, `issuance in ${where}`)
    const x509 = checked.attestation === 'x509'
    if (x509 ? checked.symmetricKeyFile !== undefined : checked.certificateFile !== undefined)
      throw kit.usage(`${where} has a file of the other attestation`)
    if (checked.certificateFile !== undefined && (checked.devices as unknown[] | undefined)?.length)
      throw kit.usage(`devices in ${where} cannot be made ready: only whoever has the key of its CA could`)
    return checked
  }
  return {
    devices: devices.map((one, i) => entry(one, DEVICE, 'registrationId', `devices[${i}] in ${as}`)),
    groups: groups.map((one, i) => entry(one, GROUP, 'groupId', `groups[${i}] in ${as}`)),
  }
}

/** The hubs that the plan assigns devices to. */
export const hubsOf = ({ devices, groups }: Plan): readonly string[] =>
  [...devices, ...groups].flatMap(({ hub }) => (hub === undefined ? [] : [hub as string]))

/**
 * Enrolls what the plan says, and writes what its devices need.
 *
 * @param issue whether certificates are issued where the plan does not say
 * @throws DpsError phase `config`
 */
export async function enroll(
  emulator: Emulator,
  plan: Plan,
  folder: string,
  force: boolean,
  issue: boolean,
): Promise<readonly ReadyDevice[]> {
  const { deriveDeviceKey } = await import('../../factory/index.ts')
  const ready: ReadyDevice[] = []
  const write = (name: string, content: string): string => {
    // A registration id may hold a colon, which some file systems do not.
    const path = join(folder, name.replaceAll(':', '_'))
    writePrivate(path, '--dir', content, force)
    return path
  }
  const withKey = (registrationId: string, key: string) => {
    const path = write(`${registrationId}.key`, `${key}\n`)
    ready.push({
      registrationId,
      options: ['--registration-id', registrationId, '--symmetric-key-file', path],
    })
  }
  const withCertificate = async (registrationId: string): Promise<string> => {
    const { cert, key } = await emulator.issueDeviceCertificate({ registrationId })
    const options = [
      '--cert',
      write(`${registrationId}.pem`, cert),
      '--key',
      write(`${registrationId}-key.pem`, key),
    ]
    ready.push({ registrationId, options })
    return cert
  }
  const policyOf = ({ hub, payload, reprovisioning, enabled, issuance, deviceId }: Entry) => {
    const policy = {
      hub,
      payload,
      reprovisioning,
      enabled,
      issuance: issuance ?? (issue ? {} : undefined),
      deviceId,
    }
    return Object.fromEntries(
      Object.entries(policy).filter(([, value]) => value !== undefined),
    ) as EnrollmentPolicy
  }
  const keyOf = ({ symmetricKeyFile }: Entry): SymmetricKeyAttestation => ({
    symmetricKey:
      symmetricKeyFile === undefined
        ? {}
        : {
            primaryKey: kit.lineOf(
              kit.readInput(symmetricKeyFile as string, 'symmetricKeyFile', 'SAS_KEY_INVALID'),
            ),
          },
  })
  const certificateOf = ({ certificateFile }: Entry): string | undefined =>
    certificateFile === undefined
      ? undefined
      : kit.readInput(certificateFile as string, 'certificateFile', 'CREDENTIAL_UNREADABLE').toString()

  for (const group of plan.groups) {
    const groupId = group.groupId as string
    const devices = (group.devices ?? []) as readonly string[]
    if (group.attestation === 'x509') {
      const ca = certificateOf(group) ?? emulator.pki.deviceRoot.certPem
      emulator.enrollments.addGroup({ ...policyOf(group), groupId, attestation: { x509: { ca } } })
      for (const registrationId of devices) await withCertificate(registrationId)
      continue
    }
    const keys = emulator.enrollments.addGroup({ ...policyOf(group), groupId, attestation: keyOf(group) })
    for (const registrationId of devices)
      withKey(registrationId, await deriveDeviceKey({ groupKey: keys!.primaryKey, registrationId }))
  }
  for (const device of plan.devices) {
    const registrationId = device.registrationId as string
    if (device.attestation === 'x509') {
      const certificate = certificateOf(device) ?? (await withCertificate(registrationId))
      emulator.enrollments.addIndividual({
        ...policyOf(device),
        registrationId,
        attestation: { x509: { certificate } },
      })
      continue
    }
    const keys = emulator.enrollments.addIndividual({
      ...policyOf(device),
      registrationId,
      attestation: keyOf(device),
    })
    withKey(registrationId, keys!.primaryKey)
  }
  return ready
}
