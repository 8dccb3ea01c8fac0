// The live page of `dps-device emulator` in a headless Chromium: what it shows, by keyboard alone, in both colour schemes,
// and what it does not let in. Last line: `N passed, N failed`.
//
//     npm run page                 with the Chromium that is installed
//     npm run page -- --install    asks Debian for it first, where it is missing (root)
//     CHROMIUM=/path npm run page  with another
//     SHOTS=folder npm run page    and pictures of it

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { connect } from 'node:tls'
import { fileURLToPath } from 'node:url'
import { checks } from '../../scripts/checks.mjs'
import { findChromium, startChromium } from './chromium.mjs'

const COMMAND = fileURLToPath(new URL('../../dist/dps-device.cjs', import.meta.url))
const shots = process.env.SHOTS

const program = findChromium(process.argv.includes('--install'))
if (program === undefined) {
  console.log('skipped: there is no Chromium here (Debian: apt-get install chromium; or set CHROMIUM)')
  console.log('0 passed, 0 failed')
  process.exit(0)
}

const { check, end } = checks()
function expect(is, what) {
  if (!is) throw new Error(what)
}

const emulator = spawn(COMMAND, ['emulator', '--json', '--page', '0', '--retry-after', '0', '--polls', '1'], {
  stdio: ['ignore', 'pipe', 'inherit'],
})
const ready = await new Promise((resolve, reject) => {
  let text = ''
  emulator.stdout.setEncoding('utf8').on('data', (more) => {
    text += more
    if (text.includes('\n')) resolve(JSON.parse(text.slice(0, text.indexOf('\n'))))
  })
  emulator.once('exit', () => reject(new Error('the emulator ended')))
})
const commandOf = new Map(ready.devices.map(({ registrationId, command }) => [registrationId, command]))

/** Runs the printed command of a device; resolves to its exit code. */
async function register(id) {
  // npm has started this, and so the emulator says npx.
  const command = commandOf.get(id).replace(/^(?:npx dps-device-client|dps-device) /, `'${COMMAND}' `)
  const [code] = await once(spawn('sh', ['-c', command], { stdio: 'ignore' }), 'exit')
  return code
}

/** An MQTT CONNECT with any client id; resolves when the emulator has ended the connection. */
async function connectAs(clientId) {
  const text = (value) => {
    const bytes = Buffer.from(value)
    return Buffer.concat([Buffer.from([bytes.length >> 8, bytes.length & 255]), bytes])
  }
  const body = Buffer.concat([
    text('MQTT'),
    Buffer.from([4, 0xc2, 0, 60]),
    ...[clientId, 'user', 'word'].map(text),
  ])
  expect(body.length < 16_384, 'the client id is too long for this')
  const head = body.length < 128 ? [0x10, body.length] : [0x10, (body.length & 127) | 128, body.length >> 7]
  const socket = connect({
    host: ready.address,
    port: ready.port,
    ca: readFileSync(ready.root),
    servername: 'global.azure-devices-provisioning.net',
  })
  socket.on('error', () => {})
  socket.write(Buffer.concat([Buffer.from(head), body]))
  socket.resume()
  await once(socket, 'close')
}

