import { beforeAll, describe, expect, test } from 'vitest'
import { faultText, parseFault, wordsOf } from '../../../../src/cli/emulator/faults.ts'
import { emulator } from '../../../../src/cli/emulator/verb.ts'
import { createKit, hold } from '../../../../src/cli/kit.ts'
import { FaultScript } from '../../../../src/emulator/faults.ts'
import { FAULT_ACTIONS, type FaultStep } from '../../../../src/emulator/index.ts'

beforeAll(() => hold(createKit()))
const steps = Object.keys(FAULT_ACTIONS) as FaultStep[]
const parse = (text: string) => parseFault(text, FAULT_ACTIONS, '--fault')
/** One text of each word that a step takes. */
const texts = steps.flatMap((step) =>
  wordsOf(FAULT_ACTIONS, step).map(
    (word) => `${step}=${word.replace('STATUS', '429').replace('NUMBER', '500')}`,
  ),
)

describe('the text of a fault', () => {
  test.each(texts)('%s is taken by the emulator, and written again as it was', (text) => {
    const spec = parse(text)
    expect(new FaultScript().add(spec).spec).toBe(spec)
    expect(faultText(spec)).toBe(text)
  })

  test('says how often, on whom, and what is combined', () => {
    expect(parse('register=429*2@press-42')).toEqual({
      at: 'register',
      do: [{ reply: { status: 429 } }],
      times: 2,
      match: { registrationId: 'press-42' },
    })
    expect(parse('poll=silence*forever').times).toBe(Number.POSITIVE_INFINITY)
    expect(parse('issue=wrong-key+leaf-only').do).toEqual(['wrong-key', 'leaf-only'])
    expect(parse('poll=failed').do).toEqual([{ outcome: 'failed' }])
    for (const text of ['poll-reply=duplicate+byte-by-byte*forever@a.b:c', 'register=429*2'])
      expect(faultText(parse(text))).toBe(text)
  })

  test.each([
    ['register', /must be like register=429/],
    ['register=', /must be like register=429/],
    ['registre=429', /registre as a step in --fault is not known/],
    ['toString=drop', /must be like/],
    ['constructor=drop', /constructor as a step in --fault is not known/],
    ['register=explode', /an action at register is one of silence, drop/],
    ['register=raw', /an action at register is one of/],
    ['register=42', /an action at register is one of/],
    ['accept=429', /an action at accept is one of/],
    ['connect=refuse', /an action at connect is one of/],
    ['register=429*x', /must be like/],
    ['register=429@pre ss', /must be like/],
  ])('%s is refused', (text, message) => {
    expect(() => parse(text)).toThrow(
      expect.objectContaining({
        code: 'OPTION_INVALID',
        phase: 'config',
        message: expect.stringMatching(message),
      }),
    )
  })

  test('is explained whole by the help', () => {
    const always = ['silence', 'drop', 'no-close-notify', 'reset']
    const explained: Record<string, string[]> = {}
    const [, table = ''] = emulator().help.split('further actions:\n')
    for (const line of table.replace(/\n {4}/g, ' ').split('\n')) {
      const [, names = '', words = ''] = /^ {2}([^:]+): (.*)$/.exec(line) ?? []
      for (const name of names.split(', '))
        explained[name] = [
          ...(name === 'issue' ? [] : always),
          ...(words === 'no others' ? [] : words.split(' ')),
        ].sort()
    }
    expect(explained).toEqual(
      Object.fromEntries(steps.map((step) => [step, [...wordsOf(FAULT_ACTIONS, step)].sort()])),
    )
  })
})
