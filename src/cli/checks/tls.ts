import type { TlsFacts } from '../../transport/transport.ts'
import type { Case, Way } from '../case.ts'
import { kit } from '../kit.ts'
import type { Reach } from '../reach.ts'
import { describeChain, yearsLeft } from '../roots.ts'
import {
  asWarning,
  type Check,
  endOf,
  type Finding,
  found,
  ok,
  plural,
  REACHES,
  skipped,
  warning,
} from './check.ts'

/** The service renews its own long before. */
const SOON_DAYS = 3

const NONE = skipped('no handshake was completed')

export const tlsChecks: readonly Check[] = [
  handshake('mqtt'),
  handshake('web'),
  told('tls.chain', (reached) => {
    const chain = describeChain(reached)
    return ok([chain[0]?.subject, ...chain.map(({ issuer }) => issuer)].join(' < '), { chain })
  }),
  told('tls.root', ({ tls: { root } }) => {
    const known = kit.BUNDLED_ROOTS.find(({ name }) => name === root)
    return known === undefined
      ? ok(root, { root })
      : ok(`${root}, ${yearsLeft(known.validTo)} years left`, { root, sha256: known.sha256 })
  }),
  told('tls.host-name', ({ certificates }, { host }) => {
    const names = kit.printable(certificates[0]?.subjectAltName ?? '')
    return ok(`${host} is in the certificate`, { host, names })
  }),
  told('tls.leaf', ({ certificates: [leaf] }) => {
    if (leaf === undefined) return NONE
    const end = endOf(Date.parse(leaf.validTo))
    const message = `the certificate of the server ends in ${plural(end.days, 'day')} (${end.until.slice(0, 10)})`
    return end.days >= SOON_DAYS
      ? ok(message, end)
      : warning(message, 'Compare the clock; if it is right, whoever runs the server has to renew it.', end)
  }),
  { id: 'tls.inspection', needs: REACHES, run: inspection },
]

/** What a connection that was verified tells. */
function told(id: string, look: (reached: Reach & { tls: TlsFacts }, on: Case) => Finding): Check {
  return {
    id,
    needs: REACHES,
    run: async (on) => {
      const [, reached] = (await on.verified()) ?? []
      return reached === undefined ? NONE : look(reached, on)
    },
  }
}

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
