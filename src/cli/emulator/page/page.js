// The script of the page: what comes from the emulator, and so from the network, is put in as text and never as markup.

const byId = (id) => document.getElementById(id)

/** An element with its properties and children; a text is a text node. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue
    if (name in element) element[name] = value
    else element.setAttribute(name, value)
  }
  element.append(...children.filter((child) => child !== undefined))
  return element
}

function say(text) {
  byId('said').textContent = text
}

function link(text, tone) {
  byId('link').textContent = text
  byId('link').className = `tag ${tone}`
}

async function wish(what, done) {
  try {
    const response = await fetch('wish', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(what),
    })
    const granted = response.status === 204
    say(granted ? done : await response.text())
    return granted
  } catch {
    say('The emulator does not answer.')
    return false
  }
}

/** A button that keeps the focus over a new drawing by its key. */
const button = (key, text, onclick, more) =>
  make('button', { type: 'button', 'data-key': key, onclick, ...more }, text)

const drawn = {}

/** Draws a list anew where it changed. */
function draw(id, items, row, nothing) {
  const now = JSON.stringify(items)
  if (drawn[id] === now) return
  drawn[id] = now
  const list = byId(id)
  const key = list.contains(document.activeElement) ? document.activeElement.dataset.key : undefined
  list.replaceChildren(...(items.length === 0 ? [make('li', {}, make('span', {}, nothing))] : items.map(row)))
  if (key === undefined) return
  const buttons = [...list.querySelectorAll('button')]
  const again = buttons.find((one) => one.dataset.key === key) ?? buttons[0] ?? byId('fault')
  again.focus()
}

const KINDS = { symmetricKey: 'symmetric key', x509: 'X.509' }

function toggled(kind, name, says, item, ref) {
  const verb = item.enabled ? 'Disable' : 'Enable'
  return make(
    'li',
    {},
    make(
      'div',
      {},
      make('b', {}, name),
      make('span', {}, says, item.enabled ? '' : make('b', { className: 'bad' }, ' · disabled')),
    ),
    button(
      name,
      verb,
      () =>
        wish(
          { ...ref, enabled: !item.enabled },
          `${kind} ${name} is ${item.enabled ? 'disabled' : 'enabled'}.`,
        ),
      { 'aria-label': `${verb} ${kind.toLowerCase()} ${name}` },
    ),
  )
}

function enrollmentRow(item) {
  const { groupId, registrationId } = item
  const kind = groupId === undefined ? 'Enrollment' : 'Group'
  const says = `${groupId === undefined ? 'individual' : 'group'}, ${KINDS[item.attestation]}`
  return toggled(
    kind,
    groupId ?? registrationId,
    says,
    item,
    groupId === undefined ? { registrationId } : { groupId },
  )
}

function deviceRow(item) {
  const { hub, deviceId, moduleId, authentication, connected } = item
  const name = moduleId === undefined ? deviceId : `${deviceId}/${moduleId}`
  return toggled('Device', name, `${hub}, ${KINDS[authentication]}${connected ? ', connected' : ''}`, item, {
    hub,
    deviceId,
    moduleId,
  })
}

function faultRow({ id, text, hits }) {
  return make(
    'li',
    {},
    make(
      'div',
      {},
      make('code', {}, text),
      make('span', {}, hits === 0 ? 'has not struck yet' : `struck ${hits === 1 ? 'once' : `${hits} times`}`),
    ),
    button(text, 'Remove', () => wish({ remove: id }, `Fault ${text} is removed.`), {
      'aria-label': `Remove fault ${text}`,
    }),
  )
}

let switches = []

function showState({ enrollments, devices, hidden, faults }) {
  draw('enrollments', enrollments, enrollmentRow, 'Nothing is enrolled.')
  draw('devices', devices, deviceRow, 'No device has been assigned yet.')
  byId('h-devices').textContent = hidden
    ? `Devices at the hub (${hidden} older ones not shown)`
    : 'Devices at the hub'
  draw('faults', faults, faultRow, 'No fault is in force.')
  for (const { button: one, text, label } of switches) {
    const on = faults.filter((fault) => fault.text === text)
    one.setAttribute('aria-pressed', on.length > 0)
    one.onclick = async () => {
      if (on.length === 0) await wish({ fault: text }, `Fault “${label}” is on.`)
      for (const { id } of on) await wish({ remove: id }, `Fault “${label}” is off.`)
    }
  }
}

const lanes = new Map()
let policy = []

function suiteTable({ hello, cipher }) {
  const { suites } = hello
  const others = suites.filter((suite) => !policy.includes(suite))
  const row = (suite, recommended) => {
    const place = suites.indexOf(suite)
    const tone = suite === cipher ? 'good' : undefined
    return make(
      'tr',
      {},
      make('th', { scope: 'row', className: recommended ? '' : 'bad' }, suite),
      make('td', {}, place === -1 ? 'no' : `${place + 1}${recommended ? '' : ', not recommended'}`),
      make('td', { className: tone }, tone ? 'yes' : ''),
    )
  }
  const heads = ['Recommended, in order', 'Offered', 'Chosen'].map((text) =>
    make('th', { scope: 'col' }, text),
  )
  return make(
    'table',
    {},
    make('caption', {}, 'ClientHello and policy'),
    make('thead', {}, make('tr', {}, ...heads)),
    make(
      'tbody',
      {},
      ...policy.map((suite) => row(suite, true)),
      ...others.map((suite) => row(suite, false)),
    ),
  )
}

