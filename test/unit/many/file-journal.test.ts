import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { IdTable } from '../../../src/many/id-table.ts'
import { Journal } from '../../../src/many/journal.ts'
import { fileJournal } from '../../../src/provision-many.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const SCOPE = { idScope: '0ne00000000', host: 'global.azure-devices-provisioning.net' }
const CREDENTIAL = 'c'.repeat(64)
const registration = (registrationId: string) => ({
  registrationId,
  deviceId: `${registrationId}-at-hub`,
  assignedHub: 'hub.azure-devices.net',
  status: 'assigned' as const,
  substatus: 'initialAssignment',
  payload: { floor: 3, name: 'Süd\n2' },
  etag: 'e',
  createdAt: new Date('2026-01-02T03:04:05Z'),
  lastUpdatedAt: undefined,
  connectionProfile: undefined,
})

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'journal-'))
  onTestFinished(() => rmSync(path, { recursive: true, force: true }))
  return path
}

async function read(file: string, scope = SCOPE) {
  const table = new IdTable()
  const journal = await Journal.open(fileJournal(file), scope, table)
  return { table, journal }
}

/** One device that is assigned, one that was refused, one that was begun and is in doubt. */
async function write(file: string): Promise<void> {
  const { journal } = await read(file)
  await journal.begun('done-1', 1000)
  await Promise.all([
    journal.done(CREDENTIAL, registration('done-1')),
    journal.begun('refused-1', 2000),
    journal.begun('begun-1', 3000),
  ])
  await journal.refused('refused-1')
  await journal.close()
}

