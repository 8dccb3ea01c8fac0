// From the start of a process to the assignment and the end of the process, and an import alone: ours as a library (CJS
// and ESM, MQTT and HTTPS) and as the command `dps-device register`, the protocol by hand on MQTT.js, and Microsoft's
// client; each against the same emulated service, which answers at once, and against `node -e ''`. The device key is
// EC P-256. Each program is one file of bench/clients, run as it is.
//
// - CPU, wall time and peak memory: from outside (bench/c/usage.c), programs in turn.
// - Files opened: strace, every successful open of the process and its children.
// - Instructions: callgrind over the whole process. Repeatable to 2 to 5 %.
//
// Two traps. Node 20 parses every bundled and extra root at the start of a process that has NODE_EXTRA_CA_CERTS, which
// Microsoft's client needs to reach a private server; so that client has a baseline of its own, `node -e ''` with the
// same variable. And V8 flags make Node reject its code cache, so no program has any; `--use-openssl-ca` is none.

import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { coldInstructions } from '../lib/instructions.mjs'
import { cleanEnvironment } from '../lib/process.mjs'
import { startService } from '../lib/service.mjs'
import { filesOpened, inTurn, usageMeter, whyNoFiles } from '../lib/whole-process.mjs'

export const title = 'Cold start'
export const about =
  'Start of the process to assigned and exit, and import alone, EC P-256, against one emulated service that answers at once.'

const path = (name) => fileURLToPath(new URL(`../../${name}`, import.meta.url))
const COMMAND = path('dist/dps-device.cjs')
const BARE = "`node -e ''`"
const BARE_WITH_ROOTS = "`node -e ''` with NODE_EXTRA_CA_CERTS"
const LIBRARY = 'ours, CJS, MQTT'
const OUR_COMMAND = 'ours, the command'

export async function run({ quick, instructions, folder, peers, say }) {
  const service = await startService(folder)
  try {
    const { scene, devices } = service
    const programs = programsFor({ scene, device: devices.ec, service, peers, quick, say })
    const other = otherNodePrograms({ scene, device: devices.ec, peers, say })
    const imports = quick ? [] : importsFor(peers)
    const rounds = quick ? 2 : 15
    const countedRuns = quick ? 1 : 3
    const meter = await usageMeter(folder)
    if (meter.note) say(meter.note)
    const groups = [
      ['Start to assigned and exit', programs],
      ['Import alone', imports],
      [`Node ${other.version}: start to assigned and exit`, other.programs ?? []],
    ].filter(([, list]) => list.length > 0)

    const results = { tables: [], charts: [], measured: {}, checks: [], data: { node: process.version } }
    await service.restart({ count: true })
    let started = 0
    for (const [name, list] of groups) {
      await measureGroup(name, list, results)
      const runs =
        (meter.measure ? rounds + 1 : 0) + (whyNoFiles() ? 0 : 1) + (instructions ? countedRuns : 0)
      started += runs * list.filter(({ registers }) => registers).length
    }
    const { registrations } = await service.usage()
    results.checks.push({
      name: 'every program that was started registered once',
      ok: registrations === started,
      detail: `${started} started, ${registrations} registrations`,
    })
    judge(results, { programs, other, instructions })
    return results

    async function measureGroup(name, list, { tables, charts, data }) {
      say(`${name}: ${list.length} programs, ${rounds} rounds`)
      const usage = meter.measure ? await inTurn(meter.measure, list, rounds) : new Map()
      const noFiles = whyNoFiles()
      if (noFiles) say(noFiles)
      const files = new Map()
      if (!noFiles) for (const program of list) files.set(program.name, await filesOpened(program, folder))
      const counts = instructions
        ? await coldInstructions({ programs: list, runs: countedRuns, say })
        : new Map()
      const bare = (map, program) => map.get(program.bare ?? BARE) ?? map.get(list[0].name)
      const share = (map, program, field) => {
        const value = map.get(program.name)?.[field]?.median
        return value === undefined ? undefined : value / bare(map, program)[field].median
      }
      tables.push({
        title: name,
        columns: [
          'program',
          'CPU ms',
          'min',
          'spread %',
          '× bare',
          'wall ms',
          'min',
          'RSS MB',
          '× bare',
          'files',
          'M instructions',
          'spread %',
          '× bare',
        ],
        rows: list.map((program) => {
          const used = usage.get(program.name)
          const count = counts.get(program.name)
          return [
            program.name,
            used && used.cpuMicros.median / 1000,
            used && used.cpuMicros.min / 1000,
            used && 100 * used.cpuMicros.spread,
            share(usage, program, 'cpuMicros'),
            used && used.wallMicros.median / 1000,
            used && used.wallMicros.min / 1000,
            used && used.maxRssKb.median / 1024,
            share(usage, program, 'maxRssKb'),
            files.get(program.name)?.length,
            count && count.median / 1e6,
            count && 100 * count.spread,
            count && count.median / bare(counts, program).median,
          ]
        }),
        note: [
          `${rounds} runs of each${counts.size > 0 ? `, ${[...counts.values()][0].count} under callgrind` : ''}. "× bare" is against ${BARE}; for Microsoft's client against the same with NODE_EXTRA_CA_CERTS, which it needs and which costs Node 20 some 20 ms.`,
          meter.note,
          noFiles,
        ]
          .filter(Boolean)
          .join(' '),
      })
      if (usage.size > 0) {
        charts.push({
          title: name,
          unit: 'ms of CPU, median and quartiles',
          bars: list.map((program) => {
            const { cpuMicros } = usage.get(program.name)
            return {
              label: program.name,
              value: cpuMicros.median / 1000,
              low: cpuMicros.lowerQuartile / 1000,
              high: cpuMicros.upperQuartile / 1000,
              strong: program.name.startsWith('ours'),
            }
          }),
        })
      }
      data[name] = Object.fromEntries(
        list.map((program) => [
          program.name,
          {
            usage: usage.get(program.name),
            files: files.get(program.name),
            instructions: counts.get(program.name),
          },
        ]),
      )
    }
  } finally {
    await service.stop()
  }
}

