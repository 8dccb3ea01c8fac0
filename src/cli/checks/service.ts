import type { Assignment } from '../../assignment/assignment.ts'
import type { DpsError } from '../../errors.ts'
import { type Case, type Way, wayOf } from '../case.ts'
import { kit } from '../kit.ts'
import type { TransportName } from '../settings.ts'
import { asWarning, type Check, type Finding, found, ok, skipped } from './check.ts'

const READY = ['config.id-scope', 'credential.read', 'credential.dates', 'clock.build']

/** The service itself, by each of its protocols. Nothing is registered. */
export const serviceChecks: readonly Check[] = [
  speaking('mqtt.connect', 'mqtt', async (on) => connected(await on.client('mqtt').probe(callOf(on)))),
  speaking('websocket.upgrade', 'mqtt-ws', async (on) =>
    connected(await on.client('mqtt-ws').probe(callOf(on))),
  ),
  speaking('https.request', 'https', async (on) => {
    try {
      const { status, assignedHub, deviceId } = await on.client('https').lookup(callOf(on))
      const where =
        assignedHub === undefined ? '' : `: ${kit.printable(deviceId ?? '')} on ${kit.printable(assignedHub)}`
      return ok(`the service knows this device as ${status}${where}`, { status, assignedHub, deviceId })
    } catch (error) {
      if (!kit.DpsError.is(error) || error.code !== 'NOT_FOUND') throw error
      return ok('the service answers: this device is not registered yet')
    }
  }),
]

const callOf = ({ signal, timeoutMs }: Case) => ({ signal, timeoutMs })

const connected = ({
  registrationId,
  connection,
}: Pick<Assignment, 'registrationId' | 'connection'>): Finding =>
  ok(`the service let ${registrationId} in (${connection.roundTrips} round trips)`)

function speaking(id: string, transport: TransportName, ask: (on: Case) => Promise<Finding>): Check {
  const way: Way = wayOf(transport)
  return {
    id,
    needs: [...READY, `tls.${way}`],
    run: async (on) => {
      // The first contact is enough, but by a way that the device will use.
      if (on.factory && transport !== 'mqtt' && (on.admitted || !on.transports.includes(transport)))
        return skipped('--factory ends before')
      if (on.refusal !== undefined) return skipped(`the service has refused this device: ${on.refusal.code}`)
      try {
        const finding = await ask(on)
        on.admitted = true
        return finding
      } catch (error) {
        if (!kit.DpsError.is(error) || error.code === 'CANCELLED') throw error
        const finding = found(error)
        on.aheadMs ??= error.serverTime && error.serverTime.getTime() - kit.systemClock.now()
        // Who was refused here is refused by every way; but a 403 to the upgrade may be of anybody between.
        const byAnybody = on.admitted || (error.code === 'FORBIDDEN' && transport === 'mqtt-ws')
        if (finding.exit === kit.EXIT.refused && !byAnybody) {
          on.refusal = error
          return { ...finding, ...(await groupKeyHint(on, error, transport)) }
        }
        return asWarning(finding, !on.transports.includes(transport))
      }
    },
  }
}

/** The most common mistake with symmetric keys: the one of the group in place of the one of the device. */
async function groupKeyHint(on: Case, error: DpsError, transport: TransportName): Promise<Partial<Finding>> {
  const { sasKey: groupKey } = on
  if (error.code !== 'UNAUTHORIZED' || groupKey === undefined) return {}
  const { registrationId } = on.identity!
  const { deriveDeviceKey } = await import('../../factory/index.ts')
  const key = await deriveDeviceKey({ groupKey, registrationId })
  on.secrets.push(key)
  try {
    await on.client(transport, on.library.symmetricKey({ registrationId, key })).probe(callOf(on))
  } catch (second) {
    if (!kit.DpsError.is(second) || second.code === 'CANCELLED') throw second
    return {}
  }
  return {
    message: 'the key is that of the enrollment group, and the service wants that of the device',
    next: 'Take the group key off this device: whoever has it can be every device of the group. Make the device’s own with dps-device derive-key.',
  }
}

/** The device for good. */
export const registrationChecks: readonly Check[] = [
  {
    id: 'registration',
    needs: READY,
    needsAll: true,
    run: async (on) => {
      if (on.factory) return skipped('--factory ends before anything is registered')
      if (!on.register) return skipped('not asked for: --register does it')
      const { settings, library, trust = {}, idScope, credential, transports, signal, onPhase } = on
      const client = kit.withOwnCertFile(
        trust,
        () =>
          new library.ProvisioningClient({
            ...settings,
            trust,
            idScope: idScope!,
            credential: credential!,
            transport: transports,
            onEvent: (event) => event.type === 'phase-started' && onPhase(event.phase),
          }),
      )
      const payload = kit.payloadOf(on.options)
      const { deviceId, assignedHub, status, substatus } = await client.register({
        signal,
        ...kit.given('payload', payload),
      })
      return ok(`${kit.printable(deviceId)} is assigned to ${kit.printable(assignedHub)}`, {
        deviceId,
        assignedHub,
        status,
        substatus,
      })
    },
  },
]
