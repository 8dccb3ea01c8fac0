import { defineConfig } from 'vitest/config'
import { pageText } from './scripts/page-text.mjs'

export default defineConfig({
  plugins: [
    {
      name: 'page',
      enforce: 'pre',
      async load(id) {
        return id.endsWith('.html') ? `export default ${JSON.stringify(await pageText(id))}` : undefined
      },
    },
  ],
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['test/interop/**', 'node_modules/**'],
    // Device code is judged on real sockets: a slow shared runner must not turn a correct answer into a failure.
    testTimeout: 20_000,
    hookTimeout: 30_000,
    // Likewise what is polled for, where vitest would wait for one second.
    expect: { poll: { timeout: 15_000 } },
    pool: 'forks',
    // Of two cores vitest would use one, and take twice as long.
    maxWorkers: '100%',
  },
})
