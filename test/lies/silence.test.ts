import { once } from 'node:events'
import net from 'node:net'
import { Worker } from 'node:worker_threads'
import { describe, expect, test } from 'vitest'
import type { FaultStep } from '../../src/emulator/index.ts'
import type { Clock, DpsEvent, DpsPhase, ProvisioningClientOptions } from '../../src/index.ts'
import { expectDpsError } from '../support/expect-dps-error.ts'
import { lie, type Setup, Stage } from '../support/stage.ts'

const singleAttempt: Setup = { client: { retry: { maxAttempts: 1 } } }

/** Where the server falls silent, the phase in which the client then waits, and that phase's default limit. */
const SILENCES: readonly (readonly [Exclude<FaultStep, 'issue'>, DpsPhase, number])[] = [
  ['accept', 'tls', 30_000],
  ['client-hello', 'tls', 30_000],
  ['handshake', 'connect', 15_000],
  ['connect', 'connect', 15_000],
  ['subscribe', 'subscribe', 15_000],
  ['register', 'register', 30_000],
  ['register-reply', 'register', 30_000],
  ['poll', 'poll', 30_000],
  ['poll-reply', 'poll', 30_000],
]

/** Where the client waits for nobody else, but may be told to stop. */
const BEFORE_THE_SERVER: readonly DpsPhase[] = ['config', 'clock', 'dns', 'tcp']

function fallSilent(stage: Stage, at: Exclude<FaultStep, 'issue'>): void {
  stage.faults.add({ at, do: 'silence', times: Number.POSITIVE_INFINITY })
}

describe('a server that falls silent', () => {
  for (const [at, phase, limitMs] of SILENCES) {
    lie(`at ${at} is given up after the limit of its phase`, singleAttempt, async (stage) => {
      fallSilent(stage, at)
      stage.eachStall(at, phase, () => {
        stage.clock.advance(limitMs - 1)
        stage.clock.advance(1)
      })
      const before = stage.clock.monotonic()
      const error = await expectDpsError(stage.register(), 'TIMEOUT', phase)
      expect(error.retryable).toBe(true)
      expect(error.message).toContain(`${limitMs} ms`)
      const waited = phase === 'poll' ? 2200 : 0
      expect(stage.clock.monotonic() - before).toBe(waited + limitMs)
    })

    lie(`at ${at} is waited for until its limit and not a moment less`, singleAttempt, async (stage) => {
      const fault = stage.faults.add({ at, do: 'silence' })
      let settled = false
      const registering = stage.register().finally(() => {
        settled = true
      })
      // Handled below; it must not count as unhandled until then.
      registering.catch(() => {})
      await new Promise<void>((resolve) => stage.eachStall(at, phase, resolve))
      stage.clock.advance(limitMs - 1)
      await new Promise((resolve) => setImmediate(resolve))
      expect(settled).toBe(false)
      expect(fault.hits).toBe(1)
      stage.clock.advance(1)
      await expectDpsError(registering, 'TIMEOUT', phase)
    })

    lie(`at ${at} once is tried again`, {}, async (stage) => {
      stage.faults.add({ at, do: 'silence' })
      stage.eachStall(at, phase, () => stage.clock.advance(limitMs))
      await stage.register()
      expect(stage.events.filter(({ type }) => type === 'retry')).toMatchObject([
        { error: { code: 'TIMEOUT', phase } },
      ])
      expect(stage.emulator.log.connections).toHaveLength(2)
    })

    lie(`at ${at} for ever ends with the deadline`, {}, async (stage) => {
      fallSilent(stage, at)
      // What is left until the deadline may be less than the limit of the phase.
      stage.eachStall(at, phase, () =>
        stage.clock.advance(Math.min(limitMs, 120_000 - stage.clock.monotonic())),
      )
      const error = await stage.register().then(
        () => expect.fail('registered with a silent server'),
        (thrown: unknown) => thrown,
      )
      if (limitMs === 15_000) {
        // After 6 attempts the next pause would reach beyond the deadline.
        expect(error).toMatchObject({ code: 'TIMEOUT', phase })
        expect(stage.emulator.log.connections).toHaveLength(6)
      } else {
        expect(error).toMatchObject({
          code: 'DEADLINE_EXCEEDED',
          phase,
          cause: { code: 'TIMEOUT', phase },
        })
        expect(stage.clock.monotonic()).toBe(120_000)
        expect(stage.emulator.log.connections).toHaveLength(4)
      }
      expect(stage.clock.monotonic()).toBeLessThanOrEqual(120_000)
    })

    lie(`at ${at} longer than the whole call may take`, {}, async (stage) => {
      fallSilent(stage, at)
      stage.eachStall(at, phase, () => stage.clock.advance(10_000 - stage.clock.monotonic()))
      const error = await expectDpsError(stage.register({ timeoutMs: 10_000 }), 'DEADLINE_EXCEEDED', phase)
      expect(error.retryable).toBe(true)
      expect(error.message).toContain('10000 ms')
      expect(stage.emulator.log.connections).toHaveLength(1)
    })

    lie(`at ${at} and a caller who cancels, twice`, {}, async (stage) => {
      fallSilent(stage, at)
      const first = new Error('the operator pressed the button')
      stage.eachStall(at, phase, () => {
        stage.controller.abort(first)
        stage.controller.abort(new Error('the operator pressed it again'))
      })
      const error = await expectDpsError(stage.register(), 'CANCELLED', phase)
      expect(error.cause).toBe(first)
      expect(stage.emulator.log.connections).toHaveLength(1)
      expect(stage.clock.sleeps).toEqual(phase === 'poll' ? [2200] : [])
    })

    lie(`at ${at}, cancelled and met again by the next call`, {}, async (stage) => {
      fallSilent(stage, at)
      for (const attempt of [1, 2]) {
        const controller = new AbortController()
        const hits = () => stage.seen.filter((e) => e.type === 'fault').length
        const waits = () => stage.events.filter((e) => e.type === 'phase-started' && e.phase === phase).length
        const registering = stage.register({ signal: controller.signal })
        registering.catch(() => {})
        await stage.when(() => hits() === attempt && waits() === attempt)
        controller.abort()
        await expectDpsError(registering, 'CANCELLED', phase)
        await stage.leavesNothing()
      }
    })
  }

  lie('from the first byte on', singleAttempt, async (stage) => {
    let accepted = () => {}
    const connection = new Promise<void>((resolve) => {
      accepted = resolve
    })
    await stage.replaceServer((socket) => {
      socket.resume()
      accepted()
    })
    const registering = stage.register()
    registering.catch(() => {})
    await connection
    await stage.when(() => stage.events.some((e) => e.type === 'phase-started' && e.phase === 'tls'))
    stage.clock.advance(30_000)
    await expectDpsError(registering, 'TIMEOUT', 'tls')
  })
})

