import { Case, DEFAULT_TIMEOUT_S } from './case.ts'
import type { Check, Finding, Status } from './checks/check.ts'
import { found, plural } from './checks/check.ts'
import { clockChecks, skewChecks } from './checks/clock.ts'
import { configChecks } from './checks/config.ts'
import { credentialChecks } from './checks/credential.ts'
import { dnsChecks } from './checks/dns.ts'
import { opensslChecks } from './checks/openssl.ts'
import { proxyChecks } from './checks/proxy.ts'
import { rootsChecks } from './checks/roots.ts'
import { registrationChecks, serviceChecks } from './checks/service.ts'
import { suiteChecks } from './checks/suites.ts'
import { tcpChecks } from './checks/tcp.ts'
import { tlsChecks } from './checks/tls.ts'
import type { ExitCode } from './exit-codes.ts'
import { kit } from './kit.ts'
import type { OptionSpec, Options } from './options.ts'
import type { Output } from './output.ts'
import { redactor } from './redact.ts'
import { CREDENTIAL, NETWORK, optionsOf, timeoutOf, type Verb } from './verb.ts'

const MORE: readonly OptionSpec[] = [
  { name: 'register', kind: 'flag', help: 'at the end registers the device, if nothing stands against it' },
  {
    name: 'factory',
    kind: 'flag',
    help: 'for the factory: needs a credential, and ends once the service let it in; nothing is registered',
  },
  { name: 'strict', kind: 'flag', help: 'warnings count too: exit code 9' },
  {
    name: 'web-port',
    kind: 'number',
    value: 'PORT',
    help: 'of mqtt-ws and https, where it is not that of --port',
  },
  timeoutOf(DEFAULT_TIMEOUT_S),
]

const STRICT = MORE.find(({ name }) => name === 'strict')!

export const doctor = (): Verb => ({
  about: 'checks everything between this device and its registration, and says what to do',
  help: `Goes the way of a registration step by step, from the options to the service, and says of each step whether it is well,
how long it took, and what to do next where it is not. What depends on a step that failed is skipped. It registers nothing
unless --register says so, works without a network and without a credential as far as that goes, and what it prints has no
key, passphrase, token or password in it: it may be pasted into a ticket.

  dps-device doctor
  dps-device doctor --id-scope 0ne00000000 --cert device.pem --key device.key
  dps-device doctor --config device.json --factory --json
  dps-device doctor --config device.json --register

--transport names what the device will use: trouble with a port that it does not need is a warning. The exit
code is that of the first step that failed.`,
  options: optionsOf(['id-scope', ...CREDENTIAL, 'transport', ...NETWORK, 'payload', 'api-version'], MORE),
  run: (options, output) => examine(options, output, allChecks()),
})

export const inspect = (): Verb => ({
  about: 'looks at a certificate and its key, or at a symmetric key, and sends nothing',
  help: `Looks at the credential of a device as a registration would, and says what is wrong with it and what to do: whether key and
certificate belong together, the chain, the registration id, the kind of key, the dates. Nothing is sent.

  dps-device inspect --cert device.pem --key device.key
  dps-device inspect --cert device.pem --key device.key --registration-id press-42 --strict --json

Exit code ${kit.EXIT.config} for what cannot be used, ${kit.EXIT.clock} for dates, and with --strict ${kit.EXIT.warnings} for warnings.`,
  options: optionsOf(CREDENTIAL, [STRICT]),
  run: (options, output) => examine(options, output, offlineChecks(), true),
})

interface Report extends Finding {
  readonly id: string
  readonly durationMs: number
}

/** Makes the checks, one after the other, and tells what they found. */
function examine(
  options: Options,
  output: Output,
  checks: readonly Check[],
  offline = false,
): Promise<ExitCode> {
  return kit.perform(options, output, (listen) => examineWith(options, output, listen, checks, offline))
}

