import { DpsError, type DpsErrorCode } from '../errors.ts'
import { printable } from '../printable.ts'
import { tryJsonObject } from '../protocol/response.ts'
import { classifyRefusal } from '../protocol/status.ts'

const UNKNOWN_HERE =
  'The hub does not know this device, has disabled it, or does not take this credential: ask the provisioning service again (`shouldReprovision`), and compare the clock with the time if that changes nothing.'

/** Table 3.1 of MQTT 3.1.1, as a hub means it. */
const CONNACK: ReadonlyMap<number, readonly [DpsErrorCode, string]> = new Map([
  [1, ['PROTOCOL_REFUSED', 'unacceptable protocol version']],
  [2, ['UNAUTHORIZED', 'client identifier rejected']],
  [3, ['SERVICE_UNAVAILABLE', 'server unavailable']],
  [4, ['UNAUTHORIZED', 'bad user name or password']],
  [5, ['UNAUTHORIZED', 'not authorized']],
])

/** What a CONNACK other than 0 means. */
export function connectionRefused(hub: string, returnCode: number): DpsError {
  const known = CONNACK.get(returnCode)
  if (known === undefined) {
    return new DpsError(
      'PROTOCOL_VIOLATION',
      'connect',
      `the hub sent CONNACK with the reserved return code ${returnCode} [3.2.2.3]`,
    )
  }
  const [code, why] = known
  return new DpsError(
    code,
    'connect',
    `the hub ${hub} refused the connection: ${why} (CONNACK return code ${returnCode})`,
    code === 'UNAUTHORIZED' ? { hint: UNKNOWN_HERE } : {},
  )
}

/** A hub says no to a subscription that it knows to be none of this device's. */
export function subscriptionRefused(filter: string): DpsError {
  return new DpsError('SUBSCRIPTION_REFUSED', 'subscribe', `the hub refused ${filter}`, {
    hint: 'The hub does not offer this to this device: commands go to devices and not to modules, and the basic tier has no twin, no methods and no commands.',
  })
}

/** What an answer about the twin with a status of 300 and more means. Its body only adds detail. */
export function twinRefused(status: number, body: Uint8Array): DpsError {
  const { errorCode, message, trackingId } = tryJsonObject(body)
  const serviceErrorCode =
    typeof errorCode === 'number' && Number.isSafeInteger(errorCode) ? errorCode : undefined
  const said = typeof message === 'string' && message !== '' ? `: ${printable(message, 200)}` : ''
  return new DpsError(
    status === 413 ? 'BAD_REQUEST' : classifyRefusal(status, undefined).code,
    'hub',
    `the hub answered ${status} about the twin${said}`,
    {
      hint: 'See the message: a twin holds up to 32 KB on each side, names without `.`, `$` and spaces, and texts of up to 4 KB.',
      serviceErrorCode,
      trackingId: typeof trackingId === 'string' ? printable(trackingId, 80) : undefined,
    },
  )
}
