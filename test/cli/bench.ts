import { spawn } from 'node:child_process'
import { createPrivateKey } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  createPki,
  type Emulator,
  type EmulatorOptions,
  generateSymmetricKey,
  issueCertificate,
  startEmulator,
} from '../../src/emulator/index.ts'

/** The command as it is shipped. */
export const COMMAND = fileURLToPath(new URL('../../dist/dps-device.cjs', import.meta.url))

export const pki = await createPki()
export const DEVICE_KEY = generateSymmetricKey()
export const PASSPHRASE = 'correct horse battery staple'

export interface Ran {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

export interface Run {
  /** What is started, before the arguments. Default: the command by itself. */
  command?: readonly string[]
  env?: Readonly<Record<string, string>>
  /** Standard input, which ends after it. Default: nothing. */
  input?: string
  cwd?: string
  /** Called once the process runs. */
  meanwhile?: (kill: (signal: NodeJS.Signals) => void) => void
}

/** Far above what any run takes; one that does not end is found all the same. */
const PATIENCE_MS = 60_000

/** Starts the command in an environment that has nothing but a search path and what `env` says, and waits for its end. */
export async function run(args: readonly string[], options: Run = {}): Promise<Ran> {
  const { command = [COMMAND], env = {}, input = '', cwd, meanwhile } = options
  const [file = '', ...before] = command
  const child = spawn(file, [...before, ...args], {
    env: { PATH: process.env.PATH ?? '', ...env },
    cwd,
    stdio: 'pipe',
    signal: AbortSignal.timeout(PATIENCE_MS),
    killSignal: 'SIGKILL',
  })
  const output = { stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr'] as const) {
    child[stream].setEncoding('utf8').on('data', (text: string) => {
      output[stream] += text
    })
  }
  // A command that does not read it closes it.
  child.stdin.on('error', () => {})
  child.stdin.end(input)
  meanwhile?.((signal) => child.kill(signal))
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null]
  return { code, signal, ...output }
}

/** An emulator, and the files of a device that it knows, in a folder of their own. */
export class Bench {
  readonly emulator: Emulator
  readonly folder: string
  /** What devices handed to the allocation of `sensor-1`. */
  readonly payloads: unknown[]

  static async open(options: EmulatorOptions = {}): Promise<Bench> {
    const payloads: unknown[] = []
    const emulator = await startEmulator({
      pki,
      assigning: { polls: 0 },
      enrollments: [
        {
          registrationId: 'sensor-1',
          attestation: { symmetricKey: { primaryKey: DEVICE_KEY } },
          hub: ({ payload, hubs }) => {
            payloads.push(payload)
            return hubs[0]
          },
        },
        { groupId: 'devices', attestation: { x509: { ca: pki.deviceRoot.certPem } } },
      ],
      ...options,
    })
    const bench = new Bench(emulator, mkdtempSync(join(tmpdir(), 'dps-cli-')), payloads)
    const device = await emulator.issueDeviceCertificate({ registrationId: 'press-1' })
    const encrypted = createPrivateKey(device.key).export({
      type: 'pkcs8',
      format: 'pem',
      cipher: 'aes-256-cbc',
      passphrase: PASSPHRASE,
    })
    const expired = await emulator.issueDeviceCertificate({
      registrationId: 'press-1',
      validity: { notBefore: new Date('2020-01-01'), notAfter: new Date('2021-01-01') },
    })
    const stranger = await issueCertificate({ subject: 'press-1', eku: ['clientAuth'] })
    bench.write('cert.pem', device.cert)
    bench.write('key.pem', device.key)
    bench.write('encrypted.pem', encrypted as string)
    bench.write('passphrase', `${PASSPHRASE}\n`)
    bench.write('sas.key', `${DEVICE_KEY}\n`)
    bench.write('root.pem', pki.roots[0].certPem)
    bench.write('other-root.pem', pki.roots[1].certPem)
    bench.write('expired.pem', expired.cert)
    bench.write('expired-key.pem', expired.key)
    bench.write('stranger.pem', stranger.certPem)
    bench.write('stranger-key.pem', stranger.keyPem)
    return bench
  }

  private constructor(emulator: Emulator, folder: string, payloads: unknown[]) {
    this.emulator = emulator
    this.folder = folder
    this.payloads = payloads
  }

  write(name: string, content: string): string {
    const path = this.file(name)
    writeFileSync(path, content)
    return path
  }

  file(name: string): string {
    return join(this.folder, name)
  }

  /** Leads to the emulator; without trust. */
  get there(): readonly string[] {
    const { idScope, address, port } = this.emulator
    return ['register', '--id-scope', idScope, '--connect-to', address, '--port', `${port}`]
  }

  get trust(): readonly string[] {
    return ['--roots', 'none', '--extra-root', this.file('root.pem')]
  }

  get x509(): readonly string[] {
    return ['--cert', this.file('cert.pem'), '--key', this.file('key.pem')]
  }

  get sas(): readonly string[] {
    return ['--registration-id', 'sensor-1', '--symmetric-key-file', this.file('sas.key')]
  }

  async close(): Promise<void> {
    await this.emulator.close()
    rmSync(this.folder, { recursive: true, force: true })
  }
}
