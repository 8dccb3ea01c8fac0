import { expect } from 'vitest'
import { DpsError, type DpsErrorCode, type DpsPhase } from '../../src/errors.ts'

/** Runs `action`, which must fail with a DpsError of this code and phase, and returns the error. */
export async function expectDpsError(
  action: Promise<unknown> | (() => unknown),
  code: DpsErrorCode,
  phase: DpsPhase,
): Promise<DpsError> {
  let thrown: unknown
  let value: unknown
  try {
    value = await (typeof action === 'function' ? action() : action)
  } catch (error) {
    thrown = error
  }
  if (thrown === undefined) expect.fail(`expected ${code}, but it succeeded with ${JSON.stringify(value)}`)
  if (!DpsError.is(thrown)) throw thrown
  expect({ code: thrown.code, phase: thrown.phase, message: thrown.message }).toMatchObject({ code, phase })
  return thrown
}
