import { DpsError } from '../errors.ts'
import { printable } from '../printable.ts'
import type { HubIdentity } from './hub-address.ts'

/**
 * What a device and its IoT hub say to each other over MQTT 3.1.1: topics and property bags, as functions of strings.
 *
 * https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub
 */

/** Longest topic of MQTT, in UTF-8 bytes (MQTT 3.1.1, section 1.5.3); what is sent here is ASCII. */
const MAX_TOPIC_BYTES = 65_535

/** What goes with a message, beside its body. */
export interface OutgoingProperties {
  /** `$.ct`, such as `application/json`. */
  readonly contentType?: string | undefined
  /** `$.ce`, such as `utf-8`; the hub routes by the body of a message only where this and the type are given. */
  readonly contentEncoding?: string | undefined
  /** `$.mid` */
  readonly messageId?: string | undefined
  /** `$.cid` */
  readonly correlationId?: string | undefined
  /** The application's own. Names that begin with `$.` belong to the hub. */
  readonly properties?: Readonly<Record<string, string>> | undefined
}

/** What came with a message. The hub's own properties by name, all others in `properties`. */
export interface IncomingProperties {
  readonly messageId: string | undefined
  readonly correlationId: string | undefined
  /** `$.uid` */
  readonly userId: string | undefined
  /** `$.to` */
  readonly to: string | undefined
  readonly contentType: string | undefined
  readonly contentEncoding: string | undefined
  /** `$.exp`, as the hub writes it. */
  readonly expiresAt: string | undefined
  /** `iothub-ack`: which feedback the sender asked for. */
  readonly ack: string | undefined
  readonly properties: Readonly<Record<string, string>>
}

type SystemName = Exclude<keyof IncomingProperties, 'properties'>

const SYSTEM_KEYS: readonly (readonly [SystemName, string])[] = [
  ['messageId', '$.mid'],
  ['correlationId', '$.cid'],
  ['userId', '$.uid'],
  ['to', '$.to'],
  ['contentType', '$.ct'],
  ['contentEncoding', '$.ce'],
  ['expiresAt', '$.exp'],
  ['ack', 'iothub-ack'],
]

const SENT = ['messageId', 'correlationId', 'contentType', 'contentEncoding'] as const

/**
 * A property bag: `$.ct=application%2Fjson&$.ce=utf-8&room=3%20east`. The hub's own come first, in a fixed order.
 *
 * @throws DpsError OPTION_INVALID, phase `config`, for a name that belongs to the hub, and for a name or a value that is no
 *   text
 */
export function encodePropertyBag(bag: OutgoingProperties): string {
  const keys = new Map(SYSTEM_KEYS)
  const pairs: string[] = []
  for (const name of SENT) {
    const value = bag[name]
    if (value !== undefined) pairs.push(`${keys.get(name)}=${encoded(name, value)}`)
  }
  for (const [name, value] of Object.entries(bag.properties ?? {})) {
    const field = `properties["${printable(name, 40)}"]`
    if (name === '') throw invalid('properties has an empty name')
    if (name.startsWith('$.')) throw invalid(`${field} begins with $., which belongs to the hub`)
    pairs.push(`${encoded(field, name)}=${encoded(field, value)}`)
  }
  return pairs.join('&')
}

/**
 * Reads a property bag. A name without `=` is a property without a value, here the empty text; of a name that is
 * repeated the last one counts. Undefined where a percent sign is followed by no UTF-8.
 */
export function decodePropertyBag(bag: string): IncomingProperties | undefined {
  const values = new Map<string, string>()
  for (const pair of bag.split('&')) {
    if (pair === '') continue
    const equals = pair.indexOf('=')
    const name = decoded(equals === -1 ? pair : pair.slice(0, equals))
    const value = equals === -1 ? '' : decoded(pair.slice(equals + 1))
    if (name === undefined || value === undefined) return undefined
    values.set(name, value)
  }
  const system = {} as Record<SystemName, string | undefined>
  for (const [name, key] of SYSTEM_KEYS) {
    system[name] = values.get(key)
    values.delete(key)
  }
  // It would poison the first merge that it meets in the application.
  values.delete('__proto__')
  return { ...system, properties: Object.fromEntries(values) }
}

/**
 * `devices/my-device/messages/events/` and a property bag; for a module `devices/my-device/modules/my-module/messages/events/`.
 *
 * @throws DpsError OPTION_INVALID, phase `config`, where the bag cannot be encoded or is too long for a topic
 */
export function telemetryTopic({ deviceId, moduleId }: HubIdentity, bag: OutgoingProperties = {}): string {
  const module = moduleId === undefined ? '' : `/modules/${moduleId}`
  const topic = `devices/${deviceId}${module}/messages/events/${encodePropertyBag(bag)}`
  if (topic.length > MAX_TOPIC_BYTES) {
    throw invalid(`properties make a topic of ${topic.length} bytes; at most ${MAX_TOPIC_BYTES} are possible`)
  }
  return topic
}