const browser = await startChromium(program)
try {
  const page = await browser.open(ready.page)
  await page.size(1280, 900)
  await page.media('light')
  const shoot = async (name) => {
    if (shots === undefined) return
    mkdirSync(shots, { recursive: true })
    writeFileSync(join(shots, `${name}.png`), await page.picture())
  }
  const said = () => page.value(`document.getElementById('said').textContent`)
  const lane = (index) => `document.querySelectorAll('#lanes > details')[${index}]`
  const names = (index) =>
    page.value(`[...${lane(index)}.querySelectorAll('.steps b')].map((b) => b.textContent)`)
  const tagIs = (pattern) => `${pattern}.test(${lane(0)}?.querySelector('.tag').textContent)`
  const lanes = () => page.value(`document.querySelectorAll('#lanes > details').length`)
  const focused = () =>
    page.value(`(() => {
      const one = document.activeElement
      return one === document.body ? '' : one.getAttribute('aria-label') ?? one.textContent
    })()`)
  /** Goes to what has this name, by Tab alone. */
  async function tabTo(name) {
    for (let i = 0; i < 100; i++) {
      if ((await focused()) === name) return
      await page.press('Tab')
    }
    throw new Error(`Tab does not lead to ${name}`)
  }

  await check('loads, and is live', async () => {
    await page.until(`document.getElementById('link').textContent === 'live'`)
    expect((await page.value('document.title')) === 'DPS emulator', 'another title')
  })

  await check('shows a device that registers, as it happens, with every part of its way', async () => {
    expect((await register('press-42')) === 0, 'the device is not registered')
    await page.until(tagIs('/^assigned/'))
    // The device has gone; the page hears of it a moment later.
    await page.until(`[...${lane(0)}.querySelectorAll('.steps b')].at(-1).textContent === 'closed'`)
    const parts = await names(0)
    const flow = [
      'TCP',
      'ClientHello',
      'TLS',
      'CONNECT',
      'SUBSCRIBE',
      'register',
      'reply 202',
      'poll',
      'assigned',
    ]
    let at = -1
    for (const part of flow) {
      const next = parts.indexOf(part, at + 1)
      expect(next > at, `${part} is missing or out of order in ${parts}`)
      at = next
    }
    const times = await page.value(
      `[...${lane(0)}.querySelectorAll('.steps time')].map((one) => Number.parseFloat(one.textContent))`,
    )
    expect(
      times.every((time, i) => i === 0 || time >= times[i - 1]),
      `times step back: ${times}`,
    )
    expect((await said()).includes('press-42'), 'the live region does not tell of it')
    return `${parts.length} steps`
  })

  await check('shows what was offered beside the policy, and what was chosen', async () => {
    const rows = await page.value(
      `[...${lane(0)}.querySelectorAll('tbody tr')].map((row) => [...row.children].map((cell) => cell.textContent))`,
    )
    const expected = [
      ['ECDHE-RSA-AES256-GCM-SHA384', '1', 'yes'],
      ['ECDHE-RSA-AES128-GCM-SHA256', '2', ''],
      ['ECDHE-RSA-AES256-SHA384', '3', ''],
      ['ECDHE-RSA-AES128-SHA256', '4', ''],
    ]
    expect(JSON.stringify(rows) === JSON.stringify(expected), JSON.stringify(rows))
  })

  await check(
    'disables an enrollment by keyboard alone, and the device is refused until it is enabled',
    async () => {
      await tabTo('Disable group presses')
      await page.press('Enter')
      await page.until(`document.getElementById('said').textContent === 'Group presses is disabled.'`)
      await page.until(`document.activeElement.getAttribute('aria-label') === 'Enable group presses'`)
      expect((await register('press-42')) === 7, 'the device is not refused')
      await page.until(tagIs('/^refused/'))
      await page.press('Enter')
      await page.until(`document.activeElement.getAttribute('aria-label') === 'Disable group presses'`)
      expect((await register('press-42')) === 0, 'the device is still refused')
      await page.until(tagIs('/^assigned/'))
    },
  )

  await check('disables and enables a device at its hub', async () => {
    await tabTo('Disable device press-42')
    await page.press('Space')
    await page.until(`document.activeElement.getAttribute('aria-label') === 'Enable device press-42'`)
    await page.press('Space')
    await page.until(`document.activeElement.getAttribute('aria-label') === 'Disable device press-42'`)
  })

  await check('switches a fault on and off by keyboard', async () => {
    const pressed = (is) => `document.activeElement.getAttribute('aria-pressed') === '${is}'`
    await tabTo('Fail to allocate')
    await page.press('Space')
    await page.until(pressed(true))
    await page.until(`document.getElementById('faults').textContent.includes('poll-reply=failed*forever')`)
    expect((await register('press-43')) === 8, 'the device does not fail')
    await page.until(tagIs('/^fault/'))
    await page.until(`document.getElementById('faults').textContent.includes('struck once')`)
    await shoot('fault')
    expect((await focused()) === 'Fail to allocate', 'the focus is lost')
    await page.press('Space')
    await page.until(pressed(false))
    expect((await register('press-43')) === 0, 'the fault is still on')
    await page.until(tagIs('/^assigned/'))
  })

  await check('takes any fault as text, and says what is wrong with one', async () => {
    await page.value(`document.getElementById('fault').focus()`)
    await page.type('register=explode')
    await page.press('Enter')
    await page.until(`/an action at register is one of/.test(document.getElementById('said').textContent)`)
    expect((await page.value(`document.querySelectorAll('#faults button').length`)) === 0, 'it was added')
    await page.value(`document.getElementById('fault').select()`)
    await page.type('register=503@press-42')
    await page.press('Enter')
    await page.until(`document.querySelector('#faults code')?.textContent === 'register=503@press-42'`)
    expect((await page.value(`document.getElementById('fault').value`)) === '', 'the field keeps it')
    await tabTo('Remove fault register=503@press-42')
    await page.press('Enter')
    await page.until(`document.querySelectorAll('#faults button').length === 0`)
    expect(await page.value(`document.activeElement.id === 'fault'`), 'the focus is lost')
  })

  await check('shows markup in the name of a device as text', async () => {
    const evil = `<img src=x onerror="window.taken=1"><script>window.taken=1</script>`
    const before = await lanes()
    await connectAs(evil)
    await page.until(`document.querySelectorAll('#lanes > details').length > ${before}`)
    await page.until(`${lane(0)}.querySelector('summary b').textContent === ${JSON.stringify(evil)}`)
    await page.until(tagIs('/^(?:refused|violation)/'))
    await shoot('markup')
    expect(
      (await page.value('window.taken')) === null || (await page.value('window.taken')) === undefined,
      'it ran',
    )
    expect((await page.value(`document.querySelectorAll('img').length`)) === 0, 'there is an image')
    expect((await page.value(`document.querySelectorAll('script').length`)) === 1, 'there is another script')
  })

  for (const scheme of ['light', 'dark']) {
    await check(`has contrast of 4.5 for every text, ${scheme}`, async () => {
      await page.media(scheme)
      // Every kind of thing is on the page: a fault in force, an enrollment that is disabled, each tone.
      if (scheme === 'light') {
        await tabTo('Throttle')
        await page.press('Space')
        await tabTo('Disable enrollment press-43')
        await page.press('Enter')
        await page.until(`document.querySelectorAll('#enrollments .bad').length === 1`)
      }
      await page.value(`for (const one of document.querySelectorAll('details')) one.open = true`)
      await shoot(scheme)
      const { worst, texts } = await page.value(`(${worstContrast})()`)
      expect(texts > 100, `only ${texts} texts were found`)
      expect(
        worst.ratio >= 4.5,
        `${worst.ratio.toFixed(2)} for “${worst.text}” (${worst.colour} on ${worst.ground})`,
      )
      return `lowest ${worst.ratio.toFixed(2)} of ${texts} texts`
    })
  }

  await check(
    'gives everything that can be pressed a name, a place in the order of Tab, and a visible focus',
    async () => {
      const all = await page.value(
        `[...document.querySelectorAll('button, input, summary')].map((one) => one.getAttribute('aria-label') ??
        (one.labels?.[0] ?? one).textContent.trim())`,
      )
      expect(
        all.every((name) => name !== ''),
        'one has no name',
      )
      const reached = new Set()
      await page.value('document.activeElement.blur()')
      for (let i = 0; i < all.length + 5; i++) {
        await page.press('Tab')
        const outline = await page.value(`(() => {
        const one = document.activeElement
        if (!one.matches('button, input, summary')) return undefined
        one.dataset.reached = '1'
        const { outlineStyle, outlineWidth } = getComputedStyle(one)
        return outlineStyle + ' ' + outlineWidth
      })()`)
        if (outline !== undefined && outline !== null) reached.add(outline)
      }
      const missed = await page.value(
        `[...document.querySelectorAll('button, input, summary')].filter((one) => !one.dataset.reached).length`,
      )
      expect(missed === 0, `${missed} are not reached by Tab`)
      expect([...reached].join() === 'solid 3px', `the outline is ${[...reached]}`)
      return `${all.length} of them`
    },
  )

  await check('fits a phone, without scrolling sideways', async () => {
    await page.size(360, 740)
    const wide = await page.value(`document.documentElement.scrollWidth`)
    await shoot('phone')
    expect(wide <= 360, `it is ${wide} pixels wide`)
    await page.size(1280, 900)
  })

  await check('holds no secret', async () => {
    const text = await page.value('document.documentElement.outerHTML')
    const folder = dirname(ready.root)
    const secrets = [
      readFileSync(join(folder, 'press-42.key'), 'utf8').trim(),
      readFileSync(join(folder, 'press-43-key.pem'), 'utf8').split('\n')[1],
      'SharedAccessSignature',
      'sig=',
    ]
    for (const secret of secrets) expect(!text.includes(secret), 'a secret is on the page')
  })

  await check('made no complaint, and asked for nothing but itself', async () => {
    expect(page.complaints.length === 0, page.complaints.join('; '))
    const foreign = page.requests.filter((url) => !url.startsWith(ready.page))
    expect(foreign.length === 0, foreign.join(' '))
    return `${page.requests.length} requests`
  })

  await check('lets no script in that is not its own', async () => {
    const directive = await page.value(`new Promise((resolve) => {
      document.addEventListener('securitypolicyviolation', (event) => resolve(event.violatedDirective), { once: true })
      const one = document.createElement('script')
      one.append('window.taken = 1')
      document.body.append(one)
    })`)
    expect(await page.value('window.taken === undefined'), 'an inline script ran')
    expect(/^(?:script-src|require-trusted-types)/.test(directive), `the policy spoke of ${directive}`)
    const foreign = await page.value(`new Promise((resolve) => {
      document.addEventListener('securitypolicyviolation', (event) => resolve(event.violatedDirective), { once: true })
      fetch('http://127.0.0.1:9/').catch(() => {})
    })`)
    expect(foreign === 'connect-src', `the policy spoke of ${foreign}`)
  })

  await check('grants nothing that a foreign page asks for in its place', async () => {
    const other = await browser.open('about:blank')
    const status = await other.value(
      `fetch(${JSON.stringify(`${ready.page}wish`)}, { method: 'POST', mode: 'no-cors', body: '{"groupId":"presses","enabled":false}' })
        .then((response) => response.type, () => 'refused')`,
    )
    await other.close()
    const still = await page.value(`document.querySelector('[aria-label="Disable group presses"]') !== null`)
    expect(still, 'a foreign page disabled an enrollment')
    return status
  })

  await check('comes back whole after it is loaded again', async () => {
    const before = await lanes()
    // What is on its way out is live too.
    await page.value('window.before = true')
    await page.send('Page.reload')
    await page.until(`window.before === undefined && document.getElementById('link')?.textContent === 'live'`)
    expect((await lanes()) === before, 'connections are missing')
    await page.until(`document.querySelector('[aria-label="Enable enrollment press-43"]') !== null`)
  })

  await check('says that the emulator has ended, which ends at once though a page is open', async () => {
    const ended = once(emulator, 'exit')
    emulator.kill('SIGINT')
    const [code] = await ended
    expect(code === 0, `it ended with ${code}`)
    await page.until(`document.getElementById('link').textContent.includes('has ended')`)
  })
} finally {
  await browser.close()
  emulator.kill('SIGKILL')
}

