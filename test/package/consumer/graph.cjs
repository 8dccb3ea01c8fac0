// What `require` of each entry loads, in a process of its own, and what is in those files: the parts that are heavy come
// when they are used. Each part is known by a text of it that stands in some file of the package.

const assert = require('node:assert/strict')
const { execFileSync } = require('node:child_process')
const { readdirSync, readFileSync } = require('node:fs')
const { basename, dirname, join } = require('node:path')

const dist = dirname(require.resolve('dps-device-client'))
const contents = new Map(
  readdirSync(dist)
    .filter((name) => name.endsWith('.cjs'))
    .map((name) => [name, readFileSync(join(dist, name), 'utf8')]),
)
const PARTS = {
  'node-forge': 'Too few bytes to parse DER',
  'MQTT.js': 'client disconnecting',
  ws: 'Invalid WebSocket frame',
  hub: 'provisionAndConnect',
  emulator: 'Emulator Root',
  'contract suite': 'open rejects with what the dialer',
  command: 'derive-key',
}
const holding = Object.fromEntries(
  Object.entries(PARTS).map(([part, text]) => {
    const files = [...contents].filter(([, content]) => content.includes(text)).map(([name]) => name)
    assert.notEqual(files.length, 0, `no file of the package has ${part}`)
    return [part, files]
  }),
)

/** Names of the files of the package that are loaded once an entry is. */
function loaded(entry) {
  const script = `require(${JSON.stringify(entry)})
    const files = Object.keys(require.cache).filter((path) => path.startsWith(${JSON.stringify(dist)}))
    process.stdout.write(JSON.stringify(files))`
  const text = execFileSync(process.execPath, ['-e', script], { cwd: __dirname, encoding: 'utf8' })
  return JSON.parse(text).map((path) => basename(path))
}
const partsOf = (files) =>
  Object.keys(PARTS).filter((part) => holding[part].some((name) => files.includes(name)))

const EXPECTED = {
  '': [],
  '/factory': [],
  '/hub': ['MQTT.js', 'hub'],
  '/testing': ['contract suite'],
  '/emulator': ['ws', 'emulator'],
}
const counts = []
for (const [subpath, parts] of Object.entries(EXPECTED)) {
  const entry = `dps-device-client${subpath}`
  const files = loaded(entry)
  assert.deepEqual(partsOf(files), parts, `${entry} loads ${files.join(', ')}`)
  counts.push(`${entry} ${files.length}`)
  // As ESM it is a wrapper of one line that asks for the same file.
  const name = subpath.slice(1) || 'index'
  const imports = readFileSync(join(dist, `${name}.mjs`), 'utf8').match(/\b(?:from|import) ?\(?'[^']+'/g)
  assert.deepEqual(imports, [`from './${name}.cjs'`])
}

// The same by reading: what each file asks for as it is loaded, which is a statement of its first level.
// A line may end anywhere between two of them.
const AT_LOAD = /(?:^|[;,}]|var )\s*_?\w+\s*=\s*(?:__toESM\(\s*)?require\(\s*"\.\/([\w.-]+\.cjs)"\s*\)/g
function staticFrom(name, seen = new Set()) {
  if (seen.has(name)) return seen
  seen.add(name)
  for (const [, next] of contents.get(name).matchAll(AT_LOAD)) staticFrom(next, seen)
  return seen
}
for (const [subpath, parts] of Object.entries(EXPECTED)) {
  const name = `${subpath.slice(1) || 'index'}.cjs`
  const files = [...staticFrom(name)]
  assert.deepEqual(files.sort(), loaded(`dps-device-client${subpath}`).sort(), `static graph of ${name}`)
  assert.deepEqual(partsOf(files), parts)
}

// Nothing lies in the package that nothing asks for.
const asked = new Set(Object.keys(EXPECTED).map((subpath) => `${subpath.slice(1) || 'index'}.cjs`))
asked.add('dps-device.cjs')
for (const name of asked)
  for (const [, next] of contents.get(name).matchAll(/require\("\.\/([\w.-]+\.cjs)"\)/g)) asked.add(next)
assert.deepEqual([...contents.keys()].sort(), [...asked].sort())
console.log(`files loaded: ${counts.join(', ')}`)
