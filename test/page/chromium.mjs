// A headless Chromium, driven by its remote debugging protocol over a WebSocket.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { WebSocket } from 'ws'

const NAMES = [process.env.CHROMIUM, 'chromium', 'chromium-browser', 'google-chrome'].filter(Boolean)

const installed = () => NAMES.find((name) => spawnSync(name, ['--version']).status === 0)

/** The first Chromium that is installed, or undefined. @param install whether to ask Debian for one where there is none */
export function findChromium(install) {
  const found = installed()
  if (found !== undefined || !install) return found
  const stdio = 'ignore'
  spawnSync('apt-get', ['update'], { stdio })
  spawnSync('apt-get', ['install', '-y', '--no-install-recommends', 'chromium'], { stdio, timeout: 600_000 })
  return installed()
}

/** @returns a browser with one page at a time; `close` ends it and removes its profile */
export async function startChromium(program) {
  const profile = mkdtempSync(join(tmpdir(), 'dps-page-'))
  const child = spawn(
    program,
    [
      '--headless',
      '--remote-debugging-port=0',
      `--user-data-dir=${profile}`,
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      // Chromium's sandbox refuses to start as root, as in a container.
      ...(process.getuid?.() === 0 ? ['--no-sandbox'] : []),
      'about:blank',
    ],
    { stdio: ['ignore', 'ignore', 'pipe'], detached: true },
  )
  let said = ''
  const address = await new Promise((resolve, reject) => {
    child.stderr.setEncoding('utf8').on('data', (text) => {
      said += text
      const [, url] = /DevTools listening on (ws:\S+)/.exec(said) ?? []
      if (url !== undefined) resolve(url)
    })
    child.once('error', reject)
    child.once('exit', () => reject(new Error(`chromium ended: ${said}`)))
  })
  const socket = new WebSocket(address, { perMessageDeflate: false })
  await once(socket, 'open')

  let lastId = 0
  const waiting = new Map()
  const listeners = new Set()
  socket.on('message', (data) => {
    const message = JSON.parse(data.toString())
    if (message.id === undefined) {
      for (const listener of listeners) listener(message)
      return
    }
    const { resolve, reject } = waiting.get(message.id)
    waiting.delete(message.id)
    if (message.error) reject(new Error(message.error.message))
    else resolve(message.result)
  })
  const ask = (method, params = {}, sessionId = undefined) =>
    new Promise((resolve, reject) => {
      waiting.set(++lastId, { resolve, reject })
      socket.send(JSON.stringify({ id: lastId, method, params, sessionId }))
    })

  return {
    open: (url) => openPage(url, ask, listeners),
    async close() {
      const ended = once(child, 'exit')
      await ask('Browser.close').catch(() => {})
      await ended
      socket.terminate()
      rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 })
    },
  }
}

const KEYS = {
  Tab: { key: 'Tab', code: 'Tab', windowsVirtualKeyCode: 9 },
  Enter: { key: 'Enter', code: 'Enter', windowsVirtualKeyCode: 13, text: '\r' },
  Space: { key: ' ', code: 'Space', windowsVirtualKeyCode: 32, text: ' ' },
}

async function openPage(url, ask, listeners) {
  const { targetId } = await ask('Target.createTarget', { url: 'about:blank' })
  const { sessionId } = await ask('Target.attachToTarget', { targetId, flatten: true })
  const send = (method, params) => ask(method, params, sessionId)
  /** What the console, the network and the policy complained of, and every address that was asked for. */
  const complaints = []
  const requests = []
  listeners.add(({ sessionId: from, method, params }) => {
    if (from !== sessionId) return
    if (method === 'Runtime.exceptionThrown') complaints.push(params.exceptionDetails.exception?.description)
    if (method === 'Runtime.consoleAPICalled')
      complaints.push(params.args.map(({ value }) => value).join(' '))
    if (method === 'Log.entryAdded') complaints.push(`${params.entry.text} ${params.entry.url ?? ''}`)
    if (method === 'Network.requestWillBeSent') requests.push(params.request.url)
  })
  for (const domain of ['Runtime', 'Log', 'Network', 'Page']) await send(`${domain}.enable`)
  await send('Page.navigate', { url })

  const page = {
    complaints,
    requests,
    send,
    /** The value of an expression in the page. */
    async value(expression) {
      const { result, exceptionDetails } = await send('Runtime.evaluate', {
        expression,
        awaitPromise: true,
        returnByValue: true,
      })
      if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text)
      return result.value
    },
    /** Waits until an expression is true in the page. */
    async until(expression, patienceMs = 20_000) {
      const give = AbortSignal.timeout(patienceMs)
      while (!(await page.value(`Boolean(${expression})`).catch(() => false))) {
        if (give.aborted) {
          const text = await page.value('document.body.innerText').catch(() => 'nothing')
          throw new Error(`never true: ${expression}\n${text}`)
        }
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
    },
    async press(name) {
      await send('Input.dispatchKeyEvent', { type: 'keyDown', ...KEYS[name] })
      await send('Input.dispatchKeyEvent', { type: 'keyUp', ...KEYS[name] })
    },
    type: (text) => send('Input.insertText', { text }),
    media: (scheme) =>
      send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] }),
    size: (width, height) =>
      send('Emulation.setDeviceMetricsOverride', {
        width,
        height,
        deviceScaleFactor: 1,
        mobile: width < 600,
      }),
    async picture() {
      const { data } = await send('Page.captureScreenshot', { format: 'png' })
      return Buffer.from(data, 'base64')
    },
    close: () => ask('Target.closeTarget', { targetId }),
  }
  return page
}
