import { DpsError } from '../errors.ts'
import { csrMember } from './issuance.ts'

/** The service's limit for one message (IoT DPS limits): 96 KB. */
export const MAX_PAYLOAD_BYTES = 96 * 1024

/**
 * The body of a register request: `{"registrationId":"…","payload":{…},"csr":"…"}`.
 *
 * @param csr base64 of DER
 * @throws DpsError OPTION_INVALID when `payload` is not a JSON object or is larger than the service takes
 */
export function registerBody(
  registrationId: string,
  payload: Readonly<Record<string, unknown>> | undefined,
  csr?: string,
): string {
  const member = payload === undefined ? '' : `,"payload":${payloadJson(payload)}`
  return `{"registrationId":${JSON.stringify(registrationId)}${member}${csr === undefined ? '' : csrMember(csr)}}`
}

function payloadJson(payload: unknown): string {
  let json: string | undefined
  try {
    json = JSON.stringify(payload)
  } catch (cause) {
    throw new DpsError('OPTION_INVALID', 'config', 'payload cannot be written as JSON', { cause })
  }
  // Custom allocation deserialises an object; a string, an array or a number fails there with an opaque error.
  if (!json?.startsWith('{')) {
    throw new DpsError('OPTION_INVALID', 'config', 'payload must be a JSON object')
  }
  const bytes = new TextEncoder().encode(json).length
  if (bytes > MAX_PAYLOAD_BYTES) {
    throw new DpsError(
      'OPTION_INVALID',
      'config',
      `payload is ${bytes} bytes of JSON; the service takes at most ${MAX_PAYLOAD_BYTES}`,
    )
  }
  return json
}
