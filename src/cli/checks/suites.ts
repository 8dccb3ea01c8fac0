import { kit } from '../kit.ts'
import { type Check, found, ok, REACHES, skipped, warning } from './check.ts'

/** One handshake for each suite that the service recommends. */
export const suiteChecks = (): readonly Check[] =>
  kit.RECOMMENDED_SUITES.security.map((suite) => ({
    id: `suite.${suite}`,
    needs: REACHES,
    run: async (on) => {
      const [way] = (await on.verified()) ?? []
      if (way === undefined) return skipped('no handshake was completed')
      const { error, phases } = await on.handshake(way, { ciphers: [suite] })
      if (error === undefined) return { ...ok('accepted'), durationMs: phases.tls ?? 0 }
      if (error.code !== 'TLS_NO_COMMON_SUITE') return found(error)
      return warning(
        `port ${on.ports[way]} does not accept it`,
        'Nothing need be done while it accepts another one; the service itself is documented to accept all four.',
      )
    },
  }))
