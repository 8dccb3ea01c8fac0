import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { describe, expect, it, onTestFinished } from 'vitest'
import { fileStore } from '../../../src/assignment/file-store.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const root = process.getuid?.() === 0
const NOBODY = 65_534
const OLD = Buffer.from('the old record\n')
const NEW = Buffer.from('the new record, which is longer\n')

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'file-store-'))
  onTestFinished(() => rmSync(path, { recursive: true, force: true }))
  return path
}

/** Runs as a user whom permissions bind, where the tests run as root. */
async function asNobody(path: string, work: () => Promise<void>): Promise<void> {
  if (!root) return work()
  chownSync(path, NOBODY, NOBODY)
  process.seteuid!(NOBODY)
  try {
    await work()
  } finally {
    process.seteuid!(0)
  }
}

const deadPid = () => {
  const { pid } = spawnSync(process.execPath, ['-e', ''])
  return pid
}

/** Nothing yet, or one writer's record from its first byte to its last. */
function expectWhole(bytes: Uint8Array | undefined): number | undefined {
  if (bytes === undefined) return undefined
  expect(bytes).toHaveLength(20_000)
  expect(bytes.every((byte) => byte === bytes[0])).toBe(true)
  return bytes[0]
}

describe('fileStore', () => {
  it('gives back what was written last', async () => {
    const store = fileStore(join(folder(), 'a'))
    expect(await store.read()).toBeUndefined()
    await store.write(OLD)
    expect(Buffer.from((await store.read())!)).toEqual(OLD)
    await store.write(NEW)
    expect(Buffer.from((await store.read())!)).toEqual(NEW)
    await store.write(new Uint8Array(0))
    expect(await store.read()).toHaveLength(0)
    await store.remove()
    expect(await store.read()).toBeUndefined()
    await store.remove()
    expect(store.notices).toEqual([])
  })

  it('takes a file URL, and a path that is relative to where it was made', async () => {
    const path = folder()
    await fileStore(pathToFileURL(join(path, 'ü a'))).write(OLD)
    expect(readdirSync(path)).toEqual(['ü a'])
    const before = process.cwd()
    process.chdir(path)
    const store = fileStore('ü a')
    process.chdir(before)
    expect(Buffer.from((await store.read())!)).toEqual(OLD)
  })

  it('keeps it from other users, whatever the umask and the mode before', async () => {
    const path = join(folder(), 'a')
    writeFileSync(path, 'x', { mode: 0o666 })
    chmodSync(path, 0o666)
    const before = process.umask(0)
    try {
      await fileStore(path).write(OLD)
    } finally {
      process.umask(before)
    }
    expect(statSync(path).mode & 0o777).toBe(0o600)
  })

  it('replaces a symbolic link and leaves what it points to alone', async () => {
    const path = folder()
    const [target, link] = [join(path, 'passwd'), join(path, 'a')]
    writeFileSync(target, 'precious')
    symlinkSync(target, link)
    await fileStore(link).write(NEW)
    expect(readFileSync(target, 'utf8')).toBe('precious')
    expect(lstatSync(link).isSymbolicLink()).toBe(false)
    expect(readFileSync(link)).toEqual(NEW)
  })

  it('is not led astray by a link in place of its temporary file', async () => {
    const path = folder()
    const victim = join(path, 'victim')
    writeFileSync(victim, 'precious')
    symlinkSync(victim, join(path, `a.${process.pid}.000000000000.tmp`))
    await fileStore(join(path, 'a')).write(NEW)
    expect(readFileSync(victim, 'utf8')).toBe('precious')
    expect(readdirSync(path).sort()).toEqual(['a', 'victim'])
  })

  it('removes what dead writers have left, and nothing else', async () => {
    const path = folder()
    const stays = ['a.bak', 'a.tmp', `a.${deadPid()}.tmp`, `b.${deadPid()}.0123456789ab.tmp`]
    stays.push(`a.${process.ppid}.0123456789ab.tmp`)
    const goes = [`a.${deadPid()}.0123456789ab.tmp`, `a.${process.pid}.0123456789ab.tmp`]
    for (const name of [...stays, ...goes]) writeFileSync(join(path, name), 'x')
    await fileStore(join(path, 'a')).write(OLD)
    expect(readdirSync(path).sort()).toEqual(['a', ...stays].sort())
    writeFileSync(join(path, goes[0]!), 'x')
    await fileStore(join(path, 'a')).remove()
    expect(readdirSync(path).sort()).toEqual(stays.sort())
  })

  it('writes again where another writer, in a container of its own, took its file for a stray one', async () => {
    const path = folder()
    let written = false
    const writing = fileStore(join(path, 'a'))
      .write(NEW)
      .finally(() => {
        written = true
      })
    let removed = 0
    while (!written) {
      for (const name of readdirSync(path)) {
        if (name.endsWith('.tmp') && removed++ === 0) rmSync(join(path, name))
      }
      await new Promise(setImmediate)
    }
    await writing
    expect(removed).toBeGreaterThan(0)
    expect(readdirSync(path)).toEqual(['a'])
  })

  it('lets the last of many writers in one process win, with nothing mixed and nothing left', async () => {
    const path = folder()
    const store = fileStore(join(path, 'a'))
    let done = false
    const reading = (async () => {
      while (!done) expectWhole(await store.read())
    })()
    await Promise.all(Array.from({ length: 40 }, (_, i) => store.write(Buffer.alloc(20_000, i + 1))))
    done = true
    await reading
    expect(expectWhole(await store.read())).toBeGreaterThan(0)
    expect(readdirSync(path)).toEqual(['a'])
  })

  it('lets the last of many processes win, with nothing mixed and nothing left', async () => {
    const path = folder()
    const file = join(path, 'a')
    const script = `
      const { fileStore } = await import('dps-device-client')
      const store = fileStore(process.argv[1])
      for (let i = 0; i < 60; i++) await store.write(Buffer.alloc(20000, Number(process.argv[2])))`
    const writers = [1, 2, 3].map((n) =>
      spawn(process.execPath, ['--input-type=module', '-e', script, '--', file, String(n)], {
        stdio: ['ignore', 'ignore', 'pipe'],
      }),
    )
    const ends = writers.map(async (child) => {
      let stderr = ''
      child.stderr.on('data', (chunk) => {
        stderr += chunk
      })
      const [code] = await once(child, 'close')
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    })
    let running = true
    const all = Promise.all(ends).finally(() => {
      running = false
    })
    const store = fileStore(file)
    const seen = new Set<number>()
    while (running) {
      const writer = expectWhole(await store.read())
      if (writer !== undefined) seen.add(writer)
    }
    await all
    expect(seen.size).toBeGreaterThan(0)
    expect(readdirSync(path)).toEqual(['a'])
  })
})

