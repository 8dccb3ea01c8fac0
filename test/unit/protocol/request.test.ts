import { describe, expect, it } from 'vitest'
import { MAX_PAYLOAD_BYTES, registerBody } from '../../../src/protocol/request.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

describe('registerBody', () => {
  it('is the registration id alone without a payload', () => {
    expect(registerBody('my-device', undefined)).toBe('{"registrationId":"my-device"}')
  })

  it('carries a payload object, non-ASCII text included', () => {
    expect(registerBody('d', { city: 'Kraków', floor: 3 })).toBe(
      '{"registrationId":"d","payload":{"city":"Kraków","floor":3}}',
    )
  })

  it('carries a signing request, after a payload if there is one', () => {
    expect(registerBody('d', undefined, 'MII=')).toBe('{"registrationId":"d","csr":"MII="}')
    expect(JSON.parse(registerBody('d', { floor: 3 }, 'MII='))).toEqual({
      registrationId: 'd',
      payload: { floor: 3 },
      csr: 'MII=',
    })
  })

  it.each([
    ['an array', [1]],
    ['a string', '{}'],
    ['a number', 4],
    ['null', null],
    ['a date, which becomes a string', new Date(0)],
    ['a function', () => {}],
  ])('refuses %s as payload', async (_, payload) => {
    await expectDpsError(() => registerBody('d', payload as never), 'OPTION_INVALID', 'config')
  })

  it('refuses a payload that is no JSON, and keeps the cause', async () => {
    const loop: Record<string, unknown> = {}
    loop.self = loop
    const error = await expectDpsError(() => registerBody('d', loop), 'OPTION_INVALID', 'config')
    expect(error.cause).toBeInstanceOf(TypeError)
    await expectDpsError(() => registerBody('d', { big: 1n }), 'OPTION_INVALID', 'config')
  })

  it('refuses a payload larger than the service takes, counting bytes and not characters', async () => {
    const fits = 'x'.repeat(MAX_PAYLOAD_BYTES - '{"p":""}'.length)
    expect(registerBody('d', { p: fits })).toContain(fits)
    await expectDpsError(() => registerBody('d', { p: `${fits}x` }), 'OPTION_INVALID', 'config')
    await expectDpsError(
      () => registerBody('d', { p: 'é'.repeat(MAX_PAYLOAD_BYTES / 2) }),
      'OPTION_INVALID',
      'config',
    )
  })
})
