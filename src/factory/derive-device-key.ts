import { computeSha256Hmac } from '@azure/core-util'
import { checkSasKey } from '../credential/base64.ts'
import { checkOptionNames } from '../credential/source.ts'
import { checkRegistrationId } from '../protocol/registration-id.ts'

export interface DeriveDeviceKeyOptions {
  /** Primary or secondary key of the enrollment group: canonical base64 of 16 to 64 bytes. */
  groupKey: string
  /** The registration id, in exactly the spelling that the device will send. */
  registrationId: string
}

/**
 * The key of one device of an enrollment group: base64 of HMAC-SHA256 of the registration id under the group key.
 *
 * **For the factory line only.** Whoever has the group key can be every device of the group: it must never be stored
 * on, or sent to, a device. Give the device the key returned here.
 *
 * The id is hashed byte for byte as given, and an id in other letter case has another key, although the service
 * otherwise ignores case. Use lower-case ids, and the same spelling here and on the device.
 *
 * https://learn.microsoft.com/azure/iot-dps/concepts-symmetric-key-attestation#group-enrollments
 *
 * @throws DpsError SAS_KEY_INVALID or OPTION_INVALID, phase `config`; the message never contains the key
 */
export async function deriveDeviceKey(options: DeriveDeviceKeyOptions): Promise<string> {
  checkOptionNames(options, 'deriveDeviceKey', ['groupKey', 'registrationId'])
  const registrationId = checkRegistrationId(options.registrationId)
  return computeSha256Hmac(checkSasKey(options.groupKey, 'group'), registrationId, 'base64')
}
