import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['test/interop/**', 'node_modules/**'],
    // Device code is judged on real sockets: a slow shared runner must not turn a correct answer into a failure.
    testTimeout: 20_000,
    hookTimeout: 30_000,
    pool: 'forks',
  },
})
