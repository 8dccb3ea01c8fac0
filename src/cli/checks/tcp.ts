import type { Way } from '../case.ts'
import { asWarning, type Check, found, ok, REACHES } from './check.ts'

export const tcpChecks: readonly Check[] = [port('mqtt'), port('web')]

const ALTERNATIVE: Readonly<Record<Way, string>> = {
  mqtt: 'Port 443 gets through: register with --transport mqtt-ws or https, or have 8883 opened on the way.',
  web: 'Only --transport mqtt-ws and https need it.',
}

function port(way: Way): Check {
  return {
    id: `tcp.${way}`,
    needs: REACHES,
    run: async (on) => {
      const [reached, other] = await Promise.all([on.reach(way), on.reach(way === 'mqtt' ? 'web' : 'mqtt')])
      const { error } = reached
      const where = `port ${on.ports[way]}`
      const { phases } = reached
      if (error === undefined || error.phase === 'tls') {
        return {
          ...ok(`${where} is open${on.proxyFor(way) === undefined ? '' : ', through the proxy'}`),
          durationMs: (phases.tcp ?? 0) + (phases.proxy ?? 0),
        }
      }
      const finding = found(error)
      const next = error.phase !== 'proxy' && other.tls !== undefined ? { next: ALTERNATIVE[way] } : {}
      return asWarning({ ...finding, message: `${where}: ${finding.message}`, ...next }, await on.spare(way))
    },
  }
}