describe('a network that is silent', () => {
  // Linux drops what no longer fits into the queue of a listener; elsewhere it may be refused.
  test.runIf(process.platform === 'linux')('a port that answers no SYN', async () => {
    const stage = await Stage.open(singleAttempt)
    const { port } = stage
    await stage.emulator.close()
    const queue = await fullQueue(port)
    try {
      const registering = stage.register()
      registering.catch(() => {})
      await stage.when(() => stage.events.some((e) => e.type === 'phase-started' && e.phase === 'tcp'))
      await new Promise((resolve) => setImmediate(resolve))
      stage.clock.advance(15_000)
      const error = await expectDpsError(registering, 'TIMEOUT', 'tcp')
      expect(error.message).toContain('15000 ms')
      await stage.leavesNothing()
      await queue.release()
      await stage.restart()
      await stage.recovers()
    } finally {
      await queue.release()
      await stage.close()
    }
  })

  const asking = when((event) => event.type === 'phase-started' && event.phase === 'dns')
  lie(
    'a resolver that answers too late',
    { client: { ...asking.setup.client, ...singleAttempt.client } },
    async (stage) => {
      asking.arm(() => stage.clock.advance(10_000))
      const error = await expectDpsError(stage.register(), 'TIMEOUT', 'dns')
      expect(error.message).toContain('10000 ms')
      expect(stage.emulator.log.connections).toEqual([])
    },
  )
})

