import { X509Certificate } from 'node:crypto'
import type { CredentialFinding } from '../../index.ts'
import type { Case } from '../case.ts'
import { kit } from '../kit.ts'
import type { Given } from '../options.ts'
import { certificatesIn, describeChain } from '../roots.ts'
import { type Check, endOf, failure, ok, plural, skipped, warning } from './check.ts'

/** Long enough to renew by hand. */
const SOON_DAYS = 30

/** What is presented, leaf first; none of a symmetric key. */
function certificatesOf({ identity }: Case): readonly X509Certificate[] {
  return certificatesIn(`${identity?.tls?.cert ?? ''}`).map((pem) => new X509Certificate(pem))
}

/** What a check of its own tells. */
const OF_DATES = ['expired', 'not-yet-valid', 'expires-soon']

const KINDS = ['cert', 'key', 'pkcs12', 'symmetric-key', 'symmetric-key-file']

/** So that a key can be looked at by itself. */
const STAND_IN: readonly [string, Given] = [
  'registration-id',
  { value: 'unnamed', as: '', source: 'argument' },
]

const NO_CERTIFICATE = skipped('a symmetric key has none')

export const credentialChecks: readonly Check[] = [
  {
    id: 'credential.read',
    needs: ['config.registration-id'],
    run: async (on) => {
      const { library, secrets } = on
      const named = KINDS.some((name) => on.options.has(name))
      const isSymmetric = ['symmetric-key', 'symmetric-key-file'].some((name) => on.options.has(name))
      const isNameless = on.offline && isSymmetric && !on.options.has('registration-id')
      const options = isNameless ? new Map([...on.options, STAND_IN]) : on.options
      if (!named && !on.needsCredential) {
        return skipped('no credential: give --cert and --key, --pkcs12, or --symmetric-key-file', true)
      }
      on.credential = kit.credentialOf(options, library, (secret) => secrets.push(secret))
      const identity = await on.credential.load()
      on.identity = identity
      const { registrationId, tls, keyCurve } = identity
      if (tls === undefined) on.sasKey = kit.lineOf(Buffer.from(secrets.at(-1) ?? ''))
      const kind = tls === undefined ? 'a symmetric key' : `a certificate and its key (${keyCurve ?? 'RSA'})`
      return isNameless
        ? ok(`${kind}; --registration-id would say whose`)
        : ok(`${registrationId}, with ${kind}`, { registrationId })
    },
  },
  {
    id: 'credential.inspection',
    run: async ({ credential, library, options }) => {
      if (credential === undefined) return skipped('there is no credential to look at')
      const registrationId = kit.text(options, 'registration-id')
      const { findings, ...facts } = await library.inspectCredential(
        credential,
        registrationId === undefined ? {} : { registrationId },
      )
      const about = findings.filter(({ id }) => !OF_DATES.includes(id))
      const details = { ...facts, findings: about }
      const [first, ...rest] = about
      if (first === undefined) return ok('nothing was found that stands against it', details)
      const told = ({ id, message }: CredentialFinding) => `${id}: ${kit.spoken(message)}`
      const [worst, mend] = [told(first), kit.spoken(first.mend)]
      const more = rest.flatMap((finding) => [told(finding), `-> ${kit.spoken(finding.mend)}`])
      if (first.severity === 'error') return { ...failure(worst, mend, kit.EXIT.config, details), more }
      return {
        ...(first.severity === 'warning'
          ? warning(worst, mend, details)
          : { ...ok(worst, details), next: mend }),
        more,
      }
    },
  },
  {
    id: 'credential.chain',
    needs: ['credential.read'],
    run: (on) => {
      const certificates = certificatesOf(on)
      const [leaf] = certificates
      if (leaf === undefined) return NO_CERTIFICATE
      const chain = describeChain({ certificates })
      const message = [chain[0]?.subject, ...chain.map(({ issuer }) => issuer)].join(' < ')
      return ok(message, { chain })
    },
  },
  {
    id: 'credential.dates',
    needs: ['credential.read', 'clock.build'],
    run: (on) => {
      const { identity } = on
      const certificates = certificatesOf(on)
      if (certificates.length === 0) return NO_CERTIFICATE
      // Not presented to anybody where its dates are wrong.
      on.identity = undefined
      identity!.checkDates(kit.systemClock.now())
      on.identity = identity
      const end = endOf(Math.min(...certificates.map(({ validTo }) => Date.parse(validTo))))
      const message = `valid for ${plural(end.days, 'more day')}, until ${end.until.slice(0, 10)}`
      return end.days >= SOON_DAYS
        ? ok(message, end)
        : warning(message, 'Renew the device certificate, unless something renews it by itself.', end)
    },
  },
]
