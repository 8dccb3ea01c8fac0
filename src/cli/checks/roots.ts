import { X509Certificate } from 'node:crypto'
import { kit } from '../kit.ts'
import { clientOf } from '../reach.ts'
import { bundled, yearsLeft } from '../roots.ts'
import { type Check, failure, ok, warning } from './check.ts'

const REINSTALL = 'The package is damaged: install it again.'
const SOON_YEARS = 2

export const rootsChecks = (): readonly Check[] => [
  ...bundled().map(
    ({ names: [id], name, sha256, pem }): Check => ({
      id: `roots.${id}`,
      run: () => {
        const { EXIT } = kit
        const { fingerprint256, validTo } = new X509Certificate(pem)
        if (fingerprint256.replaceAll(':', '') !== sha256) {
          return failure(`${name} has another fingerprint than ${sha256}`, REINSTALL, EXIT.config)
        }
        const years = yearsLeft(validTo)
        const message = `${name}, SHA-256 ${sha256.slice(0, 16)}…, ${years} years left`
        const details = { name, sha256, validTo: new Date(validTo).toISOString(), yearsLeft: years }
        if (years > SOON_YEARS) return ok(message, details)
        const next = 'Install a newer version of this package, after a look at the clock.'
        return years > 0 ? warning(message, next, details) : failure(message, next, EXIT.clock, details)
      },
    }),
  ),
  {
    id: 'roots.trust',
    run: (on) => {
      const { library, options, settings } = on
      const trust = kit.trustOf(options)
      kit.withOwnCertFile(trust, () => clientOf(library, { ...settings, trust }))
      on.trust = trust
      const { roots = 'bundled', extraRoots } = trust
      const extra = Array.isArray(extraRoots) ? ` and ${extraRoots.length} of --extra-root` : ''
      return ok(
        roots === 'none'
          ? `none${extra}`
          : `${roots === 'bundled' ? 'these two' : 'those of the system'}${extra}`,
      )
    },
  },
]
