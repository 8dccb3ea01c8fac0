import { createPublicKey, X509Certificate } from 'node:crypto'
import type { AssignmentStore } from './assignment/store.ts'
import { type Clock, systemClock } from './clock.ts'
import { type Credential, constant, type Identity } from './credential/credential.ts'
import { Secret } from './credential/secret.ts'
import { checkOptionNames, digestOf } from './credential/source.ts'
import { x509 } from './credential/x509.ts'
import { DpsError } from './errors.ts'
import { checkRegistrationId } from './protocol/registration-id.ts'
import { jsonObject } from './protocol/response.ts'
import { isCredentialFailure } from './registration/fallback.ts'
import { seal, unseal } from './sealed.ts'

/** What a certificate says. Frozen. */
export interface CertificateFacts {
  readonly commonName: string
  /** Upper-case hex, as `node:crypto` prints it. */
  readonly serialNumber: string
  /** SHA-256 of the DER, upper-case hex with colons. */
  readonly fingerprint256: string
  readonly validFrom: Date
  readonly validUntil: Date
}

/** Where an issued certificate stands. Frozen. */
export interface IssuedCertificateStatus {
  /** The one that has worked; undefined before the first. */
  readonly current: CertificateFacts | undefined
  /** One that was issued since and has not been used yet. */
  readonly candidate: CertificateFacts | undefined
  /** Whether another was asked for, and has not come. */
  readonly requested: boolean
}

export interface CertificateRequestOptions {
  /** Of the device; on a hub its device id. Becomes the CN. */
  registrationId: string
  /** Of the new key. Default `'P-384'`. */
  curve?: 'P-384' | 'P-256'
}

/** A request for a certificate whose key is stored. */
export interface IssuedCertificateRequest {
  /** Base64 of DER, for `register({ csr })`, `provision({ csr })` or `requestCertificate({ csr })`. */
  readonly csr: string
  /** For `requestCertificate`. */
  readonly requestId: string
  /** Whether the key was there already: the request may have been made, and its answer be under way. */
  readonly resume: boolean
}

export interface IssuedCertificateOptions {
  /**
   * Where certificates are kept, with their keys: a `fileStore` of its own, which has mode 0600 and is replaced at one stroke.
   */
  store: AssignmentStore
  /** For tests. Default: the system's. */
  clock?: Clock
}

/**
 * A certificate that the service issues and renews (preview), as a credential: the first of `[issued, bootstrap]`.
 * `provisionAndConnect({ issuance })` does all that is said here by itself.
 *
 * Key and certificate are one record, written as a whole: a process that dies at any point, or a power cut, leaves the one
 * before or the one after. A new pair is a candidate until `confirm` says that a hub has let the device in with it; `load`
 * gives it first, and the one before is kept. `connectHub` confirms by itself, and goes back, at once, where it is refused.
 *
 * What the store does not take stays in memory and is written with the next change; the method rejects with STORE_FAILED.
 */
export interface IssuedCertificate extends Credential {
  /** @throws DpsError CREDENTIAL_NOT_ISSUED, phase `config`, before there is one; CREDENTIAL_UNREADABLE */
  load(): Promise<Identity>
  settled(identity: Identity, error: DpsError | undefined): Promise<boolean>
  /** @throws DpsError CREDENTIAL_UNREADABLE, phase `config` */
  status(): Promise<IssuedCertificateStatus>
  /**
   * A request with a new key, which is stored before this resolves; or with the key of a request that has not been answered.
   *
   * @throws DpsError OPTION_INVALID, phase `config`; STORE_FAILED
   */
  createRequest(options: CertificateRequestOptions): Promise<IssuedCertificateRequest>
  /**
   * Checks what was issued for the request, and keeps it with its key.
   *
   * @param chain `issuedCertificateChain`, or what `requestCertificate` resolves with
   * @throws DpsError CERTIFICATE_NOT_ISSUED, ISSUED_CERTIFICATE_INVALID, STORE_FAILED; OPTION_INVALID where none was asked for
   */
  install(chain: readonly string[] | undefined): Promise<CertificateFacts>
  /** The candidate works; the one before is forgotten. Without one nothing happens. @throws DpsError STORE_FAILED */
  confirm(): Promise<void>
  /** The candidate does not work; without one nothing happens. @throws DpsError STORE_FAILED */
  reject(): Promise<void>
  /** Forgets a request that will not be answered, and its key. @throws DpsError STORE_FAILED */
  abandon(): Promise<void>
}

