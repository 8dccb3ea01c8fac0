import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

// The flow is options → credential → TLS policy → transport → registration → assignment, and imports follow it.

const src = fileURLToPath(new URL('../src/', import.meta.url))

interface Import {
  readonly from: string
  readonly to: string
  readonly typeOnly: boolean
  readonly dynamic: boolean
}

const files = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'))

function importsOf(file: string): Import[] {
  const text = readFileSync(join(src, file), 'utf8')
  const found: Import[] = []
  const add = (specifier: string, typeOnly: boolean, dynamic: boolean) => {
    const to = specifier.startsWith('.') ? relative(src, resolve(src, dirname(file), specifier)) : specifier
    found.push({ from: file, to, typeOnly, dynamic })
  }
  for (const [, clause = '', specifier = ''] of text.matchAll(
    /^(?:import|export)\b([^'";]*?)from '([^']+)'/gms,
  )) {
    add(specifier, /^\s*type\b/.test(clause), false)
  }
  for (const [, specifier = ''] of text.matchAll(/^import '([^']+)'/gm)) add(specifier, false, false)
  for (const [, specifier = ''] of text.matchAll(/\bimport\('([^']+)'\)/g)) add(specifier, false, true)
  return found
}

const imports = files.flatMap(importsOf)
const isLeaf = (name: string) =>
  /^(errors|clock|clock-check|distinguished-name|iso-time|lru|printable|release|sealed|within)\.ts$/.test(
    name,
  ) ||
  name.startsWith('protocol/') ||
  name === '../package.json'
const folder = (name: string) => (name.includes('/') ? name.slice(0, name.indexOf('/')) : '')

const FLOW = ['options', 'credential', 'tls', 'transport', 'registration', 'assignment']

/** Static imports that are left in the running program, from `entry` on. */
function reachable(entry: string): Set<string> {
  const seen = new Set<string>()
  const open = [entry]
  for (let file = open.pop(); file !== undefined; file = open.pop()) {
    if (seen.has(file)) continue
    seen.add(file)
    for (const i of imports) if (i.from === file && !i.typeOnly && !i.dynamic) open.push(i.to)
  }
  return seen
}

describe('the dependency rule', () => {
  it('reads the imports of every file', () => {
    expect(imports.length).toBeGreaterThan(50)
    expect(imports).toContainEqual({ from: 'client.ts', to: 'tls/dial.ts', typeOnly: false, dynamic: false })
    expect(imports).toContainEqual({
      from: 'transport/select.ts',
      to: 'transport/mqtt/mqtt.ts',
      typeOnly: false,
      dynamic: true,
    })
  })

  for (const [index, name] of FLOW.entries()) {
    it(`${name}/ imports leaves and what comes before it`, () => {
      const allowed = new Set(FLOW.slice(0, index + 1))
      const wrong = imports.filter(
        (i) =>
          folder(i.from) === name &&
          !i.typeOnly &&
          !i.to.startsWith('node:') &&
          !isLeaf(i.to) &&
          i.to.endsWith('.ts') &&
          !allowed.has(folder(i.to)),
      )
      expect(wrong).toEqual([])
    })
  }

  it('registration/ sees transports as a type only', () => {
    expect(
      imports.filter((i) => folder(i.from) === 'registration' && folder(i.to) === 'transport' && !i.typeOnly),
    ).toEqual([])
  })

  it('protocol/ and the transition table import no Node module', () => {
    const pure = (name: string) => folder(name) === 'protocol' || name === 'registration/transition.ts'
    expect(
      imports.filter((i) => pure(i.from) && (i.to.startsWith('node:') || !i.to.endsWith('.ts'))),
    ).toEqual([])
    expect(
      imports.filter(
        (i) => folder(i.from) === 'protocol' && !i.typeOnly && !isLeaf(i.to) && folder(i.to) !== 'protocol',
      ),
    ).toEqual([])
  })

  it('only tls/ opens sockets on the client’s side', () => {
    const opens = imports.filter(
      (i) =>
        /^node:(net|tls|dgram|http|http2|https)$/.test(i.to) &&
        !i.typeOnly &&
        folder(i.from) !== 'emulator' &&
        // The emulator's live page, which the command serves to this machine.
        i.from !== 'cli/emulator/page.ts' &&
        // Standard output, where it is a pipe: a socket is how Node writes without waiting.
        i.from !== 'cli/emulator/stream.ts' &&
        // Frames HTTP on a socket that was dialled; its agent has no other.
        !(i.from === 'transport/https/session.ts' && i.to === 'node:https'),
    )
    expect([...new Set(opens.map((i) => folder(i.from)))]).toEqual(['tls'])
  })

  it('the emulator shares nothing with the client but errors and clock', () => {
    const shared = imports.filter(
      (i) => folder(i.from) === 'emulator' && i.to.endsWith('.ts') && folder(i.to) !== 'emulator',
    )
    for (const i of shared) expect(['errors.ts', 'clock.ts', 'printable.ts']).toContain(i.to)
    // The contract suite is handed an emulator, and only knows what one is.
    const known = imports.filter((i) => folder(i.from) === 'testing' && i.typeOnly)
    // The command has it as everybody has, in the file of the library, and only once it is asked for.
    known.push(
      ...imports.filter(
        (i) =>
          i.from.startsWith('cli/emulator/') && i.to === 'emulator/index.ts' && (i.typeOnly || i.dynamic),
      ),
    )
    expect(
      imports.filter(
        (i) => folder(i.to) === 'emulator' && folder(i.from) !== 'emulator' && !known.includes(i),
      ),
    ).toEqual([])
  })

  it('nothing imports the contract suite, which is an entry of its own', () => {
    expect(imports.filter((i) => folder(i.to) === 'testing' && folder(i.from) !== 'testing')).toEqual([])
  })

  it('hub/ comes after all of the flow, and nothing imports it', () => {
    const allowed = new Set([...FLOW, 'hub'])
    const wrong = imports.filter(
      (i) =>
        folder(i.from) === 'hub' &&
        !i.typeOnly &&
        i.to.endsWith('.ts') &&
        !isLeaf(i.to) &&
        !allowed.has(folder(i.to)),
    )
    // Its own composition root alone sees that of provisioning.
    expect([...new Set(wrong.map((i) => `${i.from} ${i.to}`))].sort()).toEqual([
      'hub/connect.ts client.ts',
      'hub/connect.ts load-issuance.ts',
      'hub/connect.ts provision.ts',
      'hub/connection.ts load-issuance.ts',
    ])
    // What renews its certificate is handed a connection, and only knows what one is.
    const known = imports.filter((i) => folder(i.from) === 'renewal' && i.typeOnly)
    expect(
      imports.filter((i) => folder(i.to) === 'hub' && folder(i.from) !== 'hub' && !known.includes(i)),
    ).toEqual([])
  })

  it('renewal/ is handed what it works with, but credentials and requests, and comes with issuance alone', () => {
    const used = imports.filter(
      (i) => folder(i.from) === 'renewal' && !i.typeOnly && !i.to.startsWith('node:') && !isLeaf(i.to),
    )
    const allowed = new Set(['renewal', 'credential', 'factory'])
    expect(used.filter((i) => !allowed.has(folder(i.to)))).toEqual([])
    const from = imports.filter(
      (i) => folder(i.to) === 'renewal' && folder(i.from) !== 'renewal' && !i.typeOnly,
    )
    expect([...new Set(from.map((i) => i.from))]).toEqual(['issuance.ts'])
  })

  it('MQTT.js is loaded in one file of hub/, and nowhere else', () => {
    const loads = imports.filter((i) => /^mqtt(\/|$)/.test(i.to) && !i.typeOnly)
    expect(loads.map((i) => `${i.from} ${i.to}`)).toEqual(['hub/mqtt-client.ts mqtt/lib/client'])
  })

  it('the names of issuance, which is a preview, are in one module', () => {
    const named = files.filter((file) =>
      /[.'"]issuedCertificateChain|"csr"|2025-07-01-preview/.test(
        readFileSync(join(src, file), 'utf8').replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, ''),
      ),
    )
    expect(named.filter((file) => folder(file) !== 'emulator')).toEqual(['protocol/issuance.ts'])
  })

  it('nothing imports the composition root but the entry', () => {
    expect(
      imports
        .filter((i) => i.to === 'client.ts' && !i.typeOnly)
        .map((i) => i.from)
        .sort(),
    ).toEqual([
      'cli/register.ts',
      'hub/connect.ts',
      'index.ts',
      'provision-forever.ts',
      'provision-many.ts',
      'provision.ts',
    ])
  })

  it('many/ is loaded by one file, and imports leaves: all else is handed to it', () => {
    const own = imports.filter((i) => folder(i.from) === 'many' && !i.typeOnly)
    expect(own.length).toBeGreaterThan(5)
    expect(own.filter((i) => i.to.endsWith('.ts') && folder(i.to) !== 'many' && !isLeaf(i.to))).toEqual([])
    const loads = imports.filter((i) => folder(i.to) === 'many' && folder(i.from) !== 'many')
    expect([...new Set(loads.map((i) => i.from))]).toEqual(['rare.ts'])
    expect(imports.filter((i) => i.to === 'rare.ts').map((i) => [i.from, i.dynamic])).toEqual([
      ['provision-many.ts', true],
    ])
  })

  it('nothing imports the command, and the command loads what it does not always need', () => {
    expect(imports.filter((i) => folder(i.to) === 'cli' && folder(i.from) !== 'cli')).toEqual([])
    const loaded = [...reachable('cli/bin.ts')]
    expect(loaded).toContain('transport/mqtt/mqtt.ts')
    // Nor any of the other commands, which are a file of their own.
    expect(loaded.filter((name) => folder(name) === 'cli')).toHaveLength(9)
    expect(loaded).not.toContain('cli/commands.ts')
    const unwanted = /^(?:index\.ts|emulator\/|testing\/|transport\/(?:https|mqtt\/(?:mqtt-ws|websocket)))/
    expect(loaded.filter((name) => unwanted.test(name))).toEqual([])
    // Each of them costs a cold start more than the file that it would read or the line that it would write.
    expect(loaded).toContain('node:tls')
    expect(loaded.filter((name) => /^node:(?:fs\/promises|util|stream|https|process)$/.test(name))).toEqual(
      [],
    )
  })
})

describe('the file of the other commands', () => {
  it('has nothing that the command or the library has: that is handed to it, or asked for when it is used', () => {
    const own = new Set(['cli/commands.ts'])
    for (const name of own) {
      for (const i of imports) {
        if (i.from !== name || i.typeOnly || i.dynamic || i.to.startsWith('node:')) continue
        // The kit itself names all that it holds, and esbuild leaves that out where only its holder is used.
        expect(folder(i.to), `${i.from} imports ${i.to}`).toBe('cli')
        if (i.to !== 'cli/kit.ts') own.add(i.to)
      }
    }
    expect(own).toContain('cli/checks/tls.ts')
    expect(own).toContain('cli/emulator/emulate.ts')
    // The server of the emulator's page is in it too, and is not run before it is asked for.
    expect(own).not.toContain('cli/emulator/page.ts')
    expect(imports.filter((i) => i.to === 'cli/emulator/page.ts' && !i.typeOnly && !i.dynamic)).toEqual([])
    const first = reachable('cli/bin.ts')
    expect([...own].filter((name) => first.has(name))).toEqual([])
  })
})

describe('what the main entry loads', () => {
  it('is no transport, no emulator, no MQTT.js, no node-forge, no ws', () => {
    const loaded = [...reachable('index.ts')]
    const heavy = loaded.filter((name) =>
      /^(mqtt|mqtt-packet|node-forge|ws|node:https)(\/|$)|^(emulator|testing|hub)\/|^transport\/(mqtt|https)\/|^many\/|^rare\.ts|^credential\/(?:rare|chain|pkcs12|rc2)\.ts/.test(
        name,
      ),
    )
    expect(heavy).toEqual([])
    // What only a registration with a signing request needs.
    expect(
      loaded.filter((name) =>
        /^factory\/|^issuance|^renewal\/|certificate-request|issued-chain|protocol\/renewal/.test(name),
      ),
    ).toEqual([])
    expect(loaded).toContain('tls/dial.ts')
  })
})

describe('time and chance', () => {
  it('are read in clock.ts alone', () => {
    const readers = files.filter((file) => {
      const code = readFileSync(join(src, file), 'utf8').replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '')
      return /\bDate\.now\b|\bnew Date\(\)|\bMath\.random\b|\bset(Timeout|Interval)\b|performance\.now|\bhrtime\b/.test(
        code,
      )
    })
    expect(readers).toEqual(['clock.ts'])
  })
})