function helloParts(lane) {
  const { versions, groups, serverName, ticket } = lane.hello
  const facts = [
    ['Versions', versions.join(', ')],
    ['Curves', groups.join(', ') || 'none'],
    ['Server name', serverName ?? 'none'],
    ['Session', lane.resumed ? 'resumed' : ticket ? 'ticket offered, full handshake' : 'new'],
  ]
  return [
    suiteTable(lane),
    make('dl', {}, ...facts.flatMap(([name, is]) => [make('dt', {}, name), make('dd', {}, is)])),
  ]
}

const milliseconds = (at) =>
  at < 10_000 ? `${at.toFixed(at < 100 ? 1 : 0)} ms` : `${(at / 1000).toFixed(1)} s`

function stepItem({ at, name, text, tone }) {
  return make(
    'li',
    {},
    make('time', {}, milliseconds(at)),
    make('i', { className: tone ?? '' }),
    make(
      'div',
      {},
      make('b', { className: tone ?? '' }, name),
      text === '' ? undefined : make('span', {}, text),
    ),
  )
}

function newLane({ id, time }) {
  const who = make('b', {}, 'unknown')
  const state = make('span', { className: 'tag soft' }, 'open')
  const steps = make('ol', { className: 'steps' })
  const hello = make('div', {}, make('p', { className: 'soft' }, 'No ClientHello yet.'))
  const element = make(
    'details',
    {},
    make('summary', {}, make('span', { className: 'soft' }, `#${id} ${time}`), who, state),
    make('div', { className: 'lane' }, make('div', {}, make('h3', {}, 'Timeline'), steps), hello),
  )
  const list = byId('lanes')
  if (lanes.size === 0) list.replaceChildren()
  // One is open, the newest, until somebody looks at another.
  const open = [...list.querySelectorAll('details[open]')]
  if (open.length === 0 || (open.length === 1 && open[0] === list.firstChild)) {
    if (!open[0]?.contains(document.activeElement)) {
      for (const one of open) one.open = false
      element.open = true
    }
  }
  list.prepend(element)
  const lane = { element, who, state, steps, hello, helloIs: '' }
  lanes.set(id, lane)
  if (lanes.size > 40) {
    const [oldest] = lanes.keys()
    lanes.get(oldest).element.remove()
    lanes.delete(oldest)
  }
  return lane
}

function showLane(change) {
  const lane = lanes.get(change.id) ?? newLane(change)
  lane.steps.append(...change.steps.map(stepItem))
  // A connection to the hub may go on for days: the newest are shown.
  while (lane.steps.childElementCount > 200) lane.steps.firstChild.remove()
  if (change.who !== undefined) lane.who.textContent = change.who
  const took = lane.steps.lastChild?.querySelector('time').textContent
  lane.state.textContent = change.open ? 'open' : `${change.outcome ?? 'closed'}, ${took}`
  lane.state.className = `tag ${change.tone ?? 'soft'}`
  if (change.hello === undefined) return
  const now = JSON.stringify([change.hello, change.cipher, change.resumed])
  if (lane.helloIs !== now) lane.hello.replaceChildren(...helloParts(change))
  lane.helloIs = now
}

function showAll(all) {
  policy = all.policy
  byId('about').textContent = all.about
  byId('words').replaceChildren(...all.words.map((value) => make('option', { value })))
  byId('commands').replaceChildren(
    ...all.commands.map((command, i) =>
      make(
        'li',
        {},
        // Broken between words alone.
        make('code', {}, ...command.split(' ').flatMap((word) => [make('span', {}, word), ' '])),
        button(
          `copy${i}`,
          'Copy',
          async () => {
            await navigator.clipboard.writeText(command)
            say('The command is copied.')
          },
          { 'aria-label': `Copy command ${i + 1}` },
        ),
      ),
    ),
  )
  switches = all.switches.map(([text, label]) => ({
    text,
    label,
    button: make('button', { type: 'button', title: text }, label),
  }))
  byId('switches').replaceChildren(...switches.map(({ button: one }) => one))
  for (const id of Object.keys(drawn)) delete drawn[id]
  lanes.clear()
  byId('lanes').replaceChildren(
    make('p', { className: 'soft' }, 'No connection yet. Run one of the commands in a terminal.'),
  )
  for (const lane of all.lanes) showLane(lane)
  showState(all.state)
}

byId('add').addEventListener('submit', async (event) => {
  event.preventDefault()
  const field = byId('fault')
  const fault = field.value.trim()
  if (await wish({ fault }, `Fault ${fault} is added.`)) field.value = ''
})

const source = new EventSource('events')
const on = (name, act) => source.addEventListener(name, (event) => act(JSON.parse(event.data)))
on('all', (all) => {
  showAll(all)
  link('live', 'good')
})
on('state', showState)
on('lane', (change) => {
  showLane(change)
  for (const { tone, name, text } of change.steps)
    if (tone !== undefined)
      say(`#${change.id} ${text.includes(change.who) ? '' : `${change.who ?? ''} `}${name}: ${text}`)
})
source.addEventListener('error', () => link('the emulator has ended or is out of reach', 'bad'))
