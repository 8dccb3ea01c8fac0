import { createPrivateKey, createPublicKey, generateKeyPair, KeyObject, sign } from 'node:crypto'
import { promisify } from 'node:util'
import type { asn1 as Asn1 } from 'node-forge'
import { isSigned } from '../credential/certificate-request.ts'
import { armour, readPrivateKey } from '../credential/pem.ts'
import { redacting } from '../credential/secret.ts'
import { checkOptionNames } from '../credential/source.ts'
import { DpsError } from '../errors.ts'
import { checkRegistrationId } from '../protocol/registration-id.ts'
import type { CertificateSigningRequest, CreateCsrOptions, KeySigner } from './create-csr.ts'

/** X.520, ub-common-name. */
const MAX_COMMON_NAME = 64

const OIDS = {
  commonName: '2.5.4.3',
  'ecdsa-sha256': '1.2.840.10045.4.3.2',
  'ecdsa-sha384': '1.2.840.10045.4.3.3',
  'rsa-sha256': '1.2.840.113549.1.1.11',
}

/** What the SPKI of a named curve and an uncompressed point begins with (RFC 5480): no service takes another form. */
const EC_HEADS = {
  ecdsaSha256: '3059301306072a8648ce3d020106082a8648ce3d03010703420004',
  ecdsaSha384: '3076301006072a8648ce3d020106052b8104002203620004',
}

const generate = promisify(generateKeyPair)

/** @see createCsr */
export async function makeCsr(options: CreateCsrOptions): Promise<CertificateSigningRequest> {
  checkOptionNames(options, 'createCsr', ['registrationId', 'curve', 'rsaBits', 'key'])
  const registrationId = checkRegistrationId(options.registrationId)
  if (registrationId.length > MAX_COMMON_NAME) {
    throw invalid(
      `\`registrationId\` has ${registrationId.length} characters; as the CN of a certificate it may have ${MAX_COMMON_NAME}.`,
    )
  }
  const { generated, publicKey, signer } = await keyOf(options)
  const spki = publicKey.export({ type: 'spki', format: 'der' })
  const algorithm = algorithmOf(publicKey, spki)
  const digest = algorithm === 'ecdsa-sha384' ? 'sha384' : 'sha256'

  const { default: asn1 } = await import('node-forge/lib/asn1.js')
  const { Class, Type } = asn1
  const universal = (type: Asn1.Type, value: string | Asn1.Asn1[]) =>
    asn1.create(Class.UNIVERSAL, type, Array.isArray(value), value)
  const sequence = (...items: Asn1.Asn1[]) => universal(Type.SEQUENCE, items)
  const oid = (name: keyof typeof OIDS) => universal(Type.OID, asn1.oidToDer(OIDS[name]).getBytes())
  // What is DER already goes in as it is: the codec would write the bits of a key that happen to be DER anew.
  const decode = (bytes: Buffer) => asn1.fromDer(bytes.toString('latin1'), { decodeBitStrings: false })
  const encode = (item: Asn1.Asn1) => Buffer.from(asn1.toDer(item).getBytes(), 'latin1')

  const name = sequence(oid('commonName'), universal(Type.UTF8, registrationId))
  const info = sequence(
    universal(Type.INTEGER, '\0'),
    sequence(universal(Type.SET, [name])),
    decode(spki),
    asn1.create(Class.CONTEXT_SPECIFIC, 0, true, []),
  )
  const data = encode(info)
  const signature = await signer(data, digest)
  if (!(signature instanceof Uint8Array && isSigned(digest, data, publicKey, signature)))
    throw badSigner('returned what is no signature of `publicKey`')

  const parameters = algorithm === 'rsa-sha256' ? [universal(Type.NULL, '')] : []
  const bits = universal(Type.BITSTRING, `\0${Buffer.from(signature).toString('latin1')}`)
  const request = encode(sequence(info, sequence(oid(algorithm), ...parameters), bits))
  return redacting<CertificateSigningRequest>(
    {
      csr: request.toString('base64'),
      pem: armour('CERTIFICATE REQUEST', request),
      ...(generated && { key: generated.export({ type: 'pkcs8', format: 'pem' }) as string }),
      publicKey: publicKey.export({ type: 'spki', format: 'pem' }) as string,
    },
    ['key'],
  )
}

interface Key {
  readonly generated?: KeyObject
  readonly publicKey: KeyObject
  readonly signer: (data: Buffer, digest: 'sha256' | 'sha384') => Uint8Array | Promise<Uint8Array>
}

