import { spawn, spawnSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest'
import { deriveDeviceKey } from '../../src/factory/index.ts'
import { Bench, COMMAND, DEVICE_KEY, run } from './bench.ts'

const bench = await Bench.open()
const { emulator, trust } = bench
const groupKey = emulator.enrollments.addGroup({
  groupId: 'keyed',
  attestation: { symmetricKey: {} },
})!.primaryKey
const payloads: unknown[] = []
emulator.enrollments.addIndividual({
  registrationId: 'told-1',
  attestation: { symmetricKey: { primaryKey: DEVICE_KEY } },
  hub: ({ payload, hubs }) => {
    payloads.push(payload)
    return hubs[0]
  },
})
const groupKeyFile = bench.write('group.key', `${groupKey}\n`)
const keyOf = (registrationId: string) => deriveDeviceKey({ groupKey, registrationId })
afterAll(() => bench.close())
afterEach(() => {
  emulator.faults.clear()
  emulator.registrations.forget()
  payloads.length = 0
})

let count = 0
/** A list in a file of its own; `{}` stands for its folder. */
const listed = (content: string, suffix = 'csv'): string =>
  bench.write(`list-${++count}.${suffix}`, content.replaceAll('{}', bench.folder))
const there = [...bench.there.slice(1), ...trust, '--rate', '60000']
const many = (list: string, ...more: readonly string[]) => ['register-many', list, ...there, ...more]
const group = ['--group-key-file', groupKeyFile]
const lines = (text: string) =>
  text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Record<string, unknown>)
const registered = () =>
  emulator.registrations
    .list()
    .map(({ registrationId }) => registrationId)
    .sort()
const ids = (n: number, prefix = 'press') => Array.from({ length: n }, (_, i) => `${prefix}-${i}`)

describe('a list', () => {
  test('of CSV, with certificates, keys in files, keys in cells and the key of a group', async () => {
    bench.write('press-2.key', `${await keyOf('press-2')}\n`)
    const list = listed(
      [
        '\uFEFFregistrationId,cert,key,symmetricKeyFile,symmetricKey,payload',
        'press-1,{}/cert.pem,{}/key.pem,,,',
        '"press-2",,,"{}/press-2.key",,',
        `press-3,,,,${await keyOf('press-3')},`,
        'press-4,,,,,',
        '',
        `told-1,,,,${DEVICE_KEY},"{""floor"": 3, ""name"": ""a,b""}"`,
      ].join('\r\n'),
    )
    const ran = await run(many(list, ...group))
    expect(ran).toMatchObject({ code: 0, stderr: '' })
    expect(ran.stdout).toMatch(/^done {4}5\nhubs {4}5 emulated-hub\.azure-devices\.net\ntime {4}\d+\.\d s\n$/)
    expect(registered()).toEqual(['press-1', 'press-2', 'press-3', 'press-4', 'told-1'])
    expect(payloads).toEqual([{ floor: 3, name: 'a,b' }])
  })

  test('of JSON lines, from standard input, told for machines', async () => {
    const input = `{"registrationId":"press-1"}\n\n{"registrationId":"told-1","symmetricKey":"${DEVICE_KEY}","payload":{"floor":4}}\n`
    const ran = await run(many('-', ...group, '--json', '--payload', '{"common":1}'), { input })
    expect(ran).toMatchObject({ code: 0, stderr: '' })
    const told = lines(ran.stdout)
    expect(told.slice(0, 2).sort((a, b) => Number(a.line) - Number(b.line))).toMatchObject([
      {
        line: 1,
        source: 'register',
        registrationId: 'press-1',
        status: 'assigned',
        connection: { transport: 'mqtt' },
      },
      { line: 3, source: 'register', deviceId: 'told-1', assignedHub: 'emulated-hub.azure-devices.net' },
    ])
    expect(told[2]).toMatchObject({ summary: { assigned: 2, register: 2, journal: 0, failed: 0, codes: {} } })
    expect(payloads).toEqual([{ floor: 4 }])
  })

  test.each([';', '\t'])('is separated by %j as well', async (separator) => {
    const list = listed(
      `registrationId${separator}payload\npress-1${separator}"{""a"":[1${separator}2]}"\n`.replaceAll(
        `1${separator}2`,
        '1,2',
      ),
    )
    expect(await run(many(list, ...group))).toMatchObject({ code: 0, stderr: '' })
    expect(registered()).toEqual(['press-1'])
  })

  test('has cells with quotes, separators and line breaks, and lines keep their numbers', async () => {
    const list = listed(`registrationId,payload\npress-1,"{""a"":\n\n""b,\\""c""}"\npress-2,\nwrong id,\n`)
    const ran = await run(many(list, ...group, '--json'))
    expect(ran.code).toBe(10)
    const told = lines(ran.stdout)
    expect(told.find(({ registrationId }) => registrationId === 'press-1')).toMatchObject({ line: 2 })
    expect(told.find(({ registrationId }) => registrationId === 'press-2')).toMatchObject({ line: 5 })
    expect(told.find(({ error }) => error)).toMatchObject({ line: 6, error: { code: 'OPTION_INVALID' } })
  })

  test('has spaces around its cells, and rows of nothing; quoted spaces count', async () => {
    const list = listed(
      'registrationId , cert, key, keyPassphraseFile,symmetricKey\n press-1 , {}/cert.pem, {}/encrypted.pem, {}/passphrase,\n,,,,\n  \n"",,\npress-2,,,," a"\n',
    )
    const failed = bench.file('spaces.csv')
    const ran = await run(many(list, '--failed', failed))
    expect(ran).toMatchObject({ code: 10, stdout: expect.stringContaining('1: 1 SAS_KEY_INVALID') })
    expect(registered()).toEqual(['press-1'])
    expect(readFileSync(failed, 'utf8')).toMatch(/\npress-2,,,," a",SAS_KEY_INVALID,/)
  })

  test('opens encrypted keys with the passphrase that is said for all', async () => {
    const list = listed('cert,key\n{}/cert.pem,{}/encrypted.pem\n')
    expect(await run(many(list, '--key-passphrase-file', bench.file('passphrase')))).toMatchObject({
      code: 0,
    })
    expect(registered()).toEqual(['press-1'])
  })
})

