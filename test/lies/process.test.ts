import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { describe, expect, test, vi } from 'vitest'
import {
  createPki,
  type FaultSpec,
  type FaultStep,
  generateSymmetricKey,
  startEmulator,
} from '../../src/emulator/index.ts'
import type { DpsErrorCode, DpsPhase, ProvisioningClientOptions } from '../../src/index.ts'

// A device must end by itself, whatever the other side does: what is left after a call can only be seen from outside.

const CHILD = fileURLToPath(new URL('./process-child.mjs', import.meta.url))
const pki = await createPki()
const registrationId = 'sensor-1'
const key = generateSymmetricKey()

interface Scene {
  readonly name: string
  readonly fault?: FaultSpec
  /** Pulls the plug of the whole service when the fault strikes. */
  readonly close?: boolean
  readonly cancelIn?: DpsPhase
  readonly x509?: boolean
  readonly options?: Partial<ProvisioningClientOptions>
  /** Code, or status, and the phases it may be of. */
  readonly ends: readonly (DpsErrorCode | 'assigned')[]
  readonly phases?: readonly DpsPhase[]
}

async function run(scene: Scene, outOfPatience: AbortSignal): Promise<void> {
  const emulator = await startEmulator({
    pki,
    enrollments: [
      { registrationId, attestation: { symmetricKey: { primaryKey: key } } },
      { groupId: 'devices', attestation: { x509: { ca: pki.deviceRoot.certPem } } },
    ],
    assigning: { polls: 1, retryAfterSeconds: 0 },
  })
  let closed: Promise<void> | undefined
  if (scene.fault !== undefined) {
    const fault = emulator.faults.add(scene.fault)
    if (scene.close === true) {
      void fault.hit.then(() => {
        closed = emulator.close()
      })
    }
  }
  const task = {
    options: {
      ...emulator.clientOptions(),
      retry: { maxAttempts: 2, baseDelayMs: 1, maxDelayMs: 1, pollIntervalMs: 1 },
      timeouts: { totalMs: 60_000 },
      ...scene.options,
    },
    cancelIn: scene.cancelIn,
    ...(scene.x509 === true
      ? { x509: await emulator.issueDeviceCertificate({ registrationId }) }
      : { sas: { registrationId, key } }),
  }
  const { NODE_EXTRA_CA_CERTS: _, NODE_OPTIONS: __, ...env } = process.env
  const child = spawn(process.execPath, ['--trace-warnings', CHILD, JSON.stringify(task)], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
    signal: outOfPatience,
    killSignal: 'SIGKILL',
  })
  try {
    const output = { stdout: '', stderr: '' }
    for (const stream of ['stdout', 'stderr'] as const) {
      child[stream].setEncoding('utf8').on('data', (text: string) => {
        output[stream] += text
      })
    }
    const [code, signal] = await once(child, 'close')
    const lines = output.stdout
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Record<string, unknown>)
    expect({ scene: scene.name, stderr: output.stderr, code, signal }).toEqual({
      scene: scene.name,
      stderr: '',
      code: 0,
      signal: null,
    })
    // One outcome, the end, and nothing else: no warning, no exception, no event after the call.
    expect(lines).toEqual([{ outcome: expect.anything(), left: [] }, { exit: 0 }])
    const { status, name, ...error } = lines[0]!.outcome as Record<string, string>
    expect(scene.ends, scene.name).toContain(status ?? error.code)
    if (status === undefined) {
      expect(name).toBe('DpsError')
      if (scene.phases !== undefined) expect(scene.phases, scene.name).toContain(error.phase)
    }
    await closed
    // The child is gone; the kernel may tell this process a moment later.
    await vi.waitFor(() => expect(emulator.openConnections).toBe(0), 5000)
  } finally {
    if (child.exitCode === null) child.kill('SIGKILL')
    await emulator.close()
  }
}

