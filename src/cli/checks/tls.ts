import type { Case, Way } from '../case.ts'
import { kit } from '../kit.ts'
import { describeChain, yearsLeft } from '../roots.ts'
import { asWarning, type Check, type Finding, found, ok, plural, REACHES, skipped, warning } from './check.ts'

const DAY_MS = 86_400_000
/** The service renews its own long before. */
const SOON_DAYS = 3

const NONE = skipped('no handshake was completed')

export const tlsChecks: readonly Check[] = [
  handshake('mqtt'),
  handshake('web'),
  {
    id: 'tls.chain',
    needs: REACHES,
    run: async (on) => {
      const [, reached] = (await on.verified()) ?? []
      if (reached === undefined) return NONE
      const chain = describeChain(reached)
      const [leaf] = chain
      return ok([leaf?.subject, ...chain.map(({ issuer }) => issuer)].join(' < '), { chain })
    },
  },
  {
    id: 'tls.root',
    needs: REACHES,
    run: async (on) => {
      const [, reached] = (await on.verified()) ?? []
      if (reached === undefined) return NONE
      const { root } = reached.tls
      const known = kit.BUNDLED_ROOTS.find(({ name }) => name === root)
      return known === undefined
        ? ok(root, { root })
        : ok(`${root}, ${yearsLeft(known.validTo)} years left`, { root, sha256: known.sha256 })
    },
  },
  {
    id: 'tls.host-name',
    needs: REACHES,
    run: async (on) => {
      const [, reached] = (await on.verified()) ?? []
      if (reached === undefined) return NONE
      const names = kit.printable(reached.certificates[0]?.subjectAltName ?? '')
      return ok(`${on.host} is in the certificate`, { host: on.host, names })
    },
  },
  {
    id: 'tls.leaf',
    needs: REACHES,
    run: async (on) => {
      const leaf = (await on.verified())?.[1].certificates[0]
      if (leaf === undefined) return NONE
      const until = new Date(leaf.validTo).toISOString()
      const days = Math.floor((Date.parse(until) - kit.systemClock.now()) / DAY_MS)
      const message = `the certificate of the server ends in ${plural(days, 'day')} (${until.slice(0, 10)})`
      return days >= SOON_DAYS
        ? ok(message, { until, days })
        : warning(message, 'Compare the clock; if it is right, whoever runs the server has to renew it.', {
            until,
            days,
          })
    },
  },
  { id: 'tls.inspection', needs: REACHES, run: inspection },
]

function handshake(way: Way): Check {
  return {
    id: `tls.${way}`,
    needs: [`tcp.${way}`],
    run: async (on) => {
      const { error, tls, phases } = await on.reach(way)
      const where = `port ${on.ports[way]}`
      if (error !== undefined) {
        const finding = found(error)
        return asWarning({ ...finding, message: `${where}: ${finding.message}` }, await on.spare(way))
      }
      const { protocol, cipher, curve } = tls!
      return { ...ok(`${where}: ${protocol}, ${cipher}, ${curve}`, { ...tls }), durationMs: phases.tls ?? 0 }
    },
  }
}

/** Whether somebody between answers in the name of the service: by whom the chain was issued. */
async function inspection(on: Case): Promise<Finding> {
  for (const way of ['mqtt', 'web'] as const) {
    const { error } = await on.reach(way)
    if (error?.code !== 'SERVER_UNTRUSTED') continue
    const { message, ...finding } = found(error)
    return asWarning(
      {
        ...finding,
        message: `port ${on.ports[way]} is answered by another than the service, or on its way inspected: ${message}`,
        next: `Find out who runs the authority that is named here, and have ${on.host} exempted from inspection.`,
      },
      await on.spare(way),
    )
  }
  const verified = await on.verified()
  if (verified === undefined) return NONE
  const { root } = verified[1].tls
  return kit.BUNDLED_ROOTS.some(({ name }) => name === root)
    ? ok('none: the chain ends in a root of the service')
    : warning(
        `the chain ends in "${root}", which is none of the two roots of the service`,
        'Right with an emulator or a cloud with roots of its own. Else the traffic is decrypted on its way: leave --roots and --extra-root out.',
      )
}
