// What is installed, and what is loaded when.

import { mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loads, overBudget, packedContents, readBudget } from '../lib/footprint.mjs'
import { run as runProgram } from '../lib/process.mjs'

export const title = 'Footprint'
export const about =
  'The packed tarball installed into an empty folder; then each entry point loaded with `require` in a process of its ' +
  'own, and each transport up to the point where it dials. Bytes are those of our own files; modules of Node are those ' +
  'that a process without us had not loaded.'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** @param {import('../run.mjs').BenchContext} context */
export async function run({ folder }) {
  const packed = packedContents()
  const installed = await install(folder)
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
        columns: ['', 'Measured', 'Budget'],
        rows: [
          ['packages', installed.packages, budget.packages],
          ['bytes unpacked', installed.bytes, budget.unpackedBytes],
          ['files', installed.files, budget.files],
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
    data: { packed, installed, loaded, budget },
  }
}

/** As on a device, but offline: what would need the registry is what must not be there. */
async function install(folder) {
  const into = join(folder, 'installed')
  mkdirSync(into)
  writeFileSync(join(into, 'package.json'), '{"private":true}')
  const env = { npm_config_update_notifier: 'false', npm_config_fund: 'false', npm_config_audit: 'false' }
  const { stdout } = await runProgram(['npm', 'pack', '--json', '--pack-destination', folder], {
    role: 'anywhere',
    cwd: root,
    env,
  })
  const [{ filename }] = JSON.parse(stdout)
  await runProgram(['npm', 'install', '--offline', join(folder, filename)], {
    role: 'anywhere',
    cwd: into,
    env,
  })
  const all = readdirSync(join(into, 'node_modules'), { recursive: true, encoding: 'utf8' })
  const packages = all.filter((path) =>
    /^((@[^/]+\/)?[^/.][^/]*\/)(.*node_modules\/(@[^/]+\/)?[^/]+\/)?package\.json$/.test(path),
  )
  // npm's own notes begin with a dot.
  const files = all
    .filter((path) => !path.startsWith('.'))
    .map((path) => statSync(join(into, 'node_modules', path)))
    .filter((stat) => stat.isFile())
  return {
    packages: packages.length,
    files: files.length,
    bytes: files.reduce((sum, { size }) => sum + size, 0),
  }
}
