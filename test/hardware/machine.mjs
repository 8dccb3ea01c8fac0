// What the cases need of the machine: tools, Node binaries, and the userland of another Debian in a folder.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const DEBIAN_13 = 'trixie'
const PACKAGES = [
  ...['softhsm2', 'opensc', 'libengine-pkcs11-openssl', 'p11-kit', 'p11-kit-modules', 'openssl'],
  ...['swtpm', 'tpm2-tools', 'tpm2-openssl', 'tpm2-abrmd', 'libtss2-tcti-tabrmd0', 'dbus-daemon'],
]
/** libatomic1 is for Node 26, which is linked to it. */
const PACKAGES_IN_FOLDER = [
  ...['nodejs', 'softhsm2', 'libengine-pkcs11-openssl', 'pkcs11-provider', 'p11-kit', 'p11-kit-modules'],
  'libatomic1',
]
const TOOLS = ['softhsm2-util', 'pkcs11-tool', 'openssl', 'p11-kit', 'swtpm', 'tpm2_hmac', 'tpm2-abrmd']
const LIBRARIES = ['engines-3/pkcs11.so', 'softhsm/libsofthsm2.so', 'ossl-modules/tpm2.so']

// A device is given none of the machine's own settings.
const { NODE_EXTRA_CA_CERTS: _, NODE_OPTIONS: __, OPENSSL_CONF: ___, ...clean } = process.env
export const env = { ...clean, PATH: `${clean.PATH}:/usr/sbin:/sbin`, DEBIAN_FRONTEND: 'noninteractive' }

export const run = (program, args, options = {}) =>
  execFileSync(program, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 300_000,
    maxBuffer: 2 ** 26,
    env,
    ...options,
  })

/** A library below /usr/lib/<architecture>, by the path that counts inside the userland. */
export function library(root, name) {
  const folders = readdirSync(join(root, 'usr/lib'))
  const found = folders.find((folder) => existsSync(join(root, 'usr/lib', folder, name)))
  return found === undefined ? undefined : join('/usr/lib', found, name)
}

/** What is missing for the cases, as names of tools; `install` asks Debian for it first. */
export function missingTools(install) {
  const missing = () => [
    ...TOOLS.filter((tool) => !env.PATH.split(':').some((folder) => existsSync(join(folder, tool)))),
    ...LIBRARIES.filter((name) => library('/', name) === undefined),
  ]
  if (process.platform !== 'linux') return ['Linux']
  if (missing().length > 0 && install) {
    try {
      run('apt-get', ['update'])
      run('apt-get', ['install', '-y', '--no-install-recommends', ...PACKAGES], { timeout: 600_000 })
    } catch (error) {
      console.log(
        `apt-get: ${String(error.stderr || error.message)
          .trim()
          .split('\n')
          .at(-1)}`,
      )
    }
  }
  return missing()
}

/** The Node binaries that nodejs.org publishes: each carries an OpenSSL of its own. */
export function publishedNodes(folder) {
  return ['20', '22', '24', '26'].map((major) => {
    const place = join(folder, `node-${major}`)
    mkdirSync(place)
    const name = `node-linux-${process.arch}`
    const flags = ['--no-package-lock', '--no-audit', '--no-fund', '--prefix', place]
    run('npm', ['install', ...flags, `${name}@${major}`], { env: process.env })
    return { major, binary: join(place, 'node_modules', name, 'bin/node') }
  })
}

/**
 * The userland of Debian 13 in a folder, for chroot: its packages are unpacked, and nothing of this machine changes.
 * Throws where it cannot be had.
 */
export function debian13(folder) {
  if (process.getuid() !== 0) throw new Error('chroot needs root')
  const root = join(folder, 'root')
  const apt = join(folder, 'apt')
  for (const name of ['etc', 'state/lists/partial', 'cache/archives/partial']) {
    mkdirSync(join(apt, name), { recursive: true })
  }
  const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg'
  writeFileSync(join(apt, 'etc/sources.list'), `deb [signed-by=${keyring}] ${mirror()} ${DEBIAN_13} main\n`)
  writeFileSync(join(apt, 'status'), '')
  writeFileSync(
    join(apt, 'apt.conf'),
    `Dir::Etc::sourcelist "${apt}/etc/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "${apt}/state";
Dir::State::status "${apt}/status";
Dir::Cache "${apt}/cache";
APT::Sandbox::User "root";
`,
  )
  const aptEnv = { ...env, APT_CONFIG: join(apt, 'apt.conf') }
  run('apt-get', ['update'], { env: aptEnv })
  const flags = ['-y', '--download-only', '--no-install-recommends']
  run('apt-get', ['install', ...flags, ...PACKAGES_IN_FOLDER], { env: aptEnv, timeout: 600_000 })
  mkdirSync(root)
  const archives = join(apt, 'cache/archives')
  for (const name of readdirSync(archives).filter((file) => file.endsWith('.deb'))) {
    run('dpkg-deb', ['--extract', join(archives, name), root])
  }
  // Debian's packages no longer hold these links: its installer makes them.
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
    if (!existsSync(join(root, name))) symlinkSync(`usr/${name}`, join(root, name))
  }
  for (const name of ['tmp', 'dev', 'proc']) mkdirSync(join(root, name), { recursive: true })
  for (const [name, minor] of [
    ['null', '3'],
    ['urandom', '9'],
  ]) {
    if (!existsSync(join(root, 'dev', name))) {
      run('mknod', ['-m', '666', join(root, 'dev', name), 'c', '1', minor])
    }
  }
  return root
}

/** Where this machine has its own packages from. */
function mirror() {
  const folder = '/etc/apt/sources.list.d'
  const lists = existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : []
  for (const file of ['/etc/apt/sources.list', ...lists].filter((name) => /\.(list|sources)$/.test(name))) {
    if (!existsSync(file)) continue
    const text = readFileSync(file, 'utf8')
    const found =
      /^URIs:\s*(\S*\/debian\/?)\s*$/m.exec(text) ?? /^deb\s.*?(https?:\S*\/debian\/?)\s/m.exec(text)
    if (found) return found[1]
  }
  throw new Error('no Debian mirror is configured')
}

/** A program that serves until it is stopped. Ready once it has said something, or `isReady` holds. */
export async function serve(program, args, options = {}) {
  const child = spawn(program, args, { env: options.env ?? env, stdio: ['ignore', 'pipe', 'ignore'] })
  const gone = once(child, 'exit').then(() => {
    throw new Error(`${program} ended`)
  })
  gone.catch(() => {})
  const said = once(child.stdout.setEncoding('utf8'), 'data').then(([text]) => text)
  const stop = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill()
    await gone.catch(() => {})
  }
  try {
    if (options.isReady === undefined) return { stop, said: await Promise.race([said, gone]) }
    for (let tries = 0; !options.isReady(); tries++) {
      if (tries === 100) throw new Error(`${program} does not answer`)
      await Promise.race([gone, new Promise((resolve) => setTimeout(resolve, 100))])
    }
    return { stop, said: '' }
  } catch (error) {
    await stop()
    throw error
  }
}
