import { expect, test } from 'vitest'
import { Timeline } from '../../../src/cli/emulator/timeline.ts'
import { createKit, hold } from '../../../src/cli/kit.ts'

hold(createKit())

test('of a connection that goes on for days the newest is kept', () => {
  const timeline = new Timeline()
  timeline.add({ type: 'connection-opened', connectionId: 1, port: 8883 })
  for (let i = 0; i < 500; i++)
    timeline.add({ type: 'violation', connectionId: 1, rule: `rule ${i}` } as Parameters<Timeline['add']>[0])
  const [lane] = timeline.all()
  expect(lane?.steps).toHaveLength(200)
  expect(lane?.steps.at(-1)?.text).toBe('rule 499')
})
