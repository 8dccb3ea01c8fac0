// What the simulation takes from the library: the code itself, not a copy of it.

export { DpsError } from '../../src/errors.ts'
export { resolveOptions } from '../../src/options/resolve.ts'
export { parseReply } from '../../src/protocol/response.ts'
export { delayMs, pauseMs } from '../../src/registration/schedule.ts'
export { transition } from '../../src/registration/transition.ts'
