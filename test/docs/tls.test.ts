import { readFileSync } from 'node:fs'
import { afterAll, describe, expect, it } from 'vitest'
import { deriveDeviceKey } from '../../src/factory/index.ts'
import { BUNDLED_ROOTS } from '../../src/index.ts'
import { LEGACY_SUITES, RECOMMENDED_SUITES } from '../../src/tls/ciphers.ts'
import { Bench, run } from '../cli/bench.ts'

const page = readFileSync(new URL('../../docs/tls.md', import.meta.url), 'utf8')
const bench = await Bench.open({ hubs: ['my-hub.azure-devices.net'] })
afterAll(() => bench.close())

/** The text below a heading, to the next one. */
const below = (heading: string): string => {
  const [, text] = new RegExp(`\\n#+ ${heading}\\n([\\s\\S]*?)(?=\\n##)`).exec(page) ?? []
  if (text === undefined) throw new Error(`docs/tls.md has no "${heading}"`)
  return text
}
const rows = (text: string): string[][] =>
  [...text.matchAll(/^\| (.*) \|$/gm)].map(([, row = '']) => row.split(' | ')).slice(1)
const blocks = (language: string): string[] =>
  [...page.matchAll(new RegExp(`^ *\`\`\`${language}\\n([\\s\\S]*?)^ *\`\`\``, 'gm'))].map(
    ([, text = '']) => text,
  )

describe('the suites', () => {
  it.each([
    ['Recommended', RECOMMENDED_SUITES],
    ['Legacy', LEGACY_SUITES],
  ])('%s: both orders are those of the code', (heading, suites) => {
    const table = rows(below(heading))
    expect(table.map(([place]) => place)).toEqual(table.map((_, i) => `${i + 1}`))
    expect(table.map(([, first]) => first)).toEqual(suites.security)
    expect(table.map(([, , second]) => second)).toEqual(suites.performance)
  })
})

it('names the roots that are bundled', () => {
  for (const { name } of BUNDLED_ROOTS) expect(page.replace(/\s+/g, ' ')).toContain(name)
})

describe('the commands', () => {
  const fenced = blocks('sh').flatMap((text) =>
    text
      .trim()
      .split('\n')
      .map((line) => line.trim()),
  )
  const inline = [...page.matchAll(/`(dps-device [^`]*)`/g)].map(([, text = '']) => text.replace(/\s+/g, ' '))
  const commands = [...new Set([...fenced, ...inline])].filter(
    (line) => line.includes(' --') || line.includes('roots'),
  )

  it('are found', () => expect(commands.length).toBeGreaterThan(9))

  // What the service answers is not known here: that each is understood, and ends as the page says, is.
  it.each(commands)('%s', async (line) => {
    bench.write('new-root.pem', bench.emulator.roots[0]!)
    bench.write(
      'device.pem',
      (await bench.emulator.issueDeviceCertificate({ registrationId: 'press-1' })).cert,
    )
    const { idScope, address, port } = bench.emulator
    const words = line.replace(/ \|.*/, '').replace('$ID_SCOPE', idScope)
    const [, ...args] = [...words.matchAll(/"([^"]*)"|(\S+)/g)].map(
      ([, quoted, word]) => quoted ?? word ?? '',
    )
    const here: Record<string, string> = {
      'device.pem': 'cert.pem',
      'device.key': 'key.pem',
      'New Root': 'Emulator Root 1',
      '443': `${port}`,
    }
    const theirs = args.map((arg) => here[arg] ?? arg)
    bench.write('edge.group-key', Buffer.alloc(64, 7).toString('base64'))
    const env = {
      DPS_CONNECT_TO: address,
      ...(args.includes('--port') ? {} : { DPS_PORT: `${port}` }),
      ...(args.includes('--extra-root') ? {} : { DPS_EXTRA_ROOT: bench.file('root.pem') }),
    }
    const { code, stdout, stderr } = await run(theirs, { env, cwd: bench.folder })
    const asOnThePage = args.includes('--only') && !args.includes('--extra-root') ? 6 : 0
    expect(code, stdout + stderr).toBe(asOnThePage)
  })
})

it('the key of an Edge device is the raw bytes of the derived one', async () => {
  const [line = ''] = blocks('sh').flatMap((text) =>
    text.split('\n').filter((one) => one.includes('base64 -d')),
  )
  const groupKey = Buffer.alloc(64, 7).toString('base64')
  bench.write('edge.group-key', `${groupKey}\n`)
  const command = line.replace('dps-device', '"$0"').trim()
  const dist = new URL('../../dist/dps-device.cjs', import.meta.url).pathname
  expect(await run(['-c', command, dist], { command: ['sh'], cwd: bench.folder })).toMatchObject({ code: 0 })
  const key = await deriveDeviceKey({ groupKey, registrationId: 'edge-1' })
  expect(readFileSync(bench.file('edge-1.key')).toString('base64')).toBe(key)
})

describe('the fragments for IoT Edge', () => {
  /** As much of TOML as they use: tables, strings, and tables of one line. */
  const parse = (text: string): Record<string, unknown> => {
    const root: Record<string, unknown> = {}
    let table = root
    for (const line of text.trim().split('\n')) {
      const [, path] = /^\[([\w.]+)\]$/.exec(line) ?? []
      const [, key, value] = /^(\w+) = ("[^"\\]*"|\{ \w+ = "[^"\\]*" \})$/.exec(line) ?? []
      if (path !== undefined) {
        table = path.split('.').reduce<Record<string, unknown>>((at, name) => {
          at[name] ??= {}
          return at[name] as Record<string, unknown>
        }, root)
      } else if (key !== undefined && value !== undefined) {
        if (Object.hasOwn(table, key)) throw new Error(`${key} twice`)
        table[key] = JSON.parse(value.replace(/^\{ (\w+) = /, '{ "$1": '))
      } else if (line !== '') throw new Error(`not understood: ${line}`)
    }
    return root
  }
  const [sas, x509, ...more] = blocks('toml').map(parse)
  const provisioning = {
    source: 'dps',
    global_endpoint: 'https://global.azure-devices-provisioning.net',
    id_scope: '0ne00000000',
  }

  it('are two, each a whole configuration', () => {
    expect(more).toEqual([])
    expect(sas).toEqual({
      hostname: 'edge-1.plant-7.example',
      provisioning: {
        ...provisioning,
        attestation: {
          method: 'symmetric_key',
          registration_id: 'edge-1',
          symmetric_key: { uri: 'file:///var/aziot/secrets/edge-1.key' },
        },
      },
    })
    expect(x509).toEqual({
      hostname: 'edge-2.plant-7.example',
      provisioning: {
        ...provisioning,
        attestation: {
          method: 'x509',
          registration_id: 'edge-2',
          identity_cert: 'file:///var/aziot/certs/edge-2.pem',
          identity_pk: 'file:///var/aziot/secrets/edge-2.key',
        },
      },
    })
  })
})
