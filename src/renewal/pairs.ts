import { createPublicKey, X509Certificate } from 'node:crypto'
import type { AssignmentStore } from '../assignment/store.ts'
import type { Clock } from '../clock.ts'
import { commonNamesOf } from '../credential/certificate.ts'
import type { Identity } from '../credential/credential.ts'
import { checkIssuedChain } from '../credential/issued-chain.ts'
import { Secret } from '../credential/secret.ts'
import { checkOptionNames, digestOf } from '../credential/source.ts'
import { DpsError, type DpsPhase } from '../errors.ts'
import { makeCsr } from '../factory/make-csr.ts'
import type {
  CertificateRequestOptions,
  IssuedCertificate,
  IssuedCertificateFacts,
  PairKit,
} from '../issued-certificate.ts'
import { checkRegistrationId } from '../protocol/registration-id.ts'

const FORMAT = 'dps-device-client/certificate'
const VERSION = 1
const STORE_LIMIT_MS = 30_000
/** One that has not answered in time is left alone for so long: each step of a renewal would wait for it anew. */
const STORE_REST_MS = 600_000
/** Failures in a row, none of which says anything of the candidate, before the pair that has worked is tried beside it. */
const DOUBT_AFTER = 3
const ON_THE_WAY: ReadonlySet<DpsPhase> = new Set<DpsPhase>(['dns', 'proxy', 'tcp'])

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

/** @see issuedCertificate */
export function keepPairs(
  store: AssignmentStore,
  clock: Clock,
  { x509, ofLineage, jsonObject, isCredentialFailure, seal, unseal, within, storeFailed }: PairKit,
): IssuedCertificate {
  /** What the store did not take. */
  let unsaved: Secret<Pairs> | undefined
  /** What was there last, for a store that fails: the device has a certificate all the same. */
  let known: Secret<Pairs> | undefined
  /** Of the candidate, in a row; and whether the pair before has its turn. */
  let failures = 0
  let stepsAside = false
  let given: Secret<Pair> | undefined
  let loaded: Identity | undefined
  let turn: Promise<unknown> = Promise.resolve()
  /** Until when a store that did not answer is not asked, on the monotonic clock. */
  let restsUntil = Number.NEGATIVE_INFINITY
  const pairOf = x509({ cert: () => given!.reveal().chain, key: () => given!.reveal().key })

  /** One after the other: each begins with what the one before has left. */
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const result = turn.then(work)
    turn = result.catch(() => undefined)
    return result
  }
  const inTime = async <T>(work: () => Promise<T>, onLate: () => void = () => undefined): Promise<T> => {
    const failed = (what: string): DpsError => new DpsError('STORE_FAILED', 'store', `the store ${what}`)
    const restMs = restsUntil - clock.monotonic()
    if (restMs > 0) throw failed(`did not answer before, and is asked again in ${Math.ceil(restMs / 1000)} s`)
    let hasAnswered = false
    let isLate = false
    // One in JavaScript may give what it has, and no promise of it.
    const working = Promise.resolve(work())
    const answered = (): void => {
      hasAnswered = true
      if (!isLate) return
      restsUntil = Number.NEGATIVE_INFINITY
      onLate()
    }
    working.then(answered, answered)
    try {
      return await within(STORE_LIMIT_MS, clock, undefined, () => working, 'the store')
    } catch (cause) {
      if (hasAnswered) throw cause
      isLate = true
      restsUntil = clock.monotonic() + STORE_REST_MS
      const seconds = STORE_REST_MS / 1000
      throw failed(`did not answer within ${STORE_LIMIT_MS} ms, and is asked again in ${seconds} s`)
    }
  }
  const decoded = (bytes: Uint8Array): Pairs => {
    const unsealed = unseal(FORMAT, VERSION, bytes)
    if (unsealed.ok) return checkPairs(jsonObject(unsealed.body))
    throw new DpsError('REPLY_MALFORMED', 'parse', `the stored record ${unsealed.why}`)
  }
  const read = async (): Promise<Pairs> => {
    if (unsaved !== undefined) return unsaved.reveal()
    let bytes: Uint8Array | undefined
    try {
      bytes = await inTime(() => store.read())
      const pairs = bytes === undefined ? {} : decoded(bytes)
      known = new Secret(pairs)
      return pairs
    } catch (cause) {
      if (known !== undefined) {
        // Written again by the next change, or look.
        unsaved = known
        return known.reveal()
      }
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
    known = unsaved = new Secret(pairs)
    try {
      await inTime(
        () => store.write(seal(FORMAT, VERSION, JSON.stringify(pairs))),
        // It may have come after, and in place of, what was written since.
        () => {
          unsaved = known
        },
      )
      unsaved = undefined
    } catch (cause) {
      throw storeFailed(cause)
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
        const pair = (isDue && !stepsAside ? candidate : undefined) ?? current
        if (pair === undefined) {
          throw new DpsError(
            'CREDENTIAL_NOT_ISSUED',
            'config',
            'No certificate has been issued for this device yet.',
          )
        }
        given = new Secret(pair)
        const identity = await pairOf.load()
        if (loaded?.fingerprint !== identity.fingerprint) loaded = ofLineage(identity, FORMAT)
        return loaded
      }),
    settled: (identity: Identity, error: DpsError | undefined) =>
      inTurn(async () => {
        const pairs = await readable()
        const { current, candidate } = pairs
        if (candidate === undefined || identity !== loaded) return false
        if (!sameLeaf(given?.reveal(), candidate)) {
          // The way is free, and the candidate was turned away on it time and again.
          if (stepsAside && error === undefined) await reject(pairs).catch(() => undefined)
          stepsAside = false
          return false
        }
        if (error === undefined) {
          await confirm(pairs)
          return false
        }
        // Where there is nothing to go back to, the hub may yet think better of it.
        if (current === undefined || factsOf(current).validUntil.getTime() <= clock.now()) return false
        if (isCredentialFailure(error) || error.phase === 'config') {
          await reject(pairs).catch(() => undefined)
          return true
        }
        if (!ON_THE_WAY.has(error.phase)) failures += 1
        stepsAside = failures >= DOUBT_AFTER
        return stepsAside
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
    createRequest: async (wanted: CertificateRequestOptions) => {
      checkOptionNames(wanted, 'createRequest', ['registrationId', 'curve'])
      const registrationId = checkRegistrationId(wanted.registrationId)
      return inTurn(async () => {
        const pairs = await readable()
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
        const checked = checkIssuedChain({
          elements: chain,
          publicKey: createPublicKey(request.key),
          names: [request.registrationId],
          nowMs: clock.now(),
        })
        const pair: Pair = { key: request.key, chain: checked.chain }
        // A candidate that nobody has tried is better than none.
        failures = 0
        stepsAside = false
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

function checkPairs({ current, candidate, request }: Pairs): Pairs {
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

function factsOf({ chain }: Pair): IssuedCertificateFacts {
  const leaf = new X509Certificate(chain[0]!)
  return Object.freeze({
    commonName: commonNamesOf(leaf)[0] ?? '',
    serialNumber: leaf.serialNumber,
    fingerprint256: leaf.fingerprint256,
    validFrom: new Date(leaf.validFrom),
    validUntil: new Date(leaf.validTo),
  })
}

function invalid(message: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message)
}