/** The system calls in the order they ended: strace cuts one in two where another thread comes between. */
function wholeCalls(trace: string): string[] {
  const begun = new Map<string, string>()
  return trace.split('\n').flatMap((line) => {
    const [, thread = '', call = ''] = /^(\d+) +(.*)$/.exec(line) ?? []
    const cut = call.indexOf(' <unfinished ...>')
    if (cut >= 0) {
      begun.set(thread, call.slice(0, cut))
      return []
    }
    return [call.replace(/^<\.\.\. \w+ resumed>/, () => begun.get(thread) ?? '')]
  })
}

const canTrace = spawnSync('strace', ['-o', '/dev/null', 'true']).status === 0

it.skipIf(!canTrace)('asks the kernel for each step in the order that outlasts a power cut', () => {
  const path = folder()
  const log = join(path, 'log')
  const file = join(path, 'a')
  const script = `
    const { fileStore } = await import('dps-device-client')
    await fileStore(process.argv[1]).write(Buffer.from('record'))`
  const traced = 'trace=openat,open,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,close'
  execFileSync('strace', [
    ...['-f', '-o', log, '-e', traced],
    ...[process.execPath, '--input-type=module', '-e', script, '--', file],
  ])
  const lines = wholeCalls(readFileSync(log, 'utf8'))
  const at = (pattern: RegExp, from = 0) => {
    const index = lines.findIndex((line, i) => i >= from && pattern.test(line))
    expect({ pattern, found: index >= 0 }).toEqual({ pattern, found: true })
    return index
  }
  const temporary = `${file}\\.\\d+\\.[0-9a-f]{12}\\.tmp`
  const opened = at(new RegExp(`open(at)?\\(.*"${temporary}", O_WRONLY\\|O_CREAT\\|O_EXCL.*, 0600\\) = `))
  const descriptor = /= (\d+)/.exec(lines[opened]!)![1]
  const written = at(new RegExp(`write(64)?\\(${descriptor}, "record", 6`), opened)
  const flushed = at(new RegExp(`fsync\\(${descriptor}\\)`), written)
  const renamed = at(new RegExp(`rename.*"${temporary}".*"${file}"`), flushed)
  const folderOpened = at(new RegExp(`open(at)?\\(.*"${path}", O_RDONLY.*\\) = `), renamed)
  const folderDescriptor = /= (\d+)/.exec(lines[folderOpened]!)![1]
  at(new RegExp(`fsync\\(${folderDescriptor}\\)`), folderOpened)
})

