// What is installed, and what is loaded when.

import { copyFileSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loads, overBudget, packedContents, readBudget } from '../lib/footprint.mjs'
import { run as runProgram } from '../lib/process.mjs'

export const title = 'Footprint'
export const about =
  'The packed tarball installed into an empty folder; then each entry point loaded with `require` in a process of its ' +
  'own, and each transport up to the point where it dials. Bytes are those of our own files; modules of Node are those ' +
  'that a process without us had not loaded. Microsoft’s client is what a registration with X.509 over MQTT takes, in the ' +
  'versions of the interoperability test.'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** @param {import('../run.mjs').BenchContext} context */
export async function run({ folder }) {
  const packed = packedContents()
  const installed = await installOurs(folder)
  const theirs = await installMicrosofts(folder).catch(() => undefined)
  const loaded = loads()
  const budget = readBudget()
  const loadedBytes = Object.fromEntries(loaded.map(({ name, bytes }) => [name, bytes]))
  const faults = overBudget(budget, {
    packages: installed.packages,
    unpackedBytes: installed.bytes,
    files: installed.files,
    loadedBytes,
  })
  return {
    tables: [
      {
        title: 'Installed',
        columns: ['', 'Measured', 'Budget', 'Microsoft’s'],
        rows: [
          ['packages', installed.packages, budget.packages, theirs?.packages],
          ['bytes unpacked', installed.bytes, budget.unpackedBytes, theirs?.bytes],
          ['files', installed.files, budget.files, theirs?.files],
          ['bytes packed', packed.packedBytes, undefined],
        ],
      },
      {
        title: 'Loaded',
        columns: ['Entry point, transport', 'Our files', 'Bytes', 'Budget', 'Modules of Node'],
        rows: loaded.map(({ name, files, bytes, builtins }) => [
          name.replace(':', ', '),
          files.length,
          bytes,
          budget.loadedBytes[name],
          builtins.length,
        ]),
      },
      {
        title: 'Largest files',
        columns: ['File', 'Bytes'],
        rows: [...packed.files]
          .sort((a, b) => b.size - a.size)
          .slice(0, 12)
          .map(({ path, size }) => [path, size]),
      },
    ],
    charts: [
      {
        title: 'Our own code loaded',
        unit: 'KB',
        bars: loaded.map(({ name, bytes }) => ({
          label: name.replace(':', ', '),
          value: bytes / 1000,
          strong: name.includes(':'),
        })),
      },
    ],
    measured: { packages: installed.packages, unpacked: installed.bytes, files: installed.files },
    checks: [{ name: 'within bench/budget.json', ok: faults.length === 0, detail: faults.join('; ') }],
    data: { packed, installed, theirs, loaded, budget },
  }
}

const env = { npm_config_update_notifier: 'false', npm_config_fund: 'false', npm_config_audit: 'false' }

/** As on a device, but offline: what would need the registry is what must not be there. */
async function installOurs(folder) {
  const { stdout } = await runProgram(['npm', 'pack', '--json', '--pack-destination', folder], {
    role: 'anywhere',
    cwd: root,
    env,
  })
  const [{ filename }] = JSON.parse(stdout)
  return await install(join(folder, 'installed'), {}, join(folder, filename))
}

/** From the lock file of the interoperability test and npm's cache, which that test fills. */
async function installMicrosofts(folder) {
  const interop = join(root, 'test/interop')
  const { dependencies } = JSON.parse(readFileSync(join(interop, 'package.json'), 'utf8'))
  const names = [
    'azure-iot-provisioning-device',
    'azure-iot-provisioning-device-mqtt',
    'azure-iot-security-x509',
  ]
  const into = join(folder, 'microsoft')
  mkdirSync(into)
  copyFileSync(join(interop, 'package-lock.json'), join(into, 'package-lock.json'))
  return await install(into, Object.fromEntries(names.map((name) => [name, dependencies[name]])))
}

async function install(into, dependencies, ...wanted) {
  mkdirSync(into, { recursive: true })
  writeFileSync(join(into, 'package.json'), JSON.stringify({ private: true, dependencies }))
  await runProgram(['npm', 'install', '--offline', '--ignore-scripts', ...wanted], {
    role: 'anywhere',
    cwd: into,
    env,
  })
  const all = readdirSync(join(into, 'node_modules'), { recursive: true, encoding: 'utf8' })
  const lock = JSON.parse(readFileSync(join(into, 'node_modules/.package-lock.json'), 'utf8'))
  // npm's own notes begin with a dot.
  const files = all
    .filter((path) => !path.startsWith('.'))
    .map((path) => statSync(join(into, 'node_modules', path)))
    .filter((stat) => stat.isFile())
  return {
    packages: Object.keys(lock.packages).length,
    files: files.length,
    bytes: files.reduce((sum, { size }) => sum + size, 0),
  }
}
