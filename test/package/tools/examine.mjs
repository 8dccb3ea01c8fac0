// What publint and are-the-types-wrong say of a tarball; exits 1 where they say anything.

import { readFileSync } from 'node:fs'
import { checkPackage, createPackageFromTarballData } from '@arethetypeswrong/core'
import { publint } from 'publint'
import { formatMessage } from 'publint/utils'

const [, , file] = process.argv
const bytes = readFileSync(file)
const tarball = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)

const { messages, pkg } = await publint({ pack: { tarball }, level: 'suggestion', strict: true })
// It takes `#!/usr/bin/env` alone for a command; ours is a shell script, which spares every start a process and which
// consumer/command.mjs runs as npm installs it.
const known = ({ code, path }) => code === 'BIN_FILE_NOT_EXECUTABLE' && path.join() === 'bin,dps-device'
if (!messages.some(known)) throw new Error('publint takes the command as it is: take the exception away')
const said = messages
  .filter((message) => !known(message))
  .map((message) => `publint: ${formatMessage(message, pkg)}`)

const types = await checkPackage(createPackageFromTarballData(new Uint8Array(tarball)))
if (types.types === false) said.push('are-the-types-wrong: there are no types')
else {
  said.push(...types.problems.map((problem) => `are-the-types-wrong: ${JSON.stringify(problem)}`))
  // A subpath that nobody can resolve is not a problem to it, where no way of resolving finds it.
  for (const [subpath, { resolutions }] of Object.entries(types.entrypoints)) {
    for (const way of ['node16-cjs', 'node16-esm', 'bundler']) {
      const { resolution, isWildcard } = resolutions[way]
      if (resolution === undefined && isWildcard !== true && !subpath.endsWith('.json'))
        said.push(`are-the-types-wrong: ${subpath} is not found by ${way}`)
    }
  }
}
for (const line of said) console.log(line)
const entries = Object.keys(types.entrypoints ?? {})
if (said.length === 0) console.log(`${entries.length} subpaths: ${entries.join(' ')}`)
process.exitCode = said.length === 0 ? 0 : 1
