import { copyFileSync, existsSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { runScript } from '../support/run-script.ts'
import { readersFolder } from './folder.ts'
import { type Fence, pages, ROOT } from './markdown.ts'

// Every JavaScript and TypeScript block of every page is compiled against the types of the built package; one that is marked
// `js run` is run as well, in a folder with nothing but the package, and prints what the block of text after it says.
// One marked `js microsoft` is of Microsoft's packages, and compiled against those where `npm run interop` has installed them.

/** What a block that shows one line of something may take as given, and no more. */
const CONTEXT = `import type * as library from 'dps-device-client'
import type * as emulation from 'dps-device-client/emulator'
declare global {
  const idScope: string
  const credential: library.Credential
  const store: library.AssignmentStore
  const assignment: library.Assignment
  const client: library.ProvisioningClient
  const emulator: emulation.Emulator
  const passphrase: string
  const certPem: string
  const keyPem: string
  const rootPem: string
  const key: string
  const { x509, symmetricKey, sasSigner, fileStore, hubSettings, ProvisioningClient }: typeof library
  function start(): void
  function open(valve: string | undefined): void
  function apply(properties: object): void
}
`

interface Snippet extends Fence {
  readonly page: string
  readonly file: string
}

const LANGUAGES = new Set(['js', 'mjs', 'cjs', 'javascript', 'ts', 'mts', 'typescript'])
const extensionOf = ({ language, text }: Fence): string => {
  if (language.includes('t')) return 'mts'
  return language === 'cjs' || /^const .* = require\(/m.test(text) ? 'cjs' : 'mjs'
}

const snippets: readonly Snippet[] = pages.flatMap(({ name, fences }) =>
  fences
    .filter(({ language }) => LANGUAGES.has(language))
    .map((fence) => ({
      ...fence,
      page: name,
      file: `${name.replace(/\W+/g, '-')}-${fence.line}.${extensionOf(fence)}`,
    })),
)
const isTheirs = ({ flags }: Fence): boolean => flags.includes('microsoft')
const theirPackages = join(ROOT, 'test', 'interop', 'node_modules')
const haveTheirs = existsSync(join(theirPackages, 'azure-iot-device'))

let folder: string
beforeAll(() => {
  folder = readersFolder()
  for (const { file, text } of snippets) writeFileSync(join(folder, file), text)
  writeFileSync(join(folder, 'context.d.mts'), CONTEXT)
  copyFileSync(join(ROOT, 'examples', 'custom-transport', 'transport.mjs'), join(folder, 'transport.mjs'))
  if (!haveTheirs) return
  for (const name of [
    'azure-iot-device',
    'azure-iot-device-mqtt',
    'azure-iot-provisioning-device',
    'azure-iot-provisioning-device-http',
    'azure-iot-provisioning-device-mqtt',
    'azure-iot-security-symmetric-key',
    'azure-iot-security-x509',
  ]) {
    symlinkSync(join(theirPackages, name), join(folder, 'node_modules', name), 'junction')
  }
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** What the compiler says of some snippets, each complaint at the line of its page. */
function complaints(some: readonly Snippet[]): string[] {
  const program = ts.createProgram(
    [join(folder, 'context.d.mts'), ...some.map(({ file }) => join(folder, file))],
    {
      target: ts.ScriptTarget.ES2022,
      lib: ['lib.es2022.d.ts'],
      module: ts.ModuleKind.NodeNext,
      moduleResolution: ts.ModuleResolutionKind.NodeNext,
      types: ['node'],
      typeRoots: [join(ROOT, 'node_modules', '@types')],
      allowJs: true,
      checkJs: true,
      strict: true,
      exactOptionalPropertyTypes: true,
      allowUnusedLabels: true,
      noEmit: true,
      skipLibCheck: true,
    },
  )
  return ts.getPreEmitDiagnostics(program).map(({ file, start = 0, messageText }) => {
    const message = ts.flattenDiagnosticMessageText(messageText, ' ')
    const snippet = some.find((one) => file?.fileName.endsWith(`/${one.file}`))
    if (snippet === undefined || file === undefined) return `${file?.fileName ?? 'compiler'}: ${message}`
    return `${snippet.page}:${file.getLineAndCharacterOfPosition(start).line + snippet.line}: ${message}`
  })
}

describe('the snippets', () => {
  it('are found', () => {
    expect(snippets.length).toBeGreaterThan(30)
    expect(snippets.filter(({ flags }) => flags.includes('run')).length).toBeGreaterThan(8)
  })

  it('compile against the types of the package', () => {
    expect(complaints(snippets.filter((snippet) => !isTheirs(snippet)))).toEqual([])
  }, 60_000)

  it('are told apart: one that names what is not there does not compile', () => {
    const wrong = { page: 'wrong.md', file: 'wrong.mjs', line: 1, language: 'js', flags: [] }
    const text =
      "import { ProvisioningClient } from 'dps-device-client'\nnew ProvisioningClient({ idScope, credential, tsl: {} })\n"
    writeFileSync(join(folder, wrong.file), text)
    expect(complaints([{ ...wrong, text }])).toEqual([expect.stringMatching(/^wrong\.md:2: .*'tsl'/)])
  }, 60_000)

  it.skipIf(!haveTheirs)(
    'of Microsoft’s packages compile against theirs',
    () => {
      const theirs = snippets.filter(isTheirs)
      expect(theirs.length).toBeGreaterThan(2)
      // Two of them carry a copy of a third each, whose types do not fit each other.
      const ours = complaints(theirs).filter((text) => !/separate declarations of a private/.test(text))
      expect(ours).toEqual([])
    },
    60_000,
  )
})

/** `…` stands for anything within a line, and a line of nothing else for any lines. */
function patternOf(said: string): RegExp {
  const lines = said
    .trimEnd()
    .split('\n')
    .map((line) => {
      if (line.trim() === '…') return '(?:[^\\n]*\\n)*?'
      const parts = line.split('…').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
      return `${parts.join('[^\\n]*')}\\n`
    })
  return new RegExp(`^${lines.join('')}$`)
}

describe('runs and prints what the page says', () => {
  for (const { page, file, line, flags, next } of snippets) {
    if (!flags.includes('run')) continue
    it(`${page}:${line}`, async () => {
      const { code, stderr, stdout } = await runScript(file, folder)
      expect({ code, stderr, stdout }).toMatchObject({ code: 0, stderr: '' })
      expect(next?.language, 'a block of text with the output follows').toBe('text')
      expect(stdout).toMatch(patternOf(next!.text))
    }, 60_000)
  }
})
