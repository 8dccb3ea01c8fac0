import type { EmulatorEvent, PacketRecord } from '../../emulator/index.ts'
import { kit } from '../kit.ts'

export type Tone = 'good' | 'bad'

/** `hh:mm:ss.mmm`, UTC. */
export const timeOf = (ms: number): string => new Date(ms).toISOString().slice(11, 23)

/** An event as one object that JSON can hold; a ClientHello as what it says. */
export function eventJson(event: EmulatorEvent, at: number): Record<string, unknown> {
  const time = kit.isoTime(at)
  if (event.type === 'telemetry') {
    // The packet that it came in tells its text.
    const { body, ...message } = event.message
    return { time, ...event, message: { ...message, bytes: body.length } }
  }
  if (event.type !== 'client-hello') return { time, ...event }
  const { bytes: _, offered, ...rest } = event
  return { time, ...rest, ...offered }
}

/** The status of a reply of the service, over MQTT or HTTPS. */
export function statusOf({ direction, topic, status }: PacketRecord): number | undefined {
  if (direction === 'in') return undefined
  const [, said] = /^\$dps\/registrations\/res\/(\d{3})\//.exec(topic ?? '') ?? []
  return said === undefined ? status : Number(said)
}

function packetText(packet: PacketRecord): string {
  const { direction, type, clientId, topic, topics, returnCode, status, method, target } = packet
  const proof = packet.passwordPresent || packet.authorizationPresent ? 'token redacted' : undefined
  const filters = topics?.map(({ filter }) => filter).join(' ')
  const code = returnCode === undefined ? undefined : `code ${returnCode}`
  const said = [method, target, status, clientId, topic, filters, code, proof].filter(
    (part) => part !== undefined,
  )
  return `${direction === 'in' ? '→' : '←'} ${type}${said.length === 0 ? '' : ` ${said.join(' ')}`}`
}

/** An event in a line, and whether it is a good or a bad one; undefined for what need not be said. */
export function eventText(event: EmulatorEvent): readonly [text: string, tone?: Tone] {
  switch (event.type) {
    case 'connection-opened':
      return [`TCP, to port ${event.port}`]
    case 'client-hello': {
      const { versions, suites, groups, serverName, ticket } = event.offered
      return [
        `ClientHello, ${versions.join(' ')} for ${serverName ?? 'no name'}: ${suites.join(' ')}; ${groups.join(' ')}${ticket ? '; session ticket' : ''}`,
      ]
    }
    case 'handshake-done': {
      const { protocol, cipher, resumed, clientCertificate } = event
      const who =
        clientCertificate === undefined ? 'no certificate' : `certificate ${clientCertificate.subject}`
      return [`TLS ${protocol}, ${cipher}, ${resumed ? 'resumed' : 'full'}, ${who}`, 'good']
    }
    case 'handshake-failed':
      return [`TLS, failed: ${event.code}`, 'bad']
    case 'packet': {
      const text = packetText(event.packet)
      return (statusOf(event.packet) ?? 0) >= 400 ? [text, 'bad'] : [text]
    }
    case 'refused':
      return [`refused, ${event.registrationId}: ${event.reason}`, 'bad']
    case 'violation':
      return [`violation, ${event.rule}`, 'bad']
    case 'fault':
      return [`fault, at ${event.point.at}: ${event.actions.join(', ')}`, 'bad']
    case 'registration': {
      const { registrationId, assignedHub, deviceId, substatus } = event.registration
      return [`${registrationId} is assigned to ${assignedHub} as ${deviceId}, ${substatus}`, 'good']
    }
    case 'certificate-issued':
      return [`a certificate is issued for ${event.certificate.registrationId}`, 'good']
    case 'telemetry':
      return [`telemetry, ${event.message.deviceId}: ${event.message.body.length} bytes`, 'good']
    case 'hub-connected':
      return [`${event.clientId} is connected to ${event.hub}`, 'good']
    case 'hub-disconnected':
      return [
        `${event.clientId} is disconnected from ${event.hub}${event.reason === undefined ? '' : `: ${event.reason}`}`,
      ]
    default:
      return ['closed']
  }
}

/** The connection that an event is about; a certificate and a registration tell of none. */
export function connectionOf(event: EmulatorEvent): number | undefined {
  if ('connectionId' in event) return event.connectionId
  if (event.type === 'packet') return event.packet.connectionId
  if (event.type === 'telemetry') return event.message.connectionId
  return event.type === 'fault' ? event.point.connectionId : undefined
}
