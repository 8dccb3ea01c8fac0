import { describe, expect, it } from 'vitest'
import { checkRegistrationId, sameRegistrationId } from '../../../src/protocol/registration-id.ts'

describe('registration id', () => {
  it.each(['a', 'A1', '-', 'dev-', '.a', ':9', 'sn-007_x.y:z', 'a'.repeat(128)])(
    'accepts %s unchanged',
    (id) => {
      expect(checkRegistrationId(id)).toBe(id)
    },
  )

  it.each([
    ['empty', '', 'is empty'],
    ['too long', 'a'.repeat(129), '129 characters'],
    ['with a space', 'a b', 'U+0020 at position 2'],
    ['with a slash', 'a/b', '"/" at position 2'],
    ['with a line break at its end', 'abc\n', 'U+000A at position 4'],
    ['with a letter that is not ASCII', 'gerät', 'U+00E4 at position 4'],
    ['with a character outside the basic plane', 'a😀', 'U+1F600 at position 2'],
    ['with a Kelvin sign', '\u212a', 'U+212A'],
    ['ending in a dot', 'a.', 'ends with "."'],
    ['ending in an underscore', 'a_', 'ends with "_"'],
    ['ending in a colon', 'a:', 'ends with ":"'],
    ['that is an unparsed subject', 'CN=a', '"="'],
    ['that is no string', 7, 'must be a string, not number'],
  ])('refuses one %s', (_, id, message) => {
    const check = () => checkRegistrationId(id)
    expect(check).toThrow(expect.objectContaining({ code: 'OPTION_INVALID', phase: 'config' }))
    expect(check).toThrow(message)
    expect(check).toThrow('`registrationId`')
  })

  it('compares without regard to the case of ASCII letters only', () => {
    expect(sameRegistrationId('Dev-1', 'dEV-1')).toBe(true)
    expect(sameRegistrationId('dev-1', 'dev-2')).toBe(false)
    expect(sameRegistrationId('\u212a', 'k')).toBe(false)
  })
})
