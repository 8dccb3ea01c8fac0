import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { checkOptionNames, checkPath, fromFile } from '../../../src/credential/source.ts'
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

  it('that begins with / and is as long as a key is not repeated', async () => {
    const key = `/${'QUJD'.repeat(12)}`
    const error = await expectDpsError(fromFile(key, 'keyFile'), 'CREDENTIAL_UNREADABLE', 'config')
    expect(error.message).not.toContain('QUJD')
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

describe('a file', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'source-'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  const refused = (path: string) =>
    expectDpsError(fromFile(path, 'certFile'), 'CREDENTIAL_UNREADABLE', 'config')

  it('of exactly 1 MiB is read whole', async () => {
    const content = Buffer.alloc(1024 * 1024, 'abc')
    const path = join(folder, 'largest')
    writeFileSync(path, content)
    expect(content.equals(await fromFile(path, 'certFile')())).toBe(true)
  })

  it('whose size the kernel gives as 0 is read whole', async () => {
    expect((await fromFile('/proc/self/status', 'certFile')()).toString()).toContain('VmRSS')
  })

  it('that is a disk image is refused without reading it', async () => {
    const path = join(folder, 'image')
    writeFileSync(path, '')
    // Without content on the disk; more than Node reads into one buffer.
    truncateSync(path, 3 * 1024 ** 3)
    expect((await refused(path)).message).toBe(`\`certFile\` ${path} is larger than 1 MiB.`)
  })

  it('that is a FIFO nobody writes to is refused and not waited for', async () => {
    const path = join(folder, 'fifo')
    execFileSync('mkfifo', [path])
    expect((await refused(path)).message).toBe(`\`certFile\` ${path} is not a regular file.`)
  })

  it.each(['/dev/null', '/dev/zero'])('that is the device %s is refused', async (path) => {
    expect((await refused(path)).message).toBe(`\`certFile\` ${path} is not a regular file.`)
  })
})

describe('an option that nothing reads', () => {
  it('with an escape sequence in its name does not reach the terminal', async () => {
    const check = () => checkOptionNames({ '\u001b[31mca': 1 }, 'x509', ['cert'])
    const { message } = await expectDpsError(check, 'OPTION_INVALID', 'config')
    expect(message).toBe('`x509` has no option `?[31mca`; it has `cert`.')
  })

  it('whose name is a pasted key is not repeated whole', async () => {
    const key = `${'QUJD'.repeat(21)}QUI=`
    const check = () => checkOptionNames({ [key]: 1 }, 'symmetricKey', ['key'])
    const { message } = await expectDpsError(check, 'OPTION_INVALID', 'config')
    expect(message).toContain(`\`${key.slice(0, 40)}…\``)
  })
})