const clientProgram = (file) => path(`bench/clients/${file}`)

function programsFor({ scene, device, service, peers, quick, say }) {
  const job = (options) => JSON.stringify({ ...scene, device, transport: 'mqtt', ...options })
  const node = (name, file, { flags = [], ...options } = {}) => ({
    name,
    command: [process.execPath, ...flags, clientProgram(file), job(options)],
    registers: true,
  })
  const programs = [
    { name: BARE, command: [process.execPath, '-e', ''] },
    node(LIBRARY, 'ours.cjs'),
    node('ours, CJS, HTTPS', 'ours.cjs', { transport: 'https' }),
  ]
  if (existsSync(COMMAND))
    programs.push({ name: OUR_COMMAND, command: commandLine(scene, device), registers: true })
  else say('the command is not measured: dist/dps-device.cjs is not there')
  const env = { NODE_EXTRA_CA_CERTS: scene.roots }
  const why = peers.noMicrosoft ?? service.noFixedPorts
  const microsoft =
    why === undefined
      ? [
          { name: BARE_WITH_ROOTS, command: [process.execPath, '-e', ''], env },
          { ...node("Microsoft's, MQTT", 'microsoft.cjs'), env, bare: BARE_WITH_ROOTS },
          {
            ...node("Microsoft's, HTTPS", 'microsoft.cjs', { transport: 'https' }),
            env,
            bare: BARE_WITH_ROOTS,
          },
        ]
      : []
  if (why !== undefined) say(`Microsoft's client: skipped, ${why}`)
  if (quick) return [...programs, node('MQTT.js by hand, CJS', 'mqttjs.cjs'), ...microsoft.slice(0, 2)]
  return [
    ...programs,
    node('ours, ESM, MQTT', 'ours.mjs'),
    node('ours, ESM, HTTPS', 'ours.mjs', { transport: 'https' }),
    node('ours, CJS, MQTT over WebSocket', 'ours.cjs', { transport: 'mqtt-ws' }),
    node('ours, CJS, MQTT, `--use-openssl-ca`', 'ours.cjs', { flags: ['--use-openssl-ca'] }),
    node('MQTT.js by hand, CJS', 'mqttjs.cjs'),
    node('MQTT.js by hand, CJS, no number cache', 'mqttjs.cjs', { writeCache: false }),
    node('MQTT.js by hand, ESM', 'mqttjs.mjs'),
    ...microsoft,
  ]
}