describe('what is wrong with one row', () => {
  test('stops no other, names its line, and makes exit code 10', async () => {
    const rows = [
      'registrationId,cert,key,symmetricKey,payload',
      'press-0,,,,',
      'press-1,,,,{"a":1',
      'press-2,{}/cert.pem,,,',
      'press-3,,',
      'press-4,{}/nowhere.pem,{}/key.pem,,',
      `press-5,{}/cert.pem,{}/key.pem,${DEVICE_KEY},`,
      ',,,,{}',
      `press-7,,,${DEVICE_KEY},`,
      'press-8,,,"no" quotes,',
      'press-0,,,,',
      'press-9,-,{}/key.pem,,',
      'press-10,,,,',
    ]
    const ran = await run(many(listed(`${rows.join('\n')}\n`), ...group))
    expect(ran.code).toBe(10)
    expect(registered()).toEqual(['press-0', 'press-10'])
    expect(ran.stdout).toMatch(
      /^done {4}2\nhubs {4}2 .*\nfailed {2}10: 8 OPTION_INVALID, 1 CREDENTIAL_UNREADABLE, 1 UNAUTHORIZED/,
    )
    for (const [line, what] of [
      [3, /payload in line 3 is not JSON|quotes do not match/],
      [4, /a cell for key is missing/],
      [5, /has 3 cells, and there are 5 columns/],
      [6, /CREDENTIAL_UNREADABLE .*cert in line 6: .* does not exist/],
      [7, /both a certificate and a symmetric key/],
      [8, /a cell for registrationId is missing/],
      [9, /UNAUTHORIZED/],
      [10, /its quotes do not match/],
      [11, /came before/],
      [12, /cannot be standard input/],
    ] as const) {
      expect(ran.stderr).toMatch(new RegExp(`^line ${line}: .*${what.source}`, 'm'))
    }
    expect(ran.stderr).not.toContain(DEVICE_KEY)
  })

  test('is said in the words of the list, whose columns are no options', async () => {
    const rows = [
      'registrationId,cert,key,pkcs12,symmetricKey,symmetricKeyFile',
      'press-1,,{}/key.pem,,,',
      'press-2,,,,,',
      'press-3,,,,no-key,',
      'press 4,,,,no-key,',
      `press-5,,,,${DEVICE_KEY},{}/sas.key`,
      'press-6,{}/cert.pem,{}/key.pem,{}/cert.pem,,',
      'press-7,,,{}/cert.pem,,',
      `,,,,${DEVICE_KEY},`,
    ]
    const failed = bench.file('words.csv')
    const ran = await run(many(listed(`${rows.join('\n')}\n`), '--failed', failed))
    const said = ran.stderr.trimEnd().split('\n').sort()
    expect(said.map((line) => line.replace(/^line \d: (?:press-\d: )?\w+ in phase config: /, ''))).toEqual([
      'a cell for cert is missing: the certificate that belongs to key in line 2',
      'the row has no credential: it needs cert and key, pkcs12, symmetricKeyFile or symmetricKey',
      'The symmetric key contains - or _ at position 3 of 6: it is in the URL-safe alphabet, not base64.',
      'registrationId contains U+0020 at position 6; allowed are letters, digits and - . _ :.',
      'the row has both symmetricKey and symmetricKeyFile: give one of the two',
      'the row has both cert and pkcs12: give one of the two',
      expect.stringMatching(/^pkcs12 is PEM, .*: give it as cert and key/),
      'a cell for registrationId is missing: a symmetric key does not say whose it is',
    ])
    for (const text of [ran.stderr, readFileSync(failed, 'utf8')]) expect(text).not.toMatch(/--|`/)
  })

  test('of a list that names nobody is told', async () => {
    for (const content of ['', '\n\n', 'registrationId,symmetricKey\n']) {
      const ran = await run(many(listed(content)))
      expect(ran).toMatchObject({ code: 0, stderr: 'warning: the list names no device\n' })
    }
  })

  test('with a key in any column, or in place of the columns, and no piece of it is repeated', async () => {
    const columns = [
      'registrationId',
      'cert',
      'key',
      'pkcs12',
      'keyPassphraseFile',
      'symmetricKeyFile',
      'payload',
    ]
    const rows = columns.map((_, at) =>
      columns
        .map((name, i) => (i === at ? DEVICE_KEY : name === 'registrationId' ? `press-${at}` : ''))
        .join(','),
    )
    const listings = [
      listed([columns.join(','), ...rows].join('\n')),
      listed(
        columns.map((name) => JSON.stringify({ registrationId: 'press-0', [name]: DEVICE_KEY })).join('\n'),
      ),
      listed(`{"${DEVICE_KEY}":"press-0"}`),
      listed(`${DEVICE_KEY},press-0`),
    ]
    for (const list of listings) {
      for (const form of [[], ['--json']]) {
        const { code, stdout, stderr } = await run(many(list, ...form))
        expect([2, 10]).toContain(code)
        expect(`${stdout}${stderr}`).toMatch(/"?failed|OPTION_INVALID/)
        expect(`${stdout}${stderr}`).not.toContain(DEVICE_KEY.slice(0, 12))
      }
    }
  })

  test('of JSON lines, likewise, and nothing of it is repeated', async () => {
    const list = listed(
      [
        '{"registrationId":"press-0"}',
        '{"registrationId":"press-1"',
        '["press-2"]',
        '{"registrationId":5}',
        '{"registrationId":"press-4","symetricKey":"hunter2hunter2"}',
        '{"registrationId":"press-5","payload":"text"}',
      ].join('\n'),
      'jsonl',
    )
    const ran = await run(many(list, ...group, '--json'))
    expect(ran.code).toBe(10)
    const told = lines(ran.stdout)
    const wrong = told.filter(({ error }) => error).map(({ line }) => line)
    expect(wrong.sort()).toEqual([2, 3, 4, 5, 6])
    expect(ran.stdout).toContain('Did you mean symmetricKey?')
    expect(ran.stdout).not.toContain('hunter2')
    expect(registered()).toEqual(['press-0'])
  })

  test('goes to --failed with the reason, for this user alone, and can be fed in again', async () => {
    const list = listed(`registrationId,symmetricKey\npress-0,\n"press-1",${DEVICE_KEY}\npress-2,\npress-3\n`)
    const failed = bench.file('failed-1.csv')
    const ran = await run(many(list, ...group, '--failed', failed))
    expect(ran.code).toBe(10)
    expect(ran.stdout).toContain(`written ${failed}`)
    expect(statSync(failed).mode & 0o777).toBe(0o600)
    const [head, ...rows] = readFileSync(failed, 'utf8').trimEnd().split('\n')
    expect(head).toBe('registrationId,symmetricKey,errorCode,errorMessage,errorRow')
    expect(rows.sort()).toEqual([
      ',,OPTION_INVALID,"line 5 has 1 cells, and there are 2 columns",press-3',
      expect.stringMatching(new RegExp(`^press-1,${DEVICE_KEY.replace(/[+/]/g, '.')},UNAUTHORIZED,`)),
    ])
    // As an operator would: the enrollment is put right, and the list that is left is fed in.
    emulator.enrollments.addIndividual({
      registrationId: 'press-1',
      attestation: { symmetricKey: { primaryKey: DEVICE_KEY } },
    })
    const again = await run(many(failed, ...group, '--failed', failed, '--force'))
    expect(again.code).toBe(10)
    expect(registered()).toEqual(['press-0', 'press-1', 'press-2'])
    expect(readFileSync(failed, 'utf8')).not.toContain('press-1')
    emulator.enrollments.remove({ registrationId: 'press-1' })
  })

  test.each([
    [
      'csv',
      'registrationId,symmetricKey\npress-0,\npress-1\npress-2,"a"b\npress-3,a,b\n',
      'registrationId,symmetricKey,errorCode,errorMessage,errorRow',
      [
        ',,OPTION_INVALID,"line 3 has 1 cells, and there are 2 columns",press-1',
        ',,OPTION_INVALID,line 4: its quotes do not match,"press-2,""a""b"',
        ',,OPTION_INVALID,"line 5 has 3 cells, and there are 2 columns","press-3,a,b"',
      ],
      ['press-1', '"press-1,"'],
    ],
    [
      'jsonl',
      '{"registrationId":"press-0"}\n{"registrationId":"press-1"\n{"registrationld":"press-2"}\n',
      '{"errorCode":"OPTION_INVALID","errorMessage":"line 2 is no JSON object","errorRow":"{\\"registrationId\\":\\"press-1\\""}',
      [
        '{"errorCode":"OPTION_INVALID","errorMessage":"registrationld in line 3 is not known","errorRow":"{\\"registrationld\\":\\"press-2\\"}"}',
      ],
      ['press-1\\"', 'press-1\\"}'],
    ],
  ] as const)(
    'goes to --failed as it was where nothing could be made of it, in %s, and is mended there',
    async (suffix, content, head, rows, [wrong, right]) => {
      const failed = bench.file(`failed-4.${suffix}`)
      const args = [...group, '--failed', failed, '--force']
      expect((await run(many(listed(content, suffix), ...args))).code).toBe(10)
      const kept = readFileSync(failed, 'utf8')
      const [first, ...others] = kept.trimEnd().split('\n')
      expect(first).toBe(head)
      expect(others.sort()).toEqual([...rows].sort())
      // As it is it fails for the same reason, and nothing of it is lost.
      expect((await run(many(failed, ...args))).code).toBe(10)
      const again = readFileSync(failed, 'utf8')
      expect(again.replace(/line \d/g, '')).toBe(kept.replace(/line \d/g, ''))
      bench.write(`failed-4.${suffix}`, again.replace(wrong, right))
      expect((await run(many(failed, ...args))).code).toBe(10)
      expect(registered()).toEqual(['press-0', 'press-1'])
      expect(readFileSync(failed, 'utf8')).not.toContain('press-1')
    },
  )

  test('is mended in a list that had the columns of --failed, as one row of that list', async () => {
    const failed = bench.write(
      'failed-5.csv',
      'registrationId,symmetricKey,errorCode,errorMessage,errorRow\npress-0"s,,UNAUTHORIZED,no,\n',
    )
    const args = [...group, '--failed', failed, '--force']
    expect((await run(many(failed, ...args))).code).toBe(10)
    const kept = readFileSync(failed, 'utf8')
    expect(kept).toContain('"press-0""s,,UNAUTHORIZED,no,"')
    bench.write('failed-5.csv', kept.replace('press-0""s', 'press-0'))
    expect(await run(many(failed, ...args))).toMatchObject({ code: 0, stderr: '' })
    expect(registered()).toEqual(['press-0'])
  })

  test('is not text: it is not registered with what stands for that', async () => {
    const list = bench.file('latin1.csv')
    writeFileSync(
      list,
      Buffer.from('registrationId,payload\npress-0,\npress-1,"{""city"":""K\xf6ln""}"\n', 'latin1'),
    )
    const ran = await run(many(list, ...group))
    expect(ran).toMatchObject({
      code: 10,
      stderr: expect.stringMatching(/^line 3: .*is not text in UTF-8/m),
    })
    expect(registered()).toEqual(['press-0'])
  })

  test('leaves no file where none failed, and replaces none that is there', async () => {
    const list = listed('registrationId\npress-0\n')
    const failed = bench.file('failed-2.csv')
    expect((await run(many(list, ...group, '--failed', failed))).code).toBe(0)
    expect(existsSync(failed)).toBe(false)
    bench.write('failed-2.csv', 'mine')
    const ran = await run(many(list, ...group, '--failed', failed))
    expect(ran).toMatchObject({ code: 3, stdout: '', stderr: expect.stringContaining('is there already') })
    expect(readFileSync(failed, 'utf8')).toBe('mine')
    expect(readdirSync(bench.folder).filter((name) => name.endsWith('.tmp'))).toEqual([])
  })
})

describe('the file of --failed', () => {
  const refused = (id: string) => `${id},${Buffer.alloc(32).toString('base64')}`

  test('is never what the command reads or keeps', async () => {
    const list = listed(`registrationId,symmetricKey\n${refused('press-0')}\n`)
    const journal = bench.file('same-1.journal')
    const same = ['--force', '--failed'] as const
    for (const [args, option] of [
      [[...group, ...same, groupKeyFile], 'group-key-file'],
      [[...group, '--journal', journal, '--failed', journal], 'journal'],
    ] as const) {
      const ran = await run(many(list, ...args))
      expect(ran).toMatchObject({ code: 2, stdout: '' })
      expect(ran.stderr).toContain(`--failed names the file of --${option}`)
    }
    expect(readFileSync(groupKeyFile, 'utf8')).toBe(`${groupKey}\n`)
    expect(existsSync(journal)).toBe(false)
  })

  test('is in place of a file alone, of no link or folder, which is said before anybody is registered', async () => {
    const list = listed(`registrationId,symmetricKey\npress-0,\n${refused('press-1')}\n`)
    const [target, link] = [bench.write('target', 'mine'), bench.file('link')]
    symlinkSync(target, link)
    for (const there of [link, bench.folder]) {
      const ran = await run(many(list, ...group, '--failed', there, '--force'))
      expect(ran).toMatchObject({ code: 3, stdout: '', stderr: expect.stringContaining('is no file') })
    }
    expect(registered()).toEqual([])
    expect(readFileSync(link, 'utf8')).toBe('mine')
  })

  test('leaves nothing of a run that was killed, when the next one begins', async () => {
    const list = listed(`registrationId,symmetricKey\n${refused('press-0')}\npress-1,\n`)
    const failed = bench.file('killed.csv')
    const left = () => readdirSync(bench.folder).filter((name) => name.startsWith('killed.csv.'))
    const { hit } = emulator.faults.add({
      at: 'register',
      do: 'silence',
      match: { registrationId: 'press-1' },
    })
    const args = many(list, ...group, '--failed', failed)
    await run(args, { meanwhile: (kill) => void hit.then(() => kill('SIGKILL')) })
    expect(left()).toHaveLength(1)
    // What another run is at work with, or what is no file of this kind.
    const others = [`killed.csv.${process.pid}.tmp`, 'killed.csv.bak']
    for (const name of others) bench.write(name, '')
    expect((await run(args)).code).toBe(10)
    expect(left().sort()).toEqual(others.sort())
    for (const name of others) rmSync(bench.file(name))
  })

  test('begins beside what looks like that, and cannot be removed', async () => {
    const failed = bench.file('beside.csv')
    const folder = `${failed}.999999999.tmp`
    mkdirSync(folder)
    const list = listed(`registrationId,symmetricKey\n${refused('press-0')}\n`)
    expect(await run(many(list, '--failed', failed))).toMatchObject({ code: 10 })
    expect(readFileSync(failed, 'utf8')).toContain('press-0')
    expect(statSync(folder).isDirectory()).toBe(true)
    rmdirSync(folder)
  })

  test('that the disk has no room for ends the run, and the one of before stays', async () => {
    const failed = bench.write('full.csv', 'of before\n')
    const list = listed(
      `registrationId,symmetricKey\n${ids(40)
        .map((id) => `${id},no key ${'x'.repeat(60)}`)
        .join('\n')}\n`,
    )
    const words = [COMMAND, ...many(list, '--failed', failed, '--force')].map((word) => `'${word}'`).join(' ')
    const ran = await run([], { command: ['bash', '-c', `ulimit -f 2; exec ${words}`] })
    expect(ran).toMatchObject({ code: 3, stderr: expect.stringMatching(/could not be written \(EFBIG\)/) })
    expect(ran.stdout).toMatch(/^done {4}0\nfailed {2}\d+: \d+ SAS_KEY_INVALID\ntime/)
    expect(readFileSync(failed, 'utf8')).toBe('of before\n')
    expect(readdirSync(bench.folder).filter((name) => name.startsWith('full.csv.'))).toEqual([])
  })

  test('of a run before goes with --force where none failed', async () => {
    const failed = bench.write('failed-3.csv', `registrationId\npress-0\n`)
    const ran = await run(many(failed, ...group, '--failed', failed, '--force'))
    expect(ran).toMatchObject({ code: 0, stderr: '' })
    expect(ran.stdout).not.toContain('written')
    expect(existsSync(failed)).toBe(false)
  })

  test('is not put in place of the list where that was not read to its end', async () => {
    const rows = [
      refused('press-0'),
      ...ids(60)
        .slice(1)
        .map((id) => `${id},`),
    ]
    const content = `registrationId,symmetricKey\n${rows.join('\n')}\n`
    const list = listed(content)
    const ran = await run(
      ['register-many', list, ...bench.there.slice(1), ...trust, ...group].concat([
        '--rate',
        '60',
        '--concurrency',
        '1',
        '--failed',
        list,
        '--force',
      ]),
      {
        meanwhile: (kill) =>
          vi.waitFor(() => expect(registered()).not.toEqual([]), 20_000).then(() => kill('SIGINT')),
      },
    )
    expect(ran).toMatchObject({ code: 130, stderr: expect.stringContaining('UNAUTHORIZED') })
    expect(readFileSync(list, 'utf8')).toBe(content)
  })
})

describe('what is wrong with all', () => {
  test.each([
    ['no list', ['register-many', ...there], /dps-device register-many FILE/],
    ['a list that is not there', many('nowhere.csv'), /--list: nowhere\.csv does not exist/],
    ['a folder', many('/'), /is a directory/],
    ['a rate of none', ['register-many', '-', '--rate', '0.5'], /--rate must be at least 1/],
    [
      'an unknown --in-doubt',
      many(listed('registrationId\na\n'), ...group, '--in-doubt', 'maybe'),
      /in-doubt/,
    ],
    ['both from standard input', many('-', '--group-key-file', '-'), /cannot be both/],
  ] as const)('%s', async (_, args, message) => {
    const ran = await run(args)
    expect(ran).toMatchObject({ code: 2, stderr: expect.stringMatching(message) })
    expect(registered()).toEqual([])
  })

  test('a column that is not known, or is there twice, registers nobody', async () => {
    for (const [head, message] of [
      [
        'registrationId,symetricKey',
        /symetricKey as a column .* is not known[\s\S]*Did you mean symmetricKey\?/,
      ],
      ['registrationId,registrationId', /the same name in columns 1 and 2/],
      ['registrationId,"payload', /quotes do not match/],
    ] as const) {
      const ran = await run(many(listed(`${head}\npress-0,a\n`), ...group))
      expect(ran).toMatchObject({ code: 2, stderr: expect.stringMatching(message) })
    }
    expect(registered()).toEqual([])
  })

  test.each([
    [
      'no columns',
      'press-0,press-0.key\n',
      /press-0 as a column .* is not known\nThe first row names the columns; .*registrationId, cert/,
    ],
    ['a column in other letters', 'RegistrationId\npress-0\n', /Did you mean registrationId\?/],
    [
      'line breaks of CR alone',
      'registrationId\rpress-0\r',
      /line 1 has carriage returns without line feeds/,
    ],
    ['UTF-16', Buffer.from('\uFEFFregistrationId\npress-0\n', 'utf16le'), /line 1 is not text in UTF-8/],
    [
      'UTF-16 without a mark',
      Buffer.from('registrationId\npress-0\n', 'utf16le'),
      /line 1 is not text in UTF-8/,
    ],
    ['a JSON array', '[{"registrationId":"press-0"}]', /line 1 begins a JSON array\n.*one object a line/],
    [
      'a line that never ends',
      `registrationId\npress-0\n${'x'.repeat(1_200_000)}`,
      /line 3 is longer than 1 MiB/,
    ],
  ] as const)('%s', async (_, content, message) => {
    const list = bench.file(`odd-${++count}.csv`)
    writeFileSync(list, content)
    const ran = await run(many(list, ...group))
    expect(ran).toMatchObject({ code: 2, stderr: expect.stringMatching(message) })
  })

  test('a group key that is none', async () => {
    const wrong = bench.write('wrong.key', groupKey.slice(3))
    const ran = await run(many(listed('registrationId\npress-0\n'), '--group-key-file', wrong))
    expect(ran).toMatchObject({ code: 3, stderr: expect.stringMatching(/^SAS_KEY_INVALID/) })
    expect(ran.stderr).not.toContain(groupKey.slice(3, 15))
  })

  test('a quote that is never closed does not fill the memory', async () => {
    const list = listed(
      `registrationId,payload\npress-0,\npress-1,"{\n${'x'.repeat(99)}\n`.padEnd(
        1_200_000,
        `${'y'.repeat(99)}\n`,
      ),
    )
    const ran = await run(many(list, ...group))
    expect(ran).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/the row in line 3 is longer than 1 MiB/),
    })
  })
})