async function examineWith(
  options: Options,
  output: Output,
  listen: () => AbortSignal,
  checks: readonly Check[],
  offline: boolean,
): Promise<ExitCode> {
  const { EXIT, flag, systemClock, DpsError } = kit
  const [json, quiet] = [flag(options, 'json'), flag(options, 'quiet')]
  if (flag(options, 'factory') && flag(options, 'register')) {
    throw kit.usage('--factory and --register exclude each other: give one of the two')
  }
  kit.payloadOf(options)
  const library = await import('../index.ts')
  let current = ''
  const on = new Case(
    library,
    options,
    listen(),
    (phase) => quiet || output.progress(`${current}: ${phase} …`),
  )
  const reports: Report[] = []
  on.needsCredential ||= offline
  on.offline = offline
  for (const check of checks) {
    current = check.id
    if (!quiet) output.progress(`${current} …`)
    const startedAt = systemClock.monotonic()
    const finding = await perform(check, reports, on)
    if (on.signal.aborted) throw new DpsError('CANCELLED', 'config', `cancelled during ${check.id}`)
    const { durationMs = systemClock.monotonic() - startedAt } = finding
    const report = { id: check.id, ...finding, durationMs: Math.round(durationMs) }
    reports.push(report)
    // Whoever wants nothing but errors wants those, and what the exit code is for.
    const isFault = report.status === 'error' || (report.status === 'warning' && flag(options, 'strict'))
    if (!json && (!quiet || isFault)) output.result(redactor(on.secrets)(describe(report, output)))
  }
  const count = (status: Status) => reports.filter((report) => report.status === status).length
  const first = reports.find(({ status }) => status === 'error')
  const strict = flag(options, 'strict') && count('warning') > 0
  const exitCode = first?.exit ?? (first !== undefined ? EXIT.unexpected : strict ? EXIT.warnings : EXIT.ok)
  output.clear()
  if (json) {
    const checks = reports.map(({ id, status, durationMs, message, next, code, details }) => ({
      id,
      status,
      durationMs,
      message,
      next,
      code,
      details,
    }))
    const counts = {
      ok: count('ok'),
      warning: count('warning'),
      error: count('error'),
      skipped: count('skipped'),
    }
    const whole = {
      version: kit.version,
      ok: first === undefined,
      exitCode,
      failed: first?.id,
      counts,
      checks,
    }
    output.result(JSON.stringify(redactor(on.secrets)(whole)))
  } else if (!quiet || exitCode !== EXIT.ok) {
    const summary = `${count('ok')} ok, ${plural(count('warning'), 'warning')}, ${plural(count('error'), 'error')}, ${count('skipped')} skipped`
    output.result(
      first === undefined
        ? `\n${summary}`
        : `\n${summary}; the first that failed is ${first.id} (exit code ${exitCode})`,
    )
  }
  return exitCode

  async function perform(check: Check, before: readonly Report[], on: Case): Promise<Finding> {
    const stopped = check.needs?.find((id) => before.find((report) => report.id === id)?.stops)
    const failed = check.needsAll ? before.find(({ status }) => status === 'error')?.id : undefined
    const blocking = stopped ?? failed
    if (blocking !== undefined)
      return { status: 'skipped', message: `not tried, for want of ${blocking}`, stops: true }
    try {
      const finding = await check.run(on)
      return { stops: finding.status === 'error', ...finding }
    } catch (error) {
      if (!DpsError.is(error) || error.code === 'CANCELLED') throw error
      return { ...found(error), stops: true }
    }
  }
}

/** All that can be said of a credential by itself. */
const offlineChecks = (): readonly Check[] => [
  ...configChecks.filter(({ id }) => id === 'config.registration-id'),
  ...clockChecks,
  ...credentialChecks,
]

/** In the order of the flow. */
const allChecks = (): readonly Check[] => [
  ...configChecks,
  ...clockChecks,
  ...opensslChecks,
  ...rootsChecks(),
  ...credentialChecks,
  ...dnsChecks,
  ...tcpChecks,
  ...proxyChecks,
  ...tlsChecks,
  ...suiteChecks(),
  ...serviceChecks,
  ...skewChecks,
  ...registrationChecks,
]

const COLOURS: Readonly<Record<Status, number>> = { ok: 32, warning: 33, error: 31, skipped: 2 }

function describe({ status, id, message, next, more = [], durationMs }: Report, { tint }: Output): string {
  const time = durationMs < 10_000 ? `${durationMs} ms` : `${Math.round(durationMs / 1000)} s`
  const line = `${tint(COLOURS[status], status.padEnd(7))} ${time.padStart(7)}  ${id.padEnd(22)} ${message}`
  const below = next === undefined ? more : [`-> ${next}`, ...more]
  return [line, ...below].join(`\n${' '.repeat(17)}`)
}
