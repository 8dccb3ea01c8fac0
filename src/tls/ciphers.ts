import { DpsError } from '../errors.ts'
import type { TlsOptions } from '../options/options.ts'

export type CipherPreference = 'security' | 'performance'

/** The suites the service recommends, best first (https://learn.microsoft.com/azure/iot-dps/tls-support). */
export const RECOMMENDED_SUITES: Readonly<Record<CipherPreference, readonly string[]>> = {
  security: [
    'ECDHE-RSA-AES256-GCM-SHA384', // forward secrecy, authenticated encryption, the larger key
    'ECDHE-RSA-AES128-GCM-SHA256', // the same with the smaller key, for a server that has only this
    'ECDHE-RSA-AES256-SHA384', // CBC only where no GCM is to be had; encrypt-then-MAC is offered with it
    'ECDHE-RSA-AES128-SHA256', // last of the recommended
  ],
  performance: [
    'ECDHE-RSA-AES128-GCM-SHA256', // ten AES rounds in place of fourteen
    'ECDHE-RSA-AES256-GCM-SHA384', // still authenticated encryption: before any CBC suite
    'ECDHE-RSA-AES128-SHA256', // CBC only where no GCM is to be had
    'ECDHE-RSA-AES256-SHA384', // last of the recommended
  ],
}

/** Static RSA: no forward secrecy, being retired by the service. Only ever appended, and only when asked for. */
export const LEGACY_SUITES: Readonly<Record<CipherPreference, readonly string[]>> = {
  security: [
    'AES256-GCM-SHA384', // authenticated encryption first
    'AES128-GCM-SHA256', // the smaller key
    'AES256-SHA256', // CBC with a SHA-2 MAC
    'AES128-SHA256', // the smaller key
    'AES256-SHA', // SHA-1 as MAC only: the oldest servers
    'AES128-SHA', // the last resort
  ],
  performance: [
    'AES128-GCM-SHA256', // the cheapest
    'AES256-GCM-SHA384', // still authenticated encryption
    'AES128-SHA256', // CBC with a SHA-2 MAC
    'AES256-SHA256', // the larger key
    'AES128-SHA', // SHA-1 as MAC only: the oldest servers
    'AES256-SHA', // the last resort
  ],
}

/** Offered only when `maxVersion` is raised. All are authenticated encryption with forward secrecy (RFC 8446 §B.4). */
export const TLS13_SUITES: Readonly<Record<CipherPreference, readonly string[]>> = {
  security: [
    'TLS_AES_256_GCM_SHA384', // the larger key
    'TLS_CHACHA20_POLY1305_SHA256', // fast where the processor has no AES instructions
    'TLS_AES_128_GCM_SHA256', // mandatory to implement
  ],
  performance: [
    'TLS_AES_128_GCM_SHA256', // the cheapest with AES instructions
    'TLS_CHACHA20_POLY1305_SHA256', // the cheapest without
    'TLS_AES_256_GCM_SHA384', // the larger key
  ],
}

/** What `tls.ciphers` may name: TLS 1.2, ephemeral elliptic-curve key exchange, an authenticated server. */
const KNOWN_SUITES: ReadonlySet<string> = new Set([
  ...RECOMMENDED_SUITES.security,
  'ECDHE-RSA-CHACHA20-POLY1305',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
  'ECDHE-ECDSA-AES256-SHA384',
  'ECDHE-ECDSA-AES128-SHA256',
])

/**
 * The TLS 1.2 suites to offer, in order.
 *
 * @throws DpsError TLS_POLICY_INVALID, phase `config`
 */
export function resolveSuites(
  tls: Pick<TlsOptions, 'cipherPreference' | 'legacyCiphers' | 'ciphers'>,
): readonly string[] {
  const { cipherPreference, legacyCiphers, ciphers } = tls
  checkPreference('tls.cipherPreference', cipherPreference)
  checkPreference('tls.legacyCiphers', legacyCiphers)
  if (ciphers !== undefined && cipherPreference !== undefined) {
    throw invalid(
      'tls.cipherPreference orders the recommended suites: leave it out when tls.ciphers replaces them',
    )
  }
  const recommended =
    ciphers === undefined ? RECOMMENDED_SUITES[cipherPreference ?? 'security'] : checkCiphers(ciphers)
  return Object.freeze([...recommended, ...(legacyCiphers === undefined ? [] : LEGACY_SUITES[legacyCiphers])])
}

function checkPreference(name: string, value: unknown): void {
  if (value !== undefined && value !== 'security' && value !== 'performance') {
    throw invalid(`${name} must be 'security' or 'performance'`)
  }
}

function checkCiphers(ciphers: unknown): readonly string[] {
  if (!Array.isArray(ciphers) || ciphers.length === 0) {
    throw invalid('tls.ciphers must be an array of at least one suite name')
  }
  const seen = new Set<string>()
  ciphers.forEach((suite: unknown, index) => {
    const field = `tls.ciphers[${index}]`
    if (typeof suite !== 'string') throw invalid(`${field} must be a string`)
    if (LEGACY_SUITES.security.includes(suite)) {
      throw invalid(`${field} is ${suite}, which has no forward secrecy: use tls.legacyCiphers to allow it`)
    }
    if (!KNOWN_SUITES.has(suite)) {
      // What does not look like one is not repeated: it may be anything that was put here by mistake.
      const shown = /^[A-Z0-9_-]{1,40}$/.test(suite) ? ` is "${suite}"; it` : ''
      throw invalid(
        `${field}${shown} must be the OpenSSL name of one suite, of ${[...KNOWN_SUITES].join(', ')}`,
      )
    }
    if (seen.has(suite)) throw invalid(`${field} repeats ${suite}`)
    seen.add(suite)
  })
  return [...seen]
}

function invalid(message: string): DpsError {
  return new DpsError('TLS_POLICY_INVALID', 'config', message)
}