describe('going on', () => {
  const journal = () => bench.file(`journal-${++count}`)

  test('registers nobody twice, and tells of all', async () => {
    const list = listed(`registrationId\n${ids(12).join('\n')}\n`)
    const args = many(list, ...group, '--journal', journal(), '--json')
    const first = await run(args)
    expect(lines(first.stdout).at(-1)).toMatchObject({ summary: { assigned: 12, register: 12, journal: 0 } })
    const again = await run(args)
    expect(again).toMatchObject({ code: 0, stderr: '' })
    expect(lines(again.stdout).at(-1)).toMatchObject({ summary: { assigned: 12, register: 0, journal: 12 } })
    expect(emulator.registrations.list().map((one) => one.count)).toEqual(Array(12).fill(1))
  })

  test('after Ctrl-C, which leaves nothing behind', async () => {
    const list = listed(`registrationId\n${ids(10).join('\n')}\n`)
    const [kept, failed] = [journal(), bench.file('failed-3.csv')]
    const { hit } = emulator.faults.add({
      at: 'register',
      do: 'silence',
      match: { registrationId: 'press-7' },
    })
    const args = many(list, ...group, '--journal', kept, '--failed', failed, '--concurrency', '3')
    const ran = await run(args, {
      meanwhile: (kill) =>
        void hit
          .then(() => vi.waitFor(() => expect(registered()).toHaveLength(9), 20_000))
          .then(() => kill('SIGINT')),
    })
    expect(ran).toMatchObject({ code: 130, signal: null, stderr: expect.stringMatching(/^CANCELLED/m) })
    expect(ran.stdout).toMatch(/^done {4}9\n[\s\S]*\nnext {4}the same command goes on from here\n$/)
    await vi.waitFor(() => expect(emulator.openConnections).toBe(0), 5000)
    const left = readdirSync(bench.folder).filter((name) => /\.(?:tmp|lock)$|failed-3/.test(name))
    expect(left).toEqual([])
    const again = await run([...args, '--json'])
    expect(again.code).toBe(0)
    // Of the one that was under way the service had to be asked, and knew nothing.
    expect(lines(again.stdout).at(-1)).toMatchObject({ summary: { assigned: 10, journal: 9, register: 1 } })
  })

  test('is refused with the journal of another scope, and of a run that is not over', async () => {
    const list = listed('registrationId\npress-0\n')
    const kept = journal()
    expect((await run(many(list, ...group, '--journal', kept))).code).toBe(0)
    const { idScope: _, ...at } = emulator
    const other = ['register-many', list, '--id-scope', '0ne00000001', '--connect-to', at.address, ...trust]
    const ran = await run([...other, ...group, '--journal', kept])
    expect(ran).toMatchObject({
      code: 3,
      stderr: expect.stringMatching(/^STORE_FAILED .* another id scope/m),
    })
    bench.write(`journal-${count}.${process.pid}.lock`, '')
    const locked = await run(many(list, ...group, '--journal', kept))
    expect(locked).toMatchObject({
      code: 3,
      stderr: expect.stringContaining(`in use by process ${process.pid}`),
    })
  })

  test('is ended while the list, on standard input, goes on', async () => {
    const child = spawn(COMMAND, many('-', ...group), {
      env: { PATH: process.env.PATH ?? '' },
      stdio: 'pipe',
    })
    child.stdin.on('error', () => {})
    child.stdin.write('registrationId\npress-0\n')
    await vi.waitFor(() => expect(registered()).toEqual(['press-0']), 20_000)
    child.kill('SIGTERM')
    const code = await new Promise((resolve) => child.once('close', resolve))
    expect(code).toBe(143)
  })
})

