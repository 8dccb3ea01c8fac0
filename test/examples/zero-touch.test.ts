import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'

// The example as it is, over the built package, with lives of seconds. Where the machine stands still for longer than a
// fifth of one, the device goes back to its bootstrap key, as it should, and what is expected here holds all the same.

const EXAMPLE = fileURLToPath(new URL('../../examples/zero-touch/index.mjs', import.meta.url))

it('a device is issued a certificate, renews it three times and loses no message', async () => {
  const child = spawn(process.execPath, [EXAMPLE], {
    env: { ...process.env, ZERO_TOUCH_LIFETIME_S: '6', NO_COLOR: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const [stdout, stderr, [code]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close'),
  ])
  expect({ code, stderr, stdout }).toMatchObject({ code: 0, stderr: '' })
  const serials = [...stdout.matchAll(/the hub takes certificate ([0-9A-F]{8})/g)].map(([, serial]) => serial)
  expect(serials).toHaveLength(4)
  expect(new Set(serials).size).toBe(4)
  expect(stdout).toContain('asks for a certificate, with the bootstrap key')
  const [, renewals, certificates, sent, lost] =
    /(\d+) renewals, (\d+) certificates, (\d+) messages sent, (\d+) lost/.exec(stdout) ?? []
  expect({ renewals, certificates, lost }).toEqual({ renewals: '3', certificates: '4', lost: '0' })
  expect(Number(sent)).toBeGreaterThan(50)
}, 120_000)
