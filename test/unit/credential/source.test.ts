import { describe, expect, it } from 'vitest'
import { checkPath, fromFile } from '../../../src/credential/source.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

describe('a path', () => {
  it.each(['/etc/dps/device.key', 'device.key', './keys/device', 'C:\\keys\\device.key'])(
    '%s is repeated when there is nothing there',
    async (path) => {
      const error = await expectDpsError(
        fromFile(`${path}-absent`, 'keyFile'),
        'CREDENTIAL_UNREADABLE',
        'config',
      )
      expect(error.message).toContain(`${path}-absent`)
    },
  )

  it('that is an absolute one without dots is repeated too', async () => {
    const path = '/absent/private/device/key'
    const error = await expectDpsError(fromFile(path, 'keyFile'), 'CREDENTIAL_UNREADABLE', 'config')
    expect(error.message).toContain(path)
  })

  it.each([44, 88, 43, 22, 64])('that may be a key of %i characters is not repeated', async (length) => {
    const key = 'QUJD'
      .repeat(22)
      .slice(0, length - 1)
      .concat(length % 4 === 0 && length < 64 ? '=' : 'A')
    const error = await expectDpsError(fromFile(key, 'keyFile'), 'CREDENTIAL_UNREADABLE', 'config')
    expect(error.message).not.toContain('QUJD')
    expect(error.cause).toBeUndefined()
    expect(error.hint).toContain('`key`')
  })

  it.each(['-----BEGIN PRIVATE KEY----- MIG', 'MIGH\nAgEA', 'a\r'])(
    'is refused where it is content: %j',
    async (content) => {
      const error = await expectDpsError(() => checkPath(content, 'certFile'), 'OPTION_INVALID', 'config')
      expect(error.message).toContain('goes into `cert`')
      expect(error.message).not.toContain('MIG')
    },
  )
})
