import { CREDENTIALS_FILTER, readRenewal } from './renewal.ts'

// The hub's side of the wire, written out here and not taken from the client, so that a misreading cannot agree with itself.
// https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub

/** Who speaks on a connection. */
export interface HubPrincipal {
  readonly deviceId: string
  readonly moduleId: string | undefined
}

/** The system properties of a message by name, and the application's own. */
export interface MessageProperties {
  readonly contentType: string | undefined
  readonly contentEncoding: string | undefined
  readonly messageId: string | undefined
  readonly correlationId: string | undefined
  readonly properties: Readonly<Record<string, string>>
}

/** What a device publishes. */
export type DevicePublish =
  | { readonly kind: 'telemetry'; readonly properties: MessageProperties }
  | { readonly kind: 'method-response'; readonly rid: string; readonly status: number }
  | { readonly kind: 'twin-get'; readonly rid: string }
  | { readonly kind: 'twin-report'; readonly rid: string; readonly version: number | undefined }
  | { readonly kind: 'renewal'; readonly rid: string | undefined }

/** What a device may subscribe to. */
export type Subscription = 'commands' | 'methods' | 'twin-responses' | 'twin-desired' | 'credentials'

const RID = /^[A-Za-z0-9\-._~%]{1,128}$/
const METHOD_RESPONSE = /^\$iothub\/methods\/res\/(-?\d{1,10})\/\?([\x21-\x7e]+)$/
const TWIN_GET = /^\$iothub\/twin\/GET\/\?([\x21-\x7e]+)$/
const TWIN_REPORT = /^\$iothub\/twin\/PATCH\/properties\/reported\/\?([\x21-\x7e]+)$/

const base = ({ deviceId, moduleId }: HubPrincipal): string =>
  moduleId === undefined ? `devices/${deviceId}` : `devices/${deviceId}/modules/${moduleId}`

/** The subscription that a filter asks for, or undefined where there is none for this principal. */
export function readFilter(principal: HubPrincipal, filter: string): Subscription | undefined {
  switch (filter) {
    case '$iothub/methods/POST/#':
      return 'methods'
    case '$iothub/twin/res/#':
      return 'twin-responses'
    case '$iothub/twin/PATCH/properties/desired/#':
      return 'twin-desired'
    default:
      // Only a device gets commands and certificates; a module of it does not.
      if (principal.moduleId !== undefined) return undefined
      if (filter === CREDENTIALS_FILTER) return 'credentials'
      return filter === `${base(principal)}/messages/devicebound/#` ? 'commands' : undefined
  }
}

/** What a PUBLISH of this principal says, or the rule that its topic breaks. */
export function readPublish(principal: HubPrincipal, topic: string): DevicePublish | string {
  const events = `${base(principal)}/messages/events`
  if (topic === events || topic.startsWith(`${events}/`)) {
    const properties = readProperties(topic.slice(events.length + 1))
    return typeof properties === 'string' ? properties : { kind: 'telemetry', properties }
  }
  const [, status, methodQuery] = METHOD_RESPONSE.exec(topic) ?? []
  if (status !== undefined && methodQuery !== undefined) {
    const rid = readQuery(methodQuery, [])
    return rid === undefined
      ? 'An answer to a method names one `$rid`, and nothing else.'
      : { kind: 'method-response', status: Number(status), rid: rid.rid }
  }
  const [, getQuery] = TWIN_GET.exec(topic) ?? []
  if (getQuery !== undefined) {
    const rid = readQuery(getQuery, [])
    return rid === undefined
      ? 'A twin is asked for with one `$rid`, and nothing else.'
      : { kind: 'twin-get', rid: rid.rid }
  }
  const [, reportQuery] = TWIN_REPORT.exec(topic) ?? []
  if (reportQuery !== undefined) {
    const query = readQuery(reportQuery, ['$version'])
    const version = query?.fields.get('$version')
    if (query === undefined || (version !== undefined && !/^\d{1,15}$/.test(version))) {
      return 'Properties are reported with one `$rid`, at most one `$version`, and nothing else.'
    }
    return {
      kind: 'twin-report',
      rid: query.rid,
      version: version === undefined ? undefined : Number(version),
    }
  }
  const renewal = principal.moduleId === undefined ? readRenewal(topic) : undefined
  return (
    renewal ??
    'A device publishes its own telemetry, answers to methods and requests about its twin and its certificate.'
  )
}

/** `name=value` pairs of which one is `$rid` and the others are known, no name twice. */
function readQuery(
  query: string,
  known: readonly string[],
): { rid: string; fields: Map<string, string> } | undefined {
  const fields = new Map<string, string>()
  for (const part of query.split('&')) {
    const equals = part.indexOf('=')
    const name = part.slice(0, equals)
    if (equals < 1 || fields.has(name) || !['$rid', ...known].includes(name)) return undefined
    fields.set(name, part.slice(equals + 1))
  }
  const rid = fields.get('$rid')
  return rid !== undefined && RID.test(rid) ? { rid, fields } : undefined
}

/** Percent-encoded `name=value` pairs, no name twice; or the rule they break. */
function readProperties(bag: string): MessageProperties | string {
  const values = new Map<string, string>()
  for (const part of bag === '' ? [] : bag.split('&')) {
    if (!/^[\x21-\x7e]+$/.test(part) || /[/#+]/.test(part)) {
      return 'Properties are percent-encoded: printable ASCII without `/`, `#` and `+`.'
    }
    const equals = part.indexOf('=')
    let name: string
    let value: string
    try {
      name = decodeURIComponent(equals === -1 ? part : part.slice(0, equals))
      value = equals === -1 ? '' : decodeURIComponent(part.slice(equals + 1))
    } catch {
      return 'Properties are percent-encoded UTF-8.'
    }
    if (name === '') return 'A property has a name.'
    if (values.has(name)) return 'No property is named twice.'
    values.set(name, value)
  }
  const take = (name: string): string | undefined => {
    const value = values.get(name)
    values.delete(name)
    return value
  }
  return Object.freeze({
    contentType: take('$.ct'),
    contentEncoding: take('$.ce'),
    messageId: take('$.mid'),
    correlationId: take('$.cid'),
    properties: Object.freeze(Object.fromEntries(values)),
  })
}

/** The topic of a command, with the hub's own properties named as the hub names them. */
export function commandTopic(
  { deviceId }: HubPrincipal,
  system: Readonly<Record<string, string | undefined>>,
  properties: Readonly<Record<string, string>>,
): string {
  const pair = ([name, value]: readonly [string, string]): string =>
    `${encodeURIComponent(name)}=${encodeURIComponent(value)}`
  const known = Object.entries({
    '$.mid': system.messageId,
    '$.to': `/devices/${deviceId}/messages/devicebound`,
    '$.cid': system.correlationId,
    '$.ct': system.contentType,
    '$.ce': system.contentEncoding,
  })
  const pairs = known.flatMap(([name, value]) => (value === undefined ? [] : [pair([name, value])]))
  return `devices/${deviceId}/messages/devicebound/${[...pairs, ...Object.entries(properties).map(pair)].join('&')}`
}

export const methodTopic = (name: string, rid: string): string =>
  `$iothub/methods/POST/${encodeURIComponent(name)}/?$rid=${rid}`

export const twinResponseTopic = (status: number, rid: string, version?: number): string =>
  `$iothub/twin/res/${status}/?$rid=${rid}${version === undefined ? '' : `&$version=${version}`}`

export const desiredTopic = (version: number): string =>
  `$iothub/twin/PATCH/properties/desired/?$version=${version}`
