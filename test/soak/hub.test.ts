import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'

// The short form of `npm run soak`, over the built package.

it('a device that comes and goes, and one whose link is dropped, leave nothing behind and lose nothing', () => {
  const script = fileURLToPath(new URL('hub.mjs', import.meta.url))
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--expose-gc', script], {
    env: { ...process.env, SOAK_CYCLES: '300', SOAK_DROPS: '10', NODE_EXTRA_CA_CERTS: '' },
    encoding: 'utf8',
    timeout: 120_000,
  })
  expect({ status, stderr, output: stdout.split('\n').at(-2) }).toEqual({
    status: 0,
    stderr: '',
    output: '2 passed, 0 failed',
  })
}, 150_000)
