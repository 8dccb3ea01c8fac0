import { kit } from '../kit.ts'
import { type Check, ok, skipped } from './check.ts'

export const credentialChecks: readonly Check[] = [
  {
    id: 'credential.read',
    needs: ['config.registration-id'],
    run: async (on) => {
      const { options, library, secrets, factory } = on
      const named = ['cert', 'key', 'symmetric-key', 'symmetric-key-file'].some((name) => options.has(name))
      // In a factory it is what the check is there for.
      if (!named && !factory)
        return skipped('no credential: give --cert and --key, or --symmetric-key-file', true)
      on.credential = kit.credentialOf(options, library, (secret) => secrets.push(secret))
      const identity = await on.credential.load()
      on.identity = identity
      const { registrationId, tls, keyCurve } = identity
      if (tls === undefined) on.sasKey = kit.lineOf(Buffer.from(secrets.at(-1) ?? ''))
      const kind = tls === undefined ? 'a symmetric key' : `a certificate, key ${keyCurve ?? 'RSA'}`
      return ok(`${registrationId}, with ${kind}`, { registrationId })
    },
  },
  {
    id: 'credential.dates',
    needs: ['credential.read', 'clock.build'],
    run: (on) => {
      const { identity } = on
      on.identity = undefined
      identity!.checkDates(kit.systemClock.now())
      on.identity = identity
      return identity!.tls === undefined
        ? skipped('a symmetric key has none')
        : ok('the certificate is valid now')
    },
  },
]