describe('a caller who stops', () => {
  lie('before the call', {}, async (stage) => {
    stage.controller.abort()
    await expectDpsError(stage.register(), 'CANCELLED', 'config')
    expect(stage.emulator.log.connections).toEqual([])
    expect(stage.events).toEqual([])
  })

  const phases = [...BEFORE_THE_SERVER, 'tls', 'connect', 'subscribe', 'register', 'poll'] as const
  for (const phase of phases) {
    const stopping = when((event) => event.type === 'phase-started' && event.phase === phase)
    lie(`in the instant in which ${phase} begins`, stopping.setup, async (stage) => {
      stopping.arm(() => stage.controller.abort('stop'))
      const error = await expectDpsError(stage.register(), 'CANCELLED', phase)
      expect(error.cause).toBe('stop')
    })

    const late = when((event) => event.type === 'phase-started' && event.phase === phase)
    lie(`by the deadline in the instant in which ${phase} begins`, late.setup, async (stage) => {
      late.arm(() => stage.clock.advance(120_000 - stage.clock.monotonic()))
      await expectDpsError(stage.register(), 'DEADLINE_EXCEEDED', phase)
      expect(stage.clock.monotonic()).toBe(120_000)
    })

    const ended = when((event) => event.type === 'phase-ended' && event.phase === phase && event.ok)
    lie(`in the instant in which ${phase} ends`, ended.setup, async (stage) => {
      ended.arm(() => stage.controller.abort())
      // Even the last phase: who cancelled must not be told that it went on.
      const error = await stage.register().then(
        () => expect.fail('registered although it was cancelled'),
        (thrown: unknown) => thrown,
      )
      expect(error).toMatchObject({ code: 'CANCELLED' })
    })
  }

  const between = when((event) => event.type === 'assigning')
  lie('between two polls', { ...between.setup, clock: sleepsUntilWoken }, async (stage) => {
    between.arm(() => setImmediate(() => stage.controller.abort()))
    await expectDpsError(stage.register(), 'CANCELLED', 'register')
    expect(stage.requests).toHaveLength(1)
  })

  const pausing = when((event) => event.type === 'retry')
  lie('between two attempts', { ...pausing.setup, clock: sleepsUntilWoken }, async (stage) => {
    stage.faults.add({ at: 'connect', do: 'drop' })
    pausing.arm(() => setImmediate(() => stage.controller.abort()))
    const error = await expectDpsError(stage.register(), 'CANCELLED', 'connect')
    expect(error.message).not.toContain('lost')
    expect(stage.emulator.log.connections).toHaveLength(1)
  })

  lie(
    'before the first packet, while a fleet spreads out',
    {
      client: { retry: { startDelayMs: 60_000 } },
      clock: sleepsUntilWoken,
    },
    async (stage) => {
      const registering = stage.register()
      stage.controller.abort()
      await expectDpsError(registering, 'CANCELLED', 'config')
      expect(stage.emulator.log.connections).toEqual([])
    },
  )

  lie('after the call has settled', {}, async (stage) => {
    await stage.register()
    const events = stage.events.length
    stage.controller.abort()
    stage.controller.abort()
    expect(stage.events).toHaveLength(events)
  })
})

/** Sleeps do not pass by themselves until they have been cut short once. */
function sleepsUntilWoken(virtual: Parameters<NonNullable<Setup['clock']>>[0]): Clock {
  let woken = false
  return {
    ...virtual,
    sleep: async (ms, signal) => {
      if (woken) return virtual.sleep(ms, signal)
      if (!signal.aborted) await once(signal, 'abort')
      woken = true
      throw signal.reason
    },
  }
}

/** A client whose handler acts on the first event of a kind, once it was told how. */
function when(matches: (event: DpsEvent) => boolean): {
  setup: Setup & { client: Partial<ProvisioningClientOptions> }
  arm(act: () => void): void
} {
  let act: (() => void) | undefined
  return {
    setup: {
      client: {
        connectTo: 'localhost',
        onEvent: (event) => {
          if (!matches(event)) return
          const now = act
          act = undefined
          now?.()
        },
      },
    },
    arm: (action) => {
      act = action
    },
  }
}

/** A port whose listener accepts nobody and whose queue is full, so that the next SYN gets no answer. */
async function fullQueue(port: number): Promise<{ release(): Promise<void> }> {
  const gate = new Int32Array(new SharedArrayBuffer(4))
  const worker = new Worker(
    `const { workerData: { gate, port }, parentPort } = require('node:worker_threads')
    const server = require('node:net').createServer().listen({ port, host: '127.0.0.1', backlog: 1 }, () => {
      parentPort.postMessage('listening')
      Atomics.wait(gate, 0, 0)
      server.close()
    })
    server.on('connection', (socket) => socket.destroy())`,
    { eval: true, workerData: { gate, port } },
  )
  const exited = once(worker, 'exit')
  await once(worker, 'message')
  // The queue takes one more than was asked for.
  const inQueue = [net.connect(port, '127.0.0.1'), net.connect(port, '127.0.0.1')]
  for (const socket of inQueue) socket.on('error', () => {})
  await Promise.all(inQueue.map((socket) => once(socket, 'connect')))
  return {
    release: async () => {
      for (const socket of inQueue) socket.destroy()
      Atomics.store(gate, 0, 1)
      Atomics.notify(gate, 0)
      await exited
    },
  }
}
