import { computeSha256Hmac } from '@azure/core-util'
import { DpsError } from '../errors.ts'
import { checkRegistrationId } from '../protocol/registration-id.ts'
import { formatToken, stringToSign } from '../protocol/sas-token.ts'
import { checkSasKey, decodeBase64 } from './base64.ts'
import { type Credential, constant, type Identity } from './credential.ts'
import { madeOf } from './material.ts'
import { Secret } from './secret.ts'
import {
  checkOptionNames,
  checkPath,
  digestOf,
  fromFile,
  fromValue,
  oneOf,
  type Read,
  type Readable,
} from './source.ts'

const HMAC_SHA256_BYTES = 32

/** Exactly one of `key` and `keyFile`. */
export type SymmetricKeyOptions = {
  /** The registration id of the individual enrollment, or of this device within its enrollment group. */
  registrationId: string
} & (
  | {
      /**
       * The device's own key: canonical base64 of 16 to 64 bytes. A function is asked again for every connection, so
       * a rotated key needs no restart. Never the key of an enrollment group: derive the device key from it in the
       * factory (`deriveDeviceKey`).
       */
      key: Readable<string>
      keyFile?: undefined
    }
  | {
      /** A file that holds the key, and at most one line break after it; read again for every connection. */
      keyFile: string | URL
      key?: undefined
    }
)

export interface SasSignerOptions {
  /** The registration id of the individual enrollment, or of this device within its enrollment group. */
  registrationId: string
  /**
   * HMAC-SHA256 of the UTF-8 bytes of `stringToSign` under the device's key: 32 bytes, or their base64. Called once for
   * every token, so about once per connection.
   */
  sign(stringToSign: string): string | Uint8Array | Promise<string | Uint8Array>
  /**
   * Any name for the key, such as its slot. What is remembered about a credential is kept under it, so give another
   * name to another key. Default: the registration id alone tells credentials apart.
   */
  keyId?: string
}

/**
 * A device that authenticates with a symmetric key held in memory.
 *
 * The key is checked by `load`, not here: SAS_KEY_INVALID (never quoting it), or CREDENTIAL_UNREADABLE where the file
 * or the function that should give it fails; both phase `config`.
 *
 * https://learn.microsoft.com/azure/iot-dps/concepts-symmetric-key-attestation
 *
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function symmetricKey(options: SymmetricKeyOptions): Credential {
  checkOptionNames(options, 'symmetricKey', ['registrationId', 'key', 'keyFile'])
  const registrationId = checkRegistrationId(options.registrationId)
  const field = oneOf(options, 'symmetricKey', ['key', 'keyFile'])
  const read = field === 'keyFile' ? lineOf(options.keyFile) : fromValue(options.key!, 'key')
  const fixed = typeof options.key === 'string'
  let current: { readonly key: Secret<string>; readonly identity: Identity } | undefined

  const credential = Object.freeze({
    load: async () => {
      if (fixed && current !== undefined) return current.identity
      const key = checkSasKey(await read(), 'symmetric')
      if (current?.key.reveal() !== key) {
        const fingerprint = digestOf(['symmetric-key', registrationId, Buffer.from(key, 'base64')])
        const identity = sasIdentity(registrationId, fingerprint, (text) =>
          computeSha256Hmac(key, text, 'base64'),
        )
        current = { key: new Secret(key), identity }
      }
      return current.identity
    },
  })
  return madeOf(credential, 'symmetric-key', options)
}

/**
 * A device whose symmetric key never enters this process: a TPM, a secure element or another service signs.
 *
 * What `sign` returns is checked. If it throws, rejects or returns anything but 32 bytes, `token` rejects with
 * SIGNER_FAILED, phase `config` (nothing has been sent with the signature), and what it threw as `cause`.
 *
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function sasSigner(options: SasSignerOptions): Credential {
  checkOptionNames(options, 'sasSigner', ['registrationId', 'sign', 'keyId'])
  const registrationId = checkRegistrationId(options.registrationId)
  const { sign, keyId } = options
  if (typeof sign !== 'function') throw new DpsError('OPTION_INVALID', 'config', '`sign` must be a function.')
  if (keyId !== undefined && typeof keyId !== 'string') {
    throw new DpsError('OPTION_INVALID', 'config', '`keyId` must be a string.')
  }
  const fingerprint = digestOf(['sas-signer', registrationId, ...(keyId === undefined ? [] : [keyId])])
  const identity = sasIdentity(registrationId, fingerprint, async (text) => {
    let answer: unknown
    try {
      answer = await sign(text)
    } catch (cause) {
      throw new DpsError('SIGNER_FAILED', 'config', 'The function given as `sign` failed.', { cause })
    }
    return checkSignature(answer)
  })
  return madeOf(Object.freeze({ load: async () => identity }), 'sas-signer', options)
}

function sasIdentity(
  registrationId: string,
  fingerprint: string,
  sign: (text: string) => Promise<string>,
): Identity {
  return constant({
    registrationId,
    fingerprint,
    // A key has no dates, and a token takes its own from the clock.
    checkDates: () => undefined,
    token: async (resource: string, expiresAt: number, keyName?: string) => {
      const signature = await sign(stringToSign(resource, expiresAt))
      return formatToken({ resource, signature, expiresAt, keyName })
    },
  })
}

function checkSignature(answer: unknown): string {
  const bytes = typeof answer === 'string' ? decodeBase64(answer) : answer
  if (typeof bytes === 'string') throw badSignature(`a string that ${bytes}; it must be base64`)
  if (!(bytes instanceof Uint8Array)) {
    throw badSignature(`${answer === null ? 'null' : typeof answer}; it must return base64 or bytes`)
  }
  if (bytes.length !== HMAC_SHA256_BYTES) {
    throw badSignature(`${bytes.length} bytes; an HMAC-SHA256 has ${HMAC_SHA256_BYTES}`)
  }
  return Buffer.from(bytes).toString('base64')
}

function badSignature(what: string): DpsError {
  return new DpsError('SIGNER_FAILED', 'config', `The function given as \`sign\` returned ${what}.`)
}

// Editors and `echo` end a file with a line break; any other whitespace is a mistake that the key check reports.
function lineOf(path: unknown): Read<string> {
  const read = fromFile(checkPath(path, 'keyFile'), 'keyFile')
  return async () => (await read()).toString('utf8').replace(/\r?\n$/, '')
}
