import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { expect, it, onTestFinished } from 'vitest'
import { fileStore } from '../../src/assignment/file-store.ts'
import { decodeRecord, encodeRecord } from '../../src/assignment/record.ts'
import { issueCertificate } from '../../src/emulator/index.ts'
import { issuedCertificate } from '../../src/issued-certificate.ts'
import { record } from '../unit/assignment/records.ts'

// The device loses power while it stores its assignment: the old one or the new one is there afterwards, never another.

const KILLS = Number(process.env.SOAK_KILLS ?? 100)
const WRITER = fileURLToPath(new URL('./writer.mjs', import.meta.url))
const RENEWER = fileURLToPath(new URL('./renewer.mjs', import.meta.url))
/** Devices that lose their power side by side: a killed process is mostly waited for. */
const LANES = 4
/** Of a harness that has hit nothing yet. */
const MOST_ROUNDS = 10
/** Before a writer has written anything. */
const START_MS = 60

/** Different in length, so that a part of one over another would show. */
const records = Array.from({ length: 251 }, (_, n) =>
  Buffer.from(
    encodeRecord({
      ...record(),
      contactMs: n,
      registration: { ...record().registration!, payload: { n, fill: 'x'.repeat((n * 397) % 9000) } },
    }),
  ),
)

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'power-cut-'))
  onTestFinished(() => rmSync(path, { recursive: true, force: true }))
  return path
}

/** The number of the record that is stored, which must be whole. */
async function stored(file: string): Promise<number | undefined> {
  const bytes = await fileStore(file).read()
  if (bytes === undefined) return undefined
  const read = decodeRecord(bytes)
  expect(read.ok ? 'whole' : read.why).toBe('whole')
  return read.ok ? read.record.contactMs : undefined
}

