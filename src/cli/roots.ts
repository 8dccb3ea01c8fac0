import { X509Certificate } from 'node:crypto'
import { kit } from './kit.ts'
import type { OptionSpec, Options } from './options.ts'
import type { Output } from './output.ts'
import { type Reach, reach } from './reach.ts'
import { NETWORK, optionsOf, timeoutOf, type Verb } from './verb.ts'

/** A root by the names that it may be called. */
export interface KnownRoot {
  readonly names: readonly string[]
  readonly name: string
  readonly sha256: string
  readonly validTo: string
  readonly pem: string
}

const YEAR_MS = 365.25 * 86_400_000

export const yearsLeft = (validTo: string): number =>
  Math.round(((Date.parse(validTo) - kit.systemClock.now()) / YEAR_MS) * 10) / 10

/** For `--only`; in the order of the bundled roots. */
const SHORT_NAMES = ['g2', 'ms2017']

export const bundled = (): readonly KnownRoot[] =>
  kit.BUNDLED_ROOTS.map((root, i) => ({ ...root, names: [SHORT_NAMES[i] ?? root.file] }))

export function rootOf(certificate: X509Certificate): KnownRoot {
  const name = kit.commonName(certificate.subject)
  return {
    names: [],
    name,
    sha256: certificate.fingerprint256.replaceAll(':', ''),
    validTo: new Date(certificate.validTo).toISOString(),
    pem: certificate.toString(),
  }
}

export const rootsList = (): Verb => ({
  about: 'lists the roots that are trusted; with check and rehearse, which of them a host needs',
  help: `Lists the two roots of the service that are trusted by default, with fingerprint and expiry.

  dps-device roots
  dps-device roots check global.azure-devices-provisioning.net
  dps-device roots rehearse --only g2`,
  options: optionsOf([]),
  operands: ['list', 'check', 'rehearse'],
  run: async (options, output) => {
    const roots = kit.BUNDLED_ROOTS.map((root, i) => ({
      only: SHORT_NAMES[i],
      ...root,
      subject: new X509Certificate(root.pem).subject.replaceAll('\n', ', '),
      yearsLeft: yearsLeft(root.validTo),
    }))
    if (kit.flag(options, 'json')) output.result(JSON.stringify(roots))
    else if (!kit.flag(options, 'quiet')) {
      output.result(
        roots
          .map(({ only, subject, sha256, validTo, yearsLeft, name, file }) =>
            kit.describeRows([
              ['root', output.strong(name)],
              ['subject', subject],
              ['sha256', sha256],
              ['until', `${validTo.slice(0, 10)}, ${yearsLeft} years`],
              ['file', `roots/${file}, --only ${only}`],
            ]),
          )
          .join('\n\n'),
      )
    }
    return kit.EXIT.ok
  },
})

const DEFAULT_TIMEOUT_S = 30

const HOST: OptionSpec = {
  name: 'host',
  kind: 'text',
  value: 'NAME',
  help: 'the server: the service, or a hub; default the service',
}
const WHERE = NETWORK.filter((name) => name !== 'host')

export const rootsCheck = (): Verb => ({
  about: 'tells in which root the chain of a host ends',
  help: `Connects to a host and tells which of the trusted roots its chain ends in. Verified as ever: a chain that ends in none is
refused, with the name of who issued it.

  dps-device roots check global.azure-devices-provisioning.net
  dps-device roots check my-hub.azure-devices.net --port 443`,
  options: optionsOf(WHERE, [HOST, timeoutOf(DEFAULT_TIMEOUT_S)]),
  operand: 'host',
  run: (options, output) =>
    kit.perform(options, output, async (listen) => {
      const settings = kit.settingsOf(options)
      return report(options, output, settings, listen())
    }),
})

export const rootsRehearse = (): Verb => ({
  about: 'connects with a single root trusted, to rehearse a migration',
  help: `Connects to the service, or to a hub, with one root trusted and no other: what happens to this device on the day on which
the other one is retired. Nothing is registered.

  dps-device roots rehearse --only g2
  dps-device roots rehearse --only ms2017 --host my-hub.azure-devices.net
  dps-device roots rehearse --extra-root new-root.pem --only "New Root"

Exit code ${kit.EXIT.ok} where the chain ends in that root, ${kit.EXIT.tls} where it does not.`,
  options: optionsOf(WHERE, [
    {
      name: 'only',
      kind: 'text',
      value: 'ROOT',
      help: 'g2 or ms2017; of any root also its name, or the beginning of its SHA-256',
    },
    HOST,
    timeoutOf(DEFAULT_TIMEOUT_S),
  ]),
  operand: 'only',
  run: (options, output) =>
    kit.perform(options, output, async (listen) => {
      const settings = kit.settingsOf(options)
      const root = chosen(options, [...bundled(), ...extraRoots(settings.trust?.extraRoots)])
      const trust = { roots: 'none', extraRoots: root.pem } as const
      return report(options, output, { ...settings, trust }, listen(), root)
    }),
})

