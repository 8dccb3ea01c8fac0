import type { FaultSpec, FaultStep } from '../../emulator/index.ts'
import { kit } from '../kit.ts'

type Table = Readonly<Record<FaultStep, readonly string[]>>

/** How an action is written that takes a value. Made of code, `raw` is for programs that use the emulator as a library. */
const VALUED: Readonly<Record<string, (value: number) => unknown>> = {
  reply: (status) => ({ reply: { status } }),
  refuse: (refuse) => ({ refuse }),
  truncate: (truncate) => ({ truncate }),
  cut: (cut) => ({ cut }),
  oversize: (oversize) => ({ oversize }),
  late: (late) => ({ late }),
}
const OUTCOMES = ['failed', 'disabled', 'unassigned']

/** As in `register=429*2@press-42`. */
const FAULT = /^([a-z-]+)=([a-z0-9:+-]+?)(?:\*(\d{1,9}|forever))?(?:@([A-Za-z0-9\-._:]{1,128}))?$/

/** The words that a step takes, each as it is written. */
export const wordsOf = (table: Table, step: FaultStep): readonly string[] =>
  table[step].flatMap((name) => {
    if (name === 'raw') return []
    if (name === 'reply') return ['STATUS']
    if (name === 'outcome') return OUTCOMES
    // At a subscription there is one way to refuse.
    if (name === 'refuse' && step.endsWith('subscribe')) return ['refuse']
    return Object.hasOwn(VALUED, name) ? [`${name}:NUMBER`] : [name]
  })

/**
 * A fault of the emulator from its text: `STEP=ACTION[+ACTION…][*TIMES][@REGISTRATION-ID]`.
 *
 * @throws DpsError OPTION_INVALID, phase `config`
 */
export function parseFault(text: string, table: Table, as: string): FaultSpec {
  const [, step = '', actions = '', times, registrationId] = FAULT.exec(text) ?? []
  if (step === '') throw kit.usage(`${as} must be like register=429 or poll=silence*2@press-42`)
  if (!Object.hasOwn(table, step)) throw kit.unknown(step, Object.keys(table), ` as a step in ${as}`)
  const at = step as FaultStep
  return {
    at,
    do: actions.split('+').map((word) => actionOf(word, at, table, as)),
    ...(times === undefined ? {} : { times: times === 'forever' ? Number.POSITIVE_INFINITY : Number(times) }),
    ...(registrationId === undefined ? {} : { match: { registrationId } }),
  } as FaultSpec
}

function actionOf(word: string, step: FaultStep, table: Table, as: string): unknown {
  const words = wordsOf(table, step)
  if (/^\d{3}$/.test(word) && words.includes('STATUS')) return VALUED.reply!(Number(word))
  const [name = '', value] = word.split(':')
  if (value !== undefined && words.includes(`${name}:NUMBER`) && /^\d{1,9}$/.test(value))
    return VALUED[name]!(Number(value))
  if (!words.includes(word)) {
    const all = words.join(', ')
    throw kit.usage(`${as}: an action at ${step} is one of ${all}`, 'NUMBER and STATUS stand for a number.')
  }
  return OUTCOMES.includes(word) ? { outcome: word } : word
}

const written = (action: unknown): string => {
  if (typeof action === 'string') return action
  const [[name, value] = ['', '']] = Object.entries(action as Record<string, unknown>)
  if (name === 'outcome') return String(value)
  return name === 'reply' ? String((value as { status: number }).status) : `${name}:${value}`
}

/** The text of a fault that was read from one. */
export function faultText({ at, do: actions, times, match }: FaultSpec): string {
  const count =
    times === undefined || times === 1 ? '' : `*${times === Number.POSITIVE_INFINITY ? 'forever' : times}`
  const whose = typeof match === 'object' ? `@${match.registrationId}` : ''
  return `${at}=${[actions].flat().map(written).join('+')}${count}${whose}`
}