const FORMAT = 'dps-device-client/certificate'
const VERSION = 1
const STORE_LIMIT_MS = 30_000

interface Pair {
  readonly key: string
  /** PEM of each certificate, leaf first. */
  readonly chain: readonly string[]
}

interface Request {
  readonly key: string
  readonly registrationId: string
  readonly requestId: string
}

interface Pairs {
  readonly current?: Pair | undefined
  readonly candidate?: Pair | undefined
  readonly request?: Request | undefined
}

/**
 * A certificate that is issued for the device and renewed, kept in `store`.
 *
 * https://learn.microsoft.com/azure/iot-dps/concept-certificate-issuance
 *
 * @beta
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function issuedCertificate(options: IssuedCertificateOptions): IssuedCertificate {
  checkOptionNames(options, 'issuedCertificate', ['store', 'clock'])
  const { store, clock = systemClock } = options
  if (typeof store?.read !== 'function' || typeof store.write !== 'function') {
    throw invalid('`store` must be made by fileStore(), or have the methods read, write and remove.')
  }
  /** What the store did not take. */
  let unsaved: Secret<Pairs> | undefined
  let given: Secret<Pair> | undefined
  let loaded: Identity | undefined
  let turn: Promise<unknown> = Promise.resolve()
  const pairOf = x509({ cert: () => given!.reveal().chain, key: () => given!.reveal().key })

  /** One after the other: each begins with what the one before has left. */
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const result = turn.then(work)
    turn = result.catch(() => undefined)
    return result
  }
  const within = async <T>(work: () => Promise<T>): Promise<T> => {
    let disarm: (() => void) | undefined
    const limit = new Promise<never>((_, reject) => {
      const late = new DpsError(
        'STORE_FAILED',
        'store',
        `the store did not answer within ${STORE_LIMIT_MS} ms`,
      )
      disarm = clock.after(STORE_LIMIT_MS, () => reject(late))
    })
    try {
      return await Promise.race([work(), limit])
    } finally {
      disarm!()
    }
  }
  const read = async (): Promise<Pairs> => {
    if (unsaved !== undefined) return unsaved.reveal()
    let bytes: Uint8Array | undefined
    try {
      bytes = await within(() => store.read())
      return bytes === undefined ? {} : decodePairs(bytes)
    } catch (cause) {
      const why = DpsError.is(cause) ? cause.message : 'the store failed'
      throw new DpsError(
        'CREDENTIAL_UNREADABLE',
        'config',
        `The issued certificate cannot be read: ${why}.`,
        {
          cause,
          hint: 'Another is issued for the bootstrap credential; look at the store all the same.',
        },
      )
    }
  }
  /** What cannot be read is replaced by what comes: it would be lost either way. */
  const readable = (): Promise<Pairs> => read().catch(() => ({}))
  const write = async (pairs: Pairs): Promise<void> => {
    unsaved = new Secret(pairs)
    try {
      await within(() => store.write(seal(FORMAT, VERSION, JSON.stringify(pairs))))
      unsaved = undefined
    } catch (cause) {
      if (DpsError.is(cause) && cause.phase === 'store') throw cause
      throw new DpsError('STORE_FAILED', 'store', 'the store failed', { cause })
    }
  }
  const confirm = async ({ candidate, request }: Pairs): Promise<void> => {
    if (candidate !== undefined) await write({ current: candidate, request })
  }
  const reject = async ({ candidate, ...pairs }: Pairs): Promise<void> => {
    if (candidate !== undefined) await write(pairs)
  }

  return Object.freeze({
    load: () =>
      inTurn(async () => {
        const { current, candidate } = await read()
        // One that is not valid yet is no use while there is one before it.
        const isDue =
          current === undefined || (candidate && factsOf(candidate).validFrom.getTime() <= clock.now())
        const pair = (isDue ? candidate : undefined) ?? current
        if (pair === undefined) {
          throw new DpsError(
            'CREDENTIAL_NOT_ISSUED',
            'config',
            'No certificate has been issued for this device yet.',
          )
        }
        given = new Secret(pair)
        const identity = await pairOf.load()
        if (loaded?.fingerprint !== identity.fingerprint) loaded = constant({ ...identity, lineage: FORMAT })
        return loaded
      }),
    settled: (identity: Identity, error: DpsError | undefined) =>
      inTurn(async () => {
        const pairs = await readable()
        const { current, candidate } = pairs
        const isCandidate = given?.reveal() === candidate || sameLeaf(given?.reveal(), candidate)
        if (candidate === undefined || identity !== loaded || !isCandidate) return false
        if (error === undefined) {
          await confirm(pairs)
          return false
        }
        // Where there is nothing to go back to, the hub may yet think better of it.
        const isOver = current === undefined || factsOf(current).validUntil.getTime() <= clock.now()
        if (isOver || !(isCredentialFailure(error) || error.phase === 'config')) return false
        await reject(pairs).catch(() => undefined)
        return true
      }),
    status: () =>
      inTurn(async () => {
        if (unsaved !== undefined) await write(unsaved.reveal()).catch(() => undefined)
        const { current, candidate, request } = await read()
        return Object.freeze({
          current: current && factsOf(current),
          candidate: candidate && factsOf(candidate),
          requested: request !== undefined,
        })
      }),
    createRequest: (wanted: CertificateRequestOptions) => {
      checkOptionNames(wanted, 'createRequest', ['registrationId', 'curve'])
      const registrationId = checkRegistrationId(wanted.registrationId)
      return inTurn(async () => {
        const pairs = await readable()
        const { makeCsr } = await import('./issuance.ts')
        const { request } = pairs
        if (request?.registrationId === registrationId) {
          const { csr } = await makeCsr({ registrationId, key: request.key })
          return Object.freeze({ csr, requestId: request.requestId, resume: true })
        }
        const { curve = 'P-384' } = wanted
        const { csr, key, publicKey } = await makeCsr({ registrationId, curve })
        // Of the key, so that the two cannot part.
        const requestId = digestOf([publicKey]).slice(0, 32)
        await write({ ...pairs, request: { key: key!, registrationId, requestId } })
        return Object.freeze({ csr, requestId, resume: false })
      })
    },
    install: (chain: readonly string[] | undefined) =>
      inTurn(async () => {
        const { request, current, candidate } = await readable()
        if (request === undefined) throw invalid('`install` comes after `createRequest`.')
        const { checkIssuedChain } = await import('./issuance.ts')
        const checked = checkIssuedChain({
          elements: chain,
          publicKey: createPublicKey(request.key),
          names: [request.registrationId],
          nowMs: clock.now(),
        })
        const pair: Pair = { key: request.key, chain: checked.chain }
        // A candidate that nobody has tried is better than none.
        await write({ current: current ?? candidate, candidate: pair })
        return factsOf(pair)
      }),
    confirm: () => inTurn(async () => confirm(await readable())),
    reject: () => inTurn(async () => reject(await readable())),
    abandon: () =>
      inTurn(async () => {
        const { request, ...pairs } = await readable()
        if (request !== undefined) await write(pairs)
      }),
  })
}