describe('a person', () => {
  const hasScript = spawnSync('script', ['--version']).error === undefined
  test.skipIf(!hasScript)('sees on a terminal how far it is', async () => {
    const list = listed(`registrationId\n${ids(30).join('\n')}\n`)
    const words = [COMMAND, ...many(list, ...group)].map((word) => `'${word}'`).join(' ')
    const ran = await run([], {
      command: ['script', '-qec', words, '/dev/null'],
      env: { TERM: 'xterm', SHELL: '/bin/sh' },
    })
    expect(ran.code).toBe(0)
    expect(ran.stdout).toMatch(/[█░]{24} \d+ % {2}\d+ assigned, 0 failed, [\d.]+ a second, .* left/)
    expect(ran.stdout).toMatch(/done {4}.*30/)
  })

  /** What a terminal shows, without what controls it. */
  const onTerminal = async (args: readonly string[]) => {
    const words = [COMMAND, ...args].map((word) => `'${word}'`).join(' ')
    const command = ['script', '-qec', words, '/dev/null']
    const ran = await run([], { command, env: { TERM: 'xterm', SHELL: '/bin/sh' } })
    return { ...ran, shown: ran.stdout.split('\r\x1b[K') }
  }

  test.skipIf(!hasScript)('sees what all wait for while the service asks for patience', async () => {
    const list = listed(`registrationId\n${ids(3).join('\n')}\n`)
    emulator.faults.add({ at: 'register-reply', do: { reply: { status: 429, retryAfter: '4' } } })
    const { code, shown } = await onTerminal(many(list, ...group, '--concurrency', '1'))
    expect(code).toBe(0)
    const waits = shown.filter((line) => /0 assigned, 0 failed; THROTTLED: all wait [2-5]\.0 s/.test(line))
    expect(waits.length).toBeGreaterThanOrEqual(2)
    // A line that wraps could not be replaced.
    for (const line of waits) {
      expect(line.startsWith('\x1b[?7l')).toBe(true)
      expect(line.trimEnd().endsWith('\x1b[?7h')).toBe(true)
    }
  })

  test.skipIf(!hasScript)('sees when the devices under way try again, while no other comes on', async () => {
    const list = listed(`registrationId\n${ids(1).join('\n')}\n`)
    emulator.faults.add({ at: 'register-reply', do: { reply: { status: 412, retryAfter: '4' } } })
    const { code, shown } = await onTerminal(many(list, ...group))
    expect(code).toBe(0)
    expect(shown.join('\n')).toMatch(/0 assigned, 0 failed; [A-Z_]+: tried again within [2-5]\.0 s/)
  })

  test('is told of the first failures, and how many there were', async () => {
    const list = listed(
      `registrationId,symmetricKey\n${ids(50)
        .map((id) => `${id},${DEVICE_KEY}`)
        .join('\n')}\n`,
    )
    const ran = await run(many(list))
    expect(ran.code).toBe(10)
    expect(ran.stderr.match(/UNAUTHORIZED/g)).toHaveLength(20)
    expect(ran.stderr.trimEnd().split('\n').at(-1)).toMatch(/only counted/)
    expect(ran.stdout).toContain('failed  50: 50 UNAUTHORIZED')
    const quiet = await run(many(list, '--quiet'))
    expect(quiet.stdout).toBe('')
  })
})
