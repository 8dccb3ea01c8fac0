import { kit } from '../kit.ts'
import { clientOf } from '../reach.ts'
import { type Check, ok, skipped, warning } from './check.ts'

const SERVICE = /\.azure-devices-provisioning\.(?:net|cn|us)$/

/** What can be said of the options by themselves. */
export const configChecks: readonly Check[] = [
  {
    id: 'config.id-scope',
    run: ({ idScope }) => {
      if (idScope === undefined) return skipped('no id scope: give --id-scope to be let in', true)
      kit.checkIdScope(idScope)
      return /^0[a-z]{2}[0-9a-z]{8}$/i.test(idScope)
        ? ok(idScope)
        : warning(
            `${idScope} does not look like the id scopes of the service, which are as 0ne00000000`,
            'Compare it with the ID Scope on the overview page of the provisioning service: it is not the name of the service.',
          )
    },
  },
  {
    id: 'config.endpoint',
    run: (on) => {
      const { library, settings, host, address, idScope = '', transports } = on
      // Checks the host, the ports, the proxy and the version of the API.
      clientOf(library, { ...settings, transport: transports })
      on.proxy = kit.resolveProxy(settings.proxy)
      const [fault] = kit.cloudWarnings(idScope, host)
      if (fault !== undefined && idScope !== '') {
        return warning(
          kit.spoken(fault),
          'Give the endpoint of the cloud that the id scope is of: the other one answers as if the device did not exist.',
        )
      }
      if (/\.azure-devices\.(?:net|cn|us)$/.test(host)) {
        return warning(
          `${host} is the name of a hub`,
          `A device is told its hub by the service: leave --host out, or give ${kit.DEFAULT_HOST}.`,
        )
      }
      const where = address === host ? host : `${host}, dialled at ${address}`
      return ok(SERVICE.test(host) ? where : `${where}; not a name of the public service`)
    },
  },
  {
    id: 'config.registration-id',
    run: ({ options }) => {
      const id = kit.text(options, 'registration-id')
      if (id === undefined) {
        return skipped(options.has('cert') ? 'it is the CN of the certificate' : 'none was given')
      }
      kit.checkRegistrationId(id)
      return ok(/[A-Z]/.test(id) ? `${id}; its key is that of this spelling, capitals included` : id)
    },
  },
]
