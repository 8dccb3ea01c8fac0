import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { expect, it, onTestFinished } from 'vitest'
import { createPki, startEmulator } from '../../src/emulator/index.ts'

// A process that registers many devices loses its power again and again, and is started again with the same journal: all are
// told of in the end, and the service has registered nobody twice.

const KILLS = Number(process.env.SOAK_KILLS ?? 25)
const DEVICES = 8 * KILLS
/** Of a harness that has not hit the gap yet, each with as many more devices. */
const MOST_ROUNDS = 10
const PROGRAM = fileURLToPath(new URL('./many.mjs', import.meta.url))

it(`a process that is killed ${KILLS} times registers none of ${DEVICES} devices twice`, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'many-power-cut-'))
  const journal = join(folder, 'journal')
  const emulator = await startEmulator({
    pki: await createPki(),
    assigning: { polls: 0 },
    concurrentRegistrations: 'allow',
    logSize: 0,
    enrollments: [{ groupId: 'many', attestation: { symmetricKey: {} } }],
  })
  onTestFinished(async () => {
    await emulator.close()
    rmSync(folder, { recursive: true, force: true })
  })
  const { primaryKey: groupKey } = emulator.enrollments.addGroup({
    groupId: 'many',
    attestation: { symmetricKey: {} },
  })!
  let devices = 0

  /** Every device that a run has told of, and how; killed after so many results and so much time where that is said. */
  const start = async (after?: number, delayMs = 0) => {
    const job = JSON.stringify({ client: emulator.clientOptions(), groupKey, journal, devices })
    const child = spawn(process.execPath, [PROGRAM, job], { stdio: ['ignore', 'pipe', 'pipe'] })
    const output = { stdout: '', stderr: '' }
    for (const stream of ['stdout', 'stderr'] as const) {
      child[stream].setEncoding('utf8').on('data', (text: string) => {
        output[stream] += text
      })
    }
    const closed = once(child, 'close')
    const lines = () => output.stdout.split('\n').slice(0, -1)
    const fresh = () => lines().filter((line) => !line.endsWith(' journal')).length
    if (after !== undefined) {
      while (child.exitCode === null && fresh() < after)
        await Promise.race([once(child.stdout, 'data'), closed])
      await sleep(delayMs)
      child.kill('SIGKILL')
    }
    const [code, signal] = await closed
    expect(output.stderr).toBe('')
    return { ended: code === 0 && signal === null, lines: lines() }
  }

  const told = new Set<string>()
  const sources = { register: 0, lookup: 0, journal: 0 }
  const note = (lines: readonly string[]) => {
    for (const line of lines) {
      const [registrationId = '', source = ''] = line.split(' ')
      expect(sources).toHaveProperty(source)
      sources[source as keyof typeof sources]++
      // What was told once is told again from the journal, and never found to be new.
      if (told.has(registrationId)) expect(`${registrationId} ${source}`).toBe(`${registrationId} journal`)
      told.add(registrationId)
    }
  }
  let kills = 0
  // By chance none of a round's kills hits the gap.
  do {
    devices += DEVICES
    for (let kill = 0; kill < KILLS; kill++) {
      const { ended, lines } = await start(Math.floor(Math.random() * 4), Math.random() * 25)
      note(lines)
      if (ended) break
      kills++
      for (const { registrationId, count } of emulator.registrations.list())
        expect({ kills, registrationId, count }).toEqual({ kills, registrationId, count: 1 })
    }
  } while (sources.lookup === 0 && devices < MOST_ROUNDS * DEVICES)
  const last = await start()
  note(last.lines)
  expect(last.ended).toBe(true)
  expect(last.lines).toHaveLength(devices)
  expect(told.size).toBe(devices)
  expect(emulator.registrations.size).toBe(devices)
  expect(emulator.registrations.list().filter(({ count }) => count !== 1)).toEqual([])
  console.log(`${kills} kills: ${JSON.stringify(sources)}, ${readFileSync(journal).length} bytes of journal`)
  // A harness that never hits the gap between the answer and the line proves nothing.
  expect(sources.lookup).toBeGreaterThan(0)
}, 3_600_000)