/** Starts a process, kills it `delayMs` after it has said `lines` lines, and tells all that it said. */
async function killed(lines: number, delayMs: number, ...args: string[]): Promise<string[]> {
  const child = spawn(process.execPath, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const output = { stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr'] as const) {
    child[stream].setEncoding('utf8').on('data', (text: string) => {
      output[stream] += text
    })
  }
  const closed = once(child, 'close')
  while (child.exitCode === null && child.signalCode === null && output.stdout.split('\n').length <= lines) {
    await Promise.race([once(child.stdout, 'data'), closed])
  }
  await sleep(delayMs)
  child.kill('SIGKILL')
  const [, signal] = await closed
  expect({ signal, stderr: output.stderr }).toEqual({ signal: 'SIGKILL', stderr: '' })
  // The last line may itself have been cut.
  return output.stdout.split('\n').slice(0, -1)
}

const seen = { untouched: 0, acknowledged: 0, renamed: 0, strays: 0, writes: 0 }

/** Long enough for a write or two, on whatever disk. */
async function longestDelayMs(): Promise<number> {
  const store = fileStore(join(folder(), 'a'))
  let quickest = Number.POSITIVE_INFINITY
  for (let n = 0; n < 10; n++) {
    const startedAt = performance.now()
    await store.write(records[n]!)
    quickest = Math.min(quickest, performance.now() - startedAt)
  }
  return 2 * quickest
}

async function cutPower(kills: number, list: string, longestMs: number): Promise<void> {
  const path = folder()
  const file = join(path, 'a')
  let before = records.length - 1
  await fileStore(file).write(records[before]!)
  let next = 0
  for (let kill = 0; kill < kills; kill++) {
    // Some die before they have begun; the others in the midst of one of their first writes.
    const lines = Math.random() < 0.05 ? 0 : 1 + Math.floor(Math.random() * 4)
    const delayMs = Math.random() * (lines === 0 ? START_MS : longestMs)
    const said = await killed(lines, delayMs, WRITER, file, list, String(next))
    const safe = said.length < 2 ? undefined : Number(said.at(-1))
    const found = await stored(file)
    // Never older than what the writer was told is safe, and never what it had not begun.
    const old: number = safe === undefined ? before : safe % records.length
    const following = safe === undefined ? next : safe + 1
    const allowed = found === old || found === following % records.length
    expect({ kill, found, old, following, allowed }).toEqual({ kill, found, old, following, allowed: true })
    const left = readdirSync(path).filter((name) => name !== 'a')
    // What was being written may be left, for its owner's eyes only, until the next write.
    expect(left.length).toBeLessThanOrEqual(1)
    for (const name of left) expect(statSync(join(path, name)).mode & 0o777).toBe(0o600)
    seen.strays += left.length
    seen.writes += safe === undefined ? 0 : safe - next + 1
    if (found !== old) seen.renamed++
    else seen[safe === undefined ? 'untouched' : 'acknowledged']++
    before = found!
    next = found === old ? following : following + 1
  }
  await fileStore(file).write(records[0]!)
  expect(readdirSync(path)).toEqual(['a'])
}

it(`a writer that is killed ${KILLS} times at random leaves the old record or the new one`, async () => {
  const list = join(folder(), 'list')
  writeFileSync(list, JSON.stringify(records.map(String)))
  const lanes = Array.from({ length: LANES }, (_, i) => Math.ceil((KILLS - i) / LANES))
  const longestMs = await longestDelayMs()
  await Promise.all(lanes.map((kills) => cutPower(kills, list, longestMs)))
  console.log(`${KILLS} kills: ${JSON.stringify(seen)}`)
  // A harness that never hits a write proves nothing.
  expect(seen.strays).toBeGreaterThan(0)
  expect(seen.writes).toBeGreaterThan(0)
  expect(seen.untouched + seen.acknowledged + seen.renamed).toBe(KILLS)
}, 3_600_000)

it('a file that is cut or damaged at any byte holds no record, and the next write mends it', async () => {
  const file = join(folder(), 'a')
  const store = fileStore(file)
  const bytes = Buffer.from(encodeRecord(record()))
  for (let at = 0; at < bytes.length; at++) {
    writeFileSync(file, bytes)
    truncateSync(file, at)
    expect({ at, read: decodeRecord((await store.read())!) }).toMatchObject({ read: { ok: false } })
    const damaged = Buffer.from(bytes)
    damaged[at]! ^= 1 + Math.floor(Math.random() * 255)
    writeFileSync(file, damaged)
    expect({ at, read: decodeRecord((await store.read())!) }).toMatchObject({ read: { ok: false } })
  }
  await store.write(bytes)
  expect(decodeRecord((await store.read())!)).toEqual({ ok: true, record: record() })
})

it('a device that is killed while it renews its certificate has the pair of before or of after, whole', async () => {
  const authority = join(folder(), 'authority')
  const issuer = await issueCertificate({ subject: 'Root', ca: true, keyType: 'ec-p384', digest: 'sha384' })
  writeFileSync(authority, JSON.stringify(issuer))
  const seen: Record<string, number> & { strays: number } = { strays: 0 }
  const lane = async (kills: number): Promise<void> => {
    const path = folder()
    const file = join(path, 'certificate')
    let before = {
      current: undefined as string | undefined,
      candidate: undefined as string | undefined,
      requested: false,
    }
    for (let kill = 0; kill < kills; kill++) {
      const lines = 1 + Math.floor(Math.random() * 8)
      const said = await killed(lines, Math.random() * 30, RENEWER, file, authority)
      for (const line of said.slice(1)) {
        const [what, serial] = line.split(' ')
        if (what === 'requested') before.requested = true
        else if (what === 'current') before = { current: serial, candidate: undefined, requested: false }
        else before = { current: before.current ?? before.candidate, candidate: serial, requested: false }
      }
      seen.strays += readdirSync(path).filter((name) => name !== 'certificate').length
      const certificate = issuedCertificate({ store: fileStore(file) })
      const status = await certificate.status()
      const now = {
        current: status.current?.serialNumber,
        candidate: status.candidate?.serialNumber,
        requested: status.requested,
      }
      const changes = {
        nothing: before,
        requested: { ...before, requested: true },
        // The serial number is known to nobody else yet.
        candidate: {
          current: before.current ?? before.candidate,
          candidate: now.candidate,
          requested: false,
        },
        current: { current: before.candidate, candidate: undefined, requested: false },
      }
      const same = (state: typeof now): boolean => JSON.stringify(state) === JSON.stringify(now)
      const what = Object.entries(changes).find(([, state]) => same(state))?.[0] ?? ''
      expect({ kill, before, now, what }).toMatchObject({ what: expect.stringMatching(/./) })
      if (now.current !== undefined || now.candidate !== undefined) await certificate.load()
      seen[what] = (seen[what] ?? 0) + 1
      before = now
    }
  }
  const kills = Math.ceil(KILLS / LANES / 2)
  let rounds = 0
  // By chance a round hits no write at all.
  do {
    rounds++
    await Promise.all(Array.from({ length: LANES }, () => lane(kills)))
  } while (seen.strays === 0 && rounds < MOST_ROUNDS)
  console.log(`${rounds * kills * LANES} kills: ${JSON.stringify(seen)}`)
  // A harness that never hits a write proves nothing.
  expect(seen.strays).toBeGreaterThan(0)
}, 3_600_000)
