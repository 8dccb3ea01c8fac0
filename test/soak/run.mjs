// Every soak in its long form: what is a test in a short form, and the scripts here. `npm run soak`.

import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../../', import.meta.url))
const RUNS = [
  [
    'power cuts while the assignment is stored',
    ['node_modules/vitest/vitest.mjs', 'run', 'test/soak/power-cut'],
    { SOAK_KILLS: '1000' },
  ],
  [
    'power cuts while many devices are registered',
    ['node_modules/vitest/vitest.mjs', 'run', 'test/soak/many-power-cut'],
    { SOAK_KILLS: '300' },
  ],
  ['a device on its hub', ['--expose-gc', 'test/soak/hub.mjs'], { SOAK_CYCLES: '10000', SOAK_DROPS: '100' }],
]

let failed = 0
for (const [title, args, env] of RUNS) {
  console.log(`\n=== ${title}`)
  const { status } = spawnSync(process.execPath, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env, NODE_EXTRA_CA_CERTS: '' },
  })
  if (status !== 0) failed += 1
}
console.log(`${RUNS.length - failed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
