import { lookup } from 'node:dns'
import type { Case } from '../case.ts'
import { kit } from '../kit.ts'
import { type Check, found, ok, skipped } from './check.ts'

const isAddress = (host: string): boolean => /^[\d.]+$|:/.test(host)

/** Names: both families, since a device may be on a network of one. */
export const dnsChecks: readonly Check[] = [family(4), family(6)]

function family(version: 4 | 6): Check {
  return {
    id: `dns.ipv${version}`,
    needs: ['config.endpoint'],
    run: async (on) => {
      const { address } = on
      if (on.proxyFor('mqtt') !== undefined) return skipped(`the proxy resolves ${address}`)
      if (isAddress(address)) return skipped(`${address} is an address`)
      const [own, other] = await Promise.all([resolve(on, version), resolve(on, version === 4 ? 6 : 4)])
      if (typeof own !== 'string') return ok(own.join(', '), { addresses: own })
      if (typeof other !== 'string') return ok(`none, and none is needed (${own})`)
      const { DpsError } = kit
      return found(new DpsError('DNS_FAILED', 'dns', `the name ${address} could not be resolved (${own})`))
    },
  }
}

const DNS_LIMIT_MS = 10_000
const lookups = new WeakMap<Case, Map<number, Promise<readonly string[] | string>>>()

/** Addresses, or why there are none. */
function resolve(on: Case, version: 4 | 6): Promise<readonly string[] | string> {
  const made = lookups.get(on) ?? new Map<number, Promise<readonly string[] | string>>()
  lookups.set(on, made)
  const known = made.get(version)
  if (known !== undefined) return known
  const { address, signal } = on
  const answer = new Promise<readonly string[] | string>((done) => {
    const end = (found: readonly string[] | string) => {
      disarm()
      signal.removeEventListener('abort', onAbort)
      done(found)
    }
    const onAbort = () => end('cancelled')
    const disarm = kit.systemClock.after(DNS_LIMIT_MS, () => end('no answer'))
    signal.addEventListener('abort', onAbort)
    lookup(address, { all: true, family: version }, (error, found) =>
      end(error === null ? found.map((one) => one.address) : (error.code ?? 'unknown error')),
    )
  })
  made.set(version, answer)
  return answer
}
