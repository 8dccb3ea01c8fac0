import { describe, expect, test } from 'vitest'
import { EXIT, EXIT_CODES, exitCodeOf } from '../../../src/cli/exit-codes.ts'
import { DpsError, type DpsErrorCode, type DpsPhase, ERROR_CODES } from '../../../src/errors.ts'

describe('an exit code', () => {
  test('is documented once for each that there is', () => {
    expect(EXIT_CODES.map(([code]) => code)).toEqual(Object.values(EXIT))
  })

  test('is that of the stage', () => {
    const of = (code: DpsErrorCode, phase: DpsPhase) => exitCodeOf(new DpsError(code, phase, ''))
    expect(of('OPTION_INVALID', 'config')).toBe(EXIT.usage)
    expect(of('SAS_KEY_INVALID', 'config')).toBe(EXIT.config)
    expect(of('CLOCK_BEHIND', 'clock')).toBe(EXIT.clock)
    for (const phase of ['dns', 'proxy', 'tcp'] as const) expect(of('TIMEOUT', phase)).toBe(EXIT.network)
    expect(of('SERVER_NAME_MISMATCH', 'tls')).toBe(EXIT.tls)
    expect(of('TLS_CLIENT_CERTIFICATE_REFUSED', 'tls')).toBe(EXIT.refused)
    expect(of('UNAUTHORIZED', 'connect')).toBe(EXIT.refused)
    expect(of('THROTTLED', 'register')).toBe(EXIT.service)
    expect(of('DEADLINE_EXCEEDED', 'tcp')).toBe(EXIT.network)
    expect(of('DEADLINE_EXCEEDED', 'poll')).toBe(EXIT.service)
  })

  test('is never that of success, whatever failed', () => {
    const phases: readonly DpsPhase[] = [
      'config',
      'clock',
      'dns',
      'proxy',
      'tcp',
      'tls',
      'connect',
      'subscribe',
      'register',
      'poll',
      'parse',
      'store',
    ]
    for (const code of Object.keys(ERROR_CODES) as DpsErrorCode[]) {
      for (const phase of phases) {
        const exit = exitCodeOf(new DpsError(code, phase, ''))
        expect(exit).not.toBe(EXIT.ok)
        expect(EXIT_CODES.map(([known]) => known)).toContain(exit)
      }
    }
  })
})
