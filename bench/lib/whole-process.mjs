// What a program took from start to exit: time, memory, files opened.

import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { hasProgram, run, start } from './process.mjs'
import { summarize } from './stats.mjs'

const CHECKOUT = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')
const source = fileURLToPath(new URL('../c/usage.c', import.meta.url))

/**
 * @typedef {object} Program
 * @property {string} name
 * @property {readonly string[]} command
 * @property {Record<string, string>} [env]
 */

/**
 * @typedef {object} Usage
 * @property {number} wallMicros
 * @property {number} cpuMicros
 * @property {number} maxRssKb
 */

/**
 * A way to measure whole processes here: bench/c/usage.c, or GNU time, whose CPU times have two digits only.
 *
 * @param {string} folder for the compiled program
 * @returns {Promise<{ measure?: (program: Program) => Promise<Usage>, note?: string }>} `note`: what is missing
 */
export async function usageMeter(folder) {
  if (hasProgram('cc')) {
    const binary = join(folder, 'usage')
    await run(['cc', '-O2', '-Wall', '-o', binary, source], { role: 'anywhere' })
    return { measure: (program) => measureWith([binary], program, JSON.parse) }
  }
  const time = [
    '/usr/bin/time',
    '-f',
    '{"wall":%e,"user":%U,"system":%S,"rss":%M,"status":%x}',
    '-o',
    '/dev/fd/3',
  ]
  if (hasProgram(time[0])) {
    const parse = (text) => {
      const { wall, user, system, rss, status } = JSON.parse(text.trim().split('\n').at(-1))
      return { wallMicros: 1e6 * wall, cpuMicros: 1e6 * (user + system), maxRssKb: rss, status }
    }
    const note = 'No C compiler here: measured with GNU time, in steps of 10 ms.'
    return { measure: (program) => measureWith(time, program, parse), note }
  }
  return {
    note: 'Neither a C compiler nor GNU time is here, so time and memory of whole processes are not measured.',
  }
}

async function measureWith(meter, { name, command, env = {} }, parse) {
  const child = start([...meter, ...command], { env, stdio: ['ignore', 'ignore', 'pipe', 'pipe'] })
  const [stderr, report] = await Promise.all([child.stdio[2], child.stdio[3]].map(readAll))
  const { status, ...usage } = parse(report)
  if (status !== 0) throw new Error(`${name} ended with ${status}: ${stderr.trim().slice(-2000)}`)
  return usage
}

async function readAll(stream) {
  let text = ''
  for await (const chunk of stream.setEncoding('utf8')) text += chunk
  return text
}

/**
 * Programs in turn, so that whatever else the machine does meets all of them alike.
 *
 * @param {(program: Program) => Promise<Usage>} measure
 * @param {readonly Program[]} programs
 * @param {number} rounds that count; one before them does not
 * @returns {Promise<Map<string, Record<keyof Usage, import('./stats.mjs').Summary>>>} by name
 */
export async function inTurn(measure, programs, rounds) {
  const samples = new Map(programs.map(({ name }) => [name, []]))
  for (let round = -1; round < rounds; round++) {
    for (const program of round % 2 === 0 ? programs : [...programs].reverse()) {
      const usage = await measure(program)
      if (round >= 0) samples.get(program.name).push(usage)
    }
  }
  const summary = (taken, field) => summarize(taken.map((usage) => usage[field]))
  return new Map(
    [...samples].map(([name, taken]) => [
      name,
      {
        wallMicros: summary(taken, 'wallMicros'),
        cpuMicros: summary(taken, 'cpuMicros'),
        maxRssKb: summary(taken, 'maxRssKb'),
      },
    ]),
  )
}

/** @returns {string | undefined} why opened files cannot be counted here */
export const whyNoFiles = () =>
  hasProgram('strace')
    ? undefined
    : 'strace is not installed (Debian, Ubuntu: apt-get install strace), so opened files are not counted'

/**
 * Files, folders and devices that a program and its children open successfully, in order.
 *
 * @param {Program} program
 * @param {string} folder for the trace
 * @returns {Promise<string[]>}
 */
export async function filesOpened({ command, env = {} }, folder) {
  const trace = join(folder, 'opened.strace')
  // A question mark: not every architecture has the call.
  const calls = 'trace=?open,openat,?openat2'
  await run(['strace', '-f', '-qq', '-e', calls, '-e', 'signal=none', '-o', trace, ...command], { env })
  const opened = parseOpened(readFileSync(trace, 'utf8'))
  rmSync(trace)
  // Where a checkout or a temporary folder lies says nothing, and is nobody's business.
  return opened.map((path) => path.replaceAll(`${CHECKOUT}/`, '').replaceAll(`${folder}/`, ''))
}

/** The paths of the calls that returned a descriptor. A call that another thread interrupted is written in two lines. */
export function parseOpened(trace) {
  const unfinished = new Map()
  return trace.split('\n').flatMap((line) => {
    const [, pid, text] = /^(\d+)\s+(.*)$/.exec(line) ?? []
    if (text === undefined) return []
    const [, path] = /^open\w*\(.*?"([^"]*)"/.exec(text) ?? []
    if (text.includes('<unfinished ...>')) {
      unfinished.set(pid, path)
      return []
    }
    const name = path ?? (/^<\.\.\. open\w* resumed>/.test(text) ? unfinished.get(pid) : undefined)
    return name !== undefined && / = \d+$/.test(text) ? [name] : []
  })
}
