// What the live tests take from the environment, and what of it is missing.

import { readFileSync } from 'node:fs'
import { symmetricKey, x509 } from 'dps-device-client'
import { deriveDeviceKey } from 'dps-device-client/factory'

const line = (path) => readFileSync(path, 'utf8').trim()

/** Each needs all of its variables, and is left where none is there. */
const CREDENTIALS = {
  'symmetric key': {
    needs: ['DPS_LIVE_REGISTRATION_ID', 'DPS_LIVE_KEY_FILE'],
    make: (id, key) => symmetricKey({ registrationId: id, keyFile: key }),
  },
  'group key': {
    needs: ['DPS_LIVE_GROUP_REGISTRATION_ID', 'DPS_LIVE_GROUP_KEY_FILE'],
    make: async (id, file) =>
      symmetricKey({
        registrationId: id,
        key: await deriveDeviceKey({ groupKey: line(file), registrationId: id }),
      }),
  },
  'X.509': {
    needs: ['DPS_LIVE_CERT_FILE', 'DPS_LIVE_CERT_KEY_FILE'],
    make: (certFile, keyFile) => x509({ certFile, keyFile }),
  },
  'X.509 of a group': {
    needs: ['DPS_LIVE_GROUP_CERT_FILE', 'DPS_LIVE_GROUP_CERT_KEY_FILE'],
    make: (certFile, keyFile) => x509({ certFile, keyFile }),
  },
}

/** For another cloud, a private endpoint or the emulator. */
const ELSEWHERE = [
  'DPS_LIVE_HOST',
  'DPS_LIVE_CONNECT_TO',
  'DPS_LIVE_PORT',
  'DPS_LIVE_EXTRA_ROOT_FILE',
  'DPS_LIVE_PROXY',
]
const SCOPE = 'DPS_LIVE_ID_SCOPE'

export const VARIABLES = [SCOPE, ...Object.values(CREDENTIALS).flatMap(({ needs }) => needs), ...ELSEWHERE]

/**
 * `wrong` names what is there by halves or unknown; `missing` what would have to be there for anything to be tried, and for
 * each credential that is left out.
 *
 * @param {Record<string, string | undefined>} environment
 */
export async function readSettings(environment) {
  const of = (name) => environment[name] || undefined
  const wrong = Object.keys(environment)
    .filter((name) => name.startsWith('DPS_LIVE_') && !VARIABLES.includes(name))
    .map((name) => `${name} is not known`)
  const missing = of(SCOPE) === undefined ? [`${SCOPE}: the id scope of your instance`] : []
  const credentials = []
  for (const [name, { needs, make }] of Object.entries(CREDENTIALS)) {
    const values = needs.map(of)
    const lacking = needs.filter((_, i) => values[i] === undefined)
    if (lacking.length === needs.length) missing.push(`${needs.join(', ')}: a device with ${name}`)
    else if (lacking.length > 0) wrong.push(`${lacking.join(', ')} is missing, for a device with ${name}`)
    else credentials.push({ name, make: () => make(...values) })
  }
  const [host, connectTo, port, extraRoot, proxy] = ELSEWHERE.map(of)
  if (port !== undefined && !/^\d{1,5}$/.test(port)) wrong.push('DPS_LIVE_PORT is no port')
  return {
    wrong,
    missing,
    credentials,
    elsewhere: ELSEWHERE.filter((name) => of(name) !== undefined),
    options: {
      idScope: of(SCOPE),
      ...(host !== undefined && { host }),
      ...(connectTo !== undefined && { connectTo }),
      ...(port !== undefined && { port: Number(port) }),
      ...(proxy !== undefined && { proxy }),
      ...(extraRoot !== undefined && { trust: { extraRoots: readFileSync(extraRoot, 'utf8') } }),
    },
    /** The same for the command. */
    args: [
      ...(of(SCOPE) === undefined ? [] : ['--id-scope', of(SCOPE)]),
      ...(host === undefined ? [] : ['--host', host]),
      ...(connectTo === undefined ? [] : ['--connect-to', connectTo]),
      ...(port === undefined ? [] : ['--port', port]),
      ...(proxy === undefined ? [] : ['--proxy', 'environment']),
      ...(extraRoot === undefined ? [] : ['--extra-root', extraRoot]),
    ],
  }
}
