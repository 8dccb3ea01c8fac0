import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { EmulatorEvent } from '../../emulator/index.ts'
import type { ExitCode } from '../exit-codes.ts'
import { writePrivate } from '../files.ts'
import { kit } from '../kit.ts'
import type { Options } from '../options.ts'
import type { Output } from '../output.ts'
import { enroll, hubsOf, planOf } from './enrollments.ts'
import { parseFault } from './faults.ts'
import { connectionOf, eventJson, eventText, timeOf } from './log.ts'
import type { Page } from './page.ts'
import { openStream } from './stream.ts'

const GREEN = 32
const RED = 31
const DEFAULT_HUB = 'emulated-hub.azure-devices.net'

/** Runs the emulator until a signal ends it; then nothing is left of it. */
export function emulate(options: Options, output: Output): Promise<ExitCode> {
  return kit.perform(options, output, async (listen) => {
    const { FAULT_ACTIONS, startEmulator } = await import('../../emulator/index.ts')
    const json = kit.flag(options, 'json')
    const quiet = kit.flag(options, 'quiet')
    const enrollments = options.get('enrollments')
    const plan = planOf(kit.jsonOf(options, 'enrollments'), enrollments?.as ?? '')
    const fault = options.get('fault')
    const faults = ((fault?.value ?? []) as readonly string[]).map((text) =>
      parseFault(text, FAULT_ACTIONS, fault!.as),
    )
    const hubs = [...((options.get('hub')?.value ?? [DEFAULT_HUB]) as readonly string[]), ...hubsOf(plan)]
    const { systemClock: clock } = kit
    const signal = listen()
    let page: Page | undefined
    const stream = openStream(output, (lines) =>
      json ? JSON.stringify({ type: 'left-out', lines }) : `(${lines} lines left out: nobody read on)`,
    )
    const onEvent = (event: EmulatorEvent) => {
      page?.event(event)
      const now = clock.now()
      if (json) return stream.line(JSON.stringify(eventJson(event, now)))
      if (quiet) return undefined
      const [text, tone] = eventText(event)
      const id = connectionOf(event)
      const line = `${timeOf(now)} ${id === undefined ? '' : `#${id} `}${kit.printable(text, 2000)}`
      return stream.line(tone === undefined ? line : output.tint(tone === 'good' ? GREEN : RED, line))
    }
    if (!quiet) output.progress('making certificates …')
    const dir = kit.text(options, 'dir')
    const emulator = await startEmulator({
      port: kit.number(options, 'port') ?? 0,
      hubs: [...new Set(hubs)],
      assigning: {
        polls: kit.number(options, 'polls') ?? 1,
        retryAfterSeconds: kit.number(options, 'retry-after') ?? 3,
      },
      onEvent,
      ...kit.given('idScope', kit.text(options, 'id-scope')),
    }).catch((error: unknown) => {
      throw listening(error, '--port')
    })
    const folder = resolve(dir ?? mkdtempSync(join(tmpdir(), 'dps-emulator-')))
    try {
      if (dir !== undefined) mkdirSync(folder, { recursive: true, mode: 0o700 })
      const force = kit.flag(options, 'force')
      const root = join(folder, 'root.pem')
      writePrivate(root, '--dir', emulator.roots[0], force)
      const devices = await enroll(emulator, plan, folder, force, kit.flag(options, 'issue'))
      for (const spec of faults) emulator.faults.add(spec)
      const { idScope, address, port } = emulator
      const where = ['--id-scope', idScope, '--connect-to', address, '--port', `${port}`, '--roots', 'none']
      const commandOf = (own: readonly string[]) =>
        [...program(), 'register', ...where, '--extra-root', root, ...own].map(quoted).join(' ')
      const commands = devices.map(({ registrationId, options: own }) => ({
        registrationId,
        command: commandOf(own),
      }))
      const pagePort = kit.number(options, 'page')
      let url: string | undefined
      if (pagePort !== undefined) {
        if (!Number.isInteger(pagePort) || pagePort > 65_535)
          throw kit.usage('--page must be a port, 0 to 65535')
        // Nothing else here takes a server for HTTP.
        const { Page } = await import('./page.ts')
        page = new Page(
          emulator,
          FAULT_ACTIONS,
          commands.map(({ command }) => command),
        )
        url = await page.listen(pagePort).catch((error: unknown) => {
          throw listening(error, '--page')
        })
      }
      output.clear()
      if (json) {
        stream.line(
          JSON.stringify({ type: 'ready', idScope, address, port, root, page: url, devices: commands }),
        )
      } else if (!quiet) {
        const ready = commands.map(
          ({ registrationId, command }) =>
            `\n${output.strong(kit.printable(registrationId))}\n  ${command}\n`,
        )
        stream.line(
          `The emulator listens on ${address}:${port}, for MQTT, MQTT over WebSocket and HTTPS. Its root: ${root}
${ready.join('')}
${url === undefined ? '' : `Its page, for you alone: ${url}\n`}Ctrl-C ends it.\n`,
        )
      }
      await new Promise<void>((done) => {
        if (signal.aborted) done()
        signal.addEventListener('abort', () => done())
      })
      return kit.EXIT.ok
    } finally {
      if (dir === undefined) rmSync(folder, { recursive: true, force: true })
      await Promise.all([emulator.close(), page?.close()])
      await stream.close()
    }
  })
}

/** What this is called by: npm puts the command on the search path of what it starts, and of nothing else. */
const program = (): readonly string[] =>
  process.env.npm_command === undefined ? ['dps-device'] : ['npx', 'dps-device-client']

/** What the system says of a port, as an error of whoever named it. */
function listening(error: unknown, as: string): unknown {
  const { syscall, code } = error as NodeJS.ErrnoException
  return syscall === 'listen'
    ? kit.usage(`${as} cannot be listened on (${code})`, 'Name another port, or 0 for a free one.')
    : error
}

/** As a shell takes it. */
const quoted = (word: string): string =>
  /^[\w./:@%+=,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
