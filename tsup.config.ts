import { readFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { transform } from 'esbuild'
import { defineConfig, type Options } from 'tsup'
import { pageText } from './scripts/page-text.mjs'

const shared: Options = {
  entry: {
    index: 'src/index.ts',
    hub: 'src/hub/index.ts',
    factory: 'src/factory/index.ts',
    emulator: 'src/emulator/index.ts',
    testing: 'src/testing/index.ts',
  },
  platform: 'node',
  // tsup would take the prefix away before the plug-ins below see it.
  removeNodeProtocol: false,
  target: 'node20',
  // Nothing is installed on a device but this package.
  noExternal: [/.*/],
}

// Whitespace costs parsing time on a small board; names stay, so that a stack trace from the field can be read.
const compact = { minifyWhitespace: true, minifySyntax: true, legalComments: 'none' } as const

/** Node shows the line that an error nobody caught comes from, whole, before the error: a file in one line would fill the screen. */
const lines = { lineLimit: 200 } as const

/**
 * esbuild gives every CommonJS file all of its helpers, of which most use one, and a list of the names for ESM to find, which
 * only looks into entries. It is near a kilobyte a file, to be stored and to be parsed at every start.
 */
function slim(code: string, isShared: boolean): string {
  const parts =
    /^(.*?)var stdin_exports=\{\};__export\(stdin_exports,(\{[^{}]*\})\);module\.exports=__toCommonJS\(stdin_exports\);(.*?)(0&&\(module\.exports=\{[^{}]*\}\);)?\s*$/s.exec(
      code,
    )
  if (parts === null)
    throw new Error('esbuild writes CommonJS in another way: look at slim() in tsup.config.ts')
  const [, helpers = '', names, rest, list = ''] = parts
  const needed = helpers.includes('__toESM') ? helpers : 'var __defProp=Object.defineProperty;'
  // esbuild does not say that it is strict, and all of it was written for that.
  const slimmed = `"use strict";${needed}var __names=__defProp({},"__esModule",{value:!0});for(let[name,get]of Object.entries(${names}))__defProp(__names,name,{get,enumerable:!0});module.exports=__names;${rest}${isShared ? '' : list}`
  return withShortImports(slimmed)
}

/**
 * Names within functions, which no stack trace shows: those of functions and classes of a module, of methods, private ones too,
 * stay. A private name goes for that of a property meanwhile, which esbuild leaves as it is.
 */
async function withShortLocals(code: string): Promise<string> {
  if (/_\$[A-Za-z]/.test(code)) throw new Error('names with _$ in them are taken: look at tsup.config.ts')
  const open = code.replace(/\b(async|get|set|static)#/g, '$1 #').replace(/#(?=[A-Za-z])/g, '_$')
  const options = {
    ...lines,
    minifyIdentifiers: true,
    minifyWhitespace: true,
    legalComments: 'none',
  } as const
  const short = await transform(open, { ...options, target: 'node20' })
  return short.code.trimEnd().replace(/_\$(?=[A-Za-z])/g, '#')
}

/** A file is named at each use of what comes from it, and in no stack trace. */
function withShortImports(code: string): string {
  const files = [...new Set(code.match(/\bimport_chunk_[A-Z0-9]{8}\b/g))]
  if (/\b_f\d/.test(code)) throw new Error('the names _f0, _f1, … are taken: look at tsup.config.ts')
  return files.reduce((text, name, i) => text.replaceAll(name, `_f${i}`), code)
}

/**
 * `node:process` is the global of that name, and Node makes standard input, output and error of it when it is imported.
 */
const globalProcess: NonNullable<Options['esbuildPlugins']>[number] = {
  name: 'global-process',
  setup(build) {
    build.onResolve({ filter: /^(?:node:)?process$/ }, () => ({ path: 'process', namespace: 'global' }))
    build.onLoad({ filter: /^process$/, namespace: 'global' }, () => ({
      contents: 'module.exports = process',
    }))
  },
}

/**
 * The names of other people's packages, which make a fourth of their size. What a stack trace from the field shows of them is
 * the names of methods and what the packages hand out; ours keep theirs.
 */
const shorterPackages: NonNullable<Options['esbuildPlugins']>[number] = {
  name: 'shorter-packages',
  setup(build) {
    build.onLoad({ filter: /[\\/]node_modules[\\/].*\.[cm]?js$/ }, async ({ path }) => {
      const text = await readFile(path, 'utf8')
      const { code } = await transform(text, {
        // Only of a module in CommonJS does esbuild take the names at the top for its own.
        ...(/^(?:import|export)\b/m.test(text) ? {} : { format: 'cjs' }),
        minifyIdentifiers: true,
        legalComments: 'none',
        target: 'node20',
      })
      return { contents: code }
    })
  },
}

/**
 * What nearly everything takes goes into one file: esbuild makes a file of each set of modules that the same entries reach, and
 * each is to be found, read and wrapped at every start. Twelve kilobytes that every entry loads, whatever it uses of them.
 */
const BASE = ['clock', 'errors', 'printable', 'credential/base64', 'protocol/issuance']
const ENTRIES =
  /[\\/]src[\\/](?:(?:\w+[\\/])?index|issuance|credential[\\/]rare|transport[\\/]\w+[\\/](?:mqtt|mqtt-ws|websocket|https))\.ts$/

const oneBase: NonNullable<Options['esbuildPlugins']>[number] = {
  name: 'one-base',
  setup(build) {
    build.onResolve({ filter: /^base:/ }, ({ path }) => ({
      path: join(import.meta.dirname, 'src', `${path.slice('base:'.length)}.ts`),
      sideEffects: true,
    }))
    build.onLoad({ filter: ENTRIES }, async ({ path }) => ({
      contents: `${await readFile(path, 'utf8')}\n${BASE.map((name) => `import 'base:${name}'`).join('\n')}`,
      loader: 'ts',
    }))
  },
}

const page: NonNullable<Options['esbuildPlugins']>[number] = {
  name: 'page',
  setup(build) {
    build.onLoad({ filter: /\.html$/ }, async ({ path }) => ({
      contents: await pageText(path),
      loader: 'text',
    }))
  },
}

/**
 * The command in one file, for its start: it holds what a registration over MQTT takes, and asks the library for the rest.
 * scripts/finish-build.mjs puts the lines before it that start Node. All but `register` is a file of its own, which is handed
 * what the first has (src/cli/kit.ts) and asks the library too. Names are short in both, which nobody calls: that is a quarter
 * of the two files, and of a fault the command prints the place.
 */
const command = (entry: Record<string, string>, metafile: boolean): Options => ({
  ...shared,
  entry,
  format: ['cjs'],
  outExtension: () => ({ js: '.cjs' }),
  splitting: false,
  metafile,
  esbuildOptions: (options) => {
    Object.assign(options, compact, lines, {
      minifyIdentifiers: true,
      supported: { 'dynamic-import': false },
    })
  },
  esbuildPlugins: [
    globalProcess,
    page,
    {
      name: 'library',
      setup(build) {
        const library = { path: './index.cjs', external: true }
        build.onResolve({ filter: /(?:index|commands)\.ts$/ }, ({ path, importer, kind }) => {
          if (kind !== 'dynamic-import' || !/[\\/]src[\\/]cli[\\/]/.test(importer)) return undefined
          const [, name] = /(factory|emulator|commands)(?:\/index)?\.ts$/.exec(path) ?? []
          return name === undefined ? library : { path: `./${name}.cjs`, external: true }
        })
        // Not reached: the command brings its one transport, and the library has these by itself.
        build.onResolve({ filter: /(?:mqtt|mqtt-ws|https)\.ts$/ }, ({ importer, kind }) =>
          kind === 'dynamic-import' && /[\\/]select\.ts$/.test(importer) ? library : undefined,
        )
        // Chains are put in order here too, and what is doubtful is told; bundles and inspections are for the library.
        build.onResolve({ filter: /\/rare\.ts$/ }, ({ importer, path, resolveDir, kind }) => {
          if (kind !== 'dynamic-import') return undefined
          if (/[\\/]inspection\.ts$/.test(importer)) return library
          const part = /[\\/]x509\.ts$/.test(importer) ? 'chain.ts' : 'doubt.ts'
          return { path: join(resolveDir, dirname(path), part) }
        })
        // Not reached either: the command sends no signing request.
        build.onResolve({ filter: /issuance\.ts$/ }, ({ importer, kind }) =>
          kind === 'dynamic-import' && /[\\/]load-issuance\.ts$/.test(importer) ? library : undefined,
        )
      },
    },
  ],
})

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
      globalProcess,
      oneBase,
      shorterPackages,
      {
        // Credentials, which come before all else, see their own part of what few need; it is one file.
        name: 'rare',
        setup(build) {
          build.onResolve({ filter: /\/rare\.ts$/ }, ({ kind }) =>
            kind === 'dynamic-import' ? { path: join(__dirname, 'src/rare.ts') } : undefined,
          )
        },
      },
      {
        // MQTT.js on Node alone: streams are Node's own, timers come from the clock, and nobody reads its debug output,
        // which would print passwords. The hub is spoken to in MQTT 3.1.1, which has no topic aliases and so no cache of them.
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
          build.onResolve({ filter: /^lru-cache$/ }, ({ path, importer }) =>
            /[\\/]node_modules[\\/]mqtt[\\/]/.test(importer) ? { path, namespace: 'mqtt-5' } : undefined,
          )
          build.onLoad({ filter: /.*/, namespace: 'mqtt-5' }, () => ({
            contents:
              'exports.LRUCache = class { constructor() { throw new Error("MQTT 5 is not part of this") } }',
          }))
          // It wants to know its version.
          build.onLoad({ filter: /[\\/]node_modules[\\/]mqtt[\\/]package\.json$/ }, async ({ path }) => {
            const { version } = JSON.parse(await readFile(path, 'utf8')) as { version: string }
            return { contents: JSON.stringify({ version }), loader: 'json' }
          })
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
        async renderChunk(code, { path }) {
          const result = await transform(code, {
            ...compact,
            format: 'cjs',
            platform: 'node',
            target: 'node20',
            // A lazy chunk is CommonJS too: `require` finds it without starting the ESM loader.
            supported: { 'dynamic-import': false },
          })
          const slimmed = slim(result.code, basename(path).startsWith('chunk-'))
          if (!/^(?:rare-|asn1-|issuance-|emulator\.|testing\.)/.test(basename(path)))
            return { code: await withShortLocals(slimmed) }
          // What is rare turns whatever it meets into an answer, what issues and renews certificates into an error or an event,
          // and the emulator and the contract suite stand on a desk, beside their source: no trace of any comes from the field.
          const short = { ...lines, minifyIdentifiers: true, minifyWhitespace: true, format: 'cjs' } as const
          const [names = ''] = /0&&\(module\.exports=[^;]*;\s*$/.exec(slimmed) ?? []
          return { code: (await transform(slimmed, short)).code.trimEnd() + names }
        },
      },
    ],
  },
  { ...shared, format: ['cjs'], dts: { only: true } },
  command({ 'dps-device': 'src/cli/bin.ts' }, true),
  command({ commands: 'src/cli/commands.ts' }, false),
])
