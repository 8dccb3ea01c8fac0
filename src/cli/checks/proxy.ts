import { PROXY_VARIABLES } from '../case.ts'
import type { Reach } from '../reach.ts'
import { type Check, type Finding, found, ok, REACHES } from './check.ts'

export const proxyChecks: readonly Check[] = [
  {
    id: 'proxy',
    needs: REACHES,
    run: async (on): Promise<Finding> => {
      if (on.proxy === undefined) {
        const named = on.settings.proxy === undefined && PROXY_VARIABLES.find((name) => process.env[name])
        return ok(named ? `none; ${named} is set, and used only with --proxy environment` : 'none')
      }
      const name = on.proxy.name
      if (on.proxyFor('mqtt') === undefined) return ok(`${name}, which is not asked for ${on.address}`)
      const both = await Promise.all([on.reach('mqtt'), on.reach('web')])
      const through = both.some(({ error }) => error?.phase !== 'proxy')
      return through ? ok(`${name} opens the way`) : found((both.find(isTelling) ?? both[0]).error!)
    },
  },
]

/** One that says more than that it may not. */
const isTelling = ({ error }: Reach) => error?.code !== 'PROXY_REFUSED'