const STEPS: readonly (readonly [Exclude<FaultStep, 'issue'>, readonly DpsPhase[]])[] = [
  ['accept', ['tcp', 'tls']],
  ['client-hello', ['tls']],
  ['handshake', ['tls', 'connect']],
  ['connect', ['connect']],
  ['subscribe', ['subscribe']],
  ['register', ['register']],
  ['register-reply', ['register']],
  ['poll', ['poll']],
  ['poll-reply', ['poll']],
]

const always = { times: Number.POSITIVE_INFINITY }
const scenes: readonly Scene[] = [
  ...STEPS.flatMap(([at, phases]): Scene[] => [
    {
      name: `the plug is pulled at ${at}`,
      fault: { at, do: 'silence' },
      close: true,
      ends: ['CONNECTION_REFUSED'],
      phases: ['tcp'],
    },
    {
      name: `the plug is pulled at ${at}, and nothing is tried again`,
      fault: { at, do: 'silence' },
      close: true,
      options: { retry: { maxAttempts: 1, pollIntervalMs: 1 } },
      ends: ['CONNECTION_LOST'],
      phases,
    },
    {
      name: `the connection is reset at ${at} once`,
      fault: { at, do: 'reset' },
      ends: ['assigned'],
    },
    {
      name: `the connection is reset at ${at} for ever`,
      fault: { at, do: 'reset', ...always },
      ends: ['CONNECTION_LOST'],
      phases,
    },
    {
      name: `the server falls silent at ${at}`,
      fault: { at, do: 'silence', ...always },
      options: {
        retry: { maxAttempts: 1, pollIntervalMs: 1 },
        // Only of the phase in question: a busy machine may be slow in any other.
        timeouts: { [`${phases.at(-1)}Ms`]: 250 },
      },
      ends: ['TIMEOUT'],
      phases,
    },
    {
      name: `the whole call times out at ${at}`,
      fault: { at, do: 'silence', ...always },
      options: { timeouts: { totalMs: 400 } },
      ends: ['DEADLINE_EXCEEDED'],
    },
  ]),
  ...STEPS.map(
    ([at, phases]): Scene => ({
      name: `the caller cancels at ${at}`,
      fault: { at, do: 'silence' },
      cancelIn: phases.at(-1)!,
      ends: ['CANCELLED'],
      phases,
    }),
  ),
  {
    name: 'the caller cancels before the first packet',
    cancelIn: 'config',
    ends: ['CANCELLED'],
  },
  { name: 'a symmetric key is registered', ends: ['assigned'] },
  { name: 'a certificate is registered', x509: true, ends: ['assigned'] },
  {
    name: 'a certificate is registered without sessions',
    x509: true,
    options: { tls: { sessionResumption: false } },
    ends: ['assigned'],
  },
  {
    name: 'the service says no',
    fault: { at: 'connect', do: { refuse: 5 } },
    ends: ['UNAUTHORIZED'],
    phases: ['connect'],
  },
  {
    name: 'the reply is nonsense',
    fault: { at: 'register-reply', do: { truncate: 5 } },
    ends: ['REPLY_MALFORMED'],
    phases: ['parse'],
  },
]

/** A busy machine may be slow; a child that does not end is found all the same. */
const PATIENCE_MS = 60_000

/** Two cores: more at once would only make each wait for the others. */
const AT_ONCE = 4

describe('a process', () => {
  const kindOf = ({ name }: Scene) => name.replace(/ at .*/, '')
  const kinds = [...new Set(scenes.map(kindOf))]
  for (const kind of kinds) {
    test(`ends by itself: ${kind}`, { timeout: PATIENCE_MS }, async ({ signal }) => {
      const open = scenes.filter((scene) => kindOf(scene) === kind)
      await Promise.all(
        Array.from({ length: AT_ONCE }, async () => {
          for (let scene = open.shift(); scene !== undefined; scene = open.shift()) {
            await run(scene, signal)
          }
        }),
      )
    })
  }
})
