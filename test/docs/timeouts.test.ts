import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { resolveHub } from '../../src/assignment/hub.ts'
import { symmetricKey } from '../../src/credential/sas.ts'
import { resolveOptions } from '../../src/options/resolve.ts'
import { pageOf, ROOT, rowsUnder } from './markdown.ts'

const source = (name: string): string => readFileSync(join(ROOT, 'src', name), 'utf8')

/** What a constant is set to: digits and products of them. */
function constant(file: string, name: string): number {
  const written = new RegExp(`const ${name} = ([\\d_* ]+)$`, 'm').exec(source(file))?.[1]
  if (written === undefined) throw new Error(`${name} is not in src/${file}`)
  return written
    .split('*')
    .map((part) => Number(part.trim().replaceAll('_', '')))
    .reduce((product, factor) => product * factor, 1)
}

const { limits, totalMs, retry, waitForClock } = resolveOptions({
  idScope: '0ne00000000',
  credential: symmetricKey({ registrationId: 'd', key: 'AAAAAAAAAAAAAAAAAAAAAA==' }),
  waitForClock: {},
})
const hub = resolveHub({ assignedHub: 'h.azure-devices.net', deviceId: 'd' })

/** The row of the page, and the milliseconds of the program. */
const PROGRAM: Readonly<Record<string, number | undefined>> = {
  'timeouts.totalMs': totalMs,
  'timeouts.dnsMs': limits.dns,
  'timeouts.proxyMs': limits.proxy,
  'timeouts.tcpMs': limits.tcp,
  'timeouts.tlsMs': limits.tls,
  'timeouts.connectMs': limits.connect,
  'timeouts.subscribeMs': limits.subscribe,
  'timeouts.registerMs': limits.register,
  'timeouts.pollMs': limits.poll,
  'waitForClock.limitMs': waitForClock?.limitMs,
  'retry.baseDelayMs': retry.baseDelayMs,
  'retry.maxDelayMs': retry.maxDelayMs,
  'retry.pollIntervalMs': retry.pollIntervalMs,
  'retry.startDelayMs': retry.startDelayMs,
  'answer about the twin': limits.poll,
  'close({ drainMs })': constant('hub/connection.ts', 'DRAIN_MS'),
  keepAliveSeconds: hub.keepAliveSeconds * 1000,
  tokenLifetimeSeconds: hub.tokenLifetimeSeconds * 1000,
  'acknowledgements before a planned reconnect': constant('hub/connection.ts', 'RENEWAL_LIMIT_MS'),
  'acknowledgements that a hub owes': constant('hub/telemetry.ts', 'OWED_LIMIT_MS'),
  'request for a certificate (preview)': constant('hub/certificates.ts', 'LIMIT_MS'),
  'the service is asked again in an outage': constant('hub/connect.ts', 'PATIENCE_MS'),
  'the service is asked again after an answer in vain': constant('hub/connect.ts', 'ASK_EVERY_MS'),
  'a store of the application': constant('provision.ts', 'STORE_LIMIT_MS'),
  'a store of certificates that did not answer': constant('renewal/pairs.ts', 'STORE_REST_MS'),
  'a journal that is opened': constant('many/many.ts', 'OPEN_LIMIT_MS'),
  'closing a connection': constant('registration/run.ts', 'CLOSE_LIMIT_MS'),
  'one address of a name': constant('tls/dial.ts', 'ADDRESS_ATTEMPT_MS'),
  'signature for an inspection': constant('credential/inspect/sas.ts', 'SIGNATURE_LIMIT_MS'),
  'token for a registration': constant('client.ts', 'TOKEN_LIFETIME_S') * 1000,
  'TLS session': constant('tls/sessions.ts', 'MAX_SESSION_AGE_MS'),
}