async function keyOf({ curve, rsaBits, key }: CreateCsrOptions): Promise<Key> {
  const given = [curve, rsaBits, key].filter((value) => value !== undefined)
  if (given.length > 1) throw invalid('`createCsr` takes at most one of `curve`, `rsaBits` and `key`.')
  if (key !== undefined) return givenKey(key)
  if (rsaBits !== undefined) {
    if (![2048, 3072, 4096].includes(rsaBits)) throw invalid('`rsaBits` must be 2048, 3072 or 4096.')
    const { privateKey } = await generate('rsa', { modulusLength: rsaBits })
    return { generated: privateKey, ...localKey(privateKey) }
  }
  const { privateKey } = await generate('ec', { namedCurve: checkCurve(curve ?? 'P-384') })
  return { generated: privateKey, ...localKey(privateKey) }
}

function givenKey(key: string | Uint8Array | KeyObject | KeySigner): Key {
  if (key instanceof KeyObject) {
    if (key.type !== 'private') throw invalid(`\`key\` must be a private key, not a ${key.type} one.`)
    return localKey(key)
  }
  if (typeof key === 'string' || key instanceof Uint8Array) return localKey(privateKeyOf(key))
  if (typeof key !== 'object' || key === null || typeof key.sign !== 'function') {
    throw invalid('`key` must be PEM, DER, a KeyObject, or an object of `publicKey` and `sign`.')
  }
  const publicKey = publicKeyOf(key.publicKey)
  return {
    publicKey,
    signer: async (data, digest) => {
      try {
        // A copy: what is verified and sent must be what it was before the callback had it.
        return await key.sign(new Uint8Array(data), digest)
      } catch (cause) {
        throw badSigner('failed', cause)
      }
    },
  }
}

function localKey(privateKey: KeyObject): Key {
  return {
    publicKey: createPublicKey(privateKey),
    signer: (data, digest) => sign(digest, data, privateKey),
  }
}

function privateKeyOf(input: string | Uint8Array): KeyObject {
  const { pem, kind } = readPrivateKey(input, 'key')
  if (kind === 'encrypted private key') {
    throw unreadableKey(
      'is encrypted: decrypt it with `createPrivateKey` of node:crypto and give what that returns',
    )
  }
  try {
    return createPrivateKey(pem)
  } catch (cause) {
    throw unreadableKey('is not a private key that OpenSSL can read', cause)
  }
}

function publicKeyOf(input: KeySigner['publicKey']): KeyObject {
  try {
    const key =
      input instanceof KeyObject
        ? input
        : createPublicKey(
            typeof input === 'string' || Buffer.from(input).includes('-----BEGIN ')
              ? Buffer.from(input as string)
              : { key: Buffer.from(input), format: 'der', type: 'spki' },
          )
    if (key.type === 'public') return key
  } catch (cause) {
    throw unreadableKey('has a `publicKey` that is no public key in PEM or DER (SPKI)', cause)
  }
  throw unreadableKey('has a `publicKey` that is no public key')
}

function algorithmOf({ asymmetricKeyType, asymmetricKeyDetails }: KeyObject, spki: Buffer) {
  const bits = asymmetricKeyDetails?.modulusLength ?? 0
  if (asymmetricKeyType === 'rsa' && bits >= 2048) return 'rsa-sha256'
  const begins = (head: string) => spki.subarray(0, head.length / 2).toString('hex') === head
  if (begins(EC_HEADS.ecdsaSha384)) return 'ecdsa-sha384'
  if (begins(EC_HEADS.ecdsaSha256)) return 'ecdsa-sha256'
  throw new DpsError(
    'CREDENTIAL_KEY_UNSUPPORTED',
    'config',
    'The key must be EC on the named curve P-384 or P-256, its point uncompressed, or RSA of at least 2048 bits.',
    { hint: 'Let `createCsr` make the key, or give one of those.' },
  )
}

function checkCurve(curve: unknown): string {
  if (curve === 'P-384' || curve === 'P-256') return curve
  throw invalid("`curve` must be 'P-384' or 'P-256'.")
}

function badSigner(what: string, cause?: unknown): DpsError {
  return new DpsError('SIGNER_FAILED', 'config', `The function \`key.sign\` ${what}.`, {
    ...(cause !== undefined && { cause }),
    hint: 'It has to return the DER of an ECDSA signature, or one of PKCS#1 v1.5, of the data it is given, hashed with the digest it is given; see `cause` if there is one.',
  })
}

function unreadableKey(fault: string, cause?: unknown): DpsError {
  return new DpsError('CREDENTIAL_UNREADABLE', 'config', `\`key\` ${fault}.`, {
    ...(cause !== undefined && { cause }),
    hint: 'Give the private key as PEM or DER, not encrypted, or as a KeyObject.',
  })
}

function invalid(message: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message)
}
