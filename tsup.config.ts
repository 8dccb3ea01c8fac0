import { dirname, join } from 'node:path'
import { transform } from 'esbuild'
import { defineConfig, type Options } from 'tsup'

const shared: Options = {
  entry: {
    index: 'src/index.ts',
    hub: 'src/hub/index.ts',
    factory: 'src/factory/index.ts',
    emulator: 'src/emulator/index.ts',
    testing: 'src/testing/index.ts',
  },
  platform: 'node',
  target: 'node20',
  // Nothing is installed on a device but this package.
  noExternal: [/.*/],
}

// Whitespace costs parsing time on a small board; names stay, so that a stack trace from the field can be read.
const compact = { minifyWhitespace: true, minifySyntax: true, legalComments: 'none' } as const

export default defineConfig([
  {
    ...shared,
    // CommonJS is the implementation: it starts faster than ESM, and with one implementation `import` and `require`
    // share one DpsError and one session cache. scripts/finish-build.mjs puts thin ESM entries beside it.
    // esbuild splits ESM only, so it bundles ESM and each file is rewritten; tsup's own way (sucrase) would also turn
    // `?.` and class fields into helper calls on the hot path.
    format: ['esm'],
    splitting: true,
    outExtension: () => ({ js: '.cjs' }),
    metafile: true,
    clean: true,
    esbuildOptions: (options) => {
      // `ws` would load native add-ons where it finds them: nobody has tested those with this package.
      const define = {
        ...options.define,
        'process.env.WS_NO_BUFFER_UTIL': '"1"',
        'process.env.WS_NO_UTF_8_VALIDATE': '"1"',
      }
      Object.assign(options, compact, { define })
    },
    esbuildPlugins: [
      {
        // MQTT.js on Node alone: streams are Node's own, timers come from the clock, and nobody reads its debug output,
        // which would print passwords.
        name: 'mqtt-on-node',
        setup(build) {
          build.onResolve({ filter: /^readable-stream$/ }, () => ({ path: 'node:stream', external: true }))
          build.onResolve({ filter: /^(worker-timers|debug)$/ }, ({ path, importer }) =>
            /[\\/]node_modules[\\/]mqtt(-packet)?[\\/]/.test(importer)
              ? { path, namespace: 'nothing' }
              : undefined,
          )
          build.onLoad({ filter: /.*/, namespace: 'nothing' }, () => ({
            contents: 'module.exports = () => () => {}',
          }))
        },
      },
      {
        // A device needs the client alone; the module that exports it would bring the server along.
        name: 'ws-client',
        setup(build) {
          build.onResolve({ filter: /^ws$/ }, async ({ importer, resolveDir, pluginData }) => {
            if (pluginData === 'resolving' || !/[\\/]src[\\/]transport[\\/]/.test(importer)) return undefined
            const { path } = await build.resolve('ws', {
              kind: 'import-statement',
              importer,
              resolveDir,
              pluginData: 'resolving',
            })
            return { path: join(dirname(path), 'lib', 'websocket.js') }
          })
        },
      },
    ],
    plugins: [
      {
        name: 'commonjs',
        async renderChunk(code) {
          const result = await transform(code, {
            ...compact,
            format: 'cjs',
            platform: 'node',
            target: 'node20',
            // A lazy chunk is CommonJS too: `require` finds it without starting the ESM loader.
            supported: { 'dynamic-import': false },
          })
          return { code: result.code }
        },
      },
    ],
  },
  { ...shared, format: ['cjs'], dts: { only: true } },
])
