import { describe, expect, it } from 'vitest'
import { DpsError, type DpsErrorCode, ERROR_CODES } from '../../../src/errors.ts'
import { CredentialTurns, isCredentialFailure } from '../../../src/registration/fallback.ts'

const CODES = Object.keys(ERROR_CODES) as DpsErrorCode[]

describe('what speaks against a credential', () => {
  it('is that it cannot be read or used, is over, or was refused, and nothing else', () => {
    expect(CODES.filter((code) => isCredentialFailure({ code, phase: 'tls' })).sort()).toEqual([
      'CREDENTIAL_CHAIN_BROKEN',
      'CREDENTIAL_KEY_MISMATCH',
      'CREDENTIAL_KEY_UNSUPPORTED',
      'CREDENTIAL_NOT_ISSUED',
      'CREDENTIAL_UNREADABLE',
      'DEVICE_CERTIFICATE_EXPIRED',
      'SAS_KEY_INVALID',
      'SIGNER_FAILED',
      'TLS_CLIENT_CERTIFICATE_REFUSED',
      'UNAUTHORIZED',
    ])
  })

  it('or that one of the caller’s own threw, before anything was sent', () => {
    expect(isCredentialFailure({ code: 'TRANSPORT_FAILED', phase: 'config' })).toBe(true)
    expect(isCredentialFailure({ code: 'TRANSPORT_FAILED', phase: 'tcp' })).toBe(false)
  })
})

describe('turns', () => {
  const refused = new DpsError('UNAUTHORIZED', 'connect', 'no', { trackingId: 't', serviceErrorCode: 401002 })
  const unreadable = new DpsError('CREDENTIAL_UNREADABLE', 'config', 'gone')
  const lost = new DpsError('CONNECTION_LOST', 'tcp', 'gone')

  const thrownBy = (work: () => unknown): DpsError => {
    try {
      work()
    } catch (error) {
      return error as DpsError
    }
    throw new Error('nothing was thrown')
  }

  it('go on one by one and end with the last', () => {
    const turns = new CredentialTurns(3)
    expect(turns.next(unreadable)).toEqual({ type: 'credential-fallback', from: 0, to: 1, error: unreadable })
    expect(turns.next(refused)).toMatchObject({ from: 1, to: 2 })
    const error = thrownBy(() => turns.next(unreadable))
    expect(error).toMatchObject({ code: 'UNAUTHORIZED', trackingId: 't', serviceErrorCode: 401002 })
    expect(error.cause).toMatchObject({ errors: [unreadable, refused, unreadable] })
    expect(turns.index).toBe(2)
  })

  it('end with any other failure, as it is', () => {
    const turns = new CredentialTurns(2)
    expect(thrownBy(() => turns.next(lost))).toBe(lost)
    turns.next(refused)
    expect(thrownBy(() => turns.next(lost))).toBe(lost)
  })

  it('of a single credential leave its error as it is', () => {
    expect(thrownBy(() => new CredentialTurns(1).next(refused))).toBe(refused)
  })
})
