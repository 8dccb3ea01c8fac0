import { describe, expect, it } from 'vitest'
import { symmetricKey } from '../../../src/credential/sas.ts'
import { deriveDeviceKey } from '../../../src/factory/index.ts'
import { formatToken, registrationResource, stringToSign } from '../../../src/protocol/sas-token.ts'

/** Base64 of the bytes `from` to `to`, both included. */
function countingKey(from: number, to: number): string {
  return Buffer.from(Array.from({ length: to - from + 1 }, (_, i) => from + i)).toString('base64')
}

async function tokenOf(key: string, resource: string, expiresAt: number, keyName?: string) {
  const identity = await symmetricKey({ registrationId: 'any', key }).load()
  return identity.token(resource, expiresAt, keyName)
}

describe('text of a token', () => {
  it('signs the resource, a line feed and the expiry', () => {
    expect(stringToSign('0ne%2Fregistrations%2Fa', 1700003600)).toBe('0ne%2Fregistrations%2Fa\n1700003600')
  })

  it('percent-encodes the signature, and leaves the resource as it was signed', () => {
    expect(formatToken({ resource: 'a%2fb', signature: 'A+/=', expiresAt: 5 })).toBe(
      'SharedAccessSignature sr=a%2fb&sig=A%2B%2F%3D&se=5',
    )
  })

  it('puts the key name last', () => {
    expect(formatToken({ resource: 'r', signature: 's', expiresAt: 5, keyName: 'registration' })).toBe(
      'SharedAccessSignature sr=r&sig=s&se=5&skn=registration',
    )
  })

  it('encodes the slashes and colons of a registration resource', () => {
    expect(registrationResource('0ne00000001', 'a:b')).toBe('0ne00000001%2Fregistrations%2Fa%3Ab')
  })
})

describe('published vectors', () => {
  const groupKey = '8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=='
  const id = 'sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6'

  it('A: derives a device key from a group key', async () => {
    await expect(deriveDeviceKey({ groupKey, registrationId: id })).resolves.toBe(
      'Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=',
    )
    await expect(deriveDeviceKey({ groupKey, registrationId: id.toUpperCase() })).resolves.toBe(
      '9GWVnYuoOLXlHc346XjhLRb9pKgIOrKSwxDRSOgnvXo=',
    )
  })

  it('B: a registration token under the derived key', async () => {
    const key = await deriveDeviceKey({ groupKey, registrationId: id })
    const resource = registrationResource('0ne00000001', id)
    expect(resource).toBe('0ne00000001%2Fregistrations%2Fsn-007-888-abc-mac-a1-b2-c3-d4-e5-f6')
    await expect(tokenOf(key, resource, 1700003600, 'registration')).resolves.toBe(
      `SharedAccessSignature sr=${resource}&sig=kNmXVJwnCUPrcXWflZIHfXvmSRlLPi9boCsTUsEaKjc%3D&se=1700003600&skn=registration`,
    )
  })

  it('C: a hub token', async () => {
    const key = '18RQk/hOPJR9EbsJlk2j8WA6vWaj/yi+oaYg7zmxfQNdOyMSu+SJ8O7TSlZhDJCYmn4rzEiVKIzNiVAWjLxrGA=='
    const resource = 'MyExampleHub.azure-devices.net%2Fdevices%2Fmy-symkey-device'
    await expect(tokenOf(key, resource, 1663119026)).resolves.toBe(
      `SharedAccessSignature sr=${resource}&sig=f%2BwW8XOKeJOtiPc9Iwjc4OpExvPM7NlhM9qxN2a1aAM%3D&se=1663119026`,
    )
  })

  it.each([
    ['broker.example%2Fdevices%2Fut-device', 'gqgacRa%2FNHRRK0%2FCjw6CUls%2BkHtn3nhT2hrASNZQan0%3D', 0x00],
    ['broker.example%2Fdevices%2Fd%40v%201%2Fx', 'tcKOOmzVO8ju8u3XMjhaYBAcaJFUnYwOhPtV5soYaiY%3D', 0x00],
    ['0ne00000001%2fregistrations%2fut-device', 'nfgjIUfmDHBv8oCGcLAcWu2fieJcGyogj%2F8V3iBMPHo%3D', 0x00],
    ['0ne00000001%2Fregistrations%2Fut-device', 'cVu11JkJFpvaSoHu%2FJfxIzTR5AAZYtNitfA7oxPHKJg%3D', 0x00],
    ['0ne00000001/registrations/ut-device', 'PD7NhShGS8hvk%2BgFxDTRTfestEqeu2WUtZdU4Z0vZTs%3D', 0x00],
    ['broker.example%2Fdevices%2Fut-device', 'JwI0ymoXeU8O0yUvGj3xw7NZqlr%2BwLYi%2FzyXWeQOgVA%3D', 0x20],
  ])('D: %s as it is written, with sig %s', async (resource, sig, firstByte) => {
    await expect(tokenOf(countingKey(firstByte, firstByte + 0x1f), resource, 1700003600)).resolves.toBe(
      `SharedAccessSignature sr=${resource}&sig=${sig}&se=1700003600`,
    )
  })

  it('E: from a group key to a token', async () => {
    const key = await deriveDeviceKey({ groupKey: countingKey(0x00, 0x3f), registrationId: 'ut-device' })
    expect(key).toBe('s5o47KaZCZrDal4Vkht+L7zOZU87BuBJ28rt3mJ6Gsc=')
    await expect(tokenOf(key, '0ne00000001%2fregistrations%2fut-device', 1700000600)).resolves.toContain(
      '&sig=9nM2SzDCAOl%2FzsYjmXT%2Fu5JwUmodICuLzA2jNfMfHAg%3D&',
    )
  })

  it('F: the key of that vector decodes to 8 bytes, so the formula is checked and the credential refuses it', async () => {
    const { computeSha256Hmac } = await import('@azure/core-util')
    const key = 'cGFzc3dvcmQ='
    await expect(computeSha256Hmac(key, 'string-to-sign', 'base64')).resolves.toBe(
      'o1n1hiIVgzVA2+krq9ty1Z4xsIJKJZP3dYT8MOi65Y4=',
    )
    const signature = await computeSha256Hmac(key, stringToSign('uri', 12345), 'base64')
    expect(formatToken({ resource: 'uri', signature, expiresAt: 12345 })).toBe(
      'SharedAccessSignature sr=uri&sig=kcWxXAK2OAaAoq2oCkaGzX2NMqDB8nCyNuq2fPYCDhk%3D&se=12345',
    )
    await expect(tokenOf(key, 'uri', 12345)).rejects.toMatchObject({
      code: 'SAS_KEY_INVALID',
      phase: 'config',
    })
  })
})