/** Durations that bound no wait of a caller, or that another row has. */
const NO_TIMEOUT = new Set([
  'clock.ts MAX_TIMER_MS',
  'clock-check.ts CORRECTION_MS',
  'clock-check.ts LOOK_AGAIN_MS',
  'credential/certificate.ts MAX_NOTICE_MS',
  'credential/issued-chain.ts FRESH_TOLERANCE_MS',
  'assignment/hub.ts DAY_S',
  'assignment/hub.ts MAX_KEEP_ALIVE_S',
  'hub/certificates.ts GRACE_MS',
  'hub/connection.ts DAY_MS',
  'hub/connection.ts EXPIRY_NOTICE_MS',
  'hub/connection.ts STABLE_MS',
  'iso-time.ts MAX_DATE_MS',
  'many/bucket.ts BURST_MS',
  'many/many.ts CLOCK_SLACK_MS',
  'many/many.ts LOOKUP_GAP_MS',
  'protocol/response.ts SUSPICIOUS_SKEW_MS',
  'protocol/retry-after.ts MAX_RETRY_AFTER_MS',
  'provision.ts CONTACT_STEP_MS',
  'registration/schedule.ts LONGEST_QUEUE_MS',
  'registration/schedule.ts LONGEST_THROTTLED_MS',
  'registration/schedule.ts QUOTA_MS',
  'registration/schedule.ts REFUSED_FLOOR_MS',
  'release.ts RELEASED_AT_MS',
  'renewal/schedule.ts DAY_MS',
  'renewal/schedule.ts MINUTE_MS',
  'transport/mqtt/session.ts KEEP_ALIVE_SECONDS',
])
const TIMEOUT = new Map([
  ['many/many.ts STORE_LIMIT_MS', constant('provision.ts', 'STORE_LIMIT_MS')],
  ['hub/session.ts CLOSE_LIMIT_MS', constant('registration/run.ts', 'CLOSE_LIMIT_MS')],
  ['renewal/pairs.ts STORE_LIMIT_MS', constant('provision.ts', 'STORE_LIMIT_MS')],
])

const page = pageOf('docs/timeouts.md')
const rows = rowsUnder(page, 'Time-out')

describe('the page of time-outs', () => {
  it('has the rows of the program, and no other', () => {
    expect(rows.map(([name]) => name).sort()).toEqual(Object.keys(PROGRAM).sort())
  })

  for (const [name = '', said = ''] of rows) {
    it(`has the default of ${name}`, () => {
      expect(said).toMatch(/^[\d.]+ s$/)
      expect(Number.parseFloat(said) * 1000).toBe(PROGRAM[name])
    })
  }

  it('says the rest in its text', () => {
    const text = page.text.replaceAll('\n', ' ')
    expect(text).toContain(`\`retry.maxAttempts\` (${retry.maxAttempts})`)
    const doctor = constant('cli/case.ts', 'DEFAULT_TIMEOUT_S')
    const roots = constant('cli/roots.ts', 'DEFAULT_TIMEOUT_S')
    expect(text).toContain(`\`doctor\` (${doctor} s) and \`roots\` (${roots} s)`)
  })

  it('knows every duration that is written in the library', () => {
    const named = new Set([
      ...NO_TIMEOUT,
      ...TIMEOUT.keys(),
      'hub/connection.ts DRAIN_MS',
      'hub/connection.ts RENEWAL_LIMIT_MS',
      'hub/telemetry.ts OWED_LIMIT_MS',
      'hub/certificates.ts LIMIT_MS',
      'hub/connect.ts PATIENCE_MS',
      'hub/connect.ts ASK_EVERY_MS',
      'provision.ts STORE_LIMIT_MS',
      'many/many.ts OPEN_LIMIT_MS',
      'renewal/pairs.ts STORE_REST_MS',
      'registration/run.ts CLOSE_LIMIT_MS',
      'tls/dial.ts ADDRESS_ATTEMPT_MS',
      'credential/inspect/sas.ts SIGNATURE_LIMIT_MS',
      'client.ts TOKEN_LIFETIME_S',
      'tls/sessions.ts MAX_SESSION_AGE_MS',
      'options/resolve.ts DEFAULT_CLOCK_WAIT_MS',
    ])
    const written = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts') && !/^(?:emulator|testing|cli)[\\/]/.test(name))
      .flatMap((name) =>
        [...source(name).matchAll(/^(?:export )?const ([A-Z_]+_(?:MS|S|SECONDS)) = /gm)].map(
          ([, constantName]) => `${name.replaceAll('\\', '/')} ${constantName}`,
        ),
      )
    expect(written.filter((one) => !named.has(one))).toEqual([])
    for (const [one, ms] of TIMEOUT) {
      const [file = '', name = ''] = one.split(' ')
      expect(constant(file, name)).toBe(ms)
    }
  })
})