end()

/** In the page: the lowest contrast (WCAG 2.2, 1.4.3) of any text that is shown, against what is behind it. */
function worstContrast() {
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number)
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => {
      const s = value / 255
      return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4
    })
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const groundOf = (element) => {
    for (let one = element; one !== null; one = one.parentElement) {
      const [r, g, b, alpha = 1] = channels(getComputedStyle(one).backgroundColor)
      if (alpha === 1) return [r, g, b]
      if (alpha !== 0) throw new Error('half transparent')
    }
    return [255, 255, 255]
  }
  let texts = 0
  let worst = { ratio: Number.POSITIVE_INFINITY }
  const look = (element, colour, text) => {
    const ground = groundOf(element)
    const [a, b] = [luminance(channels(colour).slice(0, 3)), luminance(ground)].sort((x, y) => y - x)
    const ratio = (a + 0.05) / (b + 0.05)
    texts++
    if (ratio < worst.ratio) worst = { ratio, text, colour, ground: ground.join() }
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let node = walker.nextNode(); node !== null; node = walker.nextNode()) {
    const element = node.parentElement
    if (node.textContent.trim() === '' || element.getClientRects().length === 0) continue
    look(element, getComputedStyle(element).color, node.textContent)
  }
  for (const input of document.querySelectorAll('input'))
    look(input, getComputedStyle(input, '::placeholder').color, input.placeholder)
  return { worst, texts }
}
