// How the examples show what happens. Colour only for people.

const colour = process.stdout.isTTY && !process.env.NO_COLOR
/** @type {(code: number) => (text: string) => string} */
const paint = (code) => (text) => (colour ? `\x1b[${code}m${text}\x1b[0m` : text)
export const bold = paint(1)
export const dim = paint(2)
export const green = paint(32)
export const red = paint(31)
export const yellow = paint(33)

/** @type {Record<string, string>} */
const MEANING = {
  dns: 'name resolved',
  proxy: 'tunnel open',
  tcp: 'connected',
  tls: 'chain, name and suite verified',
  connect: 'identity accepted',
  subscribe: 'listening for replies',
  register: 'registration accepted',
  poll: 'operation finished',
}

/**
 * A handler for `onEvent`: one line for each phase, as it ends.
 *
 * @param {import('dps-device-client').DpsEvent} event
 */
export function progress(event) {
  if (event.type === 'phase-ended' && (!event.ok || event.phase in MEANING)) {
    const mark = event.ok ? green('✓') : red('✗')
    const text = event.ok ? MEANING[event.phase] : 'failed'
    console.log(
      `  ${mark} ${event.phase.padEnd(10)} ${`${event.durationMs.toFixed(1)} ms`.padStart(9)}   ${dim(text ?? '')}`,
    )
  } else if (event.type === 'assigning') {
    console.log(
      `  ${yellow('…')} ${'assigning'.padEnd(10)} ${dim(`asking again in ${(event.delayMs / 1000).toFixed(1)} s`)}`,
    )
  } else if (event.type === 'retry') {
    console.log(
      `  ${yellow('↻')} ${event.step.padEnd(10)} ${dim(`${event.error.code}, again in ${(event.delayMs / 1000).toFixed(1)} s`)}`,
    )
  }
}

/** @param {import('dps-device-client').Assignment} assignment */
export function summary({ registrationId, deviceId, assignedHub, connection }) {
  const { protocol, cipher, curve, root, roundTrips, timingsMs } = connection
  console.log(`  ${bold(registrationId)} is device ${bold(deviceId)} of ${bold(assignedHub)}`)
  console.log(`  ${dim(`${protocol}, ${cipher}, ${curve}`)}`)
  console.log(
    `  ${dim(`validated by "${root}"; ${roundTrips} round trips, ${timingsMs.total.toFixed(0)} ms in all`)}`,
  )
}
