// What each entry of the package exports, with its signature and without its text: one report per entry in test/api, which
// a test holds against the declarations that are built. `npm run api` writes them; the difference is what a release changes.

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const root = fileURLToPath(new URL('..', import.meta.url))
const { exports: subpaths } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))

/** Declarations as a consumer's compiler finds them, main entry first: `[name in the report, path, name in an import]`. */
const entries = Object.entries(subpaths).flatMap(([subpath, { require: target }]) => {
  if (target === undefined) return []
  const path = join(root, target.types)
  const name = target.types.slice('./dist/'.length, -'.d.cts'.length)
  return [{ name, path, specifier: `dps-device-client${subpath.slice(1)}` }]
})

const printer = ts.createPrinter({ removeComments: true, newLine: ts.NewLineKind.LineFeed })

/** The report of each entry by the name of its file. */
export function apiReports() {
  // Types of Node are named and not looked into, so neither they nor the library are needed.
  const program = ts.createProgram(
    entries.map(({ path }) => path),
    {
      noLib: true,
      types: [],
      module: ts.ModuleKind.NodeNext,
      moduleResolution: ts.ModuleResolutionKind.NodeNext,
    },
  )
  const checker = program.getTypeChecker()
  const origin = (symbol) => (symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol)
  const known = new Map()
  const reports = entries.map(({ name, path, specifier }) => {
    const source = program.getSourceFile(path)
    if (source === undefined) throw new Error(`${path} is missing: run npm run build`)
    const exported = new Map(
      checker.getExportsOfModule(checker.getSymbolAtLocation(source)).map((one) => [origin(one), one.name]),
    )
    const elsewhere = [...exported].filter(([symbol]) => known.has(symbol))
    const own = [...exported].filter(([symbol]) => !known.has(symbol))
    const hidden = new Map()
    const open = own.map(([symbol]) => symbol)
    for (let symbol = open.pop(); symbol !== undefined; symbol = open.pop()) {
      for (const found of namedIn(symbol, checker, origin)) {
        if (exported.has(found) || known.has(found) || hidden.has(found)) continue
        hidden.set(found, found.name)
        open.push(found)
      }
    }
    const named = new Map([...known, ...exported])
    const text = [
      `# ${specifier}`,
      '',
      'Written by `npm run api`.',
      ...section(own, named),
      ...(elsewhere.length > 0 ? ['', '## Exported by another entry too', ''] : []),
      ...elsewhere
        .map(([symbol, as]) => `- \`${as}\`${isValue(symbol) ? ' (value)' : ''}: ${known.get(symbol).from}`)
        .sort(),
      ...(hidden.size > 0 ? ['', '## Named by these, not exported', ...section([...hidden], named)] : []),
      '',
    ].join('\n')
    for (const [symbol, as] of own) known.set(symbol, { as, from: `\`${specifier}\`` })
    return [`${name}.api.md`, text]
  })
  return new Map(reports)
}

const isValue = (symbol) => (symbol.flags & ts.SymbolFlags.Value) !== 0

/** What stands at the top of a file of ours and is named in a declaration. */
function namedIn(symbol, checker, origin) {
  const found = new Set()
  const visit = (node) => {
    if (ts.isIdentifier(node)) {
      const at = checker.getSymbolAtLocation(node)
      const target = at && origin(at)
      if (target?.declarations?.some((one) => ts.isSourceFile(statementOf(one)?.parent ?? one)))
        found.add(target)
    }
    ts.forEachChild(node, visit)
  }
  for (const declaration of symbol.declarations) visit(declaration)
  found.delete(symbol)
  return found
}

/** A variable stands in a list in a statement; all else is one. Undefined for what is inside of something. */
function statementOf(declaration) {
  if (ts.isVariableDeclaration(declaration)) return declaration.parent.parent
  return ts.isStatement(declaration) ? declaration : undefined
}

function section(symbols, named) {
  const texts = symbols.map(([symbol, as]) => {
    const tags = symbol.getJsDocTags().map(({ name }) => name)
    const marks = ['beta', 'deprecated', 'experimental'].filter((tag) => tags.includes(tag))
    const text = symbol.declarations
      .map((one) => printer.printNode(ts.EmitHint.Unspecified, statementOf(one), one.getSourceFile()))
      .join('\n')
      .replace(/^(?:export )?(?:declare )?/gm, '')
    return [as, `${marks.map((mark) => `// @${mark}\n`).join('')}${withNames(text, named, symbol, as)}`]
  })
  return texts.sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([, text]) => ['', '```ts', text, '```'])
}

/** The bundler of the declarations numbers a name that two modules have. */
function withNames(text, named, symbol, as) {
  const names = new Map([...named].map(([one, name]) => [one.name, name.as ?? name]))
  names.set(symbol.name, as)
  return text.replace(/[A-Za-z_]\w*(?:\$\d+)?/g, (name) =>
    name.includes('$') ? (names.get(name) ?? name) : name,
  )
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const folder = join(root, 'test/api')
  for (const [file, text] of apiReports()) writeFileSync(join(folder, file), text)
  console.log(`test/api: ${readdirSync(folder).join(', ')}`)
}
