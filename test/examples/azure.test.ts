import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { startEmulator } from '../../src/emulator/index.ts'
import { deriveDeviceKey } from '../../src/factory/index.ts'
import { COMMAND, run } from '../cli/bench.ts'

const FOLDER = fileURLToPath(new URL('../../examples/azure/', import.meta.url))
const read = (name: string) => readFileSync(join(FOLDER, name), 'utf8')

interface Parameter {
  type: string
  defaultValue?: string
  minLength?: number
  maxLength?: number
  metadata: { description: string }
}

describe('the ARM template', () => {
  const template = JSON.parse(read('dps.json'))

  it('is of one instance with TLS 1.2 as its least version', () => {
    expect(Object.keys(template)).toEqual(['$schema', 'contentVersion', 'parameters', 'resources', 'outputs'])
    expect(template.$schema).toMatch(
      /^https:\/\/schema\.management\.azure\.com\/schemas\/[\d-]+\/deploymentTemplate\.json#$/,
    )
    expect(template.resources).toHaveLength(1)
    const { iotHubs, ...properties } = template.resources[0].properties
    expect(template.resources[0]).toMatchObject({
      type: 'Microsoft.Devices/ProvisioningServices',
      apiVersion: '2020-01-01',
      sku: { name: 'S1', capacity: 1 },
    })
    expect(properties).toEqual({ minTlsVersion: '1.2', allocationPolicy: 'Hashed' })
    expect(iotHubs).toMatch(/^\[if\(empty\(parameters\('iotHubName'\)\), createArray\(\), createArray\(/)
  })

  it('has whole expressions, and names no parameter that it does not declare, nor holds any key', () => {
    const text = JSON.stringify(template)
    const used = [...text.matchAll(/parameters\('(\w+)'\)/g)].map(([, name]) => name)
    expect([...new Set(used)].sort()).toEqual(Object.keys(template.parameters).sort())
    for (const [, expression = ''] of text.matchAll(/"(\[[^"]*\])"/g)) {
      expect(expression.split('(').length, expression).toBe(expression.split(')').length)
      expect(expression.split("'").length % 2, expression).toBe(1)
    }
    expect(text).not.toMatch(/[A-Za-z0-9+/]{40,}={0,2}"/)
  })

  // No compiler was to be had: this reads Bicep as text, and knows no more of it than these two files use.
  it('says what the Bicep file says, value for value', () => {
    const bicep = read('dps.bicep')
    const parameters: Record<string, Parameter> = {}
    const declared =
      /@description\('((?:\\'|[^'])*)'\)\n(?:@minLength\((\d+)\)\n@maxLength\((\d+)\)\n)?param (\w+) (\w+)(?: = (.*))?\n/g
    for (const [, description = '', least, most, name = '', type = '', value] of bicep.matchAll(declared)) {
      const literal = /^'(.*)'$/.exec(value ?? '')
      parameters[name] = {
        type,
        ...(value !== undefined && { defaultValue: literal ? literal[1]! : `[${value}]` }),
        ...(least !== undefined && { minLength: Number(least), maxLength: Number(most) }),
        metadata: { description: description.replaceAll("\\'", "'") },
      }
    }
    expect(parameters).toEqual(template.parameters)
    expect(bicep.match(/^param /gm)).toHaveLength(Object.keys(parameters).length)

    const [, type, apiVersion, body = ''] =
      /^resource dps '([^@']+)@([^']+)' = \{\n([\s\S]*?)\n\}\n/m.exec(bicep) ?? []
    const [resource] = template.resources
    expect([type, apiVersion]).toEqual([resource.type, resource.apiVersion])
    const plain = Object.fromEntries(
      [...body.matchAll(/^\s+(\w+): ('[^']*'|\d+|name|location)$/gm)].map(([, key, value = '']) => [
        key,
        value.startsWith("'") ? value.slice(1, -1) : Number(value) || value,
      ]),
    )
    expect(plain).toEqual({
      name: resource.sku.name,
      capacity: resource.sku.capacity,
      location: 'location',
      minTlsVersion: resource.properties.minTlsVersion,
      allocationPolicy: resource.properties.allocationPolicy,
    })
    expect(body).toMatch(/^ {2}name: name\n {2}location: location\n/)

    // The hub: each expression of the one in the other, where only the way to name a parameter differs.
    const asBicep = (text: string) => text.replace(/parameters\('(\w+)'\)/g, '$1')
    const hub = asBicep(resource.properties.iotHubs)
    const [, condition] = /iotHubs: (empty\(iotHubName\)) \? \[\] : \[/.exec(body) ?? []
    const [, connectionString] = /connectionString: (.*)\n/.exec(body) ?? []
    const [, location] = /connectionString: .*\n\s+location: (.*)\n/.exec(body) ?? []
    expect(hub).toBe(
      `[if(${condition}, createArray(), createArray(createObject('connectionString', ${connectionString}, 'location', ${location})))]`,
    )

    const outputs = [...bicep.matchAll(/^output (\w+) (\w+) = dps\.properties\.(\w+)$/gm)].map(
      ([, name, type, property]) => [name, { type, property }],
    )
    const itself = `[reference(resourceId('${resource.type}', parameters('name')), '${resource.apiVersion}').`
    expect(Object.fromEntries(outputs)).toEqual(
      Object.fromEntries(
        Object.entries(template.outputs as Record<string, { type: string; value: string }>).map(
          ([name, { type, value }]) => {
            expect(value.startsWith(itself), value).toBe(true)
            return [name, { type, property: value.slice(itself.length, -1) }]
          },
        ),
      ),
    )
  })
})

it('the key of a device is that which the service’s documentation prints', async () => {
  const groupKey = 'oiK77Oy7rBw8YB6IS6ukRChAw+Yq6GC61RMrPLSTiOOtdI+XDu0LmLuNm11p+qv2I+adqGUdZHm46zXAQdZoOA=='
  const device = (registrationId: string) => deriveDeviceKey({ groupKey, registrationId })
  expect(await device('breakroom499-contoso-tstrsd-007')).toBe('JC8F96eayuQwwz+PkE7IzjH2lIAjCUnAa61tDigBnSs=')
  expect(await device('mainbuilding167-contoso-hpsd-088')).toBe(
    '6uejA9PfkQgmYylj8Zerp3kcbeVrGZ172YLa7VSnJzg=',
  )
})

// Every shell line of the page is run as it stands. Where it speaks to Azure, the emulator is told the same.
it('every step of the page leads to a device that is registered', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'azure-'))
  const emulator = await startEmulator({ assigning: { polls: 0 } })
  try {
    mkdirSync(join(folder, 'bin'))
    symlinkSync(COMMAND, join(folder, 'bin/dps-device'))
    writeFileSync(join(folder, 'root-of-the-emulator.pem'), emulator.roots[0]!)
    const variables: Record<string, string> = {
      ID_SCOPE: emulator.idScope,
      DPS_CONNECT_TO: emulator.address,
      DPS_PORT: `${emulator.port}`,
      DPS_ROOTS: 'none',
      DPS_EXTRA_ROOT: join(folder, 'root-of-the-emulator.pem'),
    }
    const path = join(folder, 'bin') + delimiter + (process.env.PATH ?? '')
    const file = (name: string) => readFileSync(join(folder, name), 'utf8')
    const known: string[] = []
    const verified = new Set<string>()

    /** What the service does, and what the CLI prints of it. */
    const azure = (words: readonly string[]): string => {
      const options = new Map<string, string>()
      const verb = words
        .filter((word, i) => !word.startsWith('-') && !words[i - 1]?.startsWith('-'))
        .join(' ')
      for (const [i, word] of words.entries())
        if (word.startsWith('--')) options.set(word, words[i + 1] ?? '')
      const need = (name: string) => {
        const value = options.get(name)
        if (value === undefined || value === '') throw new Error(`${verb} lacks ${name}`)
        return value
      }
      known.push(verb)
      switch (verb) {
        case 'iot dps enrollment create': {
          const registrationId = need('--enrollment-id')
          if (need('--attestation-type') === 'x509') {
            const certificate = file(need('--certificate-path'))
            emulator.enrollments.addIndividual({ registrationId, attestation: { x509: { certificate } } })
            return ''
          }
          const keys = emulator.enrollments.addIndividual({
            registrationId,
            attestation: { symmetricKey: {} },
          })
          return keys!.primaryKey
        }
        case 'iot dps enrollment-group create': {
          const groupId = need('--enrollment-id')
          const root = options.get('--root-ca-name')
          if (root !== undefined && !verified.has(root)) throw new Error(`${root} was never verified`)
          const ca = options.has('--certificate-path') ? need('--certificate-path') : root && 'root.pem'
          if (ca === undefined) {
            return emulator.enrollments.addGroup({ groupId, attestation: { symmetricKey: {} } })!.primaryKey
          }
          emulator.enrollments.addGroup({ groupId, attestation: { x509: { ca: file(ca) } } })
          return ''
        }
        case 'iot dps enrollment-group delete':
          if (!emulator.enrollments.remove({ groupId: need('--enrollment-id') }))
            throw new Error('no such group')
          return ''
        case 'iot dps certificate generate-verification-code':
          return 'C0DE7F'
        case 'iot dps certificate show':
          return 'AAAAAAFPazE='
        case 'iot dps certificate verify': {
          const [proof, ca] = [need('--path'), 'root.pem'].map((name) => new X509Certificate(file(name)))
          expect(proof!.subject).toBe('CN=C0DE7F')
          expect(proof!.checkIssued(ca!) && proof!.verify(ca!.publicKey)).toBe(true)
          verified.add(need('--certificate-name'))
          return ''
        }
        case 'iot dps show':
          return emulator.idScope
        default:
          return ''
      }
    }

    const blocks = [...read('README.md').matchAll(/^```(sh|azurecli)\n([\s\S]*?)^```$/gm)]
    for (const [, language, block = ''] of blocks) {
      for (const line of block.trim().split('\n')) {
        const expanded = line.replace(/\$([A-Z_]+)/g, (_, name: string) => variables[name] ?? `$${name}`)
        if (language === 'azurecli') {
          const [, name, command = '', target] =
            /^(?:([A-Z_]+)=\$\()?az ([^>)]*?)(?:\)| > (\S+))?$/.exec(expanded) ?? []
          if (command === '') throw new Error(`not understood: ${line}`)
          const printed = azure(command.split(' '))
          if (name !== undefined) variables[name] = printed
          if (target !== undefined) writeFileSync(join(folder, target), `${printed}\n`)
          continue
        }
        if (/^([A-Z]+=\S+ ?)+$/.test(line)) {
          for (const [, name = '', value = ''] of line.matchAll(/([A-Z]+)=(\S+)/g)) variables[name] = value
          continue
        }
        const env = { ...variables, PATH: path }
        const ran = await run(['-c', expanded], { command: ['sh'], cwd: folder, env })
        expect(ran.code, `${line}\n${ran.stdout}${ran.stderr}`).toBe(0)
      }
    }
    const registered = emulator.registrations
      .list()
      .map(({ registrationId, count }) => [registrationId, count])
    expect(registered.sort()).toEqual([
      ['press-1', 1],
      ['press-2', 1],
      ['press-3', 1],
      ['press-4', 2],
    ])
    expect(known).toContain('iot dps certificate verify')
    expect(execFileSync('stat', ['-c', '%a', join(folder, 'press-3.key')], { encoding: 'utf8' })).toBe(
      '600\n',
    )
  } finally {
    await emulator.close()
    rmSync(folder, { recursive: true, force: true })
  }
}, 120_000)
