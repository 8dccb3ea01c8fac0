import { mkdirSync, mkdtempSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './markdown.ts'

/** A folder as a reader has one, with the package installed, and MQTT.js, which one snippet takes. */
export function readersFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'dps-docs-'))
  const installed = join(folder, 'node_modules')
  mkdirSync(installed)
  symlinkSync(ROOT, join(installed, 'dps-device-client'), 'junction')
  symlinkSync(join(ROOT, 'node_modules', 'mqtt'), join(installed, 'mqtt'), 'junction')
  return folder
}
