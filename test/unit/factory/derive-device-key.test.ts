import { createHmac } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { deriveDeviceKey } from '../../../src/factory/index.ts'

const groupKey = Buffer.alloc(64, 0x5c).toString('base64')

describe('deriveDeviceKey', () => {
  it('hashes the id byte for byte, whatever its letter case', async () => {
    for (const registrationId of ['dev-1', 'DEV-1', 'Dev:1']) {
      const expected = createHmac('sha256', Buffer.from(groupKey, 'base64'))
        .update(registrationId)
        .digest('base64')
      await expect(deriveDeviceKey({ groupKey, registrationId })).resolves.toBe(expected)
    }
  })

  it('rejects a group key that Node would decode to another key', async () => {
    const derived = deriveDeviceKey({ groupKey: `${groupKey}\n`, registrationId: 'd' })
    await expect(derived).rejects.toMatchObject({ code: 'SAS_KEY_INVALID', phase: 'config' })
    await expect(derived).rejects.toThrow('The group key contains')
    await expect(derived).rejects.not.toThrow(groupKey.slice(0, 12))
  })

  it.each<[string, object]>([
    ['an invalid id', { groupKey, registrationId: 'a b' }],
    ['no id', { groupKey }],
    ['no options', undefined as unknown as object],
    ['an option that nothing reads', { groupKey, registrationId: 'a', key: groupKey }],
  ])('rejects %s', async (_, options) => {
    await expect(deriveDeviceKey(options as never)).rejects.toMatchObject({
      code: 'OPTION_INVALID',
      phase: 'config',
    })
  })
})