function decodePairs(bytes: Uint8Array): Pairs {
  const unsealed = unseal(FORMAT, VERSION, bytes)
  if (!unsealed.ok) throw new DpsError('REPLY_MALFORMED', 'parse', `the stored record ${unsealed.why}`)
  const { current, candidate, request } = jsonObject(unsealed.body) as Pairs
  const isPair = (pair: Pair | undefined): boolean =>
    pair === undefined ||
    (isText(pair?.key) && Array.isArray(pair.chain) && pair.chain.every(isText) && pair.chain.length > 0)
  const isRequest =
    request === undefined || [request?.key, request?.registrationId, request?.requestId].every(isText)
  if (isPair(current) && isPair(candidate) && isRequest) {
    for (const pair of [current, candidate]) if (pair !== undefined) factsOf(pair)
    return { current, candidate, request }
  }
  throw new DpsError('REPLY_MALFORMED', 'parse', 'the stored record does not hold what it should')
}

const isText = (value: unknown): boolean => typeof value === 'string' && value !== ''

const sameLeaf = (a: Pair | undefined, b: Pair | undefined): boolean => a?.chain[0] === b?.chain[0]

function factsOf({ chain }: Pair): CertificateFacts {
  const leaf = new X509Certificate(chain[0]!)
  return Object.freeze({
    commonName: ([] as string[]).concat(leaf.toLegacyObject().subject?.CN ?? [])[0] ?? '',
    serialNumber: leaf.serialNumber,
    fingerprint256: leaf.fingerprint256,
    validFrom: new Date(leaf.validFrom),
    validUntil: new Date(leaf.validTo),
  })
}

function invalid(message: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message)
}