const MIN_FINGERPRINT = 8

function chosen(options: Options, known: readonly KnownRoot[]): KnownRoot {
  const only = kit.text(options, 'only')
  if (only === undefined) throw kit.usage('--only is missing: the root to trust, such as g2 or ms2017')
  const wanted = only.toLowerCase()
  const print = wanted.replaceAll(':', '').toUpperCase()
  const found = known.filter(
    ({ names, name, sha256 }) =>
      names.includes(wanted) ||
      name.toLowerCase() === wanted ||
      (print.length >= MIN_FINGERPRINT && sha256.startsWith(print)),
  )
  if (found[0] !== undefined && new Set(found.map(({ sha256 }) => sha256)).size === 1) return found[0]
  throw kit.usage(
    found.length > 1 ? '--only is the name of several roots' : '--only is no root that is known here',
    `Give one of ${[...SHORT_NAMES, ...known.slice(SHORT_NAMES.length).map(({ name }) => `"${name}"`)].join(', ')}, or a SHA-256; roots of your own come by --extra-root.`,
  )
}

/** The PEM of each certificate in a text. */
export const certificatesIn = (text: string): readonly string[] =>
  text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []

/** Those that can be read; the policy says what is wrong with the others. */
function extraRoots(files: unknown): readonly KnownRoot[] {
  const text = Buffer.concat((files as readonly Buffer[] | undefined) ?? []).toString('latin1')
  return certificatesIn(text).flatMap((pem) => {
    try {
      return [rootOf(new X509Certificate(pem))]
    } catch {
      return []
    }
  })
}

const DEFAULT_PORT = 8883

async function report(
  options: Options,
  output: Output,
  settings: Parameters<typeof reach>[0]['settings'],
  signal: AbortSignal,
  only?: KnownRoot,
) {
  const host = settings.host ?? kit.DEFAULT_HOST
  const quiet = kit.flag(options, 'quiet')
  const found = await reach({
    library: await import('../index.ts'),
    settings,
    port: kit.number(options, 'port') ?? DEFAULT_PORT,
    signal,
    timeoutMs: kit.timeoutOf(options) ?? DEFAULT_TIMEOUT_S * 1000,
    onPhase: (phase) => quiet || output.progress(`${phase} …`),
  })
  output.clear()
  if (found.error !== undefined) throw found.error
  const tls = found.tls!
  const named = () =>
    [...bundled(), ...extraRoots(settings.trust?.extraRoots)].find(({ name }) => name === tls.root)
  const root = only ?? named()
  const chain = describeChain(found)
  if (kit.flag(options, 'json')) {
    output.result(
      JSON.stringify({
        host,
        root: tls.root,
        sha256: root?.sha256,
        validTo: root?.validTo,
        yearsLeft: root && yearsLeft(root.validTo),
        bundled: kit.BUNDLED_ROOTS.some(({ sha256 }) => sha256 === root?.sha256),
        ...(only && { only: only.name }),
        chain,
        connection: tls,
      }),
    )
  } else if (!quiet) {
    output.result(
      kit.describeRows([
        ['host', kit.printable(host)],
        ['root', output.strong(kit.printable(tls.root))],
        ['sha256', root?.sha256],
        ['until', root && `${root.validTo.slice(0, 10)}, ${yearsLeft(root.validTo)} years`],
        ['suite', `${tls.cipher}, ${tls.curve}, ${tls.protocol}`],
        ...chain.map(
          ({ subject, until }, i) =>
            [i === 0 ? 'chain' : '', `${subject}, until ${until.slice(0, 10)}`] as const,
        ),
      ]),
    )
  }
  return kit.EXIT.ok
}

/** As it was presented, leaf first. */
export const describeChain = ({ certificates }: Pick<Reach, 'certificates'>) =>
  certificates.map((certificate) => ({
    subject: kit.commonName(certificate.subject),
    issuer: kit.commonName(certificate.issuer),
    sha256: certificate.fingerprint256.replaceAll(':', ''),
    from: new Date(certificate.validFrom).toISOString(),
    until: new Date(certificate.validTo).toISOString(),
  }))
