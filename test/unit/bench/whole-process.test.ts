import { expect, test } from 'vitest'
import { parseOpened } from '../../../bench/lib/whole-process.mjs'

test('a file counts when it was opened, once per open', () => {
  const trace = `\
10 openat(AT_FDCWD, "/lib/libc.so.6", O_RDONLY|O_CLOEXEC) = 3
10 openat(AT_FDCWD, "/etc/missing", O_RDONLY) = -1 ENOENT (No such file or directory)
11 open("/dev/urandom", O_RDONLY) = 21
10 openat(AT_FDCWD, "/lib/libc.so.6", O_RDONLY|O_CLOEXEC) = 4
`
  expect(parseOpened(trace)).toEqual(['/lib/libc.so.6', '/dev/urandom', '/lib/libc.so.6'])
})

test('a call that another thread interrupted counts once, by its outcome', () => {
  const trace = `\
10 openat(AT_FDCWD, "/proc/meminfo", O_RDONLY <unfinished ...>
11 openat(AT_FDCWD, "/etc/missing", O_RDONLY <unfinished ...>
10 <... openat resumed>) = 17
11 <... openat resumed>) = -1 ENOENT (No such file or directory)
`
  expect(parseOpened(trace)).toEqual(['/proc/meminfo'])
})