function commandLine({ host, port, address, idScope, roots }, { certFile, keyFile }) {
  const options = {
    'id-scope': idScope,
    cert: certFile,
    key: keyFile,
    host,
    'connect-to': address,
    port: String(port),
    'extra-root': roots,
    roots: 'none',
  }
  return [
    COMMAND,
    'register',
    ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]),
    '--json',
  ]
}

function importsFor(peers) {
  const entry = (name, file) => ({
    name,
    command: [process.execPath, '-e', `require(${JSON.stringify(path(file))})`],
  })
  const module_ = (name, file) => ({
    name,
    command: [
      process.execPath,
      '--input-type=module',
      '-e',
      `import ${JSON.stringify(new URL(`file://${path(file)}`))}`,
    ],
  })
  const packages = 'test/interop/node_modules'
  return [
    { name: BARE, command: [process.execPath, '-e', ''] },
    { name: 'an empty ES module', command: [process.execPath, '--input-type=module', '-e', ''] },
    entry('ours, CJS', 'dist/index.cjs'),
    module_('ours, ESM', 'dist/index.mjs'),
    entry('MQTT.js, CJS', 'node_modules/mqtt'),
    module_('MQTT.js, ESM', 'node_modules/mqtt/build/index.js'),
    ...(peers.noMicrosoft === undefined
      ? [
          entry("Microsoft's, client alone", `${packages}/azure-iot-provisioning-device`),
          {
            name: "Microsoft's, with MQTT and X.509",
            command: [
              process.execPath,
              '-e',
              [
                'azure-iot-provisioning-device',
                'azure-iot-provisioning-device-mqtt',
                'azure-iot-security-x509',
              ]
                .map((name) => `require(${JSON.stringify(path(`${packages}/${name}`))})`)
                .join(';'),
            ],
          },
        ]
      : []),
  ]
}

/** The library under another Node, where there is one. */
function otherNodePrograms({ scene, device, peers, say }) {
  if (peers.otherNode === undefined) {
    say(`another Node is not measured: ${peers.noOtherNode}`)
    return {}
  }
  const node = peers.otherNode
  const version = execFileSync(node, ['-p', 'process.versions.node'], {
    env: cleanEnvironment(),
    encoding: 'utf8',
  }).trim()
  const program = (name, file, { transport = 'mqtt', flags = [] } = {}) => ({
    name,
    command: [node, ...flags, clientProgram(file), JSON.stringify({ ...scene, device, transport })],
    registers: true,
  })
  return {
    version,
    programs: [
      { name: BARE, command: [node, '-e', ''] },
      program(LIBRARY, 'ours.cjs'),
      program('ours, CJS, HTTPS', 'ours.cjs', { transport: 'https' }),
      program('ours, ESM, MQTT', 'ours.mjs'),
      program('ours, CJS, MQTT, `--use-openssl-ca`', 'ours.cjs', { flags: ['--use-openssl-ca'] }),
    ],
  }
}

function judge({ measured, data }, { programs, other, instructions }) {
  const main = data['Start to assigned and exit']
  const ratio = (group, name) => group[name].instructions.median / group[BARE].instructions.median
  const hasCommand = programs.some(({ name }) => name === OUR_COMMAND)
  const noCommand = { note: 'dist/dps-device.cjs is not there' }
  if (!hasCommand) measured['cold-command'] = measured['files-opened'] = noCommand
  else if (main[OUR_COMMAND].files) measured['files-opened'] = main[OUR_COMMAND].files.length
  if (!instructions) return
  if (hasCommand) measured['cold-command'] = ratio(main, OUR_COMMAND)
  const majors = [[process.versions.node, main]]
  if (other.version !== undefined) {
    majors.push([other.version, data[`Node ${other.version}: start to assigned and exit`]])
  }
  for (const [version, group] of majors) {
    const nodeMajor = Number(version.split('.')[0])
    if (nodeMajor === 20 || nodeMajor === 22) {
      measured[`cold-library-${nodeMajor}`] = {
        value: ratio(group, LIBRARY),
        nodeMajor,
        note: `Node ${version}`,
      }
    }
  }
}
