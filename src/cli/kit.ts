import { version } from '../../package.json'
import { systemClock } from '../clock.ts'
import { commonName, printableName } from '../distinguished-name.ts'
import { DpsError } from '../errors.ts'
import { isoTime } from '../iso-time.ts'
import { cloudWarnings, DEFAULT_HOST } from '../options/resolve.ts'
import { printable } from '../printable.ts'
import { checkRegistrationId } from '../protocol/registration-id.ts'
import { checkIdScope } from '../protocol/wire.ts'
import { RELEASED_AT_MS } from '../release.ts'
import { RECOMMENDED_SUITES } from '../tls/ciphers.ts'
import { resolveProxy } from '../tls/proxy.ts'
import { BUNDLED_ROOTS } from '../tls/roots.ts'
import { EXIT, EXIT_CODES, exitCodeOf } from './exit-codes.ts'
import { lineOf, readInput } from './input.ts'
import { environmentName, fileName, helpIsOf, REGISTER_OPTIONS, unknown, usage } from './options.ts'
import { connectionRows, describeRows, errorJson, onEvent, spoken, spokenOfRow } from './output.ts'
import {
  credentialOf,
  flag,
  given,
  idScopeOf,
  jsonOf,
  number,
  payloadOf,
  perform,
  secretOf,
  settingsOf,
  text,
  timeoutOf,
  transportsOf,
  trustOf,
  withOwnCertFile,
} from './settings.ts'

/** What the file of the command holds already, for those it loads: nothing is shipped twice. */
export const createKit = () => ({
  BUNDLED_ROOTS,
  checkIdScope,
  checkRegistrationId,
  cloudWarnings,
  commonName,
  connectionRows,
  credentialOf,
  DEFAULT_HOST,
  DpsError,
  describeRows,
  EXIT,
  EXIT_CODES,
  environmentName,
  errorJson,
  exitCodeOf,
  fileName,
  flag,
  given,
  helpIsOf,
  idScopeOf,
  isoTime,
  jsonOf,
  lineOf,
  number,
  onEvent,
  payloadOf,
  perform,
  printable,
  printableName,
  RECOMMENDED_SUITES,
  REGISTER_OPTIONS,
  RELEASED_AT_MS,
  readInput,
  resolveProxy,
  secretOf,
  settingsOf,
  spoken,
  spokenOfRow,
  systemClock,
  text,
  timeoutOf,
  transportsOf,
  trustOf,
  unknown,
  usage,
  version,
  withOwnCertFile,
})

export type Kit = ReturnType<typeof createKit>

/** In a file that was loaded: what it was handed. */
export let kit: Kit

export function hold(handed: Kit): void {
  kit = handed
}