describe('a journal in a file', () => {
  it('knows afterwards who was assigned and where, who was refused, and who is in doubt', async () => {
    const file = join(folder(), 'a')
    await write(file)
    expect(statSync(file).mode & 0o777).toBe(0o600)
    const { table, journal } = await read(file)
    expect(table.size).toBe(3)
    expect(await journal.doneAt(table.get('DONE-1')!, 'done-1')).toEqual({
      credential: CREDENTIAL,
      registration: registration('done-1'),
    })
    expect(await journal.begunAt(-table.get('begun-1')!)).toBe(3000)
    expect(table.get('refused-1')).toBe(0)
    expect(journal.damaged).toBe(0)
    await journal.close()
  })

  it('leaves nothing beside it', async () => {
    const path = folder()
    await write(join(path, 'a'))
    expect(readdirSync(path)).toEqual(['a'])
  })

  it('is refused where it is of another scope or service, and not written to', async () => {
    const file = join(folder(), 'a')
    await write(file)
    const before = readFileSync(file)
    for (const [scope, what] of [
      [{ ...SCOPE, idScope: '0ne00000001' }, 'another id scope'],
      [{ ...SCOPE, host: 'other.azure-devices-provisioning.cn' }, 'another provisioning service'],
    ] as const) {
      const error = await expectDpsError(read(file, scope), 'STORE_FAILED', 'store')
      expect(error.message).toContain(what)
    }
    expect(readFileSync(file)).toEqual(before)
    // The refused one holds no lock.
    await (await read(file)).journal.close()
  })

  it.each([
    ['a list of devices', 'registrationId,symmetricKey\npress-1,abc\n'],
    ['one line without an end', 'x'],
    ['a line of more than 1 MiB', 'x'.repeat(1024 * 1024 + 70_000)],
  ])('does not take %s for one', async (_, content) => {
    const file = join(folder(), 'a')
    writeFileSync(file, content)
    await expectDpsError(read(file), 'STORE_FAILED', 'store')
    expect(readFileSync(file, 'utf8')).toBe(content)
  })

  it('begins in an empty file, and in none', async () => {
    const file = join(folder(), 'a')
    writeFileSync(file, '')
    await write(file)
    const { table, journal } = await read(file)
    expect(table.size).toBe(3)
    await journal.close()
  })

  it('says of a folder and of a path that leads nowhere that it could not be used', async () => {
    const path = folder()
    await expectDpsError(read(path), 'STORE_FAILED', 'store')
    await expectDpsError(read(join(path, 'no', 'folder')), 'STORE_FAILED', 'store')
  })

  it('counts no line that is damaged anywhere, and all others', async () => {
    const path = folder()
    const whole = join(path, 'whole')
    await write(whole)
    const bytes = readFileSync(whole)
    const head = bytes.indexOf(10) + 1
    for (let at = head; at < bytes.length; at += 7) {
      if (bytes[at] === 10) continue
      const file = join(path, `damaged-${at}`)
      const damaged = Buffer.from(bytes)
      damaged[at]! ^= 1
      writeFileSync(file, damaged)
      const { table, journal } = await read(file)
      expect({ at, damaged: journal.damaged > 0 }).toEqual({ at, damaged: true })
      // Nothing is made of it that was not said: a done one may be in doubt, never the other way round.
      const done = table.get('done-1') ?? 0
      if (done > 0) expect((await journal.doneAt(done, 'done-1')).registration.deviceId).toBe('done-1-at-hub')
      expect(table.get('begun-1') ?? -1).toBeLessThan(0)
      await journal.close()
    }
  })

  it('is gone on with after it was cut at any byte', async () => {
    const path = folder()
    const whole = join(path, 'whole')
    await write(whole)
    const { length } = readFileSync(whole)
    const head = readFileSync(whole).indexOf(10)
    for (let at = head; at < length; at += 3) {
      const file = join(path, `cut-${at}`)
      writeFileSync(file, readFileSync(whole))
      truncateSync(file, at)
      const { journal } = await read(file)
      await journal.done(CREDENTIAL, registration('later-1'))
      await journal.close()
      const again = await read(file)
      expect(again.table.get('later-1'), `cut at ${at}`).toBeGreaterThan(0)
      expect(again.journal.damaged).toBeLessThanOrEqual(1)
      await again.journal.close()
      // What was there is there: it is only ever added to.
      expect(readFileSync(file).subarray(0, at)).toEqual(readFileSync(whole).subarray(0, at))
    }
  })

  it('is of one run at a time', async () => {
    const path = folder()
    const file = join(path, 'a')
    const first = await read(file)
    const error = await expectDpsError(read(file), 'STORE_FAILED', 'store')
    expect(error.message).toContain(`in use by process ${process.pid}`)
    await first.journal.close()
    await (await read(file)).journal.close()
    expect(readdirSync(path)).toEqual(['a'])
  })

  it('is one journal by whatever link it is reached', async () => {
    const path = folder()
    const [file, link, way] = [join(path, 'a'), join(path, 'link'), join(path, 'way')]
    symlinkSync(path, way)
    const first = await read(join(way, 'a'))
    await expectDpsError(read(file), 'STORE_FAILED', 'store')
    await first.journal.close()
    symlinkSync('a', link)
    const second = await read(link)
    await expectDpsError(read(file), 'STORE_FAILED', 'store')
    await second.journal.close()
    expect(readdirSync(path).sort()).toEqual(['a', 'link', 'way'])
  })

  it('is not taken from another process that lives, and is from one that does not', async () => {
    const path = folder()
    const file = join(path, 'a')
    const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'])
    onTestFinished(() => void child.kill('SIGKILL'))
    const lock = `${file}.${child.pid}.lock`
    writeFileSync(lock, '')
    const error = await expectDpsError(read(file), 'STORE_FAILED', 'store')
    expect(error.message).toContain(`in use by process ${child.pid}`)
    expect(readdirSync(path)).toEqual([`a.${child.pid}.lock`])
    child.kill('SIGKILL')
    await once(child, 'exit')
    await (await read(file)).journal.close()
    expect(existsSync(lock)).toBe(false)
  })

  it('tells of a record that is gone since it was read', async () => {
    const file = join(folder(), 'a')
    await write(file)
    const { table, journal } = await read(file)
    truncateSync(file, 10)
    appendFileSync(file, 'x'.repeat(4000))
    await expectDpsError(journal.doneAt(table.get('done-1')!, 'done-1'), 'STORE_FAILED', 'store')
    await journal.close()
  })
})