describe('a store that does not work', () => {
  it.each([
    ['an empty path', ''],
    ['a path with a zero byte', 'a\0b'],
    ['a number', 7],
    ['nothing', undefined],
    ['a URL of the web', new URL('https://example.com/a')],
  ])('%s is refused at once', async (_, path) => {
    await expectDpsError(() => fileStore(path as string), 'OPTION_INVALID', 'config')
  })

  it('because its folder is missing says so', async () => {
    const file = join(folder(), 'missing', 'a')
    const error = await expectDpsError(fileStore(file).write(OLD), 'STORE_FAILED', 'store')
    expect(error).toMatchObject({ retryable: true, family: 'device' })
    expect(error.message).toBe(`${file} could not be written (ENOENT)`)
    expect(await fileStore(file).read()).toBeUndefined()
  })

  it('because its folder is a file says so, for each verb', async () => {
    const path = join(folder(), 'file')
    writeFileSync(path, 'x')
    const store = fileStore(join(path, 'a'))
    for (const action of [store.read, () => store.write(OLD), store.remove]) {
      const error = await expectDpsError(action, 'STORE_FAILED', 'store')
      expect(error.message).toContain('ENOTDIR')
    }
  })

  it('because its folder may not be written to says so, and keeps the old record', async () => {
    const path = folder()
    const file = join(path, 'a')
    await fileStore(file).write(OLD)
    if (root) chownSync(file, NOBODY, NOBODY)
    chmodSync(path, 0o500)
    await asNobody(path, async () => {
      const error = await expectDpsError(fileStore(file).write(NEW), 'STORE_FAILED', 'store')
      expect(error.message).toContain('EACCES')
      await expectDpsError(fileStore(file).remove(), 'STORE_FAILED', 'store')
      expect(Buffer.from((await fileStore(file).read())!)).toEqual(OLD)
    })
    chmodSync(path, 0o700)
    expect(readdirSync(path)).toEqual(['a'])
  })

  it('because the file may not be read says so', async () => {
    const path = folder()
    const file = join(path, 'a')
    writeFileSync(file, 'x', { mode: 0o000 })
    await asNobody(path, async () => {
      const error = await expectDpsError(fileStore(file).read(), 'STORE_FAILED', 'store')
      expect(error.message).toContain('EACCES')
    })
  })

  it('because the disk is full says so, keeps the old record and leaves nothing', async () => {
    const path = folder()
    const file = join(path, 'a')
    await fileStore(file).write(OLD)
    const script = `
      const { fileStore } = await import('dps-device-client')
      await fileStore(process.argv[1]).write(Buffer.alloc(100000)).catch(({ name, code, phase, message }) => {
        console.log(JSON.stringify({ name, code, phase, message }))
      })`
    // No file may grow beyond 1 KiB or so: what a full disk does, on a disk that is not.
    const command = 'ulimit -f 1 && exec "$@"'
    const output = execFileSync('sh', [
      ...['-c', command, 'sh', process.execPath, '--input-type=module', '-e', script, '--', file],
    ])
    expect(JSON.parse(String(output))).toEqual({
      name: 'DpsError',
      code: 'STORE_FAILED',
      phase: 'store',
      message: `${file} could not be written (EFBIG)`,
    })
    expect(readFileSync(file)).toEqual(OLD)
    expect(readdirSync(path)).toEqual(['a'])
  })

  it('because something else is in its place does not hang or fill the memory', async () => {
    const path = folder()
    const pipe = join(path, 'pipe')
    execFileSync('mkfifo', [pipe])
    const directory = join(path, 'directory')
    mkdirSync(directory)
    const large = join(path, 'large')
    writeFileSync(large, Buffer.alloc(1024 * 1024 + 1))
    for (const [file, why] of [
      [pipe, 'is not a regular file'],
      [directory, 'is not a regular file'],
      [large, 'is larger than 1 MiB'],
    ] as const) {
      const error = await expectDpsError(fileStore(file).read(), 'STORE_FAILED', 'store')
      expect(error.message).toContain(why)
    }
    await expectDpsError(fileStore(directory).write(OLD), 'STORE_FAILED', 'store')
    expect(readdirSync(path).sort()).toEqual(['directory', 'large', 'pipe'])
  })
})

describe('a platform that can do less', () => {
  it('is told of once, and the write counts: a folder that cannot be flushed', async () => {
    const path = folder()
    chmodSync(path, 0o300)
    await asNobody(path, async () => {
      const store = fileStore(join(path, 'a'))
      await store.write(OLD)
      await store.write(NEW)
      expect(store.notices).toEqual([
        `${path} cannot be flushed on this platform: the last write may not outlast a power cut`,
      ])
      expect(Buffer.from((await store.read())!)).toEqual(NEW)
    })
    chmodSync(path, 0o700)
  })

  it('is told of: Windows', () => {
    const before = Object.getOwnPropertyDescriptor(process, 'platform')!
    Object.defineProperty(process, 'platform', { ...before, value: 'win32' })
    try {
      expect(fileStore('a').notices).toEqual([expect.stringContaining('Windows has no file mode 0600')])
    } finally {
      Object.defineProperty(process, 'platform', before)
    }
  })
})
