import { X509Certificate } from 'node:crypto'
import type { Case } from '../case.ts'
import { kit } from '../kit.ts'
import { certificatesIn, describeChain } from '../roots.ts'
import { type Check, endOf, ok, plural, skipped, warning } from './check.ts'

/** Long enough to renew by hand. */
const SOON_DAYS = 30

/** What is presented, leaf first; none of a symmetric key. */
function certificatesOf({ identity }: Case): readonly X509Certificate[] {
  return certificatesIn(`${identity?.tls?.cert ?? ''}`).map((pem) => new X509Certificate(pem))
}

const NO_CERTIFICATE = skipped('a symmetric key has none')

export const credentialChecks: readonly Check[] = [
  {
    id: 'credential.read',
    needs: ['config.registration-id'],
    run: async (on) => {
      const { options, library, secrets } = on
      const named = ['cert', 'key', 'symmetric-key', 'symmetric-key-file'].some((name) => options.has(name))
      if (!named && !on.needsCredential) {
        return skipped('no credential: give --cert and --key, or --symmetric-key-file', true)
      }
      on.credential = kit.credentialOf(options, library, (secret) => secrets.push(secret))
      const identity = await on.credential.load()
      on.identity = identity
      const { registrationId, tls, keyCurve } = identity
      if (tls === undefined) on.sasKey = kit.lineOf(Buffer.from(secrets.at(-1) ?? ''))
      const kind = tls === undefined ? 'a symmetric key' : `a certificate and its key (${keyCurve ?? 'RSA'})`
      return ok(`${registrationId}, with ${kind}`, { registrationId })
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
      if (leaf.ca) {
        return warning(
          `${message}: the first is a CA certificate`,
          'Issue a certificate for the device, and present that: whoever holds the key of a CA can be every device of the group.',
          { chain },
        )
      }
      if (leaf.issuer !== leaf.subject) return ok(message, { chain })
      return warning(
        `${leaf.subject.replaceAll('\n', ', ')} signed itself`,
        'It is accepted by an individual enrollment of this very certificate only.',
        { chain },
      )
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