/** The subscription for commands from the cloud, which only devices get: `devices/my-device/messages/devicebound/#`. */
export function commandFilter({ deviceId }: HubIdentity): string {
  return `${commandPrefix(deviceId)}#`
}

/**
 * Reads the topic of a command: `devices/my-device/messages/devicebound/%24.mid=1&room=3`. Undefined for any other topic, and
 * for one whose property bag cannot be read.
 */
export function parseCommandTopic({ deviceId }: HubIdentity, topic: string): IncomingProperties | undefined {
  const prefix = commandPrefix(deviceId)
  return topic.startsWith(prefix) ? decodePropertyBag(topic.slice(prefix.length)) : undefined
}

function commandPrefix(deviceId: string): string {
  return `devices/${deviceId}/messages/devicebound/`
}

/** The subscription for direct methods. */
export const METHOD_FILTER = '$iothub/methods/POST/#'

export interface MethodTopic {
  readonly name: string
  /** Goes back in the answer as it is. */
  readonly requestId: string
}

/** Reads `$iothub/methods/POST/reboot/?$rid=1`; undefined for any other topic. */
export function parseMethodTopic(topic: string): MethodTopic | undefined {
  const found = /^\$iothub\/methods\/POST\/([^/]+)\/\?(.*)$/.exec(topic)
  const requestId = requestIdOf(queryOf(found?.[2]))
  return requestId === undefined ? undefined : { name: found![1]!, requestId }
}

/** `$iothub/methods/res/200/?$rid=1` */
export function methodResponseTopic(status: number, requestId: string): string {
  return `$iothub/methods/res/${status}/?$rid=${requestId}`
}

/** The subscription for answers about the twin. */
export const TWIN_RESPONSE_FILTER = '$iothub/twin/res/#'

/** The subscription for changes of desired properties. */
export const TWIN_DESIRED_FILTER = '$iothub/twin/PATCH/properties/desired/#'

/** `$iothub/twin/GET/?$rid=1`, with an empty body. */
export function twinGetTopic(requestId: string): string {
  return `$iothub/twin/GET/?$rid=${requestId}`
}

/** `$iothub/twin/PATCH/properties/reported/?$rid=1` */
export function twinReportTopic(requestId: string): string {
  return `$iothub/twin/PATCH/properties/reported/?$rid=${requestId}`
}

export interface TwinResponse {
  /** Three digits, HTTP-like: 200 answers a read, 204 a report. */
  readonly status: number
  readonly requestId: string
  /** Of the reported properties, after a report. */
  readonly version: number | undefined
}

/** Reads `$iothub/twin/res/204/?$rid=1&$version=6`; undefined for any other topic. */
export function parseTwinResponse(topic: string): TwinResponse | undefined {
  const found = /^\$iothub\/twin\/res\/([1-9][0-9]{2})\/\?(.*)$/.exec(topic)
  const query = queryOf(found?.[2])
  const requestId = requestIdOf(query)
  if (requestId === undefined) return undefined
  return { status: Number(found![1]), requestId, version: versionOf(query) }
}

/** Reads `$iothub/twin/PATCH/properties/desired/?$version=5`; undefined for any other topic. */
export function parseDesiredTopic(topic: string): { readonly version: number | undefined } | undefined {
  const found = /^\$iothub\/twin\/PATCH\/properties\/desired\/\?(.*)$/.exec(topic)
  const query = queryOf(found?.[1])
  return query === undefined ? undefined : { version: versionOf(query) }
}

type Query = ReadonlyMap<string, string>

/** The pairs of a topic's query; undefined where one is named twice. */
function queryOf(text: string | undefined): Query | undefined {
  if (text === undefined) return undefined
  const query = new Map<string, string>()
  for (const pair of text.split('&')) {
    const equals = pair.indexOf('=')
    if (equals === -1) continue
    const name = pair.slice(0, equals).toLowerCase()
    if (query.has(name)) return undefined
    query.set(name, pair.slice(equals + 1))
  }
  return query
}

/** It goes into the topic of an answer: what cannot be part of one is none. */
function requestIdOf(query: Query | undefined): string | undefined {
  const requestId = query?.get('$rid')
  return requestId !== undefined && /^[!-~]{1,256}$/.test(requestId) && !/[#+/]/.test(requestId)
    ? requestId
    : undefined
}

function versionOf(query: Query | undefined): number | undefined {
  const text = query?.get('$version')
  return text !== undefined && /^[0-9]{1,15}$/.test(text) ? Number(text) : undefined
}

function encoded(field: string, text: unknown): string {
  if (typeof text !== 'string') throw invalid(`${field} must be a string, not ${typeof text}`)
  try {
    return encodeURIComponent(text)
  } catch {
    throw invalid(`${field} contains half of a surrogate pair, which has no UTF-8`)
  }
}

function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

function invalid(message: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message)
}
